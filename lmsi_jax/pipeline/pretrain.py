"""Pre-training the embedded base model: documents -> tokenizer -> checkpoint (`lmsi pretrain`).

Everything is made from the tasks' generators; the recipe is gin_configs/runs/pretrain.gin.
"""

import contextlib
import functools
import io
import itertools
from collections.abc import Iterator

from lmsi_jax.config import Pretraining, Run
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.sharding import make_training_mesh
from lmsi_jax.models.tokenizers import SentencePiece
from lmsi_jax.models.transformer import fresh_params
from lmsi_jax.pipeline.context import Context, settings_record
from lmsi_jax.prompts import SEPARATOR
from lmsi_jax.runtime.files import write_bytes
from lmsi_jax.training import checkpoints
from lmsi_jax.training.metrics import records
from lmsi_jax.training.packing import Row
from lmsi_jax.training.trainer import drop_unrecorded, train

Document = list[tuple[str, str]]
_FINAL = "params"
# One family's questions are ten times as long and varied as the others'; the tokenizer sees it
# more.
_VOCABULARY_SHARES = {"gsm_symbolic": 6.0}


def pretrain(context: Context) -> None:
    """Trains the tokenizer and the base model into `output_dir`, or goes on where it was.

    Raises:
      LmsiError: Run.pretraining is not set.
    """
    run = context.run
    if run.pretraining is None:
        raise LmsiError(
            "Run.pretraining is not set; bind it to @Pretraining() as pretrain.gin does"
        )
    config = {**settings_record(run.pretraining), **settings_record(run.model)}
    stage = context.stage(0, "pretrain", config, {})
    if stage.begin() == "done":
        return
    drop_unrecorded(stage.directory)
    path = stage.directory / "tokenizer.model"
    if not path.exists():
        write_bytes(path, train_tokenizer(run.pretraining, run.model.vocab_size))
    with context.training_together(run.pretraining.training, "pretrain", 0):
        train_base(context)
    context.write_digest(stage.directory, stage.directory / _FINAL)
    stage.finish([path, stage.directory / "digest.json", *records(stage.directory)])


def train_base(context: Context) -> None:
    """Trains the base model to its last checkpoint, in this process' part."""
    run, directory = context.run, context.folder(0, "pretrain")
    config = run.pretraining
    assert config is not None
    config.training.check_nothing_held_out("pre-training")
    params = train(
        run.model,
        config.training,
        functools.partial(fresh_params, run.model, config.seed),
        rows(run, SentencePiece(str(directory / "tokenizer.model"))),
        directory,
        name="pre-training",
    )
    final = checkpoints.Checkpoints(
        directory / _FINAL, together=make_training_mesh(config.training).is_multiprocess
    )
    with contextlib.closing(final):
        if final.latest is None:
            final.save(config.training.steps, params)  # without the optimiser's arrays


def stream(config: Pretraining, shares: dict[str, float], seed: int) -> Iterator[Document]:
    """Yields the recipe's documents."""
    from lmsi_jax.tasks import registry
    from lmsi_jax.tasks.documents import documents

    families = {name: registry.get(name) for name in shares}
    return documents(
        families, shares, seed=seed, hard=config.hard, most_questions=config.most_questions
    )


def train_tokenizer(config: Pretraining, vocab_size: int) -> bytes:
    """Trains a SentencePiece model on documents: digits apart, newlines kept, bytes as fallback.

    Raises:
      LmsiError: the documents have more characters, or fewer words, than the vocabulary wants.
    """
    import sentencepiece

    shares = {name: _VOCABULARY_SHARES.get(name, 1.0) for name, _ in config.shares}
    texts = itertools.islice(stream(config, shares, config.seed + 7), config.vocab_documents)
    lines = (line for doc in texts for q, a in doc for line in (q + a).split("\n") if line)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            split_digits=True,
            byte_fallback=True,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            # " 7" is one piece, so that a number costs one token per digit.
            user_defined_symbols=["\n", *(f"\u2581{digit}" for digit in range(10))],
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            character_coverage=1.0,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:  # how SentencePiece says that a setting does not fit the text
        reason = str(error).rpartition("] ")[2]
        raise LmsiError(
            f"no tokenizer of ModelConfig.vocab_size = {vocab_size} can be made of "
            f"{config.vocab_documents} documents (SentencePiece: {reason}); change "
            "ModelConfig.vocab_size or Pretraining.vocab_documents"
        ) from error
    return model.getvalue()


def rows(run: Run, tokenizer: SentencePiece) -> Iterator[Row]:
    """Yields documents as rows, cut after the last question that fits."""
    config = run.pretraining
    assert config is not None
    for document in stream(config, dict(config.shares), config.seed):
        tokens: list[int] = []
        weights: list[float] = []
        for question, answer in document:
            asked, answered = tokenizer.encode(question), tokenizer.encode(answer + SEPARATOR)
            if len(tokens) + len(asked) + len(answered) > config.training.sequence_length:
                break
            tokens += asked + answered
            weights += [config.question_weight] * len(asked) + [1.0] * len(answered)
        if tokens:
            yield Row(prefix=(), tokens=tokens, weights=weights)
