"""Where benchmarks look for real outputs, and what they say where there are none."""

import argparse
import gzip
import pathlib

import pytest

from bench import real_outputs, vote


def _samples(folder):
    """The least that is taken for real outputs: one question and one model, compressed."""
    for name in real_outputs.KINDS:
        place = folder / "model_samples" / name
        place.mkdir(parents=True)
        (place / "gold.jsonl").write_text('{"id": 1, "question": "Q: 3 + 4?"}\n')
        text = b'{"id": 1, "completion": " The answer is 7."}\n'
        (place / "one_COT.jsonl.gz").write_bytes(gzip.compress(text))
    return folder


def _given(*words):
    parser = argparse.ArgumentParser()
    real_outputs.add_flag(parser)
    return real_outputs.folder(parser.parse_args(words).data, [real_outputs.gold("GSM8K")])


def test_the_flag_comes_before_the_variable(tmp_path, monkeypatch):
    one, two = _samples(tmp_path / "one"), _samples(tmp_path / "two")
    monkeypatch.setenv("LMSI_DATA", str(two))
    assert _given(f"--data={one}") == one and _given() == two


def test_without_either_it_is_the_folder_beside_the_checkout(monkeypatch):
    monkeypatch.delenv("LMSI_DATA", raising=False)
    root = pathlib.Path(real_outputs.__file__).resolve().parents[1]
    assert real_outputs.default() == root.parent / "shared" / "data"


def test_a_folder_without_them_is_refused_with_what_it_must_hold(tmp_path):
    with pytest.raises(SystemExit) as caught:
        _given(f"--data={tmp_path}")
    said = str(caught.value)
    assert "has no model_samples/GSM8K/gold.jsonl" in said and "--data=DIR or LMSI_DATA" in said
    assert "bench/real_outputs.py" in said and len(said.splitlines()) == 2


def test_compressed_files_are_read_too(tmp_path):
    ((question, (sample,)),) = vote.real(_samples(tmp_path), "GSM8K")
    assert (question.uid, sample.text) == ("1", " The answer is 7.")
