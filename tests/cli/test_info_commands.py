"""`lmsi help`, `lmsi configs`, `lmsi completion` and `lmsi doctor`."""

import shutil
import subprocess

import pytest

from lmsi_jax.cli import info_commands
from lmsi_jax.cli.info_commands import (
    completion_script,
    describe_config,
    examine_machine,
    explain_topic,
)
from lmsi_jax.cli.main import main
from lmsi_jax.config import Sampling, gin_loader
from lmsi_jax.errors import LmsiError


def test_help_explains_a_setting_by_its_gin_name_or_its_fields_name(capsys):
    text = explain_topic("Sampling.num_samples")
    assert text.startswith("Sampling.num_samples\n")
    assert f"default {Sampling.num_samples}" in text
    assert explain_topic("sampling.NUM_SAMPLES") == explain_topic("--gin.Sampling.num_samples")
    both = explain_topic("temperature")
    assert "Sampling.temperature\n" in both and "Evaluation.temperature\n" in both
    assert main(["help", "Sampling.num_samples"]) == 0
    assert capsys.readouterr().out == f"{text}\n"


def test_help_explains_all_settings_of_a_class_and_commands():
    text = explain_topic("sampling")
    assert all(f"\nSampling.{name}\n" in text for name in ("temperature", "top_p", "stop"))
    assert explain_topic("vote").startswith("usage: lmsi vote")
    assert max(map(len, text.splitlines())) <= 80


def test_help_names_the_nearest_topic():
    with pytest.raises(LmsiError, match="did you mean Sampling.num_samples"):
        explain_topic("Sampling.num_sample")
    with pytest.raises(LmsiError, match="docs/configuration.md"):
        explain_topic("xyzzy")


def test_every_packaged_configuration_is_listed_with_its_first_sentence(capsys):
    assert main(["configs"]) == 0
    out = capsys.readouterr().out
    for kind in ("runs", "studies", "models"):
        for name in gin_loader.packaged_configs(kind):
            assert f"\n  {name} " in out, name
    assert "LMSI (Huang et al. 2022)" in out  # no sentence ends at "al."
    assert max(map(len, out.splitlines())) <= 80


def test_the_header_of_a_configuration_is_printed(capsys):
    assert main(["configs", "quickstart"]) == 0
    out = capsys.readouterr().out
    assert "Commonly overridden: Run.output_dir" in out and "#" not in out
    assert out.rstrip().endswith("gin_configs/runs/quickstart.gin")
    assert "Run.name =" not in out
    with pytest.raises(LmsiError, match="did you mean quickstart"):
        describe_config("quikstart")


def _completed(*words):
    script = completion_script("bash") + (
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _lmsi; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", "lmsi", *words], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_completes_commands_flags_configurations_and_settings():
    assert _completed("sam") == ["sample"]
    assert "quickstart" in _completed("run", "q")
    assert _completed("clean", "--d") == ["--dry_run"]
    assert "--gin.Sampling.top_k=" in _completed("run", "quickstart", "--gin.Sampling.")
    assert _completed("runs", "--gin") == []  # takes no gin flags
    assert _completed("run", "--gin.Run.seed", "=", "q") == []  # a value, no configuration
    assert "formats" in _completed("study", "") and "quickstart" in _completed("configs", "quick")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells_have_the_commands_and_parse(shell):
    script = completion_script(shell)
    for word in ("sample", "quickstart", "--dry_run", "--gin.Run.rounds="):
        assert word in script
    if shutil.which(shell):  # many machines have bash alone
        check = [shell, "-n"] if shell == "zsh" else [shell, "--no-execute"]
        subprocess.run([*check, "/dev/stdin"], input=script, text=True, check=True)


def test_doctor_names_versions_devices_memory_and_disk(capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.setattr(info_commands, "_SMALL_DISK", float("inf"))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("lmsi_jax", "jax ", "cores", "memory", "GFLOP/s", "cpu"):
        assert word in out
    assert "! compiled programs are not kept" in out and "! the disk is nearly full" in out
    assert max(map(len, out.splitlines())) <= 80


def test_doctor_finds_nothing_on_a_good_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    for name in ("_SMALL_DISK", "_SMALL_MEMORY", "_SLOW_PRODUCT"):
        monkeypatch.setattr(info_commands, name, 0.0)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    facts, findings = examine_machine(tmp_path)
    assert [finding for finding in findings if "bfloat16" not in finding] == []
    assert facts["cache"].startswith(str(tmp_path))
    with pytest.raises(LmsiError, match="there is no folder"):
        examine_machine(tmp_path / "missing")
