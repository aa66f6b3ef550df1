"""The towers as they are served: ONNX Runtime and NumPy, no torch."""

import json
import logging
from ctypes.util import find_library
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from features.errors import PairliftError
from features.histories import Histories
from features.schema import F32, I32, I64, Bool, Requests
from neural.entities import Entities
from neural.histories import TokenSpec, batches, make_tokens, visible

log = logging.getLogger(__name__)

#: padded tokens of one call to the user tower: enough for speed, little enough to stay in the caches
BUDGET = 8192


@cache
def _providers() -> tuple[str, ...]:
    """Return the execution providers to ask for, told once in the log.

    `get_available_providers` lists CUDA for a package that was built with it, device or not, and asking for it in vain
    prints a page; so the driver's library is looked for first.
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
    except Exception as error:
        raise PairliftError(f"{path}: ONNX Runtime cannot read it ({error}); fit the plugin anew") from error
    if session.get_providers()[0] != wanted[0]:
        log.warning("%s: CUDA was found but does not work, the tower runs on the CPU", path.name)
    return session


class Runtime:
    """Item vectors, user tokens and the user tower's session. Immutable, so any number of threads may share it."""

    def __init__(
        self,
        session: Any,
        spec: TokenSpec,
        lag: int | str,
        items: F32,
        known_items: Bool,
        users: F32,
        user_row: I32,
    ) -> None:
        """Take the vectors of all items and, last, of an unknown one: float32[n_items + 1, d]; known_items: bool[n_items].

        users: float32[k, d], the tokens of all distinct users, the unknown one's last; user_row: int32[n_users] rows of it.
        """
        self.session, self.spec, self.lag = session, spec, lag
        self.items, self.users, self.user_row = items, users, user_row
        self.unknown_user = len(users) - 1
        self.item_vectors: F32 = np.where(known_items[:, None], items[:-1], np.float32(np.nan))
        # Row -1 answers for a cold item.
        self._candidates = np.concatenate(
            [self.item_vectors, np.full((1, items.shape[1]), np.nan, np.float32)]
        )

    @property
    def width(self) -> int:
        """Length of a vector."""
        return int(self.items.shape[1])

    def candidate_vectors(self, item: I32) -> F32:
        """Return float32[n, d], NaN for what is not of the catalogue of the fit."""
        return self._candidates[np.where((item >= 0) & (item < self.spec.n_items), item, -1)]

    def _user_tokens(self, user: I32) -> I64:
        inside = (user >= 0) & (user < len(self.user_row))
        if not len(self.user_row):
            return np.full(len(user), self.unknown_user, np.int64)
        return np.where(inside, self.user_row[np.where(inside, user, 0)], self.unknown_user).astype(np.int64)

    def user_vectors(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d]; requests with the same history, user token and context are computed once.

        NaN where neither an event before `as_of` (less the lag) nor an attribute of the user is known.
        """
        user = requests.user
        start, stop = visible(histories, user, requests.as_of, self.lag, self.spec.length)
        token, context = self._user_tokens(user), self.spec.surface_code(requests.surface)
        first, place = np.arange(len(user)), np.arange(len(user))
        if len(user) > 1:
            key = np.stack([start, stop, token, context], axis=1)
            _, first, place = np.unique(key, axis=0, return_index=True, return_inverse=True)
        vectors = self._run(histories, user[first], start[first], stop[first], token[first], context[first])
        vectors[(start[first] == stop[first]) & (token[first] == self.unknown_user)] = np.nan
        return vectors[place.ravel()]

    def _run(self, histories: Histories, user: I32, start: I64, stop: I64, token: I64, context: I64) -> F32:
        vectors = np.empty((len(user), self.width), np.float32)
        for at in batches(stop - start, BUDGET):
            tokens = make_tokens(histories, user[at], start[at], stop[at], self.spec)
            feed = {
                "item": self.items[tokens.item], "codes": tokens.codes, "feedback": tokens.feedback,
                "user": self.users[token[at]], "length": tokens.length, "surface": context[at],
            }  # fmt: skip
            vectors[at] = self.session.run(None, feed)[0]
        return vectors

    def dot(self, requests: Requests, users: F32) -> F32:
        """Return float32[n]: each candidate's vector times its request's user vector, one request after the other.

        Not one large product: a candidate's value must not depend, in the last bit, on what it was batched with.
        """
        return np.einsum("nd,nd->n", self.candidate_vectors(requests.item), users[requests.row_request()])


def encode_items(session: Any, items: Entities, chunk: int = 4096) -> F32:
    """Return float32[n + 1, d] from the item tower, the unknown item's last."""
    parts = []
    for k in range(0, len(items.weight), chunk):
        rows = slice(k, k + chunk)
        feed = {"slots": items.slots[rows], "weight": items.weight[rows], "numbers": items.numbers[rows]}
        parts.append(session.run(None, feed)[0])
    return np.concatenate(parts)


def save_arrays(folder: Path, spec: TokenSpec, arrays: dict[str, Any]) -> None:
    """Write what `load_runtime` reads beside `user_tower.onnx`."""
    (folder / "tokens.json").write_text(json.dumps(asdict(spec)))
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def load_spec(folder: Path) -> TokenSpec:
    """Read the tokens' vocabulary."""
    told = json.loads((folder / "tokens.json").read_text())
    for name in ("feedback_mean", "feedback_scale"):
        told[name] = tuple(told[name])
    return TokenSpec(**told)


def load_runtime(folder: Path, lag: int | str) -> Runtime:
    """Open what a fit wrote into a folder."""
    arrays = [np.load(folder / f"{name}.npy") for name in ("items", "known_items", "users", "user_row")]
    return Runtime(open_session(folder / "user_tower.onnx"), load_spec(folder), lag, *arrays)
