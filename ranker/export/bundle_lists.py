"""How a bundle makes the lists of `Recommend`, for its page: candidates of each source, pre-ranking, the liked part."""

from collections.abc import Mapping
from itertools import product
from typing import Any

from ranker.blend.shares import Judged
from ranker.uplift.markup import table
from ranker.uplift.said import Figure, Sentence, as_html, found_at

Report = Mapping[str, Any]
Place = tuple[str | int, ...]

#: which of the steps of a worth is shown beside the first
DEEP = 11
#: where the figures of the page's own bundle stand
OWN: Place = ("bundles", 0, "measured")


def lists_section(report: Report) -> str:
    """Return the section; nothing of a bundle of which nothing of it is known."""
    cards = "".join(_card(title, inside) for title, inside in _cards(report).items() if inside)
    return f'<section><h2>How lists are made</h2><div class="cards">{cards}</div></section>' if cards else ""


def _card(title: str, inside: str) -> str:
    return f'<section class="card"><h3>{title}</h3>{inside}</section>'


def _cards(report: Report) -> dict[str, str]:
    return {
        "Places of each source": _quotas(report),
        "Whether learned shares find more": _judged(report),
        "Pre-ranking": _preranked(report),
        "The liked part's score in lists": _liked(report),
    }


def _quotas(report: Report) -> str:
    """Return how many places each source has, and what they are worth; nothing where the TOML's quotas say it."""
    kinds = report["shares"]
    if not kinds:
        return ""
    sources = sorted({name for of in kinds for name in of["quotas"]})
    rows: dict[str, Sentence] = {
        name: [Figure(("shares", k, "quotas", name), "count") for k in range(len(kinds))] for name in sources
    }
    for name, number in product(sources, (0, DEEP)):
        path = ("worth", name, number)
        place = next((found_at(of, (*path, 0)) for of in kinds if found_at(of, path) is not None), None)
        if place is not None:
            label = f"{name}: worth of place {place + 1}"
            rows[label] = [Figure(("shares", k, *path, 1), "number") for k in range(len(kinds))]
    for label, key in {
        "places filled together": "total",
        "candidates, in the mean": "candidates",
        "learned of users": "users",
    }.items():
        rows[label] = [Figure(("shares", k, key), "count") for k in range(len(kinds))]
    heads = [", ".join(filter(None, (_history(of["known"]), of["surface"]))) for of in kinds]
    return table(report, ["users", *heads], rows)


def _history(known: bool) -> str:
    return "with history" if known else "without history"


def _judged(report: Report) -> str:
    """Return what learned shares find beside the configured order, for users with history and without."""
    found = found_at(report, (*OWN, "shares")) or []
    said = [_judgement((*OWN, "shares", k), of) for k, of in enumerate(found) if "new_weight" in of]
    return "".join(f"<p>{as_html(report, sentence)}</p>" for sentence in said)


def _judgement(path: Place, of: Mapping[str, Any]) -> Sentence:
    """Return what `Judged` says, with its figures' places."""
    kept: Sentence = ["as configured, for learned shares are not shown to be better"]
    if Judged.read(of).learned:
        kept = ["learned shares, a new item counts as ", Figure((*path, "new_weight"), "number")]
    users = f"Users {_history(of['known'])}: "
    if of["gain"] is None:
        return [users, *kept, "."]
    measured: Sentence = [Figure((*path, "candidates"), "count"), " candidates, learned less configured: "]
    return [
        users,
        *kept,
        ". Recall of ",
        *measured,
        *_estimate(path, of, "gain"),
        *_estimate(path, of, "new_items"),
        ".",
    ]


def _estimate(path: Place, of: Mapping[str, Any], key: str) -> list[str | Figure]:
    """Return a mean and its interval; nothing of too few users."""
    if of[key] is None:
        return []
    mean, low, high = (Figure((*path, key, k), "gain") for k in range(3))
    return ["; of new items " if key == "new_items" else "", mean, " [", low, ", ", high, "]"]


def _preranked(report: Report) -> str:
    """Return what the stage before the ranker keeps; nothing of a bundle without it."""
    path = (*OWN, "prerank")
    of = found_at(report, path)
    if of is None:
        return ""
    said: list[str | Figure] = [Figure((*path, "candidates"), "count"), " candidates in the mean; some are cut of "]
    said += [Figure((*path, "cut"), "share"), " of the test's requests"]
    kept, unseen = (Figure((*path, key), "accuracy") for key in ("kept_top50", "kept_top50_unseen_items"))
    if kept.value(report) is not None:
        said += [". Kept of the ranker's own first 50 there: ", kept]
    if unseen.value(report) is not None:
        said += [", ", unseen, " of those items that its fit did not see"]
    return f"<p>{as_html(report, [*said, '.'])}</p>"


def _liked(report: Report) -> str:
    """Return the weight of the liked part's score, and what each that was tried reaches."""
    path = (*OWN, "liked_weight")
    of = found_at(report, path)
    if of is None:
        return ""
    how = "chosen, for it costs nothing which could be told" if of["chosen"] else "as [lists] liked says"
    said = as_html(report, ["Its weight is ", Figure((*path, "weight"), "number"), f": {how}."])
    tried: dict[str, Sentence] = {weight: [Figure((*path, "ndcg", weight), "accuracy")] for weight in of["ndcg"]}
    return f"<p>{said}</p>{table(report, ['weight', 'NDCG of the validation slice'], tried) if tried else ''}"
