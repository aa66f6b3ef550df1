"""What a request costs: the user tower beside a bare export of its blocks, and the cross-encoder's one call.

CPU time with one thread, a session each, in turns.
"""

import importlib
import importlib.util
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from neural_clock import in_turns, ratio
from neural_world import START, STEP, fit_data
from torch import Tensor, nn

from features.schema import one_request
from features.state.histories import Histories
from neural.entities import Layout
from neural.export import OPSET, check_parity, export_towers, random_head_batch, random_user_batch
from neural.histories import TokenSpec
from neural.model import Argus, Shape
from neural.runtime import HEAD_INPUTS, TRUNK, TRUNK_INPUTS, USER_HEAD, open_session

logging.getLogger("torch").setLevel(logging.ERROR)  # the exporter warns of packages that are not used
WIDTH, LAYERS, HEADS, HISTORY = 64, 2, 4, 256
#: calls of one turn
CALLS = 50
CROSS, CROSS_MODULE = "cross_encoder_ms", "neural.cross_encoder"
CANDIDATES, CROSS_HISTORY = 500, 128
#: what it is fitted on, for the time of a call does not depend on it
USERS, EVENTS, ITEMS = 30, 200, 2_000


class BareBlock(nn.Module):
    """A block of pre-norm attention and an MLP, of the sizes of `neural.model.Block`; its mask says the order alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key_value, self.out = (nn.Linear(WIDTH, n * WIDTH) for n in (1, 2, 1))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor, asked: int) -> Tensor:
        """x: [1, s, d]; mask: [s, s] -> [1, asked, d]: the last so many states."""
        normed, x, mask = self.norm(x), x[:, -asked:], mask[-asked:]
        k, v = (self._split(y) for y in self.key_value(normed).chunk(2, dim=-1))
        q = self._split(self.query(normed[:, -asked:]))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        x = x + self.out(attended.clone(memory_format=torch.contiguous_format).flatten(2))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm_mlp(x))))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], HEADS, -1).transpose(1, 2)


class Bare(nn.Module):
    """Tokens to the vector of the last one: blocks, a norm, a linear map, and nothing else."""

    mask: Tensor  # [s, s]

    def __init__(self, thrifty: bool) -> None:
        """thrifty: the last block computes the last state alone, as ours does."""
        super().__init__()
        self.thrifty = thrifty
        self.blocks = nn.ModuleList(BareBlock() for _ in range(LAYERS))
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        future = torch.ones(HISTORY + 1, HISTORY + 1).triu(1)
        self.register_buffer("mask", -1e4 * future)

    def forward(self, x: Tensor) -> Tensor:
        """x: [1, s, d] -> [1, d]."""
        s = x.shape[1]
        for k, block in enumerate(self.blocks, 1):
            x = block(x, self.mask, 1 if self.thrifty and k == LAYERS else s)
        out: Tensor = self.out(self.norm(x[:, -1]))
        return out


def tower_call(folder: Path) -> Callable[[], Any]:
    """Return a call of our user tower (trunk, then head) for a full history."""
    tokens = TokenSpec(
        n_items=1000, n_grades=3, n_surfaces=2, signal_mean=(1.0, 0.5), signal_scale=(1.0, 1.0), length=HISTORY
    )
    shape = Shape(
        width=WIDTH, layers=LAYERS, heads=HEADS, dropout=0, rows=1024, tokens=tokens,
        item=Layout((1, 1), 2), user=Layout((), 2),
    )  # fmt: skip
    torch.manual_seed(0)
    export_towers(Argus(shape), shape.rows, tokens, folder)
    trunk, head = open_session(folder / TRUNK), open_session(folder / USER_HEAD)
    rng = np.random.default_rng(0)
    history = [x.numpy() for x in random_user_batch(tokens, WIDTH, 1, HISTORY, rng)]
    context = random_head_batch(tokens, WIDTH, 1, rng)[1].numpy()

    def own() -> Any:
        state = trunk.run(None, dict(zip(TRUNK_INPUTS, history, strict=True)))[0]
        return head.run(None, dict(zip(HEAD_INPUTS, (state, context), strict=True)))[0]

    return own


def bare_call(folder: Path, thrifty: bool) -> Callable[[], Any]:
    """Return a call of the bare blocks, exported as ours are, but for a history of this one length."""
    torch.manual_seed(0)
    path, model = folder / f"bare-{thrifty}.onnx", Bare(thrifty).eval()
    x = torch.randn(1, HISTORY + 1, WIDTH)
    options = {"dynamo": True, "opset_version": OPSET, "external_data": False, "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), str(path), input_names=["x"], **options)
    check_parity(model, path, ("x",), [(x,)])
    session = open_session(path)
    return lambda: session.run(None, {"x": x.numpy()})


def tower(rounds: int) -> dict[str, Any]:
    """Return the ratio to all states of the bare blocks and to those that are needed, and the ms of each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calls = {"own": tower_call(folder), "bare": bare_call(folder, False), "thrifty": bare_call(folder, True)}
        took = in_turns(calls, rounds, CALLS)
    ms = {name: round(1e3 * statistics.median(seconds), 4) for name, seconds in took.items()}
    said = f"the bare blocks {ms['bare']:.3f} ms, with one state of the last one {ms['thrifty']:.3f} ms"
    print(f"  {ms['own']:.3f} ms, {said}", flush=True)
    return {
        "user_tower_vs_floor": ratio(took, "own", "bare"),
        "vs_thrifty_floor": ratio(took, "own", "thrifty"),
        "history": HISTORY,
        "ms": ms,
    }


def cross(rounds: int) -> dict[str, Any]:
    """Return the ms of one call of the plugin for one request, whose user and time no call before had."""
    if importlib.util.find_spec(CROSS_MODULE) is None:
        return {CROSS: None, "why": {CROSS: f"there is no {CROSS_MODULE}"}}
    options = {"history": CROSS_HISTORY, "pretrain_epochs": 1, "finetune_epochs": 1, "threads": 1}
    plugin = importlib.import_module(CROSS_MODULE).CrossEncoder(**options)
    data = fit_data(np.full(USERS, EVENTS), ITEMS)
    plugin.fit(data)
    histories, rng = Histories.build(data.log, USERS), np.random.default_rng(0)
    took = []
    for k in range((rounds + 1) * USERS):
        seen = CROSS_HISTORY + k // USERS
        items = rng.choice(ITEMS, CANDIDATES, replace=False).astype(np.int32)
        request = one_request(k % USERS, START + seen * STEP - STEP // 2, 0, items)
        begun = time.process_time()
        values = plugin.values(request, histories)
        took.append(1e3 * (time.process_time() - begun))
        if values.shape != (CANDIDATES, len(plugin.columns)) or not np.isfinite(values).any():
            raise SystemExit(f"the cross-encoder gave {values.shape}, of which {np.isfinite(values).sum()} are numbers")
    counted = np.array(took[USERS:])  # the first round is not counted
    print(f"  {np.median(counted):.2f} ms for {CANDIDATES} candidates, history {CROSS_HISTORY}", flush=True)
    return {CROSS: float(np.median(counted)), "p95_ms": float(np.percentile(counted, 95)), "history": CROSS_HISTORY}
