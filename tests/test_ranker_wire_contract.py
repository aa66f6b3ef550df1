"""The wire contract grows compatibly: what has landed stays as it is, field by field."""

import copy
import json

import pytest
from contract import GOLDEN, broken, contract

LANDED = json.loads(GOLDEN.read_text())


def test_nothing_that_has_landed_is_changed() -> None:
    assert not broken(LANDED, contract())
    assert len(LANDED) > 100


def test_every_name_has_landed() -> None:
    """What was added is kept from its landing on: `python tests/contract.py` writes it down."""
    assert sorted(contract().keys() - LANDED.keys()) == [], "run `python tests/contract.py`"


@pytest.mark.parametrize(
    ("name", "what", "value"),
    [
        ("pairlift.v1.RankRequest.items", "number", 8),
        ("pairlift.v1.RankResponse.scores", "type", 2),
        ("pairlift.v1.RankResponse.scores", "repeated", False),
        ("pairlift.v1.RecommendRequest.as_of", "presence", False),
        ("pairlift.v1.Id.text", "oneof", ""),
        ("pairlift.v1.RecommendRequest.user", "of", "pairlift.v1.Ids"),
        ("pairlift.v1.IdKind.ID_KIND_TEXT", "number", 3),
        ("pairlift.v1.RankingService.Rank", "gives", "pairlift.v1.RecommendResponse"),
        ("pairlift.v1.RankingService.RecordEvents", "gives a stream", False),
    ],
)
def test_a_change_of_what_has_landed_is_found(name: str, what: str, value: object) -> None:
    now = copy.deepcopy(contract())
    assert now[name][what] != value
    now[name][what] = value
    assert [problem.partition(":")[0] for problem in broken(LANDED, now)] == [name]
    del now[name]
    now["pairlift.v1.RankRequest.new"] = {"number": 99}
    assert broken(LANDED, now) == [f"{name} is gone"]
