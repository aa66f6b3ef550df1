"""The memory that a plugin adds, measured in a process of its own: of a known size, and where it cannot be."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.rows import FeatureSpec
from features.schema import DAY, F32, Requests
from features.state.histories import COLUMNS, Histories
from ranker.uplift.memory import Asked, _of_users, memory_of

MIB = 1 << 20
#: holds 40 MiB from its load on and 24 MiB from its first request on, and needs 80 MiB for a moment
PLUGIN = """
import sys
import numpy as np

class Heavy:
    columns = ("x",)

    def values(self, requests, histories):
        assert histories.past(2, 10) == slice(0, 2), "its user's events"
        self.later = np.ones(24 << 17)
        return np.zeros((len(requests.item), 1), np.float32)

    def fit(self, data): ...
    def save(self, folder): ...

    @classmethod
    def load(cls, folder):
        if not folder.is_dir():
            raise ValueError("nothing to load")
        print("12 loaded", end="")
        plugin = cls()
        plugin.kept = np.ones(40 << 17)
        np.ones(80 << 17)
        return plugin
"""


def histories_of(sizes: list[int], rng: np.random.Generator) -> Histories:
    n = sum(sizes)
    ts = np.concatenate([np.sort(rng.integers(0, 10, size)) for size in [0, *sizes]]).astype(np.int64)
    return Histories(
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        item=rng.integers(0, 9, n).astype(np.int32),
        ts=ts,
        grade=rng.integers(-1, 3, n).astype(np.int8),
        surface=np.zeros(n, np.int16),
        organic=np.zeros(n, np.int8),
        feedback=rng.random((n, 2), np.float32),
    )


def asked(saved: Path) -> Asked:
    requests = Requests(
        user=np.array([2, -1], np.int32),
        as_of=np.array([DAY, DAY]),
        surface=np.zeros(2, np.int16),
        offsets=np.array([0, 3, 5]),
        item=np.arange(5, dtype=np.int32),
    )
    return Asked(
        name="heavy",
        path="heavy_plugin:Heavy",
        saved=saved,
        requests=[requests.slice(k, k + 1) for k in range(2)],
        histories=histories_of([3, 0, 2, 4], np.random.default_rng(0)),
        spec=FeatureSpec(("c",), (), "UTC"),
    )


def test_it_is_what_a_plugin_holds_after_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "heavy_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    found = memory_of(asked(tmp_path))
    assert found is not None
    assert 64 * MIB <= found < 80 * MIB  # by huge pages a little more
    assert not caplog.records
    assert memory_of(asked(tmp_path / "none")) is None
    assert "[plugins.heavy]: its memory could not be measured" in caplog.text
    assert "ValueError: nothing to load" in caplog.text


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.sets(st.integers(-1, 7)), st.integers(0, 99))
def test_users_have_their_own_events_under_their_numbers(sizes: list[int], users: set[int], seed: int) -> None:
    whole = histories_of(sizes, np.random.default_rng(seed))
    few = _of_users(whole, np.array(sorted(users), np.int32))
    assert len(few.sizes) == len(whole.sizes)
    for user in range(-1, 8):
        for name in COLUMNS:
            column: F32 = getattr(whole, name)[whole.past(user, 7) if user in users else slice(0)]
            np.testing.assert_array_equal(getattr(few, name)[few.past(user, 7)], column)
