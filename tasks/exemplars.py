"""Files of exemplars: worked questions in the layout of a prompt, one blank line between two.

    # Lines that begin with "# " are notes.

    Q: Mia bakes 24 rolls and eats 3. How many are left?
    A: 24 - 3 = 21. The answer is 21.

An answer may have several lines and must end with "The answer is ...". With nothing before that
sentence the exemplar has no reasoning, and few-shot chain of thought refuses it.
"""

import importlib.resources
import re

from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Exemplar

_FOLDER = importlib.resources.files("lmsi_jax.tasks") / "exemplars"
_NAME = re.compile(r"[a-z0-9_]+")
_ANSWER = re.compile(r"(?P<reasoning>.*?)(?:so,? )?the answer is:? (?P<answer>[^\n]+)", re.I | re.S)


def packaged(name: str) -> tuple[Exemplar, ...]:
    """Returns the exemplars of this project in `tasks/exemplars/NAME.txt`."""
    return parse((_FOLDER / f"{name}.txt").read_text(encoding="utf-8"), f"{name}.txt")


def load(path: str) -> tuple[Exemplar, ...]:
    """Returns the exemplars of a file, local or gs://, or of a packaged file by its name.

    Raises:
      LmsiError: the file cannot be read, or an item is not a worked question.
    """
    from etils import epath

    if _NAME.fullmatch(path) and (_FOLDER / f"{path}.txt").is_file():
        return packaged(path)
    try:
        text = epath.Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LmsiError(f"cannot read the exemplars {path}: {error}") from error
    return parse(text, path)


def parse(text: str, source: str) -> tuple[Exemplar, ...]:
    """Returns the worked questions of a file's text.

    Args:
      text: the contents of the file.
      source: its name, for messages.

    Raises:
      LmsiError: an item is not a worked question, or the text has none.
    """
    lines = [line.rstrip() for line in text.splitlines() if not line.startswith("# ")]
    items = [item.strip() for item in re.split(r"\n{2,}", "\n".join(lines)) if item.strip()]
    if not items:
        raise LmsiError(f"{source} holds no exemplars; write worked questions, a blank line apart")
    return tuple(_item(item, f"{source}, item {number}") for number, item in enumerate(items, 1))


def _item(item: str, place: str) -> Exemplar:
    question, mark, solution = item.rpartition("\nA:")
    match = _ANSWER.fullmatch(solution.strip()) if mark and question.strip() else None
    if match is None:
        raise LmsiError(
            f'{place} is not a question, then a line "A: ... The answer is ...": {item[:60]!r}'
        )
    return Exemplar(
        question=question.strip(),
        reasoning=match["reasoning"].strip(),
        answer=match["answer"].strip().removesuffix("."),
    )
