"""An experiment's report as an object, for a notebook: it shows the first screen of its page.

from ranker.ab.plan import Plan, metric_of
report = AbReport.measured("experiment.parquet", Plan(metrics=[metric_of("clicks=sum(click)")]))
report.frame()                       # a pandas data frame of every metric and arm, where pandas is installed
AbReport.read("out").page()          # of an older `ab.json`
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from features.errors import PairliftError
from ranker.ab.page import as_fragment, as_page
from ranker.ab.plan import Plan
from ranker.ab.report import FORMAT, ab_report
from ranker.ab.verdict import verdict
from ranker.uplift.markup import keep_page

#: file of the figures
JSON = "ab.json"
KEYS = ("relative_uplift", "p", "p_holm", "variance_fell", "decided", "refused")


@dataclass(frozen=True, slots=True)
class AbReport:
    """A report."""

    figures: dict[str, Any]  # what `ab.json` holds

    @classmethod
    def measured(cls, source: Path | str, plan: Plan) -> "AbReport":
        """Measure a log as `pairlift ab` does."""
        return cls(ab_report(str(source), plan))

    @classmethod
    def read(cls, path: Path | str) -> "AbReport":
        """Read `ab.json`, or that of a folder; PairliftError where that is none."""
        file = Path(path)
        file = file / JSON if file.is_dir() else file
        if not file.is_file():
            raise PairliftError(f"there is no report {file}: `pairlift ab LOG --metric ... --out DIR` writes one")
        try:
            found = json.loads(file.read_text())
        except ValueError as error:
            raise PairliftError(f"{file}: JSON was expected, found something else ({error})") from error
        if not (isinstance(found, dict) and found.get("format") == FORMAT and "primary" in found):
            raise PairliftError(f"{file}: a report of `pairlift ab` of format {FORMAT} was expected, found other JSON")
        return cls(found)

    @property
    def verdict(self) -> str:
        """What is said of every arm."""
        return verdict(self.figures)

    def table(self) -> pa.Table:
        """Return a row for each metric and arm: the uplift, both intervals, p."""
        rows = [
            {"metric": name, "arm": arm, "value": metric["arms"][arm]["value"]}
            | {f"{key}_{end}": of[key][k] for key in ("always95", "fixed95") for k, end in enumerate(("low", "high"))}
            | {key: of[key] for key in KEYS}
            for name, metric in self.figures["metrics"].items()
            for arm, of in metric["against"].items()
        ]
        return pa.Table.from_pylist(rows)

    def frame(self) -> Any:
        """Return the table as a pandas data frame; ImportError without pandas."""
        return self.table().to_pandas()

    def page(self) -> str:
        """Return the page."""
        return as_page(self.figures)

    def write_page(self, folder: Path | str) -> Path:
        """Write `report.html`; return its path."""
        return keep_page(self.page(), Path(folder))

    def _repr_html_(self) -> str:
        return as_fragment(self.figures)
