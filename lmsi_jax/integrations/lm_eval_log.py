"""Writes a run's evaluation as lm-evaluation-harness logs one: results and samples.

    OUT/round_1/results_2026-01-02T03-04-05.json
    OUT/round_1/samples_lmsi_gsm8k_cot_2026-01-02T03-04-05.jsonl

A task and prompt style is a task of the harness, `lmsi_TASK_STYLE`. Its metric is `exact_match`,
whether the answer (of several samples: their vote) is right. The files have the fields that the
harness and the viewers of its logs read (version 0.4.13); nothing of it has to be installed.
"""

import datetime
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from lmsi_jax import __version__
from lmsi_jax.config.configurables import load_run_of
from lmsi_jax.errors import LmsiError
from lmsi_jax.pipeline.context import Context, Round
from lmsi_jax.pipeline.evaluate import read_scores
from lmsi_jax.prompts import PromptStyle
from lmsi_jax.records import Question, Sample, Vote, plain_text
from lmsi_jax.runtime.files import write_bytes, write_json

_METRIC, _FILTER = "exact_match", "none"


def export_eval(
    run_dir: epath.PathLike,
    out: epath.PathLike,
    *,
    rounds: Sequence[int] = (),
    allow_imports: bool = False,
) -> list[epath.Path]:
    """Writes the logs of the rounds that were evaluated.

    Args:
      run_dir: `Run.output_dir`.
      out: the folder to write to; each round has one in it.
      rounds: 0 for the base model, 1, 2, ...; () for all.
      allow_imports: runs the modules that the run's gin file imports.

    Returns:
      The results files.

    Raises:
      LmsiError: a round was not evaluated, or its files are damaged.
    """
    folder = epath.Path(run_dir)
    context = Context(load_run_of(folder, str(folder), allow_imports=allow_imports), frozenset())
    last = context.round(0).settings.rounds
    evaluated = [n for n in range(last + 1) if context.round(n).finished("eval")]
    if missing := sorted(set(rounds) - set(evaluated)) or (not evaluated and [0]):
        raise LmsiError(f"round {missing[0]} of {folder} is not evaluated; run `lmsi eval`")
    return [_export(context.round(n), epath.Path(out)) for n in rounds or evaluated]


def _export(round: Round, out: epath.Path) -> epath.Path:
    """Writes one round's results and samples."""
    context, settings = round.context, round.settings
    date = datetime.datetime.now().isoformat(timespec="seconds").replace(":", "-")
    folder = out / f"round_{round.index}"
    results: dict[str, Any] = {}
    configs: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    counts: dict[str, Any] = {}
    shots: dict[str, int] = {}
    for score in read_scores(context.output, round.index):
        task, style = score["task"], score["prompt_style"]
        name = f"lmsi_{task}_{style}"
        rows = list(_rows(round, task, style))
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        data = "".join(f"{line}\n" for line in lines).encode()
        write_bytes(folder / f"samples_{name}_{date}.jsonl", data)
        right = [row[_METRIC] for row in rows]
        n, mean = len(right), math.fsum(right) / max(1, len(right))
        error = math.sqrt(mean * (1 - mean) / (n - 1)) if n > 1 else 0.0  # the harness's
        results[name] = {
            "alias": name,
            "name": name,
            "sample_len": n,
            f"{_METRIC},{_FILTER}": mean,
            f"{_METRIC}_stderr,{_FILTER}": error,
        }
        configs[name] = {
            "task": name,
            "output_type": "generate_until",
            "num_fewshot": _shots(round, task, style),
            "repeats": score["samples"],
            "generation_kwargs": _generation(round, score),
            "metric_list": [{"metric": _METRIC, "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": __version__},
        }
        keys = ("doc_hash", "prompt_hash", "target_hash")
        hashes[name] = _digest("".join(row[key] for row in rows for key in keys))
        counts[name], shots[name] = {"original": n, "effective": n}, configs[name]["num_fewshot"]
    model = f"{settings.name}, round {round.index}" if round.index else f"{settings.name}, base"
    path = folder / f"results_{date}.json"
    write_json(
        path,
        {
            "results": results,
            "group_subtasks": {name: [] for name in results},
            "configs": configs,
            "versions": dict.fromkeys(results, __version__),
            "n-shot": shots,
            "higher_is_better": {name: {_METRIC: True} for name in results},
            "n-samples": counts,
            "config": {
                "model": "lmsi",
                "model_args": {"pretrained": str(context.output), "round": round.index},
                "model_num_parameters": settings.model.parameter_count,
                "random_seed": settings.seed,
            },
            "task_hashes": hashes,
            "model_source": "lmsi",
            "model_name": model,
            "model_name_sanitized": folder.name,
            "max_length": settings.model.max_length,
            "total_evaluation_time_seconds": str(round.record("eval")["seconds"]),
        },
    )
    return path


def _rows(round: Round, task: str, style: str) -> Iterator[dict[str, Any]]:
    """Yields the lines of a samples file: a question, its prompt, answers and verdict."""
    samples, votes = round.test_samples(task, style), round.test_votes(task, style)
    (score,) = (
        one
        for one in read_scores(round.context.output, round.index)
        if (one["task"], one["prompt_style"]) == (task, style)
    )
    questions = [one for one in round.context.load_questions("test")[task] if one.uid in votes]
    asked = _generation(round, score)
    for number, (question, right) in enumerate(zip(questions, score["correct"], strict=True)):
        yield _row(
            round, style, number, question, samples[question.uid], votes[question.uid], right, asked
        )


def _row(
    round: Round,
    style: str,
    number: int,
    question: Question,
    samples: Sequence[Sample],
    vote: Vote,
    right: int,
    asked: dict[str, Any],
) -> dict[str, Any]:
    prompt_style: PromptStyle = "cot" if style == "self_consistency" else style  # type: ignore[assignment]
    exemplars = round.context.exemplars(question.task)
    prefix, text = round.context.prompts.prompt(question, exemplars, prompt_style)
    prompt, target = plain_text(prefix) + plain_text(text), question.gold or ""
    document = {
        "uid": question.uid,
        "task": question.task,
        "question": question.text,
        "kind": question.kind,
        "answer": target,
        "confidence": vote.confidence,
    }
    return {
        "doc_id": number,
        "doc": document,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": asked}},
        "resps": [[sample.text for sample in samples]],
        "filtered_resps": [vote.winner or ""],
        "filter": _FILTER,
        "metrics": [_METRIC],
        "doc_hash": _digest(json.dumps(document, indent=2, ensure_ascii=False)),
        "prompt_hash": _digest(prompt),
        "target_hash": _digest(target),
        _METRIC: float(right),
    }


def _generation(round: Round, score: dict[str, Any]) -> dict[str, Any]:
    sampling, temperature = round.settings.sampling, score["temperature"]
    return {
        "until": list(sampling.stop),
        "max_gen_toks": sampling.max_new_tokens,
        "do_sample": temperature > 0,
        "temperature": temperature,
    }


def _shots(round: Round, task: str, style: str) -> int:
    return 0 if style.startswith("zero_shot") else len(round.context.exemplars(task))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
