"""Slow, obvious definitions in plain Python that the fast ones are held to."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import permutations

import numpy as np

from features.counters.spec import Counter
from features.schema import BY_ARM, F64, HOUR, SECOND, Attribute, Catalog, EventLog


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
        elif part in [a.name for a in catalog.item_attributes]:
            values = attribute_values(catalog.item_attribute(part), item)
        else:
            attribute = next(a for a in catalog.user_attributes if f"user_{a.name}" == part)
            values = attribute_values(attribute, user)
        keys = [(*k, v) for k in keys for v in values]
    return keys


def attribute_values(attribute: Attribute, row: int) -> list[int]:
    """The codes of an item or user (-1 has none)."""
    if row < 0:
        return []
    if attribute.kind == "multi":
        return attribute.codes[attribute.offsets[row] : attribute.offsets[row + 1]].tolist()
    return [v for v in [int(attribute.codes[row])] if v >= 0]


def counter_value(
    counter: Counter,
    log: EventLog,
    catalog: Catalog,
    grades: tuple[str, ...],
    user: int,
    item: int,
    surface: int,
    as_of: int,
    arm: int = -1,
) -> float:
    """A counter for one candidate, by reading the whole log; by arm, its events of that arm and of none (-1)."""
    if counter.kind == "rank":
        return rank_value(counter, log, catalog, grades, item, as_of)
    if counter.key[0] == BY_ARM:
        log = log.select([row for row in range(len(log)) if log.arm[row] in (-1, arm)])
        counter = replace(counter, key=counter.key[1:])
    wanted = key_parts(catalog, counter.key, user, item, surface)
    value = hits = trials = over = 0.0
    last = -math.inf
    things: set[tuple[int, ...]] = set()
    for row in range(len(log)):
        ts = int(log.ts[row])
        if not ts < as_of - counter.span.delay or (counter.span.kind == "w" and ts < as_of - counter.span.size):
            continue
        of = (int(log.user[row]), int(log.item[row]), int(log.surface[row]))
        keys = key_parts(catalog, counter.key, *of)
        known = event_value(log, row, counter.event, grades)
        weight = 2.0 ** (-(as_of - ts) / counter.span.size) if counter.span.kind == "h" else 1.0
        times = sum(key in wanted for key in keys)
        if counter.kind == "ratio" and times:
            over += times * weight * (event_value(log, row, counter.argument, grades) or 0.0)
        if known is not None and times:
            value += times * weight * known
            hits += times * weight * (known != 0)
            trials += times * weight
            last = max(last, ts if known != 0 else -math.inf)
        if known and counter.kind == "distinct":
            pairs = key_parts(catalog, (*counter.key, counter.argument), *of)
            things |= {pair for pair in pairs if pair[:-1] in wanted}
    smoothed = {"rate": (hits, trials), "mean": (value, trials), "ratio": (value, over)}
    if counter.kind in smoothed:
        above, below = smoothed[counter.kind]
        return (above + counter.strength * counter.prior) / (below + counter.strength)
    if counter.kind == "since":
        return (as_of - last) / SECOND if last > -math.inf else math.nan
    return {"count": hits, "sum": value, "distinct": float(len(things))}[counter.kind]


def rank_value(
    counter: Counter, log: EventLog, catalog: Catalog, grades: tuple[str, ...], item: int, as_of: int
) -> float:
    """1 + how many items of the same attribute value have a higher count at the last full hour; the best of several."""
    attribute, hour = catalog.item_attribute(counter.argument), as_of - as_of % HOUR
    count = replace(counter, stat="count")
    of = [counter_value(count, log, catalog, grades, -1, other, -1, hour) for other in range(catalog.n_items)]
    of = [float(np.float32(c)) for c in of]
    ranks = [
        1 + sum(of[other] > of[item] for other in range(catalog.n_items) if v in attribute_values(attribute, other))
        for v in attribute_values(attribute, item)
    ]
    return float(min(ranks)) if ranks else math.nan


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


def taken_together(log: EventLog, n_items: int, floor: int, k: int, within: int) -> list[list[tuple[int, float]]]:
    """The k best (item, score) of each item: how often both are within so many events of a grade >= floor of one user.

    As asymmetric cosine.
    """
    times = [[0] * n_items for _ in range(n_items)]
    taken = [0] * n_items
    for user in set(log.user.tolist()):
        items = [int(log.item[r]) for r in range(len(log)) if log.user[r] == user and log.grade[r] >= floor]
        for p, a in enumerate(items):
            taken[a] += 1
            for b in items[p + 1 : p + 1 + within]:
                if a != b:
                    times[a][b] += 1
                    times[b][a] += 1
    found = []
    for a in range(n_items):
        norm = [np.float32(max(n, 1) ** 0.25) for n in taken]
        own = norm[a] * norm[a] * norm[a]
        scored = [(b, float(np.float32(times[a][b]) / (own * norm[b]))) for b in range(n_items) if times[a][b]]
        found.append(sorted(scored, key=lambda row: (-row[1], row[0]))[:k])
    return found


def groups(
    events: Iterable[tuple[int, int, int, int, bool]], window: int, max_size: int, bounds: list[int]
) -> list[tuple[int, list[int]]]:
    """(first row, members) of each group of (row, user, ts, request or -1, makes pairs) in log order.

    bounds: t0 to t3. The first row of a request's part of a period is its first event there, graded or not.
    """
    inside = [event for event in events if bounds[0] <= event[2] < bounds[3]]
    timed = [(row, user, ts) for row, user, ts, request, member in inside if request < 0 and member]
    found = [(members[0], members) for members in time_groups(timed, window, max_size, bounds)]
    parts: dict[tuple[int, int], list[tuple[int, bool]]] = {}
    for row, _, ts, request, member in inside:
        if request >= 0:
            parts.setdefault((request, sum(ts >= b for b in bounds)), []).append((row, member))
    for part in parts.values():
        members = [row for row, member in part if member]
        if members:
            found.append((part[0][0], members))
    return found


def cuts(
    events: Iterable[tuple[int, int, int, int, bool]], window: int, max_size: int, bounds: list[int]
) -> list[tuple[int, int]]:
    """(requests, sittings) that each of t0 to t3 cuts in two. Arguments as of `groups`.

    A sitting is cut where the last group before the boundary would take in the user's next impression after it.
    """
    members = [event for event in events if event[4]]
    found = []
    for bound in bounds:
        sides: dict[int, set[bool]] = {}
        sittings = 0
        for _, _, ts, request, _ in members:
            if request >= 0:
                sides.setdefault(request, set()).add(ts >= bound)
        for user in {event[1] for event in members}:
            timed = [(row, user, ts) for row, of, ts, request, _ in members if request < 0 and of == user]
            before, after = ([row for row in timed if (row[2] >= bound) == side] for side in (False, True))
            if before and after:
                last = time_groups(before, window, max_size, bounds)[-1]
                joined = [row for row in before if row[0] in last] + after[:1]
                sittings += len(time_groups(joined, window, max_size, [])) == 1
        found.append((sum(len(side) == 2 for side in sides.values()), sittings))
    return found


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
    """Σ w·([s_winner > s_loser] + ½·[equal]) / Σ w."""
    right = sum(w * (1.0 if scores[a] > scores[b] else 0.5) for a, b, w in pairs if scores[a] >= scores[b])
    return right / sum(w for _, _, w in pairs)


def pair_logit(
    scores: list[float], grades: list[int], pairs: list[tuple[int, int, float]], margin: float
) -> tuple[list[float], list[float]]:
    """Gradient and Hessian of Σ w·log(1 + e^-(s_a - s_b - margin·(grade_a - grade_b))), pair by pair."""
    gradient, hessian = [0.0] * len(scores), [0.0] * len(scores)
    for a, b, w in pairs:
        apart = scores[a] - scores[b] - margin * (grades[a] - grades[b])
        wrong = 1 / (1 + math.exp(min(apart, 700)))
        gradient[a] -= w * wrong
        gradient[b] += w * wrong
        hessian[a] += w * wrong * (1 - wrong)
        hessian[b] += w * wrong * (1 - wrong)
    return gradient, hessian


def orders(scores: list[float]) -> list[tuple[int, ...]]:
    """All orders of a list from the best score to the worst: several where scores are tied. NaN is the worst of all."""
    clean = [-math.inf if math.isnan(s) else s for s in scores]
    best = sorted(clean, reverse=True)
    return [order for order in permutations(range(len(clean))) if [clean[k] for k in order] == best]


def dcg(gains: list[float], order: Iterable[int], k: int) -> float:
    """Σ gain / log2(place + 1) over the first k places."""
    return sum(gains[row] / math.log2(place + 2) for place, row in enumerate(order) if place < k)


def delta_ndcg(scores: list[float], gains: list[float], k: int, a: int, b: int) -> float:
    """|ΔNDCG@k| where a and b swap their places, the mean over all orders of the ties."""
    ideal = dcg(gains, sorted(range(len(gains)), key=lambda row: -gains[row]), k)
    if ideal == 0:
        return 0.0
    swap = {a: b, b: a}
    changes = [abs(dcg(gains, o, k) - dcg(gains, [swap.get(row, row) for row in o], k)) for o in orders(scores)]
    return sum(changes) / len(changes) / ideal


def reciprocal_rank(scores: list[float], relevant: list[bool]) -> float:
    """1 / place of the first relevant one, the mean over all orders of the ties."""
    places = [1 + next(place for place, row in enumerate(order) if relevant[row]) for order in orders(scores)]
    return sum(1 / place for place in places) / len(places)


def uplift_variance(without: F64, with_: F64) -> tuple[float, dict[str, float]]:
    """The relative uplift and the parts of its variance, users left out one by one. Arrays: [fits, seeds, users]."""
    fits, seeds, n = with_.shape
    users = range(n)

    def total(arm: F64, fit: int | None, seed: int | None, out: int) -> float:
        rows = [
            sum(float(arm[f, s, u]) for u in users if u != out)
            for f in (range(len(arm)) if fit is None else [fit])
            for s in (range(seeds) if seed is None else [seed])
        ]
        return sum(rows) / len(rows)

    ratio = total(with_, None, None, -1) / total(without, None, None, -1)

    def statistic(fit: int | None, seed: int | None, out: int = -1) -> float:
        """How far one fit or seed, or all, lies from the ratio."""
        base = total(without, None, None, out)
        return (total(with_, fit, seed, out) - ratio * total(without, None, seed, out)) / base

    def jackknife(of: Callable[[int], float]) -> float:
        return (n - 1) / n * sum((of(u) - of(-1)) ** 2 for u in users)

    def mean_squares(cells: list[Callable[[int], float]], df: int) -> tuple[float, float]:
        """Between the cells; and what the users who are there explain of it."""
        k = len(cells)
        return sum(cell(-1) ** 2 for cell in cells) / df / k, sum(map(jackknife, cells)) / df / k

    def of_fit(f: int, out: int) -> float:
        return statistic(f, None, out) - statistic(None, None, out)

    def of_seed(s: int, out: int) -> float:
        return statistic(None, s, out) - statistic(None, None, out)

    def of_both(f: int, s: int, out: int) -> float:
        return statistic(f, s, out) - statistic(None, s, out) - of_fit(f, out)

    between, within = mean_squares([partial(of_fit, f) for f in range(fits)], fits - 1)
    fits_part = max(between - within, 0.0)
    both = [partial(of_both, f, s) for f in range(fits) for s in range(seeds)]
    between, within = mean_squares(both, (fits - 1) * (seeds - 1))
    shared = max(between - within, 0.0)
    between, within = mean_squares([partial(of_seed, s) for s in range(seeds)], seeds - 1)
    seeds_part = max(between - within - shared, 0.0)
    whole = jackknife(lambda out: statistic(None, None, out))
    return ratio - 1, {"users": whole, "fits": fits_part, "seeds": seeds_part}


def list_ndcg(scores: list[float], hits: list[bool], wanted: int, k: int) -> float:
    """NDCG@k of one list by its scores (ties in the order of the rows), of which `wanted` items are there to be hit."""
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:k]
    found = sum(1 / math.log2(place + 2) for place, row in enumerate(order) if hits[row])
    return found / sum(1 / math.log2(place + 2) for place in range(min(k, wanted)))
