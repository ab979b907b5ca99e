"""Measures the throughput of answer reading and voting on one core: python -m bench.vote

Extract + key + vote over synthetic texts, and over real chain-of-thought texts where they are there
(`--data=DIR`, see `bench.real_outputs`). Every text is read anew; only keys and surfaces of equal
answers are looked up, and in a "first pass" none is known before, as if all texts were new. Beside
it, where they are installed (`pip install lm_eval math-verify`): lm-evaluation-harness's own GSM8K
filters (strict and flexible, regex and take_first), which extract a string without a canonical key
or a vote, and math-verify's parse.
Prints one JSON object: samples a second of processor time, the best of a few passes, and how many
answers were found.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.real_outputs import (
    CHAT,
    KINDS,
    VARIABLE,
    add_flag,
    chat,
    default,
    folder,
    gold,
    outputs,
    rows_of,
)
from lmsi_jax import answers, voting
from lmsi_jax.records import Question, Sample


def real(data: pathlib.Path, name: str) -> list[tuple[Question, list[Sample]]]:
    """Returns each question of a set with one sample of each model."""
    asked = {row["id"]: row for row in rows_of(data / gold(name))}
    by_id: dict[Any, list[Sample]] = {uid: [] for uid in asked}
    models = {file.name.split("_COT")[0] for file in data.glob(f"{outputs(name, '*')}*")}
    for index, model in enumerate(sorted(models)):
        for row in rows_of(data / outputs(name, model)):
            by_id[row["id"]].append(_sample(str(row["id"]), index, row["completion"]))
    return [
        (Question(uid=str(uid), task=name, text=row["question"], kind=KINDS[name]), by_id[uid])
        for uid, row in asked.items()
    ]


def chat_texts(
    data: pathlib.Path, name: str, per_question: int = 8
) -> list[tuple[Question, list[Sample]]]:
    """Return a chat model's texts, of which eight in a row count as the samples of one question."""
    rows, groups = rows_of(data / chat(name)), []
    for first in range(0, len(rows), per_question):
        texts = rows[first : first + per_question]
        options = "".join(f" ({letter}) {text}" for letter, text in _lettered(texts[0]))
        question = Question(uid=str(first), task=name, text=f"Q: ?{options}", kind=CHAT[name])
        samples = [_sample(str(first), index, row["text"]) for index, row in enumerate(texts)]
        groups.append((question, samples))
    return groups


def _lettered(row: dict[str, Any]) -> list[tuple[str, str]]:
    return list(zip("abcdefghij", row.get("options") or (), strict=False))


def synthetic(questions: int, samples: int) -> list[tuple[Question, list[Sample]]]:
    """Returns sums in words, 300 characters a sample, with a few answers a question."""
    draw = random.Random(0)
    made = []
    for number in range(questions):
        uid, right = str(number), draw.randint(10, 5000)
        rows = []
        for index in range(samples):
            answer = right if draw.random() < 0.6 else right + draw.randint(-20, 20)
            steps = [
                f"{draw.randint(2, 99)} * {draw.randint(2, 9)} is {answer}." for _ in range(15)
            ]
            text = f" First {' Then '.join(steps)} The answer is ${answer:,}."
            rows.append(_sample(uid, index, text))
        made.append((Question(uid=uid, task="synthetic", text="Q: ?", kind="number"), rows))
    return made


def rate(
    work: Callable[[], int], samples: int, passes: int, before: Callable[[], None] | None = None
) -> dict[str, float]:
    """Returns samples a second in the best pass, and the share of answers found."""
    best, found = float("inf"), 0
    for _ in range(passes):
        if before is not None:
            before()
        begin = time.process_time()  # of this process alone, whatever else the machine does
        found = work()
        best = min(best, time.process_time() - begin)
    return {"samples_per_second": round(samples / best), "found": round(found / samples, 4)}


def forget_answers() -> None:
    """Empties all that the reader looks up: keys, surfaces, options."""
    for name in [name for name in sys.modules if name.startswith("lmsi_jax.answers.")]:
        for value in vars(sys.modules[name]).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def measure(rows: Sequence[tuple[Question, list[Sample]]], passes: int) -> dict[str, Any]:
    """Returns the rates of all that is installed on one set of questions."""
    texts = [sample.text for _, samples in rows for sample in samples]
    n = len(texts)
    kind = rows[0][0].kind

    def read() -> int:
        return sum(
            answers.path_key(sample.text, kind, answers.options_of(question)) is not None
            for question, samples in rows
            for sample in samples
        )

    def vote() -> int:
        return sum(voting.vote(question, samples).parsed for question, samples in rows)

    result: dict[str, Any] = {
        "samples": n,
        "characters_per_sample": round(sum(map(len, texts)) / n),
        "lmsi_jax extract + key": rate(read, n, passes),
        "lmsi_jax extract + key + vote": rate(vote, n, passes),
        "lmsi_jax extract + key + vote, first pass": rate(vote, n, passes, forget_answers),
    }
    if kind == "number":
        result |= {name: rate(work, n, passes) for name, work in _lm_eval(texts).items()}
        if math_verify := _math_verify(texts[:2000]):
            result["math-verify parse"] = rate(math_verify, min(n, 2000), 1)
    return result


def _lm_eval(texts: Sequence[str]) -> dict[str, Callable[[], int]]:
    """lm-evaluation-harness's filters of GSM8K, as its installed task file configures them."""
    try:
        import lm_eval
        import yaml
        from lm_eval.filters.extraction import RegexFilter
        from lm_eval.filters.selection import TakeFirstFilter
    except ImportError:
        return {}
    task = pathlib.Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k-cot.yaml"
    works = {}
    for pipeline in yaml.safe_load(task.read_text())["filter_list"]:
        arguments = {k: v for k, v in pipeline["filter"][0].items() if k != "function"}
        works[f"lm-eval {pipeline['name']}"] = _filtered(
            RegexFilter(**arguments), TakeFirstFilter(), texts
        )
    return works


def _filtered(regex: Any, first: Any, texts: Sequence[str]) -> Callable[[], int]:
    def work() -> int:
        found = first.apply(regex.apply([[text] for text in texts], []), [])
        return sum(answer != regex.fallback for answer in found)

    return work


def _math_verify(texts: Sequence[str]) -> Callable[[], int] | None:
    try:
        from math_verify import parse
    except ImportError:
        return None
    # Without its timeout, which is a signal to the main thread for each text.
    return lambda: sum(bool(parse(text, parsing_timeout=None)) for text in texts)


def _sample(uid: str, index: int, text: str) -> Sample:
    return Sample(uid=uid, sample_index=index, text=text, tokens=1, logprob=-1.0, end="end_token")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, default=12)
    add_flag(parser)
    options = parser.parse_args()
    sets = {}
    if options.data or os.environ.get(VARIABLE) or default().is_dir():
        data = folder(options.data, [*map(gold, KINDS), *map(chat, CHAT)])
        sets = {name: real(data, name) for name in KINDS}
        sets |= {name: chat_texts(data, name) for name in CHAT}
    sets["synthetic"] = synthetic(400, 32)
    versions = {}
    for package in ("lm_eval", "math-verify"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    made = {name: measure(rows, options.passes) for name, rows in sets.items()}
    print(json.dumps({"python": platform.python_version(), "versions": versions, **made}, indent=1))


if __name__ == "__main__":
    main()
