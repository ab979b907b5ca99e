"""`lmsi probe`: what the base model completes, its table, and what makes it stale."""

import json

from micro_run import snapshot

from lmsi_jax.records import Question, Sample
from lmsi_jax.report.summary import Summary
from lmsi_jax.runtime.store import ShardStore
from lmsi_jax.tasks.contamination import completion_overlap, split_question


def test_the_probe_completes_test_questions_and_its_table_is_in_the_report(lmsi, copy):
    code, out, _ = lmsi("probe", copy)
    assert code == 0 and "rest word by word" in out and "purchases" in out
    store = ShardStore(copy / "round_0" / "probe")
    samples = {}
    for name in store.names():
        assert name.startswith("purchases-60-")
        samples |= {row["uid"]: Sample.from_json(row) for row in store.read(name)}
    rows = ShardStore(copy / "questions").read("test-purchases")
    questions = {row["uid"]: Question.from_json(row) for row in rows}
    assert samples.keys() == questions.keys()
    (row,) = json.loads((copy / "round_0" / "probe" / "probe.json").read_text())
    overlaps = []
    for uid, question in questions.items():
        _, rest = split_question(question.text.removeprefix("Q: "), 0.6)
        overlaps.append(completion_overlap(rest, samples[uid].text))
    assert (row["share"], row["questions"]) == (0.6, len(questions))
    assert row["exact"][0] == sum(one.exact for one in overlaps)
    assert row["rouge"][0] == sum(one.rouge for one in overlaps) / len(overlaps)
    before = snapshot(copy / "round_0")
    assert lmsi("probe", copy)[0] == 0 and snapshot(copy / "round_0") == before
    code, _, error = lmsi("probe", copy, {"Evaluation.probe_shares": (0.4,)})
    assert code == 2 and "probe_shares" in error
    assert lmsi("report", copy)[0] == 0
    summary = Summary.from_json(json.loads((copy / "report.json").read_text()))
    assert [one.task for one in summary.probe] == ["purchases"]
    assert "Contamination probe" in (copy / "report.html").read_text()


def test_a_probe_needs_test_questions(lmsi, tmp_path):
    code, _, error = lmsi("probe", tmp_path / "run", {"Questions.test": ()})
    assert code == 2 and "the probe completes test questions; set Questions.test" in error
