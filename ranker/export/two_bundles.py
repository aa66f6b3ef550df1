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
from ranker.uplift.past.compare import UNKNOWN, differences
from ranker.uplift.past.compared import counted, short
from ranker.uplift.said import Figure, Sentence, found_at

Report = Mapping[str, Any]

FORMAT = 1
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
    found: dict[str, Any] = finite({"format": FORMAT, "of": "bundles", "changed": changed, **sides})
    return found


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
        for of in differences(one, other, "not set" if group == "settings" else UNKNOWN):
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


def caution(report: Report) -> str:
    """Return what changed, in one sentence, and what the figures below may be read for."""
    changed = report["changed"]
    if report["old"]["version"] == report["new"]["version"]:
        return "Both are the same bundle, so there is nothing to tell."
    first = f"Changed: {counted(changed)}." if changed else "Split, snapshot and settings are the same."
    if any(of["group"] == "data" for of in changed):
        why = "Each was measured on the test of its own days: a figure that differs may be the days', not the bundle's."
    else:
        why = "Both were measured on the same days; a figure that differs a little may do so by chance."
    return f"{first} {why}"


def as_lines(report: Report) -> str:
    """Return it as text: what changed, then a line for each figure."""
    lines = [caution(report)]
    lines += [f"  {of['group']}: {of['what']}: {short(of['old'])} -> {short(of['new'])}" for of in report["changed"]]
    lines += ["", *(f"{side:4}{_named(report, side)}" for side in SIDES)]
    lines += ["", f"{'figure of the manifest':44}{'old':>12}{'new':>12}"]
    for name, row in _rows(report).items():
        lines.append(f"{name:44}" + "".join(f"{of.text(report):>12}" for of in row))
    return "\n".join(lines)


def _named(report: Report, side: str) -> str:
    of = report[side]
    return f"{of['name']}, as of {of['snapshot_time']}, version {of['version'][:12]}"


def _rows(report: Report) -> dict[str, list[Figure]]:
    """Return both figures of each name that one of them has."""
    rows = {name: [Figure((side, "figures", name), kind) for side in SIDES] for name, (_, kind) in FIGURES.items()}
    return {name: row for name, row in rows.items() if any(of.value(report) is not None for of in row)}


def as_page(report: Report) -> str:
    """Return the whole page."""
    rows = [[f"{of['group']}: {of['what']}", short(of["old"]), short(of["new"])] for of in report["changed"]]
    changed = text_table(["", *SIDES], rows) if rows else ""
    who = "".join(f"<p><b>{side}</b>: {escape(_named(report, side))}</p>" for side in SIDES)
    figures: dict[str, Sentence] = dict(_rows(report).items())
    screen = f"""<header>
<p class="aside">Pairlift, two bundles</p>
<h1>What differs between {escape(report["old"]["name"])} and {escape(report["new"]["name"])}?</h1>
<p class="verdict open">{escape(caution(report))}</p>
{who}
<div class="cards wide">
<section class="card"><h2>First, what changed</h2>{changed or "<p>Nothing that a bundle keeps.</p>"}</section>
<section class="card"><h2>Measured on the test of each</h2>{table(report, ["", *SIDES], figures)}</section>
</div>
<p class="aside">{IN_THE_PAGE}</p>
</header>"""
    return document(f"{report['old']['name']} and {report['new']['name']}: two bundles", [screen], report)


def write_page(report: Report, folder: Path) -> Path:
    """Write the page into a folder, which is made where there is none; return its path."""
    return keep_page(as_page(report), folder)
