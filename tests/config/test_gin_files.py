"""Gin's files wherever they lie: beside each other, on a bucket, in an installed package."""

import subprocess
import sys

import gin
import pytest

from lmsi_jax.config import gin_loader
from lmsi_jax.errors import LmsiError


@gin.configurable(module="files_test")
def lamp(colour="white", watts=1):
    """What the tests configure."""
    return colour, watts


def _lit(*files, search_paths=()):
    gin_loader.load(None, gin_loader.GinArgs(files=files, search_paths=search_paths))
    return lamp()


def _error(*files):
    with pytest.raises(LmsiError) as error:
        _lit(*files)
    text = str(error.value)
    assert len(text.splitlines()) <= 2 and "\n  In " not in text
    return text


def test_includes_of_a_file_on_a_bucket_are_found_on_it_and_among_the_packaged_ones(
    bucket, tmp_path, monkeypatch
):
    packaged = tmp_path / "packaged" / "runs"
    packaged.mkdir(parents=True)
    (packaged / "base.gin").write_text("lamp.colour = 'packaged'\n")
    monkeypatch.setattr(gin_loader, "_packaged_roots", lambda: [packaged.parent])
    (bucket.root / "runs").mkdir()
    (bucket.root / "runs" / "mine.gin").write_text("include 'runs/base.gin'\nlamp.watts = 2\n")
    assert _lit("gs://bucket/runs/mine.gin") == ("packaged", 2)
    (bucket.root / "runs" / "beside.gin").write_text("lamp.colour = 'beside'\n")
    (bucket.root / "runs" / "mine.gin").write_text("include 'beside.gin'\nlamp.watts = 3\n")
    assert _lit("gs://bucket/runs/mine.gin") == ("beside", 3)


def test_a_file_here_includes_one_of_a_bucket(bucket, tmp_path):
    (bucket.root / "base.gin").write_text("lamp.colour = 'far'\n")
    (tmp_path / "mine.gin").write_text("include 'gs://bucket/base.gin'\n")
    assert _lit(str(tmp_path / "mine.gin")) == ("far", 1)
    (tmp_path / "mine.gin").write_text("include 'base.gin'\n")
    assert _lit(str(tmp_path / "mine.gin"), search_paths=("gs://bucket",)) == ("far", 1)


def test_what_a_bucket_does_not_hold_is_named(bucket):
    text = _error("gs://bucket/none.gin")
    assert text == "there is no file gs://bucket/none.gin; check its name"
    (bucket.root / "mine.gin").write_text("lamp.watts = 2\ninclude 'none.gin'\n")
    text = _error("gs://bucket/mine.gin")
    assert text.startswith("gs://bucket/mine.gin, line 2: there is no file none.gin; give")
    (bucket.root / "mine.gin").write_text("\nlamp.wats = 2\n")
    text = _error("gs://bucket/mine.gin")
    assert text.startswith("gs://bucket/mine.gin, line 2: lamp has no parameter 'wats'")


def test_a_bucket_that_refuses_is_named(bucket, monkeypatch):
    import tensorflow as tf

    def refuse(path):
        raise tf.errors.PermissionDeniedError(None, None, "no storage.objects.get")

    monkeypatch.setattr(bucket, "exists", refuse, raising=False)
    text = _error("gs://bucket/mine.gin")
    assert text == (
        "cannot read gs://bucket/mine.gin (no storage.objects.get); check its name and that you "
        "may read it, or copy the file here"
    )
    assert "cannot read ftp://host/mine.gin" in _error("ftp://host/mine.gin")


@pytest.mark.parametrize("data", [b"\xff\xfe\x00binary", bytes(range(256))])
def test_a_file_that_is_no_text_is_named_and_so_is_an_included_one(bucket, tmp_path, data):
    file, mine = tmp_path / "model.gin", tmp_path / "mine.gin"
    file.write_bytes(data)
    said = "is not UTF-8 text; give a gin file with lines such as Run.rounds = 3"
    assert _error(str(file)) == f"{file} {said}"
    mine.write_text("include 'model.gin'\n")
    assert _error(str(mine)) == f"{file} {said}"
    (bucket.root / "model.gin").write_bytes(data)
    assert _error("gs://bucket/model.gin") == f"gs://bucket/model.gin {said}"


def test_local_files_are_read_without_tensorflow(tmp_path):
    (tmp_path / "base.gin").write_text("COLOUR = 'red'\n")
    (tmp_path / "mine.gin").write_text("include 'base.gin'\n")
    code = (
        "import sys\n"
        "from lmsi_jax.config import gin_loader\n"
        "gin_loader.load(sys.argv[1], gin_loader.GinArgs())\n"
        "assert not {'tensorflow', 'jax'} & {*sys.modules}, sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "mine.gin")], check=True)
