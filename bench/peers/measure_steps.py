"""Measures a training system: command line, batches, clocks and JSON shared by all."""

import argparse
import dataclasses
from collections.abc import Callable

import numpy as np

from bench.peers.measure import Described, basic_parser, clocked, rates, report, surroundings
from bench.steps import STEPS, Steps, batch

_WARM_UP = 2  # the first step compiles; some systems compile the second once more


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready(Described):
    """A system with its model and optimiser loaded, ready to train.

    Attributes:
      step: takes token ids [rows, length], makes one optimiser step and returns the mean loss in
        nats over all tokens but the first of each row, before the step. It must return only when
        the parameters are updated.
      same_weights: whether it started from bench.peers.llama_weights, so that its losses must be
        those of the others that did.
    """

    step: Callable[[np.ndarray], float]
    same_weights: bool


Prepare = Callable[[Steps, argparse.Namespace], Ready]


def parser(description: str | None, microbatches: int) -> argparse.ArgumentParser:
    """Returns the parser of all systems' flags; `microbatches` is the default of this one."""
    made = basic_parser(description, STEPS, repeats=5)
    made.add_argument(
        "--microbatches",
        type=int,
        default=microbatches,
        help="parts that a batch is cut into, whose gradients are summed before the step; at most "
        f"one per row (default: {microbatches})",
    )
    return made


def microbatches(steps: Steps, options: argparse.Namespace) -> int:
    """Returns the number of microbatches, at most one per row.

    Raises:
      SystemExit: it does not divide the rows.
    """
    count = min(options.microbatches, steps.rows)
    if count < 1 or steps.rows % count:
        raise SystemExit(f"--microbatches={count} does not divide the {steps.rows} rows of a batch")
    return count


def main(system: str, prepare: Prepare, flags: argparse.ArgumentParser) -> None:
    """Measures one system's steps on one workload; prints one JSON object as the last line."""
    options = flags.parse_args()
    steps = STEPS[options.workload]
    report(system, steps.name, lambda: measured(steps, prepare(steps, options), options))


def measured(steps: Steps, ready: Ready, options: argparse.Namespace) -> dict[str, object]:
    """Makes a few steps for warming up, then those that are clocked, each on another batch."""
    losses = [ready.step(batch(steps, number)) for number in range(_WARM_UP)]

    def run(number: int) -> None:
        losses.append(ready.step(given[number - 1]))

    given = [batch(steps, _WARM_UP + number) for number in range(options.repeats)]
    figures = {"tokens_per_step": steps.tokens} | rates(steps.tokens, *clocked(run, options))
    figures |= {"losses": losses, "same_weights": ready.same_weights}
    return figures | surroundings(ready)
