"""JAX's caches of compiled programs, in a process that runs many models one after the other."""

import pathlib

import jax

_MAPS = pathlib.Path("/proc/self/maps")
_MANY = 30_000


def clear_if_large() -> None:
    """Lets compiled programs go where they have become many.

    A process may map 65,530 areas of memory on Linux, a program takes several, and XLA crashes
    without one. Elsewhere nothing is known of that, and nothing done.
    """
    if _MAPS.exists() and len(_MAPS.read_bytes().splitlines()) > _MANY:
        jax.clear_caches()
