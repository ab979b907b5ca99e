"""The report's numbers, counted again from the shards with plain loops."""

import json

import pytest
from micro_run import shard_rows

from lmsi_jax.cli.main import main
from lmsi_jax.records import Example, Sample, Vote
from lmsi_jax.runtime.files import file_sha256, write_record
from lmsi_jax.runtime.store import read_finished


@pytest.fixture(scope="module")
def report(finished):
    return json.loads((finished / "report.json").read_text())


def test_the_funnel_is_that_of_the_shards(finished, report):
    paths = shard_rows(finished / "round_1" / "sample", Sample)
    votes = shard_rows(finished / "round_1" / "vote", Vote)
    (row,) = report["rounds"]
    texts = {(path.uid, path.sample_index): path.text for path in paths}
    kept = [(vote.uid, index) for vote in votes for index in vote.kept]
    assert row["questions"] == len(votes) == 8
    assert row["samples"] == len(paths) == 32
    assert row["parsed"] == sum(key is not None for vote in votes for key in vote.keys)
    assert row["unfinished"] == sum(not path.finished for path in paths)
    assert row["empty_votes"] == sum(vote.winner is None for vote in votes) == 4
    assert row["tied_votes"] == sum(len(vote.tied) > 0 for vote in votes)
    assert row["kept"] == len(kept) > 0
    assert row["distinct_kept"] == len({(uid, texts[uid, index]) for uid, index in kept})
    assert row["mean_confidence"] == pytest.approx(sum(v.confidence for v in votes) / 8)
    assert row["mean_entropy"] == pytest.approx(sum(v.entropy for v in votes) / 8)
    compare = row["votes_by_task"]["compare"]
    assert (compare["questions"], compare["empty"], compare["mean_confidence"]) == (4, 4, 0.0)


def test_the_training_rows_are_those_of_the_shards(finished, report):
    examples = shard_rows(finished / "round_1" / "mix", Example)
    (row,) = report["rounds"]
    for name, counted in row["examples"].items():
        mine = [example for example in examples if example.format == name]
        assert counted["rows"] == len(mine)
        assert counted["weight"] == pytest.approx(sum(example.weight for example in mine))
    assert row["sources"] == {"self_generated": len(examples), "human": 0}
    lines = (finished / "round_1" / "train" / "metrics.jsonl").read_text().splitlines()
    assert row["train"] == [json.loads(line) for line in lines]


def test_the_scores_are_those_of_the_evaluations(finished, report):
    for number in (0, 1):
        scores = json.loads((finished / f"round_{number}" / "eval" / "scores.json").read_text())
        shown = [row for row in report["evals"] if row["round"] == number]
        for before, after in zip(scores, shown, strict=True):
            assert after == {"round": number, **before}


def test_the_rates_are_tokens_over_seconds(finished, report):
    (row,) = report["rounds"]
    assert set(row["seconds"]) == {"sample", "vote", "mix", "train", "eval"}
    tokens = sum(path.tokens for path in shard_rows(finished / "round_1" / "sample", Sample))
    rate = row["tokens_per_second"]["sample"]
    assert rate == pytest.approx(tokens / row["seconds"]["sample"])


def test_shown_questions_carry_gold_samples_and_votes(report):
    assert {row["task"] for row in report["examples"]} == {"purchases"}
    for row in report["examples"]:
        assert row["gold"] is not None
        assert sum(path["count"] for path in row["samples"]) == row["total"] == 4
        kept = sum(path["count"] for path in row["samples"] if path["kept"])
        assert kept / 4 == pytest.approx(row["confidence"])


def test_the_report_shows_what_was_run_not_what_is_asked_now(copy, lmsi):
    assert lmsi("report", copy, {"Sampling.temperature": 0.1})[0] == 0
    report = json.loads((copy / "report.json").read_text())
    assert "Sampling.temperature = 0.7" in report["config"]
    assert "Sampling.temperature = 0.1" not in report["config"]


def test_a_held_out_loss_that_was_measured_between_two_lines_of_metrics_is_reported(copy, lmsi):
    train = copy / "round_1" / "train"
    with (train / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "validation_loss": 2.5}\n')
    record = read_finished(train)
    record["outputs"]["metrics.jsonl"] = file_sha256(train / "metrics.jsonl")
    write_record(train / "stage.json", record)
    assert lmsi("report", copy)[0] == 0
    (row,) = json.loads((copy / "report.json").read_text())["rounds"]
    assert row["train"][-1] == {"step": 5, "validation_loss": 2.5}
    assert row["tokens_per_second"]["train"] > 0


def test_the_browser_has_every_sample_of_the_run(copy, capsys):
    assert main(["browse", str(copy)]) == 0
    drawn = sum(
        len(shard_rows(copy / f"round_{number}" / stage, Sample))
        for number, stage in ((0, "eval"), (1, "eval"), (1, "sample"))
    )
    said = capsys.readouterr().out
    assert said.startswith(f"{drawn} samples: ") and "browse/index.html" in said
    index = json.loads((copy / "browse" / "questions.js").read_text()[len("lmsi.start(") : -3])
    assert index["samples"] == drawn
    both = [row for row in index["items"] if row[1] == "test"]
    assert both and all([answer[0] for answer in row[5]] == [0, 1] for row in both)
    trained = [row for row in index["items"] if row[1] == "train"]
    assert len(trained) == 8 and all(answer[2] is None for row in trained for answer in row[5])
    (copy / "browse" / "samples-00007.js").touch()  # of an earlier, larger one
    assert main(["browse", str(copy)]) == 0
    assert not (copy / "browse" / "samples-00007.js").exists()


def test_a_run_is_compared_with_itself_without_any_difference(finished, copy, capsys, tmp_path):
    page = tmp_path / "compare.html"
    assert main(["compare", str(finished), str(copy), f"--html={page}"]) == 0
    out = capsys.readouterr().out
    assert "All settings are the same." in out and "purchases" in out
    assert "unclear" in page.read_text() and "▲" not in page.read_text().partition("Settings")[0]
    assert main(["compare", str(copy)]) == 2
    assert main(["compare", str(copy), str(tmp_path)]) == 2
    assert "has no report.json" in " ".join(capsys.readouterr().err.split())
