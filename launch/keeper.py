"""Keeps a run going on a pod that may be taken away: asks for it, starts the run, begins again."""

import dataclasses
import sys
import time
from collections.abc import Callable
from subprocess import CompletedProcess

from launch import worker
from launch.commands import Command
from launch.pod import Pod
from lmsi_jax.errors import LmsiError

_TRIES = 5  # a new node answers some time after it is ACTIVE; a network may fail


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervisor:
    """Brings a pod up and keeps a run going on it, by the commands given and no others.

    Attributes:
      pod: asked for its state, and deleted once it was taken away.
      create: asks for the pod.
      prepare: what is done on a new pod, in this order; each may be done again.
      poll: seconds between two looks.
      run, sleep, say: how commands are run, time passes, and news are told.
    """

    pod: Pod
    create: Command
    prepare: tuple[Command, ...]
    poll: float = 60.0
    run: Callable[[Command], CompletedProcess[str]] = Command.run
    sleep: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = _say

    def bring_up(self) -> None:
        """Asks for the pod unless it stands, waits for it, prepares it.

        Raises:
          LmsiError: it cannot be had or prepared.
        """
        said = None
        while (state := self._state()) != "ACTIVE":
            if state != said:
                self.say(f"{self.pod.name}: {state or 'not there, asking for it'}")
            said = state
            if state is None:
                self._run_checked(self.create)
            elif state == "SUSPENDED":
                self._run_checked(self.pod.delete)
            elif state == "FAILED":
                raise LmsiError(
                    f"{self.pod.name} cannot be had (FAILED): `gcloud compute tpus "
                    "queued-resources describe` says why; use `down`, then begin again"
                )
            self.sleep(self.poll)
        self.say(f"{self.pod.name}: ACTIVE")
        for number, command in enumerate(self.prepare):
            self._run_checked(command, 1 if number else _TRIES)

    def supervise(self) -> None:
        """Brings the pod up, and up again whenever it is taken away, until the run has ended.

        Raises:
          LmsiError: the run failed, or somebody deleted the pod or stopped the run.
        """
        self.bring_up()
        while not self._ended():
            state = self._state()
            if state is None:
                raise LmsiError(f"{self.pod.name} was deleted; the same command begins again")
            if state != "ACTIVE":
                self.bring_up()
            self.sleep(self.poll)
        self.say(f"{self.pod.name}: the run has ended; `down` gives the pod back")

    def _ended(self) -> bool:
        """Whether the run has ended well on every worker; False where they do not answer."""
        done = self.run(self.pod.health)
        states = worker.states(done.stdout)
        if done.returncode or not states:
            return False
        if all(finished for _, finished in states):
            return True
        for what in ("failed", "inactive"):
            if any(state == what for state, finished in states if not finished):
                raise LmsiError(
                    f"the run is {'stopped' if what == 'inactive' else what} on a worker; `logs` "
                    "says why; the same command goes on with it"
                )
        return False

    def _state(self) -> str | None:
        return self.pod.state_in(self._run_checked(self.pod.state, _TRIES))

    def _run_checked(self, command: Command, tries: int = 1) -> str:
        """Runs a command until it succeeds; returns what it printed."""
        for attempt in range(tries):
            if attempt:
                self.sleep(self.poll)
            done = self.run(command)
            if done.returncode == 0:
                return done.stdout
        raise LmsiError(
            f"gcloud failed (exit code {done.returncode}; see its message) at: {command.why}"
        )
