"""Pre-training the embedded base model: documents -> tokenizer -> checkpoint (`lmsi pretrain`).

Everything is made from the tasks' generators; the recipe is gin_configs/runs/pretrain.gin.
"""

import contextlib
import functools
import io
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

from etils import epath

from lmsi_jax.config import ModelConfig, Pretraining, Run, Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.sharding import make_training_mesh, param_shardings
from lmsi_jax.models.tokenizers import SentencePiece
from lmsi_jax.models.transformer import fresh_params, parameter_shapes
from lmsi_jax.pipeline.context import Context, Round, find_checkpoint
from lmsi_jax.pipeline.step import Fields, Step
from lmsi_jax.prompts import SEPARATOR, STEP_BY_STEP
from lmsi_jax.records import Exemplar
from lmsi_jax.runtime.files import write_bytes
from lmsi_jax.runtime.store import Stage
from lmsi_jax.tasks.task import Task
from lmsi_jax.training import checkpoints
from lmsi_jax.training.losses import Teacher
from lmsi_jax.training.metrics import records
from lmsi_jax.training.packing import Row
from lmsi_jax.training.trainer import drop_unrecorded, train

Document = list[tuple[str, str]]
_FINAL, _TOKENIZER = "params", "tokenizer.model"
# One family's questions are ten times as long and varied as the others'; the tokenizer sees it
# more.
_VOCABULARY_SHARES = {"gsm_symbolic": 6.0}


class PretrainStep(Step):
    """Trains the tokenizer and the base model into `output_dir`, or continues."""

    name = "pretrain"
    settings = (Fields(part="pretraining", without=("teacher",)), Fields(part="model"))

    def inputs_of(self, round: Round) -> Iterable[str]:
        config = round.settings.pretraining
        return ("teacher",) if config is not None and config.teacher is not None else ()

    def run(self, round: Round, stage: Stage) -> None:
        settings = round.settings
        assert settings.pretraining is not None
        drop_unrecorded(stage.directory)
        path = stage.directory / _TOKENIZER
        if not path.exists():
            write_bytes(path, _tokenizer(round, settings.pretraining))
        with self.together(round):
            self.share(round)
        round.context.write_digest(stage.directory, stage.directory / _FINAL)

    def together(self, round: Round) -> contextlib.AbstractContextManager[None]:
        """Has the other processes train too, if the mesh needs their devices."""
        pretraining = round.settings.pretraining
        if pretraining is None or not make_training_mesh(pretraining.training).is_multiprocess:
            return contextlib.nullcontext()
        return super().together(round)

    def share(self, round: Round) -> None:
        settings, directory = round.settings, round.folder(self.name)
        config = settings.pretraining
        assert config is not None
        config.training.check_nothing_held_out("pre-training")
        tracking = round.context.tracking
        teacher = None
        if config.teacher is not None and config.teacher_model is not None:
            teacher = _load_teacher(config.teacher, config.teacher_model, config.training)
        params = train(
            settings.model,
            config.training,
            functools.partial(fresh_params, settings.model, config.seed),
            rows(settings, SentencePiece(str(directory / _TOKENIZER))),
            directory,
            name="pre-training",
            track=tracking.of_training(round, self.name) if tracking else None,
            teacher=teacher,
        )
        final = checkpoints.Checkpoints(
            directory / _FINAL, together=make_training_mesh(config.training).is_multiprocess
        )
        with contextlib.closing(final):
            if final.latest is None:
                final.save(config.training.steps, params)  # without the optimizer's arrays

    def outputs(self, stage: Stage) -> Iterable[epath.PathLike]:
        return [
            stage.directory / _TOKENIZER,
            stage.directory / "digest.json",
            *records(stage.directory),
        ]


def pretrain(context: Context) -> None:
    """Trains the tokenizer and the base model, unless that is done.

    Raises:
      LmsiError: Run.pretraining is not set.
    """
    if context.round(0).settings.pretraining is None:
        raise LmsiError(
            "Run.pretraining is not set; bind it to @Pretraining() as pretrain.gin does"
        )
    PretrainStep().execute(context.round(0), _teacher_fingerprint(context))


def _teacher_fingerprint(context: Context) -> dict[str, str]:
    """Returns the fingerprint of the teacher and its tokenizer, as an input; {} without one."""
    config = context.round(0).settings.pretraining
    if config is None or config.teacher is None or config.teacher_model is None:
        return {}
    shapes = parameter_shapes(config.teacher_model)
    weights = checkpoints.stored_digest(find_checkpoint(config.teacher), shapes)
    return {"teacher": f"{weights[:32]}{context.tokenizer.fingerprint[:32]}"}


def _load_teacher(folder: str, model: ModelConfig, training: Training) -> Teacher:
    placement = param_shardings(model, make_training_mesh(training))
    checkpoint, shapes = find_checkpoint(folder), parameter_shapes(model)
    return Teacher(config=model, params=checkpoints.load_params(checkpoint, shapes, placement))


def _tokenizer(round: Round, config: Pretraining) -> bytes:
    """Returns the SentencePiece model: the teacher's, or a new one.

    Raises:
      LmsiError: the teacher's is of another kind, or as `train_tokenizer`.
    """
    if config.teacher is None:
        return train_tokenizer(config, round.settings.model.vocab_size)
    path = epath.Path(round.context.tokenizer_path)
    if not isinstance(round.context.tokenizer, SentencePiece) or path.is_dir():
        raise LmsiError(
            f"pre-training with a teacher reads a SentencePiece model file, and {path} is none; "
            "name the teacher's in Run.tokenizer"
        )
    return path.read_bytes()


def stream(config: Pretraining, shares: dict[str, float], seed: int) -> Iterator[Document]:
    """Yields the recipe's documents."""
    from lmsi_jax.tasks import registry

    families = {name: registry.get(name) for name in shares}
    return documents(
        families, shares, seed=seed, hard=config.hard, most_questions=config.most_questions
    )


def train_tokenizer(config: Pretraining, vocab_size: int) -> bytes:
    """Trains a SentencePiece model on documents.

    Raises:
      LmsiError: the documents have more characters, or fewer words, than the vocabulary needs.
    """
    shares = {name: _VOCABULARY_SHARES.get(name, 1.0) for name, _ in config.shares}
    texts = itertools.islice(stream(config, shares, config.seed + 7), config.vocab_documents)
    lines = (line for doc in texts for q, a in doc for line in (q + a).split("\n") if line)
    try:
        # " 7" is one piece, so that a number costs one token per digit.
        return train_pieces(lines, vocab_size, ["\n", *(f"\u2581{digit}" for digit in range(10))])
    except RuntimeError as error:  # how SentencePiece says that a setting does not fit the text
        reason = str(error).rpartition("] ")[2]
        raise LmsiError(
            f"no tokenizer of ModelConfig.vocab_size = {vocab_size} can be made of "
            f"{config.vocab_documents} documents (SentencePiece: {reason}); change "
            "ModelConfig.vocab_size or Pretraining.vocab_documents"
        ) from error


def train_pieces(lines: Iterable[str], vocab_size: int, symbols: Sequence[str]) -> bytes:
    """Trains a SentencePiece model on lines: digits apart, spaces kept, bytes as fallback.

    Args:
      lines: texts without line feeds.
      vocab_size: number of pieces; the first three are padding, end and unknown.
      symbols: pieces whatever the lines have.

    Raises:
      RuntimeError: the lines have more characters, or fewer words, than the vocabulary needs.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        split_digits=True,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        user_defined_symbols=[*symbols],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
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


# --- documents ------------------------------------------------------------------------------------
# A document has questions of one family in one format throughout, so the model learns to continue
# in the format of its context: it reasons after chain-of-thought exemplars and after "Let's think
# step by step.", and gives bare answers after direct exemplars.

FORMAT_SHARES = {"cot": 0.55, "direct": 0.25, "step_by_step": 0.20}


def answer_text(row: Exemplar, style: str) -> str:
    """Returns the text after "A:" in a document of a style, with its leading space."""
    final = f" The answer is {row.answer}."
    if style == "direct":
        return final
    trigger = f" {STEP_BY_STEP}" if style == "step_by_step" else ""
    return f"{trigger} {row.reasoning}{final}" if row.reasoning else trigger + final


def documents(
    families: Mapping[str, Task],
    shares: Mapping[str, float],
    *,
    seed: int,
    hard: float,
    most_questions: int = 5,
) -> Iterator[list[tuple[str, str]]]:
    """Yields documents as lists of (question + newline + "A:", answer) pairs.

    Args:
      families: the families by name.
      shares: the relative frequency of each family (need not sum to one).
      seed: the stream is a pure function of the arguments.
      hard: share of questions at the hard level.
      most_questions: documents have 1 to this many questions, evenly.
    """
    rng = random.Random(f"documents/{seed}")
    streams = {
        (name, level): families[name].worked("pretrain", level, seed=1 + seed)
        for name in shares
        for level in ("easy", "hard")
    }
    names, weights = list(shares), list(shares.values())
    while True:
        name = rng.choices(names, weights)[0]
        style = rng.choices(list(FORMAT_SHARES), list(FORMAT_SHARES.values()))[0]
        rows = [
            next(streams[name, "hard" if rng.random() < hard else "easy"])
            for _ in range(rng.randint(1, most_questions))
        ]
        yield [(f"{row.question}\nA:", answer_text(row, style)) for row in rows]
