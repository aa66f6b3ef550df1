"""`make bench WHAT=page`: the page of a report as Chromium opens it, and what a bad page would be told."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent / "bench" / "peers"))

import test_ranker_ab
import test_ranker_offpolicy_page
from browser import NAMES, Browser, chromium

from ranker.ab.plan import Metric, Plan
from ranker.ab.report import ab_report
from ranker.ab.result import AbReport
from ranker.offpolicy.page import write_page
from ranker.uplift.markup import PAGE
from ranker.uplift.result import JSON, UpliftReport

ROOT = Path(__file__).parent
pytestmark = pytest.mark.skipif(chromium() is None, reason=f"none of {', '.join(NAMES)} is on PATH")
#: tables that are wider than their card
CUT = "[...document.querySelectorAll('.scroll')].filter(of => of.scrollWidth > of.clientWidth).length"
#: what a page must not have, and which figure tells it
BAD = {
    "errors": ("</main>", "</main><script>console.error('no')</script>"),
    "requests": ("</main>", '</main><img alt="" src="http://localhost:1/x.png">'),
    "overflow": ("</main>", '<div style="width: 700px">wide</div></main>'),
    "unequal": ('data-path="/pairs" data-value="3238.0"', 'data-path="/pairs" data-value="3239.0"'),
}


@pytest.fixture(scope="module")
def page() -> Any:
    spec = importlib.util.spec_from_file_location("page_benchmark", ROOT / "bench" / "page.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    report = UpliftReport.read(ROOT / "golden" / "uplift-4.json")
    report.write_page(folder)
    (folder / JSON).write_text(json.dumps(report.figures))
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser.started() as browser:
        yield browser


def test_a_page_holds_in_every_view(page: Any, browser: Browser, folder: Path) -> None:
    found = page.examined(browser, folder)
    assert {name: found[name] for name in ("errors", "unequal", "overlaps", "requests")} == {
        "errors": [], "unequal": [], "overlaps": 0, "requests": []
    }  # fmt: skip
    assert found["overflow"] == dict.fromkeys((page.PHONE, page.DESK, page.PAPER), 0)
    assert found["numbers"] > 150
    figures = page.summary(
        {"a": found, "b": found | {"overflow": {page.PHONE: 3.0, page.PAPER: 0}, "errors": ["x"], "kib": 2000}}
    )
    assert (figures["page_overflow_360px"], figures["page_console_errors"], figures["page_kib"]) == (3.0, 1, 2000)


@pytest.mark.parametrize("figure", BAD)
def test_a_bad_page_is_told(figure: str, page: Any, browser: Browser, folder: Path, tmp_path: Path) -> None:
    old, new = BAD[figure]
    text = (folder / PAGE).read_text()
    assert old in text
    (tmp_path / PAGE).write_text(text.replace(old, new, 1))
    (tmp_path / JSON).write_text((folder / JSON).read_text())
    found = page.examined(browser, tmp_path)[figure]
    assert found[page.PHONE] > 300 if figure == "overflow" else found


def test_dark_is_another_paper(browser: Browser, folder: Path) -> None:
    papers = []
    for scheme in ("light", "dark"):
        browser.media(scheme)
        browser.open(folder / PAGE)
        papers.append(browser.run("getComputedStyle(document.body).backgroundColor"))
    assert papers == ["rgb(255, 255, 255)", "rgb(15, 20, 26)"]


def test_the_pages_of_an_experiment_and_of_drawn_lists_hold_in_every_view(
    page: Any, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = test_ranker_ab.made(1, arms=("control", "a long name of an arm", "c"), effect=0.2)
    plan = Plan(metrics=[Metric("clicks", "sum(click)"), Metric("ctr", "sum(click)", "count(*)")], looks=4)
    experiment = ab_report(test_ranker_ab.written(tmp_path, three), plan)
    part = test_ranker_offpolicy_page.part
    drawn = test_ranker_offpolicy_page.report((part(0.2, 0.1, 0.3), part(0, 0, 0, "too few")), (part(-1, -3, 1),))
    for name, report in (("ab.json", experiment), ("offpolicy.json", drawn)):
        folder = tmp_path / name.partition(".")[0]
        AbReport(report).write_page(folder) if name == "ab.json" else write_page(report, folder)
        (folder / name).write_text(json.dumps(report))
        monkeypatch.setattr(page, "JSON", name)
        found = page.examined(browser, folder)
        assert {key: found[key] for key in ("errors", "unequal", "overlaps", "requests")} == {
            "errors": [], "unequal": [], "overlaps": 0, "requests": []
        }  # fmt: skip
        assert found["overflow"] == dict.fromkeys((page.PHONE, page.DESK, page.PAPER), 0)
        assert found["numbers"] > 40
        browser.media()
        browser.open(folder / PAGE, page.DESK)
        assert browser.run(CUT) == 0
