"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168; number, out of domain), from local files.

Q: Mia bakes 24 rolls. She eats 3 and packs the rest in bags of 7. How many bags does she fill?
A: Mia has 24 - 3 = 21 rolls left. 21 / 7 = 3. The answer is 3.

The folder holds train.jsonl and test.jsonl, or the same with .gz, as published: one object a line
with "question" and "answer", where the answer's last line is "#### " and the number.
"""

import dataclasses
import gzip
import hashlib
import itertools
import json
import random
import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from lmsi_jax import answers
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Exemplar, Kind, Question
from lmsi_jax.tasks.task import Domain, Level, Split, too_few

_ORIGIN = "train.jsonl and test.jsonl are at github.com/openai/grade-school-math"
_EXEMPLARS = (
    Exemplar(
        question="Q: Mia bakes 24 rolls. She eats 3 and packs the rest in bags of 7. "
        "How many bags does she fill?",
        reasoning="Mia has 24 - 3 = 21 rolls left. 21 / 7 = 3.",
        answer="3",
    ),
    Exemplar(
        question="Q: A bus ticket costs $5 and a train ticket costs twice as much. "
        "How many dollars do 3 bus tickets and 1 train ticket cost?",
        reasoning="A train ticket costs 2 * 5 = 10. 3 bus tickets cost 3 * 5 = 15. 15 + 10 = 25.",
        answer="25",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gsm8k:
    """GSM8K's questions in an order drawn by the seed; levels are ignored.

    Attributes:
      data_dir: the folder with the files, local or gs://.
    """

    data_dir: str | None = None
    name: str = "gsm8k"
    kind: Kind = "number"
    domain: Domain = "out"
    shots: int = len(_EXEMPLARS)
    levels: tuple[Level, ...] = ()

    def from_folder(self, data_dir: str) -> "Gsm8k":
        """Returns the task with its files in `data_dir`."""
        return dataclasses.replace(self, data_dir=data_dir)

    def stream(self, split: Split, level: Level, seed: int) -> Iterator[Question]:
        """Returns all questions of a split; only those of the test split carry their answer.

        Raises:
          LmsiError: the folder, the file or a line of it is not as it should be.
        """
        del level
        return (
            Question(
                uid=f"{self.name}-{hashlib.sha256(row.question.encode()).hexdigest()[:12]}",
                task=self.name,
                text=row.question,
                kind=self.kind,
                gold=row.gold if split == "test" else None,
            )
            for row in self._shuffled(split, seed)
        )

    def questions(self, split: Split, level: Level, count: int, seed: int) -> list[Question]:
        """Returns `count` questions; raises LmsiError also when there are not so many."""
        rows = list(itertools.islice(self.stream(split, level, seed), count))
        if len(rows) < count:
            raise too_few(self.name, split, len(rows))
        return rows

    def worked(self, split: Split, level: Level, seed: int) -> Iterator[Exemplar]:
        """Yields questions with the file's own (human) solutions, in one line each.

        The split "pretrain", where families keep worked questions apart, is the train file here.

        Raises:
          LmsiError: as `stream`, and after the last question.
        """
        del level
        rows = self._shuffled("train" if split == "pretrain" else split, seed)
        for row in rows:
            yield Exemplar(question=row.question, reasoning=one_line(row.solution), answer=row.gold)
        raise too_few(self.name, split, len(rows))

    def exemplars(self) -> tuple[Exemplar, ...]:
        """Returns two short worked questions of our own, which are in no file."""
        return _EXEMPLARS

    def _shuffled(self, split: Split, seed: int) -> list["_Row"]:
        rows = _read(self.data_dir, split)
        random.Random(f"{self.name}/{split}/{seed}").shuffle(rows)
        return rows


class _Row(NamedTuple):
    question: str
    solution: str
    gold: str


def one_line(solution: str) -> str:
    """Drops the calculator's annotations (<<48/2=24>>) and joins the lines into sentences."""
    lines = [" ".join(line.split()) for line in re.sub(r"<<.*?>>", "", solution).splitlines()]
    return " ".join(line if line[-1] in ".:!?" else line + "." for line in lines if line)


def _read(data_dir: str | None, split: str) -> list[_Row]:
    """The distinct rows of a split, in the file's order."""
    path = _find(data_dir, split)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.name.endswith(".gz") else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise LmsiError(f"gsm8k: cannot read {path} ({error}); copy it anew: {_ORIGIN}") from error
    rows: dict[str, _Row] = {}
    # Not splitlines(): JSON strings may hold line separators other than "\n".
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = _parse(line, f"{path}, line {number}")
            rows.setdefault(row.question, row)
    return list(rows.values())


def _find(data_dir: str | None, split: str) -> Any:
    from etils import epath

    if split not in ("train", "test"):
        raise LmsiError(f"gsm8k has no split {split!r}; choose train or test")
    if not data_dir:
        raise LmsiError(f"gsm8k is read from files: set data_dir to their folder ({_ORIGIN})")
    folder = epath.Path(data_dir)
    if not folder.is_dir():
        raise LmsiError(f"gsm8k: there is no folder {folder}; correct data_dir ({_ORIGIN})")
    for name in (f"{split}.jsonl", f"{split}.jsonl.gz"):
        if (folder / name).is_file():
            return folder / name
    raise LmsiError(f"gsm8k: {folder} has no {split}.jsonl or {split}.jsonl.gz; {_ORIGIN}")


def _parse(line: str, place: str) -> _Row:
    try:
        row = json.loads(line)
        question, (solution, gold) = row["question"], row["answer"].rsplit("####", 1)
        gold = gold.strip().replace(",", "")
        # One line, because a blank line ends an item of a prompt.
        question = "Q: " + " ".join(question.split())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise LmsiError(
            f'gsm8k: {place} is not {{"question": "...", "answer": "... #### 12"}}; '
            f"mend or remove it ({_ORIGIN})"
        ) from None
    if answers.key(gold, "number") is None:
        raise LmsiError(
            f"gsm8k: {place} has {gold!r} after '####', which is no number; mend or remove it"
        )
    return _Row(question, solution.strip(), gold)


TASK = Gsm8k()
