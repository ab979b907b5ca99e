"""A model as a scorer: how probable it holds that a path is right (a generative verifier).

    # my_rankers.py
    from lmsi_jax.pipeline.verifier import Verifier
    right = Verifier("models/qwen")

    lmsi run iwsi --gin.Mixing.selection='(@ExternalScore(),)'
    --gin.ExternalScore.scorer="'my_scorers:right'"

Any model that `lmsi import-hf` made will do; it is loaded when it is first asked, and stays. After
Zhang et al. 2024 (2408.15240), section 3: the score is the probability of "Yes" to the question
whether the solution is correct. It is in [0, 1], so it can also weigh votes.
"""

import functools
import hashlib
import json
import math
from collections.abc import Sequence

from etils import epath

from lmsi_jax.config import ModelConfig, Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.models import sharding
from lmsi_jax.models.tokenizers import Tokenizer, open_tokenizer
from lmsi_jax.models.transformer import parameter_shapes
from lmsi_jax.pipeline.score import tokenize_solution
from lmsi_jax.records import Question, Sample
from lmsi_jax.runtime.files import read_json
from lmsi_jax.training import checkpoints
from lmsi_jax.training.scoring import TargetScorer

MODEL = "model.json"
_ASKED = "{question}\n\nSolution: {solution}\n\nIs this solution correct (Yes or No)?\nA:"
_SHAPE = Training(microbatches=1, sequences_per_prefix=4, sequence_length=1024, max_prefix_length=0)


class Verifier:
    """A scorer, see `selection.rows.ScoringFunction`; call it, or ask it about many paths at once.

    Args:
      folder: of an imported model.
      prompt: what it is asked, with the places {question} and {solution}.
      answer: whose probability is the score.
      shape: rows, length and mesh of the batches in which it reads; of this process' devices.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        prompt: str = _ASKED,
        answer: str = "Yes",
        shape: Training = _SHAPE,
    ):
        self.folder = epath.Path(folder)
        self.prompt = prompt
        self.answer = answer
        self.shape = shape

    def __call__(self, question: Question, sample: Sample) -> float:
        """Returns the probability of the answer."""
        return self.many([(question, sample)])[0]

    def many(self, asked: Sequence[tuple[Question, Sample]]) -> list[float]:
        """Returns the probability of the answer for each path.

        Raises:
          LmsiError: the folder holds no imported model, or a path is too long for the batches.
        """
        scorer, tokenizer = self._loaded
        texts = [
            self.prompt.format(question=question.text, solution=sample.text.strip())
            for question, sample in asked
        ]
        rows = [tokenize_solution(tokenizer, "", text, self.answer) for text in texts]
        found = []
        for row, losses in zip(rows, scorer.losses(rows), strict=True):
            if losses is None:
                raise LmsiError(
                    f"the verifier of {self.folder} reads {self.shape.sequence_length} tokens at "
                    "most, and "
                    f"a path has {len(row.tokens)} with its question; give it a longer `shape`"
                )
            found.append(math.exp(-losses.sum()))
        return found

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies its scores: the model's and the tokenizer's bytes, prompt and answer."""
        config = self._config
        weights = checkpoints.stored_digest(checkpoints.find(self.folder), parameter_shapes(config))
        tokenizer = open_tokenizer(str(self.folder / "tokenizer"))
        own = (weights, tokenizer.fingerprint, self.prompt, self.answer, self.shape.sequence_length)
        return hashlib.sha256(json.dumps(own).encode()).hexdigest()

    @property
    def _config(self) -> ModelConfig:
        if not (self.folder / MODEL).exists():
            raise LmsiError(
                f"{self.folder} has no {MODEL}; name a folder that `lmsi import-hf` has made, and "
                "import again what an older version made"
            )
        return ModelConfig.from_json(read_json(self.folder / MODEL))

    @functools.cached_property
    def _loaded(self) -> tuple[TargetScorer, Tokenizer]:
        if sharding.make_training_mesh(self.shape).is_multiprocess:
            raise LmsiError(
                f"each process asks the verifier of {self.folder} by itself; give it a `shape` "
                "whose data and model its own devices suffice for"
            )
        config = self._config
        where = sharding.param_shardings(config, sharding.make_training_mesh(self.shape))
        params = checkpoints.load_params(
            checkpoints.find(self.folder), parameter_shapes(config), where
        )
        tokenizer = open_tokenizer(str(self.folder / "tokenizer"))
        return TargetScorer.of(config, params, self.shape), tokenizer
