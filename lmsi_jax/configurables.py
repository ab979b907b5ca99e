"""What gin can set: the frozen configuration of a run, registered here and nowhere else."""

import gin

from lmsi_jax.decoding.layout import Decoding
from lmsi_jax.decoding.sampling import Sampling
from lmsi_jax.generation.settings import Generation
from lmsi_jax.models.config import ModelConfig
from lmsi_jax.models.rope import LinearScaling, Llama3Scaling, YarnScaling
from lmsi_jax.run import Run
from lmsi_jax.selection.confidence import AnswerEntropy, Cap, MinConfidence
from lmsi_jax.selection.difficulty import Difficulty
from lmsi_jax.selection.distinct import DistinctReasoning
from lmsi_jax.selection.importance import DistributionShift, ImportanceWeights
from lmsi_jax.selection.ranking import InstructionFollowing, Ranked, SelfRating
from lmsi_jax.settings import Distillation, Evaluation, Mixing, Pretraining, Questions
from lmsi_jax.studies.settings import Study, Variant
from lmsi_jax.training.lora import Lora
from lmsi_jax.training.losses import Loss
from lmsi_jax.training.optimizers import Optimizer
from lmsi_jax.training.preferences import Preference
from lmsi_jax.training.settings import Training
from lmsi_jax.voting import Voting
from lmsi_jax.watch import Watch

_CLASSES = (
    *(Run, Questions, Generation, ModelConfig, Decoding, Sampling, Voting, Mixing),
    *(LinearScaling, Llama3Scaling, YarnScaling),
    *(MinConfidence, Cap, AnswerEntropy, DistinctReasoning, DistributionShift, ImportanceWeights),
    *(SelfRating, Ranked, InstructionFollowing, Difficulty),
    *(Training, Optimizer, Lora, Loss, Preference),
    *(Evaluation, Watch, Pretraining, Distillation),
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
