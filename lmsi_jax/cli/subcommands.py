"""Define the commands that are no stage of a run: imports, exports, aot, study and others.

This module is imported for `lmsi --help`, so whatever is heavy is imported when a command runs.
"""

import argparse
import itertools
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lmsi_jax.errors import DoesNotFit, LmsiError
from lmsi_jax.prompts import PROMPT_STYLES
from lmsi_jax.records import KINDS, Kind, Question

if TYPE_CHECKING:
    from lmsi_jax.config import Run

Load = Callable[[Sequence[str]], "Run"]
"""Builds the `Run` of a command's configuration with further bindings, each "NAME = VALUE"."""


class Command(NamedTuple):
    """A command of `lmsi`."""

    help: str
    """One line of help, in the imperative."""
    example: str
    """Arguments of the help's example."""
    configs: str
    """Folder of gin_configs that its CONFIG argument names a file of, "runs" or "studies"; "" for a
    command without configuration and gin flags."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    """Declares the command's own arguments."""
    run: Callable[[argparse.Namespace, Load], None]
    """Runs the command; without a configuration `Load` raises LmsiError."""


def add_allow_imports(parser: argparse.ArgumentParser) -> None:
    """Declares the flag of every command that reads a gin file."""
    parser.add_argument(
        "--allow_imports",
        action="store_true",
        help="run the modules that a gin file imports; only for files that you trust",
    )


# --- import-hf, export-hf -------------------------------------------------------------------------


def _add_import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="MODEL",
        type=Path,
        help="folder of a Hugging Face model or of PEFT's adapters, GGUF file (any one of a split "
        "model's), or name of a model on Hugging Face's hub, owner/name or owner/name@revision",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to create")
    parser.add_argument(
        "--dtype",
        choices=("keep", "float32", "bfloat16"),
        default="keep",
        help="type of the checkpoint's parameters (default: unchanged)",
    )
    parser.add_argument(
        "--base",
        metavar="MODEL",
        type=Path,
        help="model that adapters belong to (default: the one that adapter_config.json names)",
    )


def _import_hf(args: argparse.Namespace, load: Load) -> None:
    from lmsi_jax.interop.hf_weights import import_model

    config = import_model(args.source, args.out, args.dtype, print, args.base)
    print(_border_report(args.out / "model.gin"))
    print(f"{config.parameter_count:,} parameters in {args.out}")
    print(f"next: lmsi run CONFIG --gin_file={args.out / 'model.gin'}")


def _border_report(model: Path) -> str:
    """Returns a line on 200 rows of the generated tasks, encoded in parts and as whole texts."""
    from lmsi_jax.config.configurables import load_run_of
    from lmsi_jax.models.tokenizers import compare_borders
    from lmsi_jax.pipeline.context import Context
    from lmsi_jax.prompts import solution
    from lmsi_jax.tasks import registry

    context = Context(load_run_of(model.parent), frozenset())
    rows = []
    for name in ("purchases", "choices", "claims", "travel"):
        task = registry.get(name)
        for number, one in enumerate(itertools.islice(task.worked("pretrain", "hard", 0), 50)):
            question = Question(uid=str(number), task=name, text=one.question, kind=task.kind)
            style = PROMPT_STYLES[number % len(PROMPT_STYLES)]
            prompt = context.prompts.prompt(question, task.exemplars(), style)
            target = context.prompts.target(solution(one.reasoning, one.answer))
            rows.append((*prompt, target))
    return str(compare_borders(context.tokenizer, rows))


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a checkpoint_N folder, or a folder of such"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to create")
    parser.add_argument(
        "--run",
        metavar="DIR",
        help="folder of the run or the imported model, with config.gin or model.gin (default: the "
        "nearest one above CHECKPOINT)",
    )
    parser.add_argument(
        "--dtype",
        choices=("keep", "float32", "bfloat16"),
        default="keep",
        help="type of the tensors (default: unchanged)",
    )
    parser.add_argument(
        "--max_shard_size", default="5GB", help="largest size of a file (default: 5GB)"
    )
    add_allow_imports(parser)


def _export_hf(args: argparse.Namespace, load: Load) -> None:
    size = parse_size(args.max_shard_size)
    from lmsi_jax.config.configurables import load_run_of
    from lmsi_jax.interop.hf_export import export_model
    from lmsi_jax.pipeline.context import Context
    from lmsi_jax.runtime.files import check_regular
    from lmsi_jax.training import checkpoints

    checkpoints.find(args.checkpoint)  # a missing checkpoint is a clearer error than its settings
    config = load_run_of(args.checkpoint, args.run, allow_imports=args.allow_imports)
    export_model(
        args.checkpoint,
        config.model,
        Context(config, frozenset()).tokenizer_path,
        args.out,
        dtype=args.dtype,
        max_shard_bytes=size,
    )
    print(f"{config.model.parameter_count:,} parameters in {args.out}")
    if config.chat is not None and config.chat.template:
        check_regular(config.chat.template)
        shutil.copyfile(config.chat.template, args.out / "chat_template.jinja")
    trained = config.questions is not None  # a run's, not an import's
    if trained and config.chat is None and config.mixing.end == "blank_line":
        print(
            "its answers end at a blank line, not at an end token: give the engine that generates "
            f"the stop strings {list(config.sampling.stop)}, or train with "
            "Mixing.end = 'end_token'"
        )


def parse_size(text: str) -> int:
    """Returns the bytes of "5GB", "200MB" or "1000".

    Raises:
      LmsiError: the text is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    size = float(match[1]) * _UNITS[match[2]] if match else 0
    if size < 1:
        raise LmsiError(f"--max_shard_size={text}: write a size such as 5GB or 200MB")
    return int(size)


# --- import-samples, export-rows ------------------------------------------------------------------


def _add_import_samples_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="JSON Lines with samples: a plain form, batch outputs of vLLM or OpenAI, chat "
        "completions, T5X's infer (docs/samples.md)",
    )
    parser.add_argument(
        "--round", metavar="N", type=int, default=1, help="round of the samples (default: 1)"
    )
    parser.add_argument(
        "--skip_broken", action="store_true", help="leave out lines that cannot be read"
    )


def _import_samples(args: argparse.Namespace, load: Load) -> None:
    from lmsi_jax.config import gin_loader
    from lmsi_jax.pipeline.exchange import import_samples
    from lmsi_jax.runtime.signals import signals_as_exceptions

    run = load(())
    with signals_as_exceptions():
        import_samples(
            run,
            args.files,
            round_index=args.round,
            skip_broken=args.skip_broken,
            command=shlex.join(["lmsi", *sys.argv[1:]]),
            config_text=gin_loader.operative_config(),
        )


def _add_export_rows_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run (Run.output_dir)")
    parser.add_argument(
        "out",
        metavar="OUT",
        nargs="?",
        help="file to write (default: rows.jsonl or rows.parquet in the round's folder)",
    )
    parser.add_argument(
        "--round", metavar="N", type=int, help="round of the rows (default: the last mixed one)"
    )
    parser.add_argument(
        "--format",
        choices=("prompt-completion", "messages", "parquet"),
        default="prompt-completion",
        help="form of the rows (default: prompt-completion)",
    )


def _export_rows(args: argparse.Namespace, load: Load) -> None:
    from lmsi_jax.pipeline.exchange import export_rows

    path, count = export_rows(args.run, args.out, round_index=args.round, row_format=args.format)
    print(f"{count:,} rows in {path}")


# --- export-candidates ----------------------------------------------------------------------------


def _add_export_candidates_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="folder to create")
    parser.add_argument(
        "--round", metavar="N", type=int, default=1, help="round of the samples (default: 1)"
    )
    parser.add_argument(
        "--candidates",
        metavar="K",
        type=int,
        default=4,
        help="random samples shown beside the greedy one (default: 4)",
    )
    parser.add_argument(
        "--rows", metavar="N", type=int, default=4, help="rows of a question, at most (default: 4)"
    )
    parser.add_argument(
        "--target",
        choices=("majority", "given"),
        default="majority",
        help="what is learnt: samples of the majority, or given solutions (default: majority)",
    )
    parser.add_argument(
        "--shows",
        choices=("both", "question", "candidates"),
        default="both",
        help="what the corrector reads (default: both)",
    )
    parser.add_argument(
        "--longest",
        metavar="N",
        type=int,
        default=80,
        help="words of a candidate; of a longer one the middle is left out (default: 80)",
    )


def _export_candidates(args: argparse.Namespace, load: Load) -> None:
    from lmsi_jax.pipeline.candidates import export_candidates

    for name in ("candidates", "rows", "longest"):
        if getattr(args, name) < 1:
            raise LmsiError(f"--{name}={getattr(args, name)}: use 1 or more")
    written = export_candidates(
        load(()),
        args.out,
        round_index=args.round,
        count=args.candidates,
        rows=args.rows,
        target=args.target,
        shows=args.shows,
        longest=args.longest,
    )
    print(f"{args.out}: {written.train:,} rows to learn, {written.test:,} test questions")
    print(f"next: lmsi run CONFIG --gin_file={written.config} --gin.Run.output_dir=FOLDER")


# --- init -----------------------------------------------------------------------------------------


def _add_init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        metavar="NAME",
        type=Path,
        help="folder to create; its last part names the task: letters, digits and _",
    )


def _init(args: argparse.Namespace, load: Load) -> None:
    import importlib.resources

    from lmsi_jax.config.steps import is_task_name
    from lmsi_jax.runtime.files import new_folder
    from lmsi_jax.tasks import registry

    name = args.folder.name
    if not is_task_name(name) or name in registry.NAMES:
        taken = "is the name of a packaged task" if name in registry.NAMES else "names no task"
        raise LmsiError(f"{name!r} {taken}; use other letters, digits and _, as in 'riddles'")
    config = args.folder / f"{name}.gin"
    with new_folder(args.folder) as folder:
        for file in (importlib.resources.files("lmsi_jax.tasks") / "starter").iterdir():
            text = file.read_text(encoding="utf-8")
            if file.name == "run.gin":  # NAME is the task, PATH the file itself
                text = re.sub(r"\bNAME\b", name, text)
                text = re.sub(r"\bPATH\b", shlex.quote(str(config)), text)
            written = folder / (config.name if file.name == "run.gin" else file.name)
            written.write_text(text, encoding="utf-8")
    print(f"{config}: the run, with a comment on each setting")
    print("questions.jsonl, test.jsonl, exemplars.txt beside it: replace them by yours")
    print(f"next: lmsi run {shlex.quote(str(config))}")


# --- aot ------------------------------------------------------------------------------------------

_PROGRAMS = ("train", "sample")
# Most keep libtpu from looking for a TPU, asking a metadata server, or minding a second process.
_NO_TPU = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    # JAX can write programs for chips that are not here to its cache, but not read them.
    "JAX_COMPILATION_CACHE_DIR": "",
}


def _add_aot_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--topology", required=True, help="KIND:SHAPE, such as v5e:4x4 or v5p:8x8x8"
    )
    parser.add_argument("--what", default="train,sample", help="train, sample, or both (default)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    parser.add_argument(
        "--prompt_tokens",
        metavar="N",
        type=int,
        default=1024,
        help="tokens of a task's prompt (default: 1024)",
    )
    parser.add_argument(
        "--question_tokens",
        metavar="N",
        type=int,
        default=128,
        help="tokens of a question (default: 128)",
    )
    parser.add_argument(
        "--occupancy",
        metavar="SHARE",
        type=float,
        default=0.9,
        help="share of the slots that are busy (default: 0.9)",
    )


def _compile_ahead(args: argparse.Namespace, load: Load) -> None:
    what = tuple(args.what.split(","))
    if not set(what) <= set(_PROGRAMS):
        raise LmsiError(f"--what={args.what}: write train, sample or train,sample")
    if not (0 < args.occupancy <= 1 and args.prompt_tokens >= 0 and args.question_tokens > 1):
        raise LmsiError(
            "--occupancy is above 0 and at most 1, --prompt_tokens 0 or more, --question_tokens 2 "
            "or more"
        )
    os.environ.update(_NO_TPU)  # before JAX is imported
    from lmsi_jax.runtime.files import write_json
    from lmsi_jax.runtime.progress import slow_work_reported
    from lmsi_jax.runtime.signals import interruptible
    from lmsi_jax.tools import aot_report
    from lmsi_jax.tools.aot_report import Lengths

    run = load(())
    lengths = Lengths(prompt=args.prompt_tokens, question=args.question_tokens)

    def say(text: str) -> None:
        print(text, flush=True)  # a program takes minutes, also when this goes to a file

    def check() -> dict[str, Any]:
        return aot_report.check(run, args.topology, what, lengths, args.occupancy, say)

    with slow_work_reported():
        figures = interruptible(check)
    if args.json:
        write_json(args.json, figures)
    refused = aot_report.refused_programs(figures)
    if refused:
        raise DoesNotFit(
            f"{' and '.join(refused)} of this run: more memory than a chip of {args.topology} has; "
            "see above what to try"
        )


# --- study ----------------------------------------------------------------------------------------


def _add_study_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--plan", action="store_true", help="print what remains to be run and how long it takes"
    )
    group.add_argument("--table", action="store_true", help="print the table of a finished study")
    group.add_argument(
        "--into",
        metavar="FILE",
        type=Path,
        help="write the table into FILE, between <!-- study NAME --> and <!-- end -->",
    )


def _study(args: argparse.Namespace, load: Load) -> None:
    from lmsi_jax.config import gin_loader
    from lmsi_jax.config.configurables import load_study
    from lmsi_jax.tools.study import insert, markdown, plan, read_result, run_study

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

    def run_stages(run: "Run", stages: tuple[str, ...]) -> None:
        """Runs stages of the run that was loaded last."""
        execute(run, stages, command, gin_loader.operative_config())
        _clear_compiled_programs()

    def print_now(text: str) -> None:
        """Prints at once, between the stages' own lines."""
        print(text, flush=True)

    with signals_as_exceptions():
        run_study(study, load, run_stages, print_now)


_MAPS = Path("/proc/self/maps")
_MANY_MAPS = 30_000


def _clear_compiled_programs() -> None:
    """Clears JAX's compiled programs once they occupy many memory maps.

    A process on Linux may have 65,530 maps, each program takes several, and XLA crashes when there
    are none left. Other systems have no such limit that we know of.
    """
    if _MAPS.exists() and len(_MAPS.read_bytes().splitlines()) > _MANY_MAPS:
        import jax

        jax.clear_caches()


# --- path -----------------------------------------------------------------------------------------


def _add_path_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        metavar="NAME",
        help="'embedded', the checkpoint of the embedded model; 'tokenizer', its tokenizer; or a "
        "packaged configuration",
    )


def _print_path(args: argparse.Namespace, load: Load) -> None:
    from lmsi_jax.config import gin_loader
    from lmsi_jax.runtime.files import embedded_path

    if args.name == "embedded":
        from lmsi_jax.training import checkpoints

        print(checkpoints.find(embedded_path("")))
    elif args.name == "tokenizer":
        print(embedded_path("tokenizer.model"))
    else:
        print(gin_loader.find_config(args.name, (), "runs"))


# --- explain-answer -------------------------------------------------------------------------------


def _add_explain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="file with the text; - for standard input")
    parser.add_argument("--kind", required=True, choices=KINDS, help="what the question asks for")
    parser.add_argument(
        "--options",
        metavar="TEXT",
        default="",
        help="the question's options, such as '(a) ice (b) a nail'",
    )
    parser.add_argument(
        "--cut",
        action="store_true",
        help="the token limit or a stop string cut the text, which then concludes nothing",
    )


def _explain_answer(args: argparse.Namespace, load: Load) -> None:
    print(explain_answer(args.file, args.kind, args.options, not args.cut))


_WIDTH = 80
_WIDEST = {"mark": 14, "key": 14}
"""Most characters of a column; the answer gets what the others leave of the width."""
_GAP = "  "


def explain_answer(file: str, kind: Kind, options_text: str = "", finished: bool = True) -> str:
    """Returns the explanation of one text: a table of at most 80 columns, then the choice.

    Args:
      file: the file with the text that a model wrote after its prompt; "-" for standard input.
      kind: what the question asks for.
      options_text: the options as they appear in the question, "(a) ice (b) a nail"; "" for none.
      finished: False if the token limit or a stop string cut the text.

    Raises:
      LmsiError: the file cannot be read, or the options have no letters.
    """
    from lmsi_jax import answers

    question = Question(uid="", task="", text=f"Q:\n{options_text}", kind=kind)
    options = answers.options_of(question) if options_text else ()
    if options_text and not options:
        raise LmsiError(
            f"--options={options_text!r}: write the options as in the question, such as "
            "'(a) ice (b) a nail'; they are read for --kind=choice and --kind=list"
        )
    text = _read(file)
    lines = _table(answers.explain(text, kind, options, finished=finished))
    reading = answers.read(text, kind, options, finished=finished)
    if reading.key is None:
        lines.append("\nno answer" + ("" if reading.chosen is None else ": the attempt has no key"))
    else:
        whole = "" if reading.end < len(text.rstrip()) else ", which is the whole text"
        lines += [
            f"\nanswer: {reading.key}",
            f"taught as: {reading.surface}",
            f"solution: the first {reading.end} characters{whole}",
        ]
    return "\n".join(lines)


def _read(file: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LmsiError(
            f"cannot read {file} ({error}); name a UTF-8 text file, or - for standard input"
        ) from error


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Returns aligned lines; longer cells are cut, and end with an ellipsis."""
    if len(rows) == 1:
        return ["no candidates"]
    head = rows[0]
    cells = [[" ".join(cell.split()) for cell in row] for row in rows]
    columns = dict(zip(head, zip(*cells, strict=True), strict=True))
    widths = {
        name: min(max(map(len, column)), _WIDEST.get(name, _WIDTH))
        for name, column in columns.items()
    }
    others = sum(width for name, width in widths.items() if name != "answer")
    widths["answer"] = min(widths["answer"], _WIDTH - others - len(_GAP) * (len(head) - 1))
    lines = []
    for row in cells:
        parts = []
        for cell, width in zip(row, widths.values(), strict=True):
            parts.append((cell if len(cell) <= width else f"{cell[: width - 1]}…").ljust(width))
        lines.append(_GAP.join(parts).rstrip())
    return lines


COMMANDS: dict[str, Command] = {
    "init": Command(
        "write a folder with a run on questions of your own",
        "riddles",
        "",
        _add_init_arguments,
        _init,
    ),
    "import-hf": Command(
        "convert a Hugging Face model or GGUF file to a checkpoint",
        "downloads/Qwen2.5-1.5B models/qwen",
        "",
        _add_import_arguments,
        _import_hf,
    ),
    "export-hf": Command(
        "convert a checkpoint to a Hugging Face model",
        "runs/qwen/round_1/train exported/qwen",
        "",
        _add_export_arguments,
        _export_hf,
    ),
    "import-samples": Command(
        "take samples of another engine as a round's finished sampling",
        "quickstart samples.jsonl --gin.Run.output_dir=runs/vllm",
        "runs",
        _add_import_samples_arguments,
        _import_samples,
    ),
    "export-rows": Command(
        "write a round's training rows for other trainers",
        "runs/quickstart rows.jsonl --format=messages",
        "",
        _add_export_rows_arguments,
        _export_rows,
    ),
    "export-candidates": Command(
        "write a run's questions with candidates, for a corrector",
        "quickstart corrector",
        "runs",
        _add_export_candidates_arguments,
        _export_candidates,
    ),
    "aot": Command(
        "compile a run ahead for a TPU topology: memory, FLOPs, time",
        "pod_palm_62b --topology=v5p:4x4x4 --what=train --json=palm_62b.json",
        "runs",
        _add_aot_arguments,
        _compile_ahead,
    ),
    "study": Command(
        "run variants of a run with several seeds: table and plot",
        "formats",
        "studies",
        _add_study_arguments,
        _study,
    ),
    "path": Command(
        "print the path of the embedded model or a configuration",
        "embedded",
        "",
        _add_path_arguments,
        _print_path,
    ),
    "explain-answer": Command(
        "show how the answer of a text is read: candidates and choice",
        "sample.txt --kind=number",
        "",
        _add_explain_arguments,
        _explain_answer,
    ),
}
"""All commands of this module by name."""
