"""From the log to a bundle: the whole training path.

train(config, out)
    prepare               the log through the TOML's SQL into DuckDB (resumed), split, groups, counters, state
    plugin_stage          a plugin, fitted on the towers' period alone                (resumed)
      or load_start       plugins and trees of an earlier bundle, in the present codes
      or earlier_fits     what plugins go on from, of an earlier bundle
    Arms.of               features of groups, strictly before their as_of; or those of a feature log
    retuned               better parameters of both parts, where [booster] retune_minutes asks for them  (resumed)
    fit_parts             both parts of the ranker
      Arms.served_columns   the columns of the plugins
      Arms.fit              the liked part: the booster of the first seed, with its test scores (resumed)
      network_stage         the network that orders Rank in its place, where [ranker] model asks for it  (resumed)
      wanted_stage          the wanted part, learned from what the sources propose    (resumed)
      prerank_stage         the stage before it, distilled from it, where [prerank] asks for it  (resumed)
    pair_figures          the figures of the test's pairs
    list_figures          the figures of whole lists, of a bundle as of the cut
    prerank_figures       what of the ranker's own first items the stage before it keeps
    recall_figures        what sources lose that search many items by vectors
    Cooccurrence.build    the table of the source `cooccurrence`
    fitted_until          what the sources of [sources.NAME] are fitted to
    importance_of_parts   what each column does in the boosters
    model_card            all of it for people
    write_bundle          all of it, as the server loads it
"""

import logging
from pathlib import Path
from typing import Any

from features.errors import PairliftError
from features.schema import GIB
from ranker.bundle import check_out, read_manifest, write_bundle
from ranker.candidates.cooccurrence import Cooccurrence
from ranker.card import model_card
from ranker.columns import columns_of, full_matrix
from ranker.config import Config, wanted_floor
from ranker.export.pairfile import read_pairs
from ranker.recording.logged import drift, read_features
from ranker.retune.automatic import retuned
from ranker.training.arms import Arms
from ranker.training.earlier_bundle import StartFrom, earlier_fits, load_start
from ranker.training.measured import (
    importance_of_parts,
    list_figures,
    pair_figures,
    parts_at_cut,
    recall_figures,
)
from ranker.training.network import check_network
from ranker.training.parts import fit_parts, prerank_figures
from ranker.training.plugins import served_plugins
from ranker.training.prepared import prepare
from ranker.training.wanted import fitted_until

logger = logging.getLogger(__name__)


def train(
    config: Config,
    out: Path,
    *,
    features: Path | None = None,
    pairs: Path | None = None,
    start: StartFrom | None = None,
    earlier: Path | None = None,
    memory: int = 2 * GIB,
) -> dict[str, Any]:
    """Train the served ranker and write its bundle to `out`; return the figures of its test.

    features: a feature log, for the values in it. pairs: a file of pairs of the booster's train slice, in place of made
    ones. start: an earlier bundle to go on from, whose plugins are kept. The three are the liked part's: the wanted
    part is learned anew. earlier: a bundle whose plugins are gone on from, and nothing else of it. memory: bytes, of
    `Cooccurrence.build`.
    """
    check_out(out, config)
    check_network(config)
    prepared = prepare(config)
    given = None if pairs is None else read_pairs(pairs, prepared.slices()["train"])
    old = None if start is None else load_start(start, prepared)
    if old is not None:
        prepared = old.rows_of(prepared)
    fits = {} if earlier is None else earlier_fits(earlier, prepared)
    plugins = old.plugins if old else served_plugins(prepared, fits)
    logged = None if features is None else read_features(features, prepared.catalog, prepared.spec.listed)
    arms = Arms.of(prepared, logged, given)
    tuned = retuned(arms, plugins, memory, liked=old is None)
    parts = fit_parts(tuned.arms, plugins, old, memory, tuned.rows)
    prepared, measured = parts.prepared, pair_figures(parts, old)
    if tuned.found:
        measured["retuned"] = tuned.found
    if earlier is not None:
        measured["warm_plugins"] = read_manifest(earlier)["version"]
    at_cut = parts_at_cut(parts, memory)
    measured["lists"] = list_figures(at_cut, prepared)
    if parts.liked_weight is not None:
        measured["liked_weight"] = parts.liked_weight.report()
    if parts.shares is not None:
        measured["shares"] = [of.report() for of in parts.shares.judged]
    measured |= prerank_figures(parts, memory) | recall_figures(at_cut)
    write_bundle(
        out,
        config=prepared.config,
        spec=prepared.spec,
        state=prepared.state,
        plugins=plugins,
        booster=parts.liked.booster,
        network=None if parts.network is None else parts.network.ranker,
        wanted=parts.wanted,
        shares=parts.shares,
        prerank=parts.prerank,
        cooccurrence=Cooccurrence.build(prepared.log, prepared.catalog.n_items, wanted_floor(config), memory=memory),
        fitted=fitted_until(prepared, prepared.state.end),
        measured=measured,
        importance=importance_of_parts(at_cut, prepared, arms.rows("validation", parts.columns)),
        split=prepared.split,
        recorded=prepared.recorded,
        texts=prepared.texts,
        card=model_card(parts, measured),
    )
    logger.info("wrote bundle %s; `pairlift bundle show` has its figures", out)
    return measured


def drift_report(config: Config, features: Path) -> list[dict[str, Any]]:
    """Recompute what a feature log has, from the whole log of events, and compare: see `ranker.recording.logged`."""
    prepared = prepare(config)
    logged = read_features(features, prepared.catalog, prepared.spec.listed)
    plugins = served_plugins(prepared)
    columns = columns_of(prepared.spec, plugins)
    if sorted(columns) != sorted(logged.columns):
        odd = sorted(set(columns) ^ set(logged.columns))
        raise PairliftError(f"{features} and {config.path} disagree about the columns: {', '.join(odd[:5])}")
    values = full_matrix(prepared.state, prepared.spec, plugins, logged.requests)
    order = [columns.index(name) for name in logged.columns]
    return drift(logged, values[:, order], columns[len(prepared.spec.columns) :])
