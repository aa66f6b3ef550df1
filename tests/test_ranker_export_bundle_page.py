"""The page of a bundle: made of the bundle's own files, its numbers theirs; earlier bundles beside it; bad folders."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from world import Parts, write_world_bundle

sys.path.append(str(Path(__file__).parent / "bench" / "peers"))

from page_numbers import Page, unequal

from features.errors import PairliftError
from ranker.blend.shares import Judged, Share, Shares
from ranker.bundle import _version_of
from ranker.cli.main import cli
from ranker.export.bundle_page import as_page, bundle_report, card_sections
from ranker.hashes import MANIFEST
from ranker.lists.liked import LikedWeight
from ranker.uplift.said import UNKNOWN

MEASURED: dict[str, Any] = {
    "pair_accuracy": 0.7, "popularity": 0.55, "validation_accuracy": 0.72, "tie_share": float("nan"), "trees": 20,
    "lists": {"recall@10": {"recommend": 0.4, "popular": 0.3, "difference": 0.1, "ci95": [0.02, 0.18]}},
}  # fmt: skip
CARD = "# Model card\n\n## Data\n\n- The log 'a <b>': 3 events.\n- Period test: later.\n\n## Plugins\n\n- x: `a:B`.\n"
IMPORTANCE = {
    "liked": {"rows": 3, "columns": {"a__x": {"gain": 0.2}, "b<i>": {"gain": 0.8}}},
    "wanted": {"rows": 3, "columns": {"source__popular": {"gain": 0.6}, "a__x": {"gain": 0.4}}},
}
CURVE = "phase,step,loss,validation\npre-train,5,15.5,\npre-train,10,,0.64\nfine-tune,3,0.5,0.66\n"


def with_manifest(folder: Path, **changes: Any) -> None:
    """Change a bundle's manifest as training would have written it."""
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    del manifest["version"]
    (folder / MANIFEST).write_text(json.dumps(manifest | {"version": _version_of(manifest)}))


@pytest.fixture
def folder(parts: Parts, tmp_path: Path) -> Path:
    """A bundle with all that its page can show."""
    folder = tmp_path / "all" / "bundle"
    folder.parent.mkdir()
    write_world_bundle(parts, folder)
    with_manifest(folder, measured=MEASURED)
    (folder / "MODEL_CARD.md").write_text(CARD)
    (folder / "importance.json").write_text(json.dumps(IMPORTANCE))
    (folder / "curves").mkdir()
    (folder / "curves" / "towers.csv").write_text(CURVE)
    return folder


def page_of(report: dict[str, Any], tmp_path: Path) -> Page:
    (tmp_path / "page.html").write_text(as_page(report))
    page = Page(tmp_path / "page.html")
    assert unequal(page.numbers, report) == []
    assert (page.open, page.wrong, json.loads(page.json)) == ([], [], report)
    assert all(link.startswith("#") for link in page.links)
    return page


def test_the_command_writes_what_the_bundle_says_of_itself(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["report", str(folder), "--out", str(tmp_path / "about")])
    assert done.exit_code == 0, done.output
    assert [of["name"] for of in json.loads((tmp_path / "about" / "bundle.json").read_text())["bundles"]] == ["bundle"]
    report = bundle_report(folder)
    text = (tmp_path / "about" / "report.html").read_text()
    assert len(page_of(report, tmp_path).numbers) > 15
    assert "The log &#x27;a &lt;b&gt;&#x27;: 3 events." in text
    assert "<li>Period test" not in text  # the periods have their own place
    assert "<code>a:B</code>" in text
    assert "recall@10 less theirs: <span" in text  # lists beside popular items
    assert "How lists are made" not in text
    assert list(report["importance"]["liked"]) == ["b<i>", "a__x"]
    assert report["bundles"][0]["measured"]["tie_share"] is None
    assert (text.count("towers, pre-train"), text.count("towers, fine-tune")) == (1, 1)
    assert "The last bundles" not in text
    assert "#d62728" not in text  # curves are in the page's colours


def test_earlier_bundles_of_its_folder_stand_beside_it_and_later_or_broken_ones_do_not(
    folder: Path, tmp_path: Path
) -> None:
    now = json.loads((folder / MANIFEST).read_text())["snapshot_time"]
    for name, off in {"before": -5, "first": -9, "later": 3, "broken": 0}.items():
        shutil.copytree(folder, folder.parent / name)
        with_manifest(folder.parent / name, snapshot_time=now + off, measured={"pair_accuracy": 0.6})
    (folder.parent / "broken" / MANIFEST).write_text("{}")
    report = bundle_report(folder)
    assert [of["name"] for of in report["bundles"]] == ["bundle", "before", "first"]
    page = page_of(report, tmp_path)
    assert "/bundles/2/measured/pair_accuracy" in {of.path for of in page.numbers}
    assert bundle_report(folder.parent / "later")["bundles"][0]["name"] == "later"


KINDS = (
    Share(True, "", 30, 210.5, {"popular": 100, "similar": 40}, 200),
    Share(True, "a <b>", 9, 120, {"popular": 90}, 120),
    Share(False, "", 4, 90, {"popular": 100}, 200),
)
LISTS = {
    "shares": [
        Judged(True, 4.0, 200, (0.03, 0.01, 0.05), (0.01, -0.01, 0.02)).report(),
        Judged(False, 1.0, 200, (0.03, -0.01, 0.05), None).report(),
    ],
    "liked_weight": LikedWeight(0.5, True, {"0": 0.11, "0.5": 0.1}).report(),
    "prerank": {
        "kept_top50": 0.93, "kept_top50_unseen_items": 0.81, "requests": 40, "cut": 0.4, "candidates": 410.5,
    },
}  # fmt: skip


def test_how_lists_are_made_stands_in_the_page(folder: Path, tmp_path: Path) -> None:
    Shares(KINDS, ()).write(folder / "shares.json")
    with_manifest(folder, measured=MEASURED | LISTS)
    report = bundle_report(folder)
    page = page_of(report, tmp_path)
    shown = {of.path: of.text for of in page.numbers}
    own = "/bundles/0/measured"
    assert shown["/shares/1/quotas/popular"] == "90"
    assert shown["/shares/1/quotas/similar"] == UNKNOWN
    assert shown["/shares/0/candidates"] == "210"
    assert (shown[f"{own}/shares/0/new_weight"], shown[f"{own}/shares/0/new_items/1"]) == ("4", "-0.0100")
    assert f"{own}/shares/1/new_weight" not in shown  # is not shown to be better
    assert (shown[f"{own}/liked_weight/weight"], shown[f"{own}/liked_weight/ndcg/0"]) == ("0.5", "0.1100")
    assert (shown[f"{own}/prerank/candidates"], shown[f"{own}/prerank/kept_top50_unseen_items"]) == ("410", "0.8100")
    text = as_page(report)
    for says in ("with history, a &lt;b&gt;", "Users without history: as configured", "costs nothing which could"):
        assert says in text


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        ([0.02, 0.18], "lists find more of what was wanted than"),
        ([-0.18, -0.02], "lists find less of what was wanted than"),
        ([-0.02, 0.18], "lists are not shown to find more"),
        ([None, None], "lists are not shown to find more"),
    ],
)
def test_lists_are_said_to_find_more_only_where_the_interval_says_so(
    folder: Path, tmp_path: Path, ends: list[float | None], says: str
) -> None:
    recall = MEASURED["lists"]["recall@10"] | {"ci95": ends}
    with_manifest(folder, measured=MEASURED | {"lists": {"recall@10": recall}})
    report = bundle_report(folder)
    page_of(report, tmp_path)
    assert says in as_page(report)


def test_a_bundle_that_kept_little_still_has_a_page(parts: Parts, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    write_world_bundle(parts, folder)  # measured nothing, no card, no curves
    report = bundle_report(folder)
    page_of(report, tmp_path)
    assert "The bundle has no model card." in as_page(report)
    (folder / "importance.json").unlink()
    assert bundle_report(folder)["importance"] == {}


def test_a_card_is_read_by_its_sections() -> None:
    assert card_sections(CARD) == {
        "Data": ["The log 'a <b>': 3 events.", "Period test: later."],
        "Plugins": ["x: `a:B`."],
    }
    assert card_sections("") == {}


def test_bad_folders_are_sentences(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PairliftError, match="is not a bundle"):
        bundle_report(tmp_path)
    for out, says in ((folder / "page", "is in the bundle"), (folder, "is in the bundle")):
        done = CliRunner().invoke(cli, ["report", str(folder), "--out", str(out)])
        assert (done.exit_code, says in done.output) == (2, True), done.output
    (folder / MANIFEST).write_text("{")
    done = CliRunner().invoke(cli, ["report", str(folder), "--out", str(tmp_path / "about")])
    assert (done.exit_code, "is damaged" in done.output) == (2, True)
