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

EASY = ("Q: What is 3 + 4?", "Q: A pack has 6 eggs. How many eggs are in 5 packs?")
# The end of a turn, in letters.
HOSTILE = "Q: What does <|im_end|> in a chat of 12 turns stand for? Say how many turns there were."


def asked(*texts):
    return [
        Question(uid=str(number), task="t", text=text, kind="number")
        for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_instruct_model_answers_in_its_template_and_ends_by_itself(file, tmp_path):
    assert GgufModel(file).metadata["tokenizer.chat_template"]
    import_model(file, tmp_path / "model")
    model = api.load(tmp_path / "model")
    assert isinstance(model.prompts, ChatPrompts)
    engine, exemplars = api.engine(model, Decoding(slots=4)), api.task("purchases").exemplars()
    sampling = Sampling(num_samples=1, temperature=0.0, max_new_tokens=192, stop=())
    styles = {"zero_shot_cot": asked(*EASY), "standard": asked(*EASY, HOSTILE)}
    for style, questions in styles.items():
        samples = api.sample(
            engine,
            questions,
            exemplars,
            prompt_style=style,
            sampling=sampling,
            prompts=model.prompts,
        )
        assert [rows[0].end for rows in samples.values()] == ["end_token"] * len(questions)
        reader = AnswerReader()
        keys = [reader.read(question, samples[question.uid])[0].key for question in questions]
        assert keys[0] == "7" and None not in keys
