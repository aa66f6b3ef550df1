"""`pairlift offpolicy` on a log that a bundle's own draws made, in a world where the value of every list is known."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served import pairlift
from world import OTHER, OWN, make_world, write_world

from features.pairing.split import iso
from features.rows import assemble
from features.schema import GIB, MINUTE
from ranker.bundle import load_bundle
from ranker.config import load_config, wanted_floor
from ranker.offpolicy.logged import GAPS, SOME_UNKNOWN, drawn_lists
from ranker.offpolicy.report import _bundle, offpolicy_report, refusal
from ranker.offpolicy.target import Target
from ranker.pipeline import Pipeline
from ranker.request import Request
from ranker.settings import RuleSettings
from ranker.train import train
from ranker.training.prepared import group_log

EXTRA = "[sources]\nexclude_seen = false\n[exploration]\nshare = 1.0\ntemperature = 1.0\ntop = 40\n"
MAPPED = 'request_id = "request"\nposition = "position"\npropensity = "propensity"\n'
LISTS, K = 10, 2


@dataclass
class Drawn:
    folder: Path
    rows: pa.Table  # of the draws
    end: int  # µs, of the log that the bundle was trained on

    def toml(self, name, sql="SELECT * FROM drawn", mapped=MAPPED, t2=None):
        """A TOML whose log is the old one and what is selected of the draws."""
        drawn = self.rows  # noqa: F841  (DuckDB reads it by its name)
        place = self.folder / name
        place.mkdir()
        old = f"(SELECT user_id, item_id, ts, play, source, NULL AS request FROM '{self.folder}/log.parquet')"
        duckdb.sql(f"COPY (SELECT * FROM {old} UNION ALL BY NAME ({sql}) ORDER BY ts) TO '{place}/log.parquet'")
        text = (self.folder / "pairlift.toml").read_text().replace("[events.feedback]", f"{mapped}[events.feedback]")
        times = f"[split]\nt1 = 0.4\nt2 = {t2 or iso(self.end)[:19]}Z\n"
        (place / "pairlift.toml").write_text(text.replace("[split]", "[unused]") + times)
        return place / "pairlift.toml"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder, world = tmp_path_factory.mktemp("offpolicy"), make_world(7, n_users=60, requests_per_user=20)
    config = write_world(folder)
    log = pq.read_table(folder / "log.parquet")
    pq.write_table(log.append_column("source", log["item_id"].combine_chunks()[::-1]), folder / "log.parquet")
    text = config.read_text().replace("[events.feedback]", 'source_item = "source"\n[events.feedback]')
    config.write_text(f"{text}{EXTRA}")
    train(load_config(config), folder / "bundle")
    bundle, rng = load_bundle(folder / "bundle"), np.random.default_rng(0)
    pipeline, columns = (
        Pipeline(bundle),
        {name: [] for name in ("user_id", "item_id", "ts", "play", "source", "request")},
    )
    columns |= {"position": [], "propensity": []}
    for number in range(60 * LISTS):
        user, as_of = number % 60, bundle.state.end + number * MINUTE
        source = number % len(bundle.state.catalog.item_ids)
        request = Request(
            user, as_of, state=bundle.state, request_id=f"r{number}", may_explore=True, source_item=source
        )
        answer = pipeline.recommend(request, K)
        for place, (item, chance) in enumerate(zip(answer.item, answer.explored.propensity, strict=True)):
            own = world.user_taste[user] == world.item_taste[item]
            play = rng.choice([0.1, 0.6, 1.0], p=OWN if own else OTHER)
            row = (user, int(item), as_of + place, play, source, f"r{number}", place + 1, chance)
            for name, value in zip(columns, row, strict=True):
                columns[name].append(value)
    pipeline.close()
    return Drawn(folder, pa.table(columns), bundle.state.end)


@pytest.fixture(scope="module")
def whole(drawn):
    return load_config(drawn.toml("whole"))


def truth(drawn, config, explored):
    """What one item of the bundle's best orders, or two of its draws, get on average: tastes are known."""
    made = group_log(config)
    lists = drawn_lists(made, wanted_floor(config), made.split.t2, made.split.t3, whole=True)
    target = Target.of(drawn.folder / "bundle", made, int(lists.requests.as_of[0]), GIB)
    world, pipeline, total = make_world(7, n_users=60, requests_per_user=20), Pipeline(target.bundle), 0.0
    catalog = target.bundle.state.catalog
    for k in range(len(lists.requests)):
        answer = pipeline.recommend(Request.of(lists.requests, k, pipeline.state), 40)
        user = int(catalog.user_ids[lists.requests.user[k]])
        own = world.user_taste[user] == world.item_taste[catalog.item_ids[answer.item]]
        worth = np.where(own, 1 - OWN[0], 1 - OTHER[0])
        p = np.exp(answer.score - answer.score[0])
        p /= p.sum()
        second = [(np.delete(p, a) / (1 - p[a])) @ np.delete(worth, a) for a in range(len(p))]
        total += p @ (worth + second) if explored else worth[0]
    pipeline.close()
    return total / len(lists.requests)


def estimates(drawn, config, **options):
    return offpolicy_report(config, [drawn.folder / "bundle"], **options)["bundles"][0]["estimates"]


def near(known, ci95):
    """Whether an interval holds a value if it is half as wide again, 99.7 % in place of 95 %."""
    low, high = ci95
    return abs(known - (low + high) / 2) < 1.5 * (high - low) / 2


def test_the_intervals_hold_the_value_of_the_best_orders(drawn, whole):
    known, part = truth(drawn, whole, explored=False), estimates(drawn, whole, places=1)["cascade"]
    assert not part["refused"]
    for name in ("ips", "snips", "dr"):
        assert near(known, part[name]["ci95"]), name
    assert part["mean_weight_ci95"][0] < 1 < part["mean_weight_ci95"][1]
    assert part["effective_lists"] < 60 * LISTS


def test_the_intervals_hold_the_value_of_the_bundles_own_draws(drawn, whole):
    known, parts = truth(drawn, whole, explored=True), estimates(drawn, whole, explored=True)
    for kind in ("cascade", "list"):
        for name in ("ips", "snips", "dr"):
            assert near(known, parts[kind][name]["ci95"]), (kind, name)
    width = {name: np.diff(parts["list"][name]["ci95"])[0] for name in ("ips", "dr")}
    unshown = K * parts["list"]["unshown"]  # which moves one end of the first, and both of the second
    assert width["dr"] - 2 * unshown < width["ips"] - unshown


def test_the_command_prints_and_writes_what_it_found_or_why_it_is_not_known(drawn, whole):
    out = whole.path.parent / "out"
    code, said = pairlift("offpolicy", whole.path, drawn.folder / "bundle", "--places", 1, "--out", out)
    assert code == 0
    assert "of 60 users (their first 1 places) whose order was drawn" in said
    assert "value: items of a list that were wanted (listen or like); logged" in said
    assert "cascade: by the product of the propensities down to each item" in said
    report = json.loads((out / "offpolicy.json").read_text())
    assert report["format"] == 1
    assert report["bundles"][0]["estimates"]["list"]["dr"]["gain"] is not None
    assert report["made"]["command"].startswith("pairlift ")
    assert "<h1>What would the lists of bundle have got?</h1>" in (out / "report.html").read_text()


def test_lists_that_are_not_whole_are_left_out_and_counted(drawn):
    sql = """SELECT * REPLACE (CASE WHEN request = 'r3' AND position = 2 THEN NULL ELSE propensity END AS propensity)
        FROM drawn WHERE NOT (request IN ('r1', 'r2') AND position = 1)"""
    made = group_log(load_config(drawn.toml("gaps", sql)))
    lists = drawn_lists(made, 1, made.split.t2, made.split.t3, whole=True)
    assert lists.left_out == {GAPS: 2, SOME_UNKNOWN: 1}
    assert len(lists.requests) == 60 * LISTS - 3
    assert lists.place.tolist() == [0, 1] * len(lists.requests)
    single = drawn_lists(made, 1, made.split.t2, made.split.t3, whole=False)
    assert single.left_out == {SOME_UNKNOWN: 1}


REPLACED = "SELECT * REPLACE ({} AS propensity) FROM drawn"


@pytest.mark.parametrize(
    ("name", "sql", "mapped", "says"),
    [
        ("unmapped", "SELECT * FROM drawn", MAPPED.replace("propensity =", "surface ="), "propensity is not mapped"),
        ("zero", REPLACED.format("IF(request = 'r7', 0, propensity)"), MAPPED, "a chance outside (0, 1] in 2 rows"),
        ("large", REPLACED.format("IF(request = 'r7', 1.5, propensity)"), MAPPED, "a chance outside (0, 1] in 2 rows"),
        ("nan", REPLACED.format("IF(request = 'r7', 'nan'::DOUBLE, propensity)"), MAPPED, "outside (0, 1] in 2 rows"),
        ("null", REPLACED.format("NULL::DOUBLE"), MAPPED, "no event from"),
        ("fixed", REPLACED.format("1.0"), MAPPED, "propensity: 1 for all of 1,200 items, so the log shows what one"),
        ("alone", "SELECT * REPLACE (NULL AS position) FROM drawn", MAPPED, "none is complete (600: a place of"),
    ],
)
def test_a_log_that_can_tell_nothing_is_refused(drawn, name, sql, mapped, says):
    code, said = pairlift("offpolicy", drawn.toml(name, sql, mapped), drawn.folder / "bundle")
    assert code == 2
    assert says in said


def test_propensities_that_are_others_are_found_out(drawn):
    config = load_config(drawn.toml("halved", REPLACED.format("propensity / 2")))
    code, said = pairlift("offpolicy", config.path, drawn.folder / "bundle", "--places", 1)
    assert code == 0
    assert "not known: the mean weight is" in said
    assert "where 1 is due: [events] propensity is not the chance with which these lists were drawn" in said
    assert "snips" not in said


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        ((500, 0.0, 0.0, 0.0), "no overlap: nothing"),
        ((3.2, 0.9, 0.5, 1.2), "too few: the lists say as much as 3.2"),
        ((80, 0.4, 0.3, 0.5), "no overlap: the log shows only 40 %"),
        ((80, 1.5, 1.2, 1.8), "the mean weight is 1.50 where 1 is due"),
        ((80, 1.0, 0.8, 1.2), ""),
        ((80, 1.0, np.nan, np.nan), ""),
    ],
)
def test_why_weights_tell_nothing(figures, says):
    assert refusal(*figures).startswith(says)
    assert bool(says) == bool(refusal(*figures))


def test_chances_of_items_at_their_places_are_of_the_bundles_own_list(drawn, whole):
    made = group_log(whole)
    lists = drawn_lists(made, 1, made.split.t2, made.split.t3, whole=False)
    some = lists.select(np.arange(len(lists.requests)) < 50)
    target = Target.of(drawn.folder / "bundle", made, int(some.requests.as_of[0]), GIB)
    shows, pipeline = target.shows(some, explored=False, above=False), Pipeline(target.bundle)
    for k in range(50):
        answer = pipeline.recommend(Request.of(some.requests, k, pipeline.state), 2)
        rows = slice(some.requests.offsets[k], some.requests.offsets[k + 1])
        expected = (answer.item[some.place[rows]] == some.requests.item[rows]).astype(float)
        assert shows.chance[rows].tolist() == expected.tolist()
        assert shows.scored.mean[rows].tolist() == answer.score[some.place[rows]].tolist()
    pipeline.close()
    code, said = pairlift("offpolicy", whole.path, drawn.folder / "bundle", "--propensity", "place", "--explored")
    assert (code, "--explored with --propensity place" in said) == (2, True)


def test_rules_are_of_the_best_orders_and_not_of_the_draws_which_leave_them_out(drawn, whole):
    made = group_log(whole)
    lists = drawn_lists(made, 1, made.split.t2, made.split.t3, whole=True)
    some = lists.select(np.arange(len(lists.requests)) < 200)
    target = Target.of(drawn.folder / "bundle", made, int(some.requests.as_of[0]), GIB)
    catalog, config = target.bundle.state.catalog, target.bundle.config
    few = config.model_copy(update={"exploration": config.exploration.model_copy(update={"top": 8})})
    target = replace(target, bundle=replace(target.bundle, config=few))
    odd = ", ".join(f"'{one}'" for one in catalog.item_ids[1::2])
    rules = {"odd": RuleSettings(items=f"item_id IN ({odd})", bury=True)}
    ruled = replace(target, bundle=replace(target.bundle, config=few.model_copy(update={"rules": rules})))
    draws, ruled_draws = (one.shows(some, explored=True, above=True) for one in (target, ruled))
    assert draws.chance.tolist() == ruled_draws.chance.tolist()
    best, ruled_best = (one.shows(some, explored=False, above=True) for one in (target, ruled))
    buried = some.requests.item % 2 == 1
    assert (best.chance[buried] > 0).any()
    assert not ruled_best.chance[buried].any()


def test_only_the_test_is_read_and_nothing_that_a_bundle_has_learned_from(drawn, whole):
    later = iso(drawn.end + 60 * LISTS // 2 * MINUTE)[:19]
    made = group_log(load_config(drawn.toml("later", t2=later)))
    lists = drawn_lists(made, 1, made.split.t2, made.split.t3, whole=True)
    assert 0 < len(lists.requests) <= 60 * LISTS // 2
    assert (lists.requests.as_of >= made.split.t2).all()
    made = group_log(whole)
    every = drawn_lists(made, 1, made.split.t2, made.split.t3, whole=True)
    target = Target.of(drawn.folder / "bundle", made, int(every.requests.as_of[0]), GIB)
    assert target.since == drawn.end  # all that its own log has, for the lists came later
    assert Target.of(drawn.folder / "bundle", made, drawn.end - 1, GIB).since < drawn.end  # its t2
    learned = replace(target, since=int(lists.requests.as_of[0]))
    part = _bundle(drawn.folder, learned, every.until_place(1), "above", False)
    assert part["before"] == len(every.requests) - len(lists.requests)
    assert part["logged"]["lists"] == len(lists.requests)
    part = _bundle(drawn.folder, replace(target, since=made.split.t3), every, "above", False)
    assert part["refused"].startswith(f"all {len(every.requests)} lists are from before")


def test_a_bundle_is_read_in_the_codes_of_the_log(drawn, whole):
    """New users and items shift all codes, and change nothing of what the bundle would show of the old ones."""
    new = "SELECT -5 AS user_id, -7 AS item_id, ts, play, 'new' || ts AS request FROM drawn LIMIT 3"
    config = load_config(drawn.toml("new", f"SELECT * FROM drawn UNION ALL BY NAME ({new})"))
    found, beside = [], []
    for one in (whole, config):
        made = group_log(one)
        lists = drawn_lists(made, 1, made.split.t2, made.split.t3, whole=True)
        some = lists.select(np.arange(len(lists.requests)) < 40)
        target = Target.of(drawn.folder / "bundle", made, int(some.requests.as_of[0]), GIB)
        found.append(target.shows(some, explored=True, above=True).chance)
        spec = target.bundle.spec
        read = assemble(target.bundle.state, spec, some.requests)
        beside.append(read[:, spec.columns.index("source_item_cooccurrence")])
    np.testing.assert_allclose(*found, rtol=0.2)
    np.testing.assert_array_equal(*beside)
    assert (beside[0] > 0).any()


def test_a_bundle_of_another_meaning_is_refused(drawn, whole):
    text = whole.path.read_text().replace('when = "play < 0.3"', 'when = "play < 0.2"')
    (whole.path.parent / "other.toml").write_text(text)
    code, said = pairlift("offpolicy", whole.path.parent / "other.toml", drawn.folder / "bundle")
    assert code == 2
    assert "[[grades]] of" in said
    assert "are not what it was trained with" in said
