"""The page of a report without a browser: every number is the report's, nothing is asked for, and it says no more."""

import copy
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest

sys.path.append(str(Path(__file__).parent / "bench" / "peers"))

from page_numbers import Page, Shown, unequal

from features.errors import PairliftError
from ranker.uplift.canvas import AXIS, MARGIN, ROW, WIDTH
from ranker.uplift.figures import interval_figure
from ranker.uplift.markup import PAGE, terms
from ranker.uplift.page import first_screen
from ranker.uplift.reasons import why
from ranker.uplift.result import UpliftReport
from ranker.uplift.said import Figure, as_html, as_text, costs, interval, pointer
from ranker.uplift.verdict import CHECKS, CLEARED, cleared, doubts

#: as the version with format 4 wrote it, of the tests' world
GOLDEN = Path(__file__).parent / "golden" / "uplift-4.json"
SVG = "{http://www.w3.org/2000/svg}"
Change = Callable[[dict[str, Any]], Any]


def golden(change: Change | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text())
    if change:
        change(found)
    return found


def put(*path: str | int, value: Any) -> Change:
    """Return what puts a value at a place of a report."""

    def change(report: dict[str, Any]) -> None:
        here: Any = report
        for key in path[:-1]:
            here = here[key]
        here[path[-1]] = value

    return change


def several(*changes: Change) -> Change:
    return lambda report: [change(report) for change in changes]


def as_new(report: dict[str, Any]) -> None:
    """As this version has it."""
    report["format"] = 7
    report["cost"] = {"fit_seconds": [0.5, 250.25], "saved_bytes": 5_000_000, "requests": 200, "candidates": 7.66}
    report["cost"] |= {"request_ms": {"p50": 0.0612, "p99": 123.456}, "memory_bytes": 34_567_890}
    part = {"known": 0.9, "mean": -0.00123, "sd": 12.5}
    report["periods"] = {"tried__dot": {"moved": 0.6, "train": part, "validation": part, "test": part}}
    report["split"] = {f"t{k}": f"2024-0{k + 1}-01T00:00:00Z" for k in range(4)}
    report["settings"] = {"plugin": {"class": "x:Y", "text": "</script><b>"}}
    report["made"] = {"command": "pairlift uplift a.toml", "date": "2026-11-27", "version": "1"}


def leaking(report: dict[str, Any]) -> None:
    leak = {"column": "tried__dot", "slice": "test", "groups": 3, "largest": 0.1, "missing": False, "first": []}
    report["controls"]["as_of"]["leaks"] = [leak, leak | {"slice": "train"}]
    report |= {"leaks": 2, "useful": False, "lists": {"remark": "not measured, for the plugin leaks"}}


def without_interval(report: dict[str, Any]) -> None:
    report |= {"ci95": [None, None], "minimum_detectable_uplift": None, "useful": False}
    report["macro"] |= {"ci95": [None, None]}


def nothing_right(report: dict[str, Any]) -> None:
    without_interval(report)
    unknown = {"relative_uplift": None, "ci95": [None, None]}
    for part in (report, report["macro"], report["pair_accuracy_catboost"], report["missingness"]["beyond"]):
        part.update(unknown)
    report |= {"without": None, "with": None, "effective_users": None, "slices": {"grade_pair": {}}}
    report["tie_share"] = {"without": None, "with": None}
    report["column_alone"] = {"tried__dot": {"pair_accuracy": None, "comparable": None}}


def of_format_3(report: dict[str, Any]) -> None:
    report["format"] = 3
    for later in ("heads", "lag", "shown_order"):
        del report[later]


def of_format_6(report: dict[str, Any]) -> None:
    as_new(report)
    report["format"] = 6
    del report["cost"]["memory_bytes"]


def unmeasured(report: dict[str, Any]) -> None:
    as_new(report)
    report["cost"]["memory_bytes"] = None


def strange_names(report: dict[str, Any]) -> None:
    """Names that HTML, JSON pointers, matplotlib's mathematics and its fonts would each take for something."""
    first = report["slices"]["grade_pair"].pop("like > skip")
    report["slices"]["surface"] = {'a/b~c "<i>$x^2$ @0@': first, "日本 & ж": first, "{/ci95|percent}": first}
    report["plugin"] = "<script>alert(1)</script>"
    report["importance"] = {"a & <b>": 0.5, "$_$": 0.5}


def many_columns(report: dict[str, Any]) -> None:
    """A plugin with its whole vectors, all of which have moved."""
    as_new(report)
    report["columns"] = [f"tried__item_vector_{k}" for k in range(64)]
    for part in ("column_alone", "periods"):
        (of,) = report[part].values()
        report[part] = dict.fromkeys(report["columns"], of)


CASES: dict[str, Change] = {
    "as format 4": lambda _: None,
    "as format 3": of_format_3,
    "as format 6": of_format_6,
    "memory not measured": unmeasured,
    "new": as_new,
    "leaking": leaking,
    "without an interval": without_interval,
    "nothing right": nothing_right,
    "strange names": several(as_new, strange_names),
    "no slices": put("slices", value={}),
    "many columns": many_columns,
}


def page_of(report: dict[str, Any], folder: Path) -> Page:
    UpliftReport.of(report).write_page(folder)
    return Page(folder / PAGE)


@pytest.mark.parametrize("case", CASES)
def test_every_number_is_the_reports_and_nothing_is_asked_for(case: str, tmp_path: Path) -> None:
    report = UpliftReport.of(golden(CASES[case])).figures
    page = page_of(golden(CASES[case]), tmp_path)
    assert len(page.numbers) > 50
    assert unequal(page.numbers, report) == []
    assert not page.open
    assert not page.wrong
    assert all(link.startswith("#") for link in page.links), page.links
    assert json.loads(page.json) == report
    assert (tmp_path / PAGE).stat().st_size < 1500 * 1024
    text = (tmp_path / PAGE).read_text()
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")
    assert "<script>" not in text
    assert "@0@" not in text.replace("$ @0@", "")


def test_a_number_that_is_another_is_told() -> None:
    report = {"a": 0.0223, "b": [1.0, 2.0], "c": 0.0009, "d": None}
    right = [
        Shown("/a", "0.0223", "percent", "+2.23 %"),
        Shown("/b", "1.5", "number", "1.5"),
        Shown("/c", "0.0009", "error", "3 %"),
        Shown("/d", "null", "count", "-"),
    ]
    assert unequal(right, report) == []
    wrong = [
        Shown("/a", "0.0224", "percent", "+2.23 %"),
        Shown("/a", "0.0223", "percent", "+2.24 %"),
        Shown("/a", "0.0223", "percent", "2.23"),
        Shown("/b", "1.5", "number", "many"),
        Shown("/d", "1.0", "number", "1"),
        Shown("/e", "1.0", "number", "1"),
    ]
    assert len(unequal(wrong, report)) == len(wrong)


@pytest.mark.parametrize(("case", "says"), [("new", "33 MiB"), ("memory not measured", None), ("as format 6", None)])
def test_the_memory_is_said_where_the_report_has_it(case: str, says: str | None, tmp_path: Path) -> None:
    page = page_of(golden(CASES[case]), tmp_path)
    assert [of.text for of in page.numbers if of.path == "/cost/memory_bytes"] == ([says] if says else [])
    text = [as_text(golden(CASES[case]), of) for of in costs(golden(CASES[case]))]
    assert [of.split(" more ")[0] for of in text if "memory" in of] == ([says] if says else [])


@pytest.mark.parametrize("case", CASES)
def test_drawings_are_whole_and_in_the_pages_colours(case: str) -> None:
    for name, svg in UpliftReport.of(golden(CASES[case])).plots().items():
        root = ElementTree.fromstring(svg)
        assert root.tag == f"{SVG}svg", name
        assert root.get("aria-label"), name
        assert "#0101" not in svg  # what stands for a colour
        assert list(root.iter(f"{SVG}text")), name


def test_the_interval_is_on_its_place() -> None:
    report = UpliftReport.of(golden()).figures
    root = ElementTree.fromstring(UpliftReport(report).plots()["interval"])
    ends = {}
    for group in root.iter(f"{SVG}g"):
        if mark := group.get("data-mark"):
            numbers = group[0].get("d", "").replace("M", "").replace("L", "").split()
            ends[mark] = [float(x) for x in numbers[::2]]
    low, high = report["ci95"]
    least = report["minimum_detectable_uplift"]
    scale = (ends["/ci95"][1] - ends["/ci95"][0]) / (high - low)
    start, stop = ends["/minimum_detectable_uplift"]
    assert stop - start == pytest.approx(scale * least, rel=1e-4)
    assert ends["/ci95"][0] - start == pytest.approx(scale * low, rel=1e-4)
    assert MARGIN <= start < ends["/ci95"][1] <= WIDTH - MARGIN
    assert root.get("viewBox") == f"0 0 {WIDTH} {2 * ROW + AXIS}"


INTERVALS = {
    (
        0.01,
        0.03,
    ): ": the relative uplift is between +1.00 % and +3.00 % (95 %). That is of 60 users, 1 fit and 2 seeds; "
    "at least 3 fits and 5 seeds are advised.",
    (-0.01, 0.03): "between -1.00 % and +3.00 % (95 %): a gain above +3.00 % is ruled out, a smaller one is not.",
    (-0.03, -0.01): "falls: the relative change is between -3.00 % and -1.00 % (95 %).",
}


@pytest.mark.parametrize("ends", INTERVALS)
def test_the_verdict_claims_no_more_than_the_interval(ends: tuple[float, float]) -> None:
    report = golden(several(put("ci95", value=list(ends)), put("useful", value=ends[0] > 0)))
    assert as_text(report, why(report)).endswith(INTERVALS[ends])


def test_the_verdict_says_why_a_gain_is_not_useful() -> None:
    not_run = several(put("useful", value=False), put("controls", "refit", "groups", value=0))
    assert "but a leak control could not be run" in as_text(golden(not_run), why(golden(not_run)))
    beyond = several(put("useful", value=False), put("missingness", "beyond", "ci95", value=[-0.01, 0.01]))
    drawn = interval_figure(golden(beyond))
    assert drawn.count('data-mark="/missingness/beyond/ci95"') == 1
    assert "beyond" not in interval_figure(golden()) + interval_figure(golden(not_run))
    tied = golden(several(beyond, put("tie_share", "without", value=0.9)))
    assert as_text(tied, why(tied)).endswith("Without it, 90 % of the pairs tie.")
    enough = golden(several(put("fits", value=3), put("seeds", value=[0, 1, 2, 3, 4])))
    assert as_text(enough, why(enough)).endswith("(95 %).")
    assert "which values are missing it is +53.32 % [-1.00, +1.00]." in as_text(golden(beyond), why(golden(beyond)))
    assert "as_of" in as_text(golden(leaking), why(golden(leaking)))
    assert "There is no interval" in as_text(golden(without_interval), why(golden(without_interval)))


DEBIASED = {"debiased": {"uplift": {"relative_uplift": 0.01, "ci95": [-0.01, 0.03]}}}
DOUBTS: dict[str, tuple[Change, str]] = {
    "leaks": (leaking, "tried__dot differs in the control as_of, so its"),
    "leak controls": (
        several(put("controls", "refit", "groups", value=0), put("controls", "refit", "remark", value="of one fit")),
        "the leak control refit was not run: of one fit",
    ),
    "columns that know the label's event": (
        put("column_alone", "tried__dot", "pair_accuracy", value=0.99), "tried__dot alone orders 0.9900 of the pairs"
    ),
    "enough for an interval": (without_interval, "one user has all that is right"),
    "missing values": (
        put("column_alone", "tried__dot", "comparable", value=0.7), "known on both sides of only 70 % of the pairs"
    ),
    "shuffled columns": (put("shuffled", "above_zero", value=True), "a further column is lucky here"),
    "effective users": (put("effective_users", value=12.3), "60 users are worth 12 equally active ones"),
    "each user alike": (
        put("macro", "ci95", value=[-0.01, 0.3]), "were each user to count alike, it is +51.45 % [-1.00, +30.00]"
    ),
    "debiased for places": (put("shown_order", value=DEBIASED), "the uplift is +1.00 % [-1.00, +3.00]"),
    "lists": (put("lists", "ndcg@10", "ci95", value=[-0.2, -0.1]), "get worse: NDCG@10 +3.74 % [-20.00, -10.00]"),
    "agreement of fits": (
        several(put("variance", "fits", value=0.1), put("fit_sd", value=0.3)), "have a standard deviation of 30 %"
    ),
    "fits and seeds": (lambda _: None, "only 1 fit of the plugin; at least 3 are advised"),
    "trees": (put("trees", "with", value=[[90, 110]]), "25 without it, 100 with it"),
    "the most trees": (put("at_cap", "with", value=2), "2 of 2 boosters with it, 0 of 2"),
    "ties": (put("tie_share", "without", value=0.18), "18 % of the pairs are ties without it"),
    "drift": (as_new, "tried__dot has moved by 0.6 of its spread"),
    "drawn pairs": (
        several(put("pairs_kind", value="sampled"), put("sampler", value="recent")), "were drawn (sampler = 'recent')"
    ),
}  # fmt: skip


def test_what_is_known_too_little_or_said_otherwise_is_not_cleared() -> None:
    narrow = several(*(put("lists", key, "ci95", value=[-0.01, 0.02]) for key in ("recall@10", "ndcg@10")))
    assert "lists" in cleared(UpliftReport.of(golden(narrow)).figures)
    alike = UpliftReport.of(golden(DOUBTS["each user alike"][0])).figures
    assert "effective users" in cleared(UpliftReport.of(golden()).figures)
    assert "effective users" not in cleared(alike)  # "users of many pairs decide" is said above it


def test_a_page_that_is_passed_on_has_no_ids_of_users(tmp_path: Path) -> None:
    def named(report: dict[str, Any]) -> None:
        leaking(report)
        report["controls"]["as_of"]["leaks"][0]["first"] = [{"user": "u-178", "as_of": "2024-01-01T00:00:00Z"}]

    page_of(golden(named), tmp_path)
    page = (tmp_path / PAGE).read_text()
    assert "u-178" not in page
    assert '"first": [{"as_of": "2024-01-01T00:00:00Z"}]' in page


def test_every_guard_rail_has_a_case() -> None:
    assert list(DOUBTS) == list(CHECKS)


@pytest.mark.parametrize("name", DOUBTS)
def test_a_guard_rail_is_told_where_it_holds_and_not_elsewhere(name: str) -> None:
    report = UpliftReport.of(golden(DOUBTS[name][0])).figures
    said = {of.name: as_text(report, of.sentence) for of in reversed(doubts(report))}  # the first of each name
    assert DOUBTS[name][1] in said[name]
    assert name not in cleared(report)
    plain = UpliftReport.of(golden()).figures
    assert {of.name for of in doubts(plain)} == {"fits and seeds"}
    unknown = {"debiased for places", "agreement of fits", "drift", "lists"}  # format 4, one fit, no places, few users
    assert set(cleared(plain)) == set(CHECKS) - unknown - {"fits and seeds"}
    assert name in {*cleared(plain), *unknown, "fits and seeds"}


def test_a_debiased_uplift_that_is_not_known_is_neither_a_doubt_nor_cleared() -> None:
    nothing = {"debiased": {"uplift": {"relative_uplift": None, "ci95": [None, None]}}}
    report = UpliftReport.of(golden(put("shown_order", value=nothing))).figures
    assert "debiased for places" not in {*cleared(report), *(of.name for of in doubts(report))}


def test_of_many_columns_a_few_are_told(tmp_path: Path) -> None:
    report = UpliftReport.of(golden(many_columns))
    assert [of.endswith("since the training rows") for of in report.doubts].count(True) == 3
    assert "and 61 more of the kind" in report.doubts
    page_of(golden(many_columns), tmp_path)
    assert "better with its columns (64 of them)" in (tmp_path / PAGE).read_text()
    assert "52 more columns are in the JSON" in (tmp_path / PAGE).read_text()


def test_the_first_screen_of_a_leak_shows_no_gain(tmp_path: Path) -> None:
    page_of(golden(leaking), tmp_path)
    text = (tmp_path / PAGE).read_text()
    assert 'class="verdict bad"' in text
    assert "says nothing: it leaks" in text
    assert "Not to doubt" not in text
    assert 'data-mark="/ci95"' not in first_screen(golden(leaking))
    assert 'class="struck"' in text


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"format": 2, "plugin": "x"}, "a report of format 3 to 7 was expected, found 2: measure it again"),
        ({"format": 99, "plugin": "x"}, "found 99"),
        ({"pairs": 3}, "a report of `pairlift uplift` was expected"),
        ([1], "a report of `pairlift uplift` was expected"),
    ],
)
def test_what_is_no_report_of_a_known_format_is_a_sentence(found: Any, says: str, tmp_path: Path) -> None:
    (tmp_path / "uplift.json").write_text(json.dumps(found))
    with pytest.raises(PairliftError, match=says):
        UpliftReport.read(tmp_path)


def test_other_files_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "uplift.json").write_text("{")
    with pytest.raises(PairliftError, match="JSON was expected"):
        UpliftReport.read(tmp_path)
    with pytest.raises(PairliftError, match="there is no report"):
        UpliftReport.read(tmp_path / "none")
    with pytest.raises(PairliftError, match=r"a table of arms, slices, importance was expected, found 'slice'"):
        UpliftReport.read(GOLDEN).table("slice")


def test_what_a_leak_changed_is_counted_and_what_was_cleared_is_a_phrase(tmp_path: Path) -> None:
    of = UpliftReport.of(golden(leaking))
    compared = of.figures["controls"]["as_of"]["groups"]
    assert of.doubts[0].endswith(f"(groups that differ: 3 of test, 3 of train; compared: {compared:,})")
    page_of(golden(), tmp_path)
    assert "Not to doubt: both leak controls ran and found none; no column alone" in (tmp_path / PAGE).read_text()
    assert set(CLEARED) < set(CHECKS)


def test_no_line_ends_within_a_date_or_an_option() -> None:
    words = '2 &lt;to&gt; <span class="word">b-c</span> <span class="word">--out</span> x'
    assert as_html({}, ["2026-11-27T01:02:03Z"]) == '<span class="n">2026-11-27T01:02:03Z</span>'
    assert as_html({}, ["on 2026-11-27 <b>"]) == 'on <span class="n">2026-11-27</span> &lt;b&gt;'
    part = {"relative_uplift": 0.1, "ci95": [0.0, 0.2]}
    assert ",\u00a0" in as_html(part, interval())
    assert as_text(part, interval()) == "+10.00 % [+0.00, +20.00]"
    assert terms({"a": "2 <to> b-c --out x"}) == f"<dl><div><dt>a</dt><dd>{words}</dd></div></dl>"


def test_the_calibration_of_both_arms_is_drawn_on_one_axis() -> None:
    ends = {"without": (0.5, 0.6), "with": (0.55, 0.95)}
    of = {arm: {"bins": [{"share": 1, "predicted": a, "observed": b}], "error": b - a} for arm, (a, b) in ends.items()}
    plots = UpliftReport.of(golden(put("calibration", value=of))).plots()
    axes = [re.findall(r"\d+ %<", plots[f"calibration_{arm}"])[-4:] for arm in ends]
    assert axes[0] == axes[1] == ["60 %<", "70 %<", "80 %<", "90 %<"]


def test_a_lag_is_told_on_the_first_screen(tmp_path: Path) -> None:
    page_of(golden(put("lag", value="1d")), tmp_path)
    assert "ones). Its values lag 1d behind the events, in training as in serving.</p>" in (tmp_path / PAGE).read_text()
    page_of(golden(), tmp_path)
    assert "in training as in serving" not in (tmp_path / PAGE).read_text()


def test_a_notebook_has_tables_plots_and_the_first_screen(tmp_path: Path) -> None:
    report = UpliftReport.read(GOLDEN)
    assert report.verdict == "tried is useful with this one fit (others were not tried)"
    assert report.doubts[0] == "only 1 fit of the plugin; at least 3 are advised"
    shown = report._repr_html_()
    assert "Is tried useful to the ranker?" in shown
    assert "<script" not in shown
    assert len(shown) < 20_000
    assert set(report.plots()) >= {"interval", "uplifts", "arms", "importance", "grade_pair"}
    report.write_page(tmp_path)
    slices = pq.read_table(tmp_path / "slices.parquet").to_pylist()
    assert len(slices) == sum(map(len, report.figures["slices"].values()))
    one = next(row for row in slices if row["slice"] == "like > skip")
    of = report.figures["slices"]["grade_pair"]["like > skip"]
    assert [one["low"], one["high"]] == of["ci95"]
    assert one["shrunk_relative_uplift"] == of["shrunk"]["relative_uplift"]
    arms = dict(zip(*pq.read_table(tmp_path / "arms.parquet").to_pydict().values(), strict=True))
    assert arms["with the plugin"] == report.figures["with"]
    gains = pq.read_table(tmp_path / "importance.parquet").to_pydict()
    assert dict(zip(*gains.values(), strict=True)) == report.figures["importance"]
    pytest.importorskip("pandas")
    assert report.frame("slices").shape == (len(slices), 14)


def test_reading_leaves_the_json_as_it_is() -> None:
    found = golden()
    before = copy.deepcopy(found)
    UpliftReport.of(found)
    assert found == before


def test_figures_are_written_in_the_unit_that_fits() -> None:
    report = {"a": [0.5, 250.5], "b": 0.0004, "c": 1e8, "d": 300, "f": 1}
    written = {("a", "seconds"): "2.09 min", ("b", "seconds"): "0.4 ms", ("c", "bytes"): "95.4 MiB"}
    written |= {("f", "bytes"): "1 byte", ("d", "bytes"): "300 bytes"}
    written |= {("d", "number"): "300", ("c", "count"): "100,000,000", ("e", "percent"): "-"}
    assert {of: Figure(of[:1], of[1]).text(report) for of in written} == written
    near = {("percent", -0.00004): "+0.00 %", ("percent", -0.00006): "-0.01 %", ("gain", -4e-5): "+0.0000"}
    assert {(kind, value): Figure(("a",), kind).text({"a": value}) for kind, value in near} == near
    assert pointer(("a/b", "~", 3)) == "/a~1b/~0/3"
