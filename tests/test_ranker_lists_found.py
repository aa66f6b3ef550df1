"""What each source finds: the figures are those of their plain definitions."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from served import pairlift
from world import World, with_config, write_world

from features.errors import PairliftError
from features.schema import DAY
from features.state.store import State
from ranker.blend.learned import Learner
from ranker.bundle import Bundle
from ranker.candidates.configured import Sources
from ranker.candidates.filters import history
from ranker.candidates.source import Proposal
from ranker.lists.found import KS, sources_report
from ranker.lists.peers import Past
from ranker.lists.shared import learner_of
from ranker.pipeline import Pipeline
from ranker.request import Request
from ranker.settings import FilterSettings, SourceSettings


def taught(sources: Sources, past: Past, bundle: Bundle) -> Learner:
    """What the sources' lists teach in the booster's period."""
    split = past.split
    slices = tuple(past.asked(*ends) for ends in ((split.t1, split.t2 - 1), (split.t2 - DAY, split.t2)))
    return learner_of(sources, slices, bundle.state, bundle.config, KS[-1], Counter())[0]  # type: ignore[arg-type]


class Knowing:
    """A source that knows what each user will want, of an item number in steps."""

    def __init__(self, name: str, wanted: Mapping[int, Sequence[int]]) -> None:
        self.name, self.wanted = name, wanted

    def propose(self, request: Request, limit: int) -> Proposal:
        return Proposal(np.array(self.wanted.get(request.user, []), np.int32)[:limit])


class Broken:
    name = "broken"

    def propose(self, request: Request, limit: int) -> Proposal:
        raise RuntimeError("out of order")


@pytest.fixture(scope="module")
def past(world: World, bundle: Bundle, parts: object) -> Past:
    return Past(
        log=world.log, histories=bundle.state.histories, catalog=world.catalog, groups=parts.groups,  # type: ignore[attr-defined]
        split=parts.split, floor=2,  # type: ignore[attr-defined]
    )  # fmt: skip


def test_the_figures_of_sources_that_know(bundle: Bundle, past: Past) -> None:
    who = past.asked(past.split.t2, past.split.t3)
    wanted = {int(u): who.item[who.offsets[k] : who.offsets[k + 1]].tolist() for k, u in enumerate(who.requests.user)}
    half = {user: items[: len(items) // 2] for user, items in wanted.items()}
    rest = {user: items[len(items) // 2 :] for user, items in wanted.items()}
    seen = {user: history(Request(user, past.split.t2, state=bundle.state)).tolist() for user in wanted}
    both = {user: list(dict.fromkeys([*seen[user], *items])) for user, items in rest.items()}  # what is seen is no loss
    named = [Knowing("half", half), Knowing("rest", both), Broken(), Knowing("same", half)]
    sources = [(source, SourceSettings(quota=30)) for source in named]
    report = sources_report(sources, taught(sources, past, bundle), past, bundle.state, bundle.config, most=1000)
    section = report["sections"]["all"]
    assert section["users"] == len(who) > 20
    share = np.mean([len(half[user]) / len(items) for user, items in wanted.items()])
    for k in KS:
        assert section["alone"]["half"][f"recall@{k}"]["mean"] == pytest.approx(share)
        assert section["alone"]["rest"][f"recall@{k}"]["mean"] == pytest.approx(1 - share)
        assert section["blend"][f"recall@{k}"]["mean"] == 1
        assert section["adds"]["rest"][f"recall@{k}"]["mean"] == pytest.approx(1 - share)
        assert section["adds"]["half"][f"recall@{k}"] == {"mean": 0, "ci95": [0, 0]}  # `same` has it
        assert section["over_best"][f"recall@{k}"]["name"] == "rest"
    assert section["within_quotas"]["recall"]["mean"] == 1
    assert section["within_quotas"]["candidates"] == pytest.approx(who.wanted.mean())
    assert report["failed"] == {"broken": len(who)}
    assert set(report["milliseconds"]["sources"]) == {"half", "rest", "broken", "same"}
    assert json.dumps(report, allow_nan=False)


def test_new_users_and_new_items_stand_apart(world: World, bundle: Bundle, past: Past) -> None:
    t2 = past.split.t2
    new = int(np.bincount(world.log.item[(world.log.ts >= t2) & (world.log.grade == 2)]).argmax())
    log = world.log.select((world.log.ts >= t2) | ((world.log.item != new) & (world.log.user != 5)))
    state = State.build(log, world.catalog, (), world.grades)
    cut = replace(past, log=log, histories=state.histories)
    who = cut.asked(t2, cut.split.t3)
    named = [(Knowing("seer", dict.fromkeys(range(40), (new,))), SourceSettings())]
    sections = sources_report(named, taught(named, cut, bundle), cut, state, bundle.config, most=1000)["sections"]
    assert sections["new_users"]["users"] == (who.history == 0).sum() >= 1
    wants = [k for k in range(len(who)) if new in who.item[who.offsets[k] : who.offsets[k + 1]]]
    assert sections["new_items"]["users"] == len(wants) > 0
    assert sections["new_items"]["wanted_items"] == 1
    assert sections["new_items"]["alone"]["seer"]["recall@50"]["mean"] == 1
    assert sections["all"]["alone"]["seer"]["recall@50"]["mean"] < 1


@pytest.mark.parametrize("keep", [None, "genre <> 'a'"])
def test_within_the_quotas_is_what_recommend_has(bundle: Bundle, past: Past, keep: str | None) -> None:
    bundle = bundle if keep is None else with_config(bundle, filters={"genre": FilterSettings(keep=keep)})
    who = past.asked(past.split.t2, past.split.t3)
    pipeline = Pipeline(bundle)
    report = sources_report(
        pipeline.sources, taught(pipeline.sources, past, bundle), past, bundle.state, bundle.config, most=1000
    )
    shares, candidates = [], []
    for k in range(len(who)):
        answer = pipeline.recommend(Request.of(who.requests, k, bundle.state), 200)
        shares.append(np.isin(who.item[who.offsets[k] : who.offsets[k + 1]], answer.item).mean())
        candidates.append(len(answer.item))
    pipeline.close()
    within = report["sections"]["all"]["within_quotas"]
    assert within["recall"]["mean"] == pytest.approx(np.mean(shares))
    assert within["candidates"] == pytest.approx(np.mean(candidates))


def test_nobody_who_wanted_anything_is_told(bundle: Bundle, past: Past) -> None:
    with pytest.raises(PairliftError, match="nobody wanted an item that is new to them"):
        sources_report([], taught([], past, bundle), replace(past, floor=9), bundle.state, bundle.config, most=10)


def test_the_command_prints_a_table_or_json_and_writes_it(tmp_path: Path) -> None:
    path = write_world(tmp_path)
    walks = '[sources.walks]\nclass = "ranker.sources.walks:RandomWalks"\nsteps = 500\n'
    path.write_text(path.read_text() + walks)
    code, table = pairlift("-q", "sources", path, "--out", tmp_path / "out")
    assert code == 0, table
    report = json.loads((tmp_path / "out" / "sources.json").read_text())
    assert list(report["quotas"]) == ["popular", "cooccurrence", "nearest", "walks"]
    for name in (*report["quotas"], "blend", "within the quotas: "):
        assert f"\n{name}" in table
    code, text = pairlift("-q", "sources", path, "--json", "--users", 5)
    assert code == 0
    printed = json.loads(text[text.index("{") :])
    assert printed["sections"]["all"]["users"] == 5
    off = "\n".join(f"{name} = false" for name in ("popular", "cooccurrence", "nearest"))
    (tmp_path / "off").mkdir()
    path = write_world(tmp_path / "off")
    path.write_text(path.read_text() + f"[sources]\n{off}\n")
    code, said = pairlift("sources", path)
    assert code == 2
    assert "switch one on" in said
