"""Tokenizers as SeqIO vocabularies: real SentencePiece models, tokenizer.json, the id 0."""

import unicodedata

import pytest
import seqio
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import DATA

from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.seqio_vocabularies import (
    Pieces,
    Tokens,
    encode_parts,
    encode_prompt,
    open_t5x_vocabulary,
    open_vocabulary,
    to_columns,
)
from lmsi_jax.models.tokenizers import encode_text, open_tokenizer

REAL = DATA / "sentencepiece"
MODELS = ("sentencepiece.model", "google_sentencepiece_test_model.model")
TEXTS = st.text(st.sampled_from("aeinost RTS.,'\u00e9\ufb01\u2460"), max_size=30)


@pytest.fixture(params=MODELS)
def real(request):
    path = REAL / request.param
    if not path.exists():
        pytest.skip(f"{path.parent} is not here: real SentencePiece models")
    return str(path)


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
@pytest.mark.parametrize("name", MODELS)
def test_real_models_give_the_ids_of_seqio_and_nfkc_texts_back(name, text):
    path = REAL / name
    if not path.exists():
        pytest.skip(f"{path.parent} is not here: real SentencePiece models")
    ours, theirs = open_vocabulary(str(path)), seqio.SentencePieceVocabulary(str(path))
    ids = ours.encode(text)
    assert ids == theirs.encode(text) == ours.encode_tf(tf.constant(text)).numpy().tolist()
    assert open_tokenizer(path).encode(text) == ids
    if ours.unk_id not in ids:
        # Both models were trained with NFKC, a space before the first word and single spaces.
        assert ours.decode(ids) == " ".join(unicodedata.normalize("NFKC", text).split())


def test_a_real_model_whose_id_0_is_the_unknown_piece_is_refused_by_t5x_alone(real):
    tokenizer = open_tokenizer(real)
    open_vocabulary(real)
    if not tokenizer.writes_zero:
        assert isinstance(open_t5x_vocabulary(real), Pieces)
        return
    assert 0 in tokenizer.encode("\u96ea")
    with pytest.raises(LmsiError, match="writes the id 0 in texts, which is padding in T5X"):
        open_t5x_vocabulary(real)


@pytest.fixture(scope="module", params=["llama", "qwen", "gemma"])
def folder(request, tmp_path_factory):
    import hub_models as hub

    path = tmp_path_factory.mktemp(request.param)
    hub.write_tokenizer(path, request.param)
    return str(path)


@settings(max_examples=30, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_texts_come_back_through_tensorflow_too(folder, text):
    own, t5x = open_vocabulary(folder), open_t5x_vocabulary(folder)
    assert own.encode(text) == open_tokenizer(folder).encode(text)
    for vocabulary in (own, t5x):
        ids = vocabulary.encode(text)
        assert vocabulary.encode_tf(tf.constant(text)).numpy().tolist() == ids
        back = unicodedata.normalize("NFC", vocabulary.decode(ids))
        assert back == unicodedata.normalize("NFC", text)
        rows = tf.constant([[*ids, vocabulary.eos_id, 9, 9]] * 2)
        texts = [row.decode() for row in vocabulary.decode_tf(rows).numpy()]
        assert texts == [vocabulary.decode(ids)] * 2
        assert all(0 <= i < vocabulary.vocab_size for i in ids)
    assert 0 not in t5x.encode(text)


def test_the_id_0_is_a_letter_of_byte_level_tokenizers_and_shifted_for_t5x(folder):
    tokenizer, own, t5x = (
        open_tokenizer(folder),
        open_vocabulary(folder),
        open_t5x_vocabulary(folder),
    )
    shift = t5x.shift
    assert shift == (0 if folder.rstrip("0123456789").endswith("gemma") else 1)
    assert (0 in own.encode("!")) == bool(shift)
    assert t5x.encode("a!") == [i + shift for i in own.encode("a!")]
    assert t5x.vocab_size == tokenizer.vocab_size + shift
    assert (t5x.eos_id, t5x.pad_id) == (tokenizer.eos_id + shift, 0)
    assert t5x == open_t5x_vocabulary(folder) and hash(t5x) == hash(open_t5x_vocabulary(folder))
    assert (t5x == own) == (shift == 0)


def test_the_first_text_that_is_not_empty_begins_with_the_start(folder):
    vocabulary = open_vocabulary(folder)
    start, a, b = [*vocabulary.start_ids], vocabulary.encode("ab\n"), vocabulary.encode("c")
    for prefix, wanted in (("ab\n", (start + a, b)), ("", ([], start + b))):
        found = encode_prompt(vocabulary, tf.constant(prefix), tf.constant("c"))
        assert tuple(part.numpy().tolist() for part in found) == wanted


def test_a_vocabulary_may_be_as_large_as_the_models_table_and_no_smaller(folder):
    tokenizer = open_tokenizer(folder)
    assert Tokens(tokenizer, size=400).vocab_size == 400
    assert Tokens(tokenizer, size=400).decode([399, *tokenizer.encode("a"), 399]) == "a"
    with pytest.raises(LmsiError, match="more than the 300 of the model"):
        Tokens(tokenizer, size=300)


def test_parts_with_control_tokens_have_the_ids_of_the_engine(folder):
    tokenizer = open_tokenizer(folder)
    end = next(iter(tokenizer.controls))
    parts = (("ab\n", end, ""), ("c </s>", end, "x"), (" y", end, ""))
    columns, structured = to_columns(parts)
    assert structured and to_columns(["a", "b"]) == (["a", "b"], False)
    for vocabulary in (open_vocabulary(folder), open_t5x_vocabulary(folder)):
        tensors = [tf.constant(column) for column in columns]
        found = [ids.numpy() - vocabulary.shift for ids in encode_parts(vocabulary, tensors, True)]
        before = ("", parts[0], parts[1])
        wanted = [encode_text(tokenizer, *both) for both in zip(parts, before, strict=True)]
        assert [ids.tolist() for ids in found] == wanted
        assert sum(ids.count(tokenizer.controls[end].id) for ids in wanted) == 3
