"""Rows and prefix in one array come apart again, each with its device group."""

import numpy as np
import pytest

from lmsi_jax.training.forward import MeshLayout


@pytest.mark.parametrize("given", [6, 5])
def test_what_is_joined_comes_apart_again(given):
    layout = MeshLayout(groups=2, rows=4, length=3, places=6)
    rows = np.arange(4 * 3 * 7.0).reshape(4, 3, 7)
    prefix = -1 - np.arange(given * 7.0).reshape(given, 7)
    joined = layout.join(rows, prefix)
    assert joined.shape == (2, (4 * 3 + 6) // 2, 7)
    np.testing.assert_array_equal(layout.rows_of(joined), rows)
    np.testing.assert_array_equal(layout.prefix_of(joined)[0, :given], prefix)
    assert not np.any(layout.prefix_of(joined)[0, given:])


def test_each_group_has_its_own_rows_and_its_share_of_the_prefix():
    layout = MeshLayout(groups=2, rows=4, length=3, places=6)
    rows = np.repeat(np.arange(4), 3).reshape(4, 3)
    joined = layout.join(rows, 10 + np.arange(6))
    assert joined.tolist() == [
        [0, 0, 0, 1, 1, 1, 10, 11, 12],
        [2, 2, 2, 3, 3, 3, 13, 14, 15],
    ]
