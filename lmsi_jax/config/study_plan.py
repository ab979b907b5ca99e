"""A study, as a gin file of gin_configs/studies describes it: `Study.NAME`, `x/Variant.NAME`."""

import dataclasses
import re
from typing import Literal

from lmsi_jax.errors import LmsiError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Command = Literal["run", "mix", "pretrain", "distill"]
Measure = Literal["accuracy", "rounds", "sizes", "paths", "shift"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run the study's configuration.

    Attributes:
      name: of its folder.
      label: what tables and plots call it; "" for its name.
      bindings: gin's, as "Mixing.formats = ('few_shot_cot',)", after those of file and command
        line. "{study}" stands for the study's folder, "{seed}" for the seed.
      command: which stages: "run" all, "mix" up to the training examples, "pretrain" a base model,
        "distill" a student's.
      each_seed: whether there is a run for each seed, or one for all.
      shown: whether the study's table has it; what only prepares others is not shown.
      seconds: what one of its runs is expected to take on two idle cores, what it shares with runs
        before it left out. The study says what is left by them, and by the pace of its runs so far.
      paper: what a paper found, as (prompt style, text) pairs, to stand in the table.
    """

    name: str
    label: str = ""
    bindings: tuple[str, ...] = ()
    command: Command = "run"
    each_seed: bool = True
    shown: bool = True
    seconds: float = 0.0
    paper: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise LmsiError(f"Variant.name = {self.name!r}; use letters, digits and . _ -")
        for binding in self.bindings:
            if "=" not in binding:
                raise LmsiError(f"variant {self.name!r}: {binding!r} has no value; NAME = VALUE")

    @property
    def title(self) -> str:
        """What tables and plots call it."""
        return self.label or self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Variants of a run, several seeds.

    Attributes:
      name: of its folder.
      question: what is asked, a sentence; the table's and the page's title.
      source: the figures of a paper that stand beside.
      variants: in the table's order; each may use what those before it left.
      reference: the variant that others are compared with; "" for none.
      against: whether it is the reference "after" its rounds or "before" them.
      measure: what the table is of: "accuracy", the same by "rounds" or by the base's "sizes", the
        vote's by the number of "paths", or the share of right rows by distribution "shift".
      by_task: whether the table has each task beside the means over tasks.
      seeds: each fixes questions, noise and training order.
      seconds: what the runs of a seed share and the first of them does, as `Variant.seconds`.
      output_dir: holds the studies' folders; a run's is OUTPUT_DIR/STUDY/VARIANT/seedN.
    """

    name: str
    question: str
    variants: tuple[Variant, ...]
    source: str = ""
    reference: str = ""
    against: Literal["before", "after"] = "after"
    measure: Measure = "accuracy"
    by_task: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)
    seconds: float = 0.0
    output_dir: str = "runs/studies"

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise LmsiError(f"Study.seeds = {self.seeds}; name one or more different seeds")
        if len(set(names)) < len(names) or not any(variant.shown for variant in self.variants):
            raise LmsiError("Study.variants wants different names, and one at least that is shown")
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
        """Holds the study's runs and what was made of them."""
        return f"{self.output_dir.rstrip('/')}/{self.name}"
