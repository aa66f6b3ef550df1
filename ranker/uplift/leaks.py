"""Two controls that can see a leak: a plugin's values as of a cut log, and those of a fit on a cut log.

as_of   values of sampled groups are computed again from histories that end at each group's `as_of`, by a plugin that
        has read no other, its candidates in another order: one that reads a label, a later event of the group, a total
        of the whole log or the place of a candidate gives other ones
refit   the plugin is fitted again on a log from which every event at or after t1 was deleted, on disk: one that looked
        ahead while it was fitted gives other ones

What neither can find: a plugin that reads a file of its own (vectors that were trained elsewhere) or keeps values
outside of itself, an attribute of `[items]` or `[users]` that says what happened later, and, where fits do not repeat,
a leak that is smaller than the spread between fits. What such a file has seen its owner must check.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from features.pairing.groups import Groups
from features.pairing.split import iso
from features.plugin import FeaturePlugin
from features.progress import progress_bar
from features.schema import F32, F64, I64, Bool, Requests
from features.state.histories import Histories
from ranker.columns import Columns, plugin_values
from ranker.training.plugins import plugin_errors, plugin_stage, refit_stage
from ranker.training.prepared import Prepared

#: groups of each slice that are compared
SAMPLE = 256
#: values of the same call agree within this share of their column's spread; those of a batch and of one request, whose
#: sums are rounded in another order, within the second and some roundings of float32
TOLERANCE, BATCHED, ROUNDING = 1e-5, 1e-3, 8 * float(np.finfo(np.float32).eps)
#: a fit that does not repeat may be so many times as far from the first as fits of other seeds are; `make bench
#: WHAT=trust` counts what honest plugins need
MARGIN = 1.5
#: the width of the middle half of a normal column, by its standard deviation
NORMAL = 1.349
#: groups that are shown of a leak
FIRST_FEW = 3

#: values of a plugin's columns, float32[n, c] by slice
Values = dict[str, F32]


@dataclass(frozen=True, slots=True)
class Leak:
    """A column whose values knew more than they may, in one slice (`all` where gaps are not counted by group)."""

    column: str  # its name
    slice: str
    groups: int  # how many of the compared ones
    largest: float  # gap, by the column's spread; of fits that do not repeat, the root mean square of all gaps
    missing: bool  # somewhere one of the two values alone was missing
    first: tuple[dict[str, Any], ...]  # user and as_of of the first few groups


@dataclass(frozen=True, slots=True)
class Control:
    """What one of the two controls found."""

    groups: int  # how many were compared; 0 where that was not possible
    leaks: tuple[Leak, ...]  # by slice, then by column
    remark: str = ""  # why it was not possible, or what was compared in place of values

    def reported(self) -> dict[str, Any]:
        """Return it as the report has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Sample:
    """Up to SAMPLE groups of each slice, always the same ones, with the values that a plugin's fits gave them."""

    prepared: Prepared  # the log
    name: str  # of the plugin
    plugin: FeaturePlugin  # the first fit
    names: tuple[str, ...]  # of the columns
    groups: dict[str, Groups]  # the sampled ones, by slice
    fits: list[Values]  # for the rows of these groups, by fit
    scale: F64  # [c] `_spread` of the first fit's known values, over all rows of all slices

    @classmethod
    def of(
        cls, prepared: Prepared, name: str, plugin: FeaturePlugin, groups: dict[str, Groups], fits: list[Columns]
    ) -> "Sample":
        """groups, fits: all groups by slice, and the plugin's columns for them, by fit."""
        keep = {}
        for part, whole in groups.items():
            n = len(whole.requests)
            keep[part] = np.zeros(n, bool)
            keep[part][np.random.default_rng(0).permutation(n)[:SAMPLE]] = True
        rows = {part: keep[part][whole.requests.row_request()] for part, whole in groups.items()}
        chosen = {part: whole.select(keep[part]) for part, whole in groups.items()}
        given = [{part: values[rows[part]] for part, values in fit.values.items()} for fit in fits]
        return cls(prepared, name, plugin, fits[0].names, chosen, given, _scale(fits[0].values))

    def values(self, fit: FeaturePlugin, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, c] of the columns by another fit, or another log."""
        return plugin_values(self.name, fit, requests, histories, self.prepared.spec)

    def __len__(self) -> int:
        return sum(len(g.requests) for g in self.groups.values())


def find_leaks(
    prepared: Prepared, name: str, plugin: FeaturePlugin, groups: dict[str, Groups], fits: list[Columns]
) -> dict[str, Control]:
    """Run both controls. plugin: the first fit; fits: the columns of all of them."""
    sample = Sample.of(prepared, name, plugin, groups, fits)
    seed = prepared.config.uplift.fit_seeds[0]
    # What a plugin keeps for later (vectors of users, say) must not bring the whole log's values into the comparison.
    unread = plugin_stage(prepared, name, seed)
    with plugin_errors(name, "values"):
        return {
            "as_of": as_of_control(sample, unread),
            "refit": refit_control(sample, refit_stage(prepared, name, seed)),
        }


def as_of_control(sample: Sample, unread: FeaturePlugin) -> Control:
    """Compare values with those from histories without any event at or after each group's `as_of`.

    unread: the first fit, loaded anew: it gives the values of cut histories alone. The values that the boosters read,
    of all groups at once, are compared within rounding; those of the one request, from the whole and from the cut
    histories, within TOLERANCE.
    """
    whole, found = sample.prepared.state.histories, list[Leak]()
    rng = np.random.default_rng(0)
    with progress_bar(total=len(sample), desc="values as of a cut log", unit="group", leave=False) as bar:
        for part, groups in sample.groups.items():
            alone, cut = [sample.fits[0][part][:0]], [sample.fits[0][part][:0]]
            for g in range(len(groups.requests)):
                one = groups.requests.slice(g, g + 1)
                order = rng.permutation(len(one.item))
                values = np.empty((len(order), len(sample.names)), np.float32)
                seen = whole.until(int(one.as_of[0])).compact()
                values[order] = sample.values(unread, _reordered(one, order), seen)
                alone.append(sample.values(sample.plugin, one, whole))
                cut.append(values)
                bar.update()
            known, read = np.concatenate(cut), sample.fits[0][part]
            apart = _beyond_rounding(read, known, sample.scale)
            batch, single = (_gap(values, known, sample.scale) for values in (read, np.concatenate(alone)))
            found += _leaks(sample, part, np.where(apart, batch, single))
    return Control(len(sample), tuple(found))


def _reordered(one: Requests, order: I64) -> Requests:
    """Return a single request with its candidates in another order."""
    return replace(one, item=one.item[order], given=one.given[order] if len(one.given) else one.given)


def refit_control(sample: Sample, again: FeaturePlugin) -> Control:
    """Compare values with those of `again`, the first fit made anew on the log that ends at t1.

    Of a plugin that declares itself not deterministic, the root mean square of the gaps may be MARGIN times the
    largest among its fits.
    """
    first, values = (
        {part: sample.values(plugin, g.requests, sample.prepared.state.histories) for part, g in sample.groups.items()}
        for plugin in (sample.plugin, again)
    )
    if not getattr(again, "deterministic", True):
        return _unrepeated(sample, first, values)
    gaps = {part: _gap(first[part], values[part], sample.scale) for part in sample.groups}
    return Control(len(sample), tuple(leak for part, gap in gaps.items() for leak in _leaks(sample, part, gap)))


def _unrepeated(sample: Sample, first: Values, values: Values) -> Control:
    """Compare by the size of gaps, where the same fit gives other values each time. first: values of the first fit."""
    if len(sample.fits) < 2:
        return Control(0, (), "its fits do not repeat, and one fit says nothing: [uplift] fits = 2 or more are needed")
    among = np.max([_size(sample.fits[0], other, sample.scale) for other in sample.fits[1:]], axis=0)
    apart = _size(first, values, sample.scale)
    leaks = [
        Leak(sample.names[k], "all", len(sample), float(apart[k]), missing=False, first=())
        for k in np.flatnonzero(apart > np.maximum(MARGIN * among, BATCHED)).tolist()
    ]
    worst = int(np.argmax(apart / np.maximum(among, 1e-12)))
    sizes = f"by {apart[worst]:.3g} of its spread, its fits among themselves by up to {among[worst]:.3g}"
    return Control(len(sample), tuple(leaks), f"its fits do not repeat: {sample.names[worst]} differs {sizes}")


def _leaks(sample: Sample, part: str, gap: F64) -> Iterator[Leak]:
    """Yield a leak for each column that has a gap. gap: float64[n, c] by row of the slice's groups."""
    owner = sample.groups[part].requests.row_request()
    for k, name in enumerate(sample.names):
        bad = np.unique(owner[~(gap[:, k] <= TOLERANCE)])
        if len(bad):
            largest = float(np.nanmax(gap[:, k])) if not np.isnan(gap[:, k]).all() else 0.0
            missing = bool(np.isnan(gap[:, k]).any())
            yield Leak(name, part, len(bad), largest, missing, _shown(sample, part, bad[:FIRST_FEW]))


def _shown(sample: Sample, part: str, chosen: Any) -> tuple[dict[str, Any], ...]:
    r = sample.groups[part].requests
    users = sample.prepared.catalog.ids_of_users(r.user[chosen])
    return tuple({"user": u, "as_of": iso(t)} for u, t in zip(users, r.as_of[chosen].tolist(), strict=True))


def _scale(by_slice: Values) -> F64:
    """Return float64[c]: the `_spread` of each column's finite values over all slices, 0 of a constant."""
    values = np.concatenate(list(by_slice.values())).astype(np.float64)
    return np.array([_spread(column[np.isfinite(column)]) for column in values.T])


def _spread(known: F64) -> float:
    """Return the standard deviation, or what it would be by the middle of a normal column where that is less.

    The middle is the shortest interval with half of the different values (the shorth of Andrews et al. 1972): far
    values must not make room for all others. Each value counts once, for a plugin may write what it does not know as a
    number, in half of the rows and more.
    """
    values = np.unique(known)
    half = len(values) // 2
    if not half:
        return 0.0
    return float(min(np.std(known), np.min(values[half:] - values[: len(values) - half]) / NORMAL))


def _distance(was: F32, now: F32) -> F64:
    """Return float64[n, c] |was - now|: 0 where both are missing or infinite alike, NaN where one alone is missing."""
    with np.errstate(invalid="ignore"):  # of equal infinities
        distance = np.abs(was.astype(np.float64) - now)
    distance[(was == now) | (np.isnan(was) & np.isnan(now))] = 0.0
    return distance


def _beyond_rounding(read: F32, known: F32, scale: F64) -> Bool:
    """Return bool[n, c]: apart by more than the sums of a batch are from those of a request, or one alone is missing.

    In the column's own unit, for a constant has no spread to measure by.
    """
    allowed = np.nan_to_num(BATCHED * scale + ROUNDING * np.abs(read.astype(np.float64)))
    return np.asarray(~(_distance(read, known) <= allowed))  # so that NaN is beyond it


def _gap(was: F32, now: F32, scale: F64) -> F64:
    """Return float64[n, c] of `_distance` by the column's spread, infinite where a constant differs."""
    distance = _distance(was, now)
    constant = np.where(distance > 0, np.inf, distance)
    return np.asarray(np.divide(distance, scale, out=constant, where=np.broadcast_to(scale > 0, distance.shape)))


def _size(one: Values, other: Values, scale: F64) -> F64:
    """Return float64[c]: the root mean square of the gaps over all slices; one without a size counts as 1."""
    gap = np.concatenate([_gap(one[part], other[part], scale) for part in one])
    return np.asarray(np.sqrt((np.where(np.isfinite(gap), gap, 1.0) ** 2).mean(axis=0)))
