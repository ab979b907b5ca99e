"""`--dry_run` over every packaged run: all is resolved, what is missing named, nothing run."""

import re

import pytest

from lmsi_jax.cli.main import main
from lmsi_jax.config import gin_loader

RUNS = gin_loader.packaged_configs()
GIVEN = {
    "Run.output_dir": "'runs/x'",
    "Run.init_checkpoint": "'gs://mine/x'",
    "Run.tokenizer": "'gs://mine/x'",
    "Distillation.teacher_dir": "'gs://mine/teacher'",
    "Questions.train": "('gsm8k',)",
    "Questions.test": "('gsm8k',)",
    "Questions.data_dir": "'gs://mine/gsm8k'",
}
# What these want of other runs is not there in an empty folder.
ABSENT = {"distill_tiny": {"Run.init_checkpoint", "Run.tokenizer", "Distillation.teacher_dir"}}
BUCKET = {"Run.output_dir", "Run.init_checkpoint", "Run.tokenizer", "Questions.data_dir"}
ON_BUCKET = ("pod_", "gsm8k_gemma", "gsm8k_llama", "iwsi_llama", "lmsi_palm", "ul2_")
ROUND = {
    "Training.max_prefix_length": 1024,
    "Training.sequence_length": 512,
    "Training.fsdp": True,
    "ModelConfig.remat": "dots",
    "Questions.train_count": 7473,
    "Questions.test_count": 1319,
    "Mixing.normalise": "sample",
    "Mixing.min_confidence": 0.0,
    "Sampling.max_new_tokens": 256,
}
SETTINGS = {
    "gsm8k_gemma2_2b": {**ROUND, "Sampling.num_samples": 32, "Sampling.temperature": 0.7},
    "gsm8k_llama3_8b": {**ROUND, "Sampling.num_samples": 32, "Evaluation.temperature_after": 1.2},
    "iwsi_llama3_8b": {
        **ROUND,
        "Sampling.num_samples": 15,
        "Sampling.temperature": 1.1,
        "DistributionShift.share": 0.8,
        "DistributionShift.validation": "human",
        "Mixing.human_examples": 50,
        "Training.human_rate": 0.0,
        "Lora.rank": 8,
        "Optimizer.name": "adamw",
        "Optimizer.learning_rate": 3e-4,
    },
    "lmsi_palm_540b": {
        **ROUND,
        "Sampling.num_samples": 32,
        "Sampling.temperature": 0.7,
        "Evaluation.temperature_after": 1.2,
        "Training.steps": 10_000,
        "Training.microbatches": 1,
        "Training.sequences_per_prefix": 32,
        "Optimizer.learning_rate": 5e-5,
        "Optimizer.decay": "constant",
        "ModelConfig.embed_dim": 18432,
    },
    "ul2_llama3_8b": {
        **ROUND,
        "Sampling.num_samples": 40,
        "Sampling.temperature": 0.5,
        "Evaluation.temperature": 0.5,
        "Evaluation.temperature_after": 0.7,
    },
}


@pytest.fixture(autouse=True)
def _empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def dry(capsys):
    """Runs `lmsi COMMAND CONFIG --dry_run`; returns (exit code, lines, the error)."""

    def run(config, *flags, command="run"):
        kind = config.split("_")[0]
        command = kind if kind in ("distill", "pretrain") else command
        capsys.readouterr()
        code = main([command, config, "--dry_run", *flags])
        captured = capsys.readouterr()
        error = " ".join(captured.err.split()).partition("lmsi: error: ")[2]
        return code, captured.out.splitlines(), error

    return run


def _filled(dry, config):
    """The same with what the configuration says is required."""
    code, lines, error = dry(config)
    if "required and not set" not in error:
        return code, lines, error
    names = re.findall(r"--gin\.([\w.]+)=VALUE", error)
    assert code == 2 and lines == [] and names
    return dry(config, *(f"--gin.{name}={GIVEN[name]}" for name in names))


def _values(lines):
    """The parameters that were printed."""
    found = (re.fullmatch(r"((?:pretraining/)?[A-Z]\w*\.\w+) = (.*)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def _said(lines, kind):
    """The parameters of which something was said."""
    return {line.removeprefix(f"{kind}: ").split(" = ")[0] for line in lines
            if line.startswith(f"{kind}: ")}  # fmt: skip


@pytest.mark.parametrize("config", RUNS)
def test_every_parameter_of_every_packaged_run_is_resolved(dry, tmp_path, config):
    code, lines, error = _filled(dry, config)
    printed, gin = _values(lines), gin_loader.operative_config()
    operative = re.findall(r"^([\w/]+\.\w+) = (?!@|\\\n\s*\(?@|\(@)", gin, re.MULTILINE)
    wanted = {name.replace("pretrain/", "pretraining/") for name in operative}
    assert len(wanted) > 50 and wanted <= set(printed)
    assert not [name for name, value in printed.items() if "@" in value or "%" in value]
    assert _said(lines, "wrong") == ABSENT.get(config, set())
    assert _said(lines, "to set") == (BUCKET if config.startswith(ON_BUCKET) else set())
    assert code == (2 if config in ABSENT or config.startswith(ON_BUCKET) else 0)
    assert ("would not run" in error) == (code == 2)
    assert list(tmp_path.iterdir()) == []  # nothing was written


@pytest.mark.parametrize("config", SETTINGS)
def test_the_papers_settings_are_what_the_run_resolves_to(dry, config):
    _, lines, _ = dry(config)
    printed = _values(lines)
    for name, value in SETTINGS[config].items():
        assert printed[name] == repr(value)


def test_a_filled_bucket_leaves_nothing_to_set_and_says_what_was_not_looked_at(dry):
    flags = [f"--gin.{name}={GIVEN[name]}" for name in sorted(BUCKET)]
    code, lines, error = dry("gsm8k_llama3_8b", *flags)
    assert (code, error) == (0, "") and lines[-1].endswith("nothing was run")
    assert _said(lines, "not checked") == BUCKET - {"Run.output_dir"}


def test_files_that_are_to_come_through_tfds_are_named(dry):
    code, lines, _ = dry("quickstart", "--gin.Questions.test=('gsm8k', 'legs')")
    said = [line for line in lines if line.startswith("not checked: ")]
    assert code == 0 and len(said) == 1 and "gsm8k: Questions.data_dir is not set" in said[0]


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        (["--gin.Questions.train=('purchase',)"], "there is no task 'purchase'; did you mean"),
        (["--gin.Questions.data_dir=nowhere"], "Questions.data_dir = nowhere: there is no such"),
        (["--gin.Run.init_checkpoint=."], "no checkpoint in ."),
        (["--gin.ModelConfig.vocab_size=999"], "has 1024 ids, ModelConfig.vocab_size is 999"),
        (["--gin.Voting.scorer=no_such:f", "--gin.Voting.ties=scorer"], "there is no module"),
        (["--gin.Sampling.max_new_tokens=1024"], "leaves no room for a prompt"),
        (["--gin.Run.questions=None"], "Run.questions is not set"),
        (["--gin.Questions.train=()"], "there are no questions: set Questions.train"),
        (["--gin.Run.reuse=('nowhere',)"], "Run.reuse[0] = nowhere: there is no such"),
        (["--gin.Evaluation.checkpoints=('embedded',)"], "is for `lmsi eval` alone"),
    ],
)
def test_what_would_end_the_run_is_said_before_it(dry, flags, wrong):
    code, lines, error = dry("quickstart", *flags)
    said = [line for line in lines if line.startswith("wrong: ")]
    assert code == 2 and len(said) == 1 and wrong in said[0]
    assert error == "this would not run: 0 to set, 1 wrong; see above"


def test_checkpoints_to_compare_that_are_none_are_named(dry, tmp_path):
    (tmp_path / "empty").mkdir()
    flag = "--gin.Evaluation.checkpoints=('embedded', 'nope', 'gs://mine/x', 'empty')"
    code, lines, _ = dry("quickstart", flag, command="eval")
    wrong = [line for line in lines if line.startswith("wrong: ")]
    assert code == 2 and len(wrong) == 2
    assert "Evaluation.checkpoints[1] = nope: there is no such file or folder" in wrong[0]
    assert "no checkpoint in empty" in wrong[1]
    assert _said(lines, "not checked") == {"Evaluation.checkpoints[2]"}
    code, lines, _ = dry("quickstart", "--gin.Evaluation.checkpoints=('embedded',)", command="eval")
    assert code == 0


@pytest.mark.parametrize(
    ("test_rows", "wrong"),
    [
        (['{"question": "Three?"}'], "test.jsonl, line 1 is not {"),
        (['{"question": "Three?", "answer": "#### 3"}', '{"question": '], "line 2 is not one JSON"),
        ([], "task 'gsm8k' has only 0 questions in its test split"),
        (['{"question": "Three?", "answer": "#### 3"}'], None),
    ],
)
def test_all_data_files_are_read_and_parsed(dry, tmp_path, test_rows, wrong):
    (tmp_path / "train.jsonl").write_text('{"question": "Two?", "answer": "#### 2"}')
    (tmp_path / "test.jsonl").write_text("\n".join(test_rows))
    flags = [f"--gin.Questions.{split}=('gsm8k',)" for split in ("train", "test")]
    flags += [f"--gin.Questions.{split}_count=1" for split in ("train", "test")]
    code, lines, _ = dry("quickstart", *flags, f"--gin.Questions.data_dir={tmp_path}")
    said = [line for line in lines if line.startswith("wrong: ")]
    assert (code, len(said)) == ((2, 1) if wrong else (0, 0))
    assert not wrong or wrong in said[0]


def test_exemplars_whose_answers_are_of_another_kind_are_named(dry, tmp_path):
    (tmp_path / "own.txt").write_text("Q: Seven?\nA: So. The answer is no.\n")
    flags = ["--gin.Questions.exemplars=(('purchases', 'own.txt'),)"]
    code, lines, _ = dry("quickstart", *flags)
    assert code == 2 and "'no' is not read as a number" in "".join(lines)


@pytest.mark.parametrize(
    ("flag", "remedy"),
    [
        ("Run.model=None", "bind it to @ModelConfig()"),
        ("Evaluation.vote_count=0", "use 1 or more questions, or None"),
        ("Evaluation.num_samples=0", "use 1 or more samples"),
        (
            "Evaluation.temperature=-0.5",
            "use 0 (greedy) or more, if not 0 at least 1e-30",
        ),
        ("Questions.test_count=0", "use 1 or more questions"),
        ("Mixing.min_confidence=-1", "use a share, 0 to 1"),
        ("Decoding.pool_bytes=-1", "use 0 or more bytes"),
        ("Decoding.page=0", "use 1 or more tokens"),
        ("Optimizer.warmup_steps=-1", "use 0 or more steps"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_what_can(dry, flag, remedy):
    name, value = flag.split("=")
    code, lines, error = dry("quickstart", f"--gin.{flag}")
    assert (code, lines, error) == (2, [], f"{name} = {value}; {remedy}")


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"hard": 1.5}, "a share, 0 to 1"),
        ({"most_questions": 0}, "1 or more questions"),
        ({"question_weight": -0.1}, "0 or more"),
        ({"vocab_documents": 0}, "1 or more documents"),
        ({"seed": -1}, "a number from 0 to 2147483647"),
        ({"shares": (("legs", 0.0),)}, "(task, share) pairs of 0 or more, one of them above 0"),
        ({"shares": ()}, "(task, share) pairs of 0 or more, one of them above 0"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_with_what_can(dry, changes, remedy):
    ((name, value),) = changes.items()
    code, _, error = dry("pretrain", f"--gin.Pretraining.{name}={value!r}")
    assert (code, error) == (2, f"Pretraining.{name} = {value!r}; use {remedy}")
    code, lines, _ = dry("pretrain", "--gin.Pretraining.shares=(('leggs', 1.0),)")
    assert code == 2 and "there is no task 'leggs'; did you mean" in "".join(lines)


def test_each_rounds_own_values_are_shown(dry):
    schedule = "(('Sampling.temperature', (0.7, 1.2)), ('Mixing.min_confidence', (0.0, 0.3, 0.5)))"
    code, lines, _ = dry("quickstart", "--gin.Run.rounds=4", f"--gin.Run.schedule={schedule}")
    shown = [line for line in lines if line.startswith("round ")]
    assert code == 0 and shown == [
        "round 1: Sampling.temperature = 0.7, Mixing.min_confidence = 0.0",
        "round 2: Sampling.temperature = 1.2, Mixing.min_confidence = 0.3",
        "round 3: Sampling.temperature = 1.2, Mixing.min_confidence = 0.5",
        "round 4: Sampling.temperature = 1.2, Mixing.min_confidence = 0.5",
    ]
