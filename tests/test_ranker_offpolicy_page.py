"""The page of an off-policy report: what it decides, what it doubts, and that its numbers are the JSON's."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent / "bench" / "peers"))

from page_numbers import Page, unequal

from ranker.offpolicy.page import as_page, decided, verdict, write_page


def estimate(gain: float, ends: list[float | None]) -> dict[str, Any]:
    return {"value": 1 + gain, "ci95": [None if end is None else 1 + end for end in ends]} | {
        "gain": gain,
        "gain_ci95": ends,
    }


def part(gain: float, low: float | None, high: float | None, refused: str = "") -> dict[str, Any]:
    weights = {"uses": "the product <down>", "effective_lists": 60.5, "largest_weight": 7.25, "largest_share": 0.11}
    weights |= {"mean_weight": 1.02, "mean_weight_ci95": [0.9, 1.1], "refused": refused, "unshown": 0.02}
    return weights if refused else weights | {name: estimate(gain, [low, high]) for name in ("ips", "snips", "dr")}


def report(*estimates: dict[str, Any], **changed: Any) -> dict[str, Any]:
    logged = {"lists": 600, "users": 60, "items": 1200, "value": 1.0, "ci95": [0.9, 1.1]}
    of = {"bundle": "mine/<bundle>", "version": "v1", "before": 3, "logged": logged, "candidates": 0.9, "degraded": 2}
    bundles = [of | {"estimates": dict(zip(("cascade", "list"), parts, strict=False))} for parts in estimates]
    return {
        "format": 1, "data": "a log", "from": "2025-01-01T00:00:00Z", "to": "2025-01-08T00:00:00Z", "places": 3,
        "wanted": ["like"], "propensity": "above", "policy": "best order", "left_out": {"gaps": 7}, "logged": logged,
        "bundles": bundles,
    } | changed  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((part(0.2, 0.1, 0.3),), "more"),
        ((part(-0.2, -0.3, -0.1),), "less"),
        ((part(0.1, -0.1, 0.3), part(0.2, 0.1, 0.3)), "open"),  # the first kind decides
        ((part(0, 0, 0, "too few"), part(0.2, 0.1, 0.3)), "more"),
        ((part(0, 0, 0, "too few"),), "unknown"),
        ((part(0.2, None, None),), "unknown"),
    ],
)
def test_what_is_decided(parts: tuple[Any, ...], said: str) -> None:
    found = report(parts)
    assert decided(found, 0)[0] == said
    assert verdict(found).startswith("<bundle> ")
    page = as_page(found)
    assert "&lt;bundle&gt;" in page
    drawn = [of for of in parts if not of["refused"]]
    assert ("What is got more than what was logged" in page) == bool(drawn)
    assert "<bundle>" not in page.partition('<script type="application/json"')[0]


def test_the_page_says_what_the_json_says(tmp_path: Path) -> None:
    found = report((part(0.2, 0.1, 0.3), part(0, 0, 0, "no overlap: nothing")), (part(-0.1, -0.3, 0.1),))
    found["bundles"][1] = found["bundles"][1] | {"bundle": "other/<bundle>"}  # of the same name
    found["bundles"].append({"bundle": "mine/late", "version": "v2", "before": 600, "refused": "all are from before"})
    page = Page(write_page(found, tmp_path / "out"))
    assert not page.wrong
    assert not page.open
    assert not [link for link in page.links if link and not link.startswith("#")]
    assert json.loads(page.json) == found
    assert len(page.numbers) > 50
    assert not unequal(page.numbers, found)
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.count('data-mark="/bundles/0/estimates/cascade/dr/gain_ci95"') == 1
    assert text.count('data-mark="/bundles/1/estimates/cascade/dr/gain_ci95"') == 1
    for doubt in (
        "from before its training ended",
        "plugin of it failed",
        "of all weight",
        "was never shown",
        "7 lists",
    ):
        assert doubt in text
    assert "Not known: all are from before" in text
    assert "no overlap: nothing" in text


def test_nothing_is_drawn_of_what_is_not_known() -> None:
    late = {"bundle": "mine/late", "version": "v2", "before": 600, "refused": "all are from before"}
    unknown = report((part(0, 0, 0, "too few"), part(0, 0, 0, "no overlap: nothing")))
    for found in (unknown, unknown | {"bundles": [late]}):
        page = as_page(found)
        assert "<svg" not in page
        assert "is not known to this log" in page
    assert as_page(report((part(0.2, None, None),))).count("<svg") == 2
