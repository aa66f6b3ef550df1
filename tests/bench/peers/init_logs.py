"""Logs as strangers have them, and what each of their columns is: what `pairlift init` is measured by.

The truth was written before any rule of `ranker.guessing` was, that of a held-back log after the last one. A column
that may fairly be either of two things has both. `columns` of one numbered family (f_0, f_1, …) are measured as one.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from init_held_back import HELD_BACK
from init_learned import LEARNED
from init_schemas import SCHEMAS
from init_taught import TAUGHT
from shapes import SHAPES, SMALL

from ranker.settings import FetchSettings
from ranker.training.fetch import fetch

#: 2024-03-01 00:00 UTC, in seconds
START = 1_709_251_200
#: a user's day, s
DAY = 86_400


@dataclass(frozen=True, slots=True)
class StrangeLog:
    """A log, and the truth of it."""

    name: str
    path: Path
    roles: dict[str, frozenset[str]]  # of each column: the roles that it may be given


def _roles(text: str) -> dict[str, frozenset[str]]:
    """Read lines `column: role or role`."""
    pairs = (line.rpartition(": ") for line in text.strip().splitlines())
    return {column.strip(): frozenset(role.strip() for role in roles.split(" or ")) for column, _, roles in pairs}


HOTEL = _roles("""
    srch_ref: request_id
    visitor: user_id
    prop_key: item_id
    shown_ms: ts
    rank: position
    traffic_channel: surface or context
    nightly_rate: candidate
    promo_flag: candidate
    km_to_centre: candidate
    rooms_left: candidate
    stars: item attribute
    guest_score: item attribute
    chain: item attribute
    destination: context or item attribute
    adults: context
    nights: context
    device_type: context
    home_country: user attribute
    clicked: feedback
    booked: feedback
    gross_usd: feedback or none
    ranker_build: none
""")


def hotel(folder: Path) -> Path:
    """Searches for hotels, with what was shown of each: Parquet; times in ms; booked money that is known afterwards."""
    rng = np.random.default_rng(1)
    n, most, hotels, visitors = 700, 8, 120, 150
    request = np.repeat(np.arange(n), most)
    rank = np.tile(np.arange(1, most + 1), n)
    visitor, town = rng.integers(0, visitors, n), rng.integers(0, 6, n)
    time = np.sort(rng.integers(0, 40 * DAY, n))
    item = np.concatenate([rng.choice(hotels // 6, most, replace=False) + t * (hotels // 6) for t in town])
    rate = np.round(rng.lognormal(4.5, 0.3, hotels)[item] * rng.lognormal(0, 0.1, len(item)), 2)
    stars, score = rng.integers(2, 6, hotels), np.round(rng.uniform(6, 9.8, hotels), 1)
    taste = 0.3 * stars[item] + score[item] / 3 - rate / 60 - 0.2 * rank
    click = rng.random(len(item)) < 1 / (1 + np.exp(2.2 - taste))
    book = click & (rng.random(len(item)) < 0.25)
    nights = rng.integers(1, 8, n)[request]
    table = {
        "srch_ref": [f"q{r:05d}" for r in request],
        "visitor": visitor[request] + 10_000,
        "prop_key": [f"H-{i:04d}" for i in item],
        "shown_ms": (START + time[request]) * 1000 + 7,
        "rank": rank,
        "traffic_channel": rng.choice(["brand", "meta", "email"], n)[request],
        "nightly_rate": rate,
        "promo_flag": rng.random(len(item)) < 0.15,
        "km_to_centre": np.round(rng.exponential(2, hotels)[item] + rng.exponential(0.5, len(item)), 2),
        "rooms_left": np.where(rng.random(len(item)) < 0.3, rng.integers(1, 6, len(item)), -1),
        "stars": stars[item],
        "guest_score": score[item],
        "chain": np.array([f"chain{c}" for c in rng.integers(0, 9, hotels)])[item],
        "destination": np.array(["Rome", "Oslo", "Wien", "Lyon", "Porto", "Cork"])[town[request]],
        "adults": rng.integers(1, 5, n)[request],
        "nights": nights,
        "device_type": rng.choice(["desktop", "mobile", "tablet"], n)[request],
        "home_country": rng.choice(["IT", "NO", "AT", "FR"], visitors)[visitor[request]],
        "clicked": click.astype(np.int8),
        "booked": book.astype(np.int8),
        "gross_usd": pa.array(np.round(rate * nights, 2), mask=~book),
        "ranker_build": np.where(time[request] < 22 * DAY, "r41", "r42"),
    }
    pq.write_table(pa.table(table), folder / "hotel.parquet")
    return folder / "hotel.parquet"


LADEN = _roles("""
    Zeitpunkt: ts
    KundenNr: user_id
    Artikel-Nr: item_id
    Anfrage: request_id
    Platz: position
    Preis: candidate
    Rabatt: candidate
    Lagerbestand: candidate
    Warengruppe: item attribute
    Marke: item attribute
    Gerät: context
    Suchbegriff: context
    PLZ: user attribute
    Geburtsjahr: user attribute
    Angeklickt: feedback
    Gekauft: feedback
    Verweildauer_s: feedback or none
    Bereich: surface or context
""")


def laden(folder: Path) -> Path:
    """A shop's lists: German names, CSV with semicolons, decimal commas and local dates; yes and no are words."""
    rng = np.random.default_rng(2)
    n, most, goods, buyers = 800, 6, 200, 120
    request = np.repeat(np.arange(n), most)
    buyer, time = rng.integers(0, buyers, n), np.sort(rng.integers(0, 30 * DAY, n))
    item = np.concatenate([rng.choice(goods, most, replace=False) for _ in range(n)])
    price = np.round(rng.lognormal(3, 0.5, goods)[item] * rng.choice([1, 0.9, 0.8], len(item)), 2)
    click = rng.random(len(item)) < 0.1 + 0.2 * (price < np.median(price))
    bought = click & (rng.random(len(item)) < 0.3)
    area = np.array(["Suche", "Startseite", "Warenkorb"])[rng.integers(0, 3, n)]
    comma = lambda x: str(x).replace(".", ",")  # noqa: E731
    brand, group = rng.integers(0, 25, goods), rng.integers(0, 8, goods)
    device, code, year = rng.integers(0, 2, n), rng.integers(10_000, 99_999, buyers), rng.integers(1950, 2006, buyers)
    words = [["Schuh", "rote Jacke", "Mütze", "Hose lang"][k] for k in rng.integers(0, 4, n)]
    lines = [";".join(LADEN)]
    for row, (r, i) in enumerate(zip(request, item, strict=True)):
        when = np.datetime64(int(START + time[r]), "s").item().strftime("%d.%m.%Y %H:%M:%S")
        stay = comma(round(float(rng.exponential(20)), 1)) if click[row] else ""
        lines.append(
            f"{when};{buyer[r] + 500};A{i:05d};{r + 90_000};{row % most + 1};{comma(price[row])};"
            f"{comma(rng.choice([0, 0.1, 0.2]))};{rng.integers(0, 90)};WG{group[i]};Marke {brand[i]};"
            f"{['Handy', 'PC'][device[r]]};{words[r]};{code[buyer[r]]};{year[buyer[r]]};"
            f"{['nein', 'ja'][int(click[row])]};{['nein', 'ja'][int(bought[row])]};{stay};{area[r]}"
        )
    (folder / "laden.csv").write_text("\n".join(lines) + "\n")
    return folder / "laden.csv"


MUSIQUE = _roles("""
    evenement: event_id or none
    horodatage: ts
    auditeur.id: user_id
    auditeur.pays: user attribute
    auditeur.abonnement: user attribute
    morceau.id: item_id
    morceau.titre: item attribute or none
    morceau.artiste: item attribute
    morceau.genres: item attribute
    morceau.duree_s: item attribute
    contexte.ecran: surface
    contexte.appareil: context
    seance: none or request_id
    ecoute_s: feedback
    part_ecoutee: feedback
    aime: feedback
    recommande: organic
    meteo: context
""")


def musique(folder: Path) -> Path:
    """Plays of music: French names, JSON with objects within objects, text ids, guests without an id, unknown likes."""
    rng = np.random.default_rng(3)
    n, tracks, listeners = 5_000, 300, 140
    genres = ["jazz", "chanson", "rap", "folk"]
    artist, length = rng.integers(0, 60, tracks), rng.integers(90, 400, tracks)
    kinds = [sorted({genres[k] for k in rng.integers(0, 4, 2)}) for _ in range(tracks)]
    country, paid = rng.choice(["FR", "BE", "CA"], listeners), rng.choice(["gratuit", "payant"], listeners)
    rows, event = [], 0
    while len(rows) < n:
        who, start = int(rng.integers(0, listeners)), int(START + rng.integers(0, 50 * DAY))
        guest, screen, device = rng.random() < 0.04, ["accueil", "recherche"][int(rng.integers(0, 2))], "tv"
        device = ["telephone", "ordinateur", "tv"][int(rng.integers(0, 3))]
        weather, visit = ["pluie", "soleil"][int(rng.integers(0, 2))], f"s-{event:07x}"
        for k in range(int(rng.integers(3, 15))):
            track, event = int(rng.integers(0, tracks)), event + 1
            share = float(np.clip(rng.beta(1, 0.8), 0, 1))
            stamp = np.datetime64(start + 200 * k, "s").item().isoformat() + "Z"
            rows.append(
                {
                    "evenement": f"{event:08x}-1f3a",
                    "horodatage": stamp,
                    "auditeur": {"id": f"u_{who:04d}", "pays": country[who], "abonnement": paid[who]},
                    "morceau": {
                        "id": f"m{track:05d}",
                        "titre": f"La chanson du jour {track}",
                        "artiste": f"artiste {artist[track]}",
                        "genres": kinds[track],
                        "duree_s": int(length[track]),
                    },
                    "contexte": {"ecran": screen, "appareil": device},
                    "seance": visit,
                    "ecoute_s": round(share * float(length[track]), 1),
                    "part_ecoutee": round(share, 3),
                    "aime": None if rng.random() < 0.7 else bool(share > 0.6),
                    "recommande": bool(screen == "accueil"),
                    "meteo": weather,
                }
            )
            if guest:
                rows[-1]["auditeur"] = {"id": None, "pays": None, "abonnement": None}
    (folder / "musique.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "musique.jsonl"


#: what each made log is, by its name: a function that writes it below a folder, and its truth
MADE: dict[str, tuple[Callable[[Path], Path], dict[str, frozenset[str]]]] = {
    "hotel": (hotel, HOTEL),
    "laden": (laden, LADEN),
    "musique": (musique, MUSIQUE),
}

KUAIRAND = _roles("""
    user_id: user_id
    video_id: item_id
    time: ts
    time_is_exact: none
    tab: surface
    is_click: feedback
    long_view: feedback
    is_like: feedback
    is_follow: feedback
    is_comment: feedback
    is_forward: feedback
    is_hate: feedback
    play_time_ms: feedback
    duration_ms: item attribute
""")
MOVIELENS = _roles("""
    user_id:token: user_id
    item_id:token: item_id
    rating:float: feedback
    timestamp:float: ts
""")
BANDIT = _roles("""
    column00: none or event_id
    timestamp: ts
    item_id: item_id
    position: position
    click: feedback
    propensity_score: propensity
""")
BANDIT |= {f"user_feature_{k}": frozenset({"context", "user attribute", "user_id"}) for k in range(4)}
BANDIT |= {f"user-item_affinity_{k}": frozenset({"context", "user attribute"}) for k in range(80)}

#: of the logs of `tests/shapes.py`: the file that is the log, and its truth
SHAPED = {
    "search": (
        "searches.parquet",
        _roles("""
            search_id: request_id
            visitor: user_id
            hotel: item_id
            searched_at: ts
            rank_shown: position
            price_eur: candidate
            km_from_point: candidate
            match_score: candidate
            badge: candidate
            clicked: feedback
            booked: feedback
            nights: context
            device: context or user attribute
            town: context or item attribute
        """),
    ),
    "news": (
        "impressions.json",
        _roles("""
            reader: user_id
            article: item_id
            page_view: request_id
            slot: position
            clicked: feedback
            shown_at: ts
        """),
    ),
    "positives": (
        "purchases.parquet",
        _roles("""
            customer: user_id
            sku: item_id
            bought_at: ts
            pieces: feedback
        """),
    ),
    "stars": (
        "ratings.csv",
        _roles("""
            member: user_id
            film: item_id
            stars: feedback
            rated_at: ts
        """),
    ),
    "sessions": (
        "plays.csv",
        _roles("""
            viewer: user_id
            video: item_id
            seen: ts
            visit: request_id or none
            slot: position
            where: surface
            screen: context
            watch_ms: feedback
            liked: feedback
            hidden: feedback
        """),
    ),
}

#: how the public logs are fetched, and which of the files is the log
RECIPES = {
    "movielens": (
        FetchSettings(
            pip="recbole==1.2.1", member="recbole/dataset_example/ml-100k/", to="ml-100k", licence="research use"
        ),
        "ml-100k/ml-100k.inter",
        MOVIELENS,
    ),
    "bandit": (
        FetchSettings(pip="obp==0.5.7", member="obp/dataset/obd/bts/all/", to="obd", licence="CC BY 4.0"),
        "obd/all.csv",
        BANDIT,
    ),
}


def made_logs(folder: Path) -> list[StrangeLog]:
    """Write the made logs below a folder and return them."""
    return [StrangeLog(name, write(folder), roles) for name, (write, roles) in MADE.items()]


def public_logs(folder: Path, data: Path) -> list[StrangeLog]:
    """Return the public logs; those that are packages are fetched into a folder. data: folder of local data sets."""
    found = []
    for name, (recipe, path, roles) in RECIPES.items():
        fetch(recipe, folder)
        found.append(StrangeLog(name, folder / path, roles))
    local = data / "kuairand-pure" / "events.parquet"
    return [*found, *([StrangeLog("kuairand", local, KUAIRAND)] if local.exists() else [])]


def schema_logs(folder: Path) -> list[StrangeLog]:
    """Write the logs of `init_schemas`, `init_learned` and `init_taught` below a folder and return them."""
    return [
        StrangeLog(name, write(folder), _roles(roles)) for name, (write, roles) in (SCHEMAS | LEARNED | TAUGHT).items()
    ]


def held_back_logs(folder: Path) -> list[StrangeLog]:
    """Write the logs of `init_held_back` below a folder and return them."""
    return [StrangeLog(name, write(folder), _roles(roles)) for name, (write, roles) in HELD_BACK.items()]


def shaped_logs(folder: Path) -> list[StrangeLog]:
    """Write the logs of `tests/shapes.py` below a folder and return them."""
    found = []
    for name, (file, roles) in SHAPED.items():
        SHAPES[name](folder / name, SMALL, 0)
        found.append(StrangeLog(name, folder / name / file, roles))
    return found
