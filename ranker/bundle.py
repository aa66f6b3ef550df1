"""A bundle: all that a server loads, in one folder, with a manifest of hashes.

manifest.json     version, format, columns in their order, hashes of all other files
pairlift.toml     the configuration that it was trained with
booster.txt       LightGBM's own text format: the liked part, which orders Rank
network/          with [ranker] model = "network": what the network saved (ranker.onnx …) that orders Rank in its place
wanted.txt        likewise, the wanted part, which orders Recommend; not there where nothing could be learned of it
prerank.txt       likewise, the forest of the stage before the ranker (`ranker.prerank`); not there where it is off
importance.json   what each column does in each part (`ranker.metrics.importance`); in format 3, in the liked one. Of a
                  network it is not known: then it is of `booster`, beside it
MODEL_CARD.md     what it was trained on and how good it is, for people (`ranker.card`)
curves/           the curve of each plugin that was trained in steps, as CSV and SVG (`ranker.metrics.curves`)
plugins/<name>/   what the plugin saved (ONNX towers, item vectors, …); of its code the manifest has a hash, no more
snapshot/         counters, histories and catalogue as of the end of the log
cooccurrence/     neighbours of each item as of the end of the log
matching/         what features of the source item and the query read (`ranker.matching`), where there are any
sources/<name>/   the arrays that a [sources.NAME] was fitted to, as of the end of the log
shares.json       which of the sources' items are candidates; not there where the TOML's quotas say it
"""

import json
import logging
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np

from features.arrays import load_arrays, save_arrays
from features.errors import PairliftError
from features.files import written_folder
from features.final import FinalRanker, ranker_class
from features.log.recorded import Recorded
from features.pairing.split import Split
from features.plugin import FeaturePlugin, plugin_class
from features.rows import FeatureSpec
from features.schema import F32, F64
from features.state.snapshot import load_state, save_state
from features.state.store import State
from ranker.blend.shares import Shares
from ranker.candidates.cooccurrence import Cooccurrence
from ranker.candidates.named import NOT_FITTED, Fitted, check_sources, load_fitted, save_fitted
from ranker.code_hash import OWN, source_hash
from ranker.columns import categories_of, columns_of, demand
from ranker.config import Config, read_config
from ranker.forest.scorer import Scorer, checked_scorer
from ranker.hashes import MANIFEST, damaged_files, files_below, hash_files, hash_value, link_equal_arrays
from ranker.matching.matching import Matches
from ranker.metrics.curves import write_curves
from ranker.prerank.light import Prerank, light_columns

log = logging.getLogger(__name__)

#: 2: importance.json, and the split in the manifest
#: 3: PairAccuracy counts ties as one half; which recorded events the training read, frame by frame
#: 4: the wanted part. A bundle of format 3 is served too, and orders Recommend as Rank
#: 5: features of the source item and the query
#: 6: shares in which places have a worth
FORMAT, OLDEST = 6, 3

BOOSTER, WANTED, NETWORK, PRERANK = "booster.txt", "wanted.txt", "network", "prerank.txt"

SHARES = "shares.json"

IMPORTANCE, TOML, CURVES, CARD = "importance.json", "pairlift.toml", "curves", "MODEL_CARD.md"

MATCHING = "matching"

#: what a network and a source are called where plugins have names: none of theirs has brackets
OF_NETWORK, OF_SOURCE = "[network]", "[sources.{}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A loaded bundle, immutable."""

    folder: Path  # where it was read from
    version: str  # hash of its manifest
    config: Config  # of the TOML that it was trained with
    columns: tuple[str, ...]  # the booster's, in order: those of `spec`, then `<plugin>__<column>`
    spec: FeatureSpec  # the columns without the plugins', and what they are computed with
    state: State  # counters, histories and catalogue as of the end of the log, or of the snapshot in its place
    plugins: dict[str, FeaturePlugin]  # by name, in the order of their columns
    booster: lgb.Booster  # the liked part, LightGBM's own; it explains, and scores where there is no `scorer`
    network: FinalRanker | None = None  # scores in its place
    cooccurrence: Cooccurrence  # neighbours of each item as of the end of the log
    fitted: Fitted = field(default_factory=dict)  # what each [sources.NAME] was fitted to, as of the end of the log
    wanted: lgb.Booster | None = None  # the wanted part: over `columns` and those of the sources; None orders by liked
    shares: Shares | None = None  # which of the sources' items are candidates; None: the quotas of the TOML
    prerank: Prerank | None = None  # chooses which candidates of a Recommend are ranked; None: all are
    recorded: Recorded = field(default_factory=dict)  # which recorded events `state` has, by segment and frame
    texts: tuple[str, ...] = ()  # which of [events.columns] are text
    scorer: Scorer | None = field(init=False)  # the compiled booster, None where LightGBM's own predict must do
    wanted_scorer: Scorer | None = field(init=False)  # likewise of `wanted`
    wanted_columns: tuple[str, ...] = field(init=False)  # of the wanted part: `columns`, `source_columns`; else none

    def __post_init__(self) -> None:
        object.__setattr__(self, "scorer", checked_scorer(self.booster))
        object.__setattr__(self, "wanted_scorer", checked_scorer(self.wanted) if self.wanted else None)
        object.__setattr__(self, "wanted_columns", tuple(self.wanted.feature_name()) if self.wanted else ())
        if self.prerank is not None:
            self.prerank.check(light_columns(self.state, self.spec, self.source_columns), self.folder)

    @property
    def source_columns(self) -> tuple[str, ...]:
        """The columns of the wanted part behind `columns`: `source__<name>` of the sources that it was trained with."""
        return self.wanted_columns[len(self.columns) :]

    def score(self, matrix: F32) -> F64:
        """Return float64[n] of the liked part for float32[n, len(columns)], on the calling thread alone."""
        return _score(self.scorer, self.booster, matrix) if self.network is None else self.network.score(matrix)

    def score_wanted(self, matrix: F32) -> F64:
        """Return float64[n] of the wanted part, likewise; its matrix has the sources' columns behind the others."""
        assert self.wanted is not None
        return _score(self.wanted_scorer, self.wanted, matrix) + demand(matrix, self.wanted_columns)


def _score(scorer: Scorer | None, booster: lgb.Booster, matrix: F32) -> F64:
    if not len(matrix):
        return np.empty(0)
    if scorer is not None:
        return scorer.score(matrix)
    return np.asarray(booster.predict(matrix, num_threads=1, raw_score=True))


def write_bundle(
    folder: Path,
    *,
    config: Config,
    spec: FeatureSpec,
    state: State,
    plugins: dict[str, FeaturePlugin],
    booster: lgb.Booster,
    network: FinalRanker | None = None,
    wanted: lgb.Booster | None = None,
    shares: Shares | None = None,
    prerank: Prerank | None = None,
    cooccurrence: Cooccurrence,
    fitted: Fitted = NOT_FITTED,
    measured: dict[str, Any],
    importance: dict[str, Any],
    split: Split,
    recorded: Recorded,
    texts: Sequence[str] = (),
    card: str = "",
) -> None:
    """Write a bundle beside `folder`, then put it in its place in one step.

    network: orders Rank where it is there, see `[ranker] model`.
    measured: figures of the test. importance: by part (`liked`, `wanted`), see `ranker.metrics.importance`. split: of
    the log that it was trained on. recorded: which recorded events are in that log. texts: which of [events.columns]
    are text. card: of `ranker.card.model_card`; empty: none.
    """
    with written_folder(folder.resolve()) as partial:
        (partial / TOML).write_text(config.text)
        booster.save_model(str(partial / BOOSTER))
        if network is not None:
            (partial / NETWORK).mkdir()
            network.save(partial / NETWORK)
        if wanted is not None:
            wanted.save_model(str(partial / WANTED))
        if shares is not None:
            shares.write(partial / SHARES)
        if prerank is not None:
            prerank.booster.save_model(str(partial / PRERANK))
        (partial / IMPORTANCE).write_text(json.dumps(importance, indent=1))
        for name, plugin in plugins.items():
            (partial / "plugins" / name).mkdir(parents=True)
            plugin.save(partial / "plugins" / name)
        write_curves(partial / CURVES, plugins)
        if card:
            (partial / CARD).write_text(card)
        save_state(partial / "snapshot", state)
        save_arrays(partial / "cooccurrence", cooccurrence)
        save_fitted(partial / "sources", fitted)
        if isinstance(spec.matching, Matches):
            spec.matching.save(partial / MATCHING)
        files = hash_files(partial)
        link_equal_arrays(partial, files)
        manifest = {
            "format": FORMAT,
            "columns": columns_of(spec, plugins),
            "categorical": categories_of(spec, plugins),
            "spec": _saved(spec),
            "snapshot_time": state.end,
            "split": asdict(split),
            "measured": measured,
            "recorded": recorded,
            "plugins": _codes_of(config),
            "texts": texts,
            "files": files,
        }
        (partial / MANIFEST).write_text(json.dumps(manifest | {"version": _version_of(manifest)}, indent=1))


def _saved(spec: FeatureSpec) -> dict[str, Any]:
    """Return a spec as a manifest has it: all but what `Matches` saves."""
    return {name: value for name, value in asdict(replace(spec, matching=None)).items() if name != "matching"}


def _spec_of(saved: dict[str, Any], folder: Path) -> FeatureSpec:
    """Return the spec of a manifest. A bundle from before there were any of some has none."""
    names = {name: tuple(saved.get(name, ())) for name in ("columns", "categorical", "listed", "matched")}
    matching = Matches.load(folder / MATCHING) if names["matched"] else None
    unasked = {name: tuple(codes) for name, codes in saved.get("unasked", {}).items()}
    from_items = saved.get("source_item", False)
    return FeatureSpec(**names, zone=saved["zone"], source_item=from_items, unasked=unasked, matching=matching)


def _paths_of(config: Config) -> dict[str, str]:
    """Return the class of each served plugin by its name, of each named source, and of the network that orders Rank."""
    paths = {name: config.plugins[name].path for name in config.ranker.plugins}
    paths |= {OF_SOURCE.format(name): source.path for name, source in config.sources.named.items()}
    return paths | ({OF_NETWORK: config.network.path} if config.ranker.model == "network" else {})


def _codes_of(config: Config) -> dict[str, str]:
    """Return, by name, the hash of the code of each plugin, source and network that is not Pairlift's own.

    Pairlift's own plugins have a format in what they save, which a later release reads or refuses.
    """
    modules = {name: path.partition(":")[0].partition(".")[0] for name, path in _paths_of(config).items()}
    return {name: source_hash(module) for name, module in modules.items() if module not in OWN}


def _warn_of_other_code(folder: Path, manifest: dict[str, Any], config: Config) -> None:
    """Warn of plugins and sources whose code has changed since the training: it may be in what no value depends on."""
    now = _codes_of(config)
    for name, trained in manifest.get("plugins", {}).items():
        if now[name] != trained:
            table, gives = (name, "scores") if name.startswith("[") else (f"[plugins.{name}]", "columns")
            log.warning(
                "%s: the code of '%s' is not what %s was trained with, and its %s may mean something else: train again"
                ", or serve it with the code of then (--plugins DIR)",
                *(table, _paths_of(config)[name], folder, gives),
            )


def _version_of(manifest: dict[str, Any]) -> str:
    """Return the version of a manifest that has none yet."""
    return hash_value(manifest)[:12]


def check_out(folder: Path, config: Config) -> None:
    """Refuse, before any work, a place for a bundle that is neither free nor an older bundle."""
    place = folder.resolve()
    if place.exists() and not (place / MANIFEST).is_file() and not (place.is_dir() and not any(place.iterdir())):
        raise PairliftError(
            f"--out {folder}: it is there and is not a bundle; name a new folder, or a bundle to replace"
        )
    above = next(parent for parent in place.parents if parent.exists())
    if not above.is_dir():
        raise PairliftError(f"--out {folder}: {above} is a file; name a folder")
    for kept in (config.path, config.data_root, config.work):
        if kept.resolve().is_relative_to(place):
            raise PairliftError(f"--out {folder}: {kept} lies in it; name a folder of the bundle's own")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest; PairliftError where there is none or its format is another."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise PairliftError(f"{folder} is not a bundle: {path.name} is missing; `pairlift train` writes one") from error
    except ValueError as error:
        raise PairliftError(f"{path} is damaged: {error}; train the bundle again, or copy it again") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found not in range(OLDEST, FORMAT + 1):
        raise PairliftError(f"{path}: a format from {OLDEST} to {FORMAT} was expected, found {found}; train it again")
    if manifest.pop("version", None) != (version := _version_of(manifest)):
        raise PairliftError(f"{folder} is damaged, use another copy:\n  {MANIFEST}: changed")
    return manifest | {"version": version}


def recorded_of(manifest: dict[str, Any]) -> Recorded:
    """Return which recorded events a bundle's training read, and so its snapshot has."""
    return {name: [(first, last) for first, last in ranges] for name, ranges in manifest["recorded"].items()}


def verify_bundle(folder: Path) -> dict[str, Any]:
    """Hash every file against the manifest and return it; PairliftError names the files that differ."""
    manifest = read_manifest(folder)
    problems = [f"  {name}: {how}" for name, how in damaged_files(folder, manifest["files"]).items()]
    problems += [f"  {name}: not in the manifest" for name in files_below(folder) if name not in manifest["files"]]
    if problems:
        raise PairliftError(f"{folder} is damaged, use another copy:\n" + "\n".join(problems))
    return manifest


def config_of(folder: Path) -> Config:
    """Return the configuration of a bundle that is not verified yet: what is to be known before it is loaded."""
    return _config_of(folder, read_manifest(folder))


def _config_of(folder: Path, manifest: dict[str, Any]) -> Config:
    return read_config(folder / TOML, [] if "texts" in manifest else [("record", "texts")])


def load_bundle(folder: Path) -> Bundle:
    """Verify a bundle, then map it. Never imports torch."""
    manifest = verify_bundle(folder)
    config = _config_of(folder, manifest)
    spec = _spec_of(manifest["spec"], folder)
    plugins = {
        name: plugin_class(config.plugins[name].path).load(folder / "plugins" / name) for name in config.ranker.plugins
    }
    network = None
    if config.ranker.model == "network":
        network = ranker_class(config.network.path).load(folder / NETWORK)
    check_sources(config.sources, {name: type(plugin) for name, plugin in plugins.items()})
    _warn_of_other_code(folder, manifest, config)
    columns = tuple(manifest["columns"])
    booster, wanted = lgb.Booster(model_file=str(folder / BOOSTER)), folder / WANTED
    if booster.feature_name() != list(columns) or list(columns) != columns_of(spec, plugins):
        raise PairliftError(f"{folder}: booster, plugins and manifest disagree about the columns; train it again")
    return Bundle(
        folder=folder,
        version=manifest["version"],
        config=config,
        columns=columns,
        spec=spec,
        state=load_state(folder / "snapshot"),
        plugins=plugins,
        booster=booster,
        network=network,
        wanted=lgb.Booster(model_file=str(wanted)) if wanted.exists() else None,
        shares=Shares.read(folder / SHARES),
        prerank=Prerank.load(folder / PRERANK),
        cooccurrence=load_arrays(folder / "cooccurrence", Cooccurrence),
        fitted=load_fitted(folder / "sources"),
        recorded=recorded_of(manifest),
        texts=tuple(manifest["texts"] if "texts" in manifest else _texts_of_toml(config)),
    )


def _texts_of_toml(config: Config) -> list[str]:
    """Return which of [events.columns] are text in a bundle whose manifest does not say it: its TOML did."""
    texts: list[str] = tomllib.loads(config.text).get("record", {}).get("texts", [])
    return texts
