"""Within a request context says one thing, and what is said of a candidate was known before the answer."""

import logging
from pathlib import Path

import numpy as np
import pytest
from logs import mapping_of

from features.errors import PairliftError
from features.log.dataset import import_log
from features.log.loading import load_given, load_log
from features.settings import EventsSettings, Grade

HEAD = "who,inn,day,search,place,clicked,price,room,score"


def rows(score: str = "noise", n: int = 30) -> str:
    rng = np.random.default_rng(0)
    lines = [HEAD]
    for search in range(n):
        for place in range(1, 6):
            value = {"noise": f"{rng.random():.3f}", "order": f"{1 / (place + rng.random() / 2):.3f}"}[score]
            clicked = int(rng.random() < 0.3)
            day, price = f"2024-01-{1 + search:02d}", rng.integers(9)
            lines.append(
                f"u{search % 4},i{rng.integers(9)},{day},s{search},{place},{clicked},{price},r{search % 2},{value}"
            )
    return "\n".join(lines) + "\n"


def imported(folder: Path, log: str, **change: object) -> Path:
    (folder / "log.csv").write_text(log)
    mapped = {
        "source": "log.csv", "user_id": "who", "item_id": "inn", "ts": "day", "request_id": "search",
        "position": "place", "feedback": {"clicked": "clicked"}, "candidate": {"price": "price", "room": "room"},
    } | change  # fmt: skip
    grades = (Grade(name="skip", when="clicked = 0"), Grade(name="click", when="clicked = 1"))
    import_log(mapping_of(folder, EventsSettings(**mapped), grades), folder / "log.duckdb")
    return folder / "log.duckdb"


def test_candidates_become_numbers_and_codes(tmp_path: Path) -> None:
    log = HEAD + "\na,x,2024-01-01,s1,1,1,5,single,1\na,y,2024-01-01,s1,2,0,,,1\nb,x,2024-01-02,s2,1,0,7.5,double,1\n"
    database = imported(tmp_path, log)
    _, catalog = load_log(database)
    assert [(c.name, c.kind, c.values) for c in catalog.candidates] == [
        ("price", "numeric", ()), ("room", "categorical", ("double", "single")),
    ]  # fmt: skip
    np.testing.assert_array_equal(load_given(database, catalog), [[5, 1], [np.nan, np.nan], [7.5, 0]])


def test_context_that_differs_within_a_request_is_refused_with_one_that_does(tmp_path: Path) -> None:
    imported(tmp_path, rows(), context={"room": "room"}, candidate={})  # the same in a request, or NULL
    nulls = rows().replace(",r1,", ",,", 1)
    imported(tmp_path, nulls, context={"room": "room"}, candidate={})
    with pytest.raises(
        PairliftError, match=r"\[events.context\] price: one value .* \d+ requests have several .*s\d"
    ) as caught:
        imported(tmp_path, rows(), context={"price": "price"}, candidate={})
    assert "[events.candidate]" in str(caught.value)


@pytest.mark.parametrize(
    ("candidate", "says"),
    [
        ({"p": "place * 1.0"}, r"\[events.candidate\] p: it equals \[events\] position"),
        ({"won": "clicked"}, r"\[events.candidate\] won: it equals \[events.feedback\] clicked"),
        (
            {"won": "CASE clicked WHEN 1 THEN 'yes' ELSE 'no' END"},
            r"each of \[events.feedback\] clicked \('no' for 0.0",
        ),
        ({"slot": "place - 1"}, r"slot: it has a value of its own for each of \[events\] position \(0.0 for 1 …\)"),
        (
            {"paid": "CASE WHEN clicked = 1 AND price > 0 THEN price END"},
            "only where .* clicked is not 0, so it is known",
        ),
        ({"all": "[price]"}, "a number or text was expected, found a list"),
    ],
)
def test_what_is_known_only_after_the_answer_is_refused(tmp_path: Path, candidate: dict[str, str], says: str) -> None:
    with pytest.raises(PairliftError, match=says):
        imported(tmp_path, rows(), candidate=candidate)


def test_a_constant_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    imported(tmp_path, rows(), candidate={"none": "0 * price"}, feedback={"clicked": "0 * clicked"})


@pytest.mark.parametrize(
    ("candidate", "feedback"),
    [
        ("score", "score * 2"),  # each value stands once, so it may be chance
        ("CASE WHEN price = 3 AND inn = 'i1' THEN 1 END", "(inn = 'i1')::INT"),  # known of two rows
        ("CASE WHEN price < 5 THEN price END", "1"),  # of a log of positives only
        ("CASE WHEN clicked = 0 OR price > 3 THEN 'a' ELSE 'b' END", "clicked"),  # says something, not all
    ],
)
def test_what_may_be_chance_is_not_refused(tmp_path: Path, candidate: str, feedback: str) -> None:
    imported(tmp_path, rows(), candidate={"own": candidate}, feedback={"clicked": "clicked", "other": feedback})


def test_a_column_that_orders_requests_as_position_does_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        imported(tmp_path, rows("noise"), candidate={"score": "score"})
        assert not caplog.records
        imported(tmp_path, rows("order"), candidate={"score": "score", "price": "price"})
    assert [r.getMessage()[:50] for r in caplog.records] == ["[events.candidate] score orders 100 % of the reque"]


def test_a_column_name_that_feedback_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PairliftError, match="taken by one of"):
        imported(tmp_path, rows(), feedback={"clicked": "clicked", "candidate_price": "price"})
