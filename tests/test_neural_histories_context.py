"""What past requests said of themselves in the towers' tokens: coded as a request's own, trained as it is served."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from contracts import fit_data
from hypothesis import given, settings
from hypothesis import strategies as st
from world import SMALL_TOWERS, World

from features.pairing.split import Split
from features.plugin import FitData
from features.schema import DAY, HOUR, SECOND, Attribute, Catalog, empty_log
from features.state.histories import Histories
from neural.histories import CODES, TokenSpec, make_tokens
from neural.runtime import SPEC, load_spec, save_spec
from neural.settings import TowerSettings
from neural.train import fit
from neural.vocabulary.context import ContextAttribute, ContextSpec

NAN = float("nan")
DEVICE = ContextAttribute("device", 1, True, (0.0, 2.0, 3.0))
BATTERY = ContextAttribute("battery", 0, False, (0.2, 0.5))
NEVER_KNOWN = ContextAttribute("tab", 2, False, ())


def spec_of(*attributes: ContextAttribute, hour: bool = False, in_tokens: bool = True) -> TokenSpec:
    context = ContextSpec(attributes=attributes, hour=hour, in_tokens=in_tokens)
    return TokenSpec(
        n_items=9, n_grades=3, n_surfaces=2, signal_mean=(1.0,), signal_scale=(1.0,), length=20, context=context
    )


def slow_code(attribute: ContextAttribute, value: float) -> int:
    """0 unknown; else one more than the place of a category among the marks, or than the marks up to a number."""
    if attribute.category:
        return attribute.marks.index(value) + 1 if value in attribute.marks else 0
    return 1 + sum(mark <= value for mark in attribute.marks) if attribute.marks and np.isfinite(value) else 0


@given(
    said=st.lists(
        st.tuples(
            st.sampled_from([NAN, 0.1, 0.2, 0.3, 0.5, 7.0, np.inf]),
            st.sampled_from([NAN, 0.0, 1.0, 2.0, 3.0, 77.0]),
            st.sampled_from([NAN, 1.0]),
        ),
        max_size=12,
    ),
    hour=st.booleans(),
    bounds=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_a_token_has_the_codes_that_its_request_had(said: Any, hour: bool, bounds: Any) -> None:
    """Of any rows of a history, none too, as a slow definition has them."""
    spec, n = spec_of(DEVICE, BATTERY, NEVER_KNOWN, hour=hour), len(said)
    context = np.array(said, np.float32).reshape(n, 3)
    zero = np.zeros(n, np.int32)
    log = replace(empty_log((), n), user=zero, item=zero, ts=np.arange(n) * HOUR, context=context)
    start, stop = np.sort(np.minimum(np.array(bounds), n), axis=1).T.astype(np.int64)
    tokens = make_tokens(Histories.build(log, 1), np.zeros(len(start), np.int32), start, stop, spec)
    further = tokens.codes[:, :, len(CODES) + hour :]
    want = [[slow_code(a, float(context[row, a.place])) for a in (DEVICE, BATTERY, NEVER_KNOWN)] for row in range(n)]
    for b, (first, last) in enumerate(zip(start.tolist(), stop.tolist(), strict=True)):
        assert further[b, : last - first].tolist() == want[first:last]
        assert not further[b, last - first :].any()  # padding
    assert (further < np.array(spec.code_sizes[len(CODES) + hour :])).all()
    asked = spec.context_codes(log.surface, log.ts, context)[:, 1 + hour :]
    assert asked.tolist() == want  # a request's own codes are the same


def test_histories_without_context_leave_attributes_unknown() -> None:
    """Those of an older snapshot, under towers that read attributes; and older towers have no such codes."""
    log = replace(empty_log((), 3), user=np.zeros(3, np.int32), item=np.zeros(3, np.int32))
    one, whole = np.zeros(1, np.int64), np.full(1, 3)
    for spec, width in ((spec_of(DEVICE, hour=True), 2), (spec_of(DEVICE, in_tokens=False), 0), (spec_of(), 0)):
        tokens = make_tokens(Histories.build(log, 1), one.astype(np.int32), one, whole, spec)
        assert tokens.codes.shape == (1, 3, len(CODES) + width)
        assert not tokens.codes[:, :, len(CODES) + 1 :].any()


def test_towers_from_before_read_the_request_alone(tmp_path: Path) -> None:
    """What is new in their `ContextSpec` was in none of their files."""
    spec = spec_of(DEVICE, BATTERY, hour=True)
    save_spec(tmp_path, spec)
    assert load_spec(tmp_path) == spec
    saved = json.loads((tmp_path / SPEC).read_text())
    assert saved["context"].pop("in_tokens")
    (tmp_path / SPEC).write_text(json.dumps(saved))
    older = load_spec(tmp_path)
    assert older.context_sizes == spec.context_sizes
    assert older.code_sizes == spec.code_sizes[:-2]


QUICK: dict[str, Any] = {
    "pretrain_epochs": 0, "finetune_epochs": 4, "learning_rate": 2e-2, "finetune_rate": 1.0, "layers": 1, "history": 4,
    "dropout": 0.0, "id_dropout": 0.0, "retrieval_epochs": 0,
}  # fmt: skip


def taste_world() -> FitData:
    """The device of a user's last list decides which of two kinds is liked in the next one; nothing else tells."""
    rng, users, lists, n_items = np.random.default_rng(1), 60, 20, 6
    kind, device = np.arange(n_items) % 2, rng.integers(0, 2, (users, lists + 1))  # of list k: device[:, k + 1]
    user, turn = (np.repeat(a.ravel(), 2) for a in np.meshgrid(np.arange(users), np.arange(lists)))
    n = len(user)
    item = rng.integers(0, n_items // 2, n) * 2 + np.arange(n) % 2  # one of each kind in a list
    log = replace(
        empty_log((), n),
        user=user.astype(np.int32), item=item.astype(np.int32), ts=turn * DAY + np.arange(n) * SECOND,
        grade=(kind[item] == device[user, turn]).astype(np.int8), request=np.arange(n) // 2,
        context=device[user, turn + 1][:, None].astype(np.float32),
    )  # fmt: skip
    catalog = Catalog(
        user_ids=np.arange(users), item_ids=np.arange(n_items),
        item_attributes=(Attribute("kind", "categorical", codes=kind.astype(np.int32), values=("a", "b")),),
        contexts=(Attribute("device", "categorical", values=("phone", "tv")),),
    )  # fmt: skip
    plain = World(log, catalog, ("skip", "like"), np.empty((users, 0)), None, None)
    return fit_data(plain, Split(0, 19 * DAY, 20 * DAY, 21 * DAY, 0.2))


def test_a_taste_that_past_devices_tell_is_learned() -> None:
    data, right = taste_world(), dict[str, float]()
    for name in ("surface", "device"):
        options = TowerSettings(**SMALL_TOWERS | QUICK, context=[name])
        right[name] = max(epoch["validation"] for epoch in fit(data, options).report["epochs"])
    assert right["device"] > 0.9, right
    assert right["surface"] < 0.6, right
