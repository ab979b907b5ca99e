"""Every sample runs once, no page has two owners, and nothing waits that could run."""

from hypothesis import given
from hypothesis import strategies as st

from lmsi_jax.rollout.scheduler import Plan, Scheduler


def _owned(active):
    """Returns the owner of each page: (question, sample, which of its pages)."""
    return {
        page: (path.question, path.index, at)
        for path in active
        for at, page in enumerate(path.pages)
    }


def _compact(scheduler, size, stored):
    """Carries the moves out in `stored` and checks that every sample finds its pages again."""
    before = {path.question * 1000 + path.index: len(path.pages) for path in scheduler.active}
    moves = scheduler.compact(size)
    assert not {begin for begin, _ in moves} & {end for _, end in moves}
    for begin, end in moves:
        stored[end] = stored.pop(begin)
    owned = _owned(scheduler.active)
    assert all(stored[page] == what for page, what in owned.items())
    after = {path.question * 1000 + path.index: len(path.pages) for path in scheduler.active}
    assert after == before
    free = scheduler._free_pages
    assert sorted([*owned, *free]) == list(range(scheduler.pages))
    # The next chunk's pages come first in the heap, so its segments are as few as can be.
    needed = len(owned) + sum(scheduler._needs_page(path) for path in scheduler.active)
    assert all(page < -(-needed // size) * size for page in owned)


def _drive(scheduler, plan, seen):
    """Runs chunks to the end, checking what must hold between them."""
    complete, chunks, stored = [], 0, {}
    while not scheduler.done:
        while scheduler.idle and (pair := scheduler.admit()):
            assert pair[1] < plan.prompt_slots
            seen.setdefault("seats", []).append(pair[0])
        scheduler.start()
        if missing := scheduler.missing_pages():
            scheduler.add_pages(missing)
        _compact(scheduler, plan.slots, stored)
        targets = scheduler.allot()
        active = scheduler.active
        stored.update(_owned(active))
        assert len(active) <= plan.slots
        owned = [page for path in active for page in path.pages]
        assert len(owned) == len(set(owned)) <= scheduler.pages
        for path, (page, offset) in zip(active, targets, strict=True):
            going = len(path.tokens) + plan.chunk < path.limit
            assert (page >= 0) == going
            if going:
                assert page == path.pages[len(path.tokens) // plan.page]
                assert offset == len(path.tokens) % plan.page
        of_slot = {}
        for path in active:
            of_slot.setdefault(path.prompt_slot, set()).add(path.question)
        assert all(len(questions) == 1 for questions in of_slot.values())
        finished = []
        for path in active:
            path.tokens += [0] * plan.chunk
            seen.setdefault("limits", []).append(path.limit)
            if len(path.tokens) >= path.limit:
                finished.append(path)
                seen.setdefault("paths", []).append((path.question, path.index))
        complete += list(scheduler.end(finished))
        chunks += 1
        assert chunks < 10_000
    # Nobody holds a page any more: as many as there are could be taken at once.
    assert len(scheduler._free_pages) == scheduler.pages
    longest = -(-max((limit for limit in seen.get("limits", [0])), default=0) // plan.page)
    assert scheduler.pages <= plan.slots * max(longest, 0)
    return complete


@given(
    st.lists(st.lists(st.integers(1, 30), min_size=4, max_size=4), max_size=12),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_every_sample_of_every_question_runs_once(lengths, rows, slots, places):
    plan = Plan(
        num_samples=4, slots=rows, prompt_slots=slots, slots_per_prompt=places, chunk=2, page=6
    )
    seen = {}
    questions = iter(range(len(lengths)))
    scheduler = Scheduler(plan, questions, lambda q, k: lengths[q][k])
    complete = _drive(scheduler, plan, seen)
    assert sorted(complete) == list(range(len(lengths)))
    wanted = [(q, k) for q in range(len(lengths)) for k in range(4)]
    assert sorted(seen.get("paths", [])) == wanted
    assert seen.get("seats", []) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.integers(1, 9))
def test_a_question_stops_at_the_first_count_that_settles_it(needed, rows):
    """Settles question q from needed[q] * 2 samples on; nothing beyond is started."""
    plan = Plan(
        num_samples=8,
        slots=rows,
        prompt_slots=3,
        slots_per_prompt=2,
        chunk=2,
        page=4,
        check_every=2,
    )
    seen = {}
    scheduler = Scheduler(
        plan,
        iter(range(len(needed))),
        lambda q, k: 1 + (q * 7 + k * 5) % 11,
        lambda q, count: count >= 2 * needed[q],
    )
    _drive(scheduler, plan, seen)
    for question, count in enumerate(needed):
        ran = sorted(k for q, k in seen["paths"] if q == question)
        assert ran == list(range(2 * count))


def test_slots_stay_busy_while_samples_wait():
    plan = Plan(num_samples=4, slots=4, prompt_slots=2, slots_per_prompt=4, chunk=1, page=2)
    scheduler = Scheduler(plan, iter(range(3)), lambda q, k: 1 + k)
    busy = []
    while not scheduler.done:
        while scheduler.idle and scheduler.admit():
            pass
        scheduler.start()
        scheduler.add_pages(scheduler.missing_pages())
        scheduler.allot()
        busy.append(len(scheduler.active))
        for running in scheduler.active:
            running.tokens.append(0)
        list(scheduler.end([p for p in scheduler.active if len(p.tokens) >= p.limit]))
    work = 3 * (1 + 2 + 3 + 4)
    assert sum(busy) == work
    assert all(count == 4 for count in busy[: work // 4 - 2])
