"""What runs on each worker of a TPU VM: shell scripts, sent by `gcloud ... ssh --command`.

In the home folder of the user that gcloud logs in as:

    lmsi/venv      the package
    lmsi/run.sh    the run's command
    lmsi/done      is there once it has ended well

A systemd unit called lmsi starts run.sh, also after a reboot, and again whenever it fails without a
mistake of the user's: when one worker is lost all others leave, so they meet again in the next
attempt.
"""

import shlex
from collections.abc import Sequence

from launch.commands import END

UNIT = "lmsi"
_WINDOW = 3600  # seconds in which `max_restarts` are counted


def install_script(package: str, python: str) -> str:
    """Installs the package into lmsi/venv; leaves a run alone that is under way.

    Args:
      package: a requirement, or the name of a wheel in the home folder.
      python: the version; the images bring older ones than lmsi_jax wants.
    """
    wanted = shlex.quote(f"./{package}[tpu]" if package.endswith(".whl") else package)
    return _script(
        f"systemctl is-active --quiet {UNIT} && exit 0",
        "PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv",
        f"python3 -m uv venv --quiet --allow-existing --python={python} lmsi/venv",
        "python3 -m uv pip install --quiet --python=lmsi/venv/bin/python "
        f"--reinstall-package=lmsi_jax {wanted}",
    )


def start_script(words: Sequence[str], max_restarts: int, stop_seconds: int) -> str:
    """Writes run.sh and the unit, and starts it; leaves the same run alone that is under way.

    Args:
      words: lmsi's arguments; printable.
      max_restarts: the unit fails for good at so many starts within an hour.
      stop_seconds: from SIGTERM to SIGKILL.
    """
    lmsi = shlex.join([*words, "--coordinator_address=auto"])
    return _script(
        "mkdir -p lmsi",
        f"cat > lmsi/next.sh <<\\{END}",
        # A worker that reboots after the end does not begin again, alone.
        "test -e done && exit 0",
        f"venv/bin/lmsi {lmsi} && touch done",
        END,
        f"if systemctl is-active --quiet {UNIT}; then",
        "  cmp -s lmsi/next.sh lmsi/run.sh && exit 0",
        '  echo "another run is under way here; end it first, with stop" >&2',
        "  exit 1",
        "fi",
        "mv lmsi/next.sh lmsi/run.sh",
        "rm -f lmsi/done",
        f"sudo tee /etc/systemd/system/{UNIT}.service > /dev/null <<{END}",
        *_unit(max_restarts, stop_seconds),
        END,
        "sudo systemctl daemon-reload",
        f"sudo systemctl enable --quiet {UNIT}",
        f"sudo systemctl reset-failed {UNIT} 2> /dev/null || true",  # fails where none failed
        f"sudo systemctl start --no-block {UNIT}",
    )


def _unit(max_restarts: int, stop_seconds: int) -> tuple[str, ...]:
    """The lines of the unit's file; the worker's shell fills in its user."""
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
        # 2 is a user's mistake, which the next attempt would find again; a worker whose partner is
        # gone exits with 75.
        "Restart=on-failure",
        "RestartPreventExitStatus=2",
        "RestartSec=30",
        f"TimeoutStopSec={stop_seconds}",
        "[Install]",
        "WantedBy=multi-user.target",
    )


def health_script() -> str:
    """Prints a line for `states`."""
    return (
        f'echo "lmsi: $(systemctl show --property=ActiveState --value {UNIT})'
        ' $(test -e lmsi/done && echo done || echo open)"'
    )


def states(printed: str) -> list[tuple[str, bool]]:
    """Reads what `health_script` printed on all workers: (the unit's state, whether it is done)."""
    lines = [line.split() for line in printed.splitlines() if line.startswith("lmsi: ")]
    return [(line[1], line[2:] == ["done"]) for line in lines if len(line) == 3]


def stop_script() -> str:
    """Ends the run with SIGTERM and waits for it: training saves its step."""
    return f"sudo systemctl disable --now {UNIT}"


def logs_script(lines: int, follow: bool) -> str:
    """Prints what the run has said last, over all its attempts."""
    more = " --follow" if follow else ""
    return f"sudo journalctl --unit={UNIT} --no-pager --output=cat --lines={lines}{more}"


def _script(*lines: str) -> str:
    return "\n".join(["set -eu", *lines])
