"""Metrics of a training run: metrics.jsonl and speed.jsonl, and what a tracker gets of them.

    metrics.jsonl   loss (total, by format, by source), gradient norm, learning rate, tokens
    speed.jsonl     tokens per second and the ratio to the roofline

metrics.jsonl has no clock in it: a run that was killed and resumed writes the same bytes as one
that was not. Values that depend on the clock therefore have a file of their own. A window of
`log_every` steps that is open when a checkpoint is written is saved in it (`Log.window`); lines
that are ahead of the checkpoint are dropped and written again.

The roofline is the least time of a step: its matrix products over the machine's rate.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lmsi_jax.config import ModelConfig
from lmsi_jax.errors import LmsiError
from lmsi_jax.runtime import files
from lmsi_jax.training.packing import Batch

METRICS, SPEED = "metrics.jsonl", "speed.jsonl"
_FIXED = ("loss", "grad_norm", "tokens", "by_group")  # other entries are scalars to average
Line = dict[str, float]
Track = Callable[[int, Mapping[str, float]], None]
"""Takes a step and its metrics, speeds among them; rising steps, each once in a process."""


class Log:
    """Averages metrics over `log_every` steps, for the files, a tracker and the caller.

    Args:
      name: the run, for errors.
      directory: gets the files; None if another process writes them.
      groups: names of the numbers in `Row.group`; "self_generated/few_shot_cot" counts for two
        losses, "self_generated" and "few_shot_cot".
      ends: whether a window ends with a step.
      rate: the learning rate of a step, counted from 0.
      first: steps that earlier processes took; later lines are dropped.
      window: the window that was open then.
      roofline_seconds: least time of a batch on this machine; None leaves the ratio out.
      track: gets each line once it is complete; not called without a directory.
      clock: returns seconds.
    """

    def __init__(
        self,
        name: str,
        directory: epath.Path | None,
        groups: Sequence[str],
        *,
        ends: Callable[[int], bool],
        rate: Callable[[int], Any],
        first: int = 0,
        window: Sequence[Line] = (),
        roofline_seconds: Callable[[Batch], float] | None = None,
        track: Track | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._name, self._groups, self._ends, self._rate = name, list(groups), ends, rate
        self._roofline_seconds, self._clock = roofline_seconds, clock
        self._files = None if directory is None else _Files(directory, first)
        self._track = None if directory is None else track
        self._untracked: Line = {}
        self._window: list[Any] = list(window)
        self._since: float | None = None
        self._work: list[tuple[int, float]] = []  # tokens, least seconds of the steps timed
        self.line: Line | None = None

    def add(self, step: int, metrics: Mapping[str, Any], batch: Batch) -> Line | None:
        """Adds a step's metrics, still on the device; returns the line if a window ends.

        Raises:
          LmsiError: the loss is not finite.
        """
        self._window.append((metrics, group_weights(batch, len(self._groups))))
        self._time(metrics, batch)
        self.line = None
        if not self._ends(step):
            return None
        self.check(step)
        rate = float(self._rate(step - 1))
        self.line = line = _line(step, rate, self.window, self._groups)
        self._window = []
        self._add(METRICS, step, line)
        self._add_speed(step)
        return line

    def check(self, step: int) -> None:
        """Checks the losses of the open window; call it before a checkpoint is written.

        Args:
          step: the last step.

        Raises:
          LmsiError: one is not finite; names its step.
        """
        window = self.window
        for number, one in enumerate(window, step - len(window) + 1):
            for name, words in (("loss", "loss"), ("grad_norm", "gradient's norm")):
                if not np.isfinite(one[name]):
                    raise LmsiError(
                        f"{self._name}: the {words} is {one[name]} at step {number}; lower "
                        "Optimizer.learning_rate"
                    )

    def measured(self, step: int, name: str, value: float) -> None:
        """Adds a value that was measured once, after the `add` of its step."""
        one = {name: round(value, 6)}
        self.line = {"step": step, **(self.line or {}), **one}
        self._add(METRICS, step, one)

    @property
    def window(self) -> list[Line]:
        """The steps of the open window, read from the device, as JSON values."""
        self._window = [one if isinstance(one, dict) else _plain(*one) for one in self._window]
        return list(self._window)  # a checkpoint in the background reads it meanwhile

    def write(self) -> None:
        """Writes the lines so far; call it before the checkpoint that they lead up to."""
        if self._files is not None:
            self._files.flush()
        self._send()

    def close(self) -> None:
        """Tracks the last line; files end with the last `write`."""
        self._send()

    def _add(self, file: str, step: int, values: Mapping[str, float]) -> None:
        """Adds values to a file's line of a step, and to what the tracker gets."""
        if self._files is None:
            return
        values = {name: value for name, value in values.items() if name != "step"}
        self._files.add(file, step, values)
        if self._untracked.get("step", step) != step:
            self._send()
        self._untracked |= {"step": step, **values}

    def _send(self) -> None:
        line, self._untracked = self._untracked, {}
        if self._track is not None and line:
            self._track(int(line.pop("step")), line)

    def _time(self, metrics: Mapping[str, Any], batch: Batch) -> None:
        if self._since is None:  # the first step compiles: the clock starts after it
            jax.block_until_ready(metrics["loss"])
            self._since = self._clock()
            return
        least = self._roofline_seconds(batch) if self._roofline_seconds else 0.0
        self._work.append((int((batch["segments"] > 0).sum()), least))

    def _add_speed(self, step: int) -> None:
        now = self._clock()
        assert self._since is not None
        seconds, work = now - self._since, self._work
        self._since, self._work = now, []
        if not work or seconds <= 0:
            return
        speed = {"tokens_per_second": sum(tokens for tokens, _ in work) / seconds}
        if self._roofline_seconds:
            speed["roofline_ratio"] = sum(least for _, least in work) / seconds
        self._add(SPEED, step, speed)


class _Files:
    """The files of one training run: a JSON object a step, complete after every `flush`.

    Args:
      directory: their folder.
      first: lines after this step are dropped: their checkpoint was not completed.
    """

    def __init__(self, directory: epath.Path, first: int):
        self._directory = directory
        self._lines = {name: read_lines(directory / name, first) for name in (METRICS, SPEED)}

    def add(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Adds values to a file's line of a step."""
        lines = self._lines[name]
        if not lines or lines[-1]["step"] != step:
            lines.append({"step": step})
        lines[-1] |= {
            name: value if isinstance(value, int) else float(np.asarray(value))
            for name, value in values.items()
        }

    def flush(self) -> None:
        """Writes both files."""
        for name, lines in self._lines.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            with files.system_errors(self._directory):
                files.write_bytes(self._directory / name, text.encode())


def read_metrics(directory: epath.PathLike) -> list[Line]:
    """Returns the metrics that a training run wrote; [] if there are none.

    Raises:
      LmsiError: the file was altered.
    """
    return read_lines(epath.Path(directory) / METRICS)


def records(directory: epath.PathLike) -> list[epath.Path]:
    """Returns the files that a finished training records; [] if T5X took all of its steps."""
    path = epath.Path(directory) / METRICS
    return [path] if path.exists() else []


def read_lines(path: epath.Path, until: int | None = None) -> list[Line]:
    """Returns a file's lines, up to a step if one is given.

    Raises:
      LmsiError: one of them was not written by `Log`.
    """
    if not path.exists():
        return []
    lines = [_read(path, *one) for one in enumerate(path.read_bytes().splitlines(), 1)]
    return [line for line in lines if until is None or line["step"] <= until]


def _read(path: epath.Path, number: int, text: bytes) -> Line:
    try:
        line = json.loads(text)
    except ValueError:
        line = None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        raise LmsiError(
            f"{path} is damaged (line {number}); delete it and repeat `lmsi run`, or the other "
            "command that trained: it makes it anew"
        )
    return line


def group_weights(batch: Batch, groups: int) -> list[float]:
    """Returns the sum of the loss weights of each group's tokens to learn, counted on the host."""
    member, weights = np.ravel(batch["groups"]), np.maximum(np.ravel(batch["weights"]), 0.0)
    return np.bincount(member, weights.astype(np.float64), groups).tolist()


def _plain(metrics: Mapping[str, Any], weights: Sequence[float]) -> Line:
    """Returns a step's metrics as JSON values; float32 survives the round trip."""
    others = {name: float(value) for name, value in metrics.items() if name not in _FIXED}
    by_group = np.asarray(metrics["by_group"], np.float64)
    fixed = {
        "loss": float(metrics["loss"]),
        "grad_norm": float(metrics["grad_norm"]),
        "tokens": int(metrics["tokens"]),
        "by_group": [value if np.isfinite(value) else None for value in by_group.tolist()],
        "weights": list(weights),
    }
    return {**fixed, "more": others}  # type: ignore[dict-item]


def _line(step: int, rate: float, window: Sequence[Any], groups: Sequence[str]) -> Line:
    """Averages a window of steps into one line."""
    line: Line = {
        "step": step,
        "loss": _mean([one["loss"] for one in window]),
        "grad_norm": _mean([one["grad_norm"] for one in window]),
        "learning_rate": rate,
        "tokens": sum(one["tokens"] for one in window),
    }
    for name in window[-1]["more"]:
        line[name] = _mean([one["more"][name] for one in window if name in one["more"]])
    for label in dict.fromkeys(label for group in groups for label in group.split("/")):
        members = [i for i, group in enumerate(groups) if label in group.split("/")]
        values = [v for one in window if (v := _over(one, members)) is not None]
        if values:
            line[f"loss/{label}"] = _mean(values)
    return line


def _over(one: Any, members: Sequence[int]) -> float | None:
    """Returns a step's mean loss over several groups; None if they have no weight."""
    parts = [(one["by_group"][i], one["weights"][i]) for i in members]
    parts = [(value, weight) for value, weight in parts if value is not None and weight > 0]
    total = sum(weight for _, weight in parts)
    return sum(value * weight for value, weight in parts) / total if parts else None


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 6)


def step_flops(
    config: ModelConfig, parameters: int, batch: Batch, *, frozen: bool = False
) -> float:
    """Returns the FLOPs of a step, forward and backward.

    6 for each parameter and token (Kaplan et al. 2020, section 2.1), and in each layer, for each
    token and key that it sees, 12 times the width of all heads: two products, three times. A prefix
    counts once for all rows after it; padding does not count, nor does an embedding table that is
    only looked up.

    Args:
      config: the model's shape.
      parameters: their number.
      batch: a step's batch, see `packing.Batch`, in NumPy.
      frozen: whether the parameters get no gradient (LoRA): then 4 for each, not 6.
    """
    real = batch["segments"] > 0
    prefixes = np.ravel(batch["prefix_length"]).astype(np.int64)
    tokens = int(real.sum()) + int(prefixes.sum())
    places = [batch["positions"][real], *(np.arange(size) for size in prefixes)]
    keys = np.concatenate(places).astype(np.int64) + 1
    seen = 0
    for layer in range(config.num_layers):
        window = config.window(layer)
        seen += int((np.minimum(keys, window) if window else keys).sum())
    looked_up = 0 if config.tied_embeddings else config.vocab_size * config.embed_dim
    products = (4.0 if frozen else 6.0) * (parameters - looked_up) * tokens
    return products + 12.0 * config.num_heads * config.head_dim * seen


def matmul_rate(dtype: Any = jnp.float32, devices: int = 1) -> float:
    """Measures the FLOP/s of a large matrix product on `devices` devices like the first one.

    The best of a few, some hundredths of a second on a CPU. A busy machine gives too low a rate,
    and so too high a ratio.
    """
    size = 1024 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return devices * 2.0 * size**3 / max(min(seconds), 1e-9)
