"""Prints the table of docs/pods.md from files of `lmsi aot ... --json=FILE`.

Run: python bench/pods.py docs/pods/*.json
"""

import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

_GIB = 2**30
_HEAD = (
    "command, `--json` aside", "chips", "arguments + temporaries, of GiB a chip", "FLOPs a chip",
    "GB a chip over the links", "least time, s: compute / HBM / links", "compiler, s", "gives",
)  # fmt: skip
_SHORT = {
    "all-gather": "gathered", "all-reduce": "all-reduced", "reduce-scatter": "scattered",
    "collective-permute": "permuted", "all-to-all": "all-to-all",
}  # fmt: skip


def rows(found: dict[str, Any]) -> Iterator[list[str]]:
    """Yields the rows of a file, one for each program."""
    for name in ("train", "sample"):
        if name in found:
            command = f"`lmsi aot {found['run']} --topology={found['topology']} --what={name}`"
            yield [command, str(found[name]["chips"]), *_cells(found, name)]


def _cells(found: dict[str, Any], name: str) -> list[str]:
    program, memory = found[name], found["chip"]["memory"]
    if not program["fits"]:
        return [f"does not fit: {program['refusal']}", "", "", "", "", program["advice"][0]]
    arguments, rest = program["arguments"], program["peak"] - program["arguments"]
    sizes = f"{arguments / _GIB:.1f} + {rest / _GIB:.1f} of {memory / _GIB:.1f}"
    share = f"{100 * program['peak'] / memory:.0f} %"
    return [
        f"{sizes}, {share}", f"{program['flops']:.2e}", _traffic(program),
        _times(program["roofline"]), f"{program['compiler_seconds']:.3g}", _gives(found, name),
    ]  # fmt: skip


def _traffic(program: dict[str, Any]) -> str:
    """Formats the traffic of collectives by kind, the largest first."""
    sizes = {kind: one["bytes"] / 1e9 for kind, one in program["collectives"].items()}
    order = sorted(sizes, key=lambda kind: -sizes[kind])
    whole = sum(sizes.values())
    told = [f"{sizes[k]:.3g} {_SHORT.get(k, k)}" for k in order if sizes[k] > 0.01 * whole]
    return ", ".join(told)


def _times(roofline: dict[str, Any]) -> str:
    """Formats the three times, the largest in bold."""
    told = []
    for name in ("compute", "memory", "links"):
        time = f"{roofline[name]:.3g}"
        told.append(f"**{time}**" if name == roofline["bound"] else time)
    return " / ".join(told)


def _gives(found: dict[str, Any], name: str) -> str:
    if name == "train":
        return f"{found['train']['tokens'] / found['train']['roofline']['seconds']:,.0f} tokens/s"
    rate = found["sample"]["rate"]["questions_per_hour"]
    return f"{rate:,.0f} questions/h, {rate / found['chips']:,.0f} a chip"


def main(paths: list[str]) -> None:
    """Prints the table."""
    print(f"| {' | '.join(_HEAD)} |\n|{'---|' * len(_HEAD)}")
    for path in paths:
        for row in rows(json.loads(pathlib.Path(path).read_text(encoding="utf-8"))):
            print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
