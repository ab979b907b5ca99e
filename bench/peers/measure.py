"""How every system is measured: the same command line, clocks and JSON."""

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
from collections.abc import Callable, Sequence

from bench.workloads import WORKLOADS, Workload

_MEMORY_NOTE = "peak memory is the process's, with loading, compilation and warm-up"


class Skipped(Exception):
    """This system cannot run here; its text says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready:
    """A system with its model loaded.

    Attributes:
      run: decodes the whole workload, prefill included, with noise from a seed; returns how many
        useful tokens each path got. It must return only when all work is done.
      warm_up: what is run once before the clock starts; it must meet every shape that `run` meets.
        By default `run` itself.
      packages: distributions whose versions are reported.
      notes: what a reader must know about this system's figures.
      settings: how it was run.
    """

    run: Callable[[int], Sequence[int]]
    warm_up: Callable[[], object] | None = None
    packages: Sequence[str] = ()
    notes: Sequence[str] = ()
    settings: dict[str, object] = dataclasses.field(default_factory=dict)


def require(*modules: str, remedy: str) -> None:
    """Checks that a peer's packages are there, without importing them.

    Raises:
      Skipped: one is not; names it and the remedy.
    """
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise Skipped(f"{name} is not installed; {remedy}")


def groups(workload: Workload, size: int) -> list[range]:
    """The questions in groups that are decoded at once.

    Size 0 means all where every path has the same length, one by one where they differ: a loop that
    runs until its last path has ended wastes the least that way.
    """
    size = size or (workload.questions if workload.even else 1)
    starts = range(0, workload.questions, size)
    return [range(start, min(start + size, workload.questions)) for start in starts]


Prepare = Callable[[Workload, argparse.Namespace], Ready]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The flags that all systems have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--workload", choices=sorted(WORKLOADS), default="A")
    made.add_argument("--repeats", type=int, default=3, help="measured runs, at most")
    made.add_argument(
        "--group",
        type=int,
        default=0,
        help="questions decoded at once; 0 chooses (see bench.peers.measure.groups)",
    )
    made.add_argument(
        "--budget",
        type=float,
        default=float("inf"),
        help="seconds after which no further repeat is started (one is always measured)",
    )
    return made


def main(system: str, prepare: Prepare, flags: argparse.ArgumentParser) -> None:
    """Measures one system on one workload; prints one JSON object as the last line."""
    options = flags.parse_args()
    workload = WORKLOADS[options.workload]
    result: dict[str, object] = {"system": system, "workload": workload.name}
    try:
        result |= measured(workload, prepare(workload, options), options)
    except Skipped as reason:
        result["skipped"] = str(reason)
    sys.stdout.flush()
    print(json.dumps(result), flush=True)


def measured(workload: Workload, ready: Ready, options: argparse.Namespace) -> dict[str, object]:
    """Warms up, runs the workload several times and reports.

    Raises:
      RuntimeError: a path did not get the tokens that the workload asks for.
    """
    ready.warm_up() if ready.warm_up else ready.run(0)
    wall, cpu = [], []
    while len(wall) < options.repeats and (not wall or sum(wall) < options.budget):
        before, start = _cpu_seconds(), time.perf_counter()
        got = tuple(int(n) for n in ready.run(len(wall) + 1))
        wall.append(time.perf_counter() - start)
        cpu.append(_cpu_seconds() - before)
        if got != workload.lengths:
            raise RuntimeError(f"paths got {got} tokens instead of {workload.lengths}")
    seconds, cpu_seconds = statistics.median(wall), statistics.median(cpu)
    peaks = [resource.getrusage(w).ru_maxrss for w in _PROCESSES]
    return {
        "useful_tokens": workload.useful_tokens,
        "seconds": {"median": seconds, "min": min(wall), "repeats": len(wall)},
        "tokens_per_s": workload.useful_tokens / seconds,
        "tokens_per_s_best": workload.useful_tokens / min(wall),
        "tokens_per_cpu_s": workload.useful_tokens / cpu_seconds,
        "peak_memory_bytes": max(peaks) * (1 if sys.platform == "darwin" else 1024),
        "versions": {"python": platform.python_version(), **_versions(ready.packages)},
        "settings": ready.settings,
        "notes": [*ready.notes, _MEMORY_NOTE],
    }


_PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def _cpu_seconds() -> float:
    """CPU time of all threads of this process and of its finished children."""
    used = [resource.getrusage(who) for who in _PROCESSES]
    return sum(u.ru_utime + u.ru_stime for u in used)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}
