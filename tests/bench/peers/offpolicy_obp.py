"""Off-policy estimates against `obp`'s own, and on Open Bandit's sample: `offpolicy_error_vs_obp` of WHAT=candidates.

obp (Apache 2.0) is read from its source archive, outside the environment, for it pins packages of its own: its
estimators need pandas, scikit-learn and torch, which the benchmarks have. Without the archive there are no figures.
"""

import csv
import importlib
import io
import subprocess
import sys
import tarfile
import tempfile
import types
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from features.schema import F64, I64
from ranker.offpolicy.estimators import dr, ips, snips, value_of, weights

OBP = "obp==0.5.7"
#: impressions, lists, and places of a list in the comparison with obp's estimators
ROUNDS, LISTS, PLACES, ITEMS = 2000, 500, 3, 6
#: the policies whose logs Open Bandit has
POLICIES = ("random", "bts")


def fetch_obp(folder: Path) -> Path | None:
    """Download and unpack the archive below a folder; None where it cannot be had."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--ignore-requires-python", OBP]
    done = subprocess.run([*command, "-d", str(folder)], capture_output=True, text=True, check=False)
    archives = list(folder.glob("obp-*.tar.gz"))
    if done.returncode or not archives:
        print(f"{OBP} could not be downloaded: {done.stderr.strip()[-300:]}", file=sys.stderr)
        return None
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    return next(path for path in folder.glob("obp-*") if path.is_dir())


def load_obp(root: Path) -> tuple[Any, Any]:
    """Return obp's modules of estimators of single items and of lists, without what its packages import beside them."""
    for name in ("obp", "obp.ope"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules[name] = package
    single, lists = (importlib.import_module(f"obp.ope.{name}") for name in ("estimators", "estimators_slate"))
    return single, lists


def error_vs_obp(root: Path, seed: int = 0) -> float:
    """Return the largest relative difference of our estimates from obp's, over random logs."""
    single, lists = load_obp(root)
    rng = np.random.default_rng(seed)
    pairs = [*_of_items(single, rng), *_of_lists(lists, rng)]
    for name, ours, theirs in pairs:
        print(f"  {name:24} {ours:.9f}  obp {theirs:.9f}")
    return max(abs(ours - theirs) / abs(theirs) for _, ours, theirs in pairs)


def _of_items(obp: Any, rng: np.random.Generator) -> list[tuple[str, float, float]]:
    """Return (name, ours, obp's) of lists of one item."""
    logged, other = (rng.dirichlet(np.ones(ITEMS), ROUNDS) for _ in range(2))
    rows = np.arange(ROUNDS)
    action = (rng.random(ROUNDS)[:, None] > np.cumsum(logged, axis=1)[:, :-1]).sum(axis=1)
    reward, model = rng.integers(0, 2, ROUNDS).astype(float), rng.random((ROUNDS, ITEMS))
    asked = {"reward": reward, "action": action, "pscore": logged[rows, action]}
    asked |= {"action_dist": other[:, :, None], "position": np.zeros(ROUNDS, int)}
    ratio, offsets = other[rows, action] / logged[rows, action], np.arange(ROUNDS + 1)
    of, place = weights("item_position", ratio, offsets), np.zeros(ROUNDS, np.int64)
    expected = (other * model).sum(axis=1)
    ours = {
        "InverseProbabilityWeighting": ips(of.weight, reward),
        "SelfNormalizedInverseProbabilityWeighting": snips(of.weight, reward, place),
        "DoublyRobust": dr(of, reward, model[rows, action], expected),
    }
    given = asked | {"estimated_rewards_by_reg_model": model[:, :, None]}
    return [
        (name, _value(values, offsets), float(getattr(obp, name)().estimate_policy_value(**given)))
        for name, values in ours.items()
    ]


def _of_lists(obp: Any, rng: np.random.Generator) -> list[tuple[str, float, float]]:
    """Return (name, ours, obp's) of lists of several."""
    logged, other = (0.1 + 0.9 * rng.random((LISTS, PLACES)) for _ in range(2))
    reward, offsets = rng.integers(0, 2, LISTS * PLACES).astype(float), np.arange(LISTS + 1) * PLACES
    place = np.tile(np.arange(PLACES), LISTS)
    asked = {"slate_id": np.repeat(np.arange(LISTS), PLACES), "reward": reward, "position": place}
    found = []
    for kind, name, suffix in (
        ("item_position", "IndependentIPS", "_item_position"),
        ("cascade", "RewardInteractionIPS", "_cascade"),
        ("list", "StandardIPS", ""),
    ):
        chances = {"item_position": lambda of: of, "cascade": lambda of: np.cumprod(of, axis=1)}.get(
            kind, lambda of: np.repeat(of.prod(axis=1), PLACES)
        )
        said = {f"pscore{suffix}": chances(logged).ravel()}
        said |= {f"evaluation_policy_pscore{suffix}": chances(other).ravel()}
        weight = weights(kind, (other / logged).ravel(), offsets).weight  # type: ignore[arg-type]
        for own, prefix in ((ips(weight, reward), "Slate"), (snips(weight, reward, place), "SelfNormalizedSlate")):
            theirs = getattr(obp, prefix + name)(PLACES).estimate_policy_value(**asked, **said)
            found.append((prefix + name, _value(own, offsets), float(theirs)))
    return found


def _value(values: F64, offsets: I64) -> float:
    return value_of(values, offsets, np.arange(len(offsets) - 1))[0]


def open_bandit(root: Path) -> dict[str, Any]:
    """Return what each policy's log says of the other's click rate, beside what the other's own log has.

    The sample has no users: each impression is its own. The chances of `bts` do not hang on who is asked, but move with
    time. So its mean chance of an item at a place is taken to be the share of that place's impressions that were of it;
    the mean of the chances that were logged would be too high, for an item is logged where its chance is high.
    """
    logs = {policy: _read(root, policy) for policy in POLICIES}
    return {f"{other} from {own}": _judged(logs[own], logs[other]) for own, other in (POLICIES, POLICIES[::-1])}


def _read(root: Path, policy: str) -> dict[str, F64]:
    text = (root / f"obp/dataset/obd/{policy}/all/all.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    names = ("item_id", "position", "click", "propensity_score")
    return {name: np.array([float(row[name]) for row in rows]) for name in names}


def _judged(own: dict[str, F64], other: dict[str, F64]) -> dict[str, Any]:
    pairs, places = Counter(zip(other["item_id"], other["position"], strict=True)), Counter(other["position"])
    shown = zip(own["item_id"], own["position"], strict=True)
    target = np.array([pairs[item, place] / places[place] for item, place in shown])
    n, reward = len(target), own["click"]
    offsets, alone = np.arange(n + 1), np.arange(n)
    of = weights("item_position", target / own["propensity_score"], offsets)
    place = own["position"].astype(np.int64) - 1
    truth = value_of(other["click"], np.arange(len(other["click"]) + 1), np.arange(len(other["click"])))
    found: dict[str, Any] = {"logged there": list(truth), "mean_weight": float(of.weight.mean())}
    for name, values in (("ips", ips(of.weight, reward)), ("snips", snips(of.weight, reward, place))):
        value, low, high = value_of(values, offsets, alone)
        found[name] = {"value": value, "ci95": [low, high], "width": high - low}
        found[name]["overlaps"] = bool(low <= truth[2] and truth[1] <= high)
    return found


def figures() -> dict[str, Any]:
    """Return `offpolicy_error_vs_obp` and what Open Bandit's logs say; None each where obp cannot be had."""
    with tempfile.TemporaryDirectory() as temporary:
        root = fetch_obp(Path(temporary))
        if root is None:
            return {"offpolicy_error_vs_obp": None, "open_bandit": None}
        return {"offpolicy_error_vs_obp": error_vs_obp(root), "open_bandit": open_bandit(root)}


if __name__ == "__main__":
    for key, value in figures().items():
        print(key, value)
