"""The metrics of a run's stages under the names that trackers show; docs/trackers.md lists them.

Each stage is sent when it is finished, the steps of a training as they are logged. Everything is
read from the run's folder, so a tracker that is added later, or missed something, gets it too.
"""

import contextlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lmsi_jax.config.run import parameters
from lmsi_jax.errors import LmsiError
from lmsi_jax.evaluation.collapse import CollapseMetrics
from lmsi_jax.evaluation.statistics import wilson
from lmsi_jax.integrations.trackers import Measurements, RunInfo, Table, Trackers
from lmsi_jax.pipeline.context import Context, Round
from lmsi_jax.pipeline.evaluate import collapse_alarms, read_collapse_metrics, read_scores
from lmsi_jax.pipeline.mix import read_examples, read_funnel, read_pairs
from lmsi_jax.records import Example, ExamplePair, Vote
from lmsi_jax.runtime.store import read_config_text
from lmsi_jax.training.metrics import METRICS, SPEED, Track, read_lines

_STAGES = ("sample", "vote", "mix", "train", "eval", "pretrain")
_TRAININGS = ("train", "pretrain")
_MOST_QUESTIONS = 256  # rows of the image of votes
_PIXELS = 4  # of a sample in it


class RunTracking:
    """Sends what the stages of a run measured to its trackers.

    Args:
      context: the run, in its leading process.

    Raises:
      LmsiError: the package of a tracker is not installed.
    """

    def __init__(self, context: Context):
        run = context.round(0).settings
        self._context = context
        info = RunInfo(name=run.name, folder=context.output, settings=parameters(run))
        self._trackers = Trackers(run.trackers, info)
        self._finished: list[tuple[Round, str]] = []

    def begin(self, round: Round, stage: str, fingerprint: str) -> None:
        """Notes that a stage is measured next; of another stage in its place nothing is kept."""
        if stage not in _STAGES or not self._trackers:
            return
        if self._trackers.is_new(f"{stage}/{round.index}", fingerprint):
            earlier, self._finished = self._finished, []
            for one, name in earlier:
                self._trackers.is_new(f"{name}/{one.index}", one.stage_fingerprint(name))
                self.finished(one, name)

    def finished(self, round: Round, stage: str) -> None:
        """Sends the measurements of a finished stage that a tracker lacks."""
        if stage not in _STAGES or not self._trackers:
            return
        self._finished.append((round, stage))
        if stage in _TRAININGS:
            self._send_training(round, stage)
        else:
            self._trackers.send(stage, round.index, lambda: _MEASURE[stage](round))
        last = "eval" if self._evaluates else "train"
        if stage == last:
            self._trackers.send("monitor", round.index, lambda: _monitor(round))

    def of_training(self, round: Round, stage: str) -> Track:
        """Returns the function that gets the metrics of a training's steps.

        Steps count on from one round to the next.
        """
        more = {"train/round": float(round.index)} if stage == "train" else {}
        return self._trackers.of_training(stage, self._steps_before(round, stage), more)

    def _send_training(self, round: Round, stage: str) -> None:
        """Sends the lines of a finished training, if a tracker lacks the last one."""
        settings = round.settings
        training = settings.pretraining.training if settings.pretraining else settings.training
        if self._trackers.lacks(stage, self._steps_before(round, stage) + training.steps):
            track = self.of_training(round, stage)
            for line in _lines(round, stage):
                track(int(line.pop("step")), line)

    def _steps_before(self, round: Round, stage: str) -> int:
        rounds = range(1, round.index) if stage == "train" else ()
        return sum(self._context.round(one).settings.training.steps for one in rounds)

    def close(self, failed: bool = False) -> None:
        """Ends the trackers' runs."""
        self._trackers.close(failed)

    @property
    def _evaluates(self) -> bool:
        stages = self._context.stages
        return bool(stages & {"eval", "distill"}) and bool(self._context.questions.test)


def _lines(round: Round, stage: str) -> Iterable[dict[str, float]]:
    """Returns the metrics and speeds of a training, one row a step."""
    folder = round.folder(stage)
    speeds = {}
    with contextlib.suppress(LmsiError):  # a damaged file of speeds harms nothing else
        speeds = {line["step"]: line for line in read_lines(folder / SPEED)}
    return [line | speeds.get(line["step"], {}) for line in read_lines(folder / METRICS)]


def _sample(round: Round) -> Measurements:
    samples = [one for rows in round.all_samples().values() for one in rows]
    seconds, tokens = float(round.record("sample")["seconds"]), sum(one.tokens for one in samples)
    scalars = {
        "sample/samples": len(samples),
        "sample/tokens": tokens,
        "sample/tokens_per_sample": _mean([one.tokens for one in samples]),
        "sample/unfinished": _mean([not one.finished for one in samples]),
        "sample/seconds": seconds,
    }
    if seconds > 0:
        scalars["sample/tokens_per_second"] = tokens / seconds
    return Measurements(scalars=scalars)


def _vote(round: Round) -> Measurements:
    by_task = round.votes()
    votes = [vote for rows in by_task.values() for vote in rows]
    total = sum(vote.total for vote in votes)
    scalars = {
        "vote/questions": len(votes),
        "vote/confidence": _mean([vote.confidence for vote in votes]),
        "vote/entropy": _mean([vote.entropy for vote in votes]),
        "vote/parsed": sum(vote.parsed for vote in votes) / max(1, total),
        "vote/kept": sum(len(vote.kept) for vote in votes) / max(1, total),
        "vote/empty": _mean([vote.winner is None for vote in votes]),
        "vote/tied": _mean([bool(vote.tied) for vote in votes]),
    }
    for task, rows in by_task.items():
        scalars[f"vote/confidence/{task}"] = _mean([vote.confidence for vote in rows])
    return Measurements(scalars=scalars, images={"vote/agreement": agreement(votes)})


def agreement(votes: Sequence[Vote]) -> np.ndarray:
    """Returns an image of votes: a line for each question, the surest on top, [height, width, 3].

    From left to right the samples of the winner are blue, those of other answers orange, those
    without an answer white. At most 256 questions, evenly from all.
    """
    ordered = sorted(votes, key=lambda vote: (-vote.confidence, vote.uid))
    chosen = ordered[:: -(-len(ordered) // _MOST_QUESTIONS)] if ordered else []
    width = max((vote.total for vote in chosen), default=1) or 1
    image = np.full((max(1, len(chosen)), width, 3), 255, np.uint8)
    for line, vote in zip(image, chosen, strict=False):
        agreeing = len(vote.kept) if vote.winner is not None else 0
        line[:agreeing] = (0, 114, 178)
        line[agreeing : vote.parsed] = (230, 159, 0)
    return image.repeat(_PIXELS, 0).repeat(_PIXELS, 1)


def _mix(round: Round) -> Measurements:
    examples, pairs = read_examples(round), read_pairs(round)
    own, human = (examples.get(name, []) for name in ("self_generated", "human"))
    rows: list[Example | ExamplePair] = [*own, *human, *pairs]
    scalars: dict[str, float] = {
        "mix/rows": len(rows),
        "mix/self_generated": len(own) + len(pairs),
        "mix/human": len(human),
        "mix/questions": len({row.uid for row in rows}),
    }
    for name in sorted({row.format for row in rows}):
        scalars[f"mix/rows/{name}"] = sum(row.format == name for row in rows)
    filters = tuple(
        (task, one.filter, one.kept, sum(one.dropped.values()))
        for task, steps in read_funnel(round).items()
        for one in steps
    )
    table = Table(columns=("task", "filter", "kept", "dropped"), rows=filters)
    return Measurements(scalars=scalars, tables={"mix/filters": table} if filters else {})


def _eval(round: Round) -> Measurements:
    scores = read_scores(round.context.output, round.index)
    trained = round.context.questions.train
    scalars: dict[str, float] = {}
    rows = []
    shares: dict[tuple[str, str], list[float]] = {}
    for one in scores:
        style, task, n = one["prompt_style"], one["task"], len(one["correct"])
        accuracy = sum(one["correct"]) / max(1, n)
        low, high = wilson(sum(one["correct"]), n)
        scalars[f"eval/accuracy/{style}/{task}"] = accuracy
        scalars[f"eval/parsed/{style}/{task}"] = one["parsed"]
        scalars[f"eval/tokens/{style}/{task}"] = one["mean_tokens"]
        rows.append((task, style, n, accuracy, low, high, one["parsed"]))
        shares.setdefault((style, "in" if task in trained else "out"), []).append(accuracy)
    for (style, domain), values in shares.items():
        scalars[f"eval/accuracy/{style}/mean_{domain}_domain"] = statistics.fmean(values)
    columns = ("task", "prompt_style", "n", "accuracy", "low", "high", "parsed")
    texts = {}
    if not round.index and (config := read_config_text(round.context.output)):
        texts["run/config"] = f"```\n{config}\n```"
    return Measurements(
        scalars=scalars,
        tables={"eval/scores": Table(columns=columns, rows=tuple(rows))},
        texts=texts,
    )


def _monitor(round: Round) -> Measurements:
    scalars: dict[str, float] = {}
    for source, stored in read_collapse_metrics(round).items():
        for name, value in _flat(stored.metrics).items():
            scalars[f"monitor/{source}/{name}"] = value
    words = [text for _, text in collapse_alarms(round.context, round.index)]
    scalars["monitor/alarms"] = len(words)
    texts = {"monitor/alarms_text": "\n".join(f"- {text}" for text in words)} if words else {}
    return Measurements(scalars=scalars, texts=texts)


def _flat(metrics: CollapseMetrics) -> dict[str, float]:
    """Returns the monitor's figures by name; those that are not measured are left out."""
    values: dict[str, Any] = dict(vars(metrics))
    distinct, scored = values.pop("distinct"), values.pop("scored")
    values |= {f"distinct_{n}": value for n, value in enumerate(distinct, 1)}
    if scored is not None:
        values |= {name: getattr(scored, name) for name in ("majority", "passed", "single")}
    return {name: float(value) for name, value in values.items() if value is not None}


_MEASURE = {"sample": _sample, "vote": _vote, "mix": _mix, "eval": _eval}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
