"""A run with the model's own questions and prompts, on a micro model that can write both.

Behind a line feed it writes "Q: haThe answer is 7." with one of five digits, behind "A:" the same
without "Q:". So with real questions of that shape what comes out can be told beforehand.
"""

import json
import pathlib
import re
import shutil

import pytest
from micro_run import contents, killed, shard_rows
from own_run import TRIGGER, text, write_gin

from lmsi_jax import prompts
from lmsi_jax.augmentation import prompt_of
from lmsi_jax.cli.main import main
from lmsi_jax.config import gin_loader
from lmsi_jax.config.configurables import load_run
from lmsi_jax.pipeline import augment, sample
from lmsi_jax.pipeline.context import Context, read_samples
from lmsi_jax.records import Example, ExamplePair, Question, Sample, Vote
from lmsi_jax.runtime import files, store
from lmsi_jax.runtime import store as store_module
from lmsi_jax.runtime.processes import Processes

_SETTINGS = {
    "Questions.train": ("gsm8k",),
    "Questions.test": ("gsm8k",),
    "Questions.train_count": 5,
    "Questions.test_count": 2,
    "Questions.exemplars": (("gsm8k", "gsm8k_short"),),
    "Sampling.num_samples": 5,
    "Sampling.max_new_tokens": 16,
    "Evaluation.prompt_styles": ("cot",),
    "Training.steps": 2,
    "Augmentation.questions": 3,
    "Augmentation.shown": 2,
    "Augmentation.max_new_tokens": 18,
    "Augmentation.tries": 8.0,
    "Augmentation.min_confidence": 0.0,
    "Augmentation.prompts": 3,
    "Augmentation.shots": 2,
}
_DYING = """
import os, signal, sys
from lmsi_jax import prompts
from lmsi_jax.runtime import store
from lmsi_jax.cli.main import main
prompts.STEP_BY_STEP = {trigger!r}
write, calls = store.ShardStore.write, []
def deadly(self, name, rows):
    write(self, name, rows)
    calls.append(name)
    if len(calls) == {count}:
        os.kill(os.getpid(), signal.SIGKILL)
store.ShardStore.write = deadly
main(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def _trigger(monkeypatch):
    monkeypatch.setattr(prompts, "STEP_BY_STEP", TRIGGER)


@pytest.fixture(scope="module")
def gin_of_two(tmp_path_factory, gin_text, speaker):
    """The gin file of a run with both kinds of generation."""
    return write_gin(tmp_path_factory.mktemp("own"), gin_text, speaker, _SETTINGS)


def _words(command, gin, output, **changes):
    changed = {"Run.output_dir": str(output), **changes}
    written = {n: v if "@" in str(v) else repr(v) for n, v in changed.items()}
    return [command, gin, *(f"--gin.{name}={value}" for name, value in written.items())]


@pytest.fixture(scope="module")
def own(tmp_path_factory, gin_of_two):
    """A finished run of one round."""
    output = tmp_path_factory.mktemp("finished_own") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts, "STEP_BY_STEP", TRIGGER)
        assert main(_words("run", gin_of_two, output)) == 0
    return output


def _rows(folder, name, record):
    return [row for row in shard_rows(folder, record) if name in row.uid]


def _counts(folder):
    return json.loads((folder / "report.json").read_text())["rounds"][0]


def test_new_questions_are_those_that_are_neither_real_nor_of_the_test(own):
    counts = _counts(own)["generated"]["gsm8k"]
    store = store_module.ShardStore(own / "round_1" / "generate")
    new = [Question.from_json(row) for row in store.read("questions-gsm8k")]
    written = read_samples(store, "written-gsm8k")
    texts = [sample.text.strip() for rows in written.values() for sample in rows]
    # By hand: the digits that the model wrote, without those of the files.
    digits = [text[-2] for text in texts if re.fullmatch(r"Q: haThe answer is \d\.", text)]
    assert set(digits) == set("12347")
    wanted = [d for d in dict.fromkeys(digits) if d not in "15680" + "29"]
    assert [q.text for q in new] == [text(digit) for digit in wanted]
    assert all(q.gold is None and (q.task, q.kind) == ("gsm8k", "number") for q in new)
    parts = {"contaminated": 1, "surplus": 0, "new": 3}
    parts |= {"malformed": len(texts) - len(digits), "duplicates": len(digits) - 4}
    assert {name: counts[name] for name in parts} == parts
    assert counts["written"] == len(texts) == sum(parts.values())


def test_all_stages_take_real_and_new_questions(own):
    votes = shard_rows(own / "round_1" / "vote", Vote)
    assert len(votes) == 8 and sum("generated" in vote.uid for vote in votes) == 3
    assert all(vote.total == 5 and len(vote.keys) == 5 and vote.winner for vote in votes)
    examples = shard_rows(own / "round_1" / "mix", Example)
    assert {example.uid for example in examples} == {vote.uid for vote in votes}
    assert _counts(own)["questions"] == 8
    page = (own / "report.html").read_text()
    assert "The model’s own questions and prompts" in page


def test_samples_are_spread_over_prompts_that_do_not_show_their_question(own, gin_of_two):
    context = _context(gin_of_two, own)
    made = context.round(1).few_shots("gsm8k")
    assert [len(prompt.uids) for prompt in made] == [2, 2, 2]
    assert {one.reasoning for prompt in made for one in prompt.exemplars} == {"ha"}
    samples = context.round(1).samples("gsm8k")
    assert {uid: [path.sample_index for path in rows] for uid, rows in samples.items()} == {
        uid: [0, 1, 2, 3, 4] for uid in samples
    }
    assert len(samples) == 8
    prefixes = [prompts.few_shot_prefix(prompt.exemplars, True) for prompt in made]
    texts = {uid: prompt for prompt in made for uid in prompt.uids}
    for example in shard_rows(own / "round_1" / "mix", Example):
        if example.format == "few_shot_cot":
            kept = [p for p in samples[example.uid] if f" {p.text.strip()}" == example.targets]
            assert example.prefix in {
                prefixes[prompt_of(p.uid, p.sample_index, made)] for p in kept
            }
        if example.uid in texts and example.prefix:
            assert example.inputs.splitlines()[0] not in example.prefix.splitlines()


def test_a_question_without_a_sure_vote_gives_rows_only_where_it_is_real(
    own, gin_of_two, tmp_path, capsys
):
    copy = pathlib.Path(shutil.copytree(own, tmp_path / "copy"))
    for stage in ("mix", "train", "eval"):
        shutil.rmtree(copy / "round_1" / stage)
    assert main(_words("mix", gin_of_two, copy, **{"Augmentation.min_confidence": 1.0})) == 0
    votes = {vote.uid: vote for vote in shard_rows(copy / "round_1" / "vote", Vote)}
    trained = {example.uid for example in shard_rows(copy / "round_1" / "mix", Example)}
    wanted = {u for u, v in votes.items() if "generated" not in u or v.confidence == 1.0}
    assert trained == wanted != set(votes)


_FILTERS = {
    "Mixing.selection": "(@DistributionShift(), @ImportanceWeights())",
    "DistributionShift.validation": "confident",
    "DistributionShift.surest": 0.5,
    "ImportanceWeights.validation": "confident",
    "ImportanceWeights.surest": 0.5,
    "Augmentation.min_confidence": 0.5,
    "Mixing.formats": ("few_shot_cot",),
    "Training.sequence_length": 256,
}


def test_a_sample_is_scored_and_weighed_behind_its_own_prompt(own, gin_of_two, tmp_path):
    from reference_decoder import reference_logits
    from reference_losses import log_softmax

    copy = pathlib.Path(shutil.copytree(own, tmp_path / "copy"))
    for stage in ("mix", "train", "eval"):
        shutil.rmtree(copy / "round_1" / stage)
    assert main(_words("mix", gin_of_two, copy, **_FILTERS)) == 0
    context = _context(gin_of_two, copy)
    made, params = context.round(1).few_shots("gsm8k"), context.params(0)
    votes = {vote.uid: vote for vote in shard_rows(copy / "round_1" / "vote", Vote)}
    trained = {u for u, v in votes.items() if "generated" not in u or v.confidence >= 0.5}
    paths = {(p.uid, p.sample_index): p for p in shard_rows(copy / "round_1" / "sample", Sample)}
    questions = {q.uid: q for q in context.round(1).questions["gsm8k"]}
    scored = _shard(copy, "filter_scores", "loss-gsm8k-00000-of-00001")
    names = {(r["uid"], r["sample_index"]) for r in scored}
    alike = {
        (uid, paths[uid, i].text, prompt_of(uid, i, made))
        for uid in trained
        for i in votes[uid].kept
    }
    assert len(names) == len(alike) and {uid for uid, _ in names} == trained != set(votes)
    encode = context.tokenizer.encode
    for row in scored:
        path = paths[row["uid"], row["sample_index"]]
        exemplars = made[prompt_of(path.uid, path.sample_index, made)].exemplars
        prefix, inputs = prompts.build_prompt(questions[path.uid], exemplars, "cot")
        before, after = encode(prefix) + encode(inputs), encode(f" {path.text.strip()}")
        scores = reference_logits(context.round(1).settings.model, params, [*before, *after])
        places = range(len(before) - 1, len(before) + len(after) - 1)
        losses = [-log_softmax(scores[p])[t] for p, t in zip(places, after, strict=True)]
        assert row["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4, abs=2e-6)
    steps = _shard(copy, "mix", "funnel-gsm8k")
    assert steps[0]["rows"] == sum(len(votes[uid].kept) for uid in trained)
    weights = [row["weight"] for row in _shard(copy, "mix", "self_generated-gsm8k")]
    assert sum(weights) == pytest.approx(steps[-1]["weight"])


def _shard(run, stage, name):
    return store.ShardStore(run / "round_1" / stage).read(name)


def _context(gin, output):
    gin_loader.load(gin, gin_loader.parse([f"--gin.Run.output_dir={str(output)!r}"])[0])
    return Context(load_run(), frozenset({"generate", "prompts", "sample"}))


def test_shards_made_by_several_processes_are_those_of_one(own, gin_of_two, tmp_path, monkeypatch):
    shutil.copytree(own / "questions", tmp_path / "run" / "questions")
    context = _context(gin_of_two, tmp_path / "run")
    for step in (augment.GenerateStep(), augment.PromptsStep(), sample.SampleStep()):
        name = step.name
        for index in (1, 0):
            monkeypatch.setattr(Processes, "share", (index, 2))
            step.share(context.round(1))
        made = contents(tmp_path / "run" / "round_1" / name)
        whole = contents(own / "round_1" / name)
        shards = {file for file in whole if "-of-" in file}
        assert shards and {n: made[n] for n in shards} == {n: whole[n] for n in shards}
        for file in (own / "round_1" / name).iterdir():  # what the leader adds
            if not (tmp_path / "run" / "round_1" / name / file.name).exists():
                shutil.copy(file, tmp_path / "run" / "round_1" / name)


@pytest.mark.parametrize(
    "written",
    [
        "written-gsm8k-00001-of-00002.jsonl.gz",
        "questions-gsm8k.jsonl.gz",
        "zero-shot-gsm8k-00002-of-00004.jsonl.gz",
        "gsm8k-prompt001-00001-of-00003.jsonl.gz",
        "gsm8k-prompt002-standing-in-00000-of-00001.jsonl.gz",
    ],
)
def test_an_interrupt_before_any_shard_and_the_run_goes_on(
    own, gin_of_two, tmp_path, monkeypatch, written
):
    replace, hits = files._replace, []

    def interrupted(path, data):
        if path.name == written and not hits:
            hits.append(path)
            raise KeyboardInterrupt
        replace(path, data)

    monkeypatch.setattr(files, "_replace", interrupted)
    stages = [_words(name, gin_of_two, tmp_path) for name in ("generate", "prompts", "sample")]
    codes = [main(stage) for stage in [*stages, *stages]]
    assert hits and 130 in codes and codes[3:] == [0, 0, 0]
    for name in ("generate", "prompts", "sample"):
        assert contents(tmp_path / "round_1" / name) == contents(own / "round_1" / name)


@pytest.mark.slow
@pytest.mark.parametrize("count", [4, 6, 8, 11, 15])
def test_killed_after_any_shard_the_run_goes_on_to_the_same_bytes(own, gin_of_two, tmp_path, count):
    words = _words("run", gin_of_two, tmp_path / "run")
    killed(_DYING.format(trigger=TRIGGER, count=count), words)
    assert main(words) == 0
    assert contents(tmp_path / "run") == contents(own)


def test_instead_the_new_questions_alone_are_sampled(gin_of_two, tmp_path):
    changes = {"Augmentation.use": "instead", "Augmentation.prompts": 0}
    assert main(_words("generate", gin_of_two, tmp_path, **changes)) == 0
    assert main(_words("sample", gin_of_two, tmp_path, **changes)) == 0
    paths = shard_rows(tmp_path / "round_1" / "sample", Sample)
    assert len(paths) == 3 * 5 and all("generated" in path.uid for path in paths)


def test_pairs_are_of_real_questions_and_of_new_ones_with_a_sure_vote(gin_of_two, tmp_path):
    changes = {
        "Augmentation.prompts": 0,
        "Training.preference": "@Preference()",
        "Preference.threshold": 0.25,
    }
    for stage in ("generate", "sample", "vote"):
        assert main(_words(stage, gin_of_two, tmp_path, **changes)) == 0
    votes = shard_rows(tmp_path / "round_1" / "vote", Vote)
    counts = {v.uid: sorted(map(v.keys.count, set(v.keys) - {None})) for v in votes}
    able = {u for u, own in counts.items() if own[-1] > max(own[0], 0.25 * 5)}
    found = {}
    for least in (0.0, 0.6):
        changes["Augmentation.min_confidence"] = least
        assert main(_words("mix", gin_of_two, tmp_path, **changes)) == 0
        found[least] = {p.uid for p in shard_rows(tmp_path / "round_1" / "mix", ExamplePair)}
        sure = {u for u, own in counts.items() if "generated" not in u or own[-1] >= least * 5}
        assert found[least] == able & sure
        shutil.rmtree(tmp_path / "round_1" / "mix")
    assert found[0.6] < found[0.0] and any("generated" in uid for uid in found[0.0])


def test_stages_say_what_is_missing(gin_of_two, tmp_path, capsys):
    assert main(_words("sample", gin_of_two, tmp_path)) == 2
    assert "`lmsi generate` with the same configuration" in " ".join(
        capsys.readouterr().err.split()
    )
    none = {"Augmentation.questions": 0, "Augmentation.prompts": 0}
    for command, name in (("generate", "questions"), ("prompts", "prompts")):
        assert main(_words(command, gin_of_two, tmp_path / "none", **none)) == 2
        assert f"Augmentation.{name} = 0 asks for none" in capsys.readouterr().err


def test_a_model_that_writes_no_question_is_named(
    gin_of_two, speaking_checkpoint, tmp_path, capsys
):
    changes = {"Run.init_checkpoint": speaking_checkpoint, "Augmentation.use": "instead"}
    assert main(_words("generate", gin_of_two, tmp_path, **changes)) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "none of 24 texts is a new question of 'gsm8k' (24 malformed)" in error


def test_a_model_whose_zero_shot_answers_are_unusable_is_named(
    gin_of_two, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(prompts, "STEP_BY_STEP", "Let's think step by step.")
    changes = {"Augmentation.questions": 0}
    assert main(_words("prompts", gin_of_two, tmp_path, **changes)) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "0 of 5 zero-shot answers of 'gsm8k' can be exemplars, two prompts need 4" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Augmentation.prompts": 1}, "Augmentation.prompts = 1"),
        ({"Augmentation.use": "both"}, "'both'; choose from beside, instead"),
        ({"Augmentation.temperature": 0.0}, "use 1e-30 or more, so that questions differ"),
        ({"Augmentation.min_confidence": 1.5}, "use a share, 0 to 1"),
        ({"Augmentation.shots": 0}, "Augmentation.shots = 0; use 1 or more"),
        ({"Sampling.adaptive_consistency": 0.95}, "with Augmentation.prompts set it to None"),
        ({"Training.preference": "@Preference()"}, "a pair follow one prompt"),
        (
            {
                "Training.preference": "@Preference()",
                "Preference.form": "spin",
                "Augmentation.prompts": 0,
            },
            "set Augmentation.questions to 0",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(gin_of_two, tmp_path, capsys, changes, message):
    assert main(_words("run", gin_of_two, tmp_path, **changes)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
