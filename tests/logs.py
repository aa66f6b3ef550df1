"""Random logs of a small catalogue, with ties, nulls and cold keys, and counters of every kind over them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from features.counters.spec import Counter, Span
from features.log.dataset import Mapping
from features.schema import BY_ARM, HOUR, I64, MINUTE, Attribute, Catalog, EventLog, empty_log
from features.settings import EventsSettings, Grade


def catalog() -> Catalog:
    genre = Attribute("genre", "categorical", codes=np.array([0, 1, -1, 1], np.int32), values=("a", "b"))
    tags = Attribute(
        "tags", "multi", codes=np.array([0, 1, 1, 0], np.int32), offsets=np.array([0, 2, 2, 3, 4]), values=("x", "y")
    )
    size = Attribute("size", "numeric", numbers=np.array([1, np.nan, 3, 4], np.float32))
    country = Attribute("country", "categorical", codes=np.array([1, -1, 0], np.int32), values=("fr", "no"))
    likes = Attribute(
        "likes", "multi", codes=np.array([0, 0, 1], np.int32), offsets=np.array([0, 1, 1, 3]), values=("u", "v")
    )
    return Catalog(
        user_ids=np.arange(3),
        item_ids=np.arange(4),
        surfaces=("feed", "search"),
        arms=("new", "old"),
        item_attributes=(genre, tags, size),
        user_attributes=(country, likes),
    )


@st.composite
def logs(draw: st.DrawFn) -> EventLog:
    n = draw(st.integers(0, 30))
    ints = lambda lo, hi: np.array(draw(st.lists(st.integers(lo, hi), min_size=n, max_size=n)))  # noqa: E731
    # Few distinct times, an hour apart: ties everywhere.
    ts = np.sort(ints(0, 12)) * HOUR
    feedback = ints(-1, 3).astype(np.float32)[:, None]
    feedback[feedback < 0] = np.nan
    return replace(
        empty_log(("stars",), n),
        user=ints(0, 2).astype(np.int32),
        item=ints(0, 3).astype(np.int32),
        ts=ts.astype(np.int64),
        grade=ints(-1, 2).astype(np.int8),
        surface=ints(-1, 1).astype(np.int16),
        arm=ints(-2, 1).astype(np.int16),
        feedback=feedback.reshape(n, 1),
    )


#: of `graded_logs`
N_USERS, N_ITEMS = 4, 6


@st.composite
def graded_logs(draw: st.DrawFn) -> EventLog:
    """Logs of an hour, to the minute: events with and without a grade, of unknown items, that make no pairs."""
    n = draw(st.integers(1, 50))
    ints = lambda lo, hi: np.array(draw(st.lists(st.integers(lo, hi), min_size=n, max_size=n)))  # noqa: E731
    return replace(
        empty_log((), n),
        user=ints(0, N_USERS - 1).astype(np.int32),
        item=ints(-1, N_ITEMS - 1).astype(np.int32),
        ts=np.sort(ints(0, 60)).astype(np.int64) * MINUTE,
        grade=ints(-1, 2).astype(np.int8),
        surface=ints(-1, 1).astype(np.int16),
        pairable=ints(0, 3) > 0,
    )


KEYS = (
    ("user",), ("item",), ("genre",), ("user", "genre"), ("user", "tags"), ("item", "surface"), ("user", "item"),
    ("user_country",), ("user_likes", "tags"), ("surface", "user_country", "genre"),
)  # fmt: skip
SPANS = ("all", "w3h", "w1d", "h2h", "w4h_d90m", "h3h_d1h", "all_d2h")
COUNTERS = (
    *(
        Counter(key, event, Span.parse(span), stat, strength=4.0, prior=0.3)
        for key in KEYS
        for event in ("impression", "grade", "like", "stars")
        for span in SPANS
        for stat in ("count", "sum", "rate", "mean")
    ),
    *(Counter(key, event, Span("all", 0), "since") for key in KEYS for event in ("impression", "like", "stars")),
    *(Counter(key, "listen", Span.parse("all_d1h"), "since") for key in KEYS),
    *(Counter((BY_ARM, *key), "impression", Span("all", 0), "since") for key in (("item",), ("user", "tags"))),
    *(
        Counter(key, event, Span.parse(span), f"ratio_{over}", strength=2.0, prior=0.1)
        for key in KEYS
        for event, over in (("like", "listen"), ("stars", "impression"))
        for span in ("w3h", "h2h")
    ),
    *(
        Counter(key, event, Span.parse(span), f"distinct_{thing}")
        for key in KEYS
        for event, thing in (("impression", "item"), ("like", "user"), ("stars", "tags"), ("grade", "surface"))
        for span in ("all", "w3h", "w5h_d1h")
    ),
    *(
        Counter((BY_ARM, *key), event, Span.parse(span), stat, strength=4.0, prior=0.3)
        for key in (("item",), ("user",), ("user", "tags"), ("surface", "user_country", "genre"))
        for event, stat in (("impression", "count"), ("like", "rate"), ("stars", "mean"), ("like", "ratio_stars"))
        for span in ("all", "w3h", "h3h_d1h")
    ),
    *(
        Counter(("item",), event, Span.parse(span), f"rank_{attribute}")
        for event in ("impression", "like")
        for attribute in ("genre", "tags")
        for span in ("all", "w3h", "h2h", "w5h_d1h")
    ),
)


def mapping_of(folder: Path, events: EventsSettings, grades: tuple[Grade, ...], zone: str = "UTC") -> Mapping:
    """A log of events alone: no tables of items and users, and every event may make pairs."""
    return Mapping(data=folder, zone=zone, events=events, items=None, users=None, grades=grades, pairing_where=None)


def permuted(log: EventLog, rows: I64) -> EventLog:
    """Return the log with the labels (grade and feedback) of some events handed to others of them."""
    others = np.random.default_rng(0).permutation(rows)
    grade, feedback = log.grade.copy(), log.feedback.copy()
    grade[rows], feedback[rows] = log.grade[others], log.feedback[others]
    assert (grade != log.grade).any()
    return replace(log, grade=grade, feedback=feedback)
