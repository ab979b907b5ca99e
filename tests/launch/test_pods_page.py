"""docs/pods.md: its launch commands are complete, and gcloud knows its commands."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
_TEXT = (ROOT / "docs" / "pods.md").read_text()
_BLOCKS = re.findall(r"^```bash\n(.*?)^```$", _TEXT, re.MULTILINE | re.DOTALL)
# Made by commands of the page that need a network or minutes.
_PACKAGE = 'PACKAGE="lmsi_jax[tpu] @ git+https://example.org/lmsi_jax.git@v1"\n'


def _commands(program):
    """The page's commands of a program, each as one line, with their variables filled in."""
    lines = "".join(_BLOCKS).replace("\\\n", " ").splitlines()
    variables = [line for line in lines if re.match(r"[A-Z]+=[^(]*$", line)]
    chosen = [line for line in lines if line.startswith(f"{program} ")]
    return ["\n".join([*variables, _PACKAGE + line]) for line in chosen]


def test_every_launch_command_is_accepted():
    launches = [text for text in _commands("python") if "\npython launch/" in text]
    assert {re.search(r"launch/(\w+)\.py", text)[1] for text in launches} == {
        *("local", "tpu_vm", "gke")
    }
    for text in launches:
        dry = re.sub(
            r"^python (launch/\w+\.py(?: [a-z]+)?)",
            lambda match: f"{shlex.quote(sys.executable)} {match[1]} --dry_run",
            text,
            flags=re.MULTILINE,
        )
        done = subprocess.run(["bash", "-c", dry], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, (text, done.stderr)
        assert done.stdout.startswith("# ")


def test_the_configuration_names_parameters_that_there_are_and_is_read_from_a_bucket(bucket):
    from lmsi_jax.config import gin_loader
    from lmsi_jax.config.configurables import load_run

    text = re.search(r"^```gin\n(.*?)^```$", _TEXT, re.MULTILINE | re.DOTALL)[1]
    (bucket.root / "gemma.gin").write_text(text)
    gin_loader.load("gs://bucket/gemma.gin", gin_loader.GinArgs())
    run = load_run()
    assert run.init_checkpoint == "gs://my-bucket/models/gemma"
    assert run.training.data * run.training.model == 16  # the chips of the page's pod
    assert run.decoding.data * run.decoding.model == 4  # those of one of its machines


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
def test_gcloud_knows_every_command_of_the_page(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    commands = _commands("gcloud")
    assert len(commands) > 5
    for text in commands:
        called = "gcloud() { printf '%s\\0' gcloud \"$@\"; }\n" + text
        words = subprocess.run(["bash", "-c", called], capture_output=True, text=True, check=True)
        line = shlex.join(words.stdout.split("\0")[:-1])
        lint = ["gcloud", "meta", "lint-gcloud-commands", f"--command-string={line}"]
        done = subprocess.run(lint, capture_output=True, text=True, check=True)
        assert '"success": true' in done.stdout, (line, done.stdout[-500:])
