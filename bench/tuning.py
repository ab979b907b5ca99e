"""Environment settings of a tuned run on a CPU, and the flag that labels such a run."""

import argparse
import glob
import os
import pathlib
import shutil
import subprocess

EXPLAINED = """\
--tuned only labels the figures: the settings are the environment's, because they must be there
before Python starts. bench/decode.py and bench/train.py give a tuned run those of bench/tuning.py:
LD_PRELOAD with tcmalloc or jemalloc where one is found, MKL's fast kernels on AMD, threads bound to
cores."""
_ALLOCATORS = ("libtcmalloc_minimal.so*", "libtcmalloc.so*", "libjemalloc.so*")
_MKL_SOURCE = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"


def tuned_environment(cores: int, processor: str, folder: pathlib.Path) -> dict[str, str]:
    """Returns the environment variables of a tuned run.

    - An allocator that keeps freed memory, where one is installed: `generate` makes its caches anew
      at each step, and giving the memory back each time costs more than the copy.
    - On AMD, a library that answers MKL's question for an Intel processor with yes: without it MKL
      takes slower kernels there (on one machine with AVX-512, 110 instead of 250 GFLOP/s a core).
    - OpenMP threads that keep to their core.

    Args:
      cores: threads.
      processor: its name.
      folder: where the library is compiled to; it must outlive the run.
    """
    settings = {"OMP_NUM_THREADS": str(cores), "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
    settings |= {"TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD": str(1 << 40)}
    settings |= {"MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}
    preload = [*_allocator(), *(_mkl_answer(folder) if "AMD" in processor else [])]
    return settings | ({"LD_PRELOAD": ":".join(preload)} if preload else {})


def _allocator() -> list[str]:
    """Returns the first allocator in the system's library folders."""
    for pattern in _ALLOCATORS:
        found = sorted(glob.glob(f"/usr/lib/*/{pattern}") + glob.glob(f"/usr/lib*/{pattern}"))
        if found:
            return found[:1]
    return []


def _mkl_answer(folder: pathlib.Path) -> list[str]:
    """Compiles the library; returns [] without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return []
    source, library = folder / "mkl_answer.c", folder / "mkl_answer.so"
    if not library.exists():
        source.write_text(_MKL_SOURCE, encoding="utf-8")
        command = [compiler, "-shared", "-fPIC", "-o", str(library), str(source)]
        subprocess.run(command, check=True, capture_output=True)
    return [str(library)]


def add_flags(flags: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds --tuned."""
    flags.add_argument("--tuned", action="store_true", help="label the run as tuned; see above")
    return flags


def settings(options: argparse.Namespace) -> dict[str, object]:
    """Returns the settings that the figures depend on, those of the environment included."""
    names = ("LD_PRELOAD", "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_WAIT_POLICY")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if "LD_PRELOAD" in given:
        libraries = given["LD_PRELOAD"].replace(":", " ").split()
        given["LD_PRELOAD"] = " ".join(os.path.basename(library) for library in libraries)
    return {"tuned": options.tuned, "environment": given}
