"""Daily retraining: what an earlier bundle has learned, checked against the present log and put in its codes.

Where its trees go on, plugins are kept as they were fitted, for a tower that is trained anew gives columns of another
meaning, on which old splits would be nonsense. Codes of items, users and categories are places in sorted lists, so new
ones shift the old: plugins and splits are moved along. Where its plugins go on, the trees are learned anew.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.errors import PairliftError
from features.pairing.split import iso
from features.plugin import FeaturePlugin, RecodedPlugin
from features.schema import I64, Catalog, lookup
from ranker.bundle import Bundle, config_of, load_bundle, read_manifest, verify_bundle
from ranker.columns import columns_of
from ranker.config import Config
from ranker.training.category_codes import moved_codes, recode, vocabulary
from ranker.training.earlier_trees import Mode, Start
from ranker.training.plugins import goes_on
from ranker.training.prepared import Prepared

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StartFrom:
    """The earlier bundle that a training was asked to start from."""

    mode: Mode  # what becomes of its trees
    bundle: Path  # its folder
    decay: float = 1.0  # the share of an old leaf value that a refit keeps


def load_start(start: StartFrom, prepared: Prepared) -> Start:
    """Read an earlier bundle to start from; PairliftError where its trees would mean something else on this log."""
    old = load_bundle(start.bundle)
    place = f"--{start.mode} {start.bundle}"
    _refuse_other_columns(place, old, prepared)
    _refuse_other_meanings(place, old, prepared)
    _refuse_later_split(place, read_manifest(start.bundle)["split"], prepared)
    if start.mode == "refit" and prepared.config.booster.monotone:
        raise PairliftError(f"{place}: new leaf values could break [booster.monotone]; use --warm-start, or train anew")
    moved, plugins = moved_to(place, old, prepared.catalog)
    return Start(start.mode, old.version, recode(old.booster, moved), plugins, start.decay)


def moved_to(place: str, old: Bundle, now: Catalog) -> tuple[dict[str, I64], dict[str, FeaturePlugin]]:
    """Return (the new codes of categories, by column, for `recode`; the plugins) of a bundle in another catalogue.

    place: what an error begins with, where that cannot be.
    """
    was, moved = old.state.catalog, {}
    for column in old.spec.categorical:
        values = vocabulary(was, column), vocabulary(now, column)
        if values[0] != values[1]:
            moved[column] = moved_codes(*values)
    return moved, {name: _recoded(place, name, plugin, was, now) for name, plugin in old.plugins.items()}


def earlier_fits(bundle: Path, prepared: Prepared) -> dict[str, Path]:
    """Return the folders of a bundle's plugins that the present ones go on from, by name.

    Those of other classes, and those that cannot, are fitted anew, and the log says so. PairliftError where there is
    none that can, and where the bundle's plugins saw what the booster learns from now.
    """
    place, config = f"--warm-plugins {bundle}", prepared.config
    manifest = verify_bundle(bundle)
    _refuse_later_split(place, {"t1": manifest["split"]["t1"]}, prepared)
    _refuse_same_period(place, manifest, prepared)
    was, found = config_of(bundle), {}
    for name in config.ranker.plugins:
        if name not in was.ranker.plugins or was.plugins[name].path != config.plugins[name].path:
            logger.info("%s: it has no plugin '%s' of this class, which is fitted anew", place, name)
        elif not goes_on(config, name):
            logger.info("plugin '%s' is fitted anew: its class cannot go on from an earlier fit", name)
        else:
            found[name] = bundle / "plugins" / name
    if not found:
        raise PairliftError(f"{place}: none of the plugins of {config.path} goes on from it; train without it")
    return found


def _refuse_other_columns(place: str, old: Bundle, prepared: Prepared) -> None:
    config = prepared.config
    if old.config.ranker.plugins != config.ranker.plugins:
        found, wanted = (", ".join(c.ranker.plugins) or "none" for c in (old.config, config))
        raise PairliftError(f"{place}: its plugins are {found}, [ranker] plugins of {config.path} are {wanted}")
    columns = columns_of(prepared.spec, old.plugins)
    if columns != list(old.columns) or prepared.spec.categorical != old.spec.categorical:
        odd = sorted(set(columns) ^ set(old.columns)) or ["their order, or which are categories"]
        raise PairliftError(
            f"{place}: the columns of {config.path} are others: {', '.join(odd[:5])}; put them back or train anew"
        )


def _refuse_other_meanings(place: str, old: Bundle, prepared: Prepared) -> None:
    """Raise where columns of one name are made in another way."""
    now, matched = prepared.config, bool(old.spec.matched)
    was_made, is_made = (_meanings_of_trees(config, now.ranker.plugins, matched) for config in (old.config, now))
    if differ := differing(was_made, is_made):
        raise PairliftError(
            f"{place}: {', '.join(differ)} of {now.path} are not what it was trained with, so its trees would mean "
            "something else: train without it, or put them back"
        )


def meanings(config: Config) -> dict[str, object]:
    """Return, by table of the TOML, what gives the columns of a log their meaning, for whatever reads them."""
    events = config.events
    return {
        "[[grades]]": config.grades,
        "[events.feedback]": events.feedback,
        "[events] source_item": events.source_item,
        "[events.context]": events.context,
        "[events.candidate]": events.candidate,
        "[time] zone": config.time.zone,
    }


def texts_of(config: Config) -> object:
    """Return [items.text], None without [items]."""
    return config.items and config.items.text


def differing(was: dict[str, object], now: dict[str, object]) -> list[str]:
    """Return the tables that are others now."""
    return [table for table, value in now.items() if was[table] != value]


def _meanings_of_trees(config: Config, plugins: Sequence[str], matched: bool) -> dict[str, object]:
    """Return likewise what splits of trees hang on. matched: whether they read what is counted and the texts."""
    found = meanings(config) | {
        "[[counters]]": config.counters,
        "[surfaces]": _asked_plugins(config),
        "[booster.monotone]": config.booster.monotone,
    }
    if matched:
        found |= {"[lists] wanted": config.lists.wanted, "[items.text]": texts_of(config)}
    return found | {f"[plugins.{name}]": config.plugins[name] for name in plugins}


def _asked_plugins(config: Config) -> dict[str, list[str] | None]:
    """Return the plugins that each surface with a profile asks; None: all."""
    return {name: profile.plugins for name, profile in config.surfaces.items()}


def _refuse_later_split(place: str, old: dict[str, int], prepared: Prepared) -> None:
    """Raise where it has learned from what is now the test, or its plugins from what the booster learns from."""
    split = prepared.split
    for name, what in (("t1", "its plugins saw what the booster learns from now"), ("t2", "it learned from this test")):
        if old.get(name, 0) > getattr(split, name):
            raise PairliftError(
                f"{place}: its {name} is {iso(old[name])}, here it is {iso(getattr(split, name))}: {what}. Move "
                f"[split] {name} of {prepared.config.path}, or train without it"
            )


def _refuse_same_period(place: str, manifest: dict[str, Any], prepared: Prepared) -> None:
    """Raise where it went on itself to the end of the present period: what a second run of one day would go on from."""
    before, t1 = manifest["measured"].get("warm_plugins"), prepared.split.t1
    if before is not None and manifest["split"]["t1"] == t1:
        raise PairliftError(
            f"{place}: it went on from bundle {before} to this very t1, {iso(t1)}, and would learn the same events "
            "once more: name the bundle of the day before, or keep this one"
        )


def _recoded(place: str, name: str, plugin: FeaturePlugin, was: Catalog, now: Catalog) -> FeaturePlugin:
    """Return a plugin of the old bundle for the present catalogue."""
    if was.surfaces != now.surfaces[: len(was.surfaces)]:
        raise PairliftError(
            f"{place}: the surfaces are others ({', '.join(was.surfaces)}; now {', '.join(now.surfaces)}), and plugin "
            f"'{name}' knows the old ones: train without it"
        )
    for context in getattr(plugin, "contexts", ()):
        if vocabulary(was, f"context_{context}") != vocabulary(now, f"context_{context}"):
            raise PairliftError(
                f"{place}: the values of [events.context] {context} are others now, and plugin '{name}' knows the old "
                "ones: train without it"
            )
    ids = ((was.item_ids, now.item_ids), (was.user_ids, now.user_ids))
    if any(a.dtype != b.dtype for a, b in ids if len(a)):
        raise PairliftError(f"{place}: its ids are of another kind (integers, or text) than those of this log")
    if all(len(a) == len(b) and (a == b).all() for a, b in ids):
        return plugin
    if not isinstance(plugin, RecodedPlugin):
        raise PairliftError(
            f"{place}: there are other items or users now, and the class of plugin '{name}' has no `recoded` "
            "(features.plugin.RecodedPlugin) that takes it to them: train without it"
        )
    items, users = (lookup(a, b) for a, b in ids)
    return plugin.recoded(items, users)
