"""`lmsi run` on pairs: what is written, what is computed once, and resuming to the same bytes."""

import json
import math

import numpy as np
import pytest
from micro_run import contents, killed_after, shard_rows, snapshot

from lmsi_jax.cli.main import main
from lmsi_jax.models.tokenizers import SentencePiece
from lmsi_jax.prompts import SEPARATOR
from lmsi_jax.records import ExamplePair, Sample, Vote
from lmsi_jax.runtime import files
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.training import checkpoints

SCPO = {
    "Training.preference": "@Preference()",
    "Preference.form": "scpo",
    "Preference.threshold": 0.25,
    "Mixing.formats": ("few_shot_cot", "zero_shot_cot"),
    "Training.sequence_length": 256,
    "Sampling.num_samples": 8,
    "Evaluation.prompt_styles": ("cot",),
}
SPIN = {**SCPO, "Preference.form": "spin", "Preference.beta": 0.1, "Mixing.human_examples": 3}


@pytest.fixture(scope="module")
def words(gin_file):
    """Returns the arguments of `lmsi COMMAND` into a folder."""

    def make(command, output, changes):
        settings = {"Run.output_dir": str(output), **changes}
        return [
            command,
            gin_file,
            *(
                f"--gin.{name}={value if str(value).startswith('@') else repr(value)}"
                for name, value in settings.items()
            ),
        ]

    return make


@pytest.fixture(scope="module")
def scpo(tmp_path_factory, words):
    """A finished run on pairs from votes."""
    output = tmp_path_factory.mktemp("scpo") / "run"
    assert main(words("run", output, SCPO)) == 0
    return output


def _metrics(run, index=1):
    lines = (run / f"round_{index}" / "train" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_pairs_are_of_the_most_and_the_least_voted_answer(scpo):
    votes = {vote.uid: vote for vote in shard_rows(scpo / "round_1" / "vote", Vote)}
    paths = {(p.uid, p.sample_index): p for p in shard_rows(scpo / "round_1" / "sample", Sample)}
    pairs = shard_rows(scpo / "round_1" / "mix", ExamplePair)
    assert pairs and {pair.format for pair in pairs} == {"few_shot_cot", "zero_shot_cot"}
    for pair in pairs:
        vote = votes[pair.uid]
        counts = {key: vote.keys.count(key) for key in set(vote.keys) - {None}}
        texts = {paths[pair.uid, n].text.strip(): key for n, key in enumerate(vote.keys)}
        chosen, rejected = (texts[text.strip()] for text in (pair.chosen, pair.rejected))
        assert counts[chosen] == max(counts.values()) >= 0.25 * vote.total
        assert counts[rejected] == min(counts.values())
        assert pair.weight == (counts[chosen] - counts[rejected]) / vote.total


def test_training_starts_at_log_two_and_learns_to_prefer(scpo):
    """The reference is where training starts, so the first margins are 0."""
    first, *_, last = _metrics(scpo)
    pairs = shard_rows(scpo / "round_1" / "mix", ExamplePair)
    assert first["margin"] == pytest.approx(0, abs=1e-3)
    least, most = (f(pair.weight for pair in pairs) for f in (min, max))
    assert first["loss"] > least * math.log(2)  # plus the chosen sequence's own loss
    assert most <= 1 and last["margin"] > 0.01 and last["accuracy"] > 0.5


def test_the_references_numbers_are_on_disk_and_those_of_the_base(
    scpo, micro_config, speaking_params, tokenizer_path
):
    from reference_decoder import reference_logits
    from reference_losses import log_softmax

    pairs = shard_rows(scpo / "round_1" / "mix", ExamplePair)
    scores = ShardStore(scpo / "round_1" / "teacher_scores")
    found = [row for name in scores.names() for row in scores.read(name)]
    assert len(found) == len(pairs)
    tokenizer = SentencePiece(tokenizer_path)
    pair, known = pairs[-1], found[-1]["reference"]  # zero-shot: short
    before = tokenizer.encode(pair.prefix) + tokenizer.encode(pair.inputs)
    for text, logprob in zip((pair.chosen, pair.rejected), known, strict=True):
        own = tokenizer.encode(text + SEPARATOR)
        scores = reference_logits(micro_config, speaking_params, [*before, *own])
        places = range(len(before) - 1, len(before) + len(own) - 1)
        expected = sum(log_softmax(scores[p])[t] for p, t in zip(places, own, strict=True))
        assert logprob == pytest.approx(float(expected), rel=1e-4)


def test_interrupted_it_goes_on_to_the_same_bytes_and_scores_once(
    scpo, words, tmp_path, monkeypatch
):
    replace = files._replace

    def interrupted(path, data):
        hit = tmp_path / f"hit-{path.parent.name}"
        scoring = path.parent.name == "teacher_scores" and path.name.endswith("jsonl.gz")
        if (scoring or path.name == "digest.json") and not hit.exists():
            hit.touch()
            raise KeyboardInterrupt
        replace(path, data)

    monkeypatch.setattr(files, "_replace", interrupted)
    run = words("run", tmp_path / "run", SCPO)
    assert [main(run), main(run)] == [130, 130]
    stand = snapshot(tmp_path / "run" / "round_1" / "teacher_scores")
    assert main(run) == 0
    assert snapshot(tmp_path / "run" / "round_1" / "teacher_scores") == stand
    assert contents(tmp_path / "run") == contents(scpo)


def test_the_report_counts_pairs_as_the_models_own_rows(scpo):
    (row,) = json.loads((scpo / "report.json").read_text())["rounds"]
    pairs = shard_rows(scpo / "round_1" / "mix", ExamplePair)
    assert row["sources"] == {"self_generated": len(pairs), "human": 0}
    assert row["train"] == _metrics(scpo) and "teacher_scores" in row["seconds"]


def _references(run, index):
    store = ShardStore(run / f"round_{index}" / "teacher_scores")
    found = [row.get("reference") for name in store.names() for row in store.read(name)]
    assert any(found)  # a pair without room has none
    return found


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SCPO, SPIN], ids=["scpo", "spin"])
def test_a_second_rounds_pairs_are_compared_with_the_first_rounds_model_killed_or_not(
    words, tmp_path, settings
):
    changes = {**settings, "Run.rounds": 2, "Run.start_from": "last", "CollapseMonitor.stop": ()}
    changes["Optimizer.learning_rate"] = 1e-2  # so that the models tell apart
    assert main(words("run", tmp_path / "whole", changes)) == 0
    for index in (1, 2):
        first, *_, last = _metrics(tmp_path / "whole", index)
        assert first["margin"] == pytest.approx(0, abs=1e-3)
        assert last["margin"] > first["margin"]
    assert _references(tmp_path / "whole", 1) != _references(tmp_path / "whole", 2)
    stores = [ShardStore(tmp_path / "whole" / f"round_{index}" / "mix") for index in (1, 2)]
    made = [name for name in stores[0].names() if name.startswith("pairs-")]
    repeated = [name for name in stores[1].names() if name.startswith("last_pairs-")]
    if settings is SPIN:  # it trains on the last round's pairs again
        assert [f"last_{name}" for name in made] == repeated and made
        assert all(stores[1].read(f"last_{name}") == stores[0].read(name) for name in made)
        lines = [len(_references(tmp_path / "whole", index)) for index in (1, 2)]
        own = sum(len(stores[1].read(name)) for name in stores[1].names() if "last" not in name)
        assert lines[1] == own + lines[0] if own else lines[0]
    else:
        assert repeated == []
    killed_after(words("run", tmp_path / "killed", changes), "pipeline.train", "write_missing", 2)
    assert not (tmp_path / "killed" / "round_2" / "train" / "stage.json").exists()
    assert main(words("run", tmp_path / "killed", changes)) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_spin_sets_given_solutions_against_the_models_own(words, tmp_path, micro_params):
    run = tmp_path / "run"
    assert main(words("run", run, SPIN)) == 0
    pairs = shard_rows(run / "round_1" / "mix", ExamplePair)
    own = {p.uid: p for p in shard_rows(run / "round_1" / "sample", Sample) if "strong" in p.uid}
    assert len(own) == 6 and {p.sample_index for p in own.values()} == {0}
    assert pairs and {pair.weight for pair in pairs} == {1.0}
    for pair in pairs:
        assert own[pair.uid].text.strip().startswith(pair.rejected.strip())
        assert "The answer is" in pair.chosen and pair.chosen != pair.rejected
    first, *_, last = _metrics(run)
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert last["loss"] < first["loss"]
    before = checkpoints.load_params(run / "round_1" / "train", micro_params)
    assert np.isfinite(float(before["embedding"].sum()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**SPIN, "Mixing.human_examples": 0}, "set Mixing.human_examples to how many"),
        ({**SCPO, "Mixing.human_examples": 2}, "set Mixing.human_examples to 0"),
        (
            {**SCPO, "Training.loss": "@Loss()", "Loss.z_loss": 1e-4},
            "takes the place of Training.loss",
        ),
        ({**SCPO, "Preference.threshold": 1.0}, "lower Preference.threshold"),
    ],
)
def test_what_cannot_be_is_named(words, tmp_path, capsys, changes, message):
    assert main(words("run", tmp_path / "run", changes)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
