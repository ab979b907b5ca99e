"""The package as others get it: no bare top-level names, and all its files inside."""

import ast
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _strings(path: pathlib.Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_folders_of_a_checkout_have_their_one_import_name():
    for name in ("tasks", "gin_configs"):
        spec = importlib.util.find_spec(f"lmsi_jax.{name}")
        assert spec is not None and spec.origin is not None
        assert pathlib.Path(spec.origin).parent.name == name


def test_every_third_party_import_is_declared():
    declared = {
        _canonical(match[0])
        for text in _strings(ROOT / "setup.py")
        if (match := re.match(r"[A-Za-z0-9][\w.-]*", text))
    }
    distributions = importlib.metadata.packages_distributions()
    for file in [*(ROOT / "lmsi_jax").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for top in {name.split(".")[0] for name in names}:
                if top == "lmsi_jax" or top in sys.stdlib_module_names:
                    continue
                origins = {_canonical(name) for name in distributions.get(top, [top])}
                assert origins & declared, (
                    f"{file.relative_to(ROOT)} imports {top}: add it to setup.py"
                )


def test_the_readme_marks_its_test_command_for_ci():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    match = re.search(
        r"^<!-- test command -->\n```.*\n((?:.+\n)+)```\n<!-- end -->$", text, re.MULTILINE
    )
    assert match is not None, ".ci/run finds no test command in README.md"
    assert "pytest" in match[1].splitlines()[-1], "the command must end with pytest's closing line"


def test_errors_name_extras_that_exist_and_install_without_a_checkout():
    sources = [*(ROOT / "lmsi_jax").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]
    texts = {path.name: path.read_text(encoding="utf-8") for path in sources}
    named = set(re.findall(r"'lmsi_jax\[(\w+)\]'", " ".join(texts.values())))
    extras = re.findall(r'^        "(\w+)": [\[H]', (ROOT / "setup.py").read_text("utf-8"), re.M)
    assert named >= {"gguf", "hf", "t5x", "tpu"} and named <= set(extras)
    assert [name for name, text in texts.items() if "pip install -e" in text] == []


def test_the_extra_all_has_every_one_that_needs_neither_hardware_nor_github():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    extras = set(re.findall(r'^        "(\w+)": [\[H]', setup.partition("extras_require")[2], re.M))
    (inside,) = re.findall(r'^        "all": \["lmsi_jax\[([\w,]+)\]"\],$', setup, re.M)
    assert set(inside.split(",")) == extras - {"all", "dev", "docs", "gpu", "t5x", "tpu"}
    table = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert {extra for extra in extras if f"`{extra}`" not in table} == set()


def test_slow_tests_are_left_out_by_default():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert "not slow" in options["addopts"]


_REVEAL = "from lmsi_jax.tasks import registry\nreveal_type(registry.get)\n"
# Of `get(name: str | FileTask, data_dir: str | None = None) -> Task`, in any of mypy's notations.
_SIGNATURE = re.compile(
    r"def \(name: (builtins\.)?str \| lmsi_jax\.config\.steps\.FileTask, "
    r"data_dir: (builtins\.)?str \| None =( \.\.\.)?\)"
    r" -> lmsi_jax\.tasks\.task\.Task"
)


# Without a PYTHONPATH, which would lead to the checkout.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _revealed(folder: pathlib.Path, settings: pathlib.Path, python: str = sys.executable) -> str:
    """Returns mypy's output on `_REVEAL`, a file of a folder, with the project's settings."""
    (folder / "caller.py").write_text(_REVEAL, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", f"--config-file={settings}"]
    command += [f"--python-executable={python}", "caller.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=_ENVIRONMENT)
    return done.stdout + done.stderr


def test_a_type_checker_sees_the_signatures_of_the_tasks_in_a_checkout(tmp_path):
    pytest.importorskip("mypy")
    printed = _revealed(tmp_path, ROOT / "pyproject.toml")
    assert _SIGNATURE.search(printed), printed


def _copy_of_the_sources(place: pathlib.Path) -> pathlib.Path:
    """Copies what an installation needs, links as links, so that no build folder appears here."""
    copy = "cp -a setup.py pyproject.toml MANIFEST.in LICENSE README.md lmsi_jax tasks gin_configs"
    subprocess.run([*copy.split(), str(place)], cwd=ROOT, check=True)
    return place


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    place = _copy_of_the_sources(tmp_path_factory.mktemp("wheel"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", "dist", "."]
    subprocess.run(command, cwd=place, check=True)
    (path,) = (place / "dist").glob("*.whl")
    return path


_SETUP = "setup.py pyproject.toml MANIFEST.in LICENSE README.md .gitattributes .git_archival.txt"


@pytest.fixture
def repository(tmp_path) -> pathlib.Path:
    """A git repository of one commit that has what a version is made of."""
    pytest.importorskip("setuptools_scm")
    place = tmp_path / "repository"
    place.mkdir()
    subprocess.run(["cp", "-a", *_SETUP.split(), str(place)], cwd=ROOT, check=True)
    _git(place, "init", "--quiet")
    _git(place, "add", "--all")
    _git(place, "commit", "--quiet", "--message=one")
    return place


def _git(folder: pathlib.Path, *words: str) -> None:
    who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True)


def _version_of(folder: pathlib.Path) -> str:
    """Returns the version that a build of these sources has."""
    command = [sys.executable, "setup.py", "--quiet", "--version"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_the_version_is_the_tag_and_a_development_version_after_it(repository):
    assert re.fullmatch(r"0\.1\.0\.dev1\+g\w+", _version_of(repository))
    _git(repository, "tag", "v0.7.2")
    assert _version_of(repository) == "0.7.2"
    _git(repository, "commit", "--quiet", "--allow-empty", "--message=two")
    assert re.fullmatch(r"0\.7\.3\.dev1\+g\w+", _version_of(repository))


@pytest.mark.slow
def test_the_version_survives_an_archive_and_a_source_distribution(repository, tmp_path):
    _git(repository, "tag", "v0.7.2")
    _git(repository, "archive", f"--output={tmp_path / 'archive.tar'}", "--prefix=archive/", "HEAD")
    command = [sys.executable, "setup.py", "--quiet", "sdist", f"--dist-dir={tmp_path}"]
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    for file in ("archive.tar", "lmsi_jax-0.7.2.tar.gz"):
        subprocess.run(["tar", "-xf", file], cwd=tmp_path, check=True)
    assert _version_of(tmp_path / "archive") == "0.7.2"
    assert _version_of(tmp_path / "lmsi_jax-0.7.2") == "0.7.2"


@pytest.mark.slow
def test_sources_without_git_have_the_fallback_version(repository):
    shutil.rmtree(repository / ".git")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools_scm"]
    assert _version_of(repository) == settings["fallback_version"]


def _version_in_name(wheel: pathlib.Path) -> str:
    return wheel.name.split("-")[1]


@pytest.mark.slow
def test_a_wheel_has_one_top_level_name_and_all_files(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {
        "lmsi_jax",
        f"lmsi_jax-{_version_in_name(wheel)}.dist-info",
    }
    expected = {f"lmsi_jax/{path}" for path in _package_files("tasks", "gin_configs")}
    expected |= _package_files("lmsi_jax")
    assert expected <= names, sorted(expected - names)


@pytest.mark.slow
def test_a_source_distribution_has_every_tracked_file(tmp_path):
    """So that its tests can be run: fixtures, benchmarks and documents that they read too."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    links = {name for name in tracked if (ROOT / name).is_symlink()}
    copy = tmp_path / "copy"
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name, follow_symlinks=False)
    command = [sys.executable, "setup.py", "--quiet", "sdist", f"--dist-dir={tmp_path}"]
    subprocess.run(command, cwd=copy, check=True)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert tracked - links <= names, sorted(tracked - links - names)
    # setuptools follows links to folders: the distribution has their files in their place.
    for link in links:
        inside = {name for name in tracked if name.startswith(f"{pathlib.Path(link).name}/")}
        assert inside and {f"lmsi_jax/{name}" for name in inside} <= names


def _package_files(*folders: str) -> set[str]:
    files = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    return {
        path.relative_to(ROOT).as_posix()
        for path in files
        if path.is_file() and "__pycache__" not in path.parts
    }


_CHECK = """
import importlib.util, sys
import lmsi_jax, lmsi_jax.gin_configs, lmsi_jax.tasks
from lmsi_jax.cli import main
from lmsi_jax.config import gin_loader
assert importlib.util.find_spec("tasks") is None and importlib.util.find_spec("gin_configs") is None
for kind in ("runs", "studies"):
    assert gin_loader.packaged_configs(kind)
    for name in gin_loader.packaged_configs(kind):
        gin_loader.find_config(name, kind=kind)
print(lmsi_jax.__file__, *gin_loader.packaged_configs())
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_an_installation_finds_tasks_and_configurations(request, tmp_path, kind):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    source = [str(request.getfixturevalue("wheel"))]
    if kind == "editable":
        source = ["-e", str(request.getfixturevalue("wheel").parent.parent)]
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, *source], check=True)
    check = [str(venv / "bin" / "python"), "-c", _CHECK]
    done = subprocess.run(
        check, cwd=tmp_path, check=True, capture_output=True, text=True, env=_ENVIRONMENT
    )
    file, *configs = done.stdout.split()
    assert ("site-packages" in file) == (kind == "wheel")
    assert configs == sorted(path.stem for path in (ROOT / "gin_configs" / "runs").glob("*.gin"))
    # The settings look for the package beside them: in an editable install that is its source.
    settings = tmp_path / "pyproject.toml"
    shutil.copy(ROOT / "pyproject.toml", settings)
    if kind == "editable":
        settings = request.getfixturevalue("wheel").parent.parent / "pyproject.toml"
    printed = _revealed(tmp_path, settings, str(venv / "bin" / "python"))
    assert _SIGNATURE.search(printed), printed
    version = subprocess.run(
        [str(venv / "bin" / "lmsi"), "--version"],
        capture_output=True,
        text=True,
        env=_ENVIRONMENT,
    )
    assert version.stdout == f"lmsi_jax {_version_in_name(request.getfixturevalue('wheel'))}\n"
