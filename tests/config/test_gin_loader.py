"""T5X's flags, and mistakes in gin in words that a person can act on."""

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from typing import Any, Literal

import gin
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.config import gin_errors, gin_loader
from lmsi_jax.config.gin_loader import Binding, GinArgs
from lmsi_jax.errors import LmsiError


@gin.configurable(module="edge_test")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Door:
    """A part of it."""

    panes: int = 1


@gin.configurable(module="edge_test")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Oven:
    """What the tests configure."""

    folder: str
    heat: float = 0.7
    rounds: int = 1
    resume: bool = True
    tasks: tuple[str, ...] = ()
    mode: Literal["top", "fan"] = "top"
    limit: int | None = None
    racks: Sequence[int] = ()
    trays: tuple[Literal["wire", "tin"], ...] = ()
    times: tuple[tuple[str, float], ...] = ()
    door: Door = Door()
    lamp: Door | None = None
    note: Any = 0

    def __post_init__(self):
        if self.rounds < 0:
            raise LmsiError("Oven.rounds must not be negative")


def _bake(*flags: str, config: str | None = None) -> Oven:
    args, rest = gin_loader.parse(flags)
    assert rest == []
    gin_loader.load(config, args)
    with gin_errors.readable_calls():
        return Oven()  # type: ignore[call-arg]


def _error(*flags: str, config: str | None = None) -> str:
    with pytest.raises(LmsiError) as error:
        _bake(*flags, config=config)
    text = str(error.value)
    assert len(text.splitlines()) <= 2, text
    return text


@pytest.fixture
def gin_file(tmp_path):
    path = tmp_path / "oven.gin"

    def write(text: str) -> str:
        path.write_text(text)
        return str(path)

    return write


# --- flags ----------------------------------------------------------------------------------------


def test_gin_flags_are_taken_out_of_a_command_line_in_both_spellings():
    args, rest = gin_loader.parse(
        [
            *("run", "--gin_file=a.gin", "x", "--gin_file", "b.gin", "--gin.A.b=1"),
            *("--gin_bindings=C=2", "-v", "--gin_search_paths=p,q"),
        ]
    )
    assert rest == ["run", "x", "-v"]
    assert args == GinArgs(
        files=("a.gin", "b.gin"),
        bindings=(Binding(name="A.b", value="1"), Binding(name="C", value="2")),
        search_paths=("p", "q"),
    )


@pytest.mark.parametrize("words", [["--gin.A.b"], ["--gin_file"], ["--gin_file="], ["--gin.=1"]])
def test_a_flag_without_a_value_is_an_error(words):
    with pytest.raises(LmsiError, match="value"):
        gin_loader.parse(words)


@pytest.mark.parametrize(
    "text",
    ["/tmp/x", "runs/first", "gs://bucket/a b", "2024-01-01", "5 apples", "a,b", "", "it's", "#5"],
)
def test_text_that_is_no_gin_value_is_a_string(text):
    assert _bake(f"--gin.Oven.folder={text}").folder == text


@given(text=st.text())
def test_a_quoted_string_arrives_as_it_is(text):
    args, _ = gin_loader.parse([f"--gin.Oven.folder={text!r}"])
    gin_loader.load(None, args)
    assert gin.query_parameter("Oven.folder") == text


@given(
    text=st.from_regex(r"[a-z/][a-z0-9/_. '\"\[({:=-]*[a-z/]", fullmatch=True).filter(
        lambda text: text not in gin_loader._LITERALS
    )
)
def test_unquoted_lower_case_text_arrives_as_it_is(text):
    args, _ = gin_loader.parse([f"--gin.Oven.folder={text}"])
    gin_loader.load(None, args)
    assert gin.query_parameter("Oven.folder") == text


def test_gin_values_keep_their_types():
    oven = _bake(
        *(
            "--gin.Oven.folder='a b'",
            "--gin.Oven.heat=1",
            "--gin.Oven.rounds=3",
        ),
        *("--gin.Oven.tasks=['x', 'y']", "--gin.Oven.resume=False", "--gin.Oven.limit=None"),
    )
    assert oven == Oven(folder="a b", heat=1, rounds=3, tasks=["x", "y"], resume=False)  # type: ignore[arg-type]


def test_a_value_cannot_bring_a_second_binding():
    oven = _bake("--gin.Oven.folder=1\nOven.rounds = 9")
    assert oven.rounds == 1 and oven.folder == "1\nOven.rounds = 9"


# --- files ----------------------------------------------------------------------------------------


def test_later_files_and_then_flags_win(tmp_path):
    for name, rounds in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.gin").write_text(f"Oven.rounds = {rounds}\nOven.folder = '{name}'\n")
    files = [f"--gin_file={tmp_path / name}.gin" for name in "ab"]
    assert _bake(*files) == Oven(folder="b", rounds=2)
    assert _bake(*files, "--gin.Oven.rounds=3") == Oven(folder="b", rounds=3)
    assert _bake(*reversed(files)) == Oven(folder="a", rounds=1)


def test_search_paths_serve_names_files_and_includes(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine.gin").write_text("include 'base.gin'\nOven.rounds = 2\n")
    (tmp_path / "base.gin").write_text("Oven.folder = 'base'\n")
    wanted = Oven(folder="base", rounds=2)
    paths = f"--gin_search_paths={tmp_path / 'none'},{tmp_path}"
    assert _bake(paths, config="mine") == wanted
    assert _bake(paths, "--gin_file=runs/mine.gin") == wanted


def test_an_include_beside_its_file_is_found(tmp_path):
    (tmp_path / "mine.gin").write_text("include 'base.gin'\n")
    (tmp_path / "base.gin").write_text("Oven.folder = 'base'\n")
    assert _bake(config=str(tmp_path / "mine.gin")).folder == "base"


def test_packaged_names_are_found_and_a_misspelt_one_meets_the_nearest(tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "quickstart.gin").write_text("Oven.folder = 'q'\n")
    monkeypatch.setattr(gin_loader, "_packaged_roots", lambda: [tmp_path])
    assert gin_loader.packaged_configs() == ("quickstart",)
    assert _bake(config="quickstart").folder == "q"
    text = _error(config="quikstart")
    assert text == (
        "there is no configuration 'quikstart'; did you mean quickstart? Packaged: quickstart; "
        "or give the path of a .gin file or the folder of a run"
    )
    assert "there is no configuration 'zzz'. Packaged: quickstart; " in _error(config="zzz")


def test_every_packaged_configuration_is_found_by_its_name():
    names = gin_loader.packaged_configs()
    assert "quickstart" in names
    for name in names:
        assert gin_loader.find_config(name).endswith(f"runs/{name}.gin")


def test_a_file_in_an_installed_package_is_found_as_in_t5x(tmp_path, monkeypatch):
    package = tmp_path / "edge_test_package" / "configs"
    package.mkdir(parents=True)
    (package / "x.gin").write_text("Oven.folder = 'inside'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert _bake("--gin_file=edge_test_package/configs/x.gin").folder == "inside"


# --- mistakes -------------------------------------------------------------------------------------


def test_an_unknown_parameter_names_flag_and_nearest():
    text = _error("--gin.Oven.foldr=x")
    assert text == "--gin.Oven.foldr=x: Oven has no parameter 'foldr'; did you mean folder?"
    assert "; it has folder, heat, rounds" in _error("--gin.Oven.zzz=1")


def test_an_unknown_configurable_names_file_line_and_nearest(gin_file):
    file = gin_file("# a comment\n\nOvan.heat = 1.0\n")
    text = _error(config=file)
    assert "oven.gin, line 3: there is no configurable 'Ovan'; did you mean Oven?" in text
    assert "no configurable 'Ovan'; did you mean Oven?" in _error("--gin.Ovan.heat=1")
    assert "no configurable 'Ovan'; did you mean Oven?" in _error("--gin.Oven.folder=@Ovan()")


def test_the_innermost_file_of_includes_is_named(tmp_path):
    (tmp_path / "mine.gin").write_text("include 'base.gin'\n")
    (tmp_path / "base.gin").write_text("\nOven.het = 1\n")
    assert "base.gin, line 2: Oven has no parameter 'het'" in _error(
        config=str(tmp_path / "mine.gin")
    )


def test_a_missing_include_and_a_missing_file_are_named(gin_file):
    text = _error(config=gin_file("include 'nowhere.gin'\n"))
    assert "oven.gin, line 1: there is no file nowhere.gin; give its folder with" in text
    assert "no configuration 'nowhere.gin'" in _error("--gin_file=nowhere.gin")


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Puts a module `edge_test_trap` into the path; returns a function that tells if it has run."""
    (tmp_path / "edge_test_trap.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "edge_test_trap", raising=False)
    return (tmp_path / "ran").exists


@pytest.mark.parametrize(
    "statement",
    [
        "import edge_test_trap",
        "import edge_test_trap as gin_helper",
        "from edge_test_trap import pathlib",
        "from edge_test_trap import pathlib as p",
        "from __gin__ import dynamic_registration",
    ],
)
def test_a_gin_file_that_imports_is_refused_and_runs_nothing(gin_file, imported, statement):
    text = _error(config=gin_file(f"Oven.heat = 1.0\n{statement}\n"))
    assert f"oven.gin, line 2: '{statement}' would run code" in text and "--allow_imports" in text
    assert not imported()


def test_an_included_file_and_a_flag_import_nothing_either(tmp_path, gin_file, imported):
    (tmp_path / "base.gin").write_text("# a base\nimport edge_test_trap\n")
    text = _error(config=gin_file("include 'base.gin'\n"))
    assert "base.gin, line 2: 'import edge_test_trap' would run code" in text
    flag = "--gin_bindings=import edge_test_trap\nOven.folder='/tmp/x'"
    assert "would run code" in _error(flag)
    assert not imported()


def test_no_function_of_a_loaded_module_can_be_called(gin_file, tmp_path):
    file = tmp_path / "called"
    calls = [
        "from __gin__ import dynamic_registration\nimport os\nOven.note = @os.mkdir()\n"
        f"os.mkdir.path = {str(file)!r}\n",
        f"Oven.note = @os.mkdir()\nos.mkdir.path = {str(file)!r}\n",
        f"Oven.note = @posix.mkdir()\nposix.mkdir.path = {str(file)!r}\n",
    ]
    for text in calls:
        _error("--gin.Oven.folder=/tmp/x", config=gin_file(text))
        assert not file.exists()


def test_imports_that_are_allowed_run_and_a_missing_one_is_named(gin_file, imported):
    config = gin_file("import edge_test_trap\nOven.folder = '/tmp/x'\n")
    gin_loader.load(config, GinArgs(allow_imports=True))
    assert imported()
    with pytest.raises(LmsiError, match="line 1: No module named 'edge_test_nowhere'"):
        gin_loader.load(gin_file("import edge_test_nowhere\n"), GinArgs(allow_imports=True))
    assert "would run code" in _error(config=gin_file("import edge_test_trap\n"))  # again


def test_broken_syntax_names_file_line_and_text(gin_file):
    text = _error(config=gin_file("Oven.heat = 1\nOven.tasks = [1, \n"))
    assert "oven.gin: a bracket or a quotation mark is not closed" in text
    text = _error(config=gin_file("Oven:\n    heat = 1.0\n  rounds = 2\n"))
    assert "oven.gin, line 3: unindent" in text
    text = _error(config=gin_file("Oven.heat 0.7\n"))
    assert "oven.gin, line 1" in text and "Oven.heat 0.7" in text
    assert "--gin.Oven-x=1" in _error("--gin.Oven-x=1")


def test_a_parameter_without_a_value_is_named_with_its_flag():
    assert _error() == ("Oven needs folder; set it in the gin file or add --gin.Oven.folder=VALUE")


def test_required_values_and_macros_are_named(gin_file):
    file = gin_file("FOLDER = %gin.REQUIRED\nOven.folder = %FOLDER\n")
    assert _error(config=file) == "FOLDER is required and not set; add --gin.FOLDER=VALUE"
    assert _bake("--gin.FOLDER=x", config=file).folder == "x"
    text = _error("--gin.Oven.folder=%gin.REQUIRED")
    assert text == "Oven.folder is required and not set; add --gin.Oven.folder=VALUE"


def test_a_macro_that_is_not_set_and_one_that_nothing_uses_are_named(gin_file):
    file = gin_file("Oven.folder = %FOLDER\n")
    assert _error(config=file).startswith("Oven.folder uses %FOLDER, which is not set; add")
    text = _error("--gin.FOLDR=y", config=file)
    assert text.endswith("; add --gin.FOLDER=VALUE; did you mean FOLDR?")
    text = _error("--gin.FOLDER=x", "--gin.FOLDR=y", config=file)
    assert text == "--gin.FOLDR: nothing uses %FOLDR; did you mean FOLDER?"


@pytest.mark.parametrize(
    ("flag", "remedy"),
    [
        ("rounds=three", "use a whole number"),
        ("rounds=1.5", "use a whole number"),
        ("rounds=None", "use a whole number"),
        ("heat=hot", "use a number"),
        ("heat=True", "use a number"),
        ("folder=5", "use text in quotes"),
        ("resume=1", "use True or False"),
        ("tasks=x", "use a tuple of texts, as in ('x',)"),
        ("tasks=[1]", "use a tuple of texts"),
        ("racks=12", "use a tuple of whole numbers, as in (12,)"),
        ("mode=grill", "choose from top, fan"),
        ("trays=('mesh', 'tin')", "choose from wire, tin, in a tuple"),
        ("times=5", "use a tuple of items, each a tuple (text in quotes, a number)"),
        ("limit=few", "use a whole number or None"),
        ("door=None", "bind it to @Door()"),
        ("door=glass", "bind it to @Door()"),
        ("lamp=glass", "use @Door() or None"),
    ],
)
def test_a_value_of_another_type_is_an_error_that_says_what_to_use(flag, remedy):
    text = _error("--gin.Oven.folder=x", f"--gin.Oven.{flag}")
    assert text.startswith(f"Oven.{flag.split('=')[0]} = ") and text.endswith(f"; {remedy}")


def test_none_is_taken_where_the_annotation_has_it():
    assert _bake("--gin.Oven.folder=x", "--gin.Oven.note=None", "--gin.Oven.lamp=None").note is None
    assert _bake("--gin.Oven.folder=x", "--gin.Oven.lamp=@Door()").lamp == Door()


def test_lower_case_true_is_no_string():
    assert "write True" in _error("--gin.Oven.resume=true")


def test_the_error_of_a_configured_object_comes_without_gins_additions():
    text = _error("--gin.Oven.folder=x", "--gin.Oven.rounds=-1")
    assert text == "Oven.rounds must not be negative"


def test_a_bug_in_a_configured_object_keeps_its_own_exception():
    with pytest.raises(ZeroDivisionError), gin_errors.readable_calls():
        raise ZeroDivisionError
    with pytest.raises(TypeError), gin_errors.readable_calls():
        raise TypeError("f() missing 1 required positional argument: 'x'")


# --- no state -------------------------------------------------------------------------------------


def test_nothing_of_one_load_is_seen_by_the_next(tmp_path):
    (tmp_path / "mine.gin").write_text("Oven.folder = 'a'\nOven.rounds = 5\n")
    before = list(gin.config._LOCATION_PREFIXES), list(gin.config._FILE_READERS)
    _bake(f"--gin_search_paths={tmp_path}", config="mine")
    assert _bake("--gin.Oven.folder=b") == Oven(folder="b", rounds=1)
    assert "no configuration 'mine'" in _error(config="mine")
    assert before == (gin.config._LOCATION_PREFIXES, gin.config._FILE_READERS)


def test_a_failed_load_leaves_no_bindings():
    _error("--gin.Oven.folder=a", "--gin.Oven.zzz=1")
    assert "Oven needs folder" in _error()


def test_the_operative_configuration_says_what_was_used_and_gives_the_same_again(tmp_path):
    oven = _bake("--gin.Oven.folder=a", "--gin.Oven.rounds=2")
    text = gin_loader.operative_config()
    assert "Oven.rounds = 2" in text and "Oven.heat = 0.7" in text
    (tmp_path / "again.gin").write_text(text)
    assert _bake(config=str(tmp_path / "again.gin")) == oven
    assert gin_loader.operative_config() == text


@pytest.mark.parametrize(
    ("binding", "new"),
    [("Mixing.normalise='path'", "sample"), ("Study.measure='paths'", "samples")],
)
def test_the_error_for_an_old_value_names_the_new_one(binding, new):
    importlib.import_module("lmsi_jax.config.configurables")
    assert f"it was renamed to '{new}'" in _error(f"--gin.{binding}")


# --- paths relative to their gin file -------------------------------------------------------------


def _tasks(path, *flags):
    from lmsi_jax.config.configurables import load_run

    args, _ = gin_loader.parse(flags)
    gin_loader.load(str(path), args)
    return load_run().questions.tasks


_RUN = """
include 'models/embedded.gin'
Run.output_dir = 'unused'
Run.model = @ModelConfig()
Run.questions = @Questions()
Questions.train = ()
Questions.tasks = (@FileTask(), 'my_task:TASK')
FileTask.name = 'ours'
FileTask.kind = 'number'
"""


def test_paths_and_code_are_relative_to_the_gin_file_that_names_them(tmp_path, monkeypatch):
    for folder in ("base", "top", "here"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my_task.py").write_text("TASK = 1\n")
    (tmp_path / "base" / "base.gin").write_text(
        f"{_RUN}SHOTS = 'shots.txt'\nFileTask.train = ('a.jsonl', 'b/*.csv')\n"
        "FileTask.test = 't.jsonl'\nFileTask.exemplars = %SHOTS\n"
        "FileTask.reader = 'my_task:read'\nFileTask.equality = 'operator:eq'\n"
    )
    (tmp_path / "top" / "top.gin").write_text(
        "include '../base/base.gin'\nFileTask.test = ('~/t.jsonl', 'gs://b/t', 'hub:a/b', '/t')\n"
    )
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path / "here")
    base, top, here = (tmp_path / name for name in ("base", "top", "here"))
    task, code = _tasks(top / "top.gin")
    assert task.train == (f"{base}/a.jsonl", f"{base}/b/*.csv")
    assert task.test == ("/home/me/t.jsonl", "gs://b/t", "hub:a/b", "/t")
    assert (task.exemplars, task.reader) == (f"{base}/shots.txt", f"{base}/my_task:read")
    assert (task.equality, code) == ("operator:eq", f"{base}/my_task:TASK")
    # A macro and a parameter that a file or a flag replaces are relative to that.
    (top / "top.gin").write_text("include '../base/base.gin'\nSHOTS = 'mine.txt'\n")
    task, _ = _tasks(
        top / "top.gin", "--gin.FileTask.test=t.csv", "--gin.FileTask.prompt='my_task:p'"
    )
    assert task.exemplars == f"{top}/mine.txt"
    assert (task.test, task.prompt) == (f"{here}/t.csv", f"{here}/my_task:p")


def test_scorers_are_relative_to_the_gin_file_in_schedules_too(tmp_path, monkeypatch):
    from lmsi_jax.config.configurables import load_run

    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "judge.py").write_text("")
    (tmp_path / "base" / "run.gin").write_text(
        f"{_RUN}Questions.tasks = ()\nQuestions.train = ('purchases',)\n"
        "Voting.scorer = 'judge:vote'\nVoting.ties = 'scorer'\n"
        "Mixing.selection = (@ExternalScore(),)\nExternalScore.scorer = 'operator:eq'\n"
        "Run.rounds = 2\nRun.voting = @Voting()\nRun.mixing = @Mixing()\n"
        "Run.schedule = (('ExternalScore.scorer', ('judge:one', 'operator:ne')),)\n"
    )
    monkeypatch.chdir(tmp_path)
    gin_loader.load(str(tmp_path / "base" / "run.gin"), gin_loader.parse([])[0])
    run = load_run()
    assert run.voting.scorer == f"{tmp_path}/base/judge:vote"
    scorers = [run.in_round(index).mixing.selection[0].scorer for index in (1, 2)]
    assert scorers == [f"{tmp_path}/base/judge:one", "operator:ne"]


def test_the_operative_configuration_has_them_whole(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a.gin").write_text(f"{_RUN}FileTask.train = 'a.jsonl'\n")
    (tmp_path / "a" / "my_task.py").write_text("TASK = 1\n")
    monkeypatch.chdir(tmp_path)
    tasks = _tasks("a/a.gin")
    (tmp_path / "config.gin").write_text(gin_loader.operative_config())
    assert _tasks(tmp_path / "config.gin") == tasks
    assert tasks[0].train == f"{tmp_path}/a/a.jsonl"


def test_gin_itself_is_left_as_it_was(tmp_path):
    from gin import config

    functions = config.bind_parameter, config.parse_config
    (tmp_path / "a.gin").write_text(_RUN + "FileTask.train = 'a'\nRun.no_such = 1\n")
    with pytest.raises(LmsiError, match="no_such"):
        _tasks(tmp_path / "a.gin")
    assert (config.bind_parameter, config.parse_config) == functions


def test_the_folders_of_a_run_may_begin_with_home(tmp_path, monkeypatch):
    from lmsi_jax.config.configurables import load_run

    monkeypatch.setenv("HOME", "/home/ann")
    (tmp_path / "a.gin").write_text(
        f"{_RUN}FileTask.test = 't'\nRun.init_checkpoint = '~/model'\nRun.tokenizer = %TOKENIZER\n"
        "TOKENIZER = '~/model/tokenizer'\nRun.reuse = ('~/runs/b', 'runs/~c')\n"
        "Run.evaluation = @Evaluation()\nEvaluation.checkpoints = ('embedded', '~/model')\n"
        "Run.distillation = @Distillation()\nDistillation.teacher_dir = '~/runs/teacher'\n"
    )
    args, _ = gin_loader.parse(["--gin.Run.output_dir=~/runs/a"])
    gin_loader.load(str(tmp_path / "a.gin"), args)
    run = load_run()
    assert (run.output_dir, run.init_checkpoint) == ("/home/ann/runs/a", "/home/ann/model")
    assert (run.tokenizer, run.reuse) == (
        "/home/ann/model/tokenizer",
        ("/home/ann/runs/b", "runs/~c"),
    )
    assert run.evaluation.checkpoints == ("embedded", "/home/ann/model")
    assert run.distillation is not None and run.distillation.teacher_dir == "/home/ann/runs/teacher"
