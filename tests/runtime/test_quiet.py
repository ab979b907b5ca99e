"""What stays off the console of the command, and what must never be lost."""

import signal
import subprocess
import sys

_START = (
    "import os, sys, logging\n"
    "from lmsi_jax.runtime.progress import quiet_libraries\nquiet_libraries()\n"
)


def _stderr(code):
    done = subprocess.run(
        [sys.executable, "-c", _START + code], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stderr


def test_only_the_libraries_chatter_is_dropped():
    lines = [
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        "I0000 00:00:1700000000.1 4 port.cc:153] oneDNN custom operations are on.",
        "W0000 00:00:1700000000.1 4 gpu.cc:7] a warning",
        "normalizer.cc(51) LOG(INFO) precompiled_charsmap is empty. use identity normalization.",
        "I am no log line",
    ]
    code = f"os.write(2, {(chr(10).join(lines) + chr(10)).encode()!r})\n"
    assert _stderr(code) == (0, f"{lines[2]}\n{lines[4]}\n")


def test_our_warnings_and_tracebacks_are_seen_and_absls_are_not():
    code = (
        "from absl import logging as absl_logging\n"
        "absl_logging.warning('Metadata file does not exist')\n"
        "logging.getLogger('lmsi_jax.runtime.store').warning('a shard was damaged')\n"
        "raise ValueError('a bug')\n"
    )
    returned, text = _stderr(code)
    assert returned == 1
    assert "a shard was damaged" in text and "ValueError: a bug" in text
    assert "Metadata" not in text


def test_the_last_words_of_a_dying_process_are_seen():
    returned, text = _stderr("os.write(2, b'F0000 check failed\\n')\nos.abort()\n")
    assert returned == -signal.SIGABRT and "check failed" in text


def test_a_checkpoint_that_a_full_disk_stops_is_told_once(tmp_path):
    """Its threads and loops would each write a traceback of their own."""
    code = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "import jax\n"
        "from lmsi_jax.errors import LmsiError\n"
        "from lmsi_jax.training.checkpoints import Checkpoints\n"
        f"saved = Checkpoints({str(tmp_path)!r}, background=True)\n"
        "noise = {f'a{i}': jax.random.normal(jax.random.key(i), (256, 256)) for i in range(9)}\n"
        "try:\n    saved.save(1, noise)\n    saved.wait()\n"
        "except LmsiError as error:\n    print(error, file=sys.stderr)\n"
    )
    returned, text = _stderr(code)
    assert returned == 0
    assert text.count("\n") == 1 and "File too large; make room on the disk" in text
