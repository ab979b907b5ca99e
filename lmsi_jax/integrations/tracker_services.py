"""Writers of the tracking services: Weights & Biases, MLflow and trackio.

Their packages come with `pip install 'lmsi_jax[trackers]'`. By default none of them touches the
network: W&B writes its files beside the run, MLflow a local database, trackio its own.
"""

import contextlib
import importlib.util
import io
import os
import pathlib
import tempfile
import time
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from lmsi_jax.config import JsonLines, MLflow, TensorBoard, Tracker, Trackio, WandB
from lmsi_jax.errors import LmsiError
from lmsi_jax.integrations.trackers import RunInfo, Table, Writer, axis, png

_PACKAGES: dict[type, str] = {WandB: "wandb", MLflow: "mlflow", Trackio: "trackio"}


def check_installed(tracker: Tracker) -> None:
    """Checks that a tracker's package can be imported, without importing it.

    Raises:
      LmsiError: it is not installed.
    """
    package = _PACKAGES.get(type(tracker))
    if package is not None and importlib.util.find_spec(package) is None:
        raise LmsiError(
            f"Run.trackers has {type(tracker).__name__}, and {package} is not installed: "
            "pip install 'lmsi_jax[trackers]', or take it out"
        )


def open_service(tracker: Tracker, info: RunInfo, run_id: str, records: int) -> Writer:
    """Opens a service's run.

    Args:
      tracker: its settings.
      info: the run to show.
      run_id: of the service's run to continue; "" for a new one.
      records: how many it has already.

    Raises:
      LmsiError: it needs a local folder, and the run is on a bucket.
    """
    if isinstance(tracker, WandB):
        return _WandBRun(tracker, info, run_id, records)
    if isinstance(tracker, MLflow):
        return _MLflowRun(tracker, info, run_id)
    if isinstance(tracker, Trackio):
        return _TrackioRun(tracker, info, run_id)
    assert isinstance(tracker, TensorBoard | JsonLines)
    raise ValueError(f"{type(tracker).__name__} is no service")


def _local(info: RunInfo, remedy: str) -> str:
    if "://" in os.fspath(info.folder):
        raise LmsiError(f"{info.folder} is on a bucket, and a tracker's files are local; {remedy}")
    return os.path.abspath(info.folder)


class _WandBRun(Writer):
    """A run of Weights & Biases; `train/*` and `pretrain/*` over steps, all else over rounds."""

    def __init__(self, tracker: WandB, info: RunInfo, run_id: str, records: int):
        import wandb

        self._step = records  # W&B's own steps rise through all parts of an offline run
        self._wandb, self._offline = wandb, tracker.mode == "offline"
        self._run = wandb.init(
            project=tracker.project,
            entity=tracker.entity or None,
            name=info.name,
            id=run_id or uuid.uuid4().hex[:8],
            # Offline runs of one id become one run when they are synchronised.
            resume=None if self._offline else "allow",
            mode=tracker.mode,
            dir=_local(info, "take WandB out of Run.trackers, or choose a local Run.output_dir"),
            config=dict(info.settings),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.run_id = str(self._run.id)
        for part in ("train", "pretrain"):
            self._run.define_metric(f"{part}/*", step_metric=f"{part}/step")
        for part in ("sample", "vote", "mix", "monitor", "eval"):
            self._run.define_metric(f"{part}/*", step_metric="round")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, dict(values))

    def table(self, step: int, name: str, table: Table) -> None:
        rows = [list(row) for row in table.rows]
        self._log(step, {name: self._wandb.Table(columns=list(table.columns), data=rows)})

    def text(self, step: int, name: str, text: str) -> None:
        table = self._wandb.Table(columns=["round", "text"], data=[[step, text]])
        self._log(step, {name: table})

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "image.png"
            file.write_bytes(png(pixels))
            self._log(step, {name: self._wandb.Image(str(file))})

    def close(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))
        if self._offline:
            print(f"wandb: offline; upload with: wandb sync {os.path.dirname(self._run.dir)}")

    def _log(self, step: int, values: dict[str, Any]) -> None:
        self._run.log(values | {axis(next(iter(values))): step}, step=self._step)
        self._step += 1


class _MLflowRun(Writer):
    """A run of MLflow, through its client alone: the caller's own active run stays as it is."""

    def __init__(self, tracker: MLflow, info: RunInfo, run_id: str):
        import mlflow
        from mlflow.entities import Metric, Param

        self._metric = Metric
        uri = tracker.tracking_uri
        if not uri:
            folder = _local(info, "set MLflow.tracking_uri")
            uri = f"sqlite:///{folder}/mlflow.db"
        self._client = client = mlflow.MlflowClient(tracking_uri=uri)
        if not run_id:
            found = client.get_experiment_by_name(tracker.experiment)
            if found is None:
                artifacts = None
                if not tracker.tracking_uri:
                    artifacts = pathlib.Path(folder, "mlartifacts").as_uri()
                experiment = client.create_experiment(tracker.experiment, artifacts)
            else:
                experiment = found.experiment_id
            run_id = client.create_run(experiment, run_name=info.name).info.run_id
            params = [Param(key, str(value)[:6000]) for key, value in info.settings.items()]
            for start in range(0, len(params), 100):  # the server's limit of a batch
                client.log_batch(run_id, params=params[start : start + 100])
        else:
            client.set_terminated(run_id, status="RUNNING")
        self.run_id = run_id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        metrics = [
            self._metric(name, float(value), int(time.time() * 1000), step)
            for name, value in values.items()
        ]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + 1000])

    def table(self, step: int, name: str, table: Table) -> None:
        columns = {
            column: [row[number] for row in table.rows]
            for number, column in enumerate(table.columns)
        }
        self._client.log_dict(self.run_id, columns, _artifact("tables", name, step, "json"))

    def text(self, step: int, name: str, text: str) -> None:
        self._client.log_text(self.run_id, text, _artifact("texts", name, step, "md"))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        place = pathlib.PurePosixPath(_artifact("images", name, step, "png"))
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / place.name
            file.write_bytes(png(pixels))
            self._client.log_artifact(self.run_id, str(file), str(place.parent))

    def close(self, failed: bool = False) -> None:
        self._client.set_terminated(self.run_id, status="FAILED" if failed else "FINISHED")


def _artifact(kind: str, name: str, step: int, suffix: str) -> str:
    return f"{kind}/{name}/{axis(name).replace('/', '_')}_{step}.{suffix}"


class _TrackioRun(Writer):
    """A run of trackio, which knows a run by its name."""

    def __init__(self, tracker: Trackio, info: RunInfo, run_id: str):
        import trackio

        self._trackio = trackio
        self.run_id = run_id or f"{info.name}-{uuid.uuid4().hex[:8]}"
        with contextlib.redirect_stdout(io.StringIO()):  # lines of help
            self._run = trackio.init(
                project=tracker.project,
                name=self.run_id,
                space_id=tracker.space_id or None,
                config=dict(info.settings),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, dict(values))

    def table(self, step: int, name: str, table: Table) -> None:
        rows = [list(row) for row in table.rows]
        self._log(step, {name: self._trackio.Table(columns=list(table.columns), data=rows)})

    def text(self, step: int, name: str, text: str) -> None:
        self._log(step, {name: self._trackio.Markdown(text)})

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._log(step, {name: self._trackio.Image(pixels)})

    def close(self, failed: bool = False) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()

    def _log(self, step: int, values: dict[str, Any]) -> None:
        self._run.log(values | {axis(next(iter(values))): step}, step=step)
