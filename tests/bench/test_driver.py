"""What the benchmarks' commands share: failures are told, ratios are right."""

import argparse
import sys

from bench import driver

OPTIONS = argparse.Namespace(peer_python=sys.executable, repeats=1, budget=1.0, timeout=60.0)


def test_a_crash_is_reported_with_the_last_lines_of_its_error() -> None:
    got = driver.parsed("half a line", "Traceback\nValueError: no", 1)
    assert got == {"failed": "exit code 1", "error": ["Traceback", "ValueError: no"]}


def test_output_that_is_no_json_is_a_failure() -> None:
    assert "no JSON" in driver.parsed("hello", "", 0)["error"][-1]


def test_the_last_line_counts_whatever_was_printed_before() -> None:
    assert driver.parsed('noise\n{"a": 1}\n', "", 0) == {"a": 1}


def test_a_python_that_is_not_there_is_a_failure() -> None:
    options = argparse.Namespace(**{**vars(OPTIONS), "peer_python": "/no/python"})
    assert "did not start" in driver.run_one("hf", ("hf",), "smoke", options, tuned={})["failed"]


def test_ratios_stand_beside_what_was_measured_and_nothing_else() -> None:
    results = [
        {"system": "lmsi", "tokens_per_s": 50.0},
        {"system": "hf", "tokens_per_s": 10.0},
        {"system": "t5x_loop", "skipped": "t5x is not installed"},
    ]
    ours, hf, t5x = driver.compare(results, {"tokens_per_s": 100.0})
    assert (ours["ratio_to_roofline"], hf["ratio_to_roofline"]) == (0.5, 0.1)
    assert hf["ours_to_this"] == 5.0
    assert set(t5x) == {"system", "skipped"}


def test_our_fastest_format_is_compared() -> None:
    results = [
        {"system": "lmsi", "tokens_per_s": 20.0},
        {"system": "lmsi_bfloat16", "tokens_per_s": 40.0},
        {"system": "hf", "tokens_per_s": 10.0},
    ]
    assert driver.compare(results, {"tokens_per_s": 100.0})[2]["ours_to_this"] == 4.0


def test_a_letter_names_all_workloads_of_its_shape() -> None:
    known = ("A", "D-8x1", "D-8x16", "E-8x1")
    assert driver._names("D,A", known, "workload") == ["A", "D-8x1", "D-8x16"]
