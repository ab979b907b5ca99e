"""Real GGUF files, of the folder that LMSI_WEIGHTS names, against transformers' reading of them."""

import gc
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from test_gguf_tokenizer import texts

from lmsi_jax.interop.chat_template import ChatTemplate, Turn
from lmsi_jax.interop.gguf_file import GgufModel
from lmsi_jax.interop.hf_config import model_config
from lmsi_jax.interop.hf_families import tensors as parameters
from lmsi_jax.interop.hf_shards import read_tensor
from lmsi_jax.models.tokenizers import open_tokenizer

pytestmark = pytest.mark.weights

FOLDER = Path(os.environ.get("LMSI_WEIGHTS", ""))
FILES = sorted(FOLDER.glob("*.gguf")) if os.environ.get("LMSI_WEIGHTS") else []
if not FILES:
    pytest.skip("LMSI_WEIGHTS names no folder with GGUF files", allow_module_level=True)
transformers = pytest.importorskip("transformers", reason="needs transformers")
torch = pytest.importorskip("torch", reason="needs torch")


@pytest.fixture(scope="module", params=FILES, ids=lambda file: file.stem)
def model(request):
    gc.collect()
    return request.param, GgufModel(request.param)


def test_config_and_tensors_are_those_of_transformers(model):
    file, found = model
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    config = theirs.config.to_dict()
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    for key, value in found.config.items():
        if key == "architectures" or config.get(key) is None:
            continue
        real = isinstance(value, float)
        assert config[key] == (pytest.approx(value, rel=1e-6) if real else value), key
    assert rope["rope_theta"] == found.config["rope_theta"]
    state = theirs.state_dict()
    for name in found.names:
        read = read_tensor(found, name, np.dtype(np.float32), False)
        # Gemma's norms lose a bit when 1 is taken away, in either library.
        np.testing.assert_allclose(read, state[name].numpy(), atol=1e-6, rtol=0, err_msg=name)
    assert set(state) - set(found.names) <= {"lm_head.weight"}
    wanted = {tensor.name: tensor.shape for tensor in parameters(model_config(found.config))}
    assert wanted == found.shapes


def test_token_ids_are_those_of_transformers(model, tmp_path):
    """Compares texts as the published tokenizers see them: transformers leaves out Qwen's form NFC
    and SmolLM's splitting at every number when it reads a GGUF file."""
    file, found = model
    for name, text in found.tokenizer_files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    ours = open_tokenizer(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    pre = found.metadata.get("tokenizer.ggml.pre")
    for text in texts():
        seen = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        pieces = _split_at_numbers(seen) if pre == "smollm" else [seen]
        ids = [
            number
            for piece in pieces
            for number in theirs(
                piece, add_special_tokens=False, split_special_tokens=True
            ).input_ids
        ]
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == seen
    assert theirs.eos_token_id in ours.end_ids


def _split_at_numbers(text):
    pieces = [""]
    for letter in text:
        if unicodedata.category(letter).startswith("N"):
            pieces += [letter, ""]
        else:
            pieces[-1] += letter
    return [piece for piece in pieces if piece]


def test_the_chat_template_is_rendered_as_transformers_does(model, tmp_path):
    file, found = model
    written = found.tokenizer_files()
    if "chat_template.jinja" not in written:
        pytest.skip("the file has no template")
    for name, text in written.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    ends = [json.loads(written["tokenizer_config.json"])["eos_token"]]
    made = ChatTemplate.from_folder(tmp_path, ends)
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    shown = [("system", "Be brief."), ("user", "Hi <|im_end|>"), ("assistant", " Yes.")]
    for count, prompt in ((2, True), (3, False)):
        messages = [{"role": role, "content": text} for role, text in shown[:count]]
        wanted = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        turns = [Turn(role=role, text=text) for role, text in shown[:count]]
        rendering = made.render(turns, prompt)
        assert (rendering.text, rendering.exact) == (wanted, True)
