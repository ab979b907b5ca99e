"""Texts in parts: their ids, one behind the other, are read as the whole text by all tokenizers."""

import io
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmsi_jax.models.tokenizers import (
    compare_borders,
    encode_parts,
    encode_text,
    open_tokenizer,
)
from lmsi_jax.runtime.files import embedded_path

LINES = [
    "Q: Ann has 3 pens and 4 cups. How many things does Ann have?",
    "A: 3 + 4 = 7. The answer is 7.\n\n",
    "Premise: Ben has some hats! Yes or no? (a) 1 (b) 2",
]
ROW = ("Q: Ben has 1 hat.\nA: The answer is 1.\n\n", "Q: x?\nA:", " The answer is 7.")
_ALPHABET = sorted(set("".join(LINES)))
PIECES = st.lists(
    st.sampled_from([*_ALPHABET, " The", "\n\n", "  ", "Q:", "▁", "7", "<s>"]), max_size=12
).map("".join)
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def sentencepiece_model(path, **settings):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20),
        model_writer=model,
        vocab_size=340,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
        **settings,
    )
    (path / "tokenizer.model").write_bytes(model.getvalue())


def json_tokenizer(path, normalizer, pre_tokenizer, decoder):
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra [hf]")
    spaced = [f"▁{line.replace(' ', '▁')}" for line in LINES]
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>"],
        show_progress=False,
        initial_alphabet=["▁"],
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("▁"), "merged_with_next")
    made.train_from_iterator(spaced * 5, trainer)
    spec = json.loads(made.to_str())
    vocabulary = spec["model"]["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    spec |= {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder}
    (path / "tokenizer.json").write_text(json.dumps(spec))
    (path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')


SPACES = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
LLAMA2 = {
    "type": "Sequence",
    "decoders": [
        SPACES,
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}
PREPEND = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
METASPACE = {
    "type": "Metaspace",
    "replacement": "▁",
    "prepend_scheme": "first",
    "split": False,
}


def byte_level(path):
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra [hf]")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(LINES * 5, trainer)
    made.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')


# Llama 2's tokenizer.model, SentencePiece's defaults, and the same without what is put before.
IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
KINDS = {
    "llama2-model": lambda path: sentencepiece_model(path, model_type="bpe", **IDENTITY),
    "unigram": lambda path: sentencepiece_model(path, **IDENTITY),
    "plain": lambda path: sentencepiece_model(path, add_dummy_prefix=False, **IDENTITY),
    "defaults": lambda path: sentencepiece_model(path),
    "stripping": lambda path: sentencepiece_model(path, add_dummy_prefix=False),
    "llama2-json": lambda path: json_tokenizer(path, PREPEND, None, LLAMA2),
    "metaspace": lambda path: json_tokenizer(path, None, METASPACE, LLAMA2),
    "byte-level": byte_level,
}
STRIPPING = ("defaults", "stripping")  # they normalise spaces, also of a whole text


@pytest.fixture(scope="module", params=[*KINDS, "embedded"])
def opened(request, tmp_path_factory):
    if request.param == "embedded":
        return request.param, open_tokenizer(embedded_path("tokenizer.model"))
    folder = tmp_path_factory.mktemp(request.param)
    KINDS[request.param](folder)
    return request.param, open_tokenizer(folder)


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(PIECES, min_size=1, max_size=4) | st.lists(UNICODE, min_size=1, max_size=3))
@example(parts=list(ROW))
@example(parts=["A:", "7"])
@example(parts=["a", " ", "b"])
@example(parts=["A:\n\n", "\n\nQ:", " \n"])
def test_parts_are_read_as_their_whole_text(opened, parts):
    kind, tokenizer = opened
    whole = "".join(parts)
    found = tokenizer.decode(encode_parts(tokenizer, parts))
    if kind in STRIPPING and not whole.isascii():
        return  # NFKC joins letters across a border
    assert found == tokenizer.decode(tokenizer.encode(whole))
    if kind not in (*STRIPPING, "embedded") and "▁" not in whole and not whole.startswith(" "):
        assert found == whole


def test_a_row_has_one_space_before_its_target(opened):
    _, tokenizer = opened
    assert tokenizer.decode(encode_parts(tokenizer, ROW)).endswith("A: The answer is 7.")


@pytest.mark.parametrize("kind", ["llama2-model", "llama2-json", "metaspace", "byte-level"])
def test_a_target_behind_a_prompt_has_the_ids_that_it_has_in_the_whole(kind, tmp_path):
    KINDS[kind](tmp_path)
    tokenizer = open_tokenizer(tmp_path)
    whole = encode_text(tokenizer, "".join(ROW))
    target = encode_text(tokenizer, ROW[2], ROW[1])
    assert whole[-len(target) :] == target
    apart = tokenizer.encode(ROW[2])
    assert (apart == target) == (kind in ("byte-level", "metaspace"))


def test_the_report_counts_rows_and_tokens_that_differ(tmp_path):
    byte_level(tmp_path)
    tokenizer = open_tokenizer(tmp_path)
    row = ("Q: Ben has 1 hat.", " How many?", " The answer is 7.")
    same = compare_borders(tokenizer, [row] * 3)
    assert (same.rows, same.other_ids, same.other_tokens, same.other_texts) == (3, 0, 0, 0)
    assert str(same).startswith("prompt parts: all of 3 rows")
    cut = ("Q: Ann ha", "s 3 pens")  # within a word
    other = compare_borders(tokenizer, [row, cut])
    assert (other.rows, other.other_ids, other.other_texts) == (2, 1, 0)
    assert other.other_tokens >= 1 and "1 of 2 rows" in str(other)
    lengths = [len(encode_text(tokenizer, "".join(texts))) for texts in (row, cut)]
    assert other.tokens == sum(lengths)
