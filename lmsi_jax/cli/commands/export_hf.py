"""`lmsi export-hf`: a checkpoint becomes a folder that Hugging Face's transformers load."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lmsi_jax.cli.commands import Load
from lmsi_jax.errors import LmsiError

if TYPE_CHECKING:
    from lmsi_jax.config.run import Run

NAME = "export-hf"
HELP = "a checkpoint -> safetensors, config.json and tokenizer for Hugging Face's transformers"
EXAMPLE = "runs/qwen/round_1/train exported/qwen"
CONFIGS = ""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's own arguments."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a checkpoint_N folder, or one that holds some"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to make")
    parser.add_argument(
        "--run",
        metavar="DIR",
        help="the run's or imported model's folder, with config.gin or model.gin (default: the "
        "nearest above CHECKPOINT)",
    )
    parser.add_argument(
        "--dtype",
        choices=("keep", "float32", "bfloat16"),
        default="keep",
        help="type of the tensors (default: as they are)",
    )
    parser.add_argument(
        "--max_shard_size", default="5GB", help="size of a file at most (default: 5GB)"
    )


def run(args: argparse.Namespace, load: Load) -> None:
    """Carries the command out.

    Raises:
      LmsiError: the model has no Hugging Face architecture, or something is missing; nothing is
        written then.
    """
    del load
    size = parse_size(args.max_shard_size)
    from lmsi_jax.interop.hf_weights import export_model
    from lmsi_jax.pipeline.context import Context
    from lmsi_jax.training import checkpoints

    checkpoints.find(args.checkpoint)  # before anything is asked for of a folder that is not there
    config = _config_of(args.checkpoint, args.run)
    export_model(
        args.checkpoint,
        config.model,
        Context(config, frozenset()).tokenizer_path,
        args.out,
        dtype=args.dtype,
        max_shard_bytes=size,
    )
    print(f"{config.model.parameter_count:,} parameters in {args.out}")


def parse_size(text: str) -> int:
    """Returns the bytes of "5GB", "200MB" or "1000".

    Raises:
      LmsiError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    size = float(match[1]) * _UNITS[match[2]] if match else 0
    if size < 1:
        raise LmsiError(f"--max_shard_size={text}: write a size such as 5GB or 200MB")
    return int(size)


def _config_of(checkpoint: str, folder: str | None) -> "Run":
    """Builds the run that a checkpoint belongs to, from the gin file that lies above it.

    Raises:
      LmsiError: there is none.
    """
    from etils import epath

    from lmsi_jax.config import gin_edge
    from lmsi_jax.config.configurables import load_run

    start = epath.Path(checkpoint).resolve()
    places = [epath.Path(folder)] if folder else [start, *start.parents]
    found = [
        place / name
        for place in places
        for name in ("config.gin", "model.gin")
        if (place / name).exists()
    ]
    if not found:
        raise LmsiError(
            f"no config.gin and no model.gin {'in' if folder else 'above'} {folder or checkpoint}, "
            "so the model's shape is not known; name the run's folder with --run=DIR"
        )
    out = gin_edge.Binding(name="Run.output_dir", value=repr(str(found[0].parent)))
    gin_edge.load(str(found[0]), gin_edge.GinArgs(bindings=(out,)))
    return load_run()
