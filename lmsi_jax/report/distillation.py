"""What a distilled student gained, as the terminal shows it and as a report says it.

A result is what `lmsi_jax.stages.distill` writes to `RESULT` in a student's folder.
"""

import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmsi_jax.report.markup import p_value

RESULT = "distillation.json"
SIDES = ("teacher_before", "student_before", "student_after")
_TITLES = {"in": "trained", "out": "others"}


def print_table(result: dict[str, Any]) -> None:
    """Prints the paper's table: means over the tasks, inside and outside of training."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    heads = ("tasks", "prompting", "n", "teacher", "student", "student, distilled", "gain [95 %]")
    for name in (*heads, "p"):
        table.add_column(Text(name))
    for row in result["means"]:
        gain = row["gain"]
        cells = [
            f"{_TITLES[row['domain']]} ({row['tasks']})",
            row["prompting"],
            str(row["n"]),
            *(f"{row[side]:.1f}" for side in SIDES),
            f"{gain['difference']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]",
            p_value(gain["p"]),
        ]
        table.add_row(*map(Text, cells))  # as they are: rich would read "[95 %]" as markup
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(_sizes(result), markup=False)
    console.print(table)


def _sizes(result: dict[str, Any]) -> str:
    sizes = [f"{result[side]['parameters']:,} parameters" for side in ("teacher", "student")]
    return f"teacher {sizes[0]}, student {sizes[1]}; percent right"


def sentences(result: dict[str, Any]) -> list[str]:
    """Returns the table in words, for a report's notes."""
    folder, number = result["teacher"]["folder"], result["teacher"]["round"]
    said = [f"Distilled from round {number} of {folder}: {_sizes(result)}."]
    for row in result["means"]:
        gain = row["gain"]
        said.append(
            f"{_TITLES[row['domain']]}, {row['prompting']}: teacher {row['teacher_before']:.1f}, "
            f"student {row['student_before']:.1f}, distilled {row['student_after']:.1f} "
            f"({gain['difference']:+.1f} points, 95 % {gain['low']:+.1f} to {gain['high']:+.1f}, "
            f"p {p_value(gain['p'])})."
        )
    return said
