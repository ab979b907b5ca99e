"""Jobs -> paths on disk, for sampling and evaluation: the engine, a person's view, and leaving."""

import dataclasses
import io
import itertools
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from lmsi_jax.agreement import Agreement, meet
from lmsi_jax.decoding.engine import Engine, Stats
from lmsi_jax.decoding.generate import Job, Work, generate, prepare
from lmsi_jax.decoding.sampling import Sampling
from lmsi_jax.decoding.teams import Team
from lmsi_jax.progress import Progress
from lmsi_jax.prompts import Prompting, build_prompt
from lmsi_jax.records import Exemplar, Path, Question
from lmsi_jax.run import Run
from lmsi_jax.signals import Terminated, deferred
from lmsi_jax.stages.context import Context
from lmsi_jax.store import ShardStore
from lmsi_jax.voting import path_keys, settled


def make_job(
    name: str,
    questions: Sequence[Question],
    exemplars: Sequence[Exemplar],
    prompting: Prompting,
    sampling: Sampling,
    numbers: tuple[int, ...] | None = None,
) -> Job:
    """Returns the job of one task's questions under one prompting; `name` begins its shards'.

    With `numbers` it samples the paths of these numbers instead of the first `sampling.paths`.
    """
    if numbers is not None:
        sampling = dataclasses.replace(sampling, paths=len(numbers))
    prompts = {q.uid: build_prompt(q, exemplars, prompting) for q in questions}
    prefix = next(iter(prompts.values()))[0] if prompts else ""
    texts = {uid: text for uid, (_, text) in prompts.items()}
    return Job(name=name, prefix=prefix, questions=texts, sampling=sampling, numbers=numbers)


def draw_paths(
    context: Context,
    jobs: Sequence[Job],
    questions: Mapping[str, Question],
    directory: epath.Path,
    *,
    model: int,
    round_index: int,
    label: str,
) -> None:
    """Samples this team's missing shards of the jobs, or leaves between two chunks.

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
      Terminated: SIGTERM came, to any process of the team; the shards that were complete are
        written.
    """
    store = ShardStore(directory)
    engine, team = context.engine(model), context.team
    members = team.members
    works = prepare(
        engine,
        jobs,
        lambda names: context.processes.found(members, lambda: store.missing(names)),
        size=context.run.questions_per_shard,
        max_length=context.run.model.max_length,
        share=(team.index, team.count),
    )
    bar = _bar(label + _said(team, context.processes.count), works, shown=team.first)
    if engine.shared is not None:
        meet(engine.shared)
    with deferred() as requested, bar:
        agreement, looks = _agreement(engine, requested), itertools.count()

        def leave() -> None:
            """Between two chunks: leaves where SIGTERM has come."""
            if agreement.leave(next(looks), engine.trace.to_bytes(4)):
                raise Terminated

        generate(
            engine,
            works,
            store if team.first else None,
            seed=context.run.seed,
            round_index=round_index,
            watcher=Meter(bar, questions),
            leave=leave,
            settled=early_stop(context.run, questions),
        )
        agreement.settle()


def _bar(label: str, works: Sequence[Work], shown: bool) -> Progress:
    total = sum(work.total for work in works)
    initial = total - sum(work.left for work in works)
    stream = None if shown else io.StringIO()
    return Progress(
        label, total, unit="questions", rate_unit="tokens", initial=initial, stream=stream
    )


def _said(team: Team, count: int) -> str:
    """Whose part of the work it is, where there are several processes."""
    if count == 1:
        return ""
    if team.several:
        return f", processes {team.members[0]} to {team.members[-1]} of {count}"
    return f", process {team.process} of {count}"


def _agreement(engine: Engine, requested: Callable[[], bool]) -> Agreement:
    return Agreement(engine.shared, requested, "drawn different tokens")


def early_stop(
    run: Run, questions: Mapping[str, Question]
) -> Callable[[str, Sequence[Path]], bool] | None:
    """Returns the rule by which a question needs no more paths, None where it is off.

    Adaptive-Consistency (Aggarwal et al. 2023); jobs whose own `Sampling.early_stop` is None never
    ask it.
    """
    if run.sampling.early_stop is None:
        return None
    threshold, conclusions = run.sampling.early_stop, run.voting.conclusions

    def rule(uid: str, paths: Sequence[Path]) -> bool:
        """Whether the question's paths so far settle its vote."""
        return settled(path_keys(questions[uid], paths, conclusions), threshold)

    return rule


class Meter:
    """Shows a person how the sampling goes: speeds, busy lanes, parsed answers.

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

    def question(self, uid: str, paths: Sequence[Path]) -> None:
        """Takes a complete question."""
        if uid in self._questions:
            keys = path_keys(self._questions[uid], paths)
            self._answers += len(keys)
            self._parsed += sum(key is not None for key in keys)
        self._bar.advance(1, amount=0, note=self._note())

    def _note(self) -> str:
        notes = []
        if self._stats and self._bar.seconds > 0:
            notes.append(f"{self._stats.paths / self._bar.seconds:,.1f} paths/s")
        if self._stats and self._stats.lane_steps:
            notes.append(f"lanes {100 * self._stats.utilisation:.0f} % busy")
        if self._answers:
            notes.append(f"parsed {100 * self._parsed / self._answers:.0f} %")
        return ", ".join(notes)
