"""The report of lists: peers, the answers of the server's own path, figures, and what is said where lists are empty."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import N_ITEMS, N_USERS, graded_logs
from served import pairlift
from world import Parts, World, with_config, write_world

from features.errors import PairliftError
from features.pairing.groups import make_groups
from features.pairing.split import Split
from features.schema import DAY, F32, I32, MINUTE, Catalog, EventLog, Requests
from features.settings import PairingSettings
from features.state.histories import Histories
from features.state.store import State
from ranker.bundle import Bundle
from ranker.candidates.cooccurrence import Cooccurrence
from ranker.candidates.shortage import NOTHING, REMOVED
from ranker.candidates.source import Proposal
from ranker.lists.answers import ask, patient
from ranker.lists.asked import Asked
from ranker.lists.diverse import PLAIN
from ranker.lists.peers import Past, als_lists, factorised, fitted_als, popular, popular_lists
from ranker.lists.report import COMPARED, RECOMMEND, _both, _drawn, _Part, brief_report, lists_report
from ranker.lists.table import as_table, brief_lines
from ranker.lists.worth import worth
from ranker.metrics.interval import mean_interval
from ranker.pipeline import Pipeline
from ranker.request import Request
from ranker.settings import SourceSettings

LIKE = 2
SPLIT = Split(0, 20 * MINUTE, 40 * MINUTE, 61 * MINUTE, 0.2)


def past_of_log(log: EventLog, floor: int = 1, again: bool = False) -> Past:
    return Past(
        again=again,
        log=log,
        histories=Histories.build(log, N_USERS),
        catalog=Catalog(user_ids=np.arange(N_USERS), item_ids=np.arange(N_ITEMS)),
        groups=make_groups(log, PairingSettings(), SPLIT),
        split=SPLIT,
        floor=floor,
    )


def slowly_popular(log: EventLog, user: int, as_of: int, m: int, half_life: int | None, again: bool) -> list[int]:
    """The items with the highest decayed count of wanted events before as_of, without the user's own but `again`."""
    count, seen = [0.0] * N_ITEMS, set()
    for e in range(len(log)):
        if log.ts[e] < as_of:
            seen |= {int(log.item[e])} if log.user[e] == user else set()
            if log.grade[e] >= 1 and log.pairable[e] and log.item[e] >= 0:
                count[log.item[e]] += 2.0 ** (-(as_of - log.ts[e]) / half_life) if half_life else 1.0
    ordered = sorted(range(N_ITEMS), key=lambda i: (-round(count[i], 9), i))
    return [i for i in ordered if count[i] > 0 and (again or i not in seen)][:m]


@given(
    graded_logs(),
    st.sampled_from([None, 8 * MINUTE]),
    st.integers(1, 7),
    st.sampled_from(["first", "cut"]),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_popularity_equals_the_oracle(log: EventLog, half_life: int | None, m: int, at: str, again: bool) -> None:
    past = past_of_log(log, again=again)
    who = past.asked(SPLIT.t1, SPLIT.t3, at)  # type: ignore[arg-type]
    found = popular_lists(past, who, m, half_life)
    for k, row in enumerate(found.tolist()):
        want = slowly_popular(log, int(who.requests.user[k]), int(who.requests.as_of[k]), m, half_life, again)
        assert [i for i in row if i >= 0] == want
        assert row[len(want) :] == [-1] * (m - len(want))


@pytest.fixture(scope="module")
def past(world: World, parts: Parts) -> Past:
    return Past(
        log=world.log,
        histories=parts.state.histories,
        catalog=world.catalog,
        groups=parts.groups,
        split=parts.split,
        floor=1,
    )


@pytest.fixture(scope="module")
def bundle_at_cut(world: World, parts: Parts, bundle: Bundle) -> Bundle:
    table = Cooccurrence.build(world.log.until(parts.split.t2), world.catalog.n_items, 1)
    return patient(replace(bundle, cooccurrence=table))


@pytest.fixture(scope="module")
def pipeline(bundle_at_cut: Bundle) -> Iterator[Pipeline]:
    pipeline = Pipeline(bundle_at_cut)
    yield pipeline
    pipeline.close()


@pytest.fixture(scope="module")
def who(past: Past) -> Asked:
    return past.asked(past.split.t2, past.split.t3)


def without_the_future(past: Past, who: Asked) -> Past:
    """The same past without any event from the last as_of on."""
    log = past.log.until(int(who.requests.as_of.max()))
    return replace(past, log=log, histories=Histories.build(log, past.catalog.n_users))


def test_peers_see_nothing_from_the_request_on_and_nothing_that_the_user_has_seen(past: Past, who: Asked) -> None:
    one = who.select(np.array([int(who.requests.as_of.argmin())]))
    for choose in (popular, lambda p: factorised(p, popular(p).lists)):
        rows = [choose(p).lists(one, 30) for p in (past, without_the_future(past, one))]
        assert rows[0].tolist() == rows[1].tolist()
        lists = choose(past).lists(who, 30)
        for k, row in enumerate(lists.tolist()):
            r = who.requests
            before = past.log.item[(past.log.user == r.user[k]) & (past.log.ts < r.as_of[k])]
            assert not set(row) & set(before.tolist())


def test_als_orders_by_its_own_values_and_users_without_a_vector_get_the_other_list(past: Past, who: Asked) -> None:
    als = fitted_als(past, past.split.t2, alpha=5.0, seed=0)
    lists = als_lists(als, past.histories, who, 15, lambda some, m: np.full((len(some), m), 7, np.int32))
    for k, row in enumerate(lists.tolist()):
        request = Request(int(who.requests.user[k]), int(who.requests.as_of[k]), state=None)  # type: ignore[arg-type]
        values = als.values(request.requests(np.array([i for i in row if i >= 0], np.int32)), past.histories)[:, 0]
        assert (np.diff(values) <= 1e-6).all()
    stranger = replace(who.requests, user=np.full(len(who), -1, np.int32))
    cold = replace(who, requests=stranger)
    assert (als_lists(als, past.histories, cold, 3, lambda some, m: np.full((len(some), m), 7, np.int32)) == 7).all()


def test_what_peers_choose_is_the_best_on_the_validation_slice(past: Past) -> None:
    peer = popular(past)
    assert set(peer.tried) == {"7", "1", "3", "14", "30", "all"}
    name = "all" if peer.value is None else f"{peer.value:g}"
    assert peer.tried[name] == max(peer.tried.values())
    start = int(past.groups.of("booster", True).requests.as_of.min())
    who = past.asked(start, past.split.t2)
    found = popular_lists(past, who, 10, 3 * DAY)
    assert worth(found, who)["ndcg@10"].mean() == pytest.approx(peer.tried["3"])


def test_the_lists_are_those_of_the_server(pipeline: Pipeline, who: Asked) -> None:
    found = ask(pipeline, who, 12)
    for k in range(len(who)):
        request = Request(
            int(who.requests.user[k]),
            int(who.requests.as_of[k]),
            state=pipeline.state,
            surface=int(who.requests.surface[k]),
        )
        answer = pipeline.recommend(request, 12)
        assert found.lists[k, : len(answer.item)].tolist() == answer.item.tolist()
        assert found.masks[k, : len(answer.item)].tolist() == answer.sources.tolist()
        union = pipeline.recommend(request, 1000).item
        wanted = who.item[who.offsets[k] : who.offsets[k + 1]]
        assert found.candidates[k] == len(union)
        assert found.reached[k] == len(set(union.tolist()) & set(wanted.tolist()))
        for (source, _), lists in zip(pipeline.sources, found.alone.values(), strict=True):
            row = [i for i in lists[k].tolist() if i >= 0]
            ordered = source.propose(request, 1000).item.tolist()
            assert row == [i for i in ordered if i in row]
            assert all(i in row for i in union.tolist() if i in ordered[: len(row)])


def test_the_lists_as_of_the_cut_are_those_of_a_server_that_was_started_then(
    bundle_at_cut: Bundle, pipeline: Pipeline, past: Past
) -> None:
    who, state = past.asked(past.split.t2, past.split.t3, "cut"), bundle_at_cut.state
    then = State.build(past.log.until(past.split.t2), past.catalog, state.counters, state.grades)
    earlier = Pipeline(replace(bundle_at_cut, state=then))
    found, want = ask(pipeline, who, 20), ask(earlier, who, 20)
    earlier.close()
    assert found.lists.tolist() == want.lists.tolist()
    assert all((found.alone[name] == want.alone[name]).all() for name in want.alone)


class Fixed:
    """Proposes the same items to all."""

    name = "fixed"

    def __init__(self, *item: int) -> None:
        self.item = np.array(item, np.int32)

    def propose(self, request: Request, limit: int) -> Proposal:
        return Proposal(self.item[:limit], self.score)

    def score(self, item: I32) -> F32:
        return np.zeros(len(item), np.float32)


class Failing(Fixed):
    def propose(self, request: Request, limit: int) -> Proposal:
        raise OSError("gone")


def asked_with(bundle: Bundle, who: Asked, source: Fixed) -> tuple[dict[str, int], dict[str, int]]:
    """(reasons of empty lists, lanes that failed), each with how often, of one source alone."""
    pipeline = Pipeline(bundle, sources=[(source, SourceSettings(deadline="20s"))])
    found = ask(pipeline, who, 5)
    pipeline.close()
    empty, lanes = list(found.empty.values()), [lane for row in found.degraded.values() for lane in row]
    assert len(empty) == (found.lists[:, 0] < 0).sum()
    return {why: empty.count(why) for why in empty}, {lane: lanes.count(lane) for lane in lanes}


def test_an_empty_list_says_why(bundle_at_cut: Bundle, past: Past, who: Asked) -> None:
    assert asked_with(bundle_at_cut, who, Fixed()) == ({NOTHING: len(who)}, {})
    r = who.requests
    seen = int(past.log.item[(past.log.user == r.user[0]) & (past.log.ts < r.as_of[0])][0])
    assert asked_with(bundle_at_cut, who.select(np.array([0])), Fixed(seen)) == ({REMOVED: 1}, {})
    assert asked_with(bundle_at_cut, who, Failing(3)) == ({NOTHING: len(who)}, {"sources.fixed": len(who)})


def test_the_report_of_a_world(pipeline: Pipeline, past: Past) -> None:
    further = {"next item": lambda who, m: np.full((len(who), m), -1, np.int32)}
    report = lists_report(pipeline, past, most=25, further=further)
    json.dumps(report, allow_nan=False)
    assert report["wanted"] == ["listen", "like"]
    for part in report["parts"].values():
        everyone = part["all"]
        assert everyone["users"] == min(25, part["eligible_users"])
        assert part["with_history"]["users"] + part["without_history"]["users"] == everyone["users"]
        names = ["popular", "als", "next item", *(f"source {s}" for s in pipeline.source_names)]
        assert list(everyone["less"]) == names
        assert list(everyone["lists"]) == [RECOMMEND, *names]
        own, best = everyone["lists"][RECOMMEND], everyone["union"]["best_order"]
        for figure in COMPARED:
            assert own[figure]["mean"] <= best[figure]["mean"]
            peer = everyone["best_peer"][figure]
            assert peer["mean"] == pytest.approx(own[figure]["mean"] - everyone["lists"][peer["name"]][figure]["mean"])
            assert everyone["lists"][peer["name"]][figure]["mean"] == max(
                everyone["lists"][name][figure]["mean"] for name in names
            )
        assert everyone["lists"]["next item"]["empty"] == everyone["users"]
        assert sum(of["share"] for of in everyone["sources"].values()) >= 1
    assert part["all"]["lists"][RECOMMEND]["recall@10"]["mean"] > 0.1
    text = as_table(report)
    assert "drawn of" in text
    assert "best of the union" in text
    assert f"each user's mean of the two times, {report['both']['users']:,} users" in text


def test_what_users_have_met_is_measured_as_it_is_served(bundle_at_cut: Bundle, past: Past) -> None:
    sources = bundle_at_cut.config.sources.model_copy(update={"exclude_seen": False})
    served, past = with_config(bundle_at_cut, sources=sources), replace(past, again=True)
    who = past.asked(past.split.t2, past.split.t3).select(np.arange(12))
    pipeline = Pipeline(patient(served))
    lists, met = ask(pipeline, who, 10).lists, 0
    for k in range(len(who)):
        request = Request.of(who.requests, k, pipeline.state)
        assert [i for i in lists[k].tolist() if i >= 0] == pipeline.recommend(request, 10).item.tolist()
        known = past.log.item[(past.log.user == request.user) & (past.log.ts < request.as_of)]
        later = (past.log.ts >= request.as_of) & (past.log.ts < past.split.t3) & (past.log.grade >= 1)
        wanted = past.log.item[(past.log.user == request.user) & later]
        assert set(who.item[who.offsets[k] : who.offsets[k + 1]].tolist()) == set(wanted.tolist())
        met += int(np.isin(lists[k], known).sum())
    assert met > 20
    als = fitted_als(past, past.split.t2, 5.0, 0, factors=4)
    popular_ones = popular_lists(past, who, 10, None)
    own = als_lists(als, past.histories, who.select(who.history > 0), 10, lambda *_: popular_ones, again=True)
    assert (own != als_lists(als, past.histories, who.select(who.history > 0), 10, lambda *_: popular_ones)).any()
    brief, report = brief_report(pipeline, past, most=12), lists_report(pipeline, past, most=12)
    assert brief["again"]
    assert report["again"]
    assert "recall@10  of lists of items met or not, as served: 0." in brief_lines(brief)[0]
    assert "lists of items that the user has met or not, as served; wanted: " in as_table(report)
    pipeline.close()


def test_both_is_each_users_mean_of_the_two_times(pipeline: Pipeline, past: Past) -> None:
    report = lists_report(pipeline, past, most=25)
    who = [_drawn(past.asked(past.split.t2, past.split.t3, at), 25, 0) for at in ("first", "cut")]
    asks = [ask(pipeline, some, 200) for some in who]
    own: dict[int, list[float]] = {}
    other: dict[int, list[float]] = {}
    for some, answers in zip(who, asks, strict=True):
        for k, user in enumerate(some.requests.user.tolist()):
            one, wanted = some.select(np.array([k])), set(some.item[some.offsets[k] : some.offsets[k + 1]].tolist())
            assert len(one) == 1
            for found, lists in ((own, answers.lists), (other, answers.alone["popular"])):
                hits = len(wanted & set(lists[k, :10].tolist()))
                found.setdefault(user, []).append(hits / min(len(wanted), 10))
    users = [user for user, twice in own.items() if len(twice) == 2]
    part = report["both"]
    assert 1 < part["users"] == len(users) < 26
    less = [(sum(own[user]) - sum(other[user])) / 2 for user in users]
    want = mean_interval(np.array(less))
    got = part["less"]["source popular"]["recall@10"]
    assert [got["mean"], *got["ci95"]] == pytest.approx(want)
    assert part["lists"][RECOMMEND]["recall@10"]["mean"] == pytest.approx(np.mean([sum(own[u]) / 2 for u in users]))
    for figure in COMPARED:
        peer = part["best_peer"][figure]
        assert part["lists"][peer["name"]][figure]["mean"] == max(
            of[figure]["mean"] for name, of in part["lists"].items() if name != RECOMMEND
        )
        assert peer == {"name": peer["name"], **part["less"][peer["name"]][figure]}


NAMED = (RECOMMEND, "one", "other")


@st.composite
def parts_of_users(draw: st.DrawFn) -> list[dict[int, dict[str, list[float]]]]:
    """Of each time, by user and list, what each figure is."""
    value = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=len(COMPARED), max_size=len(COMPARED))
    worth = st.fixed_dictionaries(dict.fromkeys(NAMED, value))
    return [draw(st.dictionaries(st.integers(0, 9), worth, max_size=8)) for _ in range(2)]


@given(parts_of_users())
@settings(max_examples=100, deadline=None)
def test_both_equals_the_oracle(parts: list[dict[int, dict[str, list[float]]]]) -> None:
    made = []
    for part in parts:
        users = sorted(part)
        worths = {
            name: {f: np.array([part[u][name][k] for u in users]) for k, f in enumerate(COMPARED)} for name in NAMED
        }
        made.append(_Part(np.array(users, np.int32), worths, {}))
    found, users = _both(made), [user for user in parts[0] if user in parts[1]]
    assert found["users"] == len(users)
    for k, figure in enumerate(COMPARED) if users else ():
        mean = {name: np.mean([part[u][name][k] for u in users for part in parts]) for name in NAMED}
        for name in NAMED:
            assert found["lists"][name][figure]["mean"] == pytest.approx(mean[name])
        peer = found["best_peer"][figure]
        assert mean[peer["name"]] == pytest.approx(max(mean["one"], mean["other"]))
        assert peer["mean"] == pytest.approx(mean[RECOMMEND] - mean[peer["name"]])
        assert found["less"]["one"][figure]["mean"] == pytest.approx(mean[RECOMMEND] - mean["one"])


def test_a_test_in_which_nobody_wanted_anything_is_refused_with_what_to_do(pipeline: Pipeline, past: Past) -> None:
    log = past.log
    grade = np.where(log.ts >= past.split.t2, np.minimum(log.grade, 1), log.grade).astype(np.int8)
    bored = replace(past, log=replace(log, grade=grade), floor=LIKE)
    with pytest.raises(PairliftError, match=r"nobody has an event of the grade 'like' or better.*\[lists\] wanted"):
        lists_report(pipeline, bored, most=10)


def test_a_catalogue_smaller_than_the_list_and_a_slice_without_wanted_items(past: Past, who: Asked) -> None:
    found = popular(past).lists(who, 500)
    assert (found[:, -1] == -1).all()
    start = int(past.groups.of("booster", True).requests.as_of.min())
    log = past.log
    grade = np.where((log.ts >= start) & (log.ts < past.split.t2), np.minimum(log.grade, 0), log.grade).astype(np.int8)
    silent = replace(past, log=replace(log, grade=grade))
    assert (popular(silent).value, popular(silent).tried) == (7, {})


def test_the_command(tmp_path: Path) -> None:
    config = write_world(tmp_path)
    config.write_text(config.read_text() + "\n[lists]\ndiversity = {weight = 0.8}\n")
    status, said = pairlift("lists", config, "--out", tmp_path / "out", "--users", 20)
    assert status == 0, said
    assert "Recommend less" in said
    report = json.loads((tmp_path / "out" / "lists.json").read_text())
    assert report["most_users"] == 20
    assert report["parts"]["cut"]["all"]["users"] == 20
    assert "diversity (weight 0.8): mean cosine of the first 10 " in said
    of, cost = report["parts"]["first"]["all"], report["diversity"]
    alike = [of["lists"][name]["similarity@10"]["mean"] for name in (RECOMMEND, PLAIN)]
    assert alike[0] < alike[1]
    assert PLAIN in of["less"]
    assert all(peer["name"] != PLAIN for peer in of["best_peer"].values())
    accuracy = cost["pair_accuracy"]
    assert accuracy["with"] < accuracy["without"]  # the scores know more than a mixture with unlikeness
    assert cost["difference"] == pytest.approx(accuracy["with"] - accuracy["without"])
    assert cost["ci95"][0] < cost["difference"] < cost["ci95"][1]


def test_the_same_users_are_drawn_where_the_eligible_differ() -> None:
    def asked_of(users: list[int]) -> Asked:
        n = len(users)
        requests = Requests(
            user=np.array(users, np.int32), as_of=np.zeros(n, np.int64), surface=np.full(n, -1, np.int16),
            offsets=np.arange(n + 1), item=np.zeros(n, np.int32),
        )  # fmt: skip
        return Asked(requests=requests, history=np.zeros(n, np.int64))

    some, all_of_them = asked_of(list(range(0, 1000, 2))), asked_of(list(range(1000)))
    few, many = (_drawn(who, most, 3).requests.user for who, most in ((some, 200), (all_of_them, 400)))
    assert len(few) == 200
    assert (np.diff(few) > 0).all()
    assert len(np.intersect1d(few, many)) > 150
    assert len(_drawn(some, 5000, 3)) == 500
