"""The towers as they are served: ONNX Runtime and NumPy, no torch."""

import json
import logging
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import onnxruntime as ort
from numba import njit
from tqdm import tqdm

from features.arrays import load_arrays
from features.dots import row_dots
from features.errors import PairliftError
from features.schema import F32, I32, I64, Bool, Requests
from features.state.histories import Histories
from features.state.kept import KeptStates, Key
from neural.entities import Entities
from neural.expected import ItemSignals
from neural.histories import Lag, TokenSpec, length_buckets, make_tokens, visible

log = logging.getLogger(__name__)

#: files of a fit: the user tower as its trunk and its head, the item tower, and the `TokenSpec`
TRUNK, USER_HEAD, ITEM_TOWER, SPEC = "trunk.onnx", "user_head.onnx", "item_tower.onnx", "tokens.json"
#: in the place of the trunk, where its precision is int8
INT8_TRUNK = "trunk_int8.onnx"
#: a second head over the same trunk, where there is one that retrieves
QUERY_HEAD = "query_head.onnx"
#: folder of a fit: the `ItemSignals`
EXPECTED = "expected"
#: names of the inputs, in the order of the `forward` of `Trunk`, of both heads, and of `EntityTower`
TRUNK_INPUTS = ("item", "codes", "signals", "surprise", "user", "length")
HEAD_INPUTS = ("state", "surface")
ITEM_INPUTS = ("slots", "weight", "numbers")
#: padded tokens of one call to the user tower: enough for speed, and little enough for the caches
BUDGET = 8192
#: user vectors that are computed with a bar: some seconds
MANY = 10_000


@cache
def _providers() -> tuple[str, ...]:
    """Return the execution providers to ask for; logged once that there is no CUDA device.

    `get_available_providers` lists CUDA for a package that was built with it, device or not, and asking for it in
    vain prints a page: the driver's library is looked for first.
    """
    if "CUDAExecutionProvider" in ort.get_available_providers() and find_library("cuda"):
        return "CUDAExecutionProvider", "CPUExecutionProvider"
    log.info("no CUDA device: the towers run on the CPU")
    return ("CPUExecutionProvider",)


def open_session(path: Path) -> Any:
    """Return an `InferenceSession` with one thread: on CUDA where there is a device, else on the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # planned anew for each length of a history: 2 to 3% of a call
    wanted = list(_providers())
    try:
        session = ort.InferenceSession(str(path), options, providers=wanted)
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        raise PairliftError(f"{path}: ONNX Runtime cannot read it ({error}); fit the plugin anew") from error
    if session.get_providers()[0] != wanted[0]:
        log.warning("%s: CUDA was found but does not work, the tower runs on the CPU", path.name)
    return session


@dataclass(frozen=True, slots=True)
class Vectors:
    """What is computed once, after fit; d = width. One .npy file each."""

    items: F32  # [n_items + 1, d], from the item tower, the unknown item's last
    known_items: Bool  # [n_items], at least one thing is known of it
    users: F32  # [u, d], first tokens of all distinct users, the unknown one's last
    user_row: I64  # [n_users], row of `users`
    keys: F32  # [n_items, d], of the head that retrieves, NaN of an unknown item; [n_items, 0] without such a head

    def user_tokens(self, user: I32) -> I64:
        """Return int64[g] rows of `users`."""
        rows: I64 = _rows(self.user_row, user, len(self.users) - 1)
        return rows

    def recoded(self, items: I32, users: I32) -> "Vectors":
        """Return them for another catalogue: see `features.plugin.RecodedPlugin`."""
        cold_item, cold_user = len(self.items) - 1, len(self.users) - 1
        at = np.append(np.where(items < 0, cold_item, items), cold_item)
        known = np.append(self.known_items, False)[at[:-1]]
        user_row = np.append(self.user_row, cold_user)[users]  # -1: the last place
        keys = np.where(items[:, None] >= 0, self.keys[items], np.float32(np.nan))
        return Vectors(self.items[at], known, self.users, user_row, keys)

    def save(self, folder: Path) -> None:
        """Write the arrays into a folder."""
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        return cls(**{field.name: np.load(folder / f"{field.name}.npy") for field in fields(cls)})


class Heads(NamedTuple):
    """Sessions that take HEAD_INPUTS."""

    user: Any  # to user vectors
    query: Any  # to queries; None where there is no head that retrieves


HEADS = Heads._fields


class Runtime:
    """The towers' sessions with the vectors. Any number of threads may share it.

    A user's state (what the trunk makes of the history) is kept until the user has new events, and so is what a head
    makes of it for a surface. The request's surface comes after the state, in the heads; `as_of` says which events are
    visible, and no more.
    """

    def __init__(
        self, trunk: Any, heads: Heads, spec: TokenSpec, vectors: Vectors, expected: ItemSignals, lag: Lag,
        alone: bool = False,
    ) -> None:  # fmt: skip
        """trunk: a session that takes TRUNK_INPUTS. alone: each history in a call of its own."""
        self.trunk, self.heads, self.spec, self.vectors, self.expected, self.lag = (
            trunk, heads, spec, vectors, expected, lag,
        )  # fmt: skip
        self.budget = 0 if alone else BUDGET
        self.kept = KeptStates()
        # Of a user without history and token, whatever the surface is.
        self._unknown_user = len(vectors.users) - 1
        self._nothing_known = np.full((1, vectors.items.shape[1]), np.nan, np.float32)
        # The row of a cold item is the last one, of NaN.
        self._candidates = np.where(np.append(vectors.known_items, False)[:, None], vectors.items, np.float32(np.nan))

    @property
    def item_vectors(self) -> F32:
        """float32[n_items, d]; NaN for an item of which nothing is known."""
        return self._candidates[:-1]

    def candidate_vectors(self, item: I32) -> F32:
        """Return float32[n, d], NaN for what is not of the catalogue of the fit."""
        return self._candidates[self.spec.item_row(item)]

    def user_vectors(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d]; requests that share history and user token have one state.

        NaN where neither an event before `as_of` (less the lag) nor an attribute of the user is known.
        """
        return self._vectors("user", requests, histories)

    def queries(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d]: as `user_vectors`, of the head that retrieves."""
        return self._vectors("query", requests, histories)

    def _vectors(self, head: str, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d], not to be changed. head: one of `Heads`."""
        if not len(requests):
            return np.empty((0, self.vectors.items.shape[1]), np.float32)
        start, stop = visible(histories, requests.user, requests.as_of, self.lag, self.spec.length)
        token = self.vectors.user_tokens(requests.user)
        surface = self.spec.surface_code(requests.surface)
        if len(requests) == 1:
            return self._one_vector(head, histories, requests.user, start, stop, token, surface)
        states = self._states(histories, requests.user, start, stop, token)
        vectors = self._of_states(head, states, surface)
        vectors[(start == stop) & (token == self._unknown_user)] = np.nan
        return vectors

    def _of_states(self, head: str, states: F32, surface: I64) -> F32:
        """Return float32[g, d] of a head. states: float32[g, 2d] of the trunk; surface: int64[g] codes."""
        session = getattr(self.heads, head)
        vectors: F32 = session.run(None, dict(zip(HEAD_INPUTS, (states, surface), strict=True)))[0]
        return vectors

    def _one_vector(
        self, head: str, histories: Histories, user: I32, start: I64, stop: I64, token: I64, surface: I64
    ) -> F32:
        """Return float32[1, d] of arrays of one request, kept as its state is: the kept one, where there is one."""
        if start[0] == stop[0] and token[0] == self._unknown_user:
            return self._nothing_known
        # The token follows from the user; users with empty histories and the same token are alike.
        key = (int(user[0]), int(start[0]), int(stop[0])) if start[0] < stop[0] else (int(token[0]), -1, -1)
        vector = self.kept.find(histories, (*key, HEADS.index(head), int(surface[0])))
        if vector is not None:
            return vector
        state = self._one_state(histories, key, user, start, stop, token)
        # What is retrieved is ranked next, and a head that runs right behind another takes a third of its time.
        vectors = {name: self._of_states(name, state, surface) for name in dict.fromkeys((head, "user"))}
        for name, vector in vectors.items():
            self.kept.keep(histories, (*key, HEADS.index(name), int(surface[0])), vector)
        return vectors[head]

    def _one_state(self, histories: Histories, key: Key, user: I32, start: I64, stop: I64, token: I64) -> F32:
        """Return float32[1, 2d] of arrays of one request: the kept one, where there is one."""
        state = self.kept.find(histories, key)
        if state is None:
            state = self._computed(histories, user, start, stop, token)
            self.kept.keep(histories, key, state)
        return state

    def _states(self, histories: Histories, user: I32, start: I64, stop: I64, token: I64) -> F32:
        """Return float32[g, 2d] of g requests, each different state computed once."""
        key = np.stack([np.where(start < stop, user, 0), start, stop, token])
        distinct, place = np.unique(key, axis=1, return_inverse=True)
        user, start, stop, token = distinct
        return self._computed(histories, user.astype(np.int32), start, stop, token)[place.ravel()]

    def _computed(self, histories: Histories, user: I32, start: I64, stop: I64, token: I64) -> F32:
        """Return float32[u, 2d] of the trunk. token: rows of `vectors.users`."""
        states = np.empty((len(user), 2 * self.vectors.items.shape[1]), np.float32)
        for at in shown(length_buckets(stop - start, self.budget), len(user)):
            tokens = make_tokens(histories, user[at], start[at], stop[at], self.spec)
            inputs = (  # as TRUNK_INPUTS
                self.vectors.items.take(tokens.item, axis=0),  # half the time of an index array
                tokens.codes, tokens.signals, self.expected.surprise(tokens), self.vectors.users[token[at]],
                tokens.length,
            )  # fmt: skip
            states[at] = self.trunk.run(None, dict(zip(TRUNK_INPUTS, inputs, strict=True)))[0]
        return states

    def dot(self, requests: Requests, users: F32) -> F32:
        """Return float32[n]: each candidate's vector times its request's user vector."""
        return row_dots(self._candidates, requests.item, requests.offsets, users)


@njit(cache=True, nogil=True)
def _rows(user_row: I64, user: I32, unknown: int) -> I64:
    """Return int64[g]: the row of each user, `unknown` for one outside int64[n_users] rows."""
    rows = np.full(len(user), unknown, np.int64)
    for k in range(len(user)):
        if 0 <= user[k] < len(user_row):
            rows[k] = user_row[user[k]]
    return rows


def shown(parts: Iterator[I64], total: int) -> Iterator[I64]:
    """Yield index arrays, with a bar on stderr where there are so many rows that they take long: never in a request."""
    if total < MANY:
        yield from parts
        return
    with tqdm(total=total, desc="user vectors", unit=" users", file=sys.stderr, mininterval=1, leave=False) as bar:
        for part in parts:
            yield part
            bar.update(len(part))


def encode_items(session: Any, items: Entities, chunk: int = 4096) -> F32:
    """Return float32[n + 1, d] from the item tower, the unknown item's last."""
    parts = []
    for k in range(0, len(items.weight), chunk):
        rows = slice(k, k + chunk)
        inputs = (items.slots[rows], items.weight[rows], items.numbers[rows])
        parts.append(session.run(None, dict(zip(ITEM_INPUTS, inputs, strict=True)))[0])
    return np.concatenate(parts)


def save_spec(folder: Path, spec: TokenSpec) -> None:
    """Write the tokens' vocabulary."""
    (folder / SPEC).write_text(json.dumps(asdict(spec)))


def load_spec(folder: Path) -> TokenSpec:
    """Read what `save_spec` wrote."""
    saved: dict[str, Any] = json.loads((folder / SPEC).read_text())
    return TokenSpec(**saved | {name: tuple(value) for name, value in saved.items() if isinstance(value, list)})


def load_runtime(folder: Path, lag: Lag) -> Runtime:
    """Open what a fit wrote into a folder."""
    spec = load_spec(folder)
    expected = load_arrays(folder / EXPECTED, ItemSignals)
    query = open_session(folder / QUERY_HEAD) if (folder / QUERY_HEAD).exists() else None
    heads, int8 = Heads(open_session(folder / USER_HEAD), query), (folder / INT8_TRUNK).exists()
    trunk = open_session(folder / (INT8_TRUNK if int8 else TRUNK))
    return Runtime(trunk, heads, spec, Vectors.load(folder), expected, lag, alone=int8)
