"""The stage before the ranker on KuaiRand-Pure: how much of the ranker's own first 50 it keeps, and what it takes.

`figures` is what `make bench WHAT=candidates` asks; alone this prints a table too. The ranker is that of the example,
with towers that are trained for minutes, and the sources propose all of the some 7,600 items. It is asked what it puts
first for requests of the test, of users whose requests the fit did not see; a fifth of the items is none of the fit's
either. Scorers that are compared, learned from the same requests of before the test:

forest    what is served: a small forest over the sources' own scores and the items' counters (`ranker.prerank`)
product   least squares on the ranker's scores by user vector · item vector, and a prior of each item
linear    the same by the scores of all sources

prerank_kept_top50   mean over these users of the share of the ranker's first 50 that is among the 500 kept
prerank_ms           p50 of the stage for 10,000 candidates on one thread: the sources' scores of all of them, the
                     items' counters, the forest, the choice of 500. Arrays in, arrays out
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from bench.peers.examples import WORK, written

from features.schema import F64, GIB, I32, Requests
from ranker.candidates.filters import filters_of
from ranker.candidates.gathering import own_quotas, proposals_of, source_columns, source_values
from ranker.config import Config
from ranker.examples import example_text
from ranker.prerank.distil import FITTED, MEASURED, TOP, Seen, Teacher, distil, drawn, held_out
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


def all_seen(teacher: Teacher, requests: Requests, fit: bool) -> list[Seen]:
    """Return the candidates of the requests that a fit sees, or of those that the figure is of."""
    return [teacher.seen(request) for request in drawn(requests, teacher.state, fit, FITTED if fit else MEASURED)]


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


def kept_top(scorer: Scorer, seen: Sequence[Seen], keep: int = KEEP) -> dict[str, float]:
    """Return the mean share of the ranker's first 50 that is kept, also of the items that no fit saw; the 10th
    percentile by user.
    """
    shares, unseen = [], []
    for one in seen:
        top = one.first(TOP)
        there = np.isin(top, kept(scorer(one), one.item, keep))
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
    took = []
    for _ in range(calls + 1):
        begun = time.perf_counter_ns()
        scores = source_values(proposals, item)
        kept(light.scores(request, spec, item, scores), item, KEEP)
        took.append(time.perf_counter_ns() - begun)
    return float(np.median(took[1:]) / 1e6)


def measured(parts: Parts) -> tuple[dict[str, dict[str, float]], float]:
    """Return what each scorer keeps, by name, and the milliseconds of what is served."""
    slices, split = parts.prepared.slices(), parts.prepared.split
    teacher, later = (over_all(parts, until) for until in (split.t1, split.t2))
    light = distil(teacher, slices["train"].requests)
    assert light is not None
    fitted, asked = all_seen(teacher, slices["train"].requests, True), all_seen(later, slices["test"].requests, False)
    names, n_items = source_columns(teacher.sources), teacher.state.catalog.n_items
    scorers: dict[str, Scorer] = {
        "forest": lambda one: light.of_rows(one.light),
        "product": linear([names.index(PRODUCT)], fitted, n_items),
        "linear": linear(range(len(names)), fitted, n_items),
    }
    found = {name: kept_top(scorer, asked) for name, scorer in scorers.items()}
    return found, milliseconds(later, light)


def figures() -> dict[str, float]:
    """Return the figures of the stage: some minutes the first time, then half a minute."""
    found, took = measured(trained_of(example()))
    print(f"{'scorer':10}{'kept of the first 50':>22}{'of unseen items':>18}{'10th percentile':>18}")
    for name, of in found.items():
        print(f"{name:10}{of['kept']:22.4f}{of['unseen items']:18.4f}{of['p10']:18.2f}")
    result = {"prerank_kept_top50": found["forest"]["kept"], "prerank_ms": took}
    return result | {f"prerank_kept_top50_{name}": of["kept"] for name, of in found.items() if name != "forest"}


if __name__ == "__main__":
    print(json.dumps(figures()))
