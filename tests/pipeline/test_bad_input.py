"""What the user can mend: exit code 2, one or two lines that name the remedy, nothing lost."""

import json
import pathlib
import shutil

import pytest
from micro_run import contents, other_tokenizer, snapshot

from lmsi_jax.cli.main import main


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Sampling.temprature": 0.5}, "did you mean temperature?"),
        ({"Run.rounds": "three"}, "Run.rounds = 'three'; use a whole number"),
        ({"Run.rounds": 0}, "Run.rounds = 0; use 1 or more rounds"),
        ({"Run.questions_per_shard": 0}, "Run.questions_per_shard = 0; use 1 or more questions"),
        (
            {"Evaluation.vote_count": 0},
            "Evaluation.vote_count = 0; use 1 or more questions",
        ),
        ({"Run.start_from": "middle"}, "Run.start_from"),
        ({"Sampling.top_p": 0.0}, "Sampling.top_p = 0.0; use a share above 0, up to 1"),
        (
            {"Sampling.adaptive_consistency": 95},
            "Sampling.adaptive_consistency = 95; use a probability above 0.5",
        ),
        ({"Training.steps": 0}, "Training.steps = 0; use 1 or more"),
        ({"Training.human_rate": 2.0}, "Training.human_rate = 2.0; use a share, 0 to 1"),
        ({"ModelConfig.head_dim": 5}, "head_dim = 5 must be even"),
        ({"Questions.train": ("purchase",)}, "did you mean 'purchases'?"),
        ({"Questions.train_count": 0}, "Questions.train_count = 0; use 1 or more"),
        ({"Questions.test_count": 0}, "Questions.test_count = 0; use 1 or more"),
        ({"Questions.train": ()}, "there are no questions"),
        ({"Questions.train": ("aqua",)}, "data_dir"),
        ({"Run.init_checkpoint": "/nowhere"}, "no checkpoint in /nowhere"),
        ({"Run.tokenizer": "/nowhere.model"}, "/nowhere.model is not a readable SentencePiece"),
        ({"Run.tokenizer": "/"}, "/ is a folder without tokenizer.json or tokenizer.model"),
        ({"ModelConfig.embed_dim": 32}, "belongs to another model"),
        ({"ModelConfig.num_layers": 3}, "belongs to another model"),
        ({"Sampling.max_new_tokens": 900}, "use fewer exemplars or fewer new tokens"),
        ({"Mixing.cap": 0}, "Mixing.cap = 0; use 1 or more"),
        ({"Mixing.formats": ("cot",)}, "Mixing.formats = ('cot',); choose from few_shot_cot, "),
        ({"Mixing.min_confidence": 50.0}, "Mixing.min_confidence = 50.0; use a share, 0 to 1"),
        (
            {"Mixing.human_examples": -1},
            "Mixing.human_examples = -1; use 0 (none",
        ),
        ({"Evaluation.prompt_styles": ("tot",)}, "Evaluation.prompt_styles has 'tot'"),
    ],
)
def test_mistakes_are_named(lmsi, tmp_path, changes, message):
    code, _, error = lmsi("run", tmp_path / "run", changes)
    assert code == 2
    assert message in error
    assert len(error) < 400


def test_a_missing_output_dir_is_named_with_its_flag(gin_file, capsys):
    assert main(["run", gin_file]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error == (
        "lmsi: error: Run needs output_dir; set it in the gin file or add "
        "--gin.Run.output_dir=VALUE"
    )


def test_a_run_without_questions_says_what_to_bind(lmsi, tmp_path):
    code, _, error = lmsi("run", tmp_path / "run", {"Run.questions": None})
    assert code == 2 and "bind it to @Questions()" in error


@pytest.mark.parametrize("data", [b"no model at all\n", b"\x00\x01\x02"])
def test_a_tokenizer_that_is_none_is_refused(lmsi, tmp_path, data):
    (tmp_path / "tokenizer.model").write_bytes(data)
    code, _, error = lmsi(
        "run", tmp_path / "run", {"Run.tokenizer": str(tmp_path / "tokenizer.model")}
    )
    assert code == 2 and "tokenizer.model is not a readable SentencePiece model" in error


def test_a_tokenizer_of_another_vocabulary_is_refused(lmsi, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(other_tokenizer(275))
    changes = {"Run.tokenizer": str(tmp_path / "tokenizer.model")}
    code, _, error = lmsi("run", tmp_path / "run", changes)
    assert code == 2 and "has 275 ids, ModelConfig.vocab_size is 320" in error


def _files(folder):
    return sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("way", ["truncate", "remove", "garble"])
def test_a_damaged_base_checkpoint_is_named_whichever_file_it_is(
    lmsi, tmp_path, speaking_checkpoint, way
):
    """Each file of it in turn: either it is not needed, or the message names the checkpoint."""
    refused = 0
    count = len(_files(speaking_checkpoint))
    for number in range(count):
        base = tmp_path / f"base_{number}"
        shutil.copytree(speaking_checkpoint, base)
        file = _files(base)[number]
        data = file.read_bytes()
        if way == "remove":
            file.unlink()
        else:
            file.write_bytes(data[: len(data) // 2] if way == "truncate" else data[::-1])
        changes = {"Run.init_checkpoint": str(base), "Questions.test": ("purchases",)}
        code, _, error = lmsi("vote", tmp_path / f"run_{number}", changes)
        assert code == 2  # nothing was sampled
        if "run `lmsi sample`" not in error:
            refused += 1
            assert "checkpoint" in error and str(base) in error.replace(" ", "")
    assert refused >= 1


def test_a_damaged_trained_checkpoint_is_named_and_mended(finished, copy, lmsi):
    shutil.rmtree(copy / "round_1" / "eval")
    folder = copy / "round_1" / "train" / "checkpoint_4"
    for file in (folder / "state" / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:10])
    before = snapshot(copy / "round_1" / "sample")
    code, _, error = lmsi("run", copy)
    assert code == 2 and "incomplete or damaged" in error and "delete it and repeat" in error
    shutil.rmtree(folder)
    assert lmsi("run", copy)[0] == 0
    assert contents(copy) == contents(finished)
    assert snapshot(copy / "round_1" / "sample") == before


def test_a_trained_model_with_a_flipped_bit_is_not_used(copy, lmsi):
    """The checkpoint's own format would read it without a word."""
    shutil.rmtree(copy / "round_1" / "eval")
    data = copy / "round_1" / "train" / "checkpoint_4" / "state" / "ocdbt.process_0" / "d"
    for file in data.iterdir():
        flipped = bytearray(file.read_bytes())
        for at in range(0, len(flipped), 512):
            flipped[at] ^= 1
        file.write_bytes(flipped)
    code, _, error = lmsi("run", copy)
    assert code == 2 and "checkpoint_4" in error and "delete it and repeat" in error


def test_when_nothing_parses_training_refuses_and_the_report_shows_it(
    lmsi, tmp_path, random_checkpoint
):
    changes = {"Run.init_checkpoint": random_checkpoint}
    code, _, error = lmsi("run", tmp_path / "run", changes)
    assert code == 2
    assert "round 1 kept no sample" in error and "lmsi report" in error
    for stage in ("sample", "vote", "mix", "eval"):
        assert lmsi(stage, tmp_path / "run", changes)[0] == 0
    assert lmsi("report", tmp_path / "run", changes)[0] == 0
    (row,) = json.loads((tmp_path / "run" / "report.json").read_text())["rounds"]
    assert (row["questions"], row["empty_votes"], row["parsed"], row["kept"]) == (8, 8, 0, 0)
    assert row["alarms"] == ["100 % of the questions have no parsed answer"]
    assert (tmp_path / "run" / "report.html").exists()


def test_rows_that_do_not_fit_name_the_sizes(copy, lmsi):
    for stage in ("train", "eval"):
        shutil.rmtree(copy / "round_1" / stage)
    code, _, error = lmsi("run", copy, {"Training.sequence_length": 16})
    assert (
        code == 2 and "no training row fits" in error and "raise Training.sequence_length" in error
    )


def test_a_place_that_cannot_be_written_is_named(lmsi, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, error = lmsi("run", tmp_path / "file" / "run")
    assert code == 2 and "choose another output_dir" in error


@pytest.mark.parametrize("there", [False, True])
def test_an_output_dir_that_an_ordinary_user_cannot_write_takes_one_line(
    words, tmp_path, capsys, ordinary_user, there
):
    folder = tmp_path / "closed"
    (folder / "run").mkdir(parents=True) if there else folder.mkdir()
    for path in (folder / "run", folder)[1 - there :]:
        path.chmod(0o500)
    capsys.readouterr()
    assert main(words("run", folder / "run")) == 2
    error = capsys.readouterr().err.partition("lmsi: error: ")[2]
    assert " ".join(error.split()).startswith(f"cannot {'write' if there else 'open'} {folder}/run")
    assert " ".join(error.split()).endswith(
        "Permission denied; make it writable, or choose another output_dir"
    )
    assert [path.name for path in folder.rglob("*")] == ["run"] * there
    for path in (folder, *folder.iterdir()):
        path.chmod(0o700)
