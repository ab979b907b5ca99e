"""All user settings, as frozen dataclasses that gin binds by class and field.

The settings need no package beside the standard library. docs/configuration.md lists them all.
"""

from lmsi_jax.config.model_config import (
    MATRICES,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ModelConfig,
    RopeScaling,
    YarnScaling,
)
from lmsi_jax.config.row_filters import (
    AnswerEntropy,
    Cap,
    Difficulty,
    DistinctReasoning,
    DistributionShift,
    ExternalScore,
    Filter,
    ImportanceWeights,
    InstructionFollowing,
    MinConfidence,
    SelfRating,
)
from lmsi_jax.config.run import Run, Schedule, Study, Variant
from lmsi_jax.config.sampling import Chat, Decoding, Sampling, Truncation, Voting
from lmsi_jax.config.steps import (
    Augmentation,
    CollapseMonitor,
    Distillation,
    Evaluation,
    FileTask,
    Mixing,
    Pretraining,
    Questions,
)
from lmsi_jax.config.tracking import JsonLines, MLflow, TensorBoard, Tracker, Trackio, WandB
from lmsi_jax.config.training_config import Lora, Loss, Optimizer, Preference, Training

__all__ = [
    "MATRICES",
    "AnswerEntropy",
    "Augmentation",
    "Cap",
    "Chat",
    "CollapseMonitor",
    "Decoding",
    "Difficulty",
    "DistinctReasoning",
    "Distillation",
    "DistributionShift",
    "Evaluation",
    "ExternalScore",
    "FileTask",
    "Filter",
    "Truncation",
    "ImportanceWeights",
    "InstructionFollowing",
    "JsonLines",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "Lora",
    "Loss",
    "MLflow",
    "MinConfidence",
    "Mixing",
    "ModelConfig",
    "Optimizer",
    "Preference",
    "Pretraining",
    "Questions",
    "RopeScaling",
    "Run",
    "Sampling",
    "Schedule",
    "SelfRating",
    "Study",
    "TensorBoard",
    "Tracker",
    "Trackio",
    "Training",
    "Variant",
    "Voting",
    "WandB",
    "YarnScaling",
]
