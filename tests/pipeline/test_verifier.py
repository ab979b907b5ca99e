"""A model that judges samples, against a forward pass in NumPy; as a scorer of a run."""

import dataclasses
import math
import shutil
import sys

import pytest

from lmsi_jax.cli.main import main
from lmsi_jax.config import Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.tokenizers import SentencePiece
from lmsi_jax.pipeline.scorers import Superfilter, Verifier
from lmsi_jax.records import Question, Sample
from lmsi_jax.runtime.files import write_json
from lmsi_jax.runtime.store import ShardStore

QUESTION = Question(
    uid="q", task="t", text="Q: Ann has 3 pens and 4 cups. How many?", kind="number"
)
SHAPE = Training(microbatches=1, sequences_per_prefix=2, sequence_length=384, max_prefix_length=0)


def _path(index, text):
    return Sample(uid="q", sample_index=index, text=text, tokens=4, logprob=-1.0, end="end_token")


@pytest.fixture(scope="module")
def imported(tmp_path_factory, micro_config, random_checkpoint, tokenizer_path):
    """A folder as `lmsi import-hf` leaves it."""
    folder = tmp_path_factory.mktemp("imported") / "model"
    shutil.copytree(random_checkpoint, folder)
    (folder / "tokenizer").mkdir()
    shutil.copy(tokenizer_path, folder / "tokenizer" / "tokenizer.model")
    config = dataclasses.replace(micro_config, max_length=1024)
    write_json(folder / "model.json", dataclasses.asdict(config))
    return folder


def test_a_score_is_the_probability_of_yes(imported, micro_config, micro_params, tokenizer_path):
    from reference_decoder import reference_logits
    from reference_losses import log_softmax

    prompt = "{question}\n{solution} Right?\nA:"
    judge = Verifier(imported, prompt=prompt, shape=SHAPE)
    paths = [_path(0, " 3 + 4 = 7. "), _path(1, "No idea at all."), _path(2, "12")]
    scores = judge.many([(QUESTION, path) for path in paths])
    tokenizer = SentencePiece(tokenizer_path)
    for path, score in zip(paths, scores, strict=True):
        text = prompt.format(question=QUESTION.text, solution=path.text.strip())
        before, own = tokenizer.encode(text), tokenizer.encode(" Yes")
        logits = reference_logits(micro_config, micro_params, [*before, *own])
        at = len(before) - 1
        total = sum(log_softmax(logits[at + i])[token] for i, token in enumerate(own))
        assert score == pytest.approx(math.exp(total), rel=1e-3)
    assert len(set(scores)) == 3
    assert judge(QUESTION, paths[1]) == pytest.approx(scores[1], rel=1e-4)


def test_a_small_models_ifd_is_the_ratio_of_two_losses(
    imported, micro_config, micro_params, tokenizer_path
):
    from reference_decoder import reference_logits
    from reference_losses import log_softmax

    tokenizer = SentencePiece(tokenizer_path)

    def mean_loss(prompt, text):
        before, own = tokenizer.encode(prompt), tokenizer.encode(f" {text}")
        logits = reference_logits(micro_config, micro_params, [*before, *own])
        at = len(before) - 1
        return -sum(log_softmax(logits[at + i])[t] for i, t in enumerate(own)) / len(own)

    texts = ("3 + 4 = 7.", "No idea at all.", "12")
    scores = Superfilter(imported, shape=SHAPE).many(
        [(QUESTION, _path(index, f" {text} ")) for index, text in enumerate(texts)]
    )
    for text, score in zip(texts, scores, strict=True):
        ratio = mean_loss(f"{QUESTION.text}\nA:", text) / mean_loss("A:", text)
        assert score == pytest.approx(ratio if ratio <= 1 else -ratio, rel=1e-3)
    other = Superfilter(imported, shape=dataclasses.replace(SHAPE, sequence_length=400))
    prints = {one.fingerprint for one in (Superfilter(imported, shape=SHAPE), other)}
    assert len(prints | {Verifier(imported, shape=SHAPE).fingerprint}) == 3


def test_it_filters_the_samples_of_a_run(imported, gin_file, tmp_path, monkeypatch):
    (tmp_path / "micro_judge.py").write_text(
        "from lmsi_jax.pipeline.scorers import Verifier\n"
        "from lmsi_jax.config import Training\n"
        f"judge = Verifier({str(imported)!r}, "
        "shape=Training(microbatches=1, sequences_per_prefix=2, sequence_length=512, "
        "max_prefix_length=0))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("micro_judge", None)
    run = tmp_path / "run"
    words = [
        *(
            gin_file,
            f"--gin.Run.output_dir={str(run)!r}",
            "--gin.Mixing.selection=(@ExternalScore(),)",
        ),
        *("--gin.ExternalScore.scorer='micro_judge:judge'", "--gin.ExternalScore.share=0.5"),
    ]
    for command in ("sample", "vote", "mix"):
        assert main([command, *words]) == 0
    store = ShardStore(run / "round_1" / "filter_scores")
    scores = [row["scorer:micro_judge:judge"] for name in store.names() for row in store.read(name)]
    assert scores and min(scores) > 0 and max(scores) < 1


def test_what_is_no_imported_model_and_what_is_too_long_is_named(imported, tmp_path):
    with pytest.raises(LmsiError, match="name a folder that `lmsi import-hf` has made"):
        Verifier(tmp_path)(QUESTION, _path(0, "7"))
    short = dataclasses.replace(SHAPE, sequence_length=16)
    with pytest.raises(LmsiError, match="reads 16 tokens at most.*give it a longer `shape`"):
        Verifier(imported, shape=short)(QUESTION, _path(0, "7"))
