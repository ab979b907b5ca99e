"""Several processes of one run: process 0 leads, the others sample their shards when it says so.

All of them see one folder, with what they read and write. They talk through the key/value store of
`jax.distributed`, and wait by looking into it, so that a signal is still heard:

    lmsi/order/3    {"stage": "sample", "round": 1}    the leader's third order
    lmsi/done/3/2                                      process 2 has carried it out
    lmsi/left/2     ["failed", "the disk is full"]     process 2 is gone, and why; "broken" where
                                                       that is no mistake of the user's
    lmsi_found/4-7/1    ["a-00000-of-00002"]           what 4 found, for itself and 5 to 7

When one of them leaves, the others follow: a run goes on with all of its processes or not at all.
In each of them a thread looks out for that, and tells the main thread by SIGTERM, so that every
stage leaves the way it leaves then. A main thread that waits for the other one within a step of
training hears no signal: the thread ends its process.

What the processes of one mesh settle between two steps, of training or of decoding.

SIGTERM reaches them at different moments, or one of them alone, and yet all must leave behind the
same step: in training all save it, and in decoding nobody may wait for tokens of one that is gone.
And all must be at the same: have read the same rows, or drawn the same tokens. So each says with
every step whether it has to leave, and what it has at hand; the answer is a reduction over the mesh
that runs behind the step and is looked at one step later: no step waits for it.
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
_POLL = 0.2  # seconds between two looks at the store while waiting
_WATCH = 1.0  # and while working
# Seconds to follow one that failed, and one that was told to leave: that may save a checkpoint.
_FAILED, _TOLD = 10.0, 300.0
# What JAX says where a process that the others reckon with is not there any more.
_GONE = re.compile("gloo|nccl|connection|barrier|heartbeat|peer", re.IGNORECASE)

Order = dict[str, Any]


def connect(address: str, count: int | None, index: int | None) -> None:
    """Joins this process to the others; before anything else of JAX is used.

    Args:
      address: host:port of process 0; "auto" where JAX finds everything by itself (Cloud TPU pods,
        Slurm, Open MPI, Kubernetes).
      count: how many processes there are.
      index: which of them this is.

    Raises:
      TryAgain: they do not find each other; one of them may be late.
      LmsiError: the arguments are wrong.
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
        kind = LmsiError if isinstance(error, ValueError) else TryAgain
        raise kind(
            f"the processes do not find each other ({reason}); start all of them with the same "
            "--coordinator_address and --process_count, each with its own --process_index"
        ) from error


def disconnect() -> None:
    """Leaves the others, who do the same; does nothing in a single process."""
    import jax

    # What went wrong has been said, and the others may be gone.
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()


def abandon(code: int) -> None:
    """Ends this process without leave of the others, one of which is gone; nothing in a single one.

    JAX would wait for that one as long as its heartbeat takes, and end this process its own way.
    """
    from jax._src import distributed

    if distributed.global_state.client is None:
        return
    if distributed.global_state.process_id == 0:
        time.sleep(3 * _WATCH)  # the others look here why it leaves
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Follower(LmsiError):
    """Another process failed; it has said so itself."""


class _Stranded(_Follower, TryAgain):
    """Another process broke down, or lost one itself."""

    exit_code = TryAgain.exit_code


def _leave_now(reason: BaseException) -> None:
    """Ends this process, whatever its main thread waits for."""
    failed = isinstance(reason, _Follower)
    os.write(2, f"lmsi: error: {reason}\n".encode() if failed else b"terminated\n")
    if not isinstance(reason, TryAgain):
        disconnect()  # or the others would wait for this one
    os._exit(reason.exit_code if isinstance(reason, LmsiError) else 128 + signal.SIGTERM)


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
        self._found: Counter[str] = Counter()

    @property
    def share(self) -> tuple[int, int]:
        """(index, count)."""
        return self.index, self.count

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Around all that a process does: leaves when another left, and tells when this one does.

        Raises:
          LmsiError: another process failed; `TryAgain` where that was no mistake of the user's.
          Terminated: it was terminated, or this one was.
          KeyboardInterrupt: likewise.
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
        """The leader's: orders a stage, does its own part within, and waits for the others' parts.

        Raises:
          LmsiError: another process failed, or this one is of several that were not connected.
        """
        self._refuse_strangers()
        if self.count == 1:
            yield
            return
        self._orders += 1
        self._put(f"order/{self._orders}", json.dumps({"stage": stage, "round": round_index}))
        yield
        done = {f"done/{self._orders}/{index}" for index in range(1, self.count)}
        while not done <= set(self._look()):
            self._follow()
            time.sleep(_POLL)

    def orders(self) -> Iterator[Order]:
        """The others': yields order after order until the leader ends."""
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

    def found(self, members: Sequence[int], find: Callable[[], Sequence[str]]) -> Sequence[str]:
        """What the first of some processes finds; the others, which do the same, take its word.

        A folder need not look the same to all machines at the same time, nor to one that looks
        while another one mends it.

        Raises:
          LmsiError: another process failed.
          Terminated: another process was terminated.
        """
        if len(members) == 1:
            return find()
        who = f"{members[0]}-{members[-1]}"
        self._found[who] += 1
        key = f"{who}/{self._found[who]}"
        if self.index == members[0]:
            names = find()
            self._put(key, json.dumps(list(names)), _FOUND)
            return names
        while (said := self._look(_FOUND).get(key)) is None:
            self._follow()
            time.sleep(_POLL)
        return list(json.loads(said))

    def _cause(self, error: BaseException) -> BaseException:
        """What is behind an error of this process: that another one left, or the error itself."""
        import jax

        if isinstance(error, Terminated):
            return self._reason() or error
        if isinstance(error, jax.errors.JaxRuntimeError) and _GONE.search(str(error)):
            said = str(error).strip().splitlines()[0][:200]
            return self._reason() or TryAgain(
                f"another process is gone without a word, or does not keep up ({said}); repeat the "
                "command in every process, it goes on where it was"
            )
        return error

    def _watch(self, over: threading.Event) -> None:
        """Lets this process follow once another one has left; runs in a thread."""
        with contextlib.suppress(LmsiError):  # the store is gone, and JAX ends this process
            while not over.wait(_WATCH):
                reason = self._reason()
                if reason is not None:
                    _thread.interrupt_main(signal.SIGTERM)
                    if not over.wait(_FAILED if isinstance(reason, _Follower) else _TOLD):
                        _leave_now(reason)
                    return

    def _follow(self) -> None:
        """Raises what made another process leave."""
        reason = self._reason()
        if reason is not None:
            raise reason

    def _reason(self) -> BaseException | None:
        """What made another process leave before the end; None if nothing did."""
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
        """Reads the store."""
        import jax

        try:
            found = self._client.key_value_dir_get(f"{root}/")
        except jax.errors.JaxRuntimeError as error:
            raise TryAgain(
                "process 0 is gone without a word; repeat the command in every process, it goes "
                "on where it was"
            ) from error
        return {key.removeprefix(f"{root}/"): value for key, value in found}

    def _left(self, error: BaseException | None) -> None:
        """Writes down how this process ended, unless it follows another that failed."""
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
        # Where the store is gone this process is leaving, or will see it with the next look.
        with contextlib.suppress(RuntimeError):
            self._client.key_value_set(f"{root}/{key}", value)

    def _refuse_strangers(self) -> None:
        """On a TPU pod every worker knows of the others, even if nobody connected them."""
        import jax

        if self.count == 1 and jax.process_count() > 1:
            raise LmsiError(
                f"this is one of {jax.process_count()} JAX processes that do not know each other; "
                "add --coordinator_address=auto to the command of each"
            )


# By processes: those of a mesh do the same in the same order.
_MEETINGS: collections.Counter[tuple[int, ...]] = collections.Counter()
_LATEST = 1_800_000  # milliseconds


class Agreement:
    """The processes of a mesh, or this process alone.

    Args:
      mesh: what spans the processes; None where this process is alone.
      requested: whether this process is asked to leave.
      have: what the processes have done where they disagree, for the message.
    """

    def __init__(self, mesh: Mesh | None, requested: Callable[[], bool], have: str):
        self._mesh, self._requested, self._have = mesh, requested, have
        self._asked: Any = None
        self._leave = False

    def leave(self, step: int, at_hand: bytes) -> bool:
        """Whether all leave behind this step; to be called once a step, after it was begun.

        Args:
          step: its number.
          at_hand: what this process has at hand for it, the same in all of them.

        Raises:
          LmsiError: the processes had different things at hand for the step before.
        """
        if self._mesh is None:
            return self._requested()
        self.settle()
        decided = self._leave
        own = (int(self._requested()), zlib.crc32(at_hand, step) >> 1)
        self._asked = _reduced(self._mesh)(_spread(self._mesh, own))
        return decided

    def settle(self) -> None:
        """Waits for the answer to the last step; before anything of it is saved.

        Raises:
          LmsiError: the processes had different things at hand.
        """
        if self._asked is None:
            return
        leave, least, most = np.asarray(self._asked).tolist()
        self._asked = None
        self._leave = self._leave or bool(leave)
        if least != most:
            raise LmsiError(
                f"the processes have {self._have} or stand at different steps; see that all of "
                "them see one output_dir and have the same packages, then repeat the command"
            )


def synchronize(mesh: Mesh) -> None:
    """Waits until all processes of a mesh are here, and lets them add up for the first time.

    On CPUs, who comes 30 s late to the first sum of some devices breaks it: process 0 may have more
    to load, one reads from a slower disk, another compiles for longer. So the first sums of all
    devices, and of those along each axis, are here.
    """
    from jax._src import distributed  # a barrier of devices would be such a sum itself

    members = processes_of(mesh)
    _MEETINGS[members] += 1
    name = f"lmsi_meet_{members[0]}_{members[-1]}_{_MEETINGS[members]}"
    client = distributed.global_state.client
    assert client is not None  # or there would be no other process' devices
    client.wait_at_barrier(name, timeout_in_ms=_LATEST, process_ids=members)
    jax.block_until_ready(_first_sums(mesh)(_spread(mesh, (0, 0))))


def processes_of(mesh: Mesh) -> tuple[int, ...]:
    """The processes that have a mesh's devices."""
    return tuple(sorted({device.process_index for device in mesh.devices.flat}))


@functools.cache
def _first_sums(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Adds along all axes at once, and along each."""
    names = mesh.axis_names

    def added(told: jax.Array) -> jax.Array:
        """A device's own row, with all sums that it has a part in."""
        return sum((jax.lax.psum(told, name) for name in names), start=jax.lax.psum(told, names))

    rows = PartitionSpec(names)
    return jax.jit(jax.shard_map(added, mesh=mesh, in_specs=rows, out_specs=rows))


@functools.cache
def _reduced(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """[devices, 2] -> (the largest first number, the smallest and the largest second one)."""
    return jax.jit(
        lambda told: jnp.stack([told[:, 0].max(), told[:, 1].min(), told[:, 1].max()]),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )


def _spread(mesh: Mesh, own: tuple[int, int]) -> jax.Array:
    """One row for each device, [devices, 2] int32; this process fills those of its own."""
    row = np.array([own], np.int32)
    by_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback((mesh.size, 2), by_device, lambda _: row)
