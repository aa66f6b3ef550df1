"""Two bundles side by side: what changed in data, split and settings, then the figures of their manifests.

Made of the manifests and TOML files alone. Each figure is of the test of its own bundle, and nothing is said of chance.
"""

import tomllib
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from features.errors import PairliftError
from features.pairing.split import iso
from ranker.bundle import TOML, read_manifest
from ranker.export.bundle_page import MEASURED
from ranker.hashes import MANIFEST
from ranker.metrics.interval import finite
from ranker.uplift.markup import IN_THE_PAGE, document, keep_page, table, text_table
from ranker.uplift.past.compare import NOT_SET, UNKNOWN, differences
from ranker.uplift.past.compared import counted, short
from ranker.uplift.said import Figure, Sentence, as_html, as_text, found_at

Report = Mapping[str, Any]

#: 2: `gaps`, `most`, `chance`
FORMAT = 2
SIDES = ("old", "new")
#: where the data lie is nobody's business whom a page is passed on to: [data], and `source` of any table
HIDDEN, SOURCE, NOT_SHOWN = "data", "source", "not shown"
SIZE, COLUMNS = "size", "columns"
FIGURES = MEASURED | {SIZE: ((SIZE,), "bytes"), COLUMNS: ((COLUMNS,), "count")}


def are_bundles(old: Path, new: Path) -> bool:
    """Tell whether both folders hold a bundle; PairliftError where one of them alone does."""
    found = [(path / MANIFEST).is_file() for path in (old, new)]
    if any(found) and not all(found):
        bundle, other = (old, new) if found[0] else (new, old)
        raise PairliftError(f"two reports or two bundles were expected, found the bundle {bundle} beside {other}")
    return all(found)


def compare_bundles(old: Path, new: Path) -> dict[str, Any]:
    """Return what changed (`changed`), and who both are and their figures (`old`, `new`)."""
    manifests, tomls = ([read(path) for path in (old, new)] for read in (read_manifest, _toml))
    changed = list(_changed(manifests[0], manifests[1], tomls[0], tomls[1]))
    sides = {side: _side(path, of) for side, path, of in zip(SIDES, (old, new), manifests, strict=True)}
    gaps = {name: new - old for name, old, new in _qualities(sides)}
    most = max(gaps, key=lambda name: abs(gaps[name]), default=None)
    moved = {"gaps": gaps, "most": most and {"name": most, "by": abs(gaps[most])}, "chance": _chance(manifests[0])}
    found: dict[str, Any] = finite({"format": FORMAT, "of": "bundles", "changed": changed, **sides, **moved})
    return found


def _qualities(sides: Mapping[str, Report]) -> Iterator[tuple[str, float, float]]:
    """Yield name, old and new of each figure of quality that both have."""
    for name, (_, kind) in FIGURES.items():
        old, new = (sides[side]["figures"][name] for side in SIDES)
        if kind == "accuracy" and old is not None and new is not None:
            yield name, old, new


def _chance(manifest: Report) -> float | None:
    """Return half the width of the interval of recall@10 less that of popular items; None where it is not kept."""
    low, high = found_at(manifest["measured"], ("lists", "recall@10", "ci95")) or (None, None)
    return None if low is None or high is None else (high - low) / 2


def _toml(folder: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((folder / TOML).read_text())
    except (OSError, ValueError) as error:
        raise PairliftError(f"{folder} is damaged, use another copy:\n  {TOML}: {error}") from error


def _side(folder: Path, manifest: Report) -> dict[str, Any]:
    sizes = [(folder / name).stat().st_size for name in manifest["files"] if (folder / name).is_file()]
    values = {SIZE: sum(sizes), COLUMNS: len(manifest["columns"])}
    figures = {name: values.get(name, found_at(manifest["measured"], path)) for name, (path, _) in FIGURES.items()}
    named = {"name": folder.resolve().name, "version": manifest["version"]}
    return {**named, "snapshot_time": iso(manifest["snapshot_time"]), "figures": figures}


def _changed(old: Report, new: Report, old_toml: Report, new_toml: Report) -> Iterator[dict[str, str]]:
    """Yield group, name and both values of all that differs."""
    for group, one, other in (
        ("data", _data(old), _data(new)),
        ("settings", old_toml, new_toml),
        ("columns", _names(old, new), _names(new, old)),
        ("versions", _versions(old), _versions(new)),
    ):
        for of in differences(one, other, NOT_SET if group == "settings" else UNKNOWN):
            keys = of["what"].split(".")
            hidden = group == "settings" and (keys[0] == HIDDEN or SOURCE in keys)
            yield {"group": group, **of} | ({"old": NOT_SHOWN, "new": NOT_SHOWN} if hidden else {})


def _data(manifest: Report) -> dict[str, Any]:
    split = {f"split {t}": iso(manifest["split"][t]) for t in ("t0", "t1", "t2", "t3")}
    return {"known as of": iso(manifest["snapshot_time"]), **split}


def _names(manifest: Report, other: Report) -> dict[str, str]:
    """Return the columns that the other bundle does not have."""
    own = [name for name in manifest["columns"] if name not in set(other["columns"])]
    return {"only here": ", ".join(own) or "none"}


def _versions(manifest: Report) -> dict[str, Any]:
    code = {f"code of {name}": of[:12] for name, of in manifest.get("plugins", {}).items()}
    return {"format of the bundle": manifest["format"], **code}


def answer(report: Report) -> Sentence:
    """Return what changed and how far figures moved, in one sentence."""
    changed, most = report["changed"], report["most"]
    if report["old"]["version"] == report["new"]["version"]:
        return ["Both are the same bundle, so there is nothing to tell."]
    first = f"Changed: {counted(changed)}" if changed else "Split, snapshot and settings are the same"
    if len(changed) == 1 and changed[0]["group"] == "settings":
        first = (
            f"One setting changed, {changed[0]['what']} from {short(changed[0]['old'])} to {short(changed[0]['new'])}"
        )
    if most is None:
        return [f"{first}."]
    return [
        f"{first}; no figure of quality moved by more than ",
        Figure(("most", "by"), "accuracy"),
        f" ({most['name']}).",
    ]


def caution(report: Report) -> Sentence:
    """Return what the figures below may be read for."""
    if report["old"]["version"] == report["new"]["version"]:
        return []
    if any(of["group"] == "data" for of in report["changed"]):
        return ["Each was measured on the test of its own days: a gap may be the days', not the bundle's."]
    same = "Both were measured on the same days."
    if report["chance"] is None:
        return [f"{same} How large chance is, bundles do not keep: `pairlift uplift` measures it."]
    kept = " Of chance they keep one measure: recall@10 of lists less that of popular items is known to ±"
    return [same, kept, Figure(("chance",), "accuracy"), " (95 %)."]


def as_lines(report: Report) -> str:
    """Return it as text: what changed, then a line for each figure."""
    lines = [as_text(report, [*answer(report), " ", *caution(report)]).rstrip()]
    lines += [f"  {of['group']}: {of['what']}: {short(of['old'])} -> {short(of['new'])}" for of in report["changed"]]
    lines += ["", *(f"{side:4}{_named(report, side)}" for side in SIDES)]
    lines += ["", f"{'figure of the manifest':44}{'old':>12}{'new':>12}{'new less old':>14}"]
    for name, row in _rows(report).items():
        gap = f"{_gap(name).text(report):>14}" if name in report["gaps"] else ""
        lines.append(f"{name:44}" + "".join(f"{of.text(report):>12}" for of in row) + gap)
    return "\n".join(lines)


def _named(report: Report, side: str) -> str:
    of = report[side]
    return f"{of['name']}, as of {of['snapshot_time']}, version {of['version'][:12]}"


def _rows(report: Report) -> dict[str, list[Figure]]:
    """Return both figures of each name that one of them has."""
    rows = {name: [Figure((side, "figures", name), kind) for side in SIDES] for name, (_, kind) in FIGURES.items()}
    return {name: row for name, row in rows.items() if any(of.value(report) is not None for of in row)}


def _gap(name: str) -> Figure:
    return Figure(("gaps", name), "gain")


def as_page(report: Report) -> str:
    """Return the whole page."""
    rows = [[f"{of['group']}: {of['what']}", short(of["old"]), short(of["new"])] for of in report["changed"]]
    changed = text_table(["", *SIDES], rows) if rows else ""
    who = "".join(f"<p><b>{side}</b>: {as_html(report, [_named(report, side)])}</p>" for side in SIDES)
    figures: dict[str, Sentence] = {
        name: [*row, _gap(name) if name in report["gaps"] else ""] for name, row in _rows(report).items()
    }
    heads = ["", *SIDES, "new less old"]
    screen = f"""<header>
<p class="aside">Pairlift, two bundles</p>
<h1>What differs between {escape(report["old"]["name"])} and {escape(report["new"]["name"])}?</h1>
<p class="verdict open"><strong>{as_html(report, answer(report))}</strong> {as_html(report, caution(report))}</p>
<div class="cards wide">
<section class="card"><h2>What changed</h2>{changed or "<p>Nothing that a bundle keeps.</p>"}
{who}</section>
<section class="card"><h2>Measured on the test of each</h2>{table(report, heads, figures)}</section>
</div>
<p class="aside">{IN_THE_PAGE}</p>
</header>"""
    return document(f"{report['old']['name']} and {report['new']['name']}: two bundles", [screen], report)


def write_page(report: Report, folder: Path) -> Path:
    """Write the page into a folder, which is made where there is none; return its path."""
    return keep_page(as_page(report), folder)
