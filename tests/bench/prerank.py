"""The stage before the ranker on KuaiRand-Pure: how much of the ranker's own first 50 it keeps, and what it takes.

`figures` is what `make bench WHAT=candidates` asks; alone this prints a table too. The ranker is that of the example,
with towers that are trained for minutes, and the sources propose all of the some 7,600 items. It is asked what it puts
first for requests of the test, of users whose requests the fit did not see; a fifth of the items is none of the fit's
either. Scorers that are compared, learned from the same requests of before the test:

forest    what is served: a small forest over the sources' own scores and the items' counters (`ranker.prerank`)
product   least squares on the ranker's scores by user vector · item vector, and a prior of each item
linear    the same by the scores of all sources
mixture   a Mixture-of-Logits head over the same vectors, and a prior of each item (`peers/mixture_of_logits.py`); its
          milliseconds, of torch on one thread, are those of all items

prerank_kept_top50   mean over these users of the share of the ranker's first 50 that is among the 500 kept
prerank_ms           p50 of the stage for 10,000 candidates on one thread: the sources' scores of all of them, the
                     items' counters, the forest, the choice of 500. Arrays in, arrays out
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from bench.peers.examples import WORK, written
from bench.peers.mixture_of_logits import Learned, MixtureOfLogits, learned, scores

from features.plugin import RetrievalPlugin, VectorPlugin
from features.schema import F32, F64, GIB, I32, Requests
from features.state.histories import Histories
from ranker.candidates.filters import filters_of
from ranker.candidates.gathering import own_quotas, proposals_of, source_columns, source_values
from ranker.config import Config
from ranker.examples import example_text
from ranker.prerank.distil import FITTED, MEASURED, SHIFT, TOP, Seen, Teacher, distil, drawn, held_out
from ranker.prerank.light import Prerank, kept
from ranker.request import Request
from ranker.training.arms import Arms
from ranker.training.parts import Parts, fit_parts, teacher_of
from ranker.training.plugins import served_plugins
from ranker.training.prepared import prepare
from ranker.training.wanted import Wanted, sources_until

#: of the towers: what is distilled need not be the best ranker
SHORT = {
    "pretrain_epochs": 3,
    "finetune_epochs": 2,
    "max_steps": 400,
    "teachers": 0,
    "retrieval_epochs": 1,
    "retrieval_events": 200_000,
}
KEEP, CANDIDATES, CALLS = 500, 10_000, 300
#: more than there are items
ALL = 10_000
#: so many times 0 are added to what an item's prior is the mean of
SHRINK = 3
#: the source whose score is the product of the vectors
PRODUCT = "source__nearest"

#: gives float64[n], by which candidates are kept
Scorer = Callable[[Seen], F64]


def example() -> Config:
    """Write the example's TOML with short towers into a work folder, and read it."""
    towers = 'class = "neural.two_tower:TwoTower"'
    short = "\n".join(f"{name} = {value}" for name, value in SHORT.items())
    return written(WORK / "prerank", example_text("kuairand").replace(towers, f"{towers}\n{short}"))


def trained_of(config: Config) -> Parts:
    """Return what `pairlift train` makes of a TOML; every stage is resumed."""
    prepared = prepare(config)
    return fit_parts(Arms.of(prepared), served_plugins(prepared))


def over_all(parts: Parts, until: int) -> Teacher:
    """Return the ranker over sources that propose all items, of what was known before `until`."""
    config = parts.prepared.config
    every = {name: of.model_copy(update={"quota": ALL}) for name, of in config.sources.limits.items()}
    wide = config.model_copy(update={"sources": config.sources.model_copy(update=every)})
    prepared, wanted = replace(parts.prepared, config=wide), parts.wanted
    assert wanted is not None
    return teacher_of(prepared, parts.plugins, sources_until(prepared, parts.plugins, until, 2 * GIB), Wanted(wanted))


class Asked(NamedTuple):
    """A request whose candidates the ranker scored."""

    seen: Seen
    query: F32  # [d], of what `vectors_of` gives; NaN of a user without


def all_asked(teacher: Teacher, requests: Requests, fit: bool) -> list[Asked]:
    """Return the requests that a fit sees, or those that the figure is of."""
    some = drawn(requests, teacher.state, fit, FITTED if fit else MEASURED)
    queries = vectors_of(teacher)[1]
    none = np.empty(0, np.int32)
    return [Asked(teacher.seen(one), queries(one.requests(none), one.state.histories)[0]) for one in some]


def vectors_of(teacher: Teacher) -> tuple[F32, Callable[[Requests, Histories], F32]]:
    """Return keys of items, float32[items, d], and what gives float32[g, d] queries: those of the source `nearest`."""
    plugin = next(plugin for plugin in teacher.plugins.values() if isinstance(plugin, VectorPlugin))
    if isinstance(plugin, RetrievalPlugin):
        return plugin.item_keys, plugin.queries
    return plugin.item_vectors, plugin.user_vectors


def linear(columns: Sequence[int], seen: Sequence[Seen], n_items: int) -> Scorer:
    """Return least squares on the ranker's scores, less each request's median, and then the mean rest of each item."""
    x, y, item = [], [], []
    for one in seen:
        own = np.flatnonzero(~held_out(one.item))
        x.append(_known(one, columns)[own])
        y.append((one.score - np.median(one.score))[own])
        item.append(one.item[own])
    matrix, wanted, items = np.concatenate(x), np.concatenate(y), np.concatenate(item)
    weight = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    rest = np.bincount(items, wanted - matrix @ weight, n_items)
    prior = rest / (np.bincount(items, minlength=n_items) + SHRINK)
    return lambda one: np.asarray(_known(one, columns) @ weight + prior[one.item])


def _known(seen: Seen, columns: Sequence[int]) -> F64:
    """Return float64[n, c + 1]: the sources' scores, 0 where one says nothing, and 1."""
    scores = np.nan_to_num(seen.scores[:, list(columns)].astype(np.float64))
    return np.column_stack([scores, np.ones(len(scores))])


def mixture(teacher: Teacher, fitted: Sequence[Asked]) -> MixtureOfLogits:
    """Return the head that has learned the ranks that the forest learns, of all items that are not held out."""
    rows = []
    for one in fitted:
        order = one.seen.first(len(one.seen.item))
        own = np.flatnonzero(~held_out(one.seen.item[order]))
        rows.append(Learned(one.query, one.seen.item[order[own]].astype(np.int64), -np.log2(SHIFT + own)))
    return learned(vectors_of(teacher)[0], [one for one in rows if np.isfinite(one.query).all()])


def mixed(head: MixtureOfLogits, one: Asked) -> F64:
    """Return float64[n] of a request's candidates; of a user without a query, by the items' priors all but alone."""
    return scores(head, np.nan_to_num(one.query), one.seen.item)


def kept_top(found: Iterable[F64], seen: Sequence[Seen], keep: int = KEEP) -> dict[str, float]:
    """Return the mean share of the ranker's first 50 that is kept, also of the items that no fit saw; the 10th
    percentile by user. found: float64[n] scores of each request's candidates.
    """
    shares, unseen = [], []
    for score, one in zip(found, seen, strict=True):
        top = one.first(TOP)
        there = np.isin(top, kept(score, one.item, keep))
        new = held_out(one.item[top])
        shares.append(there.mean())
        unseen += [there[new].mean()] if new.any() else []
    return {
        "kept": float(np.mean(shares)),
        "unseen items": float(np.mean(unseen)) if unseen else float("nan"),
        "p10": float(np.percentile(shares, 10)),
    }


def milliseconds(teacher: Teacher, light: Prerank, candidates: int = CANDIDATES, calls: int = CALLS) -> float:
    """Return the p50 of the stage, as of the end of the log: the sources' proposals are made before.

    The candidates are drawn from all items, some of them more than once where there are fewer.
    """
    state, spec = teacher.state, teacher.spec
    request = Request(int(state.histories.sizes.argmax()), state.end, state=state)
    filters, quota = filters_of(teacher.config, state), own_quotas(teacher.sources)(request)
    proposals = proposals_of(teacher.sources, request, filters, quota)
    item: I32 = np.sort(np.random.default_rng(0).integers(0, state.catalog.n_items, candidates)).astype(np.int32)

    def stage() -> object:
        values = source_values(proposals, item)
        return kept(light.scores(request, spec, item, values), item, KEEP)

    return median_ms(stage, calls)


def median_ms(call: Callable[[], object], calls: int) -> float:
    """Return the p50 of so many calls, after one more."""
    took = []
    for _ in range(calls + 1):
        begun = time.perf_counter_ns()
        call()
        took.append(time.perf_counter_ns() - begun)
    return float(np.median(took[1:]) / 1e6)


def measured(parts: Parts) -> tuple[dict[str, dict[str, float]], float, float]:
    """Return what each scorer keeps, by name; the milliseconds of what is served; and those of the mixture."""
    slices, split = parts.prepared.slices(), parts.prepared.split
    teacher, later = (over_all(parts, until) for until in (split.t1, split.t2))
    light = distil(teacher, slices["train"].requests)
    assert light is not None
    fitted, asked = all_asked(teacher, slices["train"].requests, True), all_asked(later, slices["test"].requests, False)
    names, n_items = source_columns(teacher.sources), teacher.state.catalog.n_items
    seen, known = [one.seen for one in asked], [one.seen for one in fitted]
    by_sources: dict[str, Scorer] = {
        "forest": lambda one: light.of_rows(one.light),
        "product": linear([names.index(PRODUCT)], known, n_items),
        "linear": linear(range(len(names)), known, n_items),
    }
    found = {name: kept_top(map(scorer, seen), seen) for name, scorer in by_sources.items()}
    head = mixture(teacher, fitted)
    found["mixture"] = kept_top((mixed(head, one) for one in asked), seen)
    return found, milliseconds(later, light), median_ms(lambda: mixed(head, asked[0]), CALLS)


def figures() -> dict[str, float]:
    """Return the figures of the stage: some minutes the first time, then half a minute."""
    found, took, took_mixed = measured(trained_of(example()))
    print(f"{'scorer':10}{'kept of the first 50':>22}{'of unseen items':>18}{'10th percentile':>18}")
    for name, of in found.items():
        print(f"{name:10}{of['kept']:22.4f}{of['unseen items']:18.4f}{of['p10']:18.2f}")
    result = {"prerank_kept_top50": found["forest"]["kept"], "prerank_ms": took, "prerank_ms_mixture": took_mixed}
    return result | {f"prerank_kept_top50_{name}": of["kept"] for name, of in found.items() if name != "forest"}


if __name__ == "__main__":
    print(json.dumps(figures()))
