"""The FeaturePlugin Protocol: columns of the ranker that need a fit of their own (towers, ALS, noise …).

A plugin is named in the TOML by its path (`neural.two_tower:TwoTower`) and never imported by name in
`ranker`. It declares its columns, fits as of a time, and gives values for `Requests`: the groups of the log
in training and the one call in serving, by the same method, so the two differ by rounding alone: in a batch a tower may
sum in another order, by which a value moves less than 1e-5 of its column's standard deviation.
"""

import importlib
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeGuard, cast, runtime_checkable

from pydantic import ValidationError

from features.errors import MISSING, UNKNOWN, PairliftError, Problem, did_you_mean, problems
from features.pairing.groups import Groups
from features.pairing.pairs import Pairs
from features.schema import F32, I32, Catalog, EventLog, Requests
from features.state.histories import Histories
from features.state.lag import DAILY, Lag
from features.state.refreshed import Ahead, RefreshedStates

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitData:
    """All that a plugin may see while it fits: nothing in it is of the booster's period or later."""

    log: EventLog  # the events before t1, each with the context of its request
    catalog: Catalog
    groups: Groups  # of the towers' period; `groups.validation` marks its last part
    pairs: Pairs  # of these groups: they count rows of `groups`
    grades: tuple[str, ...]  # names, from worst to best
    seed: int  # of all randomness
    wanted: int = 1  # rank of the lowest grade from which on an item was wanted; where no event has it, all were
    zone: str = "UTC"  # in which a day starts
    scratch: Path | None = None  # where a fit may keep what lets a killed one go on; of this very fit, removed after it
    #: what `save` wrote of an earlier fit that this one goes on from; only of a class with the attribute `warm = True`
    earlier: Path | None = None
    heads: Path | None = None  # where a `HeadsPlugin` keeps what `head_losses` reads, and finds it again
    process: int = 0  # which one of those that fit together this is; what the first fits is kept
    processes: int = 1  # that fit together, with the same data: see `FeaturePlugin`


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterEvents:
    """What a fit is measured on: events behind it, with all that came before them."""

    log: EventLog  # all events up to the last of those that are predicted
    since: int  # µs; those at or after it are predicted


@runtime_checkable
class FeaturePlugin(Protocol):
    """What the ranker needs of a plugin. `tests/contracts.py` holds every plugin to it.

    A plugin class is built from its table in the TOML (without `class`), as keyword arguments; a wrong one
    raises PairliftError. `columns` are the names of its columns without the plugin's name. The same data and seed give
    the same values, to the bit on one machine. A class whose fits do not repeat has the attribute
    `deterministic = False`, and a report allows for how much its fits differ (`ranker.uplift.leaks`). Columns that are
    codes of categories (whole numbers from 0 on, or NaN) stand in the attribute `categorical` too. A server asks a
    plugin that is not Pairlift's own on a thread with a deadline; one with the attribute `blocks = False` promises that
    it never waits for anything, and is asked on the request's own thread, which costs less. A class whose
    options are a pydantic model names it in the attribute `options`: `pairlift config module:Class` lists them; `lag`
    among them (µs, or "daily") says how much later than it happened an event is seen (`lag_of`). One
    that reads categories of `[events.context]` names them in the attribute `contexts`: it knows them by their codes. A
    class whose fits can go on from an earlier one (`FitData.earlier`), whose catalogue was another, has the attribute
    `warm = True`; it refuses one that has learned from what it is judged by. A class whose fit may be shared has the
    attribute `parallel = True`: all processes of a `torchrun` then call `fit` at once and meet as torch.distributed has
    it, `data` saying which one each is; without it the first one fits alone.
    """

    columns: tuple[str, ...]

    def __init__(self, **params: Any) -> None: ...

    def fit(self, data: FitData) -> None:
        """Learn from `data`, with progress on stderr."""

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, len(columns)], NaN where the plugin knows nothing (a cold user, a cold item).

        An infinity is taken for NaN.

        Only events of `histories` with `ts < as_of - lag` of the request count. Users of requests, and items of
        histories, may have indexes behind those of the fit: a server gives them to ids that came with recorded
        events. Such an item is cold, and such a user too, but for the history. A candidate's values do not depend on
        the other candidates, nor on their order, and are the same whatever happens at or after `as_of`: sums over all
        events in float32 are not (sum in float64). Safe to call from several threads.
        """

    def save(self, folder: Path) -> None:
        """Write all that `load` needs into an empty folder; after `load`, write the same again."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; never imports torch."""


@runtime_checkable
class VectorPlugin(FeaturePlugin, Protocol):
    """A plugin with a vector for each user and item, of which a candidate source finds the nearest."""

    @property
    def item_vectors(self) -> F32:
        """float32[n_items, d]; a row of NaN is an item without a vector."""

    def user_vectors(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d]; a row of NaN is a user without a vector."""


def has_vectors(plugin: FeaturePlugin) -> TypeGuard[VectorPlugin]:
    """Return what `isinstance` does, which takes 20 µs of a request: it looks up what each base of the Protocol has."""
    return hasattr(plugin, "item_vectors") and hasattr(plugin, "user_vectors")


@runtime_checkable
class RetrievalPlugin(VectorPlugin, Protocol):
    """A plugin that knows what is wanted: which items to propose, by query · key. These may be its vectors."""

    @property
    def item_keys(self) -> F32:
        """float32[n_items, d]; a row of NaN is an item without a key."""

    @property
    def over_demand(self) -> bool:
        """Whether the product is what is left to say over the logarithm of demand; else demand is in it."""

    def queries(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d] as of each request; a row of NaN is a user without a query."""


@runtime_checkable
class AheadPlugin(FeaturePlugin, Protocol):
    """A plugin that can compute what it makes of users' histories ahead of requests: what a refresh asks for."""

    def refresh(self, ahead: Ahead) -> RefreshedStates:
        """Compute it while requests are answered, then use it in the place of what was computed ahead before.

        A call of one request has the values that it would have without, up to the rounding of a batch: what was
        computed of other visible events than those of the request is not used. Raises PairliftError where there is
        room for none, and what `Ahead.told` raises: then what was computed before stays in use.
        """


@runtime_checkable
class RecodedPlugin(FeaturePlugin, Protocol):
    """A plugin that can be kept as it was fitted when the catalogue changes: what daily retraining asks for."""

    def recoded(self, items: I32, users: I32) -> Self:
        """Return it for another catalogue: its item k was `items[k]` of the present one, -1 for none; users likewise.

        items: int32[n_items], users: int32[n_users]. An item or user that it did not have (-1) is cold.
        """


@runtime_checkable
class CheckedPlugin(FeaturePlugin, Protocol):
    """A plugin whose options name columns of the log: they are checked when the TOML is read, before all work."""

    def check(self, feedback: Sequence[str], contexts: Sequence[str]) -> None:
        """Raise PairliftError for an option that names what the log does not have.

        feedback, contexts: the names of `[events.feedback]` and `[events.context]`.
        """


@runtime_checkable
class TextPlugin(FeaturePlugin, Protocol):
    """A plugin with options that need text of items or users: they are checked when the TOML is read."""

    def check_texts(self, texts: Sequence[str]) -> None:
        """Raise PairliftError for an option that needs a text that is not there.

        texts: the names of `[items.text]` and `[users.text]`.
        """


@runtime_checkable
class CurvePlugin(FeaturePlugin, Protocol):
    """A plugin that was trained in steps: a bundle has its curve, as CSV and SVG."""

    @property
    def curve(self) -> Sequence[Mapping[str, Any]]:
        """Points in the order of the training, each with `phase`, `step` (of the phase), `loss` and `validation`.

        loss: the mean of the steps since the last point; validation: the figure of the validation slice, whichever the
        plugin is judged by. None where a point does not have it.
        """


@runtime_checkable
class HeadsPlugin(FeaturePlugin, Protocol):
    """A plugin that is trained with heads which nobody serves: what they reach behind the fit tells how well it learns.

    Where `FitData.heads` is a folder, which is then empty, `fit` writes into it what `head_losses` needs: it is kept
    beside the fit, and in no bundle.
    """

    def head_losses(self, data: FitData, later: LaterEvents) -> Mapping[str, float]:
        """Return the mean loss of each head that was trained, by its name, over the events that are to be predicted.

        Each is predicted as of what came before it; an item or a user that the fit had no event of is cold. In nats an
        event, of the same events and against the same other items whatever the options are. Empty where no head was
        trained; NaN of a head that no event concerns. data: of `fit`, with the folder that it wrote into.
        """


def lag_of(plugin: FeaturePlugin, zone: str = "UTC") -> Lag:
    """Return how much later than it happened a plugin sees an event: not at all where its options do not say.

    zone: in which a day starts.
    """
    lag = getattr(getattr(plugin, "settings", None), "lag", 0)
    return Lag(lag, zone) if isinstance(lag, int) or lag == DAILY else Lag()


def search_plugins_in(folder: Path) -> None:
    """Import plugin classes from the modules of a folder too; it is searched last, so it hides no other module."""
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.append(place)
        importlib.invalidate_caches()


def plugin_class(path: str) -> type[FeaturePlugin]:
    """Import `module:Class` of a plugin; PairliftError where there is no such thing, or its module raises."""
    methods = ("fit", "values", "save", "load")
    return cast(type[FeaturePlugin], class_of(f"plugin class '{path}'", path, methods, "features.plugin.FeaturePlugin"))


def class_of(place: str, path: str, methods: Sequence[str], protocol: str) -> type[Any]:
    """Import `module:Class` of the TOML. Raises PairliftError where that fails, or it lacks a method of the protocol.

    place, protocol: for the error, what names the path, and where the protocol is defined.
    """
    module_name, _, class_name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError, TypeError, SyntaxError) as error:
        raise PairliftError(
            f"{place}: {error}; the form 'package.module:Class' was expected, of a class that Python "
            "imports, or of a module beside the TOML (what reads a bundle alone finds it by --plugins DIR)"
        ) from error
    except Exception as error:
        log.exception("%s: its module raised", place)
        raise PairliftError(f"{place}: its module raised {type(error).__name__}: {error}") from error
    lacking = [name for name in methods if not callable(getattr(found, name, None))]
    if not isinstance(found, type) or lacking:
        raise PairliftError(f"{place} lacks {', '.join(lacking)} of {protocol}: there stands what such a class needs")
    return found


def make_plugin(name: str, path: str, params: Mapping[str, Any]) -> FeaturePlugin:
    """Build the plugin of a TOML table; a PairliftError names the table."""
    return cast(FeaturePlugin, built(f"[plugins.{name}]", plugin_class(path), path, params))


def built(place: str, found: type[Any], path: str, params: Mapping[str, Any]) -> Any:
    """Build an object of the class at a path from its table in the TOML; a PairliftError names the place."""
    try:
        return found(**params)
    except ValidationError as error:
        known = getattr(getattr(found, "options", None), "model_fields", {})
        wrong = "; ".join(_problem(problem, path, known) for problem in problems(error, params))
    except TypeError as error:
        taken = f"the options in this table are what the __init__ of {path} takes"
        raise PairliftError(f"{place}: {error}; {taken}") from error
    # Behind the block: pydantic's error would live in this one's chain until the process ends, and what it holds of
    # native modules would be reported as leaked.
    raise PairliftError(f"{place}: {wrong}")


def _problem(problem: Problem, path: str, known: Iterable[str]) -> str:
    """Return what is wrong with a plugin's options; of an unknown one, also the nearest known one."""
    place = "".join(f"{part}: " for part in [".".join(map(str, problem.place))] if part)
    if problem.kind not in (UNKNOWN, MISSING):
        return f"{place}{problem.text}"
    if not known:
        return f"{place}{problem.text}: {path} takes no options"
    near = did_you_mean(str(problem.place[-1]), known) if problem.kind == UNKNOWN else ""
    return f"{place}{problem.text}{near}; `pairlift config {path}` lists the keys"
