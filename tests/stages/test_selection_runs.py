"""`lmsi run` with filters: what they leave, what training gets of it, and resuming."""

import json
import math
import sys

import numpy as np
import pytest
from micro_run import contents, shard_rows

from lmsi_jax import files
from lmsi_jax.main import main
from lmsi_jax.models.tokenizer import SentencePiece
from lmsi_jax.prompts import build_prompt, solution
from lmsi_jax.records import Example, Exemplar, Path, Question, Vote
from lmsi_jax.store import ShardStore

ALL = {
    "Questions.train": ("purchases",),
    "Questions.train_count": 6,
    "Mixing.selection": (
        "(@DistinctReasoning(), @AnswerEntropy(), @DistributionShift(), @ImportanceWeights())"
    ),
    "DistinctReasoning.form": "text",
    "AnswerEntropy.share": 0.9,
    "DistributionShift.share": 0.8,
    "DistributionShift.validation": "strong",
    "ImportanceWeights.validation": "confident",
    "ImportanceWeights.surest": 0.5,
    "ImportanceWeights.cap": 1.02,
    "Mixing.strong_count": 2,
    "Mixing.formats": ("few_shot_cot", "zero_shot_direct"),
    "Sampling.paths": 8,
    "Training.length": 256,
    "Evaluation.promptings": ("cot",),
}
EVERY_SCORE = {
    "Mixing.selection": "(@SelfRating(), @InstructionFollowing(), @Difficulty(), @Ranked())",
    "SelfRating.share": 0.9,
    "Ranked.ranker": "micro_ranker:shortest",
}


def _words(gin_file, command, output, changes):
    settings = {"Run.output_dir": str(output), **changes}
    return [
        command,
        gin_file,
        *(f"--gin.{n}={v if '@' in str(v) else repr(v)}" for n, v in settings.items()),
    ]


@pytest.fixture(scope="module")
def selected(tmp_path_factory, gin_file):
    """A finished run with IWSI's filter and weights, entropy and distinct reasoning."""
    output = tmp_path_factory.mktemp("selected") / "run"
    assert main(_words(gin_file, "run", output, ALL)) == 0
    return output


def _scores(run):
    store = ShardStore(run / "round_1" / "path_scores")
    return {(r["uid"], r["index"]): r for r in store.read("loss-purchases-00000-of-00001")}


def test_the_funnel_counts_what_each_filter_left(selected):
    steps = ShardStore(selected / "round_1" / "mix").read("funnel-purchases")
    assert [step["filter"] for step in steps] == [
        "DistinctReasoning",
        "AnswerEntropy",
        "DistributionShift",
        "ImportanceWeights",
    ]
    votes = shard_rows(selected / "round_1" / "vote", Vote)
    assert steps[0]["rows"] == sum(len(vote.kept) for vote in votes)
    for before, after in zip(steps, steps[1:], strict=False):
        assert before["kept"] == after["rows"]
    for step in steps:
        assert step["rows"] - step["kept"] == sum(step["dropped"].values())
        assert step["right"] == step["wrong"] == 0  # train questions have no gold answer
    assert steps[1]["kept"] == math.ceil(9 * steps[1]["rows"] / 10)
    assert steps[2]["kept"] == math.ceil(4 * steps[2]["rows"] / 5)
    assert steps[3]["kept"] == steps[3]["rows"] and not steps[3]["dropped"]


def test_a_stored_loss_is_that_of_the_bases_answer_tokens_alone(
    selected, micro_config, speaking_params, tokenizer_path
):
    from reference_decoder import reference_logits
    from reference_losses import log_softmax

    tokenizer = SentencePiece(tokenizer_path)
    questions = ShardStore(selected / "questions")
    exemplars = [Exemplar.from_json(row) for row in questions.read("exemplars-purchases")]
    asked = {q.uid: q for q in map(Question.from_json, questions.read("train-purchases"))}
    paths = {(p.uid, p.index): p for p in shard_rows(selected / "round_1" / "sample", Path)}
    name, row = next(iter(_scores(selected).items()))
    prefix, inputs = build_prompt(asked[name[0]], exemplars, "cot")
    before = tokenizer.encode(prefix) + tokenizer.encode(inputs)
    own = tokenizer.encode(" " + paths[name].text.strip())
    scores = reference_logits(micro_config, speaking_params, [*before, *own])
    places = range(len(before) - 1, len(before) + len(own) - 1)
    losses = [-log_softmax(scores[p])[t] for p, t in zip(places, own, strict=True)]
    assert row["loss"] == pytest.approx(float(np.mean(losses)), rel=1e-4, abs=2e-6)


def test_the_weights_of_the_rows_are_those_of_the_formula_and_reach_the_loss(selected):
    scores = _scores(selected)
    votes = {vote.uid: vote for vote in shard_rows(selected / "round_1" / "vote", Vote)}
    rows = [
        row for row in shard_rows_of(selected, "weak-purchases") if row.format == "few_shot_cot"
    ]
    paths = {(p.uid, p.index): p for p in shard_rows(selected / "round_1" / "sample", Path)}
    by_text = {(uid, paths[uid, i].text.strip()): s["loss"] for (uid, i), s in scores.items()}
    losses = {(row.uid, row.targets): by_text[row.uid, row.targets.strip()] for row in rows}
    uids = sorted({row.uid for row in rows}, key=lambda uid: (-votes[uid].confidence, uid))
    surest = set(uids[: math.ceil(len(uids) / 2)])
    mean = np.mean([loss for (uid, _), loss in losses.items() if uid in surest])
    for row in rows:
        expected = min(mean / losses[row.uid, row.targets], 1.02)
        assert row.weight == pytest.approx(expected, rel=1e-9)
    assert len({row.weight for row in rows}) > 1
    first = json.loads((selected / "round_1/train/metrics.jsonl").read_text().splitlines()[0])
    assert np.isfinite(first["loss"])


def shard_rows_of(run, name):
    store = ShardStore(run / "round_1" / "mix")
    return [Example.from_json(row) for row in store.read(name)]


def test_another_weight_gives_another_model(selected, gin_file, tmp_path):
    changed = {**ALL, "ImportanceWeights.cap": 0.5}
    assert main(_words(gin_file, "run", tmp_path / "run", changed)) == 0
    a, b = (run / "round_1" / "train" / "digest.json" for run in (selected, tmp_path / "run"))
    weights = {row.weight for row in shard_rows_of(tmp_path / "run", "weak-purchases")}
    assert a.read_bytes() != b.read_bytes() and len(weights) >= 1


def test_interrupted_while_scoring_it_goes_on_to_the_same_bytes(
    selected, gin_file, tmp_path, monkeypatch
):
    replace, hits = files._replace, []

    def interrupted(path, data):
        if path.name.startswith(("strong-purchases.jsonl", "funnel")) and path.name not in hits:
            hits.append(path.name)
            raise KeyboardInterrupt
        replace(path, data)

    monkeypatch.setattr(files, "_replace", interrupted)
    run = _words(gin_file, "run", tmp_path / "run", ALL)
    codes = [main(run), main(run), main(run)]
    while codes[-1] == 130:
        codes.append(main(run))
    assert codes[:2] == [130, 130] and codes[-1] == 0 and len(hits) >= 2
    assert contents(tmp_path / "run") == contents(selected)


def test_the_report_shows_the_funnel(selected):
    (row,) = json.loads((selected / "report.json").read_text())["rounds"]
    assert [step["filter"] for step in row["funnel"]][0] == "DistinctReasoning"
    assert "path_scores" in row["seconds"]
    assert "DistributionShift" in (selected / "report.html").read_text()


def test_ratings_ratios_and_rankers_are_scored_once_each(gin_file, tmp_path, monkeypatch):
    (tmp_path / "micro_ranker.py").write_text(
        "def shortest(question, path):\n    assert question.uid == path.uid\n"
        "    return -len(path.text)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("micro_ranker", None)
    changes = {**ALL, **EVERY_SCORE}
    run = tmp_path / "run"
    code = main(_words(gin_file, "mix", run, changes))
    assert code == 2  # nothing was sampled yet
    assert main(_words(gin_file, "sample", run, changes)) == 0
    assert main(_words(gin_file, "vote", run, changes)) == 0
    assert main(_words(gin_file, "mix", run, changes)) == 0
    names = ShardStore(run / "round_1" / "path_scores").names()
    assert any(name.startswith("rating-purchases") for name in names)
    (loss,) = [name for name in names if name.startswith("loss-")]
    rows = ShardStore(run / "round_1" / "path_scores").read(loss)
    assert all({"loss", "question_loss", "alone_loss"} <= set(row) for row in rows)
    ranks = ShardStore(run / "round_1" / "path_scores").read("rank-purchases")
    assert all(row["rank:micro_ranker:shortest"] < 0 for row in ranks)
    steps = ShardStore(run / "round_1" / "mix").read("funnel-purchases")
    assert steps[0]["dropped"].get("no rating was given", 0) in (0, steps[0]["rows"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**ALL, "Mixing.strong_count": 0}, "set Mixing.strong_count"),
        ({**ALL, "DistributionShift.share": 80}, "use a share above 0"),
        ({**ALL, "Mixing.selection": "(@Ranked(),)", "Ranked.ranker": "x"}, "'module:function'"),
        (
            {**ALL, "Mixing.selection": "(@Ranked(),)", "Ranked.ranker": "no_such:f"},
            "there is no module 'no_such'",
        ),
        ({**ALL, "Training.preference": "@Preference()"}, "set Mixing.selection = ()"),
    ],
)
def test_what_cannot_be_is_named(gin_file, tmp_path, capsys, changes, message):
    assert main(_words(gin_file, "run", tmp_path / "run", changes)) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_given_solutions_only_validate_where_their_rate_is_zero(selected):
    store = ShardStore(selected / "round_1" / "path_scores")
    assert len(store.read("strong-purchases")) == 2
    given = {row.targets for row in shard_rows_of(selected, "strong-purchases")}
    assert given and solution("", "1")[:13] == "The answer is"
    metrics = (selected / "round_1/train/metrics.jsonl").read_text()
    assert "strong" not in metrics


def test_a_ranker_weighs_votes_of_train_and_test_questions(gin_file, tmp_path, monkeypatch):
    (tmp_path / "micro_voter.py").write_text(
        "def sevens(question, path):\n    return 1.0 if '7' in path.text else 0.25\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = {
        "Voting.weights": "ranker",
        "Voting.ties": "ranker",
        "Voting.ranker": "micro_voter:sevens",
        "Training.steps": 1,
    }
    assert main(_words(gin_file, "run", tmp_path / "run", changes)) == 0
    votes = shard_rows(tmp_path / "run" / "round_1" / "vote", Vote)
    assert {weight for vote in votes for weight in vote.weights} <= {1.0, 0.25}
