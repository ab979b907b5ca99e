"""What a person sets of a training: steps, batch shape, what is learnt, and the mesh."""

import dataclasses
from typing import Literal

from lmsi_jax.errors import LmsiError, check_ranges
from lmsi_jax.training.lora import Lora
from lmsi_jax.training.losses import Loss
from lmsi_jax.training.optimizers import Optimizer
from lmsi_jax.training.preferences import Preference

VALIDATION = "validation_loss"
"""The loss on what is held out, as metrics.jsonl and `Training.best_metric` call it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is fine-tuned.

    Attributes:
      steps: optimiser steps.
      optimizer: what updates the parameters.
      loss: what is optimised.
      preference: pairs to learn from in place of `loss`, which is then left as it is by default.
      microbatches: prefixes per step; the gradient is summed over them.
      rows: packed sequences behind each prefix.
      length: tokens per packed sequence.
      prefix_length: most tokens of a few-shot prompt.
      rows_at_once: rows that are computed at once on one device, where none share a prompt
        (`prefix_length=0`); 0: about 512 tokens on a CPU, all rows elsewhere. It changes the order
        of sums alone.
      log_every: steps per line of metrics.
      save_every: steps between checkpoints (the last step is always saved).
      strong_rate: share of strong (human) examples in the mixture, where a run has some.
      task_rates: (task, rate) pairs: how often a task's examples are drawn within their source;
        tasks that are not named are left out. By default each example is drawn equally often.
      keep: newest checkpoints to keep; None keeps all.
      keep_best: best checkpoints to keep beside them.
      best_metric: what makes one better, a name in metrics.jsonl; "min" or "max" of it is best.
      deadline_seconds: after SIGTERM the step is finished and saved; if that takes longer than
        this, the process leaves with the last complete checkpoint.
      compute_dtype: type of states and products, "float32" or "bfloat16"; parameters, the sums of
        their gradients and the optimiser's state are float32 in any case.
      lora: adapters to train in place of the parameters; None trains all of them.
      validation_count: examples to hold out, see `lmsi_jax.training.validation`: not trained on,
        their loss is measured with every checkpoint, as "validation_loss" in metrics.jsonl.
      data, model: the mesh of devices: rows over "data"; heads, MLP and vocabulary over "model".
        Where one process has too few, it is made of all processes', and they train together.
      fsdp: whether parameters and optimiser state are spread over "data" too.
    """

    steps: int = 10_000
    optimizer: Optimizer = Optimizer()
    loss: Loss = Loss()
    preference: Preference | None = None
    microbatches: int = 4
    rows: int = 8
    length: int = 256
    prefix_length: int = 384
    rows_at_once: int = 0
    log_every: int = 10
    save_every: int = 1000
    strong_rate: float = 0.0
    task_rates: tuple[tuple[str, float], ...] = ()
    keep: int | None = 1
    keep_best: int = 0
    best_metric: str = "loss"
    best_mode: Literal["min", "max"] = "min"
    deadline_seconds: float = 25.0
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    lora: Lora | None = None
    validation_count: int = 0
    data: int = 1
    model: int = 1
    fsdp: bool = False

    def __post_init__(self) -> None:
        from_one = ("steps", "microbatches", "rows", "length", "log_every", "save_every")
        from_zero = ("rows_at_once", "prefix_length", "keep_best", "validation_count")
        ranges = {
            **{name: (getattr(self, name) >= 1, "1 or more") for name in from_one},
            **{name: (getattr(self, name) >= 1, "1 or more devices") for name in ("data", "model")},
            **{name: (getattr(self, name) >= 0, "0 or more") for name in from_zero},
            "compute_dtype": (
                self.compute_dtype in ("float32", "bfloat16"),
                "'float32' or 'bfloat16'",
            ),
            "strong_rate": (0 <= self.strong_rate <= 1, "a share, 0 to 1"),
            "task_rates": (all(rate >= 0 for _, rate in self.task_rates), "rates of 0 or more"),
            "keep": (self.keep is None or self.keep >= 1, "1 or more, or None for all"),
            "best_mode": (self.best_mode in ("min", "max"), "'min' or 'max'"),
            "deadline_seconds": (self.deadline_seconds > 0, "a number above 0"),
        }
        check_ranges(self, ranges)
        if self.keep_best and self.best_metric == VALIDATION and not self.validation_count:
            raise LmsiError(
                f"Training.best_metric = {VALIDATION!r} wants examples that are held out; set "
                "Training.validation_count"
            )
        if self.rows % self.data:
            raise LmsiError(
                f"Training.rows = {self.rows} do not divide among Training.data = {self.data}; "
                "make rows a multiple of it"
            )
        self._check_preference()

    def _check_preference(self) -> None:
        if self.preference is None:
            return
        self.check_nothing_held_out("training on pairs")
        if self.loss != Loss():
            raise LmsiError(
                "Training.preference takes the place of Training.loss: bind one of the two"
            )

    def check_nothing_held_out(self, what: str) -> None:
        """Raises LmsiError where examples are to be held out of what has none to spare."""
        if self.validation_count:
            raise LmsiError(f"{what} holds nothing out; set Training.validation_count to 0")
