"""Publishes a run on the Hugging Face hub: its model, or its training rows as a data set.

The card, README.md, is written from the run's report.json: data, method, rounds, accuracy with
intervals. Paths of this machine stay out of it. `dry_run` prints the files and the card and sends
nothing; no other function of this module touches the network than `Upload.send`.
"""

import dataclasses
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from lmsi_jax.config import Run
from lmsi_jax.config.configurables import load_run_of
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.hf_export import export_model
from lmsi_jax.pipeline.context import Context
from lmsi_jax.pipeline.exchange import export_rows
from lmsi_jax.report.comparison import (
    SHORT_PROMPT_STYLE_NAMES,
    accuracy_rows,
    headline_words,
    upper_bound_words,
)
from lmsi_jax.report.summary import Summary
from lmsi_jax.runtime.files import in_bytes, read_json, write_bytes

CARD = "README.md"
_PAPERS = (
    "[Large Language Models Can Self-Improve](https://arxiv.org/abs/2210.11610) (LMSI), "
    "[self-consistency](https://arxiv.org/abs/2203.11171)"
)
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """Fields of a card that the publisher states; () and "" leave a field out.

    Attributes:
      license: its licence, by the hub's identifier, such as "apache-2.0".
      base_model: the base model on the hub, owner/name.
      language: its languages, by ISO code, such as "en".
      tags: further tags.
    """

    license: str = ""
    base_model: str = ""
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upload:
    """Files for one repository of the hub.

    Attributes:
      repo_id: owner/name.
      repo_type: "model" or "dataset".
      folder: the files, without the card.
      card: the text of README.md.
      private: the repository is created private.
      missing: fields of the card that nobody has named, with the flag for each.
    """

    repo_id: str
    repo_type: str
    folder: Path
    card: str
    private: bool = True
    missing: tuple[str, ...] = ()

    @property
    def files(self) -> dict[str, int]:
        """Sizes in bytes by name, the card among them."""
        sizes = {
            file.relative_to(self.folder).as_posix(): file.stat().st_size
            for file in sorted(self.folder.rglob("*"))
            if file.is_file()
        }
        return sizes | {CARD: len(self.card.encode())}

    def dry_run(self) -> str:
        """Returns what `send` would send."""
        visible = "private" if self.private else "public"
        lines = [f"{self.repo_type} {self.repo_id}, {visible} if it is new"]
        lines += [f"  {in_bytes(size):>9}  {name}" for name, size in sorted(self.files.items())]
        lines += [f"not given: {field}" for field in self.missing]
        return "\n".join([*lines, "", f"--- {CARD} ---", self.card.rstrip(), "--- end ---"])

    def send(self) -> str:
        """Creates the repository unless it exists, uploads in one commit, returns its address.

        Raises:
          LmsiError: the hub refuses, or is not reached.
        """
        hub = _library()
        write_bytes(self.folder / CARD, self.card.encode())
        api = hub.HfApi()
        try:
            api.create_repo(
                self.repo_id, repo_type=self.repo_type, private=self.private, exist_ok=True
            )
            done = api.upload_folder(
                repo_id=self.repo_id,
                repo_type=self.repo_type,
                folder_path=str(self.folder),
                commit_message="Upload by lmsi push",
            )
        except (OSError, ValueError) as error:  # the hub's errors are OSErrors
            reason = " ".join(str(error).split())[:300]
            raise LmsiError(
                f"the hub did not take {self.repo_id}: {reason}; log in with `hf auth login`, and "
                "look at the name and its rights"
            ) from error
        return str(getattr(done, "commit_url", "") or f"https://huggingface.co/{self.repo_id}")


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise LmsiError("the hub needs huggingface_hub: pip install 'lmsi_jax[hub]'") from None
    return huggingface_hub


def read_summary(run_dir: epath.PathLike) -> Summary:
    """Reads the report of a run.

    Raises:
      LmsiError: there is none, or it is of another version.
    """
    path = epath.Path(run_dir) / "report.json"
    if not path.exists():
        raise LmsiError(f"{path} is missing, and the card is written from it; run `lmsi report`")
    return Summary.from_json(read_json(path))


def model_upload(
    run_dir: str,
    repo_id: str,
    labels: Labels = Labels(),
    *,
    export: Path | None = None,
    round_index: int | None = None,
    private: bool = True,
    allow_imports: bool = False,
) -> Upload:
    """Prepares a run's model; exports it to `round_R/hf` unless an export is there or named.

    Args:
      run_dir: a run with a report.
      repo_id: owner/name.
      labels: fields of the card.
      export: folder of an export by `lmsi export-hf`.
      round_index: the round; None: the last trained one.
      private: see `Upload`.
      allow_imports: runs the modules that the run's gin file imports.

    Raises:
      LmsiError: the run has no report or no trained model, or cannot be exported.
    """
    summary = read_summary(run_dir)
    folder, index = epath.Path(run_dir), _trained(run_dir, round_index)
    run = load_run_of(folder, run_dir, allow_imports=allow_imports)
    if export is None:
        export = Path(folder / f"round_{index}" / "hf")
        if not export.exists():
            weights = folder / f"round_{index}" / "train"
            tokenizer = Context(run, frozenset()).tokenizer_path
            export_model(weights, run.model, tokenizer, export)
            if run.chat is not None and run.chat.template:
                shutil.copyfile(run.chat.template, export / "chat_template.jinja")
    elif not (export / "config.json").exists():
        raise LmsiError(f"{export} is no export of `lmsi export-hf`: it has no config.json")
    missing = {
        "license (--license=apache-2.0)": labels.license,
        "base model (--base_model=owner/name)": labels.base_model,
        "language (--language=en)": labels.language,
    }
    return Upload(
        repo_id=_checked(repo_id),
        repo_type="model",
        folder=export,
        card=model_card(summary, run, labels, repo_id, index),
        private=private,
        missing=tuple(name for name, value in missing.items() if not value),
    )


def dataset_upload(
    run_dir: str,
    repo_id: str,
    labels: Labels = Labels(),
    *,
    round_index: int | None = None,
    private: bool = True,
) -> Upload:
    """Prepares a round's training rows, as `lmsi export-rows` writes them, in `round_R/dataset`.

    Args:
      run_dir: a run with a report.
      repo_id: owner/name.
      labels: fields of the card.
      round_index: the round; None: the last mixed one.
      private: see `Upload`.

    Raises:
      LmsiError: the run has no report, or no rows.
    """
    summary = read_summary(run_dir)
    path, count = export_rows(run_dir, round_index=round_index)
    folder = Path(path.parent) / "dataset"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    shutil.move(path, folder / "data" / "train.jsonl")
    missing = {
        "license (--license=apache-2.0)": labels.license,
        "language (--language=en)": labels.language,
    }
    return Upload(
        repo_id=_checked(repo_id),
        repo_type="dataset",
        folder=folder,
        card=dataset_card(summary, labels, repo_id, int(path.parent.name[6:]), count),
        private=private,
        missing=tuple(name for name, value in missing.items() if not value),
    )


def _checked(repo_id: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise LmsiError(f"{repo_id!r} names no repository of the hub; write owner/name")
    return repo_id


def _trained(run_dir: str, index: int | None) -> int:
    """Returns the round whose model is published."""
    folder = epath.Path(run_dir)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    trained = [
        int(name[6:])
        for name in names
        if re.fullmatch(r"round_\d+", name) and (folder / name / "train" / "stage.json").exists()
    ]
    if not trained or (index is not None and index not in trained):
        which = "no round" if index is None else f"no round {index}"
        raise LmsiError(f"{run_dir} has {which} with a trained model; run `lmsi train` first")
    return max(trained) if index is None else index


# --- cards ----------------------------------------------------------------------------------------


def model_card(summary: Summary, run: Run, labels: Labels, repo_id: str, index: int) -> str:
    """Returns README.md of a model, metadata included.

    Args:
      summary: the run's report.
      run: its settings.
      labels: fields that the run does not know.
      repo_id: owner/name.
      index: the round of the model.
    """
    hub = _library()
    results = [
        hub.EvalResult(
            task_type="text-generation",
            dataset_type=row["task"],
            dataset_name=row["task"],
            dataset_split="test",
            metric_type="accuracy",
            metric_name=f"accuracy, {SHORT_PROMPT_STYLE_NAMES[row['prompt_style']]}",
            metric_value=round(100 * one["share"], 2),
            metric_args={"n": one["n"], "interval_95": _interval(one)},
        )
        for row in accuracy_rows(summary)
        for one in row["accuracy"]
        if one["model"] == f"round {index}"
    ]
    data = hub.ModelCardData(
        base_model=labels.base_model or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["lmsi", "self-improvement", "self-consistency", *labels.tags],
        model_name=repo_id.split("/")[-1],
        eval_results=results or None,
        **_common(labels),
    )
    base = labels.base_model or f"a model of {summary.model.parameters:,} parameters"
    found = ""
    if index == max(_evaluated(summary)):
        headline, support = headline_words(summary)
        found = f"**{headline.rstrip('.')}.** {support}"
    sections = [
        f"# {repo_id.split('/')[-1]}",
        f"{base} after {_rounds(index)} of self-improvement without labels: it sampled solutions, "
        "voted on each question, and was fine-tuned on those that agree with the vote "
        f"({_PAPERS}).",
        found,
        upper_bound_words(summary),
        "## Accuracy",
        "Percent right on test questions, with 95 % intervals (Wilson). Both models answered the "
        "same questions; p is McNemar's exact test.",
        _accuracy_table(summary, index),
        "## Data",
        _labels_used(summary),
        _data_table(summary),
        "## Method",
        _settings_list(run),
        _rounds_table(summary),
        "## Use",
        _usage(run),
        "## Limits",
        "The labels are the model's own majority answers: it may have become surer of its errors, "
        "and less diverse. Accuracy was measured on the tasks above alone.",
        "## Made with",
        f"`{_without_paths(summary.command)}`, seed {summary.seed}; "
        + ", ".join(f"{name} {value}" for name, value in summary.versions.items()),
    ]
    return _card(data, sections)


def dataset_card(summary: Summary, labels: Labels, repo_id: str, index: int, count: int) -> str:
    """Returns README.md of a round's training rows, metadata included."""
    hub = _library()
    size = next((name for limit, name in _SIZES if count < limit), "n>1M")
    data = hub.DatasetCardData(
        task_categories=["text-generation"],
        size_categories=[size],
        pretty_name=repo_id.split("/")[-1],
        tags=["lmsi", "synthetic", *labels.tags],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/train.jsonl"}],
            }
        ],
        **_common(labels),
    )
    (mixed,) = (one for one in summary.rounds if one.round == index)
    formats = [(name, one.rows, round(one.weight, 1)) for name, one in mixed.examples.items()]
    sections = [
        f"# {repo_id.split('/')[-1]}",
        f"{count:,} training rows of round {index} of self-improvement without labels "
        f"({_PAPERS}): {mixed.questions:,} questions, {mixed.samples:,} samples, of which "
        f"{mixed.kept:,} agree with their question's majority answer.",
        f"Rows by origin: {mixed.sources.self_generated:,} self-generated, "
        f"{mixed.sources.human:,} human solutions.",
        _table(("format", "rows", "weight"), [row for row in formats if row[1]]),
        "## Columns",
        _table(
            ("column", "meaning"),
            [
                ("prompt, completion", "their concatenation is what the model learns"),
                ("chosen, rejected", "in place of completion, if the rows are pairs"),
                ("weight", "of the row in the loss"),
                ("uid, task, format, source", "where it comes from"),
            ],
        ),
        "## Data",
        _data_table(summary),
        "## Limits",
        "The answers are majority answers of a model, and some are wrong. The licences of the "
        "questions are those of their data sets.",
    ]
    return _card(data, sections)


def _common(labels: Labels) -> dict[str, Any]:
    return {"license": labels.license or None, "language": list(labels.language) or None}


def _card(data: Any, sections: Sequence[str]) -> str:
    body = "\n\n".join(section for section in sections if section)
    return f"---\n{data.to_yaml()}\n---\n\n{body}\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _rounds(count: int) -> str:
    return "one round" if count == 1 else f"{count} rounds"


def _interval(one: Mapping[str, Any]) -> list[float]:
    return [round(100 * one[end], 1) for end in ("low", "high")]


def _accuracy_table(summary: Summary, index: int) -> str:
    rows = []
    for row in accuracy_rows(summary):
        by_model = {one["model"]: one for one in row["accuracy"]}
        shown = [by_model.get(name) for name in ("base", f"round {index}")]
        cells = ["–" if one is None else _share(one) for one in shown]
        change = row.get("change")
        p = f"{change['p']:.2g}" if change and index == max(_evaluated(summary)) else "–"
        n = next((one["n"] for one in shown if one is not None), "–")
        style = SHORT_PROMPT_STYLE_NAMES[row["prompt_style"]]
        rows.append((row["task"], style, n, *cells, p))
    return _table(("task", "prompting", "n", "base", f"round {index}", "p"), rows)


def _evaluated(summary: Summary) -> list[int]:
    return [one.round for one in summary.evals] or [0]


def _share(one: Mapping[str, Any]) -> str:
    low, high = _interval(one)
    return f"{100 * one['share']:.1f} [{low}, {high}]"


def _data_table(summary: Summary) -> str:
    rows = [
        (
            task.name,
            task.kind,
            "trained and tested" if task.domain == "in" else "tested only",
            task.level or "–",
            task.test_questions,
        )
        for task in summary.tasks
    ]
    return _table(("task", "answer", "use", "level", "test questions"), rows)


def _labels_used(summary: Summary) -> str:
    if any(one.sources.human for one in summary.rounds):
        return "Human solutions were mixed in, see below."
    unlabelled = not upper_bound_words(summary)
    return "The training questions were used without their answers." if unlabelled else ""


def _settings_list(run: Run) -> str:
    sampling, training = run.sampling, run.training
    filters = ", ".join(type(one).__name__ for one in run.mixing.selection) or "none"
    loss = "full parameters" if training.lora is None else f"LoRA, rank {training.lora.rank}"
    lines = [
        f"{sampling.num_samples} samples a question at temperature {sampling.temperature:g}",
        f"filters besides the vote: {filters}",
        f"formats: {', '.join(run.mixing.formats)}",
        f"{training.steps} steps a round, {loss}, learning rate "
        f"{training.optimizer.learning_rate:g}, from the {run.start_from} model",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _rounds_table(summary: Summary) -> str:
    rows = [
        (
            one.round,
            f"{one.questions:,}",
            f"{one.samples:,}",
            f"{100 * one.mean_confidence:.1f} %",
            f"{one.sources.self_generated:,}",
            f"{one.sources.human:,}",
        )
        for one in summary.rounds
    ]
    columns = ("round", "questions", "samples", "vote's confidence", "own rows", "human rows")
    return _table(columns, rows)


def _usage(run: Run) -> str:
    if run.chat is not None:
        return "The model answers in its chat template (`tokenizer.apply_chat_template`)."
    text = 'Prompts are `Q: ...\\nA:`, after a few worked examples or "Let\'s think step by step."'
    if run.mixing.end == "blank_line":
        text += f" An answer ends at a blank line: stop at {list(run.sampling.stop)}."
    return text


def _without_paths(command: str) -> str:
    """Returns a command line without its output folder, and with the names alone of files."""
    words = [word for word in shlex.split(command) if "Run.output_dir" not in word]
    return re.sub(r"(?<![\w.])/(?:[^\s'\"/=]+/)+", "", " ".join(words))


Say = Callable[[str], None]


def push(upload: Upload, *, dry_run: bool, say: Say = print) -> None:
    """Prints what would be sent, or sends it and prints the address."""
    if dry_run:
        say(upload.dry_run())
        say("dry run: nothing was sent")
        return
    say(f"sending {len(upload.files)} files, {in_bytes(sum(upload.files.values()))}")
    say(f"done: {upload.send()}")
