"""Tokenizers out of GGUF metadata, against the tokenizers that the metadata was made of."""

import io
import json
import random
import unicodedata

import gguf_files as files
import pytest

from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.gguf_file import GgufModel
from lmsi_jax.models.tokenizers import encode_first, open_tokenizer

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra [hf]")

LINES = (
    "Q: Ann has 3 pens and 4 cups. How many things does Ann have?",
    "def f(x):\n\treturn x ** 2  # it's 12,345.67 \u20ac",
    "\u96ea na\u00efve \u0645\u0631\u062d\u0628\u0627 \u0661\u0662 \u00bd \U0001f44d\U0001f3fd",
    "I'll, WE'VE, don't <|im_end|> </s> <unk> <0x41> e\u0301",
    "     five,          ten, and a tail   ",
    "\n\n\n\t\t12 345 6789\r\n \r\n",
)
# Facts of the published tokenizers: what they cut a text into before merges.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def texts(count=300):
    """Returns varied texts: whole lines, cuts, and letters at random."""
    pick = random.Random(3)
    letters = [
        *"abcXYZ 019 \n\t.,'\"(){}<>|_",
        "\u00e9",
        "\u96ea",
        "\U0001f44d",
        "\u0662",
        "\u00bd",
    ]
    made = [*LINES, "", " ", "\n"]
    while len(made) < count:
        line = pick.choice(LINES) + pick.choice(LINES)
        begin = pick.randrange(len(line))
        made.append(line[begin : begin + pick.randrange(40)])
        made.append("".join(pick.choices(letters, k=pick.randrange(30))))
    return made


def opened(folder, vocabulary, arch="llama", **more):
    """Writes a model with a vocabulary and opens the tokenizer that is read out of it."""
    files.write(folder / "m.gguf", arch, vocabulary=vocabulary, **more)
    found = GgufModel(folder / "m.gguf")
    for name, text in found.tokenizer_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    return open_tokenizer(folder)


def byte_level(pattern, digits=False, composed=False):
    """Trains byte-level BPE; returns it with the metadata that a converter writes of it."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    steps = [tokenizers.pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern:
        steps.append(tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"))
    steps.append(tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
    if composed:
        made.normalizer = tokenizers.normalizers.NFC()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(LINES * 5, trainer)
    made.add_special_tokens(["<|begin|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    made.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
    made.encode_special_tokens = True
    spec = json.loads(made.to_str())
    table = {number: token for token, number in made.get_vocab().items()}
    special = {token["id"]: token["special"] for token in spec["added_tokens"]}
    vocabulary = {
        "model": "gpt2",
        "tokens": [table[number] for number in range(len(table))] + ["[PAD1]", "[PAD2]"],
        "token_type": [
            1 if number not in special else 3 if special[number] else 4
            for number in range(len(table))
        ]
        + [5, 5],
        "merges": [" ".join(pair) for pair in spec["model"]["merges"]],
        "bos_token_id": made.token_to_id("<|begin|>"),
        "eos_token_id": made.token_to_id("<|im_end|>"),
    }
    return made, vocabulary


BYTE_LEVEL = {
    "llama-bpe": {"pattern": _LLAMA3},
    "qwen2": {"pattern": _LLAMA3.replace("{1,3}", ""), "composed": True},
    "deepseek-r1-qwen": {"pattern": _LLAMA3.replace("{1,3}", ""), "composed": True},
    "smollm": {"pattern": "", "digits": True},
    "gpt-2": {"pattern": ""},
}


@pytest.mark.parametrize("pre", BYTE_LEVEL)
def test_byte_level_ids_are_those_of_the_tokenizer_it_was_made_of(tmp_path, pre):
    original, vocabulary = byte_level(**BYTE_LEVEL[pre])
    found = opened(tmp_path, vocabulary | {"pre": pre})
    for text in texts():
        assert found.encode(text) == original.encode(text, add_special_tokens=False).ids
        composed = unicodedata.normalize("NFC", text) if pre.endswith(("qwen2", "qwen")) else text
        assert found.decode(found.encode(text)) == composed
    assert found.vocab_size == original.get_vocab_size()  # fillers of the table are no tokens


@pytest.mark.parametrize(("pre", "whole"), [("llama-bpe", True), ("qwen2", False)])
def test_a_word_that_no_merge_gives_is_one_token_in_llama_3_alone(tmp_path, pre, whole):
    _, vocabulary = byte_level("")
    vocabulary["tokens"] += ["\u0120zqx"]  # " zqx" in the letters of bytes
    vocabulary["token_type"] += [1]
    ids = opened(tmp_path, vocabulary | {"pre": pre}).encode(" zqx")
    assert (ids == [len(vocabulary["tokens"]) - 1]) == whole


def test_the_expressions_differ_on_the_texts():
    tried = texts()
    ids = [
        [byte_level(**kind)[0].encode(text).tokens for text in tried]
        for kind in (BYTE_LEVEL["llama-bpe"], BYTE_LEVEL["qwen2"], BYTE_LEVEL["smollm"])
    ]
    assert ids[0] != ids[1] != ids[2] != ids[0]


def sentencepiece(prefix):
    """Trains a SentencePiece model; returns it with the metadata that a converter writes of it."""
    library = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    # Models with a space before each text (Llama 2) have no tokens of several spaces.
    symbols = ["\n", "\n\n", "<tool>", *([] if prefix else ["\u2581" * 2, "\u2581" * 4])]
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20),
        model_writer=model,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        bos_id=2,
        eos_id=1,
        unk_id=3,
        pad_id=0,
        control_symbols=["<end_of_turn>"],
        user_defined_symbols=symbols,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        minloglevel=2,
    )
    made = library.SentencePieceProcessor(model_proto=model.getvalue())
    count = made.get_piece_size()
    kinds = (
        (made.is_unknown, 2),
        (made.is_control, 3),
        (made.is_unused, 5),
        (made.is_byte, 6),
    )
    types = [next((kind for is_, kind in kinds if is_(i)), 1) for i in range(count)]
    pieces = [made.id_to_piece(i) for i in range(count)]
    for i, piece in enumerate(pieces):
        if piece in symbols:
            types[i], pieces[i] = 4, piece.replace("\u2581", " ")
    return made, {
        "model": "llama",
        "tokens": pieces,
        "scores": [float(made.get_score(i)) for i in range(count)],
        "token_type": types,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "padding_token_id": 0,
        "add_space_prefix": prefix,
    }


@pytest.mark.parametrize("prefix", [False, True])
def test_sentencepiece_ids_are_those_of_the_library(tmp_path, prefix):
    original, vocabulary = sentencepiece(prefix)
    found = opened(tmp_path, vocabulary, arch="gemma3")
    # A tokenizer.json puts the space of the beginning behind an added token too.
    tried = [text for text in texts() if not prefix or not _has_symbol(text)]
    assert len(tried) > 100
    for text in tried:
        assert found.encode(text) == original.encode(text), text
        assert found.decode(found.encode(text)) == text
    assert found.start_ids == (2,)
    assert (found.eos_id, found.pad_id, found.unk_id) == (1, 0, 3)
    assert {original.id_to_piece(i) for i in found.end_ids} == {"</s>", "<end_of_turn>"}


def _has_symbol(text):
    return any(symbol in text for symbol in ("\n", "<tool>"))


@pytest.mark.parametrize(
    ("keys", "starts"),
    [
        ({"pre": "llama-bpe"}, True),
        ({"pre": "qwen2"}, False),
        ({"pre": "qwen2", "add_bos_token": True}, True),
        ({"pre": "llama-bpe", "add_bos_token": False}, False),
    ],
)
def test_prompts_start_as_the_file_or_its_kind_says(tmp_path, keys, starts):
    original, vocabulary = byte_level("")
    found = opened(tmp_path, vocabulary | keys)
    begin = [original.token_to_id("<|begin|>")] if starts else []
    assert encode_first(found, "a") == [*begin, *found.encode("a")]
    # llama.cpp's converter writes its key twice if a config without a start has it.
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings.get("add_bos_token") == (starts or None)


def test_texts_end_at_all_tokens_that_end_a_turn(tmp_path):
    original, vocabulary = byte_level("")
    found = opened(tmp_path, vocabulary | {"pre": "qwen2"})
    assert found.eos_id == original.token_to_id("<|im_end|>")
    assert found.end_ids == {found.eos_id, original.token_to_id("<|endoftext|>")}
    start = original.token_to_id("<|im_start|>")
    again = opened(tmp_path, vocabulary | {"pre": "qwen2", "eot_token_id": start})
    assert start in again.end_ids


def test_the_chat_template_is_written_beside_the_tokenizer(tmp_path):
    _, vocabulary = byte_level("")
    opened(tmp_path, vocabulary | {"pre": "qwen2"}, template="{{ messages }}")
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages }}"
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|im_end|>"


def test_qwen_files_without_a_named_expression_have_qwens(tmp_path):
    original, vocabulary = byte_level(**BYTE_LEVEL["qwen2"])
    found = opened(tmp_path, vocabulary, arch="qwen2")
    assert all(found.encode(text) == original.encode(text).ids for text in texts())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"pre": "mpt"}, "tokenizer.ggml.pre = 'mpt' is not supported; supported are llama-bpe"),
        ({"pre": None}, "tokenizer.ggml.pre = None is not supported"),
        ({"model": "bert"}, "tokenizer.ggml.model = 'bert' is not supported"),
        ({"merges": None}, "has no tokenizer.ggml.merges"),
        ({"token_type": [1, 1]}, "tokens, and types of 2"),
        ({"add_bos_token": True, "bos_token_id": None}, "bos_token_id is missing"),
        ({"model": "llama"}, "no score for each token"),
    ],
)
def test_what_is_missing_or_unknown_is_named(tmp_path, changes, match):
    _, vocabulary = byte_level("")
    changed = {**vocabulary, "pre": "gpt-2", **changes}
    with pytest.raises(LmsiError, match=match):
        opened(tmp_path, {key: value for key, value in changed.items() if value is not None})
