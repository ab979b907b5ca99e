"""Exporting: a round's training rows as files that other trainers read.

    {"prompt": "Q: ...\\nA:", "completion": " 3 + 4 = 7. The answer is 7.\\n\\n", "weight": 1}
    {"messages": [{"role": "user", ...}, {"role": "assistant", ...}], "weight": 1.0}

`prompt + completion` is the text that `lmsi train` learns, control tokens of a chat template
included: encode it with these, and without a start token. Pairs have `chosen` and `rejected` in
place of `completion`. Each row also has its uid, task, format and source.
"""

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from etils import epath

from lmsi_jax.errors import LmsiError
from lmsi_jax.prompts import SEPARATOR
from lmsi_jax.records import Example, ExamplePair, Text, join_texts, plain_text
from lmsi_jax.runtime.files import write_bytes
from lmsi_jax.runtime.store import ShardStore

RowFormat = Literal["prompt-completion", "messages", "parquet"]
ROW_FORMATS: tuple[RowFormat, ...] = get_args(RowFormat)
_SOURCES = ("self_generated", "human", "pairs")


def export_rows(
    run_dir: epath.PathLike,
    out: epath.PathLike | None = None,
    *,
    round_index: int | None = None,
    row_format: RowFormat = "prompt-completion",
) -> tuple[epath.Path, int]:
    """Writes a round's training rows.

    Args:
      run_dir: `Run.output_dir` of a run that has finished `lmsi mix`.
      out: the file; None: `rows.jsonl` or `rows.parquet` in the round's folder.
      round_index: the round; None: the last one that is mixed.
      row_format: the form of the rows; "parquet" has the columns of "prompt-completion".

    Returns:
      The file and the number of rows.

    Raises:
      LmsiError: the round is not mixed or has no rows, or pyarrow is not installed.
    """
    run_dir = epath.Path(run_dir)
    mixed = mixed_rounds(run_dir)
    if not mixed or (round_index is not None and round_index not in mixed):
        which = "no round" if round_index is None else f"no round {round_index}"
        known = f"; mixed are {', '.join(map(str, mixed))}" if mixed else ""
        raise LmsiError(f"{run_dir} has {which} with training rows{known}; run `lmsi mix` first")
    folder = run_dir / f"round_{max(mixed) if round_index is None else round_index}"
    rows = list(_rows(ShardStore(folder / "mix"), row_format))
    if not rows:
        raise LmsiError(f"{folder / 'mix'} has no rows: no sample was kept, see `lmsi report`")
    suffix = "parquet" if row_format == "parquet" else "jsonl"
    path = folder / f"rows.{suffix}" if out is None else epath.Path(out)
    if row_format == "parquet":
        write_bytes(path, _parquet(rows))
    else:
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
        write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
    return path, len(rows)


def mixed_rounds(run_dir: epath.Path) -> list[int]:
    """Returns the rounds of a run whose training rows are written, rising."""
    names = [path.name for path in run_dir.iterdir()] if run_dir.is_dir() else []
    numbers = [name.removeprefix("round_") for name in names if name.startswith("round_")]
    return sorted(
        int(number)
        for number in numbers
        if number.isdecimal() and (run_dir / f"round_{number}" / "mix" / "stage.json").exists()
    )


def _rows(store: ShardStore, row_format: RowFormat) -> Iterator[dict[str, Any]]:
    for source in _SOURCES:
        for name in store.names():
            if not name.startswith(f"{source}-"):
                continue
            for stored in store.read(name):
                row: Example | ExamplePair
                if source == "pairs":
                    row = ExamplePair.from_json(stored)
                    learnt: dict[str, Text] = {"chosen": row.chosen, "rejected": row.rejected}
                else:
                    row = Example.from_json(stored)
                    learnt = {"completion": row.targets}
                prompt = join_texts(row.prefix, row.inputs)
                yield {
                    **(
                        _messages(prompt, learnt)
                        if row_format == "messages"
                        else {"prompt": plain_text(prompt)}
                        | {name: _ended(text) for name, text in learnt.items()}
                    ),
                    "weight": row.weight,
                    "uid": row.uid,
                    "task": row.task,
                    "format": row.format,
                    "source": source,
                }


def _ended(text: Text) -> str:
    return text + SEPARATOR if isinstance(text, str) else plain_text(text)


def _messages(prompt: Text, learnt: Mapping[str, Text]) -> dict[str, Any]:
    """Returns an example as one conversation, a pair as a prompt and two answers.

    Raises:
      LmsiError: the row is in a chat template already.
    """
    if not isinstance(prompt, str):
        raise LmsiError(
            "the rows are in the model's chat template already, which a trainer would apply once "
            "more to messages; export with --format=prompt-completion"
        )
    asked = [{"role": "user", "content": prompt}]
    texts = {name: text if isinstance(text, str) else text[0] for name, text in learnt.items()}
    replies = {k: [{"role": "assistant", "content": v.strip()}] for k, v in texts.items()}
    if "completion" in replies:
        return {"messages": asked + replies["completion"]}
    return {"prompt": asked, **replies}


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise LmsiError(
            "Parquet needs pyarrow: pip install pyarrow, or export with --format=prompt-completion"
        ) from None
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()
