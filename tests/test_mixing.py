"""Mixing: votes and samples become the four formats, with weights that stand for copies."""

import collections
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax import answers, mixing, prompts, voting
from lmsi_jax.config import Mixing
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import FORMATS, Exemplar, Question, Sample
from lmsi_jax.selection.rows import select, voted_rows

EXEMPLARS = (Exemplar(question="Q: What is 1 + 1?", reasoning="One and one are 2.", answer="2"),)
QUESTION = Question(uid="q", task="sums", text="Q: What is 4 + 5?", kind="number")


def paths_of(*texts):
    return [
        Sample(uid="q", sample_index=i, text=text, tokens=3, logprob=-1.0, end="end_token")
        for i, text in enumerate(texts)
    ]


A = " 4 + 5 = 9. The answer is 9."
B = " 5 + 4 = 9. The answer is $9."
WRONG = " 4 + 5 = 8. The answer is 8."
UNPARSED = " 4 + 5 is 9."
PATHS = paths_of(A, WRONG, B, A + "\nI am sure.", UNPARSED, " 9. The answer is 9.")


def written(paths=PATHS, question=QUESTION, weights=None, cap=None, min_confidence=0.0, **switches):
    """Examples of a question's samples, by the same functions as the stage `mix`."""
    vote, keep = voting.vote(question, paths), switches.get("keep", "majority")
    rows = voted_rows(question, paths, vote, keep)
    chosen = select(rows, Mixing(cap=cap, min_confidence=min_confidence).filters).rows
    if weights is None:
        weights = {row.sample.sample_index: 1.0 for row in chosen}
    weighed = [
        (row, weights[row.sample.sample_index])
        for row in chosen
        if row.sample.sample_index in weights
    ]
    return mixing.examples(question, weighed, EXEMPLARS, **switches)


def by_format(examples):
    rows = collections.defaultdict(list)
    for example in examples:
        rows[example.format].append((example.targets, example.weight))
    return dict(rows)


def test_kept_samples_are_written_in_four_formats():
    rows = by_format(written(normalise="sample"))
    paths = [(A, 2.0), (B, 1.0), (" 9. The answer is 9.", 1.0)]
    direct = [(" The answer is 9.", 4.0)]
    assert list(rows) == list(FORMATS)
    assert rows["few_shot_cot"] == rows["zero_shot_cot"] == paths
    assert rows["few_shot_direct"] == rows["zero_shot_direct"] == direct


def test_without_the_vote_every_parsed_sample_stays_with_its_own_answer():
    rows = by_format(written(keep="parsed", normalise="sample"))
    last = " 9. The answer is 9."
    assert rows["few_shot_cot"] == [(A, 2.0), (WRONG, 1.0), (B, 1.0), (last, 1.0)]
    answers = {" The answer is 9.": 3.0, " The answer is 8.": 1.0, " The answer is $9.": 1.0}
    assert dict(rows["few_shot_direct"]) == answers


def test_without_any_vote_samples_without_an_answer_are_learnt_as_reasoning():
    rows = by_format(written(keep="all", normalise="sample"))
    assert (UNPARSED, 1.0) in rows["few_shot_cot"] and len(rows["few_shot_cot"]) == 5
    assert sum(weight for _, weight in rows["zero_shot_direct"]) == 5.0
    assert {target for target, _ in rows["zero_shot_direct"]} == {
        " The answer is 9.",
        " The answer is 8.",
        " The answer is $9.",
    }


def test_punished_samples_are_written_where_their_reasoning_is_shown_alone():
    weights = {0: 1.0, 1: -0.5, 2: 1.0}
    rows = by_format(written(keep="parsed", normalise="sample", weights=weights))
    assert rows["few_shot_cot"] == [(A, 1.0), (WRONG, -0.5), (B, 1.0)]
    assert rows["few_shot_direct"] == [(" The answer is 9.", 1.0), (" The answer is $9.", 1.0)]


def test_prompts_of_the_formats():
    for example in written():
        prompt_style = prompts.PROMPT_STYLE_OF_FORMAT[example.format]
        prompt = prompts.build_prompt(QUESTION, EXEMPLARS, prompt_style)
        assert (example.prefix, example.inputs) == prompt
        assert (example.uid, example.task, example.source) == ("q", "sums", "self_generated")
    assert written()[-2].inputs == "Q: What is 4 + 5?\nA: Let's think step by step."


def test_a_question_weighs_one_in_each_format():
    for rows in by_format(written()).values():
        assert math.fsum(weight for _, weight in rows) == pytest.approx(1.0)


some_texts = st.lists(st.sampled_from([A, B, WRONG, UNPARSED, A + " Yes."]), max_size=10)


@given(some_texts, st.sampled_from([None, 1, 2]), st.sampled_from(["question", "sample"]))
def test_merged_rows_stand_for_the_literal_copies(texts, cap, normalise):
    switches = {"cap": cap, "normalise": normalise}
    merged = by_format(written(paths_of(*texts), **switches))
    literal = by_format(written(paths_of(*texts), **switches, merge_equal=False))
    assert merged.keys() == literal.keys()
    for name, rows in merged.items():
        copies = collections.defaultdict(list)
        for target, weight in literal[name]:
            copies[target].append(weight)
        assert len(rows) == len(dict(rows)) == len(copies)
        assert dict(rows) == pytest.approx({t: math.fsum(w) for t, w in copies.items()})


@given(st.permutations(PATHS))
def test_the_order_of_the_samples_never_matters(paths):
    assert written(paths) == written(PATHS)


def test_literal_copies_are_one_row_per_sample_and_format():
    literal = written(merge_equal=False, normalise="sample")
    assert len(literal) == 4 * 4 and {example.weight for example in literal} == {1.0}


def test_cap_keeps_the_first_distinct_samples_with_all_their_weight():
    rows = by_format(written(cap=2, normalise="sample"))
    assert rows["few_shot_cot"] == [(A, 2.0), (B, 1.0)]
    assert rows["few_shot_direct"] == [(" The answer is 9.", 3.0)]


def test_unsure_questions_and_empty_votes_give_nothing():
    assert written(min_confidence=0.7) == []
    assert written(min_confidence=4 / 6) != []
    assert written(paths_of(UNPARSED, UNPARSED)) == [] and written([]) == []


def test_the_answer_is_written_in_its_most_frequent_form():
    def direct(*surfaces):
        texts = [f" Hm. The answer is {surface}." for surface in surfaces]
        return written(paths_of(*texts), formats=["zero_shot_direct"])[0].targets

    assert direct("9", "$9", "$9") == " The answer is $9."
    assert direct("9", "$9") == direct("$9", "9") == " The answer is $9."


# Ways in which chat models write an answer, and values of each kind with the question's options.
FORMS = (
    "The answer is {}.",
    "Thus the answer is $\\boxed{{{}}}$, since 3 < 4.",
    "**Final Answer:** {}",
    "### Answer\n{}",
    "#### {}",
    "<answer>{}</answer>",
    '```json\n{{"reasoning": "none", "answer": "{}"}}\n```',
    "The answer is **{}**, in total, as asked.",
    "\\[\\boxed{{\\text{{{}}}}}\\]",
    "So it must be {}",
)
OPTIONS = "(a) red (b) blue (c) green"
VALUES = {
    "number": ("18", "$1,234.50", "-7/2", "\\frac{3}{4}", "18** dollars", "3,5", "18%", "6 * 7"),
    "choice": ("B", "(c)", "(b) blue", "red", "C. green", "the first"),
    "yes_no": ("yes", "No", "most likely no", "True", "yes, because it is"),
    "nli": ("entailment", "it is not possible to tell", "Contradiction", "no"),
    "span": (
        "Chicago Bears",
        "Malcolm X",
        "the `main` road",
        "5 May 1999",
        "red, {green} and blue",
    ),
    "date": ("July 28, 2001", "07/28/2001", "Saturday, 28 July"),
    "list": ("3, 5 and 7", "red; blue", "[blue, red]"),
}
CASES = st.sampled_from(sorted(VALUES)).flatmap(
    lambda kind: st.tuples(
        st.just(kind),
        st.lists(
            st.tuples(st.sampled_from(FORMS), st.sampled_from(VALUES[kind])), min_size=1, max_size=4
        ),
    )
)


@given(CASES)
def test_the_taught_answer_is_clean_and_reads_back_to_the_winner(case):
    kind, drawn = case
    options = f"\n{OPTIONS}" if kind in ("choice", "list") else ""
    question = Question(uid="q", task="sums", text=f"Q: Which?{options}", kind=kind)
    paths = paths_of(*(" We think.\n" + form.format(value) for form, value in drawn))
    vote = voting.vote(question, paths)
    for example in written(paths, question, formats=FORMATS):
        read = answers.path_key(example.targets, kind, answers.options_of(question))
        assert read == vote.winner, example.targets
        if "direct" in example.format:
            assert example.targets.startswith(" The answer is ") and example.targets.endswith(".")
            assert not set("\\{}`<>\n") & set(example.targets) and "**" not in example.targets
            assert example.targets.count("$") < 2


def test_chosen_formats_come_in_the_chosen_order():
    names = [e.format for e in written(formats=["zero_shot_direct", "few_shot_direct"])]
    assert names == ["zero_shot_direct", "few_shot_direct"]


def test_targets_complete_the_prompt_to_a_document():
    example = written()[0]
    document = example.prefix + example.inputs + example.targets
    assert document.endswith("\n\nQ: What is 4 + 5?\nA: 4 + 5 = 9. The answer is 9.")


def test_strong_examples_come_from_the_given_solution():
    worked = Exemplar(question="unused", reasoning="Count on from 5.", answer="9")
    rows = by_format(mixing.human_solution_examples(QUESTION, worked, EXEMPLARS))
    path, direct = [(" Count on from 5. The answer is 9.", 1.0)], [(" The answer is 9.", 1.0)]
    assert list(rows.values()) == [path, direct, path, direct]
    human = mixing.human_solution_examples(QUESTION, worked, EXEMPLARS, ["few_shot_cot"])
    assert [example.source for example in human] == ["human"]


def test_mistakes_are_named():
    for switches in ({"formats": ("cot",)}, {"cap": 0}, {"normalise": "none"}, {"keep": "none"}):
        with pytest.raises(LmsiError):
            Mixing(**switches)
    vote = voting.vote(QUESTION, PATHS)
    with pytest.raises(ValueError, match="'q': a vote over 6 samples, 2 are given"):
        voted_rows(QUESTION, PATHS[:2], vote)
    other = Question(uid="other", task="sums", text="Q: ?", kind="number")
    with pytest.raises(ValueError, match="not on question 'other'"):
        voted_rows(other, PATHS, vote)


def test_a_sample_that_did_not_vote_is_not_learnt_without_the_vote_either():
    paths = paths_of(A, " So 4 + 5 = 9 apples.")
    for conclusions, count in ((True, 2), (False, 1)):
        vote = voting.vote(QUESTION, paths, conclusions=conclusions)
        assert len(voted_rows(QUESTION, paths, vote, "parsed")) == count


@pytest.mark.parametrize("merge", [True, False])
def test_few_shot_rows_stand_behind_the_prompt_that_the_sample_was_sampled_with(merge):
    others = [
        (Exemplar(question=f"Q: {n}?", reasoning=f"Just {n}.", answer=str(n)),) for n in range(2)
    ]
    paths = paths_of(A, A, A, B)
    own = {path.sample_index: others[path.sample_index % 2] for path in paths}
    examples = written(paths, own=own, merge_equal=merge, normalise="sample")
    wanted = collections.Counter()
    for path in paths:
        for name in FORMATS:
            prompt_style = prompts.PROMPT_STYLE_OF_FORMAT[name]
            prompt = prompts.build_prompt(QUESTION, own[path.sample_index], prompt_style)
            direct = name in ("few_shot_direct", "zero_shot_direct")
            wanted[name, *prompt, " The answer is 9." if direct else path.text] += 1.0
    found = collections.Counter()
    for row in examples:
        found[row.format, row.prefix, row.inputs, row.targets] += row.weight
    assert found == wanted
    rows = [row for row in examples if row.format == "few_shot_cot"]
    assert len(rows) == (3 if merge else 4)


def test_weights_of_equal_rows_add_up_where_their_prompts_are_equal_too():
    others = [
        (Exemplar(question=f"Q: {n}?", reasoning=f"Just {n}.", answer=str(n)),) for n in range(2)
    ]
    paths = paths_of(A, A, A, B)
    own = {path.sample_index: others[path.sample_index % 2] for path in paths}
    weights = {0: 0.5, 1: 0.25, 2: 2.0}
    rows = written(
        paths,
        own=own,
        weights=weights,
        normalise="sample",
        formats=["few_shot_cot", "zero_shot_cot"],
    )
    few = {row.prefix: row.weight for row in rows if row.format == "few_shot_cot"}
    assert few == {
        prompts.few_shot_prefix(one, True): w for one, w in zip(others, (2.5, 0.25), strict=True)
    }
    assert [row.weight for row in rows if row.format == "zero_shot_cot"] == [2.75]


def test_a_sample_without_a_prompt_of_its_own_stands_behind_the_task_s():
    assert written(own={}) == written() == written(own={99: ()})


def test_a_sample_that_marks_no_answer_gets_the_answer_sentence():
    (row, *_) = written(paths_of(" So 4 + 5 = 9 apples."), formats=["few_shot_cot"])
    assert row.targets == " So 4 + 5 = 9 apples. The answer is 9."


def test_an_option_named_by_its_text_is_kept_with_its_letters():
    asked = Question(uid="q", task="t", text="Q: Who? (a) Ann (b) Ben", kind="choice")
    paths = paths_of(" The answer is Ben.", " The answer is (b).", " The answer is (a).")
    rows = written(paths, asked, formats=["zero_shot_cot"])
    assert [row.targets for row in rows] == [" The answer is Ben.", " The answer is (b)."]


def test_without_exemplars_the_zero_shot_formats_take_the_place_of_the_few_shot_ones():
    vote = voting.vote(QUESTION, PATHS)
    rows = [(row, 1.0) for row in voted_rows(QUESTION, PATHS, vote)]
    examples = mixing.examples(QUESTION, rows, ())
    assert list(by_format(examples)) == ["zero_shot_cot", "zero_shot_direct"]
    assert examples == mixing.examples(QUESTION, rows, (), formats=FORMATS[:2])
    worked = mixing.human_solution_examples(QUESTION, EXEMPLARS[0], ())
    assert [row.format for row in worked] == ["zero_shot_cot", "zero_shot_direct"]
