"""Rows of a data set's local files: JSON Lines, a JSON list or object, or a table; plain or .gz."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from lmsi_jax.errors import LmsiError

Row = tuple[str, dict[str, Any]]
"""Where a row stands ("train.jsonl, line 3"), and the row."""


def find(folders: Sequence[str], names: Sequence[str], task: str, origin: str) -> Any:
    """Returns the first of the named files, or of the same with .gz, in the first folder with one.

    Args:
      folders: where to look, local or gs://.
      names: file names, the preferred one first.
      task: whose they are, for messages.
      origin: where a person gets them.

    Raises:
      LmsiError: there is none.
    """
    from etils import epath

    for folder in folders:
        for name in names:
            for path in (epath.Path(folder) / name, epath.Path(folder) / f"{name}.gz"):
                if path.is_file():
                    return path
    if not epath.Path(folders[0]).is_dir():
        raise LmsiError(f"{task}: there is no folder {folders[0]}; correct data_dir ({origin})")
    wanted = " or ".join(names)
    raise LmsiError(f"{task}: {folders[0]} has no {wanted} (or .gz); {origin}")


def rows(path: Any, task: str, origin: str) -> Iterator[Row]:
    """Yields a file's rows.

    Raises:
      LmsiError: it cannot be read, or is not what its name says; names the line.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.name.endswith(".gz") else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise LmsiError(f"{task}: cannot read {path} ({error}); copy it anew: {origin}") from error
    name = path.name.removesuffix(".gz")
    if name.endswith(".tsv"):
        # GLUE's files have bare quotation marks in them.
        table = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
        yield from ((f"{path}, line {number}", row) for number, row in enumerate(table, 2))
    elif text.lstrip()[:1] == "[" or (name.endswith(".json") and "\n{" not in text.strip()):
        yield from _whole(text, path, task, origin)
    else:
        yield from _lines(text, path, task, origin)


def _whole(text: str, path: Any, task: str, origin: str) -> Iterator[Row]:
    """One JSON list of rows, or one object whose values are rows; a row then has its "key"."""
    try:
        content = json.loads(text)
        if isinstance(content, dict) and all(isinstance(row, dict) for row in content.values()):
            content = [{**row, "key": key} for key, row in content.items()]
        elif isinstance(content, dict):  # a file of one line
            content = [content]
        for number, row in enumerate(content, 1):
            yield f"{path}, row {number}", dict(row)
    except (ValueError, TypeError) as error:
        raise LmsiError(f"{task}: {path} is not JSON ({error}); copy it anew: {origin}") from error


def _lines(text: str, path: Any, task: str, origin: str) -> Iterator[Row]:
    # Not splitlines(): JSON strings may hold line separators other than "\n".
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{path}, line {number}", dict(json.loads(line))
            except (ValueError, TypeError):
                raise LmsiError(
                    f"{task}: {path}, line {number} is not one JSON object; mend or remove it "
                    f"({origin})"
                ) from None
