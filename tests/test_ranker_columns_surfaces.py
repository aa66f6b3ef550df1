"""Profiles of surfaces: which plugins are asked, in training as when it is served, how long, and the k of a list."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from served import serving
from world import write_world

from features.errors import PairliftError
from features.schema import F32, SECOND, Requests
from features.state.histories import Histories
from ranker.bundle import Bundle, load_bundle
from ranker.candidates.source import Proposal
from ranker.client import Client
from ranker.columns import full_matrix
from ranker.config import Config, load_config, read_config
from ranker.pipeline import Pipeline
from ranker.request import Request
from ranker.settings import SourceSettings
from ranker.train import train
from ranker.training.arms import Arms
from ranker.training.earlier_bundle import StartFrom, load_start
from ranker.training.plugins import served_plugins
from ranker.training.prepared import Prepared, prepare
from ranker.uplift.leaks import find_leaks

MAPPED = """
request_id = "request"
surface = "CASE request % 3 WHEN 0 THEN 'feed' WHEN 1 THEN 'mail' END"
"""
PROFILES = """
[surfaces.mail]
plugins = []
deadline = "0.03s"
k = 7
[surfaces.feed]
k = 4
"""


def written(folder: Path, profiles: str = PROFILES) -> Config:
    toml = write_world(folder, request=MAPPED, request_ids=True)
    toml.write_text(toml.read_text() + profiles)
    return load_config(toml)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(written(tmp_path_factory.mktemp("surfaces")))


@pytest.fixture(scope="module")
def bundle(prepared: Prepared) -> Bundle:
    train(prepared.config, prepared.config.folder / "bundle")
    return load_bundle(prepared.config.folder / "bundle")


def test_training_has_the_missing_values_that_a_call_has(prepared: Prepared, bundle: Bundle) -> None:
    columns = Arms.of(prepared).served_columns(served_plugins(prepared))
    requests = prepared.slices()["test"].requests
    mail = requests.surface[requests.row_request()] == prepared.catalog.surfaces.index("mail")
    values = columns.values["test"]
    assert np.isnan(values[mail]).all()
    assert np.isfinite(values[~mail]).any()  # of the feed, and of requests that name no surface
    pipeline = Pipeline(bundle)
    for k in range(0, len(requests), 15):
        one = requests.slice(k, k + 1)
        answer = pipeline.rank(replace(Request.of(requests, k, bundle.state), keep_values=True), one.item)
        assert not answer.degraded  # what the profile leaves out has not failed
        want = full_matrix(bundle.state, bundle.spec, bundle.plugins, one)[answer.index]
        assert answer.values is not None
        np.testing.assert_allclose(answer.values, want, rtol=1e-5, atol=1e-6)
    pipeline.close()


def test_leak_controls_read_the_values_that_the_rows_have(prepared: Prepared) -> None:
    plugins, arms = served_plugins(prepared), Arms.of(prepared)
    controls = find_leaks(prepared, "als", plugins["als"], arms.groups, [arms.plugin_columns("als", plugins["als"])])
    assert not controls["as_of"].leaks
    assert not controls["refit"].leaks


class Counted:
    """The bundle's plugin, which says what it was asked for."""

    blocks = False

    def __init__(self, plugin: object) -> None:
        self.plugin, self.columns, self.asked = plugin, plugin.columns, list[int]()  # type: ignore[attr-defined]

    def values(self, requests: Requests, histories: Histories) -> F32:
        self.asked += requests.surface.tolist()
        return np.asarray(self.plugin.values(requests, histories))  # type: ignore[attr-defined]


def test_a_plugin_that_is_left_out_is_not_asked(bundle: Bundle) -> None:
    counted = Counted(bundle.plugins["als"])
    pipeline = Pipeline(replace(bundle, plugins={"als": counted}))  # type: ignore[dict-item]
    for surface in (-1, 0, 1):
        pipeline.recommend(Request(3, bundle.state.end, state=bundle.state, surface=surface), 5)
    pipeline.close()
    feed = bundle.state.catalog.surfaces.index("feed")
    assert counted.asked == [-1, feed]


class Held:
    """A source that waits until it is let go."""

    name = "held"

    def __init__(self) -> None:
        self.free = threading.Event()

    def propose(self, request: Request, limit: int) -> Proposal:
        self.free.wait(20)
        return Proposal(np.arange(5, dtype=np.int32))


def test_a_surface_waits_as_long_as_it_says_and_nobody_else_pays(bundle: Bundle) -> None:
    held = Held()
    pipeline = Pipeline(bundle, [(held, SourceSettings.model_construct(quota=5, deadline=20 * SECOND))])
    mail = bundle.state.catalog.surfaces.index("mail")
    late = Request(3, bundle.state.end, state=bundle.state, surface=mail)
    for _ in range(12):  # as many failures would pause the lane
        assert pipeline.recommend(late, 5).degraded == ("sources.held",)
    assert pipeline.lanes[0].state == "closed"
    held.free.set()
    pipeline.close()


def test_the_k_of_a_list_is_that_of_its_surface(bundle: Bundle) -> None:
    with serving(bundle, clock="snapshot") as server, Client(server.address, timeout=20) as client:
        found = {of: len(client.recommend(3, surface=of).items) for of in ("feed", "mail", "")}
        assert found == {"feed": 4, "mail": 7, "": 10}
        assert len(client.recommend(3, surface="feed", k=2).items) == 2


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        ("[surfaces.feed]\nplugins = ['als2']", r"\[surfaces.feed\] plugins: 'als2' is not among \[ranker\] plugins"),
        ("[surfaces.feed]\nk = 900", r"\[surfaces.feed\] k: at most 500 \(\[serve\] max_k\) was expected, found 900"),
        ("[surfaces.feed]\nsources = ['popular']", "surfaces.feed.sources"),
    ],
)
def test_what_a_profile_cannot_say_is_refused(tmp_path: Path, profile: str, says: str) -> None:
    with pytest.raises(PairliftError, match=says):
        written(tmp_path, profile)


def test_a_profile_is_of_a_surface_of_the_log(tmp_path: Path) -> None:
    with pytest.raises(PairliftError, match=r"\[surfaces.feeed\]: it is no surface of the log.*feed"):
        prepare(written(tmp_path, "[surfaces.feeed]\nk = 3"))
    toml = write_world(tmp_path)
    toml.write_text(toml.read_text() + "[surfaces.feed]\nk = 3")
    with pytest.raises(PairliftError, match=r"\[surfaces.feed\]: \[events\] surface was expected"):
        read_config(toml)


def test_a_restart_refuses_other_plugins_of_a_surface_and_no_other_k(prepared: Prepared, bundle: Bundle) -> None:
    def over(profile: str) -> Prepared:
        toml = prepared.config.path
        toml.write_text(toml.read_text().replace(PROFILES, profile))
        found = prepare(load_config(toml))
        toml.write_text(toml.read_text().replace(profile, PROFILES))
        return found

    start = StartFrom("refit", prepared.config.folder / "bundle")
    assert load_start(start, over(PROFILES.replace("k = 7", "k = 3"))).plugins
    with pytest.raises(PairliftError, match=r"\[surfaces\] of .* are not what it was trained with"):
        load_start(start, over(PROFILES.replace("plugins = []", "")))
