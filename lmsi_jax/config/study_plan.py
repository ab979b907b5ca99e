"""Set a study: variants of a run, several seeds, and the table that compares them."""

import dataclasses
import re
from typing import Annotated, Literal

from lmsi_jax.config.ranges import at_least, check_fields
from lmsi_jax.errors import LmsiError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Command = Literal["run", "mix", "pretrain", "distill"]
Measure = Literal["accuracy", "rounds", "sizes", "paths", "shift"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One variant of a study's run; a gin file binds it in a scope, `x/Variant.NAME`."""

    name: str
    """Name of the variant's folder: letters, digits and . _ -"""
    label: str = ""
    """Name in tables and plots; "" for `name`."""
    bindings: tuple[str, ...] = ()
    """Gin bindings such as "Mixing.formats = ('few_shot_cot',)", applied after those of the file
    and the command line. "{study}" is replaced by the study's folder, "{seed}" by the seed."""
    command: Command = "run"
    """Stages to run: "run" all of them, "mix" up to the training examples, "pretrain" a base model,
    "distill" a student."""
    each_seed: bool = True
    """Run once for each seed, or once for all."""
    shown: bool = True
    """Show the variant in the study's table; variants that only prepare others are not shown."""
    seconds: Annotated[float, at_least(0, unit="seconds")] = 0.0
    """Expected time of one run on two idle cores, without the stages that it shares with runs
    before it. The study estimates the remaining time from these and from the pace so far."""
    paper: tuple[tuple[str, str], ...] = ()
    """A paper's figures for the table, as (prompt style, text) pairs."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not _NAME.fullmatch(self.name):
            raise LmsiError(f"Variant.name = {self.name!r}; use letters, digits and . _ -")
        for binding in self.bindings:
            if "=" not in binding:
                raise LmsiError(f"variant {self.name!r}: {binding!r} has no value; NAME = VALUE")

    @property
    def title(self) -> str:
        """Name in tables and plots."""
        return self.label or self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Variants of a run, compared over several seeds (`lmsi study`)."""

    name: str
    """Name of the study's folder."""
    question: str
    """Question that the study answers, a sentence; title of the table and the page."""
    variants: tuple[Variant, ...]
    """Variants in the table's order; each may use the results of those before it."""
    source: str = ""
    """Paper of the figures in `Variant.paper`."""
    reference: str = ""
    """Variant that the others are compared with; "" for none."""
    against: Literal["before", "after"] = "after"
    """Compare with the reference "after" its rounds or "before" them."""
    measure: Measure = "accuracy"
    """Contents of the table: "accuracy", accuracy by "rounds" or by "sizes" of the base model, the
    vote's accuracy by number of "paths", or the share of correct rows by distribution "shift"."""
    by_task: bool = False
    """Show each task, besides the means over tasks."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each fixes questions, noise and training order."""
    seconds: Annotated[float, at_least(0, unit="seconds")] = 0.0
    """Expected time of the stages that the runs of a seed share, and that the first of them does;
    see `Variant.seconds`."""
    output_dir: str = "runs/studies"
    """Local folder of all studies; a run is in OUTPUT_DIR/STUDY/VARIANT/seedN."""

    def __post_init__(self) -> None:
        check_fields(self)
        names = [variant.name for variant in self.variants]
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise LmsiError(f"Study.seeds = {self.seeds}; name one or more different seeds")
        if len(set(names)) < len(names) or not any(variant.shown for variant in self.variants):
            raise LmsiError("Study.variants needs different names, and at least one that is shown")
        if self.reference and self.reference not in names:
            raise LmsiError(
                f"Study.reference = {self.reference!r} is none of its variants: {', '.join(names)}"
            )
        measured = ("mix",) if self.measure == "shift" else ("run", "distill")
        for variant in self.variants:
            if variant.shown and variant.command not in measured:
                raise LmsiError(
                    f"variant {variant.name!r} leaves nothing for a table of {self.measure!r}: set "
                    f"its command to {' or '.join(measured)}, or shown to False"
                )
        if "://" in self.output_dir:
            raise LmsiError("a study shares stages by copying local folders; choose a local one")

    @property
    def folder(self) -> str:
        """Folder of the study's runs and results."""
        return f"{self.output_dir.rstrip('/')}/{self.name}"
