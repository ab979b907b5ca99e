"""Register the settings with gin, here and nowhere else, and build runs and studies from it."""

import os

import gin

from lmsi_jax import config
from lmsi_jax.config import gin_errors, gin_loader
from lmsi_jax.config.row_filters import FILTERS
from lmsi_jax.config.run import Run, Study
from lmsi_jax.config.tracking import TRACKERS
from lmsi_jax.errors import LmsiError

CLASSES: tuple[type, ...] = (
    *(config.Run, config.Questions, config.FileTask, config.Augmentation, config.ModelConfig),
    *(config.LinearScaling, config.Llama3Scaling, config.YarnScaling),
    config.LongRopeScaling,
    *(config.Chat, config.Decoding, config.Sampling, config.Voting, config.Mixing),
    *FILTERS,
    *(config.Training, config.Optimizer, config.Lora, config.Loss, config.Preference),
    *(config.Evaluation, config.CollapseMonitor, config.Pretraining, config.Distillation),
    *TRACKERS,
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


def load_run_of(
    checkpoint: str | os.PathLike[str], folder: str | None = None, *, allow_imports: bool = False
) -> Run:
    """Builds the run that a checkpoint belongs to; gin's state is that run's afterwards.

    Args:
      checkpoint: a folder; the nearest config.gin or model.gin in it or above it is read.
      folder: the folder to look in instead.
      allow_imports: see `gin_loader.GinArgs`.

    Raises:
      LmsiError: there is no such file, or it imports modules.
    """
    from etils import epath

    start = epath.Path(checkpoint).resolve()
    candidates = (
        place / name
        for place in ([epath.Path(folder)] if folder else [start, *start.parents])
        for name in ("config.gin", "model.gin")
    )
    file = next((candidate for candidate in candidates if candidate.exists()), None)
    if file is None:
        raise LmsiError(
            f"no config.gin and no model.gin {'in' if folder else 'above'} {folder or checkpoint}, "
            "so the model's shape is not known; name the run's folder with --run=DIR, or load the "
            "folder of an imported model or of a run"
        )
    out = gin_loader.Binding(name="Run.output_dir", value=repr(str(file.parent)))
    gin_loader.load(str(file), gin_loader.GinArgs(bindings=(out,), allow_imports=allow_imports))
    with gin_errors.readable_calls():
        return load_run()
