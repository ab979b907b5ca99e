"""Stages that another run has finished already: an equal one is taken over, not computed again."""

import pathlib
import shutil
from collections.abc import Sequence

from etils import epath

from lmsi_jax.files import TEMPORARY, new_folder, read_json
from lmsi_jax.store import Stage


def take_over(stage: Stage, output: epath.Path, runs: Sequence[str]) -> None:
    """Copies an equal finished stage of another run, unless this run has begun it.

    Equal is what lies at the same place of the run's folder, so that round and noise are the same,
    and has the same fingerprint: settings and, through its inputs', all that came before. The copy
    appears whole or not at all, and `Stage.begin` compares it with its checksums as it does with
    what was made here.

    Args:
      stage: of this run.
      output: this run's folder.
      runs: folders of other runs, local as this one's; the first that has the stage is taken.
    """
    if not runs or stage.directory.exists():
        return
    place = stage.directory.relative_to(output)
    for run in runs:
        found = epath.Path(run) / place
        if _fingerprint(found) == stage.fingerprint:
            with new_folder(pathlib.Path(stage.directory)) as made:
                unfinished = shutil.ignore_patterns(f".*{TEMPORARY}")
                shutil.copytree(found, made, dirs_exist_ok=True, ignore=unfinished)
            return


def _fingerprint(directory: epath.Path) -> str | None:
    """Of a finished stage; None where there is none."""
    record = directory / "stage.json"
    return read_json(record)["fingerprint"] if record.exists() else None
