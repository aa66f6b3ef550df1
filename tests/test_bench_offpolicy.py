"""The figures of off-policy estimates against `obp` and on Open Bandit, and of what a draw costs."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent / "bench" / "peers"))

import exploration_cost
import offpolicy_obp


def test_a_log_of_one_policy_tells_the_rate_of_another():
    rng, n = np.random.default_rng(0), 20_000
    rate, even, other = np.array([0.02, 0.3, 0.1]), np.full(3, 1 / 3), np.array([0.1, 0.6, 0.3])
    logs = []
    for chance in (even, other):
        item = rng.choice(3, n, p=chance)
        click = (rng.random(n) < rate[item]).astype(float)
        logs.append({"item_id": item, "position": np.ones(n), "click": click, "propensity_score": chance[item]})
    found = offpolicy_obp._judged(*logs)
    for name in ("ips", "snips"):
        low, high = found[name]["ci95"]
        assert low < rate @ other < high
        assert found[name]["overlaps"]
    assert found["mean_weight"] == pytest.approx(1, abs=0.05)


def test_without_the_archive_there_are_no_figures(monkeypatch):
    monkeypatch.setattr(offpolicy_obp, "fetch_obp", lambda folder: None)
    assert offpolicy_obp.figures() == {"offpolicy_error_vs_obp": None, "open_bandit": None}


def test_a_draw_is_timed_beside_none(bundle, monkeypatch):
    monkeypatch.setattr(exploration_cost, "REQUESTS", 3)
    assert exploration_cost.exploration_overhead(bundle) > 0
