"""Sampling: questions -> paths, in shards of one group of questions each."""

import collections
import functools
from collections.abc import Callable, Sequence

from lmsi_jax.answers import path_key
from lmsi_jax.decoding.engine import Engine
from lmsi_jax.decoding.sampling import Sampling
from lmsi_jax.progress import Progress
from lmsi_jax.prompts import Prompting, build_prompt
from lmsi_jax.records import Exemplar, Path, Question
from lmsi_jax.stages.context import Context, named
from lmsi_jax.store import ShardStore

Paths = dict[str, list[Path]]


def sample(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Samples the train questions' paths with the model of the round before.

    Returns:
      The stage's fingerprint.
    """
    run = context.run
    config = {**named(run.sampling), "Run": {"seed": run.seed, "lanes": run.lanes}}
    stage = context.stage(round_index, "sample", config, inputs)
    if context.done(stage):
        return stage.fingerprint
    store = ShardStore(stage.directory)
    engine = context.engine(round_index - 1)
    questions = context.load_questions("train")
    counter = PathCounter()
    total = sum(map(len, questions.values()))
    with Progress(
        f"round {round_index}: sampling", total, unit="questions", rate_unit="tokens"
    ) as bar:
        for task, rows in questions.items():
            sample_task(
                engine,
                rows,
                _exemplars(task),
                "cot",
                run.sampling,
                store,
                task,
                noise=(run.seed, round_index),
                watch=functools.partial(counter.show, bar),
            )
    stage.finish()
    return stage.fingerprint


def _exemplars(task: str) -> Sequence[Exemplar]:
    from lmsi_jax.tasks import registry

    return registry.get(task).exemplars()


def sample_task(
    engine: Engine,
    questions: Sequence[Question],
    exemplars: Sequence[Exemplar],
    prompting: Prompting,
    sampling: Sampling,
    store: ShardStore,
    name: str,
    *,
    noise: tuple[int, int],
    watch: Callable[[Sequence[Question], Sequence[Path]], None],
) -> None:
    """Samples one task's questions into shards `name-00000`, ...; those that exist are kept.

    Args:
      engine: the model.
      questions: of one task.
      exemplars: its few-shot exemplars.
      prompting: see `prompts.build_prompt`.
      sampling: how paths are drawn.
      store: where the shards go.
      name: the shards' name.
      noise: (seed, round).
      watch: told of each group and its paths.
    """
    size = engine.questions_per_group(sampling)
    for number, begin in enumerate(range(0, len(questions), size)):
        group = questions[begin : begin + size]
        shard = f"{name}-{number:05d}"
        if store.missing([shard]):
            prompts = [build_prompt(question, exemplars, prompting) for question in group]
            paths = engine.generate(
                prompts[0][0],
                [(q.uid, text) for q, (_, text) in zip(group, prompts, strict=True)],
                sampling,
                seed=noise[0],
                round_index=noise[1],
            )
            store.write(shard, [path.to_json() for path in paths])
        else:
            paths = [Path.from_json(row) for row in store.read(shard)]
        watch(group, paths)


def read_paths(store: ShardStore, name: str) -> Paths:
    """Reads the shards `name-*`; paths by question uid, in index order."""
    paths: Paths = collections.defaultdict(list)
    for shard in store.names():
        if shard.rsplit("-", 1)[0] == name:
            for row in store.read(shard):
                paths[row["uid"]].append(Path.from_json(row))
    return dict(paths)


def read_round(context: Context, round_index: int) -> Paths:
    """Reads all paths of a round by question uid."""
    store = ShardStore(context.folder(round_index, "sample"))
    paths: Paths = {}
    for task in context.load_questions("train"):
        paths |= read_paths(store, task)
    return paths


class PathCounter:
    """Counts paths and parsed answers for the progress line."""

    def __init__(self) -> None:
        self.paths = 0
        self.parsed = 0

    def show(self, bar: Progress, group: Sequence[Question], paths: Sequence[Path]) -> None:
        """Advances the bar by a group of questions and their paths."""
        kinds = {question.uid: question.kind for question in group}
        self.paths += len(paths)
        self.parsed += sum(path_key(path.text, kinds[path.uid]) is not None for path in paths)
        note = f"{self.paths:,} paths, parsed {100 * self.parsed / self.paths:.0f} %"
        bar.advance(len(group), amount=sum(path.tokens for path in paths), note=note)
