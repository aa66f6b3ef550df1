"""Fine-tuning by one causal pass for all impressions of a history, against a pass for each impression.

The peer is what one writes first: for every impression its user's events up to then as a sequence of their own, in
batches of like length of as many tokens as ours, the gradients added up; the items' vectors are computed once for all.
`thrifty` computes of the last block the last state alone; `by_group` encodes the impressions of a group once. All give
the same loss and gradients within rounding, which is asserted. Both have the same model (`neural.model`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from neural_clock import in_turns, ratio
from neural_world import PER_GROUP, fit_data
from torch import Tensor

from features.schema import I64
from neural.batches import Batch
from neural.data import TowerData
from neural.histories import length_buckets, make_tokens
from neural.settings import TowerSettings
from neural.train import Trainer, entity_inputs, hidden_ids, item_vectors, repeatable, take

#: of each history
IMPRESSIONS = 64
ITEMS = 5_000
LENGTH = 256
CURVE = (32, 64, 128, 256, 512)
#: the largest difference of a gradient, over the largest gradient of its parameter
CLOSE = 1e-3
#: how a peer encodes, by its name
PEERS: dict[str, dict[str, bool]] = {
    "obvious": {"thrifty": False, "by_group": False},
    "thrifty": {"thrifty": True, "by_group": False},
    "by_group": {"thrifty": False, "by_group": True},
}


def make_trainer(length: int, latest: bool) -> tuple[Trainer, I64]:
    """Return a trainer of histories of so many events, without dropout, and the windows of one batch: each a history.

    Impressions are spread over the history, or (latest) all behind its last events.
    """
    settings = TowerSettings(history=length, threads=1, dropout=0, id_dropout=0)
    n, g = max(settings.batch_tokens // (length + 1), 1), IMPRESSIONS // PER_GROUP
    seen = np.arange(length - g, length) + 1 if latest else np.rint(np.linspace(1, length, g)).astype(np.int64)
    data = fit_data(np.full(n, length), ITEMS, np.tile(seen, (n, 1)))
    trainer = Trainer(TowerData.build(data, settings), settings, 0)
    trainer.model.train()
    return trainer, np.arange(n)


def one_pass(trainer: Trainer, batch: Batch) -> float:
    """Set the gradients as training does; return the loss."""
    trainer.optimizer.zero_grad()
    loss = trainer.finetune_loss(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def pass_for_each(trainer: Trainer, batch: Batch, start: I64, thrifty: bool, by_group: bool) -> float:
    """As `one_pass`, with a sequence of its own for each impression. start: row of the histories of each window."""
    trainer.optimizer.zero_grad()
    groups, budget, total = batch.groups, trainer.settings.batch_tokens, 0.0
    padding = [trainer.inputs.spec.n_items]
    ids = np.unique(np.concatenate([batch.tokens.item.ravel(), groups.item, padding]))
    item = trainer.model.item
    items = item_vectors(item, trainer.inputs.items, ids, hidden_ids(item, len(ids), trainer.settings.id_dropout))
    leaf = items.detach().requires_grad_()
    of_pair = groups.group[groups.winner]
    copies = 1 if by_group else 2
    for pairs in length_buckets(groups.state[of_pair], budget // copies):
        users = _encode(trainer, batch, start, np.tile(of_pair[pairs], copies), leaf, ids, thrifty)
        winner, loser = users[: len(pairs)], users[-len(pairs) :]
        behind = _score(trainer, batch, groups.loser[pairs], loser, leaf, ids) - _score(
            trainer, batch, groups.winner[pairs], winner, leaf, ids
        )
        weight = torch.from_numpy(groups.weight[pairs])
        loss = (F.softplus(behind) * weight).sum() / float(groups.weight.sum())
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    items.backward(leaf.grad)  # type: ignore[no-untyped-call]
    return total


def _encode(trainer: Trainer, batch: Batch, start: I64, group: I64, items: Tensor, ids: I64, thrifty: bool) -> Tensor:
    """Return [n, d] user vectors of so many sequences: what the users of int64[n] groups have seen by then."""
    inputs, model, groups = trainer.inputs, trainer.model, batch.groups
    window, length = groups.window[group], groups.state[group]
    first, user = start[window], batch.user[window]
    tokens = make_tokens(inputs.batches.histories, user, first, first + length, inputs.spec)
    read = (
        take(items, torch.from_numpy(np.searchsorted(ids, tokens.item))),
        torch.from_numpy(tokens.codes),
        torch.from_numpy(tokens.signals),
        torch.from_numpy(inputs.expected.surprise(tokens)),
        model.user_token(*entity_inputs(inputs.users, user.astype(np.int64))),
    )
    at = torch.from_numpy(length)
    if thrifty:
        states, taste = model.user.last(*read, at)
    else:
        states, taste = (x[torch.arange(len(at)), at] for x in model.user.states(*read))
    return model.user.vectors(states, taste, torch.from_numpy(groups.context[group]))


def _score(trainer: Trainer, batch: Batch, row: I64, users: Tensor, items: Tensor, ids: I64) -> Tensor:
    """Return [n] scores of so many impressions, with the user vector of each."""
    vectors = take(items, torch.from_numpy(np.searchsorted(ids, batch.groups.item[row])))
    return trainer.model.residual((users * vectors).sum(-1), torch.from_numpy(batch.groups.offset[row]))


def check_same(trainer: Trainer, own: Callable[[], float], peer: Callable[[], float]) -> None:
    """Refuse to go on where loss or gradients differ by more than rounding."""
    losses, gradients = [], []
    for call in (own, peer):
        losses.append(call())
        gradients.append({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})
    if abs(losses[0] - losses[1]) > 1e-5 * abs(losses[0]) or gradients[0].keys() != gradients[1].keys():
        raise SystemExit(f"one pass gives a loss of {losses[0]}, a pass for each impression {losses[1]}")
    if not gradients[0]:
        raise SystemExit("there are no gradients")
    for name, one in gradients[0].items():
        worst, scale = float((one - gradients[1][name]).abs().max()), float(one.abs().max())
        if worst > CLOSE * scale + 1e-7:
            raise SystemExit(f"the gradients of {name} differ by {worst:.1e}, the largest being {scale:.1e}")


def speedups(length: int, rounds: int, latest: bool = False) -> dict[str, Any]:
    """Return how much longer each peer takes for one batch than one pass does."""
    with repeatable(1, 0):
        trainer, chosen = make_trainer(length, latest)
        batches, mask = trainer.inputs.batches, trainer.inputs.finetune
        start = batches.windows.start[chosen]

        def own() -> float:
            return one_pass(trainer, batches.make(chosen, mask))

        def peer(how: dict[str, bool]) -> Callable[[], float]:
            return lambda: pass_for_each(trainer, batches.make(chosen, mask), start, **how)

        calls: dict[str, Callable[[], object]] = {"own": own, **{name: peer(how) for name, how in PEERS.items()}}
        for how in PEERS.values():
            check_same(trainer, own, peer(how))
        took = in_turns(calls, rounds)
    found = {name: ratio(took, name, "own") for name in PEERS}
    print(f"  {length:4} events{', latest' if latest else ''}: {_said(found)}", flush=True)
    return {"length": length, "latest": latest, "histories": len(chosen), **found}


def _said(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in found.items())


def finetune(rounds: int) -> dict[str, Any]:
    """Return the figure of LENGTH, and the curve."""
    curve = [speedups(length, rounds) for length in CURVE]
    (figure,) = (of["obvious"] for of in curve if of["length"] == LENGTH)
    return {
        "finetune_vs_per_impression": figure,
        "impressions": IMPRESSIONS,
        "curve": curve,
        "latest": speedups(LENGTH, rounds, latest=True),
    }
