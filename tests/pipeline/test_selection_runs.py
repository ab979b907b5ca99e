"""`lmsi run` with filters: what they leave, what training gets of it, and resuming."""

import dataclasses
import itertools
import json
import math
import shutil
import sys

import numpy as np
import pytest
from micro_run import contents, shard_rows

from lmsi_jax.cli.main import main
from lmsi_jax.config import SelfRating, configurables, gin_loader
from lmsi_jax.models.tokenizers import SentencePiece
from lmsi_jax.pipeline import score, scorers
from lmsi_jax.pipeline.context import Context
from lmsi_jax.prompts import build_prompt, solution
from lmsi_jax.records import Example, Exemplar, Question, Sample, Vote
from lmsi_jax.runtime import files
from lmsi_jax.runtime.processes import Processes
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.selection.rows import Verdict, judge
from lmsi_jax.tasks import registry
from lmsi_jax.tools.study_results import weighted_rows

ALL = {
    "Questions.train": ("purchases",),
    "Questions.train_count": 6,
    "Mixing.selection": (
        "(@DistinctReasoning(), @AnswerEntropy(), @DistributionShift(), @ImportanceWeights())"
    ),
    "DistinctReasoning.form": "text",
    "AnswerEntropy.share": 0.9,
    "DistributionShift.share": 0.8,
    "DistributionShift.validation": "human",
    "ImportanceWeights.validation": "confident",
    "ImportanceWeights.surest": 0.5,
    "ImportanceWeights.cap": 1.02,
    "Mixing.human_examples": 2,
    "Mixing.formats": ("few_shot_cot", "zero_shot_direct"),
    "Sampling.num_samples": 8,
    "Training.sequence_length": 256,
    "Evaluation.prompt_styles": ("cot",),
}
EVERY_SCORE = {
    "Mixing.selection": "(@SelfRating(), @InstructionFollowing(), @Difficulty(), @ExternalScore())",
    "SelfRating.share": 0.9,
    "ExternalScore.scorer": "micro_scorer:shortest",
}


def _words(gin_file, command, output, changes):
    settings = {"Run.output_dir": str(output), **changes}
    return [
        command,
        gin_file,
        *(f"--gin.{n}={v if '@' in str(v) else repr(v)}" for n, v in settings.items()),
    ]


@pytest.fixture(scope="module")
def selected(tmp_path_factory, gin_file):
    """A finished run with IWSI's filter and weights, entropy and distinct reasoning."""
    output = tmp_path_factory.mktemp("selected") / "run"
    assert main(_words(gin_file, "run", output, ALL)) == 0
    return output


def _scores(run):
    store = ShardStore(run / "round_1" / "filter_scores")
    return {(r["uid"], r["sample_index"]): r for r in store.read("loss-purchases-00000-of-00001")}


def test_the_funnel_counts_what_each_filter_left(selected):
    steps = ShardStore(selected / "round_1" / "mix").read("funnel-purchases")
    assert [step["filter"] for step in steps] == [
        "DistinctReasoning",
        "AnswerEntropy",
        "DistributionShift",
        "ImportanceWeights",
    ]
    votes = shard_rows(selected / "round_1" / "vote", Vote)
    assert steps[0]["rows"] == sum(len(vote.kept) for vote in votes)
    for before, after in zip(steps, steps[1:], strict=False):
        assert before["kept"] == after["rows"]
    for step in steps:
        assert step["rows"] - step["kept"] == sum(step["dropped"].values())
        assert step["right"] == step["wrong"] == 0  # train questions have no gold answer
    assert steps[1]["kept"] == math.ceil(9 * steps[1]["rows"] / 10)
    assert steps[2]["kept"] == math.ceil(4 * steps[2]["rows"] / 5)
    assert steps[3]["kept"] == steps[3]["rows"] and not steps[3]["dropped"]


def test_a_stored_loss_is_that_of_the_bases_answer_tokens_alone(
    selected, micro_config, speaking_params, tokenizer_path
):
    from reference_decoder import reference_logits
    from reference_losses import log_softmax

    tokenizer = SentencePiece(tokenizer_path)
    questions = ShardStore(selected / "questions")
    exemplars = [Exemplar.from_json(row) for row in questions.read("exemplars-purchases")]
    asked = {q.uid: q for q in map(Question.from_json, questions.read("train-purchases"))}
    paths = {
        (p.uid, p.sample_index): p for p in shard_rows(selected / "round_1" / "sample", Sample)
    }
    name, row = next(iter(_scores(selected).items()))
    prefix, inputs = build_prompt(asked[name[0]], exemplars, "cot")
    before = tokenizer.encode(prefix) + tokenizer.encode(inputs)
    own = tokenizer.encode(" " + paths[name].text.strip())
    scores = reference_logits(micro_config, speaking_params, [*before, *own])
    places = range(len(before) - 1, len(before) + len(own) - 1)
    losses = [-log_softmax(scores[p])[t] for p, t in zip(places, own, strict=True)]
    assert row["loss"] == pytest.approx(float(np.mean(losses)), rel=1e-4, abs=2e-6)


def test_the_weights_of_the_rows_are_those_of_the_formula_and_reach_the_loss(selected):
    scores = _scores(selected)
    votes = {vote.uid: vote for vote in shard_rows(selected / "round_1" / "vote", Vote)}
    rows = [
        row
        for row in shard_rows_of(selected, "self_generated-purchases")
        if row.format == "few_shot_cot"
    ]
    paths = {
        (p.uid, p.sample_index): p for p in shard_rows(selected / "round_1" / "sample", Sample)
    }
    by_text = {(uid, paths[uid, i].text.strip()): s["loss"] for (uid, i), s in scores.items()}
    losses = {(row.uid, row.targets): by_text[row.uid, row.targets.strip()] for row in rows}
    uids = sorted({row.uid for row in rows}, key=lambda uid: (-votes[uid].confidence, uid))
    surest = set(uids[: math.ceil(len(uids) / 2)])
    mean = np.mean([loss for (uid, _), loss in losses.items() if uid in surest])
    for row in rows:
        expected = min(mean / losses[row.uid, row.targets], 1.02)
        assert row.weight == pytest.approx(expected, rel=1e-9)
    assert len({row.weight for row in rows}) > 1
    first = json.loads((selected / "round_1/train/metrics.jsonl").read_text().splitlines()[0])
    assert np.isfinite(first["loss"])


def shard_rows_of(run, name):
    store = ShardStore(run / "round_1" / "mix")
    return [Example.from_json(row) for row in store.read(name)]


def test_another_weight_gives_another_model(selected, gin_file, tmp_path):
    changed = {**ALL, "ImportanceWeights.cap": 0.5}
    assert main(_words(gin_file, "run", tmp_path / "run", changed)) == 0
    a, b = (run / "round_1" / "train" / "digest.json" for run in (selected, tmp_path / "run"))
    weights = {row.weight for row in shard_rows_of(tmp_path / "run", "self_generated-purchases")}
    assert a.read_bytes() != b.read_bytes() and len(weights) >= 1


def test_interrupted_while_scoring_it_goes_on_to_the_same_bytes(
    selected, gin_file, tmp_path, monkeypatch
):
    replace, hits = files._replace, []

    def interrupted(path, data):
        if path.name.startswith(("human-purchases.jsonl", "funnel")) and path.name not in hits:
            hits.append(path.name)
            raise KeyboardInterrupt
        replace(path, data)

    monkeypatch.setattr(files, "_replace", interrupted)
    run = _words(gin_file, "run", tmp_path / "run", ALL)
    codes = [main(run), main(run), main(run)]
    while codes[-1] == 130:
        codes.append(main(run))
    assert codes[:2] == [130, 130] and codes[-1] == 0 and len(hits) >= 2
    assert contents(tmp_path / "run") == contents(selected)


def test_the_report_shows_the_funnel(selected):
    (row,) = json.loads((selected / "report.json").read_text())["rounds"]
    assert [step["filter"] for step in row["funnel"]][:2] == ["Vote", "DistinctReasoning"]
    assert "filter_scores" in row["seconds"]
    assert "DistributionShift" in (selected / "report.html").read_text()


def test_the_report_counts_right_and_wrong_rows_which_no_stored_question_tells(selected):
    (row,) = json.loads((selected / "report.json").read_text())["rounds"]
    asked = list(
        map(Question.from_json, ShardStore(selected / "questions").read("train-purchases"))
    )
    assert all(question.gold is None for question in asked)
    task = registry.get("purchases")
    gold = {  # made by another route: the worked questions
        worked.question: worked.answer
        for worked in itertools.islice(task.worked("train", "easy", 0), len(asked))
    }
    votes = shard_rows(selected / "round_1" / "vote", Vote)
    text = {question.uid: question.text for question in asked}
    right = sum(len(v.kept) for v in votes if gold[text[v.uid]] == v.winner)
    first, *rest = row["funnel"]
    assert (first["right"], first["wrong"]) == (right, first["kept"] - right)
    assert first["rows"] == sum(vote.total for vote in votes)
    assert first["rows"] - first["kept"] == sum(first["dropped"].values())
    assert all(step["right"] + step["wrong"] == step["kept"] for step in rest)
    stored = ShardStore(selected / "round_1" / "mix").read("funnel-purchases")
    counts = ("filter", "rows", "kept", "questions", "weight", "dropped")
    assert [[s[c] for c in counts] for s in rest] == [[s[c] for c in counts] for s in stored]
    assert "looked up for this table alone" in (selected / "report.html").read_text()


def test_the_rows_of_the_figure_are_the_voted_ones_with_their_weights(selected, gin_file):
    words = _words(gin_file, "run", selected, ALL)[2:]
    gin_loader.load(gin_file, gin_loader.parse(words)[0])
    (rows,) = weighted_rows(configurables.load_run()).values()
    (report,) = json.loads((selected / "report.json").read_text())["rounds"]
    first = report["funnel"][0]
    assert len(rows) == first["kept"] and sum(row.right for row in rows) == first["right"]
    votes = {vote.uid: vote for vote in shard_rows(selected / "round_1" / "vote", Vote)}
    scores = _scores(selected)
    human = [
        row["loss"]
        for row in ShardStore(selected / "round_1/filter_scores").read("human-purchases")
    ]
    for uid, weight, _ in rows:
        ratios = [
            np.mean(human) / scores[uid, i]["loss"] for i in votes[uid].kept if (uid, i) in scores
        ]
        assert min(abs(weight - max(r, 1 / r)) for r in ratios) < 1e-9


def test_ratings_ratios_and_rankers_are_scored_once_each(gin_file, tmp_path, monkeypatch):
    (tmp_path / "micro_scorer.py").write_text(
        "def shortest(question, sample):\n    assert question.uid == sample.uid\n"
        "    return -len(sample.text)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("micro_scorer", None)
    changes = {**ALL, **EVERY_SCORE}
    run = tmp_path / "run"
    code = main(_words(gin_file, "mix", run, changes))
    assert code == 2  # nothing was sampled yet
    assert main(_words(gin_file, "sample", run, changes)) == 0
    assert main(_words(gin_file, "vote", run, changes)) == 0
    assert main(_words(gin_file, "mix", run, changes)) == 0
    names = ShardStore(run / "round_1" / "filter_scores").names()
    assert any(name.startswith("rating-purchases") for name in names)
    (loss,) = [name for name in names if name.startswith("loss-")]
    rows = ShardStore(run / "round_1" / "filter_scores").read(loss)
    assert all({"loss", "question_loss", "alone_loss"} <= set(row) for row in rows)
    scores = ShardStore(run / "round_1" / "filter_scores").read("rank-purchases-00000-of-00001")
    paths = {(p.uid, p.sample_index): p for p in shard_rows(run / "round_1" / "sample", Sample)}
    assert scores and all(
        row["scorer:micro_scorer:shortest"] == -len(paths[row["uid"], row["sample_index"]].text)
        for row in scores
    )
    store = ShardStore(run / "round_1" / "filter_scores")
    rated = [name for name in names if name.startswith("rating-purchases")]
    said = {row["uid"] for name in rated for row in store.read(name)}
    assert said == {f"{row['uid']}/{row['sample_index']}" for row in scores}
    _give_ratings(store, rated)
    gin_loader.load(gin_file, gin_loader.parse(_words(gin_file, "mix", run, changes)[2:])[0])
    round = Context(configurables.load_run(), frozenset()).round(1)
    rows, facts = score.read_scored_rows(round, "purchases", round.voted()["purchases"])
    ratings = [row.scores["rating"] for row in rows]
    assert len(set(ratings)) >= 3 and ratings == [_given(row.solution) for row in rows]
    verdicts = judge(SelfRating(share=0.5), rows, facts)
    kept = [r for r, one in zip(ratings, verdicts, strict=True) if one.weight]
    assert sorted(kept) == sorted(ratings)[-len(kept) :] and len(kept) == -(-len(rows) // 2)


def _given(solution):
    """A rating that tells one solution of the micro model from another: by its digit."""
    return {"1": 0, "2": 3, "3": 10, "4": 5, "7": 8}[solution.rstrip(".")[-1]]


def _give_ratings(store, names):
    """Puts other ratings into the model's mouth, by the sample that is rated."""
    run = store.directory.parent.parent
    paths = {f"{p.uid}/{p.sample_index}": p for p in shard_rows(run / "round_1" / "sample", Sample)}
    for name in names:
        rows = store.read(name)
        texts = [str(_given(paths[row["uid"]].text.strip())) for row in rows]
        store.write(name, [{**row, "text": t} for row, t in zip(rows, texts, strict=True)])


@dataclasses.dataclass(frozen=True)
class _Likely:
    """A filter of a user's: drops what has an improbable token."""

    least: float = -2.0
    needs = frozenset({"logprobs"})

    def judge(self, rows, facts):
        return [Verdict(float(min(row.logprobs) >= self.least), "improbable") for row in rows]


def test_a_filter_gets_the_log_probability_of_each_token(
    selected, gin_file, tmp_path, micro_config, speaking_params, tokenizer_path
):
    from reference_decoder import reference_logits
    from reference_losses import log_softmax

    output = tmp_path / "run"
    for stage in ("questions", "round_1/sample", "round_1/vote"):
        shutil.copytree(selected / stage, output / stage)
    gin_loader.load(gin_file, gin_loader.parse(_words(gin_file, "mix", output, ALL)[2:])[0])
    run = configurables.load_run()
    run = dataclasses.replace(run, mixing=dataclasses.replace(run.mixing, selection=(_Likely(),)))
    context = Context(run, frozenset({"filter_scores"}))
    round = context.round(1)
    score.FilterScoresStep().execute(round, {})
    rows, facts = score.read_scored_rows(round, "purchases", round.voted()["purchases"])
    tokenizer = SentencePiece(tokenizer_path)
    exemplars = context.exemplars("purchases")
    row = rows[0]
    prefix, inputs = build_prompt(row.question, exemplars, "cot")
    before = tokenizer.encode(prefix) + tokenizer.encode(inputs)
    own = tokenizer.encode(" " + row.solution)
    scores = reference_logits(micro_config, speaking_params, [*before, *own])
    wanted = [log_softmax(scores[len(before) - 1 + i])[token] for i, token in enumerate(own)]
    np.testing.assert_allclose(row.logprobs, wanted, rtol=1e-4, atol=2e-5)
    assert all(
        row.scores["loss"] == pytest.approx(-np.mean(row.logprobs), abs=1e-5) for row in rows
    )
    kept = [verdict.weight for verdict in _Likely().judge(rows, facts)]
    assert kept == [float(min(row.logprobs) >= -2.0) for row in rows]


RANKER = """
def asked(question, sample):
    return 1.0

class Many:
    def __call__(self, question, sample):
        raise AssertionError("it has a method for several")

    def many(self, asked):
        assert len(asked) > 1
        return [len(sample.text) + sample.sample_index / 100 for _, sample in asked]

def nothing(question, sample):
    return None

def negative(question, sample):
    return -2.5

class Few:
    def __call__(self, question, sample):
        return 1.0

    def many(self, asked):
        return [1.0]

many, few = Many(), Few()
"""


@pytest.fixture
def rankers_here(tmp_path, monkeypatch):
    """A module of scorers: micro_scorers."""
    (tmp_path / "micro_scorers.py").write_text(RANKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("micro_scorers", None)


def test_a_second_rounds_ranker_is_asked_and_one_for_many_samples_gets_a_shard_at_once(
    gin_file, tmp_path, rankers_here
):
    run = tmp_path / "run"
    changes = {
        "Run.rounds": 2,
        "Run.schedule": (("ExternalScore.scorer", ("micro_scorers:asked", "micro_scorers:many")),),
        "Mixing.selection": "(@ExternalScore(),)",
        "ExternalScore.scorer": "micro_scorers:asked",
        "ExternalScore.share": 0.5,
        "Training.steps": 1,
        "Evaluation.prompt_styles": ("cot",),
    }
    assert main(_words(gin_file, "run", run, changes)) == 0
    for index, name in ((1, "asked"), (2, "many")):
        store = ShardStore(run / f"round_{index}" / "filter_scores")
        rows = [row for shard in store.names() for row in store.read(shard)]
        assert rows and all(
            set(row) == {"uid", "sample_index", f"scorer:micro_scorers:{name}"} for row in rows
        )
    steps = shard_steps(run / "round_2" / "mix")
    assert steps and all(step["kept"] == math.ceil(step["rows"] / 2) for step in steps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Mixing.selection": "(@ExternalScore(),)",
          "ExternalScore.scorer": "micro_scorers:nothing"},
         "gives None to sample"),
        ({"Mixing.selection": "(@ExternalScore(),)", "ExternalScore.scorer": "micro_scorers:few"},
         "`many` must give one for each"),
        ({"Mixing.selection": "(@ExternalScore(),)", "ExternalScore.scorer": "micro_scorers:none"},
         "has no 'none'; it has"),
        ({"Voting.weights": "scorer", "Voting.scorer": "micro_scorers:negative"},
         "gives -2.5 to a sample of"),
        ({"Voting.weights": "scorer", "Voting.scorer": ":f"}, "Voting.scorer = ':f'; write"),
    ],
)  # fmt: skip
def test_a_ranker_that_does_not_do_is_named(
    gin_file, finished, tmp_path, capsys, rankers_here, changes, message
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for stage in ("vote", "mix", "train", "eval"):
        shutil.rmtree(run / "round_1" / stage)
    code = main(_words(gin_file, "vote", run, changes))
    code = code or main(_words(gin_file, "mix", run, changes))
    assert code == 2 and message in " ".join(capsys.readouterr().err.split())


def test_ranks_are_shared_by_processes_and_asked_for_once(
    selected, gin_file, tmp_path, rankers_here, monkeypatch
):
    monkeypatch.setattr(score, "ROWS", 2)
    output = tmp_path / "run"
    for stage in ("questions", "round_1/sample", "round_1/vote"):
        shutil.copytree(selected / stage, output / stage)
    changes = {
        **ALL,
        "Mixing.selection": "(@ExternalScore(),)",
        "ExternalScore.scorer": "micro_scorers:many",
    }
    gin_loader.load(gin_file, gin_loader.parse(_words(gin_file, "mix", output, changes)[2:])[0])
    context = Context(configurables.load_run(), frozenset({"filter_scores"}))
    asked, ask = [], scorers.apply_scorer

    def counted(name, some):
        asked.append([path.sample_index for _, path in some])
        return ask(name, some)

    monkeypatch.setattr(scorers, "apply_scorer", counted)
    store = ShardStore(output / "round_1" / "filter_scores")
    for index in (1, 0):
        monkeypatch.setattr(Processes, "share", (index, 2))
        score.FilterScoresStep().share(context.round(1))
    names = store.names()
    assert len(names) == len(asked) >= 3
    rows = [row for name in names for row in store.read(name)]
    assert len({(row["uid"], row["sample_index"]) for row in rows}) == len(rows)
    monkeypatch.setattr(Processes, "share", (0, 1))
    store.path(names[1]).unlink()
    score.FilterScoresStep().share(context.round(1))
    assert store.names() == names and len(asked) == len(names) + 1


def test_a_changed_ranker_is_refused_and_one_that_has_moved_is_not(
    gin_file, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    changes = {"Mixing.selection": "(@ExternalScore(),)", "ExternalScore.scorer": "micro_other:f"}
    codes = []
    for folder, line in (
        ("here", "return 1.0"),
        ("there", "return 1.0"),
        ("there", "return 2.0 + sample.sample_index"),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "micro_other.py").write_text(f"def f(question, sample):\n    {line}\n")
        monkeypatch.chdir(tmp_path / folder)
        for command in () if codes else ("sample", "vote"):
            assert main(_words(gin_file, command, run, changes)) == 0
        codes.append(main(_words(gin_file, "mix", run, changes)))
    assert codes == [0, 0, 2]
    error = " ".join(capsys.readouterr().err.split())
    assert "scorers.micro_other:f was" in error and "Choose another output_dir" in error


def test_a_filter_that_leaves_nothing_is_named_and_not_the_base_model(gin_file, tmp_path, capsys):
    changes = {
        "Mixing.selection": "(@AnswerEntropy(), @SelfRating())",
        "Questions.train": ("purchases",),
        "Training.sequence_length": 256,
    }
    run = tmp_path / "run"
    for command in ("sample", "vote"):
        assert main(_words(gin_file, command, run, changes)) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "read_rating", lambda text: None)
        assert main(_words(gin_file, "mix", run, changes)) == 0
        assert main(_words(gin_file, "train", run, changes)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "SelfRating dropped all that were left ('no rating was given':" in said
    assert "base model" not in said.partition("lmsi: error")[2]


def shard_steps(folder):
    store = ShardStore(folder)
    return [row for n in store.names() if n.startswith("funnel-") for row in store.read(n)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**ALL, "Mixing.human_examples": 0}, "set Mixing.human_examples"),
        ({**ALL, "DistributionShift.share": 80}, "use a share above 0"),
        (
            {**ALL, "Mixing.selection": "(@ExternalScore(),)", "ExternalScore.scorer": "x"},
            "'module:function'",
        ),
        (
            {**ALL, "Mixing.selection": "(@ExternalScore(),)", "ExternalScore.scorer": "no_such:f"},
            "there is no module 'no_such'",
        ),
        ({**ALL, "Training.preference": "@Preference()"}, "set Mixing.selection = ()"),
        (
            {"Training.preference": "@Preference()", "Mixing.min_confidence": 0.5},
            "set Mixing.min_confidence = 0.0",
        ),
        ({"Training.preference": "@Preference()", "Mixing.cap": 2}, "set Mixing.cap = None"),
        (
            {"Training.preference": "@Preference()", "Run.rounds": 2},
            "set Run.start_from = 'last', or Run.rounds = 1",
        ),
    ],
)
def test_what_cannot_be_is_named(gin_file, tmp_path, capsys, changes, message):
    assert main(_words(gin_file, "run", tmp_path / "run", changes)) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_given_solutions_only_validate_where_their_rate_is_zero(selected):
    store = ShardStore(selected / "round_1" / "filter_scores")
    assert len(store.read("human-purchases")) == 2
    given = {row.targets for row in shard_rows_of(selected, "human-purchases")}
    assert given and solution("", "1")[:13] == "The answer is"
    metrics = (selected / "round_1/train/metrics.jsonl").read_text()
    assert "human" not in metrics


def test_a_ranker_weighs_votes_of_train_and_test_questions(gin_file, tmp_path, monkeypatch):
    (tmp_path / "micro_voter.py").write_text(
        "asked = []\n"
        "def sevens(question, sample):\n"
        "    asked.append((sample.uid, sample.sample_index, sample.text))\n"
        "    return 1.0 if '7' in sample.text else 0.25\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = {
        "Voting.weights": "scorer",
        "Voting.ties": "scorer",
        "Voting.scorer": "micro_voter:sevens",
        "Training.steps": 1,
    }
    assert main(_words(gin_file, "run", tmp_path / "run", changes)) == 0
    votes = shard_rows(tmp_path / "run" / "round_1" / "vote", Vote)
    assert {weight for vote in votes for weight in vote.weights} <= {1.0, 0.25}
    asked = sys.modules["micro_voter"].asked
    assert (
        len(asked) == len(set(asked)) > len(votes)
    )  # the report and the collapse monitor vote again
