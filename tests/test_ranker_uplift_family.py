"""Several plugins in one report: a world where two know the same and one knows nothing; verdicts, pages, bad input."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import leaky
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from world import write_world

sys.path.append(str(Path(__file__).parent / "bench" / "peers"))

from page_numbers import Page, unequal

from features.errors import PairliftError
from ranker.cli.main import cli
from ranker.config import load_config
from ranker.training import arms as arms_module
from ranker.uplift.family import report as module
from ranker.uplift.family.figures import COSTS, by_cost, family_figure, frontier, frontier_figure
from ranker.uplift.family.page import as_page
from ranker.uplift.family.said import P_SAID, doubts_of, said_of, verdict, why
from ranker.uplift.family.table import as_table
from ranker.uplift.reasons import why as why_of_one
from ranker.uplift.report import uplift_report
from ranker.uplift.result import UpliftReport
from ranker.uplift.said import as_text

ONE_SIDED = "".join(
    f'[[counters]]\nkey = ["{side}"]\nevent = "{event}"\nspans = ["h7d", "all"]\nstats = ["{stat}"]\n'
    for side in ("user", "item")
    for event, stat in (("impression", "count"), ("like", "rate"))
)
LEAK = f'[plugins.leaks]\nclass = "{leaky.plugin_of(leaky.NoisyLabel)}"\n'
NAMES = ("als", "noise", "leaks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a world whose report of NAMES has been written to `report`."""
    folder = tmp_path_factory.mktemp("family")
    toml = write_world(folder)
    toml.write_text(f"{toml.read_text()}\n{ONE_SIDED}{LEAK}".replace("seeds = [0, 1, 2]", "seeds = [0, 1]"))
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> tuple[int, str]:
    words = [word for name in NAMES for word in ("--plugin", name)]
    done = CliRunner().invoke(cli, ["uplift", str(folder / "pairlift.toml"), *words, "--out", str(folder / "report")])
    return done.exit_code, done.output


@pytest.fixture
def family(folder: Path, said: tuple[int, str]) -> dict[str, Any]:
    assert "wrote" in said[1], said[1]
    found: dict[str, Any] = json.loads((folder / "report" / "uplift.json").read_text())
    return found


def test_the_command_says_which_are_useful_and_that_one_leaks(said: tuple[int, str], family: dict[str, Any]) -> None:
    code, text = said
    assert code == 1  # one leaks
    assert (
        "of 3 plugins, als is useful and adds to what the others have; noise is not shown to be useful; leaks leaks"
        in text
    )
    assert "leaks: LEAKS: its figures say nothing, and it has no part in the sets" in text
    assert family["together"]["plugins"] == ["als", "noise"]
    assert (family["each"]["leaks"]["adds"], family["each"]["leaks"]["useful"]) == (None, False)
    assert not family["each"]["noise"]["useful"]


def test_each_alone_is_what_its_own_report_says_and_the_sets_add_up(folder: Path, family: dict[str, Any]) -> None:
    each = family["each"]
    for name in NAMES:
        own = json.loads((folder / "report" / name / "uplift.json").read_text())
        assert each[name]["alone"]["relative_uplift"] == own["relative_uplift"]
        assert each[name]["alone"]["ci95"] == own["ci95"]
        assert each[name]["beyond"]["ci95"] == own["missingness"]["beyond"]["ci95"]
        assert (own["useful"], own["family"]["plugins"]) == (each[name]["useful"], 3)
        assert (folder / "report" / name / "report.html").is_file()
    for name, other in (("als", "noise"), ("noise", "als")):  # of two, all without one is the other
        assert each[name]["adds"]["without"] == each[other]["alone"]["with"]
        assert each[name]["adds"]["with"] == family["together"]["with"]
    assert each["als"]["alone"]["p_holm"] == pytest.approx(3 * each["als"]["alone"]["p"])  # the leak counts as one


def test_no_arm_is_fitted_twice(folder: Path, said: tuple[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert said[1]
    made = []
    run_stage = arms_module.run_stage

    def counted(*args: Any, **more: Any) -> Path:
        make = args[3]
        return run_stage(*args[:3], lambda folder: [make(folder), made.append(args[1])][0], *args[4:], **more)

    monkeypatch.setattr(arms_module, "run_stage", counted)
    config = load_config(folder / "pairlift.toml")
    uplift_report(config, "als", lists=False)
    module.family_report(config, ["als", "noise"], lists=False)
    assert made == []
    module.family_report(config, ["noise", "als"], lists=False)
    assert {name[:10] for name in made} == {"2-plugins-"}  # another order of columns, of the set of both alone
    assert len(made) == len(set(made)) == 4  # fits and seeds


def test_the_page_holds_the_reports_numbers_and_asks_for_nothing(folder: Path, family: dict[str, Any]) -> None:
    page = Page(folder / "report" / "report.html")
    assert len(page.numbers) > 60
    assert unequal(page.numbers, family) == []
    assert (page.open, page.wrong, json.loads(page.json)) == ([], [], family)
    assert all(link.startswith("#") for link in page.links)
    assert P_SAID in (folder / "report" / "report.html").read_text()
    assert P_SAID in as_table(family)
    rows = pq.read_table(folder / "report" / "plugins.parquet").to_pylist()
    assert [(row["plugin"], row["question"], row["yes"]) for row in rows] == [
        ("als", "alone", True), ("als", "adds", True), ("noise", "alone", False), ("noise", "adds", False),
        ("leaks", "alone", False),
    ]  # fmt: skip


def changed(family: dict[str, Any], **each: dict[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(family)
    for name, of in each.items():
        found["each"][name] |= of
    return found


def test_the_verdict_claims_what_the_correction_leaves(family: dict[str, Any]) -> None:
    nothing = changed(family, als={"useful": False, "more": False})
    assert verdict(nothing) == "none of 3 plugins is shown to be useful; leaks leaks"
    assert 'class="verdict open"' in as_page(nothing)
    alone = changed(family, als={"more": False}, noise={"useful": True})
    assert verdict(alone) == "of 3 plugins, als and noise are useful but not shown to add to the others; leaks leaks"
    assert "als and noise are useful with this one fit (others were not tried) but not shown to add" in verdict(
        alone | {"fits": 1}
    )
    adds = changed(family, als={"useful": False})
    sound = changed(adds, leaks={"leaks": 0})
    assert verdict(sound).startswith("of 3 plugins, als adds to the others, not shown to be useful alone; noise and")
    assert "with this one fit and one seed (others were not tried) and adds" in verdict(
        family | {"fits": 1, "seeds": [0]}
    )
    late = as_text(adds, said_of(changed(adds, als={"lag": "daily"}), "als"))
    assert late.endswith(", adds to the rest; its values are those of the last midnight, in training as in serving")
    single = changed(family, als={"adds": None}) | {"together": None}
    assert verdict(single) == "of 3 plugins, als is useful; noise is not shown to be useful; leaks leaks"
    assert "Fewer than two do not leak" in as_text(single, why(single))
    assert "wrong yes is at most 5 %." in as_text(single, why(single))
    assert "wrong yes is at most 5 % for each of the two questions" in as_text(family, why(family))
    assert "all together" not in as_table(single)
    assert "als and noise together bring a relative uplift of " in as_text(family, why(family))
    unknown = changed(family, als={"alone": family["each"]["als"]["alone"] | {"ci95": [None, None]}})
    assert as_page(unknown)


def test_of_what_is_not_shown_it_is_said_why(family: dict[str, Any]) -> None:
    """For want of a gain, by the correction, for what is missing, or for a control: and the picture says it too."""

    def said(adds: dict[str, Any], **of: Any) -> str:
        part = family["each"]["als"]["adds"] | {"variance": {"seeds": 1e-4}} | adds
        found = changed(family, als={"more": False, "adds": part, **of})
        drawn = family_figure(found)
        unsure = part["ci95"][0] is not None and part["ci95"][0] > 0
        assert ('data-path="/each/als/adds/p_holm"' in drawn) == unsure
        assert 'data-mark="/each/als/adds/minimum_detectable_uplift"' in drawn
        return as_text(found, said_of(found, "als"))

    none = said({"ci95": [-0.01, 0.02], "minimum_detectable_uplift": 0.03})
    assert "; not shown to add (any gain is below +2.00 %; this test finds those from +3.00 % on)" in none
    assert "; not shown to add (it loses)" in said({"ci95": [-0.02, -0.01]})
    assert "; not shown to add (there is no interval)" in said({"ci95": [None, None]})
    luck = {"ci95": [0.01, 0.9], "p": 0.02, "p_holm": 0.06}
    assert "(above zero by itself, p 0.02, but p is 0.06 after the correction; of more than 2 seeds it may be" in said(
        luck
    )
    sure = luck | {"variance": {"seeds": 0.0}}
    assert "(above zero by itself, p 0.02, but p is 0.06 after the correction)" in said(sure)
    assert "(a leak control could not be run)" in said(luck | {"p_holm": 1.0})
    missing = family["each"]["als"]["beyond"] | {"relative_uplift": 0.0, "ci95": [-0.01, 0.01]}
    alone = said(luck, useful=False, beyond=missing)
    assert "useful alone (over knowing only which values are missing: +0.00 % [-1.00, +1.00])" in alone


def test_the_smallest_gain_that_is_found_is_that_of_the_correction(family: dict[str, Any]) -> None:
    for of in family["each"].values():
        assert of["alone"]["minimum_detectable_uplift"] >= of["minimum_detectable_uplift"]
    assert "the luck of one fit aside" in as_text(family, why(family | {"fits": 1}))


def test_what_is_said_of_every_plugin_is_said_once(family: dict[str, Any]) -> None:
    found = doubts_of(changed(family, **{name: {"doubts": ["few", name]} for name in NAMES}))
    assert found == {"all": ["few"], "als": ["als"], "noise": ["noise"], "leaks": ["leaks"]}


def test_the_frontier_has_the_useful_ones_that_no_cheaper_one_equals(family: dict[str, Any]) -> None:
    def of(gain: float, ms: float, useful: bool = True) -> dict[str, Any]:
        cost = {"request_ms": {"p50": ms}, "fit_seconds": [1.0], "saved_bytes": 1, "memory_bytes": 1}
        return {"alone": family["each"]["als"]["alone"] | {"relative_uplift": gain}, "useful": useful, "cost": cost}

    each = {"dear": of(0.04, 9), "cheap": of(0.01, 1), "worse": of(0.005, 3), "luck": of(0.03, 0.5, False)}
    report = family | {"each": {name: family["each"]["als"] | part for name, part in each.items()}}
    assert by_cost(report, "time in a request") == ["luck", "cheap", "worse", "dear"]
    assert frontier(report, "time in a request") == ["cheap", "dear"]
    assert frontier(report, "training") == ["dear"]  # of the same cost, the one that gains most
    for cost in COSTS:
        assert "<svg" in frontier_figure(report, cost)


def test_a_plugin_that_the_correction_takes_is_told_why_in_its_own_report() -> None:
    report = json.loads((Path(__file__).parent / "golden" / "uplift-4.json").read_text())
    report |= {"useful": False, "family": {"plugins": 5, "p_holm": 0.2}}
    assert as_text(report, why_of_one(report)).endswith("but of 5 plugins tried one may look so by chance (p 0.2).")


def test_bad_input_is_a_sentence(folder: Path, family: dict[str, Any]) -> None:
    config = load_config(folder / "pairlift.toml")
    for names in (["als"], ["als", "als"]):
        with pytest.raises(PairliftError, match="several plugins, each once, were expected, found als"):
            module.family_report(config, names)
    with pytest.raises(PairliftError, match="found one of als, noise, leaks: name the folder of one"):
        UpliftReport.of(family)
