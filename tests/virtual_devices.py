"""The environment of a subprocess that has several CPU devices."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]


def environment(devices, **more):
    """Returns this process's variables, with `devices` virtual devices and the package importable.

    XLA's other flags are kept: the subprocess compiles as conftest.py says.
    """
    kept = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "XLA_FLAGS": " ".join([*kept, f"--xla_force_host_platform_device_count={devices}"]),
        **more,
    }
