"""Evaluation: a round's model on the test questions, for each prompting."""

import dataclasses
import functools
from typing import Any, cast

from lmsi_jax.decoding.engine import Engine
from lmsi_jax.decoding.sampling import Sampling
from lmsi_jax.evaluation.evaluate import TaskScore, score
from lmsi_jax.files import read_json, write_json
from lmsi_jax.progress import Progress
from lmsi_jax.prompts import Prompting
from lmsi_jax.records import Question
from lmsi_jax.stages.context import Context
from lmsi_jax.stages.sample import PathCounter, read_paths, sample_task
from lmsi_jax.store import ShardStore

_SCORES = "scores.json"
# "The answer is ..." and its stop; a standard prompt asks for nothing else.
_DIRECT_TOKENS = 32


def evaluate(context: Context, round_index: int, inputs: dict[str, str]) -> str:
    """Evaluates the model that a round ended with; returns the stage's fingerprint."""
    run = context.run
    evaluation = dataclasses.asdict(run.evaluation)
    del evaluation["temperature" if round_index else "temperature_after"]  # the other one's
    config = {
        "Evaluation": evaluation,
        "Run": {"seed": run.seed, "lanes": run.lanes},
        "Sampling": {"max_new_tokens": run.sampling.max_new_tokens, "stop": run.sampling.stop},
    }
    stage = context.stage(round_index, "eval", config, inputs)
    if context.done(stage):
        return stage.fingerprint
    store = ShardStore(stage.directory)
    engine = context.engine(round_index)
    questions = context.load_questions("test")
    jobs = [(name, prompting) for name in questions for prompting in run.evaluation.promptings]
    total = sum(len(_asked(context, questions[name], prompting)) for name, prompting in jobs)
    counter = PathCounter()
    label = "base model" if round_index == 0 else f"round {round_index}"
    with Progress(f"{label}: evaluation", total, unit="questions", rate_unit="tokens") as bar:
        scores = [
            _one(context, round_index, engine, store, questions[name], prompting, counter, bar)
            for name, prompting in jobs
        ]
    write_json(stage.directory / _SCORES, [dataclasses.asdict(one) for one in scores])
    stage.finish()
    return stage.fingerprint


def read_scores(context: Context, round_index: int) -> list[dict[str, Any]]:
    """Reads the scores of a round's evaluation."""
    return read_json(context.folder(round_index, "eval") / _SCORES)


def _asked(context: Context, questions: list[Question], prompting: str) -> list[Question]:
    votes = prompting == "self_consistency"
    return questions[: context.run.evaluation.vote_count] if votes else questions


def _sampling(context: Context, round_index: int, prompting: str) -> Sampling:
    evaluation, sampling = context.run.evaluation, context.run.sampling
    if prompting == "self_consistency":
        after = evaluation.temperature_after if round_index else evaluation.temperature
        # Accuracy is of the vote on all paths; the report says what early stop would do to it.
        return dataclasses.replace(
            sampling, paths=evaluation.paths, temperature=after, early_stop=None
        )
    tokens = sampling.max_new_tokens
    if prompting in ("standard", "zero_shot_direct"):
        tokens = min(tokens, _DIRECT_TOKENS)
    return dataclasses.replace(
        sampling, paths=1, temperature=0.0, max_new_tokens=tokens, early_stop=None
    )


def _one(
    context: Context,
    round_index: int,
    engine: Engine,
    store: ShardStore,
    questions: list[Question],
    prompting: str,
    counter: PathCounter,
    bar: Progress,
) -> TaskScore:
    """Evaluates one task under one prompting."""
    from lmsi_jax.tasks import registry

    task = questions[0].task
    asked = _asked(context, questions, prompting)
    sampling = _sampling(context, round_index, prompting)
    name = f"{task}-{prompting}"
    sample_task(
        engine,
        asked,
        registry.get(task).exemplars(),
        "cot" if prompting == "self_consistency" else cast(Prompting, prompting),
        sampling,
        store,
        name,
        noise=(context.run.seed, round_index),
        watch=functools.partial(counter.show, bar),
    )
    return score(asked, read_paths(store, name), prompting, sampling.temperature)
