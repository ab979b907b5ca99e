"""Sends signals to commands at random moments, and repeats them: python -m bench.signals

At a random moment of its processor time a command gets Ctrl-C once or twice, SIGTERM or SIGHUP; or
it runs with a closed stdout or into `head -n 1`. The moments are in the imports, of a new
interpreter as a user starts it, or in the work: compilation (no compiled programs are kept then),
sampling, voting, training, saving, in a fork of this process, which has imported all they need.
Checked are

- a line that names the signal or what is being finished, or the end, within 2 seconds. They are of
  the clock or of the process's own time, whichever is less: a busy machine keeps a process waiting;
- an end within 2 seconds of a second Ctrl-C;
- the exit code: 130 after Ctrl-C, 143 after SIGTERM and SIGHUP, 0 if the command had finished, or
  never had a signal;
- no traceback and no crash;
- that the same command then finishes, and leaves what an undisturbed one does (`bench.kills`).

    python -m bench.signals --signals=60                       # all scenarios
    python -m bench.signals --scenarios=run --cases=3          # one case again

Needs what `bench.kills` needs and may share its folder. Prints a JSON object for each case, and a
table to stderr at the end; exit code 1 if any case failed.
"""

import argparse
import functools
import itertools
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TextIO, cast

from bench.kill_scenarios import SCENARIOS, Scenario
from bench.kills import Work, campaign_parser, compare, fork, open_scratch, process_flags, start

PHASES = ("imports", "compiling", "working")
KINDS = ("Ctrl-C", "Ctrl-C twice", "SIGTERM", "SIGHUP", "closed stdout", "head")
_SENT = {"SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP}  # the others send SIGINT
_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143}
# What others may end with, when the signal reached one process of several.
_OTHERS = (75, 134, 143, 130)
_SOON = 2.0  # seconds
_HANGS = 600.0  # seconds
# Afterwards standard error says so: while an interpreter is torn down, the system handles signals.
_COMMAND = """import sys
from lmsi_jax.cli import run_command
code = run_command()
print("done", file=sys.stderr, flush=True)
sys.exit(code)"""
_ANSWER = re.compile(r"^(interrupted|terminated)\b.*", re.M)
_DONE = "\ndone\n"
_CRASH = re.compile(
    "Traceback|Segmentation|Fatal Python|core dumped|Exception ignored|terminate called"
)
_TICK = os.sysconf("SC_CLK_TCK")


class Disturbance(NamedTuple):
    """What happens to a command.

    Attributes:
      kind: of `KINDS`.
      phase: "imports", in a new interpreter; "compiling", without compiled programs; or "working".
      share: when, as a share of the processor time of this phase's undisturbed command.
      pause: seconds from the first Ctrl-C to the second.
      victim: the process that gets SIGTERM or SIGHUP; Ctrl-C goes to all, as from a terminal.
    """

    kind: str
    phase: str
    share: float
    pause: float
    victim: int


def draw_disturbance(draw: random.Random, processes: int) -> Disturbance:
    """Draws what happens; commands without a signal start in a new interpreter or compile."""
    kind = draw.choice(KINDS)
    phase = draw.choice(PHASES if kind in KINDS[:4] else PHASES[1:])
    pause, victim = draw.uniform(0.3, 3.0), draw.randrange(processes)
    return Disturbance(kind, phase, draw.random(), pause, victim)


class Started:
    """A command's processes as they run.

    Args:
      scenario: the command.
      ready: what is prepared.
      out: where it works.
      logs: a new folder for what the processes write.
      disturbance: what happens to it, of which this looks at the phase and at stdout.
    """

    def __init__(
        self,
        scenario: Scenario,
        ready: pathlib.Path,
        out: pathlib.Path,
        logs: pathlib.Path,
        disturbance: Disturbance,
    ):
        logs.mkdir(parents=True)
        self._logs = [logs / f"{index}.txt" for index in range(scenario.processes)]
        self._codes: dict[int, int] = {}
        self._pids = []
        self._interpreter = disturbance.phase == "imports"
        flags = process_flags(scenario.processes)
        for index, log in enumerate(self._logs):
            words = [*scenario.words(ready, out), *flags[index]]
            if self._interpreter:
                self._pids.append(_interpreter(words, log))
                continue
            programs = logs / "programs" if disturbance.phase == "compiling" else None
            command = functools.partial(_carry_out, words, disturbance.kind, programs, log)
            self._pids.append(fork(command, log))

    def said(self) -> str:
        """Returns what all processes have written."""
        return "\n".join(log.read_text(encoding="utf-8", errors="replace") for log in self._logs)

    def seconds(self, index: int) -> float:
        """Returns the processor time of a process so far; infinite once it has ended."""
        if self.code(index) is not None:
            return math.inf
        text = pathlib.Path(f"/proc/{self._pids[index]}/stat").read_text()
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    def begun(self, index: int) -> bool:
        """Returns true once a fork is through with forking; a new interpreter always is."""
        return self._interpreter or self._logs[index].with_suffix(".begun").exists()

    def code(self, index: int) -> int | None:
        """Returns the exit code of a process, negative for signals; None while it runs."""
        if index not in self._codes:
            done, status = os.waitpid(self._pids[index], os.WNOHANG)
            if not done:
                return None
            self._codes[index] = os.waitstatus_to_exitcode(status)
        return self._codes[index]

    def codes(self) -> list[int | None]:
        return [self.code(index) for index in range(len(self._pids))]

    def send(self, number: int, indices: Sequence[int]) -> None:
        for index in indices:
            if self.code(index) is None:
                os.kill(self._pids[index], number)

    def wait(self) -> str:
        """Waits for the end of all; returns a reason if they had to be killed."""
        end = time.monotonic() + _HANGS
        while None in self.codes():
            if time.monotonic() > end:
                self.send(signal.SIGKILL, range(len(self._pids)))
                while None in self.codes():
                    time.sleep(0.01)
                return "it hangs"
            time.sleep(0.01)
        return ""


def _interpreter(words: list[str], log: pathlib.Path) -> int:
    """Starts a command in a new interpreter, with signals as a terminal gives them."""
    environment = dict(os.environ, PYTHONPATH=str(pathlib.Path(__file__).parent.parent))
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
            preexec_fn=_default_signals,
        )
    process.returncode = 0  # it is waited for by its number
    return process.pid


def _default_signals() -> None:
    """Undoes what a shell does to its background jobs, and nohup to all."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _carry_out(
    words: list[str], kind: str, programs: pathlib.Path | None, log: pathlib.Path
) -> int:
    """Does what a command's process does, in a fork; a file says that it has begun."""
    import jax

    from lmsi_jax.cli.main import main

    _default_signals()
    if programs is not None:
        jax.config.update("jax_compilation_cache_dir", str(programs))
    if kind == "closed stdout":
        os.close(1)
        sys.stdout = cast(TextIO, None)  # as in an interpreter that starts without it
    if kind == "head":
        reading, writing = os.pipe()
        os.set_inheritable(reading, True)
        subprocess.Popen(["head", "-n", "1"], stdin=reading, stdout=subprocess.DEVNULL)
        os.close(reading)
        os.dup2(writing, 1)
        os.close(writing)
        sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.argv = ["lmsi", *words]
    log.with_suffix(".begun").touch()
    return main()


def cpu_seconds(work: Work, name: str, phase: str) -> float:
    """Returns the processor time of process 0 of an undisturbed start; runs it once."""
    record = work.folder / f"signals-{name}-{phase}.json"
    if not record.exists():
        out, logs = work.folder / f"case-{name}", work.folder / "logs" / f"signals-{name}-{phase}"
        for folder in (out, logs):
            shutil.rmtree(folder, ignore_errors=True)
        out.mkdir()
        undisturbed = Disturbance("SIGTERM", phase, 1.0, 0.0, 0)
        started = Started(SCENARIOS[name], work.ready, out, logs, undisturbed)
        seconds = 0.0
        while (now := started.seconds(0)) < math.inf:
            seconds = now
            time.sleep(0.02)
        reason = started.wait()
        if reason or any(started.codes()):
            raise SystemExit(f"{name}: undisturbed, it fails\n{started.said()[-2000:]}")
        record.write_text(json.dumps(seconds), encoding="utf-8")
    return json.loads(record.read_text(encoding="utf-8"))


def disturb(started: Started, disturbance: Disturbance, moment: float) -> dict[str, Any]:
    """Sends the signals and waits for the end.

    Args:
      started: the command.
      disturbance: what to send, and to whom.
      moment: processor time of the process that gets the signal.

    Returns:
      `code` for each process; `done`, true if the command was through already; `reason`, why it
      hung; `answer`, the line; `seconds` until the line or the end; `second`, seconds from a second
      Ctrl-C to the end.
    """
    victim = disturbance.victim
    number = _SENT.get(disturbance.kind, signal.SIGINT)
    while (at := started.seconds(victim)) < math.inf:
        if at >= moment and started.begun(victim):
            break
        time.sleep(0.005)
    done = _DONE in started.said()
    result: dict[str, Any] = {}
    if at < math.inf:
        targets = range(len(started.codes())) if number == signal.SIGINT else [victim]

        def until(done: Callable[[], bool], begin: float, used: float) -> float:
            """Returns the seconds that it took, of the clock or of the process's own time."""
            while True:
                over = done() or started.seconds(victim) == math.inf
                clock, own = time.monotonic() - begin, started.seconds(victim) - used
                if over or clock > _HANGS:
                    return round(min(clock, own), 2)
                time.sleep(0.005)

        begin = time.monotonic()
        started.send(number, targets)
        result["seconds"] = until(lambda: bool(_ANSWER.search(started.said())), begin, at)
        if disturbance.kind == "Ctrl-C twice":
            time.sleep(max(0.0, begin + disturbance.pause - time.monotonic()))
            if None in started.codes():
                begin, at = time.monotonic(), started.seconds(victim)
                started.send(number, targets)
                result["second"] = until(lambda: None not in started.codes(), begin, at)
    reason = started.wait()
    answer = _ANSWER.search(started.said())
    return result | {
        "reason": reason,
        "done": done,
        "code": started.codes(),
        "answer": answer[0] if answer else "",
    }


def problems(disturbance: Disturbance, result: dict[str, Any], said: str) -> list[str]:
    """Returns a line on each promise that was not kept."""
    found = []
    codes, victim = result["code"], disturbance.victim
    expected = {0}
    if disturbance.kind in KINDS[:4] and "seconds" in result:
        number = _SENT.get(disturbance.kind, signal.SIGINT)
        expected.add(_CODES[number])
        if result["done"]:
            expected.add(-number)
        if not (result["answer"] or result["done"]) and codes[victim]:
            found.append("it says nothing of the signal")
        if result["seconds"] > _SOON:
            found.append(f"the first line comes after {result['seconds']} s")
        if result.get("second", 0.0) > _SOON:
            found.append(f"the second Ctrl-C takes {result['second']} s")
    for index, code in enumerate(codes):
        if code not in expected and not (len(codes) > 1 and index != victim and code in _OTHERS):
            found.append(f"process {index} ends with {code}, not {sorted(expected)}")
    if result["reason"]:
        found.append(result["reason"])
    found += [f"it writes {line!r}" for line in said.splitlines() if _CRASH.search(line)]
    return found


def run_case(work: Work, name: str, seed: int, number: int) -> dict[str, Any]:
    """Disturbs a command and repeats it.

    Returns:
      What happened: see `disturb`; `problems`, empty if every promise was kept.
    """
    scenario = SCENARIOS[name]
    reference, _ = work.undisturbed(name, scenario, work.folder / f"case-{name}")
    draw = random.Random(f"signals/{seed}/{name}/{number}")
    disturbance = draw_disturbance(draw, scenario.processes)
    moment = disturbance.share * cpu_seconds(work, name, disturbance.phase)
    out, logs = work.folder / f"case-{name}", work.folder / "logs" / f"signals-{name}-{number}"
    for folder in (out, logs):
        shutil.rmtree(folder, ignore_errors=True)
    out.mkdir()
    if disturbance.kind in KINDS[4:]:
        moment = math.inf  # nothing is sent
    started = Started(scenario, work.ready, out, logs / "first", disturbance)
    result = disturb(started, disturbance, moment)
    said = started.said()
    found = problems(disturbance, result, said)
    finished = not any(result["code"])
    if not finished:
        codes, reason = start(scenario, work.ready, out, logs / "again", None)
        again = [log.read_text(errors="replace") for log in sorted((logs / "again").glob("*.txt"))]
        # An import or export whose folder was complete refuses to make it again.
        there = codes == [2] and "is there already" in " ".join(" ".join(again).split())
        if any(codes) and not there:
            found.append(f"repeated, it ends with {codes} {reason} {' '.join(again)[-500:]}")
    found += compare(reference, work.digests(out, logs))
    shutil.rmtree(logs / "first" / "programs", ignore_errors=True)
    return {
        "case": number,
        **disturbance._asdict(),
        **result,
        "at": None if moment == math.inf else round(moment, 2),
        "finished": finished,
        "problems": found,
        "said": said.splitlines()[-12:] if found else [],
    }


def table(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Returns a Markdown table: a row for each kind of disturbance."""
    cases = list(itertools.chain(*results.values()))
    lines = [
        "| | cases | ended early | first line, seconds at most | after a second Ctrl-C | failed |",
        "|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        some = [case for case in cases if case["kind"] == kind]
        first = max((case["seconds"] for case in some if "seconds" in case), default="")
        second = max((case["second"] for case in some if "second" in case), default="")
        early = sum(not case["finished"] for case in some)
        failed = sum(bool(case["problems"]) for case in some)
        lines.append(f"| {kind} | {len(some)} | {early} | {first} | {second} | {failed} |")
    return lines


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = campaign_parser(__doc__)
    parser.add_argument(
        "--signals", type=int, default=60, help="cases in all, split among the scenarios"
    )
    parser.add_argument(
        "--scratch", type=pathlib.Path, help="a folder to keep (default: a temporary one)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cases and prints each."""
    parser = make_parser()
    options = parser.parse_args(argv)
    names = list(SCENARIOS) if options.scenarios == "all" else options.scenarios.split(",")
    if unknown := sorted(set(names) - set(SCENARIOS)):
        parser.error(f"no such scenario: {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    work = open_scratch(parser, options.scratch, "bench.signals")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    try:
        count = -(-options.signals // len(names))
        for name in names:
            work.prepare(SCENARIOS[name].needs)
            for number in options.cases or range(options.first, options.first + count):
                case = run_case(work, name, options.seed, number)
                results[name].append(case)
                print(json.dumps({"scenario": name, "seed": options.seed, **case}), flush=True)
                moment = f"{case['kind']}, {case['phase']}, at {case['at']} s"
                line = f"{name} {number}: {moment}: ends with {case['code']}"
                print(line, *case["problems"], sep="\n  ", file=sys.stderr, flush=True)
    finally:
        if options.scratch is None:
            shutil.rmtree(work.folder, ignore_errors=True)
    print(*table(results), sep="\n", file=sys.stderr)
    return int(any(case["problems"] for cases in results.values() for case in cases))


if __name__ == "__main__":
    sys.exit(main())
