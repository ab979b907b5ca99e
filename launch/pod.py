"""A Cloud TPU queued resource and a run on it, as gcloud's commands."""

import dataclasses
import pathlib
from collections.abc import Sequence

from launch import worker
from launch.commands import Command
from lmsi_jax.errors import LmsiError

# Family of accelerators -> TPU software, by the documentation of Cloud TPU.
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
# A preempted machine does not close its connections; ssh does after 90 seconds.
_ALIVE = "--ssh-flag=-oServerAliveInterval=30"
CAPACITIES = ("on_demand", "spot", "reserved", "guaranteed")


def runtime_of(accelerator_type: str) -> str:
    """Returns the TPU software of an accelerator.

    Raises:
      LmsiError: the accelerator is unknown.
    """
    family = accelerator_type.partition("-")[0]
    if family not in RUNTIMES:
        raise LmsiError(
            f"--accelerator_type={accelerator_type}: which TPU software? Add --runtime_version=... "
            f"(known here: {', '.join(RUNTIMES)})"
        )
    return RUNTIMES[family]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pod:
    """A queued resource of one node, both called `name`.

    Attributes:
      name, project, zone: name and place of the resource.
      ssh_flags: further flags of gcloud's ssh and scp.
    """

    name: str
    project: str
    zone: str
    ssh_flags: tuple[str, ...] = ()

    @property
    def _place(self) -> tuple[str, ...]:
        return (f"--project={self.project}", f"--zone={self.zone}")

    def _queue(self, verb: str, why: str, *words: str) -> Command:
        argv = ("gcloud", "compute", "tpus", "queued-resources", verb, *words)
        return Command(argv=(*argv, *self._place, "--quiet"), why=why)

    def _ssh(self, script: str, why: str, workers: str = "all") -> Command:
        argv = ("gcloud", "compute", "tpus", "tpu-vm", "ssh", self.name, *self._place, "--quiet")
        flags = (f"--worker={workers}", _ALIVE, *self.ssh_flags, f"--command={script}")
        return Command(argv=(*argv, *flags), why=why)

    def create(
        self,
        accelerator_type: str,
        runtime_version: str,
        capacity: str = "on_demand",
        service_account: str | None = None,
        flags: Sequence[str] = (),
    ) -> Command:
        """Returns the command that requests the resource."""
        words = [self.name, f"--node-id={self.name}", f"--accelerator-type={accelerator_type}"]
        words.append(f"--runtime-version={runtime_version}")
        if capacity != "on_demand":
            words.append(f"--{capacity}")
        if service_account is not None:
            words.append(f"--service-account={service_account}")
        return self._queue("create", "if there is none: request the pod", *words, *flags)

    @property
    def state(self) -> Command:
        """Prints "NAME,STATE" of every queued resource there."""
        return self._queue(
            "list",
            "repeatedly: is it ACTIVE, or was it preempted (SUSPENDED)?",
            "--format=csv[no-heading](name.basename(),state.state)",
        )

    def state_in(self, printed: str) -> str | None:
        """Returns the state of this resource from the output of `state`, or None."""
        lines = dict(line.strip().partition(",")[::2] for line in printed.splitlines())
        return lines.get(self.name)

    @property
    def delete(self) -> Command:
        """Deletes the resource."""
        words = (self.name, "--force")
        return self._queue("delete", "at the end, or after a preemption: delete it", *words)

    def copy(self, wheel: str) -> Command:
        """Returns the command that copies a wheel to the home folder of each worker."""
        argv = ("gcloud", "compute", "tpus", "tpu-vm", "scp", wheel, f"{self.name}:", *self._place)
        return Command(
            argv=(*argv, "--quiet", "--worker=all", *self.ssh_flags),
            why="once it is ACTIVE: the wheel, to every worker",
        )

    def install(self, package: str, python: str) -> Command:
        """Returns the command that installs a requirement, or a wheel that `copy` has copied."""
        name = pathlib.PurePath(package).name if package.endswith(".whl") else package
        script = worker.install_script(name, python)
        return self._ssh(script, "then: install the package on every worker")

    def start(self, words: Sequence[str], max_restarts: int, stop_seconds: int) -> Command:
        """Returns the command that starts `lmsi` with these arguments on every worker."""
        script = worker.start_script(words, max_restarts, stop_seconds)
        return self._ssh(script, "then: start the run on every worker, and again when it fails")

    @property
    def health(self) -> Command:
        """Prints the state of the run on every worker; see `worker.states`."""
        return self._ssh(worker.health_script(), "repeatedly: has the run ended?")

    @property
    def stop(self) -> Command:
        """Ends the run, not the resource."""
        return self._ssh(worker.stop_script(), "end the run; it can be resumed")

    def logs(self, workers: str, lines: int, follow: bool) -> Command:
        """Returns the command that prints the output of the run."""
        return self._ssh(worker.logs_script(lines, follow), "the output of the run", workers)
