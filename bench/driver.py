"""Shared driver of the benchmark commands: processes, their JSON, ratios and the report."""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from bench.tuning import tuned_environment

ROOT = pathlib.Path(__file__).resolve().parent.parent
OURS = "lmsi"
_ERROR_LINES = 15


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """A benchmark.

    Attributes:
      systems: the module under bench.peers and its flags, by name; ours is called `OURS`.
      workloads: all names.
      chosen: comma-separated names of the default workloads.
      roofline: (workload's name, the machine's rates) -> "tokens_per_s" that no system can exceed,
        and its parts.
      check: takes the name of a workload and its results, and adds its findings to them.
    """

    systems: dict[str, tuple[str, ...]]
    workloads: Sequence[str]
    chosen: str
    roofline: Callable[[str, dict], dict[str, float]]
    check: Callable[[str, list[dict]], object] = lambda workload, results: None


def run_one(
    name: str,
    system: Sequence[str],
    workload: str,
    options: argparse.Namespace,
    tuned: dict[str, str],
) -> dict:
    """Runs a system in a process of its own; returns its JSON or its failure.

    `tuned` is added to the environment of a system that has the flag --tuned.
    """
    module, *flags = system
    python = sys.executable if module.startswith(OURS) else options.peer_python
    command = [python, "-m", f"bench.peers.{module}", *flags, f"--workload={workload}"]
    command += [f"--repeats={options.repeats}", f"--budget={options.budget}"]
    environment = os.environ | (tuned if "--tuned" in flags else {})
    start = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=options.timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"system": name, "failed": f"not done after {options.timeout:.0f} s"}
    except OSError as error:
        return {"system": name, "failed": f"{python} did not start: {error}"}
    result = parsed(done.stdout, done.stderr, done.returncode)
    return result | {"system": name, "wall_seconds": round(time.monotonic() - start, 1)}


def parsed(stdout: str, stderr: str, returncode: int) -> dict:
    """Parses the JSON object on the last line of a system's output, or describes its failure."""
    lines = stdout.strip().splitlines()
    if returncode == 0 and lines:
        try:
            return json.loads(lines[-1])
        except json.JSONDecodeError:
            stderr = f"{stderr}\nthe last line printed is no JSON: {lines[-1]}"
    tail = stderr.strip().splitlines()[-_ERROR_LINES:]
    return {"failed": f"exit code {returncode}", "error": tail}


def compare(results: list[dict], limit: dict[str, float]) -> list[dict]:
    """Adds the ratio of each measured system to the roofline, and that of our fastest to it."""
    rate = {r["system"]: r["tokens_per_s"] for r in results if "tokens_per_s" in r}
    ours = max((value for name, value in rate.items() if is_ours(name)), default=None)
    for result in results:
        system_rate = rate.get(result["system"])
        if system_rate is None:
            continue
        result["ratio_to_roofline"] = round(system_rate / limit["tokens_per_s"], 4)
        if ours is not None:
            result["ours_to_this"] = round(ours / system_rate, 3)
    return results


def is_ours(system: str) -> bool:
    """Returns True if a system is this package, in any format."""
    return system.partition("_")[0] == OURS


def measure_machine() -> dict:
    """Runs bench.machine in a process of its own, so that its memory does not count here."""
    command = [sys.executable, "-m", "bench.machine"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    machine = parsed(done.stdout, done.stderr, done.returncode)
    if "failed" in machine:
        raise SystemExit("bench.machine failed:\n" + "\n".join(machine["error"]))
    return machine


def _names(given: str, known: Sequence[str], what: str) -> list[str]:
    """Parses comma-separated names, in the order of `known`.

    "all" means every one, and "D" all of "D-8x1", "D-8x16", ...
    """
    chosen: list[str] = [*known] if given == "all" else []
    for name in filter(None, given.split(",")) if given != "all" else ():
        chosen += [one for one in known if one.startswith(f"{name}-")] or [name]
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise SystemExit(f"no such {what}: {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if name in chosen]


def flags(description: str | None, bench: Bench) -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    peers = ", ".join(name for name in bench.systems if name != OURS)
    parser.add_argument(
        "--workloads", default=bench.chosen, help=f"of {', '.join(bench.workloads)}"
    )
    parser.add_argument("--peers", default="all", help=f'"all", "none", or names: {peers}')
    parser.add_argument("--peer_python", default=sys.executable, help="Python of the peers")
    parser.add_argument("--repeats", type=int, default=3, help="measured runs of each, at most")
    parser.add_argument(
        "--budget",
        type=float,
        default=120,
        help="seconds after which a system's workload is not repeated again; it runs at least once",
    )
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one process")
    parser.add_argument("--out", help="write the JSON to this file as well")
    return parser


def main(bench: Bench, options: argparse.Namespace, about: dict[str, object]) -> None:
    """Measures everything, prints JSON; exit code 1 if a system failed (a skipped one has not).

    Args:
      bench: what is measured.
      options: `flags`, parsed.
      about: further entries of the report.
    """
    workloads = _names(options.workloads, bench.workloads, "workload")
    others = [name for name in bench.systems if name != OURS]
    peers = [] if options.peers == "none" else _names(options.peers, others, "peer")
    machine = measure_machine()
    reports = {}
    with tempfile.TemporaryDirectory() as folder:
        tuned = tuned_environment(machine["cores"], machine["processor"], pathlib.Path(folder))
        for name in workloads:
            results = [
                _run_and_print(bench, system, name, options, tuned) for system in [OURS, *peers]
            ]
            limit = bench.roofline(name, machine)
            bench.check(name, results)
            reports[name] = {"roofline": limit, "systems": compare(results, limit)}
    text = json.dumps({"machine": machine, **about, "workloads": reports}, indent=1)
    print(text)
    if options.out:
        pathlib.Path(options.out).write_text(text + "\n", encoding="utf-8")
    sys.exit(any("failed" in result for one in reports.values() for result in one["systems"]))


def _run_and_print(
    bench: Bench, system: str, workload: str, options: argparse.Namespace, tuned: dict[str, str]
) -> dict:
    """Runs a system and prints its progress."""
    print(f"{workload}: {system} ...", file=sys.stderr, flush=True)
    result = run_one(system, bench.systems[system], workload, options, tuned)
    print(f"{workload}: {_line(result)}", file=sys.stderr, flush=True)
    return result


def _line(result: dict) -> str:
    """Formats a result as a line of progress."""
    if "tokens_per_s" in result:
        memory = result["peak_memory_bytes"] / 1e9
        return f"{result['system']}: {result['tokens_per_s']:.0f} tokens/s, {memory:.2f} GB"
    reason = result.get("skipped") or "\n".join([result["failed"], *result.get("error", [])])
    return f"{result['system']}: {'skipped' if 'skipped' in result else 'FAILED'}: {reason}"
