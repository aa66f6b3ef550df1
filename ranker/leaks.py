"""Two controls that can see a leak: a plugin's values as of a cut log, and those of a fit on a cut log.

as_of   values of sampled groups are computed again from histories that end at each group's `as_of`: a plugin that
        reads a label, a later event of the group or a total of the whole log gives other ones
refit   the plugin is fitted again on a log from which every event at or after t1 was deleted, on disk: one that looked
        ahead while it was fitted gives other ones

What neither can find: a plugin that reads a file of its own (vectors that were trained elsewhere), and an attribute of
`[items]` or `[users]` that says what happened later. What such a file has seen is for its owner to know.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from features.pairs import Groups
from features.plugin import FeaturePlugin
from features.schema import F32, F64
from features.split import iso
from ranker.prepare import Prepared, refit_stage

#: groups of each slice that are compared
SAMPLE = 256
#: values of the same call agree within this share of their column's standard deviation; those of a batch and of one
#: request, whose sums are rounded in another order, within the second
TOLERANCE, BATCHED = 1e-5, 1e-3
#: a fit that does not repeat may be so many times as far from the first as fits of other seeds are; `make bench
#: WHAT=trust` counts what honest plugins need
MARGIN = 1.5
#: groups that are shown of a leak
FIRST_FEW = 3

#: of a plugin: float32[n, c] by slice
Columns = dict[str, F32]


@dataclass(frozen=True, slots=True)
class Leak:
    """A column whose values knew more than they may, in one slice (`all` where it is not told by group)."""

    column: str
    slice: str
    groups: int  # how many of the compared ones
    largest: float  # gap in standard deviations of the column; infinite where one value alone was missing
    first: tuple[dict[str, Any], ...]  # user and as_of of the first few groups


@dataclass(frozen=True, slots=True)
class Control:
    """What one of the two controls found."""

    groups: int  # how many were compared; 0 where that was not possible
    leaks: tuple[Leak, ...]
    remark: str = ""  # why it was not possible, or what was compared in place of values

    def told(self) -> dict[str, Any]:
        """Return it as the report has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Sample:
    """Up to SAMPLE groups of each slice, always the same ones, with the values that a plugin's fits gave them."""

    prepared: Prepared
    plugin: FeaturePlugin  # the first fit
    names: list[str]  # of the columns
    groups: dict[str, Groups]
    fits: list[Columns]
    scale: F64  # [c] standard deviation of the first fit's known values, over all rows of all slices

    @classmethod
    def of(
        cls, prepared: Prepared, plugin: FeaturePlugin, name: str, groups: dict[str, Groups], fits: list[Columns]
    ) -> "Sample":
        """groups, fits: all groups by slice, and the plugin's columns for them, by fit."""
        names = [f"{name}__{column}" for column in plugin.columns]
        keep = {}
        for part, whole in groups.items():
            n = len(whole.requests)
            keep[part] = np.zeros(n, bool)
            keep[part][np.random.default_rng(0).permutation(n)[:SAMPLE]] = True
        rows = {part: keep[part][whole.requests.row_request()] for part, whole in groups.items()}
        chosen = {part: whole.select(keep[part]) for part, whole in groups.items()}
        given = [{p: fit[p][rows[p]] for p in fit} for fit in fits]
        return cls(prepared, plugin, names, chosen, given, _scale(fits[0]))

    def __len__(self) -> int:
        return sum(len(g.requests) for g in self.groups.values())


def find_leaks(
    prepared: Prepared, name: str, plugin: FeaturePlugin, groups: dict[str, Groups], fits: list[Columns]
) -> dict[str, Control]:
    """Run both controls. plugin: the first fit; fits: the columns of all of them, by slice of `groups`."""
    sample = Sample.of(prepared, plugin, name, groups, fits)
    found = {"as_of": as_of_control(sample)}
    again = refit_stage(prepared, name, prepared.config.uplift.fit_seeds[0])
    return found | {"refit": refit_control(sample, again)}


def as_of_control(sample: Sample) -> Control:
    """Compare values with those from histories without any event at or after each group's `as_of`.

    The values that the boosters read, of all groups at once, are compared within rounding; those of the one request,
    from the whole and from the cut histories, within TOLERANCE.
    """
    whole, found = sample.prepared.state.histories, list[Leak]()
    with tqdm(total=len(sample), desc="values as of a cut log", unit="group", leave=False) as bar:
        for part, groups in sample.groups.items():
            alone, cut = [sample.fits[0][part][:0]], [sample.fits[0][part][:0]]
            for g in range(len(groups.requests)):
                one = groups.requests.slice(g, g + 1)
                alone.append(sample.plugin.values(one, whole))
                cut.append(sample.plugin.values(one, whole.until(int(one.as_of[0])).compact()))
                bar.update()
            known = np.concatenate(cut)
            gap = _gap(np.concatenate(alone), known, sample.scale)
            batch = _gap(sample.fits[0][part], known, sample.scale)
            found += _leaks(sample, part, np.where(batch > BATCHED, batch, gap))
    return Control(len(sample), tuple(found))


def refit_control(sample: Sample, again: FeaturePlugin) -> Control:
    """Compare values with those of `again`, the first fit made anew on the log that ends at t1.

    Of a plugin that declares itself not deterministic, the root mean square of the gaps may be MARGIN times the
    largest among its fits.
    """
    first, values = (
        {part: plugin.values(g.requests, sample.prepared.state.histories) for part, g in sample.groups.items()}
        for plugin in (sample.plugin, again)
    )
    if not getattr(again, "deterministic", True):
        return _unrepeated(sample, values)
    gaps = {part: _gap(first[part], values[part], sample.scale) for part in sample.groups}
    return Control(len(sample), tuple(leak for part, gap in gaps.items() for leak in _leaks(sample, part, gap)))


def _unrepeated(sample: Sample, values: Columns) -> Control:
    """Compare by the size of gaps, where the same fit gives other values each time."""
    if len(sample.fits) < 2:
        return Control(0, (), "its fits do not repeat, and one fit says nothing: [uplift] fits = 2 or more are needed")
    first, *others = sample.fits
    among = np.max([_size(first, other, sample.scale) for other in others], axis=0)
    apart = _size(first, values, sample.scale)
    shown = _shown(sample, "test", np.arange(min(FIRST_FEW, len(sample.groups["test"].requests))))
    leaks = [
        Leak(sample.names[k], "all", len(sample), float(apart[k]), shown)
        for k in np.flatnonzero(apart > MARGIN * among).tolist()
    ]
    worst = int(np.argmax(apart / np.maximum(among, 1e-12)))
    sizes = f"{sample.names[worst]}: {apart[worst]:.3g}, among its fits {among[worst]:.3g}"
    return Control(len(sample), tuple(leaks), f"its fits do not repeat; gap in standard deviations of {sizes}")


def _leaks(sample: Sample, part: str, gap: F64) -> Iterator[Leak]:
    """Yield a leak for each column that has a gap. gap: float64[n, c] by row of the slice's groups."""
    owner = sample.groups[part].requests.row_request()
    for k, name in enumerate(sample.names):
        bad = np.unique(owner[gap[:, k] > TOLERANCE])
        if len(bad):
            yield Leak(name, part, len(bad), float(gap[:, k].max()), _shown(sample, part, bad[:FIRST_FEW]))


def _shown(sample: Sample, part: str, chosen: Any) -> tuple[dict[str, Any], ...]:
    r = sample.groups[part].requests
    users = sample.prepared.catalog.ids_of_users(r.user[chosen])
    return tuple({"user": u, "as_of": iso(t)} for u, t in zip(users, r.as_of[chosen].tolist(), strict=True))


def _scale(columns: Columns) -> F64:
    """Return float64[c]: the standard deviation of each column's known values over all slices."""
    values = np.concatenate(list(columns.values())).astype(np.float64)
    known = ~np.isnan(values)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, values, 0).sum(axis=0) / count
    return np.asarray(np.sqrt((np.where(known, values - mean, 0) ** 2).sum(axis=0) / count))


def _gap(was: F32, now: F32, scale: F64) -> F64:
    """Return float64[n, c] |was - now| in standard deviations; infinite where one alone is NaN."""
    a, b = was.astype(np.float64), now.astype(np.float64)
    gap = np.nan_to_num(np.abs(a - b))
    gap = np.divide(gap, scale, out=np.where(gap > 0, np.inf, 0.0), where=np.broadcast_to(scale > 0, gap.shape))
    return np.where(np.isnan(a) != np.isnan(b), np.inf, gap)


def _size(one: Columns, other: Columns, scale: F64) -> F64:
    """Return float64[c]: the root mean square of the gaps over all slices; one that is infinite counts as 1."""
    gap = np.concatenate([_gap(one[part], other[part], scale) for part in one])
    return np.asarray(np.sqrt((np.where(np.isinf(gap), 1.0, gap) ** 2).mean(axis=0)))
