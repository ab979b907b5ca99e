"""`lmsi aot`: compiles a run's programs for TPUs that are not here, and says what they cost."""

import argparse
import os

from lmsi_jax.cli.commands import Load
from lmsi_jax.errors import LmsiError

NAME = "aot"
HELP = "compile a run for a TPU topology without a TPU: memory, FLOPs, collectives, time"
EXAMPLE = "pod_palm_62b --topology=v5p:4x4x4 --what=train --json=palm_62b.json"
CONFIGS = "runs"

_PROGRAMS = ("train", "sample")
# No TPU is looked for here; libtpu asks no metadata server, and minds no second process.
_ALONE = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the topology and what is assumed of the questions."""
    parser.add_argument(
        "--topology", required=True, help="KIND:SHAPE, such as v5e:4x4 or v5p:8x8x8"
    )
    parser.add_argument("--what", default="train,sample", help="train, sample, or both (default)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--prompt_tokens", type=int, default=1024, help="task prompt (1024)")
    parser.add_argument("--question_tokens", type=int, default=128, help="a question (128)")
    parser.add_argument(
        "--occupancy", type=float, default=0.9, help="share of slots that are busy (0.9)"
    )


def run(args: argparse.Namespace, load: Load) -> None:
    """Compiles, prints, and writes the JSON.

    Raises:
      LmsiError: a wrong argument, libtpu is missing, or a mesh larger than the topology.
    """
    what = tuple(args.what.split(","))
    if not set(what) <= set(_PROGRAMS):
        raise LmsiError(f"--what={args.what}: write train, sample or train,sample")
    if not (0 < args.occupancy <= 1 and args.prompt_tokens >= 0 and args.question_tokens > 1):
        raise LmsiError(
            "--occupancy is above 0 and at most 1, --prompt_tokens 0 or more, --question_tokens 2 "
            "or more"
        )
    os.environ.update(_ALONE)  # before JAX is imported
    from lmsi_jax.runtime.files import write_json
    from lmsi_jax.tools import aot_report
    from lmsi_jax.tools.aot_report import Lengths

    lengths = Lengths(prompt=args.prompt_tokens, question=args.question_tokens)
    found = aot_report.check(load(()), args.topology, what, lengths, args.occupancy, print)
    if args.json:
        write_json(args.json, found)
