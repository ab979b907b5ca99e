"""TPU VMs: the commands, what they do on workers, and a run that outlives its pod."""

import contextlib
import io
import pathlib
import shlex
import shutil
import subprocess
import sys

import fake_cloud
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import arguments, tpu_vm, worker
from launch.pod import Pod
from lmsi_jax.errors import LmsiError

ROOT = pathlib.Path(__file__).resolve().parents[2]
_NAMES = ["--name=gemma", "--project=my-project", "--zone=us-west4-a"]
_REF = "lmsi_jax[tpu] @ git+https://example.org/lmsi_jax.git@v1"
_POD = ["--accelerator_type=v5litepod-16", "--capacity=spot", f"--package={_REF}"]
_OUT = "--gin.Run.output_dir=gs://bucket/run"
_RUN = ["run", *_NAMES, *_POD, "--poll_seconds=0"]
_PLACE = "--project=my-project --zone=us-west4-a --quiet"
_SSH = f"gcloud compute tpus tpu-vm ssh gemma {_PLACE} --worker"

_ALL = f"{_SSH}=all --ssh-flag=-oServerAliveInterval=30"

_DRY = f"""\
# repeatedly: is it ACTIVE, or was it preempted (SUSPENDED)?
gcloud compute tpus queued-resources list \
'--format=csv[no-heading](name.basename(),state.state)' {_PLACE}
# if there is none: request the pod
gcloud compute tpus queued-resources create gemma --node-id=gemma \
--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot {_PLACE}
# then: install the package on every worker
{_ALL} '--command=set -eu
systemctl is-active --quiet lmsi && exit 0
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python=3.12 lmsi/venv
python3 -m uv pip install --quiet --python=lmsi/venv/bin/python --reinstall-package=lmsi_jax \
'"'"'{_REF}'"'"''
# then: start the run on every worker, and again when it fails
{_ALL} '--command=set -eu
mkdir -p lmsi
cat > lmsi/next.sh <<\\LMSI_END
test -e done && exit 0
venv/bin/lmsi run quickstart {_OUT} --coordinator_address=auto && touch done
LMSI_END
if systemctl is-active --quiet lmsi; then
  cmp -s lmsi/next.sh lmsi/run.sh && exit 0
  echo "another run is in progress here; end it first, with stop" >&2
  exit 1
fi
mv lmsi/next.sh lmsi/run.sh
rm -f lmsi/done
sudo tee /etc/systemd/system/lmsi.service > /dev/null <<LMSI_END
[Unit]
Description=lmsi_jax
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=3600
StartLimitBurst=10
[Service]
User=$(id -un)
WorkingDirectory=$HOME/lmsi
ExecStart=/bin/bash run.sh
Restart=on-failure
RestartPreventExitStatus=2
RestartSec=30
TimeoutStopSec=120
[Install]
WantedBy=multi-user.target
LMSI_END
sudo systemctl daemon-reload
sudo systemctl enable --quiet lmsi
sudo systemctl reset-failed lmsi 2> /dev/null || true
sudo systemctl start --no-block lmsi'
# repeatedly: has the run ended?
{_ALL} '--command=echo "lmsi: $(systemctl show --property=ActiveState --value lmsi) \
$(test -e lmsi/done && echo done || echo open)"'
# at the end, or after a preemption: delete it
gcloud compute tpus queued-resources delete gemma --force {_PLACE}
"""


def _printed(capsys, *argv):
    assert tpu_vm.main([*argv]) == 0
    return capsys.readouterr().out


def test_the_dry_run_prints_every_command(capsys):
    assert _printed(capsys, *_RUN, "--dry_run", "--", "run", "quickstart", _OUT) == _DRY


def test_the_dry_runs_of_the_other_subcommands(capsys):
    logs = [*_NAMES, "--dry_run", "--worker=3", "--lines=5", "--follow"]
    assert _printed(capsys, "logs", *logs) == (
        f"# the output of the run\n{_ALL.replace('=all', '=3')} "
        "'--command=sudo journalctl --unit=lmsi "
        "--no-pager --output=cat --lines=5 --follow'\n"
    )
    stop = f"# end the run; it can be resumed\n{_ALL} '--command=sudo systemctl disable "
    stop += "--now lmsi'\n"
    assert _printed(capsys, "stop", *_NAMES, "--dry_run") == stop
    delete = _DRY.partition("# at the end, or")[1:]
    assert _printed(capsys, "down", *_NAMES, "--dry_run") == stop + "".join(delete)
    status = _printed(capsys, "status", *_NAMES, "--dry_run")
    assert status.count("\ngcloud ") == 2 and status.count("has the run ended?") == 1


# --- whole runs, on a cloud of files --------------------------------------------------------------


def _launch(folder, states, argv, **more):
    env = fake_cloud.install(folder, states) | more
    command = [sys.executable, "launch/tpu_vm.py", *argv]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def _verbs(folder):
    return [words[3] for words in fake_cloud.calls(folder)]


_HOSTILE = ["it's", 'a "b"', "$(touch hacked)", "`id`", "; exit 9", "$HOME", "%h %%", "\\", "é", ""]


def test_a_run_is_started_on_every_worker_with_its_very_words(tmp_path):
    words = ["run", "my conf.gin", _OUT, *(f"--gin.Run.name={text}" for text in _HOSTILE)]
    done = _launch(tmp_path, "- WAITING_FOR_RESOURCES PROVISIONING ACTIVE", [*_RUN, "--", *words])
    assert done.returncode == 0, done.stderr
    assert fake_cloud.lmsi_arguments(tmp_path) == [[*words, "--coordinator_address=auto"]] * 2
    assert _verbs(tmp_path) == ["list", "create", *["list"] * 3, "ssh", "ssh", "ssh"]
    assert "WAITING_FOR_RESOURCES" in done.stderr and "the run has ended" in done.stderr
    assert not list(tmp_path.rglob("hacked"))


def _commands(text):
    """The commands in a dry run's text, as a shell reads them."""
    words = shlex.split(text, comments=True)
    starts = [index for index, word in enumerate(words) if word == "gcloud"] + [len(words)]
    return [words[first:last] for first, last in zip(starts, starts[1:], strict=False)]


def test_what_runs_is_what_the_dry_run_prints(tmp_path):
    argv = [*_RUN, "--", "run", "quickstart", _OUT]
    assert _launch(tmp_path, "SUSPENDED - ACTIVE", argv).returncode == 0
    called = [["gcloud", *words] for words in fake_cloud.calls(tmp_path)]
    assert all(words in called for words in _commands(_DRY))
    assert all(words in _commands(_DRY) for words in called)


def test_a_pod_that_was_taken_away_is_asked_for_again_and_the_run_goes_on(tmp_path):
    (tmp_path / "hangs").touch()
    states = "ACTIVE ACTIVE SUSPENDING SUSPENDED - PROVISIONING ACTIVE"
    done = _launch(tmp_path, states, [*_RUN, "--", "run", "quickstart", _OUT])
    assert done.returncode == 0, done.stderr
    prepare, health = ["ssh", "ssh"], ["ssh"]
    assert _verbs(tmp_path) == [
        *("list", *prepare, *health, "list", *health, "list"),  # under way, then taken away
        *("list", "delete", "list", "create", "list", "list", *prepare, *health),
    ]
    assert len(fake_cloud.lmsi_arguments(tmp_path)) == 2


def test_a_pod_that_somebody_deleted_is_not_asked_for_again(tmp_path):
    (tmp_path / "hangs").touch()
    done = _launch(tmp_path, "ACTIVE -", [*_RUN, "--", "run", "quickstart", _OUT])
    assert done.returncode == 2 and "gemma was deleted; the same command begins" in done.stderr
    assert "create" not in _verbs(tmp_path)


@pytest.mark.parametrize(
    ("states", "code", "message"),
    [
        ("- FAILED", "0", "cannot be had"),
        ("ACTIVE", "2", "the run is failed on a worker; `logs` says why"),
    ],
)
def test_what_does_not_mend_itself_ends_the_launcher(tmp_path, states, code, message):
    argv = [*_RUN, "--", "run", "quickstart", _OUT]
    done = _launch(tmp_path, states, argv, LMSI_CODE=code)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_wheel_is_copied_and_installed_with_its_extra(tmp_path):
    wheel = tmp_path / "it's here" / "lmsi_jax-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    argv = ["up", *_NAMES, *_POD[:2], f"--package={wheel}", "--poll_seconds=0", "--python=3.13"]
    done = _launch(tmp_path, "ACTIVE", argv)
    assert done.returncode == 0, done.stderr
    for index in (0, 1):
        log = (tmp_path / f"worker{index}" / "python3.log").read_text()
        assert "uv venv --quiet --allow-existing --python=3.13 lmsi/venv\n" in log
        assert log.endswith("--reinstall-package=lmsi_jax ./lmsi_jax-0.1.0-py3-none-any.whl[tpu]\n")
        assert (tmp_path / f"worker{index}" / wheel.name).exists()


# --- what reaches a worker's lmsi -----------------------------------------------------------------

_PRINTABLE = st.text(
    st.sampled_from("'\"$`\\;&|<>(){}*?!#~%= -aé\u00a0").filter(str.isprintable), max_size=12
)


@settings(max_examples=40)
@given(words=st.lists(_PRINTABLE, min_size=1, max_size=4))
def test_any_printable_words_reach_lmsi_unchanged(tmp_path_factory, words):
    words = ["run", *words]
    arguments.check_words(words)
    home = tmp_path_factory.mktemp("home")
    fakes = 'systemctl() { return 3; }; sudo() { if [ "$1" = tee ]; then cat > /dev/null; fi; }\n'
    script = worker.start_script(words, max_restarts=10, stop_seconds=120)
    subprocess.run(["bash", "-c", fakes + script], cwd=home, check=True)
    lmsi = home / "lmsi" / "venv" / "bin" / "lmsi"
    lmsi.parent.mkdir(parents=True)
    lmsi.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    lmsi.chmod(0o755)
    done = subprocess.run(
        ["bash", "run.sh"], cwd=home / "lmsi", check=True, capture_output=True, text=True
    )
    assert done.stdout.split("\0")[:-1] == [*words, "--coordinator_address=auto"]
    assert (home / "lmsi" / "done").exists()


def test_a_run_under_way_is_left_alone_and_another_one_is_refused(tmp_path):
    fakes = 'systemctl() { return ${ACTIVE:-3}; }; sudo() { echo "$*" >> sudo.log; }\n'

    def start(words, active):
        return subprocess.run(
            ["bash", "-c", f"ACTIVE={active}\n{fakes}{worker.start_script(words, 10, 120)}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    assert start(["run", "a"], active=3).returncode == 0
    begun = (tmp_path / "sudo.log").read_text()
    assert begun.endswith("systemctl start --no-block lmsi\n")
    assert start(["run", "a"], active=0).returncode == 0
    other = start(["run", "b"], active=0)
    assert other.returncode == 1 and "another run is in progress" in other.stderr
    assert (tmp_path / "sudo.log").read_text() == begun


def test_states_are_read_from_lines_of_workers_alone():
    printed = "Using ssh batch size of 1.\nlmsi: active open\nlmsi: inactive done\nlmsi: \n"
    assert worker.states(printed) == [("active", False), ("inactive", True)]


def test_the_state_is_that_of_the_resource_of_this_name():
    pod = Pod(name="gemma", project="p", zone="z")
    assert pod.state_in("gemma-2,FAILED\ngemma,ACTIVE\n") == "ACTIVE"
    assert pod.state_in("gemma-2,FAILED\n") is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--zone=$(id)"], "--zone='\\$\\(id\\)': it is a zone"),
        (["--name=a;b"], "--name='a;b': it is at most 40"),
        (["--package=-r"], "give a wheel's path"),
        (["--package=nowhere.whl"], "is not there; make it with python -m build"),
        (["--package=a:b.whl"], "what is before a colon for a host"),
        (["--create_flag=x"], "'x' is no flag of gcloud's"),
        (["--create_flag=--"], "is no flag of gcloud's"),
        (["--ssh_flag=-x"], "'-x' is no flag of gcloud's"),
        (["--accelerator_type=v5litepod-24"], "no such slice, but v5litepod-1, .*v5litepod-256"),
        (["--accelerator_type=v5p-24"], "no such slice, but v5p-8, v5p-16, .* v5p-12288 "),
        (["--accelerator_type=v99-8"], "which TPU software\\? Add --runtime_version"),
        (["--max_restarts=0"], "are at least 1"),
        (["--poll_seconds=-1"], "is at least 0"),
        (["--capacity=much"], "invalid choice: 'much'.*see .*--help"),
        (["--gin.Run.output_dir=gs://x"], "unrecognized arguments"),
    ],
)
def test_what_gcloud_would_misunderstand_is_refused_before_anything_runs(changed, message):
    with pytest.raises(LmsiError, match=message):
        tpu_vm.main([*_RUN, *changed, "--dry_run", "--", "run", "quickstart", _OUT])


_NAMED = ("name", "project", "zone", "accelerator_type", "runtime_version", "service_account")


@settings(max_examples=150)
@given(flag=st.sampled_from(_NAMED), value=st.text("az1-.:@ '\"$();&\\\n", max_size=9))
def test_a_name_that_is_taken_means_nothing_to_a_shell_or_to_gcloud(flag, value):
    try:
        arguments.check_names(**{flag: value})
    except LmsiError:
        return
    assert shlex.quote(value) == value and not value.startswith("-")


@settings(max_examples=50)
@given(package=_PRINTABLE, flag=_PRINTABLE)
def test_free_values_are_one_word_or_refused(package, flag):
    argv = [*_RUN, f"--package={package}", f"--create_flag=--network={flag}", "--dry_run"]
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            tpu_vm.main([*argv, "--", "run", "quickstart", _OUT])
    except LmsiError:
        assert not out.getvalue() and (package.startswith("-") or not package.strip())
        return
    create, install = _commands(out.getvalue())[1:3]
    assert create[-4] == f"--network={flag}"
    assert shlex.split(install[-1])[-1] == package


def test_a_run_wants_a_folder_that_all_workers_see():
    with pytest.raises(LmsiError, match="all machines must see the run's folder, not runs/x"):
        tpu_vm.main([*_RUN, "--", "run", "quickstart", "--gin.Run.output_dir=runs/x"])
    with pytest.raises(LmsiError, match="stop takes no arguments of lmsi's"):
        tpu_vm.main(["stop", *_NAMES, "--", "run", "quickstart"])
    with pytest.raises(LmsiError, match="needs --accelerator_type"):
        tpu_vm.main(["up", *_NAMES])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
def test_gcloud_knows_every_command_and_flag(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    wheel = tmp_path / "a.whl"
    wheel.touch()
    base = ["run", *_NAMES, *_POD[:1], f"--package={wheel}", "--service_account=a@b.c"]
    options = ["--capacity=reserved", "--create_flag=--network=n", "--ssh_flag=--internal-ip"]
    text = _printed(capsys, *base, *options, "--dry_run", "--", "run", "quickstart", _OUT)
    text += _printed(capsys, "down", *_NAMES, "--dry_run")
    for words in _commands(text):
        # The linter reads no scripts of several lines.
        line = shlex.join(
            "--command=x" if word.startswith("--command=") else word for word in words
        )
        lint = ["gcloud", "meta", "lint-gcloud-commands", f"--command-string={line}"]
        done = subprocess.run(lint, capture_output=True, text=True, check=True)
        assert '"success": true' in done.stdout, (line, done.stdout[-500:])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path):
    script = worker.start_script(["run", "x"], max_restarts=10, stop_seconds=120)
    fakes = "systemctl() { return 3; }; sudo() { if [ $1 = tee ]; then cat > lmsi.service; fi; }\n"
    done = subprocess.run(
        ["bash", "-c", fakes + script],
        cwd=tmp_path,
        env={"HOME": "/home/me", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    unit = tmp_path / "lmsi.service"
    assert "WorkingDirectory=/home/me/lmsi\n" in unit.read_text()
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
