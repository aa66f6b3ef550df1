"""The towers as they are served: ONNX Runtime and NumPy, no torch."""

import json
import logging
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime as ort
from tqdm import tqdm

from features.arrays import load_arrays
from features.errors import PairliftError
from features.schema import F32, I32, I64, Bool, Requests
from features.state.histories import Histories
from neural.entities import Entities
from neural.expected import ItemSignals
from neural.histories import Lag, TokenSpec, length_buckets, make_tokens, visible

log = logging.getLogger(__name__)

#: files of a fit: the towers, the query tower where there is a head that retrieves, and the `TokenSpec`
USER_TOWER, ITEM_TOWER, SPEC = "user_tower.onnx", "item_tower.onnx", "tokens.json"
QUERY_TOWER = "query_tower.onnx"
#: folder of a fit: the `ItemSignals`
EXPECTED = "expected"
#: names of the towers' inputs, in the order of `UserTower.forward` (the query tower's too) and `EntityTower.forward`
USER_INPUTS = ("item", "codes", "signals", "surprise", "user", "length", "surface")
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


class Runtime:
    """The towers' sessions with the vectors. Immutable, so any number of threads may share it."""

    def __init__(
        self, session: Any, spec: TokenSpec, vectors: Vectors, expected: ItemSignals, lag: Lag, query: Any = None
    ) -> None:
        """session, query: of the user tower, and of the query tower where there is one."""
        self.session, self.spec, self.vectors, self.expected, self.lag = session, spec, vectors, expected, lag
        self.query = query
        # The row of a cold item is the last one, of NaN.
        self._candidates = np.where(np.append(vectors.known_items, False)[:, None], vectors.items, np.float32(np.nan))

    @property
    def item_vectors(self) -> F32:
        """float32[n_items, d]; NaN for an item of which nothing is known."""
        return self._candidates[:-1]

    def candidate_vectors(self, item: I32) -> F32:
        """Return float32[n, d], NaN for what is not of the catalogue of the fit."""
        return self._candidates[self.spec.item_row(item)]

    def user_tokens(self, user: I32) -> I64:
        """Return int64[g] rows of `vectors.users`."""
        n, unknown = len(self.vectors.user_row), len(self.vectors.users) - 1
        inside = (user >= 0) & (user < n)
        if not inside.any():
            return np.full(len(user), unknown, np.int64)
        return np.where(inside, self.vectors.user_row[np.where(inside, user, 0)], unknown)

    def user_vectors(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d]; requests that share history, user token and surface are computed once.

        NaN where neither an event before `as_of` (less the lag) nor an attribute of the user is known.
        """
        return self._asked(self.session, requests, histories)

    def queries(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d]: as `user_vectors`, of the query tower."""
        return self._asked(self.query, requests, histories)

    def _asked(self, session: Any, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d] of a session that has the user tower's inputs."""
        start, stop = visible(histories, requests.user, requests.as_of, self.lag, self.spec.length)
        key = np.stack(
            [requests.user, start, stop, self.user_tokens(requests.user), self.spec.surface_code(requests.surface)]
        )
        key[0, start == stop] = 0  # users with empty histories are alike
        if len(requests) <= 1:
            return self._compute(session, histories, key)
        distinct, place = np.unique(key, axis=1, return_inverse=True)
        return self._compute(session, histories, distinct)[place.ravel()]

    def _compute(self, session: Any, histories: Histories, key: I64) -> F32:
        """Return float32[u, d] of int64[5, u] user, start, stop, row of `vectors.users`, and surface code."""
        user, start, stop, token, surface = key
        vectors = np.empty((key.shape[1], self.vectors.items.shape[1]), np.float32)
        for at in _shown(length_buckets(stop - start, BUDGET), len(user)):
            tokens = make_tokens(histories, user[at].astype(np.int32), start[at], stop[at], self.spec)
            inputs = (  # as USER_INPUTS
                self.vectors.items[tokens.item], tokens.codes, tokens.signals, self.expected.surprise(tokens),
                self.vectors.users[token[at]], tokens.length, surface[at],
            )  # fmt: skip
            vectors[at] = session.run(None, dict(zip(USER_INPUTS, inputs, strict=True)))[0]
        vectors[(start == stop) & (token == len(self.vectors.users) - 1)] = np.nan
        return vectors

    def dot(self, requests: Requests, users: F32) -> F32:
        """Return float32[n]: each candidate's vector times its request's user vector.

        Row by row, not one matrix product: a value must not depend, in its last bit, on the other candidates.
        """
        owner = users[requests.row_request()]
        return np.asarray(np.einsum("nd,nd->n", self.candidate_vectors(requests.item), owner), np.float32)


def _shown(parts: Iterator[I64], total: int) -> Iterator[I64]:
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


def load_runtime(folder: Path, lag: Lag) -> Runtime:
    """Open what a fit wrote into a folder."""
    saved: dict[str, Any] = json.loads((folder / SPEC).read_text())
    saved |= {name: tuple(value) for name, value in saved.items() if isinstance(value, list)}
    spec = TokenSpec(**saved)
    expected = load_arrays(folder / EXPECTED, ItemSignals)
    query = open_session(folder / QUERY_TOWER) if (folder / QUERY_TOWER).exists() else None
    return Runtime(open_session(folder / USER_TOWER), spec, Vectors.load(folder), expected, lag, query)
