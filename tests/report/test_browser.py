"""The sample browser: its data, hostile texts, and the page in a headless browser."""

import html
import json
import pathlib
import re
import shutil
import subprocess

import pytest

from lmsi_jax.records import Sample, Vote
from lmsi_jax.report.browser import Answered, Browsed, write_browser

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\u2028&amp;"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def answered(number, uid, texts, keys, gold="7"):
    counts = {key: keys.count(key) for key in keys if key is not None}
    winner = max(counts, key=lambda key: counts[key], default=None)
    kept = tuple(i for i, key in enumerate(keys) if key == winner and key is not None)
    vote = Vote(
        uid=uid,
        task="sums",
        winner=winner,
        keys=tuple(keys),
        kept=kept,
        confidence=len(kept) / len(keys),
        parsed=sum(key is not None for key in keys),
        total=len(keys),
        tied=(),
        entropy=0.0,
    )
    samples = [
        Sample(uid=uid, sample_index=i, text=text, tokens=3, logprob=-1.5, end="stop")
        for i, text in enumerate(texts)
    ]
    right = None if gold is None else [key == gold for key in keys]
    vote_right = None if gold is None or winner is None else winner == gold
    return Answered(number, vote, samples, right, vote_right)


def item(uid, *answers, style="cot", split="test", text=None, gold="7", task="sums"):
    words = text or f"What is {uid}?"
    return Browsed(split, uid, task, words, gold, style, answers)


ITEMS = [
    item(
        "gained",
        answered(0, "gained", ["it is 5", "it is 5", "it is 7"], ["5", "5", "7"]),
        answered(1, "gained", ["now 7", "now 7", "odd 8"], ["7", "7", "8"]),
    ),
    item(
        "lost",
        answered(0, "lost", ["so 7"], ["7"]),
        answered(1, "lost", ["so 9"], ["9"]),
        style="standard",
    ),
    item("silent", answered(0, "silent", ["hm"], [None]), answered(1, "silent", [""], [None])),
    item(
        "evil", answered(0, "evil", [EVIL], ["7"]), answered(1, "evil", [EVIL], [EVIL]), text=EVIL
    ),
    item(
        "unlabelled",
        answered(1, "unlabelled", ["x 3"], ["3"], None),
        style="",
        split="train",
        gold=None,
    ),
]


def written(items, folder=None):
    files: dict[str, bytes] = {}

    def write(name, data):
        files[name] = data
        if folder is not None:
            pathlib.Path(folder, name).write_bytes(data)

    return write_browser("first", iter(items), write), files


def called(data):
    """Returns the arguments of the call in a script of data."""
    text = data.decode()
    return json.loads("[" + re.fullmatch(r"lmsi\.\w+\((.*)\);\n", text, re.DOTALL)[1] + "]")


def test_every_sample_is_in_the_files_once_with_its_count():
    (samples, shards), files = written(ITEMS)
    assert (samples, shards) == (3 + 3 + 1 + 1 + 1 + 1 + 1 + 1 + 1, 1)
    (index,) = called(files["questions.js"])
    number, rows = called(files["samples-00000.js"])
    assert (number, index["samples"], len(index["items"])) == (0, samples, len(rows) == 5 and 5)
    assert sum(text[5] for row in rows for _, texts in row for text in texts) == samples
    # Text, key, right, agrees with the vote, finished, count, log-probability.
    assert rows[0][0] == [
        0,
        [["it is 5", "5", 0, 1, 1, 2, -1.5], ["it is 7", "7", 1, 0, 1, 1, -1.5]],
    ]
    # Round, winner, right, confidence, parsed, total, tied.
    assert index["items"][0][5] == [[0, "5", 0, 0.6667, 3, 3, 0], [1, "7", 1, 0.6667, 3, 3, 0]]
    assert index["items"][2][5][0][1:3] == [None, None]
    assert index["questions"][4] == ["unlabelled", "sums", "What is unlabelled?", None]


def test_a_question_that_is_asked_in_several_styles_is_stored_once():
    items = [
        item("a", answered(0, "a", ["7"], ["7"]), style=style) for style in ("cot", "standard")
    ]
    _, files = written(items)
    (index,) = called(files["questions.js"])
    assert len(index["questions"]) == 1 and [row[0] for row in index["items"]] == [0, 0]


def test_samples_are_divided_into_files_that_are_loaded_one_at_a_time():
    long = "x" * 150_000
    items = [item(f"q{i}", answered(0, f"q{i}", [f"{i} {long}"], ["7"])) for i in range(7)]
    (samples, shards), files = written(items)
    assert (samples, shards) == (7, 3)
    (index,) = called(files["questions.js"])
    assert [row[3:5] for row in index["items"]] == [
        *([0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0])
    ]
    for i, row in enumerate(index["items"]):
        rows = called(files[f"samples-{row[3]:05d}.js"])[1]
        assert rows[row[4]][0][1][0][0] == f"{i} {long}"


def test_no_text_can_end_a_script_or_become_markup():
    _, files = written(ITEMS)
    for name in ("questions.js", "samples-00000.js"):
        text = files[name].decode("ascii")
        assert "<" not in text and ">" not in text and "&" not in text
    (index,) = called(files["questions.js"])
    assert index["questions"][3][2] == EVIL  # and it comes back whole
    assert "owned" not in files["index.html"].decode()
    script = files["browse.js"].decode()
    for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "document.write"):
        assert dangerous not in script


def test_the_page_may_load_the_files_beside_it_and_nothing_from_elsewhere():
    page = written(ITEMS)[1]["index.html"].decode()
    policy = html.unescape(
        re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)[1]
    )
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'self' file:"
    assert re.findall(r'src="(.*?)"', page) == ["browse.js", "questions.js"]


def test_equal_runs_give_equal_bytes():
    assert written(ITEMS)[1] == written(ITEMS)[1]


@pytest.fixture(scope="module")
def dom(tmp_path_factory):
    """Returns the function that opens the page with a hash and returns the text on the screen."""
    folder = tmp_path_factory.mktemp("browse")
    written(ITEMS, folder)

    def opened(state=""):
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
            + ["--dump-dom", f"{(folder / 'index.html').as_uri()}#{state}"],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout

    return opened


def _rows(dom):
    return re.findall(r'<span class="question">(.*?)</span>', dom)


@pytest.mark.slow
@in_chromium
@pytest.mark.parametrize(
    ("state", "uids"),
    [
        ("", ["gained", "lost", "silent", "evil"]),
        ("split=train", ["unlabelled"]),
        ("style=standard", ["lost"]),
        ("outcome=gained", ["gained"]),
        ("outcome=lost", ["lost", "evil"]),
        ("outcome=none", ["silent"]),
        ("outcome=flipped", ["gained", "lost", "evil"]),
        ("some=unparsed", ["silent"]),
        ("low=50&high=80", ["gained"]),
        ("text=what+is+lost", ["lost"]),
        ("text=odd+8", []),
        ("text=odd+8&deep=1", ["gained"]),
        ("item=lost~standard", ["lost"]),
    ],
)
def test_filters_search_and_permalinks_choose_the_questions(dom, state, uids):
    page = dom(state)
    words = {uid: "&lt;/script&gt;" if uid == "evil" else f"What is {uid}?" for uid in uids}
    rows = _rows(page)
    assert len(rows) == len(uids)
    assert all(row.startswith(words[uid]) for row, uid in zip(rows, uids, strict=True))
    assert f"{len(uids)} row{'s' * (len(uids) != 1)}" in page


@pytest.mark.slow
@in_chromium
def test_an_opened_question_shows_both_models_and_the_dissenting_samples(dom):
    page = dom("item=gained~cot")
    assert page.index("<h3>Base") < page.index("<h3>Round 1")
    for text in ("it is 5", "it is 7", "now 7", "odd 8"):
        assert page.count(f"<pre>{text}</pre>") == 1
    assert "2 samples, 66.7&nbsp;%" in page and "1 sample, 33.3&nbsp;%, dissenting" in page


@pytest.mark.slow
@in_chromium
def test_a_hostile_text_is_shown_as_text(dom):
    page = dom("item=evil~cot")
    assert "<title>first: all samples</title>" in page
    assert "onerror=alert(1)&gt;" in page and "<img" not in page
