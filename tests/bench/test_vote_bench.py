"""The voting benchmark reads what it makes."""

from bench import vote


def test_all_synthetic_answers_are_read_and_counted() -> None:
    rows = vote.synthetic(3, 4)
    found = vote.measure(rows, passes=1)
    assert found["samples"] == 12
    for name in ("lmsi_jax extract + key", "lmsi_jax extract + key + vote"):
        assert found[name]["found"] == 1.0 and found[name]["samples_per_second"] > 0
