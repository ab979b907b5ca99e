"""A run's evaluation as the harness logs it: the same accuracies, a line for each question."""

import json

import pytest

from lmsi_jax.cli.main import main
from lmsi_jax.errors import LmsiError
from lmsi_jax.integrations.lm_eval_log import export_eval


@pytest.fixture
def logs(copy, tmp_path, capsys):
    assert main(["export-eval", str(copy), str(tmp_path / "logs")]) == 0
    assert capsys.readouterr().out.count("results: ") == 2
    return tmp_path / "logs"


def _results(folder):
    (file,) = folder.glob("results_*.json")
    return json.loads(file.read_text())


def _samples(folder, name):
    (file,) = folder.glob(f"samples_{name}_2*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_results_are_the_accuracies_of_the_report(copy, logs):
    for row in json.loads((copy / "eval.json").read_text()):
        name = f"lmsi_{row['task']}_{row['prompt_style']}"
        for number, one in enumerate(row["accuracy"]):
            results = _results(logs / f"round_{number}")
            assert results["results"][name]["exact_match,none"] == pytest.approx(one["share"])
            assert results["n-samples"][name] == {"original": one["n"], "effective": one["n"]}
            assert results["configs"][name]["num_fewshot"] == results["n-shot"][name] > 0


def test_samples_are_the_prompts_answers_and_votes_of_the_run(copy, logs):
    from lmsi_jax.runtime.store import ShardStore

    votes = ShardStore(copy / "round_1" / "eval").read("votes-purchases-self_consistency")
    rows = _samples(logs / "round_1", "lmsi_purchases_self_consistency")
    assert [row["doc"]["uid"] for row in rows] == [vote["uid"] for vote in votes]
    assert [row["filtered_resps"] for row in rows] == [[vote["winner"] or ""] for vote in votes]
    for row in rows:
        prompt = row["arguments"]["gen_args_0"]["arg_0"]
        assert prompt.endswith("A:") and row["doc"]["question"] in prompt
        assert len(row["resps"][0]) == 4
        assert row["exact_match"] == float(row["target"] in row["filtered_resps"])


def test_the_fields_are_the_harness_s(logs):
    schema = pytest.importorskip("lm_eval.result_schema")
    (row, *_) = _samples(logs / "round_1", "lmsi_purchases_cot")
    assert set(row) - {"exact_match"} == set(schema.SampleResult.__annotations__)
    assert set(_results(logs / "round_1")) <= set(schema.EvalResults.__annotations__)


def test_a_round_that_was_not_evaluated_is_named(copy, tmp_path):
    with pytest.raises(LmsiError, match="round 3 of .* is not evaluated; run `lmsi eval`"):
        export_eval(copy, tmp_path / "logs", rounds=(3,))
