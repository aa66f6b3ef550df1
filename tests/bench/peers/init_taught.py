"""Logs that were held back, measured .61 when they were first read (one of them was refused), and taught more rules."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from init_schemas import ids, iso, shown, write


def gym(folder: Path) -> Path:
    """Workouts in an app's feed."""
    s = shown(61, requests=950, size=7, users=140, items=200)
    columns = {
        "feed_ref": ids("fd", s.request, 7),
        "athlete_ref": ids("at", s.user, 6),
        "workout_ref": ids("wo", s.item, 5),
        "served": s.time,
        "row_in_feed": s.place,
        "coach": s.of_item([f"coach {k}" for k in range(14)]),
        "intensity": s.of_item([1, 2, 3, 4, 5]),
        "minutes_long": s.of_item(np.arange(10, 60, 5)),
        "calories_est": np.round(s.of_item(s.rng.uniform(100, 600, 80)) * s.of_user(s.rng.uniform(0.8, 1.3, 50)), 0),
        "friends_did_it": s.any([0, 0, 0, 1, 2, 5]),
        "goal": s.of_user(["strength", "weight", "fun"]),
        "units": s.of_user(["metric", "imperial"]),
        "wearable": s.of_request(["none", "watch"]),
        "raining": s.of_request([0, 1]),
        "embedding_dot": np.round(s.rng.normal(0, 1, len(s.item)), 5),
        "started": s.click.astype(int),
        "finished_flag": s.buy.astype(int),
        "effort_1_10": s.some(s.rng.integers(1, 11, len(s.item)), s.buy),
        "heartbeats": s.some(s.rng.integers(900, 9000, len(s.item)), s.click),
        "server_host": s.of_request([f"node-{k}" for k in range(6)]),
    }
    return write(folder / "gym.parquet", columns)


GYM = """
    feed_ref: request_id
    athlete_ref: user_id
    workout_ref: item_id
    served: ts
    row_in_feed: position
    coach: item attribute
    intensity: item attribute
    minutes_long: item attribute
    calories_est: candidate
    friends_did_it: candidate
    goal: user attribute
    units: user attribute
    wearable: context
    raining: context
    embedding_dot: candidate
    started: feedback
    finished_flag: feedback
    effort_1_10: feedback or none
    heartbeats: feedback or none
    server_host: context or none
"""


def buecherei(folder: Path) -> Path:
    """Loans of a library: German, positives only, days in place of times."""
    s = shown(62, requests=1500, size=3, users=220, items=400)
    kept = s.rng.integers(3, 40, len(s.item))
    columns = {
        "Leserausweis": s.user + 300_000,
        "Mediennummer": ids("B", s.item, 6),
        "Ausleihdatum": iso(s.time, "%d.%m.%Y"),
        "Rueckgabedatum": iso(s.time + kept * 86_400, "%d.%m.%Y"),
        "Zweigstelle": s.of_request(["Mitte", "Nord", "Bus"]),
        "Gattung": s.of_item(["Roman", "Sachbuch", "Hörbuch", "Comic"]),
        "Erscheinungsjahr": s.of_item(np.arange(1970, 2024)),
        "Verfasser": s.of_item([f"Verfasser {k}" for k in range(90)]),
        "Altersgruppe": s.of_user(["Kind", "Jugend", "Erwachsen"]),
        "Verlaengerungen": s.any([0, 0, 0, 1, 2]),
        "Mahngebuehr": np.where(kept > 28, np.round(0.5 * (kept - 28), 2), 0.0),
    }
    return write(folder / "buecherei.csv", columns, ", DELIM ';'")


BUECHEREI = """
    Leserausweis: user_id
    Mediennummer: item_id
    Ausleihdatum: ts
    Rueckgabedatum: none
    Zweigstelle: surface or context
    Gattung: item attribute
    Erscheinungsjahr: item attribute
    Verfasser: item attribute
    Altersgruppe: user attribute
    Verlaengerungen: feedback or none
    Mahngebuehr: feedback or none
"""


def desk(folder: Path) -> Path:
    """A company's search: a line a query, with its hits."""
    s = shown(63, requests=850, size=9, users=110, items=260)
    lines = []
    for r in range(850):
        rows = np.flatnonzero(s.request == r)
        lines.append(
            {
                "at": int(s.time[rows[0]]) * 1000,
                "who": {"login": f"emp{s.user[rows[0]]:04d}", "dept": ["ops", "law", "dev"][s.user[rows[0]] % 3]},
                "text": ["holiday form", "vpn", "travel costs", "new laptop", "canteen"][int(s.rng.integers(5))],
                "client": ["web", "teams"][r % 2],
                "hits": [
                    {
                        "docId": f"kb/{s.item[k]}",
                        "space": f"SP{s.item[k] % 11}",
                        "bm25": round(float(s.rng.gamma(3, 3)), 3),
                        "cosine": round(float(s.rng.beta(5, 2)), 4),
                        "ageDays": int(s.rng.integers(0, 900)),
                        "opened": bool(s.click[k]),
                        "dwellSec": int(s.rng.exponential(40)) if s.click[k] else None,
                        "markedHelpful": bool(s.buy[k]) if s.rng.random() < 0.6 else None,
                    }
                    for k in rows
                ],
            }
        )
    (folder / "desk.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "desk.jsonl"


DESK = """
    at: ts
    who.login: user_id
    who.dept: user attribute
    text: context
    client: context or surface
    hits.docId: item_id
    hits.space: item attribute
    hits.bm25: candidate
    hits.cosine: candidate
    hits.ageDays: candidate
    hits.opened: feedback
    hits.dwellSec: feedback or none
    hits.markedHelpful: feedback
    file_row: request_id
    position: position
"""


def logement(folder: Path) -> Path:
    """Visits to the pages of flats: French, no lists."""
    s = shown(64, requests=1300, size=4, users=190, items=260)
    columns = {
        "id_internaute": ids("int", s.user, 6),
        "ref_bien": ids("FR", s.item, 7),
        "date_visite": iso(s.time + 70 * s.place, "%Y-%m-%d %H:%M:%S"),
        "loyer": s.of_item(np.arange(400, 2200, 25)),
        "surface_m2": s.of_item(np.arange(12, 140)),
        "nb_pieces": s.of_item([1, 2, 3, 4, 5]),
        "code_postal": s.of_item(np.arange(75_001, 75_020)),
        "meuble": s.of_item([0, 1]),
        "agence": s.of_item([f"agence {k}" for k in range(22)]),
        "tranche_age": s.of_user(["18-25", "26-40", "41+"]),
        "appareil": s.any(["mobile", "fixe"]),
        "provenance": s.any(["alerte", "recherche", "carte"]),
        "contacte": s.buy.astype(int),
        "mis_en_favori": s.click.astype(int),
        "duree_fiche_s": np.round(s.rng.exponential(60, len(s.item)), 0),
        "photos_vues": s.rng.integers(0, 12, len(s.item)),
    }
    return write(folder / "logement.csv", columns)


LOGEMENT = """
    id_internaute: user_id
    ref_bien: item_id
    date_visite: ts
    loyer: item attribute
    surface_m2: item attribute
    nb_pieces: item attribute
    code_postal: item attribute
    meuble: item attribute
    agence: item attribute
    tranche_age: user attribute
    appareil: context
    provenance: surface or context
    contacte: feedback
    mis_en_favori: feedback
    duree_fiche_s: feedback
    photos_vues: feedback
"""

#: a function that writes the log below a folder, and the text of its truth
TAUGHT: dict[str, tuple[Callable[[Path], Path], str]] = {
    "gym": (gym, GYM),
    "buecherei": (buecherei, BUECHEREI),
    "desk": (desk, DESK),
    "logement": (logement, LOGEMENT),
}
