"""The columns that the default features could have: the old defaults, families to add to them, and the present ones."""

from defaults_study import Family, MakeFamily
from old_defaults import old_columns, old_counters

from features.counters.defaults import MAX_VALUES, default_settings
from features.plain import column_names
from features.schema import Attribute, Catalog
from features.settings import CounterSettings

Grades = tuple[str, ...]
Key = list[str]


def one(key: Key, event: str, stats: list[str], spans: list[str] | None = None, strength: float = 10.0) -> Family:
    """Return the family of one declaration."""
    spans = spans or ["all"]
    return Family([CounterSettings(key=key, event=event, stats=stats, spans=spans, strength=strength)], [])


def joined(*families: Family) -> Family:
    """Return one family of all columns."""
    return Family([c for f in families for c in f.counters], [name for f in families for name in f.columns])


def worth(key: Key, grades: Grades, spans: list[str], strength: float = 10.0) -> Family:
    """Return the mean grade of a key; nothing where there is one grade."""
    return one(key, "grade", ["mean"], spans, strength) if len(grades) > 1 else Family([], [])


def wanted(key: Key, grades: Grades) -> Family:
    """Return the seconds since the last wanted event of a key."""
    return one(key, grades[len(grades) // 2], ["since"]) if len(grades) > 1 else Family([], [])


def _categories(attributes: tuple[Attribute, ...], least: int, most: int) -> list[str]:
    return [a.name for a in attributes if a.kind in ("categorical", "multi") and least <= len(a.values) <= most]


def small(catalog: Catalog) -> list[str]:
    """Return the names of item attributes of few values."""
    return _categories(catalog.item_attributes, 2, MAX_VALUES)


def large(catalog: Catalog) -> list[str]:
    """Return the names of item attributes of many values, but for those of which each item has its own."""
    return _categories(catalog.item_attributes, MAX_VALUES + 1, catalog.n_items - 1)


def of_users(catalog: Catalog) -> list[str]:
    """Return the parts of keys that are attributes of users, of few values."""
    return [f"user_{name}" for name in _categories(catalog.user_attributes, 2, MAX_VALUES)]


def lists_of_items(catalog: Catalog) -> Family:
    """Return the plain columns of multi-valued attributes."""
    lists = [a.name for a in catalog.item_attributes if a.kind == "multi" and len(a.values) <= MAX_VALUES]
    return Family([], [f"item_{name}_{form}" for name in lists for form in ("main", "count")])


OWN = ["user", "item"]
OLD, NEW = "old defaults", "new defaults"
#: what may be added to the old defaults
ADDED: dict[str, MakeFamily] = {
    "item_age": lambda c, g: Family([], ["item_age"]),
    "lists: main and count": lambda c, g: lists_of_items(c),
    "user x item": lambda c, g: joined(one(OWN, "impression", ["count", "since"]), worth(OWN, g, ["all"], 1.0)),
    "item, hours": lambda c, g: joined(one(["item"], "impression", ["count"], ["h6h"]), worth(["item"], g, ["h6h"])),
    "item, a day": lambda c, g: worth(["item"], g, ["h1d"]),
    "item, since wanted": lambda c, g: wanted(["item"], g),
    "attribute": lambda c, g: joined(*(worth([n], g, ["h7d", "all"]) for n in small(c))),
    "large attribute": lambda c, g: joined(
        *(one([n], "impression", ["count"]) for n in large(c)),
        *(worth([n], g, ["h7d", "all"]) for n in large(c)),
    ),
    "user x large attribute": lambda c, g: joined(
        *(
            joined(one(["user", n], "impression", ["count", "since"]), worth(["user", n], g, ["all"], 3.0))
            for n in large(c)
        )
    ),
    "item x user attribute": lambda c, g: joined(*(worth(["item", n], g, ["all"]) for n in of_users(c))),
    "distinct": lambda c, g: joined(
        one(["user"], "impression", ["distinct_item"]), one(["item"], "impression", ["distinct_user"])
    ),
}
FAMILIES: dict[str, MakeFamily] = {
    OLD: lambda c, g: Family(old_counters(c, g), old_columns(c)),
    NEW: lambda c, g: Family(default_settings(c, g), column_names(c, None)[0]),
    **ADDED,
}
