"""Takes the text of XLA's compiled programs apart (https://openxla.org/xla/operation_semantics)."""

import dataclasses
import math
import re

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_OPERANDS = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: its own.
      result: the text of its shape.
      operation: such as "fusion"; asynchronous ones have "-start" and "-done".
      operands: names.
      attributes: the text behind the operands.
      literal: the text between the parentheses.
    """

    name: str
    result: str
    operation: str
    operands: tuple[str, ...]
    attributes: str
    literal: str


def parsed(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """Returns the entry's name, and every computation's instructions."""
    entry = ""
    computations: dict[str, list[Instruction]] = {}
    body: list[Instruction] = []
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            body = computations[head[2]] = []
            entry = head[2] if head[1] else entry
            continue
        found = _INSTRUCTION.match(line)
        if found:
            body.append(_instruction(found[1], found[2]))
    return entry, computations


def _instruction(name: str, text: str) -> Instruction:
    """Takes `SHAPE OPERATION(OPERANDS), ATTRIBUTES` apart; a tuple's shape is in parentheses."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    operation, _, rest = text[end:].strip().partition("(")
    close = _closing("(" + rest, 0) - 1
    return Instruction(
        name=name,
        result=text[:end],
        operation=operation,
        operands=tuple(_OPERANDS.findall(rest[:close])),
        attributes=rest[close + 1 :],
        literal=rest[:close],
    )


def _closing(text: str, start: int) -> int:
    """The place of the parenthesis that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at
    return len(text)


def arrays(shape: str) -> list[str]:
    """Returns the arrays that a shape's text names, without layouts."""
    return [f"{kind}[{axes}]" for kind, axes in _ARRAY.findall(shape) if kind in _BYTES]


def array_sizes(shape: str) -> tuple[int, ...]:
    """Returns the axes of the first array that a shape's text names."""
    return sizes(_ARRAY.findall(shape)[0][1])


def sizes(text: str) -> tuple[int, ...]:
    """Reads numbers with commas between them."""
    return tuple(int(size) for size in text.split(",") if size)


def array_bytes(shape: str) -> int:
    """Returns the bytes of all arrays that a shape's text names, tiling and padding not counted."""
    return sum(
        _BYTES[kind] * math.prod(sizes(axes))
        for kind, axes in _ARRAY.findall(shape)
        if kind in _BYTES
    )


def group_size(attributes: str) -> int:
    """Returns the chips in a collective's group.

    Groups are written as {{0,1},{2,3}}, [2,4]<=[8] or mesh['x'=2,'y'=4] {'y'}.
    """
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return len(sizes(listed[1]))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    if iota:
        return int(iota[2])
    mesh = re.search(r"replica_groups=\w*\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
    if mesh:
        axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(axes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    return 1
