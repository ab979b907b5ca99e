"""The voting benchmark reads what it makes."""

from bench import vote
from lmsi_jax.answers import canonical, reader


def test_all_synthetic_answers_are_read_and_counted() -> None:
    rows = vote.synthetic(3, 4)
    found = vote.measure(rows, passes=1)
    assert found["samples"] == 12
    for name in (
        "lmsi_jax extract + key",
        "lmsi_jax extract + key + vote",
        "lmsi_jax extract + key + vote, first pass",
    ):
        assert found[name]["found"] == 1.0 and found[name]["samples_per_second"] > 0


def test_a_first_pass_looks_nothing_up() -> None:
    vote.measure(vote.synthetic(3, 4), passes=1)
    caches = (canonical._plain_key, reader._surface)
    assert all(cache.cache_info().currsize > 0 for cache in caches)
    vote.forget_answers()
    assert all(cache.cache_info().currsize == 0 for cache in caches)
