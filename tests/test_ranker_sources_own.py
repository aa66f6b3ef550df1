"""The source of one's own that stands in the README, and the life of any [sources.NAME]: fit, bundle, server."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from contracts import NamedSourceContract
from structure import ROOT
from world import World, write_world

from features.errors import PairliftError
from features.plugin import search_plugins_in
from features.schema import DAY
from features.state.store import State
from ranker.bundle import CARD, Bundle, load_bundle, read_manifest
from ranker.candidates.cooccurrence import TakenTogether
from ranker.candidates.demand import Demand
from ranker.candidates.named import SourceData, fit_sources
from ranker.candidates.popular import Popular
from ranker.config import load_config
from ranker.pipeline import Pipeline
from ranker.request import NO_ITEMS, Request
from ranker.settings import NamedSource, SourceSettings, SourcesSettings
from ranker.sources.fresh import Fresh
from ranker.train import train
from ranker.training import wanted as module
from ranker.training.plugins import plugin_stage
from ranker.training.prepared import prepare

NAMED = """
[sources.walks]
class = "ranker.sources.walks:RandomWalks"
quota = 15
[sources.near]
class = "ranker.sources.similar:Similar"
plugin = "als"
exact = 10
[sources.fresh]
class = "ranker.sources.fresh:Fresh"
age = "3d"
[sources.next]
class = "own:NextItem"
quota = 9
"""


def written() -> str:
    text = (ROOT / "README.md").read_text()
    (found,) = re.findall(r"```python\n# mine\.py[^\n]*\[sources\.next\][^\n]*\n(.*?)```", text, re.DOTALL)
    return str(found)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a TOML and, beside it, the README's source."""
    found = tmp_path_factory.mktemp("own")
    (found / "own.py").write_text(written())
    path = write_world(found)
    path.write_text(path.read_text() + NAMED)
    search_plugins_in(found)
    return found


class TestNextItem(NamedSourceContract):
    path = "own:NextItem"


def test_it_has_about_20_lines() -> None:
    code = written()
    assert 18 <= len([line for line in code[code.index("class ") :].splitlines() if line.strip()]) <= 25


def test_named_sources_are_trained_with_kept_in_the_bundle_and_asked(folder: Path) -> None:
    config = load_config(folder / "pairlift.toml")
    train(config, folder / "bundle")
    bundle = load_bundle(folder / "bundle")
    named = ["walks", "near", "fresh", "next"]
    measured = read_manifest(folder / "bundle")["measured"]
    assert measured["approximate"] == {"near": {"recall@200": 1.0, "users": 60}}
    assert "source near, which does not compare all items: recall@200 1" in (folder / "bundle" / CARD).read_text()
    assert set(bundle.fitted) == {"walks", "fresh", "next"}
    assert [name for name in bundle.source_columns if name[8:] in named] == [f"source__{name}" for name in named]
    prepared = prepare(config)
    whole = fit_sources(config.sources, SourceData(log=prepared.log, catalog=prepared.catalog, floor=1))
    for name, arrays in whole.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(bundle.fitted[name][key], array)
            assert not bundle.fitted[name][key].flags.writeable
    pipeline = Pipeline(bundle)
    assert pipeline.source_names == ("popular", "cooccurrence", "nearest", *named)
    answer = pipeline.recommend(Request(3, bundle.state.end, state=bundle.state, explain=True), 50)
    assert not answer.degraded
    bits = {name: int((answer.sources >> bit & 1).sum()) for bit, name in enumerate(answer.source_names)}
    assert 0 < bits["next"] <= 9
    assert 0 < bits["walks"] <= 15
    pipeline.refresh()
    again = pipeline.recommend(Request(3, bundle.state.end, state=bundle.state), 50)
    assert again.item.tolist() == answer.item.tolist()
    pipeline.close()


def test_a_source_that_cannot_count_anew_stays_and_the_others_go_on(bundle: Bundle, world: World) -> None:
    """One of somebody's own that raises in `over` must not keep demand at what it was when the server started."""

    class Broken(Fresh):
        name = "broken"

        def over(self, state: State) -> Self:
            raise OSError("no disk")

    state = State.build(world.log.until(int(world.log.ts[900])), world.catalog, (), world.grades)
    popular = Popular(Demand(state, 1, 7 * DAY))
    asked = [(source, SourceSettings()) for source in (Broken(), popular, TakenTogether(bundle.cooccurrence, 1))]
    pipeline = Pipeline(bundle, asked)
    pipeline.refresh()
    broken, counted, together = (source for source, _ in pipeline.sources)
    assert (broken, together) == (asked[0][0], asked[2][0])
    np.testing.assert_array_equal(counted.demand.at_end, Demand(bundle.state, 1, 7 * DAY).at_end)  # type: ignore[attr-defined]
    assert pipeline.failures.counts() == {"sources.broken": 1}
    pipeline.close()


def test_a_source_is_fitted_to_what_is_before_the_cut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[int] = []

    def noted(settings: SourcesSettings, data: SourceData) -> Any:
        ends.append(int(data.log.ts.max()))
        return fit_sources(settings, data)

    monkeypatch.setattr(module, "fit_sources", noted)
    prepared = prepare(load_config(folder / "pairlift.toml"))
    plugins = {"als": plugin_stage(prepared, "als", 0)}
    for end in (prepared.split.t1, prepared.split.t2):
        module.sources_until(prepared, plugins, end, 2**30)
        assert ends[-1] < end
    module.rows_of(prepared, plugins)
    assert len(ends) == 3
    assert ends[-1] < prepared.split.t1


def test_a_source_whose_plugin_is_not_served_is_left_out_where_others_are_compared(folder: Path) -> None:
    prepared = prepare(load_config(folder / "pairlift.toml"))
    names = [source.name for source, _ in module.sources_until(prepared, {}, prepared.split.t1, 2**30)]
    assert names == ["popular", "cooccurrence", "walks", "fresh", "next"]


def test_a_source_is_asked_on_its_surfaces_alone(bundle: Bundle) -> None:
    catalog = bundle.state.catalog
    near = {"class": "ranker.sources.similar:Similar", "plugin": "als", "surfaces": ["feed"], "quota": 7}
    popular = {"quota": 5, "surfaces": ["search"]}
    named = SourcesSettings(popular=popular, cooccurrence=False, nearest=False, near=NamedSource(**near))
    pipeline = Pipeline(replace(bundle, config=bundle.config.model_copy(update={"sources": named})))
    seen = {}
    for surface in (-1, 0, 1):
        answer = pipeline.recommend(Request(3, bundle.state.end, state=bundle.state, surface=surface, explain=True), 50)
        seen[surface] = [report.proposed > 0 for report in answer.detail.sources]  # type: ignore[union-attr]
        assert not answer.degraded
        if surface < 0:
            assert answer.item.tolist() == NO_ITEMS.tolist()
            assert "none is turned on in [sources] of the bundle's TOML for this surface" in answer.reason
    assert catalog.surfaces == ("feed", "search")
    assert seen == {-1: [False, False], 0: [False, True], 1: [True, False]}
    pipeline.close()


OF = "[sources.x]\nclass = 'ranker.sources."


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        (
            f"{OF}similar:Similar'\nplugin = 'asl'",
            "[sources.x] plugin: 'asl' is not among [ranker] plugins (did you mean",
        ),
        (f"{OF}walks:RandomWalks'\nsteps = 0", "[sources.x]: steps: a number of at least 1 was expected"),
        (f"{OF}walks:RandomWalks'\nsurfaces = ['fed']", "[sources.x] surfaces: 'fed' is no surface of the log"),
        (f"{OF}search:Search'", "[sources.x] needs [items.text], the texts that are searched"),
        (f"{OF}search:Search'\nfuzzy = true", "ranker.sources.search:Search takes no options"),
        (f"{OF}popular:PopularBy'\nby = 'user.x'", "[sources.x] by: 'x' is no text or list of [users.columns]"),
        (
            "[sources.poplar]\nquota = 3",
            "'poplar': a key of [sources] (did you mean 'popular'?), or a table with a class was expected",
        ),
        ("[sources.x__y]\nclass = 'a:B'", "'x__y': a letter, then letters"),
        (
            "".join(f"[sources.x{k}]\nclass = 'ranker.sources.fresh:Fresh'\n" for k in range(30)),
            "[sources]: at most 32 were expected, found 33; leave some out",
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_fitted(tmp_path: Path, tables: str, says: str) -> None:
    path = write_world(tmp_path)
    path.write_text(f"{path.read_text()}{tables}\n")
    with pytest.raises(PairliftError, match=re.escape(says)):
        prepare(load_config(path))


@pytest.mark.parametrize("path", ["similar:Similar", "nearest:NearestBy"])
def test_a_plugin_without_vectors_is_told_before_it_is_fitted(tmp_path: Path, path: str) -> None:
    text = (world := write_world(tmp_path)).read_text().replace('plugins = ["als"]', 'plugins = ["als", "noise"]')
    world.write_text(f"{text}{OF}{path}'\nplugin = 'noise'\n")
    with pytest.raises(PairliftError, match=r"^\[sources.x\] plugin: 'noise' has no vectors; name one that has"):
        prepare(load_config(world))


ODD = """
class Odd:
    def fit(self, data):
        return {"a b": [1]}

    def propose(self, request, limit): ...
"""


def test_what_is_no_array_is_told(folder: Path, world: World) -> None:
    (folder / "odd.py").write_text(ODD)
    settings = SourcesSettings(odd=NamedSource(**{"class": "odd:Odd"}))
    data = SourceData(log=world.log, catalog=world.catalog, floor=1)
    with pytest.raises(PairliftError, match=r"\[sources.odd\] class 'odd:Odd': its `fit` gave something else than"):
        fit_sources(settings, data)
