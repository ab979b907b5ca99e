"""Sampling: questions -> samples, in shards on disk that several processes share.

A shard's questions are a function of the task's questions and of their lengths in tokens alone; not
of their order, the number of processes, or what is there already. The shards of a stage are counted
through all of its jobs, and replica group i of n makes those whose number is i modulo n (a replica
group is one process, or several that hold one engine). So processes need no agreement, none is
idle while there are shards enough, and a restart on another number of processes continues with the
missing ones.

All questions that a replica group has left go through one call of the engine, so that slots never
wait for a shard to end. A shard is written once its last question is complete: a process that is
killed loses the open shards, and nothing else.

The engine is any `rollout.requests.Rollout`.

A task's shards are called by its name; with generated prompts there is a job for each of them,
`TASK-prompt003`, and `TASK-prompt003-standing-in` for the questions that the prompt before shows.
`TASK-paraphrase` has the samples of the questions' paraphrases, if the vote has two views.
With rotated options there is a job for each rotation and number of options, `TASK-rotation01of04`.
`human-TASK` has the model's own sample on each question with a human solution, if pairs need it,
and `greedy-TASK` its greedy sample on each question, with `Sampling.greedy`.
"""

import dataclasses
import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from lmsi_jax import answers
from lmsi_jax.augmentation import PARAPHRASED, groups
from lmsi_jax.config import Sampling
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.sharding import ReplicaGroup
from lmsi_jax.pipeline.context import (
    IMPORTED,
    Round,
    Samples,
    import_record,
    prompt_job_name,
    read_samples,
    rotation_job_name,
)
from lmsi_jax.pipeline.questions import worked_questions
from lmsi_jax.pipeline.step import DECODING, ROTATIONS, Fields, Step, custom_code
from lmsi_jax.prompts import PromptStyle, PromptWriter, available_style
from lmsi_jax.records import Exemplar, Question, Sample, Text
from lmsi_jax.rollout.requests import IsSettled, OnChunk, Request, Rollout, Stats
from lmsi_jax.runtime.processes import Agreement, synchronize
from lmsi_jax.runtime.progress import Progress
from lmsi_jax.runtime.signals import Terminated, deferred_signals
from lmsi_jax.runtime.store import ShardStore, Stage, shard_names
from lmsi_jax.voting import AnswerReader, is_settled

GREEDY = "greedy"
"""Begins the names of the shards of `Sampling.greedy`, GREEDY-TASK."""
# Neighbours in a shard are of similar length, and then in the order of their uids.
_LENGTH_BUCKET = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The questions of one task under one prompt style: they share a task prompt.

    Attributes:
      name: begins the names of its shards, `NAME-00003-of-00012`.
      prefix: the task prompt, "" for none.
      questions: text by uid.
      sampling: how samples are drawn.
      numbers: the indices of the samples if they are not 0, 1, 2, ...: the samples of a question
        may be spread over several jobs with different prompts.
    """

    name: str
    prefix: Text
    questions: Mapping[str, Text]
    sampling: Sampling
    numbers: tuple[int, ...] | None = None

    def requests(self) -> list[Request]:
        """Returns what the engine is asked for."""
        return [
            Request(
                uid=uid,
                prefix=self.prefix,
                text=text,
                sampling=self.sampling,
                sample_indices=self.numbers,
            )
            for uid, text in self.questions.items()
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of samples: its name and its questions, in the order of their uids."""

    name: str
    requests: tuple[Request, ...]


def make_job(
    writer: PromptWriter,
    name: str,
    questions: Sequence[Question],
    exemplars: Sequence[Exemplar],
    prompt_style: PromptStyle,
    sampling: Sampling,
    numbers: tuple[int, ...] | None = None,
) -> Job:
    """Returns the job of one task's questions under one prompt style.

    Args:
      writer: asks the questions.
      name: begins the names of its shards.
      questions: the task's questions.
      exemplars: the few-shot examples of the task prompt.
      prompt_style: how a prompt is written; zero-shot if there are no exemplars.
      sampling: how samples are drawn.
      numbers: the indices of the samples; None: the first `sampling.num_samples`.

    Raises:
      LmsiError: the prompt of a user's task fails, or does not share its first part.
    """
    style = available_style(prompt_style, exemplars)
    prompts = {q.uid: writer.prompt(q, exemplars, style) for q in questions}
    prefix = next(iter(prompts.values()))[0] if prompts else ""
    if other := next((uid for uid, (first, _) in prompts.items() if first != prefix), None):
        raise LmsiError(
            f"the prompt of {name} has another first part for question {other!r}; all questions "
            "of a task share it: return the rest alone in the second part"
        )
    texts = {uid: text for uid, (_, text) in prompts.items()}
    return Job(name=name, prefix=prefix, questions=texts, sampling=sampling, numbers=numbers)


def make_jobs(
    round: Round,
    name: str,
    questions: Sequence[Question],
    exemplars: Sequence[Exemplar],
    prompt_style: PromptStyle,
    sampling: Sampling,
) -> list[Job]:
    """Returns a job as `make_job` does, in parts if `Voting.rotate_options` divides it.

    Sample k of a question with n rotations is drawn in rotation k modulo n.
    """
    writer = round.context.prompts
    by_count: dict[int, list[Question]] = {}
    for question in questions:
        count = answers.rotations(question) if round.settings.voting.rotate_options else 1
        by_count.setdefault(count, []).append(question)
    jobs = []
    for count, rows in sorted(by_count.items()):
        if count == 1:
            jobs.append(make_job(writer, name, rows, exemplars, prompt_style, sampling))
            continue
        for by in range(min(count, sampling.num_samples)):
            jobs.append(
                make_job(
                    writer,
                    rotation_job_name(name, by, count),
                    [answers.rotate(row, by) for row in rows],
                    exemplars,
                    prompt_style,
                    sampling,
                    tuple(range(by, sampling.num_samples, count)),
                )
            )
    return jobs or [make_job(writer, name, questions, exemplars, prompt_style, sampling)]


def draw_samples(
    round: Round,
    jobs: Sequence[Job],
    questions: Mapping[str, Question],
    directory: epath.Path,
    *,
    model: int,
    label: str,
) -> None:
    """Samples this replica group's missing shards of the jobs, or leaves between two chunks.

    Args:
      round: the round; its index enters the noise.
      jobs: what to sample.
      questions: all of the jobs' questions, by uid; none for texts that ask for no answer.
      directory: the folder of the shards.
      model: the round whose model samples; 0 is the base.
      label: names the work in the progress bar.

    Raises:
      LmsiError: a prompt does not fit, or the disk is full.
      Terminated: a process of the replica group received SIGTERM; the shards that were complete are
        written.
    """
    settings, context = round.settings, round.context
    store, group = ShardStore(directory), context.replica_group
    engine: Rollout = context.engine(model)
    shards = plan_shards(
        engine, jobs, size=settings.questions_per_shard, share=(group.index, group.count)
    )
    names = [shard.name for shard in shards]
    missing = set(context.processes.run_on_leader(group.members, lambda: store.missing(names)))
    open_shards = [shard for shard in shards if shard.name in missing]
    total, remaining = (sum(len(s.requests) for s in some) for some in (shards, open_shards))
    bar = Progress(
        label + _described(group, context.processes.count),
        total,
        unit="questions",
        rate_unit="tokens",
        initial=total - remaining,
        stream=None if group.first else io.StringIO(),
    )
    if engine.shared_mesh is not None:
        synchronize(engine.shared_mesh)
    with deferred_signals() as requested, bar:
        meter, chunks = Meter(bar, questions, round.reader), itertools.count()
        agreement = Agreement(engine.shared_mesh, requested, "drawn different tokens")

        def on_chunk(stats: Stats) -> None:
            meter.chunk(stats)
            if agreement.leave(next(chunks), engine.checksum.to_bytes(4)):
                raise Terminated

        for uid, samples in fill_shards(
            engine,
            open_shards,
            store if group.first else None,
            seed=settings.seed,
            round_index=round.index,
            is_settled=vote_is_settled(questions, round.reader),
            on_chunk=on_chunk,
        ):
            meter.question(uid, samples)
        agreement.settle()


def plan_shards(
    engine: Rollout, jobs: Sequence[Job], *, size: int, share: tuple[int, int] = (0, 1)
) -> list[Shard]:
    """Cuts jobs into shards, by length and then by uid; returns those of one replica group.

    Args:
      engine: counts tokens.
      jobs: what to sample.
      size: most questions of a shard.
      share: (the replica group's number, how many there are).

    Raises:
      LmsiError: a job has no questions, or one of them does not fit the model's context; before
        anything has been sampled.
    """
    shards = []
    for job in jobs:
        if not job.questions:
            raise LmsiError(
                f"{job.name} has no questions; set Questions.train_count, Questions.test_count and "
                "Evaluation.vote_count above 0, or leave the task out"
            )
        requests = job.requests()
        lengths = engine.prompt_lengths(requests)
        order = sorted(
            range(len(requests)), key=lambda n: (lengths[n] // _LENGTH_BUCKET, requests[n].uid)
        )
        parts = [order[begin : begin + size] for begin in range(0, len(order), size)]
        for number, part in zip(shard_names(len(parts)), parts, strict=True):
            members = sorted((requests[n] for n in part), key=lambda request: request.uid)
            shards.append(Shard(name=f"{job.name}-{number}", requests=tuple(members)))
    # Counted through all jobs, as many a job has fewer shards than there are replica groups.
    index, count = share
    return shards[index::count]


def fill_shards(
    engine: Rollout,
    shards: Sequence[Shard],
    store: ShardStore | None,
    *,
    seed: int,
    round_index: int,
    is_settled: IsSettled | None = None,
    on_chunk: OnChunk | None = None,
) -> Iterator[tuple[str, Sequence[Sample]]]:
    """Samples shards and writes each once it is complete.

    Args:
      engine: the model.
      shards: what is missing, from `plan_shards`.
      store: takes the shards; None if another process writes what both compute.
      seed: with the round, the uid and the index it fixes the noise of a sample.
      round_index: the round of self-improvement.
      is_settled: see `Rollout.generate`.
      on_chunk: see `Rollout.generate`; called once before the first chunk too.

    Yields:
      (uid, its samples), as questions are completed.

    Raises:
      LmsiError: the disk is full or the folder cannot be written, or the model's probabilities are
        not numbers; what was written stays.
    """
    if not shards:
        return
    if on_chunk is not None:
        on_chunk(Stats())
    home = [shard for shard in shards for _ in shard.requests]
    requests = [request for shard in shards for request in shard.requests]
    pending: dict[str, dict[str, Sequence[Sample]]] = {shard.name: {} for shard in shards}
    for response in engine.generate(
        requests, seed=seed, round_index=round_index, is_settled=is_settled, on_chunk=on_chunk
    ):
        shard, uid = home[response.number], requests[response.number].uid
        by_uid = pending[shard.name]
        by_uid[uid] = response.samples
        if any(math.isnan(sample.logprob) for sample in response.samples):
            raise LmsiError(
                f"the model gives a sample of question {uid!r} a log-probability that is not a "
                "number: its weights are damaged, or too large for their type. Import or train it "
                "anew, or set Decoding.dtype = 'float32'"
            )
        if len(by_uid) == len(shard.requests):
            if store is not None:
                samples = (sample for request in shard.requests for sample in by_uid[request.uid])
                store.write(shard.name, [sample.to_json() for sample in samples])
            del pending[shard.name]
        yield uid, response.samples
    if pending:  # rather than let a stage end without them
        raise RuntimeError(f"the engine left out questions of {', '.join(pending)}")


def vote_is_settled(questions: Mapping[str, Question], reader: AnswerReader) -> IsSettled:
    """Returns the rule of Adaptive-Consistency (Aggarwal et al. 2023): more samples change no vote.

    An engine asks it for requests with `Sampling.adaptive_consistency` alone.
    """

    def rule(request: Request, samples: Sequence[Sample]) -> bool:
        threshold = request.sampling.adaptive_consistency
        assert threshold is not None
        readings = reader.read(questions[request.uid], samples)
        return is_settled([reading.key for reading in readings], threshold)

    return rule


def _described(group: ReplicaGroup, count: int) -> str:
    """Returns whose part of the work it is, if there are several processes."""
    if count == 1:
        return ""
    if group.several:
        return f", processes {group.members[0]} to {group.members[-1]} of {count}"
    return f", process {group.process} of {count}"


class Meter:
    """Shows how the sampling goes: speeds, busy slots, parsed answers.

    Args:
      bar: the progress bar; it shows questions, tokens/s and the time left by itself.
      questions: all of the jobs' questions, by uid.
      reader: reads their answers.
    """

    def __init__(self, bar: Progress, questions: Mapping[str, Question], reader: AnswerReader):
        self._bar, self._questions, self._reader = bar, questions, reader
        self._stats = Stats()
        self._answers = self._parsed = 0

    def chunk(self, stats: Stats) -> None:
        """Takes the counts so far."""
        tokens = stats.tokens - self._stats.tokens
        self._stats = stats
        self._bar.advance(0, amount=tokens, note=self._note())

    def question(self, uid: str, samples: Sequence[Sample]) -> None:
        """Takes a complete question."""
        if uid in self._questions:
            readings = self._reader.read(self._questions[uid], samples)
            self._answers += len(readings)
            self._parsed += sum(reading.key is not None for reading in readings)
        self._bar.advance(1, amount=0, note=self._note())

    def _note(self) -> str:
        notes = []
        if self._stats.samples and self._bar.seconds > 0:
            notes.append(f"{self._stats.samples / self._bar.seconds:,.1f} samples/s")
        if self._stats.slot_steps:
            notes.append(f"slots {100 * self._stats.utilisation:.0f} % busy")
        if self._stats.programs:
            notes.append(f"{self._stats.programs} programs")
        if self._answers:
            notes.append(f"parsed {100 * self._parsed / self._answers:.0f} %")
        return ", ".join(notes)


def _plays(round: Round) -> bool:
    """Returns True if the model also answers the questions that have human solutions (SPIN)."""
    preference = round.settings.training.preference
    return preference is not None and preference.form == "spin"


class SampleStep(Step):
    """Samples the round's questions with the model of the round before."""

    name = "sample"
    settings = (
        Fields(part="sampling"),
        *DECODING,
        Fields(  # adaptive consistency counts votes
            part="voting",
            names=("conclusions",),
            when=lambda round: round.settings.sampling.adaptive_consistency is not None,
        ),
        Fields(part="mixing", names=("human_examples",), when=_plays),
        ROTATIONS,
    )
    inputs = ("model", "questions", "generate", "prompts", "paraphrase")
    writes_prompts = True

    def derived(self, round: Round) -> dict[str, Any]:
        counts_votes = round.settings.sampling.adaptive_consistency is not None
        code = custom_code(round, "prompt", *(("read", "equal") if counts_votes else ()))
        return code | import_record(round.folder(self.name))

    def run(self, round: Round, stage: Stage) -> None:
        if IMPORTED in stage.config:
            raise LmsiError(
                f"the samples in {stage.directory} were imported, and are not complete; repeat "
                "`lmsi import-samples` with the same files, or delete the folder"
            )
        super().run(round, stage)

    def share(self, round: Round) -> None:
        by_task = round.questions
        asked = [question for rows in by_task.values() for question in rows]
        jobs = [job for task, rows in by_task.items() for job in _jobs(round, task, rows)]
        for task in by_task:
            if others := list(round.paraphrases(task).values()):
                asked += others
                jobs += make_jobs(
                    round,
                    f"{task}{PARAPHRASED}",
                    others,
                    round.context.exemplars(task),
                    "cot",
                    round.settings.sampling,
                )
        if _plays(round):
            given = {task: [row for row, _ in worked_questions(round, task)] for task in by_task}
            asked += [question for rows in given.values() for question in rows]
            jobs += [_single(round, f"human-{task}", task, rows) for task, rows in given.items()]
        if round.settings.sampling.greedy:
            jobs += [
                _single(round, f"{GREEDY}-{task}", task, rows, temperature=0.0)
                for task, rows in by_task.items()
            ]
        draw_samples(
            round,
            jobs,
            {question.uid: question for question in asked},
            round.folder(self.name),
            model=round.index - 1,
            label=f"round {round.index}: sampling",
        )


def _single(
    round: Round, name: str, task: str, rows: list[Question], temperature: float | None = None
) -> Job:
    """Returns the job of one sample of each question; None: at the configured temperature."""
    sampling = dataclasses.replace(
        round.settings.sampling, num_samples=1, adaptive_consistency=None, greedy=False
    )
    if temperature is not None:
        sampling = dataclasses.replace(sampling, temperature=temperature)
    exemplars = round.context.exemplars(task)
    return make_job(round.context.prompts, name, rows, exemplars, "cot", sampling)


def _jobs(round: Round, task: str, rows: list[Question]) -> list[Job]:
    """Returns one job with the task's exemplars, or one for each generated prompt."""
    sampling, prompts = round.settings.sampling, round.few_shots(task)
    writer = round.context.prompts
    if not prompts:
        return make_jobs(round, task, rows, round.context.exemplars(task), "cot", sampling)
    by_uid = {row.uid: row for row in rows}
    return [
        make_job(
            writer,
            prompt_job_name(task, group.prompt, group.standing_in),
            [by_uid[uid] for uid in group.uids],
            prompts[group.prompt].exemplars,
            "cot",
            sampling,
            group.numbers,
        )
        for group in groups(list(by_uid), sampling.num_samples, prompts)
    ]


def read_given(round: Round, task: str) -> Samples:
    """Reads the model's own sample on each question with a human solution, by uid."""
    return read_samples(round.store("sample"), f"human-{task}")
