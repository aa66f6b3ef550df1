"""Weights of training pairs: hand-computed corrections, what they never change, and a biased log they set right."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_features_pairs import groups_of

from features.errors import PairliftError
from features.log.dataset import Mapping, import_log
from features.log.grading import Grading
from features.pairing.exposure import Exposure, corrected, load_exposure
from features.pairing.groups import Groups
from features.pairing.pairs import Pairs, make_pairs, weight_table
from features.schema import DAY, F64, MINUTE
from features.settings import EventsSettings, Grade, PairingSettings

TABLE = weight_table({}, ("skip", "click"), negatives=True)
NOWHERE = np.full(4, np.nan)


def weights(groups: Groups, position: F64, chance: F64, **keys: object) -> F64:
    told = PairingSettings(**keys)
    pairs = make_pairs(groups, TABLE)
    given_ = Exposure.of(np.array(position, float), np.array(chance, float), told)
    return corrected(pairs, groups, given_, told).weight


def test_a_winner_counts_for_those_who_did_not_look_at_its_place() -> None:
    groups, position = groups_of([0, 1], [0, 1]), [1, 4, 2, 1]  # winners at the places 4 and 1
    got = weights(groups, position, NOWHERE, position_power=1.0)
    np.testing.assert_allclose(got, np.array([4, 1]) * 2 / 5)  # the mean stays 1
    got = weights(groups, position, NOWHERE, position_power=0.5)
    np.testing.assert_allclose(got, np.array([2, 1]) * 2 / 3, rtol=1e-6)
    got = weights(groups, position, NOWHERE, examination=[0.8, 0.4])  # place 4 has the chance of the last one named
    np.testing.assert_allclose(got, np.array([2.5, 1.25]) * 2 / 3.75, rtol=1e-6)
    got = weights(groups, position, NOWHERE, position_power=1.0, max_correction=3.0)
    np.testing.assert_allclose(got, np.array([3, 1]) * 2 / 4)


def test_propensities_of_winner_and_loser_count_and_unknown_ones_do_not() -> None:
    groups = groups_of([0, 1], [0, 1], [-1, 1])
    propensity = [0.5, 0.25, 1, np.nan, np.nan, 0.5]
    got = weights(groups, np.full(6, np.nan), propensity, propensity=True)
    raw = np.array([1 * 8, 1 * 1, 2 * 2])  # a drawn loser has no propensity; its pair weighs two ranks
    np.testing.assert_allclose(got, raw * 4 / raw.sum(), rtol=1e-6)
    both = weights(groups, [9, 3, 9, np.nan, 9, 1], propensity, propensity=True, position_power=1.0)
    raw = np.array([1 * 10, 1 * 1, 2 * 2])  # 24 is clipped to 10
    np.testing.assert_allclose(both, raw * 4 / raw.sum(), rtol=1e-6)


def test_a_pair_halves_with_each_half_life_and_never_reaches_zero() -> None:
    groups = groups_of([0, 1], [0, 1], [0, 1])
    groups.requests.as_of[:] = [0, 2 * DAY, 3 * DAY]
    pairs, told = make_pairs(groups, TABLE), PairingSettings(half_life="1d")
    raw = np.array([1 / 8, 1 / 2, 1])
    np.testing.assert_allclose(corrected(pairs, groups, None, told).weight, raw * 3 / raw.sum(), rtol=1e-6)
    short = corrected(pairs, groups, None, PairingSettings(half_life="1s")).weight
    assert short[2] == pytest.approx(3)
    assert (short > 0).all()


def test_pairs_of_a_validation_slice_keep_their_weights() -> None:
    groups = groups_of([0, 1], [0, 1], [0, 1])
    groups.validation[2] = True
    got = weights(groups, [1, 3, 1, 1, 1, 5], np.full(6, np.nan), position_power=1.0, half_life="365d")
    np.testing.assert_allclose(got, [1.5, 0.5, 1], rtol=1e-4)
    groups.validation[:] = True
    pairs, told = make_pairs(groups, TABLE), PairingSettings(half_life="1d")
    assert corrected(pairs, groups, None, told) is pairs


def test_without_a_key_nothing_changes() -> None:
    groups = groups_of([0, 1, 1], [0, 1])
    pairs = make_pairs(groups, TABLE)
    assert corrected(pairs, groups, None, PairingSettings()) is pairs


@given(
    st.lists(st.lists(st.sampled_from([-1, 0, 1]), max_size=6), min_size=1, max_size=5), st.integers(0, 99),
    st.floats(1, 50), st.floats(0.1, 3),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_the_mean_the_rows_and_the_signs_stay(members: list[list[int]], seed: int, most: float, power: float) -> None:
    groups, rng = groups_of(*members), np.random.default_rng(seed)
    n = max(len(groups.event), 1)
    position = np.where(rng.random(n) < 0.2, np.nan, rng.integers(1, 9, n))
    propensity = np.where(rng.random(n) < 0.2, np.nan, 1 - rng.random(n))
    told = PairingSettings(position_power=power, propensity=True, max_correction=most, half_life="3m")
    pairs = make_pairs(groups, TABLE)
    got = corrected(pairs, groups, Exposure.of(position, propensity, told), told)
    for name in ("winner", "loser", "sampled"):
        np.testing.assert_array_equal(getattr(got, name), getattr(pairs, name))
    assert (got.weight > 0).all()
    if len(pairs):
        assert got.weight.mean() == pytest.approx(pairs.weight.mean(), rel=1e-5)
    slow = []
    for winner, loser, weight in zip(pairs.winner, pairs.loser, pairs.weight, strict=True):
        chance = 1.0
        if groups.event[winner] >= 0:
            chance *= np.nan_to_num(position[winner], nan=1.0) ** -power * np.nan_to_num(propensity[winner], nan=1.0)
        if groups.event[loser] >= 0:
            chance *= np.nan_to_num(propensity[loser], nan=1.0)
        group = np.searchsorted(groups.requests.offsets, winner, side="right") - 1
        age = groups.requests.as_of.max() - groups.requests.as_of[group]
        slow.append(weight * min(most, 1 / chance) * 2.0 ** (-age / (3 * MINUTE)))
    np.testing.assert_allclose(got.weight, np.array(slow) * pairs.weight.sum() / np.sum(slow or [1]), rtol=1e-4)


RELEVANCE = np.array([0.30, 0.25, 0.20, 0.15, 0.10, 0.05])


def biased_log(seed: int, lists: int = 6000) -> tuple[Groups, F64]:
    """Lists of all six items by a policy that likes the worst best; place k is looked at with the chance 1 / k."""
    rng = np.random.default_rng(seed)
    taste = rng.gumbel(size=(lists, 6)) + np.arange(6)  # item 5, the least relevant, mostly stands first
    position = (-taste).argsort(axis=1).argsort(axis=1) + 1.0
    clicked = rng.random((lists, 6)) < RELEVANCE / position
    return groups_of(*clicked.astype(int).tolist()), position.ravel()


def learned_scores(pairs: Pairs) -> F64:
    """Minimise the pairwise logistic loss over one score for each of the six items."""
    weight = np.zeros((6, 6))
    np.add.at(weight, (pairs.winner % 6, pairs.loser % 6), pairs.weight.astype(np.float64))
    scores = np.zeros(6)
    for _ in range(2000):
        pull = weight / (1 + np.exp(scores[:, None] - scores[None, :]))
        scores += 2 * (pull.sum(axis=1) - pull.sum(axis=0)) / weight.sum()
    return scores


def test_a_log_that_is_biased_by_position_gives_the_true_order_once_corrected() -> None:
    groups, position = biased_log(3)
    told = PairingSettings(position_power=1.0)
    pairs = make_pairs(groups, TABLE)
    right = corrected(pairs, groups, Exposure.of(position, np.full(len(position), np.nan), told), told)
    assert (-learned_scores(right)).argsort().tolist() == [0, 1, 2, 3, 4, 5]
    assert (-learned_scores(pairs)).argsort().tolist() != [0, 1, 2, 3, 4, 5]


CSV = """u,i,t,click,place,chance
1,1,2024-01-01 00:00:02,true,2,0.5
1,2,2024-01-01 00:00:01,false,1,1.0
2,1,2024-01-01 00:00:03,false,,
"""


def imported(folder: Path, text: str = CSV, **events: str) -> tuple[Path, EventsSettings]:
    (folder / "log.csv").write_text(text)
    told = EventsSettings(source="log.csv", user_id="u", item_id="i", ts="t", feedback={"click": "click"}, **events)
    grades = (Grade(name="skip", when="NOT click"), Grade(name="click", when="click"))
    import_log(Mapping(folder, "UTC", told, None, None, grades, None), folder / "log.duckdb")
    return folder / "log.duckdb", told


def test_exposure_is_read_in_the_order_of_the_events(tmp_path: Path) -> None:
    database, events = imported(tmp_path, position="place", propensity="chance")
    told = PairingSettings(position_power=1.0, propensity=True)
    exposure = load_exposure(database, events, told)
    assert exposure is not None
    assert exposure.won.tolist() == [1, 4, 1]
    assert exposure.lost.tolist() == [1, 2, 1]
    assert load_exposure(database, events, PairingSettings(half_life="1d")) is None


@pytest.mark.parametrize(
    ("old", "new", "events", "says"),
    [
        ("true,2,", "true,0,", {"position": "place"}, r"\[events\] position = 'place'.*below 1.* in 1 rows.*'1', '1'"),
        ("0.5", "0", {"propensity": "chance"}, r"propensity = 'chance': a chance outside \(0, 1\] in 1 rows"),
        ("0.5", "1.01", {"propensity": "chance"}, r"outside \(0, 1\] in 1 rows"),
        ("0.5", "nan", {"propensity": "chance"}, r"outside \(0, 1\] in 1 rows"),
        ("1,1", "1,1", {}, "needs .events. (position|propensity), which is not there"),
        ("1,1", "1,1", {"position": "NULL", "propensity": "NULL"}, "NULL in every row"),
    ],
)
def test_what_is_no_position_and_no_chance_is_refused(
    tmp_path: Path, old: str, new: str, events: dict[str, str], says: str
) -> None:
    database, mapped = imported(tmp_path, CSV.replace(old, new), **events)
    keys = {"position": {"position_power": 1.0}, "propensity": {"propensity": True}}
    for name in events or keys:
        told = PairingSettings(**keys[name])
        with pytest.raises(PairliftError, match=rf"(?s){says}"):
            load_exposure(database, mapped, told)


def test_an_infinite_propensity_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(PairliftError, match=r"\[events\] propensity: an infinite number in 1 rows"):
        imported(tmp_path, CSV.replace("0.5", "inf"), propensity="chance")


def test_a_grade_may_read_the_propensity() -> None:
    Grading((Grade(name="shown", when="propensity < 1"), Grade(name="click", when="click = 1")), {"click": "DOUBLE"})


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"position_power": 1.0, "examination": [1.0]}, "keep one of them"),
        ({"position_power": 0.0}, "greater than 0"),
        ({"examination": []}, "at least 1"),
        ({"examination": [1.0, 0.0]}, "greater than 0"),
        ({"examination": [1.5]}, "less than or equal to 1"),
        ({"max_correction": 0.5}, "greater than or equal to 1"),
        ({"half_life": "0s"}, "greater than 0"),
    ],
)
def test_wrong_keys_are_told(keys: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PairingSettings(**keys)
