"""Slow, obvious definitions in plain Python that the fast ones are held to."""

import math
from collections.abc import Iterable

import numpy as np

from features.schema import SECOND, Catalog, EventLog
from features.spec import Counter


def event_value(log: EventLog, row: int, event: str, grades: tuple[str, ...]) -> float | None:
    """The value of an event, None where it is not known."""
    grade = int(log.grade[row])
    if event == "impression":
        return 1.0
    if event == "grade":
        return None if grade < 0 else float(grade)
    if event in grades:
        return None if grade < 0 else float(grade == grades.index(event))
    value = float(log.feedback[row, log.feedback_names.index(event)])
    return None if math.isnan(value) else value


def key_parts(catalog: Catalog, key: tuple[str, ...], user: int, item: int, surface: int) -> list[tuple[int, ...]]:
    """All keys of one event or candidate: none where a part is missing, several for a multi-valued attribute."""
    keys: list[tuple[int, ...]] = [()]
    for part in key:
        if part in ("user", "item", "surface"):
            values = [v for v in [{"user": user, "item": item, "surface": surface}[part]] if v >= 0]
        elif item < 0:
            values = []
        else:
            attribute = catalog.item_attribute(part)
            if attribute.kind == "multi":
                values = attribute.codes[attribute.offsets[item] : attribute.offsets[item + 1]].tolist()
            else:
                values = [v for v in [int(attribute.codes[item])] if v >= 0]
        keys = [(*k, v) for k in keys for v in values]
    return keys


def counter_value(
    counter: Counter,
    log: EventLog,
    catalog: Catalog,
    grades: tuple[str, ...],
    user: int,
    item: int,
    surface: int,
    as_of: int,
) -> float:
    """A counter for one candidate, by reading the whole log."""
    wanted = key_parts(catalog, counter.key, user, item, surface)
    value = hits = trials = 0.0
    last = -math.inf
    for row in range(len(log)):
        ts = int(log.ts[row])
        if not ts < as_of or (counter.span.kind == "w" and ts < as_of - counter.span.size):
            continue
        keys = key_parts(catalog, counter.key, int(log.user[row]), int(log.item[row]), int(log.surface[row]))
        known = event_value(log, row, counter.event, grades)
        weight = 2.0 ** (-(as_of - ts) / counter.span.size) if counter.span.kind == "h" else 1.0
        times = sum(key in wanted for key in keys)
        if known is not None and times:
            value += times * weight * known
            hits += times * weight * (known != 0)
            trials += times * weight
            last = max(last, ts if known != 0 else -math.inf)
    if counter.stat == "since":
        return (as_of - last) / SECOND if last > -math.inf else math.nan
    if counter.stat in ("count", "sum"):
        return hits if counter.stat == "count" else value
    return ((hits if counter.stat == "rate" else value) + counter.strength * counter.prior) / (
        trials + counter.strength
    )


def history(log: EventLog, user: int, cut: int) -> list[int]:
    """Items of a user's events before `cut`, in time order."""
    return [int(log.item[r]) for r in range(len(log)) if log.user[r] == user and log.ts[r] < cut]


def time_groups(rows: Iterable[tuple[int, int, int]], window: int, max_size: int, bounds: list[int]) -> list[list[int]]:
    """Groups of (row, user, ts) in log order, made in time order for each user and cut at the bounds."""
    groups: list[list[int]] = []
    open_group: dict[int, tuple[int, int, list[int]]] = {}
    for row, user, ts in rows:
        period = sum(ts >= b for b in bounds)
        start, of, members = open_group.get(user, (0, -1, []))
        if of != period or ts >= start + window or len(members) >= max_size:
            members = []
            groups.append(members)
            open_group[user] = (ts, period, members)
        members.append(row)
    return groups


def pairs_of(grades: list[int], sampled: list[bool], weight: np.ndarray) -> list[tuple[int, int, float]]:
    """All (winner, loser, weight) of one group, by position."""
    n = len(grades)
    return [
        (a, b, float(weight[grades[a] + 1, grades[b] + 1]))
        for a in range(n)
        for b in range(n)
        if not sampled[a] and weight[grades[a] + 1, grades[b] + 1] > 0
    ]


def pair_accuracy(scores: list[float], pairs: list[tuple[int, int, float]]) -> float:
    """Σ w·[s_winner > s_loser] / Σ w."""
    return sum(w for a, b, w in pairs if scores[a] > scores[b]) / sum(w for _, _, w in pairs)
