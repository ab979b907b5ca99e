"""What gin can set: the frozen configuration of a run, registered here and nowhere else."""

import gin

from lmsi_jax.config.architecture import LinearScaling, Llama3Scaling, ModelConfig, YarnScaling
from lmsi_jax.config.optimization import Lora, Loss, Optimizer, Preference, Training
from lmsi_jax.config.run import Run
from lmsi_jax.config.sampling import Decoding, Sampling
from lmsi_jax.config.stages import (
    Augmentation,
    CollapseMonitor,
    Distillation,
    Evaluation,
    Mixing,
    Pretraining,
    Questions,
    Voting,
)
from lmsi_jax.config.study_plan import Study, Variant
from lmsi_jax.selection.filters import (
    AnswerEntropy,
    Cap,
    Difficulty,
    DistinctReasoning,
    ExternalScore,
    InstructionFollowing,
    MinConfidence,
    SelfRating,
)
from lmsi_jax.selection.importance import DistributionShift, ImportanceWeights

_CLASSES = (
    *(Run, Questions, Augmentation, ModelConfig, Decoding, Sampling, Voting, Mixing),
    *(LinearScaling, Llama3Scaling, YarnScaling),
    *(MinConfidence, Cap, AnswerEntropy, DistinctReasoning, DistributionShift, ImportanceWeights),
    *(SelfRating, ExternalScore, InstructionFollowing, Difficulty),
    *(Training, Optimizer, Lora, Loss, Preference),
    *(Evaluation, CollapseMonitor, Pretraining, Distillation),
    *(Study, Variant),
)


def _register() -> dict[str, type]:
    """Registers each class once; importing this module again changes nothing."""
    return {cls.__name__: gin.external_configurable(cls) for cls in _CLASSES}


_CONFIGURABLE = _register()


def load_study() -> Study:
    """Builds the study that the parsed gin files and bindings describe."""
    return _CONFIGURABLE["Study"]()


def load_run() -> Run:
    """Builds the run that the parsed gin files and bindings describe."""
    return _CONFIGURABLE["Run"]()
