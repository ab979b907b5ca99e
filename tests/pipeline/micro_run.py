"""How a run's folder is looked at and compared."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys

from lmsi_jax.runtime.store import ShardStore

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Runs the command, and dies by SIGKILL right after the N-th call of something has returned.
_DYING = """
import os, signal, sys
from lmsi_jax.cli.main import main
import lmsi_jax.{module} as module
what, calls = module.{name}, []
def deadly(*args, **kwargs):
    made = what(*args, **kwargs)
    calls.append(1)
    if len(calls) == {count}:
        os.kill(os.getpid(), signal.SIGKILL)
    return made
module.{name} = deadly
main(sys.argv[1:])
"""


def contents(folder):
    """Everything of a run that must not depend on when, where and in how many goes it was made."""
    folder = pathlib.Path(folder)
    names = ("*.jsonl.gz", "*.check.json", "metrics.jsonl", "digest.json", "scores.json")
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for name in names
        for path in sorted(folder.rglob(name))
    }
    for stage in folder.rglob("stage.json"):
        row = json.loads(stage.read_text())
        found[stage.relative_to(folder).as_posix()] = (row["fingerprint"], row["outputs"])
    return found


def killed(code, arguments):
    """Runs a program that dies by SIGKILL before its end."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def killed_after(arguments, module, name, count):
    """Runs the command, which dies right after `count` calls of a function of a module."""
    killed(_DYING.format(module=module, name=name, count=count), arguments)


def snapshot(folder):
    """Bytes and times of every file."""
    files = [path for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def shard_rows(folder, record):
    """All rows of a stage's shards, as records, without the exemplars and votes beside them."""
    store = ShardStore(folder)
    names = [name for name in store.names() if not name.startswith(("exemplars-", "votes-"))]
    return [record.from_json(row) for name in names for row in store.read(name)]


def other_tokenizer(size):
    """A SentencePiece model of another size."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Ann has 3 pens and 4 cups."] * 9),
        model_writer=model,
        vocab_size=size,
        model_type="bpe",
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()
