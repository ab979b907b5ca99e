"""The report of a run: its folders -> a `Summary` -> report.json, report.html and a table."""

import collections
import dataclasses
import datetime
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence

from lmsi_jax.config.schedule import scheduled_values
from lmsi_jax.evaluation.accuracy import Replay, replay
from lmsi_jax.evaluation.collapse import distinct_kept
from lmsi_jax.pipeline import augment
from lmsi_jax.pipeline.augment import training_questions
from lmsi_jax.pipeline.context import Context, NotReady
from lmsi_jax.pipeline.distill import RESULT
from lmsi_jax.pipeline.evaluate import read_scores
from lmsi_jax.pipeline.mix import labelled_funnel, read_examples, read_pairs
from lmsi_jax.pipeline.monitor import collapse_alarms, read_collapse_metrics
from lmsi_jax.pipeline.sample import read_round, read_task
from lmsi_jax.pipeline.sample_shards import read_samples
from lmsi_jax.pipeline.vote import cast_vote, read_votes
from lmsi_jax.records import FORMATS, Example, ExamplePair, Question, Sample, Vote
from lmsi_jax.report.comparison import accuracy_rows
from lmsi_jax.report.page import render
from lmsi_jax.report.summary import (
    AdaptiveConsistency,
    AdaptiveConsistencySet,
    CollapseRow,
    Evaluation,
    FormatRows,
    Model,
    NewPrompts,
    NewQuestions,
    Round,
    ShownPath,
    ShownQuestion,
    Sources,
    Summary,
    Task,
    TaskFilterStep,
    TaskVotes,
    decode,
)
from lmsi_jax.report.terminal import (
    distillation_sentences,
    open_console,
    print_evaluation,
    print_summary,
)
from lmsi_jax.runtime.files import read_json, write_bytes, write_json
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.training.metrics import read_metrics

_EVALUATION = "eval.json"
_PACKAGES = ("lmsi_jax", "jax", "flax", "optax", "orbax-checkpoint", "seqio", "tensorflow", "numpy")
_STAGES = (
    *("generate", "prompts", "sample", "vote", "path_scores"),
    *("mix", "score", "train", "eval"),
)
"""The stages whose time is reported."""
_SHOWN_PER_TASK = 2
_SHOWN_PATHS = 8
_USUAL_THRESHOLD = 0.95
"""The threshold that is replayed if sampling had none (Aggarwal et al. 2023)."""


def report(context: Context, command: str, config_text: str) -> None:
    """Writes report.json, report.html and eval.json, and prints the table.

    Raises:
      NotReady: nothing has been evaluated or voted on yet.
    """
    config = context.output / "config.gin"
    if config.exists():
        config_text = config.read_text()  # of the stages, whatever is set now
    summary = summarize(context, command, config_text)
    write_json(context.output / "report.json", summary.to_json())
    write_json(context.output / _EVALUATION, accuracy_rows(summary))
    write_bytes(context.output / "report.html", render(summary).encode())
    print_summary(summary, open_console())
    print(f"report: {context.output / 'report.html'}")


def report_evaluation(context: Context, command: str, config_text: str) -> None:
    """Writes eval.json and prints the table of `lmsi eval`."""
    summary = summarize(context, command, config_text)
    checkpoints = context.run.evaluation.checkpoints
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
    run = context.run
    evaluated = [r for r in range(run.rounds + 1) if _is_finished(context, r, "eval")]
    voted = [r for r in range(1, run.rounds + 1) if _is_finished(context, r, "vote")]
    if not (evaluated or voted):
        raise NotReady(f"{context.output} holds no evaluation and no votes; run `lmsi run` first")
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
        evals=tuple(
            decode(Evaluation, {"round": r, **row}, f"scores of round {r}")
            for r in evaluated
            for row in read_scores(context.output, r)
        ),
        rounds=tuple(_round(context, r) for r in voted),
        collapse=tuple(
            CollapseRow(round=r, source=source, **vars(stored.metrics))
            for r in sorted({*evaluated, *voted})
            for source, stored in read_collapse_metrics(context, r).items()
        ),
        adaptive_consistency=_adaptive_consistency(context, evaluated, voted),
        examples=tuple(_examples(context, evaluated[-1])) if evaluated else (),
        notes=tuple(distillation_sentences(read_json(distillation)))
        if distillation.exists()
        else (),
    )


def _is_finished(context: Context, round_index: int, stage: str) -> bool:
    return (context.folder(round_index, stage) / "stage.json").exists()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _tasks(context: Context) -> tuple[Task, ...]:
    from lmsi_jax.tasks import registry

    questions = context.questions
    tasks = []
    for name in dict.fromkeys((*questions.train, *questions.test)):
        task = registry.get(name)
        tasks.append(
            Task(
                name=name,
                kind=task.kind,
                domain="in" if name in questions.train else "out",
                level=questions.level if task.levels else "",
                test_questions=questions.test_count if name in questions.test else 0,
            )
        )
    return tuple(tasks)


def _round(context: Context, index: int) -> Round:
    """One round from its votes on; training rows are zeros before they are mixed."""
    by_task, samples = read_votes(context, index), read_round(context, index)
    votes = [vote for rows in by_task.values() for vote in rows]
    drawn = [sample for rows in samples.values() for sample in rows]
    metrics = read_metrics(context.folder(index, "train"))
    seconds = _seconds(context, index)
    tokens = {
        "sample": sum(sample.tokens for sample in drawn),
        "train": sum(line.get("tokens", 0) for line in metrics),
    }
    mixed = _is_finished(context, index, "mix")
    examples = read_examples(context, index) if mixed else {}
    pairs = read_pairs(context, index) if mixed else []
    prompts = augment.read_counts(context, index, "prompts")
    return Round(
        round=index,
        start_from=context.run.start_from,
        seconds=seconds,
        tokens_per_second={
            stage: count / seconds[stage] for stage, count in tokens.items() if seconds.get(stage)
        },
        questions=len(votes),
        paths=len(drawn),
        parsed=sum(vote.parsed for vote in votes),
        unfinished=sum(not sample.finished for sample in drawn),
        empty_votes=sum(vote.winner is None for vote in votes),
        tied_votes=sum(bool(vote.tied) for vote in votes),
        kept=sum(len(vote.kept) for vote in votes),
        distinct_kept=sum(distinct_kept(vote, samples[vote.uid]) for vote in votes),
        mean_confidence=_mean([vote.confidence for vote in votes]),
        mean_entropy=_mean([vote.entropy for vote in votes]),
        votes_by_task={task: _task_votes(rows, samples) for task, rows in by_task.items()},
        generated=_new_questions(context, index, votes),
        prompts={task: NewPrompts(**counts) for task, counts in prompts.items()},
        examples=_rows_by_format([*pairs, *(row for rows in examples.values() for row in rows)]),
        sources=Sources(
            self_generated=len(examples.get("self_generated", [])) + len(pairs),
            human=len(examples.get("human", [])),
        ),
        funnel=tuple(
            TaskFilterStep(**step) for step in (labelled_funnel(context, index) if mixed else ())
        ),
        train=tuple(metrics),
        values={name: repr(value) for name, value in scheduled_values(context.run, index).items()},
        alarms=tuple(words for _, words in collapse_alarms(context, index)),
    )


def _seconds(context: Context, index: int) -> dict[str, float]:
    """Wall time of the round's finished stages."""
    return {
        stage: float(read_json(context.folder(index, stage) / "stage.json")["seconds"])
        for stage in _STAGES
        if _is_finished(context, index, stage)
    }


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
        weights[row.format].append(row.weight)
    return {name: FormatRows(rows=len(w), weight=sum(w)) for name, w in weights.items()}


def _new_questions(context: Context, index: int, votes: Sequence[Vote]) -> dict[str, NewQuestions]:
    confidences = {vote.uid: vote.confidence for vote in votes}
    run = context.run_in(index)
    preference = run.training.preference
    mixed = run.mixing.min_confidence if preference is None else preference.threshold
    least = max(run.augmentation.min_confidence, mixed)
    questions = augment.new_questions(context, index)
    counted = {}
    for task, counts in augment.read_counts(context, index, "generate").items():
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
    paths: int
    on: bool


def _adaptive_consistency(
    context: Context, evaluated: Sequence[int], voted: Sequence[int]
) -> AdaptiveConsistency:
    """Replays the rule if all samples were drawn; counts them if it was on."""
    rule = _rule(context, voted[:1])
    tests = [row for r in evaluated for row in _test_sets(context, r, rule)]
    trains = [row for r in voted for row in _train_sets(context, r, _rule(context, [r]))]
    return AdaptiveConsistency(
        threshold=rule.threshold, every=rule.every, on=rule.on, sets=(*tests, *trains)
    )


def _rule(context: Context, voted: Sequence[int]) -> _Rule:
    """The settings that the sample stage ran with; the current ones before it has run."""
    sampling = dataclasses.asdict(context.run.sampling)
    if voted:
        record = read_json(context.folder(voted[0], "sample") / "stage.json")
        sampling |= {"adaptive_consistency": None} | record["config"]["Sampling"]
    threshold = sampling["adaptive_consistency"]
    return _Rule(
        threshold=_USUAL_THRESHOLD if threshold is None else threshold,
        every=sampling["adaptive_consistency_every"],
        paths=sampling["num_samples"],
        on=threshold is not None,
    )


def _test_sets(context: Context, round_index: int, rule: _Rule) -> Iterator[AdaptiveConsistencySet]:
    """Test questions under self-consistency, which always draws all samples."""
    store = ShardStore(context.folder(round_index, "eval"))
    for task, questions in context.load_questions("test").items():
        samples = read_samples(store, f"{task}-self_consistency")
        sampled = [question for question in questions if question.uid in samples]
        if not sampled:
            continue
        votes = [cast_vote(context, question, samples[question.uid]) for question in sampled]
        replayed = replay(sampled, votes, samples, rule.threshold, rule.every)
        yield AdaptiveConsistencySet(
            source="test",
            round=round_index,
            task=task,
            paths=max(vote.total for vote in votes),
            **vars(replayed),
        )


def _train_sets(
    context: Context, round_index: int, rule: _Rule
) -> Iterator[AdaptiveConsistencySet]:
    """Train questions; if the rule was on, only the number of samples they got."""
    by_task = read_votes(context, round_index)
    for task, questions in training_questions(context, round_index).items():
        votes = by_task[task]
        if rule.on:
            taken = tuple(vote.total for vote in votes)
            replayed = Replay(taken=taken, same=(), correct=(), correct_stopped=())
        else:
            samples = read_task(context, round_index, task)
            replayed = replay(questions, votes, samples, rule.threshold, rule.every)
        yield AdaptiveConsistencySet(
            source="train", round=round_index, task=task, paths=rule.paths, **vars(replayed)
        )


def _examples(context: Context, round_index: int) -> Iterator[ShownQuestion]:
    """A few labelled test questions of each task with their paths, votes and gold answers."""
    store = ShardStore(context.folder(round_index, "eval"))
    for task, questions in context.load_questions("test").items():
        samples = read_samples(store, f"{task}-self_consistency") or read_samples(
            store, f"{task}-cot"
        )
        sampled = [question for question in questions if question.uid in samples]
        for question in sampled[:_SHOWN_PER_TASK]:
            vote = cast_vote(context, question, samples[question.uid])
            yield _shown_question(question, vote, samples[question.uid])


def _shown_question(question: Question, vote: Vote, samples: Sequence[Sample]) -> ShownQuestion:
    counts = collections.Counter(sample.text for sample in samples)
    first = {sample.text: sample.sample_index for sample in reversed(samples)}
    order = sorted(counts, key=lambda text: (-counts[text], first[text]))
    # A vote's keys are in the order of the samples' indices, which may have gaps.
    indices = sorted(sample.sample_index for sample in samples)
    keys = dict(zip(indices, vote.keys, strict=True))
    return ShownQuestion(
        task=question.task,
        question=question.text,
        gold=question.gold,
        winner=vote.winner,
        confidence=vote.confidence,
        tied=bool(vote.tied),
        total=vote.total,
        paths=tuple(
            ShownPath(
                text=text, key=keys[first[text]], kept=first[text] in vote.kept, count=counts[text]
            )
            for text in order[:_SHOWN_PATHS]
        ),
    )
