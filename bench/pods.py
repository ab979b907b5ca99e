"""The table of docs/pods.md from the files that `lmsi aot ... --json=FILE` wrote.

Run: python bench/pods.py docs/pods/*.json
"""

import json
import pathlib
import sys
from typing import Any

_GIB = 2**30
_HEAD = (
    "configuration", "topology", "program", "GiB a chip", "of", "FLOPs a chip", "GB received",
    "floor, s", "bound by", "gives",
)  # fmt: skip


def rows(found: dict[str, Any]) -> list[list[str]]:
    """Returns a file's rows, one for each program that it holds."""
    made = []
    for name in ("train", "sample"):
        if name in found:
            made.append([found["run"], found["topology"], name, *_cells(found, name)])
    return made


def _cells(found: dict[str, Any], name: str) -> list[str]:
    program, memory = found[name], found["chip"]["memory"] / _GIB
    if not program["fits"]:
        return ["does not fit", f"{memory:.1f}", "", "", "", "", program["refusal"]]
    floor = program["roofline"]["floor"]
    if name == "train":
        gives = f"{program['tokens'] / floor:,.0f} tokens/s"
    else:
        gives = f"{program['rate']['questions_per_hour']:,.0f} questions/h"
    return [
        f"{program['peak'] / _GIB:.1f}", f"{memory:.1f}", f"{program['flops']:.2e}",
        f"{program['received'] / 1e9:.2f}", f"{floor:.3g}", program["roofline"]["bound"], gives,
    ]  # fmt: skip


def main(paths: list[str]) -> None:
    """Prints the table."""
    print(f"| {' | '.join(_HEAD)} |\n|{'---|' * len(_HEAD)}")
    for path in paths:
        for row in rows(json.loads(pathlib.Path(path).read_text(encoding="utf-8"))):
            print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
