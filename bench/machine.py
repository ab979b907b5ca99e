"""Measures the peak rates of this machine: python -m bench.machine

Prints JSON. The matmul rate is the best over a few large square products in JAX, by type of the
factors: float32; bfloat16 with sums and results in float32; int8 with those in int32. The bandwidth
is the best rate at which an array much larger than the last cache is read once from end to end and
reduced to one number, as decoding reads its weights: hardly anything is written, and each byte
takes one cheap operation. JAX's own sum is tried, and on a CPU one thread per core that takes
NumPy's maximum of its part; a loaded machine gives too low figures.
"""

import concurrent.futures
import functools
import json
import os
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# Of a CPU, and of an accelerator.
_SIZES = {True: (1024, 2048, 3072, 4096), False: (4096, 8192)}
# Of a product's factors, and of its result.
_TYPES = {"float32": "float32", "bfloat16": "float32", "int8": "int32"}
_ENOUGH = 4.0  # seconds: without instructions for a type a large product takes minutes
_READ_FLOATS = {True: 1 << 27, False: 1 << 30}  # 512 MiB, 4 GiB


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _best_seconds(work: Callable[[], object], repeats: int) -> float:
    """Returns the shortest of several runs, after a warm-up; of fewer if they take long."""
    work()
    times: list[float] = []
    while len(times) < repeats and sum(times) < _ENOUGH:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def matmul_rate(dtype: str = "float32", repeats: int = 8) -> float:
    """Returns the operations per second of the fastest large matrix product."""
    product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=_TYPES[dtype]))
    rates: list[float] = []
    for size in _SIZES[_on_cpu()]:
        if rates and 2 * size**3 / rates[-1] > _ENOUGH:
            break
        x = (8 * jax.random.normal(jax.random.key(size), (size, size))).astype(dtype)
        seconds = _best_seconds(lambda x=x: product(x, x).block_until_ready(), repeats)
        rates.append(2 * size**3 / seconds)
    return max(rates)


def bandwidth(repeats: int = 8) -> float:
    """Returns the bytes per second that all cores together read from memory."""
    values = jnp.ones(_READ_FLOATS[_on_cpu()], jnp.float32)
    total = jax.jit(jnp.sum)
    best = _best_seconds(lambda: total(values).block_until_ready(), repeats)
    if _on_cpu():
        parts = np.array_split(np.asarray(values), cores())
        with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
            best = min(best, _best_seconds(lambda: list(pool.map(np.max, parts)), repeats))
    return values.nbytes / best


def measure() -> dict[str, object]:
    """Returns the rates of the machine and its description."""
    return {
        "matmul_flops_per_s": {dtype: matmul_rate(dtype) for dtype in _TYPES},
        "read_bytes_per_s": bandwidth(),
        "cores": cores(),
        "processor": _processor(),
        "instructions": _instructions(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def _instructions() -> list[str]:
    """Returns the processor's instruction sets that matrix products use, if the system says."""
    wanted = ("amx_", "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "asimd", "sve")
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return []
    return [name for name in flags.split() if name.startswith(wanted)]


def _processor() -> str:
    """Returns the name of the processor, if the system states it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    print(json.dumps(measure()))
