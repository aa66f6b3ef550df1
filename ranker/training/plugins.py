"""The stage of a plugin: fitted on the towers' period alone, or loaded where its inputs are unchanged."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from features.errors import PairliftError
from features.files import made_folder
from features.log.dataset import cut_log
from features.log.loading import load_log
from features.plugin import FeaturePlugin, HeadsPlugin, make_plugin, plugin_class
from ranker.code_hash import code_hash
from ranker.config import Config, plugin_of, wanted_floor
from ranker.hashes import hash_files, hash_value
from ranker.torchrun.together import processes, together
from ranker.training.prepared import Prepared, log_key, paired_log
from ranker.training.stages import is_complete, run_stage, stage_seconds

logger = logging.getLogger(__name__)

#: what the stage reads of our code, beside the plugin's own package and what `Prepared.key` stands for. A plugin of a
#: user's may import anything of `features`
CODE = ("features", "ranker.training.plugins")
#: every plugin is fitted anew
NO_EARLIER: Mapping[str, Path] = MappingProxyType({})
#: what `plugin_inputs` has, and behind it the files of an earlier fit, for people
INPUTS = (
    "the log or its settings", "the class", "the options", "the seed", "[lists] wanted", "the code",
    "the number of processes", "the earlier fit",
)  # fmt: skip
#: folders of a stage: what `save` wrote, and of a `HeadsPlugin` what its fit kept for `head_losses`
SAVED, HEADS = "saved", "heads"
#: file of a stage of `head_losses`
LOSSES = "losses.json"
#: beside what a fit keeps to go on from, the inputs that it is of
LEFT_OF = "inputs.json"


def plugin_stage(
    prepared: Prepared, name: str, seed: int, label: str = "", earlier: Path | None = None
) -> FeaturePlugin:
    """Fit a plugin of the TOML on the towers' period, or load it where its inputs are unchanged.

    label: of the fits that are kept apart from those with the TOML's own options; left out, the plugin's name. earlier:
    the folder of an earlier fit that this one goes on from, of a class that can (`goes_on`).
    """
    return _fitted(prepared, name, seed, _label(name, seed, label), lambda: prepared, earlier)


def plugin_inputs(prepared: Prepared, name: str, seed: int) -> list[Any]:
    """Return all that a fit depends on: log and settings, class, options, seed, code and how many processes share it.

    Hashable as a stage's key.
    """
    return _inputs(prepared.config, prepared.key, name, seed)


def goes_on(config: Config, name: str) -> bool:
    """Tell whether fits of a plugin can go on from earlier ones (`FitData.earlier`)."""
    return bool(getattr(plugin_class(config.plugins[name].path), "warm", False))


def _inputs(config: Config, key: str, name: str, seed: int) -> list[Any]:
    settings = config.plugins[name]
    code = code_hash(*CODE, plugin_class(settings.path).__module__.partition(".")[0])
    return [key, settings.path, settings.params, seed, wanted_floor(config), code, processes(settings.path)]


def _files(earlier: Path | None) -> list[Any]:
    """Return what a fit depends on beside `plugin_inputs`, where it goes on from an earlier one."""
    return [] if earlier is None else [hash_files(earlier)]


def plugin_is_fitted(config: Config, name: str, seed: int, label: str = "", *, cut: bool = False) -> bool:
    """Return whether `plugin_stage` (cut: `refit_stage`) of an imported log would load what is there."""
    inputs = _inputs(config, log_key(config), name, seed)
    return is_complete(config.work / "plugins", _label(name, seed, label, cut=cut), inputs)


def plugin_seconds(config: Config, name: str, seed: int, label: str = "") -> float:
    """Return how long the fit of a complete `plugin_stage` took."""
    return stage_seconds(config.work / "plugins", _label(name, seed, label))


def saved_fit(config: Config, name: str, seed: int, label: str = "") -> Path:
    """Return the folder of what a complete `plugin_stage` saved."""
    return config.work / "plugins" / _label(name, seed, label) / SAVED


def head_losses(
    prepared: Prepared, name: str, plugin: FeaturePlugin, seed: int, label: str = "", earlier: Path | None = None
) -> dict[str, float]:
    """Return what the heads of a fit reach on the events of the test, by name; empty for a plugin without heads.

    plugin: of `plugin_stage` with the same arguments. Kept as a stage: see `features.plugin.HeadsPlugin`.
    """
    if not isinstance(plugin, HeadsPlugin):
        return {}
    config, kept = prepared.config, _label(name, seed, label)

    def make(folder: Path) -> None:
        data = replace(prepared.fit_data(seed), heads=config.work / "plugins" / kept / HEADS, earlier=earlier)
        with plugin_errors(name, "head_losses"):
            found = plugin.head_losses(data, prepared.later_events())
        (folder / LOSSES).write_text(json.dumps(dict(found)))

    folder = run_stage(config.work / "heads", kept, [*plugin_inputs(prepared, name, seed), *_files(earlier)], make)
    losses: dict[str, float] = json.loads((folder / LOSSES).read_text())
    return losses


def _label(name: str, seed: int, label: str = "", *, cut: bool = False) -> str:
    return f"{label or name}-seed{seed}{'-cut' if cut else ''}"


def served_plugins(prepared: Prepared, earlier: Mapping[str, Path] = NO_EARLIER) -> dict[str, FeaturePlugin]:
    """Return the plugins of `[ranker]`, by name, each of the fit that a bundle has.

    earlier: by name, the folders of fits that some go on from. Such a fit is kept apart from that anew.
    """
    config, found = prepared.config, {}
    for name in config.ranker.plugins:
        of, label = earlier.get(name), f"{name}-warm" if name in earlier else ""
        found[name] = plugin_stage(prepared, name, config.uplift.seeds[0], label, of)
    return found


def refit_stage(prepared: Prepared, name: str, seed: int) -> FeaturePlugin:
    """Fit a plugin as `plugin_stage` does, on a log from which everything at or after t1 was deleted, on disk."""
    return _fitted(prepared, name, seed, _label(name, seed, cut=True), lambda: cut_at_t1(prepared))


def _fitted(
    prepared: Prepared,
    name: str,
    seed: int,
    label: str,
    source: Callable[[], Prepared],
    earlier: Path | None = None,
) -> FeaturePlugin:
    config = prepared.config
    settings = plugin_of(config, name)
    kind = plugin_class(settings.path)
    plugin = make_plugin(name, settings.path, settings.params)

    def make(folder: Path) -> None:
        logger.info("fitting plugin %s (%s)", label, settings.path)
        saved, heads = folder / SAVED, folder / HEADS
        for part in (saved, heads):
            part.mkdir()
        data = replace(source().fit_data(seed), scratch=only_folder(scratch, inputs), heads=heads, earlier=earlier)
        with plugin_errors(name, "fit"):
            with together(name, settings.path, settings.params, data) as shared:
                plugin.fit(shared)
            plugin.save(saved)

    inputs = [*plugin_inputs(prepared, name, seed), *_files(earlier)]
    scratch = config.work / "unfinished" / label / hash_value(inputs)
    folder = run_stage(config.work / "plugins", label, inputs, make)
    shutil.rmtree(scratch, ignore_errors=True)
    with suppress(OSError):
        scratch.parent.rmdir()
    with plugin_errors(name, "load"):
        return kind.load(folder / SAVED)  # what was saved is what is measured, and what a bundle serves


def only_folder(folder: Path, inputs: Sequence[Any]) -> Path:
    """Make a folder and remove those beside it: what a fit of other inputs left unfinished is of no use any more.

    Where something was left, the log says which inputs have changed. inputs: of the stage.
    """
    made_folder(folder)
    own = json.dumps(inputs, default=str)
    (folder / LEFT_OF).write_text(own)
    for other in folder.parent.iterdir():
        if other == folder:
            continue
        if any(path.name != LEFT_OF for path in other.iterdir()):
            changed = _changed(other / LEFT_OF, json.loads(own))
            logger.info("%s: begins anew, for %s changed since a fit was ended unfinished", folder.parent.name, changed)
        shutil.rmtree(other, ignore_errors=True)
    return folder


def _changed(left_of: Path, inputs: list[Any]) -> str:
    """Return what of the inputs is not as it was."""
    try:
        before = json.loads(left_of.read_text())
    except (OSError, ValueError):
        return "something"
    changed = [name for name, then, now in zip(INPUTS, before, inputs, strict=False) if then != now]
    return " and ".join(changed) or "something"


@contextmanager
def plugin_errors(name: str, call: str) -> Iterator[None]:
    """Raise what a plugin raises as a PairliftError that names it; the traceback of what is none goes to the log."""
    try:
        yield
    except PairliftError as error:
        raise PairliftError(f"[plugins.{name}]: {error}") from error
    except Exception as error:
        logger.exception("[plugins.%s] raised in %s()", name, call)
        raise PairliftError(f"[plugins.{name}] {call}() raised {type(error).__name__}: {error}") from error


def cut_at_t1(prepared: Prepared) -> Prepared:
    """Return it as it would be on a log that ends at t1, with the same numbering of users, items and categories."""
    config, t1 = prepared.config, prepared.split.t1
    inputs = [prepared.key, t1]
    folder = run_stage(
        config.work, "cut", inputs, lambda folder: cut_log(prepared.database, folder / "log.duckdb", t1), logging.DEBUG
    )
    database = folder / "log.duckdb"
    log, _ = load_log(database, prepared.catalog)
    log, groups = paired_log(config, database, log, prepared.catalog, prepared.split)
    return replace(
        prepared,
        database=database,
        log=log,
        groups=groups,
        places=prepared.places and prepared.places.until(len(log)),
        exposure=prepared.exposure and prepared.exposure.until(len(log)),
    )
