"""Which settings make which stages stale: every field of every settings class, changed in turn."""

import copy
import dataclasses
import os
import pathlib

import pytest

from lmsi_jax.config import (
    Augmentation,
    Chat,
    Distillation,
    DistributionShift,
    ExternalScore,
    FileTask,
    Lora,
    Loss,
    Mixing,
    ModelConfig,
    Preference,
    Pretraining,
    Questions,
    Run,
    Sampling,
    SelfRating,
    Training,
    VoteShares,
    Voting,
)
from lmsi_jax.pipeline.context import Context, Round
from lmsi_jax.pipeline.evaluate import EvaluateStep
from lmsi_jax.pipeline.pretrain import PretrainStep
from lmsi_jax.pipeline.questions import QuestionsStep
from lmsi_jax.pipeline.rounds import ROUND
from lmsi_jax.pipeline.train import TeacherScoresStep
from lmsi_jax.training import checkpoints

_SAMPLE = "generate prompts paraphrase sample filter_scores eval0 eval1"  # whatever samples
_ASKED = f"{_SAMPLE} mix"  # whatever has prompts
_SCORED = "filter_scores teacher_scores train"
# Written by hand: the stages that a field makes stale where all of them run.
TABLE = {
    "Run": {
        **dict.fromkeys(("output_dir", "name", "rounds", "schedule", "reuse", "trackers"), ""),
        # Through the fingerprint of the model, which is an input of the stages.
        **dict.fromkeys(("init_checkpoint", "tokenizer"), ""),
        "seed": f"{_SAMPLE} train",
        "questions_per_shard": _SAMPLE,
        "start_from": "teacher_scores train",
    },
    "Chat": dict.fromkeys(
        ("exemplars", "system", "system_turn", "thinking", "template", "date"), _ASKED
    ),
    "Questions": {
        **dict.fromkeys(
            (
                *("train", "test", "level", "train_count", "test_count"),
                *("data_dir", "data_dirs", "exemplars", "contamination", "seed"),
            ),
            "questions",
        ),
        "tasks": "",  # one that no split names; tests/pipeline/test_custom_runs.py has those
    },
    "Augmentation": {
        **dict.fromkeys(
            (*("questions", "use", "shown", "opening", "continuations", "tries"),),
            "generate",
        ),
        **dict.fromkeys(("temperature", "max_new_tokens"), "generate paraphrase"),
        "paraphrase": "paraphrase vote",
        "paraphrase_tries": "paraphrase",
        "min_confidence": "filter_scores mix",
        "prompts": "prompts",
        "shots": "prompts",
    },
    "Sampling": {
        **dict.fromkeys(("num_samples", "temperature", "token_logprobs", "greedy"), "sample"),
        **dict.fromkeys(("adaptive_consistency", "adaptive_consistency_every"), "sample"),
        **dict.fromkeys(("top_k", "top_p", "min_p"), "sample eval0 eval1"),
        **dict.fromkeys(("max_new_tokens", "stop"), "prompts sample eval0 eval1"),
    },
    "Decoding": dict.fromkeys(
        (
            *("slots", "chunk", "page", "prefill_tokens", "prompt_cache_factor"),
            *("adaptive_batch", "pool_bytes", "dtype", "data", "model", "fsdp"),
        ),
        _SAMPLE,
    ),
    "Voting": {
        **dict.fromkeys(("weights", "temperature", "ties", "scorer"), "vote eval0 eval1"),
        **dict.fromkeys(("conclusions", "rotate_options"), "sample vote eval0 eval1"),
    },
    "Mixing": {
        **dict.fromkeys(("formats", "end", "merge_equal", "cap", "normalise"), "mix"),
        **dict.fromkeys(
            ("keep", "min_confidence", "human_examples", "selection"), "filter_scores mix"
        ),
    },
    "SelfRating": {"share": "mix"},
    "ExternalScore": {"share": "mix", "scorer": "filter_scores mix"},
    "DistributionShift": {"share": "mix", "surest": "mix", "validation": "filter_scores mix"},
    "Training": {
        **dict.fromkeys(
            (
                *("steps", "microbatches", "sequences_at_once", "log_every", "save_every"),
                *("keep", "keep_best", "best_metric", "best_mode", "deadline_seconds", "fsdp"),
            ),
            "train",
        ),
        **dict.fromkeys(
            (
                *("sequences_per_prefix", "sequence_length", "max_prefix_length"),
                *("data", "model"),
            ),
            _SCORED,
        ),
        **dict.fromkeys(
            ("compute_dtype", "human_rate", "task_rates", "validation_count"),
            "teacher_scores train",
        ),
    },
    "Optimizer": dict.fromkeys(
        (
            *("name", "learning_rate", "warmup_steps", "decay", "decay_share", "weight_decay"),
            *("max_grad_norm", "b2", "muon_learning_rate"),
        ),
        "train",
    ),
    "Loss": {
        **dict.fromkeys(
            (
                *("z_loss", "label_smoothing", "smoothing_constant", "distillation"),
                *("distillation_weight", "distillation_until", "temperature", "rest"),
                *("negatives", "least_probability"),
            ),
            "train",
        ),
        "top_k": "teacher_scores train",
    },
    "Lora": dict.fromkeys(("rank", "alpha", "targets", "seed", "peft"), "train"),
    "Evaluation": {
        **dict.fromkeys(("prompt_styles", "num_samples", "vote_count"), "eval0 eval1"),
        "temperature": "eval0",
        "temperature_after": "eval1",
        "probe_shares": "",  # of `lmsi probe` alone, see test_probe.py
        "checkpoints": "",  # through the fingerprint of the model
    },
    "CollapseMonitor": dict.fromkeys(
        (
            *("saturated", "no_diversity", "empty", "confidence_rise", "accuracy_fall"),
            *("calibration_gap", "pass_at_m_drop", "entropy", "distinct", "shorter", "longer"),
            *("unparsed", "easy", "kept", "least_questions", "stop"),
        ),
        "",
    ),
    "TensorBoard": {"folder": ""},
    "Pretraining": {
        **dict.fromkeys(
            (
                *("shares", "hard", "most_questions", "question_weight", "vocab_documents"),
                "seed",
            ),
            "pretrain",
        ),
        "teacher": "",  # through its fingerprint
    },
    # Of the teacher, whose examples' fingerprint is an input.
    "Distillation": dict.fromkeys(("teacher_dir", "round"), ""),
    # Of all stages but pre-training, through the fingerprint of the model.
    "ModelConfig": dict.fromkeys(
        (
            *("vocab_size", "num_layers", "embed_dim", "num_heads", "head_dim", "mlp_dim"),
            *("num_kv_heads", "max_length", "block", "post_norms", "norm_epsilon"),
            *("norm_plus_one", "qk_norm", "biases", "activation", "query_scalar", "rope_theta"),
            *("rope_scaling", "local_rope_theta", "windows", "attention_softcap"),
            *("pre_norms", "joint_qk_norm", "rotary_layers", "rotary_dim"),
            *("logits_divisor", "residual_multiplier", "embedding_multiplier"),
            *("logits_softcap", "tied_embeddings", "scale_embeddings", "remat", "scan_layers"),
            "query_block",
        ),
        "pretrain",
    ),
}
# The fields of a model that say how the same numbers are computed, or bound a length.
SILENT = {"max_length", "remat", "scan_layers", "query_block"}
VALUES = {
    "Run.start_from": "last",
    "Run.schedule": (("Training.steps", (10_000,)),),  # its values matter, and this one is equal
    "Voting.scorer": "operator:ne",
    "ExternalScore.scorer": "operator:lt",
    "Preference.form": {"scpo": "spin", "spin": "scpo"},
    "Mixing.selection": (SelfRating(),),
    "Questions.tasks": (FileTask(name="other", kind="number", train="none.jsonl"),),
    # Tasks that exist: what their prompts and readers are is part of later stages.
    "Questions.train": ("compare",),
    "Questions.test": ("travel",),
    "DistributionShift.validation": "confident",
    "Augmentation.prompts": 3,
    "Mixing.end": "end_token",
    "Chat.exemplars": "one_turn",
    "Chat.thinking": True,
    "Chat.date": "2025-02-03",
}

_TEMPLATE = pathlib.Path(__file__).parent / "chat_template.jinja"
VALUES["Chat.template"] = os.path.relpath(_TEMPLATE)  # the same file
_MODEL = ModelConfig(vocab_size=8, num_layers=1, embed_dim=4, num_heads=1, head_dim=2, mlp_dim=4)
_PLAIN = {
    "output_dir": "unused",
    "model": _MODEL,
    "questions": Questions(train=("purchases",), test=("legs",)),
}
BASES = {
    # Everything that can be on together.
    "full": Run(
        **_PLAIN,
        augmentation=Augmentation(questions=4),
        sampling=Sampling(adaptive_consistency=0.9),
        voting=Voting(weights="scorer", ties="scorer", scorer="operator:eq"),
        mixing=Mixing(
            min_confidence=0.2,
            cap=5,
            human_examples=3,
            selection=(
                SelfRating(share=0.7),
                DistributionShift(),
                ExternalScore(scorer="operator:eq"),
            ),
        ),
        training=Training(lora=Lora()),
        pretraining=Pretraining(
            training=Training(loss=Loss(distillation="model")),
            shares=(("legs", 1.0),),
            teacher="embedded",
            teacher_model=_MODEL,
        ),
        distillation=Distillation(teacher_dir="elsewhere"),
    ),
    "plain": Run(**_PLAIN, augmentation=Augmentation(prompts=2)),
    "chat": Run(
        **_PLAIN,
        chat=Chat(template=str(_TEMPLATE)),
        augmentation=Augmentation(questions=4),
        mixing=Mixing(selection=(SelfRating(share=0.7),)),
    ),
    "views": Run(**_PLAIN, augmentation=Augmentation(paraphrase="harmonic")),
    "scpo": Run(**_PLAIN, training=Training(preference=Preference())),
    "spin": Run(
        **_PLAIN,
        training=Training(preference=Preference(form="spin")),
        mixing=Mixing(human_examples=3),
    ),
}
# Where less runs, a field matters less; and one that turns a step on makes what follows stale.
PLAIN = {
    "Voting.conclusions": "vote eval0 eval1",  # nothing counts votes while it samples
    "Voting.ties": "",
    "Voting.scorer": "",
    "Voting.weights": "vote eval0 eval1",
    "Augmentation.min_confidence": "",  # there are no new questions
    "Augmentation.questions": "generate mix",
    "Mixing.selection": "filter_scores mix",
}
_PAIRS = {
    **PLAIN,
    "Loss.top_k": "train",
    "Preference.beta": "train",
    "Preference.likelihood": "train",
    "Preference.last_pairs": "train",  # and, of SPIN's second round, mix
}
OVERRIDES = {
    "full": {"Augmentation.prompts": "prompts"},
    "plain": PLAIN,
    "views": {**PLAIN, "Augmentation.paraphrase": "vote", "Augmentation.prompts": "prompts"},
    "chat": {
        **{name: PLAIN[name] for name in PLAIN if name.startswith("Voting.")},
        "Augmentation.prompts": "prompts",
        "Mixing.human_examples": "mix",
        "Mixing.selection": "mix",
    },
    "scpo": {
        **_PAIRS,
        "Augmentation.prompts": "prompts",
        "Preference.form": "sample mix train",
        "Preference.threshold": "mix train",
    },
    "spin": {
        **_PAIRS,
        "Augmentation.prompts": "prompts",
        "Mixing.human_examples": "sample mix",
        "Preference.form": "sample mix train",
        "Preference.threshold": "train",
    },
}


_ELSEWHERE = ("chat", "lora", "preference", "pretraining", "distillation")


def _other(name, value):
    """Returns another value of a field; it need not make sense."""
    if name in VALUES:
        return VALUES[name][value] if isinstance(VALUES[name], dict) else VALUES[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return 0.125
    if isinstance(value, tuple):
        return (*value, "other")
    return {int: lambda: value + 1, str: lambda: f"{value}x"}.get(type(value), lambda: 1)()


def _fields(value, path=()):
    """Yields (path, class, field) of all that a person sets within a configuration."""
    for field in dataclasses.fields(value):
        inner, name = getattr(value, field.name), type(value).__name__
        if dataclasses.is_dataclass(inner):
            yield from _fields(inner, (*path, field.name))
        elif isinstance(inner, tuple) and any(map(dataclasses.is_dataclass, inner)):
            yield path, name, field.name
            for place, one in enumerate(inner):
                yield from _fields(one, (*path, field.name, place))
        elif inner is None and field.name in _ELSEWHERE:
            pass  # another base has it
        else:
            yield path, name, field.name


def _changed(value, path, name, other):
    """Returns a copy in which one field was set, past all checks."""
    if isinstance(value, tuple):
        place, *rest = path
        changed = _changed(value[place], rest, name, other)
        return (*value[:place], changed, *value[place + 1 :])
    value = copy.copy(value)
    if not path:
        object.__setattr__(value, name, other)
    else:
        part, *rest = path
        object.__setattr__(value, part, _changed(getattr(value, part), rest, name, other))
    return value


def _identities(run):
    """Returns the identity of each stage that the configuration has, without its inputs."""
    context = Context(run, frozenset())
    first, second = context.round(0), context.round(1)
    steps = [(step.name, step, second) for step in (*ROUND, TeacherScoresStep(None, None))]
    steps += [("questions", QuestionsStep(), first), ("eval1", EvaluateStep(), second)]
    steps += [("eval0", EvaluateStep(), first)]
    if run.pretraining is not None:
        steps.append(("pretrain", PretrainStep(), first))
    return {name: step.identity(round) for name, step, round in steps if step.applies(round)}


@pytest.mark.parametrize("base", BASES)
def test_a_field_makes_exactly_its_stages_stale(base):
    run, table = BASES[base], OVERRIDES[base]
    before = _identities(run)
    wrong = {}
    for path, cls, field in _fields(run):
        name = f"{cls}.{field}"
        within = "pretraining" in path and cls != "Pretraining"
        if name not in table and field not in TABLE.get(cls, {}):
            wrong[name] = "is in no table: say which stages it makes stale"
            continue
        expected = "pretrain" if within else table.get(name, TABLE.get(cls, {}).get(field))
        value = run
        for part in path:
            value = value[part] if isinstance(value, tuple) else getattr(value, part)
        after = _identities(_changed(run, path, field, _other(name, getattr(value, field))))
        stale = {stage for stage in before | after if before.get(stage) != after.get(stage)}
        if stale != set(expected.split()) & {*before, *after}:
            wrong[name] = sorted(stale)
    assert wrong == {}


def test_the_table_names_only_fields_that_exist():
    known = {
        (cls, field)
        for run in BASES.values()
        for _, cls, field in (*_fields(run), *_fields(Run(**_PLAIN)))
    }
    listed = {(cls, field) for cls, fields in TABLE.items() for field in fields}
    assert listed - known == set()


def test_each_stage_reads_what_it_says():
    steps = {
        step.name: step.inputs for step in (*ROUND, EvaluateStep(), TeacherScoresStep(None, None))
    }
    assert steps == {
        "generate": ("model", "questions"),
        "prompts": ("model", "questions", "generate"),
        "paraphrase": ("model", "questions", "generate"),
        "sample": ("model", "questions", "generate", "prompts", "paraphrase"),
        "vote": ("sample", "paraphrase"),
        "filter_scores": ("vote", "model", "base"),
        "mix": ("vote", "filter_scores"),
        "teacher_scores": ("mix", "model", "teacher"),
        "train": ("mix", "model", "teacher"),
        "eval": ("model", "questions"),
    }


def test_weights_by_the_bases_vote_are_stale_once_that_is_cast_anew(monkeypatch):
    mixing = Mixing(keep="parsed", selection=(VoteShares(),))
    later = Context(Run(**_PLAIN, mixing=mixing), frozenset()).round(2)
    (step,) = [one for one in ROUND if one.name == "mix"]
    before = step.identity(later)
    monkeypatch.setattr(Round, "stage_fingerprint", lambda self, stage: f"{self.index} {stage}")
    assert step.identity(later) == {**before, "base_vote": "1 vote"} != before
    unweighted = dataclasses.replace(mixing, selection=(VoteShares(question_weight=False),))
    without = Context(Run(**_PLAIN, mixing=unweighted), frozenset()).round(2)
    assert "base_vote" not in step.identity(without)


def test_every_field_of_a_model_that_changes_what_it_says_is_in_its_fingerprint(
    monkeypatch, micro_config, tokenizer_path
):
    monkeypatch.setattr(checkpoints, "stored_digest", lambda folder, shapes: "same weights")
    monkeypatch.setattr(Context, "base_folder", "unused")
    run = Run(output_dir="unused", model=micro_config, tokenizer=tokenizer_path)
    unchanged = Context(run, frozenset())
    before, tokenizer = unchanged.model_fingerprint(0), unchanged.tokenizer
    silent = set()
    for field in dataclasses.fields(micro_config):
        other = _other(f"ModelConfig.{field.name}", getattr(micro_config, field.name))
        context = Context(_changed(run, ("model",), field.name, other), frozenset())
        vars(context).update(tokenizer=tokenizer, shapes=None)
        if context.model_fingerprint(0) == before:
            silent.add(field.name)
    assert silent == SILENT


def test_a_stage_sees_the_values_of_its_own_round_and_no_others():
    schedule = (("Mixing.min_confidence", (0.1, 0.5)), ("Sampling.temperature", (0.7, 1.2)))
    run = Run(**_PLAIN, mixing=Mixing(min_confidence=0.3), schedule=schedule)
    context = Context(run, frozenset())
    values = [context.round(index).settings.mixing.min_confidence for index in (0, 1, 2, 3)]
    assert values == [0.3, 0.1, 0.5, 0.5]
    assert context.round(2).scheduled == {
        "Mixing.min_confidence": 0.5,
        "Sampling.temperature": 1.2,
    }
    for index in (0, 1, 2):
        round = context.round(index)
        reachable = [round, context, *vars(round).values()]
        public = [vars(one).items() for one in (round, context)]
        reachable += [value for items in public for name, value in items if name[0] != "_"]
        runs = [value for value in reachable if isinstance(value, Run)]
        assert runs and all(value.schedule == () for value in runs)
        assert all(value is round.settings for value in runs)
