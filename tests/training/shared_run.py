"""one_run's training, on a mesh of four devices that one or two processes have.

    python shared_run.py FOLDER SETTINGS [ADDRESS COUNT INDEX]

SETTINGS are JSON, over one_run's; with "disagree" process 1 reads other rows than process 0, with
"fail" its disk is full at step 5. Each process prints "step N" as a step begins.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys

import one_run
from virtual_devices import environment

MESH = {"data": 2, "model": 2, "fsdp": True}
HERE = os.path.dirname(os.path.abspath(__file__))


def start(folder, count, settings=None, compiled=None):
    """Starts the program in `count` processes, which have four devices together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    variables = environment(4 // count, TF_CPP_MIN_LOG_LEVEL="3")
    if compiled is not None:
        variables["JAX_COMPILATION_CACHE_DIR"] = compiled
        variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    arguments = [str(folder), json.dumps(MESH | (settings or {}))]
    together = [[address, str(count), str(index)] for index in range(count)]
    return [
        subprocess.Popen(
            [sys.executable, os.path.join(HERE, "shared_run.py"), *arguments, *own],
            env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for own in (together if count > 1 else [[]])
    ]  # fmt: skip


def ended(programs):
    """Waits; returns the exit codes, and what was said on stderr."""
    errors = [program.communicate(timeout=600)[1] for program in programs]
    return [program.returncode for program in programs], errors


def signalled(programs, sent, after, to=None):
    """Sends a signal to some (to all) when the first of them has begun some steps.

    Returns:
      Exit codes, and what was said on stderr.
    """
    steps = (line for line in programs[0].stdout if line.startswith("step "))  # Gloo talks too
    for number, _ in enumerate(steps, start=1):
        if number == after:
            for program in programs if to is None else [programs[index] for index in to]:
                program.send_signal(sent)
    return ended(programs)


def _go_wrong(settings, index):
    """Takes what is to go wrong out of the settings, and lets it happen in process 1."""
    from lmsi_jax.errors import LmsiError
    from lmsi_jax.training import trainer

    disagree, fail = settings.pop("disagree", False), settings.pop("fail", False)
    rows, step, begun = one_run.rows, trainer.train_step, itertools.count(1)

    def failing(*args):
        if next(begun) == 5:
            raise LmsiError("the disk is full")
        return step(*args)

    if disagree and index == 1:
        one_run.rows = lambda: itertools.islice(rows(), 1, None)
    if fail and index == 1:
        trainer.train_step = failing


def main(folder, settings, address=None, count="1", index="0"):
    """The program; exit code 143 after SIGTERM."""
    from lmsi_jax.errors import LmsiError
    from lmsi_jax.runtime import processes
    from lmsi_jax.runtime.signals import Terminated, signals_as_exceptions
    from lmsi_jax.training import trainer

    if address is not None:
        processes.connect(address, int(count), int(index))
    settings = json.loads(settings)
    trainer.train_step = one_run.announced(trainer.train_step)
    _go_wrong(settings, int(index))
    code = 0
    try:
        with signals_as_exceptions(), processes.Processes().joined():
            one_run.run(folder, **settings)
    except Terminated:
        code = 128 + signal.SIGTERM
    except LmsiError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    processes.disconnect()
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
