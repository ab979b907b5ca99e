"""Votes: counted against collections.Counter, stopped against scipy's beta distribution."""

import collections
import json
import math
import random

import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax import answers, voting
from lmsi_jax.config import Voting
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import Question, Sample, Vote

QUESTION = Question(uid="q", task="sums", text="Q: 1 + 1?", kind="number", gold="2")


def path(index, answer, logprob=-1.0):
    text = " no idea" if answer is None else f" So it goes. The answer is {answer}."
    return Sample(
        uid="q", sample_index=index, text=text, tokens=5, logprob=logprob, end="end_token"
    )


def paths_of(*answers):
    return [path(i, answer) for i, answer in enumerate(answers)]


some_paths = st.lists(
    st.tuples(
        st.sampled_from([None, "1", "2", "3", "2.0", "$2", "1/3"]),
        st.floats(-1e3, 0, allow_nan=False),
    ),
    max_size=12,
).map(lambda rows: [path(i, answer, logprob) for i, (answer, logprob) in enumerate(rows)])


def test_equivalent_answers_vote_together_and_unparsed_ones_stay_in_the_denominator():
    vote = voting.vote(QUESTION, paths_of("2", "$2.00", None, "3", "2 apples"))
    assert vote.winner == "2" and vote.kept == (0, 1, 4)
    assert vote.keys == ("2", "2", None, "3", "2")
    assert vote.confidence == 3 / 5 and (vote.parsed, vote.total) == (4, 5)
    assert vote.tied == () and vote.uid == "q" and vote.task == "sums"
    assert vote.entropy == pytest.approx(scipy.stats.entropy([3, 1]))


@pytest.mark.parametrize("paths", [[], paths_of(None), paths_of(None, None, None)])
def test_nothing_parsed_means_no_winner(paths):
    vote = voting.vote(QUESTION, paths)
    assert vote.winner is None and vote.kept == () and vote.tied == ()
    assert vote.confidence == 0.0 and vote.entropy == 0.0 and vote.total == len(paths)


def test_many_unparsed_samples_never_beat_one_answer():
    vote = voting.vote(QUESTION, paths_of(None, None, None, "7"))
    assert vote.winner == "7" and vote.confidence == 0.25


def test_ties_go_to_the_likelier_samples_then_to_the_smaller_key():
    likelier = [path(0, "1", -5.0), path(1, "2", -4.0)]
    assert voting.vote(QUESTION, likelier).winner == "2"
    assert voting.vote(QUESTION, likelier).tied == ("1", "2")
    assert voting.vote(QUESTION, [path(0, "2"), path(1, "1")]).winner == "1"


def test_likely_samples_do_not_outvote_more_samples():
    paths = [path(0, "1", -0.1), path(1, "2", -50.0), path(2, "2", -60.0)]
    assert voting.vote(QUESTION, paths).winner == "2"


def test_kept_are_indices_not_positions():
    vote = voting.vote(QUESTION, [path(9, "2"), path(4, "3"), path(7, "2")])
    assert vote.kept == (7, 9) and vote.keys == ("3", "2", "2")


@given(some_paths, st.randoms(use_true_random=False))
def test_order_never_matters(paths, shuffler: random.Random):
    shuffled = paths[:]
    shuffler.shuffle(shuffled)
    assert voting.vote(QUESTION, shuffled) == voting.vote(QUESTION, paths)


@given(some_paths)
def test_the_vote_is_the_count_of_the_keys(paths):
    vote = voting.vote(QUESTION, paths)
    counts = collections.Counter(k for k in vote.keys if k is not None)
    assert vote.parsed == counts.total() and vote.total == len(paths)
    if not counts:
        assert vote.winner is None
        return
    most = counts.most_common(1)[0][1]
    assert counts[vote.winner] == most == len(vote.kept)
    assert vote.kept == tuple(i for i, k in enumerate(vote.keys) if k == vote.winner)
    leaders = sorted(k for k in counts if counts[k] == most)
    assert vote.tied == (tuple(leaders) if len(leaders) > 1 else ())
    assert vote.entropy == pytest.approx(scipy.stats.entropy(list(counts.values())), abs=1e-12)
    first, second = (*sorted(counts.values(), reverse=True), 0)[:2]
    assert voting.margin(vote) == pytest.approx((first - second) / len(paths))


def test_samples_that_cannot_vote_are_refused():
    with pytest.raises(ValueError, match="has sample 0 twice"):
        voting.vote(QUESTION, [path(0, "1"), path(0, "2")])
    foreign = Sample(uid="other", sample_index=0, text="", tokens=1, logprob=0.0, end="end_token")
    with pytest.raises(ValueError, match="question 'other' cannot vote on 'q'"):
        voting.vote(QUESTION, [foreign])
    with pytest.raises(ValueError, match="no log-probability"):
        voting.vote(QUESTION, [path(0, "1", math.nan)])


@pytest.mark.parametrize("threshold", [0.6, 0.9, 0.95, 0.99])
def test_adaptive_stop_is_the_beta_criterion(threshold):
    for a in range(25):
        for b in range(a + 1):
            sure = scipy.stats.beta.sf(0.5, a + 1, b + 1)
            assert voting.adaptive_stop(a, b, threshold) == (sure >= threshold), (a, b)


def test_adaptive_stop_at_its_edges():
    assert not voting.adaptive_stop(0, 0) and voting.adaptive_stop(4, 0)
    assert voting.adaptive_stop(3, 3, 0.5) and voting.adaptive_stop(3, 0, 15 / 16)
    with pytest.raises(ValueError, match="negative"):
        voting.adaptive_stop(1, -1)


some_keys = st.lists(st.sampled_from([None, "1", "1", "2", "3"]), max_size=40)
thresholds = st.sampled_from([0.6, 0.8, 0.9, 0.95, 0.99])


def sure(keys, threshold):
    """The criterion by the incomplete beta function, the leaders by plain counting."""
    counts = sorted((keys.count(k) for k in {"1", "2", "3"}), reverse=True)
    a, b = counts[0], counts[1]
    return 1 - scipy.special.betainc(a + 1, b + 1, 0.5) >= threshold


@given(some_keys, thresholds)
def test_settled_is_the_beta_criterion_of_the_two_leading_answers(keys, threshold):
    assert voting.is_settled(keys, threshold) == sure(keys, threshold)


@given(some_keys, thresholds, st.integers(1, 9))
def test_samples_needed_is_what_sampling_step_by_step_would_take(keys, threshold, every):
    sampled = []
    for key in keys:
        sampled.append(key)
        if len(sampled) % every == 0 and sure(sampled, threshold):
            break
    assert voting.samples_needed(keys, threshold, every) == len(sampled)


@given(some_keys, some_keys, thresholds, st.integers(1, 9))
def test_samples_after_the_stop_cannot_move_it(keys, others, threshold, every):
    needed = voting.samples_needed(keys, threshold, every)
    if needed < len(keys):
        assert voting.samples_needed(keys[:needed] + others, threshold, every) == needed


@given(some_keys, thresholds, st.integers(1, 9))
def test_the_names_of_the_answers_do_not_move_the_stop(keys, threshold, every):
    renamed = [{"1": "z", "2": "yes", "3": "(a)", None: None}[key] for key in keys]
    same = voting.samples_needed(keys, threshold, every)
    assert voting.samples_needed(renamed, threshold, every) == same


@pytest.mark.parametrize(
    ("keys", "every", "needed"),
    [
        ([], 4, 0),
        (["1"] * 3, 4, 3),
        (["1"] * 32, 4, 4),
        (["1"] * 32, 1, 4),
        (["1"] * 32, 3, 6),
        ([None] * 32, 4, 32),
        (["1", None] * 16, 4, 8),
        (["1", "2"] * 16, 4, 32),
        (["1", "2", "1", "1", *["1"] * 28], 4, 8),
    ],
)
def test_samples_needed_by_hand(keys, every, needed):
    assert voting.samples_needed(keys, 0.95, every) == needed


def test_a_rule_that_is_never_looked_at_is_refused():
    with pytest.raises(ValueError, match="every 0 samples"):
        voting.samples_needed(["1"], 0.95, 0)


@given(some_paths, st.integers(0, 12), st.randoms(use_true_random=False))
def test_the_winner_of_the_first_samples_is_that_of_a_vote_on_them(paths, count, shuffler):
    vote, first = voting.vote(QUESTION, paths), voting.vote(QUESTION, paths[:count])
    shuffler.shuffle(paths)
    assert voting.winner_of_first(vote, paths, count) == first.winner


def test_a_vote_over_other_samples_has_no_winner_of_the_first():
    with pytest.raises(ValueError, match="'q': a vote over 2 samples, 1 are given"):
        voting.winner_of_first(voting.vote(QUESTION, paths_of("1", "2")), paths_of("1"), 1)


def test_fewer_samples_after_an_early_stop_are_their_own_denominator():
    stopped = voting.vote(QUESTION, paths_of("2", "2", None, "2"))
    assert (stopped.total, stopped.parsed, stopped.confidence) == (4, 3, 0.75)


WEIGHTS = ("none", "logprob", "normalised_logprob", "softmax")
rules = st.builds(
    Voting, weights=st.sampled_from(WEIGHTS), temperature=st.sampled_from([0.1, 1.0, 10.0])
)


def _weight(path, paths, rule):
    """Each rule by its formula, in exact or wide arithmetic."""
    per_token = math.exp(path.logprob / path.tokens)
    if rule.weights == "none":
        return 1.0
    if rule.weights == "logprob":
        return math.exp(path.logprob - max(p.logprob for p in paths))
    if rule.weights == "normalised_logprob":
        return per_token
    scores = [math.exp(p.logprob / p.tokens) / rule.temperature for p in paths]
    return math.exp(per_token / rule.temperature) / math.fsum(map(math.exp, scores))


@given(some_paths, rules)
def test_weights_are_those_of_the_formulas(paths, rule):
    weights = voting.weigh(paths, rule)
    if rule.weights == "none" or not paths:
        assert weights is None
        return
    assert weights == pytest.approx([_weight(p, paths, rule) for p in paths], abs=1e-12)
    assert all(0 <= weight <= 1 for weight in weights)
    if rule.weights == "softmax":
        assert math.fsum(weights) == pytest.approx(1)


@given(some_paths, rules, st.randoms(use_true_random=False))
def test_order_never_matters_to_weighed_votes(paths, rule, shuffler):
    vote = voting.vote(QUESTION, paths, voting.weigh(paths, rule))
    shuffler.shuffle(paths)
    again = voting.vote(QUESTION, paths, voting.weigh(paths, rule))
    assert again == vote


@given(some_paths, st.lists(st.floats(0, 1e6), min_size=12, max_size=12))
def test_a_weighed_vote_is_the_largest_sum_over_all_weights(paths, weights):
    weights = weights[: len(paths)]
    vote = voting.vote(QUESTION, paths, weights)
    keys = [answers.path_key(path.text, "number") for path in paths]
    sums = {k: math.fsum(w for w, j in zip(weights, keys, strict=True) if j == k) for k in keys}
    total = math.fsum(weights)
    parsed = {k: s for k, s in sums.items() if k is not None}
    if not parsed:
        assert vote.winner is None and vote.confidence == 0 and voting.margin(vote) == 0
        return
    assert parsed[vote.winner] == max(parsed.values())
    assert vote.kept == tuple(i for i, k in enumerate(keys) if k == vote.winner)
    assert vote.confidence == pytest.approx(parsed[vote.winner] / total if total else 0)
    first, second = (*sorted(parsed.values(), reverse=True), 0)[:2]
    assert voting.margin(vote) == pytest.approx((first - second) / total if total else 0)
    shares = [s for s in parsed.values() if s > 0]
    assert vote.entropy == pytest.approx(scipy.stats.entropy(shares) if shares else 0, abs=1e-9)
    assert (vote.parsed, vote.total) == (len(paths) - keys.count(None), len(paths))


@given(some_paths)
def test_equal_weights_are_the_majority(paths):
    plain, weighed = voting.vote(QUESTION, paths), voting.vote(QUESTION, paths, [0.5] * len(paths))
    for name in ("winner", "keys", "kept", "tied", "parsed", "total"):
        assert getattr(weighed, name) == getattr(plain, name)
    assert weighed.confidence == pytest.approx(plain.confidence)
    assert weighed.entropy == pytest.approx(plain.entropy)


def test_a_likely_sample_outvotes_more_samples_where_weights_say_so():
    paths = [path(0, "1", -0.1), path(1, "2", -50.0), path(2, "2", -60.0)]
    for weights in ("logprob", "normalised_logprob"):
        rule = Voting(weights=weights)
        assert voting.vote(QUESTION, paths, voting.weigh(paths, rule)).winner == "1"
    sharp, flat = (Voting(weights="softmax", temperature=t) for t in (0.01, 100))
    assert voting.vote(QUESTION, paths, voting.weigh(paths, sharp)).winner == "1"
    assert voting.vote(QUESTION, paths, voting.weigh(paths, flat)).winner == "2"


def test_unparsed_weight_stays_in_the_denominator():
    vote = voting.vote(QUESTION, paths_of("2", None), [1.0, 3.0])
    assert (vote.winner, vote.confidence, voting.margin(vote)) == ("2", 0.25, 0.25)


def test_weights_of_zero_leave_a_tie_and_no_confidence():
    vote = voting.vote(QUESTION, paths_of("2", "3", None), [0.0, 0.0, 1.0])
    assert vote.tied == ("2", "3") and vote.winner == "2" and vote.confidence == 0.0


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, math.inf], [1.0, math.nan]])
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weight"):
        voting.vote(QUESTION, paths_of("1", "2"), weights)


@pytest.mark.parametrize("bad", [{"weights": "best"}, {"weights": "softmax", "temperature": 0.0}])
def test_a_rule_that_does_not_exist_is_named(bad):
    with pytest.raises(LmsiError, match=r"Voting\.(weights|temperature)"):
        Voting(**bad)


def test_weights_are_recorded_only_where_there_are_some():
    plain = voting.vote(QUESTION, paths_of("2", "3"))
    weighed = voting.vote(QUESTION, paths_of("2", "3"), [0.25, 0.5])
    assert "weights" not in plain.to_json()
    for vote in (plain, weighed):
        assert Vote.from_json(json.loads(json.dumps(vote.to_json()))) == vote
    assert weighed.weights == (0.25, 0.5)


def test_an_option_named_by_its_text_votes_for_its_letter():
    asked = Question(uid="q", task="t", text="Q: Who? (a) Ann (b) Ben", kind="choice")
    vote = voting.vote(asked, paths_of("Ben", "(b)", "(a)", "(c)"))
    assert vote.winner == "b" and vote.keys == ("b", "b", "a", None)


@given(some_paths, rules, st.integers(0, 12))
def test_the_winner_of_the_first_weighed_samples_is_that_of_a_vote_on_them(paths, rule, count):
    weights = voting.weigh(paths, rule)
    vote = voting.vote(QUESTION, paths, weights)
    first = voting.vote(QUESTION, paths[:count], weights[:count] if weights else None)
    assert voting.winner_of_first(vote, paths, count) == first.winner


def test_a_sample_that_marks_no_answer_votes_only_where_conclusions_are_read():
    question = Question(uid="q", task="t", text="Q: How many?", kind="number")
    texts = (" The answer is 4.", " So she has 5 apples.", " So she has 5 apples.")
    samples = [
        Sample(uid="q", sample_index=i, text=text, tokens=5, logprob=-1.0, end="end_token")
        for i, text in enumerate(texts)
    ]
    assert voting.vote(question, samples).winner == "5"
    marked = voting.vote(question, samples, conclusions=False)
    assert (marked.winner, marked.keys, marked.parsed) == ("4", ("4", None, None), 1)


@pytest.mark.parametrize("end", ["stop", "limit", "next_question", "end_token"])
def test_a_sample_concludes_only_at_an_end_token_or_a_next_question(end):
    def one(text):
        return Sample(uid="q", sample_index=0, text=text, tokens=5, logprob=-1.0, end=end)

    concludes = end in ("end_token", "next_question")
    assert voting.vote(QUESTION, [one(" So she has 5 apples.")]).parsed == concludes
    assert voting.vote(QUESTION, [one(" So she has 5. The answer is 5.")]).winner == "5"


def test_a_defect_of_the_reader_costs_one_sample(monkeypatch, caplog):
    find = answers.find

    def broken(text, *args, **options):
        if "chalk" in text:
            raise IndexError("a defect")
        return find(text, *args, **options)

    monkeypatch.setattr(answers, "find", broken)
    vote = voting.vote(QUESTION, [path(0, "1"), path(1, "chalk"), path(2, "2"), path(3, "2")])
    assert (vote.winner, vote.keys, vote.confidence) == ("2", ("1", None, "2", "2"), 0.5)
    assert "could not be read" in caplog.text and "chalk" in caplog.text


def test_an_inference_in_words_behind_a_box_without_any_votes():
    question = Question(uid="q", task="t", text="Premise: x", kind="nli")
    samples = paths_of("no", "it is not possible to tell")
    boxed = r"So \boxed{3}: it cannot be determined."
    samples.append(
        Sample(uid="q", sample_index=2, text=boxed, tokens=5, logprob=-1.0, end="end_token")
    )
    assert voting.vote(question, samples).keys == ("no", "unknown", "unknown")


def test_what_is_taught_is_clean_where_the_sample_is_not():
    texts = (r"So $x = \boxed{18}$, since x < 20.", "The answer is **18** dollars.", "#### 18")
    samples = [
        Sample(uid="q", sample_index=i, text=text, tokens=5, logprob=-1.0, end="end_token")
        for i, text in enumerate(texts)
    ]
    vote = voting.vote(QUESTION, samples)
    assert vote.keys == ("18",) * 3 and vote.surfaces == ("18", "18 dollars", "18")


# --- a scorer -------------------------------------------------------------------------------------


def _ranked(texts, scores, **rule):
    question = Question(uid="q", task="t", text="Q: ?", kind="number")
    samples = [
        Sample(uid="q", sample_index=i, text=text, tokens=3, logprob=-1.0 - i, end="end_token")
        for i, text in enumerate(texts)
    ]
    return voting.cast(question, samples, Voting(scorer="m:f", **rule), scores)


def test_a_ranker_weighs_votes():
    texts = ["The answer is 1.", "The answer is 1.", "The answer is 2."]
    found = _ranked(texts, [0.2, 0.3, 0.9], weights="scorer")
    assert found.winner == "2" and found.weights == (0.2, 0.3, 0.9)
    assert found.confidence == pytest.approx(0.9 / 1.4)


def test_a_ranker_breaks_ties_and_only_those():
    texts = ["The answer is 1.", "The answer is 2."]
    assert _ranked(texts, [0.1, 0.2]).winner == "1"  # by log-probability
    assert _ranked(texts, [0.1, 0.2], ties="scorer").winner == "2"
    assert _ranked([*texts, texts[0]], [0.1, 0.2, 0.0], ties="scorer").winner == "1"


def test_without_a_ranker_its_votes_are_refused():
    with pytest.raises(LmsiError, match="set Voting.scorer"):
        Voting(weights="scorer")
    with pytest.raises(ValueError, match="needs the scorer"):
        _ranked(["The answer is 1."], None, weights="scorer")
