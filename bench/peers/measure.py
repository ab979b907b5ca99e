"""Measures a decoding system: command line, clocks and JSON shared by all systems."""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from bench.workloads import WORKLOADS, Model, Workload

_MEMORY_NOTE = "peak memory is the process's, with loading, compilation and warm-up"


class Skipped(Exception):
    """This system cannot run here; its text says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Described:
    """The description of a system.

    Attributes:
      packages: distributions whose versions are reported.
      notes: what a reader must know about this system's figures.
      settings: how it was run.
    """

    packages: Sequence[str] = ()
    notes: Sequence[str] = ()
    settings: dict[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready(Described):
    """A system with its model loaded, ready to decode.

    Attributes:
      run: decodes the whole workload, prefill included, with noise from a seed; returns how many
        useful tokens each sample got. It must return only when all work is done.
      warm_up: what is run once before the clock starts; it must meet every shape that `run` meets.
        By default `run` itself.
    """

    run: Callable[[int], Sequence[int]]
    warm_up: Callable[[], object] | None = None


def require(*modules: str, remedy: str) -> None:
    """Checks that a peer's packages are there, without importing them.

    Raises:
      Skipped: one is not; names it and the remedy.
    """
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise Skipped(f"{name} is not installed; {remedy}")


def require_shape(workload: Workload, model: Model) -> None:
    """Checks that a workload is one of those that a peer's module is written for.

    Raises:
      Skipped: it is not.
    """
    if workload.model != model:
        raise Skipped(f"runs another shape than that of workload {workload.name}")


def groups(workload: Workload, size: int) -> list[range]:
    """Splits the questions into groups that are decoded at once.

    Size 0 means all if every sample has the same length, one by one if they differ: a loop that
    runs until its last sample has ended wastes the least that way.
    """
    size = size or (workload.questions if workload.even else 1)
    starts = range(0, workload.questions, size)
    return [range(start, min(start + size, workload.questions)) for start in starts]


Prepare = Callable[[Workload, argparse.Namespace], Ready]


def basic_parser(
    description: str | None, workloads: Iterable[str], repeats: int = 3
) -> argparse.ArgumentParser:
    """Returns a parser of the flags of all systems; the first workload is the default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(workloads)
    parser.add_argument("--workload", choices=names, default=names[0])
    parser.add_argument("--repeats", type=int, default=repeats, help="measured runs, at most")
    parser.add_argument(
        "--budget",
        type=float,
        default=float("inf"),
        help="seconds after which no further repeat is started (one is always measured)",
    )
    return parser


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of the flags of a decoding system."""
    flags = basic_parser(description, WORKLOADS)
    flags.add_argument(
        "--group",
        type=int,
        default=0,
        help="questions decoded at once; 0 chooses (see bench.peers.measure.groups)",
    )
    return flags


def add_dtype(flags: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the flag of a system's number type."""
    flags.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of weights and caches, or of a training step's products; by workload",
    )
    return flags


def main(system: str, prepare: Prepare, flags: argparse.ArgumentParser) -> None:
    """Measures one system on one decode workload; prints one JSON object as the last line."""
    options = flags.parse_args()
    workload = WORKLOADS[options.workload]
    report(system, workload.name, lambda: measured(workload, prepare(workload, options), options))


def report(system: str, workload: str, measure: Callable[[], dict[str, object]]) -> None:
    """Prints one JSON object as the last line: the figures, or why there are none."""
    result: dict[str, object] = {"system": system, "workload": workload}
    try:
        result |= measure()
    except Skipped as reason:
        result["skipped"] = str(reason)
    sys.stdout.flush()
    print(json.dumps(result), flush=True)


def measured(workload: Workload, ready: Ready, options: argparse.Namespace) -> dict[str, object]:
    """Warms up, runs the workload several times and reports.

    Raises:
      RuntimeError: a sample did not get the tokens that the workload asks for.
    """
    ready.warm_up() if ready.warm_up else ready.run(0)

    def run(number: int) -> None:
        got = tuple(int(n) for n in ready.run(number))
        if got != workload.lengths:
            raise RuntimeError(f"samples got {got} tokens instead of {workload.lengths}")

    useful = workload.useful_tokens
    figures = {"useful_tokens": useful} | rates(useful, *clocked(run, options))
    return figures | surroundings(ready)


def clocked(
    run: Callable[[int], object], options: argparse.Namespace
) -> tuple[list[float], list[float]]:
    """Calls run(1), run(2), ...; returns wall and CPU seconds of each."""
    wall: list[float] = []
    cpu: list[float] = []
    while len(wall) < options.repeats and (not wall or sum(wall) < options.budget):
        before, start = _cpu_seconds(), time.perf_counter()
        run(len(wall) + 1)
        wall.append(time.perf_counter() - start)
        cpu.append(_cpu_seconds() - before)
    return wall, cpu


def rates(tokens: int, wall: Sequence[float], cpu: Sequence[float]) -> dict[str, object]:
    """Returns the rates of runs of `tokens` tokens each."""
    seconds = statistics.median(wall)
    return {
        "seconds": {"median": seconds, "min": min(wall), "repeats": len(wall)},
        "tokens_per_s": tokens / seconds,
        "tokens_per_s_best": tokens / min(wall),
        "tokens_per_cpu_s": tokens / statistics.median(cpu),
    }


def surroundings(ready: Described) -> dict[str, object]:
    """Returns the peak memory of this process, versions, settings and notes."""
    peaks = [resource.getrusage(w).ru_maxrss for w in _PROCESSES]
    return {
        "peak_memory_bytes": max(peaks) * (1 if sys.platform == "darwin" else 1024),
        "versions": {"python": platform.python_version(), **_versions(ready.packages)},
        "settings": ready.settings,
        "notes": [*ready.notes, _MEMORY_NOTE],
    }


_PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def _cpu_seconds() -> float:
    """Returns the CPU time of all threads of this process and of its finished children."""
    used = [resource.getrusage(who) for who in _PROCESSES]
    return sum(u.ru_utime + u.ru_stime for u in used)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}
