"""Keeps a run going on a pod that may be preempted: requests it, starts the run, restarts it."""

import dataclasses
import sys
import time
from collections.abc import Callable
from subprocess import CompletedProcess

from launch import worker
from launch.commands import Command
from launch.pod import Pod
from lmsi_jax.errors import LmsiError

_TRIES = 5  # a new node answers some time after it is ACTIVE, and networks fail


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervisor:
    """Brings a pod up and keeps a run going on it, by the commands given and no others.

    Attributes:
      pod: the pod.
      create: the command that requests the pod.
      prepare: the commands for a new pod, in order; each may run several times.
      poll: seconds between two checks.
      run, sleep, say: functions that run a command, wait, and report news.
    """

    pod: Pod
    create: Command
    prepare: tuple[Command, ...]
    poll: float = 60.0
    run: Callable[[Command], CompletedProcess[str]] = Command.run
    sleep: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = _say

    def bring_up(self) -> None:
        """Requests the pod unless it exists, waits for it and prepares it.

        Raises:
          LmsiError: the pod is unavailable or cannot be prepared.
        """
        last_state = None
        while (state := self._state()) != "ACTIVE":
            if state != last_state:
                self.say(f"{self.pod.name}: {state or 'not there, asking for it'}")
            last_state = state
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
        """Brings the pod up, again after each preemption, until the run has ended.

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
        """Returns True if the run has succeeded on every worker, False if they do not answer."""
        done = self.run(self.pod.health)
        states = worker.states(done.stdout)
        if done.returncode or not states:
            return False
        if all(finished for _, finished in states):
            return True
        for outcome in ("failed", "inactive"):
            if any(state == outcome for state, finished in states if not finished):
                raise LmsiError(
                    f"the run is {'stopped' if outcome == 'inactive' else outcome} on a worker; "
                    "`logs` says why; repeat the command to resume"
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
