"""How much of the liked part's score lists have."""

from pathlib import Path

import numpy as np

from ranker.card import measured_lines
from ranker.lists.liked import COST, LEAST, LikedWeight, chosen_of


def test_the_liked_part_weighs_as_much_as_costs_nothing_that_could_be_told() -> None:
    rng = np.random.default_rng(0)
    users = 400
    none, noise = np.full(users, 0.3), rng.normal(0, 0.02, users)
    noise -= noise.mean()
    error = noise.std(ddof=1) / np.sqrt(users)
    assert chosen_of({0.0: none, 0.5: none}) == 0.5  # the same lists
    assert chosen_of({0.0: none, 0.5: none + noise - 0.9 * error}) == 0.5
    assert chosen_of({0.0: none, 0.5: none + noise - 1.1 * error}) == 0.0  # more than chance
    assert chosen_of({0.0: none, 0.5: none + 50 * noise - 1.1 * COST * 0.3}) == 0.0  # more than any chance excuses
    assert chosen_of({0.0: none, 0.5: none + 50 * noise - 0.9 * COST * 0.3}) == 0.5
    better = none + 0.1
    assert chosen_of({0.0: none, 0.5: better, 1.0: better + noise - 0.9 * error, 2.0: none}) == 1.0
    drawn = {0.0: none, 0.5: better, 1.0: better + noise - 0.9 * error, 2.0: better}
    assert (chosen_of(drawn), chosen_of(drawn, drawn=True)) == (2.0, 0.5)
    few = {weight: figure[: LEAST - 1] for weight, figure in drawn.items()}
    assert chosen_of(few) == chosen_of({0.0: 0 * none, 0.5: 0 * none}) == 0.0  # that is no evidence


def test_a_weight_is_kept_and_told(tmp_path: Path) -> None:
    by_weight = {0.0: np.tile([0.2, 0.4], LEAST), 0.5: np.tile([0.3, 0.4], LEAST)}
    for given, told in ((None, "add 0.5 of"), (2.0, "add 2 of the liked part's score ([lists] liked)")):
        found = LikedWeight.of(by_weight, given)
        found.write(tmp_path / "liked.json")
        assert LikedWeight.read(tmp_path / "liked.json") == found
        (line,) = measured_lines({"liked_weight": found.report()})
        assert told in line
        assert "0: 0.3000, 0.5: 0.3500" in line
    assert LikedWeight.read(tmp_path / "none.json") is None
