"""Coordinates the processes of a run: process 0 leads, the others sample shards at its orders.

All processes share one folder with inputs and outputs. They communicate through the key/value store
of `jax.distributed` and wait by polling it, so that signals still arrive:

    lmsi/order/3    {"stage": "sample", "round": 1}    the leader's third order
    lmsi/done/3/2                                      process 2 has carried it out
    lmsi/left/2     ["failed", "the disk is full"]     process 2 has left, and the reason; "broken"
                                                       if that is not a mistake of the user
    lmsi_found/4-7/1    ["a-00000-of-00002"]           the result of 4 for itself and 5 to 7

If one process leaves, the others follow: a run continues with all of its processes or not at all. A
thread of each process watches for that and sends SIGTERM to the main thread, so that a stage stops
as it does for any SIGTERM. A main thread that waits for another process inside a training step
receives no signal; then the thread ends the process.

`Agreement` synchronizes the processes of a mesh between two steps of training or decoding. SIGTERM
reaches them at different moments, or only one of them, but all must stop after the same step: in
training all save it, and in decoding none may wait for the tokens of another that is gone. All must
also agree on the data of a step: the same rows, or the same tokens. So each process reports with
every step if it has to stop, and a checksum of its data. The reports are reduced over the mesh
after the step and read one step later, so no step waits for them.
"""

import _thread
import collections
import contextlib
import functools
import json
import os
import re
import signal
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmsi_jax.errors import LmsiError, TryAgain
from lmsi_jax.runtime.signals import Terminated

_ROOT, _FOUND = "lmsi", "lmsi_found"
_POLL = 0.2  # seconds between two reads of the store while waiting
_WATCH = 1.0  # and while working
# Seconds to follow a process that failed, or one that was terminated and may save a checkpoint.
_FAILED, _TOLD = 10.0, 300.0
# Words of JAX's errors when another process has vanished.
_GONE = re.compile("gloo|nccl|connection|barrier|heartbeat|peer", re.IGNORECASE)

Order = dict[str, Any]


def connect(address: str, count: int | None, index: int | None) -> None:
    """Connects this process to the others, before any other use of JAX.

    Args:
      address: host:port of process 0; "auto" if JAX detects the cluster (Cloud TPU pods, Slurm,
        Open MPI, Kubernetes).
      count: number of processes.
      index: index of this process.

    Raises:
      TryAgain: the processes do not find each other; one of them may be late.
      LmsiError: the arguments are wrong.
    """
    import jax

    try:
        if address == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(address, count, index)
        # A back end starts only once it does so in every process, so start it now.
        jax.local_devices()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        kind = LmsiError if isinstance(error, ValueError) else TryAgain
        raise kind(
            f"the processes do not find each other ({reason}); start all of them with the same "
            "--coordinator_address and --process_count, each with its own --process_index"
        ) from error


def disconnect() -> None:
    """Disconnects from the others, who do the same; does nothing in a single process."""
    import jax

    # Errors have been reported already, and the others may be gone.
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()


def abandon(code: int) -> None:
    """Exits without disconnecting from the others, one of which is gone; else does nothing.

    JAX would wait for a heartbeat of that process, and then end this one in its own way.
    """
    from jax._src import distributed

    if distributed.global_state.client is None:
        return
    if distributed.global_state.process_id == 0:
        time.sleep(3 * _WATCH)  # the others read the reason here
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Follower(LmsiError):
    """Another process failed and has reported it."""


class _Stranded(_Follower, TryAgain):
    """Another process broke down, or lost another itself."""

    exit_code = TryAgain.exit_code


def _leave_now(reason: BaseException) -> None:
    """Exits at once, whatever the main thread waits for."""
    failed = isinstance(reason, _Follower)
    os.write(2, f"lmsi: error: {reason}\n".encode() if failed else b"terminated\n")
    if not isinstance(reason, TryAgain):
        disconnect()  # or the others would wait for this one
    os._exit(reason.exit_code if isinstance(reason, LmsiError) else 128 + signal.SIGTERM)


class Processes:
    """The processes of this run, from the view of one of them.

    Attributes:
      index: the index of this process; 0 leads.
      count: number of processes.
    """

    def __init__(self) -> None:
        from jax._src import distributed  # as Orbax does: the store has no public name

        state = distributed.global_state
        self._client: Any = state.client
        self.index = state.process_id if state.client is not None else 0
        self.count = state.num_processes if state.client is not None else 1
        self._orders = 0
        self._found: Counter[str] = Counter()

    @property
    def share(self) -> tuple[int, int]:
        """(index, count)."""
        return self.index, self.count

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Ties this process to the others inside the block: if one leaves, all leave.

        Raises:
          LmsiError: another process failed; `TryAgain` if that was not a mistake of the user.
          Terminated: this or another process was terminated.
          KeyboardInterrupt: this or another process was interrupted.
        """
        if self.count == 1:
            yield
            return
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(over,), daemon=True)
        watch.start()
        try:
            yield
        except BaseException as error:  # a signal or a bug too: the others wait for this process
            cause = self._cause(error)
            self._left(cause)
            if cause is error:
                raise
            raise cause from None
        else:
            self._left(None)
        finally:
            over.set()
            watch.join()

    @contextlib.contextmanager
    def together(self, stage: str, round_index: int) -> Iterator[None]:
        """Orders a stage, for the leader: its part is the block; then waits for the other parts.

        Raises:
          LmsiError: another process failed, or there are several that were not connected.
        """
        self._refuse_strangers()
        if self.count == 1:
            yield
            return
        self._orders += 1
        self._put(f"order/{self._orders}", json.dumps({"stage": stage, "round": round_index}))
        yield
        marks = {f"done/{self._orders}/{index}" for index in range(1, self.count)}
        while not marks <= set(self._look()):
            self._follow()
            time.sleep(_POLL)

    def orders(self) -> Iterator[Order]:
        """Yields the orders of the leader, for the other processes, until it ends."""
        while True:
            self._follow()
            entries = self._look()
            order = entries.get(f"order/{self._orders + 1}")
            if order is not None:
                self._orders += 1
                yield json.loads(order)
                self._put(f"done/{self._orders}/{self.index}", "")
            elif "left/0" in entries:
                return
            else:
                time.sleep(_POLL)

    def run_on_leader(self, members: Sequence[int], function: Callable[[], Any]) -> Any:
        """Calls a function in the first of some processes; returns its result in all of them.

        All members call this; the result is a JSON value.

        A folder may look different to several machines at the same time, or to one while another
        repairs it.

        Raises:
          LmsiError: another process failed.
          Terminated: another process was terminated.
        """
        if len(members) == 1:
            return function()
        who = f"{members[0]}-{members[-1]}"
        self._found[who] += 1
        key = f"{who}/{self._found[who]}"
        if self.index == members[0]:
            result = function()
            self._put(key, json.dumps(result), _FOUND)
            return result
        while (answer := self._look(_FOUND).get(key)) is None:
            self._follow()
            time.sleep(_POLL)
        return json.loads(answer)

    def _cause(self, error: BaseException) -> BaseException:
        """Returns the cause of an error of this process: another one left, or the error itself."""
        import jax

        if isinstance(error, Terminated):
            return self._reason() or error
        if isinstance(error, jax.errors.JaxRuntimeError) and _GONE.search(str(error)):
            reason = str(error).strip().splitlines()[0][:200]
            return self._reason() or TryAgain(
                f"another process is gone without a word, or does not keep up ({reason}); repeat "
                "the command in every process to resume"
            )
        return error

    def _watch(self, over: threading.Event) -> None:
        """Ends this process once another one has left; runs in a thread."""
        with contextlib.suppress(LmsiError):  # without the store JAX ends this process
            while not over.wait(_WATCH):
                reason = self._reason()
                if reason is not None:
                    _thread.interrupt_main(signal.SIGTERM)
                    if not over.wait(_FAILED if isinstance(reason, _Follower) else _TOLD):
                        _leave_now(reason)
                    return

    def _follow(self) -> None:
        """Raises the reason for which another process left, if one has."""
        reason = self._reason()
        if reason is not None:
            raise reason

    def _reason(self) -> BaseException | None:
        """Returns the reason for which another process left before the end, or None."""
        for key, value in sorted(self._look().items()):
            who = key.removeprefix("left/")
            how, why = json.loads(value) if who != key else ("ended", "")
            if how == "terminated":
                return Terminated()
            if how == "interrupted":
                return KeyboardInterrupt()
            if how in ("failed", "broken") and who != str(self.index):
                kind = _Follower if how == "failed" else _Stranded
                return kind(f"process {who} failed: {why}")
        return None

    def _look(self, root: str = _ROOT) -> dict[str, str]:
        import jax

        try:
            entries = self._client.key_value_dir_get(f"{root}/")
        except jax.errors.JaxRuntimeError as error:
            raise TryAgain(
                "process 0 is gone without a word; repeat the command in every process, it goes "
                "on where it was"
            ) from error
        return {key.removeprefix(f"{root}/"): value for key, value in entries}

    def _left(self, error: BaseException | None) -> None:
        """Records the end of this process, unless it follows another that failed."""
        if isinstance(error, _Follower):
            return
        how, why = "ended", ""
        if isinstance(error, Terminated):
            how = "terminated"
        elif isinstance(error, KeyboardInterrupt):
            how = "interrupted"
        elif error is not None:
            mistake = isinstance(error, LmsiError) and not isinstance(error, TryAgain)
            how, why = "failed" if mistake else "broken", str(error) or type(error).__name__
        self._put(f"left/{self.index}", json.dumps([how, why]))

    def _put(self, key: str, value: str, root: str = _ROOT) -> None:
        # If the store is gone, this process is leaving or will notice at the next read.
        with contextlib.suppress(RuntimeError):
            self._client.key_value_set(f"{root}/{key}", value)

    def _refuse_strangers(self) -> None:
        """Refuses unconnected processes: on a TPU pod JAX knows all workers in any case."""
        import jax

        if self.count == 1 and jax.process_count() > 1:
            raise LmsiError(
                f"this is one of {jax.process_count()} JAX processes that do not know each other; "
                "add --coordinator_address=auto to the command of each"
            )


# By the processes of a mesh, which all synchronize in the same order.
_MEETINGS: collections.Counter[tuple[int, ...]] = collections.Counter()
_LATEST = 1_800_000  # milliseconds


class Agreement:
    """An agreement of the processes of a mesh on the step to stop after.

    Args:
      mesh: the mesh that spans the processes; None if there is only this one.
      requested: returns True once this process has to stop.
      have: the likely cause of a disagreement, for the message.
    """

    def __init__(self, mesh: Mesh | None, requested: Callable[[], bool], have: str):
        self._mesh, self._requested, self._have = mesh, requested, have
        self._answer: Any = None
        self._leave = False

    def leave(self, step: int, at_hand: bytes) -> bool:
        """Returns True if all stop after this step; call it once per step, after its start.

        Args:
          step: number of the step.
          at_hand: the data of the step, which must be the same in all processes.

        Raises:
          LmsiError: the processes had different data for the previous step.
        """
        if self._mesh is None:
            return self._requested()
        self.settle()
        decided = self._leave
        report = (int(self._requested()), zlib.crc32(at_hand, step) >> 1)
        self._answer = _reduction(self._mesh)(_spread(self._mesh, report))
        return decided

    def settle(self) -> None:
        """Waits for the agreement on the last step, before any of it is saved.

        Raises:
          LmsiError: the processes had different data.
        """
        if self._answer is None:
            return
        leave, least, most = np.asarray(self._answer).tolist()
        self._answer = None
        self._leave = self._leave or bool(leave)
        if least != most:
            raise LmsiError(
                f"the processes have {self._have} or are at different steps; see that all of "
                "them see one output_dir and have the same packages, then repeat the command"
            )


def synchronize(mesh: Mesh) -> None:
    """Waits for all processes of a mesh and runs the first reduction over each of its axes.

    On CPUs the first reduction of a group of devices fails if one of them is 30 s late, and process
    0 may have more to load, another a slower disk or a longer compilation. So the first reductions
    over all devices and over those along each axis happen here.
    """
    from jax._src import distributed  # a barrier of devices would be such a reduction itself

    members = tuple(sorted({device.process_index for device in mesh.devices.flat}))
    _MEETINGS[members] += 1
    name = f"lmsi_meet_{members[0]}_{members[-1]}_{_MEETINGS[members]}"
    client = distributed.global_state.client
    assert client is not None  # a mesh with other processes has one
    client.wait_at_barrier(name, timeout_in_ms=_LATEST, process_ids=members)
    jax.block_until_ready(_first_sums(mesh)(_spread(mesh, (0, 0))))


@functools.cache
def _first_sums(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Compiles sums over all axes at once and over each of them."""
    names = mesh.axis_names

    def add(row: jax.Array) -> jax.Array:
        return sum((jax.lax.psum(row, name) for name in names), start=jax.lax.psum(row, names))

    rows = PartitionSpec(names)
    return jax.jit(jax.shard_map(add, mesh=mesh, in_specs=rows, out_specs=rows))


@functools.cache
def _reduction(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Compiles [devices, 2] -> (largest first number, smallest and largest second number)."""
    return jax.jit(
        lambda reports: jnp.stack([reports[:, 0].max(), reports[:, 1].min(), reports[:, 1].max()]),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )


def _spread(mesh: Mesh, report: tuple[int, int]) -> jax.Array:
    """Returns the reports of all devices, [devices, 2] int32; each process fills in its own."""
    row = np.array([report], np.int32)
    by_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback((mesh.size, 2), by_device, lambda _: row)
