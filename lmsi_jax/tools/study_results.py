"""The runs of a study, and the rows of its table over the seeds whose runs are all finished.

A run is a `Unit`: one variant with one seed. Its outcomes are read from its folder alone. The rows
depend on the study's measure:

    accuracy, rounds, sizes   accuracy before and after, for each variant, on the same questions
    samples                   the vote's accuracy by the number of samples, before and after
    shift                     the share of right rows by distribution shift weight (IWSI, figure 5)

Shares of several tasks are means over tasks, each counting alike. Questions are paired within a
seed; intervals are those of `evaluation.statistics.over_seeds`.
"""

import collections
import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lmsi_jax.config import DistributionShift, ModelConfig, Run, Study, Variant
from lmsi_jax.errors import LmsiError
from lmsi_jax.evaluation.changes import Answered, BaseVotes, describe
from lmsi_jax.evaluation.statistics import Z_95, gain_share, macro_variance, over_seeds
from lmsi_jax.pipeline.context import Context
from lmsi_jax.pipeline.evaluate import read_scores
from lmsi_jax.pipeline.questions import train_answers
from lmsi_jax.pipeline.score import read_scored_rows
from lmsi_jax.runtime.files import read_record, write_record
from lmsi_jax.selection.filters import importances, shift

_MARK = "unit.json"
Row = dict[str, Any]
Load = Callable[[Sequence[str]], Run]
"""Builds the study's run with further bindings."""

EDGES = (1.0, 1.1, 1.3, 1.5, 2.0, math.inf)
"""The paper's bins: [1, 1.1), [1.1, 1.3), ..., [2, inf)."""
_VOTE = "self_consistency"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """An ordinary run: one variant with one seed.

    Attributes:
      variant: the variant.
      seed: the seed; None for a run that serves all seeds.
      folder: its output_dir.
      bindings: gin's, of the variant, the seed and the folder.
    """

    variant: Variant
    seed: int | None
    folder: str
    bindings: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name in the progress lines."""
        return self.variant.title + ("" if self.seed is None else f", seed {self.seed}")

    @property
    def mark(self) -> pathlib.Path:
        """The file that a finished run has."""
        return pathlib.Path(self.folder) / _MARK

    @property
    def finished(self) -> bool:
        """True if the run is finished. It is executed again all the same, which finds changes."""
        return self.mark.exists()

    def finish(self, seconds: float) -> None:
        """Records that the run is finished, and how long its last execution took."""
        if not self.finished:
            write_record(self.mark, {"seconds": round(seconds, 1)})


def units(study: Study) -> list[Unit]:
    """Returns the runs in order: those that serve all seeds, then seed by seed."""
    once = [_unit(study, variant, None) for variant in study.variants if not variant.each_seed]
    return once + [
        _unit(study, variant, seed)
        for seed in study.seeds
        for variant in study.variants
        if variant.each_seed
    ]


def unit_of(study: Study, variant: Variant, seed: int) -> Unit:
    """Returns the run of a variant that serves a seed."""
    return _unit(study, variant, seed if variant.each_seed else None)


def _unit(study: Study, variant: Variant, seed: int | None) -> Unit:
    folder = f"{study.folder}/{variant.name}/{_folder_name(seed)}"
    bindings = [
        text.replace("{study}", study.folder).replace("{seed}", str(seed))
        for text in variant.bindings
    ]
    if seed is not None:
        bindings += [f"Run.seed = {seed}", f"Questions.seed = {seed}"]
    bindings += [f"Run.output_dir = {folder!r}"]
    return Unit(variant=variant, seed=seed, folder=folder, bindings=tuple(bindings))


def _folder_name(seed: int | None) -> str:
    return "once" if seed is None else f"seed{seed}"


def reusable_runs(study: Study, unit: Unit) -> tuple[str, ...]:
    """Returns the folders of the runs of the same seed, of all studies, to share stages with."""
    folders = pathlib.Path(study.output_dir).glob(f"*/*/{_folder_name(unit.seed)}")
    return tuple(sorted(str(path) for path in folders if path != pathlib.Path(unit.folder)))


def expected_seconds(study: Study, remaining: Sequence[Unit]) -> float:
    """Returns the seconds that runs take on two idle cores without the stages of other studies."""
    started = {unit.seed for unit in units(study) if unit.finished}
    fresh = {unit.seed for unit in remaining if unit.seed is not None} - started
    return sum(unit.variant.seconds for unit in remaining) + study.seconds * len(fresh)


def spent_seconds(unit: Unit) -> float:
    """Returns the seconds that a finished run took; 0.0 for an unfinished one."""
    return float(read_record(unit.mark)["seconds"]) if unit.finished else 0.0


Outcomes = dict[str, list[int]]
"""By task: 1 or 0 for each question, in question order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The evaluations of a run.

    Attributes:
      trained: the tasks that it trains on.
      parameters: number of parameters of its model.
      scores: the rows of scores.json by round; 0 is the base.
      gold: True if gold labels chose training rows (`GoldLabels`).
    """

    trained: tuple[str, ...]
    parameters: int
    scores: dict[int, list[dict[str, Any]]]
    gold: bool = False

    @property
    def last(self) -> int:
        """The last evaluated round; stop rules may end a run before the last planned one."""
        return max(self.scores)

    @property
    def prompt_styles(self) -> tuple[str, ...]:
        """The prompt styles that were measured in every round."""
        by_round = [{row["prompt_style"]: None for row in rows} for rows in self.scores.values()]
        return tuple(name for name in by_round[0] if all(name in names for names in by_round))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the base was measured on."""
        return tuple(dict.fromkeys(row["task"] for row in self.scores[0]))

    def outcomes(self, number: int, prompt_style: str, group: str) -> Outcomes:
        """Returns a round's outcomes on the trained tasks ("in"), the others ("out"), or one task.

        For a round that stop rules left out: those of the model that the run ended with.
        """
        return {
            row["task"]: row["correct"]
            for row in self.rows(number, prompt_style)
            if group in (row["task"], "in" if row["task"] in self.trained else "out")
        }

    def rows(self, number: int, prompt_style: str) -> list[dict[str, Any]]:
        """Returns a round's scores in a prompt style."""
        scores = self.scores[min(number, self.last)]
        return [row for row in scores if row["prompt_style"] == prompt_style]


def read(folder: str) -> Evaluated:
    """Reads the evaluations of a finished run.

    Raises:
      LmsiError: a file is missing or damaged.
    """
    root = pathlib.Path(folder)
    questions = read_record(root / "questions" / "stage.json")["config"]["Questions"]
    model = ModelConfig.from_json(read_record(root / "manifest.json")["model"])
    paths = {
        int(path.parent.parent.name.removeprefix("round_")): path
        for path in root.glob("round_*/eval/scores.json")
    }
    return Evaluated(
        trained=tuple(questions["train"]),
        parameters=model.parameter_count,
        gold=any(
            "GoldLabels" in json.dumps(read_record(path)["config"].get("Mixing", {}))
            for path in root.glob("round_*/mix/stage.json")
        ),
        scores={number: read_scores(root, number) for number in sorted(paths)},
    )


def macro(tasks: Mapping[str, Sequence[float]]) -> float:
    """Returns the mean over tasks of their means, each task counting alike."""
    return math.fsum(math.fsum(values) / len(values) for values in tasks.values()) / len(tasks)


def rows(study: Study, seeds: Sequence[int], load: Load) -> list[Row]:
    """Returns the rows of a study's table.

    Args:
      study: the study.
      seeds: those of its seeds whose runs are all finished.
      load: builds a run.
    """
    if study.measure == "samples":
        return sample_rows(study, seeds)
    if study.measure == "shift":
        return shift_rows(study, seeds, load)
    return accuracy_rows(study, seeds)


def accuracy_rows(study: Study, seeds: Sequence[int]) -> list[Row]:
    """Returns a row for each variant, prompt style, and the trained tasks, the others, or a task.

    Args:
      study: its measure is "accuracy", "rounds" (a row for each round) or "sizes".
      seeds: of its seeds.
    """
    runs = {
        variant.name: [read(unit_of(study, variant, seed).folder) for seed in seeds]
        for variant in study.variants
        if variant.shown or variant.name in (study.reference, study.upper_bound)
    }
    table: list[Row] = []
    for variant in study.variants:
        if variant.shown:
            others, bound = (
                None if variant.name == name else runs.get(name)
                for name in (study.reference, study.upper_bound)
            )
            table += _variant_rows(study, variant, runs[variant.name], others, bound)
    return table


def _variant_rows(
    study: Study,
    variant: Variant,
    runs: list[Evaluated],
    reference: list[Evaluated] | None,
    bound: list[Evaluated] | None,
) -> Iterator[Row]:
    last = max(run.last for run in runs)
    paper = dict(variant.paper)
    for prompt_style in runs[0].prompt_styles:
        for domain in ("in", "out", *(runs[0].tasks if study.by_task else ())):
            before = [run.outcomes(0, prompt_style, domain) for run in runs]
            if not before[0]:
                continue
            for number in range(1, last + 1) if study.measure == "rounds" else [last]:
                after = [run.outcomes(number, prompt_style, domain) for run in runs]
                against = None
                if reference is not None and prompt_style in reference[0].prompt_styles:
                    compared = number if study.against == "after" else 0
                    others = [run.outcomes(compared, prompt_style, domain) for run in reference]
                    against = change(others, after)
                reached = None
                if bound is not None and prompt_style in bound[0].prompt_styles:
                    best = [run.outcomes(number, prompt_style, domain) for run in bound]
                    reached = _gain_share(before, after, best)
                yield {
                    "variant": variant.name,
                    "label": variant.title,
                    "parameters": runs[0].parameters,
                    "round": number,
                    "stopped": sum(run.last < number for run in runs),
                    "prompt_style": prompt_style,
                    "domain": domain,
                    "paper": paper.get(prompt_style, "") if domain == "in" else "",
                    "before": _accuracy(before),
                    "after": _accuracy(after),
                    "change": change(before, after),
                    "against": against,
                    "reached": reached,
                    "changes": _changes(runs, number, prompt_style, domain),
                    "gold": any(run.gold for run in runs),
                }


def change(before: Sequence[Outcomes], after: Sequence[Outcomes]) -> Row | None:
    """Returns the mean change over seeds, its 95 % interval, and each seed's change.

    None if a seed has no common task, or other questions after than before.

    Args:
      before, after: of each seed.
    """
    paired = []
    for old, new in zip(before, after, strict=True):
        tasks = [task for task in new if task in old]
        if not tasks or any(len(old[task]) != len(new[task]) for task in tasks):
            return None
        paired.append(
            {task: [b - a for a, b in zip(old[task], new[task], strict=True)] for task in tasks}
        )
    values = [macro(tasks) for tasks in paired]
    mean = over_seeds(values, [macro_variance([*tasks.values()]) for tasks in paired])
    return {**mean._asdict(), "seeds": values}


def _changes(runs: Sequence[Evaluated], number: int, style: str, group: str) -> Row | None:
    """Returns `evaluation.changes.describe` over the questions of all seeds together, as JSON.

    None if a seed's questions differ, before and after.
    """
    pairs, votes = [], []
    for run in runs:
        after = {row["task"]: row for row in run.rows(number, style)}
        of_vote = {row["task"]: row for row in run.rows(0, _VOTE)}
        for row in run.rows(0, style):
            task = row["task"]
            if group in (task, "in" if task in run.trained else "out") and task in after:
                pairs.append((_answered(row), _answered(after[task])))
                right, sure = (
                    of_vote.get(task, {}).get(name) for name in ("right_share", "confidence")
                )
                votes.append(BaseVotes(right, sure) if right and sure else None)
    try:
        return dataclasses.asdict(describe(pairs, votes))
    except ValueError:
        return None


def _answered(row: Mapping[str, Any]) -> Answered:
    return Answered(
        correct=row["correct"],
        tokens=row.get("tokens", ()),
        parsed=row.get("parsed_share", ()),
        marked=row.get("marked_share", ()),
        finished=row.get("finished_share", ()),
    )


def _gain_share(
    before: Sequence[Outcomes], after: Sequence[Outcomes], bound: Sequence[Outcomes]
) -> list[float] | None:
    """Returns the share of the bound's gain and its interval; None if that gain is not clear."""
    try:
        reached = gain_share(before, after, bound)
    except ValueError:  # measured on other questions
        return None
    return list(reached) if reached else None


def _accuracy(outcomes: Sequence[Outcomes]) -> list[float]:
    values = [macro(tasks) for tasks in outcomes]
    return _share(values, [macro_variance([*tasks.values()]) for tasks in outcomes])


def _share(values: Sequence[float], variances: Sequence[float]) -> list[float]:
    """Mean over seeds and its interval, within [0, 1]."""
    mean = over_seeds(values, variances)
    return [mean.difference, max(0.0, mean.low), min(1.0, mean.high)]


def sample_rows(study: Study, seeds: Sequence[int]) -> list[Row]:
    """Returns a row for each variant, number of samples, and the model before or after.

    All samples are drawn once; fewer are subsets of them (`evaluation.accuracy.curve`, unbiased). A
    seed's variance is read off the curves' bootstraps over questions.
    """
    table = []
    for variant in study.variants:
        if not variant.shown:
            continue
        runs = [read(unit_of(study, variant, seed).folder) for seed in seeds]
        for number in (0, max(run.last for run in runs)):
            by_seed = [
                [
                    {point["k"]: point for point in row["curve"]}
                    for row in run.rows(number, _VOTE)
                    if row["task"] in run.trained
                ]
                for run in runs
            ]
            table += [
                {
                    "variant": variant.name,
                    "label": variant.title,
                    "round": number,
                    "samples": k,
                    "accuracy": _majority([[curve[k] for curve in curves] for curves in by_seed]),
                    "paper": dict(variant.paper).get(_VOTE, ""),
                }
                for k in sorted(by_seed[0][0])
            ]
    return table


def _majority(by_seed: Sequence[Sequence[dict[str, float]]]) -> list[float]:
    """Majority@k over seeds, from the points of each seed's tasks."""
    values, variances = [], []
    for points in by_seed:
        errors = ((p["majority_high"] - p["majority_low"]) / (2 * Z_95) for p in points)
        values.append(math.fsum(point["majority"] for point in points) / len(points))
        variances.append(math.fsum(error**2 for error in errors) / len(points) ** 2)
    return _share(values, variances)


class WeightedRow(NamedTuple):
    """A voted row: its question, its DS weight, True if its answer is right."""

    uid: str
    weight: float
    right: bool


def shift_rows(study: Study, seeds: Sequence[int], load: Load) -> list[Row]:
    """Returns a row for each task and bin, of the first variant that is shown."""
    variant = next(variant for variant in study.variants if variant.shown)
    runs = [weighted_rows(load(unit_of(study, variant, seed).bindings)) for seed in seeds]
    return [
        {
            "task": task,
            "bin": bin_name(low, high),
            **right_share([run[task] for run in runs], low, high),
        }
        for task in runs[0]
        for low, high in itertools.pairwise(EDGES)
    ]


def weighted_rows(run: Run) -> dict[str, list[WeightedRow]]:
    """Returns the first round's voted rows with their DS weights, by task.

    Train questions carry no answer; answers are looked up for this count alone.

    Raises:
      LmsiError: the run measures no distribution shift, or a task has no known answers.
    """
    measures = [one for one in run.mixing.selection if isinstance(one, DistributionShift)]
    if not measures:
        raise LmsiError("this study requires @DistributionShift() in Mixing.selection")
    context, by_task = Context(run, frozenset()), {}
    for task, voted in context.round(1).voted().items():
        rows, facts = read_scored_rows(context.round(1), task, voted)
        answers = train_answers(context.questions, task)
        if missing := len({question.uid for question, _, _ in voted} - answers.keys()):
            raise LmsiError(
                f"the answers of {missing} questions of {task!r} are not known, so it is unknown "
                "which rows are right; leave the task out of Questions.train"
            )
        weights = importances(measures[0], rows, facts)
        by_task[task] = [
            WeightedRow(
                rows[i].sample.uid, shift(weight), rows[i].key in answers[rows[i].sample.uid]
            )
            for i, weight in weights.items()
        ]
    return by_task


def bin_name(low: float, high: float) -> str:
    """Returns a bin as the paper writes it: "[1, 1.1)"."""
    end = "\N{INFINITY}" if math.isinf(high) else f"{high:g}"
    return f"[{low:g}, {end})"


def right_share(runs: Sequence[Sequence[WeightedRow]], low: float, high: float) -> Row:
    """Returns a bin's number of rows, and its share of right ones over the seeds that have any."""
    by_seed = [
        [row for row in rows if low <= row.weight < high or row.weight == high == math.inf]
        for rows in runs
    ]
    filled = [rows for rows in by_seed if rows]
    share = None
    if filled:
        values = [sum(row.right for row in rows) / len(rows) for rows in filled]
        share = _share(values, [clustered_variance(rows) for rows in filled])
    return {"rows": sum(map(len, by_seed)), "right": share}


def clustered_variance(rows: Sequence[WeightedRow]) -> float:
    """Returns the variance of the share of right rows if questions are drawn, not rows.

    The ratio estimator's (Cochran 1977, section 6.3): rows of one question are right or wrong
    together.
    """
    share = sum(row.right for row in rows) / len(rows)
    excess: dict[str, float] = collections.defaultdict(float)
    for row in rows:
        excess[row.uid] += row.right - share
    n = len(excess)
    total = math.fsum(value * value for value in excess.values())
    return total * n / max(n - 1, 1) / len(rows) ** 2
