"""`lmsi explain-answer`: print the candidates for a text's answer, and the reader's choice."""

import sys
from pathlib import Path

from lmsi_jax import answers
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Kind, Question

_WIDTH = 80
_WIDEST = {"mark": 14, "key": 14}
"""Most characters of a column; the answer gets what the others leave of the width."""
_GAP = "  "


def explain_answer(file: str, kind: Kind, options_text: str = "", finished: bool = True) -> str:
    """Returns the explanation of one text: a table of at most 80 columns, then the choice.

    Args:
      file: the file with the text that a model wrote after its prompt; "-" for standard input.
      kind: what the question asks for.
      options_text: the options as they appear in the question, "(a) ice (b) a nail"; "" for none.
      finished: False if the token limit or a stop string cut the text.

    Raises:
      LmsiError: the file cannot be read, or the options have no letters.
    """
    question = Question(uid="", task="", text=f"Q:\n{options_text}", kind=kind)
    options = answers.options_of(question) if options_text else ()
    if options_text and not options:
        raise LmsiError(
            f"--options={options_text!r}: write the options as in the question, such as "
            "'(a) ice (b) a nail'; they are read for --kind=choice and --kind=list"
        )
    text = _read(file)
    lines = _table(answers.explain(text, kind, options, finished=finished))
    reading = answers.read(text, kind, options, finished=finished)
    if reading.key is None:
        lines.append("\nno answer" + ("" if reading.chosen is None else ": the attempt has no key"))
    else:
        whole = "" if reading.end < len(text.rstrip()) else ", which is the whole text"
        lines += [
            f"\nanswer: {reading.key}",
            f"taught as: {reading.surface}",
            f"solution: the first {reading.end} characters{whole}",
        ]
    return "\n".join(lines)


def _read(file: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LmsiError(
            f"cannot read {file} ({error}); name a UTF-8 text file, or - for standard input"
        ) from error


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Returns aligned lines; longer cells are cut, and end with an ellipsis."""
    if len(rows) == 1:
        return ["no candidates"]
    head = rows[0]
    cells = [[" ".join(cell.split()) for cell in row] for row in rows]
    columns = dict(zip(head, zip(*cells, strict=True), strict=True))
    widths = {
        name: min(max(map(len, column)), _WIDEST.get(name, _WIDTH))
        for name, column in columns.items()
    }
    others = sum(width for name, width in widths.items() if name != "answer")
    widths["answer"] = min(widths["answer"], _WIDTH - others - len(_GAP) * (len(head) - 1))
    lines = []
    for row in cells:
        parts = []
        for cell, width in zip(row, widths.values(), strict=True):
            parts.append((cell if len(cell) <= width else f"{cell[: width - 1]}…").ljust(width))
        lines.append(_GAP.join(parts).rstrip())
    return lines
