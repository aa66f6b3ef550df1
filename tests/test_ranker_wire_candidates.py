"""What is said of the candidates of a request: from the wire, or from a source, to the features that training had."""

import json
from dataclasses import replace

import numpy as np
import pytest
from priced import NAMES, shown_by, write_priced
from scipy.stats import rankdata
from served import pairlift, serving

from features.given import candidate_columns
from features.rows import assemble
from features.schema import NO_GIVEN, Attribute
from ranker.bundle import load_bundle
from ranker.candidates.merge import dedupe
from ranker.candidates.source import Proposal, proposed
from ranker.client import Client, ServerError
from ranker.config import load_config
from ranker.pipeline import Pipeline
from ranker.recording.featurelog import FeatureLog
from ranker.recording.logged import read_features
from ranker.request import Request
from ranker.serving.served import FeaturesTo
from ranker.settings import SourceSettings
from ranker.train import drift_report, train
from ranker.training.prepared import prepare
from ranker.training.proposed import Proposed
from ranker.training.wanted import asked_in_slices

LISTED = ("candidate_price_rank", "candidate_price_less_median")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("priced")
    train(load_config(write_priced(folder)), folder / "bundle")
    return folder


@pytest.fixture(scope="module")
def priced(folder):
    return load_bundle(folder / "bundle")


@pytest.fixture(scope="module")
def asking(priced):
    with serving(priced, clock="snapshot") as server, Client(server.address, timeout=20) as client:
        yield client


def explained(reply):
    """The features of each item of an answer by name, by the item's place in the request."""
    return {item.index: {name: value for name, value, _ in item.features} for item in reply.items}


def test_served_values_are_those_that_were_trained_on(folder, priced, asking):
    prepared = prepare(load_config(folder / "pairlift.toml"))
    groups = prepared.groups
    matrix = assemble(prepared.state, prepared.spec, groups.requests)
    names = prepared.spec.columns
    assert {*(f"candidate_{name}" for name in NAMES), *LISTED, "item__candidate_price_of_like__all__mean"} <= set(names)
    codes = prepared.log.request[groups.event[groups.requests.offsets[:-1]]]
    compared = 0
    for g in np.random.default_rng(0).choice(len(groups.requests), 40, replace=False):
        start, stop = groups.requests.offsets[g : g + 2]
        # Codes of requests are in the order of their names, which are text.
        asked = shown_by(folder, int(sorted(map(str, range(1200)))[codes[g] - 1]))
        reply = asking.rank(
            asked.user, asked.items, columns=asked.columns, attributes=asked.attributes, as_of=asked.as_of, explain=True
        )
        assert not reply.degraded
        served = explained(reply)
        for row in range(start, stop):
            place = asked.items.index(int(priced.state.catalog.item_ids[groups.requests.item[row]]))
            found = [served[place][name] for name in names]
            np.testing.assert_allclose(found, matrix[row], rtol=1e-6, err_msg=str(names))
            compared += 1
    assert compared > 150
    for name in (*candidate_columns(priced.state.catalog), *LISTED):
        known = ~np.isnan(matrix[:, names.index(name)])
        assert known.any()
        assert not known.all(), name


def test_describe_names_what_can_be_said(asking):
    served = asking.describe()
    assert served.context_attributes == {"device": True}
    assert served.candidate_columns == {"price": False, "badge": True, "match": False}
    assert served.list_features == LISTED


def test_what_is_not_known_or_not_said_is_missing_and_other_names_have_no_effect(asking):
    items = [10, 13, 16]
    columns = {"badge": ["sale", "unheard of", None], "price": np.array([np.nan, 3, 2.5], np.float32), "other": ["x"]}
    served = explained(asking.rank(1000, items, columns=columns, explain=True))
    for name, wanted in {
        "candidate_badge": [1, np.nan, np.nan],
        "candidate_price": [np.nan, 3, 2.5],
        "candidate_match": [np.nan] * 3,
        "candidate_price_rank": [np.nan, 2, 1],
        "candidate_price_less_median": [np.nan, 0.25, -0.25],
    }.items():
        np.testing.assert_array_equal([served[k][name] for k in range(3)], wanted, err_msg=name)
    silent = explained(asking.rank(1000, items, explain=True))
    assert all(np.isnan(row[name]) for row in silent.values() for name in row if name.startswith("candidate_"))
    nothing = asking.rank(1000, items, columns={"price": [None] * 3, "badge": [None] * 3}, explain=True)
    assert [item.score for item in nothing.items] == [item.score for item in asking.rank(1000, items).items]
    assert not asking.rank(1000, [], columns={"price": []}).items


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"price": [1, 2]}, "columns 'price': 3 numbers were expected, one for each item, found 2"),
        ({"badge": ["new"] * 4}, "columns 'badge': 3 texts were expected, one for each item, found 4"),
        ({"price": ["a", "b", "c"]}, "columns 'price': numbers were expected, found texts"),
        ({"badge": [1, 2, 3]}, "columns 'badge': texts were expected, found numbers"),
        (
            {"match": [1, 2, 3], "price": [1, float("inf"), 3]},
            "columns 'price': finite numbers were expected, found inf ",
        ),
        ({"price": [1, -1e39, 3]}, "columns 'price': finite numbers were expected, found -inf for item 1"),
        ({"price": [1, "b", 3]}, "the request cannot be written"),
    ],
)
def test_columns_that_do_not_fit_are_refused(asking, columns, text):
    with pytest.raises(ServerError, match=text) as caught:
        asking.rank(1000, [10, 13, 16], columns=columns)
    assert caught.value.code == "INVALID_ARGUMENT"


def test_values_stay_with_their_items_in_any_order_and_where_an_item_repeats(folder, asking):
    asked = shown_by(folder, 77)
    items = [*asked.items, asked.items[0]]
    columns = {name: [*values, None] for name, values in asked.columns.items()}
    first = explained(asking.rank(asked.user, items, columns=columns, explain=True))
    order = np.random.default_rng(1).permutation(len(items))
    moved = {name: [values[k] for k in order] for name, values in columns.items()}
    again = explained(asking.rank(asked.user, [items[k] for k in order], columns=moved, explain=True))
    assert all(str(again[place]) == str(first[k]) for place, k in enumerate(order.tolist()))
    assert np.isnan(first[len(items) - 1]["candidate_price"])


class Offers:
    """A source that knows something of what it proposes."""

    def __init__(self, name, items, given):
        self.name, self.items, self.given = name, np.array(items, np.int32), given

    def propose(self, request, limit):
        return Proposal(self.items, None, self.given)


def offers(*sources):
    return [(source, SourceSettings(quota=20, deadline="20s")) for source in sources]


def test_a_source_says_what_is_shown_and_features_of_the_list_are_over_what_is_scored(priced):
    nan = np.nan
    one = Offers("one", [1, 2, 3, 4], np.array([[5, 0, 0.5], [nan, 1, nan], [7, nan, nan], [1, 0, 0.1]], np.float32))
    two = Offers("two", [3, 2, 9], np.array([[8, 1, nan], [6, 0, 0.2], [nan, nan, nan]], np.float32))
    silent = Offers("silent", [9, 11], None)
    pipeline = Pipeline(priced, offers(one, two, silent))
    request = Request(-1, priced.state.end, state=priced.state, exclude=np.array([4], np.int32), explain=True)
    found = pipeline.recommend(request, 10)
    pipeline.close()
    assert not found.degraded
    wanted = {1: (5, 0, 0.5), 2: (6, 1, 0.2), 3: (7, 1, nan), 9: (nan,) * 3, 11: (nan,) * 3}
    assert sorted(found.item.tolist()) == sorted(wanted)
    at = [found.detail.columns.index(f"candidate_{name}") for name in NAMES]
    expected = np.array([wanted[item] for item in found.item.tolist()], np.float32)
    np.testing.assert_array_equal(found.detail.values[:, at], expected)
    rank, less = (found.detail.values[:, found.detail.columns.index(name)] for name in LISTED)
    np.testing.assert_array_equal(rank, rankdata(expected[:, 0], nan_policy="omit"))
    np.testing.assert_array_equal(less, expected[:, 0] - 6)


def test_a_source_whose_values_do_not_fit_is_a_failure(priced):
    request = Request(-1, priced.state.end, state=priced.state)
    with pytest.raises(ValueError, match=r"given: an array of shape \(2, 3\) was expected, found \(2, 1\)"):
        proposed(Offers("odd", [1, 2], np.zeros((2, 1), np.float32)), request, 5)
    assert len(proposed(Offers("long", [1, 2, 3], np.zeros((3, 3))), request, 2).given) == 2
    pipeline = Pipeline(priced, offers(Offers("odd", [1, 2], np.zeros(2)), Offers("plain", [5, 6], None)))
    found = pipeline.recommend(request, 5)
    pipeline.close()
    assert found.degraded == ("sources.odd",)
    assert sorted(found.item.tolist()) == [5, 6]


def test_nothing_is_given_where_no_source_says_anything():
    assert dedupe([Proposal(np.array([2, 1], np.int32)), Proposal(np.array([1], np.int32))]).given is NO_GIVEN


def test_a_bundle_without_candidates_takes_columns_without_effect(client):
    plain = client.rank(1000, [10, 13])
    assert client.rank(1000, [10, 13], columns={"price": [1, 2]}).items == plain.items
    assert client.describe().candidate_columns == {}


def test_attributes_of_candidates_are_numbers_or_categories(priced):
    kinds = {a.name: a.kind for a in priced.state.catalog.candidates}
    assert kinds == {"price": "numeric", "badge": "categorical", "match": "numeric"}
    assert isinstance(priced.state.catalog.candidates[0], Attribute)


def test_a_shell_repeats_a_services_call(folder, asking):
    asked = shown_by(folder, 76)
    assert asked.attributes == {"device": "tv"}
    reply = asking.rank(asked.user, asked.items, columns=asked.columns, attributes=asked.attributes, as_of=asked.as_of)
    columns = {name: ["" if v is None else str(v) for v in values] for name, values in asked.columns.items()}
    options = [word for name, values in columns.items() for word in ("--column", f"{name}={','.join(values)}")]
    code, text = pairlift(
        "rank", "--user", asked.user, "--items", ",".join(map(str, asked.items)), *options, "--context", "device=tv",
        "--as-of", np.datetime64(asked.as_of, "us"), "--json", "--address", asking.address,
    )  # fmt: skip
    assert code == 0, text
    assert [(item["item"], item["score"]) for item in json.loads(text)["items"]] == [
        (item.item, item.score) for item in reply.items
    ]
    code, text = pairlift(
        "recommend",
        "--user",
        1000,
        "--k",
        3,
        "--context",
        "device=tv",
        "--explain",
        "--json",
        "--address",
        asking.address,
    )
    assert code == 0, text
    features = [{f["name"]: f["value"] for f in item["features"]} for item in json.loads(text)["items"]]
    assert [row["context_device"] for row in features] == [1, 1, 1]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ("--context", "devise=tv"),
            "--context: the served bundle has no 'devise' in [events.context] (did you mean 'device'?)",
        ),
        (("--context", "device"), "'device': NAME=VALUE was expected"),
        (("--context", "device=tv", "--context", "device=tv"), "'device=tv': stands there twice"),
        (
            ("--column", "prize=1,2"),
            "--column: the served bundle has no 'prize' in [events.candidate] (did you mean 'price'?)",
        ),
        (("--column", "price=1,b"), "--column price: numbers were expected, found '1,b'"),
        (("--column", "price=1,2,3"), "columns 'price': 2 numbers were expected, one for each item, found 3"),
    ],
)
def test_a_shell_is_told_what_the_server_would_pass_over(asking, words, text):
    code, said = pairlift("rank", "--user", 1000, "--items", "10,13", *words, "--address", asking.address)
    assert code == 2
    assert text in said


def test_a_shell_asks_a_bundle_without_candidates(client):
    code, said = pairlift("rank", "--user", 1000, "--items", "10", "--column", "price=1", "--address", client.address)
    assert (code, "--column: the served bundle has no 'price' in [events.candidate]" in said) == (2, True), said


def test_the_feature_log_has_what_was_said_and_has_not_drifted(folder, priced, tmp_path):
    config = load_config(folder / "pairlift.toml")
    with (
        serving(priced, clock="snapshot", features_to=FeaturesTo(tmp_path / "log", 1.0)) as server,
        Client(server.address, timeout=20) as client,
    ):
        for number in range(0, 1200, 60):
            asked = shown_by(folder, number)
            options = {"columns": asked.columns, "attributes": asked.attributes, "as_of": asked.as_of}
            client.rank(asked.user, asked.items, request_id=str(number), **options)
    some = Offers("some", range(30), np.random.default_rng(3).normal(size=(30, 3)).astype(np.float32).round(1))
    some.given[:, 1] = 1
    to = FeatureLog(tmp_path / "log", columns=priced.columns, version=priced.version, share=1.0)
    pipeline = Pipeline(priced, offers(some))
    request = Request(4, priced.state.end, state=priced.state, request_id="list", keep_values=True)
    found = pipeline.recommend(request, 5)  # of the 20 that are scored
    to.offer(request, found, found.values)
    to.close()
    pipeline.close()
    logged = read_features(tmp_path / "log", priced.state.catalog, priced.spec.listed)
    ranks = logged.values[-5:, logged.columns.index("candidate_price_rank")]
    assert len(logged.values) == 20 * 8 + 5
    assert ranks.max() > 5  # among all that was scored
    report = drift_report(config, tmp_path / "log")
    assert {row["column"] for row in report} >= {"candidate_price", "candidate_badge", *LISTED}
    assert all(row["differs"] == 0 for row in report), report[0]


def test_the_part_of_lists_learns_from_what_sources_say_as_it_is_served(folder, priced):
    prepared = prepare(load_config(folder / "pairlift.toml"))
    rng = np.random.default_rng(5)
    given = rng.normal(size=(40, 3)).astype(np.float32)
    given[:, 1] = rng.integers(0, 2, 40)
    sources = offers(Offers("some", range(40), given), Offers("silent", range(35, 60), None))
    who = asked_in_slices(prepared)[1].select(np.arange(12))
    made = Proposed.of(prepared, priced.plugins, sources, who, losers=3)  # of all that are scored
    pipeline = Pipeline(priced, sources)
    names = priced.columns
    at = [names.index(name) for name in ("candidate_price", "candidate_badge", *LISTED)]
    served, learned = set(), {tuple(row) for row in np.nan_to_num(made.matrix[:, at], nan=-9).tolist()}
    for k in range(len(who)):
        request = replace(Request.of(who.requests, k, priced.state), keep_values=True)
        values = pipeline.recommend(request, 60).values[:, at]
        served |= {tuple(row) for row in np.nan_to_num(values, nan=-9).tolist()}
    pipeline.close()
    assert len(learned) > 10
    assert learned <= served
