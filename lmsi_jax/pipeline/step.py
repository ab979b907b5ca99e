"""A step of a round: what determines its output, what it reads, and how it runs.

Each step declares the settings that shape its output once, as `Fields`. With the fingerprints of
its inputs they are its stage's identity: a finished stage whose identity is the same is not done
again, and one whose identity differs is refused, so a field that is missing here would let old
output pass for new. `tests/pipeline/test_stale_stages.py` changes every field in turn.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from etils import epath

from lmsi_jax.config.value_checks import OBJECT, field_anchors, without_folder
from lmsi_jax.errors import LmsiError
from lmsi_jax.pipeline.context import Round
from lmsi_jax.runtime import user_code
from lmsi_jax.runtime.store import ShardStore, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fields:
    """Settings that shape a step's output.

    Attributes:
      part: the part of `Run` that has them: "sampling", "training.loss", or "" for `Run` itself.
      names: which fields; () for all of them, those that are added later too.
      without: fields that do not shape it.
      when: in which rounds they do.
    """

    part: str
    names: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    when: Callable[[Round], bool] = lambda _: True

    def read(self, round: Round) -> dict[str, dict[str, Any]]:
        """Returns {"Class": {field: value}}; {} if they do not matter in this round."""
        if not self.when(round):
            return {}
        value: Any = round.settings
        for name in filter(None, self.part.split(".")):
            value = getattr(value, name)
        fields = {field.name for field in dataclasses.fields(value)}
        if unknown := {*self.names, *self.without} - fields:
            raise ValueError(f"{type(value).__name__} has no fields {sorted(unknown)}")
        chosen = (set(self.names) or fields) - set(self.without)
        plain = _plain(value)
        return {type(value).__name__: {name: plain[name] for name in sorted(chosen)}}


def _plain(value: Any) -> Any:
    """Returns settings as JSON values: the fields of a class, without folders of users' code."""
    if isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
        return [settings_record(one) for one in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    anchors = field_anchors(type(value))
    record = {}
    for field in dataclasses.fields(value):
        plain = _plain(getattr(value, field.name))
        code = isinstance(plain, str) and anchors.get(field.name) == OBJECT
        record[field.name] = without_folder(plain) if code else plain
    return record


def settings_record(value: Any) -> dict[str, Any]:
    """Returns a configuration dataclass as {"Class": {field: value}} for a stage's record."""
    return {type(value).__name__: _plain(value)}


def custom_code(round: Round, *parts: str) -> dict[str, Any]:
    """Returns the digests of users' functions that a step calls, for its record; {} without any.

    Args:
      round: the round.
      parts: of `CustomRules.names`: "read", "equal", "prompt".
    """
    questions = round.context.questions
    digests = {}
    for task in dict.fromkeys((*questions.train, *questions.test)):
        rules = round.context.rules(task)
        for part, name in rules.names if rules is not None else ():
            if part in parts:
                digests[f"{task}.{part}"] = user_code.fingerprint(name, "Questions.tasks")
    return {"code": digests} if digests else {}


DECODING = (Fields(part="", names=("seed", "questions_per_shard")), Fields(part="decoding"))
"""Settings of every step that samples: they determine its noise, its shards and its numerics."""


ROTATIONS = Fields(
    part="voting",
    names=("rotate_options",),
    when=lambda round: round.settings.voting.rotate_options,
)
"""Settings of every step that asks questions for their vote, or reads the answers."""


_TRAINS = ("train", "pretrain", "distill", "filter_scores", "teacher_scores")
"""Steps that compute with `Training`'s layout; the others that compute decode."""


class Step:
    """Base of all steps. A step is a value without state; what it works on is its round.

    Attributes:
      name: of its stage, its folder, and the command that runs it.
      settings: fields that shape its output.
      inputs: the stages, "model", "base" and "questions" whose fingerprints shape it too.
      writes_prompts: its output depends on how questions are asked, `Run.chat`.
    """

    name: ClassVar[str]
    settings: ClassVar[tuple[Fields, ...]] = ()
    inputs: ClassVar[tuple[str, ...]] = ()
    writes_prompts: ClassVar[bool] = False

    def applies(self, round: Round) -> bool:
        """Returns True if the configuration asks for this step."""
        del round
        return True

    def derived(self, round: Round) -> dict[str, Any]:
        """Returns further settings that determine the output, beside those of `settings`."""
        del round
        return {}

    def inputs_of(self, round: Round) -> Iterable[str]:
        """Returns the inputs that matter in a round."""
        del round
        return self.inputs

    def identity(self, round: Round) -> dict[str, Any]:
        """Returns the settings that shape the output in a round, as JSON values by class."""
        record: dict[str, Any] = {}
        for fields in self.settings:
            for name, values in fields.read(round).items():
                record[name] = {**record.get(name, {}), **values}
        if self.writes_prompts:
            record |= round.context.prompts_record
        return record | self.derived(round)

    def execute(self, round: Round, fingerprints: Mapping[str, str]) -> str:
        """Runs the step unless it is finished, in the leading process.

        Args:
          round: the round.
          fingerprints: of all that is finished so far, by name.

        Returns:
          The stage's fingerprint.

        Raises:
          NotReady: it is not finished, and not among the stages that were asked for.
          LmsiError: its folder holds another configuration's output, or it fails.
        """
        inputs = {
            name: fingerprints[name] for name in self.inputs_of(round) if name in fingerprints
        }
        folder = self.folder(round)
        stage = round.context.stage(folder, self.name, self.identity(round), inputs)
        self.prepare(folder)
        done, tracking = round.context.done(stage), round.context.tracking
        if tracking is not None:
            tracking.begin(round, self.name, stage.fingerprint)
        if not done:
            try:
                self.run(round, stage)
            except (MemoryError, RuntimeError) as error:  # JAX's errors are RuntimeErrors
                if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
                    raise
                raise LmsiError(self._memory_advice(error, folder)) from error
            stage.finish(self.outputs(stage))
        if tracking is not None:
            tracking.finished(round, self.name)
        round.release()
        return stage.fingerprint

    def _memory_advice(self, error: Exception, folder: epath.Path) -> str:
        reason = (str(error).strip() or "the host's").splitlines()[0][:150]
        knobs = (
            "lower Training.sequences_per_prefix (raise Training.microbatches by as much), set "
            "Training.compute_dtype = 'bfloat16' or Lora, or spread the model with Training.model"
            if self.name in _TRAINS
            else "lower Decoding.slots or Decoding.pool_bytes, set Decoding.dtype = 'bfloat16', or "
            "spread the model with Decoding.model"
        )
        return f"{folder}: the memory does not suffice ({reason}); {knobs}"

    def folder(self, round: Round) -> epath.Path:
        """Returns the stage's folder."""
        return round.folder(self.name)

    def prepare(self, folder: epath.Path) -> None:
        """Looks at the stage's folder before its record is compared."""

    def run(self, round: Round, stage: Stage) -> None:
        """Does the work: the shared part in all processes, then the leader's."""
        with self.together(round):
            self.share(round)
        self.write(round, ShardStore(stage.directory))

    def together(self, round: Round) -> contextlib.AbstractContextManager[None]:
        """Has the other processes `share`, and waits for them."""
        if type(self).share is Step.share:
            return contextlib.nullcontext()
        return round.context.processes.together(self.name, round.index)

    def share(self, round: Round) -> None:
        """Does this process' part of the work."""

    def write(self, round: Round, store: ShardStore) -> None:
        """Writes what the leader makes of all parts."""

    def outputs(self, stage: Stage) -> Iterable[epath.PathLike] | None:
        """Returns the files whose checksums the record keeps; None for all."""
        del stage
        return None
