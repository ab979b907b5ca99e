"""GitHub's workflows call the scripts of .ci, and test each Python that the package takes."""

import os
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
yaml = pytest.importorskip("yaml")
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in (ROOT / ".github" / "workflows").glob("*.yml")
}


def _steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_there_are_workflows_for_tests_documents_and_releases():
    assert set(WORKFLOWS) == {"docs", "release", "test"}


def test_they_run_scripts_that_there_are_and_every_script_is_run():
    commands = [step.get("run", "") for one in WORKFLOWS.values() for step in _steps(one)]
    called = set(re.findall(r"\.ci/\w+", "\n".join(commands)))
    scripts = {f".ci/{path.name}" for path in (ROOT / ".ci").iterdir()}
    assert called == scripts
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_every_python_that_the_package_takes_is_tested():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    low, end = re.search(r'python_requires=">=3\.(\d+),<3\.(\d+)"', setup).groups()
    taken = [f"3.{minor}" for minor in range(int(low), int(end))]
    assert WORKFLOWS["test"]["jobs"]["tests"]["strategy"]["matrix"]["python"] == taken


def test_no_job_may_write_more_than_it_needs():
    for workflow in WORKFLOWS.values():
        assert workflow["permissions"] == {"contents": "read"}
        assert all(job["timeout-minutes"] <= 300 for job in workflow["jobs"].values())


def test_a_build_sees_the_tags():
    """The version is made of them, and a checkout without them would give another one."""
    for name, job in WORKFLOWS["release"]["jobs"].items():
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["fetch-depth"] == 0, name


def test_the_release_takes_its_notes_from_the_changelog():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \d+\.\d+\.\d+\b", text, re.M)
