"""A bundle: all that a server loads, in one folder, with a manifest of hashes.

manifest.json     version, format, columns in their order, hashes of all other files
pairlift.toml     the configuration that it was trained with
booster.txt       LightGBM's own text format
importance.json   what each column does (`ranker.metrics.importance`)
plugins/<name>/   what the plugin saved (ONNX towers, item vectors, …)
snapshot/         counters, histories and catalogue as of the end of the log
cooccurrence/     neighbours of each item as of the end of the log
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np

from features.arrays import load_arrays, save_arrays
from features.errors import PairliftError
from features.log.recorded import Recorded
from features.pairing.split import Split
from features.plugin import FeaturePlugin, plugin_class
from features.rows import FeatureSpec
from features.schema import F32, F64
from features.state.snapshot import load_state, save_state
from features.state.store import State
from ranker.candidates.cooccurrence import Cooccurrence
from ranker.columns import columns_of
from ranker.config import Config, load_config
from ranker.forest.scorer import Scorer, checked_scorer
from ranker.hashes import hash_file, hash_value

#: 2: importance.json, and the split in the manifest
#: 3: PairAccuracy counts ties as one half; which recorded events the training read, frame by frame
FORMAT = 3

IMPORTANCE = "importance.json"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded bundle, immutable. columns: the booster's, in order: those of `spec`, then `<plugin>__<column>`.

    scorer: the compiled booster, None where LightGBM's own predict must do. recorded: what of recorded
    logs `state` has.
    """

    folder: Path
    version: str
    config: Config
    columns: tuple[str, ...]
    spec: FeatureSpec
    state: State
    plugins: dict[str, FeaturePlugin]
    booster: lgb.Booster
    cooccurrence: Cooccurrence
    recorded: Recorded = field(default_factory=dict)
    scorer: Scorer | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scorer", checked_scorer(self.booster))

    def score(self, matrix: F32) -> F64:
        """Return float64[n] scores of float32[n, len(columns)], on the calling thread alone."""
        if not len(matrix):
            return np.empty(0)
        if self.scorer is not None:
            return self.scorer.score(matrix)
        return np.asarray(self.booster.predict(matrix, num_threads=1, raw_score=True))


def write_bundle(
    folder: Path,
    config: Config,
    spec: FeatureSpec,
    state: State,
    plugins: dict[str, FeaturePlugin],
    booster: lgb.Booster,
    cooccurrence: Cooccurrence,
    measured: dict[str, Any],
    importance: dict[str, Any],
    split: Split,
    recorded: Recorded,
) -> None:
    """Write a bundle beside `folder`, then put it in its place in one step.

    measured: figures of the test. importance: see `ranker.metrics.importance`. split: of the log that it was trained
    on. recorded: which recorded events are in that log.
    """
    with _in_its_place(folder.resolve()) as partial:
        (partial / "pairlift.toml").write_text(config.text)
        booster.save_model(str(partial / "booster.txt"))
        (partial / IMPORTANCE).write_text(json.dumps(importance, indent=1))
        for name, plugin in plugins.items():
            (partial / "plugins" / name).mkdir(parents=True)
            plugin.save(partial / "plugins" / name)
        save_state(partial / "snapshot", state)
        save_arrays(partial / "cooccurrence", cooccurrence)
        files = {str(p.relative_to(partial)): hash_file(p) for p in sorted(partial.rglob("*")) if p.is_file()}
        manifest = {
            "format": FORMAT,
            "columns": columns_of(spec, plugins),
            "spec": asdict(spec),
            "snapshot_time": state.end,
            "split": asdict(split),
            "measured": measured,
            "recorded": recorded,
            "files": files,
        }
        manifest["version"] = hash_value(manifest)[:12]
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))


@contextmanager
def _in_its_place(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder` to write into, and put it in its place in one step where all went well."""
    partial, old = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "old"))
    _tidy(folder, partial, old)  # after a run that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        _tidy(folder, partial, old)


def _tidy(folder: Path, partial: Path, old: Path) -> None:
    if old.exists() and not folder.exists():
        old.rename(folder)
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)


def check_out(folder: Path, config: Config) -> None:
    """Refuse, before any work, a place for a bundle that is neither free nor an older bundle."""
    place = folder.resolve()
    if place.exists() and not (place / "manifest.json").is_file() and not (place.is_dir() and not any(place.iterdir())):
        raise PairliftError(f"--out {folder}: it is there and is no bundle; name a new folder, or a bundle to replace")
    above = next(parent for parent in place.parents if parent.exists())
    if not above.is_dir():
        raise PairliftError(f"--out {folder}: {above} is a file; name a folder")
    for kept in (config.path, config.data_root, config.work):
        if kept.resolve().is_relative_to(place):
            raise PairliftError(f"--out {folder}: {kept} lies in it; name a folder of the bundle's own")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest; PairliftError where there is none or its format is another."""
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise PairliftError(f"{folder} is no bundle: {path.name} is missing; `pairlift train` writes one") from error
    except ValueError as error:
        raise PairliftError(f"{path} is damaged: {error}; train the bundle again, or copy it again") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise PairliftError(f"{path}: format {FORMAT} was expected, found {found}; train it again")
    if manifest.pop("version", None) != (version := hash_value(manifest)[:12]):
        raise PairliftError(f"{folder} is damaged, use another copy:\n  manifest.json: changed")
    return manifest | {"version": version}


def recorded_of(manifest: dict[str, Any]) -> Recorded:
    """Return which recorded events a bundle's training read, and so its snapshot has."""
    return {name: [(first, last) for first, last in ranges] for name, ranges in manifest["recorded"].items()}


def verify_bundle(folder: Path) -> dict[str, Any]:
    """Hash every file against the manifest and return it; PairliftError names the files that differ."""
    manifest = read_manifest(folder)
    problems = []
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"  {name}: missing")
        elif hash_file(path) != expected:
            problems.append(f"  {name}: changed")
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    problems += [f"  {name}: not in the manifest" for name in sorted(there - manifest["files"].keys())]
    if problems:
        raise PairliftError(f"{folder} is damaged, use another copy:\n" + "\n".join(problems))
    return manifest


def load_bundle(folder: Path) -> Bundle:
    """Verify a bundle, then map it. Never imports torch."""
    manifest = verify_bundle(folder)
    config = load_config(folder / "pairlift.toml")
    told = manifest["spec"]
    spec = FeatureSpec(tuple(told["columns"]), tuple(told["categorical"]), told["zone"])
    plugins = {
        name: plugin_class(config.plugins[name].path).load(folder / "plugins" / name) for name in config.ranker.plugins
    }
    columns = tuple(manifest["columns"])
    booster = lgb.Booster(model_file=str(folder / "booster.txt"))
    if booster.feature_name() != list(columns) or list(columns) != columns_of(spec, plugins):
        raise PairliftError(f"{folder}: booster, plugins and manifest disagree about the columns; train it again")
    return Bundle(
        folder, manifest["version"], config, columns, spec, load_state(folder / "snapshot"), plugins, booster,
        load_arrays(folder / "cooccurrence", Cooccurrence), recorded_of(manifest),
    )  # fmt: skip
