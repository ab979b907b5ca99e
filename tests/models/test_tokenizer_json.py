"""tokenizer.json against the library's own decoder and transformers: round trips, starts, ends."""

import json
import unicodedata

import hub_models as hub
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmsi_jax.errors import LmsiError
from lmsi_jax.models.tokenizers import encode_first, open_tokenizer
from lmsi_jax.rollout.stops import Stops

KINDS = ("llama", "qwen", "gemma", "llama2")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.lists(
    st.sampled_from(
        [" ", "\n", "\n\n", "a", "3", "1,2", "雪", "é", "e\u0301", "</s>", "<|pad|>", "'s"]
    )
).map("".join)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    path = tmp_path_factory.mktemp(kind)
    hub.write_tokenizer(path, kind)
    return path


@pytest.fixture(scope="module")
def opened(folder):
    return open_tokenizer(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return hub.transformers.AutoTokenizer.from_pretrained(folder)


def _stored(kind, text):
    """What a tokenizer keeps of a text: Qwen normalises it to NFC, and Gemma's "▁" is a space."""
    if kind == "qwen":
        return unicodedata.normalize("NFC", text)
    return text.replace("\u2581", " ") if kind in ("gemma", "llama2") else text


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
@example(text="<bos> <eos> <|begin_of_text|><|endoftext|> <0x41>")
def test_every_text_comes_back_control_tokens_as_plain_text_too(kind, opened, text):
    ids = opened.encode(text)
    assert opened.decode(ids) == _stored(kind, text)
    assert not set(ids) & {opened.pad_id, *opened.end_ids, *opened.start_ids}


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_ids_and_texts_are_those_of_transformers(opened, theirs, text):
    ids = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert opened.encode(text) == ids
    assert opened.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, cut=st.integers(0, 60))
def test_more_tokens_never_change_the_text_before_an_unfinished_character(opened, text, cut):
    ids = opened.encode(text)
    begun = opened.decode(ids[:cut]).rstrip("\ufffd")
    assert opened.decode(ids).startswith(begun)


def test_prompts_start_as_those_of_transformers(kind, opened, theirs):
    text = "Q: Ann has 3 pens.\nA:"
    assert encode_first(opened, text) == theirs(text).input_ids
    start, _ = hub.SPECIALS[kind]
    assert opened.start_ids == ((theirs.convert_tokens_to_ids(start),) if start else ())
    assert (opened.eos_id, opened.pad_id) == (theirs.eos_token_id, theirs.pad_token_id)
    assert opened.vocab_size == len(theirs)


def test_a_file_and_its_folder_are_one_tokenizer(folder, opened):
    assert open_tokenizer(folder / "tokenizer.json").fingerprint == opened.fingerprint


def test_the_ends_of_generation_config_count_and_change_the_fingerprint(kind, tmp_path):
    hub.write_tokenizer(tmp_path, kind)
    before = open_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 9]}))
    after = open_tokenizer(tmp_path)
    assert after.end_ids == before.end_ids | {5, 9} and after.eos_id == before.eos_id
    assert after.fingerprint != before.fingerprint


def test_ids_without_a_token_and_control_tokens_add_nothing(opened):
    ids = opened.encode("a雪")
    spare = [opened.vocab_size, opened.vocab_size + 99, opened.eos_id, *opened.start_ids]
    assert opened.decode([*spare, *ids, *spare]) == "a雪"


@settings(max_examples=60, deadline=None)
@given(text=st.text("ab雪€。 ", max_size=20), chunk=st.integers(1, 7))
def test_stops_across_byte_tokens_are_found_whatever_the_chunks(opened, text, chunk):
    stop = "雪。"
    ids = opened.encode(f"{text}{stop}€ more")
    finder, found = Stops(opened, (stop,)), None
    for begin in range(0, len(ids), chunk):
        end = min(begin + chunk, len(ids))
        found = finder.ending(ids[:end], end - begin, 999)
        if found:
            break
    assert found.text == f"{text}{stop}"[: f"{text}{stop}".index(stop)]
    assert stop in opened.decode(ids[: found.used]) and found.end == "stop"
    assert stop not in opened.decode(ids[: found.used - 1])


def test_a_character_cut_by_the_limit_is_marked_and_none_before_it(opened):
    ids = opened.encode("ab雪")
    ending = Stops(opened, ("zz",)).ending(ids[:-1], len(ids) - 1, len(ids) - 1)
    assert ending.text.rstrip("\ufffd") == "ab" and ending.end == "limit"


@pytest.mark.parametrize("data", [b"not JSON", b"{}", b'{"model": 3}', b"\xff\xfe"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, data):
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(LmsiError, match="tokenizer.json is not a readable tokenizer.json"):
        open_tokenizer(tmp_path)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    hub.write_tokenizer(tmp_path, "llama")
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(LmsiError, match="put tokenizer_config.json with its eos_token"):
        open_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert open_tokenizer(tmp_path).eos_id == 7
