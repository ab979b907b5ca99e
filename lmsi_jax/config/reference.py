"""Write docs/configuration.md from the dataclasses: `python -m lmsi_jax.config.reference [FILE]`.

Without FILE the page is printed. Everything on it comes from the code: the class and its docstring,
each field's type, range, default, and the string below it.
"""

import ast
import dataclasses
import inspect
import json
import pathlib
import re
import sys
import textwrap
import typing
from collections.abc import Sequence
from typing import Any

from lmsi_jax import config
from lmsi_jax.config.row_filters import FILTERS
from lmsi_jax.config.tracking import TRACKERS
from lmsi_jax.config.value_checks import field_ranges

_WIDTH = 100
_INTRODUCTION = """\
# Configuration reference

All settings of a run, by class. A gin file or a flag binds a field by its gin name:

    Sampling.num_samples = 16                  # in a gin file
    lmsi run quickstart --gin.Sampling.num_samples=16

`lmsi run NAME --dry_run` prints the value of every setting of a configuration and checks it.
A field that holds another class is bound to a reference such as `@Optimizer()`.
This page is written by `python -m lmsi_jax.config.reference docs/configuration.md`.
"""

GROUPS: dict[str, tuple[type, ...]] = {
    "Run": (config.Run,),
    "Model": (
        config.ModelConfig,
        *(config.LinearScaling, config.Llama3Scaling, config.YarnScaling),
        config.LongRopeScaling,
    ),
    "Questions": (config.Questions, config.FileTask, config.Augmentation),
    "Sampling and voting": (config.Chat, config.Sampling, config.Decoding, config.Voting),
    "Selection and mixing": (config.Mixing, *FILTERS),
    "Training": (
        config.Training,
        *(config.Optimizer, config.Loss, config.Lora, config.Preference),
    ),
    "Evaluation": (config.Evaluation, config.CollapseMonitor),
    "Trackers": TRACKERS,
    "Other commands": (config.Pretraining, config.Distillation, config.Study, config.Variant),
}
"""The classes of the page, by heading."""


def field_docs(cls: type) -> dict[str, str]:
    """Returns the string below each field of a dataclass, on one line; also of inherited fields."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        body = typing.cast(ast.ClassDef, node).body
        for statement, following in zip(body, body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                value = following.value if isinstance(following, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    docs[statement.target.id] = " ".join(value.value.split())
    return docs


def page() -> str:
    """Returns the reference as Markdown."""
    parts = [_INTRODUCTION]
    for group, classes in GROUPS.items():
        names = ", ".join(f"[{cls.__name__}](#{cls.__name__.lower()})" for cls in classes)
        parts.append(_wrapped(f"**{group}**: {names}", "- ", "  "))
    parts.append("")
    for group, classes in GROUPS.items():
        parts.append(f"## {group}\n")
        parts += map(_class_section, classes)
    return "\n".join(parts).rstrip() + "\n"


class Entry(typing.NamedTuple):
    """The documentation of a setting."""

    name: str
    """Of the field."""
    type: str
    """Its type and range, in words."""
    default: str
    """"default 0.7", or "required"."""
    text: str
    """Its documentation, on one line."""


def field_entries(cls: type, markdown: bool = False) -> list[Entry]:
    """Returns the documentation of each field of a dataclass that a person sets.

    Args:
      cls: the dataclass.
      markdown: with code marks and links.
    """
    docs, ranges = field_docs(cls), field_ranges(cls)
    hints = typing.get_type_hints(cls)
    entries = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        hint, allowed = hints[field.name], ranges.get(field.name)
        facts, default = _type_name(hint), _default(field)
        if allowed is not None and typing.get_origin(hint) is not typing.Literal:
            words = re.sub("^a (number|share),? ", "", allowed.words)
            facts += f", {words} {allowed.unit}".rstrip()
        if not markdown:
            facts = re.sub(r"\[(\w+)\]\(#\w+\)", r"\1", facts).replace("`", "")
            default = default.replace("`", "").replace("*", "")
        entries.append(Entry(field.name, facts, default, docs[field.name]))
    return entries


def _class_section(cls: type) -> str:
    paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    lines = [f"### {cls.__name__}", ""]
    for paragraph in paragraphs:
        lines += [_wrapped(" ".join(paragraph.split())), ""]
    for entry in field_entries(cls, markdown=True):
        head = f"**`{cls.__name__}.{entry.name}`** ({entry.type}; {entry.default})"
        lines.append(_wrapped(f"{head}: {entry.text}", "- ", "  "))
    return "\n".join(lines) + "\n"


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is dataclasses.MISSING:
        return "**required**"
    value = field.default
    if dataclasses.is_dataclass(value):
        return f"default `@{type(value).__name__}()`"
    if isinstance(value, tuple) and value and all(map(dataclasses.is_dataclass, value)):
        items = "".join(f"@{type(one).__name__}(), " for one in value)
        return f"default `({items.strip()})`"
    return f"default `{_literal(value)}`"


def _literal(value: Any) -> str:
    """Returns a value as gin text, strings in double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _type_name(hint: Any) -> str:
    """Returns the type of a field in Markdown: `int`, `"a"` or `"b"`, [Loss](#loss)."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        *most, last = (f"`{_literal(choice)}`" for choice in args)
        return f"{', '.join(most)} or {last}"
    if hint is type(None):
        return "`None`"
    if dataclasses.is_dataclass(hint):
        name = typing.cast(type, hint).__name__
        return f"[{name}](#{name.lower()})"
    if args and not isinstance(hint, type) and typing.get_origin(hint) is not tuple:
        return " or ".join(map(_type_name, args))
    text = hint.__name__ if isinstance(hint, type) and not args else str(hint)
    text = re.sub(r"typing\.|lmsi_jax(\.\w+)*\.", "", text)
    return f"`{text}`"


def _wrapped(text: str, first: str = "", rest: str = "") -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def main(argv: Sequence[str]) -> None:
    """Writes the page to the file that is named, or prints it."""
    if argv:
        pathlib.Path(argv[0]).write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
