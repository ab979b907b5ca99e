"""`lmsi import-hf`: a Hugging Face model becomes a checkpoint, a tokenizer and a gin file."""

import argparse
from pathlib import Path

from lmsi_jax.cli.commands import Load

NAME = "import-hf"
HELP = "a Hugging Face model (safetensors) -> a checkpoint, its tokenizer and model.gin"
EXAMPLE = "downloads/Qwen2.5-1.5B models/qwen"
CONFIGS = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's own arguments."""
    parser.add_argument("source", metavar="DIR", type=Path, help="the folder of the model")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to make")
    parser.add_argument(
        "--dtype",
        choices=("keep", "float32", "bfloat16"),
        default="keep",
        help="type of the parameters in the checkpoint (default: as they are)",
    )


def run(args: argparse.Namespace, load: Load) -> None:
    """Carries the command out.

    Raises:
      LmsiError: the model is not supported, or incomplete; nothing is written then.
    """
    del load
    from lmsi_jax.interop.hf_weights import import_model

    config = import_model(args.source, args.out, args.dtype)
    print(f"{config.parameter_count:,} parameters in {args.out}")
    print(f"next: lmsi run CONFIG --gin_file={args.out / 'model.gin'}")
