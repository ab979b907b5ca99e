"""Hostile text: work grows with the length of the text, counted in characters looked at."""

import functools
import importlib
import pkgutil
import re
import re._constants as codes
import re._parser as parser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax import answers
from lmsi_jax.answers import conclusions, marks, options, reader
from lmsi_jax.records import KINDS

_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT)
if hasattr(codes, "POSSESSIVE_REPEAT"):
    _REPEATS += (codes.POSSESSIVE_REPEAT,)


def _patterns(module):
    """(name, pattern) of every compiled pattern at the module's top level."""
    for name, value in vars(module).items():
        values = value if isinstance(value, tuple) else (value,)
        yield from ((name, p) for p in values if isinstance(p, re.Pattern))


def _modules():
    names = [m.name for m in pkgutil.iter_modules(answers.__path__)]
    return [importlib.import_module(f"lmsi_jax.answers.{name}") for name in names]


def _repeats(tree, inside=()):
    """(least, most, the repeats around it) of every repeat of a pattern's syntax tree."""
    for operation, argument in tree:
        if operation in _REPEATS:
            least, most, body = argument
            yield least, most, inside
            yield from _repeats(body, (*inside, most))
        elif operation is codes.BRANCH:
            for branch in argument[1]:
                yield from _repeats(branch, inside)
        elif operation is codes.SUBPATTERN:
            yield from _repeats(argument[-1], inside)
        elif operation in (codes.ASSERT, codes.ASSERT_NOT):
            yield from _repeats(argument[1], inside)
        elif operation is codes.ATOMIC_GROUP:
            yield from _repeats(argument, inside)


def _found(pattern):
    return list(_repeats(parser.parse(pattern.pattern, pattern.flags)))


@pytest.mark.parametrize("module", _modules(), ids=lambda module: module.__name__)
def test_no_unbounded_repeat_stands_in_another(module):
    for name, pattern in _patterns(module):
        for _, most, around in _found(pattern):
            unbounded = [m for m in (most, *around) if m == codes.MAXREPEAT]
            assert len(unbounded) <= 1, f"{name}: {pattern.pattern}"


@pytest.mark.parametrize("patterns", [[p for _, p in _patterns(marks)], options._STYLES])
def test_patterns_over_a_whole_text_repeat_a_bounded_number_of_times(patterns):
    assert patterns
    for pattern in patterns:
        assert all(most <= 80 for _, most, _ in _found(pattern)), pattern.pattern


def test_the_check_of_syntax_trees_finds_what_it_looks_for():
    nested = [(m, around) for _, m, around in _found(re.compile(r"(?:a|(b+)c)*d{2,3}"))]
    assert nested == [
        (codes.MAXREPEAT, ()),
        (codes.MAXREPEAT, (codes.MAXREPEAT,)),
        (3, ()),
    ]


UNITS = ["answer is ", "answer    ", "answer is\n", "\n", " ", "Q", "Q:", "(", "9", "9,", "1 ", "{"]
UNITS += ["\\frac{", "answer is 1+", "answer is.\n", ".", "the ", "-", "approx. ", "\\boxed{", "A:"]
UNITS += [
    "9/",
    "####",
    "answer:",
    "option is ",
    "1'000",
    "1.000.",
    "= 9",
    "<<",
    "<think>",
    "</",
    "答案是",
]
UNITS += [
    "**",
    "^",
    "one hundred ",
    "Yes, ",
    "(a) ",
    "A) ",
    "$",
    "\\text{",
    "e9",
    "May ",
    "#",
    "．",
    "İ",
]


UNITS += [
    '"answer": ',
    "answer would be ",
    "ans: ",
    "if the answer is 9. ",
    "\n(B)",
    "option C ",
    "[",
]
UNITS += [
    "I hope this ",
    "3 and a half ",
    "twelve ",
    "5 feet ",
    "1, which is 2",
    "no. 1",
    "ly ",
    "= 1 or ",
]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", KINDS)
def test_characters_looked_at_closely_grow_with_the_text(unit, kind, monkeypatch):
    """Twice the text is twice the work, but for the windows that end with the text."""

    def work(length):
        looked = []

        def counted(original, text, *arguments):
            looked.append(min(len(text), answers.MAX_ANSWER))
            return original(text, *arguments)

        for module, name in ((reader, "sentence_length"), (conclusions, "last_sentence")):
            original = getattr(module, name)
            monkeypatch.setattr(module, name, functools.partial(counted, original))
        text = unit * (length // len(unit))
        for before in ("", "The answer is "):
            answers.find(before + text, kind, options=("red", "blue"))
        monkeypatch.undo()
        return sum(looked)

    short, long = work(3000), work(6000)
    assert long <= 2 * short + answers.MAX_ANSWER**2


@given(st.text(max_size=400), st.sampled_from(KINDS))
def test_any_text_has_a_key_or_none_and_a_key_is_its_own_key(text, kind):
    for found in (answers.key(text, kind), answers.path_key("The answer is " + text, kind)):
        assert found is None or isinstance(found, str)
        if found is not None and (kind != "span" or (text.isascii() and len(text) < 300)):
            assert answers.key(found, kind) == found


_PIECES = ["answer is ", "answer ", "\n", "Q:", " ", "9", ".", "(", "a", "A:", ",", "=", "yes", "<"]
_PIECES += [
    "</think>",
    "\\boxed{",
    "}",
    "####",
    "answer:",
    "$",
    "-",
    "İ",
    "ẞ",
    "May ",
    "one ",
    "(b)",
    "'",
]


@given(st.lists(st.sampled_from(_PIECES), max_size=30), st.sampled_from(KINDS))
def test_the_answer_is_a_piece_of_the_text(pieces, kind):
    text = "".join(pieces)
    found = answers.find(text, kind, options=("red", "9"))
    if found:
        assert found.answer in text[: found.end] and len(found.answer) <= answers.MAX_ANSWER
        assert found.marked or found.key is not None


@given(
    st.lists(st.sampled_from(_PIECES), max_size=12),
    st.sampled_from(["\n\nQ: 1 + 1?\nA: The answer is 2.", "\n### Question: x\n#### 3", "</s>9"]),
    st.sampled_from(KINDS),
)
def test_what_follows_a_marked_answer_sentence_never_changes_it(pieces, run_on, kind):
    text = "".join(pieces) + " The answer is (b), yes, 7 it is not possible to tell.\n"
    found = answers.find(text, kind)
    if found and found.key is not None and found.marked and text.count("<") == 0:
        assert answers.find(text + run_on, kind) == found
