"""Finds the runs below a folder, describes their state, and frees checkpoints nothing needs.

Only local folders: a bucket has no cheap listing. Nothing here reads a configuration or weights,
so a list of a hundred runs takes a moment.
"""

import contextlib
import dataclasses
import fcntl
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence

from lmsi_jax.errors import LmsiError
from lmsi_jax.records import SCHEMA
from lmsi_jax.runtime.files import TEMPORARY, cannot, exclusive, read_json, write_record

FREED = "freed.json"
"""A record beside a finished training's checkpoint that `lmsi clean` freed, in part or whole."""
CONFIG = "config.gin"
_FINISHED, _BEGUN = "stage.json", "config.json"
_RESULTS = ("report.json", "distillation.json", "unit.json")
_ROUND = re.compile(r"round_(\d+)")
_CHECKPOINT = re.compile(r"checkpoint_(\d+)")
_UNFINISHED = ".orbax-checkpoint-tmp"
_REPLACED = ".replaced"
_DEPTH = 4
"""Levels below the folder that are searched: a study's runs are at DIR/STUDY/VARIANT/seedN."""


@dataclasses.dataclass(frozen=True)
class RunState:
    """The state of a run as its files tell it.

    Attributes:
      folder: the run's folder.
      rounds: rounds whose training is finished.
      planned: rounds that the configuration asks for; None if that is not a plain number.
      state: a few words, such as "finished" or "running: sample, round 1".
      size: bytes of all files.
      changed: time of the newest stage or report, in seconds since the epoch.
    """

    folder: pathlib.Path
    rounds: int
    planned: int | None
    state: str
    size: int
    changed: float


@dataclasses.dataclass(frozen=True)
class Freeable:
    """A folder that nothing needs any more.

    Attributes:
      path: the folder.
      reason: why, in words.
      size: bytes that it frees.
      optimizer: of a checkpoint, its optimizer's state alone.
    """

    path: pathlib.Path
    reason: str
    size: int
    optimizer: bool = False


def is_run(folder: pathlib.Path) -> bool:
    """Returns True if a folder is that of a run that has begun."""
    return (folder / CONFIG).is_file()


def find_runs(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of all runs at or below a folder, by name."""
    return sorted(_runs_below(folder, _DEPTH))


def _runs_below(folder: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
    if is_run(folder):
        yield folder
    elif depth:
        with contextlib.suppress(OSError):  # of a folder that may not be read
            for child in folder.iterdir():
                if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                    yield from _runs_below(child, depth - 1)


def describe_run(folder: pathlib.Path) -> RunState:
    """Returns the state of a run, from the names and times of its files alone."""
    stages = [*_stages(folder)]
    times = [_time(stage / _FINISHED) or _time(stage / _BEGUN) for _, stage in stages]
    config = (folder / CONFIG).read_text(errors="replace")
    compares = (
        "Evaluation.checkpoints = (" in config and "Evaluation.checkpoints = ()" not in config
    )
    reports = [_time(folder / name) for name in (*_RESULTS, *(("eval.json",) if compares else ()))]
    rounds = sum(_is_finished(stage) for _, stage in stages if stage.name == "train")
    planned = 0 if compares else _planned_rounds(config)
    return RunState(
        folder=folder,
        rounds=rounds,
        planned=planned,
        state=_state(folder, stages, rounds, planned, max(reports) >= max(times, default=0.0)),
        size=size_of(folder),
        changed=max([*times, *reports, _time(folder / CONFIG)]),
    )


def _stages(folder: pathlib.Path) -> Iterator[tuple[int, pathlib.Path]]:
    """Yields (round, folder) of every stage that has begun; of pre-training it is the run's."""
    for child in sorted(folder.iterdir()):
        if match := _ROUND.fullmatch(child.name):
            for stage in child.iterdir():
                if (stage / _BEGUN).exists() or _is_finished(stage):
                    yield int(match[1]), stage
        elif (child / _BEGUN).exists() and child.name != "questions":
            yield 0, child
    if (folder / _BEGUN).exists():
        yield 0, folder


def _state(
    folder: pathlib.Path,
    stages: Sequence[tuple[int, pathlib.Path]],
    rounds: int,
    planned: int | None,
    reported: bool,
) -> str:
    unfinished = [(number, stage) for number, stage in stages if not _is_finished(stage)]
    places = sorted(unfinished or stages, key=lambda place: _time(place[1] / _BEGUN))
    where = ""
    if places:
        number, stage = places[-1]
        where = f"{stage.name}, round {number}" if stage != folder else "pretrain"
    if _is_locked(folder):
        return f"running: {where}" if where else "running"
    if unfinished:
        return f"stopped in {where}"
    if not stages:
        return "begun"
    if reported or not planned or rounds >= planned:
        early = planned and 0 < rounds < planned
        return "finished early" if early else "finished"
    return f"stopped after {where}"


def _is_finished(stage: pathlib.Path) -> bool:
    return (stage / _FINISHED).exists()


def _time(path: pathlib.Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _planned_rounds(config: str) -> int | None:
    found = re.search(r"^Run\.rounds = (\d+)$", config, re.MULTILINE)
    return int(found[1]) if found else None


def _is_locked(folder: pathlib.Path) -> bool:
    """Returns True if a process works in a run's folder, see `files.exclusive`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # of a file system without locks
        return False
    finally:
        os.close(handle)
    return False


def size_of(folder: pathlib.Path) -> int:
    """Returns the bytes of all files below a folder; files that vanish meanwhile count as 0."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


# --- what nothing needs ---------------------------------------------------------------------------


def find_freeable(folder: pathlib.Path) -> list[Freeable]:
    """Returns what `free` may remove from a run; the last model and all else that counts remain.

    A round's model is needed until the next round is trained and both are evaluated. Of a finished
    training nothing needs the optimizer's state, nor the steps before the last one, unless
    `Training.keep_best` asked for the best ones. Saves that were cut off are never needed.

    Raises:
      LmsiError: the folder is no run's.
    """
    if not is_run(folder):
        raise LmsiError(f"{folder} is no run: it has no {CONFIG}; `lmsi runs` lists runs")
    config = (folder / CONFIG).read_text(errors="replace")
    unlabelled = re.search(r"^Questions\.test = \(\)$", config, re.MULTILINE) is not None
    keeps_best = re.search(r"^Training\.keep_best = [1-9]", config, re.MULTILINE) is not None
    found = []
    for number, train in _trainings(folder):
        for path in sorted(train.iterdir()):
            if _UNFINISHED in path.name or path.name.endswith((TEMPORARY, _REPLACED)):
                found.append(_freeable(path, "left by a command that was cut off"))
        steps = _checkpoints(train)
        if not (steps and _is_finished(train)):
            continue
        earlier = [] if keeps_best else steps[:-1]
        found += [_freeable(path, "an earlier step of a finished training") for path in earlier]
        kept = [path for path in steps if path not in earlier]
        evaluated = unlabelled or all(
            _is_finished(folder / f"round_{n}" / "eval") for n in (number, number + 1)
        )
        if _is_finished(folder / f"round_{number + 1}" / "train") and evaluated:
            reason = f"round {number + 1} is trained and evaluated"
            found += [_freeable(path, reason) for path in kept]
        else:
            found += filter(None, map(_optimizer_state, kept))
    return found


def free(
    folder: pathlib.Path,
    items: Sequence[Freeable],
    drop_optimizer: Callable[[pathlib.Path], None],
) -> None:
    """Removes what `find_freeable` returned; a record beside a checkpoint says so.

    Args:
      folder: the run's.
      items: what to remove.
      drop_optimizer: removes the optimizer's state from a checkpoint.

    Raises:
      LmsiError: another process works in the run's folder, or it cannot be written.
    """
    with exclusive(folder):
        for item in items:
            try:
                if item.optimizer or _CHECKPOINT.fullmatch(item.path.name):
                    record = {"schema": SCHEMA, "freed": item.path.name}
                    write_record(item.path.parent / FREED, record)
                if item.optimizer:
                    drop_optimizer(item.path)
                else:
                    _remove(item.path)
            except OSError as error:
                raise cannot("remove", item.path, error) from error


def replace_folder(new: pathlib.Path, old: pathlib.Path) -> None:
    """Puts a folder in the place of another one, which remains beside it if that is cut off."""
    aside = old.with_name(f".{old.name}{_REPLACED}")
    os.replace(old, aside)
    os.replace(new, old)
    shutil.rmtree(aside)


def restore_replaced(train: pathlib.Path) -> None:
    """Puts a checkpoint back that `replace_folder` had put aside when it was cut off."""
    for aside in train.glob(f".*{_REPLACED}"):
        old = aside.with_name(aside.name.removeprefix(".").removesuffix(_REPLACED))
        if not old.exists():
            os.replace(aside, old)


def _remove(path: pathlib.Path) -> None:
    # Renamed first: half a checkpoint would pass for a damaged one.
    gone = path.with_name(f".{path.name.strip('.')}{TEMPORARY}")
    os.replace(path, gone)
    if gone.is_dir():
        shutil.rmtree(gone)
    else:
        gone.unlink()


def _optimizer_state(checkpoint: pathlib.Path) -> Freeable | None:
    """Returns the optimizer's state of a checkpoint; None if it has none."""
    try:
        metadata = read_json(checkpoint / "state" / "_METADATA")["tree_metadata"]
        counts = [
            (
                any(key["key"] == "param_states" for key in entry["key_metadata"]),
                math.prod(entry["value_metadata"].get("write_shape") or ()),
            )
            for entry in metadata.values()
        ]
    except (LmsiError, KeyError, TypeError, AttributeError):  # another version of Orbax wrote it
        return None
    state, total = sum(n for of_state, n in counts if of_state), sum(n for _, n in counts)
    if not state:
        return None
    reason = "the optimizer's state of a finished training"
    return Freeable(checkpoint, reason, round(size_of(checkpoint) * state / total), optimizer=True)


def _freeable(path: pathlib.Path, reason: str) -> Freeable:
    return Freeable(path, reason, size_of(path) if path.is_dir() else path.stat().st_size)


def _trainings(folder: pathlib.Path) -> Iterator[tuple[int, pathlib.Path]]:
    """Yields the training folder of each round, in order."""
    rounds = [
        (int(m[1]), child) for child in folder.iterdir() if (m := _ROUND.fullmatch(child.name))
    ]
    for number, child in sorted(rounds):
        if (child / "train").is_dir():
            restore_replaced(child / "train")
            yield number, child / "train"


def _checkpoints(train: pathlib.Path) -> list[pathlib.Path]:
    """Returns the complete checkpoints of a training, by step."""
    found = {child: _CHECKPOINT.fullmatch(child.name) for child in train.iterdir()}
    steps = sorted((int(match[1]), child) for child, match in found.items() if match)
    return [child for _, child in steps]
