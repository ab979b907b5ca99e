"""How often a run does the same work: each text is parsed once, each shard read once a stage."""

import collections
import pathlib

from micro_run import shard_rows

from lmsi_jax import answers
from lmsi_jax.cli.main import main
from lmsi_jax.pipeline.step import Step
from lmsi_jax.records import Sample
from lmsi_jax.runtime.store import ShardStore

CHANGES = {
    "Run.rounds": 2,
    "CollapseMonitor.empty": 0.0,
    "Sampling.adaptive_consistency": 0.9,
    "Sampling.adaptive_consistency_every": 2,
    "DistributionShift.validation": "confident",
    "DistributionShift.share": 1.0,
}
FILTERS = "--gin.Mixing.selection=(@DistributionShift(),)"


def _texts(folder):
    """Returns the different texts of each question in a stage's shards."""
    store = ShardStore(folder)
    rows = [row for name in store.names() if "-of-" in name for row in store.read(name)]
    samples = [Sample.from_json(row) for row in rows]
    return {(sample.uid, sample.text, sample.concluded) for sample in samples}


def test_a_text_is_parsed_once_and_a_shard_read_once_a_stage(words, tmp_path, monkeypatch):
    parsed, reads, stages = [], collections.Counter(), ["report"]
    find_answer, read, execute = answers.find, ShardStore._bytes, Step.execute

    def counted_answer(text, *args, **options):
        parsed.append(text)
        return find_answer(text, *args, **options)

    def counted_read(store, name):
        data = read(store, name)
        if data is not None:
            reads[stages[-1], pathlib.Path(store.path(name)).relative_to(tmp_path)] += 1
        return data

    def counted_execute(step, round, fingerprints):
        stages.append(f"{step.name} {round.index}")
        try:
            return execute(step, round, fingerprints)
        finally:
            stages.pop()

    monkeypatch.setattr(answers, "find", counted_answer)
    monkeypatch.setattr(ShardStore, "_bytes", counted_read)
    monkeypatch.setattr(Step, "execute", counted_execute)
    assert main([*words("run", tmp_path, CHANGES), FILTERS]) == 0
    monkeypatch.undo()
    texts = []
    for index in (0, 1, 2):
        folder = tmp_path / f"round_{index}"
        samples = _texts(folder / "sample") if index else set()
        texts += [*samples, *_texts(folder / "eval")]
    assert len(shard_rows(tmp_path / "round_1" / "sample", Sample)) > 16
    assert sorted(parsed) == sorted(text for _, text, _ in texts)
    again = {name: count for name, count in reads.items() if count > 1 and name[0] != "report"}
    assert again == {}
    # Between the rounds the collapse monitor reads, after them the report.
    assert all(count <= 2 for name, count in reads.items() if name[0] == "report")
    assert {stage.split()[0] for stage, _ in reads} == {
        *("questions", "sample", "vote", "filter_scores", "mix", "train", "eval", "report")
    }
