"""Measures the value of the model's own questions and prompts on one task.

    python bench/generated.py purchases --train=40 --test=100 --samples=40 --output=runs/bench

Runs the stages generate, prompts, sample, vote and mix of `generated.gin` on the task; then asks
its test questions in three ways, with "Let's think step by step.", after the generated prompts,
and after the task's own exemplars, and votes on the first 10 and on all samples of each. Prints the
new questions, how many were well formed and how sure the votes are; for prompts, accuracies and
paired intervals of the change against the first way, in points. As its last line, JSON with these
numbers. Takes up the same folder again.
"""

import argparse
import json
from typing import Any

from lmsi_jax import answers, voting
from lmsi_jax.augmentation import groups
from lmsi_jax.config import Run, gin_loader
from lmsi_jax.config.configurables import load_run
from lmsi_jax.evaluation.statistics import paired_difference
from lmsi_jax.pipeline.augment import read_counts
from lmsi_jax.pipeline.context import Context, Round, read_samples
from lmsi_jax.pipeline.rounds import execute
from lmsi_jax.pipeline.sample import Job, draw_samples, make_job
from lmsi_jax.records import Question, Sample
from lmsi_jax.runtime.store import ShardStore

_STAGES = ("generate", "prompts", "sample", "vote", "mix")
_WAYS = ("step_by_step", "generated", "packaged")
_FIRST = 10


def main() -> None:
    """Runs the stages, samples the test questions and prints the figures."""
    args = _arguments()
    run = _run(args)
    execute(run, _STAGES, "bench/generated.py", gin_loader.operative_config())
    round = Context(run, frozenset(_STAGES)).round(1)
    measured = {"questions": _new(round, args.task), "prompts": _prompts(round, args.task)}
    print(json.dumps(measured))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    for name, default in (("train", 40), ("test", 100), ("samples", 40), ("prompts", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output", default="runs/bench_generated")
    return parser.parse_args()


def _run(args: argparse.Namespace) -> Run:
    changes = {
        "Run.output_dir": args.output,
        "Questions.train": f"('{args.task}',)",
        "Questions.test": f"('{args.task}',)",
        "Questions.train_count": str(args.train),
        "Questions.test_count": str(args.test),
        "Augmentation.questions": str(args.train),
        "Augmentation.prompts": str(args.prompts),
        "Sampling.num_samples": str(args.samples),
    }
    bindings = tuple(gin_loader.Binding(name=name, value=value) for name, value in changes.items())
    gin_loader.load("generated", gin_loader.GinArgs(bindings=bindings))
    return load_run()


def _new(round: Round, task: str) -> dict[str, Any]:
    """Returns the counts of new questions, and the confidences of votes on real and new ones."""
    asked = round.new_questions[task]
    new = {question.uid for question in asked}
    print("\n".join(question.text for question in asked))
    votes = round.votes()[task]
    sure: dict[str, list[float]] = {"real": [], "new": []}
    for vote in votes:
        sure["new" if vote.uid in new else "real"].append(vote.confidence)
    least = round.settings.augmentation.min_confidence
    found: dict[str, Any] = read_counts(round, "generate")[task]
    for name, values in sure.items():
        found[f"{name}_confidence"] = round(sum(values) / max(1, len(values)), 3)
        found[f"{name}_sure"] = sum(value >= least for value in values)
    for name, value in found.items():
        print(f"{name:20} {value}")
    return found


def _prompts(round: Round, task: str) -> dict[str, Any]:
    """Returns the accuracies of votes under three prompt styles, on equal questions and noise."""
    questions = round.context.load_questions("test")[task]
    made = round.few_shots(task)
    sampling = round.settings.sampling
    by_uid = {question.uid: question for question in questions}
    own = round.context.exemplars(task)
    jobs: dict[str, list[Job]] = {
        "step_by_step": [make_job("step_by_step", questions, (), "zero_shot_cot", sampling)],
        "generated": [
            make_job(
                f"generated-{group.prompt}",
                [by_uid[uid] for uid in group.uids],
                made[group.prompt].exemplars,
                "cot",
                sampling,
                group.numbers,
            )
            for group in groups(list(by_uid), sampling.num_samples, made)
        ],
        "packaged": [make_job("packaged", questions, own, "cot", sampling)],
    }
    folder = round.context.output / "compared"
    draw_samples(
        round,
        [job for way in _WAYS for job in jobs[way]],
        by_uid,
        folder,
        model=0,
        label="comparison",
    )
    right = {way: _right(ShardStore(folder), jobs[way], questions) for way in _WAYS}
    return _table(right)


def _right(store: ShardStore, jobs: list[Job], questions: list[Question]) -> dict[str, list[int]]:
    """Returns 1 for each correct vote, of the first samples and of all, else 0."""
    samples: dict[str, list[Sample]] = {}
    for job in jobs:
        for uid, rows in read_samples(store, job.name).items():
            samples.setdefault(uid, []).extend(rows)
    found: dict[str, list[int]] = {"first": [], "all": []}
    for question in questions:
        assert question.gold is not None
        gold = answers.key(question.gold, question.kind, answers.options_of(question))
        vote = voting.vote(question, samples[question.uid])
        first = voting.winner_of_first(vote, samples[question.uid], _FIRST)
        found["first"].append(int(first == gold))
        found["all"].append(int(vote.winner == gold))
    return found


def _table(right: dict[str, dict[str, list[int]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for size in ("first", "all"):
        for way in _WAYS:
            hits = right[way][size]
            row: dict[str, Any] = {"percent": round(100 * sum(hits) / len(hits), 1)}
            if way != "step_by_step":
                change = paired_difference(right["step_by_step"][size], hits)
                row["points"] = [round(100 * x, 1) for x in (change.low, change.high)]
            found[f"{way}, {size}"] = row
            print(f"{way:14} {size:6} {row}")
    return found


if __name__ == "__main__":
    main()
