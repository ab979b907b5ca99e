"""Real model outputs that nobody here wrote, and where a benchmark finds them.

The repository does not hold them. They are in the folder that `--data=DIR` or the environment's
LMSI_DATA names, else in ../shared/data beside the checkout, each file as published or as .gz:

    model_samples/NAME/gold.jsonl          Faithful-COT's data/NAME/test.jsonl
    model_samples/NAME/MODEL_COT.jsonl     its output_dir/NAME/test/MODEL_COT/predictions.jsonl
    gsm8k/test.jsonl                       grade-school-math's grade_school_math/data/test.jsonl
    gsm8k/example_model_solutions.jsonl    of the same folder
    chat_samples/CHAT.jsonl                ZeroEval's result_dirs/gsm, Rereading-LLM-Reasoning's
                                           results: chat models' texts with the publisher's label

NAME is GSM8K, AQUA or StrategyQA. The repositories and commits are, on github.com:

    veronica320/Faithful-COT (301784317c99)      openai/grade-school-math (3101c7d50724)
    WildEval/ZeroEval (8c1485edf12c)             Tebmer/Rereading-LLM-Reasoning (0dbad50be663)
"""

import argparse
import gzip
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from lmsi_jax.records import Kind

KINDS: dict[str, Kind] = {"GSM8K": "number", "AQUA": "choice", "StrategyQA": "yes_no"}
CHAT: dict[str, Kind] = {
    "zeroeval_gsm_Llama-3.1-405B-Instruct-Turbo": "number",
    "zeroeval_gsm_Meta-Llama-3.1-8B-Instruct": "number",
    "zeroeval_gsm_Qwen2-7B-Instruct": "number",
    "zeroeval_gsm_Yi-1.5-9B-Chat": "number",
    "zeroeval_gsm_claude-3-haiku-20240307": "number",
    "zeroeval_gsm_command-r": "number",
    "zeroeval_gsm_gemma-2-2b-it": "number",
    "zeroeval_gsm_gpt-4o-mini-2024-07-18": "number",
    "re2_commonsenseqa_gpt-4o-mini": "choice",
}
VARIABLE = "LMSI_DATA"
_BESIDE = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


def default() -> pathlib.Path:
    """Returns the default folder of real outputs, which may be absent."""
    return pathlib.Path(os.environ.get(VARIABLE) or _BESIDE)


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--data`."""
    parser.add_argument(
        "--data",
        type=pathlib.Path,
        metavar="DIR",
        help=f"folder of real outputs (default: ${VARIABLE}, else ../shared/data)",
    )


def folder(given: pathlib.Path | None, files: Iterable[str]) -> pathlib.Path:
    """Returns the folder of real outputs.

    Args:
      given: the flag's value.
      files: what it must hold, as they are or compressed.

    Raises:
      SystemExit: one of them is absent; the message says which, and where they come from.
    """
    data = given or default()
    for name in files:
        if not (data / name).exists() and not _compressed(data / name).exists():
            raise SystemExit(
                f"{data} has no {name}; name the folder that has it with --data=DIR or {VARIABLE}:"
                "\nthe top of bench/real_outputs.py lists its files and where they are published"
            )
    return data


def gold(name: str) -> str:
    """Returns the file of a set's questions and gold answers."""
    return f"model_samples/{name}/gold.jsonl"


def outputs(name: str, model: str) -> str:
    """Returns the file of a model's texts for a set."""
    return f"model_samples/{name}/{model}_COT.jsonl"


def chat(name: str) -> str:
    """Return the file of a chat model's labelled texts."""
    return f"chat_samples/{name}.jsonl"


def rows_of(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of a file of JSON lines, or of its compressed copy."""
    path = path if path.exists() else _compressed(path)
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return [json.loads(line) for line in text.split("\n") if line]


def _compressed(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".gz")
