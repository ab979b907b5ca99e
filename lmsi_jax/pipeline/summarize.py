"""The report of a run: its folders -> a `Summary` -> report.json, report.html and a table."""

import collections
import dataclasses
import datetime
import importlib.metadata
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from lmsi_jax.config.row_filters import GOLD
from lmsi_jax.evaluation.accuracy import Replay, replay
from lmsi_jax.evaluation.changes import position_counts
from lmsi_jax.evaluation.collapse import distinct_kept
from lmsi_jax.pipeline.augment import read_counts
from lmsi_jax.pipeline.context import Context, NotReady, Round, import_record
from lmsi_jax.pipeline.distill import RESULT
from lmsi_jax.pipeline.evaluate import collapse_alarms, read_collapse_metrics, read_scores
from lmsi_jax.pipeline.mix import labelled_funnel, read_examples, read_pairs
from lmsi_jax.pipeline.probe import read_probe
from lmsi_jax.pipeline.score import all_needs
from lmsi_jax.records import FORMATS, Example, ExamplePair, Question, Sample, Vote
from lmsi_jax.report.browser import PAGE as BROWSER_PAGE
from lmsi_jax.report.browser import Answered, Browsed, write_browser
from lmsi_jax.report.comparison import accuracy_rows
from lmsi_jax.report.page import render
from lmsi_jax.report.summary import (
    PROMPT_STYLES,
    AdaptiveConsistency,
    AdaptiveConsistencySet,
    CollapseRow,
    Evaluation,
    FormatRows,
    Model,
    NewPrompts,
    NewQuestions,
    PositionRow,
    ProbedTask,
    ShownQuestion,
    ShownSample,
    Sources,
    Summary,
    Task,
    TaskFilterCounts,
    TaskVotes,
    decode,
)
from lmsi_jax.report.summary import Round as RoundSummary
from lmsi_jax.report.terminal import (
    distillation_sentences,
    open_console,
    print_evaluation,
    print_summary,
)
from lmsi_jax.runtime.files import read_record, remove, write_bytes, write_json
from lmsi_jax.runtime.store import check_output, check_shards, read_config_text
from lmsi_jax.training.metrics import METRICS, read_metrics
from lmsi_jax.voting import right_keys

_EVALUATION = "eval.json"
_PACKAGES = ("lmsi_jax", "jax", "flax", "optax", "orbax-checkpoint", "seqio", "tensorflow", "numpy")
_STAGES = (
    *("generate", "prompts", "paraphrase", "sample", "vote", "filter_scores"),
    *("mix", "teacher_scores", "train", "eval"),
)
"""The stages whose time is reported."""
_SHOWN_PER_TASK = 2
_SHOWN_TEXTS, _SHOWN_DISSENTING = 8, 3
_USUAL_THRESHOLD = 0.95
"""The threshold that is replayed if sampling had none (Aggarwal et al. 2023)."""


def report(context: Context, command: str, config_text: str) -> None:
    """Writes report.json, report.html and eval.json, and prints the table.

    Raises:
      NotReady: nothing has been evaluated or voted on yet.
    """
    for index in range(context.round(0).settings.rounds + 1):
        for stage in filter(context.round(index).finished, _STAGES):
            check_shards(context.round(index).folder(stage))
    config_text = read_config_text(context.output) or config_text  # of the stages
    summary = summarize(context, command, config_text)
    write_json(context.output / "report.json", summary.to_json())
    write_json(context.output / _EVALUATION, accuracy_rows(summary))
    write_bytes(context.output / "report.html", render(summary).encode())
    print_summary(summary, open_console())
    print(f"report: {context.output / 'report.html'}")


def report_evaluation(context: Context, command: str, config_text: str) -> None:
    """Writes eval.json and prints the table of `lmsi eval`."""
    summary = summarize(context, command, config_text)
    checkpoints = context.round(0).settings.evaluation.checkpoints
    write_json(context.output / _EVALUATION, accuracy_rows(summary, checkpoints))
    names = ("before", "after") if checkpoints else None
    print_evaluation(summary, open_console(), names)
    for name, checkpoint in zip(names or (), checkpoints[:1] + checkpoints[-1:], strict=False):
        print(f"{name}: {checkpoint}")
    print(f"table: {context.output / _EVALUATION}")


def summarize(context: Context, command: str, config_text: str) -> Summary:
    """Collects the summary from the run's folders.

    Args:
      context: the run.
      command: the command line, as it was typed.
      config_text: the operative gin configuration.

    Raises:
      NotReady: nothing has been evaluated or voted on yet.
    """
    run = context.round(0).settings
    rounds = [context.round(index) for index in range(run.rounds + 1)]
    evaluated = [round for round in rounds if round.finished("eval")]
    voted = [round for round in rounds[1:] if round.finished("vote")]
    if not (evaluated or voted):
        raise NotReady(f"{context.output} holds no evaluation and no votes; run `lmsi run` first")
    evals: list[Evaluation] = []
    summaries: list[RoundSummary] = []
    collapse: list[CollapseRow] = []
    places: list[PositionRow] = []
    test_sets: list[AdaptiveConsistencySet] = []
    train_sets: list[AdaptiveConsistencySet] = []
    examples: list[ShownQuestion] = []
    rule = _rule((voted or rounds)[0])
    for round in rounds:
        if round in evaluated:
            evals += [
                decode(Evaluation, {"round": round.index, **row}, f"scores of round {round.index}")
                for row in read_scores(round.context.output, round.index)
            ]
            test_sets += _test_sets(round, rule)
            places += _positions(round, "test")
            if round is evaluated[-1]:
                examples += _examples(round)
        if round in voted:
            summaries.append(_round(round))
            train_sets += _train_sets(round, _rule(round))
            places += _positions(round, "train")
        if round in evaluated or round in voted:
            collapse += [
                CollapseRow(round=round.index, source=source, **vars(stored.metrics))
                for source, stored in read_collapse_metrics(round).items()
            ]
        round.release()
    distillation = context.output / RESULT
    return Summary(
        name=run.name,
        seed=run.seed,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions={name: _version(name) for name in _PACKAGES},
        command=command,
        config=config_text,
        model=Model(
            name=run.init_checkpoint,
            parameters=run.model.parameter_count,
            source=context.base_folder.name,
        ),
        tasks=_tasks(context),
        evals=tuple(evals),
        rounds=tuple(summaries),
        positions=tuple(places),
        probe=tuple(
            decode(ProbedTask, row, "the contamination probe") for row in read_probe(rounds[0])
        ),
        collapse=tuple(collapse),
        adaptive_consistency=AdaptiveConsistency(
            threshold=rule.threshold,
            every=rule.every,
            on=rule.on,
            sets=(*test_sets, *train_sets),
        ),
        examples=tuple(examples),
        notes=(
            *(
                f"The samples of round {round.index} were imported (`lmsi import-samples`); this "
                "run's model did not draw them."
                for round in voted
                if import_record(round.folder("sample"))
            ),
            *(distillation_sentences(read_record(distillation)) if distillation.exists() else ()),
        ),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _tasks(context: Context) -> tuple[Task, ...]:
    from lmsi_jax.tasks import registry

    questions, tests = context.questions, context.load_questions("test")
    tasks = []
    for name in dict.fromkeys((*questions.train, *questions.test)):
        task = registry.find(questions, name)
        tasks.append(
            Task(
                name=name,
                kind=task.kind,
                domain="in" if name in questions.train else "out",
                level=questions.level if task.levels else "",
                test_questions=len(tests.get(name, ())),
            )
        )
    return tuple(tasks)


def _round(round: Round) -> RoundSummary:
    """One round from its votes on; training rows are zeros before they are mixed."""
    by_task, samples = round.votes(), round.all_samples()
    votes = [vote for rows in by_task.values() for vote in rows]
    drawn = [sample for rows in samples.values() for sample in rows]
    metrics = read_metrics(round.folder("train"))
    check_output(round.folder("train") / METRICS)
    seconds = {
        stage: float(round.record(stage)["seconds"]) for stage in _STAGES if round.finished(stage)
    }
    tokens = {
        "sample": sum(sample.tokens for sample in drawn),
        "train": sum(line.get("tokens", 0) for line in metrics),
    }
    mixed = round.finished("mix")
    examples = read_examples(round) if mixed else {}
    pairs = read_pairs(round) if mixed else []
    prompts = read_counts(round, "prompts")
    return RoundSummary(
        round=round.index,
        start_from=round.settings.start_from,
        seconds=seconds,
        tokens_per_second={
            stage: count / seconds[stage] for stage, count in tokens.items() if seconds.get(stage)
        },
        questions=len(votes),
        samples=len(drawn),
        parsed=sum(vote.parsed for vote in votes),
        unfinished=sum(not sample.finished for sample in drawn),
        empty_votes=sum(vote.winner is None for vote in votes),
        tied_votes=sum(bool(vote.tied) for vote in votes),
        kept=sum(len(vote.kept) for vote in votes),
        distinct_kept=sum(distinct_kept(vote, samples[vote.uid]) for vote in votes),
        mean_confidence=_mean([vote.confidence for vote in votes]),
        mean_entropy=_mean([vote.entropy for vote in votes]),
        votes_by_task={task: _task_votes(rows, samples) for task, rows in by_task.items()},
        generated=_new_questions(round, votes),
        prompts={task: NewPrompts(**counts) for task, counts in prompts.items()},
        examples=_rows_by_format([*pairs, *(row for rows in examples.values() for row in rows)]),
        sources=Sources(
            self_generated=len(examples.get("self_generated", [])) + len(pairs),
            human=len(examples.get("human", [])),
        ),
        funnel=tuple(
            TaskFilterCounts(**step) for step in (labelled_funnel(round) if mixed else ())
        ),
        train=tuple(metrics),
        values={name: repr(value) for name, value in round.scheduled.items()},
        alarms=tuple(words for _, words in collapse_alarms(round.context, round.index)),
        gold=GOLD in all_needs(round),
    )


def _task_votes(votes: Sequence[Vote], samples: Mapping[str, Sequence[Sample]]) -> TaskVotes:
    return TaskVotes(
        questions=len(votes),
        mean_confidence=_mean([vote.confidence for vote in votes]),
        distinct_kept_per_question=_mean([distinct_kept(v, samples[v.uid]) for v in votes]),
        empty=sum(vote.winner is None for vote in votes),
        tied=sum(bool(vote.tied) for vote in votes),
    )


def _rows_by_format(rows: Sequence[Example | ExamplePair]) -> dict[str, FormatRows]:
    weights: dict[str, list[float]] = {name: [] for name in FORMATS}
    for row in rows:
        weights[row.format].append(abs(row.weight))
    return {name: FormatRows(rows=len(w), weight=sum(w)) for name, w in weights.items()}


def _new_questions(round: Round, votes: Sequence[Vote]) -> dict[str, NewQuestions]:
    confidences = {vote.uid: vote.confidence for vote in votes}
    settings = round.settings
    preference = settings.training.preference
    mixed = settings.mixing.min_confidence if preference is None else preference.threshold
    least = max(settings.augmentation.min_confidence, mixed)
    questions = round.new_questions
    counted = {}
    for task, counts in read_counts(round, "generate").items():
        of_new = [confidences[question.uid] for question in questions[task]]
        counted[task] = NewQuestions(
            **counts,
            mean_confidence=_mean(of_new),
            confident=sum(confidence >= least for confidence in of_new),
        )
    return counted


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


@dataclasses.dataclass(frozen=True)
class _Rule:
    """Adaptive consistency as a round was sampled, or as it is replayed if it was off."""

    threshold: float
    every: int
    samples: int
    on: bool


def _rule(round: Round) -> _Rule:
    """Returns the settings that sampling ran with; the configured ones before it has run."""
    sampling = dataclasses.asdict(round.settings.sampling)
    if round.finished("sample"):
        recorded = round.record("sample")["config"]["Sampling"]
        sampling |= {"adaptive_consistency": None} | recorded
    threshold = sampling["adaptive_consistency"]
    return _Rule(
        threshold=_USUAL_THRESHOLD if threshold is None else threshold,
        every=sampling["adaptive_consistency_every"],
        samples=sampling["num_samples"],
        on=threshold is not None,
    )


def _test_sets(round: Round, rule: _Rule) -> Iterator[AdaptiveConsistencySet]:
    """Replays the rule on test questions under self-consistency, which draws all samples."""
    for task, questions in round.context.load_questions("test").items():
        by_uid = round.test_votes(task, "self_consistency")
        sampled = [question for question in questions if question.uid in by_uid]
        if not sampled:
            continue
        votes = [by_uid[question.uid] for question in sampled]
        samples = round.test_samples(task, "self_consistency")
        replayed = replay(sampled, votes, samples, rule.threshold, rule.every)
        yield AdaptiveConsistencySet(
            source="test",
            round=round.index,
            task=task,
            samples=max(vote.total for vote in votes),
            **vars(replayed),
        )


def _train_sets(round: Round, rule: _Rule) -> Iterator[AdaptiveConsistencySet]:
    """Replays the rule on train questions; if it was on, counts the samples they got."""
    by_task = round.votes()
    for task, questions in round.questions.items():
        votes = by_task[task]
        if rule.on:
            taken = tuple(vote.total for vote in votes)
            replayed = Replay(taken=taken, same=(), correct=(), correct_stopped=())
        else:
            replayed = replay(questions, votes, round.samples(task), rule.threshold, rule.every)
        yield AdaptiveConsistencySet(
            source="train", round=round.index, task=task, samples=rule.samples, **vars(replayed)
        )


def _positions(round: Round, source: Literal["train", "test"]) -> Iterator[PositionRow]:
    """Yields the places of the options that a task's samples named, for tasks that have some."""
    by_task = round.questions if source == "train" else round.context.load_questions("test")
    for task, questions in by_task.items():
        if source == "train":
            votes = {vote.uid: vote for vote in round.votes()[task]}
            samples = round.samples(task)
        else:
            votes = round.test_votes(task, "self_consistency")
            samples = round.test_samples(task, "self_consistency")
        asked = [question for question in questions if question.uid in votes]
        counts = position_counts(
            asked,
            [votes[question.uid] for question in asked],
            [sorted(s.sample_index for s in samples[question.uid]) for question in asked],
            round.settings.voting.rotate_options,
        )
        if counts is not None:
            yield PositionRow(source=source, round=round.index, task=task, **vars(counts))


def _examples(round: Round) -> Iterator[ShownQuestion]:
    """Yields a few labelled test questions of each task with samples, votes and gold answers."""
    for task, questions in round.context.load_questions("test").items():
        style = "self_consistency" if round.test_votes(task, "self_consistency") else "cot"
        votes, samples = round.test_votes(task, style), round.test_samples(task, style)
        sampled = [question for question in questions if question.uid in votes]
        for question in sampled[:_SHOWN_PER_TASK]:
            yield _shown_question(question, votes[question.uid], samples[question.uid])


def _shown_question(question: Question, vote: Vote, samples: Sequence[Sample]) -> ShownQuestion:
    counts = collections.Counter(sample.text for sample in samples)
    first = {sample.text: sample.sample_index for sample in reversed(samples)}
    order = sorted(counts, key=lambda text: (-counts[text], first[text]))
    # Some that dissent are always among those shown, if there are any.
    agreeing = [text for text in order if first[text] in vote.kept]
    dissenting = [text for text in order if first[text] not in vote.kept]
    room = max(_SHOWN_TEXTS - len(dissenting), _SHOWN_TEXTS - _SHOWN_DISSENTING)
    shown = [*agreeing[:room], *dissenting][:_SHOWN_TEXTS]
    # A vote's keys are in the order of the samples' indices, which may have gaps.
    indices = sorted(sample.sample_index for sample in samples)
    keys = dict(zip(indices, vote.keys, strict=True))
    return ShownQuestion(
        task=question.task,
        question=question.text,
        gold=question.gold,
        right=vote.winner in right_keys(question) if question.gold is not None else None,
        winner=vote.winner,
        confidence=vote.confidence,
        tied=bool(vote.tied),
        total=vote.total,
        samples=tuple(
            ShownSample(
                text=text, key=keys[first[text]], kept=first[text] in vote.kept, count=counts[text]
            )
            for text in sorted(shown, key=order.index)
        ),
    )


# --- the sample browser ---------------------------------------------------------------------------

BROWSER = "browse"
"""The folder of the browser's files in a run's."""


def browse(context: Context) -> None:
    """Writes the browser of all samples, and prints where it is.

    Raises:
      NotReady: nothing has been sampled yet.
    """
    folder = context.output / BROWSER

    def write(name: str, data: bytes) -> None:
        write_bytes(folder / name, data)

    samples, files = write_browser(context.round(0).settings.name, _browsed(context), write)
    if not samples:
        raise NotReady(f"{context.output} holds no samples; run `lmsi run` first")
    for path in folder.iterdir():  # of an earlier, larger one
        number = re.fullmatch(r"samples-(\d+)\.js", path.name)
        if number and int(number[1]) >= files:
            remove(path)
    print(f"{samples:,} samples: {folder / BROWSER_PAGE}")


def _browsed(context: Context) -> Iterator[Browsed]:
    """Yields the test questions by task and prompt style, then the training questions by task."""
    rounds = [context.round(index) for index in range(context.round(0).settings.rounds + 1)]
    evaluated = [round for round in rounds if round.finished("eval")]
    voted = [round for round in rounds[1:] if round.finished("vote")]
    for task, questions in context.load_questions("test").items() if evaluated else ():
        for style in PROMPT_STYLES:
            found = [
                (round.index, round.test_votes(task, style), round.test_samples(task, style))
                for round in evaluated
            ]
            yield from _with_answers("test", questions, style, found)
            for round in evaluated:
                round.release()
    for task in dict.fromkeys(context.questions.train) if voted else ():
        by_uid: dict[str, Question] = {}
        found = []
        for round in voted:
            by_uid |= {question.uid: question for question in round.questions[task]}
            votes = {vote.uid: vote for vote in round.votes()[task]}
            found.append((round.index, votes, round.samples(task)))
        yield from _with_answers("train", [*by_uid.values()], "", found)
        for round in voted:
            round.release()


def _with_answers(
    split: str,
    questions: Sequence[Question],
    style: str,
    found: Sequence[tuple[int, Mapping[str, Vote], Mapping[str, Sequence[Sample]]]],
) -> Iterator[Browsed]:
    for question in questions:
        keys = right_keys(question) if question.gold is not None else None
        answers = []
        for number, votes, samples in found:
            if (vote := votes.get(question.uid)) is not None:
                right = None if keys is None else [key in keys for key in vote.keys]
                sure = None if keys is None or vote.winner is None else vote.winner in keys
                answers.append(Answered(number, vote, samples[question.uid], right, sure))
        if answers:
            yield Browsed(
                split=split,
                uid=question.uid,
                task=question.task,
                text=question.text,
                gold=question.gold,
                prompt_style=style,
                answers=answers,
            )
