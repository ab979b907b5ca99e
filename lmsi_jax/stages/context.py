"""What the stages of one run share: its folders, its model, its tasks; loaded when first needed."""

import dataclasses
import functools
import importlib.resources
from typing import Any

from etils import epath

from lmsi_jax.decoding.engine import Engine
from lmsi_jax.errors import LmsiError
from lmsi_jax.files import file_sha256, read_json
from lmsi_jax.models.decoder import Params, fresh_params, parameter_shapes
from lmsi_jax.models.tokenizer import SentencePiece
from lmsi_jax.processes import Processes
from lmsi_jax.records import Question
from lmsi_jax.run import Questions, Run
from lmsi_jax.store import ShardStore, Stage
from lmsi_jax.training import checkpoints


def embedded_path(name: str) -> epath.Path:
    """Returns a file or folder of the model that ships with the package."""
    path = epath.Path(str(importlib.resources.files("lmsi_jax") / "models" / "embedded" / name))
    if not path.exists():
        raise LmsiError(f"the embedded {name} is missing from this installation; install it again")
    return path


def _checkpoint(name: epath.PathLike) -> epath.Path:
    """The `checkpoint_N` folder that a configuration names."""
    return checkpoints.find(embedded_path("") if name == "embedded" else name)


class NotReady(LmsiError):
    """A stage that was not asked for has not been run yet."""


class Context:
    """One run's folders and lazily loaded parts.

    Args:
      run: the configuration.
      stages: the stages that may run; others must be finished already.
    """

    def __init__(self, run: Run, stages: frozenset[str]):
        self.run = run
        self.stages = stages
        self.worked = False
        self.output = epath.Path(run.output_dir)
        self.processes = Processes()
        self._params: tuple[int, Params] | None = None

    def folder(self, round_index: int, stage: str) -> epath.Path:
        """Returns `output_dir/round_R/STAGE`; round 0 is the base model."""
        return self.output / f"round_{round_index}" / stage

    @property
    def questions(self) -> Questions:
        """The configured questions.

        Raises:
          LmsiError: the configuration names none.
        """
        if self.run.questions is None:
            raise LmsiError("Run.questions is not set; bind it to @Questions() in the gin file")
        return self.run.questions

    @property
    def decoding_settings(self) -> dict[str, Any]:
        """What shapes paths and their shards, for a stage's record."""
        run = self.run
        own = {"seed": run.seed, "questions_per_shard": run.questions_per_shard}
        return {"Run": own, **named(run.decoding)}

    @functools.cached_property
    def tokenizer_path(self) -> str:
        """The SentencePiece model file."""
        name = self.run.tokenizer
        return str(embedded_path("tokenizer.model") if name == "embedded" else name)

    @functools.cached_property
    def tokenizer(self) -> SentencePiece:
        """The run's tokenizer.

        Raises:
          LmsiError: the file is none, or the model has another number of ids.
        """
        tokenizer = SentencePiece(self.tokenizer_path)
        ids, wanted = tokenizer.vocab_size, self.run.model.vocab_size
        if ids != wanted:
            raise LmsiError(
                f"the tokenizer {self.tokenizer_path} has {ids} ids, ModelConfig.vocab_size is "
                f"{wanted}; set Run.tokenizer to the one that the checkpoint was trained with"
            )
        return tokenizer

    @functools.cached_property
    def base_folder(self) -> epath.Path:
        """The base model's `checkpoint_N` folder."""
        return _checkpoint(self.run.init_checkpoint)

    @functools.cached_property
    def base_fingerprint(self) -> str:
        """What identifies the base model and its tokenizer: their files' hashes."""
        return self.fingerprint(0)

    def fingerprint(self, round_index: int) -> str:
        """Returns what identifies the model that a round ended with, and its tokenizer."""
        vocabulary = file_sha256(self.tokenizer.path)
        return f"{checkpoints.digest(self.params(round_index))[:32]}{vocabulary[:32]}"

    @functools.cached_property
    def shapes(self) -> Any:
        """The parameter tree's shapes."""
        return parameter_shapes(self.run.model)

    def params(self, round_index: int) -> Params:
        """Loads the model that a round ended with; round 0 is the base."""
        if not round_index and self.run.init_checkpoint == "fresh":
            return fresh_params(self.run.model, self.run.seed)
        if self._params is None or self._params[0] != round_index:
            given = self.run.evaluation.checkpoints  # compared ones stand for rounds
            trained = given[round_index] if given else self.folder(round_index, "train")
            folder = _checkpoint(trained) if round_index else self.base_folder
            params = checkpoints.load_params(folder, self.shapes)
            if (round_index and not given) or (folder.parent / "digest.json").exists():
                _check_digest(folder, params)
            self._params = (round_index, params)
        return self._params[1]

    def engine(self, round_index: int) -> Engine:
        """Returns an engine over the model that a round ended with."""
        params = self.params(round_index)
        return Engine(self.run.model, params, self.tokenizer, self.run.decoding)

    def load_questions(self, split: str) -> dict[str, list[Question]]:
        """Reads the questions of a split by task, from the questions stage's shards."""
        names = self.questions.train if split == "train" else self.questions.test
        store = ShardStore(self.output / "questions")
        return {
            name: [Question.from_json(row) for row in store.read(f"{split}-{name}")]
            for name in dict.fromkeys(names)
        }

    def stage(self, round_index: int, name: str, config: Any, inputs: dict[str, str]) -> Stage:
        """Returns the bookkeeping of one stage of a round."""
        return Stage(self.folder(round_index, name), name, config, inputs)

    def done(self, stage: Stage) -> bool:
        """Whether a stage is finished; if not, it is begun.

        Raises:
          NotReady: it is not finished, and not among the stages that were asked for.
          LmsiError: its folder holds the stage of another configuration.
        """
        if stage.name not in self.stages and not (stage.directory / "stage.json").exists():
            raise NotReady(
                f"the stage {stage.name!r} in {stage.directory} is not finished; run `lmsi "
                f"{stage.name}` with the same configuration first, or `lmsi run` for all"
            )
        self.worked |= stage.name in self.stages
        return stage.begin() == "done"


def _check_digest(folder: epath.Path, params: Params) -> None:
    """Compares a trained model with its digest: a checkpoint's format has no checksum of its own.

    Raises:
      LmsiError: the checkpoint was altered.
    """
    record = read_json(folder.parent / "digest.json")
    if record["params_sha256"] != checkpoints.digest(params):
        raise LmsiError(
            f"the checkpoint {folder} was altered after training; restore it, or delete it and "
            "repeat the command that trained it"
        )


def named(value: Any) -> dict[str, Any]:
    """Returns a configuration dataclass as {"Class": {field: value}} for a stage's record."""
    return {type(value).__name__: dataclasses.asdict(value)}
