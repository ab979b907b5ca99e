"""`lmsi runs` and `lmsi clean`, and a run's folder in place of a gin file."""

import pytest

from lmsi_jax.cli.main import main
from lmsi_jax.config import gin_loader
from lmsi_jax.runtime.files import in_bytes


def _run(folder, rounds=1):
    (folder / "round_0" / "eval").mkdir(parents=True)
    (folder / "config.gin").write_text(f"Run.rounds = {rounds}\n")
    (folder / "round_0" / "eval" / "config.json").write_text("{}")
    return folder


def test_runs_are_listed_with_their_state(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    _run(tmp_path / "runs" / "first", rounds=3)
    _run(tmp_path / "runs" / "second")
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(line for line in lines if line.startswith("runs/first"))
    assert " ".join(first.split()).startswith("runs/first 0/3 – stopped in eval, round 0 ")
    assert any(line.startswith("runs/second") for line in lines)
    assert main(["runs", "nowhere"]) == 2
    assert "there is no folder nowhere" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["runs", "empty"]) == 0
    assert capsys.readouterr().out == "no runs in empty\n"


@pytest.mark.parametrize("columns", [40, 80])
def test_the_list_of_runs_fits_the_terminal(tmp_path, monkeypatch, capsys, columns):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(columns))
    _run(tmp_path / "runs" / "one")
    assert main(["runs"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= columns


def test_clean_asks_first_and_removes_nothing_without_a_yes(tmp_path, capsys, monkeypatch):
    run = _run(tmp_path / "run")
    left = run / "round_1" / "train" / "checkpoint_4.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    assert main(["clean", str(run)]) == 2  # no terminal
    assert "add --yes, or --dry_run" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer in ("", "n", "what?"):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert main(["clean", str(run)]) == 0
        assert "nothing was removed" in capsys.readouterr().out and left.exists()
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert main(["clean", str(run)]) == 0
    assert not left.exists()
    assert main(["clean", str(tmp_path)]) == 2
    assert "is no run" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (18_123_456, "18 MB"), (3e12, "3.0 TB")],
)
def test_sizes_have_two_digits_and_a_unit(size, words):
    assert in_bytes(size) == words


def test_a_runs_folder_stands_for_its_gin_file(tmp_path, monkeypatch):
    from lmsi_jax.config.configurables import CLASSES

    assert CLASSES  # gin knows them
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    config = tmp_path / "runs" / "quickstart" / "config.gin"
    config.write_text("Run.rounds = 7\nRun.output_dir = 'moved/since'\n")
    # A path with a slash is the folder, the name alone is the packaged configuration.
    for name in ("runs/quickstart", "runs/quickstart/", str(tmp_path / "runs" / "quickstart")):
        assert gin_loader.find_config(name) == f"{name.rstrip('/')}/config.gin"
    assert gin_loader.find_config("quickstart").endswith("gin_configs/runs/quickstart.gin")
    import gin

    gin_loader.load("runs/quickstart", gin_loader.GinArgs())
    assert gin.query_parameter("Run.rounds") == 7
    assert gin.query_parameter("Run.output_dir") == "runs/quickstart"
    other = gin_loader.Binding(name="Run.output_dir", value="'elsewhere'")
    gin_loader.load("runs/quickstart", gin_loader.GinArgs(bindings=(other,)))
    assert gin.query_parameter("Run.output_dir") == "elsewhere"
    gin.clear_config()
