"""What the launchers' command lines share: lmsi's words behind "--", and names that may be used."""

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from lmsi_jax.errors import LmsiError

_OUTPUT = "--gin.Run.output_dir="
_OURS = ("--coordinator_address", "--process_count", "--process_index")

# flag: (the pattern of its values, in words)
NAMES = {
    "name": (r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", "at most 40 of a-z, 0-9 and -, a letter first"),
    "project": (r"([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]", "a project's ID, as my-project-1"),
    "zone": (r"[a-z]+-[a-z]+[0-9]+-[a-z0-9]+", "a zone, as us-west4-a"),
    "accelerator_type": (r"v[0-9]+[a-z]*-[0-9]+", "a type and its size, as v5litepod-16"),
    "runtime_version": (r"[a-z0-9][-a-z0-9.]*", "a TPU software version, as v2-alpha-tpuv5-lite"),
    "service_account": (
        r"[a-zA-Z0-9][-a-zA-Z0-9._]*@[-a-zA-Z0-9.]+",
        "an account's e-mail address",
    ),
    "python": (r"3\.1[1-3]", "3.11, 3.12 or 3.13"),
    "worker": (r"all|[0-9]+", "a number, or all"),
    "namespace": (r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", "a namespace's name, as default"),
    "kubernetes_service_account": (
        r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?",
        "a Kubernetes service account",
    ),
    "image": (
        r"[a-z0-9]([-a-z0-9._/:]*[a-z0-9])?(:[A-Za-z0-9_][-A-Za-z0-9._]*)?(@sha256:[0-9a-f]{64})?",
        "an image, as us-docker.pkg.dev/my-project/images/lmsi_jax:1",
    ),
    "bucket": (r"[a-z0-9][-a-z0-9._]{1,61}[a-z0-9]", "a bucket's name, without gs://"),
    "mount": (r"(/[A-Za-z0-9._-]+)+", "an absolute path, as /gcs"),
    "context": (r"[A-Za-z0-9][-A-Za-z0-9_.:/@]*", "a context of kubectl's"),
    "cluster": (r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", "a cluster's name"),
}


class Parser(argparse.ArgumentParser):
    """Reports its errors as everything else does."""

    def error(self, message: str) -> NoReturn:
        raise LmsiError(f"{message}; see {self.prog} --help")


def parser(doc: str | None) -> Parser:
    """A parser that shows a script's docstring as its help."""
    return Parser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def split(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Splits a command line at its first "--": (the launcher's own words, lmsi's)."""
    words = list(argv)
    where = words.index("--") if "--" in words else len(words)
    return words[:where], tuple(words[where + 1 :])


def check_names(**values: str | None) -> None:
    """Refuses what cannot be the name of such a thing; None is not looked at.

    Raises:
      LmsiError: names the flag, its value, and what is possible.
    """
    for flag, value in values.items():
        pattern, words = NAMES[flag]
        if value is not None and not re.fullmatch(pattern, value, re.ASCII):
            raise LmsiError(f"--{flag}={value!r}: it is {words}")


def check_words(words: Sequence[str]) -> None:
    """Refuses arguments that `lmsi` cannot be started with on several machines.

    Raises:
      LmsiError: there are none, or one of them is the launcher's to set or cannot be written down.
    """
    if not words:
        raise LmsiError('write lmsi\'s arguments behind "--", as in "-- run quickstart"')
    if words[0] == "lmsi":
        raise LmsiError('write lmsi\'s arguments alone behind "--", without the word lmsi')
    for word in words:
        if word.partition("=")[0] in _OURS:
            raise LmsiError(f"leave {word} out: the launcher gives each process its own")
        if not word.isprintable():
            raise LmsiError(f"{word!r}: line breaks and control characters cannot be passed on")


def check_shared(words: Sequence[str], places: Sequence[str]) -> None:
    """Refuses a run whose folder its machines do not share: it must lie below one of `places`.

    Raises:
      LmsiError: it lies elsewhere, or is not given.
    """
    given = [word.removeprefix(_OUTPUT) for word in words if word.startswith(_OUTPUT)]
    where = given[-1].strip("'\"") if given else ""
    if not where.startswith(tuple(places)):
        found = f"not {where}" if where else "which is not given"
        raise LmsiError(
            f"all machines must see the run's folder, {found}: add {_OUTPUT}{places[-1]}..."
        )
