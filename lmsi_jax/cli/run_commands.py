"""Define the commands on runs: list, compare, browse, free what nothing needs, publish.

This module is imported for `lmsi --help`, so whatever is heavy is imported when a command runs.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lmsi_jax.cli.subcommands import Command, Load, add_allow_imports
from lmsi_jax.errors import LmsiError

if TYPE_CHECKING:
    from lmsi_jax.report.run_comparison import ComparedRun
    from lmsi_jax.runtime.run_folders import RunState

# --- runs -----------------------------------------------------------------------------------------


def _add_runs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        metavar="DIR",
        nargs="?",
        type=Path,
        default=Path("runs"),
        help="folder to look in, studies included (default: runs)",
    )


def _list_runs(args: argparse.Namespace, load: Load) -> None:
    from rich.text import Text

    from lmsi_jax.report.terminal import Column, open_console, print_table
    from lmsi_jax.runtime.files import in_bytes
    from lmsi_jax.runtime.run_folders import describe_run, find_runs

    if not args.folder.is_dir():
        raise LmsiError(f"there is no folder {args.folder}; lmsi runs DIR lists the runs in DIR")
    found = find_runs(args.folder)
    if not found:
        print(f"no runs in {args.folder}")
        return
    states = [describe_run(folder) for folder in found]

    def column(head: str, rank: int, cells: list[str]) -> Column:
        return Column(head, [Text(cell) for cell in cells], rank)

    columns = [
        column("rounds", 4, [_rounds(state) for state in states]),
        column("accuracy", 3, [_accuracy(state.folder) for state in states]),
        column("state", 2, [state.state for state in states]),
        column("size", 5, [in_bytes(state.size) for state in states]),
        column("changed", 6, [_age(time.time() - state.changed) for state in states]),
    ]
    names = [str(folder) for folder in found]
    total = in_bytes(sum(state.size for state in states))
    note = (
        f"{len(found)} run{'s' * (len(found) > 1)}, {total}. Accuracy: of the base and the last "
        "model in percent, as the report opens with."
    )
    print_table(open_console(), "run", names, columns, note)


def _rounds(state: "RunState") -> str:
    return str(state.rounds) if not state.planned else f"{state.rounds}/{state.planned}"


def _accuracy(folder: Path) -> str:
    """Returns the headline of a run's report: "51.6 → 66.2", or a dash."""
    from lmsi_jax.report.comparison import DASH, evaluated_rounds, headline
    from lmsi_jax.report.summary import Summary
    from lmsi_jax.runtime.files import read_json

    try:
        summary = Summary.from_json(read_json(folder / "report.json"))
    except LmsiError:  # not there yet, or of another version
        return DASH
    opening = headline(summary)
    if opening is None or opening[1].change is None:
        return DASH if not evaluated_rounds(summary) else "base only"
    change = opening[1].change
    return f"{100 * change.before:.1f} → {100 * change.after:.1f}"


def _age(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"


# --- clean ----------------------------------------------------------------------------------------


def _add_clean_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run (Run.output_dir)")
    parser.add_argument("--dry_run", action="store_true", help="list what would go; remove nothing")
    parser.add_argument("--yes", action="store_true", help="remove it without asking")


def _clean(args: argparse.Namespace, load: Load) -> None:
    from lmsi_jax.runtime.files import in_bytes
    from lmsi_jax.runtime.run_folders import find_freeable, free, size_of

    items = find_freeable(args.run)
    if not items:
        print(f"{args.run}: all of its checkpoints are needed")
        return
    for item in items:
        print(f"{item.path}: {in_bytes(item.size)}, {item.reason}")
    total = in_bytes(sum(item.size for item in items))
    if args.dry_run:
        print(f"{total} would be freed; nothing was removed")
        return
    if not args.yes:
        if not sys.stdin.isatty():
            raise LmsiError("nobody can be asked here; add --yes, or --dry_run to look only")
        if input(f"remove these {total}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return
    from lmsi_jax.training.checkpoints import drop_optimizer_state

    before = size_of(args.run)
    free(args.run, items, drop_optimizer_state)
    total = in_bytes(before - size_of(args.run))
    print(f"{total} freed; the run's last model, samples, votes and report remain")


# --- compare --------------------------------------------------------------------------------------


def _add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="folders of two or more runs; all are compared with the first",
    )
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write the page FILE")


def _compare(args: argparse.Namespace, load: Load) -> None:
    from lmsi_jax.report.run_comparison import print_comparison, render_comparison, short_names
    from lmsi_jax.report.terminal import open_console
    from lmsi_jax.runtime.files import write_bytes

    if len(args.runs) < 2:
        raise LmsiError("lmsi compare takes two or more runs; `lmsi report RUN` shows a single one")
    names = short_names([str(folder) for folder in args.runs])
    runs = [_read_run(folder, name) for folder, name in zip(args.runs, names, strict=True)]
    print_comparison(runs, open_console())
    if args.html:
        write_bytes(args.html, render_comparison(runs).encode())
        print(f"page: {args.html}")


def _read_run(folder: Path, name: str) -> "ComparedRun":
    """Reads the report of a run and its test questions' uids.

    Raises:
      LmsiError: it has no report.
    """
    from lmsi_jax.report.run_comparison import ComparedRun
    from lmsi_jax.report.summary import Summary
    from lmsi_jax.runtime.files import read_json
    from lmsi_jax.runtime.store import ShardStore

    if not (folder / "report.json").is_file():
        raise LmsiError(f"{folder} has no report.json; run `lmsi report` on that run first")
    summary = Summary.from_json(read_json(folder / "report.json"))
    last = max((row.round for row in summary.evals), default=0)
    store = ShardStore(folder / f"round_{last}" / "eval")
    known = store.names()
    uids: dict[tuple[str, str], list[str]] = {
        (row.task, row.prompt_style): [vote["uid"] for vote in store.read(shard)]
        for row in summary.evals
        if row.round == last and (shard := f"votes-{row.task}-{row.prompt_style}") in known
    }
    return ComparedRun(name, summary, uids)


# --- browse ---------------------------------------------------------------------------------------


def _add_no_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has its configuration alone."""
    del parser


def _browse(args: argparse.Namespace, load: Load) -> None:
    from lmsi_jax.pipeline.context import Context
    from lmsi_jax.pipeline.summarize import browse

    browse(Context(load(()), frozenset()))


# --- export-eval ----------------------------------------------------------------------------------


def _add_export_eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run (Run.output_dir)")
    parser.add_argument("out", metavar="OUT", help="folder to write to")
    parser.add_argument(
        "--round",
        metavar="N",
        type=int,
        action="append",
        help="round, 0 for the base; repeatable (default: all that were evaluated)",
    )
    add_allow_imports(parser)


def _export_eval(args: argparse.Namespace, load: Load) -> None:
    from lmsi_jax.integrations.lm_eval_log import export_eval

    rounds = tuple(args.round or ())
    files = export_eval(args.run, args.out, rounds=rounds, allow_imports=args.allow_imports)
    for file in files:
        print(f"results: {file}, samples beside it")


# --- push -----------------------------------------------------------------------------------------


def _add_push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a run with a report")
    parser.add_argument("repo", metavar="REPO", help="repository on the hub, owner/name")
    parser.add_argument(
        "--dataset", action="store_true", help="publish the training rows, not the model"
    )
    parser.add_argument("--round", metavar="N", type=int, help="round (default: the last one)")
    parser.add_argument(
        "--export", metavar="DIR", type=Path, help="folder of `lmsi export-hf` (default: made now)"
    )
    parser.add_argument("--license", default="", help="licence of the card, such as apache-2.0")
    parser.add_argument("--base_model", default="", help="base model on the hub, owner/name")
    parser.add_argument("--language", default="", help="languages of the card, such as en,de")
    parser.add_argument("--tags", default="", help="further tags of the card, A,B")
    parser.add_argument(
        "--public", action="store_true", help="create a public repository (default: private)"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print the files and the card; send nothing"
    )
    add_allow_imports(parser)


def _push(args: argparse.Namespace, load: Load) -> None:
    from lmsi_jax.integrations import hub

    labels = hub.Labels(
        license=args.license,
        base_model=args.base_model,
        language=tuple(filter(None, args.language.split(","))),
        tags=tuple(filter(None, args.tags.split(","))),
    )
    if args.dataset:
        upload = hub.dataset_upload(
            args.run, args.repo, labels, round_index=args.round, private=not args.public
        )
    else:
        upload = hub.model_upload(
            args.run,
            args.repo,
            labels,
            export=args.export,
            round_index=args.round,
            private=not args.public,
            allow_imports=args.allow_imports,
        )
    hub.push(upload, dry_run=args.dry_run)


COMMANDS: dict[str, Command] = {
    "runs": Command(
        "list runs: rounds, accuracy, state, size, age", "runs", "", _add_runs_arguments, _list_runs
    ),
    "compare": Command(
        "compare runs: accuracies with paired tests, settings, costs",
        "runs/first runs/second --html=compare.html",
        "",
        _add_compare_arguments,
        _compare,
    ),
    "browse": Command(
        "write pages to browse and search all samples of a run",
        "runs/quickstart",
        "runs",
        _add_no_arguments,
        _browse,
    ),
    "clean": Command(
        "free checkpoints of a run that nothing needs any more",
        "runs/quickstart --dry_run",
        "",
        _add_clean_arguments,
        _clean,
    ),
    "export-eval": Command(
        "write a run's evaluation as lm-evaluation-harness logs it",
        "runs/quickstart harness_logs",
        "",
        _add_export_eval_arguments,
        _export_eval,
    ),
    "push": Command(
        "publish a run's model or training rows on the Hugging Face hub",
        "runs/quickstart me/my-model --license=apache-2.0 --dry_run",
        "",
        _add_push_arguments,
        _push,
    ),
}
"""All commands of this module by name."""
