"""A second round with new questions, filters, a schedule and the collapse monitor, and resumed."""

import json
import pathlib
import shutil

import pytest
from micro_run import contents, killed_after, shard_rows, snapshot
from own_run import write_gin

from lmsi_jax.cli.main import main
from lmsi_jax.evaluation.collapse import measure
from lmsi_jax.pipeline import train
from lmsi_jax.records import Example, Question, Sample, Vote
from lmsi_jax.rollout.engine import Engine
from lmsi_jax.runtime import files
from lmsi_jax.runtime.store import ShardStore

SCHEDULE = {
    "Mixing.min_confidence": (0.0, 0.3),
    "Training.human_rate": (0.5, 0.25),
    "Optimizer.learning_rate": (1e-3, 5e-4),
    "DistributionShift.share": (1.0, 0.8),
}
SETTINGS = {
    "Run.rounds": 2,
    "Run.start_from": "last",
    "Questions.train": ("gsm8k",),
    "Questions.test": ("gsm8k",),
    "Questions.train_count": 5,
    "Questions.test_count": 2,
    "Questions.exemplars": (("gsm8k", "gsm8k_short"),),
    "Sampling.num_samples": 5,
    "Sampling.max_new_tokens": 16,
    "Evaluation.prompt_styles": ("self_consistency",),
    "Evaluation.num_samples": 5,
    "Training.steps": 2,
    "Training.sequence_length": 256,
    "Augmentation.questions": 3,
    "Augmentation.shown": 2,
    "Augmentation.max_new_tokens": 18,
    "Augmentation.tries": 8.0,
    "Augmentation.min_confidence": 0.0,
    "Mixing.human_examples": 2,
    "Mixing.formats": ("few_shot_cot", "zero_shot_cot"),
    "DistributionShift.validation": "human",
    "CollapseMonitor.stop": (),
    "CollapseMonitor.least_questions": 1,
}


def _words(command, gin, output, by_round=None, **changes):
    schedule = tuple((by_round or SCHEDULE).items())
    changed = {"Run.output_dir": str(output), "Run.schedule": schedule, **changes}
    return [command, gin, *(f"--gin.{name}={value!r}" for name, value in changed.items())]


@pytest.fixture(scope="module")
def gin(tmp_path_factory, gin_text, speaker):
    lines = ("Mixing.selection = (@DistributionShift(),)",)
    return write_gin(tmp_path_factory.mktemp("second"), gin_text, speaker, SETTINGS, lines)


@pytest.fixture(scope="module")
def two(tmp_path_factory, gin):
    """A finished run of two rounds; look at it, change copies only."""
    output = tmp_path_factory.mktemp("two") / "run"
    assert main(_words("run", gin, output)) == 0
    return output


@pytest.fixture
def copy(two, tmp_path):
    return pathlib.Path(shutil.copytree(two, tmp_path / "copy"))


@pytest.fixture
def first(copy):
    """A copy with the first round alone."""
    shutil.rmtree(copy / "round_2")
    return copy


def _config(run, index, stage):
    return json.loads((run / f"round_{index}" / stage / "config.json").read_text())["config"]


def _report(run):
    return json.loads((run / "report.json").read_text())


def test_each_round_has_its_own_values_and_records_them_alone(two):
    for index in (1, 2):
        mix, train = _config(two, index, "mix"), _config(two, index, "train")["Training"]
        own = {name: values[index - 1] for name, values in SCHEDULE.items()}
        assert mix["Mixing"]["min_confidence"] == own["Mixing.min_confidence"]
        (shift,) = mix["Mixing"]["selection"]
        assert shift["DistributionShift"]["share"] == own["DistributionShift.share"]
        assert train["human_rate"] == own["Training.human_rate"]
        rate = own["Optimizer.learning_rate"]
        assert train["optimizer"]["learning_rate"] == rate
        metrics = (two / f"round_{index}" / "train" / "metrics.jsonl").read_text().splitlines()
        assert json.loads(metrics[-1])["learning_rate"] == pytest.approx(rate)
        assert "schedule" not in json.dumps([mix, train])
        row = _report(two)["rounds"][index - 1]
        assert row["values"] == {name: repr(value) for name, value in own.items()}


def test_the_second_rounds_threshold_keeps_sure_questions_alone(two):
    votes = {v.uid: v for v in shard_rows(two / "round_2" / "vote", Vote)}
    rows = shard_rows_of(two, 2, "self_generated-gsm8k")
    assert rows and all(votes[row.uid].confidence >= 0.3 for row in rows)
    assert shard_rows_of(two, 1, "self_generated-gsm8k")


def shard_rows_of(run, index, name):
    store = ShardStore(run / f"round_{index}" / "mix")
    return [Example.from_json(row) for row in store.read(name)]


def test_a_later_rounds_value_leaves_finished_rounds_alone(copy, gin, monkeypatch, capsys):
    def never(*_args, **_kwargs):
        raise AssertionError("nothing should be decoded or trained")

    monkeypatch.setattr(Engine, "generate", never)
    monkeypatch.setattr(train, "train", never)
    before = snapshot(copy / "round_1") | snapshot(copy / "round_2")
    third = {name: (*values, values[-1] / 2) for name, values in SCHEDULE.items()}
    assert main(_words("run", gin, copy, third)) == 0
    capsys.readouterr()
    second = {**SCHEDULE, "Mixing.min_confidence": (0.0, 0.4)}
    assert main(_words("run", gin, copy, second)) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "0.3}}], is now [{'MinConfidence': {'confidence': 0.4}}]" in error and "round_2" in error
    first = {**SCHEDULE, "Mixing.min_confidence": (0.1, 0.3)}
    assert main(_words("run", gin, copy, first)) == 2
    assert "round_1/" in " ".join(capsys.readouterr().err.split())
    assert snapshot(copy / "round_1") | snapshot(copy / "round_2") == before


def test_a_round_is_added_to_a_finished_run_to_the_same_bytes(two, first, gin, monkeypatch):
    """It is interrupted before each kind of file that the second round writes."""
    replace, hits = files._replace, []
    kinds = (
        *("written-gsm8k-00000", "questions-gsm8k", "gsm8k-00001", "gsm8k.jsonl", "loss-gsm8k"),
        *(
            "funnel-gsm8k",
            "self_generated-gsm8k",
            "digest.json",
            "scores.json",
            "collapse.json",
            "report.json",
        ),
    )

    def interrupted(path, data):
        for kind in kinds:
            if path.name.startswith(kind) and kind not in hits:
                hits.append(kind)
                raise KeyboardInterrupt
        replace(path, data)

    before = snapshot(first / "round_1")
    assert main(_words("run", gin, first, **{"Run.rounds": 1})) == 0
    monkeypatch.setattr(files, "_replace", interrupted)
    codes = [main(_words("run", gin, first)) for _ in range(len(kinds) + 1)]
    assert codes == [130] * len(kinds) + [0] and set(hits) == set(kinds)
    assert contents(first) == contents(two) and snapshot(first / "round_1") == before
    for index in (1, 2):
        name = f"round_{index}/collapse.json"
        assert (first / name).read_text() == (two / name).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "count"),
    [
        ("runtime.store", "ShardStore.write", 2),
        ("runtime.store", "ShardStore.write", 5),
        ("runtime.store", "ShardStore.write", 8),
        ("runtime.store", "ShardStore.write", 11),
        ("runtime.store", "Stage.finish", 2),
        ("runtime.store", "Stage.finish", 5),
        ("training.checkpoints", "Checkpoints.save", 1),
        ("training.checkpoints", "Checkpoints.save", 2),
    ],
)
def test_killed_anywhere_in_the_second_round_it_goes_on_to_the_same_bytes(
    two, first, gin, module, name, count
):
    words = _words("run", gin, first)
    killed_after(words, module, name, count)
    assert main(words) == 0
    assert contents(first) == contents(two)


def test_the_watch_measures_what_lies_in_the_folders(two):
    stored = json.loads((two / "round_2" / "collapse.json").read_text())["metrics"]
    assert set(stored) == {"train", "test"}
    store = ShardStore(two / "round_2" / "generate")
    asked = [
        *(q for q in shard_rows(two / "questions", Question) if q.gold is None),
        *map(Question.from_json, store.read("questions-gsm8k")),
    ]
    samples: dict[str, list[Sample]] = {}
    for path in shard_rows(two / "round_2" / "sample", Sample):
        samples.setdefault(path.uid, []).append(path)
    votes = {v.uid: v for v in shard_rows(two / "round_2" / "vote", Vote)}
    rows = [*shard_rows_of(two, 2, "self_generated-gsm8k"), *shard_rows_of(two, 2, "human-gsm8k")]
    found = measure(asked, samples, [votes[q.uid] for q in asked], rows)
    train = stored["train"]["metrics"]
    assert stored["train"]["sampled"] == [5, 0.7] and train["questions"] == len(asked) == 8
    for name in ("confidence", "entropy", "length", "unparsed", "kept", "rows", "easy_weight"):
        assert train[name] == pytest.approx(getattr(found, name))
    assert train["distinct"] == pytest.approx(list(found.distinct)) and train["scored"] is None
    scores = json.loads((two / "round_2" / "eval" / "scores.json").read_text())
    (vote,) = [row for row in scores if row["prompt_style"] == "self_consistency"]
    scored = stored["test"]["metrics"]["scored"]
    assert scored["majority"] == sum(vote["correct"]) / 2 and scored["single"] == vote["single"]
    assert scored["passed"] == vote["curve"][-1]["passed"]


def test_the_report_shows_the_watch_by_round(two):
    rows = _report(two)["collapse"]
    places = [(row["source"], row["round"]) for row in rows]
    assert places == [("test", 0), ("train", 1), ("test", 1), ("train", 2), ("test", 2)]
    page = (two / "report.html").read_text()
    assert "Collapse monitor" in page and "Distinct-2" in page and "Run.schedule" in page


def test_an_alarm_warns_and_ends_the_rounds_only_where_it_is_named(copy, gin, capsys):
    changes = {
        "Run.rounds": 3,
        "CollapseMonitor.kept": (0.0, 2.0),
        "CollapseMonitor.stop": ("kept",),
    }
    before = snapshot(copy / "round_2")
    assert main(_words("run", gin, copy, **changes)) == 0
    out = " ".join(capsys.readouterr().out.split())
    words = "far fewer questions give training rows"
    assert f"stopping after round 2: {words}" in out
    assert not (copy / "round_3").exists() and snapshot(copy / "round_2") == before
    alarms = [row["alarms"] for row in _report(copy)["rounds"]]
    assert [any(words in said for said in own) for own in alarms] == [False, True]
    assert (
        main(_words("run", gin, copy, **{**changes, "Run.rounds": 2, "CollapseMonitor.stop": ()}))
        == 0
    )
    assert "stopping" not in capsys.readouterr().out


def test_figures_are_measured_again_where_a_stage_was_done_anew(copy, gin):
    path = copy / "round_2" / "collapse.json"
    before = json.loads(path.read_text())
    stale = {**before, "of": {**before["of"], "mix": "another"}, "metrics": {}}
    path.write_text(json.dumps(stale))
    assert main(_words("report", gin, copy)) == 0
    assert json.loads(path.read_text()) == before


def _size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_cleaned_run_is_smaller_and_resumes_reports_exports_and_trains_on(
    two, copy, monkeypatch, capsys
):
    assert main(["clean", str(copy), "--dry_run"]) == 0
    assert "round 2 is trained and evaluated" in capsys.readouterr().out
    assert _size(copy) == _size(two)
    assert main(["clean", str(copy), "--yes"]) == 0
    assert _size(copy) < 0.7 * _size(two)
    steps = {path.parts[-3] for path in copy.glob("round_*/train/checkpoint_*")}
    assert steps == {"round_2"}
    assert main(["clean", str(copy)]) == 0
    assert "all of its checkpoints are needed" in capsys.readouterr().out

    with monkeypatch.context() as patched:  # by the run's own folder, in place of its gin file

        def never(*_args, **_kwargs):
            raise AssertionError("nothing should be decoded or trained")

        patched.setattr(Engine, "generate", never)
        patched.setattr(train, "train", never)
        assert main(["run", str(copy)]) == 0
        assert main(["export-rows", str(copy), str(copy / "rows.jsonl")]) == 0
    assert contents(copy) == contents(two) and (copy / "rows.jsonl").stat().st_size > 0
    # The last model answers again as before; the freed one says that it was freed.
    shutil.rmtree(copy / "round_2" / "eval")
    assert main(["run", str(copy)]) == 0
    assert contents(copy) == contents(two)
    shutil.rmtree(copy / "round_1" / "eval")
    capsys.readouterr()
    assert main(["run", str(copy)]) == 2
    assert "was freed by `lmsi clean`" in " ".join(capsys.readouterr().err.split())
    # Trained again from its rows: the optimizer's state that was freed is not looked for.
    (copy / "round_2" / "train" / "stage.json").unlink()
    shutil.rmtree(copy / "round_1" / "train")
    assert main(["run", str(copy)]) == 0
    assert contents(copy) == contents(two)
