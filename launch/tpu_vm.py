"""A run on a Cloud TPU pod, requested as a queued resource.

  python launch/tpu_vm.py run --name=gemma --project=P --zone=us-west4-a \\
      --accelerator_type=v5litepod-16 --capacity=spot \\
      --package=dist/lmsi_jax-0.1.0-py3-none-any.whl \\
      -- run CONFIG --gin.Run.output_dir=gs://BUCKET/runs/gemma

  up      request the pod, wait for it, install the package on every worker
  run     up, then start lmsi on every worker; after a preemption again; ends with the run. If this
          command is interrupted, repeat it: it continues from the present state
  status  the state of the pod, and of the run on every worker
  logs    the output of the run
  stop    end the run (SIGTERM: training saves its step), keep the pod
  down    end the run, delete the pod
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Sequence

# Run as a file, Python looks in launch/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import arguments  # noqa: E402
from launch.commands import Command, script, shown  # noqa: E402
from launch.keeper import Supervisor  # noqa: E402
from launch.pod import CAPACITIES, Pod, runtime_of  # noqa: E402
from launch.slices import check_accelerator_type  # noqa: E402
from lmsi_jax.errors import LmsiError  # noqa: E402

_SUBCOMMANDS = ("up", "run", "status", "logs", "stop", "down")


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    flags, words = arguments.split(argv)
    options = _parser().parse_args(flags)
    options.words = words
    _check(options)
    pod = Pod(
        name=options.name,
        project=options.project,
        zone=options.zone,
        ssh_flags=tuple(options.ssh_flag),
    )
    if options.subcommand in ("up", "run"):
        return _keep(pod, options)
    commands = _plain(pod, options)
    if options.dry_run:
        print(shown(commands), end="")
        return 0
    codes = [command.attach() for command in commands]
    return codes[-1]


def make_supervisor(pod: Pod, options: argparse.Namespace) -> Supervisor:
    """Returns the supervisor of `up` and `run`."""
    create = pod.create(
        options.accelerator_type,
        options.runtime_version or runtime_of(options.accelerator_type),
        options.capacity,
        options.service_account,
        options.create_flag,
    )
    package = options.package
    copy = (pod.copy(package),) if package.endswith(".whl") else ()
    prepare = (*copy, pod.install(package, options.python))
    if options.subcommand == "run":
        start = pod.start(options.words, options.max_restarts, options.stop_seconds)
        prepare = (*prepare, start)
    return Supervisor(pod=pod, create=create, prepare=prepare, poll=options.poll_seconds)


def plan(supervisor: Supervisor, run: bool) -> tuple[Command, ...]:
    """Returns all commands of a supervisor, for --dry_run."""
    pod = supervisor.pod
    health = (pod.health,) if run else ()
    return (pod.state, supervisor.create, *supervisor.prepare, *health, pod.delete)


def _keep(pod: Pod, options: argparse.Namespace) -> int:
    supervisor = make_supervisor(pod, options)
    run = options.subcommand == "run"
    if options.dry_run:
        print(shown(plan(supervisor, run)), end="")
    elif run:
        supervisor.supervise()
    else:
        supervisor.bring_up()
    return 0


def _plain(pod: Pod, options: argparse.Namespace) -> tuple[Command, ...]:
    """Returns the commands of the other subcommands, in order."""
    logs = pod.logs(options.worker, options.lines, options.follow)
    return {
        "status": (pod.state, pod.health),
        "logs": (logs,),
        "stop": (pod.stop,),
        "down": (pod.stop, pod.delete),
    }[options.subcommand]


def _check(options: argparse.Namespace) -> None:
    """Refuses values that gcloud or a worker would misunderstand."""
    names = ("name", "project", "zone", "accelerator_type", "runtime_version", "service_account")
    given = {name: getattr(options, name) for name in (*names, "python", "worker")}
    arguments.check_names(**given)
    for flag in (*options.create_flag, *options.ssh_flag):
        text = str(flag)  # argparse makes a list of "--"
        if not re.fullmatch(r"--[a-z][-a-z0-9]*(=.*)?", text) or not text.isprintable():
            raise LmsiError(f"{text!r} is no flag of gcloud's; write --create_flag=--NAME=VALUE")
    if min(options.max_restarts, options.stop_seconds, options.lines) < 1:
        raise LmsiError("--max_restarts, --stop_seconds and --lines are at least 1")
    if options.poll_seconds < 0:
        raise LmsiError("--poll_seconds is at least 0")
    if options.words and options.subcommand != "run":
        raise LmsiError(f"{options.subcommand} takes no arguments of lmsi's; only run does")
    if options.subcommand not in ("up", "run"):
        return
    if options.accelerator_type is None or options.package is None:
        raise LmsiError(f"{options.subcommand} needs --accelerator_type=... and --package=...")
    check_accelerator_type(options.accelerator_type)
    _check_package(options.package)
    if options.subcommand == "run":
        arguments.check_words(options.words)
        arguments.check_shared(options.words, ("gs://",))


def _check_package(package: str) -> None:
    if package.startswith("-") or not package.isprintable() or not package.strip():
        raise LmsiError(f"--package={package!r}: give a wheel's path, or what pip install takes")
    if not package.endswith(".whl"):
        return
    if ":" in package:
        raise LmsiError(f"--package={package}: gcloud takes what is before a colon for a host")
    if not pathlib.Path(package).is_file():
        raise LmsiError(f"--package={package} is not there; make it with python -m build --wheel")


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    add = parser.add_argument
    add("subcommand", choices=_SUBCOMMANDS)
    add("--name", required=True, help="of the pod, and of its one node")
    add("--project", required=True)
    add("--zone", required=True)
    add("--accelerator_type", help="as v5litepod-16 (a v5e of 16 chips)")
    add("--runtime_version", help="TPU software; follows from the accelerator")
    add("--capacity", choices=CAPACITIES, default="on_demand", help="(%(default)s)")
    add("--service_account", help="whom the workers act as; it must see the output_dir")
    add(
        "--package",
        help="a wheel's path, or a requirement as 'lmsi_jax[tpu] @ git+https://...@REF'",
    )
    add("--python", default="3.12", help="Python's version on the workers (%(default)s)")
    add("--max_restarts", type=int, default=10, help="attempts within an hour (%(default)s)")
    add(
        "--stop_seconds",
        type=int,
        default=120,
        help="SIGTERM to SIGKILL (%(default)s; spot has 30)",
    )
    add("--poll_seconds", type=float, default=60.0, help="between two looks (%(default)s)")
    add("--create_flag", action="append", default=[], help="a further flag of gcloud's create")
    add("--ssh_flag", action="append", default=[], help="a further flag of gcloud's ssh and scp")
    add("--worker", default="0", help="logs: whose, a number or all (%(default)s)")
    add("--lines", type=int, default=100, help="logs: how many (%(default)s)")
    add("--follow", action="store_true", help="logs: follow new lines")
    add("--dry_run", action="store_true", help="print the commands, run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(script(main))
