"""The image's Dockerfile: it copies what an installation needs, and its context sends no more."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
_TEXT = (ROOT / "launch" / "Dockerfile").read_text()
_COPIED = [
    source
    for line in re.findall(r"^COPY (.+) \S+$", _TEXT, re.MULTILINE)
    for source in line.split()
]


def test_what_is_copied_is_there_and_in_the_context():
    kept = (ROOT / "launch" / "Dockerfile.dockerignore").read_text().splitlines()
    assert kept[0] == "*"
    assert {line.removeprefix("!") for line in kept if line.startswith("!")} == set(_COPIED)
    assert all((ROOT / source).exists() for source in _COPIED)


def test_its_python_is_one_that_the_package_takes_and_its_extra_is_one_of_it():
    version = re.search(r"^FROM python:(3\.\d+)-slim$", _TEXT, re.MULTILINE)[1]
    setup = (ROOT / "setup.py").read_text()
    low, high = re.search(r'python_requires=">=(3\.\d+),<(3\.\d+)"', setup).groups()
    low, version, high = (int(text.partition(".")[2]) for text in (low, version, high))
    assert low <= version < high
    extra = re.search(r"^ARG EXTRAS=(\w+)$", _TEXT, re.MULTILINE)[1]
    assert f'"{extra}": [' in setup


@pytest.mark.slow
def test_what_is_copied_makes_a_wheel(tmp_path):
    subprocess.run(["cp", "-r", *_COPIED, str(tmp_path)], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", "out", "."]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert len(list((tmp_path / "out").glob("lmsi_jax-*.whl"))) == 1
