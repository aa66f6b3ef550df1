"""What a fit knew, by name, so that a later fit goes on from its weights. NumPy alone.

Codes are places in sorted lists, which new items and values shift. Here stands what each code was, and how numbers were
scaled: the later fit keeps the scales, for its weights have learned them, and hashes a value to the rows that are
its own already. A value that was not trained is new, and one that is gone is forgotten.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from features.errors import PairliftError
from features.pairing.split import iso
from features.schema import I64, Attribute, Bool, Catalog, Ids
from neural.vocabulary.context import ContextAttribute, ContextSpec
from neural.vocabulary.entities import Coding, Scale, embedded, hashed, met_values, numeric
from neural.vocabulary.feedback import FeedbackKinds

#: what `Known.save` writes
KNOWN = "known.json"
#: the feature of an item's id, beside attributes by their names
ID = "id"


class Numbered(NamedTuple):
    """Values that were trained, with the numbers that they are hashed by."""

    value: list[Any]  # ids, or texts
    number: list[int]

    def rows_of(self, values: Sequence[Any]) -> I64:
        """Return int64[n]: the number of each value, -1 of a new one."""
        known = dict(zip(self.value, self.number, strict=True))
        return np.array([known.get(value, -1) for value in values], np.int64)

    def renumbered(self, values: Sequence[Any]) -> I64:
        """Return int64[n]: the number of each value, a new one having one that none has."""
        number = self.rows_of(values)
        new = number < 0
        number[new] = max(self.number, default=-1) + 1 + np.arange(new.sum())
        return number


@dataclass(frozen=True, slots=True)
class Side:
    """Items, or users."""

    salt: int  # of `encode`
    values: dict[str, Numbered]  # by embedded feature, in their order
    scales: dict[str, Scale | None]  # by numeric attribute, in their order

    @classmethod
    def of(cls, salt: int, ids: Ids | None, count: I64, attributes: tuple[Attribute, ...], coding: Coding) -> Self:
        """Name what `encode` embedded. ids: of the entities, where they are embedded."""
        values = _values(ids, attributes)
        met = met_values(count, attributes, ids is not None)
        trained = {
            name: Numbered(np.array(values[name], object)[seen].tolist(), number[seen].tolist())
            for name, seen, number in zip(values, met, coding.numbers, strict=True)
        }
        return cls(salt, trained, dict(zip(_numbers(attributes), coding.scales, strict=True)))

    def coding(self, ids: Ids | None, count: I64, attributes: tuple[Attribute, ...]) -> Coding:
        """Return how a fit that goes on encodes its entities; PairliftError where they have other attributes."""
        values, own = _values(ids, attributes), Coding.build(count, attributes, ids is not None)
        names = _numbers(attributes)
        was, now = [*self.values, *self.scales], [*values, *names]
        if was != now or list(self.scales) != names:
            raise PairliftError(
                f"the attributes of {'users' if ids is None else 'items'} were {_listed(was)}, now they are "
                f"{_listed(now)}"
            )
        kept = zip(self.scales.values(), own.scales, strict=True)
        return Coding(
            tuple(self.values[name].renumbered(values[name]) for name in values),
            tuple(new if old is None else old for old, new in kept),
        )

    def kept_rows(self, now: "Side", rows: int) -> Bool:
        """Return bool[rows] of the table: a value that was trained, and is by the present fit, has it."""
        kept = np.zeros(rows, bool)
        for feature, (name, of) in enumerate(self.values.items()):
            number = of.rows_of(now.values[name].value)
            kept[hashed(number[number >= 0], rows, self.salt, feature)] = True
        return kept

    @classmethod
    def of_json(cls, saved: dict[str, Any]) -> Self:
        """Return what `asdict` made, JSON having lists for tuples."""
        values = {name: Numbered(*of) for name, of in saved["values"].items()}
        scales = {name: of and (of[0], of[1]) for name, of in saved["scales"].items()}
        return cls(saved["salt"], values, scales)


def _values(ids: Ids | None, attributes: tuple[Attribute, ...]) -> dict[str, Sequence[Any]]:
    """Return the values behind the codes of each embedded feature, by its name."""
    own: dict[str, Sequence[Any]] = {} if ids is None else {ID: ids.tolist()}
    return own | {f"{a.name} ({a.kind})": a.values for a in embedded(attributes)}


def _numbers(attributes: tuple[Attribute, ...]) -> list[str]:
    """Return the names of numeric attributes, with the size of a vector."""
    sizes = (f" of {a.numbers.shape[1]}" if a.kind == "vector" else "" for a in numeric(attributes))
    return [f"{a.name} ({a.kind}{size})" for a, size in zip(numeric(attributes), sizes, strict=True)]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """All that codes and numbers were to a fit. Lists where JSON has them."""

    until: int  # µs: it has learned from events and groups before this time, and from none later
    rows: int  # of the table
    grades: list[str]
    surfaces: list[str]  # behind the known codes
    contexts: dict[str, list[Any]]  # by attribute of the context: the values of a category's marks, a number's marks
    signals: list[list[float]]  # mean and scale of the grade's rank and of each feedback column
    feedback: dict[str, list[Any]]  # by name: kind, mean, scale and unit, as `FeedbackKinds` has them
    items: Side
    users: Side

    @staticmethod
    def named(context: ContextSpec, catalog: Catalog) -> dict[str, list[Any]]:
        """Return `contexts` of what a fit reads of a request."""
        return {_kind(attribute): _marks(attribute, catalog) for attribute in context.attributes}

    def save(self, folder: Path) -> None:
        """Write it beside the fit's other files."""
        (folder / KNOWN).write_text(json.dumps(asdict(self), ensure_ascii=False))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; PairliftError where nothing was."""
        if not (folder / KNOWN).exists():
            raise PairliftError("its weights were not kept, for it was fitted before fits could go on")
        read = json.loads((folder / KNOWN).read_text())
        return cls(**read | {side: Side.of_json(read[side]) for side in ("items", "users")})

    def check(
        self, until: int, grades: Sequence[str], feedback: Sequence[str], context: ContextSpec, now: Catalog
    ) -> None:
        """Raise PairliftError where it has seen what is judged now, or its heads mean something else.

        until: µs, where the validation slice begins: what was learned from must end by then. (The earlier fit's own
        slice has chosen its epoch, as the present one chooses among those to come: nothing is learned from either, and
        both lie before the period of the booster.)
        """
        for what, were, are in (
            ("grades", self.grades, grades),
            ("feedback", self.feedback, feedback),
            ("attributes of context", self.contexts, self.named(context, now)),
        ):
            if list(were) != list(are):
                raise PairliftError(f"its {what} were {_listed(were)}, now they are {_listed(are)}")
        ids = self.items.values[ID]
        if ids.value and (ids.rows_of(now.item_ids.tolist()) < 0).all():
            raise PairliftError(f"none of its {len(ids.value):,} items is in this log")
        if self.until > until:
            raise PairliftError(
                f"it has learned from events until {iso(self.until)}, and the validation slice of the towers' period "
                f"begins at {iso(until)}: it has seen what it would be judged by; move [split] t1"
            )

    def context(self, now: ContextSpec) -> ContextSpec:
        """Return it with the bins of then where a number had some."""
        return replace(
            now,
            attributes=tuple(
                a if a.category or not self.contexts[_kind(a)] else replace(a, marks=tuple(self.contexts[_kind(a)]))
                for a in now.attributes
            ),
        )

    def kinds(self, now: FeedbackKinds) -> FeedbackKinds:
        """Return the kinds and scales of then; PairliftError where a loss of then cannot learn what there is now."""
        kind = tuple(of[0] for of in self.feedback.values())
        # Before there were times, there was no unit.
        mean, scale, unit = np.array([(*of[1:], 1.0)[:3] for of in self.feedback.values()]).reshape(-1, 3).T
        was = FeedbackKinds(kind, mean, scale, unit)
        for name, wide, old, new in zip(self.feedback, was.bounded & ~now.bounded, kind, now.kind, strict=True):
            if wide or (old, new) == ("count", "number"):
                raise PairliftError(f"feedback '{name}' was a {old}, now it is a {new}")
        return was

    def surface_rows(self, catalog: Catalog, n_surfaces: int) -> I64:
        """Return int64[n_surfaces + 1]: the row that each row of the surfaces' table was, -1 of a new one."""
        return _moved(self.surfaces, catalog.surfaces[:n_surfaces])

    def context_rows(self, attribute: ContextAttribute, catalog: Catalog) -> I64:
        """Return int64[size]: likewise of one attribute of a request."""
        if attribute.category:
            return _moved(self.contexts[_kind(attribute)], _marks(attribute, catalog))
        rows = np.arange(attribute.size)
        return rows if self.contexts[_kind(attribute)] else np.where(rows > 0, -1, 0)  # nothing was known of it


def _kind(attribute: ContextAttribute) -> str:
    return f"{attribute.name} ({'category' if attribute.category else 'number'})"


def _marks(attribute: ContextAttribute, catalog: Catalog) -> list[Any]:
    if not attribute.category:
        return list(attribute.marks)
    values = catalog.contexts[attribute.place].values
    return [values[int(code)] for code in attribute.marks]


def _moved(was: Sequence[str], now: Sequence[str]) -> I64:
    """Return int64[1 + n]: the row of each value, behind that of the unknown one."""
    place = {value: row + 1 for row, value in enumerate(was)}
    return np.array([0, *(place.get(value, -1) for value in now)], np.int64)
