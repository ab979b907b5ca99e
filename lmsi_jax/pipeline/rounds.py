"""The loop over stages and rounds. Every stage is idempotent: what is finished is not done again.

    questions -> [generate -> prompts -> sample -> vote -> mix -> train -> eval] x rounds,
                 after an eval of the base model

`generate` and `prompts` are there where `Augmentation` asks for them. Between vote and mix the
voted paths are scored, where `Mixing.selection` has filters that want it. With several processes,
process 0 does all this, and the others help it to generate, to sample, to score paths, to evaluate
and, where its own devices are too few for `Training`'s mesh, to train.

A stage's identity is its configuration and the fingerprints of what it reads, so a change is
noticed wherever it matters and nowhere else.
"""

import dataclasses

from lmsi_jax.config.run import Run
from lmsi_jax.errors import LmsiError
from lmsi_jax.pipeline.augment import generate, generate_shards, make_prompts, prompt_shards
from lmsi_jax.pipeline.context import Context, NotReady
from lmsi_jax.pipeline.distill import open_teacher, teacher_loader
from lmsi_jax.pipeline.evaluate import comparison_run, evaluate, evaluate_shards
from lmsi_jax.pipeline.mix import mix
from lmsi_jax.pipeline.monitor import collapse_alarms
from lmsi_jax.pipeline.questions import draw_questions
from lmsi_jax.pipeline.sample import sample, sample_shards
from lmsi_jax.pipeline.score import path_scores, score_shards
from lmsi_jax.pipeline.summarize import report, report_evaluation
from lmsi_jax.pipeline.train import finetune, train_round
from lmsi_jax.pipeline.vote import vote
from lmsi_jax.runtime.files import write_bytes
from lmsi_jax.runtime.store import write_manifest


def _train_round(context: Context, index: int) -> None:
    train_round(context, index, teacher_loader(context))


def _train_base(context: Context, _: int) -> None:
    from lmsi_jax.pipeline.pretrain import train_base

    train_base(context)


# What the leader orders, and what carries it out.
_HELP = {
    "generate": generate_shards,
    "prompts": prompt_shards,
    "sample": sample_shards,
    "path_scores": score_shards,
    "eval": evaluate_shards,
    "train": _train_round,
    "pretrain": _train_base,
}


def execute(run: Run, stages: tuple[str, ...], command: str, config_text: str) -> None:
    """Runs the given stages of every round, as far as what they need is there.

    Args:
      run: the configuration.
      stages: of `main.STAGES`; or ("pretrain",); with "distill" the run is a student's.
      command: the command line, for the manifest and the report.
      config_text: the operative gin configuration.

    Raises:
      LmsiError: what the user can mend.
    """
    run = comparison_run(run, stages)
    context = Context(run, frozenset(stages))
    with context.processes.joined():
        if context.processes.index == 0:
            _lead(context, stages, command, config_text)
            return
        for order in context.processes.orders():
            _HELP[order["stage"]](context, order["round"])


def _lead(context: Context, stages: tuple[str, ...], command: str, config_text: str) -> None:
    """Runs the stages, in the only process or in process 0."""
    if stages == ("pretrain",):
        from lmsi_jax.pipeline.pretrain import pretrain

        pretrain(context)
        _describe(context, command, config_text, {})
        return
    if "distill" in stages:
        _distill(context, command, config_text)
        return
    if context.run.evaluation.checkpoints:
        _compare(context, command, config_text)
    elif stages != ("report",):
        _run_rounds(context, command, config_text)
    if "report" in stages:
        report(context, command, config_text)
    elif stages == ("eval",):
        report_evaluation(context, command, config_text)


def _compare(context: Context, command: str, config_text: str) -> None:
    """Evaluates the given checkpoints on the same questions, with the same noise for all."""
    questions = draw_questions(context)
    count = len(context.run.evaluation.checkpoints)
    models = {f"checkpoint {i}": context.fingerprint(i) for i in range(count)}
    for index, model in enumerate(models.values()):
        _evaluate(context, index, model, questions)
    _describe(context, command, config_text, {"questions": questions, **models})


def _distill(context: Context, command: str, config_text: str) -> None:
    from lmsi_jax.pipeline.distill import RESULT, distill
    from lmsi_jax.report.terminal import open_console, print_distillation

    open_teacher(context)  # before any work: its run may be missing
    questions = draw_questions(context)
    hashes = {"questions": questions, "base": context.base_fingerprint}
    _describe(context, command, config_text, hashes)
    result = distill(context, questions)
    print_distillation(result, open_console())
    print(f"table: {context.output / RESULT}")


def _run_rounds(context: Context, command: str, config_text: str) -> None:
    for stage, wanted in (("generate", "questions"), ("prompts", "prompts")):
        if context.stages == {stage} and not getattr(context.run.augmentation, wanted):
            raise LmsiError(
                f"Augmentation.{wanted} = 0 asks for none; set it, as generated.gin does"
            )
    questions = draw_questions(context)
    base = context.base_fingerprint
    hashes = {"questions": questions, "base": base}
    if not (context.output / "config.gin").exists():
        _describe(context, command, config_text, hashes)
    model = base
    try:
        _evaluate(context, 0, base, questions)
        for index in range(1, context.run.rounds + 1):
            model = _one_round(context, index, model, questions)
            if index < context.run.rounds and (reasons := stop_reasons(context, index)):
                print(f"stopping after round {index}: {'; '.join(reasons)}", flush=True)
                break
    except NotReady as next_one:
        if not context.worked:
            raise
        print(f"done so far; {next_one}", flush=True)
    _describe(context, command, config_text, hashes)


def _one_round(context: Context, index: int, model: str, questions: str) -> str:
    """Runs one round; returns the new model's fingerprint."""
    augmentation = context.run.augmentation
    inputs = {"model": model, "questions": questions}
    if augmentation.questions:
        inputs["generate"] = generate(context, index, dict(inputs))
    if augmentation.prompts:
        inputs["prompts"] = make_prompts(context, index, dict(inputs))
    sampled = sample(context, index, inputs)
    voted = vote(context, index, {"sample": sampled})
    scores = path_scores(context, index, {"vote": voted, "model": model})
    mixed = mix(context, index, {"vote": voted, **scores})
    trained = finetune(context, index, {"mix": mixed, "model": model})
    _evaluate(context, index, trained, questions)
    return trained


def _evaluate(context: Context, index: int, model: str, questions: str) -> None:
    """Evaluates where that was asked for: no other stage reads the scores."""
    if "eval" in context.stages:
        evaluate(context, index, {"model": model, "questions": questions})


def stop_reasons(context: Context, index: int) -> list[str]:
    """Returns the alarms of round `index` that `CollapseMonitor.stop` names; [] for none."""
    ending = context.run.collapse_monitor.stop
    return (
        [words for name, words in collapse_alarms(context, index) if name in ending]
        if ending
        else []
    )


def _describe(context: Context, command: str, config_text: str, hashes: dict[str, str]) -> None:
    """Writes the operative configuration and the manifest."""
    run = context.run
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
