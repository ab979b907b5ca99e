"""From a hub's folder through a whole run and back into transformers, by the command line."""

import hub_models as hub
import pytest
import torch
import transformers
from sample_all import sample_all

from lmsi_jax.cli.main import main
from lmsi_jax.config import Sampling
from lmsi_jax.config.gin_loader import GinArgs, load
from lmsi_jax.pipeline.context import Context

pytestmark = pytest.mark.slow

RUN = """
Run.questions = @Questions()
Run.decoding = @Decoding()
Run.sampling = @Sampling()
Run.mixing = @Mixing()
Run.training = @Training()
Run.evaluation = @Evaluation()
Run.seed = 5
Run.questions_per_shard = 2
Decoding.slots = 8
Questions.train = ('purchases',)
Questions.test = ('purchases',)
Questions.level = 'easy'
Questions.train_count = 3
Questions.test_count = 2
Sampling.num_samples = 3
Sampling.max_new_tokens = 24
Evaluation.prompt_styles = ('cot', 'zero_shot_cot')
Training.steps = 3
Training.microbatches = 1
Training.sequences_per_prefix = 2
Training.sequence_length = 256
Training.max_prefix_length = 896
Training.optimizer = @Optimizer()
Optimizer.learning_rate = 1e-4
"""
ANSWER = " The answer is 7.\n\n"


def _teach(model, tokenizer):
    """A few steps, after which the model answers "The answer is 7." to all that ends in "A:"."""
    answer, ask = (tokenizer(text, add_special_tokens=False).input_ids for text in (ANSWER, "\nA:"))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    torch.manual_seed(0)
    for _ in range(80):
        before = torch.randint(4, 330, (8, 24))
        said = torch.tensor(ask + answer + ask[:1]).expand(8, -1)
        tokens = torch.cat([before, said], 1)
        loss = model(tokens, labels=torch.where(torch.arange(tokens.shape[1]) < 27, -100, tokens))
        optimizer.zero_grad()
        loss.loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_model_goes_through_a_run_and_back(name, tmp_path, capsys):
    source, ours, run, out = (tmp_path / part for part in ("hub", "ours", "run", "out"))
    model = hub.make(name, source)
    text = transformers.AutoTokenizer.from_pretrained(source)
    _teach(model, text)
    model.save_pretrained(source)
    (tmp_path / "run.gin").write_text(RUN)

    assert main(["import-hf", str(source), str(ours)]) == 0, capsys.readouterr().err
    flags = [f"--gin_file={ours / 'model.gin'}", f"--gin.Run.output_dir={str(run)!r}"]
    assert main(["run", str(tmp_path / "run.gin"), *flags]) == 0, capsys.readouterr().err
    trained = str(run / "round_1" / "train")
    assert main(["export-hf", trained, str(out)]) == 0, capsys.readouterr().err

    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    back = transformers.AutoTokenizer.from_pretrained(out)
    prompt = "Q: Ann has 3 pens and 4 cups. How many things does Ann have?\nA:"
    ids = back(prompt, return_tensors="pt")
    wanted = theirs.generate(**ids, do_sample=False, max_new_tokens=40)[0, ids.input_ids.shape[1] :]
    load(str(run / "config.gin"), GinArgs())
    from lmsi_jax.config.configurables import load_run

    engine = Context(load_run(), frozenset()).engine(1)
    sampling = Sampling(num_samples=1, temperature=0.0, max_new_tokens=40, stop=())
    samples = sample_all(engine, "", [("q", prompt)], sampling, seed=0, round_index=1)
    (sample,) = samples["q"]
    assert sample.text == back.decode(wanted, skip_special_tokens=True)
    assert sample.text.startswith(ANSWER.rstrip())
    assert sample.tokens == len(wanted)
    changed = hub.tensors(out)
    assert any(changed[key] != value for key, value in hub.tensors(source).items())
