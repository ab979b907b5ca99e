"""Questions -> shards of paths: what a shard holds, who makes it, and when it is written.

A shard's questions are a function of the task's questions and of their lengths in tokens alone; not
of the order they come in, the number of processes, or what is there already. The shards of a stage
are counted through all of its jobs, and replica group i of n makes those whose number is i modulo n
(a replica group is one process, or several that hold one engine): so nobody has to ask anybody,
nobody idles while there are shards enough, and a restart on another number of processes goes on
with what is missing. All questions of a task that a replica group has left to do go through one run
of the engine, so slots never wait for a shard to end. A shard is written once its last question is
complete: whoever is killed loses the open shards, and nothing else.

Jobs -> paths on disk, for sampling and evaluation: the engine, a person's view, and leaving.
"""

import dataclasses
import io
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from etils import epath

from lmsi_jax.config.run import Run
from lmsi_jax.config.sampling import Sampling
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.sharding import ReplicaGroup
from lmsi_jax.pipeline.context import Context
from lmsi_jax.prompts import PromptStyle, build_prompt
from lmsi_jax.records import Exemplar, Question, Sample
from lmsi_jax.rollout.engine import Engine, Stats
from lmsi_jax.rollout.scheduler import check_fit
from lmsi_jax.runtime.processes import Agreement, synchronize
from lmsi_jax.runtime.progress import Progress
from lmsi_jax.runtime.signals import Terminated, deferred_signals
from lmsi_jax.runtime.store import ShardStore, shard_names
from lmsi_jax.voting import answer_keys, is_settled

# Neighbours in a shard are of like length, and then in the order of their uids.
_LENGTH_BUCKET = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The questions of one task under one prompt style: they share a task prompt.

    Attributes:
      name: begins the names of its shards, `NAME-00003-of-00012`.
      prefix: the task prompt, "" for none.
      questions: text by uid.
      sampling: how paths are drawn.
      numbers: the numbers of the paths, where they are not 0, 1, 2, ...: the paths of a question
        may be spread over several jobs with different prompts.
    """

    name: str
    prefix: str
    questions: Mapping[str, str]
    sampling: Sampling
    numbers: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of paths: its name and the uids of its questions, sorted."""

    name: str
    uids: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A job's shards that one replica group makes, and which of them are missing."""

    job: Job
    shards: tuple[Shard, ...]
    missing: tuple[Shard, ...]

    @property
    def total(self) -> int:
        """Questions in this replica group's shards."""
        return sum(len(shard.uids) for shard in self.shards)

    @property
    def left(self) -> int:
        """Questions in the missing ones."""
        return sum(len(shard.uids) for shard in self.missing)


class Watcher(Protocol):
    """Who is told how it goes."""

    def chunk(self, stats: Stats) -> None:
        """Between two chunks: what was counted since `generate` began."""

    def question(self, uid: str, samples: Sequence[Sample]) -> None:
        """A question is complete."""


def plan(name: str, lengths: Mapping[str, int], size: int) -> tuple[Shard, ...]:
    """Cuts a job's questions into shards: by length, then by uid.

    Args:
      name: the job's.
      lengths: tokens of each question, by uid.
      size: most questions of a shard.
    """
    order = sorted(lengths, key=lambda uid: (lengths[uid] // _LENGTH_BUCKET, uid))
    groups = [order[at : at + size] for at in range(0, len(order), size)]
    names = shard_names(len(groups))
    return tuple(
        Shard(name=f"{name}-{number}", uids=tuple(sorted(group)))
        for number, group in zip(names, groups, strict=True)
    )


def prepare(
    engine: Engine,
    jobs: Sequence[Job],
    missing: Callable[[Sequence[str]], Sequence[str]],
    *,
    size: int,
    max_length: int,
    share: tuple[int, int] = (0, 1),
) -> tuple[Work, ...]:
    """Plans every job's shards, and looks which of this replica group's are missing or damaged.

    Args:
      engine: counts tokens.
      jobs: what to sample.
      missing: which of some shards are to be made: `ShardStore.missing`, or what another process
        says that looked.
      size: most questions of a shard.
      max_length: the model's context, in tokens.
      share: (this replica group's number, the number of replica groups).

    Raises:
      LmsiError: a job has no questions, or one of them does not fit the model's context; before
        anything has been sampled.
    """
    mine, count = share
    numbers = itertools.count()  # through all jobs, as many have fewer shards than replica groups
    own = []
    for job in jobs:
        lengths = {uid: engine.prompt_tokens(text) for uid, text in job.questions.items()}
        before = len(engine.tokenizer.start_ids) + engine.prompt_tokens(job.prefix)
        _check(job, lengths, before, max_length)
        planned = plan(job.name, lengths, size)
        own.append(tuple(shard for shard in planned if next(numbers) % count == mine))
    absent = set(missing([shard.name for shards in own for shard in shards]))
    return tuple(
        Work(job=job, shards=shards, missing=tuple(s for s in shards if s.name in absent))
        for job, shards in zip(jobs, own, strict=True)
    )


def _check(job: Job, lengths: Mapping[str, int], before: int, max_length: int) -> None:
    """Refuses what can be refused before hours of sampling."""
    if not lengths:
        raise LmsiError(
            f"{job.name} has no questions; set Questions.train_count, Questions.test_count and "
            "Evaluation.vote_count above 0, or leave the task out"
        )
    check_fit(lengths, before, job.sampling.max_new_tokens, max_length)


def generate(
    engine: Engine,
    works: Iterable[Work],
    store: ShardStore | None,
    *,
    seed: int,
    round_index: int,
    watcher: Watcher,
    leave: Callable[[], None] = lambda: None,
    settled: Callable[[str, Sequence[Sample]], bool] | None = None,
) -> None:
    """Samples what is missing and writes each shard once it is complete.

    Args:
      engine: the model.
      works: from `prepare`.
      store: where the shards go; None where another process writes what both compute.
      seed: with the round, the uid and the path's index it fixes the noise of a path.
      round_index: the round of self-improvement.
      watcher: told of chunks and questions.
      leave: called between two chunks; it may raise, and what was complete is written by then.
      settled: see `Engine.run`.

    Raises:
      LmsiError: the disk is full or the folder cannot be written; what was written stays.
    """
    totals = _Totals(watcher, leave)
    for work in works:
        if not work.missing:
            continue
        leave()
        totals.begin()
        shards = _OpenShards(store, work.missing)
        questions = [(uid, work.job.questions[uid]) for s in work.missing for uid in s.uids]
        for uid, samples in engine.run(
            work.job.prefix,
            questions,
            work.job.sampling,
            seed=seed,
            round_index=round_index,
            settled=settled,
            numbers=work.job.numbers,
            on_chunk=totals.add,
        ):
            shards.add(uid, samples)
            watcher.question(uid, samples)
        shards.close()


class _Totals:
    """Adds up the counts of several runs of the engine, each of which begins at zero."""

    def __init__(self, watcher: Watcher, leave: Callable[[], None]):
        self._watcher, self._leave = watcher, leave
        self._before: Stats | None = None
        self._latest: Stats | None = None

    def begin(self) -> None:
        """A new run begins."""
        self._before = self._latest

    def add(self, stats: Stats) -> None:
        """Passes on what a chunk of the run has come to, then leaves if that is asked for."""
        self._latest = stats if self._before is None else self._before + stats
        self._watcher.chunk(self._latest)
        self._leave()


class _OpenShards:
    """Keeps the paths of open shards, and writes a shard once it has all of its questions."""

    def __init__(self, store: ShardStore | None, shards: Sequence[Shard]):
        self._store = store
        self._home = {uid: shard for shard in shards for uid in shard.uids}
        self._open: dict[str, dict[str, list[Sample]]] = {shard.name: {} for shard in shards}

    def add(self, uid: str, samples: list[Sample]) -> None:
        """Takes a complete question."""
        shard = self._home[uid]
        rows = self._open[shard.name]
        rows[uid] = samples
        if len(rows) == len(shard.uids):
            ordered = (sample for uid in shard.uids for sample in rows[uid])
            if self._store is not None:
                self._store.write(shard.name, [sample.to_json() for sample in ordered])
            del self._open[shard.name]

    def close(self) -> None:
        """Says if a question never came, rather than let a stage end without it."""
        if self._open:
            raise RuntimeError(f"the engine left out questions of {', '.join(self._open)}")


def read_samples(store: ShardStore, name: str) -> dict[str, list[Sample]]:
    """Reads a job's shards; paths by question uid, in index order; {} where there are none.

    Raises:
      LmsiError: a shard is damaged, or missing beside others.
    """
    shape = re.compile(rf"{re.escape(name)}-\d{{5}}-of-(\d{{5}})")
    counts = {int(match[1]) for shard in store.names() if (match := shape.fullmatch(shard))}
    samples: dict[str, list[Sample]] = {}
    for number in (number for count in counts for number in shard_names(count)):
        for row in store.read(f"{name}-{number}"):
            samples.setdefault(row["uid"], []).append(Sample.from_json(row))
    return samples


def make_job(
    name: str,
    questions: Sequence[Question],
    exemplars: Sequence[Exemplar],
    prompt_style: PromptStyle,
    sampling: Sampling,
    numbers: tuple[int, ...] | None = None,
) -> Job:
    """Returns the job of one task's questions under one prompt style; `name` begins its shards'.

    With `numbers` it samples the paths of these numbers instead of the first `sampling.paths`.
    """
    if numbers is not None:
        sampling = dataclasses.replace(sampling, num_samples=len(numbers))
    prompts = {q.uid: build_prompt(q, exemplars, prompt_style) for q in questions}
    prefix = next(iter(prompts.values()))[0] if prompts else ""
    texts = {uid: text for uid, (_, text) in prompts.items()}
    return Job(name=name, prefix=prefix, questions=texts, sampling=sampling, numbers=numbers)


def draw_samples(
    context: Context,
    jobs: Sequence[Job],
    questions: Mapping[str, Question],
    directory: epath.Path,
    *,
    model: int,
    round_index: int,
    label: str,
) -> None:
    """Samples this replica group's missing shards of the jobs, or leaves between two chunks.

    Args:
      context: the run.
      jobs: what to sample.
      questions: all of the jobs' questions, by uid; none for texts that ask for no answer.
      directory: where the shards go.
      model: the round whose model samples; 0 is the base.
      round_index: enters the noise.
      label: what the progress says.

    Raises:
      LmsiError: a prompt does not fit, or the disk is full.
      Terminated: SIGTERM came, to any process of the replica group; the shards that were complete
      are
        written.
    """
    store = ShardStore(directory)
    engine, replica_group = context.engine(model), context.replica_group
    members = replica_group.members
    works = prepare(
        engine,
        jobs,
        lambda names: context.processes.found(members, lambda: store.missing(names)),
        size=context.run.questions_per_shard,
        max_length=context.run.model.max_length,
        share=(replica_group.index, replica_group.count),
    )
    bar = _bar(
        label + _said(replica_group, context.processes.count), works, shown=replica_group.first
    )
    if engine.shared is not None:
        synchronize(engine.shared)
    with deferred_signals() as requested, bar:
        agreement, looks = _agreement(engine, requested), itertools.count()

        def leave() -> None:
            """Between two chunks: leaves where SIGTERM has come."""
            if agreement.leave(next(looks), engine.trace.to_bytes(4)):
                raise Terminated

        generate(
            engine,
            works,
            store if replica_group.first else None,
            seed=context.run.seed,
            round_index=round_index,
            watcher=Meter(bar, questions),
            leave=leave,
            settled=adaptive_consistency(context.run, questions),
        )
        agreement.settle()


def _bar(label: str, works: Sequence[Work], shown: bool) -> Progress:
    total = sum(work.total for work in works)
    initial = total - sum(work.left for work in works)
    stream = None if shown else io.StringIO()
    return Progress(
        label, total, unit="questions", rate_unit="tokens", initial=initial, stream=stream
    )


def _said(replica_group: ReplicaGroup, count: int) -> str:
    """Whose part of the work it is, where there are several processes."""
    if count == 1:
        return ""
    if replica_group.several:
        return f", processes {replica_group.members[0]} to {replica_group.members[-1]} of {count}"
    return f", process {replica_group.process} of {count}"


def _agreement(engine: Engine, requested: Callable[[], bool]) -> Agreement:
    return Agreement(engine.shared, requested, "drawn different tokens")


def adaptive_consistency(
    run: Run, questions: Mapping[str, Question]
) -> Callable[[str, Sequence[Sample]], bool] | None:
    """Returns the rule by which a question needs no more paths, None where it is off.

    Adaptive-Consistency (Aggarwal et al. 2023); jobs whose own `Sampling.adaptive_consistency` is
    None never ask it.
    """
    if run.sampling.adaptive_consistency is None:
        return None
    threshold, conclusions = run.sampling.adaptive_consistency, run.voting.conclusions

    def rule(uid: str, samples: Sequence[Sample]) -> bool:
        """Whether the question's paths so far settle its vote."""
        return is_settled(answer_keys(questions[uid], samples, conclusions), threshold)

    return rule


class Meter:
    """Shows a person how the sampling goes: speeds, busy slots, parsed answers.

    Args:
      bar: the progress; it shows questions, tokens/s and the time left by itself.
      questions: all of the jobs' questions, by uid.
    """

    def __init__(self, bar: Progress, questions: Mapping[str, Question]):
        self._bar, self._questions = bar, questions
        self._stats: Stats | None = None
        self._answers = self._parsed = 0

    def chunk(self, stats: Stats) -> None:
        """Takes the counts so far."""
        before = self._stats.tokens if self._stats else 0
        self._stats = stats
        self._bar.advance(0, amount=stats.tokens - before, note=self._note())

    def question(self, uid: str, samples: Sequence[Sample]) -> None:
        """Takes a complete question."""
        if uid in self._questions:
            keys = answer_keys(self._questions[uid], samples)
            self._answers += len(keys)
            self._parsed += sum(key is not None for key in keys)
        self._bar.advance(1, amount=0, note=self._note())

    def _note(self) -> str:
        notes = []
        if self._stats and self._bar.seconds > 0:
            notes.append(f"{self._stats.samples / self._bar.seconds:,.1f} paths/s")
        if self._stats and self._stats.slot_steps:
            notes.append(f"slots {100 * self._stats.utilisation:.0f} % busy")
        if self._answers:
            notes.append(f"parsed {100 * self._parsed / self._answers:.0f} %")
        return ", ".join(notes)
