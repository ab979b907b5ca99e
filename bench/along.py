"""Measures if a round stopped halfway: python -m bench.along runs/quickstart 0.75 1 1.5 2

Answers the test questions greedily with base + a * (trained - base), for each a: 0 is the base, 1
the round's model, and beyond 1 the weights continue in the same direction. Prints a JSON object
for each a: the percentage of each trained task's questions that are answered right, and of careful
samples (`bench/care.py`). A round that ends where the accuracy still rises steeply with a turns
small differences of training, such as the last bits of another machine, into points.
"""

import dataclasses
import json
import pathlib
import statistics
import sys

import jax

import lmsi_jax
from bench.care import is_careful, percent
from lmsi_jax.config import Decoding, Sampling
from lmsi_jax.evaluation import accuracy

TASKS = ("purchases", "legs", "choices", "compare", "claims")
_GREEDY = Sampling(num_samples=1, temperature=0.0, max_new_tokens=144)


def task_figures(model: lmsi_jax.Model, name: str) -> tuple[float, float | None]:
    """Returns accuracy and careful share, in percent, on the quick start's test questions."""
    task = lmsi_jax.task(name)
    questions = task.questions("test", "hard", count=200, seed=0)
    engine = lmsi_jax.engine(model, Decoding(slots=256))
    samples = lmsi_jax.sample(engine, questions, task.exemplars(), sampling=_GREEDY)
    score = accuracy.score(questions, samples, "cot", 0.0)
    return 100 * score.accuracy, percent([is_careful(s.text) for (s,) in samples.values()])


def main() -> None:
    """Prints a line for each position."""
    base = lmsi_jax.load("embedded")
    trained = lmsi_jax.load(pathlib.Path(sys.argv[1]) / "round_1" / "train")
    for position in map(float, sys.argv[2:]):

        def between(start: jax.Array, end: jax.Array, position: float = position) -> jax.Array:
            return start + position * (end - start)

        params = jax.tree.map(between, base.params, trained.params)
        model = dataclasses.replace(base, params=params)
        figures = {name: task_figures(model, name) for name in TASKS}
        row = {
            "a": position,
            "right": {name: right for name, (right, _) in figures.items()},
            "careful": {name: careful for name, (_, careful) in figures.items()},
            "mean_right": statistics.fmean(right for right, _ in figures.values()),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
