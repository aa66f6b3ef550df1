"""When a server's sources count anew: by the machine's clock and by the recorded events' own."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from served import batch, recording

from features.schema import HOUR, SECOND
from ranker.bundle import Bundle
from ranker.serving.renewing import EVERY, RESTS, Renewing


class Counting:
    """A pipeline that takes its time to count."""

    def __init__(self, now: list[float], took: float) -> None:
        self._now, self._took = now, took
        self.counted, self.counted_to, self.state = 0, 0, SimpleNamespace(end=0)

    def refresh(self) -> None:
        self.counted += 1
        self.counted_to = self.state.end
        self._now[0] += self._took


@pytest.fixture
def now() -> list[float]:
    return [100.0]


def test_sources_count_anew_when_the_events_or_the_machine_went_on(now: list[float]) -> None:
    one, other = Counting(now, 0.0), Counting(now, 0.0)
    renewing = Renewing(lambda: now[0])

    def counted(seconds: float = 0.0, events: float = 0.0) -> tuple[int, int]:
        now[0] += seconds
        one.state.end += round(events * SECOND)
        renewing.look(both)
        return one.counted, other.counted

    both: Any = [one, other]
    assert counted() == (0, 0)
    assert counted(events=EVERY - 1) == (0, 0)
    assert counted(events=1) == (1, 0)
    assert counted(events=EVERY - 1) == (1, 0)
    assert counted(events=3600) == (2, 0)
    assert counted(seconds=EVERY) == (3, 1)
    assert counted(seconds=EVERY - 1) == (3, 1)
    assert counted(seconds=1) == (4, 2)


def test_behind_a_long_count_it_rests(now: list[float]) -> None:
    one = Counting(now, 2.0)
    renewing, pipelines = Renewing(lambda: now[0]), [one]

    def looks() -> Iterator[int]:
        for _ in range(100):
            one.state.end += 60 * SECOND
            renewing.look(pipelines)  # type: ignore[arg-type]
            now[0] += 1
            yield one.counted

    counted = list(looks())
    took = now[0] - 100.0
    assert 5 <= counted[-1] <= took / (2.0 * (1 + RESTS)) + 1


def test_what_is_wanted_in_later_hours_is_soon_proposed(bundle: Bundle, tmp_path: Path) -> None:
    """A replay: hours of events in less than the machine's 30 s, and the popular items follow."""
    users, new, until = bundle.state.catalog.user_ids[:40].tolist(), 2, time.monotonic() + 15
    at = bundle.state.end + HOUR
    with recording(bundle, tmp_path) as (_, client):
        assert new not in [one.item for one in client.recommend(-7, 50).items]
        list(client.record([batch(list(range(40)), users, [new] * 40, [at] * 40, [1.0] * 40)]))
        while new not in (found := [one.item for one in client.recommend(-7, 50).items]) and time.monotonic() < until:
            time.sleep(0.05)
    assert new in found
