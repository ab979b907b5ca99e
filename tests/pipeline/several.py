"""The command in several processes that see one folder."""

import pathlib
import socket
import subprocess
import sys

from virtual_devices import environment

ROOT = pathlib.Path(__file__).resolve().parents[2]
_LMSI = "import sys\nfrom lmsi_jax.cli.main import main\nsys.exit(main(sys.argv[1:]))\n"


def start(arguments, count, before=None, devices=1, compiled=None):
    """Starts the command in `count` processes, each with some virtual devices.

    Args:
      arguments: the command's.
      count: how many processes.
      before: by process, code that it runs first.
      devices: of each.
      compiled: a folder where programs are kept: the second one starts sooner.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    variables = environment(devices)
    if compiled is not None:
        variables["JAX_COMPILATION_CACHE_DIR"] = str(compiled)
        variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    flags = [f"--coordinator_address={address}", f"--process_count={count}"]
    own = [[*flags, f"--process_index={index}"] for index in range(count)] if count > 1 else [[]]
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-c", (before or {}).get(index, "") + _LMSI),
                *(*arguments, *own[index]),
            ],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def ended(processes):
    """Waits; returns the exit codes, and what was said on stderr."""
    outputs = [process.communicate(timeout=1200) for process in processes]
    return [process.returncode for process in processes], [error for _, error in outputs]


def together(arguments, count, before=None, devices=1, compiled=None):
    """`start`, then `ended`."""
    return ended(start(arguments, count, before, devices, compiled))
