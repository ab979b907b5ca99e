"""A run as its stages see it: `Round` is what one round has, `Context` what all rounds share.

A stage of a round gets a `Round` and nothing else: settings with that round's values, its folders,
and what earlier stages wrote, each read when it is first asked for. Stages that another run has
finished with equal settings and inputs are copied, not computed again.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from etils import epath

from lmsi_jax.augmentation import PARAPHRASED, FewShot
from lmsi_jax.config import ModelConfig, Questions, Run
from lmsi_jax.config.run import scheduled_values
from lmsi_jax.errors import LmsiError
from lmsi_jax.interop.chat_prompts import chat_record, make_writer
from lmsi_jax.models.params import Params
from lmsi_jax.models.sharding import (
    ReplicaGroup,
    local_replica_group,
    make_decode_mesh,
    param_shardings,
)
from lmsi_jax.models.tokenizers import FileTokenizer, open_for_model
from lmsi_jax.models.transformer import fresh_fingerprint, fresh_params, parameter_shapes
from lmsi_jax.prompts import PromptWriter
from lmsi_jax.records import CustomRules, Exemplar, Question, Sample, Vote, check_unique
from lmsi_jax.rollout.engine import Engine
from lmsi_jax.runtime.files import TEMPORARY, embedded_path, new_folder, write_record
from lmsi_jax.runtime.processes import Processes
from lmsi_jax.runtime.progress import doing
from lmsi_jax.runtime.store import ShardStore, Stage, read_finished, read_identity, shard_names
from lmsi_jax.training import checkpoints
from lmsi_jax.voting import AnswerReader

if TYPE_CHECKING:
    from lmsi_jax.pipeline.track import RunTracking

IMPORTED = "Imported"
"""The entry of a sample stage's settings that says which samples of elsewhere it holds."""
_RECORD = "stage.json"
# Fields of ModelConfig that bound lengths, or say how the same numbers are computed.
_SILENT = frozenset({"max_length", "remat", "scan_layers", "query_block"})
# The commands of stages without one of their own.
_COMMAND = {"paraphrase": "sample", "filter_scores": "mix", "teacher_scores": "train"}


def reuse_stage(stage: Stage, output: epath.Path, runs: Sequence[str]) -> None:
    """Copies an equal finished stage of another run, unless this run has begun it.

    A stage is equal if it has the same place in the run's folder, so that round and noise are the
    same, and the same fingerprint: settings and, through its inputs', all that came before. The
    copy appears whole or not at all, and `Stage.begin` compares it with its checksums.

    Args:
      stage: of this run.
      output: this run's folder.
      runs: folders of other runs, local as this one's; the first that has the stage is copied.
    """
    if not runs or stage.directory.exists():
        return
    place = stage.directory.relative_to(output)
    for run in runs:
        finished = epath.Path(run) / place
        if _stage_fingerprint(finished) == stage.fingerprint:
            with new_folder(pathlib.Path(stage.directory)) as copy:
                unfinished = shutil.ignore_patterns(f".*{TEMPORARY}")
                shutil.copytree(finished, copy, dirs_exist_ok=True, ignore=unfinished)
            return


def _stage_fingerprint(directory: epath.Path) -> str:
    """Returns the fingerprint of a finished stage, "" if it is not finished."""
    record = directory / _RECORD
    return str(read_finished(directory)["fingerprint"]) if record.exists() else ""


def find_checkpoint(name: epath.PathLike) -> epath.Path:
    """Returns the `checkpoint_N` folder that a configuration names."""
    return checkpoints.find(embedded_path("") if name == "embedded" else name)


class NotReady(LmsiError):
    """A stage that was not asked for has not been run yet."""


_Value = TypeVar("_Value")


def _once(values: dict[Any, Any], name: Any, read: Callable[[], _Value]) -> _Value:
    """Returns the value of a name, read at the first call."""
    if name not in values:
        values[name] = read()
    return values[name]


class Context:
    """A run's folder, its questions, and the model's parts, each loaded when first needed.

    Args:
      run: the configuration; stages see it through a `Round` alone.
      stages: the stages that may run; others must be finished already.
    """

    def __init__(self, run: Run, stages: frozenset[str]):
        self._run = run
        self.stages = stages
        self.worked = False
        self.output = epath.Path(run.output_dir)
        self.processes = Processes()
        self.tracking: RunTracking | None = None
        """Of the leading process, while it runs stages."""
        self.scorer_scores: dict[tuple[str, str, int, str], float] = {}
        """Scores of the vote's scorer, which may be a large model and is asked once a sample."""
        self._rounds: dict[int, Round] = {}
        self._read: dict[Any, Any] = {}
        self._params: tuple[int, Params] | None = None
        self._checked: set[epath.Path] = set()

    def round(self, index: int) -> "Round":
        """Returns a round of the run; round 0 is the base model, before any round."""
        if index not in self._rounds:
            self._rounds[index] = Round(self, self._run, index)
        return self._rounds[index]

    @property
    def questions(self) -> Questions:
        """The configured questions; all rounds have the same.

        Raises:
          LmsiError: the configuration names none.
        """
        if self._run.questions is None:
            raise LmsiError("Run.questions is not set; bind it to @Questions() in the gin file")
        return self._run.questions

    @functools.cached_property
    def tokenizer_path(self) -> str:
        """The tokenizer's file or folder."""
        name = self._run.tokenizer
        return str(embedded_path("tokenizer.model") if name == "embedded" else name)

    @functools.cached_property
    def tokenizer(self) -> FileTokenizer:
        """The run's tokenizer; raises what `open_for_model` raises."""
        return open_for_model(self.tokenizer_path, self._run.model)

    @functools.cached_property
    def prompts(self) -> PromptWriter:
        """Asks the run's models, and writes what they learn.

        Raises:
          LmsiError: `Run.chat` asks for a chat template, and there is none or it does not do.
        """
        return make_writer(self._run.chat, self._run.mixing.end, self.tokenizer)

    @property
    def prompts_record(self) -> dict[str, Any]:
        """The settings that shape prompts, by class, for the identity of stages."""
        chat = self._run.chat
        return {} if chat is None else {"Chat": chat_record(chat, self.tokenizer_path)}

    @functools.cached_property
    def base_folder(self) -> epath.Path:
        """The base model's `checkpoint_N` folder."""
        return find_checkpoint(self._run.init_checkpoint)

    @functools.cached_property
    def base_fingerprint(self) -> str:
        """Fingerprint of the base model and its tokenizer."""
        return self.model_fingerprint(0)

    def model_fingerprint(self, round_index: int) -> str:
        """Returns the fingerprint of the model that a round ended with, and of its tokenizer.

        It covers the weights and all of `ModelConfig` that shapes what the model says: a checkpoint
        read with another `rope_theta` is another model.
        """
        vocabulary = self.tokenizer.fingerprint
        if not round_index and self._run.init_checkpoint == "fresh":
            weights = fresh_fingerprint(self._run.model, self._run.seed)
        else:
            with doing("reading the checkpoint"):
                digest = checkpoints.stored_digest(self._stored(round_index), self.shapes)
            weights = _decoder_fingerprint(digest, self._run.model)
        return f"{weights[:32]}{vocabulary[:32]}"

    def checkpoint(self, round_index: int) -> epath.Path | None:
        """Returns a round's model; None of fresh weights, and if it or the run is on a bucket."""
        if not round_index and self._run.init_checkpoint == "fresh":
            return None
        folder = self._stored(round_index)
        return None if "://" in f"{folder}{self.output}" else folder

    def _stored(self, round_index: int) -> epath.Path:
        """Returns the checkpoint of the model that a round ended with."""
        if not round_index:
            return self.base_folder
        compared = self._run.evaluation.checkpoints  # one for each "round"
        if compared:
            return find_checkpoint(compared[round_index])
        return find_checkpoint(self.round(round_index).folder("train"))

    @functools.cached_property
    def shapes(self) -> Any:
        """The parameter tree's shapes."""
        return parameter_shapes(self._run.model)

    def params(self, round_index: int) -> Params:
        """Loads the whole model that a round ended with, and keeps it for the next caller.

        Args:
          round_index: the round; 0 is the base.

        Raises:
          LmsiError: it is not there, of another shape, was altered, or has weights that are no
            numbers.
        """
        if not round_index and self._run.init_checkpoint == "fresh":
            return fresh_params(self._run.model, self._run.seed)
        if self._params is None or self._params[0] != round_index:
            folder = self._stored(round_index)
            with doing("loading the model"):
                params = checkpoints.load_params(folder, self.shapes)
                checkpoints.check_finite(folder, params)
                if self._has_digest(round_index, folder):
                    checkpoints.check_digest(folder, checkpoints.digest(params))
            self._params = (round_index, params)
        return self._params[1]

    def placed_params(self, round_index: int, shardings: Any, dtype: str = "float32") -> Params:
        """Reads the model that a round ended with straight onto devices, for the caller alone.

        Args:
          round_index: the round; 0 is the base.
          shardings: a tree of `jax.sharding.Sharding`.
          dtype: of the arrays.

        Raises:
          LmsiError: as `params`.
        """
        if not round_index and self._run.init_checkpoint == "fresh":
            return fresh_params(self._run.model, self._run.seed, shardings, dtype)
        folder = self._stored(round_index)
        if self._has_digest(round_index, folder):

            def check() -> None:
                if self.processes.index == 0 and folder not in self._checked:
                    checkpoints.check_digest(folder, checkpoints.stored_digest(folder, self.shapes))
                    self._checked.add(folder)

            self.processes.run_on_leader(sorted(checkpoints.holders(shardings)), check)
        like = parameter_shapes(self._run.model, dtype)
        params = checkpoints.load_params(folder, like, shardings)
        checkpoints.check_finite(folder, params)
        return params

    def _has_digest(self, round_index: int, folder: epath.Path) -> bool:
        """Returns True if a checkpoint must have a digest: this run trained it, or one is there."""
        ours = round_index and not self._run.evaluation.checkpoints
        return bool(ours) or (folder.parent / checkpoints.DIGEST).exists()

    def write_digest(self, directory: epath.Path, folder: epath.Path) -> None:
        """Writes into `directory` the digest of the newest checkpoint in `folder`."""
        digest = checkpoints.stored_digest(folder, self.shapes)
        write_record(directory / checkpoints.DIGEST, {"params_sha256": digest})

    @functools.cached_property
    def replica_group(self) -> ReplicaGroup:
        """The processes that this one samples with."""
        return _replica_group(self._run, self.processes.index)

    def engine(self, round_index: int) -> Engine:
        """Returns an engine over the model that a round ended with.

        On a mesh the model is read straight to its place, in the type that it is decoded in: no
        process and no device ever holds all of it.
        """
        run, layout = self._run, self._run.decoding
        decode_mesh = make_decode_mesh(layout)
        shardings = param_shardings(run.model, decode_mesh)
        with doing("loading the model for decoding"):
            params = self.placed_params(round_index, shardings, layout.dtype)
            return Engine(run.model, params, self.tokenizer, layout)

    def load_questions(self, split: str) -> dict[str, list[Question]]:
        """Reads the questions of a split by task, from the questions stage's shards.

        Raises:
          LmsiError: a shard is damaged, or two questions have one uid.
        """
        names = self.questions.train if split == "train" else self.questions.test
        by_task = {name: self._questions(split, name) for name in dict.fromkeys(names)}
        check_unique(question for rows in by_task.values() for question in rows)
        return by_task

    def _questions(self, split: str, task: str) -> list[Question]:
        store = ShardStore(self.output / "questions")

        def read() -> list[Question]:
            rules = self.rules(task)
            rows = [Question.from_json(row) for row in store.read(f"{split}-{task}")]
            return [dataclasses.replace(row, rules=rules) for row in rows] if rules else rows

        return _once(self._read, (split, task), read)

    def rules(self, task: str) -> CustomRules | None:
        """Returns the functions of a user's task; None for all other tasks."""
        from lmsi_jax.tasks import registry

        return _once(self._read, ("rules", task), lambda: registry.rules_of(self.questions, task))

    def exemplars(self, task: str) -> tuple[Exemplar, ...]:
        """Reads the exemplars that the run uses for a task."""
        store = ShardStore(self.output / "questions")

        def read() -> tuple[Exemplar, ...]:
            return tuple(Exemplar.from_json(row) for row in store.read(f"exemplars-{task}"))

        return _once(self._read, ("exemplars", task), read)

    def stage(
        self, directory: epath.Path, name: str, settings: Any, inputs: dict[str, str]
    ) -> Stage:
        """Returns the bookkeeping of a stage, copied if a run of `Run.reuse` has finished it."""
        stage = Stage(directory, name, settings, inputs)
        reuse_stage(stage, self.output, self._run.reuse)
        return stage

    def done(self, stage: Stage) -> bool:
        """Returns True if a stage is finished; begins it if not.

        Raises:
          NotReady: it is not finished, and not among the stages that were asked for.
          LmsiError: its folder holds the stage of another configuration.
        """
        if stage.name == "questions":  # every command draws them
            return stage.begin() == "done"
        if stage.name not in self.stages and not (stage.directory / _RECORD).exists():
            command = _COMMAND.get(stage.name, stage.name)
            raise NotReady(
                f"the stage {stage.name!r} in {stage.directory} is not finished; run `lmsi "
                f"{command}` with the same configuration first, or `lmsi run` for all"
            )
        self.worked |= stage.name in self.stages
        return stage.begin() == "done"


def _replica_group(run: Run, process: int) -> ReplicaGroup:
    """Returns the processes that a process samples with.

    Raises:
      LmsiError: `Decoding`'s mesh fits neither one process nor several, or the processes are
        numbered differently from their devices.
    """
    replica_group = local_replica_group(run.decoding.data, run.decoding.model)
    if replica_group.several and replica_group.process != process:
        raise LmsiError(
            f"process {process} has the devices of process {replica_group.process}; number the "
            "processes as their machines are, or leave that to --coordinator_address=auto"
        )
    return replica_group


def _decoder_fingerprint(digest: str, model: ModelConfig) -> str:
    """Returns the fingerprint of weights, and of the settings that shape what they say."""
    shape = {
        name: value for name, value in dataclasses.asdict(model).items() if name not in _SILENT
    }
    return hashlib.sha256(json.dumps([digest, shape], sort_keys=True).encode()).hexdigest()


Samples = dict[str, list[Sample]]
"""Samples by their question's uid, in index order."""
Voted = tuple[Question, list[Sample], Vote]


class Round:
    """One round of a run: its settings, its folders, and what its stages wrote.

    What is read is kept until `release`, so that a stage reads and hashes each shard once.

    Args:
      context: what the rounds share.
      run: the configuration.
      index: 1, 2, ...; 0 is the base model, before any round.

    Attributes:
      settings: the configuration with this round's values of `Run.schedule`. Those of other rounds,
        and the values that a schedule replaces, are out of reach of a stage.
      scheduled: the values that `Run.schedule` gives this round, by parameter.
      reader: reads the answers of this round's samples as its vote does, each text once.
    """

    def __init__(self, context: Context, run: Run, index: int):
        self.context = context
        self.index = index
        base = run.schedule and not index
        self.settings = dataclasses.replace(run, schedule=()) if base else run.in_round(index)
        self.scheduled = scheduled_values(run, index) if index else {}
        voting = self.settings.voting
        self.reader = AnswerReader(voting.conclusions, voting.rotate_options)
        self._read: dict[Any, Any] = {}

    def once(self, name: Any, read: Callable[[], _Value]) -> _Value:
        """Returns the value of a name; `read` is called once until `release`."""
        return _once(self._read, name, read)

    def release(self) -> None:
        """Drops all that was read of the stages' shards."""
        self._read.clear()

    def folder(self, stage: str) -> epath.Path:
        """Returns `output_dir/round_R/STAGE`."""
        return self.context.output / f"round_{self.index}" / stage

    def store(self, stage: str) -> ShardStore:
        """Returns the shards of a stage."""
        return ShardStore(self.folder(stage))

    def finished(self, stage: str) -> bool:
        """Returns True if a stage of this round is finished."""
        return (self.folder(stage) / _RECORD).exists()

    def record(self, stage: str) -> dict[str, Any]:
        """Reads the record of a finished stage: its settings, inputs, outputs and seconds."""
        return read_finished(self.folder(stage))

    def stage_fingerprint(self, stage: str) -> str:
        """Returns the fingerprint of a finished stage, "" if it is not finished."""
        return _stage_fingerprint(self.folder(stage))

    @property
    def start(self) -> int:
        """The round whose model this round's training starts from; 0 is the base."""
        return 0 if self.settings.start_from == "base" else self.index - 1

    @property
    def questions(self) -> dict[str, list[Question]]:
        """The questions that are sampled, by task: the real ones, the new ones, or both."""
        real, augmentation = self.context.load_questions("train"), self.settings.augmentation
        if not augmentation.questions:
            return real
        new = self.new_questions
        if augmentation.use == "instead":
            return new
        return {task: [*rows, *new[task]] for task, rows in real.items()}

    @property
    def new_questions(self) -> dict[str, list[Question]]:
        """The questions that the model wrote, by task; empty lists if none were asked for."""
        tasks = dict.fromkeys(self.context.questions.train)
        if not self.settings.augmentation.questions:
            return {task: [] for task in tasks}
        store = self.store("generate")

        def read() -> dict[str, list[Question]]:
            return {
                task: [
                    dataclasses.replace(Question.from_json(row), rules=self.context.rules(task))
                    for row in store.read(f"questions-{task}")
                ]
                for task in tasks
            }

        return self.once("new questions", read)

    def paraphrases(self, task: str) -> dict[str, Question]:
        """Reads the paraphrases of a task's questions, by the uid of the original; {} if none."""
        if self.settings.augmentation.paraphrase == "none":
            return {}

        def read() -> dict[str, Question]:
            rules = self.context.rules(task)
            rows = map(Question.from_json, self.store("paraphrase").read(f"paraphrases-{task}"))
            return {
                row.uid.removesuffix(PARAPHRASED): dataclasses.replace(row, rules=rules)
                for row in rows
            }

        return self.once(("paraphrases", task), read)

    def few_shots(self, task: str) -> tuple[FewShot, ...]:
        """Reads a task's generated prompts; () if the run uses the task's own exemplars."""
        if not self.settings.augmentation.prompts:
            return ()

        def read() -> tuple[FewShot, ...]:
            return tuple(
                FewShot(
                    uids=tuple(row["uids"]),
                    exemplars=tuple(Exemplar.from_json(one) for one in row["exemplars"]),
                )
                for row in self.store("prompts").read(f"prompts-{task}")
            )

        return self.once(("prompts", task), read)

    def samples(self, task: str) -> Samples:
        """Reads a task's samples."""
        store, prompts = self.store("sample"), len(self.few_shots(task))

        def read() -> Samples:
            if not prompts:
                drawn = read_samples(store, task)
                if not import_record(store.directory):
                    return drawn
                return {question.uid: [] for question in self.questions[task]} | drawn
            samples: Samples = {}
            for name in (
                prompt_job_name(task, number, stand_in)
                for number in range(prompts)
                for stand_in in (False, True)
            ):
                for uid, rows in read_samples(store, name).items():
                    samples.setdefault(uid, []).extend(rows)
            return {
                uid: sorted(rows, key=lambda row: row.sample_index) for uid, rows in samples.items()
            }

        return self.once(("samples", task), read)

    def all_samples(self) -> Samples:
        """Reads the samples of all tasks."""
        tasks = dict.fromkeys(self.context.questions.train)
        return {uid: rows for task in tasks for uid, rows in self.samples(task).items()}

    def votes(self) -> dict[str, list[Vote]]:
        """Reads the votes by task."""
        store = self.store("vote")

        def read() -> dict[str, list[Vote]]:
            return {
                name: [Vote.from_json(row) for row in store.read(name)] for name in store.names()
            }

        return self.once("votes", read)

    def voted(self) -> dict[str, list[Voted]]:
        """Returns what training may learn from, by task.

        New questions whose vote is below `Augmentation.min_confidence` are left out.
        """
        votes, new = self.votes(), self.new_questions
        least = self.settings.augmentation.min_confidence

        def voted(task: str, questions: list[Question]) -> Iterator[Voted]:
            if task not in votes:
                raise NotReady(
                    f"the votes of {task} in {self.folder('vote')} are not cast yet; run `lmsi "
                    "vote`, or `lmsi run` for all"
                )
            uids, samples = {row.uid for row in new[task]}, self.samples(task)
            for question, vote in zip(questions, votes[task], strict=True):
                if question.uid not in uids or vote.confidence >= least:
                    yield question, samples[question.uid], vote

        return {task: list(voted(task, rows)) for task, rows in self.questions.items()}

    def test_samples(self, task: str, prompt_style: str) -> Samples:
        """Reads the samples of a task's test questions; {} if they were not asked this way."""
        name = test_job_name(task, prompt_style)
        return self.once(("test", name), lambda: read_samples(self.store("eval"), name))

    def test_votes(self, task: str, prompt_style: str) -> dict[str, Vote]:
        """Reads the votes on a task's test questions by uid; {} if they were not asked this way."""
        store, name = self.store("eval"), f"votes-{test_job_name(task, prompt_style)}"

        def read() -> dict[str, Vote]:
            rows = store.read(name) if name in store.names() else []
            return {row["uid"]: Vote.from_json(row) for row in rows}

        return self.once(("test votes", name), read)


def import_record(directory: epath.Path) -> dict[str, Any]:
    """Returns the entry `IMPORTED` of a begun sample stage; {} if a model drew its samples."""
    config = (read_identity(directory) or {}).get("config", {})
    return {IMPORTED: config[IMPORTED]} if IMPORTED in config else {}


def prompt_job_name(task: str, prompt: int, stand_in: bool) -> str:
    """Returns the name of the job of a task's samples after one generated prompt."""
    return f"{task}-prompt{prompt:03d}{'-standing-in' if stand_in else ''}"


def test_job_name(task: str, prompt_style: str) -> str:
    """Returns the name of the job of a task's test questions in one prompt style."""
    return f"{task}-{prompt_style}"


def rotation_job_name(name: str, by: int, count: int) -> str:
    """Returns the name of the part of a job that asks questions of `count` options rotated."""
    return f"{name}-rotation{by:02d}of{count:02d}"


def read_samples(store: ShardStore, name: str) -> Samples:
    """Reads a job's shards, and those of its rotations; samples by question uid, in index order.

    There are none of a job without shards: {}.

    Raises:
      LmsiError: a shard is damaged, or missing beside others.
    """
    shape = re.compile(rf"({re.escape(name)}(?:-rotation\d\dof\d\d)?)-\d{{5}}-of-(\d{{5}})")
    jobs = {match.groups() for shard in store.names() if (match := shape.fullmatch(shard))}
    samples: Samples = {}
    for job, count in sorted(jobs):
        for number in shard_names(int(count)):
            for row in store.read(f"{job}-{number}"):
                samples.setdefault(row["uid"], []).append(Sample.from_json(row))
    if len({job for job, _ in jobs}) > 1:
        for rows in samples.values():
            rows.sort(key=lambda row: row.sample_index)
    return samples
