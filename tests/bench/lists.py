"""What lists of `Recommend` are worth, on both example data sets and in a generated world whose truth is known.

`pairlift lists` of each example, cut at its t2: Recommend by the server's own path beside popularity and ALS, tuned
before the cut, and each source alone. In the generated world (tests/listworld.py) the same lists are judged by what
they are truly worth. `designs` compares, on MovieLens' validation slices, ways to answer both questions: one booster
over both kinds of pairs, by the weight of the shown ones; two boosters, of which each answers one; and the sum of the
two. Work folders are kept below .pairlift/bench, so a second run resumes. KuaiRand needs PAIRLIFT_DATA; it is left out,
with a word, where that folder has none.

recall10_gain_low, ndcg10_gain_low   lower end by user of Recommend less the best of the others, each user's mean of the
                                     first request in the test and the cut, the worse data set; of each alone too
true_reward_gain_low                 likewise of the true reward of the first 10, in the generated world
union_share                          recall@10 over that of the best order of what the sources propose, the worse set
pair_accuracy_kept                   PairAccuracy of `Rank` over that of shown pairs alone, the worse data set
"""

import json
import os
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import click
import numpy as np
from bench.peers.examples import WORK, example
from listtruth import ListWorld, future
from listworld import world_case

from features.errors import PairliftError
from features.pairing.groups import Groups
from features.pairing.pairs import Pairs
from features.pairing.slice import Slice
from features.schema import DAY, F32, F64, GIB, I32, I64, NO_CONTEXT, Requests, lookup, offsets_of
from ranker.candidates.configured import Sources
from ranker.candidates.filters import filters_of
from ranker.candidates.gathering import own_quotas, proposals_of, source_values
from ranker.columns import demand, with_sources
from ranker.config import Config, load_config
from ranker.examples import example_names
from ranker.lists.answers import ask, patient
from ranker.lists.asked import Asked
from ranker.lists.peers import ALPHAS, HALF_LIVES, als_lists, fitted_als, popular_lists
from ranker.lists.table import as_table
from ranker.metrics.interval import difference, mean_interval
from ranker.metrics.pair_accuracy import pair_accuracy
from ranker.pipeline import Pipeline
from ranker.request import Request
from ranker.training.arms import Arms
from ranker.training.booster import fit_booster
from ranker.training.measured import measure_lists, parts_at_cut, past_of
from ranker.training.parts import Parts, fit_parts
from ranker.training.plugins import served_plugins
from ranker.training.prepared import Prepared, prepare
from ranker.training.wanted import Rows, rows_of, sources_until, wanted_scores, wanted_settings

#: users who are asked about, and requests whose pairs `Rank` is asked to order
USERS = RANKED = 2_000
#: where designs are compared: on the other data set the rows of what was shown take many minutes
COMPARED_ON = "movielens"
#: weights of the shown pairs in one booster, and of the liked part in the sum of two
WEIGHTS, SUMS = (0.2, 0.5), (0.125, 0.25, 0.5)


def trained_of(config: Config) -> Parts:
    """Return what `pairlift train` makes of a TOML; every stage is resumed."""
    prepared = prepare(config)
    return fit_parts(Arms.of(prepared), served_plugins(prepared))


def pipeline_of(trained: Parts) -> Pipeline:
    """Return the server's path, as of the cut."""
    return Pipeline(patient(parts_at_cut(trained)))


# Two questions, and ways to answer both


def designs(trained: Parts) -> dict[str, dict[str, float]]:
    """Return PairAccuracy of the shown pairs and NDCG@10 of the lists, on the validation slices, by design."""
    p, seed = trained.prepared, trained.prepared.config.uplift.seeds[0]
    sources = sources_until(p, trained.plugins, p.split.t1, 2 * GIB)
    lists = rows_of(p, trained.plugins)
    shown = {part: shown_rows(trained, sources, part) for part in ("train", "validation")}
    names, held = lists.columns, shown["validation"]
    liked, width = trained.liked.booster, trained.liked.booster.num_feature()
    alone = lists.fit(p.config, seed, forests=1)  # as the others: one forest
    parts = {
        "liked": (liked.predict(held.matrix[:, :width]), liked.predict(lists.validation.matrix[:, :width])),
        "wanted": tuple(wanted_scores(alone, rows, names) for rows in (held.matrix, lists.validation.matrix)),
    }
    found = {f"one, shown pairs weigh {w}": worth_of(mixed(lists, shown, trained, w), lists, held) for w in WEIGHTS}
    found["two"] = worth_of((parts["liked"][0], parts["wanted"][1]), lists, held)
    for w in SUMS:
        total = parts["wanted"][1] + w * parts["liked"][1]
        found[f"two, lists by wanted + {w} liked"] = worth_of((parts["liked"][0], total), lists, held)
    found["liked alone"], found["wanted alone"] = (worth_of(parts[part], lists, held) for part in ("liked", "wanted"))
    found["popular"] = worth_of(tuple(demand(m, names) for m in (held.matrix, lists.validation.matrix)), lists, held)
    return found


def shown_rows(trained: Parts, sources: Sources, part: str) -> Slice:
    """Return a slice of the shown pairs' rows, with the sources' columns."""
    prepared = trained.prepared
    own = trained.arms.slice(part, trained.columns, prepared.config.uplift.seeds[0])
    scores = scores_of_shown(prepared, sources, trained.arms.groups[part])
    return replace(own, matrix=with_sources(own.matrix, scores))


def scores_of_shown(prepared: Prepared, sources: Sources, groups: Groups) -> F32:
    """Return float32[n, s]: the sources' own scores of what was shown."""
    r, blocks = groups.requests, []
    filters = filters_of(prepared.config, prepared.state)
    for k in range(len(r)):
        request = Request.of(r, k, prepared.state)
        proposals = proposals_of(sources, request, filters, own_quotas(sources)(request))
        blocks.append(source_values(proposals, r.item[r.offsets[k] : r.offsets[k + 1]]))
    return np.concatenate(blocks)


def mixed(lists: Rows, shown: dict[str, Slice], trained: Parts, weight: float) -> tuple[F64, F64]:
    """Fit one booster over both kinds of pairs; return its scores of the shown and of the list's validation rows."""
    names, cut = lists.columns, len(shown["validation"].matrix)
    config = trained.prepared.config
    seed = config.uplift.seeds[0]
    train = beside(shown["train"], lists.train.slice(names, seed), weight, names)
    held = beside(shown["validation"], lists.validation.slice(names, seed), weight, names)
    pairs = shown["validation"].pairs

    def judge(score: F64) -> float:
        return pair_accuracy(score[:cut], pairs).value + lists.validation.ndcg(score[cut:])

    booster = fit_booster(names, lists.categorical, train, held, wanted_settings(config), seed, judge=judge)
    score = wanted_scores(booster, held.matrix, names)
    return score[:cut], score[cut:]


def beside(shown: Slice, lists: Slice, weight: float, names: list[str]) -> Slice:
    """Return the rows of both below each other; the shown pairs have this share of all weight."""
    n, groups = len(shown.matrix), int(shown.group[-1]) + 1
    matrix = np.concatenate([shown.matrix, lists.matrix])
    grades = [part.grade if part.grade is not None else np.zeros(len(part.matrix), np.int8) for part in (shown, lists)]
    a, b = shown.pairs, lists.pairs
    pairs = Pairs(
        np.concatenate([a.winner, b.winner + n]).astype(np.int32),
        np.concatenate([a.loser, b.loser + n]).astype(np.int32),
        np.concatenate([a.weight * (weight / a.weight.sum()), b.weight * ((1 - weight) / b.weight.sum())]).astype(
            np.float32
        )
        * np.float32(len(a) + len(b)),
        np.concatenate([a.sampled, b.sampled]),
    )
    group = np.concatenate([shown.group, lists.group + groups])
    return Slice(matrix, group, pairs, np.concatenate(grades), demand(matrix, names))


def worth_of(score: tuple[Any, ...], lists: Rows, shown: Slice) -> dict[str, float]:
    of_shown, of_lists = (np.asarray(s, np.float64) for s in score)
    return {"pair_accuracy": pair_accuracy(of_shown, shown.pairs).value, "ndcg@10": lists.validation.ndcg(of_lists)}


# The data sets


def of_data(config: Config) -> dict[str, Any]:
    """Return a data set's report of lists, its designs, and PairAccuracy of the test's shown pairs."""
    report = measure_lists(config, USERS)
    print(as_table(report), end="\n\n", flush=True)
    trained = trained_of(config)
    found = {"lists": report, "pairs": kept(trained)}
    found["designs"] = designs(trained) if config.name == COMPARED_ON else {}
    for design, figures in found["designs"].items():
        print(f"{design:34} PairAccuracy {figures['pair_accuracy']:.4f}   NDCG@10 {figures['ndcg@10']:.4f}")
    print(flush=True)
    return found


def kept(trained: Parts) -> dict[str, float]:
    """Return PairAccuracy of the test's shown pairs: as `Rank` serves them, and of a booster of shown pairs alone.

    `Rank` is asked group by group through the pipeline; the other one is the arm of the report of uplift. Of more
    groups the first RANKED count.
    """
    groups, pairs, pipeline = trained.arms.groups["test"], trained.arms.pairs("test"), pipeline_of(trained)
    r = groups.requests
    asked_for = min(len(r), RANKED)
    shown = pairs.select(~pairs.sampled & (pairs.winner < r.offsets[asked_for]))
    served = np.zeros(len(r.item))
    for k in range(asked_for):
        answer = pipeline.rank(Request.of(r, k, pipeline.state), r.item[r.offsets[k] : r.offsets[k + 1]])
        served[r.offsets[k] + answer.index] = answer.score
    pipeline.close()
    rank, alone = (pair_accuracy(score, shown).value for score in (served, trained.liked.scores))
    return {"rank": rank, "shown_alone": alone, "kept": rank / alone}


# The generated world


def of_world(seed: int) -> dict[str, Any]:
    """Return the true reward@10 of every list in the generated world, and Recommend less each other one."""
    toml, world = world_case(WORK / f"lists-world{seed}", seed)
    trained = trained_of(load_config(toml))
    who = everybody(trained.prepared, world)
    reward = partial(true_reward, trained.prepared, world, who)
    pipeline = pipeline_of(trained)
    answers = ask(pipeline, who, 10)
    pipeline.close()
    recommend = reward(answers.lists)
    others = {f"source {name}": reward(found) for name, found in answers.alone.items()}
    others |= {name: reward(found) for name, found in peers(trained.prepared, who).items()}
    best = max(others, key=lambda name: float(others[name].mean()))
    users, when = in_world(trained.prepared, world, who)
    oracle = world.true_reward(world.best_lists(users, when, 10), users, when)
    found = {
        "users": len(who),
        "recommend": mean_interval(recommend),
        "others": {name: float(found.mean()) for name, found in others.items()},
        "oracle": float(oracle.mean()),
        "best": best,
        "gain": difference(recommend, others[best]),
    }
    print(f"generated world {seed}: true reward@10 of {len(who):,} users, oracle {found['oracle']:.4f}")
    for name, value in {"Recommend": float(recommend.mean()), **found["others"]}.items():
        print(f"  {name:24} {value:.4f}")
    print(
        f"  Recommend less {best}: {found['gain'][0]:+.4f} [{found['gain'][1]:+.4f}, {found['gain'][2]:+.4f}]\n",
        flush=True,
    )
    return found


def everybody(prepared: Prepared, world: ListWorld) -> Asked:
    """Return all users with a request in the test, as of their first one, whether they wanted anything or not."""
    users, when = future(world)
    user = lookup(prepared.catalog.user_ids, world.users.ids[users])
    start, stop = prepared.state.histories.before(user, when)
    requests = Requests(
        user=user,
        as_of=when,
        surface=np.full(len(user), -1, np.int16),
        offsets=offsets_of(np.zeros(len(user), np.int64)),
        item=np.empty(0, np.int32),
        context=NO_CONTEXT,
    )
    return Asked(requests=requests, history=stop - start)


def in_world(prepared: Prepared, world: ListWorld, who: Asked) -> tuple[I32, I64]:
    """Return the world's indexes of the users, and their times."""
    return world.users_of(prepared.catalog.user_ids[who.requests.user]), who.requests.as_of


def true_reward(prepared: Prepared, world: ListWorld, who: Asked, lists: I32) -> F64:
    """Return float64[u]: what lists of the catalogue's indexes are truly worth."""
    items = world.items_of(prepared.catalog.item_ids, lists[:, :10])
    return world.true_reward(items, *in_world(prepared, world, who))


def peers(prepared: Prepared, who: Asked) -> dict[str, I32]:
    """Return popularity of every half-life, and ALS of 16 and 64 factors with every alpha, fitted before t2.

    The best of them by the truth is what Recommend is compared with: no choice can make a peer weaker than it is.
    """
    past, found = past_of(prepared), {}
    for days in HALF_LIVES:
        life = None if days is None else int(days * DAY)
        found[f"popular {days or 'all'} d"] = popular_lists(past, who, 10, life)
    cold = found[f"popular {HALF_LIVES[0]} d"]
    for factors in (16, 64):
        for alpha in ALPHAS:
            als = fitted_als(past, past.split.t2, alpha, 0, factors=factors)
            found[f"als {factors}, alpha {alpha:g}"] = als_lists(
                als, past.histories, who, 10, lambda some, m: cold[np.isin(who.requests.user, some.requests.user)]
            )
    return found


# The figures


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the issue from all results."""
    data = {name: found[name] for name in found if name in example_names()}
    first = {name: of["lists"]["parts"]["first"]["all"] for name, of in data.items()}
    result: dict[str, Any] = {}
    both = {name: of["lists"]["both"] for name, of in data.items()}
    cut = {name: of["lists"]["parts"]["cut"]["all"] for name, of in data.items()}
    for key, figure in (("recall10", "recall@10"), ("ndcg10", "ndcg@10")):
        for label, parts in (("", both), ("_first", first), ("_cut", cut)):
            result[f"{key}_gain_low{label}"] = min(part["best_peer"][figure]["ci95"][0] for part in parts.values())
        for name, part in both.items():
            own, peer = (part["lists"][of][figure]["mean"] for of in ("Recommend", part["best_peer"][figure]["name"]))
            result[f"{key}_of_best_{name}"] = own / peer
    result["union_share"] = min(part["union_share"] for part in first.values())
    result["pair_accuracy_kept"] = min(of["pairs"]["kept"] for of in data.values())
    worlds = [of for name, of in found.items() if name.startswith("world")]
    result["true_reward_gain_low"] = min(of["gain"][1] for of in worlds)
    return result


@click.command()
@click.option("--data", "only", multiple=True, type=click.Choice([*example_names(), "world"]), help="one part alone")
@click.option("--seeds", default=1, show_default=True, help="generated worlds")
def main(only: tuple[str, ...], seeds: int) -> None:
    """Print the tables, then the JSON."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    found: dict[str, Any] = {}
    for data in only or (*reversed(example_names()), "world"):
        if data == "world":
            found |= {f"world{seed}": of_world(seed) for seed in range(seeds)}
            continue
        try:
            found[data] = of_data(example(data))
        except PairliftError as error:
            print(f"{data} is left out: {error}", file=sys.stderr)
    whole = all(name in found for name in (*example_names(), "world0"))
    print(json.dumps((figures(found) if whole else {}) | found))


if __name__ == "__main__":
    main()
