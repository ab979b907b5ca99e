"""A finished run's samples become the questions of a corrector, which an ordinary run trains."""

import contextlib
import json

import pytest

from lmsi_jax.cli.main import main
from lmsi_jax.pipeline.context import read_samples
from lmsi_jax.records import Vote
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.training.checkpoints import Checkpoints

# "haThe answer is 7.": a solution with reasoning.
_PIECES = (":", "▁ha", "Th", "e", "▁an", "sw", "er", "▁is", "▁", "12347", ".", "\n")


@pytest.fixture(scope="module")
def sampled(gin_file, speaker, tmp_path_factory):
    """Flags of a run with greedy samples whose base model was evaluated."""
    folder = tmp_path_factory.mktemp("sampled")
    output, last = folder / "run", len(_PIECES) - 1
    with contextlib.closing(Checkpoints(folder / "base")) as saved:
        saved.save(1, speaker(_PIECES, [*range(1, last + 1), last]))
    flags = [
        gin_file,
        "--gin.Sampling.greedy=True",
        f"--gin.Run.init_checkpoint='{folder}/base'",
        f"--gin.Run.output_dir='{output}'",
    ]
    for command in ("eval", "sample", "vote"):
        assert main([command, *flags]) == 0
    return flags, output


def _rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_train_questions_have_the_rounds_samples_and_test_questions_the_bases(sampled, tmp_path):
    flags, output = sampled
    command = ["export-candidates", *flags]
    assert main([*command[:2], str(tmp_path / "out"), *command[2:], "--candidates=2"]) == 0
    store = ShardStore(output / "round_1" / "sample")
    greedy, drawn = (read_samples(store, name) for name in ("greedy-purchases", "purchases"))
    votes = [
        Vote.from_json(row) for row in ShardStore(output / "round_1" / "vote").read("purchases")
    ]
    train = _rows(tmp_path / "out" / "purchases.train.jsonl")
    # Two disjoint groups of each question; equal texts are one row.
    assert 0 < len(train) <= sum(2 for vote in votes if vote.kept)
    for row in train:
        lines = row["question"].splitlines()
        at = lines.index("Candidates:")
        shown = [line.partition(". ")[2] for line in lines[at + 1 :]]
        (uid,) = [
            uid
            for uid, samples in drawn.items()
            if {" ".join(greedy[uid][0].text.split())} <= set(shown)
            and sum(" ".join(one.text.split()) in shown for one in samples) >= 1
        ][:1]
        assert len(shown) == 3 and row["solution"] == "ha."
        assert f"haThe answer is {row['answer']}." in {" ".join(p.text.split()) for p in drawn[uid]}
        assert uid in {vote.uid for vote in votes if vote.kept}
    tests = _rows(tmp_path / "out" / "purchases.test.jsonl")
    assert len(tests) == 4 and all(row["answer"] for row in tests)


def test_a_corrector_learns_them_as_an_ordinary_run(sampled, gin_file, tmp_path):
    flags, _ = sampled
    out = tmp_path / "out"
    assert main(["export-candidates", flags[0], str(out), *flags[1:], "--candidates=2"]) == 0
    run = tmp_path / "corrector"
    words = ["run", *flags[:-1], f"--gin_file={out}/corrector.gin"]
    words += [f"--gin.Run.output_dir='{run}'", "--gin.Sampling.greedy=False"]
    assert main([*words, "--gin.Training.sequence_length=320"]) == 0
    scores = json.loads((run / "round_1" / "eval" / "scores.json").read_text())
    assert {(row["task"], row["prompt_style"]) for row in scores} == {
        ("corrected_purchases", "zero_shot_cot"),
        ("corrected_purchases", "self_consistency"),
    }
    mixed = ShardStore(run / "round_1" / "mix")
    human = [row for name in mixed.names() if name.startswith("human-") for row in mixed.read(name)]
    rows = [one for task in ("purchases", "compare") for one in _rows(out / f"{task}.train.jsonl")]
    answers = {row["answer"] for row in rows}
    assert human and {row["inputs"] for row in human} <= {
        f"Q: {row['question'].removeprefix('Q: ')}\nA: Let's think step by step." for row in rows
    }
    assert {row["targets"] for row in human} <= {f" ha. The answer is {one}." for one in answers}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gin.Sampling.greedy=False"], "sample with Sampling.greedy = True"),
        (["--candidates=9"], "raise Evaluation.num_samples, or show fewer"),
        (["--candidates=0"], "use 1 or more"),
        (["--round=3"], "round 3 are not cast"),
        (["--gin.Voting.rotate_options=True"], "sample without it"),
    ],
)
def test_what_is_missing_is_named(sampled, tmp_path, capsys, flags, message, finished, gin_file):
    words, _ = sampled
    if "greedy" in flags[0]:
        words = [gin_file, f"--gin.Run.output_dir='{finished}'"]
    assert main(["export-candidates", words[0], str(tmp_path / "out"), *words[1:], *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
