"""Decoding beside its peers and beside the machine's floor: python bench/decode.py

Measures the machine, then runs each system in its own process, one after the other, on each
workload, and prints one JSON object: the machine's rates, the floor of each workload, and for each
system its figures, its ratio to the floor and ours to it. A peer that is not installed is reported
as skipped with the reason, one that fails with the last lines of its error. bench/README.md says
what is measured and how to install the peers. Run it on a machine that does nothing else.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file, Python looks in bench/ alone

from bench.tuning import tuned_environment  # noqa: E402
from bench.workloads import MODEL, WORKLOADS, floor  # noqa: E402

OURS = "lmsi"
# Name: the module under bench.peers and its flags.
SYSTEMS: dict[str, tuple[str, ...]] = {
    OURS: ("lmsi",),
    "llama_cpp": ("llama_cpp",),
    "t5x_loop": ("t5x_loop",),
    "hf_shared_tuned": ("hf_shared", "--tuned"),
    "hf_tuned": ("hf", "--tuned"),
    "hf_shared": ("hf_shared",),
    "hf": ("hf",),
    "tunix_sampler": ("tunix_sampler",),
}
_ERROR_LINES = 15


def run_one(name: str, workload: str, options: argparse.Namespace, tuned: dict[str, str]) -> dict:
    """Runs one system in a process of its own; returns its JSON, or what went wrong.

    `tuned` is added to the environment of a system that has the flag --tuned.
    """
    module, *flags = SYSTEMS[name]
    python = sys.executable if name == OURS else options.peer_python
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
    """The JSON object on the last line of a system's output, or its failure."""
    lines = stdout.strip().splitlines()
    if returncode == 0 and lines:
        try:
            return json.loads(lines[-1])
        except json.JSONDecodeError:
            stderr = f"{stderr}\nthe last line printed is no JSON: {lines[-1]}"
    tail = stderr.strip().splitlines()[-_ERROR_LINES:]
    return {"failed": f"exit code {returncode}", "error": tail}


def compare(results: list[dict], limit: dict[str, float]) -> list[dict]:
    """Adds each system's ratio to the floor, and ours to it, where it was measured."""
    rate = {r["system"]: r["tokens_per_s"] for r in results if "tokens_per_s" in r}
    for result in results:
        own = rate.get(result["system"])
        if own is None:
            continue
        result["ratio_to_floor"] = round(own / limit["tokens_per_s"], 4)
        if OURS in rate:
            result["ours_to_this"] = round(rate[OURS] / own, 3)
    return results


def measure_machine() -> dict:
    """bench.machine in a process of its own, so that its memory is not ours."""
    command = [sys.executable, "-m", "bench.machine"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    machine = parsed(done.stdout, done.stderr, done.returncode)
    if "failed" in machine:
        raise SystemExit("bench.machine failed:\n" + "\n".join(machine["error"]))
    return machine


def _names(given: str, known: list[str], what: str) -> list[str]:
    """Comma-separated names in the order of `known`; "all" means every one."""
    wanted = known if given == "all" else [name for name in given.split(",") if name]
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise SystemExit(f"no such {what}: {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if name in wanted]


def _flags() -> argparse.Namespace:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    peers = ", ".join(name for name in SYSTEMS if name != OURS)
    flags.add_argument("--workloads", default="A,B", help="A, B; smoke, smoke_ragged to try out")
    flags.add_argument("--peers", default="all", help=f'"all", "none", or names: {peers}')
    flags.add_argument("--peer_python", default=sys.executable, help="Python of the peers")
    flags.add_argument("--repeats", type=int, default=3, help="measured runs of each, at most")
    flags.add_argument(
        "--budget",
        type=float,
        default=120,
        help="seconds after which a system's workload is not repeated again; it runs at least once",
    )
    flags.add_argument("--timeout", type=float, default=3600, help="seconds for one process")
    flags.add_argument("--out", help="write the JSON to this file as well")
    return flags.parse_args()


def main() -> None:
    """Measures everything; exit code 1 if a system failed (a skipped one has not)."""
    options = _flags()
    workloads = _names(options.workloads, list(WORKLOADS), "workload")
    others = [name for name in SYSTEMS if name != OURS]
    peers = [] if options.peers == "none" else _names(options.peers, others, "peer")
    machine = measure_machine()
    report: dict = {"machine": machine, "model": {"parameters": MODEL.parameters}, "workloads": {}}
    with tempfile.TemporaryDirectory() as folder:
        tuned = tuned_environment(machine["cores"], machine["processor"], pathlib.Path(folder))
        for name in workloads:
            results = []
            for system in [OURS, *peers]:
                print(f"{name}: {system} ...", file=sys.stderr, flush=True)
                results.append(run_one(system, name, options, tuned))
                print(f"{name}: {_line(results[-1])}", file=sys.stderr, flush=True)
            rates = machine["matmul_flops_per_s"], machine["read_bytes_per_s"]
            limit = floor(MODEL, WORKLOADS[name], *rates)
            report["workloads"][name] = {"floor": limit, "systems": compare(results, limit)}
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        pathlib.Path(options.out).write_text(text + "\n", encoding="utf-8")
    sys.exit(any("failed" in r for w in report["workloads"].values() for r in w["systems"]))


def _line(result: dict) -> str:
    """What a person watching sees of one result."""
    if "tokens_per_s" in result:
        memory = result["peak_memory_bytes"] / 1e9
        return f"{result['system']}: {result['tokens_per_s']:.0f} tokens/s, {memory:.2f} GB"
    reason = result.get("skipped") or "\n".join([result["failed"], *result.get("error", [])])
    return f"{result['system']}: {'skipped' if 'skipped' in result else 'FAILED'}: {reason}"


if __name__ == "__main__":
    main()
