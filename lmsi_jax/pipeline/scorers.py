"""Scorers: functions of a question and a sample, which a configuration names as "module:function".

The module is beside the gin file, or installed (`runtime.user_code`).

A scorer with a method `many` is given several samples at once, which suits a model; one with an
attribute `fingerprint` states itself what its scores depend on.

`Verifier` makes a scorer of a model: it asks the model whether a sample is correct. `Superfilter`
is another: how much the question helps that model to write the sample.

    # my_rankers.py, in the current folder
    from lmsi_jax.pipeline.scorers import Verifier
    judge = Verifier("models/qwen")

    lmsi run iwsi --gin.Mixing.selection='(@ExternalScore(),)'
    --gin.ExternalScore.scorer="'my_rankers:judge'"
"""

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from etils import epath

from lmsi_jax.config import Chat, ModelConfig, Training
from lmsi_jax.config.value_checks import without_folder
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.chat_prompts import ChatPrompts, chat_record, open_writer
from lmsi_jax.interop.chat_template import ChatTemplate
from lmsi_jax.prompts import PLAIN, PromptWriter
from lmsi_jax.records import Question, Sample, Text
from lmsi_jax.runtime import user_code
from lmsi_jax.runtime.files import read_json
from lmsi_jax.selection.rows import ScoringFunction

if TYPE_CHECKING:
    from lmsi_jax.models.tokenizers import FileTokenizer, Tokenizer
    from lmsi_jax.training.scoring import TargetScorer


def load(name: str) -> ScoringFunction:
    """Returns a scorer.

    Raises:
      LmsiError: there is no such module or function, importing the module fails, or the function
        does not take a question and a sample.
    """
    return cast(ScoringFunction, user_code.load_function(name, _SETTING, 2))


def fingerprints(names: Iterable[str]) -> dict[str, str]:
    """Returns a digest of everything that each scorer's scores depend on, for a stage's record.

    It is the scorer's attribute `fingerprint`, or else one of its module's code, so that the scores
    of a changed scorer are computed again. Its name there has no folder, which may move.

    Raises:
      LmsiError: there is no such scorer.
    """
    return {without_folder(name): user_code.fingerprint(name, _SETTING) for name in names}


def apply_scorer(name: str, pairs: Sequence[tuple[Question, Sample]]) -> list[float]:
    """Returns a scorer's score of each sample.

    Raises:
      LmsiError: there is no such scorer, or it does not return one finite number per sample.
    """
    scorer = load(name)
    many = getattr(scorer, "many", None)
    scores = list(many(pairs) if many else [scorer(*pair) for pair in pairs])
    if len(scores) != len(pairs):
        raise LmsiError(
            f"the scorer {name!r} gives {len(scores)} numbers for {len(pairs)} samples; its method "
            "`many` must give one for each"
        )
    return [_number(name, score, sample) for score, (_, sample) in zip(scores, pairs, strict=True)]


def _number(name: str, score: Any, sample: Sample) -> float:
    try:
        number = float(score)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise LmsiError(
            f"the scorer {name!r} gives {score!r} to sample {sample.sample_index} of "
            f"{sample.uid!r}; it must give a finite number"
        )
    return number


_SETTING = "scorer"
_MODEL = "model.json"
_ANSWER = "\nA:"
_PROMPT = "{question}\n\nSolution: {solution}\n\nIs this solution correct (Yes or No)?" + _ANSWER
_LEAST_LOSS = 1e-6  # nats: a solution that the model is sure of says nothing about the question
_SHAPE = Training(microbatches=1, sequences_per_prefix=4, sequence_length=1024, max_prefix_length=0)


class _ImportedModel:
    """An imported model that scores texts; it is loaded at the first use and kept.

    Args:
      folder: a model imported by `lmsi import-hf`.
      shape: rows, length and mesh of the batches, on the devices of this process.
      chat: use of the model's chat template; "auto" uses it if the folder has one, without
        thoughts; None never does.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        shape: Training = _SHAPE,
        chat: Chat | None | Literal["auto"] = "auto",
    ):
        self.folder = epath.Path(folder)
        self.shape = shape
        self._chat = chat

    def losses(self, rows: Sequence[tuple[Text, str]]) -> list[np.ndarray]:
        """Returns the cross entropy of each token of texts after their prompts, nats.

        Args:
          rows: (prompt, text) pairs.

        Raises:
          LmsiError: the folder holds no imported model, or a row is too long for the batches.
        """
        from lmsi_jax.pipeline.score import tokenize_solution

        scorer, tokenizer, writer = self.loaded
        tokens = [tokenize_solution(tokenizer, "", *row, writer) for row in rows]
        losses = []
        for row, found in zip(tokens, scorer.losses(tokens), strict=True):
            if found is None:
                raise LmsiError(
                    f"the scorer of {self.folder} reads {self.shape.sequence_length} tokens at "
                    f"most, and a sample has {len(row.tokens)} with its question; give it a longer "
                    "`shape`"
                )
            losses.append(found)
        return losses

    def digest(self, *parts: object) -> str:
        """Returns the digest of the model's and the tokenizer's bytes, and of what else matters."""
        from lmsi_jax.models.tokenizers import open_tokenizer
        from lmsi_jax.models.transformer import parameter_shapes
        from lmsi_jax.training import checkpoints

        shapes = parameter_shapes(self._config)
        weights = checkpoints.stored_digest(checkpoints.find(self.folder), shapes)
        tokenizer = open_tokenizer(str(self.folder / "tokenizer"))
        parts = (weights, tokenizer.fingerprint, *parts, self.shape.sequence_length)
        writer = self._writer(tokenizer)
        if isinstance(writer, ChatPrompts):
            parts = (*parts, chat_record(writer.chat, tokenizer.path))
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def _config(self) -> ModelConfig:
        if not (self.folder / _MODEL).exists():
            raise LmsiError(
                f"{self.folder} has no {_MODEL}; name a folder that `lmsi import-hf` has made, and "
                "import again what an older version made"
            )
        return ModelConfig.from_json(read_json(self.folder / _MODEL))

    @functools.cached_property
    def loaded(self) -> "tuple[TargetScorer, Tokenizer, PromptWriter]":
        """The model, its tokenizer, and how it is asked."""
        from lmsi_jax.models import sharding
        from lmsi_jax.models.tokenizers import open_tokenizer
        from lmsi_jax.models.transformer import parameter_shapes
        from lmsi_jax.training import checkpoints
        from lmsi_jax.training.scoring import TargetScorer

        mesh = sharding.make_training_mesh(self.shape)
        if mesh.is_multiprocess:
            raise LmsiError(
                f"each process asks the scorer of {self.folder} by itself; give it a `shape` "
                "whose data and model its own devices suffice for"
            )
        config = self._config
        params = checkpoints.load_params(
            checkpoints.find(self.folder),
            parameter_shapes(config),
            sharding.param_shardings(config, mesh),
        )
        tokenizer = open_tokenizer(str(self.folder / "tokenizer"))
        return TargetScorer.of(config, params, self.shape), tokenizer, self._writer(tokenizer)

    def _writer(self, tokenizer: "FileTokenizer") -> PromptWriter:
        if self._chat == "auto":
            template = ChatTemplate.from_folder(self.folder / "tokenizer")
            if template is None:
                return PLAIN
            return open_writer(Chat(thinking=False if template.can_think else None), tokenizer)
        return PLAIN if self._chat is None else open_writer(self._chat, tokenizer)


class Verifier(_ImportedModel):
    """A generative verifier: scores a sample by the probability that a model calls it correct.

    The score is the probability of "Yes" to the question whether the solution is correct, as in
    Zhang et al. 2024 (arXiv 2408.15240), section 3. It is in [0, 1], so it can also weigh votes.
    Call a verifier, or pass many samples to `many`; the model is loaded at the first use and kept.

    Args:
      folder: a model imported by `lmsi import-hf`.
      prompt: the question to the model, with the placeholders {question} and {solution}. In a chat
        template "\\nA:" at its end is left out.
      answer: the answer whose probability is the score.
      shape: rows, length and mesh of the batches, on the devices of this process.
      chat: use of the model's chat template; "auto" uses it if the folder has one, without
        thoughts; None never does.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        prompt: str = _PROMPT,
        answer: str = "Yes",
        shape: Training = _SHAPE,
        chat: Chat | None | Literal["auto"] = "auto",
    ):
        super().__init__(folder, shape, chat)
        self.prompt = prompt
        self.answer = answer

    def __call__(self, question: Question, sample: Sample) -> float:
        """Returns the probability of the answer."""
        return self.many([(question, sample)])[0]

    def many(self, pairs: Sequence[tuple[Question, Sample]]) -> list[float]:
        """Returns the probability of the answer for each sample.

        Raises:
          LmsiError: the folder holds no imported model, or a sample is too long for the batches.
        """
        writer = self.loaded[2]
        texts = [
            self.prompt.format(question=question.text, solution=sample.text.strip())
            for question, sample in pairs
        ]
        prompts: list[Text] = [*texts]
        if writer is not PLAIN:
            prompts = [writer.request(text.removesuffix(_ANSWER)) for text in texts]
        losses = self.losses([(prompt, self.answer) for prompt in prompts])
        return [math.exp(-one.sum()) for one in losses]

    @functools.cached_property
    def fingerprint(self) -> str:
        """The digest of the model's and the tokenizer's bytes, the prompt and the answer."""
        return self.digest(self.prompt, self.answer)


class Superfilter(_ImportedModel):
    """Scores a sample by its IFD under another, smaller model (Li et al. 2024, arXiv 2402.00530).

    IFD is the mean loss of the solution's tokens after the question, divided by that of the
    solution alone, see `InstructionFollowing`; the paper's GPT-2 ranks rows nearly as the large
    model does. Above 1 the question does not help, and the score is minus the IFD, so that such
    rows come last: the filter `ExternalScore` keeps the highest scores.

    Args:
      folder, shape, chat: as of `Verifier`.
    """

    def __call__(self, question: Question, sample: Sample) -> float:
        """Returns the score of a sample."""
        return self.many([(question, sample)])[0]

    def many(self, pairs: Sequence[tuple[Question, Sample]]) -> list[float]:
        """Returns the score of each sample.

        Raises:
          LmsiError: as of `Verifier.many`.
        """
        writer = self.loaded[2]
        texts = [sample.text.strip() for _, sample in pairs]
        given = [writer.request(question.text) for question, _ in pairs]
        found = self.losses(
            [*zip(given, texts, strict=True), *((writer.no_question(), text) for text in texts)]
        )
        means = [float(one.mean()) for one in found]
        scores = []
        for asked, alone in zip(means[: len(texts)], means[len(texts) :], strict=True):
            ratio = asked / max(alone, _LEAST_LOSS)
            scores.append(ratio if ratio <= 1 else -ratio)
        return scores

    @functools.cached_property
    def fingerprint(self) -> str:
        """The digest of the model's and the tokenizer's bytes."""
        return self.digest("ifd")
