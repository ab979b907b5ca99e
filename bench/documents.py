"""Runs the commands in the documents as they are written: python -m bench.documents

Every command of the `bash` blocks in README.md, CONTRIBUTING.md, docs/ and bench/README.md and of
the headers in gin_configs/ is run in a temporary copy of the repository, in the documents' order,
or skipped for a reason that `SKIPPED` states. Nothing else decides: a new command is run. Checked
are exit codes, tracebacks, the files that a command says it writes, and what documents say of its
output (`STATED`).

Folders that a reader downloads are replaced (`prepare`): a micro model that answers by
construction, four questions in GSM8K's format. Paths at the root of the file system are below the
copy (`MOVED`). Nothing else is changed, unless `--small` is given, which adds settings so that each
run takes seconds instead of minutes; then outputs are not compared.

    python -m bench.documents                          # all that needs no network: hours
    python -m bench.documents --small --only=docs/t5x  # the documents, or commands, that match
    python -m bench.documents --list                   # what would be run, and why the rest is not

`--installs` also runs what installs packages. LMSI_WEIGHTS names a folder of real models, for the
commands that read one. Prints a line as each command ends, then a Markdown table; exit code 1 if
any failed.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
_FIRST = ("README.md", "docs/tasks.md", "docs/usage.md")  # what others read is made there


class Command(NamedTuple):
    """A documented command.

    Attributes:
      document: its path below the repository.
      line: where it stands.
      text: the command as a shell reads it, comment included.
      block: the assignments and exports of the document up to it.
    """

    document: str
    line: int
    text: str
    block: str


class Skipped(NamedTuple):
    """A reason not to run what a pattern finds.

    Attributes:
      pattern: a regular expression.
      reason: what the command needs.
      without: a module or `LMSI_WEIGHTS/FILE` that makes it possible; "" if nothing does here.
    """

    pattern: str
    reason: str
    without: str = ""


SKIPPED = (
    Skipped(r"^(gcloud|kubectl|docker) ", "a cloud account"),
    Skipped(r"gs://|^python launch/(tpu_vm|gke)\.py|^tensorboard", "a cloud; see tests/launch"),
    Skipped(r"export-hf runs/gemma/", "a run on a cloud"),
    Skipped(r"^vllm ", "vLLM and a GPU"),
    Skipped(r"--gin\.Decoding\.slots=1024", "a GPU"),
    Skipped(r"\.\.\.( |$)", "flags that the reader fills in"),
    Skipped(r"my_run\.gin|CONFIG|tests/PACKAGE", "a file or name of the reader's"),
    Skipped(r"^lmsi aot ", "the TPU compiler ([tpu])", "libtpu"),
    Skipped(r"host0:", "four machines; see tests/pipeline/test_several_processes.py"),
    Skipped(r"^python -m lmsi_jax\.interop\.t5x ", "T5X", "t5x"),
    Skipped(r"t5x_samples|t5x_eval", "T5X", "t5x"),
    Skipped(
        r"SmolLM2-135M-Instruct\.Q4_1", "a download", "LMSI_WEIGHTS/SmolLM2-135M-Instruct.Q4_1.gguf"
    ),
    Skipped(r"peers/|git clone|--peers?=|^python bench/(decode|train)\.py", "the peer systems"),
    Skipped(r"-m bench\.(kills|signals) --\w+=(200|60)", "hours; the pieces are run"),
    Skipped(r"-m bench\.documents", "itself"),
    Skipped(r"^lmsi study \w+ --table", "hours: a finished study"),
    Skipped(r"^python -m build |^PACKAGE=", "build, from [dev]", "build"),
    Skipped(r"\.parquet", "pyarrow", "pyarrow"),
    Skipped(r"@WandB|^(wandb|mlflow) ", "the services' packages, from [trackers]", "wandb"),
    Skipped(r"lm_eval_model", "lm-evaluation-harness and its data sets"),
    Skipped(r"^lmsi push |^hf auth", "an account on the Hugging Face hub"),
    Skipped(r"pytest|^\.ci/", "the test suite, or this check itself"),
)
_INSTALLS = re.compile(r"pip install|-m venv")
# Run in place of commands that take hours.
INSTEAD = (
    (re.compile(r"^lmsi study (\w+)(?= *(#|$))"), r"lmsi study \1 --plan"),
    (re.compile(r"^python3 -m venv .* pip install -e \. && (?=lmsi )"), ""),
)
MOVED = (("/data/gsm8k", "data/gsm8k"), (" DIR ", " downloads/judge "))
# What documents say that a command prints.
STATED = (
    (r"^lmsi run quickstart$", r"on in-domain tasks rose from 51\.6 %"),
    (r"-m lmsi_jax\.interop\.t5x eval", ""),
    (r"^tail -n 1 runs/t5x_eval", r'"accuracy": 0\.4166666666666667'),
    (r"--dry_run", r"nothing was run|to set"),
)
CODES = {"lmsi run lmsi_palm_540b --dry_run": 2}  # it names what its reader has to set
SMALL = {
    "Questions.train_count": 4,
    "Questions.test_count": 4,
    "Sampling.num_samples": 4,
    "Evaluation.prompt_styles": "('cot',)",
    "Evaluation.vote_count": 2,
    "Evaluation.num_samples": 4,
    "Training.steps": 2,
    "Training.microbatches": 1,
    "Augmentation.questions": 4,
}
_STAGES = (
    *("run", "generate", "prompts", "sample", "vote", "mix", "train", "eval", "report", "distill"),
    *("pretrain", "import-samples"),
)
_FEW = ("quickstart", "generated", "iwsi", "scpo_tiny", "distill_tiny")  # asked on two tasks
_LMSI = """#!{python}
import os, sys
if len(sys.argv) > 1 and sys.argv[1] in {stages}:
    flags = os.environ["LMSI_DOCUMENTS_FLAGS"].split()
    if flags and sys.argv[1] == "pretrain":
        flags.append("--gin.pretrain/Training.steps=2")
    if flags and len(sys.argv) > 2 and sys.argv[2] in {few}:
        flags += ["--gin.Questions.%s=('purchases','legs')" % one for one in ("train", "test")]
    sys.argv += flags
from lmsi_jax.cli import run_command
sys.exit(run_command())
"""


# --- what is written ------------------------------------------------------------------------------


def commands() -> list[Command]:
    """Returns all documented commands, in the order in which they are run."""
    found = []
    for name, start, lines in _blocks():
        text, block, first = "", found[-1].block if found and found[-1][0] == name else "", start
        for number, line in enumerate(lines, start):
            first = first if text else number
            text += line + "\n"
            if line.endswith("\\") or _is_here_document_open(text):
                continue
            command, text = text.strip(), ""
            if re.match(r"(export )?\w+=\S*$|export ", command) and "$(" not in command:
                block += f"{command}\n"
            elif command and not command.startswith("#"):
                found.append(Command(name, first, command, block))
    return found


def _is_here_document_open(text: str) -> bool:
    end = re.search(r"<<'(\w+)'", text)
    return end is not None and not text.endswith(f"\n{end[1]}\n")


def _blocks() -> Iterator[tuple[str, int, list[str]]]:
    """Yields (document, number of the first line, lines)."""
    pages = (ROOT / "docs").rglob("*.md")
    others = sorted(file.relative_to(ROOT).as_posix() for file in pages)
    names = [*_FIRST, *(name for name in others if name not in _FIRST)]
    for name in (*names, "bench/README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for block in re.finditer(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            yield name, text[: block.start(1)].count("\n") + 1, block[1].splitlines()
    for file in sorted((ROOT / "gin_configs").rglob("*.gin")):
        name = file.relative_to(ROOT).as_posix()
        lines: list[str] = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if lines or re.match(r"#   (lmsi|python|\.\.\.) ", line):
                lines.append(line.removeprefix("#").strip())
                if not line.endswith("\\"):
                    yield name, number - len(lines) + 1, lines
                    lines = []


def reason_to_skip(command: Command, installs: bool = False) -> str:
    """Returns why a command is not run; "" if it is."""
    text = bare(shorter(command.text))
    for one in SKIPPED:
        if re.search(one.pattern, text, re.MULTILINE) and not _is_there(one.without):
            return one.reason
    return "" if installs or not _INSTALLS.search(text) else "the network, to install packages"


def bare(text: str) -> str:
    """Returns a command in one line, without its comment."""
    return " ".join(re.sub(r"(?m)(^| )#.*", "", text.replace("\\\n", " ")).split())


def _is_there(name: str) -> bool:
    folder, _, file = name.partition("/")
    if file:
        return bool(os.environ.get(folder)) and pathlib.Path(os.environ[folder], file).exists()
    return bool(name) and importlib.util.find_spec(name) is not None


def shorter(text: str) -> str:
    """Returns a command, or what is run in its place."""
    for pattern, replacement in INSTEAD:
        text = pattern.sub(replacement, text)
    return text


def stated_files(text: str) -> list[str]:
    """Returns patterns of the files that a command says it writes, by its own words."""
    found = []
    text = text.partition(" <<'")[0]  # the command before a here document
    for part in re.split("&&", text.replace("\\\n", " ")):
        words = shlex.split(part, comments=True)
        found += re.findall(r"--(?:json|out)=(\S+)| > (\S+)", part.partition(" #")[0])
        while words and re.match(r"\w+=", words[0]):
            del words[0]
        flags = dict(word.split("=", 1) for word in words if re.match(r"--[\w.]+=", word))
        plain = [word for word in words if not word.startswith("-")]
        if plain[:1] != ["lmsi"] or "--dry_run" in words or "--plan" in words:
            if "lmsi_jax.interop.t5x" in words and "infer" in words:
                folder = flags["--gin.INFER_OUTPUT_DIR"].strip("'")
                found.append(f"{folder}/*-predict_with_aux.jsonl-00000-of-00001")
            if "lmsi_jax.interop.t5x" in words and "eval" in words:
                folder = flags["--gin.EVAL_OUTPUT_DIR"].strip("'")
                found.append(f"{folder}/inference_eval/*-metrics.jsonl")
            continue
        if plain[1] == "import-hf":
            found.append(f"{plain[3]}/model.gin")
        elif plain[1] == "export-hf":
            found += [f"{plain[3]}/config.json", f"{plain[3]}/model*.safetensors"]
        elif plain[1] == "export-rows":
            found.append(plain[3])
        elif plain[1] == "init":
            found.append(f"{plain[2]}/{plain[2]}.gin")
        elif plain[1] == "run" and "--gin.Run.output_dir" in flags:
            found.append(f"{flags['--gin.Run.output_dir']}/report.html")
    return [one if isinstance(one, str) else "".join(one) for one in found]


# --- the copy -------------------------------------------------------------------------------------


def prepare(place: pathlib.Path) -> None:
    """Copies the repository into a folder, with what readers download."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place / name)
    _write_models(place / "downloads")
    data = place / "data" / "gsm8k"
    data.mkdir(parents=True)
    for split, first in (("train", 2), ("test", 6)):
        rows = []
        for n in range(first, first + 4):
            question = f"Ann has {n} pens and buys {n + 3} more. How many pens has she?"
            total = f"<<{n}+{n + 3}={2 * n + 3}>>{2 * n + 3}"
            answer = f"{n} + {n + 3} = {total}\n#### {2 * n + 3}"
            rows.append({"question": question, "answer": answer})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (data / f"{split}.jsonl").write_text(text, encoding="utf-8")
    bin = place / ".bin"
    bin.mkdir()
    (bin / "lmsi").write_text(_LMSI.format(python=sys.executable, stages=_STAGES, few=_FEW))
    (bin / "lmsi").chmod(0o755)
    for name in ("python", "python3"):
        # A link would lose the virtual environment of the interpreter.
        (bin / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (bin / name).chmod(stat.S_IRWXU)


def environment_of(place: pathlib.Path, small: bool) -> dict[str, str]:
    """Returns the variables of commands in the copy, whose programs come first."""
    further = os.environ.get("PYTHONPATH", "").split(":")
    flags = [f"--gin.{name}={value}" for name, value in SMALL.items()] if small else []
    return {
        **os.environ,
        "PATH": f"{place / '.bin'}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join([str(place), *(one for one in further if one != str(ROOT))]),
        "LMSI_DOCUMENTS_FLAGS": " ".join(flags),
    }


def _write_models(downloads: pathlib.Path) -> None:
    """Writes the micro model in place of each downloaded one."""
    from bench.kill_scenarios import write_inputs

    with tempfile.TemporaryDirectory() as made:
        write_inputs(pathlib.Path(made) / "ready")
        hub = pathlib.Path(made) / "ready" / "hub"
        config = json.loads((hub / "config.json").read_text(encoding="utf-8"))
        config["max_position_embeddings"] = 16384
        (hub / "config.json").write_text(json.dumps(config), encoding="utf-8")
        names = {match for one in commands() for match in _DOWNLOADED.findall(one.text)}
        for name in sorted({*names, "judge"}):
            if not name.endswith(".gguf"):
                shutil.copytree(hub, downloads / name)
                if "nstruct" in name:
                    chat = json.dumps({"chat_template": _CHAT})
                    (downloads / name / "tokenizer_config.json").write_text(chat)
    weights = os.environ.get("LMSI_WEIGHTS")
    for file in pathlib.Path(weights).glob("*.gguf") if weights else ():
        (downloads / file.name).symlink_to(file)


_DOWNLOADED = re.compile(r"import-hf downloads/(\S+)")
_CHAT = (
    "{% for one in messages %}{{ one['role'] }}: {{ one['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


# --- the runs -------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What became of a command: `result` is "passed", "failed", "skipped" or "not run"."""

    command: Command
    result: str
    why: str = ""
    seconds: float = 0.0


def run(
    command: Command, place: pathlib.Path, environment: dict[str, str], small: bool, seconds: float
) -> Outcome:
    """Runs a command in the copy and checks what it leaves and says."""
    text = shorter(command.text)
    for old, new in MOVED:
        text = text.replace(old, new)
    for old, new in (("checkpoint_150", "checkpoint_2"), ("RELATIVE=150", "RELATIVE=2")):
        text = text.replace(old, new) if small else text
    flags = environment["LMSI_DOCUMENTS_FLAGS"]
    if " -- run " in text and flags:
        text = f"{text.partition(' #')[0]} {flags}"
    begin = time.monotonic()
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", f"{command.block}{text}"],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[0]
        return Outcome(command, "failed", f"not finished after {seconds:g} s: {_end(said)}")
    finally:
        if process.poll() is None:  # this process is interrupted
            os.killpg(process.pid, signal.SIGKILL)
    took = time.monotonic() - begin
    why = []
    if process.returncode != CODES.get(bare(command.text), 0):
        why.append(f"exit code {process.returncode}: {_end(said)}")
    elif "Traceback (most recent call last)" in said:
        why.append("a traceback")
    why += [f"no {name}" for name in stated_files(text) if not any(place.glob(name))]
    for pattern, output in () if small else STATED:
        if re.search(pattern, command.text) and not re.search(output, said):
            why.append(f"it does not say {output!r}: {_end(said)}")
    return Outcome(command, "failed" if why else "passed", "; ".join(why), took)


def _end(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return " / ".join(lines[-6:])[-600:]


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns a Markdown table: documents, and what became of their commands."""
    lines = [
        "| document | commands | passed | failed | skipped | not run |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(one.command.document for one in outcomes):
        some = [one.result for one in outcomes if one.command.document == name]
        counts = [some.count(result) for result in ("passed", "failed", "skipped", "not run")]
        lines.append(f"| {name} | {len(some)} | {' | '.join(map(str, counts))} |")
    return lines


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="a pattern of documents or commands")
    parser.add_argument("--small", action="store_true", help="add settings that make runs short")
    parser.add_argument("--installs", action="store_true", help="also install packages")
    parser.add_argument("--list", action="store_true", help="run nothing")
    parser.add_argument("--minutes", type=float, default=90.0, help="for a command, at most")
    parser.add_argument("--hours", type=float, default=float("inf"), help="in all, at most")
    parser.add_argument("--place", type=pathlib.Path, help="a folder to keep, which may go on")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the commands and prints what became of them."""
    options = make_parser().parse_args(argv)
    place = options.place or pathlib.Path(tempfile.mkdtemp(prefix="lmsi_documents_"))
    environment = {}
    if not options.list:
        place = place.resolve()
        if not (place / ".bin").exists():
            place.mkdir(parents=True, exist_ok=True)
            prepare(place)
        environment = environment_of(place, options.small)
    begin, outcomes, done = time.monotonic(), [], {}
    for command in commands():
        where = f"{command.document}:{command.line}"
        if not re.search(options.only, f"{where} {command.text}"):
            continue
        if why := reason_to_skip(command, options.installs):
            outcome = Outcome(command, "skipped", f"needs {why}")
        elif bare(command.text) in done:
            outcome = Outcome(command, "skipped", f"as in {done[bare(command.text)]}")
        elif options.list or time.monotonic() - begin > 3600 * options.hours:
            outcome = Outcome(command, "not run")
        else:
            outcome = run(command, place, environment, options.small, 60 * options.minutes)
        done.setdefault(bare(command.text), where)
        outcomes.append(outcome)
        line = f"{outcome.result} {where} [{outcome.seconds:.0f} s] {bare(command.text)}"
        print(line, flush=True)
        if outcome.why:
            print(f"    {outcome.why}", flush=True)
    print(*table(outcomes), sep="\n")
    if options.place is None:
        shutil.rmtree(place, ignore_errors=True)
    return int(any(one.result == "failed" for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
