"""`lmsi study`: variants of a run and several seeds; a table and a plot of what they gave."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lmsi_jax.cli.commands import Load

if TYPE_CHECKING:
    from lmsi_jax.config.run import Run

NAME = "study"
HELP = "variants of a run with several seeds: one table, one plot"
EXAMPLE = "formats"
CONFIGS = "studies"

_MAPS = Path("/proc/self/maps")
_MANY_MAPS = 30_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what is done instead of running the study."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--plan", action="store_true", help="say what is to be run and how long")
    group.add_argument("--table", action="store_true", help="print the table that is there")
    group.add_argument(
        "--into",
        metavar="FILE",
        type=Path,
        help="write the table into FILE, between <!-- study NAME --> and <!-- end -->",
    )


def run(args: argparse.Namespace, load: Load) -> None:
    """Carries the command out.

    Raises:
      LmsiError: a run's configuration is wrong, or there is no table yet.
    """
    from lmsi_jax.config import gin_edge
    from lmsi_jax.config.configurables import load_study
    from lmsi_jax.tools.study import plan, read_result, run_study
    from lmsi_jax.tools.study_page import insert, markdown

    study = load_study()
    if args.plan:
        print(plan(study))
        return
    if args.table or args.into:
        table = markdown(read_result(study))
        if args.into:
            insert(args.into, study.name, table)
        else:
            print(table)
        return
    from lmsi_jax.pipeline.rounds import execute
    from lmsi_jax.runtime.signals import signals_as_exceptions

    command = shlex.join(["lmsi", *sys.argv[1:]])

    def carry_out(run: "Run", stages: tuple[str, ...]) -> None:
        """Runs stages of the run that was loaded last."""
        execute(run, stages, command, gin_edge.operative_config())
        _clear_compiled_programs()

    def say(text: str) -> None:
        """Prints at once, between the stages' own lines."""
        print(text, flush=True)

    with signals_as_exceptions():
        run_study(study, load, carry_out, say)


def _clear_compiled_programs() -> None:
    """Clears JAX's compiled programs once they occupy many memory maps.

    A process on Linux may have 65,530 maps, each program takes several, and XLA crashes when there
    are none left. Other systems have no such limit that we know of.
    """
    if _MAPS.exists() and len(_MAPS.read_bytes().splitlines()) > _MANY_MAPS:
        import jax

        jax.clear_caches()
