"""What is read from compiled programs, on texts written by hand in XLA's notation."""

import pathlib

import pytest

from lmsi_jax.tools.aot_costs import array_bytes, group_size, read_program


def _text(name: str) -> str:
    """A program of this folder."""
    return pathlib.Path(__file__).with_name(f"{name}.hlo").read_text(encoding="utf-8")


# 5 turns: each gathers an [8, 4] matrix from 2 chips, multiplies by it, and adds up over 4 chips.
_LOOP = _text("loop")


def test_what_a_loop_does_counts_as_often_as_it_turns():
    found = read_program(_LOOP)
    assert found.unknown_loops == 0
    assert found.flops == 5 * 2 * 3 * 8 * 4
    assert found.cycles == 5 * 100
    gathered, reduced = found.collectives["all-gather"], found.collectives["all-reduce"]
    # Of 8 x 4 bfloat16 on 2 chips half comes from the other; a ring of 4 passes 3/4, twice.
    assert (gathered.count, gathered.bytes) == (5, 5 * 8 * 4 * 2 / 2)
    assert (reduced.count, reduced.bytes) == (5, 5 * 2 * (3 * 4 * 4) * 3 / 4)
    permuted = found.collectives["collective-permute"]
    assert (permuted.count, permuted.bytes) == (1, 3 * 8 * 2)


def test_a_loop_is_said_to_turn_as_often_as_xla_notes_it():
    noted = 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    assert read_program(_LOOP.replace("body=%body", noted)).flops == 7 * 2 * 3 * 8 * 4


def test_a_loop_whose_end_is_computed_counts_once_and_is_reported():
    found = read_program(_LOOP.replace("compare(%turn, %five)", "compare(%turn, %turn)"))
    assert (found.unknown_loops, found.flops) == (1, 2 * 3 * 8 * 4)


def test_a_loop_that_takes_several_turns_in_one_turns_less_often():
    raised = """  %one = s32[] constant(1)
  %two = s32[] constant(2)
  %turn.2 = s32[] get-tuple-element(%state.2), index=0
  %half = s32[] add(%turn.2, %one)
  %turn.3 = s32[] add(%two, %half)
  ROOT %next = (s32[], bf16[3,8]{1,0}) tuple(%turn.3, %rows.1)"""
    (end,) = (line for line in _LOOP.splitlines() if "ROOT %next" in line)
    assert (
        read_program(_LOOP.replace(end, raised)).flops == 2 * 2 * 3 * 8 * 4
    )  # 0, 3, and 6 is no more


def test_pieces_of_one_collective_count_once():
    lines = _LOOP.splitlines()
    (gather,) = (line for line in lines if "all-gather(" in line)
    lines.insert(lines.index(gather) + 1, gather.replace("all-gather.1 =", "all-gather.2 ="))
    assert read_program("\n".join(lines)).collectives == read_program(_LOOP).collectives


def test_an_all_reduce_whose_share_is_kept_is_a_reduce_scatter():
    found = read_program(_text("scatter")).collectives
    assert list(found) == ["reduce-scatter"]
    assert found["reduce-scatter"].bytes == 8 * 4 * 2 * 3 / 4


def test_every_branch_of_a_conditional_counts():
    assert read_program(_text("branches")).flops == 2 * (2 * 4 * 4 * 4)


@pytest.mark.parametrize(
    ("attributes", "shapes", "pairs"),
    [
        # [3, 8] x [8, 4]
        ("dim_labels=bf_io->bf", ("3,8", "8,4", "3,4"), 3 * 8 * 4),
        # 5 products [3, 8] x [8, 4]: the batch axis is a window that meets one place of the input.
        (
            "window={size=5 stride=4 pad=0_0 lhs_dilate=5}, dim_labels=0bf_0io->0bf",
            ("5,3,8", "5,8,4", "5,3,4"),
            5 * 3 * 8 * 4,
        ),
        # 5 rows of each of 3 matrices, summed over both: the window covers the whole axis.
        ("window={size=5}, dim_labels=0bf_0io->0bf", ("5,3,8", "5,8,4", "1,3,4"), 5 * 3 * 8 * 4),
        # The same axis of the output alone: padded so that each place meets one tap.
        (
            "window={size=5 pad=4_4 rhs_reversal=1}, dim_labels=0bf_0io->0bf",
            ("1,3,8", "5,8,4", "5,3,4"),
            5 * 3 * 8 * 4,
        ),
    ],
)
def test_products_written_as_convolutions_count_their_multiplications(attributes, shapes, pairs):
    left, right, out = shapes
    text = f"""
ENTRY %main () -> f32[{out}] {{
  %left = f32[{left}]{{1,0}} parameter(0)
  %right = f32[{right}]{{1,0}} parameter(1)
  ROOT %product = f32[{out}]{{1,0}} convolution(%left, %right), {attributes}
}}
"""
    assert read_program(text).flops == 2 * pairs


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,2,4},{1,3,5}}, x", 3),
        ("replica_groups=[8,64]<=[512], x", 64),
        ("replica_groups=[2,4]<=[4,2]T(1,0), x", 4),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2] {'axis_0'}, x", 4),
        ("replica_groups=mesh['a'=4,'b'=3,'c'=2] {'a','c'}, x", 8),
    ],
)
def test_every_notation_of_groups_is_read(groups, size):
    assert group_size(groups) == size


def test_bytes_of_a_shape_are_those_of_its_arrays():
    assert array_bytes("(bf16[2,3]{1,0:T(8,128)(2,1)}, f32[], s32[5]{0}, token[])") == 12 + 4 + 20
