"""Shell scripts for the workers of a TPU VM, sent by `gcloud ... ssh --command`.

They use these files in the home folder of the user that gcloud logs in as:

    lmsi/venv      the package
    lmsi/run.sh    the command of the run
    lmsi/done      exists once the run has succeeded

A systemd unit called lmsi starts run.sh, also after a reboot, and restarts it after any failure
that is not a mistake of the user: if one worker is lost, all others leave and meet in the next
attempt.
"""

import shlex
from collections.abc import Sequence

from launch.commands import END

UNIT = "lmsi"
_WINDOW = 3600  # seconds in which `max_restarts` are counted


def install_script(package: str, python: str) -> str:
    """Returns the script that installs the package into lmsi/venv, unless a run is in progress.

    Args:
      package: a requirement, or the name of a wheel in the home folder.
      python: version of Python; the images have older ones than lmsi_jax needs.
    """
    requirement = shlex.quote(f"./{package}[tpu]" if package.endswith(".whl") else package)
    return _script(
        f"systemctl is-active --quiet {UNIT} && exit 0",
        "PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv",
        f"python3 -m uv venv --quiet --allow-existing --python={python} lmsi/venv",
        "python3 -m uv pip install --quiet --python=lmsi/venv/bin/python "
        f"--reinstall-package=lmsi_jax {requirement}",
    )


def start_script(words: Sequence[str], max_restarts: int, stop_seconds: int) -> str:
    """Returns the script that writes run.sh and the unit and starts it, unless it is running.

    Args:
      words: arguments of lmsi; printable.
      max_restarts: starts within an hour after which the unit fails for good.
      stop_seconds: seconds from SIGTERM to SIGKILL.
    """
    lmsi = shlex.join([*words, "--coordinator_address=auto"])
    return _script(
        "mkdir -p lmsi",
        f"cat > lmsi/next.sh <<\\{END}",
        # A worker that reboots after the end must not start again, alone.
        "test -e done && exit 0",
        f"venv/bin/lmsi {lmsi} && touch done",
        END,
        f"if systemctl is-active --quiet {UNIT}; then",
        "  cmp -s lmsi/next.sh lmsi/run.sh && exit 0",
        '  echo "another run is in progress here; end it first, with stop" >&2',
        "  exit 1",
        "fi",
        "mv lmsi/next.sh lmsi/run.sh",
        "rm -f lmsi/done",
        f"sudo tee /etc/systemd/system/{UNIT}.service > /dev/null <<{END}",
        *_unit(max_restarts, stop_seconds),
        END,
        "sudo systemctl daemon-reload",
        f"sudo systemctl enable --quiet {UNIT}",
        f"sudo systemctl reset-failed {UNIT} 2> /dev/null || true",  # fails if none failed
        f"sudo systemctl start --no-block {UNIT}",
    )


def _unit(max_restarts: int, stop_seconds: int) -> tuple[str, ...]:
    """Returns the lines of the unit file; the shell of the worker fills in the user."""
    return (
        "[Unit]",
        "Description=lmsi_jax",
        "Wants=network-online.target",
        "After=network-online.target",
        f"StartLimitIntervalSec={_WINDOW}",
        f"StartLimitBurst={max_restarts}",
        "[Service]",
        "User=$(id -un)",
        "WorkingDirectory=$HOME/lmsi",
        "ExecStart=/bin/bash run.sh",
        # 2 is a mistake of the user, which another attempt would not cure; a worker that has lost
        # another exits with 75.
        "Restart=on-failure",
        "RestartPreventExitStatus=2",
        "RestartSec=30",
        f"TimeoutStopSec={stop_seconds}",
        "[Install]",
        "WantedBy=multi-user.target",
    )


def health_script() -> str:
    """Returns the script that prints a line for `states`."""
    return (
        f'echo "lmsi: $(systemctl show --property=ActiveState --value {UNIT})'
        ' $(test -e lmsi/done && echo done || echo open)"'
    )


def states(printed: str) -> list[tuple[str, bool]]:
    """Parses the output of `health_script` on all workers: (state of the unit, run has ended)."""
    lines = [line.split() for line in printed.splitlines() if line.startswith("lmsi: ")]
    return [(line[1], line[2:] == ["done"]) for line in lines if len(line) == 3]


def stop_script() -> str:
    """Returns the script that ends the run with SIGTERM, so that training saves its step."""
    return f"sudo systemctl disable --now {UNIT}"


def logs_script(lines: int, follow: bool) -> str:
    """Returns the script that prints the last output of the run, over all attempts."""
    more = " --follow" if follow else ""
    return f"sudo journalctl --unit={UNIT} --no-pager --output=cat --lines={lines}{more}"


def _script(*lines: str) -> str:
    return "\n".join(["set -eu", *lines])
