"""Logs of five shapes through the real path: a TOML, `pairlift train`, a server, Rank, Recommend, a recorded event.

The logs are those of tests/shapes.py, at a size that trains in seconds.
"""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served import pairlift, recording, serving, within
from shapes import SHAPES, SMALL

from features.rows import assemble
from features.schema import DAY, F32, F64, MINUTE
from ranker.bundle import Bundle, load_bundle
from ranker.client import Client, Reply
from ranker.columns import full_matrix
from ranker.config import load_config
from ranker.metrics.pair_accuracy import pair_accuracy
from ranker.train import train
from ranker.training.arms import Arms
from ranker.training.prepared import Prepared, prepare

QUICK = "[booster]\ntrees = 150\nstop_after = 20\n[lists]\nusers = 200\ngroups = 200\n"
ALS = '[ranker]\nplugins = ["als"]\n[plugins.als]\nclass = "features.baselines:ALS"\nfactors = 8\n'
#: of each shape: size, what its TOML has besides, and the least PairAccuracy of the test
CASES = {
    "search": (SMALL, "", 0.66),
    "news": (SMALL, "", 0.55),
    "positives": (SMALL, ALS, 0.70),
    "stars": (SMALL, "", 0.66),
    "sessions": (20_000, "", 0.60),
}


class Trained(NamedTuple):
    """What `pairlift train` left."""

    folder: Path  # TOML, files, bundle
    bundle: Bundle
    prepared: Prepared
    said: str

    @property
    def measured(self) -> float:
        """PairAccuracy of the test, as the bundle has it."""
        return float(json.loads((self.bundle.folder / "manifest.json").read_text())["measured"]["pair_accuracy"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    """Gives the trained shape of a name; each is trained once."""

    @cache
    def of(name: str) -> Trained:
        size, more, _ = CASES[name]
        folder = tmp_path_factory.mktemp(name)
        toml = SHAPES[name](folder, size, 1, more=QUICK + more)
        code, said = pairlift("train", toml, "--out", folder / "bundle")
        assert code == 0, said
        return Trained(folder, load_bundle(folder / "bundle"), prepare(load_config(toml)), said)

    return of


def accuracy_of(t: Trained, score: F64) -> float:
    groups = t.prepared.groups.of("test")
    return float(pair_accuracy(score, Arms.of(t.prepared).pairs("test")).value) if len(groups.grade) else float("nan")


def popularity(t: Trained) -> F64:
    """How often each of the test's impressions' items was wanted before the test."""
    log, catalog = t.prepared.log.until(t.prepared.split.t2), t.prepared.catalog
    best = log.grade >= len(t.prepared.config.grades) // 2
    return np.bincount(log.item[best], minlength=catalog.n_items)[t.prepared.groups.of("test").requests.item] * 1.0


@pytest.mark.parametrize("name", CASES)
def test_it_trains_and_orders_better_than_popularity(trained, name: str) -> None:
    t = trained(name)
    measured = t.measured
    assert measured > CASES[name][2]
    assert measured > accuracy_of(t, popularity(t)) + 0.005
    assert f"test PairAccuracy {measured:.4f}" in t.said


def client_request(prepared: Prepared, g: int) -> dict[str, object]:
    """A group of the log as a service would ask for it: ids, names of surfaces, text and numbers; NULL is left out."""
    catalog, r = prepared.catalog, prepared.groups.requests
    rows = slice(r.offsets[g], r.offsets[g + 1])

    def value(attribute, number: float):
        if np.isnan(number):
            return None
        return attribute.values[int(number)] if attribute.kind == "categorical" else float(number)

    context = {a.name: value(a, r.context[g, k]) for k, a in enumerate(catalog.contexts)}
    columns = {a.name: [value(a, v) for v in r.given[rows, k]] for k, a in enumerate(catalog.candidates)}
    return {
        "user": catalog.user_ids.tolist()[r.user[g]],
        "items": catalog.item_ids[r.item[rows]].tolist(),
        "as_of": int(r.as_of[g]),
        "surface": catalog.surfaces[r.surface[g]] if r.surface[g] >= 0 else "",
        "attributes": {key: str(v) for key, v in context.items() if v is not None},
        "columns": {key: of for key, of in columns.items() if any(v is not None for v in of)},
    }


def served_rows(reply: Reply, columns: tuple[str, ...]) -> F32:
    """float32[n, c]: the features of a Rank's items in the order of the request."""
    by_place = {item.index: {name: value for name, value, _ in item.features} for item in reply.items}
    return np.array([[by_place[k][name] for name in columns] for k in range(len(by_place))], np.float32)


@pytest.mark.parametrize("name", CASES)
def test_served_values_are_the_trained_ones(trained, name: str) -> None:
    """Over the wire, as of requests of the whole log, the NULLs of the log among them."""
    t = trained(name)
    requests, rng = t.prepared.groups.requests, np.random.default_rng(0)
    with serving(t.bundle, clock="snapshot") as server, Client(server.address, timeout=20) as client:
        for g in rng.choice(len(requests), 25, replace=False).tolist():
            reply = client.rank(**client_request(t.prepared, g), explain=True)
            assert not reply.degraded
            one = t.prepared.groups.select(np.arange(len(requests)) == g).requests
            want = full_matrix(t.bundle.state, t.bundle.spec, t.bundle.plugins, one)
            np.testing.assert_allclose(served_rows(reply, t.bundle.columns), want, rtol=1e-4, atol=1e-4)
            scores = t.bundle.booster.predict(want, raw_score=True)
            found = {item.index: item.score for item in reply.items}
            np.testing.assert_allclose([found[k] for k in range(len(found))], scores, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_lists_are_of_items_that_are_new_to_the_user(trained, name: str) -> None:
    t = trained(name)
    users = t.prepared.catalog.user_ids.tolist()
    histories, items = t.prepared.state.histories, t.prepared.catalog.item_ids
    unknown = "nobody" if isinstance(users[0], str) else -1
    with serving(t.bundle, clock="snapshot") as server, Client(server.address, timeout=20) as client:
        for k in range(0, len(users), max(len(users) // 8, 1)):
            reply = client.recommend(users[k], 10)
            begin, end = histories.before(np.array([k], np.int32), np.array([t.bundle.state.end]))
            seen = set(items[histories.item[begin[0] : end[0]]].tolist())
            assert len(reply.items) == 10 or reply.reason
            assert reply.items
            assert not seen & {item.item for item in reply.items}
        assert len(client.recommend(unknown, 10).items) == 10


#: of each shape: what a new event has besides ids and time
EVENTS = {
    "search": {"click": True, "book": False, "price": 80.0, "badge": "deal", "device": "phone", "request_id": "s-new"},
    "news": {"click": 1, "position": 1},
    "positives": {"pieces": 2},
    "stars": {"stars": 4.5},
    "sessions": {"watched": True, "seconds": None, "surface": "home", "screen": None},
}


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_event_counts(trained, name: str, tmp_path: Path) -> None:
    """From a file, by `pairlift record`: the user's counters know it in the next answer."""
    t = trained(name)
    catalog, end = t.prepared.catalog, t.bundle.state.end
    user, item = catalog.user_ids.tolist()[3], catalog.item_ids.tolist()[5]
    column = "user__impression__all__count"
    event = {"event_id": ["e1"], "user_id": [user], "item_id": [item], "ts": [end + MINUTE]}
    pq.write_table(pa.table(event | {key: [value] for key, value in EVENTS[name].items()}), tmp_path / "new.parquet")

    def count(client: Client) -> float:
        asked = client.rank(user, [item], as_of=end + DAY, explain=True)
        return served_rows(asked, (column,))[0, 0]

    with recording(t.bundle, tmp_path / "log") as (server, client):
        before = count(client)
        code, said = pairlift("record", tmp_path / "new.parquet", "--address", server.address)
        assert (code, "1 events recorded" in said) == (0, True), said
        assert within(5, lambda: count(client) == before + 1)
        assert client.describe().recorded_events == 1


def test_a_lower_price_is_better_and_what_is_not_said_is_not_needed(trained) -> None:
    """Of a search list: as the tastes of the world have it."""
    t = trained("search")
    requests = t.prepared.groups.requests
    with serving(t.bundle, clock="snapshot") as server, Client(server.address, timeout=20) as client:
        gains = []
        for g in range(0, len(requests), 25):
            asked = client_request(t.prepared, g)
            prices = asked["columns"]["price"]
            if prices[0] is None:
                continue
            score = []
            for price in (2 * prices[0], prices[0] / 2):
                asked["columns"]["price"] = [price, *prices[1:]]
                score.append(next(item.score for item in client.rank(**asked).items if item.index == 0))
            gains.append(score[1] - score[0])
            reply = client.rank(**{**asked, "columns": {}})
            assert len(reply.items) == len(asked["items"])
        assert np.mean(gains) > 0.1
        assert np.mean(np.array(gains) >= 0) > 0.9  # a price far above or below all others moves no tree


def test_values_of_the_impression_and_features_of_the_list_are_what_search_needs(trained, tmp_path: Path) -> None:
    """What was shown of a hotel says more than the hotel; a list's differences are of all its impressions."""
    found = {"given": trained("search").measured}
    for label, option in (("without", {"candidate": False}), ("listed", {"listed": True})):
        toml = SHAPES["search"](tmp_path / label, SMALL, 1, more=QUICK, **option)
        found[label] = train(load_config(toml), tmp_path / label / "bundle")["pair_accuracy"]
    assert found["given"] > found["without"] + 0.05
    assert found["listed"] > found["without"] + 0.05
    prepared = prepare(load_config(tmp_path / "listed" / "pairlift.toml"))
    values = assemble(prepared.state, prepared.spec, prepared.groups.requests)
    columns = list(prepared.spec.columns)
    price, less = (values[:, columns.index(f"candidate_price{of}")] for of in ("", "_less_median"))
    known = ~np.isnan(price)
    assert np.isnan(less[~known]).all()
    owner = prepared.groups.requests.row_request()
    medians = (price - less)[known]
    assert all(np.ptp(medians[owner[known] == g]) < 1e-3 for g in np.unique(owner)[:20])


def test_news_are_of_today(trained) -> None:
    """What is proposed is younger than the catalogue, though popularity is of a week."""
    t = trained("news")
    first = t.prepared.state.first_seen
    items = {item: k for k, item in enumerate(t.prepared.catalog.item_ids.tolist())}
    with serving(t.bundle, clock="snapshot") as server, Client(server.address, timeout=20) as client:
        users = t.prepared.catalog.user_ids.tolist()[:20]
        asked = [item.item for user in users for item in client.recommend(user, 10).items]
    age = (t.bundle.state.end - first[[items[item] for item in asked]]) / DAY
    assert np.median(age) < 3
    assert np.median((t.bundle.state.end - first) / DAY) > 6
