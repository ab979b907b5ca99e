"""What a person sets of a training: steps, batch shape, what is learnt, and the mesh."""

import dataclasses
import math
from typing import Literal

from lmsi_jax.config.architecture import MATRICES
from lmsi_jax.errors import LmsiError, check_ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Which matrices get adapters.

    Attributes:
      rank: inner width of the adapters.
      alpha: their product is scaled by alpha / rank.
      targets: of query, key, value, attention_out, gate, up and down, in every layer.
      seed: draws the first factors.
      peft: also write them for Hugging Face's PEFT, see `training.peft`.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("query", "value")
    seed: int = 0
    peft: bool = False

    def __post_init__(self) -> None:
        known = bool(self.targets) and set(self.targets) <= set(MATRICES)
        ranges = {
            "rank": (self.rank >= 1, "1 or more"),
            "alpha": (self.alpha > 0, "a number above 0"),
            "targets": (known, f"one or more of {', '.join(MATRICES)}"),
            "seed": (0 <= self.seed < 2**31, "a number from 0 to 2147483647"),
        }
        check_ranges(self, ranges)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """What is optimised at each target token y; Z is the sum of exp(logits), q the model's softmax.

    (1 - a) * smoothed cross entropy + a * divergence from the teacher + z_loss * log(Z)**2.

    Attributes:
      z_loss: coefficient of log(Z)**2, as in T5X; 1e-4 is usual.
      label_smoothing: s. The target is 1 - s at y and s / (V - 1) at each of the V - 1 others, as
        in T5X.
      smoothing_constant: subtract the target's entropy, as T5X does: the least loss is then 0. The
        gradient is the same.
      distillation: "sequence" learns from the teacher's text alone (as LMSI does), "top_k"
        also from its most probable tokens, stored with the rows, "model" from one in memory.
      distillation_weight: a, the share of the divergence in "top_k" and "model". A token of which
        nothing is stored keeps a = 0.
      temperature: of teacher and student within the divergence.
      top_k: "top_k" only: how many tokens are stored at each place.
      rest: "top_k" only: the tokens that are not stored are one "bucket", or are left out: "drop"
        scales both distributions to the stored ones.

    Raises:
      LmsiError: a value out of range, or a temperature where only some tokens are known.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0
    smoothing_constant: bool = False
    distillation: Literal["sequence", "top_k", "model"] = "sequence"
    distillation_weight: float = 0.5
    temperature: float = 1.0
    top_k: int = 8
    rest: Literal["bucket", "drop"] = "bucket"

    def __post_init__(self) -> None:
        forms, rests = ("sequence", "top_k", "model"), ("bucket", "drop")
        ranges = {
            "z_loss": (0 <= self.z_loss < math.inf, "0 or more"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "0 or more, below 1"),
            "distillation": (self.distillation in forms, f"one of {', '.join(forms)}"),
            "distillation_weight": (0 <= self.distillation_weight <= 1, "a share, 0 to 1"),
            "temperature": (0 < self.temperature < math.inf, "a number above 0"),
            "top_k": (self.top_k >= 1, "1 or more"),
            "rest": (self.rest in rests, "'bucket' or 'drop'"),
        }
        check_ranges(self, ranges)
        if self.distillation == "top_k" and self.rest == "bucket" and self.temperature != 1:
            raise LmsiError(
                f"Loss.temperature = {self.temperature}: how a temperature shares out the tokens "
                "that are not stored is not known; use 1.0, or Loss.rest = 'drop'"
            )

    @property
    def plain(self) -> bool:
        """Whether the optimised loss is the cross entropy."""
        smooth = self.z_loss or self.label_smoothing
        return not smooth and (self.distillation == "sequence" or not self.distillation_weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What updates the parameters.

    Attributes:
      name: "adamw", "adafactor", or "muon" (Jordan et al. 2024: orthogonalised momentum for the
        layers' matrices, AdamW with Nesterov momentum for the rest).
      learning_rate: peak rate; the paper's is 5e-5 for PaLM-540B.
      warmup_steps: linear rise from zero.
      decay: what follows: "constant" (the paper's literal reading), "linear" or "cosine" to zero.
      decay_share: share of the steps, at the end, that "linear" decays over ("cosine" uses all).
      weight_decay: decoupled; not with Adafactor.
      max_grad_norm: largest global gradient norm; 0 does not clip.
      b2: AdamW's second decay.
      muon_learning_rate: "muon" only: the matrices' peak rate; `learning_rate` is then that of the
        rest.
    """

    name: Literal["adamw", "adafactor", "muon"] = "adamw"
    learning_rate: float = 5e-5
    warmup_steps: int = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    decay_share: float = 1.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    b2: float = 0.99
    muon_learning_rate: float = 0.02

    def __post_init__(self) -> None:
        names, decays = ("adamw", "adafactor", "muon"), ("constant", "linear", "cosine")
        rates = ("learning_rate", "muon_learning_rate", "weight_decay")
        ranges = {
            "name": (self.name in names, f"one of {', '.join(names)}"),
            **{name: (0 <= getattr(self, name) < math.inf, "0 or more") for name in rates},
            "warmup_steps": (self.warmup_steps >= 0, "0 or more"),
            "decay": (self.decay in decays, f"one of {', '.join(decays)}"),
            "decay_share": (0 < self.decay_share <= 1, "a share above 0, 1 for all steps"),
            "max_grad_norm": (self.max_grad_norm >= 0, "0 (off) or more"),
            "b2": (0 <= self.b2 < 1, "0 or more, below 1"),
        }
        check_ranges(self, ranges)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference:
    """Which pairs are made, and how they are learnt from.

    Attributes:
      form: "scpo": paths of the most and of the least voted answer, without labels. "spin": a given
        answer against the model's own path (the run has as many as `Mixing.human_examples`).
      beta: how strongly the margin over the reference counts. 0.5 is ScPO's. SPIN's formula leaves
        it open; its published recipe has 0.1.
      likelihood: "scpo" only: how much of the chosen sequence's negative log-probability per token
        is added. The paper has that term; 1.0 is our choice of its size.
      threshold: "scpo" only: tau as a share of the k paths, the least votes of a chosen answer. The
        paper has tau; half of the paths is our choice.

    Raises:
      LmsiError: a value out of range.
    """

    form: Literal["spin", "scpo"] = "scpo"
    beta: float = 0.5
    likelihood: float = 1.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        ranges = {
            "form": (self.form in ("spin", "scpo"), "'spin' or 'scpo'"),
            "beta": (0 < self.beta < math.inf, "a number above 0"),
            "likelihood": (0 <= self.likelihood < math.inf, "0 or more"),
            "threshold": (0 <= self.threshold <= 1, "a share of the paths, 0 to 1"),
        }
        check_ranges(self, ranges)


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
      sequences_per_prefix: packed sequences behind each prefix.
      sequence_length: tokens per packed sequence.
      max_prefix_length: most tokens of a few-shot prompt.
      sequences_at_once: rows that are computed at once on one device, where none share a prompt
        (`prefix_length=0`); 0: about 512 tokens on a CPU, all rows elsewhere. It changes the order
        of sums alone.
      log_every: steps per line of metrics.
      save_every: steps between checkpoints (the last step is always saved).
      human_rate: share of human examples in the mixture, where a run has some.
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
    sequences_per_prefix: int = 8
    sequence_length: int = 256
    max_prefix_length: int = 384
    sequences_at_once: int = 0
    log_every: int = 10
    save_every: int = 1000
    human_rate: float = 0.0
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
        from_one = (
            "steps",
            "microbatches",
            "sequences_per_prefix",
            "sequence_length",
            "log_every",
            "save_every",
        )
        from_zero = ("sequences_at_once", "max_prefix_length", "keep_best", "validation_count")
        ranges = {
            **{name: (getattr(self, name) >= 1, "1 or more") for name in from_one},
            **{name: (getattr(self, name) >= 1, "1 or more devices") for name in ("data", "model")},
            **{name: (getattr(self, name) >= 0, "0 or more") for name in from_zero},
            "compute_dtype": (
                self.compute_dtype in ("float32", "bfloat16"),
                "'float32' or 'bfloat16'",
            ),
            "human_rate": (0 <= self.human_rate <= 1, "a share, 0 to 1"),
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
        if self.sequences_per_prefix % self.data:
            raise LmsiError(
                f"Training.sequences_per_prefix = {self.sequences_per_prefix} do not divide among "
                f"Training.data = {self.data}; "
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
