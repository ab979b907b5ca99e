"""The loop over rounds and their steps. Each step is idempotent: what is finished is not repeated.

    questions -> [generate -> prompts -> sample -> vote -> filter_scores -> mix -> train -> eval] x
                 rounds, after an eval of the base model

`generate`, `prompts`, and `paraphrase` before `sample`, run if `Augmentation` asks for them,
`filter_scores` if filters in `Mixing.selection` do. With several processes, process 0 leads, and
the others share in writing new questions, sampling, scoring, evaluating and, if its devices are too
few for `Training`'s mesh, training.

A stage's identity is its settings and the fingerprints of its inputs, so a change is noticed
wherever it matters and nowhere else.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from lmsi_jax.config import Run
from lmsi_jax.config.run import comparison_run
from lmsi_jax.errors import LmsiError
from lmsi_jax.pipeline.augment import GenerateStep, ParaphraseStep, PromptsStep
from lmsi_jax.pipeline.context import Context, NotReady
from lmsi_jax.pipeline.distill import open_teacher, teacher_loader
from lmsi_jax.pipeline.evaluate import EvaluateStep, collapse_alarms
from lmsi_jax.pipeline.mix import MixStep
from lmsi_jax.pipeline.questions import draw_questions
from lmsi_jax.pipeline.sample import SampleStep
from lmsi_jax.pipeline.score import FilterScoresStep
from lmsi_jax.pipeline.step import Step
from lmsi_jax.pipeline.summarize import report, report_evaluation
from lmsi_jax.pipeline.track import RunTracking
from lmsi_jax.pipeline.train import TrainStep
from lmsi_jax.pipeline.vote import VoteStep
from lmsi_jax.runtime.files import exclusive, write_bytes
from lmsi_jax.runtime.progress import slow_work_reported
from lmsi_jax.runtime.store import name_altered_description, write_manifest

ROUND: tuple[Step, ...] = (
    GenerateStep(),
    PromptsStep(),
    ParaphraseStep(),
    SampleStep(),
    VoteStep(),
    FilterScoresStep(),
    MixStep(),
    TrainStep(),
)
"""The steps from one model to the next, in their order."""


def execute(
    run: Run,
    stages: tuple[str, ...],
    command: str,
    config_text: str,
    steps: Sequence[Step] = ROUND,
) -> None:
    """Runs the given stages of every round, as far as their inputs are finished.

    Args:
      run: the configuration.
      stages: of `parser.STAGES`; or ("pretrain",) or ("probe",); with "distill" the run is a
        student's.
      command: the command line, for the manifest and the report.
      config_text: the operative gin configuration.
      steps: from one model to the next.

    Raises:
      LmsiError: what the user can repair.
    """
    run = comparison_run(run, stages)
    context = Context(run, frozenset(stages))
    with context.processes.joined():
        if context.processes.index == 0:
            # A report may be asked for while the run goes on.
            alone = contextlib.nullcontext() if stages == ("report",) else exclusive(context.output)
            with slow_work_reported(), alone, _tracked(context, stages):
                _lead(run, context, stages, command, config_text, steps)
            return
        shared: dict[str, Step] = {step.name: step for step in (*steps, EvaluateStep())}
        shared["train"] = TrainStep(teacher_loader(context))
        for order in context.processes.orders():
            if order["stage"] == "probe":
                from lmsi_jax.pipeline.probe import ProbeStep

                shared["probe"] = ProbeStep()
            if order["stage"] == "pretrain":
                from lmsi_jax.pipeline.pretrain import PretrainStep

                shared["pretrain"] = PretrainStep()
            round = context.round(order["round"])
            shared[order["stage"]].share(round)
            round.release()


@contextlib.contextmanager
def _tracked(context: Context, stages: tuple[str, ...]) -> Iterator[None]:
    """Has the stages of the block measured for the run's trackers."""
    if stages == ("report",):
        yield
        return
    context.tracking = RunTracking(context)
    try:
        yield
    except BaseException:
        context.tracking.close(failed=True)
        raise
    context.tracking.close()


def _lead(
    run: Run,
    context: Context,
    stages: tuple[str, ...],
    command: str,
    config_text: str,
    steps: Sequence[Step],
) -> None:
    """Runs the stages, in the only process or in process 0."""

    def describe(hashes: dict[str, str]) -> None:
        _describe(run, context, command, config_text, hashes)

    if stages == ("pretrain",):
        from lmsi_jax.pipeline.pretrain import pretrain

        pretrain(context)
        describe({})
        return
    if stages == ("probe",):
        from lmsi_jax.pipeline.probe import probe

        hashes = probe(context)
        if not (context.output / "config.gin").exists():
            describe(hashes)
        return
    if "distill" in stages:
        _distill(context, describe)
        return
    if run.evaluation.checkpoints:
        _compare(run, context, describe)
    elif stages != ("report",):
        _run_rounds(run, context, describe, steps)
    if "report" in stages:
        report(context, command, config_text)
    elif stages == ("eval",):
        report_evaluation(context, command, config_text)


_Describe = Callable[[dict[str, str]], None]


def _compare(run: Run, context: Context, describe: _Describe) -> None:
    """Evaluates the given checkpoints on the same questions, with the same noise for all."""
    questions = draw_questions(context)
    count = len(run.evaluation.checkpoints)
    models = {f"checkpoint {i}": context.model_fingerprint(i) for i in range(count)}
    for index, model in enumerate(models.values()):
        _evaluate(context, index, model, questions)
    describe({"questions": questions, **models})


def _distill(context: Context, describe: _Describe) -> None:
    from lmsi_jax.pipeline.distill import RESULT, distill
    from lmsi_jax.report.terminal import open_console, print_distillation

    open_teacher(context)  # before any work: its run may be missing
    questions = draw_questions(context)
    describe({"questions": questions, "base": context.base_fingerprint})
    result = distill(context, questions)
    print_distillation(result, open_console())
    print(f"table: {context.output / RESULT}")


def _run_rounds(run: Run, context: Context, describe: _Describe, steps: Sequence[Step]) -> None:
    for stage, setting in (("generate", "questions"), ("prompts", "prompts")):
        if context.stages == {stage} and not getattr(run.augmentation, setting):
            raise LmsiError(
                f"Augmentation.{setting} = 0 asks for none; set it, as generated.gin does"
            )
    questions = draw_questions(context)
    if "eval" in context.stages and not context.questions.test:
        print("Questions.test is empty: accuracy is not measured", flush=True)
    base = context.base_fingerprint
    hashes = {"questions": questions, "base": base}
    if not (context.output / "config.gin").exists():
        describe(hashes)
    model = base
    try:
        _evaluate(context, 0, base, questions)
        for index in range(1, run.rounds + 1):
            model = _one_round(context, index, model, questions, steps)
            if index < run.rounds and (reasons := stop_reasons(context, index)):
                print(f"stopping after round {index}: {'; '.join(reasons)}", flush=True)
                break
    except NotReady as next_one:
        if not context.worked:
            raise
        print(f"done so far; {next_one}", flush=True)
    describe(hashes)


def _one_round(
    context: Context, index: int, model: str, questions: str, steps: Sequence[Step]
) -> str:
    """Runs one round; returns the new model's fingerprint."""
    round = context.round(index)
    fingerprints = {"model": model, "questions": questions, "base": context.base_fingerprint}
    for step in steps:
        if step.applies(round):
            fingerprints[step.name] = step.execute(round, fingerprints)
    _evaluate(context, index, fingerprints["train"], questions)
    return fingerprints["train"]


def _evaluate(context: Context, index: int, model: str, questions: str) -> None:
    """Evaluates a model if that was asked for: no other stage reads the scores."""
    if "eval" in context.stages and context.questions.test:
        EvaluateStep().execute(context.round(index), {"model": model, "questions": questions})


def stop_reasons(context: Context, index: int) -> list[str]:
    """Returns the alarms of `CollapseMonitor.stop` that a round raises; [] if there are none."""
    ending = context.round(index).settings.collapse_monitor.stop
    if not ending:
        return []
    return [words for name, words in collapse_alarms(context, index) if name in ending]


def _describe(
    run: Run, context: Context, command: str, config_text: str, hashes: dict[str, str]
) -> None:
    """Writes the operative configuration and the manifest."""
    name_altered_description(context.output, hashes)
    try:
        write_bytes(context.output / "config.gin", config_text.encode())
        seeds = {"Run.seed": run.seed}
        if run.questions is not None:
            seeds["Questions.seed"] = run.questions.seed
        write_manifest(
            context.output,
            command=command.split(),
            seeds=seeds,
            hashes=hashes,
            model=dataclasses.asdict(run.model),
        )
    except OSError as error:
        raise LmsiError(f"cannot write to {context.output}: {error}") from error
