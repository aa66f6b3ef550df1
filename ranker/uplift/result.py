"""An uplift report as an object: for a notebook, and to write (or write again) its page.

from ranker.uplift.result import UpliftReport
report = UpliftReport.read("mine/report")      # or UpliftReport.measured("mine/pairlift.toml", "two_tower")
report                                         # a notebook shows the first screen of its page
report.frame("slices")                         # a pandas data frame, where pandas is installed
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import PairliftError, did_you_mean
from features.files import written
from ranker.config import Config, load_config, plugin_of
from ranker.training.arms import Arms
from ranker.training.prepared import prepare
from ranker.uplift import figures
from ranker.uplift.explain.asked import row_labels
from ranker.uplift.markup import keep_page
from ranker.uplift.page import as_fragment, as_page
from ranker.uplift.report import FORMAT, report_on
from ranker.uplift.said import as_text, found_at
from ranker.uplift.shrunk import with_shrunk
from ranker.uplift.users import USERS, read_users, users_table
from ranker.uplift.verdict import doubts, verdict

#: the oldest format that has a page
OLDEST = 3
#: file of the figures
JSON = "uplift.json"
#: what later formats have, empty
LATER: dict[str, Any] = {
    "lag": "",
    "heads": {},
    "shown_order": None,
    "slices": {},
    "importance": {},
    "contributions": {},
    "calibration": {},
}


def found_json(file: Path) -> Any:
    """Return what a file of a report holds; PairliftError where there is no file, or no JSON in it."""
    if not file.is_file():
        raise PairliftError(f"there is no report {file}: `pairlift uplift CONFIG --plugin NAME --out DIR` writes one")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise PairliftError(f"{file}: JSON was expected, found something else ({error})") from error


@dataclass(frozen=True, slots=True)
class UpliftReport:
    """A report, with what later formats have of each slice."""

    figures: dict[str, Any]  # what `uplift.json` holds
    users: pa.Table | None = None  # `ranker.uplift.users.users_table`; None of one that did not keep it

    @classmethod
    def of(cls, found: dict[str, Any], users: pa.Table | None = None) -> "UpliftReport":
        """Return the report of what a JSON file holds; PairliftError where that is none, or too old."""
        if isinstance(found, dict) and "plugins" in found:
            names = ", ".join(found["plugins"])
            raise PairliftError(f"a report of one plugin was expected, found one of {names}: name the folder of one")
        known = found.get("format") if isinstance(found, dict) and "plugin" in found else None
        if not isinstance(known, int):
            raise PairliftError("a report of `pairlift uplift` was expected, found other JSON: name its uplift.json")
        if not OLDEST <= known <= FORMAT:
            raise PairliftError(
                f"a report of format {OLDEST} to {FORMAT} was expected, found {known}: measure it again with this "
                "version"
            )
        found = LATER | found
        if any("shrunk" not in of for values in found["slices"].values() for of in values.values()):
            found["slices"] = with_shrunk(found["slices"], found)
        return cls(found, users)

    @classmethod
    def read(cls, path: Path | str) -> "UpliftReport":
        """Read `uplift.json`, or that of a folder."""
        file = Path(path)
        file = file / JSON if file.is_dir() else file
        users = file.with_name(USERS)
        found = cls.of(found_json(file))
        return cls(found.figures, read_users(users, found.figures)) if users.is_file() else found

    @classmethod
    def measured(cls, config: Config | Path | str, plugin: str, lists: bool = True) -> "UpliftReport":
        """Measure a plugin of a TOML as `pairlift uplift` does; fits are resumed."""
        loaded = config if isinstance(config, Config) else load_config(Path(config))
        plugin_of(loaded, plugin)  # before the log is read
        arms = Arms.of(prepare(loaded))
        report, fits = report_on(arms, plugin, row_labels(arms), lists)
        return cls.of(report, users_table(arms, plugin, fits))

    @property
    def verdict(self) -> str:
        """The plugin and what is said of it."""
        return f"{self.figures['plugin']} {verdict(self.figures)}"

    @property
    def doubts(self) -> list[str]:
        """What speaks against trusting the number, a sentence each."""
        return [as_text(self.figures, doubt.sentence) for doubt in doubts(self.figures)]

    def table(self, name: str) -> pa.Table:
        """Return what a figure shows: `arms`, `slices` or `importance`."""
        if name not in TABLES:
            hint = did_you_mean(name, list(TABLES))
            raise PairliftError(f"a table of {', '.join(TABLES)} was expected, found '{name}'{hint}")
        return TABLES[name](self.figures)

    def frame(self, name: str) -> Any:
        """Return a table as a pandas data frame; ImportError without pandas."""
        return self.table(name).to_pandas()

    def plots(self) -> dict[str, str]:
        """Return each figure of the page as SVG, by name."""
        drawn = {
            "interval": figures.interval_figure(self.figures),
            "uplifts": figures.uplifts_figure(self.figures),
            "arms": figures.arms_figure(self.figures),
        }
        if self.figures["importance"]:
            drawn["importance"] = figures.importance_figure(self.figures)
        if self.figures["contributions"]:
            drawn["contributions"] = figures.contributions_figure(self.figures)
        for arm, of in self.figures["calibration"].items():
            if of["bins"]:
                drawn[f"calibration_{arm}"] = figures.calibration_figure(self.figures, arm)
        return drawn | figures.slice_figures(self.figures)

    def page(self) -> str:
        """Return the page."""
        return as_page(self.figures)

    def write_page(self, folder: Path | str) -> list[Path]:
        """Write `report.html` and a Parquet file of each table, and of the users where known; return their paths."""
        folder = Path(folder)
        page = keep_page(self.page(), folder)
        tables = {f"{name}.parquet": self.table(name) for name in TABLES}
        if self.users is not None:
            tables[USERS] = self.users
        for name, table in tables.items():
            with written(folder / name) as partial:
                pq.write_table(table, partial)
        return [page, *(folder / name for name in tables)]

    def _repr_html_(self) -> str:
        return as_fragment(self.figures)


def _arms(report: dict[str, Any]) -> pa.Table:
    """Return PairAccuracy of each arm and control."""
    values = {label: found_at(report, path) for label, path in figures.accuracies(report).items()}
    return pa.table({"arm": pa.array(values, pa.string()), "pair_accuracy": pa.array(values.values(), pa.float64())})


def _slices(report: dict[str, Any]) -> pa.Table:
    """Return a row for each slice: as it was measured, and shrunk."""
    rows = [
        {"kind": kind, "slice": name, "pairs": of["pairs"], "users": of["users"], "small": of["small"]}
        | {"without": of["without"], "with": of["with"], **_ends(of, ""), **_ends(of["shrunk"], "shrunk_")}
        | {"own": of["shrunk"]["own"]}
        for kind, values in report["slices"].items()
        for name, of in values.items()
    ]
    return pa.Table.from_pylist(rows, SLICES)


def _ends(of: dict[str, Any], prefix: str) -> dict[str, Any]:
    low, high = of["ci95"]
    return {f"{prefix}relative_uplift": of["relative_uplift"], f"{prefix}low": low, f"{prefix}high": high}


def _importance(report: dict[str, Any]) -> pa.Table:
    """Return each column's share of the gain."""
    shares = report["importance"]
    return pa.table({"column": pa.array(shares, pa.string()), "gain": pa.array(shares.values(), pa.float64())})


SLICES = pa.schema(
    [("kind", pa.string()), ("slice", pa.string()), ("pairs", pa.int64()), ("users", pa.int64()), ("small", pa.bool_())]
    + [(name, pa.float64()) for name in ("without", "with", "relative_uplift", "low", "high")]
    + [(name, pa.float64()) for name in ("shrunk_relative_uplift", "shrunk_low", "shrunk_high", "own")]
)
TABLES: dict[str, Callable[[dict[str, Any]], pa.Table]] = {
    "arms": _arms,
    "slices": _slices,
    "importance": _importance,
}
