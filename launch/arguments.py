"""Shared parts of the launchers' command lines: the arguments of lmsi after "--", valid names."""

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from lmsi_jax.errors import LmsiError

_OUTPUT = "--gin.Run.output_dir="
_OURS = ("--coordinator_address", "--process_count", "--process_index")

# flag: (pattern of its values, description)
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
    """A parser that raises LmsiError instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise LmsiError(f"{message}; see {self.prog} --help")


def parser(doc: str | None) -> Parser:
    """Returns a parser that shows a script's docstring as its help."""
    return Parser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def split(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Splits a command line at its first "--": (arguments of the launcher, arguments of lmsi)."""
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    return words[:end], tuple(words[end + 1 :])


def check_names(**values: str | None) -> None:
    """Checks the values of flags against the patterns of `NAMES`; None is skipped.

    Raises:
      LmsiError: names the flag, its value, and the valid form.
    """
    for flag, value in values.items():
        pattern, words = NAMES[flag]
        if value is not None and not re.fullmatch(pattern, value, re.ASCII):
            raise LmsiError(f"--{flag}={value!r}: it is {words}")


def check_words(words: Sequence[str]) -> None:
    """Checks arguments of `lmsi` that are to be passed to several machines.

    Raises:
      LmsiError: there are none, or the launcher itself sets one, or one is not printable.
    """
    if not words:
        raise LmsiError('write lmsi\'s arguments after "--", as in "-- run quickstart"')
    if words[0] == "lmsi":
        raise LmsiError('write lmsi\'s arguments alone after "--", without the word lmsi')
    for word in words:
        if word.partition("=")[0] in _OURS:
            raise LmsiError(f"leave {word} out: the launcher gives each process its own")
        if not word.isprintable():
            raise LmsiError(f"{word!r}: line breaks and control characters cannot be passed on")


def check_shared(words: Sequence[str], places: Sequence[str]) -> None:
    """Checks that the output folder of a run is below one of `places`, which all machines share.

    Raises:
      LmsiError: the folder is elsewhere, or is not given.
    """
    folders = [word.removeprefix(_OUTPUT) for word in words if word.startswith(_OUTPUT)]
    folder = folders[-1].strip("'\"") if folders else ""
    if not folder.startswith(tuple(places)):
        problem = f"not {folder}" if folder else "which is not given"
        raise LmsiError(
            f"all machines must see the run's folder, {problem}: add {_OUTPUT}{places[-1]}..."
        )
