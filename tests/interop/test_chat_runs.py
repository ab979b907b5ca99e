"""An instruct model from a hub's folder through rounds and back into transformers and PEFT."""

import json

import chat_templates as forms
import hub_models as hub
import numpy as np
import pytest
import torch
import transformers
from test_end_to_end import RUN

from lmsi_jax.cli.main import main
from lmsi_jax.config import Sampling
from lmsi_jax.config.gin_loader import GinArgs, load
from lmsi_jax.models.transformer import parameter_shapes
from lmsi_jax.pipeline.context import Context
from lmsi_jax.pipeline.mix import read_examples
from lmsi_jax.pipeline.sample import make_job
from lmsi_jax.records import plain_text
from lmsi_jax.training import checkpoints

pytestmark = pytest.mark.slow

ANSWER = "The answer is 7."
END = "<|im_end|>"


def chat_model(folder):
    """Writes a Llama with a chat template, which answers everything with "The answer is 7."."""
    model = hub.make("llama", folder)
    tokenizer = hub.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|im_start|>", END])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(forms.CHATML)
    text = transformers.AutoTokenizer.from_pretrained(folder)
    ask = text("<|im_start|>assistant\n", add_special_tokens=False).input_ids
    answer = text(f"{ANSWER}{END}\n", add_special_tokens=False).input_ids
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    torch.manual_seed(0)
    for _ in range(80):
        before = torch.randint(4, 330, (8, 24))
        tokens = torch.cat([before, torch.tensor(ask + answer).expand(8, -1)], 1)
        known = torch.arange(tokens.shape[1]) < 24 + len(ask)
        loss = model(tokens, labels=torch.where(known, -100, tokens))
        optimizer.zero_grad()
        loss.loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two rounds with adapters, each on the model of the one before."""
    folder = tmp_path_factory.mktemp("chat")
    chat_model(folder / "hub")
    (folder / "run.gin").write_text(RUN)
    assert main(["import-hf", str(folder / "hub"), str(folder / "ours")]) == 0
    flags = [
        f"--gin_file={folder / 'ours' / 'model.gin'}",
        f"--gin.Run.output_dir={str(folder / 'run')!r}",
        "--gin.Run.rounds=2",
        "--gin.Run.start_from='last'",
        "--gin.CollapseMonitor.stop=()",
        "--gin.Run.collapse_monitor=@CollapseMonitor()",
        "--gin.Training.lora=@Lora()",
        "--gin.Lora.peft=True",
        "--gin.Optimizer.learning_rate=1e-2",
    ]
    assert main(["run", str(folder / "run.gin"), *flags]) == 0
    out = folder / "out"
    assert main(["export-hf", str(folder / "run" / "round_2" / "train"), str(out)]) == 0
    load(str(folder / "run" / "config.gin"), GinArgs())
    from lmsi_jax.config.configurables import load_run

    return folder, Context(load_run(), frozenset())


def test_samples_end_by_themselves_and_rows_end_in_the_turns_end(finished):
    _, context = finished
    round = context.round(1)
    samples = [one for rows in round.all_samples().values() for one in rows]
    assert {sample.end for sample in samples} == {"end_token"}
    rows = read_examples(round)["self_generated"]
    assert {row.format for row in rows} == set(round.settings.mixing.formats)
    for row in rows:
        assert row.targets == (ANSWER, END, "")
        assert plain_text(row.inputs).endswith("<|im_start|>assistant\n")


def test_the_export_writes_the_engines_text_in_transformers_and_ends(finished):
    folder, context = finished
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "out", attn_implementation="eager"
    )
    text = transformers.AutoTokenizer.from_pretrained(folder / "out")
    question = context.load_questions("test")["purchases"][0]
    sampling = Sampling(num_samples=1, temperature=0.0, max_new_tokens=40, stop=())
    job = make_job(context.prompts, "a", [question], (), "zero_shot_cot", sampling)
    (response,) = context.engine(2).generate(job.requests(), seed=0, round_index=2)
    (sample,) = response.samples
    message = question.text.removeprefix("Q: ")
    message += "\nLet's think step by step."
    ids = text.apply_chat_template(
        [{"role": "user", "content": message}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = theirs.generate(**ids, do_sample=False, max_new_tokens=40)[0]
    written = written[ids["input_ids"].shape[1] :]
    assert sample.text == text.decode(written, skip_special_tokens=True) == ANSWER
    assert sample.tokens == len(written) and sample.end == "end_token"
    assert text.decode(written[-1:]) == END


def test_the_export_keeps_all_ends(finished):
    folder, context = finished
    stored = json.loads((folder / "out" / "generation_config.json").read_text())
    assert sorted(stored["eos_token_id"]) == sorted(context.tokenizer.end_ids)
    assert len(stored["eos_token_id"]) == 2


@pytest.mark.parametrize("number", [1, 2])
def test_a_rounds_adapters_belong_on_the_model_that_they_name(finished, number):
    folder, context = finished
    adapters = folder / "run" / f"round_{number}" / "train" / "adapters" / "peft"
    settings = json.loads((adapters / "adapter_config.json").read_text())
    base = transformers.AutoModelForCausalLM.from_pretrained(settings["base_model_name_or_path"])
    from safetensors.numpy import load_file

    tensors = load_file(adapters / "adapter_model.safetensors")
    run = context.round(number).settings
    reached = checkpoints.load_params(
        folder / "run" / f"round_{number}" / "train", parameter_shapes(run.model)
    )
    modules = {"query": "q_proj", "value": "v_proj"}
    state = {name: tensor.numpy() for name, tensor in base.state_dict().items()}
    moved = 0.0
    for layer in range(run.model.num_layers):
        for ours, theirs in modules.items():
            name = f"model.layers.{layer}.self_attn.{theirs}"
            a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
            change = settings["lora_alpha"] / settings["r"] * b @ a
            merged = state[f"{name}.weight"] + change
            np.testing.assert_allclose(merged.T, reached[f"layer_{layer}"][ours], atol=1e-5)
            moved = max(moved, float(np.abs(change).max()))
    assert moved > 1e-3  # else any base would do
