"""The settings of a run's folder are read without running the code that they name."""

import pytest

from lmsi_jax.config.configurables import load_run_of
from lmsi_jax.errors import LmsiError
from lmsi_jax.tasks import registry

_TEXT = """
Run.model = @ModelConfig()
Run.questions = @Questions()
Run.voting = @Voting()
Run.mixing = @Mixing()
ModelConfig.vocab_size = 8
ModelConfig.embed_dim = 8
ModelConfig.num_layers = 1
ModelConfig.num_heads = 1
ModelConfig.head_dim = 8
ModelConfig.mlp_dim = 8
Questions.train = ("own",)
Questions.tasks = ("trap:TASK", @FileTask())
FileTask.name = "other"
FileTask.kind = "number"
FileTask.train = "rows.jsonl"
FileTask.reader = "trap:read"
FileTask.prompt = "trap:prompt"
Voting.scorer = "trap:score"
Mixing.selection = (@ExternalScore(),)
ExternalScore.scorer = "trap:score"
"""


def test_code_beside_a_downloaded_run_is_not_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    mark = tmp_path / "ran"
    (tmp_path / "trap.py").write_text(f"open({str(mark)!r}, 'w').close()\nTASK = None\n")
    checkpoint = tmp_path / "round_1" / "train" / "checkpoint_1"
    checkpoint.mkdir(parents=True)
    (tmp_path / "config.gin").write_text(_TEXT)
    run = load_run_of(checkpoint)
    assert run.questions is not None and "trap:TASK" in run.questions.tasks[0]
    assert not mark.exists()
    with pytest.raises(LmsiError):  # a run on these questions does import it
        registry.custom_tasks(run.questions)
    assert mark.exists()


def test_a_folder_whose_settings_are_not_whole_is_told_in_a_line(tmp_path):
    (tmp_path / "config.gin").write_text("Run.seed = 1\n")
    with pytest.raises(LmsiError, match="Run needs model; set it in the gin file"):
        load_run_of(tmp_path)
