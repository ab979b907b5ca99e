"""Rows of a user's files: JSON Lines, JSON, CSV, TSV, Parquet, and data sets of `datasets`.

A file may be local or on a bucket, plain or .gz. Each row comes with its place, such as
"train.csv, line 3", so that a message can name it.
"""

import csv
import glob
import hashlib
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from lmsi_jax.config.value_checks import HUB
from lmsi_jax.errors import LmsiError
from lmsi_jax.runtime.files import (
    check_expanded,
    check_regular,
    expanded_limit,
    parse_json,
    read_data,
)
from lmsi_jax.tasks.task import Split

Row = tuple[str, Mapping[str, Any]]
"""The place of a row, and its columns."""
_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")
_JSON = (".jsonl", ".ndjson", ".json")
_REMEDY = "correct or remove it"


def read_rows(paths: Sequence[str], split: Split, task: str) -> Iterator[Row]:
    """Yields the rows of files, in the order of the paths; those of a pattern are sorted.

    Args:
      paths: paths and patterns, local or gs://; folders saved by `datasets`; "hub:NAME[:CONFIG
        [:SPLIT]]".
      split: the split to read of a saved folder or of the hub, if they have several.
      task: the task's name, for messages.

    Raises:
      LmsiError: a file is missing, cannot be read or cannot be parsed; names file and line.
    """
    for path in paths:
        if path.startswith(HUB):
            yield from _from_hub(path, split, task)
            continue
        for file in find_files(path, task):
            yield from _saved_rows(file, split, task) if file.is_dir() else _file_rows(file, task)


def digest(paths: Sequence[str], task: str) -> str:
    """Returns a digest of the files' contents, wherever they are.

    Of the hub it covers the name alone.

    Raises:
      LmsiError: a file is missing or cannot be read.
    """
    whole = hashlib.sha256()
    for path in paths:
        if path.startswith(HUB):
            whole.update(path.encode())
            continue
        for file in find_files(path, task):
            parts = sorted(file.iterdir()) if file.is_dir() else [file]
            for part in parts:
                if part.is_file():
                    whole.update(hashlib.sha256(_bytes(part, task)).digest())
    return whole.hexdigest()


def find_files(path: str, task: str) -> list[epath.Path]:
    """Returns the files of a path or a pattern, sorted.

    Raises:
      LmsiError: there are none.
    """
    place = epath.Path(path).expanduser()
    check_regular(place)
    if place.is_file():
        return [place]
    if place.is_dir():
        if any((place / name).exists() for name in _SAVED):
            return [place]
        raise LmsiError(
            f"{task}: {path} is a folder; name its files, as in '{path.rstrip('/')}/*.jsonl'"
        )
    if glob.has_magic(path):
        parts = path.split("/")
        first = next(n for n, part in enumerate(parts) if glob.has_magic(part))
        root = epath.Path("/".join(parts[:first]) or ("." if first == 0 else "/")).expanduser()
        files = sorted(file for file in root.glob("/".join(parts[first:])) if file.is_file())
        if files:
            return files
        raise LmsiError(f"{task}: no file fits the pattern {path}; correct it")
    raise LmsiError(f"{task}: there is no file {path}; correct the path")


def _bytes(path: epath.Path, task: str) -> bytes:
    try:
        return read_data(path)
    except (OSError, EOFError, zlib.error) as error:
        raise LmsiError(f"{task}: cannot read {path} ({error}); copy the file anew") from None


def _file_rows(path: epath.Path, task: str) -> Iterator[Row]:
    data, name = _bytes(path, task), path.name.removesuffix(".gz").lower()
    if name.endswith((".parquet", ".pq")):
        yield from _parquet(path, data, task)
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise LmsiError(
            f"{task}: {path}, line {line} is not UTF-8 text; save the file as UTF-8"
        ) from None
    if name.endswith((".csv", ".tsv")):
        yield from _table(path, text, "\t" if name.endswith(".tsv") else ",", task)
    elif name.endswith(_JSON) or text.lstrip()[:1] in ("{", "["):
        yield from _json(path, text, task)
    else:
        raise LmsiError(
            f"{task}: {path} is of no known format; give it the ending of its format: "
            ".jsonl, .json, .csv, .tsv or .parquet (each also with .gz)"
        )


def _json(path: epath.Path, text: str, task: str) -> Iterator[Row]:
    """Yields the objects of JSON Lines, of one list, or of {"data": [...]}."""
    try:
        content = parse_json(text)
    except json.JSONDecodeError as error:
        # Several lines are several values; a list or an object over several lines is one.
        if "Extra data" in error.msg or not text.lstrip().startswith("["):
            yield from json_lines(path, text, task)
            return
        raise LmsiError(
            f"{task}: {path}, line {error.lineno}, column {error.colno} is not JSON ({error.msg})"
        ) from None
    except ValueError as error:
        if text.lstrip().startswith("["):
            raise LmsiError(f"{task}: {path} cannot be read: {error}") from None
        yield from json_lines(path, text, task)
        return
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if isinstance(content, dict):
        yield f"{path}, line 1", content
    else:
        yield from json_rows(path, content if isinstance(content, list) else [content], task)


def json_rows(
    path: epath.PathLike, content: Sequence[Any], task: str, remedy: str = _REMEDY
) -> Iterator[Row]:
    """Yields the objects of a JSON list with their places.

    Raises:
      LmsiError: one is no object.
    """
    for number, row in enumerate(content, 1):
        if not isinstance(row, dict):
            raise LmsiError(
                f"{task}: {path}, row {number} is not a JSON object but {str(row)[:40]!r}; {remedy}"
            )
        yield f"{path}, row {number}", row


def json_lines(path: epath.PathLike, text: str, task: str, remedy: str = _REMEDY) -> Iterator[Row]:
    """Yields the objects of JSON Lines with their places.

    Raises:
      LmsiError: a line is not one object.
    """
    # Not splitlines(): JSON strings may hold line separators other than "\n".
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row, cause = parse_json(line), ""
        except json.JSONDecodeError as error:
            row, cause = None, f" ({error.msg}, column {error.colno})"
        except ValueError as error:
            row, cause = None, f" ({error})"
        if not isinstance(row, dict):
            raise LmsiError(
                f"{task}: {path}, line {number} is not one JSON object{cause}; {remedy}"
            )
        yield f"{path}, line {number}", row


def _table(path: epath.Path, text: str, delimiter: str, task: str) -> Iterator[Row]:
    """Yields the rows of CSV or TSV; a TSV that breaks the rules of quotes has none."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    quoted: list[Row] = []
    try:
        for row in _table_rows(path, text, delimiter, csv.QUOTE_MINIMAL, task):
            quoted.append(row)
    except csv.Error as error:
        if delimiter == ",":
            raise LmsiError(
                f"{task}: {path}, after line {_line_of(quoted)}: {error}; write a quotation mark "
                'within quotes as ""'
            ) from None
        yield from _table_rows(path, text, delimiter, csv.QUOTE_NONE, task)
        return
    yield from quoted


def _line_of(rows: Sequence[Row]) -> str:
    return rows[-1][0].rpartition(" ")[2] if rows else "1"


def _table_rows(
    path: epath.Path, text: str, delimiter: str, quoting: Any, task: str
) -> Iterator[Row]:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True
    )
    head = next(reader, None)
    if not head or not all(head):
        raise LmsiError(f"{task}: {path}, line 1 must name the columns")
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(head):
            raise LmsiError(
                f"{task}: {path}, line {reader.line_num} has {len(cells)} columns, and line 1 "
                f"names {len(head)} ({', '.join(head)}); correct it, or put its texts in quotes"
            )
        yield f"{path}, line {reader.line_num}", dict(zip(head, cells, strict=True))


def _parquet(path: epath.Path, data: bytes, task: str) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise LmsiError(
            f"{task}: reading {path} needs pyarrow: pip install pyarrow, or save it as JSON Lines"
        ) from None
    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        rows = (row for batch in _parquet_batches(path, file) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise LmsiError(f"{task}: {path} is no Parquet file ({error}); copy it anew") from None


_EMPTY = 4  # bytes of an empty cell, as of JSON's null


def _parquet_batches(path: epath.Path, file: Any) -> Iterator[Any]:
    """Yields the batches of a Parquet file, whose whole content has at most 1 GiB.

    Pages are compressed, and one value of a page's dictionary may stand for any number of rows. So
    a batch has so few rows that it fits even if each holds the largest value that there may be.
    """
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    cells = sum(column.num_values for column in columns)
    check_expanded(path, sum(column.total_uncompressed_size for column in columns))
    check_expanded(path, _EMPTY * cells)
    largest = sum(
        max(
            (column.total_uncompressed_size for column in columns if column.path_in_schema == name),
            default=0,
        )
        for name in {column.path_in_schema for column in columns if column.has_dictionary_page}
    )
    size = 0
    for batch in file.iter_batches(max(1, min(1024, expanded_limit() // max(1, largest)))):
        size += batch.nbytes + _EMPTY * batch.num_rows * batch.num_columns
        check_expanded(path, size)
        yield batch


def _datasets(path: str, task: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise LmsiError(
            f"{task}: {path} needs the library datasets: pip install datasets, or save the rows as "
            "JSON Lines"
        ) from None
    return datasets


def _saved_rows(path: epath.Path, split: Split, task: str) -> Iterator[Row]:
    datasets = _datasets(str(path), task)
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises anything
        raise LmsiError(f"{task}: cannot read the data set {path} ({_first_line(error)})") from None
    yield from _split_rows(saved, str(path), split, task)


def _from_hub(path: str, split: Split, task: str) -> Iterator[Row]:
    name, *rest = path.removeprefix(HUB).split(":")
    if not name or len(rest) > 2:
        raise LmsiError(
            f"{task}: write {path} as hub:NAME, hub:NAME:CONFIG or hub:NAME:CONFIG:SPLIT"
        )
    config = rest[0] or None if rest else None
    load: Callable[..., Any] = _datasets(path, task).load_dataset
    try:
        rows = load(name, config, split=rest[1] if len(rest) > 1 else None)
    except Exception as error:  # the library and the network raise anything
        raise LmsiError(
            f"{task}: {path} cannot be loaded ({_first_line(error)}); check the name and the "
            "network, or name local files"
        ) from None
    yield from _split_rows(rows, path, split, task)


def _split_rows(rows: Any, path: str, split: Split, task: str) -> Iterator[Row]:
    if hasattr(rows, "keys"):  # several splits
        if split not in rows:
            raise LmsiError(
                f"{task}: {path} has no split {split!r} but {', '.join(rows.keys())}; name one: "
                "hub:NAME:CONFIG:SPLIT, or the split's own folder"
            )
        rows = rows[split]
    for number, row in enumerate(rows, 1):
        yield f"{path}, row {number}", row


def _first_line(error: Exception) -> str:
    lines = re.split(r"[\r\n]", str(error).strip(), maxsplit=1)
    return f"{type(error).__name__}: {lines[0][:150]}"
