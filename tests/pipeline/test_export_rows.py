"""Training rows for other trainers: the text that ours learns, as common readers read it."""

import json

import pytest

from lmsi_jax.cli.main import main
from lmsi_jax.models.tokenizers import open_tokenizer
from lmsi_jax.pipeline.exchange import export_rows
from lmsi_jax.records import Example
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.training.data import in_order


def _read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _examples(run):
    store = ShardStore(run / "round_1" / "mix")
    return [
        Example.from_json(row)
        for name in store.names()
        if name.startswith("self_generated-")
        for row in store.read(name)
    ]


def test_prompt_and_completion_are_the_text_that_the_trainer_learns(
    finished, tmp_path, tokenizer_path
):
    path, count = export_rows(finished, tmp_path / "rows.jsonl")
    rows, examples = _read(path), _examples(finished)
    assert count == len(rows) == len(examples) > 0
    tokenizer = open_tokenizer(tokenizer_path)
    for exported, example, trained in zip(
        rows, examples, in_order(examples, tokenizer_path), strict=True
    ):
        learnt = [t for t, w in zip(trained.tokens, trained.weights, strict=True) if w > 0]
        assert tokenizer.decode(learnt).strip() == exported["completion"].strip()
        assert exported["completion"].endswith(".\n\n")
        whole = tokenizer.decode([*trained.prefix, *trained.tokens])
        assert whole.split() == (exported["prompt"] + exported["completion"]).split()
        assert max(trained.weights) == pytest.approx(exported["weight"])
        assert (exported["uid"], exported["format"]) == (example.uid, example.format)


def test_messages_are_a_conversation_of_two(finished, tmp_path):
    plain = _read(export_rows(finished, tmp_path / "a.jsonl")[0])
    chats = _read(export_rows(finished, tmp_path / "b.jsonl", row_format="messages")[0])
    for row, chat in zip(plain, chats, strict=True):
        assert chat["messages"] == [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"].strip()},
        ]
        assert chat["weight"] == row["weight"]


def test_parquet_has_the_same_rows(finished, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import json as arrow_json

    path, _ = export_rows(finished, tmp_path / "a.jsonl")
    other, _ = export_rows(finished, tmp_path / "b.parquet", row_format="parquet")
    table = parquet.read_table(str(other))
    assert table.to_pylist() == _read(path)
    # The reader of `datasets` for JSON Lines.
    assert arrow_json.read_json(str(path)).to_pylist() == _read(path)
    assert table.schema.field("weight").type == "double"


def test_pairs_are_exported_with_both_answers(lmsi, words, tmp_path, capsys):
    run = tmp_path / "run"
    command, config, *bindings = words("run", run, {"Questions.test": ()})
    preference = ["--gin.Training.preference=@Preference()", "--gin.Preference.threshold=0.0"]
    for stage in ("sample", "vote", "mix"):
        assert main([stage, config, *bindings, *preference]) == 0
    (row, *_) = _read(export_rows(run)[0])
    assert {"prompt", "chosen", "rejected", "weight", "uid", "task", "format", "source"} == {*row}
    assert row["source"] == "pairs" and row["chosen"] != row["rejected"]
    (chat, *_) = _read(export_rows(run, tmp_path / "c.jsonl", row_format="messages")[0])
    assert chat["prompt"] == [{"role": "user", "content": row["prompt"]}]
    assert chat["chosen"] == [{"role": "assistant", "content": row["chosen"].strip()}]
    assert chat["rejected"] == [{"role": "assistant", "content": row["rejected"].strip()}]


def test_the_command_writes_beside_the_round_and_leaves_the_run_as_it_is(copy, lmsi, capsys):
    assert main(["export-rows", str(copy)]) == 0
    assert "rows in " in capsys.readouterr().out
    assert len(_read(copy / "round_1" / "rows.jsonl")) == len(_examples(copy))
    assert lmsi("report", copy)[0] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--round=2"], "no round 2 with training rows; mixed are 1"), ([], "has no round with")],
)
def test_a_round_without_rows_is_an_error(finished, tmp_path, capsys, flags, message):
    folder = finished if flags else tmp_path / "nothing"
    assert main(["export-rows", str(folder), *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
