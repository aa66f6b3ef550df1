"""The debiased metric: unbiased by its definition, and right about orders in a world of known examination.

And the shown order as a baseline, in what `validate`, `train` and `uplift` say.
"""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from examined import SHOWN, USERS, Examined, examined, lists_of, write_examined
from hypothesis import given, settings
from hypothesis import strategies as st
from world import groups_of, write_world

from features.pairing.examination import PARTS, Examination
from features.pairing.exposure import Places
from features.pairing.groups import Groups
from features.pairing.pairs import Pairs, make_pairs, weight_table
from features.schema import DAY, F64
from features.settings import PairingSettings
from ranker.cli.main import cli
from ranker.metrics.debiased import LEAST, Debiasing
from ranker.metrics.pair_accuracy import pair_accuracy
from ranker.metrics.shown import Shown, shown_lines

GRADES = ("skip", "listen", "like")
END = 14 * DAY


@given(st.integers(2, 4), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_both_sums_are_on_average_those_of_a_log_where_all_is_looked_at(n: int, seed: int) -> None:
    """Over every outcome of a list by its chance: which grades, and which places are looked at."""
    rng = np.random.default_rng(seed)
    chance, grades = rng.uniform(LEAST, 1, n), rng.dirichlet(np.ones(3), n)
    table = np.triu(rng.uniform(0.1, 3, (4, 4)), 1).T  # a weight for each better grade over each worse one
    score = rng.integers(0, 3, n).astype(float)
    full, found = np.zeros(2), np.zeros(2)
    for liked in itertools.product(range(3), repeat=n):
        likely = np.prod(grades[np.arange(n), liked])
        full += likely * sums(list(liked), np.ones(n), table, score)
        for seen in itertools.product((0, 1), repeat=n):
            by_place = np.prod(np.where(seen, chance, 1 - chance))
            clicked = [grade * looked for grade, looked in zip(liked, seen, strict=True)]
            found += likely * by_place * sums(clicked, chance, table, score)
    np.testing.assert_allclose(found, full, rtol=1e-9)


def debiasing(groups: Groups, table: F64, chance: F64) -> Debiasing:
    """The groups' row k stands at place k + 1, that is looked at with chance k."""
    n, one = len(chance), np.ones(len(chance))
    known = Examination(
        first=np.arange(1, n + 1), chance=chance, without=np.tile(chance, (PARTS, 1)), low=one, high=one, drawn=True,
        impressions=n, power=1.0, power_low=1.0, power_high=1.0,
    )  # fmt: skip
    return Debiasing.of(groups, table, known, np.arange(1, n + 1).astype(np.float32))


def sums(grades: list[int], chance: F64, table: F64, score: F64) -> F64:
    found = debiasing(groups_of(grades), table, chance).measure(score)
    np.testing.assert_allclose(found.without, np.tile([found.right.sum(), found.total.sum()], (PARTS, 1)))
    return np.array([found.right.sum(), found.total.sum()])


@given(st.lists(st.lists(st.sampled_from([-1, 0, 1, 2]), max_size=6), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_where_every_place_is_looked_at_it_is_pair_accuracy(members: list[list[int]], seed: int) -> None:
    groups, rng = groups_of(*members), np.random.default_rng(seed)
    table, score = weight_table({}, GRADES, negatives=False), rng.integers(0, 4, len(groups.grade)).astype(float)
    score[score == 3] = np.nan
    if not len(groups.grade):
        return
    found = debiasing(groups, table, np.ones(len(groups.grade))).measure(score)
    total = found.total.sum()
    mean = found.right.sum() / total if total else np.nan
    np.testing.assert_allclose(mean, pair_accuracy(score, shown_pairs(groups, table)).value, rtol=1e-6)


def shown_pairs(groups: Groups, table: F64) -> Pairs:
    pairs = make_pairs(groups, table)
    return pairs.select(~pairs.sampled)


def test_places_that_are_hardly_looked_at_are_left_out() -> None:
    groups, table = groups_of([1, 0], [1, 0]), weight_table({}, GRADES, negatives=False)
    score = np.array([1.0, 0, 0, 1])
    for chance, want, left_out in ((0.1, 2 / 12, 0), (0.049, 1, 0.25), (np.nan, 1, 0.25)):
        found = debiasing(groups, table, np.array([0.5, 1, chance, 1]))
        measured = found.measure(score)
        assert measured.right.sum() / measured.total.sum() == pytest.approx(want)
        assert measured.reported()["remark"] == "it takes pairs of two users or more"
        assert found.left_out == left_out


def shown_of(world: Examined, **asked: Any) -> tuple[Shown, F64]:
    """Return what the places of the world's lists say, and the plain weights' table."""
    groups, table = lists_of(world, world.log.grade), weight_table({}, ("skip", "click"), negatives=False)
    pairs = make_pairs(groups, table)
    found = Shown.of(groups, pairs, table, world.places, world.log, END, PairingSettings(**asked))
    assert found is not None
    return found, table


def with_bot(world: Examined, share: float) -> Examined:
    """Return the world with a share of its lists as one user's who likes all that is shown."""
    bots = np.repeat(np.random.default_rng(0).random(world.lists) < share, SHOWN)
    user = np.where(bots, USERS, world.log.user).astype(np.int32)
    log = replace(world.log, user=user, grade=np.where(bots, 1, world.log.grade).astype(np.int8))
    return world._replace(log=log)


def test_a_user_who_likes_all_wherever_it_stands_leaves_no_figure_and_is_told() -> None:
    world = examined(11, power=1.5, lists=4000, luck=30.0)
    own, _ = shown_of(world)
    assert own.reported({"truth": world.worth})["debiased"]["truth"]["remark"] == ""
    found, _ = shown_of(with_bot(world, 0.3))
    report = found.reported({"truth": world.worth})
    assert report["debiased"]["truth"].items() >= {"pair_accuracy": None, "ci95": [None, None]}.items()
    said = "\n".join(shown_lines(report, {"truth": "truth"}))
    assert "shown order -, truth -" in said
    who = r"(one user takes|[\d,]+ users \(one of them \d+ % of it\) take)"
    assert re.search(rf"\n  no debiased figure where - stands: {who} back \d+ %", said)
    assert said.count("where - stands") == 1
    old = report["debiased"]["truth"] | {"pair_accuracy": 0.8}  # as bundles of before have it, without a remark
    del old["remark"]
    assert "truth -" in "\n".join(
        shown_lines(report | {"debiased": report["debiased"] | {"truth": old}}, {"truth": "truth"})
    )


@pytest.mark.parametrize("kind", [{"luck": 30.0}, {"drawn": 0.9}], ids=["luck", "drawn"])
def test_the_true_order_is_better_than_the_shown_one_though_plain_pairs_say_otherwise(kind: dict[str, float]) -> None:
    world = examined(11, power=1.5, lists=20_000, **kind)
    shown, table = shown_of(world, position_power=0.5)
    report = shown.reported({"truth": world.worth})
    plain, debiased = report["pair_accuracy"], report["debiased"]
    assert plain["shown_order"] > plain["truth"] + 0.05
    assert debiased["truth"]["ci95"][0] > debiased["shown_order"]["ci95"][1]
    # What both would have reached, had all places been looked at, is known here.
    assert shown.debiasing is not None
    everything = lists_of(world, world.liked)
    looked_at = ~np.isnan(shown.debiasing.counts[0])[shown.debiasing.place]
    pairs = make_pairs(everything, table)
    pairs = pairs.select(looked_at[pairs.winner] & looked_at[pairs.loser])
    for name, score in (("truth", world.worth), ("shown_order", shown.order)):
        low, high = debiased[name]["ci95"]
        assert low < pair_accuracy(score, pairs).value < high
        assert high - low < 0.1
    assert report["examination"]["power"] == pytest.approx(1.5, abs=0.15)
    text = "\n".join(shown_lines(report, {"truth": "truth"}))
    assert "position_power nearest to it is 1." in text
    assert "position_power = 0.5 is set" in text
    assert "no fair rival" in text
    assert ("[events] propensity" in text) == ("drawn" in kind)
    assert ("no propensity is known" in text) != ("drawn" in kind)


def test_pairs_of_unknown_places_are_left_out_and_their_share_is_told() -> None:
    world = examined(12, lists=4000)
    every, _ = shown_of(world)
    assert every.comparable == 1
    position = world.places.position.copy()
    position[:: SHOWN + 1] = np.nan
    some, _ = shown_of(world._replace(places=Places(position, world.places.propensity)))
    left = ~np.isnan(position)
    assert len(some.pairs) == np.sum(left[every.pairs.winner] & left[every.pairs.loser])
    assert some.comparable == pytest.approx(len(some.pairs) / len(every.pairs), rel=1e-6)
    assert f"{100 * some.comparable:.1f} % with both places known" in shown_lines(some.reported({}), {})[0]
    groups, table = lists_of(world, world.log.grade), weight_table({}, ("skip", "click"), negatives=False)
    nowhere = Places(np.full_like(position, np.nan), world.places.propensity)
    pairs = make_pairs(groups, table)
    for places in (None, nowhere):
        assert Shown.of(groups, pairs, table, places, world.log, END, PairingSettings()) is None


def test_the_commands_print_the_shown_order_and_write_it(tmp_path: Path) -> None:
    toml = write_examined(tmp_path, examined(13, lists=4000))
    runner = CliRunner()
    said = runner.invoke(cli, ["validate", str(toml)])
    assert said.exit_code == 0, said.output
    assert "on the booster's validation slice" in said.output
    assert "PairAccuracy of shown pairs: shown order 0." in said.output
    assert "position_power = 0.5 is set" in said.output
    said = runner.invoke(cli, ["train", str(toml), "--out", str(tmp_path / "bundle")])
    assert said.exit_code == 0, said.output
    assert "debiased, as if all places were looked at: shown order 0." in said.output
    measured = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["measured"]
    found = measured["shown_order"]
    assert found["pair_accuracy"]["ours"] == pytest.approx(measured["pair_accuracy"], abs=1e-6)
    assert found["pair_accuracy"]["popularity"] == pytest.approx(measured["popularity"], abs=1e-6)
    assert found["debiased"]["ours"]["ci95"][0] < found["debiased"]["ours"]["pair_accuracy"]
    said = runner.invoke(cli, ["bundle", "show", str(tmp_path / "bundle")])
    assert "debiased, as if all places were looked at: shown order 0." in said.output
    said = runner.invoke(cli, ["uplift", str(toml), "--plugin", "noise", "--out", str(tmp_path / "report")])
    assert said.exit_code == 0, said.output
    report = json.loads((tmp_path / "report" / "uplift.json").read_text())
    of = report["shown_order"]
    assert of["pair_accuracy"]["without"] == pytest.approx(report["without"], abs=1e-6)
    assert of["pair_accuracy"]["shown_order"] == pytest.approx(found["pair_accuracy"]["shown_order"])
    uplift = of["debiased"]["uplift"]
    with_, without = (of["debiased"][arm]["pair_accuracy"] for arm in ("with", "without"))
    assert uplift["relative_uplift"] == pytest.approx(with_ / without - 1)
    assert uplift["ci95"][0] < 0 < uplift["ci95"][1]  # of a column of noise
    assert "debiased (examination)" in said.output


def test_a_log_without_positions_says_nothing_of_them(tmp_path: Path) -> None:
    toml = write_world(tmp_path)
    said = CliRunner().invoke(cli, ["validate", str(toml)])
    assert "shown order" not in said.output
    assert "PairAccuracy of shown pairs: popularity 0." in said.output


NEWS = """
name = "news"
[events]
source = "clicks.parquet"
ts = "make_timestamp(ts)"
[items]
source = "items.parquet"
[items.columns]
published = "published"
expires = "published + 86400.0"
[[grades]]
name = "click"
when = "true"
[ranker]
plugins = []
[booster]
trees = 20
[pairing]
negatives = 4
"""


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clicks of 20 days on items that come every hour and are clicked for half a day."""
    import duckdb

    folder = tmp_path_factory.mktemp("news")
    duckdb.sql(f"""
        COPY (SELECT range AS item_id, range * 3600.0 AS published FROM range(480)) TO '{folder}/items.parquet';
        SELECT setseed(0.5);
        COPY (SELECT (random() * 200)::INT AS user_id, greatest(0, (ts / 3600e6 - 12 * random() ** 2)::INT) AS item_id,
            ts::BIGINT AS ts FROM (SELECT random() * 480 * 3600e6 AS ts FROM range(12000))) TO '{folder}/clicks.parquet'
    """)
    return folder


@pytest.mark.parametrize(
    ("sampler", "easy"),
    [
        ("", True),
        ('sampler = "uniform"', True),
        ('sampler = "recent"\nsampler_window = "12h"', False),
        ('sampler = "in_catalogue"\navailable_from = "published"\navailable_until = "expires"', False),
    ],
)
def test_losers_that_freshness_alone_tells_are_told(news: Path, sampler: str, easy: bool) -> None:
    (news / "pairlift.toml").write_text(NEWS + sampler)
    said = CliRunner().invoke(cli, ["validate", str(news / "pairlift.toml")])
    assert said.exit_code == 0, said.output
    name = sampler.split('"')[1] if sampler else "popularity"
    assert f"sampled pairs (losers by sampler = '{name}'): popularity 0." in said.output
    assert ("freshness alone tells these losers" in said.output) == easy


def test_training_on_drawn_losers_says_how_they_were_drawn(news: Path, tmp_path: Path) -> None:
    (news / "pairlift.toml").write_text(NEWS + 'sampler = "recent"\nsampler_window = "12h"')
    runner = CliRunner()
    said = runner.invoke(cli, ["train", str(news / "pairlift.toml"), "--out", str(tmp_path / "bundle")])
    assert said.exit_code == 0, said.output
    measured = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["measured"]
    line = f"sampled pairs (losers by sampler = 'recent'): ours {measured['pair_accuracy']:.4f}, popularity 0."
    assert line in said.output
    assert "shown_order" not in measured
    assert line in runner.invoke(cli, ["bundle", "show", str(tmp_path / "bundle")]).output
