"""Programs that stand in for gcloud and for a worker's system, for whole runs of launch/tpu_vm.py.

`install(folder)` writes them into folder/bin. The cloud is a list of the states that the queued
resource will be in, folder/states, one taken by each `list` ("-" where there is none); the last one
stays. Workers are folders (folder/worker0, ...): ssh runs its command there with bash, where
`systemctl start` runs the unit's script at once, and lmsi writes its arguments down. While there is
a file folder/hangs, a run that was started goes on until the pod is deleted.
"""

import json
import os
import pathlib
import sys

_GCLOUD = """
import json, os, pathlib, shutil, subprocess, sys
folder = pathlib.Path(sys.argv[1])
words = sys.argv[2:]
with open(folder / "log", "a") as log:
    print(json.dumps(words), file=log)
assert words[:2] == ["compute", "tpus"] and "--quiet" in words
options = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
noun, verb, name = words[2:5]
workers = sorted(folder.glob("worker*"))
if verb == "list":
    states = (folder / "states").read_text().split()
    (folder / "states").write_text(" ".join(states[1:] or states))
    print("other,ACTIVE")
    print(f"gemma,{states[0]}" if states[0] != "-" else "", end="")
elif verb == "scp":
    for worker in workers:
        shutil.copy(words[4], worker)
elif verb == "ssh":
    chosen = options["--worker"]
    for worker in workers if chosen == "all" else [folder / f"worker{chosen}"]:
        path = f"{folder}/remote:{os.environ['PATH']}"
        env = {**os.environ, "HOME": str(worker), "PATH": path}
        code = subprocess.run(["bash", "-c", options["--command"]], cwd=worker, env=env).returncode
        if code:
            sys.exit(code)
elif verb == "delete":
    for worker in workers:  # the disks are gone
        shutil.rmtree(worker)
        worker.mkdir()
    (folder / "hangs").unlink(missing_ok=True)
else:
    assert verb == "create", words
"""

_REMOTE = {
    "sudo": """
if [ "$1" = tee ]; then test "$2" = /etc/systemd/system/lmsi.service && exec cat > lmsi.service; fi
exec "$@"
""",
    "systemctl": """
case "$1" in
  is-active) exit 3 ;;
  show) cat state 2> /dev/null || echo inactive ;;
  reset-failed) exit 1 ;;
  start)
    if [ -e ../hangs ]; then echo active > state; exit; fi
    (cd lmsi && bash run.sh) && echo inactive > state || echo failed > state ;;
  daemon-reload | enable | disable) ;;
  *) exit 9 ;;
esac
""",
    "journalctl": 'echo "journal: $*"',
    # pip and uv: the environment that they would make has an lmsi that writes down its arguments.
    "python3": """
echo "$*" >> python3.log
if [ "$3" = venv ]; then
  for place; do :; done
  mkdir -p "$place/bin"
  printf '#!/bin/bash\\nprintf "%%s\\\\0" "$@" > ../arguments\\nexit ${LMSI_CODE:-0}\\n' \\
    > "$place/bin/lmsi"
  chmod +x "$place/bin/lmsi"
fi
""",
}


def _program(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def install(folder: pathlib.Path, states: str, workers: int = 2) -> dict[str, str]:
    """Writes the programs; returns the environment in which they are found."""
    (folder / "states").write_text(states)
    (folder / "gcloud.py").write_text(_GCLOUD)
    _program(folder / "bin" / "gcloud", f'exec {sys.executable} {folder}/gcloud.py {folder} "$@"')
    for name, text in _REMOTE.items():
        _program(folder / "remote" / name, text)
    for index in range(workers):
        (folder / f"worker{index}").mkdir()
    return {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"}


def calls(folder: pathlib.Path) -> list[list[str]]:
    """What gcloud was called with, in order."""
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def lmsi_arguments(folder: pathlib.Path) -> list[list[str]]:
    """What lmsi was last started with on each worker."""
    texts = [(worker / "arguments").read_bytes() for worker in sorted(folder.glob("worker*"))]
    return [text.decode().split("\0")[:-1] for text in texts]
