"""The counters of a TOML that declares none: what is good on logs of any shape, as `make bench WHAT=defaults` shows."""

from features.schema import Catalog
from features.settings import CounterSettings

#: an attribute of more values is no default column: counters of its own stand in its place, as of the time
MAX_VALUES = 1000
#: trials of the prior where a key is a user's own item, of which there are few events
FEW = 1.0


def default_settings(catalog: Catalog, grades: tuple[str, ...]) -> list[CounterSettings]:
    """Return counters that are good on any log; of a log with one grade, they count and rate nothing."""
    categories = [a for a in catalog.item_attributes if a.kind in ("categorical", "multi")]
    small = [a.name for a in categories if 2 <= len(a.values) <= MAX_VALUES]
    large = [a.name for a in categories if MAX_VALUES < len(a.values) < int((a.codes >= 0).sum())]  # some are shared
    own, of_surface = ["user", "item"], [["item", "surface"]] if len(catalog.surfaces) > 1 else []
    declared = []
    for key in [["user"], ["item"], *(["user", name] for name in small), *of_surface]:
        declared += [_one(key, "impression", ["count"], ["h1d", "h7d", "all"]), *_rates(key, grades)]
    for key in ([name] for name in large):
        declared += [_one(key, "impression", ["count"], ["all"]), *_worth(key, grades, ["h7d", "all"])]
    declared += [_one(["item"], "impression", ["count"], ["h6h"]), *_worth(["item"], grades, ["h6h", "h1d"])]
    declared += [_one(own, "impression", ["count"], ["all"]), *_worth(own, grades, ["all"], FEW)]
    return declared + [_one(key, "impression", ["since"], ["all"]) for key in (["user"], ["item"], own)]


def _one(key: list[str], event: str, stats: list[str], spans: list[str], strength: float = 10.0) -> CounterSettings:
    return CounterSettings(key=key, event=event, stats=stats, spans=spans, strength=strength)


def _rates(key: list[str], grades: tuple[str, ...]) -> list[CounterSettings]:
    """Return how good a key's events were, and of more than two grades the rate of each above the worst."""
    spans = ["h7d", "all"]
    each = grades[1:] if len(grades) > 2 else ()
    return _worth(key, grades, spans) + [_one(key, grade, ["rate"], spans) for grade in each]


def _worth(key: list[str], grades: tuple[str, ...], spans: list[str], strength: float = 10.0) -> list[CounterSettings]:
    """Return how good a key's events were: the mean grade, which of two grades is the rate of the better one."""
    if len(grades) < 2:
        return []
    event, stat = ("grade", "mean") if len(grades) > 2 else (grades[1], "rate")
    return [_one(key, event, [stat], spans, strength)]
