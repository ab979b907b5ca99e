"""Replica groups: arithmetic on numbers of processes and devices."""

import dataclasses
import re

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.config import Decoding
from lmsi_jax.errors import LmsiError
from lmsi_jax.models.sharding import (
    ReplicaGroup,
    local_replica_group,
    make_decode_mesh,
    make_mesh,
    replica_group_devices,
    replica_group_of,
)


def test_palm_540b_on_a_v5p_slice_has_32_replica_groups_of_four_machines():
    teams = [replica_group_of(1, 16, [4] * 128, process) for process in range(128)]
    assert {replica_group.count for replica_group in teams} == {32}
    assert teams[6] == ReplicaGroup(1, 32, range(4, 8), 6)
    assert [replica_group.process for replica_group in teams if replica_group.first] == list(
        range(0, 128, 4)
    )
    assert [replica_group.index for replica_group in teams] == [
        process // 4 for process in range(128)
    ]


@given(own=st.integers(1, 8), size=st.integers(1, 6), count=st.integers(1, 5), data=st.data())
def test_every_process_is_in_one_group_whose_members_agree_and_have_the_mesh(
    own, size, count, data
):
    wanted = own * size
    model = data.draw(st.sampled_from([n for n in range(1, wanted + 1) if wanted % n == 0]))
    teams = [
        replica_group_of(wanted // model, model, [own] * (size * count), process)
        for process in range(size * count)
    ]
    for process, replica_group in enumerate(teams):
        assert process in replica_group.members and len(replica_group.members) == size
        for member in replica_group.members:
            assert teams[member] == dataclasses.replace(replica_group, process=member)
        assert replica_group.several == (size > 1)
        assert replica_group.first == (process == min(replica_group.members))
    assert sorted({replica_group.index for replica_group in teams}) == list(range(count))


@given(wanted=st.integers(1, 4), devices=st.lists(st.integers(4, 8), min_size=1, max_size=5))
def test_a_mesh_that_fits_every_process_is_each_one_s_own(wanted, devices):
    for process in range(len(devices)):
        alone = ReplicaGroup(process, len(devices), range(process, process + 1), process)
        assert replica_group_of(wanted, 1, devices, process) == alone


@pytest.mark.parametrize(
    ("mesh", "devices", "message"),
    [
        ((8, 8), [8], "need 64 devices, this process has 8; lower one of them"),
        ((8, 8), [8, 8], "this process has 8, all 2 processes 16 together; lower one of them"),
        ((2, 3), [4] * 4, "need 6 devices, no multiple of the 4 that a process has; use 4 or 8"),
        (
            (1, 12),
            [4] * 8,
            "those of 3 processes, and 8 processes are no multiple of 3; start 6 or 9, or choose a "
            "mesh of 4 or 8 or 16 or 32 devices",
        ),
        (
            (2, 4),
            [4, 4, 8],
            "of several processes, which have 4 to 8 each; start them with equally many, or choose "
            "a mesh of at most 4",
        ),
    ],
)
def test_what_makes_no_equal_groups_is_refused_by_all_with_the_remedy(mesh, devices, message):
    for process in range(len(devices)):
        with pytest.raises(LmsiError, match=re.escape(message)):
            replica_group_of(*mesh, devices, process)


def test_a_single_process_is_a_group_with_all_its_devices():
    replica_group = local_replica_group(1, 1)
    assert replica_group == ReplicaGroup() and not replica_group.several
    assert replica_group_devices(replica_group) == tuple(jax.devices())
    assert not make_decode_mesh(Decoding()).is_multiprocess


class _Chip:
    """A fake chip at given coordinates of a slice."""

    platform, device_kind, process_index, core_on_chip = "tpu", "TPU v5p", 0, 0

    def __init__(self, *coords):
        self.coords = coords
        self.id = hash(coords)


def test_chips_that_leave_a_hole_are_laid_out_in_their_order():
    """Three machines of a slice that is two machines wide."""
    chips = [_Chip(x, y, 0) for y in range(4) for x in range(4) if y < 2 or x < 2]
    grid = make_mesh(chips, 3, 4).devices
    assert [chip.coords for chip in grid.flat] == [chip.coords for chip in chips]
