"""Register the settings with gin, here and nowhere else, and build runs and studies from it."""

import gin

from lmsi_jax import config
from lmsi_jax.config.run import Run
from lmsi_jax.config.study_plan import Study

CLASSES: tuple[type, ...] = (
    *(config.Run, config.Questions, config.Augmentation, config.ModelConfig),
    *(config.LinearScaling, config.Llama3Scaling, config.YarnScaling),
    *(config.Decoding, config.Sampling, config.Voting, config.Mixing),
    *(config.MinConfidence, config.Cap, config.AnswerEntropy, config.DistinctReasoning),
    *(config.DistributionShift, config.ImportanceWeights, config.SelfRating, config.ExternalScore),
    *(config.InstructionFollowing, config.Difficulty),
    *(config.Training, config.Optimizer, config.Lora, config.Loss, config.Preference),
    *(config.Evaluation, config.CollapseMonitor, config.Pretraining, config.Distillation),
    *(config.Study, config.Variant),
)
"""Every class that gin can configure."""

# Once: importing this module again changes nothing.
_CONFIGURABLE = {cls.__name__: gin.external_configurable(cls) for cls in CLASSES}


def load_study() -> Study:
    """Builds the study that the parsed gin files and bindings describe."""
    return _CONFIGURABLE["Study"]()


def load_run() -> Run:
    """Builds the run that the parsed gin files and bindings describe."""
    return _CONFIGURABLE["Run"]()
