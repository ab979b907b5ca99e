"""Several processes of one run: process 0 leads, the others sample their shards when it says so.

All of them see one folder, with what they read and write. They talk through the key/value store of
`jax.distributed`, and wait by looking into it, so that a signal is still heard:

    lmsi/order/3    {"stage": "sample", "round": 1}    the leader's third order
    lmsi/done/3/2                                      process 2 has carried it out
    lmsi/left/2     ["failed", "the disk is full"]     process 2 is gone, and why

When one of them leaves, the others follow: a run goes on with all of its processes or not at all.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from lmsi_jax.errors import LmsiError
from lmsi_jax.signals import Terminated

_ROOT = "lmsi"
_POLL = 0.2  # seconds between two looks at the store while waiting
_CHECK = 1.0  # and while working

Order = dict[str, Any]


def connect(address: str, count: int | None, index: int | None) -> None:
    """Joins this process to the others; before anything else of JAX is used.

    Args:
      address: host:port of process 0; "auto" where JAX finds everything by itself (Cloud TPU pods,
        Slurm, Open MPI, Kubernetes).
      count: how many processes there are.
      index: which of them this is.

    Raises:
      LmsiError: they do not find each other.
    """
    import jax

    try:
        if address == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(address, count, index)
        # A back end starts only once it does so in every process: here, where all of them are.
        jax.local_devices()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise LmsiError(
            f"the processes do not find each other ({reason}); start all of them with the same "
            "--coordinator_address and --process_count, each with its own --process_index"
        ) from error


def disconnect() -> None:
    """Leaves the others, who do the same; does nothing in a single process."""
    import jax

    # What went wrong has been said, and the others may be gone.
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()


class _Follower(LmsiError):
    """Another process failed; it has said so itself."""


class Processes:
    """The processes of this run, as one of them sees them.

    Attributes:
      index: this one's number; 0 leads.
      count: how many there are.
    """

    def __init__(self) -> None:
        from jax._src import distributed  # as Orbax does: the store has no public name

        state = distributed.global_state
        self._client: Any = state.client
        self.index = state.process_id if state.client is not None else 0
        self.count = state.num_processes if state.client is not None else 1
        self._orders = 0
        self._checked = 0.0

    @property
    def share(self) -> tuple[int, int]:
        """(index, count)."""
        return self.index, self.count

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Around all that a process does: tells the others that it left, and how."""
        try:
            yield
        except BaseException as error:
            self._left(error)
            raise
        self._left(None)

    @contextlib.contextmanager
    def together(self, stage: str, round_index: int) -> Iterator[None]:
        """The leader's: orders a stage, does its own part within, and waits for the others' parts.

        Raises:
          LmsiError: another process failed, or this one is of several that were not connected.
          Terminated: another process was.
        """
        self._refuse_strangers()
        self._orders += 1
        order = json.dumps({"stage": stage, "round": round_index})
        self._put(f"order/{self._orders}", order)
        yield
        done = {f"done/{self._orders}/{index}" for index in range(1, self.count)}
        while self.count > 1 and not done <= set(self._look()):
            time.sleep(_POLL)

    def orders(self) -> Iterator[Order]:
        """The others': yields order after order until the leader ends."""
        while True:
            wanted = f"order/{self._orders + 1}"
            entries = self._look(ended_is_fine=True)
            if wanted in entries:
                self._orders += 1
                yield json.loads(entries[wanted])
                self._put(f"done/{self._orders}/{self.index}", "")
            elif "left/0" in entries:
                return
            else:
                time.sleep(_POLL)

    def check(self) -> None:
        """Raises if another process has left; looks at most once a second."""
        if self.count > 1 and time.monotonic() - self._checked >= _CHECK:
            self._checked = time.monotonic()
            self._look()

    def _look(self, ended_is_fine: bool = False) -> dict[str, str]:
        """Reads the store; raises what made another process leave."""
        import jax

        try:
            found = dict(self._client.key_value_dir_get(f"{_ROOT}/"))
        except jax.errors.JaxRuntimeError as error:
            raise LmsiError(
                "process 0 is gone without a word; repeat the command in every process, it goes "
                "on where it was"
            ) from error
        entries = {key.removeprefix(f"{_ROOT}/"): value for key, value in found.items()}
        for key in sorted(entries):
            if key.startswith("left/"):
                how, why = json.loads(entries[key])
                if not (how == "ended" and ended_is_fine):
                    _follow(key.removeprefix("left/"), how, why)
        return entries

    def _left(self, error: BaseException | None) -> None:
        """Writes down how this process ended, unless it follows another that did."""
        if isinstance(error, _Follower):
            return
        how, why = "ended", ""
        if isinstance(error, Terminated):
            how = "terminated"
        elif isinstance(error, KeyboardInterrupt):
            how = "interrupted"
        elif error is not None:
            how, why = "failed", str(error) or type(error).__name__
        self._put(f"left/{self.index}", json.dumps([how, why]))

    def _put(self, key: str, value: str) -> None:
        if self.count > 1:
            # A store that cannot be reached any more: the process is leaving, or is about to see.
            with contextlib.suppress(RuntimeError):
                self._client.key_value_set(f"{_ROOT}/{key}", value)

    def _refuse_strangers(self) -> None:
        """On a TPU pod every worker knows of the others, even if nobody connected them."""
        import jax

        if self.count == 1 and jax.process_count() > 1:
            raise LmsiError(
                f"this is one of {jax.process_count()} JAX processes that do not know each other; "
                "add --coordinator_address=auto to the command of each"
            )


def _follow(who: str, how: str, why: str) -> NoReturn:
    """Raises in this process what made another one leave."""
    if how == "terminated":
        raise Terminated
    if how == "interrupted":
        raise KeyboardInterrupt
    raise _Follower(f"process {who} {how}{': ' + why if why else ''}")
