"""Groups of requests whose ids stand in any order, and what the boundaries of the split cut."""

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import make_world

from features.pairing import pairs
from features.errors import PairliftError
from features.pairing.cuts import count_cuts
from features.pairing.pairs import make_groups
from features.pairing.split import Split
from features.schema import MINUTE, EventLog
from features.settings import PairingSettings

BOUNDS = [10 * MINUTE, 25 * MINUTE, 40 * MINUTE, 55 * MINUTE]
SPLIT = Split(*BOUNDS, 0.2)


@st.composite
def logs(draw: st.DrawFn) -> EventLog:
    """Events of three users, some in one of nine requests, whose codes say nothing of their time."""
    n = draw(st.integers(1, 50))
    ints = lambda lo, hi, size=n: np.array(draw(st.lists(st.integers(lo, hi), min_size=size, max_size=size)))  # noqa: E731
    request = ints(-3, 8).clip(-1)
    # A request lasts some minutes: it is often cut, and seldom by two boundaries.
    begun, owner = ints(0, 60, 9), ints(0, 2, 9)
    ts = np.where(request >= 0, begun[request] + ints(0, 12), ints(0, 60)) * MINUTE
    user = np.where(request >= 0, owner[request], ints(0, 2))
    order = np.argsort(ts, kind="stable")
    return EventLog(
        user[order].astype(np.int32), ints(0, 5).astype(np.int32), ts[order].astype(np.int64),
        ints(-1, 2).astype(np.int8), ints(-1, 1).astype(np.int16), np.full(n, -1, np.int8),
        request[order].astype(np.int64), ints(0, 3) > 0, np.empty((n, 0), np.float32), (),
    )  # fmt: skip


def events(log: EventLog) -> list[tuple[int, int, int, int, bool]]:
    makes_pairs = (log.grade >= 0) & log.pairable
    columns = (range(len(log)), log.user.tolist(), log.ts.tolist(), log.request.tolist(), makes_pairs.tolist())
    return list(zip(*columns, strict=True))


@given(logs(), st.integers(1, 20), st.integers(2, 6))
@settings(max_examples=300, deadline=None)
def test_groups_of_requests_and_sittings_equal_the_oracle(log: EventLog, window: int, max_size: int) -> None:
    groups = make_groups(log, PairingSettings(window=f"{window}m", max_size=max_size), SPLIT)
    want = oracles.groups(events(log), window * MINUTE, max_size, BOUNDS)
    r = groups.requests
    members = [groups.event[r.offsets[g] : r.offsets[g + 1]].tolist() for g in range(len(r))]
    told = zip(r.user.tolist(), r.as_of.tolist(), r.surface.tolist(), groups.period.tolist(), members, strict=True)
    first = [(log.user[f], log.ts[f], log.surface[f], SPLIT.period(log.ts[f : f + 1])[0], m) for f, m in want]
    assert sorted(told, key=lambda group: group[-1]) == sorted(first, key=lambda group: group[-1])
    assert (np.diff(r.as_of) >= 0).all()


@given(logs(), st.integers(1, 20), st.integers(2, 6))
@settings(max_examples=200, deadline=None)
def test_what_each_boundary_cuts_equals_the_oracle(log: EventLog, window: int, max_size: int) -> None:
    limits = window * MINUTE, max_size
    found = count_cuts(log, PairingSettings(window=f"{window}m", max_size=max_size), SPLIT)
    cut = list(zip(found.requests.tolist(), found.sittings.tolist(), strict=True))
    assert cut == oracles.cuts(events(log), *limits, BOUNDS)
    outside = zip(found.groups_outside.tolist(), found.impressions_outside.tolist(), strict=True)
    graded = [event for event in events(log) if event[4]]
    for (low, high), told in zip(((0, BOUNDS[0]), (BOUNDS[3], 99 * MINUTE)), outside, strict=True):
        beyond = [event for event in graded if low <= event[2] < high]
        assert told == (len(oracles.groups(beyond, *limits, [low, low, low, high])), len(beyond))


def test_a_request_that_another_user_began_is_refused() -> None:
    log = make_world(1, request_ids=True).log
    later = np.flatnonzero(log.request == log.request[0])[1:]
    log.grade[0], log.user[0] = -1, (log.user[later[0]] + 1) % 40  # no pair is made of it, but it gives the as_of
    split = Split(int(log.ts[0]), int(log.ts[-1]) // 2 + int(log.ts[0]) // 2, int(log.ts[-9]), int(log.ts[-1]), 0.2)
    with pytest.raises(PairliftError, match=r"another user \(the first at \d{4}-\d\d-\d\dT"):
        make_groups(log, PairingSettings(), split)


@pytest.mark.parametrize("wrong", [0, -1])
def test_a_group_of_another_user_or_of_no_period_stops_the_build(monkeypatch: pytest.MonkeyPatch, wrong: int) -> None:
    log = make_world(1, request_ids=True).log
    low, high = int(log.ts[0]), int(log.ts[-1])
    split = Split(low, low + (high - low) // 2, low + (high - low) * 3 // 4, high, 0.2)
    monkeypatch.setattr(pairs, "_first_events", lambda log, first, split: np.full_like(first, wrong % len(log)))
    with pytest.raises(RuntimeError, match="a fault of Pairlift"):
        make_groups(log, PairingSettings(), split)
