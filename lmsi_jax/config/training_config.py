"""Set training: steps, batch shape, optimizer, loss, adapters, preference pairs, and the mesh."""

import dataclasses
from typing import Annotated, Literal

from lmsi_jax.config.model_config import MATRICES
from lmsi_jax.config.value_checks import (
    SEED,
    Range,
    above,
    at_least,
    below_one,
    check_fields,
    fraction,
    positive_fraction,
    refuse,
)
from lmsi_jax.errors import LmsiError

_PROBABILITY = Range(lambda value: 0 < value < 1, "a probability above 0 and below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters, trained in place of the parameters (LoRA, Hu et al. 2021)."""

    rank: Annotated[int, at_least(1)] = 8
    """Inner width of the adapters."""
    alpha: Annotated[float, above(0)] = 16.0
    """The adapters' product is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("query", "value")
    """Matrices with adapters, in every layer: of query, key, value, attention_out, gate, up and
    down."""
    seed: Annotated[int, SEED] = 0
    """Fixes the initial values of the first factors; the second ones start at zero."""
    peft: bool = False
    """Also write the adapters in the format of Hugging Face's PEFT beside each checkpoint."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.targets or not set(self.targets) <= set(MATRICES):
            refuse(self, "targets", f"one or more of {', '.join(MATRICES)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """Loss of each target token y; Z is the sum of exp(logits), q the model's softmax.

    (1 - a) * smoothed cross entropy + a * divergence from the teacher + z_loss * log(Z)**2.
    """

    z_loss: Annotated[float, at_least(0)] = 0.0
    """Coefficient of log(Z)**2, as in T5X; 1e-4 is usual."""
    label_smoothing: Annotated[float, below_one()] = 0.0
    """s: the target is 1 - s at y and s / (V - 1) at each of the V - 1 other tokens, as in T5X."""
    smoothing_constant: bool = False
    """Subtract the target's entropy, as T5X does, so that the smallest loss is 0. Gradients do not
    change."""
    distillation: Literal["sequence", "top_k", "model"] = "sequence"
    """Source of the teacher's signal: "sequence" learns from its text alone (LMSI), "top_k" also
    from its most probable tokens, stored with the examples, "model" from a teacher in memory."""
    distillation_weight: Annotated[float, fraction()] = 0.5
    """a: weight of the divergence in "top_k" and "model". A token with no stored probabilities has
    a = 0."""
    distillation_until: Annotated[int | None, at_least(1, unit="steps")] = None
    """Steps with the divergence; later ones have a = 0 and do not run the teacher (SALT, Rawat et
    al. 2024). None: all steps."""
    temperature: Annotated[float, at_least(1e-6)] = 1.0
    """Temperature of teacher and student within the divergence."""
    top_k: Annotated[int, at_least(1, unit="tokens")] = 8
    """With "top_k": tokens stored at each position."""
    rest: Literal["bucket", "drop"] = "bucket"
    """With "top_k": treat the tokens that are not stored as one "bucket", or "drop" them and
    rescale both distributions to the stored ones."""

    negatives: Literal["refuse", "unlikelihood", "advantage"] = "refuse"
    """Loss of a row with a negative weight, times its size, in place of the rest: "unlikelihood" is
    -log(1 - q(y)) (Welleck et al. 2020); "advantage" is log q(y), as for an advantage of -1, no
    lower than log(`least_probability`) and without a gradient there. "refuse" takes no such rows.
    """
    least_probability: Annotated[float, _PROBABILITY] = 0.01
    """With "advantage": tokens that are less probable than this are punished no more."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.negatives != "refuse" and self.distillation != "sequence":
            raise LmsiError(
                f"Loss.negatives = {self.negatives!r} learns from the model's own samples; set "
                "Loss.distillation = 'sequence', or Loss.negatives = 'refuse'"
            )
        if self.distillation_until is not None and self.distillation == "sequence":
            raise LmsiError(
                "Loss.distillation_until ends the divergence from a teacher, and 'sequence' has "
                "none; set Loss.distillation to 'model' or 'top_k'"
            )
        if self.distillation == "top_k" and self.rest == "bucket" and self.temperature != 1:
            raise LmsiError(
                f"Loss.temperature = {self.temperature}: how a temperature divides the mass of the "
                "tokens that are not stored is unknown; use 1.0, or Loss.rest = 'drop'"
            )

    @property
    def plain(self) -> bool:
        """If the loss is plain cross entropy."""
        smooth = self.z_loss or self.label_smoothing or self.negatives != "refuse"
        return not smooth and (self.distillation == "sequence" or not self.distillation_weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Optimizer and learning-rate schedule."""

    name: Literal["adamw", "adafactor", "rmsprop", "muon"] = "adamw"
    """Update rule. "rmsprop" is that of SPIN's recipe. "muon" (Jordan et al. 2024) uses
    orthogonalized momentum for the layers' matrices and AdamW with Nesterov momentum for all other
    parameters."""
    learning_rate: Annotated[float, at_least(0)] = 5e-5
    """Peak rate. The LMSI paper uses 5e-5 for PaLM-540B."""
    warmup_steps: Annotated[int, at_least(0, unit="steps")] = 0
    """Steps of a linear rise from zero."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule after the warmup: "constant" (the LMSI paper), or a decay to zero."""
    decay_share: Annotated[float, positive_fraction("1 for all steps")] = 1.0
    """Share of the steps, at the end, over which "linear" decays; "cosine" uses all."""
    weight_decay: Annotated[float, at_least(0)] = 0.0
    """Decoupled weight decay; not available with "adafactor" and "rmsprop"."""
    max_grad_norm: Annotated[float, at_least(0, note="off")] = 1.0
    """Gradients with a larger global norm are scaled down to it."""
    b2: Annotated[float, below_one()] = 0.99
    """Decay of the second moment of "adamw", "rmsprop" and "muon"."""
    muon_learning_rate: Annotated[float, at_least(0)] = 0.02
    """With "muon": peak rate of the layers' matrices; `learning_rate` is then that of the rest."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.weight_decay and self.name in ("adafactor", "rmsprop"):
            raise LmsiError(
                f"Optimizer.weight_decay = {self.weight_decay} has no effect with {self.name!r}; "
                "set it to 0, or use 'adamw'"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference:
    """Preference pairs: which ones are made, and how the model learns from them."""

    form: Literal["spin", "scpo"] = "scpo"
    """Kind of pairs. "scpo" pairs samples of the most and the least voted answer, without labels
    (Prasad et al. 2024). "spin" pairs a human solution with the model's own sample (Chen et al.
    2024); a task has `Mixing.human_examples` of them."""
    beta: Annotated[float, above(0)] = 0.5
    """Scale of the margin over the reference model. ScPO uses 0.5. SPIN's paper leaves it open; its
    published recipe has 0.1."""
    likelihood: Annotated[float, at_least(0, note="off")] = 1.0
    """With "scpo": coefficient of the chosen sequence's negative log-probability per token. The
    paper has this term; its size, 1.0, is our choice."""
    threshold: Annotated[float, fraction()] = 0.5
    """With "scpo": smallest share of a question's samples that a chosen answer needs. The paper
    calls it tau; half of the samples is our choice."""
    last_pairs: bool = True
    """With "spin": from round 2 on, also train on the pairs that the round before made, as the
    paper's experiments do."""

    def __post_init__(self) -> None:
        check_fields(self)


VALIDATION = "validation_loss"
"""Name of the loss on held-out examples in metrics.jsonl and in `Training.best_metric`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Fine-tuning: steps, batch shape, checkpoints, precision, and the mesh of devices.

    A step trains on `microbatches` prefixes; after each prefix (a few-shot prompt that its
    sequences share) there are `sequences_per_prefix` packed sequences of `sequence_length` tokens.
    """

    steps: Annotated[int, at_least(1, unit="steps")] = 10_000
    """Optimizer steps."""
    optimizer: Optimizer = Optimizer()
    """Optimizer and learning-rate schedule."""
    loss: Loss = Loss()
    """Loss of the target tokens."""
    preference: Preference | None = None
    """Learn from pairs instead of `loss`, which must then keep its defaults; None learns from
    single examples."""
    microbatches: Annotated[int, at_least(1, unit="prefixes")] = 4
    """Prefixes per step; the gradient is summed over them."""
    sequences_per_prefix: Annotated[int, at_least(1, unit="sequences")] = 8
    """Packed sequences after each prefix, a multiple of `data`."""
    sequence_length: Annotated[int, at_least(1, unit="tokens")] = 256
    """Length of a packed sequence. Longer examples are left out."""
    max_prefix_length: Annotated[int, at_least(0, unit="tokens")] = 384
    """Longest few-shot prompt; 0 packs prompts with their examples, so that none are shared."""
    sequences_at_once: Annotated[int, at_least(0, unit="sequences", note="automatic")] = 0
    """Sequences that a device computes at once if none share a prompt (`max_prefix_length = 0`); 0
    means about 512 tokens on a CPU and all of them elsewhere. Only the order of sums depends on
    it."""
    log_every: Annotated[int, at_least(1, unit="steps")] = 10
    """Steps between two lines of metrics."""
    save_every: Annotated[int, at_least(1, unit="steps")] = 1000
    """Steps between checkpoints; the last step is always saved."""
    human_rate: Annotated[float, fraction()] = 0.0
    """Share of human-written examples in the mixture, if the run has any
    (`Mixing.human_examples`)."""
    task_rates: tuple[tuple[str, float], ...] = ()
    """(task, rate) pairs: how often examples of a task are drawn within their source; tasks that
    are not named are left out. By default all examples are drawn equally often."""
    keep: Annotated[int | None, at_least(1, unit="checkpoints")] = 1
    """Newest checkpoints to keep; None keeps all."""
    keep_best: Annotated[int, at_least(0, unit="checkpoints")] = 0
    """Best checkpoints to keep in addition."""
    best_metric: str = "loss"
    """Metric of metrics.jsonl that ranks the checkpoints."""
    best_mode: Literal["min", "max"] = "min"
    """Direction in which `best_metric` is better."""
    deadline_seconds: Annotated[float, above(0, unit="seconds")] = 25.0
    """After SIGTERM the current step is finished and saved; if that takes longer than this, the
    process exits with the last complete checkpoint."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and products. Parameters, gradient sums and optimizer state are always
    float32."""
    lora: Lora | None = None
    """Adapters to train instead of the parameters; None trains all parameters."""
    validation_count: Annotated[int, at_least(0, unit="examples")] = 0
    """Examples to hold out of training. Their loss is measured with every checkpoint, as
    "validation_loss" in metrics.jsonl; see `lmsi_jax.training.scoring`."""
    data: Annotated[int, at_least(1, unit="devices")] = 1
    """Size of the mesh's "data" axis, over which sequences are split. If one process has too few
    devices, the mesh spans all processes and they train together."""
    model: Annotated[int, at_least(1, unit="devices")] = 1
    """Size of the mesh's "model" axis, over which heads, MLP and vocabulary are split."""
    fsdp: bool = False
    """Also shard parameters and optimizer state over the "data" axis."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not all(rate >= 0 for _, rate in self.task_rates):
            refuse(self, "task_rates", "rates of 0 or more")
        if self.keep_best and self.best_metric == VALIDATION and not self.validation_count:
            raise LmsiError(
                f"Training.best_metric = {VALIDATION!r} needs held-out examples; set "
                "Training.validation_count"
            )
        if self.sequences_per_prefix % self.data:
            raise LmsiError(
                f"Training.sequences_per_prefix = {self.sequences_per_prefix} is not a multiple of "
                f"Training.data = {self.data}; make it one"
            )
        if self.preference is not None:
            self.check_nothing_held_out("training on pairs")
            if self.loss != Loss():
                raise LmsiError(
                    "Training.preference takes the place of Training.loss: bind one of the two"
                )

    def check_nothing_held_out(self, activity: str) -> None:
        """Raises LmsiError if examples would be held out of training that cannot spare any."""
        if self.validation_count:
            raise LmsiError(f"{activity} holds nothing out; set Training.validation_count to 0")
