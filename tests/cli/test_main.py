"""The command line: what it imports, what it answers, and with which exit code."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import types

import pytest

import lmsi_jax
from lmsi_jax.cli import main
from lmsi_jax.cli.parser import COMMANDS, STAGE_COMMANDS
from lmsi_jax.cli.subcommands import Command
from lmsi_jax.config import gin_loader
from lmsi_jax.errors import LmsiError


@pytest.fixture
def stages(monkeypatch):
    """Stands in for the stages, which have tests of their own; returns the calls it got."""
    calls: list[tuple] = []
    configurables = types.ModuleType("lmsi_jax.config.configurables")
    configurables.load_run = lambda: "the run"  # type: ignore[attr-defined]
    rounds = types.ModuleType("lmsi_jax.pipeline.rounds")
    rounds.execute = lambda *args: calls.append(args)  # type: ignore[attr-defined]
    for module in (configurables, rounds):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(lmsi_jax, name, module, raising=False)
    return calls


@pytest.fixture
def config(tmp_path) -> str:
    path = tmp_path / "a.gin"
    path.write_text("# nothing is configured\n")
    return str(path)


def _imported(code: str) -> set[str]:
    """Runs Python code in a process of its own; returns the top-level packages it imported."""
    code += "\nimport sys\nprint('imported:', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
TENSORFLOW = {"tensorflow", "tensorflow_datasets", "seqio"}
HEAVY = {*JAX, *TENSORFLOW, "numpy", "rich", "etils", "absl"}


def test_the_settings_import_the_standard_library_alone():
    assert "lmsi_jax" in (imported := _imported("import lmsi_jax.config"))
    assert imported & {*HEAVY, "gin"} == set()


def test_help_imports_nothing_heavy():
    code = "import lmsi_jax.cli.main as m\ntry: m.main(['--help'])\nexcept SystemExit: pass"
    assert _imported(code) & {*HEAVY, "gin"} == set()


def test_a_dry_run_of_the_embedded_model_loads_neither_jax_nor_tensorflow():
    code = "import lmsi_jax.cli.main as m\nassert m.main(['run', 'quickstart', '--dry_run']) == 0"
    assert "gin" in (imported := _imported(code))
    assert imported & {*JAX, *TENSORFLOW} == set()


def test_no_command_runs_the_modules_that_a_gin_file_imports(tmp_path, monkeypatch, capsys):
    mark = tmp_path / "ran"
    (tmp_path / "main_test_trap.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)  # short paths, so that no message is wrapped within them
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run" / "round_1" / "train" / "checkpoint_1"
    (run / "state").mkdir(parents=True)
    (tmp_path / "run" / "config.gin").write_text("import main_test_trap\n")
    config = str(tmp_path / "run" / "config.gin")
    more = {
        "import-samples": ["samples.jsonl"],
        "export-candidates": ["out"],
        "aot": ["--topology=v5e:4x4"],
        "export-hf": [str(run), str(tmp_path / "out")],
    }
    readers = [*STAGE_COMMANDS, *(name for name in COMMANDS if COMMANDS[name].configs)]
    for command in [*readers, "export-hf"]:
        words = [command, *([] if command == "export-hf" else [config]), *more.get(command, [])]
        text = _error(capsys, *words)
        assert "config.gin, line 1: 'import main_test_trap' would run code" in text, command
    with pytest.raises(LmsiError, match="would run code"):
        lmsi_jax.load(run.parent)
    assert main.main(["run", config, "--dry_run"]) == 2 and not mark.exists()
    assert main.main(["export-hf", *more["export-hf"], "--allow_imports"]) == 2 and mark.exists()


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["pretrain", "--help"]])
def test_help_shows_an_example_and_the_gin_flags(capsys, words):
    with pytest.raises(SystemExit) as exit_:
        main.main(words)
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "example:\n  lmsi " in text and "--gin.NAME=VALUE" in text


def test_help_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    commands = [line.split()[0] for line in lines if re.match(r"  [a-z-]+ {2,}\S", line)]
    assert len(commands) > 10
    for command in commands:
        with pytest.raises(SystemExit):
            main.main([command, "--help"])
        lines += capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == []


def test_no_command_shows_the_help(capsys):
    assert main.main([]) == 0
    assert "commands:" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"lmsi_jax {lmsi_jax.__version__}\n"


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (
            "run",
            (
                *("generate", "prompts", "paraphrase", "sample", "vote", "filter_scores"),
                *("mix", "teacher_scores", "train", "eval", "report"),
            ),
        ),
        ("generate", ("generate",)),
        ("prompts", ("prompts",)),
        ("sample", ("paraphrase", "sample")),
        ("vote", ("vote",)),
        ("mix", ("filter_scores", "mix")),
        ("train", ("teacher_scores", "train")),
        ("eval", ("eval",)),
        ("report", ("report",)),
        ("probe", ("probe",)),
        ("distill", ("mix", "teacher_scores", "train", "eval", "distill")),
        ("pretrain", ("pretrain",)),
    ],
)
def test_each_command_runs_its_stages_with_the_loaded_run(stages, config, command, wanted):
    assert main.main([command, config]) == 0
    ((run, run_stages, line, text),) = stages
    assert (run, run_stages) == ("the run", wanted)
    assert line == f"lmsi {command} {config}"
    assert isinstance(text, str)


def _error(capsys, *words: str, code: int = 2) -> str:
    assert main.main(words) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("lmsi: error: ") and captured.out == ""
    return " ".join(captured.err.split())


def test_mistakes_are_named_with_exit_code_2(capsys, stages, config, monkeypatch):
    monkeypatch.setattr(gin_loader, "packaged_configs", lambda kind: ("quickstart",))
    assert "did you mean quickstart?" in _error(capsys, "run", "quikstart")
    assert "which configuration? lmsi run NAME (quickstart)" in _error(capsys, "run")
    assert "did you mean sample?" in _error(capsys, "sampel", config)
    assert "unrecognized arguments: --gin_fiel=x" in _error(capsys, "run", config, "--gin_fiel=x")
    assert "no configurable 'Ru'" in _error(capsys, "run", config, "--gin.Ru.rounds=3")
    assert "write --gin.NAME=VALUE" in _error(capsys, "run", config, "--gin.Run.rounds")
    assert stages == []


def test_a_misspelt_parameter_meets_the_nearest(capsys, stages, config):
    import gin

    @gin.register("MainTestOven", module="main_test")
    def oven(temperature=0.7):
        return temperature

    text = _error(capsys, "run", config, "--gin.MainTestOven.temprature=0.9")
    assert "MainTestOven has no parameter 'temprature'; did you mean temperature?" in text


def test_an_error_of_a_stage_is_wrapped_to_the_terminal(capsys, stages, config, monkeypatch):
    def fail(*_args):
        raise LmsiError("the disk is full, " * 20 + "\nmake room")

    monkeypatch.setattr(sys.modules["lmsi_jax.pipeline.rounds"], "execute", fail)
    monkeypatch.setenv("COLUMNS", "60")
    assert main.main(["run", config]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 5 and max(map(len, lines)) <= 60 and lines[-1] == "make room"


def test_a_bug_keeps_its_traceback(stages, config, monkeypatch):
    def fail(*_args):
        raise ValueError("a bug")

    monkeypatch.setattr(sys.modules["lmsi_jax.pipeline.rounds"], "execute", fail)
    with pytest.raises(ValueError, match="a bug"):
        main.main(["run", config])


def test_an_interrupt_is_one_line_and_exit_code_130(capsys, stages, config, monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["lmsi_jax.pipeline.rounds"], "execute", interrupt)
    assert main.main(["run", config]) == 130
    assert capsys.readouterr().err == "\ninterrupted; the same command continues where it stopped\n"


def test_a_termination_is_one_line_and_exit_code_143(capsys, stages, config, monkeypatch):
    def terminate(*_args):
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys.modules["lmsi_jax.pipeline.rounds"], "execute", terminate)
    assert main.main(["run", config]) == 143
    assert capsys.readouterr().err == "terminated; the same command continues where it stopped\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--process_count=2"], "need --coordinator_address=HOST:PORT, --process_count=N and"),
        (["--coordinator_address=a:1", "--process_count=2"], "--process_index=I together"),
        (
            ["--coordinator_address=auto", "--process_count=2"],
            "or --coordinator_address=auto alone",
        ),
        (
            ["--coordinator_address=a:1", "--process_count=2", "--process_index=2"],
            "--process_index=2: with --process_count=2 it is 0 to 1",
        ),
        (["--coordinator_address=a:1", "--process_count=two"], "invalid int value: 'two'"),
    ],
)
def test_half_a_set_of_process_flags_is_refused(capsys, stages, config, flags, message):
    assert message in _error(capsys, "run", config, *flags)
    assert stages == []


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ([], []),
        (["--coordinator_address=auto"], ["auto", "left"]),
        (
            ["--coordinator_address=a:1", "--process_count=2", "--process_index=0"],
            ["a:1", 2, 0, "left"],
        ),
    ],
)
def test_the_processes_are_connected_around_the_stages(stages, config, monkeypatch, flags, wanted):
    import jax

    calls: list = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.extend(args or ["auto"]))
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: calls.append("left"))
    assert main.main(["run", config, *flags]) == 0
    assert calls == wanted and len(stages) == 1


def test_processes_that_do_not_find_each_other_name_the_flags(capsys, stages, config, monkeypatch):
    import jax

    def fail(*_args):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody there")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    flags = ["--coordinator_address=a:1", "--process_count=2", "--process_index=0"]
    text = _error(capsys, "run", config, *flags, code=75)  # launchers try again
    assert "nobody there); start all of them with the same --coordinator_address" in text


def test_quiet_defaults_never_override_the_users(stages, config, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
    main.main(["run", config])
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
    assert os.environ["GRPC_VERBOSITY"] == "ERROR"


@pytest.fixture
def other(monkeypatch):
    """Adds a command that is no stage; returns the calls it got and a function that changes it."""
    calls: list[tuple] = []
    command = Command(
        help="print the weight of a model",
        example="DIR --scale=kg",
        configs="",
        add_arguments=lambda parser: parser.add_argument("--scale", default="g"),
        run=lambda args, load: calls.append((args.scale, load)),
    )

    def change(**fields):
        monkeypatch.setitem(COMMANDS, "weigh", command._replace(**fields))

    change()
    return calls, change


def test_a_command_beside_the_stages_gets_its_own_arguments(other, stages):
    calls, _ = other
    assert main.main(["weigh", "--scale=kg"]) == 0
    assert calls[0][0] == "kg" and not stages


def test_a_command_without_a_configuration_refuses_gin_flags(other, capsys):
    assert main.main(["weigh", "--gin.Run.seed=1"]) == 2
    assert "lmsi weigh takes no gin flags" in capsys.readouterr().err


def test_a_command_with_a_configuration_gets_the_run(other, stages, config):
    calls, change = other
    change(configs="runs", run=lambda args, load: calls.append((args.scale, load(()))))
    assert main.main(["weigh", config]) == 0
    assert calls == [("g", "the run")] and not stages


def test_help_lists_a_command_beside_the_stages(other, capsys):
    with pytest.raises(SystemExit):
        main.main(["--help"])
    assert "print the weight of a model" in capsys.readouterr().out


def test_a_misspelt_command_is_met_with_the_nearest(other, capsys):
    assert main.main(["weih"]) == 2
    assert "weigh" in capsys.readouterr().err


def test_paths_of_what_is_packaged_are_printed(capsys):
    for name, end in {
        "embedded": "models/embedded/checkpoint_2400",
        "tokenizer": "models/embedded/tokenizer.model",
        "quickstart": "gin_configs/runs/quickstart.gin",
    }.items():
        assert main.main(["path", name]) == 0
        path = pathlib.Path(capsys.readouterr().out.strip())
        assert path.as_posix().endswith(end) and path.exists()
    assert main.main(["path", "quickstar"]) == 2
    assert "quickstart" in capsys.readouterr().err


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("COMPILATION_CACHE_DIR", "PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(f"JAX_{name}", raising=False)
    main.keep_programs()
    folder = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert folder.is_dir() and folder.parent == tmp_path / "lmsi_jax"
    script = "import jax; jax.jit(lambda x: 3 * x)(1.0)"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert list(folder.iterdir())  # even of a program that compiles within a second


@pytest.mark.parametrize("choice", ["", "/elsewhere"])
def test_the_users_own_folder_of_programs_stays(tmp_path, monkeypatch, choice):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", choice)
    main.keep_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == choice


def test_without_a_folder_to_write_programs_are_compiled_anew(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    main.keep_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_an_output_that_takes_no_more_is_told_in_a_line():
    words = [sys.executable, "-m", "lmsi_jax.cli.main", "run", "quickstart", "--dry_run"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "lmsi: error: cannot write the output: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 3
