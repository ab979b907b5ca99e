"""Files of exemplars: worked questions in the layout of a prompt, one blank line between two.

    # Lines that begin with "# " are notes.

    Q: Mia bakes 24 rolls and eats 3. How many are left?
    A: 24 - 3 = 21. The answer is 21.

An answer may have several lines and must end with "The answer is ...". With nothing before that
sentence the exemplar has no reasoning, and few-shot chain of thought refuses it.
"""

import importlib.resources
import re
import zlib

from lmsi_jax import answers, prompts
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Exemplar, Kind, Question
from lmsi_jax.runtime.files import read_data

_FOLDER = importlib.resources.files("lmsi_jax.tasks") / "exemplars"
_NAME = re.compile(r"[a-z0-9_]+")
_ANSWER = re.compile(r"(?P<reasoning>.*?)(?:so,? )?the answer is:? (?P<answer>[^\n]+)", re.I | re.S)


def packaged(name: str) -> tuple[Exemplar, ...]:
    """Returns the exemplars of this project in `tasks/exemplars/NAME.txt`."""
    return parse((_FOLDER / f"{name}.txt").read_text(encoding="utf-8"), f"{name}.txt")


def is_packaged(name: str) -> bool:
    """Returns True if this project has exemplars of that name."""
    return bool(_NAME.fullmatch(name)) and (_FOLDER / f"{name}.txt").is_file()


def load(path: str) -> tuple[Exemplar, ...]:
    """Returns the exemplars of a file, local or gs://, or of a packaged file by its name.

    Raises:
      LmsiError: the file cannot be read, or an item is not a worked question.
    """
    from etils import epath

    if is_packaged(path):
        return packaged(path)
    try:
        text = read_data(epath.Path(path).expanduser()).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise LmsiError(f"cannot read the exemplars {path}: {error}") from error
    return parse(text, path)


def load_for_task(path: str, kind: Kind) -> tuple[Exemplar, ...]:
    """Returns the exemplars of a file for a task with answers of a kind.

    Raises:
      LmsiError: as `load`; or an exemplar has no reasoning, or its answer is not of the kind.
    """
    rows = load(path)
    for number, row in enumerate(rows, 1):
        place = f"the exemplars {path}, item {number}"
        if not row.reasoning:
            raise LmsiError(
                f"{place} has no reasoning before the answer of {row.question[:60]!r}; few-shot "
                "chain of thought needs it, so give every answer some"
            )
        question = Question(uid="", task="", text=row.question, kind=kind)
        solution = prompts.solution(row.reasoning, row.answer)
        reading = answers.read(solution, kind, answers.options_of(question))
        if reading.key is None or reading.end < len(solution):
            raise LmsiError(
                f"{place}: the answer {row.answer!r} is not read as {_KIND_NAMES[kind]}; end the "
                f"item with 'The answer is {_KIND_EXAMPLES[kind]}.' and nothing after it"
            )
    return rows


_KIND_NAMES: dict[Kind, str] = {
    "number": "a number",
    "choice": "an option of the question",
    "yes_no": "yes or no",
    "nli": "yes, no or neither",
    "span": "a text",
    "date": "a date",
    "list": "a list",
}
_KIND_EXAMPLES: dict[Kind, str] = {
    "number": "18",
    "choice": "(b)",
    "yes_no": "yes",
    "nli": "it is not possible to tell",
    "span": "the Foxes",
    "date": "July 28, 2001",
    "list": "3, 5 and 7",
}


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
