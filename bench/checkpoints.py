"""Answers of published checkpoints, beside llama.cpp: python -m bench.checkpoints --gguf=FILE

Imports the file (`lmsi import-hf`: seconds and memory), then asks the first questions of the test
split of each set greedily: a share of them can be read, is right, and ended by itself. With
`--peer=FOLDER`, llama.cpp completes the same prompts from the same file; FOLDER is where
`npm install node-llama-cpp` was run. Prints one JSON object.

The questions are in the folder that `--data=DIR` or LMSI_DATA names (see `bench.real_outputs`).
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import lmsi_jax
from bench.real_outputs import add_flag, folder
from lmsi_jax.config import Decoding, Sampling
from lmsi_jax.evaluation import accuracy
from lmsi_jax.prompts import PLAIN, PromptStyle
from lmsi_jax.records import End, Exemplar, Question, Sample, plain_text

PEER = pathlib.Path(__file__).parent / "peers" / "llama_texts.mjs"


def imported(gguf: pathlib.Path, out: pathlib.Path) -> dict[str, float]:
    """Imports a file in a process of its own; returns its seconds and peak memory in GB."""
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "lmsi_jax.cli.main", "import-hf", str(gguf), str(out)],
        stdout=sys.stderr,
        check=True,
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"seconds": time.perf_counter() - begin, "peak_gb": peak * 1024 / 1e9}


def figures(questions: list[Question], samples: list[Sample]) -> dict[str, float]:
    """Returns the shares of samples that can be read, are right, and ended by themselves."""
    by_uid = {sample.uid: [sample] for sample in samples}
    score = accuracy.score(questions, by_uid, "cot", 0.0)
    ended = sum(sample.end != "limit" for sample in samples)
    return {
        "questions": len(questions),
        "readable": score.parsed,
        "right": score.accuracy,
        "ended": ended / len(samples),
        "mean_tokens": score.mean_tokens,
    }


def ours(
    model: lmsi_jax.Model,
    questions: list[Question],
    shots: tuple[Exemplar, ...],
    style: PromptStyle,
    flags: Any,
) -> tuple[list[Sample], float]:
    """Returns our greedy samples, and the seconds that they took, compilation included."""
    begin = time.perf_counter()
    samples = lmsi_jax.sample(
        model,
        questions,
        shots,
        prompt_style=style,
        sampling=Sampling(
            num_samples=1, temperature=0.0, max_new_tokens=flags.tokens, stop=stops(model)
        ),
        decoding=Decoding(slots=flags.slots, dtype=flags.dtype),
    )
    return [first for (first,) in samples.values()], time.perf_counter() - begin


def stops(model: lmsi_jax.Model) -> tuple[str, ...]:
    """Returns the stop strings: none in a chat template, whose turn ends in a token."""
    return Sampling().stop if model.prompts is PLAIN else ()


def theirs(
    model: lmsi_jax.Model,
    questions: list[Question],
    shots: tuple[Exemplar, ...],
    style: PromptStyle,
    flags: Any,
) -> tuple[list[Sample], float]:
    """Returns llama.cpp's greedy samples of the same prompts, and their seconds."""
    lines = []
    for question in questions:
        prefix, text = model.prompts.prompt(question, shots, style)
        prompt = {
            "prompt": plain_text(prefix) + plain_text(text),
            "stops": stops(model),
            "tokens": flags.tokens,
            "special": model.prompts is not PLAIN,
        }
        lines.append(json.dumps(prompt))
    done = subprocess.run(
        ["node", str(PEER), str(flags.gguf), str(flags.peer_threads)],
        input="\n".join(lines),
        env={**os.environ, "NODE_PATH": str(flags.peer.resolve())},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    samples, seconds = [], 0.0
    for question, line in zip(questions, done.stdout.splitlines(), strict=True):
        row = json.loads(line)
        cut = row["reason"] == "maxTokens"
        end: End = "limit" if cut else "end_token" if row["reason"] == "eogToken" else "stop"
        seconds += row["seconds"]
        samples.append(
            Sample(
                uid=question.uid,
                sample_index=0,
                text=row["text"],
                tokens=row["tokens"],
                logprob=0.0,
                end=end,
            )
        )
    return samples, seconds


def answered(
    model: lmsi_jax.Model, name: str, asked: str, data: pathlib.Path, flags: Any
) -> dict[str, Any]:
    """Asks the questions of a set: "few_shot", or "chat" with a request for steps."""
    style: PromptStyle = "zero_shot_cot" if asked == "chat" else "cot"
    if asked == "few_shot":
        model = dataclasses.replace(model, prompts=PLAIN)
    task = lmsi_jax.task(name, str(data / name))
    questions = list(task.questions("test", "hard", count=flags.questions, seed=0))
    shots = tuple(task.exemplars()) if asked == "few_shot" else ()
    samples, seconds = ours(model, questions, shots, style, flags)
    row: dict[str, Any] = {"ours": {**figures(questions, samples), "seconds": seconds}}
    if flags.peer:
        others, seconds = theirs(model, questions, shots, style, flags)
        row["llama_cpp"] = {**figures(questions, others), "seconds": seconds}
        pairs = list(zip(samples, others, strict=True))
        same = sum(one.text.strip() == other.text.strip() for one, other in pairs)
        row["same_text"] = same / len(pairs)
    return row


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Imports the file and asks each set's questions; returns the report."""
    data = folder(flags.data, [])
    with tempfile.TemporaryDirectory() as place:
        report: dict[str, Any] = {
            "file": flags.gguf.name,
            "machine": platform.processor() or platform.machine(),
            "dtype": flags.dtype,
            "import": imported(flags.gguf, pathlib.Path(place) / "model"),
        }
        loaded = lmsi_jax.load(pathlib.Path(place) / "model")
        report["sets"] = {}
        for name in flags.sets.split(","):
            for asked in flags.styles.split(","):
                row = answered(loaded, name, asked, data, flags)
                print(f"{name}, {asked}: {json.dumps(row)}", file=sys.stderr, flush=True)
                report["sets"][f"{name}, {asked}"] = row
    return report


def main() -> None:
    """Parses the command line, measures, and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=pathlib.Path, required=True, help="a GGUF file")
    parser.add_argument("--sets", default="gsm8k,svamp", help="data sets, with commas")
    parser.add_argument("--styles", default="few_shot,chat", help="few_shot, chat, or both")
    parser.add_argument("--questions", type=int, default=100, help="of each set")
    parser.add_argument("--tokens", type=int, default=256, help="most tokens of an answer")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--peer", type=pathlib.Path, help="folder with node-llama-cpp")
    parser.add_argument(
        "--peer_threads", type=int, default=0, help="its threads; 0: one for each core"
    )
    add_flag(parser)
    print(json.dumps(measure(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
