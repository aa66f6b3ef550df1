"""The model card of a bundle, after Mitchell et al. (FAT* 2019, arXiv 1810.03993): what it is, of what, how good."""

import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from itertools import pairwise
from typing import Any

from features.pairing.split import PERIODS, iso
from features.plugin import CurvePlugin, FeaturePlugin, plugin_class
from features.schema import SAMPLED
from ranker.blend.shares import Judged
from ranker.code_hash import versions
from ranker.columns import plugin_columns
from ranker.config import Config, wanted_floor
from ranker.lists.liked import LikedWeight
from ranker.lists.table import brief_lines
from ranker.metrics.shown import figure_lines
from ranker.training.parts import Parts
from ranker.training.prepared import Prepared
from ranker.uplift.measured import LISTED

#: figures of the liked part's trees, which are those of the booster beside it where a network ranks
OF_TREES = ("trees", "at_cap")


def model_card(parts: Parts, measured: dict[str, Any]) -> str:
    """Return the card as Markdown. measured: what `pairlift train` measured."""
    prepared, plugins = parts.prepared, parts.plugins
    sections = {
        "What it is": _identity(parts),
        "Intended use": _use(prepared.config),
        "Data": _data(prepared, measured),
        "Features": _features(prepared, plugins),
        "Plugins": [line for name, plugin in plugins.items() for line in _plugin(name, prepared.config, plugin)],
        "Figures": _figures(measured),
        "Limits": _limits(prepared, measured),
    }
    text = [f"# Model card of {prepared.config.name}"]
    text += [f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines) for title, lines in sections.items() if lines]
    return "\n\n".join(text) + "\n"


def measured_lines(measured: dict[str, Any]) -> list[str]:
    """Return what `pairlift train` measured as text, a line for each figure."""
    plain = dict(measured)
    lists = brief_lines(plain.pop("lists")) if "lists" in plain else []  # not in bundles of format 3
    if "popularity" in plain:  # not in those of before
        lists += figure_lines(plain)
    plain.pop("shown_order", None)
    lists += [_approximate(name, of) for name, of in plain.pop("approximate", {}).items()]
    lists += [str(LikedWeight(**plain.pop("liked_weight")))] if "liked_weight" in plain else []
    lists += map(str, Judged.known_of(plain.pop("shares", ())))
    lists += [_preranked(plain.pop("prerank"))] if "prerank" in plain else []
    if "network_parameters" in plain:  # the trees are not what ranks
        plain = {f"booster_{name}" if name in OF_TREES else name: value for name, value in plain.items()}
    return [f"{name + ' of shown' if name in LISTED else name:23}{value}" for name, value in plain.items()] + lists


def _approximate(source: str, of: dict[str, Any]) -> str:
    recall = ", ".join(f"{name} {value:.4f}" for name, value in of.items() if name != "users")
    return f"source {source}, which does not compare all items: {recall} of what that would give ({of['users']} users)"


def _preranked(found: dict[str, Any]) -> str:
    """Return what the stage before the ranker keeps."""
    mean, cut = f"{found['candidates']:,.0f} candidates in the mean", f"{found['cut']:.0%} of the test's requests"
    of = f"of {mean}; some are cut of {cut}"
    if found["kept_top50"] is None:
        return f"[prerank]: {of}"
    unseen = found["kept_top50_unseen_items"]
    of_these = "" if unseen is None else f", {unseen:.4f} of those items that its fit did not see"
    return f"[prerank]: {of}; kept of the ranker's own first 50 there: {found['kept_top50']:.4f}{of_these}"


def _identity(parts: Parts) -> list[str]:
    wanted = f"the wanted part of {parts.wanted.num_trees()} trees" if parts.wanted else "no wanted part"
    used = ", ".join(f"{name} {found}" for name, found in versions().items() if found)
    return [
        # Without the day: what was trained on the same data has the same version.
        f"A ranker of Pairlift {version('pairlift')} on feedback-weighted pairs: {_liked(parts)} orders Rank, {wanted} "
        "Recommend.",
        "Its TOML is `pairlift.toml` beside this file; `manifest.json` has the hashes of all files.",
        f"Made with Python {platform.python_version()}, {used}.",
    ]


def _liked(parts: Parts) -> str:
    if parts.network is None:
        return f"the liked part of {parts.liked.trees} trees (LightGBM)"
    path, size = parts.prepared.config.network.path, parts.network.ranker.report.get("parameters")
    of = f", {size:,} parameters" if size else ""
    return f"a network (`{path}`{of}; trees, {parts.liked.trees}, were measured beside it)"


def _use(config: Config) -> list[str]:
    wanted = config.grade_names[wanted_floor(config)]
    return [
        "Rank: to order items that are shown in any case, by which will be liked more. Recommend: to choose items of "
        f"this catalogue, by which will be wanted (the grade '{wanted}' or better).",
        "For users and surfaces such as those of the log below. Scores order the items of one request: they are no "
        "probabilities, and do not compare between requests, bundles, or the two parts.",
    ]


def _data(prepared: Prepared, measured: dict[str, Any]) -> list[str]:
    config, catalog, s = prepared.config, prepared.catalog, prepared.split
    bounds = (s.t0, s.t1, s.t2, s.t3)
    what = ("plugins are fitted", "the ranker learns", "is read once, by the figures below")
    periods = zip(PERIODS, what, pairwise(bounds), strict=True)
    grades = ", ".join(f"{grade.name} (`{grade.when}`)" for grade in config.grades)
    return [
        f"The log '{config.name}': {len(prepared.log):,} events of {catalog.n_users:,} users with {catalog.n_items:,} "
        f"items, from {iso(int(prepared.log.ts[0]))} to {iso(int(prepared.log.ts[-1]))}.",
        *(f"Period {name}, {iso(first)} to {iso(last)}: {does}." for name, does, (first, last) in periods),
        f"The last {s.validation:.0%} of both training periods, by time, is their validation slice, which stops fits.",
        f"Grades, from worst to best: {grades}.",
        f"Pairs (winner, loser) of one request or sitting, {_weights(config)}{_pair_counts(measured)}.",
    ]


def _weights(config: Config) -> str:
    if not config.pairing.weights:
        return "weighted by the difference of their grades' ranks"
    return "weighted " + ", ".join(f"{pair}: {weight:g}" for pair, weight in config.pairing.weights.items())


def _pair_counts(measured: dict[str, Any]) -> str:
    counts = ", ".join(f"{n:,} {part}" for part, n in measured.get("pairs", {}).items())
    return f"; {counts}" if counts else ""


def _features(prepared: Prepared, plugins: Mapping[str, FeaturePlugin]) -> list[str]:
    columns = prepared.spec.columns
    counters = [name for name in columns if "__" in name]
    plain = ", ".join(name for name in columns if "__" not in name) or "none"
    own = ", ".join(f"{name} {len(plugin_columns(name, p, prepared.spec))}" for name, p in plugins.items()) or "none"
    return [
        f"{len(counters)} counters as of the request, of {len({name.partition('__')[0] for name in counters})} keys.",
        f"Attributes and context: {plain}.",
        f"Columns of plugins: {own}.",
        "What each does in each part: `importance.json`, or `pairlift bundle show`.",
    ]


def _plugin(name: str, config: Config, plugin: FeaturePlugin) -> Iterator[str]:
    """Yield what a plugin is, and what its training reached."""
    settings = config.plugins[name]
    model = getattr(plugin_class(settings.path), "options", None)
    options = model(**settings.params).model_dump() if model else settings.params
    shown = ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    report = getattr(plugin, "report", {})
    size = f", {report['parameters']:,} parameters beside the embedding table" if "parameters" in report else ""
    yield f"{name}: `{settings.path}`{size}. Options (durations in µs): {shown or 'none'}."
    for phase, figures in _validation(plugin).items():
        yield f"{name}, {phase}: in validation {figures[0]:.4f} after one epoch, {figures[-1]:.4f} after the last."
    if "int8" in report:
        yield f"{name}, int8: " + ", ".join(f"{key} {value:.4f}" for key, value in report["int8"].items()) + "."


def _validation(plugin: FeaturePlugin) -> dict[str, list[float]]:
    """Return the figures of a training's epochs on its validation slice, by phase."""
    found: dict[str, list[float]] = {}
    for point in plugin.curve if isinstance(plugin, CurvePlugin) else ():
        if point["validation"] is not None:
            found.setdefault(point["phase"], []).append(point["validation"])
    return found


def _figures(measured: dict[str, Any]) -> list[str]:
    return [
        "Of the test, but for validation_accuracy: PairAccuracy of the ranker's validation slice. Ties count one half.",
        *(" ".join(line.split()) for line in measured_lines(measured)),
    ]


def _limits(prepared: Prepared, measured: dict[str, Any]) -> list[str]:
    lines = [
        "The log has what an earlier system showed. What it hid, nobody could like, and lists of other items are "
        "undervalued by these figures.",
        f"It knows the world as of {iso(prepared.state.end)}. Later events count where the server records them; users "
        "and items that came later are ranked by what counters, attributes and histories say of them.",
        "The figures are means over all users of the log, those with many pairs weighing most; no group of users was "
        "looked at by itself, and none was protected. `pairlift uplift` has slices and intervals.",
    ]
    if measured.get("pairs_kind") == SAMPLED:
        lines.append(
            "Losers of the pairs were drawn, not shown: PairAccuracy is about telling drawn items from others."
        )
    return lines
