"""What this machine can do at most, measured here and now: python -m bench.machine

Prints JSON. The matmul rate is the best over a few large square float32 products in JAX, with all
cores. The bandwidth is the best rate at which an array much larger than the last cache is read
once from end to end and reduced to one number, as decoding reads its weights: hardly anything is
written, and each byte takes one cheap operation. Two readers are tried, one thread per core that
takes NumPy's maximum of its part, and JAX's own sum; a loaded machine gives too low figures.
"""

import concurrent.futures
import json
import os
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

_SIZES = (1024, 2048, 3072, 4096)
_READ_FLOATS = 1 << 27  # 512 MiB


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _best_seconds(work: Callable[[], object], repeats: int) -> float:
    """The shortest of several runs, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def matmul_rate(repeats: int = 8) -> float:
    """Float32 FLOP/s of the best large matrix product."""
    product = jax.jit(jnp.matmul)
    rates = []
    for size in _SIZES:
        x = jax.random.normal(jax.random.key(size), (size, size), jnp.float32)
        seconds = _best_seconds(lambda x=x: product(x, x).block_until_ready(), repeats)
        rates.append(2 * size**3 / seconds)
    return max(rates)


def bandwidth(repeats: int = 8) -> float:
    """Bytes read per second from memory, all cores reading."""
    values = np.ones(_READ_FLOATS, np.float32)
    parts = np.array_split(values, cores())
    with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
        threads = _best_seconds(lambda: list(pool.map(np.max, parts)), repeats)
    device = jnp.asarray(values)
    total = jax.jit(jnp.sum)
    compiled = _best_seconds(lambda: total(device).block_until_ready(), repeats)
    return values.nbytes / min(threads, compiled)


def measure() -> dict[str, object]:
    """The machine's rates and what they were measured on."""
    return {
        "matmul_flops_per_s": matmul_rate(),
        "read_bytes_per_s": bandwidth(),
        "cores": cores(),
        "processor": _processor(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    print(json.dumps(measure()))
