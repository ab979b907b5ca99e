"""Texts to ids and back, and files that are no tokenizer."""

import dataclasses
import io
import json
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsi_jax.errors import LmsiError
from lmsi_jax.models.tokenizers import SentencePiece, open_for_model, open_tokenizer


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_characters="\x00\u2581", exclude_categories=["Cs"])))
def test_every_text_comes_back(tokenizer_session, text):
    assert tokenizer_session.decode(tokenizer_session.encode(text)) == text


@pytest.fixture(scope="module")
def tokenizer_session(tokenizer_path):
    return SentencePiece(tokenizer_path)


def test_ids_are_plain_and_within_the_vocabulary(tokenizer):
    ids = tokenizer.encode("Q: Ann has 34 pens.\nA:")
    assert all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.eos_id == 1 and tokenizer.eos_id not in ids
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_digits_and_line_feeds_are_pieces_of_their_own(tokenizer):
    newline = tokenizer.encode("\n")
    assert len(newline) == 1 and tokenizer.encode("\n\n") == newline * 2
    both = [tokenizer.encode(text)[-2:] for text in ("pens 37", "pens 73")]
    assert both[0] == both[1][::-1]


@pytest.mark.parametrize("data", [b"not a model", b"\x00\x01\x02"])
def test_a_file_that_is_no_model_is_named(tmp_path, data):
    path = tmp_path / "x.model"
    path.write_bytes(data)
    with pytest.raises(LmsiError, match="x.model is not a readable SentencePiece model"):
        SentencePiece(str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LmsiError, match="none.model is not a readable"):
        SentencePiece(str(tmp_path / "none.model"))


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LmsiError, match="moved/tokenizer: there is no such tokenizer"):
        open_tokenizer(tmp_path / "moved" / "tokenizer")


def test_rows_without_a_piece_are_normal_beside_the_settings_of_a_model(
    tokenizer_path, micro_config, tmp_path
):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(pathlib.Path(tokenizer_path).read_bytes())
    pieces = open_tokenizer(file).vocab_size
    larger = dataclasses.replace(micro_config, vocab_size=pieces + 7)
    with pytest.raises(LmsiError, match=f"has {pieces} ids, ModelConfig.vocab_size is"):
        open_for_model(file, larger)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_start|>": pieces}))
    tokenizer = open_for_model(file, larger)
    assert tokenizer.decode([pieces, *tokenizer.encode("ab"), pieces + 6]) == "ab"
    with pytest.raises(LmsiError, match="set Run.tokenizer to the one"):
        open_for_model(file, dataclasses.replace(micro_config, vocab_size=pieces - 1))


def test_a_model_without_an_end_token_is_refused(tmp_path):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ab ba"] * 9),
        model_writer=model,
        vocab_size=8,
        model_type="bpe",
        eos_id=-1,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path / "endless.model"
    path.write_bytes(model.getvalue())
    with pytest.raises(LmsiError, match="has no end token; train it with eos_id=1"):
        SentencePiece(str(path))
