"""Samples that another engine drew become a round's finished sampling; rows go to other trainers.

A row is matched to a question of the run by its uid (`uid#3` is sample 3 of it), by the exact text
of the question, or by a prompt that ends with the question. Texts are cut at `Sampling.stop`, as
the run's own engine does. Voting and all that follows read the shards as if the run had drawn them;
the stage's record has a digest of the samples, so no other run takes them for its model's.
"""

import collections
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from etils import epath

from lmsi_jax.config import Run
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.sample_files import ForeignRow, ForeignSample, SampleFile, read_sample_file
from lmsi_jax.pipeline import rounds
from lmsi_jax.pipeline.context import NotReady, Round
from lmsi_jax.pipeline.sample import IMPORTED, SampleStep
from lmsi_jax.prompts import SEPARATOR, STEP_BY_STEP
from lmsi_jax.records import (
    End,
    Example,
    ExamplePair,
    Question,
    Sample,
    Text,
    join_texts,
    plain_text,
)
from lmsi_jax.report.comparison import count_of
from lmsi_jax.rollout.stops import end_at_stop, first_stop
from lmsi_jax.runtime.files import file_sha256, write_bytes
from lmsi_jax.runtime.store import ShardStore, Stage, shard_names

_LISTED = 8
_INDEX_MARK = "#"


def import_samples(
    run: Run,
    files: Sequence[str],
    *,
    round_index: int,
    skip_broken: bool,
    command: str,
    config_text: str,
) -> None:
    """Finishes the sampling of a round with the samples of files, and prints what was taken.

    Args:
      run: the configuration; its questions are drawn first if they are not there yet.
      files: of samples, in the forms of `interop.sample_files`.
      round_index: the round; those before it must be finished.
      skip_broken: leave out lines that cannot be read, instead of refusing the files.
      command: the command line, for the manifest.
      config_text: the operative gin configuration.

    Raises:
      LmsiError: a file has broken lines, no row belongs to a question, the round has other samples
        already, or a round before it is not finished.
    """
    if not 1 <= round_index <= run.rounds:
        raise LmsiError(f"--round={round_index}: the run has {run.rounds} rounds (Run.rounds)")
    _check_settings(run)
    contents = SampleFile()
    digests: dict[str, str] = {}
    for file in files:
        read_sample_file(file, contents)
        first = digests.setdefault(file_sha256(file), file)
        if first != file or files.count(file) > 1:
            raise LmsiError(f"{file} and {first} are the same file; name it once")
    if contents.broken and not skip_broken:
        raise LmsiError(
            f"{count_of(len(contents.broken), 'line')} cannot be read: {_list(contents.broken)}; "
            "correct or remove them, or leave them out with --skip_broken"
        )
    step = ImportStep(contents, round_index)
    steps = tuple(step if isinstance(one, SampleStep) else one for one in rounds.ROUND)
    rounds.execute(run, ("sample",), command, config_text, steps)


class ImportStep(SampleStep):
    """Writes the samples of files as the samples of a round.

    Args:
      contents: what was read of the files.
      target: the round.
    """

    def __init__(self, contents: SampleFile, target: int):
        self._contents, self._target = contents, target
        self._samples: dict[str, list[Sample]] = {}
        self._record: dict[str, Any] = {}

    def execute(self, round: Round, fingerprints: Mapping[str, str]) -> str:
        if round.index != self._target:
            if round.finished(self.name):
                return SampleStep().execute(round, fingerprints)
            if round.index > self._target:
                raise NotReady(f"round {round.index} is not sampled; `lmsi run` continues with it")
            raise LmsiError(
                f"round {round.index} is not finished, and its model would sample round "
                f"{self._target}; run it first, or import with --round={round.index}"
            )
        matched = match_samples(round, self._contents)
        self._samples = matched.samples
        for line in matched.summary(round.index, self._contents):
            print(line, flush=True)
        rows = [[sample.to_json() for sample in matched.samples[u]] for u in sorted(self._samples)]
        text = json.dumps(rows, sort_keys=True)
        self._record = {IMPORTED: {"samples_sha256": hashlib.sha256(text.encode()).hexdigest()}}
        return super().execute(round, fingerprints)

    def derived(self, round: Round) -> dict[str, Any]:
        return super().derived(round) | self._record

    def run(self, round: Round, stage: Stage) -> None:
        store, size = ShardStore(stage.directory), round.settings.questions_per_shard
        for task, questions in round.questions.items():
            uids = sorted({question.uid for question in questions} & self._samples.keys())
            parts = [uids[begin : begin + size] for begin in range(0, len(uids), size)]
            for number, part in zip(shard_names(len(parts)), parts, strict=True):
                rows = [sample.to_json() for uid in part for sample in self._samples[uid]]
                store.write(f"{task}-{number}", rows)


def _check_settings(settings: Run) -> None:
    """Raises LmsiError if the run needs more than one sample set of each question."""
    if settings.augmentation.prompts:
        raise LmsiError(
            "samples of generated prompts belong each to its prompt, which a file does not name; "
            "set Augmentation.prompts to 0"
        )
    if settings.augmentation.paraphrase != "none":
        raise LmsiError(
            "samples of elsewhere have no second view; set Augmentation.paraphrase to 'none'"
        )
    if settings.voting.rotate_options:
        raise LmsiError(
            "samples of elsewhere were asked with their options in one order; set "
            "Voting.rotate_options to False"
        )
    preference = settings.training.preference
    if preference is not None and preference.form == "spin":
        raise LmsiError(
            "Preference.form = 'spin' needs the model's own samples on human solutions, which only "
            "`lmsi sample` draws; use 'scpo', or bind Training.preference to None"
        )


@dataclasses.dataclass(kw_only=True)
class Matched:
    """Samples by the run's questions, and counts of what was left out.

    Attributes:
      samples: of each question that has some, by uid, in index order.
      questions: the round's questions.
      unknown: rows of no question of the run, each as "place: name".
      repeated: responses that came twice.
      beyond: samples beyond `Sampling.num_samples`.
      cut: samples that a string of `Sampling.stop` cut.
      unscored: samples without a log-probability.
    """

    samples: dict[str, list[Sample]]
    questions: int
    unknown: list[str]
    repeated: int
    beyond: int
    cut: int
    unscored: int

    def summary(self, round_index: int, contents: SampleFile) -> Iterator[str]:
        """Yields lines that say what was taken and what was left out."""
        total = sum(map(len, self.samples.values()))
        yield (
            f"round {round_index}: {count_of(total, 'sample')} of {len(self.samples):,} of "
            f"{count_of(self.questions, 'question')} imported"
        )
        if missing := self.questions - len(self.samples):
            yield f"  without a sample, and so without a winner: {count_of(missing, 'question')}"
        for what, places in (
            ("row", self.unknown),
            ("failed request", contents.failed),
            ("broken line", contents.broken),
        ):
            if places:
                why = " of no question of the run" if what == "row" else ""
                yield f"  left out: {count_of(len(places), what)}{why}: {_list(places)}"
        if self.repeated:
            yield f"  left out: {count_of(self.repeated, 'response')} that came twice"
        if self.beyond:
            yield (
                f"  left out: {count_of(self.beyond, 'sample')} beyond Sampling.num_samples, which "
                "may be raised"
            )
        if self.cut:
            yield (
                f"  cut at a string of Sampling.stop: {count_of(self.cut, 'text')}; set it to () "
                "if these strings occur within solutions"
            )
        if self.unscored:
            yield (
                f"  without a log-probability: {count_of(self.unscored, 'sample')}; ties of their "
                "questions go to the smaller answer"
            )


def match_samples(round: Round, contents: SampleFile) -> Matched:
    """Assigns the rows of files to a round's questions.

    Samples are numbered in the order of the rows; a row that gives numbers keeps them.

    Args:
      round: the round; its settings say where texts end.
      contents: what was read.

    Raises:
      LmsiError: no row belongs to a question, two rows give the same sample, or the vote weighs by
        log-probabilities that are not there.
    """
    questions = [question for rows in round.questions.values() for question in rows]
    index = QuestionIndex(questions)
    unknown: list[str] = []
    responses: set[str] = set()
    repeated = 0
    drawn: dict[str, list[tuple[str, ForeignSample]]] = collections.defaultdict(list)
    for row in contents.rows:
        uid, number = index.find(row, contents.prompts)
        if uid is None:
            unknown.append(f"{row.place}: {_shown(row)}")
            continue
        if row.response is not None:
            if row.response in responses:
                repeated += 1
                continue
            responses.add(row.response)
        samples = row.samples
        if number is not None:
            numbers = range(number, number + len(samples))
            samples = tuple(
                dataclasses.replace(one, index=k) for one, k in zip(samples, numbers, strict=True)
            )
        drawn[uid] += [(row.place, sample) for sample in samples]
    if not drawn:
        reasons = contents.failed or contents.broken
        raise LmsiError(
            f"none of {count_of(len(contents.rows), 'row')} is of a question of the run, such as "
            f"{questions[0].uid!r}: {_list(unknown or reasons)}; give rows the question's uid (as "
            "`custom_id` in a batch) or its text; the run's folder questions/ has both"
        )
    most, sampling = round.settings.sampling.num_samples, round.settings.sampling
    count = round.context.tokenizer.encode
    numbered = {uid: _numbered(uid, rows) for uid, rows in drawn.items()}
    beyond = sum(k >= most for rows in numbered.values() for k in rows)
    cut = unscored = 0
    by_uid: dict[str, list[Sample]] = {}
    for uid, rows in numbered.items():
        kept = {k: foreign for k, foreign in sorted(rows.items()) if k < most}
        ended = {k: _end(foreign, sampling.stop) for k, foreign in kept.items()}
        cut += sum(len(ended[k][0]) < len(foreign.text) for k, foreign in kept.items())
        without = sum(logprob is None for _, _, logprob in ended.values())
        unscored += without
        by_uid[uid] = []
        for k, foreign in kept.items():
            text, end, logprob = ended[k]
            whole = text == foreign.text
            tokens = foreign.tokens if whole else None
            by_uid[uid].append(
                Sample(
                    uid=uid,
                    sample_index=k,
                    text=text,
                    tokens=len(count(text)) + (end != "limit") if tokens is None else tokens,
                    # All of a question or none: a sum over some would break ties at random.
                    logprob=0.0 if without or logprob is None else logprob,
                    end=end,
                    logprobs=foreign.logprobs if sampling.token_logprobs and whole else None,
                )
            )
    if unscored and round.settings.voting.weights not in ("none", "scorer"):
        raise LmsiError(
            f"Voting.weights = {round.settings.voting.weights!r} needs log-probabilities, which "
            f"{unscored} samples do not have; sample with them (logprobs in vLLM and OpenAI), or "
            "set Voting.weights = 'none'"
        )
    return Matched(
        samples={uid: rows for uid, rows in by_uid.items() if rows},
        questions=len(questions),
        unknown=unknown,
        repeated=repeated,
        beyond=beyond,
        cut=cut,
        unscored=unscored,
    )


class QuestionIndex:
    """Finds questions by uid and by text.

    Args:
      questions: of all tasks.
    """

    def __init__(self, questions: Iterable[Question]):
        self._uids: set[str] = set()
        self._by_text: dict[str, list[str]] = collections.defaultdict(list)
        for question in questions:
            self._uids.add(question.uid)
            self._by_text[_bare(question.text)].append(question.uid)

    def find(self, row: ForeignRow, prompts: Mapping[str, str]) -> tuple[str | None, int | None]:
        """Returns the uid of a row's question, and the number of its first sample if it has one.

        Raises:
          LmsiError: several questions have the row's text.
        """
        name, question = row.name, row.question
        if name is not None:
            if name in self._uids:
                return name, None
            uid, mark, number = name.rpartition(_INDEX_MARK)
            if mark and uid in self._uids and number.isdecimal():
                return uid, int(number)
            question = prompts.get(name, question)
        if question is None:
            return None, None
        blocks = question.split(SEPARATOR)
        for first in (0, *range(len(blocks) - 1, 0, -1)):
            uids = self._by_text.get(_bare(SEPARATOR.join(blocks[first:])), [])
            if len(uids) > 1:
                raise LmsiError(
                    f"{row.place}: the questions {_list(uids)} have this text; name one by its uid"
                )
            if uids:
                return uids[0], None
        return None, None


def _bare(question: str) -> str:
    """Returns a question in one line, without the marks that a prompt puts around it."""
    text = question.strip().removesuffix(STEP_BY_STEP).rstrip()
    return " ".join(text.removesuffix("\nA:").removeprefix("Q:").split())


def _numbered(uid: str, rows: Sequence[tuple[str, ForeignSample]]) -> dict[int, ForeignSample]:
    """Numbers a question's samples; those that say their number keep it.

    Raises:
      LmsiError: two rows give the same number.
    """
    places: dict[int, str] = {}
    numbered: dict[int, ForeignSample] = {}
    for place, sample in rows:
        if sample.index is None:
            continue
        if sample.index in numbered:
            raise LmsiError(
                f"{places[sample.index]} and {place} both give sample {sample.index} of {uid!r}; "
                "remove one"
            )
        places[sample.index], numbered[sample.index] = place, sample
    free = 0
    for _, sample in rows:
        if sample.index is None:
            while free in numbered:
                free += 1
            numbered[free] = sample
    return numbered


def _end(foreign: ForeignSample, stops: Sequence[str]) -> tuple[str, End, float | None]:
    """Returns a sample's text before the first stop, why it ended, and its log-probability."""
    text, logprob = foreign.text, foreign.logprob
    start = first_stop(text, stops)
    if start is not None:
        rest = text[start:]
        # The file's number is of the whole text, which continues after the stop.
        return text[:start], end_at_stop(rest, stops), logprob if rest in stops else None
    if foreign.stop is not None:
        return text, end_at_stop(foreign.stop, (foreign.stop,)), logprob
    return text, foreign.end or "end_token", logprob


def _shown(row: ForeignRow) -> str:
    if row.name is not None:
        return repr(row.name)
    if row.question is None:
        return "neither uid nor question"
    text = " ".join(row.question.split())
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _list(places: Sequence[str]) -> str:
    more = f" and {len(places) - _LISTED:,} more" if len(places) > _LISTED else ""
    text = "; ".join(places[:_LISTED])
    # Files come from elsewhere: no control sequence of theirs reaches the terminal.
    return "".join(c if c.isprintable() else "?" for c in text) + more


# --- rows for other trainers ----------------------------------------------------------------------
#
#     {"prompt": "Q: ...\nA:", "completion": " 3 + 4 = 7. The answer is 7.\n\n", "weight": 1}
#     {"messages": [{"role": "user", ...}, {"role": "assistant", ...}], "weight": 1.0}
#
# `prompt + completion` is the text that `lmsi train` learns, control tokens of a chat template
# included: encode it with these, and without a start token. Pairs have `chosen` and `rejected` in
# place of `completion`. Each row also has its uid, task, format and source.

RowFormat = Literal["prompt-completion", "messages", "parquet"]
ROW_FORMATS: tuple[RowFormat, ...] = get_args(RowFormat)
_SOURCES = ("self_generated", "human", "pairs", "last_pairs")


def export_rows(
    run_dir: epath.PathLike,
    out: epath.PathLike | None = None,
    *,
    round_index: int | None = None,
    row_format: RowFormat = "prompt-completion",
) -> tuple[epath.Path, int]:
    """Writes a round's training rows.

    Args:
      run_dir: `Run.output_dir` of a run that has finished `lmsi mix`.
      out: the file; None: `rows.jsonl` or `rows.parquet` in the round's folder.
      round_index: the round; None: the last one that is mixed.
      row_format: the form of the rows; "parquet" has the columns of "prompt-completion".

    Returns:
      The file and the number of rows.

    Raises:
      LmsiError: the round is not mixed or has no rows, or pyarrow is not installed.
    """
    run_dir = epath.Path(run_dir)
    mixed = mixed_rounds(run_dir)
    if not mixed or (round_index is not None and round_index not in mixed):
        which = "no round" if round_index is None else f"no round {round_index}"
        known = f"; mixed are {', '.join(map(str, mixed))}" if mixed else ""
        raise LmsiError(f"{run_dir} has {which} with training rows{known}; run `lmsi mix` first")
    folder = run_dir / f"round_{max(mixed) if round_index is None else round_index}"
    rows = list(_rows(ShardStore(folder / "mix"), row_format))
    if not rows:
        raise LmsiError(f"{folder / 'mix'} has no rows: no sample was kept, see `lmsi report`")
    suffix = "parquet" if row_format == "parquet" else "jsonl"
    path = folder / f"rows.{suffix}" if out is None else epath.Path(out)
    if row_format == "parquet":
        write_bytes(path, _parquet(rows))
    else:
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
        write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
    return path, len(rows)


def mixed_rounds(run_dir: epath.Path) -> list[int]:
    """Returns the rounds of a run whose training rows are written, rising."""
    names = [path.name for path in run_dir.iterdir()] if run_dir.is_dir() else []
    numbers = [name.removeprefix("round_") for name in names if name.startswith("round_")]
    return sorted(
        int(number)
        for number in numbers
        if number.isdecimal() and (run_dir / f"round_{number}" / "mix" / "stage.json").exists()
    )


def _rows(store: ShardStore, row_format: RowFormat) -> Iterator[dict[str, Any]]:
    for source in _SOURCES:
        for name in store.names():
            if not name.startswith(f"{source}-"):
                continue
            for stored in store.read(name):
                row: Example | ExamplePair
                if source in ("pairs", "last_pairs"):
                    row = ExamplePair.from_json(stored)
                    learnt: dict[str, Text] = {"chosen": row.chosen, "rejected": row.rejected}
                else:
                    row = Example.from_json(stored)
                    learnt = {"completion": row.targets}
                prompt = join_texts(row.prefix, row.inputs)
                yield {
                    **(
                        _messages(prompt, learnt)
                        if row_format == "messages"
                        else {"prompt": plain_text(prompt)}
                        | {name: _ended(text) for name, text in learnt.items()}
                    ),
                    "weight": row.weight,
                    "uid": row.uid,
                    "task": row.task,
                    "format": row.format,
                    "source": source,
                }


def _ended(text: Text) -> str:
    return text + SEPARATOR if isinstance(text, str) else plain_text(text)


def _messages(prompt: Text, learnt: Mapping[str, Text]) -> dict[str, Any]:
    """Returns an example as one conversation, a pair as a prompt and two answers.

    Raises:
      LmsiError: the row is in a chat template already.
    """
    if not isinstance(prompt, str):
        raise LmsiError(
            "the rows are in the model's chat template already, which a trainer would apply once "
            "more to messages; export with --format=prompt-completion"
        )
    asked = [{"role": "user", "content": prompt}]
    texts = {name: text if isinstance(text, str) else text[0] for name, text in learnt.items()}
    replies = {k: [{"role": "assistant", "content": v.strip()}] for k, v in texts.items()}
    if "completion" in replies:
        return {"messages": asked + replies["completion"]}
    return {"prompt": asked, **replies}


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise LmsiError(
            "Parquet needs pyarrow: pip install pyarrow, or export with --format=prompt-completion"
        ) from None
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()
