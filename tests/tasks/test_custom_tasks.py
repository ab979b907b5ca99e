"""Questions in a user's files: formats, columns, options, answers, splits, exemplars, faults."""

import csv
import gzip
import json
import os
import sys

import pytest

from lmsi_jax import voting
from lmsi_jax.config import FileTask
from lmsi_jax.errors import LmsiError
from lmsi_jax.runtime import files
from lmsi_jax.tasks import registry, table_files

ROWS = [{"question": f"What is {n} + 1?", "answer": n + 1} for n in range(40)]


def _task(path, **settings):
    return registry.get(FileTask(name="own", **{"kind": "number", "train": str(path), **settings}))


def _lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _labelled(task, split="train"):
    return {row.text: row.gold for row in task.labelled(split, "hard", 0)}


def _error(task, split="train"):
    with pytest.raises(LmsiError) as error:
        task.questions(split, "hard", 99, 0)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def _write(path, rows):
    if path.name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return
    if ".csv" in path.name or ".tsv" in path.name:
        with open(path.with_suffix(".part"), "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="," if ".csv" in path.name else "\t")
            writer.writeheader()
            writer.writerows(rows)
        text = path.with_suffix(".part").read_text(encoding="utf-8")
    elif path.name.startswith("list"):
        text = json.dumps(rows, indent=1)
    elif path.name.startswith("data"):
        text = json.dumps({"data": rows})
    else:
        text = "\r\n".join(map(json.dumps, rows))
    data = b"\xef\xbb\xbf" + text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.jsonl.gz", "list.json", "data.json", "a.csv", "a.csv.gz", "a.tsv", "a.parquet"],
)
def test_every_format_gives_the_same_questions(tmp_path, name):
    rows = [
        {"question": 'He said "7, or 8".\nWhat is it?', "answer": "7"},
        {"question": "Ärger, \u2028 café?", "answer": "1,000"},
    ]
    _write(tmp_path / name, rows)
    assert _labelled(_task(tmp_path / name)) == {
        'Q: He said "7, or 8".\nWhat is it?': "7",
        "Q: Ärger,\ncafé?": "1,000",
    }


def test_a_pattern_and_several_paths_are_read_in_their_order(tmp_path):
    for number in range(4):
        _lines(tmp_path / f"part{number}.jsonl", ROWS[10 * number : 10 * number + 10])
    everything = _labelled(_task(tmp_path / "part*.jsonl"))
    assert len(everything) == 40
    two = (str(tmp_path / "part0.jsonl"), str(tmp_path / "part[2-3].jsonl"))
    assert len(_labelled(_task(tmp_path, train=two))) == 30
    places = [place for place, _ in table_files.read_rows(two, "train", "own")]
    assert places[0].endswith("part0.jsonl, line 1") and places[-1].endswith("part3.jsonl, line 10")


def test_files_on_a_bucket_are_read(bucket):
    _lines(bucket.root / "a.jsonl", ROWS[:3])
    assert len(_labelled(_task("gs://bucket/a.jsonl"))) == 3
    assert len(_labelled(_task("gs://bucket/*.jsonl"))) == 3


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _lines(tmp_path / "a.jsonl", ROWS[:3])
    assert len(_labelled(_task("~/a.jsonl"))) == 3


# --- columns --------------------------------------------------------------------------------------


def test_unlabelled_rows_are_training_questions(tmp_path):
    rows = [{"question": "How many?"}, {"question": "And how many?", "answer": None}]
    task = _task(_lines(tmp_path / "a.jsonl", rows))
    questions = task.questions("train", "hard", 99, 0)
    assert {(row.text, row.gold) for row in questions} == {
        ("Q: How many?", None),
        ("Q: And how many?", None),
    }
    assert voting.right_keys(questions[0]) == set()


def test_training_questions_keep_no_answer_and_test_questions_do(tmp_path):
    path = _lines(tmp_path / "a.jsonl", ROWS)
    task = _task(path, test=str(path))
    assert {row.gold for row in task.questions("train", "hard", 99, 0)} == {None}
    tests = task.questions("test", "hard", 99, 0)
    assert sorted(int(row.gold) for row in tests) == list(range(1, 41))


def test_a_template_joins_columns_and_paths_lead_into_nested_values(tmp_path):
    row = {"context": "Ann has 3.\n\nBen has 4.", "q": {"stem": "How many {both}?"}, "label": 7}
    template = "{context}\n{q.stem} {{all}}"
    task = _task(_lines(tmp_path / "a.jsonl", [row]), question=template, answer="label")
    assert _labelled(task) == {"Q: Ann has 3.\nBen has 4.\nHow many {both}? {all}": "7"}
    assert _labelled(_task(tmp_path / "a.jsonl", question="q.stem", answer="")) == {
        "Q: How many {both}?": None
    }


def test_a_question_keeps_its_own_prefix(tmp_path):
    rows = [{"question": "Q: Why?"}, {"question": "Premise: It is."}, {"question": "Problem 3"}]
    texts = set(_labelled(_task(_lines(tmp_path / "a.jsonl", rows))))
    assert texts == {"Q: Why?", "Premise: It is.", "Q: Problem 3"}


OPTIONS = ["ice", "a nail", "C. elegans"]
FORMS = {
    "list": {"options": OPTIONS},
    "json in a cell": {"options": json.dumps(OPTIONS)},
    "python in a cell": {"options": repr(OPTIONS)},
    "text and label": {"options": {"text": OPTIONS, "label": ["A", "B", "C"]}},
    "objects": {"options": [{"label": str(n), "text": t} for n, t in enumerate(OPTIONS, 1)]},
    "letters": {"options": dict(zip("ABC", OPTIONS, strict=True))},
    "lettered": {"options": ["A) ice", "B) a nail", "C) C. elegans"]},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_options_gives_the_same_question(tmp_path, form):
    path = tmp_path / "a.jsonl"
    answer = {"objects": "2"}.get(form, "B")
    _lines(path, [{"question": "Which\nrusts?", **FORMS[form], "answer": answer}])
    task = _task(path, kind="choice", options="options")
    assert _labelled(task) == {"Q: Which\nrusts?\n(a) ice (b) a nail (c) C. elegans": "(b)"}


def test_options_may_be_columns_of_their_own(tmp_path):
    rows = [
        {"question": "One?", "A": "x", "B": "y", "C": "z", "answer": "z"},
        {"question": "Two?", "A": "x", "B": "y", "C": "", "answer": "(A)"},
    ]
    task = _task(_lines(tmp_path / "a.jsonl", rows), kind="choice", options=("A", "B", "C"))
    assert _labelled(task) == {
        "Q: One?\n(a) x (b) y (c) z": "(c)",
        "Q: Two?\n(a) x (b) y": "(a)",
    }


@pytest.mark.parametrize(
    ("answer", "first", "expected"),
    [
        (1, 0, "(b)"), (1, 1, "(a)"), ("2", 0, "(c)"), ("2", 1, "(b)"), ("b", 0, "(b)"),
        ("B.", 0, "(b)"), ("a nail", 0, "(b)"), (-1, 0, None), ("", 0, None),
    ],
)  # fmt: skip
def test_the_right_option_is_a_letter_a_number_or_its_text(tmp_path, answer, first, expected):
    path = _lines(tmp_path / "a.jsonl", [{"question": "?", "options": OPTIONS, "answer": answer}])
    task = _task(path, kind="choice", options="options", first_option=first)
    assert list(_labelled(task).values()) == [expected]


@pytest.mark.parametrize(
    ("options", "answer", "message"),
    [
        (OPTIONS, "d", "column 'answer' has 'd', which is none of the options a, b, c"),
        (OPTIONS, 3, "column 'answer' has '3', which is no option"),
        (["b", "a"], "a", "column 'answer' has 'a', the letter of one option and another's text"),
        (["3", "2", "1"], "2", "column 'answer' has '2', which is no option, or more than one"),
        (["ice", " "], "a", "column 'options' has no text in option 2"),
        (["ice"], "a", "column 'options' has 1 options; a question has 2 to 26"),
        ("ice or nails", "a", "column 'options' has 'ice or nails'; write a list such as"),
        ({"text": ["x", "y"], "label": ["A"]}, "A", "has 1 labels for 2 options"),
    ],
)
def test_options_and_answers_that_do_not_fit_are_named(tmp_path, options, answer, message):
    path = _lines(tmp_path / "a.jsonl", [{"question": "?", "options": options, "answer": answer}])
    error = _error(_task(path, kind="choice", options="options"))
    assert error.startswith(f"own: {path}, line 1, ") and message in error


@pytest.mark.parametrize(
    ("kind", "answer", "gold", "also"),
    [
        ("number", 18.0, "18", ()),
        ("number", "She has 3.\n#### 18", "18", ()),
        ("number", ["18", 19], "18", ("19",)),
        ("yes_no", True, "yes", ()),
        ("yes_no", 0, "no", ()),
        ("yes_no", "False", "no", ()),
        ("nli", "entailment", "yes", ()),
        ("nli", 1, "it is not possible to tell", ()),
        ("nli", "c", "no", ()),
        ("nli", -1, None, ()),
        ("span", {"text": ["Chicago Bears", "the Bears"]}, "Chicago Bears", ("the Bears",)),
        ("span", {"text": []}, None, ()),
        ("date", "July 28, 2001", "July 28, 2001", ()),
        ("list", [3, 5, "seven"], "3, 5, seven", ()),
        ("list", [["a", "b"], ["b"]], "a, b", ("b",)),
    ],
)  # fmt: skip
def test_answers_of_every_kind_in_their_usual_forms(tmp_path, kind, answer, gold, also):
    task = _task(_lines(tmp_path / "a.jsonl", [{"question": "?", "answer": answer}]), kind=kind)
    (row,) = task.labelled("train", "hard", 0)
    assert (row.gold, row.also) == (gold, also)


def test_a_list_of_options_may_have_several_right_ones(tmp_path):
    row = {"question": "Which?", "options": OPTIONS, "answer": ["A", "a nail"]}
    task = _task(_lines(tmp_path / "a.jsonl", [row]), kind="list", options="options")
    assert list(_labelled(task).values()) == ["(a), (b)"]


# --- splits ---------------------------------------------------------------------------------------


def test_new_rows_move_no_row_between_the_splits_and_change_no_order(tmp_path):
    few = _task(_lines(tmp_path / "few.jsonl", ROWS[:30]), test_share=0.3)
    more = _task(_lines(tmp_path / "more.jsonl", ROWS[::-1]), test_share=0.3)
    for split in ("train", "test"):
        before = [row.text for row in few.labelled(split, "hard", 5)]
        after = [row.text for row in more.labelled(split, "hard", 5)]
        assert [text for text in after if text in before] == before and len(after) > len(before)
    assert not {*_labelled(more)} & {*_labelled(more, "test")}
    assert 5 <= len(_labelled(more, "test")) <= 20  # 12 are expected


def test_unlabelled_rows_are_never_test_questions_of_a_share(tmp_path):
    rows = [{**row, "answer": None} if n % 2 else row for n, row in enumerate(ROWS)]
    task = _task(_lines(tmp_path / "a.jsonl", rows), test_share=0.9)
    tests, train = _labelled(task, "test"), _labelled(task)
    assert None not in tests.values() and list(train.values()).count(None) == 20


def test_the_seed_draws_the_order(tmp_path):
    task = _task(_lines(tmp_path / "a.jsonl", ROWS))
    orders = [[row.text for row in task.stream("train", "hard", seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])


def test_counts_are_the_most(tmp_path):
    task = _task(_lines(tmp_path / "a.jsonl", ROWS[:7]))
    assert len(task.questions("train", "hard", 1000, 0)) == 7
    assert len(task.questions("train", "hard", 5, 0)) == 5
    assert "own' has no test questions; set FileTask.test" in _error(task, "test")


# --- exemplars ------------------------------------------------------------------------------------

SOLVED = [
    {**row, "solution": f"First we add: {n} + 1 = <<{n}+1={n + 1}>>{n + 1}\nThe answer is {n + 1}."}
    for n, row in enumerate(ROWS)
]


def test_without_exemplars_a_task_is_zero_shot(tmp_path):
    assert _task(_lines(tmp_path / "a.jsonl", SOLVED)).exemplars() == ()


def test_given_solutions_are_exemplars_and_are_not_sampled(tmp_path):
    task = _task(_lines(tmp_path / "a.jsonl", SOLVED), solution="solution", shots=3)
    shown = task.exemplars()
    number = int(shown[0].answer)
    assert shown[0].reasoning == f"First we add: {number - 1} + 1 = {number}."
    assert shown[0].question == f"Q: What is {number - 1} + 1?"
    assert len(shown) == 3 and not {row.question for row in shown} & set(_labelled(task))
    assert len(_labelled(task)) == 37
    worked = [next(stream) for stream in [task.worked("pretrain", "hard", 0)] for _ in range(37)]
    assert len({row.question for row in worked}) == 37


def test_a_solution_that_does_not_say_its_answer_is_no_exemplar(tmp_path):
    rows = [{"question": "How?", "answer": "5", "solution": "So it is. The answer is 6."}]
    task = _task(_lines(tmp_path / "a.jsonl", rows), solution="solution")
    assert task.exemplars()[0].reasoning == "So it is."  # the answer is the column's


def test_exemplars_come_from_a_file_or_are_packaged_ones(tmp_path):
    path = _lines(tmp_path / "a.jsonl", ROWS)
    shots = tmp_path / "shots.txt"
    shots.write_text("Q: 1 + 1?\nA: 1 + 1 = 2. The answer is 2.\n", encoding="utf-8")
    assert _task(path, exemplars=str(shots)).exemplars()[0].answer == "2"
    assert len(_task(path, exemplars="gsm8k", shots=8).exemplars()) == 8
    shots.write_text("Q: 1 + 1?\nA: The answer is 2.\n", encoding="utf-8")
    with pytest.raises(LmsiError, match="shots.txt, item 1 has no reasoning"):
        _task(path, exemplars=str(shots)).exemplars()


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"q": 1}\n', "line 1, column 'question' is missing; the row has q"),
        ("a.jsonl", '{"question": ""}\n', "line 1, column 'question' has no question"),
        ("a.jsonl", '{"question": [1]}\n', "column 'question' has '[1]', which is no text"),
        ("a.jsonl", '{"question": "x"}\n{"question":\n', "line 2 is not one JSON object (Expect"),
        ("a.jsonl", '[{"question": "x"}, 7]', "row 2 is not a JSON object but '7'"),
        ("a.json", '[{"question": "x",}]', "line 1, column 19 is not JSON"),
        ("a.jsonl", '{"question": "\\ud800"}', "line 1, column 'question' has half a character"),
        ("a.jsonl", '{"question": "x", "answer": "?"}', "has '?', which is no answer of the kind"),
        ("a.csv", "question,answer\nx,1,2\n", "line 2 has 3 columns, and line 1 names 2 (question"),
        ("a.csv", 'question,answer\nx,1\n"y"z,1\n', "after line 2: ',' expected after"),
        ("a.csv", "\nx\n", "line 1 must name the columns"),
        ("a.txt", "What is it?\n", "is of no known format; give it the ending of its format"),
        ("a.parquet", "PAR1", "is no Parquet file"),
        ("a.jsonl.gz", "half", "line 1 is not one JSON object"),
    ],
)
def test_a_fault_is_named_by_file_row_and_column(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    error = _error(_task(tmp_path / name))
    assert error.startswith(f"own: {tmp_path / name}") and message in error, error


def test_other_encodings_and_broken_archives_are_named(tmp_path):
    (tmp_path / "a.csv").write_bytes("question\nx\ncaf\u00e9\n".encode("latin-1"))
    assert "a.csv, line 3 is not UTF-8 text" in _error(_task(tmp_path / "a.csv"))
    (tmp_path / "b.jsonl").write_bytes(gzip.compress(b'{"question": "x"}' * 99)[:40])
    assert "b.jsonl (Compressed file ended" in _error(_task(tmp_path / "b.jsonl"))


def test_paths_that_lead_nowhere_are_named(tmp_path):
    assert "there is no file" in _error(_task(tmp_path / "none.jsonl"))
    assert "no file fits the pattern" in _error(_task(tmp_path / "*.jsonl"))
    assert f"is a folder; name its files, as in '{tmp_path}/*.jsonl'" in _error(_task(tmp_path))


def test_a_test_question_without_answer_is_named(tmp_path):
    path = _lines(tmp_path / "a.jsonl", [ROWS[0], {"question": "And?"}])
    error = _error(_task(path, test=str(path)), "test")
    assert f"own: {path}, line 2 has no answer in the column 'answer', and test questions" in error


def test_one_question_with_two_answers_is_refused_and_an_answer_completes_a_row(tmp_path):
    row, bare = ROWS[0], {"question": ROWS[0]["question"]}
    path = _lines(tmp_path / "a.jsonl", [bare, row, {**row, "answer": "1.0"}, bare])
    assert list(_labelled(_task(path)).values()) == ["1"]
    _lines(path, [row, {**row, "answer": 2}])
    assert "line 2 repeats the question of" in _error(_task(path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a b"}, "FileTask.name = 'a b'; use letters, digits and _"),
        ({"kind": "text"}, "FileTask.kind = 'text'; use 'number', 'choice'"),
        ({"train": ()}, "has no files: set FileTask.train, FileTask.test or both"),
        ({"test": "t.jsonl", "test_share": 0.5}, "has test files; set FileTask.test_share to 0"),
        ({"test_share": 1.0}, "FileTask.test_share = 1.0; use 0 or more, below 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(LmsiError) as error:
        FileTask(**{"name": "own", "kind": "number", "train": "a.jsonl", **settings})
    assert message in str(error.value)


def test_a_library_that_is_missing_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "needs the library datasets: pip install datasets" in _error(_task("hub:openai/gsm8k"))
    (tmp_path / "state.json").write_text("{}")
    assert "pip install datasets, or save the rows" in _error(_task(tmp_path))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "needs pyarrow: pip install pyarrow" in _error(_task(tmp_path / "a.parquet"))


class _Datasets:
    """Stands in for the library `datasets`: splits as dictionaries of rows."""

    calls: list = []

    @classmethod
    def load_dataset(cls, name, config, split=None):
        cls.calls.append((name, config, split))
        if name == "none":
            raise ValueError("Dataset 'none' doesn't exist\non the Hub")
        return ROWS[:2] if split else {"train": ROWS[:3], "validation": ROWS[3:5]}

    @staticmethod
    def load_from_disk(path):
        return {"train": ROWS[:4], "test": ROWS[4:9]}


def test_hub_names_and_saved_folders_are_read_through_datasets(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", _Datasets)
    assert len(_labelled(_task("hub:openai/gsm8k:main"))) == 3
    assert len(_labelled(_task("hub:openai/gsm8k:main:validation"))) == 2
    assert len(_labelled(_task("hub:openai/gsm8k::validation"))) == 2
    assert _Datasets.calls[-1] == ("openai/gsm8k", None, "validation")
    assert "has no split 'test' but train, validation" in _error(
        _task("hub:a/b", test="hub:a/b"), "test"
    )
    assert "hub:none cannot be loaded (ValueError: Dataset 'none' doesn't exist)" in _error(
        _task("hub:none")
    )
    (tmp_path / "dataset_dict.json").write_text("{}")
    saved = _task(tmp_path, test=str(tmp_path))
    assert (len(_labelled(saved)), len(_labelled(saved, "test"))) == (4, 5)


# --- digests, registry ----------------------------------------------------------------------------


def test_the_digest_follows_contents_and_settings_and_not_the_folder(tmp_path):
    def digests(folder, rows=ROWS, **settings):
        (tmp_path / folder).mkdir(exist_ok=True)
        path = _lines(tmp_path / folder / "a.jsonl", rows)
        return _task(path, **settings).digests()

    first = digests("one")
    assert first == digests("two")
    assert first != digests("two", ROWS[1:])
    assert first != digests("two", question="{question}")
    assert first != digests("two", shots=3)


def test_seqio_yields_the_same_questions(tmp_path):
    import seqio

    path = _lines(tmp_path / "a.jsonl", ROWS)
    config = FileTask(name="own_rows", kind="number", train=str(path), test=str(path))
    registry.register((config,))
    try:
        source = seqio.TaskRegistry.get("lmsi_own_rows").source
        for split in ("train", "test"):
            rows = source.get_dataset(split=split, shuffle=False, seed=3).as_numpy_iterator()
            read = [(row["question"].decode(), row["answer"].decode() or None) for row in rows]
            stream = registry.get(config).stream(split, "hard", 3)
            assert read == [(row.text, row.gold) for row in stream]
    finally:
        seqio.TaskRegistry.remove("lmsi_own_rows")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv.gz"])
def test_a_pipe_in_place_of_a_file_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert "is no regular file" in _error(_task(tmp_path / name))


@pytest.mark.parametrize(
    ("text", "place"),
    [("[" * 100_000, "a.json cannot be read"), ('{"question": ' * 100_000, "a.json, line 1")],
)
def test_values_that_are_nested_without_end_are_named(tmp_path, text, place):
    (tmp_path / "a.json").write_text(text)
    error = _error(_task(tmp_path / "a.json"))
    assert place in error and "nested too deeply" in error


@pytest.mark.parametrize(
    "column",
    [
        ["x" * (1 << 17)] * 200,  # one value of the page's dictionary, 200 times
        ["x" * (1 << 20), "y" * (1 << 20)],  # pages that shrink a thousand times
        [None] * 300_000,
    ],
    ids=["dictionary", "pages", "nothing"],
)
def test_a_parquet_file_that_expands_without_end_is_refused_in_bounded_memory(
    tmp_path, monkeypatch, column
):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = pyarrow.table({"question": pyarrow.array(column, pyarrow.string())})
    parquet.write_table(rows, tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 16
    monkeypatch.setattr(files, "_DATA_BYTES", 1 << 20)
    before = pyarrow.default_memory_pool()
    pool = pyarrow.proxy_memory_pool(before)
    pyarrow.set_memory_pool(pool)
    try:
        assert "a.parquet expands to more than 1 MiB; split" in _error(
            _task(tmp_path / "a.parquet")
        )
    finally:
        pyarrow.set_memory_pool(before)
    assert pool.max_memory() < 6 << 20


def test_a_parquet_file_of_a_large_dictionary_is_read_in_small_batches(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(files, "_DATA_BYTES", 1 << 16)
    rows = [{"question": f"{n % 7} {'x' * 99}?", "answer": n} for n in range(300)]
    _write(tmp_path / "a.parquet", rows)
    assert [
        row["answer"]
        for _, row in table_files.read_rows([str(tmp_path / "a.parquet")], "train", "t")
    ] == [row["answer"] for row in rows]


def test_what_expands_without_end_and_documents_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_DATA_BYTES", 1 << 20)
    monkeypatch.setattr(files, "_DOCUMENT_BYTES", 1 << 10)
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(bytes(2 << 20)))
    assert "a.jsonl expands to more than 1 MiB" in _error(_task(tmp_path / "a.jsonl"))
    rows = [{"question": f"{n}?", "answer": n} for n in range(99)]
    assert len(_labelled(_task(_lines(tmp_path / "lines.json", rows)))) == 99
    (tmp_path / "list.json").write_text(json.dumps(rows))
    assert "write one object a line" in _error(_task(tmp_path / "list.json"))
