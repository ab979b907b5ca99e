"""Tasks and rules in a user's Python code: a small protocol, errors that name what is missing."""

import pytest

from lmsi_jax import prompts, voting
from lmsi_jax.config import FileTask, Questions
from lmsi_jax.errors import LmsiError
from lmsi_jax.records import CustomRules, Exemplar, Question, Sample
from lmsi_jax.tasks import registry

TASK = """
class Riddles:
    name, kind = "riddles", "choice"

    def rows(self, split):
        yield {"question": f"A {split} one?", "answer": "b", "options": ["x", "y"]}
        yield {"question": f"A second {split} one?", "answer": "(a)"}

    def read(self, text, question):
        return text.split("<final>")[1].split("</final>")[0]

    def prompt(self, question, exemplars, style):
        return f"{style}, {len(exemplars)}: {question.text}"

TASK = Riddles()
"""


@pytest.fixture
def code(tmp_path):
    """Writes a module; returns the function that names one of its objects."""

    def write(text, name="TASK"):
        (tmp_path / "my_task.py").write_text(text, encoding="utf-8")
        return f"{tmp_path}/my_task:{name}"

    return write


def _sample(text, index=0):
    return Sample(uid="q", sample_index=index, text=text, tokens=1, logprob=-1.0, end="end_token")


def _question(kind="number", gold=None, **rules):
    rules = CustomRules(**rules)
    return Question(uid="q", task="t", text="Q: ?", kind=kind, gold=gold, rules=rules)


def test_a_small_object_is_a_task_beside_packaged_ones(code):
    questions = Questions(train=("riddles", "legs"), test=("riddles",), tasks=(code(TASK),))
    task = registry.find(questions, "riddles")
    tests = task.questions("test", "hard", 9, 0)
    assert {(row.text, row.gold) for row in tests} == {
        ("Q: A test one?\n(a) x (b) y", "(b)"),
        ("Q: A second test one?", "(a)"),
    }
    assert {row.gold for row in task.questions("train", "hard", 9, 0)} == {None}
    assert task.exemplars() == ()
    (reading, other) = voting.read_answers(
        tests[0], [_sample("I say <final>b</final>.\nMore", 0), _sample("No mark.", 1)]
    )
    assert (reading.key, reading.end) == ("b", len("I say <final>b</final>."))
    assert other == voting.NO_ANSWER
    assert prompts.build_prompt(tests[0], (), "zero_shot_cot") == (
        "",
        f"zero_shot_cot, 0: {tests[0].text}",
    )
    assert registry.find(questions, "legs") == registry.get("legs")
    assert registry.rules_of(questions, "legs") is None


def test_exemplars_and_whole_tasks_of_code_are_used(code):
    text = TASK.replace(
        "    def prompt", "    def exemplars(self):\n        yield SHOT\n\n    def prompt"
    )
    shot = "from lmsi_jax.records import Exemplar\nSHOT = Exemplar(question='Q: 1?', "
    task = registry.get(code(f"{shot}reasoning='1.', answer='1')\n{text}"))
    assert task.exemplars() == (Exemplar(question="Q: 1?", reasoning="1.", answer="1"),)
    family = (
        "from lmsi_jax.tasks.task import Family\n"
        "from lmsi_jax.tasks.word_sums import draw_travel as draw\n"
        "TASK = Family(name='trips', kind='number', domain='in', generate=draw)\n"
    )
    assert len(registry.get(code(family)).questions("train", "easy", 5, 0)) == 5
    files = (
        "from lmsi_jax.config import FileTask\nTASK = FileTask(name='f', kind='span', train='x')\n"
    )
    assert registry.get(code(files)).kind == "span"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name, kind = "riddles", "choice"', "pass", "has no attribute 'name', a text"),
        ('name, kind = "riddles", "choice"', 'name = "r"', "has no attribute 'kind', a kind"),
        ("def rows", "def lines", "has no attribute 'rows', a function; a task has name, kind and"),
        ('"choice"', '"pick"', "kind = 'pick'; choose from number, choice"),
        ('"riddles"', '"a b"', "name = 'a b'; use letters, digits and _"),
        ("rows(self, split)", "rows(self)", "rows takes (); it is called with 1 arguments"),
        ("(self, text, question)", "(self, text)", "read takes (text); it is called with 2"),
        ("TASK = Riddles()", "TASK = Riddles", "is a class; name an instance, TASK = Riddles()"),
    ],
)
def test_what_a_task_lacks_is_named(code, old, new, message):
    assert TASK.count(old) == 1
    name = code(TASK.replace(old, new))
    with pytest.raises(LmsiError) as error:
        registry.get(name)
    assert str(error.value).startswith(f"Questions.tasks: {name}") and message in str(error.value)


@pytest.mark.parametrize(
    ("yielded", "message"),
    [
        ("yield 7", r"rows\('train'\), row 1 is '7'; yield dictionaries"),
        ("yield {'q': 1}", r"rows\('train'\), row 1, column 'question' is missing; the row has"),
        ("raise KeyError('x')", r"rows\('train'\) fails after row 0: KeyError: 'x'"),
    ],
)
def test_rows_that_are_none_are_named(code, yielded, message):
    text = (
        f"class A:\n    name, kind = 'a', 'number'\n    def rows(self, split):\n        {yielded}"
    )
    text += "\n        yield {}\nTASK = A()\n"
    with pytest.raises(LmsiError, match=message):
        registry.get(code(text)).questions("train", "hard", 1, 0)


def test_names_that_clash_or_are_no_names_are_refused(code):
    name = code(TASK.replace('"riddles"', '"legs"'))
    with pytest.raises(LmsiError, match="'legs' is the name of a packaged task; rename it"):
        registry.custom_tasks(Questions(train=("legs",), tasks=(name,)))
    twice = Questions(train=("riddles",), tasks=(code(TASK), code(TASK)))
    with pytest.raises(LmsiError, match="'riddles' is the name of another of Questions.tasks"):
        registry.custom_tasks(twice)
    with pytest.raises(LmsiError, match="list it in Questions.tasks, and name it in"):
        registry.find(Questions(train=("my:T",)), "my:T")
    with pytest.raises(LmsiError, match="did you mean 'riddles'"):
        registry.find(Questions(train=("x",), tasks=(code(TASK),)), "ridles")


# --- rules ----------------------------------------------------------------------------------------


def test_a_reader_s_candidates_are_tried_in_their_order():
    question = _question(read=lambda text, question: ["none", "7 apples", "8"])
    (reading,) = voting.read_answers(question, [_sample("It is 7 apples\nso it is.")])
    assert (reading.key, reading.surface, reading.end) == ("7", "7 apples", len("It is 7 apples"))


def test_a_reader_that_raises_or_returns_nonsense_costs_the_sample_alone(caplog):
    def read(text, question):
        return 7 if text == "odd" else text.split("=")[1]

    texts = ["x = 5", "broken", "odd", "x=5", *["broken"] * 9]
    samples = [_sample(text + " " * n, n) for n, text in enumerate(texts)]
    samples[2] = _sample("odd", 2)
    vote = voting.vote(_question(read=read), samples)
    assert vote.winner == "5" and vote.kept == (0, 3) and vote.total == 13
    assert caplog.text.count("IndexError") == 3  # not once for each sample


def test_an_equality_joins_answers_whatever_the_samples_order():
    def near(a, b):
        return abs(float(a) - float(b)) < 0.5 if "?" not in a + b else 1 / 0

    texts = ["The answer is 3.1.", "The answer is 3.", "The answer is 7.", "The answer is 3.20."]
    question = _question(gold="3.14", equal=near)
    votes = []
    for order in (texts, texts[::-1]):
        samples = [_sample(text, n) for n, text in enumerate(order)]
        votes.append(voting.vote(question, samples))
    assert [vote.winner for vote in votes] == ["3", "3"]
    assert votes[0].kept == (0, 1, 3) and votes[0].surfaces[0] == "3.1"
    right = voting.right_keys(question)
    assert "3" in right and "7" not in right and None not in right and "?" not in right
    assert not right.isdisjoint(votes[0].keys)


@pytest.mark.parametrize("made", [None, 7, "", ("a", "b", "c"), ("a", 1)])
def test_a_prompt_that_is_no_text_is_refused(made):
    rules = {"prompt": lambda *_: made, "names": (("prompt", "my_task:prompt"),)}
    with pytest.raises(LmsiError, match="the prompt of my_task:prompt returns"):
        prompts.build_prompt(_question(**rules), (), "cot")


def test_a_prompt_that_raises_is_named():
    with pytest.raises(LmsiError, match="fails for question 'q' in the style 'cot': ZeroDivision"):
        prompts.build_prompt(_question(prompt=lambda *_: 1 / 0), (), "cot")


def test_rules_are_in_no_file_and_equal_questions_stay_equal():
    question = _question(read=lambda *_: None)
    row = question.to_json()
    assert "rules" not in row and Question.from_json(row) == question
    assert Question.from_json(row).rules is None


def test_functions_of_settings_are_checked_when_the_task_is_made(code):
    reader = code("def read(text):\n    pass\n", "read")
    with pytest.raises(LmsiError, match=r"FileTask.reader: .*takes \(text\); it is called with 2"):
        registry.get(FileTask(name="a", kind="number", train="x", reader=reader))
