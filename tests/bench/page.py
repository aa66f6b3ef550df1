"""The page of an uplift report in headless Chromium: does it hold, as an analyst's reader opens it?

Run from the repository: python tests/bench/page.py [--report DIR]

page_console_errors   errors and warnings of the console
page_numbers_unequal  numbers of the page that are not the report's, as they are said to be or as they are written
page_overflow_360px   px by which the page, or text of a drawing, is wider than a telephone of 360 px
page_overflow_print   the same of a printed page
page_text_overlaps    pairs of texts of a drawing that lie on one another
page_network_requests what is asked for beside the page itself
page_kib              size of the file

The page is opened in light and in dark, 360 and 1,100 px wide, and for print; of several reports the worst counts.
--report is a folder of `pairlift uplift`; left out, reports of the tests' small world are made: of a plugin that helps,
of noise, of one that leaks, of one whose values are missing and of one with a day's lag; of the first three at once, of
two side by side, their index, and the pages of a bundle, of two and of an experiment. Needs Debian's `chromium`, or
another one on PATH.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
if __name__ == "__main__":
    # This file's own folder would hide the package `features`.
    sys.path[:] = [str(HERE / "peers"), str(HERE.parent), *(path for path in sys.path if Path(path) != HERE)]

import click  # noqa: E402
import leaky  # noqa: E402
from browser import Browser, chromium  # noqa: E402
from experiment_log import experiment_log  # noqa: E402
from page_numbers import Shown, unequal  # noqa: E402
from world import write_world  # noqa: E402

from ranker.ab.page import as_page as experiment_page  # noqa: E402
from ranker.ab.plan import Metric, Plan  # noqa: E402
from ranker.ab.report import ab_report  # noqa: E402
from ranker.config import load_config  # noqa: E402
from ranker.export.bundle_page import as_page as bundle_page  # noqa: E402
from ranker.export.bundle_page import bundle_report  # noqa: E402
from ranker.export.two_bundles import as_page as two_bundles_page  # noqa: E402
from ranker.export.two_bundles import compare_bundles  # noqa: E402
from ranker.train import train  # noqa: E402
from ranker.uplift.family.page import as_page as family_page  # noqa: E402
from ranker.uplift.family.report import family_report  # noqa: E402
from ranker.uplift.markup import PAGE  # noqa: E402
from ranker.uplift.past.compare import compare  # noqa: E402
from ranker.uplift.past.compared import as_page as compared_page  # noqa: E402
from ranker.uplift.past.index import as_page as index_page  # noqa: E402
from ranker.uplift.past.index import index_of  # noqa: E402
from ranker.uplift.report import uplift_report  # noqa: E402
from ranker.uplift.result import JSON, UpliftReport  # noqa: E402

#: px: of a telephone, of a desk, and of a printed page between its margins
PHONE, DESK, PAPER = 360, 1100, 688
VIEWS = [(scheme, "screen", width) for scheme in ("light", "dark") for width in (PHONE, DESK)]
VIEWS += [("light", "print", PAPER)]
MOST_KIB = 1500
TARGETS = f"no error, no unequal number, no overflow, no overlap, no request, at most {MOST_KIB:,} KiB"
NUMBERS = """[...document.querySelectorAll('[data-path]')].map(
    of => [of.dataset.path, of.dataset.value, of.dataset.kind, of.textContent])"""
#: px of the page beyond its width, and of text beyond its drawing's
OVERFLOW = """Math.max(0, document.documentElement.scrollWidth - document.documentElement.clientWidth,
    ...[...document.querySelectorAll('svg')].flatMap(svg => {
        const box = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].map(of => of.getBoundingClientRect()).map(
            of => Math.max(of.right - box.right, box.left - of.left));
    }))"""
#: texts of a drawing that lie on one another
OVERLAPS = """[...document.querySelectorAll('svg')].reduce((sum, svg) => {
    const boxes = [...svg.querySelectorAll('text')].map(of => of.getBoundingClientRect());
    const meet = (a, b) => a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom;
    return sum + boxes.reduce((n, a, k) => n + boxes.slice(k + 1).filter(b => meet(a, b)).length, 0);
}, 0)"""
CLICKS, CLICKED = Metric("clicks", "sum(click)"), Metric("clicked", "sum(click)", "count(*)")
PLUGINS = (leaky.ALS, leaky.Noise, leaky.NoisyLabel, leaky.OnlyKnown, leaky.Daily)


def examined(browser: Browser, folder: Path) -> dict[str, Any]:
    """Return what is found of the page in a folder, in every view. The worst of each figure."""
    report, page = json.loads((folder / JSON).read_text()), folder / PAGE
    found: dict[str, Any] = {"errors": [], "unequal": [], "overflow": {}, "overlaps": 0, "requests": []}
    for scheme, kind, width in VIEWS:
        browser.media(scheme, kind)
        browser.open(page, width)
        found["errors"] += browser.console
        found["requests"] += [url for url in browser.requests if url != page.resolve().as_uri()]
        numbers = [Shown(*of) for of in browser.run(NUMBERS)]
        found["unequal"] += unequal(numbers, report) if numbers else ["the page has no numbers"]
        found["overlaps"] += browser.run(OVERLAPS)
        found["overflow"][width] = max(found["overflow"].get(width, 0.0), browser.run(OVERFLOW))
    return found | {"numbers": len(numbers), "kib": page.stat().st_size / 1024}


def reports_of_a_world(folder: Path) -> Iterator[Path]:
    """Write a report of each of PLUGINS on the tests' world, and all other pages; return their folders."""
    toml = write_world(folder)
    tables = "".join(
        f'[plugins.{kind.__name__}]\nclass = "{leaky.plugin_of(kind)}"\n'
        + "factors = 8\n" * issubclass(kind, leaky.ALS)
        for kind in PLUGINS
    )
    toml.write_text(f"{toml.read_text()}\n{tables}")
    for kind in PLUGINS:
        report, out = UpliftReport.of(uplift_report(load_config(toml), kind.__name__)), folder / kind.__name__
        report.write_page(out)
        (out / JSON).write_text(json.dumps(report.figures))
        yield out
    yield from _other_pages(folder, toml)


def _other_pages(folder: Path, toml: Path) -> Iterator[Path]:
    """Write the pages of several plugins, of two reports, of the index of all, of bundles, and of an experiment."""
    family, _ = family_report(load_config(toml), [kind.__name__ for kind in PLUGINS[:3]], lists=False)
    yield _kept(folder / "several", family, family_page(family))
    both = compare(*(UpliftReport.read(folder / kind.__name__) for kind in PLUGINS[:2]))
    yield _kept(folder / "moved", both, compared_page(both))
    index = index_of(folder)
    yield _kept(folder / "index", index, index_page(index))
    train(load_config(toml), folder / "bundles" / "new")
    bundle = bundle_report(folder / "bundles" / "new")
    yield _kept(folder / "bundle", bundle, bundle_page(bundle))
    toml.write_text(toml.read_text().replace("trees = 60", "trees = 40"))
    train(load_config(toml), folder / "bundles" / "newer")
    both = compare_bundles(folder / "bundles" / "new", folder / "bundles" / "newer")
    yield _kept(folder / "two bundles", both, two_bundles_page(both))
    experiment = ab_report(experiment_log(folder / "experiment.parquet"), Plan(metrics=[CLICKS, CLICKED]))
    yield _kept(folder / "experiment", experiment, experiment_page(experiment))


def _kept(folder: Path, report: dict[str, Any], page: str) -> Path:
    """Write a page and what it is of."""
    folder.mkdir()
    (folder / JSON).write_text(json.dumps(report))
    (folder / PAGE).write_text(page, encoding="utf-8")
    return folder


def summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of all pages."""
    return {
        "page_console_errors": sum(len(of["errors"]) for of in found.values()),
        "page_numbers_unequal": sum(len(of["unequal"]) for of in found.values()),
        "page_overflow_360px": round(max(of["overflow"][PHONE] for of in found.values()), 1),
        "page_overflow_print": round(max(of["overflow"][PAPER] for of in found.values()), 1),
        "page_text_overlaps": sum(of["overlaps"] for of in found.values()),
        "page_network_requests": sum(len(of["requests"]) for of in found.values()),
        "page_kib": round(max(of["kib"] for of in found.values()), 1),
        "pages": len(found),
        "numbers": sum(of["numbers"] for of in found.values()),
        "views": len(VIEWS),
    }


@click.command()
@click.option("--report", "folder", type=click.Path(path_type=Path, exists=True), help="A folder of `pairlift uplift`.")
def main(folder: Path | None) -> None:
    """Print what is wrong, a table, then the JSON."""
    if chromium() is None:
        raise click.ClickException("no Chromium is on PATH: `apt-get install chromium`")
    with tempfile.TemporaryDirectory() as made, Browser.started() as browser:
        folders = [folder] if folder else list(reports_of_a_world(Path(made)))
        found = {of.name: examined(browser, of) for of in folders}
    for name, of in found.items():
        for what in ("errors", "unequal", "requests"):
            print("".join(f"{name}: {what}: {one}\n" for one in of[what][:5]), end="")
    figures = summary(found)
    print("\n".join(f"{name:24}{value:>10}" for name, value in figures.items()))
    good = not any(figures[name] for name in figures if name.startswith("page_") and name != "page_kib")
    print(f"{'kept' if good and figures['page_kib'] <= MOST_KIB else 'NOT KEPT'}: {TARGETS}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
