"""What the stages of one run share: its folders, its model, its tasks; loaded when first needed.

Stages that another run has finished already: an equal one is taken over, not computed again.
"""

import contextlib
import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from etils import epath

from lmsi_jax.config import Questions, Run, Training
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.params import Params
from lmsi_jax.models.sharding import (
    ReplicaGroup,
    local_replica_group,
    make_decode_mesh,
    make_training_mesh,
    param_shardings,
)
from lmsi_jax.models.tokenizers import FileTokenizer, open_for_model
from lmsi_jax.models.transformer import fresh_fingerprint, fresh_params, parameter_shapes
from lmsi_jax.records import Question
from lmsi_jax.rollout.engine import Engine
from lmsi_jax.runtime.files import TEMPORARY, embedded_path, new_folder, read_json, write_json
from lmsi_jax.runtime.processes import Processes
from lmsi_jax.runtime.store import ShardStore, Stage
from lmsi_jax.training import checkpoints


def reuse_stage(stage: Stage, output: epath.Path, runs: Sequence[str]) -> None:
    """Copies an equal finished stage of another run, unless this run has begun it.

    Equal is what lies at the same place of the run's folder, so that round and noise are the same,
    and has the same fingerprint: settings and, through its inputs', all that came before. The copy
    appears whole or not at all, and `Stage.begin` compares it with its checksums as it does with
    what was made here.

    Args:
      stage: of this run.
      output: this run's folder.
      runs: folders of other runs, local as this one's; the first that has the stage is taken.
    """
    if not runs or stage.directory.exists():
        return
    place = stage.directory.relative_to(output)
    for run in runs:
        found = epath.Path(run) / place
        if _fingerprint(found) == stage.fingerprint:
            with new_folder(pathlib.Path(stage.directory)) as made:
                unfinished = shutil.ignore_patterns(f".*{TEMPORARY}")
                shutil.copytree(found, made, dirs_exist_ok=True, ignore=unfinished)
            return


def _fingerprint(directory: epath.Path) -> str | None:
    """Of a finished stage; None where there is none."""
    record = directory / "stage.json"
    return read_json(record)["fingerprint"] if record.exists() else None


_DIGEST = "digest.json"
_COMMAND = {"path_scores": "mix", "score": "train"}  # stages without a command of their own


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
        self.scorer_scores: dict[
            tuple[str, int, str], float
        ] = {}  # what the voting's scorer has said
        self._params: tuple[int, Params] | None = None
        self._checked: set[epath.Path] = set()

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

    def run_in(self, round_index: int) -> Run:
        """Returns the configuration as a round sees it, see `Run.schedule`."""
        return self.run.in_round(round_index)

    @property
    def decoding_settings(self) -> dict[str, Any]:
        """What shapes paths and their shards, for a stage's record."""
        run = self.run
        own = {"seed": run.seed, "questions_per_shard": run.questions_per_shard}
        return {"Run": own, **settings_record(run.decoding)}

    @functools.cached_property
    def tokenizer_path(self) -> str:
        """The tokenizer's file or folder."""
        name = self.run.tokenizer
        return str(embedded_path("tokenizer.model") if name == "embedded" else name)

    @functools.cached_property
    def tokenizer(self) -> FileTokenizer:
        """The run's tokenizer.

        Raises:
          LmsiError: the file is none, or the model has another number of ids. Hugging Face's models
            often have more than their tokenizer, so that the table divides well.
        """
        return open_for_model(self.tokenizer_path, self.run.model)

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
        vocabulary = self.tokenizer.fingerprint
        if not round_index and self.run.init_checkpoint == "fresh":
            weights = fresh_fingerprint(self.run.model, self.run.seed)
        else:
            weights = checkpoints.stored_digest(self._stored(round_index), self.shapes)
        return f"{weights[:32]}{vocabulary[:32]}"

    def _stored(self, round_index: int) -> epath.Path:
        """The checkpoint of the model that a round ended with."""
        if not round_index:
            return self.base_folder
        given = self.run.evaluation.checkpoints  # compared ones stand for rounds
        return _checkpoint(given[round_index] if given else self.folder(round_index, "train"))

    @functools.cached_property
    def shapes(self) -> Any:
        """The parameter tree's shapes."""
        return parameter_shapes(self.run.model)

    def params(self, round_index: int, shardings: Any = None, dtype: str = "float32") -> Params:
        """Loads the model that a round ended with; round 0 is the base.

        Args:
          round_index: the round.
          shardings: None loads it as a whole, and keeps it for the next caller; a tree of
            `jax.sharding.Sharding` reads it to its place, for the caller alone.
          dtype: of what is read to its place.

        Raises:
          LmsiError: it is not there, of another shape, or was altered.
        """
        if not round_index and self.run.init_checkpoint == "fresh":
            return fresh_params(self.run.model, self.run.seed, shardings, dtype)
        folder = self._stored(round_index)
        ours = round_index and not self.run.evaluation.checkpoints
        recorded = bool(ours) or (folder.parent / _DIGEST).exists()
        if shardings is not None:
            if recorded:
                self._check_stored(folder, shardings)
            like = parameter_shapes(self.run.model, dtype)
            return checkpoints.load_params(folder, like, shardings)
        if self._params is None or self._params[0] != round_index:
            params = checkpoints.load_params(folder, self.shapes)
            if recorded:
                _check_digest(folder, checkpoints.digest(params))
            self._params = (round_index, params)
        return self._params[1]

    def _check_stored(self, folder: epath.Path, shardings: Any) -> None:
        """Process 0 looks, once, whether a checkpoint was altered; who reads it with it waits."""

        def check() -> tuple[str, ...]:
            if self.processes.index == 0 and folder not in self._checked:
                _check_digest(folder, checkpoints.stored_digest(folder, self.shapes))
                self._checked.add(folder)
            return ()

        self.processes.found(sorted(checkpoints.holders(shardings)), check)

    def write_digest(self, directory: epath.Path, folder: epath.Path) -> None:
        """Writes into `directory` the digest of the newest checkpoint in `folder`."""
        found = checkpoints.stored_digest(folder, self.shapes)
        write_json(directory / _DIGEST, {"params_sha256": found})

    def training_together(
        self, training: Training, stage: str, round_index: int
    ) -> contextlib.AbstractContextManager[None]:
        """Around the leader's part of a training: orders the others theirs, where it has any."""
        if not make_training_mesh(training).is_multiprocess:
            return contextlib.nullcontext()
        return self.processes.together(stage, round_index)

    @functools.cached_property
    def replica_group(self) -> ReplicaGroup:
        """The processes that this one samples with.

        Raises:
          LmsiError: `Decoding`'s mesh fits neither one process nor several, or the processes are
            numbered otherwise than their devices.
        """
        replica_group = local_replica_group(self.run.decoding.data, self.run.decoding.model)
        if replica_group.several and replica_group.process != self.processes.index:
            raise LmsiError(
                f"process {self.processes.index} has the devices of process "
                f"{replica_group.process}; number "
                "the processes as their machines are, or leave that to --coordinator_address=auto"
            )
        return replica_group

    def engine(self, round_index: int) -> Engine:
        """Returns an engine over the model that a round ended with.

        On a mesh the model is read straight to its place, in the type that it is decoded in: no
        process and no device ever holds all of it.
        """
        run, layout = self.run, self.run.decoding
        decode_mesh = make_decode_mesh(layout)
        shardings = param_shardings(run.model, decode_mesh)
        params = self.params(round_index, shardings, layout.dtype)
        return Engine(run.model, params, self.tokenizer, layout)

    def load_questions(self, split: str) -> dict[str, list[Question]]:
        """Reads the questions of a split by task, from the questions stage's shards."""
        names = self.questions.train if split == "train" else self.questions.test
        store = ShardStore(self.output / "questions")
        return {
            name: [Question.from_json(row) for row in store.read(f"{split}-{name}")]
            for name in dict.fromkeys(names)
        }

    def stage(self, round_index: int, name: str, config: Any, inputs: dict[str, str]) -> Stage:
        """Returns the bookkeeping of one stage of a round, taken over where `Run.reuse` has it."""
        return self._stage(self.folder(round_index, name), name, config, inputs)

    def questions_stage(self) -> Stage:
        """Returns the bookkeeping of the run's questions, likewise."""
        return self._stage(
            self.output / "questions", "questions", settings_record(self.questions), {}
        )

    def _stage(
        self, directory: epath.Path, name: str, config: Any, inputs: dict[str, str]
    ) -> Stage:
        stage = Stage(directory, name, config, inputs)
        reuse_stage(stage, self.output, self.run.reuse)
        return stage

    def done(self, stage: Stage) -> bool:
        """Whether a stage is finished; if not, it is begun.

        Raises:
          NotReady: it is not finished, and not among the stages that were asked for.
          LmsiError: its folder holds the stage of another configuration.
        """
        if stage.name not in self.stages and not (stage.directory / "stage.json").exists():
            command = _COMMAND.get(stage.name, stage.name)
            raise NotReady(
                f"the stage {stage.name!r} in {stage.directory} is not finished; run `lmsi "
                f"{command}` with the same configuration first, or `lmsi run` for all"
            )
        self.worked |= stage.name in self.stages
        return stage.begin() == "done"


def _check_digest(folder: epath.Path, found: str) -> None:
    """Compares a trained model with its digest: a checkpoint's format has no checksum of its own.

    Raises:
      LmsiError: the checkpoint was altered.
    """
    if read_json(folder.parent / _DIGEST)["params_sha256"] != found:
        raise LmsiError(
            f"the checkpoint {folder} was altered after training; restore it, or delete it and "
            "repeat the command that trained it"
        )


def settings_record(value: Any) -> dict[str, Any]:
    """Returns a configuration dataclass as {"Class": {field: value}} for a stage's record."""
    return {type(value).__name__: dataclasses.asdict(value)}
