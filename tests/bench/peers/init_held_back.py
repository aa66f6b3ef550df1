"""Logs that the rules of `ranker.guessing` had not met: written, with their truth, after the last rule was.

They are never tuned for. A rule that one of them teaches makes it a log of `init_taught`, and calls for another here.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from init_schemas import ids, iso, shown, write


def museum(folder: Path) -> Path:
    """Works that an audio guide's app suggested in a museum."""
    s = shown(81, requests=900, size=6, users=150, items=180)
    columns = {
        "suggestion_set": s.request + 40_000,
        "ticket": ids("TK", s.user, 7),
        "artwork": ids("inv.", s.item, 4),
        "suggested_at": iso(s.time, "%Y/%m/%d %H:%M:%S"),
        "nth": s.place + 1,
        "hall_number": s.of_item(np.arange(1, 25)),
        "century": s.of_item([14, 15, 16, 17, 18, 19]),
        "painter": s.of_item([f"painter {k}" for k in range(40)]),
        "metres_away": np.round(s.rng.exponential(35, len(s.item)), 1),
        "crowd_level": s.any([1, 2, 3, 4]),
        "app_language": s.of_user(["it", "en", "fr"]),
        "ticket_kind": s.of_user(["adult", "child", "senior"]),
        "battery": s.of_request(np.arange(5, 100)),
        "audio_played": s.click.astype(int),
        "starred": s.buy.astype(int),
        "audio_seconds": s.some(s.rng.integers(3, 240, len(s.item)), s.click),
    }
    return write(folder / "museum.csv", columns)


MUSEUM = """
    suggestion_set: request_id
    ticket: user_id
    artwork: item_id
    suggested_at: ts
    nth: position
    hall_number: item attribute
    century: item attribute
    painter: item attribute
    metres_away: candidate
    crowd_level: candidate
    app_language: user attribute
    ticket_kind: user attribute
    battery: context
    audio_played: feedback
    starred: feedback
    audio_seconds: feedback or none
"""


def wetter_shop(folder: Path) -> Path:
    """Newsletters of a shop, one article each: German, JSON."""
    s = shown(82, requests=4200, size=1, users=260, items=240)
    brand, size = s.rng.choice(["Alpin", "Nord", "Tal"], 240), s.rng.choice(["S", "M", "L"], 240)
    area, since = s.rng.choice(["BY", "HH", "SN"], 260), s.rng.integers(2005, 2024, 260)
    rows = [
        {
            "versand": {"nr": int(k), "zeit": int(s.time[k]), "kampagne": ["Frühling", "Rabattwoche"][k % 2]},
            "empfaenger": {
                "kennung": f"E{s.user[k]:06d}",
                "bundesland": area[s.user[k]],
                "dabei_seit": int(since[s.user[k]]),
            },
            "ware": {"sku": f"W{s.item[k]:05d}", "hersteller": brand[s.item[k]], "groesse": size[s.item[k]]},
            "preis_eur": round(float(s.rng.lognormal(4, 0.3)), 2),
            "regen": bool(s.rng.random() < 0.3),
            "geoeffnet": bool(s.click[k]),
            "bestellt": bool(s.buy[k]),
            "umsatz_eur": round(float(s.rng.lognormal(4, 0.3)), 2) if s.buy[k] else None,
            "abgemeldet": bool(s.rng.random() < 0.01),
        }
        for k in range(len(s.item))
    ]
    (folder / "wetter.json").write_text(json.dumps(rows))
    return folder / "wetter.json"


WETTER_SHOP = """
    versand.nr: event_id or none
    versand.zeit: ts
    versand.kampagne: context or surface
    empfaenger.kennung: user_id
    empfaenger.bundesland: user attribute
    empfaenger.dabei_seit: user attribute
    ware.sku: item_id
    ware.hersteller: item attribute
    ware.groesse: item attribute
    preis_eur: candidate
    regen: context
    geoeffnet: feedback
    bestellt: feedback
    umsatz_eur: feedback or none
    abgemeldet: feedback
"""


def courses(folder: Path) -> Path:
    """A site of courses: search results, with the score and the arm of a test."""
    s = shown(83, requests=850, size=8, users=170, items=230)
    columns = {
        "event_uuid": ids("e5a0-", np.arange(len(s.item)), 10),
        "occurred_on": (s.time * 1000 + 5).astype(np.int64),
        "search_uuid": ids("s77-", s.request, 8),
        "learner_id": s.user.astype(np.float64) + 12,
        "course_id": s.item + 8,
        "result_position": s.place + 1,
        "model_score": np.round(s.rng.normal(0, 2, len(s.item)), 4),
        "exploration_prob": np.round(s.rng.uniform(0.01, 0.9, len(s.item)), 4),
        "discount_pct": s.any([0, 0, 10, 50, 90]),
        "query_text": s.of_request(["python", "excel for work", "guitar", "watercolour", "sql"]),
        "sort_order": s.of_request(["relevance", "newest"]),
        "browser": s.of_request(["chrome", "safari", "edge"]),
        "test_variant": s.of_user(["control", "treatment"]),
        "instructor_id": s.of_item(np.arange(50)),
        "course_language": s.of_item(["en", "es", "pt"]),
        "total_enrolments": s.of_item(np.arange(100, 9000, 37)),
        "previewed": s.click.astype(int),
        "enrolled": s.buy.astype(int),
        "refunded": (s.buy & (s.rng.random(len(s.item)) < 0.1)).astype(int),
        "preview_watch_ratio": s.some(np.round(s.rng.random(len(s.item)), 3), s.click),
    }
    return write(folder / "courses.parquet", columns)


COURSES = """
    event_uuid: event_id or none
    occurred_on: ts
    search_uuid: request_id
    learner_id: user_id
    course_id: item_id
    result_position: position
    model_score: candidate
    exploration_prob: propensity
    discount_pct: candidate
    query_text: context
    sort_order: context
    browser: context
    test_variant: none or user attribute
    instructor_id: item attribute
    course_language: item attribute
    total_enrolments: item attribute
    previewed: feedback
    enrolled: feedback
    refunded: feedback
    preview_watch_ratio: feedback or none
"""

#: a function that writes the log below a folder, and the text of its truth
HELD_BACK: dict[str, tuple[Callable[[Path], Path], str]] = {
    "museum": (museum, MUSEUM),
    "wetter_shop": (wetter_shop, WETTER_SHOP),
    "courses": (courses, COURSES),
}
