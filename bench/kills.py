"""Kills commands at random moments, repeats them, compares what they leave: python -m bench.kills

A case starts a command in an empty folder and kills it by SIGKILL, at a random time or before, in
or after a random file operation (of Python, TensorStore or any other library, see `kills.c`). Then
it repeats the command, which is killed again with some probability, until it finishes. All that
must not depend on the kills is compared with an undisturbed run of one process: names of files,
their bytes without times, every array of every checkpoint; and nothing else may be left.

    python -m bench.kills --kills=200                                # all scenarios
    python -m bench.kills --kills=20 --scenarios=run,two --seed=1
    python -m bench.kills --scenarios=run --cases=17                 # one case again

Commands start by a fork of this process, which has imported all they need, so a kill takes seconds.
Needs a C compiler, Linux and the extra [hf]. Prints JSON; exit code 1 if any case went wrong.
"""

import argparse
import atexit
import ctypes
import fcntl
import importlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from bench.kill_scenarios import PREPARED, SCENARIOS, Scenario, digests, write_inputs

_OPERATIONS = ("rename", "write", "unlink", "mkdir", "fsync")
_MOMENTS = ("before", "half of", "after")
KINDS = ("time", *_OPERATIONS)
_HEAVY = (
    *("jax", "tensorflow", "seqio", "orbax.checkpoint", "reasoning_gym", "safetensors.numpy"),
    *("lmsi_jax.cli.main", "lmsi_jax.pipeline.rounds", "lmsi_jax.pipeline.distill"),
    *("lmsi_jax.training.data", "lmsi_jax.training.trainer", "lmsi_jax.tools.study"),
    *("lmsi_jax.interop.hf_weights", "lmsi_jax.interop.hf_export", "lmsi_jax.report.page"),
)
# XLA optimises little: what is computed does not matter, when it is killed does.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
_LIBRARY = "LMSI_KILLS_LIBRARY"  # names the loaded library, once this process has started anew
_SCRATCH = "LMSI_KILLS_SCRATCH"  # names a temporary folder then
_AGAIN, _MOST = 0.6, 6  # the probability of a further kill, and the largest number of a case
_GRACE = 15.0  # seconds that the others have to leave once one process is killed
_HANGS = 900.0
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_THERE = "is there already"  # said of an output that a killed command had completed


class Kill(NamedTuple):
    """Where a process is killed.

    Attributes:
      kind: of `KINDS`.
      number: of the operation of this kind below the folder, from 1; for a time, milliseconds of
        the process's own time, which other work on the machine does not change, from the first
        operation on.
      moment: "before", "half of" or "after" the operation.
      victim: the index of the process.
      everyone: the other processes are killed at once too; otherwise they have time to leave.
    """

    kind: str
    number: int
    moment: str = "before"
    victim: int = 0
    everyone: bool = True


class Profile(NamedTuple):
    """What a process does if it is not killed.

    Attributes:
      counts: its file operations by kind.
      milliseconds: of processor time from the first to the last of them.
    """

    counts: dict[str, int]
    milliseconds: int


def read_log(text: str) -> tuple[Profile, str]:
    """Returns what the library logged of one or more starts: the profile, and the last line."""
    counts = dict.fromkeys(_OPERATIONS, 0)
    times, last = [], ""
    for line in text.splitlines():
        moment, _, last = line.partition(" ")
        times.append(int(moment))
        kind = last.partition(" ")[0]
        if kind in counts:
            counts[kind] += 1
    return Profile(counts, times[-1] - times[0] if times else 0), last


def draw_kill(
    draw: random.Random,
    profiles: Sequence[Profile],
    before: Sequence[tuple[int, Profile]] = (),
) -> Kill:
    """Draws a kill, every kind that happens being equally likely.

    Args:
      draw: the source of randomness.
      profiles: of the undisturbed command's processes.
      before: the victims of the starts so far, and what they did: so much less is left to do.
    """
    victim = draw.randrange(len(profiles))
    profile = profiles[victim]
    past = [one for index, one in before if index == victim]
    left = {
        kind: count - sum(one.counts[kind] for one in past)
        for kind, count in profile.counts.items()
        if count
    }
    kind = draw.choice(["time", *left])
    everyone = draw.random() < 0.5
    if kind == "time":
        passed = sum(one.milliseconds for one in past)
        longest = max(profile.milliseconds - passed, profile.milliseconds // 10, 1)
        return Kill(kind, draw.randrange(longest), victim=victim, everyone=everyone)
    number = draw.randint(1, max(left[kind], 3))
    moments = _MOMENTS if kind == "write" else ("before", "after")
    return Kill(kind, number, draw.choice(moments), victim, everyone)


def compare(reference: dict[str, str], other: dict[str, str]) -> list[str]:
    """Returns a line on each file that differs."""
    lines = []
    for name in sorted({*reference, *other}):
        if name not in other:
            lines.append(f"{name} is missing")
        elif name not in reference:
            lines.append(f"{name} is left over")
        elif reference[name] != other[name]:
            lines.append(f"{name} differs")
    return lines


# --- processes ------------------------------------------------------------------------------------


def fork(function: Callable[[], int | None], output: pathlib.Path) -> int:
    """Calls a function in a fork of this process, which then ends as an interpreter does.

    Args:
      function: returns the exit code.
      output: a file that gets all that the process writes.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        null = os.open(os.devnull, os.O_RDONLY)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for source, target in ((null, 0), (file, 1), (file, 2)):
            os.dup2(source, target)
        code = function() or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def process_flags(count: int) -> list[list[str]]:
    """Returns the flags of each of several processes that carry out a command together."""
    if count == 1:
        return [[]]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = [f"--coordinator_address={address}", f"--process_count={count}"]
    return [[*common, f"--process_index={index}"] for index in range(count)]


def start(
    scenario: Scenario,
    ready: pathlib.Path,
    out: pathlib.Path,
    logs: pathlib.Path,
    kill: Kill | None,
) -> tuple[list[int], str]:
    """Carries out a command once.

    Args:
      scenario: the command.
      ready: what is prepared.
      out: where it works; only operations in there count.
      logs: a new folder for what it says (`0.txt` for process 0) and does (`0.log`).
      kill: where it is killed; None if nowhere.

    Returns:
      Exit codes by process, negative for signals, and a reason if a process hung.
    """
    logs.mkdir(parents=True)
    words, flags = scenario.words(ready, out), process_flags(scenario.processes)

    def command(index: int) -> Callable[[], int]:
        def run() -> int:
            from lmsi_jax.cli.main import main

            _arm(out, logs / f"{index}.log", kill if kill and kill.victim == index else None)
            sys.argv = ["lmsi", *words, *flags[index]]
            return main()

        return run

    children = [fork(command(index), logs / f"{index}.txt") for index in range(scenario.processes)]
    return _wait(children, kill)


def _arm(folder: pathlib.Path, log: pathlib.Path, kill: Kill | None) -> None:
    library = ctypes.CDLL(os.environ[_LIBRARY])
    timed = kill is not None and kill.kind == "time"
    operation = kill is not None and not timed
    library.kills_arm(
        os.fsencode(folder),
        os.fsencode(log),
        ctypes.c_int(_OPERATIONS.index(kill.kind) if operation else -1),
        ctypes.c_long(kill.number if operation else 0),
        ctypes.c_int(_MOMENTS.index(kill.moment) if operation else 0),
        ctypes.c_long(kill.number if timed else -1),
    )


def _wait(children: list[int], kill: Kill | None) -> tuple[list[int], str]:
    """Waits for all processes; once the victim is dead, the others have to leave too."""
    codes: dict[int, int] = {}
    end, reason = time.monotonic() + _HANGS, ""
    while True:
        for child in children:
            if child not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[child] = os.waitstatus_to_exitcode(status)
        if len(codes) == len(children):
            return [codes[child] for child in children], reason
        if kill and codes.get(children[kill.victim]) == -signal.SIGKILL:
            end = min(end, time.monotonic() + (0.0 if kill.everyone else _GRACE))
        if time.monotonic() >= end:
            reason = "" if kill and children[kill.victim] in codes else "it hangs"
            for child in set(children) - set(codes):
                os.killpg(child, signal.SIGKILL)
        time.sleep(0.02)


# --- cases ----------------------------------------------------------------------------------------


class Work:
    """What undisturbed commands leave and do.

    Args:
      folder: of everything; a campaign in the same folder goes on with what is prepared there.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self.ready = folder, folder / "ready"

    def prepare(self, names: Iterable[str]) -> None:
        """Makes what scenarios read; what is there stays."""
        if not (self.ready / "run.gin").exists():
            write_inputs(self.ready)
        for name in names:
            self.undisturbed(name, PREPARED[name], self.ready / name)

    def undisturbed(
        self, name: str, scenario: Scenario, out: pathlib.Path
    ) -> tuple[dict[str, str], list[Profile]]:
        """Returns the digests that a command leaves, and its processes' profiles; runs it once.

        What several processes leave is what one leaves, so that one is run for the digests.
        """
        record = self.folder / f"{name}.json"
        if not record.exists():
            profiles, left = [], {}
            # The first start compiles, so the second one has the times of later ones.
            several = [scenario.processes] if scenario.processes > 1 else []
            for count in (*several, *several, 1) if several else (1, 1):
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir(parents=True)
                logs = self.folder / "logs" / f"{name}-undisturbed-{count}"
                shutil.rmtree(logs, ignore_errors=True)
                codes, reason = start(
                    scenario._replace(processes=count), self.ready, out, logs, None
                )
                if any(codes):
                    raise SystemExit(
                        f"{name}: undisturbed, it ends with {codes} {reason}\n"
                        + "\n".join(_last_lines(logs))
                    )
                logged = [(logs / f"{index}.log").read_text() for index in range(count)]
                if count == scenario.processes:
                    profiles = [read_log(text)[0] for text in logged]
                left = self.digests(out, logs)
            record.write_text(json.dumps([left, profiles]), encoding="utf-8")
        left, profiles = json.loads(record.read_text(encoding="utf-8"))
        return left, [Profile(*one) for one in profiles]

    def digests(self, out: pathlib.Path, logs: pathlib.Path) -> dict[str, str]:
        """Returns `digests` of a folder, computed in a process of its own."""
        file = logs / "digests.json"

        def compute() -> None:
            file.write_text(json.dumps(digests(out)), encoding="utf-8")

        codes, reason = _wait([fork(compute, logs / "digests.txt")], None)
        if any(codes):
            text = (logs / "digests.txt").read_text(encoding="utf-8")[-2000:]
            return {"digests": f"{codes} {reason} {text}"}
        return json.loads(file.read_text(encoding="utf-8"))


def run_case(work: Work, name: str, seed: int, number: int) -> dict[str, Any]:
    """Kills and repeats a command until it finishes.

    Returns:
      `kills`, where each happened; `kinds` of them; `starts`; `outcome`, "equal", "different" or
      "failed", with `why`; `remarks`, lines of repeats that speak of damage, which a kill is not.
    """
    scenario = SCENARIOS[name]
    reference, profiles = work.undisturbed(name, scenario, work.folder / f"case-{name}")
    draw = random.Random(f"{seed}/{name}/{number}")
    out = work.folder / f"case-{name}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    result: dict[str, Any] = {"case": number, "kills": [], "kinds": [], "starts": 0, "remarks": []}
    before: list[tuple[int, Profile]] = []
    while True:
        kill = None
        if not before or (len(before) < _MOST and draw.random() < _AGAIN):
            kill = draw_kill(draw, profiles, before)
        logs = work.folder / "logs" / f"{name}-{number}-{result['starts']}"
        shutil.rmtree(logs, ignore_errors=True)
        codes, reason = start(scenario, work.ready, out, logs, kill)
        result["starts"] += 1
        said = {file: file.read_text(errors="replace") for file in sorted(logs.glob("*.txt"))}
        result["remarks"] += [
            line for text in said.values() for line in text.splitlines() if _DAMAGE.search(line)
        ]
        if kill and codes[kill.victim] == -signal.SIGKILL and not reason:
            profile, last = read_log((logs / f"{kill.victim}.log").read_text())
            before.append((kill.victim, profile))
            result["kinds"].append(kill.kind)
            where = f"after {kill.number / 1000:.2f} s, {last}" if kill.kind == "time" else last
            result["kills"].append(where.replace(f"{out}/", ""))
            if scenario.processes > 1:
                who = "all" if kill.everyone else f"process {kill.victim}, the others {codes}"
                result["kills"][-1] += f" ({who})"
            continue
        there = codes == [2] and any(_THERE in " ".join(text.split()) for text in said.values())
        break
    if any(codes) and not (there and before):
        why = [f"exit codes {codes} {reason}", *_last_lines(logs)]
        return result | {"outcome": "failed", "why": why}
    if any("Traceback" in text for text in said.values()):
        return result | {"outcome": "failed", "why": ["a traceback", *_last_lines(logs)]}
    differences = compare(reference, work.digests(out, logs))
    if differences:
        return result | {"outcome": "different", "why": differences}
    return result | {"outcome": "equal"}


_DAMAGE = re.compile("altered|truncated|damaged|is missing|was missing")


def _last_lines(logs: pathlib.Path) -> list[str]:
    lines = []
    for file in sorted(logs.glob("*.txt")):
        text = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        lines += [f"{file.stem}: {line}" for line in text[-8:]]
    return lines


def summarize(cases: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Returns the counts of a scenario's cases, and in full only those that went wrong."""
    kinds = [kind for case in cases for kind in case["kinds"]]
    wrong = [case for case in cases if case["outcome"] != "equal"]
    return {
        "cases": len(cases),
        "kills": len(kinds),
        "kinds": {kind: kinds.count(kind) for kind in KINDS if kind in kinds},
        "starts": sum(case["starts"] for case in cases),
        **{
            outcome: sum(case["outcome"] == outcome for case in cases)
            for outcome in ("equal", "different", "failed")
        },
        "seconds_per_kill": round(seconds / max(len(kinds), 1), 1),
        "remarks": sorted({line for case in cases for line in case["remarks"]})[:5],
        "wrong": wrong,
    }


def campaign(work: Work, name: str, options: argparse.Namespace, kills: int) -> dict[str, Any]:
    """Runs cases of a scenario until they have had so many kills, or its time is over."""
    work.prepare(SCENARIOS[name].needs)
    work.undisturbed(name, SCENARIOS[name], work.folder / f"case-{name}")
    cases: list[dict[str, Any]] = []
    begin = time.monotonic()
    numbers = iter(options.cases or range(options.first, sys.maxsize))
    while sum(len(case["kills"]) for case in cases) < kills or options.cases:
        number = next(numbers, None)
        if number is None or time.monotonic() - begin > options.seconds:
            break
        case = run_case(work, name, options.seed, number)
        cases.append(case)
        line = f"{name} {number}: {case['outcome']}; {'; '.join(case['kills'])}"
        print(line, *case.get("why", []), sep="\n  ", file=sys.stderr, flush=True)
    return summarize(cases, time.monotonic() - begin)


# --- the command ----------------------------------------------------------------------------------


def lock(scratch: pathlib.Path) -> str:
    """Keeps a folder for this process and what it becomes by exec; returns "" or who has it."""
    file = os.open(scratch / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(file, 20).decode() or "unknown"
        os.close(file)
        return (
            f"{scratch} is in use by another campaign (process {owner}); wait for its end, or give "
            "--scratch another folder"
        )
    os.truncate(file, 0)
    os.write(file, str(os.getpid()).encode())
    os.set_inheritable(file, True)  # the lock lasts until the last process that has it ends
    return ""


def load_library(scratch: pathlib.Path, module: str = "bench.kills") -> None:
    """Starts a module's program anew with the library that kills, compiled into a folder."""
    if _LIBRARY in os.environ:
        return
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not sys.platform.startswith("linux"):
        raise SystemExit("bench.kills needs Linux and a C compiler")
    library = scratch / "kills.so"
    source = pathlib.Path(__file__).with_suffix(".c")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, source, "-ldl", "-lrt"], check=True
    )
    set_already = os.environ.get("LD_PRELOAD", "").split(":")
    os.environ["LD_PRELOAD"] = ":".join(filter(None, [str(library), *set_already]))
    os.environ[_LIBRARY] = str(library)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(scratch / "programs")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


def open_scratch(parser: argparse.ArgumentParser, given: pathlib.Path | None, module: str) -> Work:
    """Locks the campaign's folder, loads the library and imports what commands need.

    Args:
      parser: says that another campaign has the folder, and exits with code 2.
      given: the folder; None takes a temporary one.
      module: the program, which this process starts anew.
    """
    name = given or os.environ.get(_SCRATCH)
    scratch = pathlib.Path(name or tempfile.mkdtemp(prefix="lmsi_kills_")).resolve()
    os.environ[_SCRATCH] = str(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    if _LIBRARY not in os.environ and (problem := lock(scratch)):
        parser.error(problem)
    load_library(scratch, module)
    for heavy in _HEAVY:
        importlib.import_module(heavy)
    return Work(scratch)


def campaign_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser of the flags that choose a campaign's cases."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument(
        "--scenarios", default="all", help=f"of {', '.join(SCENARIOS)}, separated by commas"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument(
        "--cases", type=lambda text: [int(one) for one in text.split(",")], help="these cases alone"
    )
    return parser


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = campaign_parser(__doc__)
    parser.add_argument("--kills", type=int, default=200, help="in all, split among the scenarios")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="for each scenario, at most"
    )
    parser.add_argument(
        "--scratch",
        type=pathlib.Path,
        help="a folder to keep: what is prepared, programs, logs (default: a temporary one)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the campaign and prints it."""
    parser = make_parser()
    options = parser.parse_args(argv)
    names = list(SCENARIOS) if options.scenarios == "all" else options.scenarios.split(",")
    if unknown := sorted(set(names) - set(SCENARIOS)):
        raise SystemExit(
            f"no such scenario: {', '.join(unknown)}; there are {', '.join(SCENARIOS)}"
        )
    work = open_scratch(parser, options.scratch, "bench.kills")
    try:
        results = {
            name: campaign(work, name, options, -(-options.kills // len(names))) for name in names
        }
    finally:
        if options.scratch is None:
            shutil.rmtree(work.folder, ignore_errors=True)
    print(json.dumps({"seed": options.seed, "scenarios": results}, indent=1))
    return int(any(one["wrong"] for one in results.values()))


if __name__ == "__main__":
    sys.exit(main())
