import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import make_world

from features.counters.keys import key_codes, without_last
from features.counters.spec import make_counters
from features.newcomers import New, Newcomers
from features.rows import assemble, make_spec
from features.schema import BY_ARM, DAY, HOUR, Requests, empty_log, merged, one_request
from features.settings import CounterSettings
from features.state import live
from features.state.histories import COLUMNS, Histories, HistoryBuffer
from features.state.live import Live
from features.state.read import counter_values
from features.state.snapshot import load_state, save_state
from features.state.store import NEVER, State


def some_log(rng, n, n_users, low, high, n_items=20):
    return replace(
        empty_log(("play",), n),
        user=rng.integers(-1, n_users, n).astype(np.int32),
        item=rng.integers(-1, n_items, n).astype(np.int32),
        ts=rng.integers(low, high, n).astype(np.int64),
        grade=rng.integers(-1, 3, n).astype(np.int8),
        surface=rng.integers(-1, 2, n).astype(np.int16),
        arm=rng.integers(-1, 4, n).astype(np.int16),
        feedback=np.where(rng.random((n, 1)) < 0.2, np.nan, rng.random((n, 1))).astype(np.float32),
    )


def known_of(log):
    return log.select((log.user >= 0) & (log.item >= 0))


@given(
    seed=st.integers(0, 10**6),
    batches=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 60), st.integers(1, 80)), min_size=1, max_size=12),
)
@settings(max_examples=40, deadline=None)
def test_histories_grow_without_a_change_to_what_readers_hold(seed, batches):
    rng = np.random.default_rng(seed)
    log = known_of(merged([some_log(rng, 50, 7, 0, 60)]))
    buffer = HistoryBuffer(Histories.build(log, 7))
    held = []
    for n, low, width in batches:
        new = known_of(merged([some_log(rng, n, 7, low, low + width)]))
        log = merged([log, new])
        held.append((buffer.extended(new), log))
    for histories, log in held:
        want = Histories.build(log, 7)
        compact = histories.compact()
        for name in ("offsets", *COLUMNS):
            assert np.array_equal(getattr(compact, name), getattr(want, name), equal_nan=True)
        users, cuts = np.repeat(np.arange(-1, 8), 5), np.tile([0, 10, 30, 60, 200], 9)
        for (start, stop), (a, b) in zip(
            zip(*histories.before(users, cuts), strict=True), zip(*want.before(users, cuts), strict=True), strict=True
        ):
            assert histories.item[start:stop].tolist() == want.item[a:b].tolist()
            assert histories.ts[start:stop].tolist() == want.ts[a:b].tolist()


def test_a_full_tail_is_made_anew():
    rng = np.random.default_rng(0)
    log = known_of(merged([some_log(rng, 100, 5, 0, 1000)]))
    buffer = HistoryBuffer(Histories.build(log, 5))
    first = buffer.histories
    for k in range(60):
        new = known_of(merged([some_log(rng, 3000, 5, 1000 * k, 1000 * k + 1500)]))
        log = merged([log, new])
        grown = buffer.extended(new)
    assert len(grown.ts) > len(first.ts)
    assert np.array_equal(grown.compact().item, Histories.build(log, 5).item)
    assert buffer.bytes_used > 0


def test_events_of_the_histories_are_the_log_again():
    world = make_world(n_users=10, n_items=20)
    histories = Histories.build(world.log, 10)
    again = histories.log(world.log.feedback_names)
    assert np.array_equal(again.ts, world.log.ts)
    for name in COLUMNS:
        assert np.array_equal(
            getattr(Histories.build(again, 10), name), getattr(histories, name), equal_nan=name == "feedback"
        )


WORLD = make_world(n_users=8, n_items=20, surfaces=("feed", "search"))
COUNTERS = make_counters(
    [
        CounterSettings(key=["user"], event="impression", spans=["all", "w1d", "h6h"], stats=["count"]),
        CounterSettings(key=["item"], event="like", spans=["w3d", "h2d", "all"], stats=["rate"]),
        CounterSettings(key=["user", "tags"], event="play", spans=["all", "w7d"], stats=["sum", "mean"]),
        CounterSettings(key=["item", "surface"], event="impression", stats=["since"]),
    ],
    WORLD.log,
    WORLD.catalog,
    WORLD.grades,
)


def values(state, as_of, n_users=WORLD.catalog.n_users, n_items=WORLD.catalog.n_items):
    item = np.tile(np.arange(-1, n_items, dtype=np.int32), n_users)
    requests = Requests(
        user=np.arange(n_users, dtype=np.int32),
        as_of=np.full(n_users, as_of, np.int64),
        surface=np.zeros(n_users, np.int16),
        offsets=np.arange(n_users + 1, dtype=np.int64) * (n_items + 1),
        item=item,
    )
    return counter_values(state, requests)


def same_as_a_build(state, log, first, last):
    want = State.build(log, WORLD.catalog, COUNTERS, WORLD.grades)
    for as_of in np.linspace(first, last, 5).astype(np.int64).tolist():
        np.testing.assert_allclose(values(state, as_of), values(want, as_of), rtol=1e-6, atol=1e-6)
    known = Histories.build(known_of(log), WORLD.catalog.n_users)
    assert np.array_equal(state.histories.compact().item, known.item)
    assert state.end == max(want.end, int(WORLD.log.ts[-1]) + 1)


@given(
    seed=st.integers(0, 10**6),
    least=st.sampled_from([100, 10**6]),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=10),
)
@settings(max_examples=20, deadline=None)
def test_a_live_state_is_the_state_of_the_whole_log(seed, least, sizes):
    rng = np.random.default_rng(seed)
    base = State.build(WORLD.log, WORLD.catalog, COUNTERS, WORLD.grades)
    last = int(WORLD.log.ts[-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "MEMTABLE", 40)  # so that there are runs …
        patch.setattr(live, "RUNS", 2)  # … which are merged
        patch.setattr(live, "LEAST", least)
        patch.setattr(live, "SHARE", 0.0)  # … and bases are rebuilt
        folded = Live(base, ("play",), every=0.001)
        log, before = WORLD.log, folded.state
        untouched = values(before, last)
        for k, n in enumerate(sizes):
            # In any order of time: some are weeks late.
            new = some_log(rng, n, 8, last - 20 * DAY if k % 3 == 0 else last, last + (k + 1) * DAY)
            log = merged([log, new])
            folded.add(new, k + 1)
            if k % 2:
                folded.drain(5)
        folded.drain(5)
        assert folded.frame == len(sizes)
        same_as_a_build(folded.state, log, last - 20 * DAY, last + 20 * DAY)
        frozen = folded.freeze().result(10)
        folded.close()
    assert frozen.frame == len(sizes)
    assert len(frozen.state.levels) == 1
    same_as_a_build(frozen.state, log, last - 20 * DAY, last + 20 * DAY)
    assert len(frozen.unplaced) == int(((log.user < 0) | (log.item < 0)).sum())
    assert np.array_equal(values(before, last), untouched, equal_nan=True)


def halved():
    """Return the catalogue without the later half, one with it, and the log of the known half."""
    c = WORLD.catalog
    genre, length, tags = c.item_attributes
    known = (
        replace(genre, codes=genre.codes[:10]),
        replace(length, numbers=length.numbers[:10]),
        replace(tags, offsets=tags.offsets[:11], codes=tags.codes[: tags.offsets[10]]),
    )
    nothing = (
        replace(genre, codes=np.where(np.arange(20) < 10, genre.codes, -1).astype(np.int32)),
        replace(length, numbers=np.where(np.arange(20) < 10, length.numbers, np.nan).astype(np.float32)),
        replace(tags, offsets=np.minimum(tags.offsets, tags.offsets[10]), codes=tags.codes[: tags.offsets[10]]),
    )
    country = replace(genre, name="country", codes=np.array([0, 1, -1, 1], np.int32))
    padded = replace(country, codes=np.append(country.codes, np.full(4, -1, np.int32)))
    bare = replace(
        c,
        user_ids=c.user_ids[:4],
        item_ids=c.item_ids[:10],
        arms=("a", "b"),
        item_attributes=known,
        user_attributes=(country,),
    )
    whole = replace(c, arms=("a", "b", "c", "d"), item_attributes=nothing, user_attributes=(padded,))
    log = WORLD.log.select((WORLD.log.user < 4) & (WORLD.log.item < 10))
    return bare, whole, log


BARE, WHOLE, KNOWN = halved()
OF_ALL_KINDS = make_counters(
    [
        CounterSettings(key=["user"], event="impression", spans=["all", "w1d", "h6h"], stats=["count"]),
        CounterSettings(key=["user"], event="impression", spans=["all", "w1d"], stats=["distinct_item"]),
        CounterSettings(key=["item"], event="like", spans=["h2d", "all"], stats=["rate"]),
        CounterSettings(key=["item"], event="like", spans=["h2d"], stats=["count", "rank_genre", "rank_tags"]),
        CounterSettings(key=["user", "item"], event="play", spans=["w3d", "all"], stats=["sum", "mean"]),
        CounterSettings(key=["user", "tags"], event="play", spans=["all", "w7d"], stats=["sum", "distinct_item"]),
        CounterSettings(key=["item", "surface"], event="impression", stats=["since", "distinct_user"]),
        CounterSettings(key=["surface", "item", "user"], event="impression", spans=["w7d"], stats=["count"]),
        CounterSettings(key=["user_country", "item"], event="impression", stats=["count", "distinct_user"]),
        CounterSettings(key=["genre"], event="impression", spans=["w7d", "all"], stats=["distinct_user"]),
        CounterSettings(key=["user"], event="impression", spans=["w3d"], stats=["distinct_tags"]),
        CounterSettings(key=["item"], event="impression", spans=["all", "h3d"], stats=["count", "since"], by_arm=True),
        CounterSettings(key=["surface", "item"], event="like", spans=["all"], stats=["rate"], by_arm=True),
        CounterSettings(key=["user"], event="impression", spans=["w3d"], stats=["count"], by_arm=True),
        CounterSettings(key=["user", "tags"], event="play", spans=["h2d"], stats=["mean"], by_arm=True),
    ],
    KNOWN,
    BARE,
    WORLD.grades,
)
SPEC = make_spec(OF_ALL_KINDS, BARE, "UTC", ["item_genre", "item_length", "item_tags_main", "user_country", "item_age"])


class Arrivals:
    """Gives new users, items and arms their numbers in the order of their events, as a server does from its log."""

    def __init__(self, room=(10, 20, 5)):
        self.new = New(*(Newcomers(room=n) for n in room))

    def numbered(self, log):
        out = []
        for side, asked, known in (("users", log.user, 4), ("items", log.item, 10), ("arms", log.arm, 2)):
            index, rows = asked.copy(), np.flatnonzero(asked >= known)
            found, later = getattr(self.new, side).extended(index[rows].tolist())
            index[rows] = np.where(found < 0, -1, known + found)
            self.new = self.new._replace(**{side: later})
            out.append(index)
        return replace(log, user=out[0], item=out[1], arm=out[2])

    def start(self):
        state = State.build(KNOWN, BARE, OF_ALL_KINDS, WORLD.grades)
        return replace(state, catalog=BARE.with_new(self.new))


def all_values(state, as_of, items=20, users=8):
    """Every column of every user and item, many requests at once and one by one."""
    item = np.arange(-1, items, dtype=np.int32)
    arm = np.arange(-1, users, dtype=np.int16) % 5 - 1
    each = [one_request(user, as_of, 0, item, arm=int(arm[user + 1])) for user in range(-1, users)]
    whole = Requests(
        user=np.arange(-1, users, dtype=np.int32),
        as_of=np.full(len(each), as_of),
        surface=np.zeros(len(each), np.int16),
        offsets=np.arange(len(each) + 1) * len(item),
        item=np.tile(item, len(each)),
        arm=arm,
    )
    together, alone = assemble(state, SPEC, whole), np.concatenate([assemble(state, SPEC, one) for one in each])
    np.testing.assert_allclose(together, alone, rtol=1e-6, atol=1e-6)
    return together


def same_as_if_known(state, log, first, last):
    want = State.build(log, WHOLE, OF_ALL_KINDS, WORLD.grades)
    for as_of in np.linspace(first, last, 4).astype(np.int64).tolist():
        np.testing.assert_allclose(all_values(state, as_of), all_values(want, as_of), rtol=1e-6, atol=1e-6)
    assert np.array_equal(np.append(state.first_seen, np.full(20, NEVER))[:20], want.first_seen)
    histories, known = state.histories, Histories.build(known_of(log), 8)
    users, cut = np.arange(-1, 9, dtype=np.int32), np.full(10, last)
    for (a, b), (c, d) in zip(
        zip(*histories.before(users, cut), strict=True), zip(*known.before(users, cut), strict=True), strict=True
    ):
        assert histories.item[a:b].tolist() == known.item[c:d].tolist()


@given(
    seed=st.integers(0, 10**6),
    least=st.sampled_from([100, 10**6]),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8),
)
@settings(max_examples=15, deadline=None)
def test_new_users_and_items_are_as_if_the_catalogue_knew_them(seed, least, sizes):
    rng = np.random.default_rng(seed)
    arrivals, last = Arrivals(), int(WORLD.log.ts[-1])
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(live, "MEMTABLE", 40)
        patch.setattr(live, "RUNS", 2)
        patch.setattr(live, "LEAST", least)
        patch.setattr(live, "SHARE", 0.0)
        folded, log = Live(arrivals.start(), ("play",), every=0.001), KNOWN
        held = []
        for k, n in enumerate(sizes):
            low = last - 20 * DAY if k % 3 == 0 else last
            new = arrivals.numbered(merged([some_log(rng, n, 8, low, last + (k + 1) * DAY)]))
            log = merged([log, new])
            folded.add(new, k + 1, arrivals.new)
            if k % 2:
                folded.drain(20)
                held.append((folded.state, log))
        folded.drain(20)
        same_as_if_known(folded.state, log, last - 20 * DAY, last + 20 * DAY)
        frozen = folded.freeze().result(20)
        folded.close()
        same_as_if_known(frozen.state, log, last - 20 * DAY, last + 20 * DAY)
        for state, then in held[:1]:
            same_as_if_known(state, then, last - 20 * DAY, last + 20 * DAY)
            assert state.catalog.all_users == max(int(then.user.max()) + 1, 4)
        save_state(Path(folder) / "state", frozen.state)
        loaded = load_state(Path(folder) / "state")
        catalog = loaded.catalog
        assert catalog.new == arrivals.new
        assert [side.known for side in catalog.new] == [side.known for side in arrivals.new]
        second = Live(loaded, ("play",), frozen.unplaced, frozen.frame, every=0.001)
        new = arrivals.numbered(merged([some_log(rng, 40, 8, last, last + DAY)]))
        second.add(new, len(sizes) + 1, arrivals.new)
        second.drain(20)
        second.close()
        same_as_if_known(second.state, merged([log, new]), last - 20 * DAY, last + 20 * DAY)


def test_room_leaves_the_codes_of_known_keys_as_they_are():
    rng = np.random.default_rng(0)
    log = some_log(rng, 300, 4, 0, 100, n_items=10)
    roomy = BARE.with_new(New(Newcomers(room=7), Newcomers(room=5), Newcomers(room=3)))
    arm = np.minimum(log.arm, 1)
    keys = (("user",), ("item", "user"), ("surface", "user", "item"), ("user", "tags", "item", "user_country"))
    for key in (*keys, *((BY_ARM, *key) for key in keys)):
        rows, code, size = key_codes(key, BARE, log.user, log.item, log.surface, arm)
        again, same, larger = key_codes(key, roomy, log.user, log.item, log.surface, arm)
        assert np.array_equal(rows, again)
        assert np.array_equal(code, same)
        assert larger >= size
    every = (a.ravel() for a in np.meshgrid(np.arange(11), np.arange(15), np.arange(2), np.arange(-1, 5)))
    user, item, surface, arm = (a.astype(kind) for a, kind in zip(every, ("i4", "i4", "i2", "i2"), strict=True))
    for order in (("user", "item", "surface"), ("item", "surface", "user"), ("surface", "item", "user")):
        key = (BY_ARM, *order)
        _, code, size = key_codes(key, roomy, user, item, surface, arm)
        assert len(np.unique(code)) == len(code)
        assert code.min() >= 0
        assert code.max() < size
        _, part, part_size = key_codes(key[:-1], roomy, user, item, surface, arm)
        found, found_size = without_last(code, key, roomy)
        assert np.array_equal(found, part)
        assert found_size == part_size
    assert np.array_equal(key_codes(("item",), roomy, user, item, surface, arm)[1], item)


def test_newcomers_of_a_moment_stay_as_they_are():
    none = Newcomers(room=3)
    numbers, one = none.extended(["b", "a", "b"])
    assert numbers.tolist() == [0, 1, 0]
    numbers, two = one.extended(["c", "d", "a"])
    assert numbers.tolist() == [2, -1, 1]
    assert none.find(["a", "b"]).tolist() == [-1, -1]
    assert one.find(["a", "b", "c"]).tolist() == [1, 0, -1]
    assert (one.known, two.known) == (["b", "a"], ["b", "a", "c"])


def test_a_state_from_a_frozen_one_goes_on_and_keeps_its_unplaced_events():
    rng = np.random.default_rng(1)
    base = State.build(WORLD.log, WORLD.catalog, COUNTERS, WORLD.grades)
    last = int(WORLD.log.ts[-1])
    parts = [some_log(rng, 50, 8, last, last + DAY) for _ in range(2)]
    first = Live(base, ("play",))
    first.add(parts[0], 1)
    frozen = first.freeze().result(10)
    first.close()
    second = Live(frozen.state, ("play",), frozen.unplaced, frozen.frame)
    assert second.frame == 1
    second.add(parts[1], 2)
    again = second.freeze().result(10)
    second.close()
    same_as_a_build(again.state, merged([WORLD.log, *parts]), last - DAY, last + 2 * DAY)


def test_a_rebuilt_base_has_the_table_that_requests_read():
    declared = [
        CounterSettings(key=["item"], event="like", spans=["h2d"], stats=["rate"], by_arm=by) for by in (False, True)
    ]
    counters = make_counters(declared, WORLD.log, WORLD.catalog, WORLD.grades)
    state = State.build(WORLD.log, replace(WORLD.catalog, arms=("a", "b")), counters, WORLD.grades)
    live = Live(state, ("play",))
    counter_values(live.state, one_request(0, state.end, -1, np.arange(3, dtype=np.int32), arm=1))
    frozen = live.freeze().result(10)
    live.close()
    assert sorted(frozen.state.levels[0].tables) == [(0, -1), (1, -1), (1, 1)]


def test_a_fold_that_fails_is_told_and_tried_again(monkeypatch, caplog):
    base = State.build(WORLD.log, WORLD.catalog, COUNTERS, WORLD.grades)
    folded = Live(base, ("play",), every=0.001)
    with monkeypatch.context() as patch:
        patch.setattr(live, "merged", lambda _: 1 / 0)
        folded.add(some_log(np.random.default_rng(0), 5, 8, 0, 9), 1)
        until = time.monotonic() + 5
        while not folded.problem and time.monotonic() < until:
            time.sleep(0.01)
        assert "ZeroDivisionError" in folded.problem
        assert folded.waiting == 5
        assert "could not be folded" in caplog.text
    folded.drain(5)
    folded.close()
    assert not folded.problem


def test_readers_never_see_half_of_a_batch():
    """Each batch gives user 0 and user 1 one event each, of the same item: they have the same history at any time."""
    base = State.build(WORLD.log.until(0), WORLD.catalog, COUNTERS, WORLD.grades)
    folded = Live(base, ("play",), every=0.0)
    wrong, done = [], threading.Event()

    def read():
        while not done.is_set():
            histories = folded.state.histories
            (a, b), (c, d) = histories.before(np.array([0, 1]), np.array([2**60, 2**60]))
            if histories.item[a:c].tolist() != histories.item[b:d].tolist():
                wrong.append((a, b, c, d))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    one = empty_log(("play",), 2)
    for k in range(400):
        pair = replace(
            one, user=np.array([0, 1], np.int32), item=np.full(2, k % 20, np.int32), ts=np.full(2, k * HOUR, np.int64)
        )
        folded.add(pair, k + 1)
    folded.drain(10)
    done.set()
    for thread in threads:
        thread.join()
    assert folded.state.histories.sizes[:2].tolist() == [400, 400]
    folded.close()
    assert not wrong


def test_plugins_read_live_histories_as_compact_ones():
    from features.baselines import ALS
    from features.state.lag import Lag
    from neural.histories import TokenSpec, make_tokens, visible

    rng = np.random.default_rng(3)
    histories = Histories.build(WORLD.log, 8)
    buffer = HistoryBuffer(histories)
    last = int(WORLD.log.ts[-1])
    for k in range(6):
        live_ones = buffer.extended(known_of(merged([some_log(rng, 40, 8, last - HOUR, last + k * DAY + 1)])))
    compact = live_ones.compact()
    users = np.arange(-1, 8, dtype=np.int32)
    as_of = np.full(len(users), last + DAY)
    spec = TokenSpec(n_items=20, n_grades=3, n_surfaces=2, signal_mean=(1.0, 0.5), signal_scale=(1.0, 1.0), length=16)
    one, two = (make_tokens(h, users, *visible(h, users, as_of, Lag(0), 16), spec) for h in (live_ones, compact))
    for name in ("item", "codes", "signals", "length"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    plugin = ALS(factors=4)
    plugin.item_vectors, plugin.best_grade = rng.random((20, 4)).astype(np.float32), 2
    requests = Requests(
        user=users,
        as_of=as_of,
        surface=np.zeros(9, np.int16),
        offsets=np.arange(10, dtype=np.int64),
        item=np.arange(9, dtype=np.int32),
    )
    assert np.array_equal(plugin.values(requests, live_ones), plugin.values(requests, compact), equal_nan=True)
