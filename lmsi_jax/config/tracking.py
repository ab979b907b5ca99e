"""Set the experiment trackers that a run's metrics are sent to."""

import dataclasses
from typing import Annotated, Literal

from lmsi_jax.config.value_checks import CWD_PATH


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorBoard:
    """Writes TensorBoard's event files; TensorFlow is not needed for it."""

    folder: Annotated[str, CWD_PATH] = ""
    """Folder of the event files, local or gs://; "" for OUTPUT_DIR/tensorboard."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonLines:
    """Writes one JSON object per line, for pandas and scripts."""

    file: Annotated[str, CWD_PATH] = ""
    """The file, local or gs://; "" for OUTPUT_DIR/tracker.jsonl."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WandB:
    """Logs to Weights & Biases; offline by default, and `wandb sync FOLDER` uploads it later."""

    project: str = "lmsi"
    """Project of the run."""
    entity: str = ""
    """User or team; "" for the account's default."""
    mode: Literal["offline", "online"] = "offline"
    """"online" sends metrics over the network while the run goes on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLflow:
    """Logs to MLflow; to a local store by default, which `mlflow ui` shows."""

    tracking_uri: str = ""
    """Address of the store or server; "" for the SQLite file OUTPUT_DIR/mlflow.db."""
    experiment: str = "lmsi"
    """Experiment of the run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trackio:
    """Logs to trackio; to its local database by default, which `trackio show` shows."""

    project: str = "lmsi"
    """Project of the run."""
    space_id: str = ""
    """Hugging Face Space, owner/name, that gets the metrics over the network; "" for none."""


Tracker = TensorBoard | JsonLines | WandB | MLflow | Trackio
"""One of the trackers of `Run.trackers`."""
TRACKERS: tuple[type, ...] = (TensorBoard, JsonLines, WandB, MLflow, Trackio)
"""All trackers, in the reference's order."""
