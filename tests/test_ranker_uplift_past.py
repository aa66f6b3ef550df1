"""Two reports side by side, and the index of past ones: what changed, what moved, and no more than they say."""

import copy
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent / "bench" / "peers"))

from page_numbers import Page, unequal

from features.errors import PairliftError
from ranker.cli.main import cli
from ranker.metrics.interval import relative_uplift
from ranker.uplift.markup import PAGE
from ranker.uplift.past.compare import compare
from ranker.uplift.past.compared import as_lines, caution, said, write_page
from ranker.uplift.past.dated import reports_of
from ranker.uplift.past.index import INDEX, index_of, write_index
from ranker.uplift.past.index import as_lines as lines_of
from ranker.uplift.result import UpliftReport
from ranker.uplift.said import as_text

GOLDEN = Path(__file__).parent / "golden" / "uplift-4.json"


def golden(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text())
    return found | changes


#: trees of other fits
OTHER = {"without": [[1, 2]], "with": [[3, 4]]}


def users_of(right: tuple[np.ndarray, np.ndarray], ids: list[Any]) -> pa.Table:
    return pa.table({"user": ids, "total": right[0] + 1, "without": right[0], "with": right[1]})


def measured(without: np.ndarray, with_: np.ndarray, ids: list[Any]) -> UpliftReport:
    """A report of one fit and one seed over users of these right pairs."""
    found = relative_uplift(without[None, None], with_[None, None])
    report = golden(fits=1, fit_seeds=[0], seeds=[0], **found.reported())
    report["variance"] = {"users": found.variance["users"], "fits": None, "seeds": None}
    return UpliftReport.of(report, users_of((without, with_), ids))


def main_move(one: UpliftReport, other: UpliftReport) -> dict[str, Any]:
    move: dict[str, Any] = compare(one, other)["moves"][0]
    assert move["name"] == "PairAccuracy"
    return move


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 60))
def test_over_the_same_base_it_is_the_uplift_of_the_difference(seed: int, n: int) -> None:
    """Two plugins over one base, the same users: u' - u is the uplift of base + with' - with."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(1, 9, n)
    one, other = (base * rng.normal(1.02, 0.05, n) for _ in range(2))
    wanted = relative_uplift(base[None, None], (base + other - one)[None, None])
    ids = list(range(n))
    order = rng.permutation(n)
    found = main_move(measured(base, one, ids), measured(base[order], other[order], order.tolist()))
    assert found["paired"]
    assert found["difference"]["relative_uplift"] == pytest.approx(wanted.uplift)
    assert found["difference"]["ci95"] == pytest.approx([wanted.low, wanted.high])


def test_users_who_weigh_one_are_compared_user_by_user() -> None:
    """Over a base in which all have as much right, it is as the main uplift is; over another one, it has its own."""
    rng = np.random.default_rng(5)
    total, ids = rng.uniform(5, 9, 40), list(range(40))
    reports, shares = [], []
    for _ in range(2):
        right = (np.full(40, 0.5) * total, rng.uniform(0.5, 0.7, 40) * total)
        report = measured(*right, ids)
        shares.append([of / total for of in right])
        one = relative_uplift(*(of[None, None] for of in shares[-1]))
        macro = one.reported() | {"variance": {"users": one.variance["users"], "fits": None, "seeds": None}}
        report.figures["macro"] |= macro
        users = report.users.set_column(1, "total", pa.array(total))
        reports.append(UpliftReport.of(report.figures, users))
    found = compare(*reports)["moves"][1]
    (base, one), (_, other) = shares
    wanted = relative_uplift(base[None, None], (base + other - one)[None, None])
    assert (found["name"], found["paired"]) == ("each user weighs one", True)
    assert found["difference"]["ci95"] == pytest.approx([wanted.low, wanted.high])


def test_users_in_common_are_counted_once_and_others_are_independent() -> None:
    rng = np.random.default_rng(3)
    base = rng.uniform(1, 9, 80)
    one = base * rng.normal(1.02, 0.05, 80)
    other = one + base * 0.02 + rng.normal(0, 0.01, 80)
    same, half, none = (
        main_move(measured(base, one, list(range(80))), measured(base, other, list(range(80 - k, 160 - k))))
        for k in (80, 40, 0)
    )
    widths = [of["difference"]["ci95"][1] - of["difference"]["ci95"][0] for of in (same, half, none)]
    assert widths[0] < widths[1] / 3 < widths[2] / 3
    assert [of["paired"] for of in (same, half, none)] == [True, True, False]
    assert same["direction"] == "up"
    text = main_move(measured(base, one, list(range(80))), measured(base, other, [str(k) for k in range(80)]))
    assert text["difference"] == none["difference"]  # ids of another kind are other users
    elsewhere = measured(base, other, list(range(80)))
    elsewhere.figures["data"] = "another log"
    assert not main_move(measured(base, one, list(range(80))), elsewhere)["paired"]


def test_independent_reports_have_both_variances() -> None:
    found = compare(UpliftReport.of(golden()), UpliftReport.of(golden(seeds=[7, 8, 9], trees=OTHER)))
    assert not found["identical"]
    assert caution(found) == "Changed: settings (1 entry), so it need not be the plugin alone."
    for move in found["moves"]:
        assert move["difference"]["relative_uplift"] == 0
        assert not move["paired"]
        low, high = move["old"]["ci95"]
        width = move["difference"]["ci95"][1] - move["difference"]["ci95"][0]
        assert width <= 1e-12 or 1.1 < width / (high - low) < np.sqrt(2) + 0.01
    assert "is not shown to have moved: new less old is +0.00 %" in as_text(found, said(found))


def test_of_the_same_fits_nothing_can_have_moved_and_one_sentence_says_so(tmp_path: Path) -> None:
    found = compare(UpliftReport.of(golden()), UpliftReport.of(golden(made={"version": "2"})))
    assert found["same_fits"]
    assert caution(found) == "Changed: versions (1 entry), but not the fits."
    assert {(*of["difference"]["ci95"], of["direction"]) for of in found["moves"]} == {(0, 0, "")}
    says = "Both are of the same fits and the same pairs, so nothing has moved and there is nothing to tell."
    assert as_text(found, said(found)) == f"Identical, the same numbers to the last digit. {says}"
    assert "new less old [95 %]" not in as_lines(found)
    text = write_page(found, tmp_path).read_text()
    assert says in text
    assert "What moved" not in text


def test_a_slice_of_the_same_fits_that_is_defined_otherwise_has_no_interval(tmp_path: Path) -> None:
    new = golden()
    of = next(of for of in new["slices"].values() if len(of) > 1)
    of[next(iter(of))]["relative_uplift"] += 0.01
    found = compare(UpliftReport.of(golden()), UpliftReport.of(new))
    (moved,) = [of for of in found["moves"] if of["difference"]["ci95"] != [0, 0]]
    assert (moved["kind"] != "", moved["difference"]["ci95"], moved["direction"]) == (True, [None, None], "")
    assert as_text(found, said(found)).endswith(
        "the uplift has not moved. What differs below is of lists, or is defined otherwise."
    )
    assert as_lines(found).count("[-, -]") == 1
    page = Page(write_page(found, tmp_path))
    assert unequal(page.numbers, found) == []


def test_lists_of_the_same_fits_may_move_for_their_sources() -> None:
    new = golden()
    of = new["lists"]["ndcg@10"]
    of["relative_uplift"] += 0.9
    of["ci95"] = [end + 0.9 for end in of["ci95"]]
    found = compare(UpliftReport.of(golden()), UpliftReport.of(new))
    (moved,) = [of for of in found["moves"] if of["difference"]["ci95"] != [0, 0]]
    assert (found["same_fits"], moved["direction"]) == (True, "up")
    assert "the uplift has not moved" in as_text(found, said(found))


def test_what_changed_is_said_first_and_by_group() -> None:
    new = golden(pairs=99, seeds=[0, 1, 2], made={"version": "2", "date": "2026-11-27"})
    new |= {"settings": {"booster": {"trees": 60, "rate": 0.1}}, "split": {"t0": "a", "t1": "b", "t2": "c", "t3": "d"}}
    old = copy.deepcopy(new)
    old["settings"]["booster"] |= {"trees": 40}
    del old["settings"]["booster"]["rate"]
    old |= {"seeds": [0, 1], "pairs": 98, "made": {"version": "1"}}
    found = compare(UpliftReport.of(old), UpliftReport.of(new))
    assert [(of["group"], of["what"], of["old"], of["new"]) for of in found["changed"]] == [
        ("data", "pairs", "98", "99"),
        ("settings", "seeds", "[0, 1]", "[0, 1, 2]"),
        ("settings", "booster.rate", "not set", "0.1"),
        ("settings", "booster.trees", "40", "60"),
        ("versions", "Pairlift", "1", "2"),
    ]
    assert as_lines(found).startswith("Changed: data, settings, versions (5 entries)")
    unknown = compare(UpliftReport.of(golden()), UpliftReport.of(new))  # format 4 kept no settings
    assert ("settings", "not known", "kept") in [(of["group"], of["old"], of["new"]) for of in unknown["changed"]]


SAYS: dict[str, tuple[dict[str, Any], str]] = {
    "risen": ({"relative_uplift": 0.9, "ci95": [0.8, 1.0]}, "The uplift has risen: new less old is +36.68 % ["),
    "fallen": ({"relative_uplift": 0.1, "ci95": [0.0, 0.2]}, "The uplift has fallen: new less old is -43.32 % ["),
    "leaks": ({"leaks": 1}, "A leak was found in one of the two"),
    "one user": ({"ci95": [None, None], "standard_error": None, "useful": False}, "One of the two has no interval"),
    "nothing right": ({"relative_uplift": None, "ci95": [None, None], "useful": False}, "One of the two has no uplift"),
    "other fits": ({"trees": OTHER}, "is not shown to have moved: new less old is +0.00 %"),
    "no slices": ({"slices": {}, "trees": OTHER}, "is not shown to have moved"),
    "other seeds": ({"seeds": [7, 8, 9]}, "Identical, the same numbers to the last digit. What changed has no part in"),
    "format 3": ({"format": 3}, "Both are of the same fits and the same pairs, so nothing has moved"),
}


@pytest.mark.parametrize("case", SAYS)
def test_the_sentence_the_page_and_the_lines_claim_no_more(case: str, tmp_path: Path) -> None:
    change, says = SAYS[case]
    found = compare(UpliftReport.of(golden()), UpliftReport.of(golden(**change)))
    assert as_text(found, said(found)).startswith(says) or says in as_text(found, said(found))
    assert as_text(found, said(found)) in as_lines(found)
    page = Page(write_page(found, tmp_path))
    assert unequal(page.numbers, found) == []
    assert (page.open, page.wrong, json.loads(page.json)) == ([], [], found)
    assert all(link.startswith("#") for link in page.links)


def write(folder: Path, report: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "uplift.json").write_text(json.dumps(report))
    (folder / PAGE).touch()


def test_the_index_has_every_report_the_latest_first_and_says_what_it_could_not_read(tmp_path: Path) -> None:
    write(tmp_path / "a b", golden(made={"date": "2026-10-01"}))
    write(tmp_path / "a c", golden(made={"date": "2026-10-01", "time": "09:00:00 UTC"}))
    write(tmp_path / "later", golden(made={"date": "2026-11-01"}, ci95=[None, None], useful=False))
    write(tmp_path / "deep" / "unknown", golden(relative_uplift=None, ci95=[None, None], useful=False))
    write(tmp_path / "old", golden(format=2))
    each = {name: {"useful": name == "als", "more": False, "leaks": 0} for name in ("als", "noise")}
    family = {
        "format": 1,
        "fits": 2,
        "seeds": [0, 1],
        "data": "world",
        "plugins": ["als", "noise"],
        "each": each,
        "made": {"date": "2026-10-02"},
    }
    write(tmp_path / "both", family | {"together": {"relative_uplift": 0.1, "ci95": [0.05, 0.15]}})
    write(tmp_path / "both" / "als", golden())
    found = index_of(tmp_path)
    assert [of["path"] for of in found["reports"]] == ["later", "both", "a c", "a b", "deep/unknown"]
    assert [(of["path"], "format 3 to 7" in of["why"]) for of in found["unread"]] == [("old/uplift.json", True)]
    page = Page(write_index(found, tmp_path))
    assert unequal(page.numbers, found) == []
    assert (page.open, page.wrong, len(page.numbers)) == ([], [], 15)
    reports = [link for link in page.links if not link.startswith("#")]
    assert reports == [
        "later/report.html",
        "both/report.html",
        "a%20c/report.html",
        "a%20b/report.html",
        "deep/unknown/report.html",
    ]
    assert "2026-10-02 both" in lines_of(found)
    assert "NOT READ: old/uplift.json" in lines_of(found)


def test_the_commands_write_and_refuse(tmp_path: Path) -> None:
    def pairlift(*words: Any) -> tuple[int, str]:
        done = CliRunner().invoke(cli, ["uplift", *map(str, words)])
        assert "Traceback" not in done.output
        return done.exit_code, done.output

    write(tmp_path / "new", golden())
    code, text = pairlift("--compare", GOLDEN, tmp_path / "new", "--out", tmp_path / "moved")
    assert code == 0, text
    assert {of.name for of in (tmp_path / "moved").iterdir()} == {"report.html", "compare.json"}
    code, text = pairlift("--list", tmp_path)
    assert code == 0, text
    assert (tmp_path / INDEX).is_file()
    for words, says in (
        ((), "one of CONFIG, --compare OLD NEW and --list DIR was expected, found none"),
        (("x.toml", "--list", tmp_path), "found CONFIG and --list"),
        (("--list", tmp_path, "--plugin", "a"), "or with days of --compare, not with --list"),
        (("--list", tmp_path, "--out", tmp_path), "no --out"),
        (("x.toml", "--out", tmp_path), "Missing option '--plugin'"),
        (("x.toml", "--plugin", "a"), "Missing option '--out'"),
        (("--list", tmp_path / "moved"), "has no report of `pairlift uplift` in it"),
        (("--compare", tmp_path, GOLDEN), "there is no report"),
    ):
        code, text = pairlift(*words)
        assert (code, says in text) == (2, True), text
    with pytest.raises(PairliftError, match="found no folder"):
        index_of(tmp_path / "none")


def test_users_of_another_report_are_refused(tmp_path: Path) -> None:
    without, with_ = np.array([3.0, 5.0, 2.0]), np.array([4.0, 5.0, 3.0])
    own = measured(without, with_, [1, 2, 3])
    own.figures["users"] = 3
    write(tmp_path / "one", own.figures)
    place = tmp_path / "one" / "users.parquet"
    pq.write_table(users_of((without, with_), [1, 2, 3]), place)
    assert UpliftReport.read(tmp_path / "one").users is not None
    for other in (
        users_of((without, with_ + 1), [1, 2, 3]),  # another uplift
        users_of((without, with_), [1, 2, 2]),
        users_of((without[:2], with_[:2]), [1, 2]),
        users_of((without, np.array([np.nan, 1, 1])), [1, 2, 3]),
    ):
        pq.write_table(other, place)
        with pytest.raises(PairliftError, match="is not of the report beside it"):
            UpliftReport.read(tmp_path / "one")
    pq.write_table(pa.table({"user": [1]}), place)
    with pytest.raises(PairliftError, match="were expected"):
        UpliftReport.read(tmp_path / "one")
    place.write_bytes(b"none")
    with pytest.raises(PairliftError, match="were expected"):
        UpliftReport.read(tmp_path / "one")


#: when the reports of a folder were made, where, of which plugin
MADE = [
    ("als/a", "als", "2026-10-01", "09:00:00 UTC"),
    ("als/b", "als", "2026-10-02", ""),
    ("both/als", "als", "2026-10-02", "08:00:00 UTC"),
    ("both/noise", "noise", "2026-10-02", "08:00:00 UTC"),
    ("c", "als", "2026-11-05", "23:59:59 UTC"),
    ("d", "als", "2026-11-05", "00:00:01 UTC"),
]


def kept(folder: Path) -> None:
    for path, plugin, day, time in MADE:
        made = {"date": day} | ({"time": time} if time else {})
        write(folder / path, golden(plugin=plugin, made=made, seeds=[len(path), 99]))
    write(folder / "undated", golden(plugin="als"))
    write(folder / "strange", golden(plugin="als", made={"date": "yesterday"}))
    write(folder / "old", golden(format=2))
    (folder / "both" / "uplift.json").write_text(json.dumps({"plugins": ["als", "noise"], "each": {}}))


@settings(max_examples=60, deadline=None)
@given(st.dates(date(2026, 9, 28), date(2026, 11, 8)), st.dates(date(2026, 9, 28), date(2026, 11, 8)))
def test_a_day_is_the_last_report_that_was_made_by_its_end(
    tmp_path_factory: pytest.TempPathFactory, one: date, other: date
) -> None:
    folder = tmp_path_factory.getbasetemp() / "of-days"
    if not folder.exists():
        kept(folder)
    wanted = []
    for day in (one, other):
        by = [(made, time, path) for path, plugin, made, time in MADE if plugin == "als" and made <= day.isoformat()]
        wanted.append(folder / max(by)[2] if by else None)
    words = (Path(one.isoformat()), Path(other.isoformat()))
    if None in wanted:
        with pytest.raises(PairliftError, match=r"was expected, the first is .*als/a, made on 2026-10-01 at 09:00"):
            reports_of(words, folder, "als")
    elif wanted[0] == wanted[1]:
        with pytest.raises(PairliftError, match="both sides are one"):
            reports_of(words, folder, "als")
    else:
        paths, lines = reports_of(words, folder, "als")
        assert paths == wanted
        assert [str(path) in line for path, line in zip(paths, lines, strict=False)] == [True, True]
        assert lines[2].startswith("NOT READ: old/uplift.json: a report of format")


def test_what_a_day_cannot_name_is_a_sentence(tmp_path: Path) -> None:
    kept(tmp_path)
    october, november = Path("2026-10-31"), Path("2026-11-30")

    def said(*words: Path, folder: Path = tmp_path, plugin: str = "als") -> str:
        with pytest.raises(PairliftError) as told:
            reports_of(words, folder, plugin)
        return str(told.value)

    assert "reports of one plugin were expected, found those of als, noise: --plugin NAME" in said(
        october, november, plugin=""
    )
    assert "reports of alz were expected, found those of als, noise (did you mean 'als'?)" in said(
        october, november, plugin="alz"
    )
    assert "none of 1 says when it was made" in said(october, november, folder=tmp_path / "undated")
    assert "found no folder" in said(october, november, folder=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "reports of als were expected, found none" in said(october, november, folder=tmp_path / "empty")
    assert "found 2026-02-30: day is out of range" in said(Path("2026-02-30"), november)
    assert "both sides are one" in said(november, tmp_path / "c" / "uplift.json")
    paths, _ = reports_of((october, tmp_path / "c"), tmp_path)  # of the plugin of the other side
    assert paths == [tmp_path / "both" / "als", tmp_path / "c"]
    write(tmp_path / "copy", json.loads((tmp_path / "c" / "uplift.json").read_text()))
    assert f"{tmp_path / 'c'} and {tmp_path / 'copy'} of 2026-11-05: name one" in said(october, november)
    write(tmp_path / "another log", golden(plugin="als", data="other", made={"date": "2026-11-06"}))
    assert "reports on one log were expected, found other, world" in said(october, november)


def test_the_command_compares_two_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)

    def pairlift(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, ["uplift", *words])
        assert "Traceback" not in done.output
        return done.exit_code, done.output

    days = ("--compare", "2026-10-31", "2026-11-30")
    code, text = pairlift(*days, "--list", "mine", "--plugin", "als", "--out", "moved")
    assert code == 0, text
    assert text.startswith("2026-10-31: the last report of als by then is mine/both/als, made on 2026-10-02 at 08:00")
    assert "2026-11-30: the last report of als by then is mine/c, made on 2026-11-05 at 23:59:59" in text
    found = json.loads(Path("moved/compare.json").read_text())
    assert [found[side]["made"]["date"] for side in ("old", "new")] == ["2026-10-02", "2026-11-05"]
    for words, says in (
        (days, "2026-10-31 is a day: with --list DIR"),
        ((*days, "--list", "mine"), "--plugin NAME says which"),
        ((*days, "--list", "mine", "--plugin", "als", "--plugin", "noise"), "one --plugin of two reports was expected"),
        (("--compare", "mine/c", "mine/d", "--list", "mine"), "a day such as 2026-11-20 was expected of --compare"),
        (("--compare", "mine/c", "mine/d", "--plugin", "als"), "--plugin goes with CONFIG, or with days of --compare"),
        (("x.toml", *days, "--list", "mine"), "found CONFIG and --compare and --list"),
    ):
        code, text = pairlift(*words)
        assert (code, says in " ".join(text.split())) == (2, True), text
    Path("2026-10-31").mkdir()  # what is there is a path
    code, text = pairlift(*days)
    assert (code, "2026-11-30 is a day" in text) == (2, True), text
