"""A Cloud TPU queued resource and a run on it, as gcloud's commands."""

import dataclasses
import pathlib
from collections.abc import Sequence

from launch import worker
from launch.commands import Command
from lmsi_jax.errors import LmsiError

# Accelerator's family: the TPU software that Cloud TPU's documentation names for it.
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
# A machine that was taken away does not end its connections: after 90 seconds ssh does.
_ALIVE = "--ssh-flag=-oServerAliveInterval=30"
CAPACITIES = ("on_demand", "spot", "reserved", "guaranteed")


def runtime_of(accelerator_type: str) -> str:
    """The TPU software for an accelerator.

    Raises:
      LmsiError: it is none of those known here.
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
      name, project, zone: where it is.
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
        """Asks for the resource."""
        words = [self.name, f"--node-id={self.name}", f"--accelerator-type={accelerator_type}"]
        words.append(f"--runtime-version={runtime_version}")
        if capacity != "on_demand":
            words.append(f"--{capacity}")
        if service_account is not None:
            words.append(f"--service-account={service_account}")
        return self._queue("create", "where there is none: ask for the pod", *words, *flags)

    @property
    def state(self) -> Command:
        """Prints "NAME,STATE" of every queued resource there."""
        return self._queue(
            "list",
            "again and again: is it ACTIVE, or was it taken away (SUSPENDED)?",
            "--format=csv[no-heading](name.basename(),state.state)",
        )

    def state_in(self, printed: str) -> str | None:
        """Finds this resource's state in what `state` printed; None where there is none."""
        lines = dict(line.strip().partition(",")[::2] for line in printed.splitlines())
        return lines.get(self.name)

    @property
    def delete(self) -> Command:
        """Gives the resource back."""
        words = (self.name, "--force")
        return self._queue("delete", "where it is to end, or was taken away: delete it", *words)

    def copy(self, wheel: str) -> Command:
        """Copies a wheel into each worker's home folder."""
        argv = ("gcloud", "compute", "tpus", "tpu-vm", "scp", wheel, f"{self.name}:", *self._place)
        return Command(
            argv=(*argv, "--quiet", "--worker=all", *self.ssh_flags),
            why="once it is ACTIVE: the wheel, to every worker",
        )

    def install(self, package: str, python: str) -> Command:
        """Installs a requirement, or a wheel that `copy` has copied."""
        name = pathlib.PurePath(package).name if package.endswith(".whl") else package
        script = worker.install_script(name, python)
        return self._ssh(script, "then: install the package on every worker")

    def start(self, words: Sequence[str], max_restarts: int, stop_seconds: int) -> Command:
        """Starts `lmsi` with these words on every worker."""
        script = worker.start_script(words, max_restarts, stop_seconds)
        return self._ssh(script, "then: start the run on every worker, and again when it fails")

    @property
    def health(self) -> Command:
        """Prints the state of the run on every worker; see `worker.states`."""
        return self._ssh(worker.health_script(), "again and again: has the run ended?")

    @property
    def stop(self) -> Command:
        """Ends the run, not the resource."""
        return self._ssh(worker.stop_script(), "end the run; it can be taken up again")

    def logs(self, workers: str, lines: int, follow: bool) -> Command:
        """Prints what the run said."""
        return self._ssh(worker.logs_script(lines, follow), "what the run says", workers)
