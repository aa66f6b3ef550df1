"""Fits side by side: their order, what they raise, and the same bits as of one after the other."""

import threading
import time
from collections.abc import Callable

import pytest
from test_ranker_training_booster import COLUMNS, a_slice

from ranker.settings import BoosterSettings
from ranker.training import abreast as module
from ranker.training.abreast import abreast, in_lane
from ranker.training.booster import fit_booster


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cores", lambda: 2)


def test_results_come_in_the_order_of_the_fits_and_two_run_at_a_time(two_cores: None) -> None:
    met = threading.Barrier(2)

    def fit(k: int) -> Callable[[], tuple[int, bool]]:
        def run() -> tuple[int, bool]:
            met.wait(30)  # passes only where another one runs beside it
            return k, in_lane()

        return run

    assert list(abreast([fit(k) for k in range(4)])) == [(k, True) for k in range(4)]
    assert not in_lane()
    assert list(abreast([in_lane])) == [False]  # alone, it has all cores


def test_what_a_fit_raises_is_raised_and_what_has_not_begun_is_left_out(two_cores: None) -> None:
    begun, failed = [], threading.Event()

    def fails() -> None:
        failed.set()
        raise ValueError("no rows")

    def waits() -> None:
        failed.wait(30)
        time.sleep(0.05)
        begun.append("one")

    with pytest.raises(ValueError, match="no rows"):
        list(abreast([fails, *[waits] * 50]))
    assert len(begun) < 10


def test_fits_that_nobody_waits_for_any_more_end_at_their_next_tree(two_cores: None) -> None:
    begun, ended = threading.Event(), list[str]()
    settings = BoosterSettings(trees=100_000, stop_after=100_000)

    def endless() -> None:
        begun.set()
        try:
            fit_booster(COLUMNS, ["kind"], a_slice(0, n=3000), a_slice(99, n=600), settings, 0)
        except BaseException:
            ended.append("before its time")
            raise

    def fails() -> None:
        begun.wait(30)
        time.sleep(0.1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(abreast([fails, endless]))
    assert ended


def test_a_fit_has_the_same_bits_alone_and_beside_another(two_cores: None) -> None:
    settings = BoosterSettings(trees=30, stop_after=30)

    def fit(seed: int) -> Callable[[], str]:
        def run() -> str:
            booster = fit_booster(COLUMNS, ["kind"], a_slice(0, n=3000), a_slice(99, n=600), settings, seed)
            return booster.model_to_string()

        return run

    assert list(abreast([fit(0), fit(1)])) == [fit(0)(), fit(1)()]
