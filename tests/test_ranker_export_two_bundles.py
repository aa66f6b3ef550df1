"""Two bundles side by side: what changed first, their own figures below, and folders that are none."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_ranker_export_bundle_page import MEASURED, with_manifest

sys.path.append(str(Path(__file__).parent / "bench" / "peers"))

from page_numbers import Page, unequal

from features.schema import DAY
from ranker.cli.main import cli
from ranker.export.two_bundles import as_lines, compare_bundles, write_page
from ranker.hashes import MANIFEST


@pytest.fixture
def both(bundle_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The served bundle twice, with figures."""
    folders = tmp_path / "old", tmp_path / "new"
    for folder in folders:
        shutil.copytree(bundle_folder, folder)
        with_manifest(folder, measured=MEASURED)
    return folders


def retrained(folder: Path) -> None:
    """Make it one of a day later, with another setting, without a column, and better."""
    manifest = json.loads((folder / MANIFEST).read_text())
    toml = (folder / "pairlift.toml").read_text()
    (folder / "pairlift.toml").write_text(toml + '\n[rules]\nmax_run = 2\n[data]\nroot = "/of/nobody/else"\n')
    with_manifest(
        folder,
        split=manifest["split"] | {"t2": manifest["split"]["t2"] + DAY},
        columns=manifest["columns"][1:],
        measured=MEASURED | {"pair_accuracy": 0.75, "trees": None},
    )


def test_what_changed_is_said_first_and_the_figures_are_the_manifests(both: tuple[Path, Path], tmp_path: Path) -> None:
    retrained(both[1])
    found = compare_bundles(*both)
    first = json.loads((both[0] / MANIFEST).read_text())["columns"][0]
    assert [(of["group"], of["what"]) for of in found["changed"]] == [
        ("data", "split t2"), ("settings", "data.root"), ("settings", "rules.max_run"),
        ("columns", "only here"),
    ]  # fmt: skip
    assert [(of["old"], of["new"]) for of in found["changed"]][1:] == [
        ("not shown", "not shown"), ("not set", "2"), (first, "none"),
    ]  # fmt: skip
    moved = "no figure of quality moved by more than 0.0500 (PairAccuracy of the test)."
    lines = as_lines(found).splitlines()
    assert lines[0].startswith(
        f"Changed: data, settings, columns (4 entries); {moved} Each was measured on the test of"
    )
    assert "PairAccuracy of the test 0.7000 0.7500 +0.0500" in [" ".join(line.split()) for line in lines]
    assert "trees of the liked part 20 -" in [" ".join(line.split()) for line in lines]
    assert not [line for line in lines if line.startswith("share of ties")]  # neither knows it
    page = Page(write_page(found, tmp_path))
    assert unequal(page.numbers, found) == []
    assert (page.open, page.wrong, json.loads(page.json)) == ([], [], found)
    assert "/of/nobody" not in (tmp_path / "report.html").read_text()


def test_the_same_bundle_and_one_of_the_same_days(both: tuple[Path, Path]) -> None:
    same = compare_bundles(*both)
    text = as_lines(same).splitlines()[0]
    assert (same["changed"], text) == ([], "Both are the same bundle, so there is nothing to tell.")
    with_manifest(both[1], measured=MEASURED | {"pair_accuracy": 0.71})
    text = as_lines(compare_bundles(*both)).splitlines()[0]
    assert text.startswith(
        "Split, snapshot and settings are the same; no figure of quality moved by more than 0.0100 ("
    )
    assert text.endswith("recall@10 of lists less that of popular items is known to ±0.0800 (95 %).")


def test_one_setting_that_changed_is_named_and_chance_that_is_not_kept_is_told(both: tuple[Path, Path]) -> None:
    toml = both[1] / "pairlift.toml"
    toml.write_text(toml.read_text() + "\n[rules]\nmax_run = 2\n")
    for folder, right in zip(both, (0.7, 0.68), strict=True):
        with_manifest(folder, measured={"pair_accuracy": right})
    found = compare_bundles(*both)
    text = as_lines(found).splitlines()[0]
    assert text.startswith(
        "One setting changed, rules.max_run from not set to 2; no figure of quality moved by more than"
    )
    assert text.endswith("same days. How large chance is, bundles do not keep: `pairlift uplift` measures it.")


def test_the_command_takes_bundles_and_refuses_a_bundle_beside_a_report(
    both: tuple[Path, Path], tmp_path: Path
) -> None:
    def compare(*words: Any) -> tuple[int, str]:
        done = CliRunner().invoke(cli, ["uplift", "--compare", *map(str, words)])
        assert "Traceback" not in done.output
        return done.exit_code, done.output

    code, text = compare(*both, "--out", tmp_path / "moved")
    assert code == 0, text
    assert "Both are the same bundle" in text
    assert {of.name for of in (tmp_path / "moved").iterdir()} == {"report.html", "compare.json"}
    code, text = compare(both[0], tmp_path / "moved")
    assert (code, "two reports or two bundles were expected, found the bundle" in text) == (2, True), text
    (both[1] / "pairlift.toml").write_text("x = [")
    code, text = compare(*both)
    assert (code, "is damaged, use another copy" in text) == (2, True), text


def test_a_split_that_moved_by_dates_is_said(both: tuple[Path, Path]) -> None:
    for folder, t1 in zip(both, ("2025-03-22", "2025-03-23"), strict=True):
        with (folder / "pairlift.toml").open("a") as toml:
            toml.write(f"\n[split]\nt1 = {t1}\n")
    found = compare_bundles(*both)
    assert ("split.t1", "2025-03-22", "2025-03-23") in [(of["what"], of["old"], of["new"]) for of in found["changed"]]
