"""What a plugin brings to lists: in a world of known truth a column that knows gains, noise does not; and parity."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, Self

import leaky
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from listworld import ListWorld, make_list_world, write_list_world
from served import pairlift
from world import write_world

from features.baselines import Noise
from features.plugin import FitData
from features.schema import F32, Requests
from features.state.histories import Histories
from ranker.config import load_config
from ranker.lists.answers import ask, patient
from ranker.lists.worth import top_hits, worth
from ranker.pipeline import Pipeline
from ranker.training.arms import Arms
from ranker.training.measured import bundle_at_cut, past_of
from ranker.training.plugins import plugin_stage
from ranker.training.prepared import prepare
from ranker.training.wanted import digest_of, wanted_stage
from ranker.uplift import lists as module
from ranker.uplift.lists import LIST_FIGURES, _arm, list_uplift

SMALL = """
[booster]
trees = 60
stop_after = 10
[uplift]
seeds = [0, 1, 2]
fits = 2
"""


@cache
def small_world() -> ListWorld:
    return make_list_world(3, n_users=500, n_items=300)


class Truth:
    """A column of what is true of the list world: how likely the user wants the item."""

    columns: tuple[str, ...] = ("chance",)

    def __init__(self) -> None:
        self.user, self.item = np.empty(0, np.int64), np.empty(0, np.int64)

    def fit(self, data: FitData) -> None:
        """Learn which of the world's users and items the catalogue's are."""
        world = small_world()
        self.user, self.item = (
            world.users_of(data.catalog.user_ids),
            world.items_of(data.catalog.item_ids, np.arange(data.catalog.n_items)),
        )

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1]."""
        owner = requests.row_request()
        user, when = self.user[requests.user[owner]], requests.as_of[owner]
        return small_world().chance(user, self.item[requests.item], when)[:, None].astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write what was learned."""
        (folder / "truth.json").write_text(json.dumps([self.user.tolist(), self.item.tolist()]))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read it."""
        plugin = cls()
        plugin.user, plugin.item = map(np.array, json.loads((folder / "truth.json").read_text()))
        return plugin


@pytest.fixture(autouse=True)
def fewer_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEEDS", 2)


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Arms:
    """The log of the small world, with a plugin of each kind."""
    more = SMALL + "".join(
        f'[plugins.{kind.__name__.lower()}]\nclass = "{leaky.plugin_of(kind)}"\n' for kind in (Truth, Noise)
    )
    config = load_config(write_list_world(tmp_path_factory.mktemp("lists"), small_world(), more=more))
    return Arms.of(prepare(config))


def found_of(arms: Arms, name: str) -> dict[str, Any]:
    prepared = arms.prepared
    plugins = [plugin_stage(prepared, name, seed) for seed in prepared.config.uplift.fit_seeds]
    return list_uplift(prepared, name, plugins, [arms.plugin_columns(name, plugin) for plugin in plugins])


def test_a_column_that_knows_the_truth_gains(arms: Arms) -> None:
    found = found_of(arms, "truth")
    assert (found["fits"], found["seeds"], found["remark"]) == (2, [0, 1], "")
    assert np.shape(found["trees"]["with"]) == (2, 2)
    assert np.shape(found["trees"]["without"]) == (1, 2)
    for figure in LIST_FIGURES:
        of = found[figure]
        assert of["above_zero"]
        assert of["relative_uplift"] == pytest.approx(of["with"] / of["without"] - 1)
        assert of["ci95"][0] > 0.05
    assert found["reached"]["with"] == pytest.approx(
        found["reached"]["without"], rel=1e-12
    )  # it has no vectors, so no source is its


def test_noise_does_not(arms: Arms) -> None:
    found = found_of(arms, "noise")
    for figure in LIST_FIGURES:
        assert not found[figure]["above_zero"]
        assert abs(found[figure]["relative_uplift"]) < 0.1


def test_the_source_of_a_plugin_is_there_with_it_alone(arms: Arms) -> None:
    found = found_of(arms, "als")
    assert found["reached"]["with"] > found["reached"]["without"]


def test_the_lists_are_those_of_a_server_at_the_cut(arms: Arms) -> None:
    prepared = arms.prepared
    plugins = {"als": plugin_stage(prepared, "als", 0)}
    columns = arms.served_columns(plugins)
    who = past_of(prepared).asked(prepared.split.t2, prepared.split.t3).drawn(60, 0)
    found = _arm(prepared, who, "als", plugins, columns, 2**30)
    assert found is not None
    wanted = wanted_stage(prepared, plugins, digest_of(columns, plugins), 0, 2**30, forests=1)
    pipeline = Pipeline(patient(bundle_at_cut(prepared, plugins, arms.fit("als", columns, 0), wanted)))
    served = ask(pipeline, who, 10)
    pipeline.close()
    for figure, want in worth(served.lists, who, (10,)).items():
        if figure in LIST_FIGURES:
            np.testing.assert_allclose(found.worth[figure][0, 0], want)
    np.testing.assert_allclose(found.reached[0], served.reached / who.wanted)


def test_a_second_run_fits_nothing(arms: Arms, monkeypatch: pytest.MonkeyPatch) -> None:
    first = found_of(arms, "noise")
    monkeypatch.setattr("ranker.training.wanted.fit_booster", None)
    assert found_of(arms, "noise") == first


def test_the_report_has_lists_and_the_table_shows_them(tmp_path: Path) -> None:
    status, said = pairlift("uplift", write_world(tmp_path), "--plugin", "als", "--out", tmp_path)
    assert status == 0, said
    report = json.loads((tmp_path / "uplift.json").read_text())
    assert report["format"] == 7
    assert report["lists"]["recall@10"]["ci95"][0] is not None
    for label in LIST_FIGURES.values():
        assert re.search(rf"^  list {label} +\d\.\d{{4}} +\d\.\d{{4}} +[+-].* %.*95 %", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ('[lists]\nwanted = "best"', "nobody wanted an item that is new to them in the test"),
        ("[sources]\npopular = false\ncooccurrence = false", "without the plugin, the sources propose nothing"),
    ],
)
def test_where_there_is_nothing_to_compare_the_report_says_so(tables: str, says: str, tmp_path: Path) -> None:
    toml = write_world(tmp_path)
    best = '[[grades]]\nname = "best"\nwhen = "play > 2"\n[pairing]'
    toml.write_text(toml.read_text().replace("[pairing]", best) + tables)
    status, said = pairlift("uplift", toml, "--plugin", "noise", "--out", tmp_path)
    assert status == 0, said
    assert f"lists of Recommend: {says}" in said


def test_a_leak_is_not_measured_on_lists(tmp_path: Path) -> None:
    toml = write_world(tmp_path)
    toml.write_text(f'{toml.read_text()}[plugins.tried]\nclass = "{leaky.plugin_of(leaky.WholeLog)}"\n')
    status, said = pairlift("uplift", toml, "--plugin", "tried", "--out", tmp_path)
    assert status == 1
    assert "lists of Recommend: not measured, for the plugin leaks" in said


@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=8), max_size=4), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_the_best_rows_are_those_of_a_stable_sort(users: list[list[tuple[int, bool]]], k: int) -> None:
    rows = [row for user in users for row in user]
    offsets = np.cumsum([0, *map(len, users)])
    found = top_hits(np.array([s for s, _ in rows], float), np.array([h for _, h in rows], bool), offsets, k)
    for row, user in zip(found.tolist(), users, strict=True):
        want = [hit for _, hit in sorted(user, key=lambda of: -of[0])][:k]
        assert row == want + [False] * (k - len(want))
