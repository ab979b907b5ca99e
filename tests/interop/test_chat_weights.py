"""Real instruct models, of the folder that LMSI_WEIGHTS names, answer in their chat template."""

import os
from pathlib import Path

import pytest

from lmsi_jax import api
from lmsi_jax.config import Decoding, Sampling
from lmsi_jax.interop.chat_prompts import ChatPrompts
from lmsi_jax.interop.gguf_file import GgufModel
from lmsi_jax.interop.hf_weights import import_model
from lmsi_jax.records import Question
from lmsi_jax.voting import AnswerReader

pytestmark = pytest.mark.weights

FOLDER = Path(os.environ.get("LMSI_WEIGHTS", ""))
FILES = sorted(FOLDER.glob("*nstruct*.gguf")) if FOLDER.name else []
if not FILES:
    pytest.skip("LMSI_WEIGHTS names no folder with instruct models", allow_module_level=True)

QUESTIONS = {
    "Q: What is 3 + 4?": "7",
    "Q: A pack has 6 eggs. How many eggs are in 5 packs?": "30",
    # The end of a turn, in letters.
    "Q: A chat of 12 turns ends with <|im_end|>. How many turns are there?": "12",
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_instruct_model_answers_in_its_template_and_ends_by_itself(file, tmp_path):
    assert GgufModel(file).metadata["tokenizer.chat_template"]
    import_model(file, tmp_path / "model")
    model = api.load(tmp_path / "model")
    assert isinstance(model.prompts, ChatPrompts)
    questions = [
        Question(uid=str(number), task="t", text=text, kind="number", gold=gold)
        for number, (text, gold) in enumerate(QUESTIONS.items())
    ]
    samples = api.sample(
        model,
        questions,
        prompt_style="zero_shot_cot",
        sampling=Sampling(num_samples=1, temperature=0.0, max_new_tokens=192, stop=()),
        decoding=Decoding(slots=4),
    )
    reader = AnswerReader()
    keys = [reader.read(question, samples[question.uid])[0].key for question in questions]
    assert [rows[0].end for rows in samples.values()] == ["end_token"] * len(questions)
    assert None not in keys and keys[0] == "7"
