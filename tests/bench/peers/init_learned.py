"""Logs that were held back, measured .551 when they were first read, and taught `ranker.guessing.structure`."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from init_schemas import ids, iso, shown, write


def delivery(folder: Path) -> Path:
    """Restaurants of a delivery app: fees and minutes change with each request."""
    s = shown(41, requests=1000, size=7)
    columns = {
        "feed_request_uuid": ids("0f1e-", s.request, 8),
        "customer_uuid": ids("cu-", s.user, 8),
        "restaurant_slug": ids("the-kitchen-", s.item, 4),
        "shown_ts": iso(s.time, "%Y-%m-%dT%H:%M:%S+01:00"),
        "carousel_index": s.place,
        "placement": s.of_request(["home_top", "cuisine_page", "reorder_strip"]),
        "delivery_fee_cents": s.any(np.arange(0, 600, 50)),
        "eta_minutes": s.any(np.arange(10, 70)),
        "surge_multiplier": s.of_request(np.array([1.0, 1.0, 1.2, 1.5])),
        "is_open": s.any([1, 1, 1, 0]),
        "avg_stars": s.of_item(np.round(s.rng.uniform(3, 5, 60), 1)),
        "cuisine": s.of_item(["thai", "pizza", "sushi", "indian"]),
        "price_band": s.of_item([1, 2, 3]),
        "loyalty_tier": s.of_user(["none", "silver", "gold"]),
        "platform": s.of_request(["ios", "android", "web"]),
        "app_build": np.where(s.time > s.time[len(s.time) // 2], 412, 398),
        "temperature_c": s.of_request(np.round(s.rng.normal(12, 6, 200), 1)),
        "tapped": s.click.astype(int),
        "ordered": s.buy.astype(int),
        "basket_value_cents": s.some(s.rng.integers(900, 6000, len(s.item)), s.buy),
        "seconds_on_menu": s.some(np.round(s.rng.exponential(60, len(s.item)), 1), s.click),
        "experiment_arm": s.of_request(["A", "B"]),
    }
    return write(folder / "delivery.parquet", columns)


DELIVERY = """
    feed_request_uuid: request_id
    customer_uuid: user_id
    restaurant_slug: item_id
    shown_ts: ts
    carousel_index: position
    placement: surface
    delivery_fee_cents: candidate
    eta_minutes: candidate
    surge_multiplier: context
    is_open: candidate
    avg_stars: item attribute
    cuisine: item attribute
    price_band: item attribute
    loyalty_tier: user attribute
    platform: context
    app_build: none
    temperature_c: context
    tapped: feedback
    ordered: feedback
    basket_value_cents: feedback or none
    seconds_on_menu: feedback or none
    experiment_arm: none or context
"""


def lessons(folder: Path) -> Path:
    """Lessons that students opened: no lists, how far they came, and a nullable word of praise."""
    s = shown(42, requests=1100, size=4, users=160, items=240)
    share = np.round(s.rng.beta(1.2, 0.8, len(s.item)) * 100, 1)
    columns = {
        "student_no": s.user + 20_240_000,
        "lesson_code": ids("L", s.item, 4),
        "opened_at": iso(s.time + 900 * s.place, "%m/%d/%Y %H:%M:%S"),
        "subject": s.of_item(["algebra", "history", "biology"]),
        "difficulty": s.of_item([1, 2, 3, 4, 5]),
        "teacher": s.of_item([f"teacher {k}" for k in range(12)]),
        "grade_level": s.of_user([7, 8, 9, 10]),
        "school": s.of_user(["north", "south", "east"]),
        "device": s.any(["tablet", "laptop"]),
        "assigned": s.any([0, 0, 0, 1]),
        "minutes_spent": np.round(share / 5 + s.rng.random(len(s.item)), 1),
        "progress_pct": share,
        "finished": (share > 85).astype(int),
        "quiz_score": s.some(s.rng.integers(0, 101, len(s.item)), share > 85),
        "thumbs": s.some(s.any([-1, 1, 1]), 0.15),
    }
    return write(folder / "lessons.csv", columns)


LESSONS = """
    student_no: user_id
    lesson_code: item_id
    opened_at: ts
    subject: item attribute
    difficulty: item attribute
    teacher: item attribute
    grade_level: user attribute
    school: user attribute
    device: context
    assigned: organic or context or candidate or none
    minutes_spent: feedback
    progress_pct: feedback
    finished: feedback
    quiz_score: feedback or none
    thumbs: feedback
"""


def push(folder: Path) -> Path:
    """Pushed news: objects within objects, times in ms, one story a message, so no lists."""
    s = shown(43, requests=4500, size=1, users=300, items=350)
    desks, tags = ["politics", "sports", "culture"], ["eu", "film", "budget", "goal", "expo"]
    desk, length = s.rng.choice(desks, 350), s.rng.integers(200, 3000, 350)
    tagged = [sorted({tags[k] for k in s.rng.integers(0, 5, 2)}) for _ in range(350)]
    zone, plan = s.rng.choice(["Europe/Paris", "Europe/Rome"], 300), s.rng.choice(["free", "paid"], 300)
    rows = [
        {
            "message": {"guid": f"m-{k:08d}", "sentAt": int(s.time[k]) * 1000, "channel": ["app", "mail"][k % 2]},
            "recipient": {"uid": int(s.user[k]), "timezone": zone[s.user[k]], "plan": plan[s.user[k]]},
            "story": {
                "slug": f"story-{s.item[k]:05d}",
                "headline": f"What we know about the day {s.item[k]}",
                "desk": desk[s.item[k]],
                "tags": tagged[s.item[k]],
                "wordCount": int(length[s.item[k]]),
            },
            "matchScore": round(float(s.rng.random()), 4),
            "hoursSincePublish": round(float(s.rng.exponential(8)), 2),
            "opened": bool(s.click[k]),
            "readSeconds": int(s.rng.exponential(50)) if s.click[k] else 0,
            "unsubscribed": bool(s.rng.random() < 0.01),
        }
        for k in range(len(s.item))
    ]
    (folder / "push.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "push.jsonl"


PUSH = """
    message.guid: event_id or none
    message.sentAt: ts
    message.channel: surface or context
    recipient.uid: user_id
    recipient.timezone: user attribute
    recipient.plan: user attribute
    story.slug: item_id
    story.headline: item attribute
    story.desk: item attribute
    story.tags: item attribute
    story.wordCount: item attribute
    matchScore: candidate
    hoursSincePublish: candidate
    opened: feedback
    readSeconds: feedback
    unsubscribed: feedback
"""


def loja(folder: Path) -> Path:
    """A shop's lists in Portuguese, of which the vocabulary has no word on purpose."""
    s = shown(44, requests=900, size=6)
    columns = {
        "codigo_comprador": s.user + 88_000,
        "codigo_mercadoria": s.item + 4_000,
        "pedido_lista": s.request + 1,
        "quando": iso(s.time, "%d/%m/%Y %H:%M:%S"),
        "ordem": s.place + 1,
        "pagina_site": s.of_request(["inicio", "procura", "ofertas"]),
        "preco": np.round(s.of_item(s.rng.lognormal(3, 0.5, 90)) * s.rng.lognormal(0, 0.1, len(s.item)), 2),
        "desconto": s.any([0, 5, 10, 20]),
        "estoque": s.rng.integers(0, 200, len(s.item)),
        "fabricante": s.of_item([f"fab{k}" for k in range(15)]),
        "peso_kg": s.of_item(np.round(s.rng.uniform(0.1, 9, 80), 2)),
        "estado_civil": s.of_user(["solteiro", "casado"]),
        "navegador": s.of_request(["chrome", "firefox", "safari"]),
        "clicou": np.where(s.click, "sim", "nao"),
        "comprou": np.where(s.buy, "sim", "nao"),
        "valor_pago": s.some(np.round(s.rng.lognormal(3, 0.5, len(s.item)), 2), s.buy),
    }
    return write(folder / "loja.csv", columns)


LOJA = """
    codigo_comprador: user_id
    codigo_mercadoria: item_id
    pedido_lista: request_id
    quando: ts
    ordem: position
    pagina_site: surface or context
    preco: candidate
    desconto: candidate
    estoque: candidate
    fabricante: item attribute
    peso_kg: item attribute
    estado_civil: user attribute
    navegador: context
    clicou: feedback
    comprou: feedback
    valor_pago: feedback or none
"""

#: a function that writes the log below a folder, and the text of its truth
LEARNED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "delivery": (delivery, DELIVERY),
    "lessons": (lessons, LESSONS),
    "push": (push, PUSH),
    "loja": (loja, LOJA),
}
