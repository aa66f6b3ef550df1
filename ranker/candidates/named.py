"""The sources of `[sources.NAME]`: any class of the Protocol of `source.py`, by its path, with a life of a few steps.

    __init__   the keys of its table, less those of `ranker.settings.NamedSource`
    check      do they name what the log has? Before any work
    fit        arrays from the events before a cut; a bundle keeps them, and a server maps them
    open       over these arrays, the served plugins and the state of now
    over       the same over a later state: every 30 s where events are recorded (`ranker.serving.renewing`)
    propose    for each request

All but the first and the last may be left out. What is fitted knows nothing at or behind the cut: it is fitted on what
comes before t1 for the wanted part, which learns by it, on what comes before t2 for the lists that are measured, and on
the whole log for the bundle. `open` and `over` get the whole state also in training: what is read of it for a request
are events with `ts < as_of`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Protocol, Self, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from features.arrays import load_array
from features.errors import PairliftError, did_you_mean
from features.plugin import FeaturePlugin, built, class_of
from features.schema import Catalog, EventLog
from features.state.store import State
from ranker.candidates.source import CandidateSource
from ranker.request import MAX_SOURCES
from ranker.settings import NamedSource, SourcesSettings

#: what a source was fitted to, by names of its own
Arrays = Mapping[str, npt.NDArray[Any]]
#: the same of all sources that are fitted, by their names
Fitted = Mapping[str, Arrays]
#: of a bundle whose sources have none
NOT_FITTED: Fitted = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceData:
    """What a source may see while it fits."""

    log: EventLog  # the events before the cut
    catalog: Catalog
    floor: int  # rank of the lowest grade from which on an item was wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a source answers from, beside the request."""

    arrays: Arrays  # what its `fit` gave, read-only; none of a source without
    plugins: Mapping[str, FeaturePlugin]  # those that are served, by name
    state: State  # of now; of the whole log in training
    floor: int  # as `SourceData.floor`


@runtime_checkable
class CheckedSource(CandidateSource, Protocol):
    """A source whose options name what the log has: attributes, surfaces."""

    def check(self, catalog: Catalog) -> None:
        """Raise PairliftError for an option that names what the catalogue lacks; before anything is fitted."""


@runtime_checkable
class FittedSource(CandidateSource, Protocol):
    """A source that learns something."""

    def fit(self, data: SourceData) -> Arrays:
        """Return what `open` needs, by names that may be file names: of the same data the same bits."""


@runtime_checkable
class OpenedSource(CandidateSource, Protocol):
    """A source that reads more than its options and the request: called once, before `propose`."""

    def open(self, served: Served) -> None:
        """Take what it answers from; PairliftError where that cannot be."""


@runtime_checkable
class StateSource(CandidateSource, Protocol):
    """A source that counts something over the whole state, too long for a request.

    Its attribute `event_bytes`, where it has one, says how many bytes it takes of each event meanwhile, the counts that
    are in use included: a server that records allows for them.
    """

    def over(self, state: State) -> Self:
        """Return the same source over another state; requests may be under way in this one."""


def make_source(name: str, settings: NamedSource) -> CandidateSource:
    """Build the source of `[sources.NAME]`, not opened yet; a PairliftError names the table."""
    table = f"[sources.{name}]"
    kind = class_of(f"{table} class '{settings.path}'", settings.path, ("propose",), "ranker.candidates.source")
    source = cast(CandidateSource, built(table, kind, settings.path, settings.params))
    source.name = name
    return source


def plugins_of(source: CandidateSource) -> tuple[str, ...]:
    """Return the names of the plugins that a source reads: it says so by an attribute `plugins`."""
    return tuple(getattr(source, "plugins", ()))


def event_bytes_of(settings: SourcesSettings) -> int:
    """Return the bytes that sources take of each event of a state while they count it anew: an attribute says so."""
    return sum(getattr(make_source(name, own), "event_bytes", 0) for name, own in settings.named.items())


def check_sources(settings: SourcesSettings, served: Mapping[str, type[FeaturePlugin]]) -> None:
    """Refuse sources that are too many, whose class or options are wrong, or that read what is not served or has not.

    served: the classes of `[ranker] plugins`, by name. A source that compares vectors has an attribute `vectors`.
    """
    if len(settings.limits) > MAX_SOURCES:
        raise PairliftError(
            f"[sources]: at most {MAX_SOURCES} were expected, found {len(settings.limits)}; leave some out, or set "
            "popular, cooccurrence or nearest to false"
        )
    for name, own in settings.named.items():
        source = make_source(name, own)
        for plugin in plugins_of(source):
            if plugin not in served:
                near = did_you_mean(plugin, served)
                raise PairliftError(
                    f"[sources.{name}] plugin: '{plugin}' is not among [ranker] plugins{near}; "
                    "a source reads what is served"
                )
            if getattr(source, "vectors", False):
                vector_plugin(f"[sources.{name}]", plugin, served)


def vector_plugin(place: str, name: str, served: Mapping[str, Any]) -> Any:
    """Return the `VectorPlugin` of a name; PairliftError, which begins with the place, where it is not one.

    served: those that are served, or their classes, by name. An empty name: none of them has vectors.
    """
    if not name:
        raise PairliftError(
            f"{place} needs a plugin with item vectors, and none of [ranker] plugins has some; serve one that has "
            "(towers, item2vec, ALS)"
        )
    if name not in served:
        near = did_you_mean(name, served)
        raise PairliftError(
            f"{place} plugin: '{name}' is not among [ranker] plugins{near}; vectors are read of what is served"
        )
    if not hasattr(served[name], "user_vectors"):
        raise PairliftError(f"{place} plugin: '{name}' has no vectors; name one that has (towers, item2vec, ALS)")
    return served[name]


def check_against(settings: SourcesSettings, catalog: Catalog) -> None:
    """Refuse sources that name surfaces or attributes that the log does not have, before anything is fitted."""
    for name, one in settings.limits.items():
        quota = one.quota if isinstance(one.quota, dict) else {}
        for key, surface in (*product(["surfaces"], one.surfaces or ()), *product(["quota"], quota)):
            if surface not in catalog.surfaces:
                known = ", ".join(catalog.surfaces[:10]) or "none: [events] surface maps them"
                raise PairliftError(
                    f"[sources.{name}] {key}: '{surface}' is no surface of the log, which has {known}; "
                    + ("the source could never be asked" if key == "surfaces" else "no request could be of it")
                )
    for name, own in settings.named.items():
        source = make_source(name, own)
        if isinstance(source, CheckedSource):
            try:
                source.check(catalog)
            except PairliftError as error:
                raise PairliftError(f"[sources.{name}] {error}") from error


def fit_sources(settings: SourcesSettings, data: SourceData) -> Fitted:
    """Fit all sources that are fitted. Raises PairliftError where one gives something else than arrays by name."""
    found: dict[str, Arrays] = {}
    for name, own in settings.named.items():
        source = make_source(name, own)
        if isinstance(source, FittedSource):
            arrays = source.fit(data)
            if not (isinstance(arrays, Mapping) and all(_is_array(key, one) for key, one in arrays.items())):
                raise PairliftError(
                    f"[sources.{name}] class '{own.path}': its `fit` gave something else than NumPy arrays by names "
                    "such as 'offsets'; return {name: array}"
                )
            found[name] = dict(arrays)
    return found


def _is_array(key: object, found: object) -> bool:
    return isinstance(key, str) and key.isidentifier() and isinstance(found, np.ndarray) and not found.dtype.hasobject


def save_fitted(folder: Path, fitted: Fitted) -> None:
    """Write `<folder>/<source>/<array>.npy`."""
    for name, arrays in fitted.items():
        (folder / name).mkdir(parents=True)
        for key, array in arrays.items():
            np.save(folder / name / f"{key}.npy", np.ascontiguousarray(array))


def load_fitted(folder: Path) -> Fitted:
    """Map what `save_fitted` wrote, read-only; nothing where there is no such folder."""
    return {
        of.name: {path.stem: load_array(path) for path in sorted(of.glob("*.npy"))} for of in sorted(folder.glob("*"))
    }
