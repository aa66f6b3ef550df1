"""The towers as they are served: ONNX Runtime and NumPy, no torch."""

import json
import logging
from collections.abc import Iterator
from ctypes.util import find_library
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import onnxruntime as ort

from features.arrays import load_arrays
from features.dots import row_dots
from features.errors import PairliftError
from features.kernels import njit
from features.progress import progress_bar
from features.schema import F32, I32, I64, Bool, Requests
from features.state.histories import Histories
from features.state.kept import KeptStates, Key, key_of
from features.state.lag import Lag
from features.state.refreshed import Ahead, RefreshedStates, refreshed
from neural.expected import ItemSignals
from neural.histories import TokenSpec, length_buckets, make_tokens, visible
from neural.vocabulary.context import ContextSpec
from neural.vocabulary.entities import Entities

log = logging.getLogger(__name__)

#: files of a fit: the user tower as its trunk and its head, the item tower, and the `TokenSpec`
TRUNK, USER_HEAD, ITEM_TOWER, SPEC = "trunk.onnx", "user_head.onnx", "item_tower.onnx", "tokens.json"
#: in the place of the trunk, where its precision is int8
INT8_TRUNK = "trunk_int8.onnx"
#: a second head over the same trunk, where there is one that retrieves
QUERY_HEAD = "query_head.onnx"
#: the heads of grade and feedback, where a column asks for them
ANSWERS = "answers.onnx"
#: folder of a fit: the `ItemSignals`
EXPECTED = "expected"
#: names of the inputs, in the order of the `forward` of `Trunk`, of both heads, of `Answers`, and of `EntityTower`
TRUNK_INPUTS = ("item", "codes", "signals", "surprise", "user", "length")
HEAD_INPUTS = ("state", "context")
ANSWERS_INPUTS = ("state", "user", "items", "request", "known")
ITEM_INPUTS = ("slots", "weight", "numbers")
#: padded tokens of one call to the user tower: enough for speed, and little enough for the caches
BUDGET = 8192
#: candidates of one call to the heads of grade and feedback
CANDIDATES = 16_384
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
    """Sessions behind the trunk; the first two take HEAD_INPUTS."""

    user: Any  # to user vectors
    query: Any  # to queries; None where there is no head that retrieves
    answers: Any = None  # takes ANSWERS_INPUTS; None where no column asks for it


#: those whose vectors are kept
HEADS = ("user", "query")


class Seen(NamedTuple):
    """What of the users of g requests is read."""

    user: I32  # [g]
    start: I64  # [g], row of the histories
    stop: I64  # [g], the row behind the last
    token: I64  # [g], row of `Vectors.users`; it follows from the user

    def key(self, histories: Histories) -> Key:
        """Of one request: users with empty histories and the same token are alike."""
        user, start, stop, token = (int(x[0]) for x in self)
        return key_of(histories, user, start, stop) if start < stop else (token, -1, -1)


class Runtime:
    """The towers' sessions with the vectors. Any number of threads may share it.

    A user's state (what the trunk makes of the history) is kept until other events of the user are visible, and so is
    what a head makes of it for a context. The request's context comes after the state, in the heads. `refresh` computes
    states of many users ahead.
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
        self.refreshed: RefreshedStates | None = None
        # Of a user without history and token, whatever the context is.
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
        seen, context = self._seen(requests, histories), self.spec.request_codes(requests)
        if len(requests) == 1:
            return self._one_vector(head, histories, seen, context)
        return self._of_states(head, self._states(histories, seen), context, self._unknown(seen))

    def _seen(self, requests: Requests, histories: Histories) -> Seen:
        window = visible(histories, requests.user, requests.as_of, self.lag, self.spec.length)
        return Seen(requests.user, *window, self.vectors.user_tokens(requests.user))

    def _unknown(self, seen: Seen) -> Bool:
        """Return bool[g]: neither an event nor an attribute of the user is known."""
        return np.asarray((seen.start == seen.stop) & (seen.token == self._unknown_user))

    def _of_states(self, head: str, states: F32, context: I64, unknown: Bool) -> F32:
        """Return float32[g, d] of a head, NaN where a user is unknown.

        states: float32[g, 2d] of the trunk; context: int64[g, c] codes; unknown: bool[g].
        """
        session = getattr(self.heads, head)
        vectors: F32 = session.run(None, dict(zip(HEAD_INPUTS, (states, context), strict=True)))[0]
        vectors[unknown] = np.nan
        return vectors

    def _one_vector(self, head: str, histories: Histories, seen: Seen, context: I64) -> F32:
        """Return float32[1, d] of one request, kept as its state is: the kept one, where there is one."""
        unknown = self._unknown(seen)
        if unknown[0]:
            return self._nothing_known
        key, said = seen.key(histories), context[0].tolist()
        vector = self.kept.find(histories, (*key, HEADS.index(head), *said))
        if vector is not None:
            return vector
        state = self._one_state(histories, seen)
        # What is retrieved is ranked next, and a head that runs right behind another takes a third of its time.
        vectors = {name: self._of_states(name, state, context, unknown) for name in dict.fromkeys((head, "user"))}
        for name, vector in vectors.items():
            self.kept.keep(histories, (*key, HEADS.index(name), *said), vector)
        return vectors[head]

    def _one_state(self, histories: Histories, seen: Seen) -> F32:
        """Return float32[1, 2d] of one request: the kept one, where there is one."""
        key, ahead = seen.key(histories), self.refreshed
        state = None if ahead is None else ahead.find(histories, key)
        if state is None:
            state = self.kept.find(histories, key)
        if state is None:
            state = self._computed(histories, seen)
            self.kept.keep(histories, key, state)
        return state

    def refresh(self, ahead: Ahead) -> RefreshedStates:
        """Compute states of users ahead, for calls of one request: see `features.plugin.AheadPlugin`."""
        cut = int(self.lag.cut(np.array([ahead.as_of]))[0])

        def compute(histories: Histories, user: I32, start: I64, stop: I64) -> F32:
            return self._computed(histories, Seen(user, start, stop, self.vectors.user_tokens(user)))

        width = 2 * self.vectors.items.shape[1]
        self.refreshed = refreshed(ahead, cut, self.spec.length, width, compute, self.refreshed)
        return self.refreshed

    def _states(self, histories: Histories, seen: Seen) -> F32:
        """Return float32[g, 2d] of g requests, each different state computed once."""
        user, start, stop, token = seen
        key = np.stack([np.where(start < stop, user, 0), start, stop, token])
        distinct, place = np.unique(key, axis=1, return_inverse=True)
        user, start, stop, token = distinct
        return self._computed(histories, Seen(user.astype(np.int32), start, stop, token))[place.ravel()]

    def _computed(self, histories: Histories, seen: Seen) -> F32:
        """Return float32[u, 2d] of the trunk."""
        user, start, stop, token = seen
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

    def answers(self, requests: Requests, histories: Histories) -> tuple[F32, F32]:
        """Return float32[g, d] user vectors, and float32[n, a] what `Answers` expects of each of n >= 1 candidates.

        NaN for an item of which nothing is known, and for a user without a vector.
        """
        states, users = self._read(requests, histories)
        item, owner = self.spec.item_row(requests.item), requests.row_request()
        known = self.expected.before(item, requests.as_of[owner])[:, 0]
        vectors, finite = self.vectors.items.take(item, axis=0), np.nan_to_num(users)
        parts = []
        for first in range(0, len(item), CANDIDATES):
            rows = slice(first, first + CANDIDATES)
            some = slice(owner[rows][0], owner[rows][-1] + 1)
            inputs = (states[some], finite[some], vectors[rows], owner[rows] - some.start, known[rows])
            parts.append(self.heads.answers.run(None, dict(zip(ANSWERS_INPUTS, inputs, strict=True)))[0])
        found = np.concatenate(parts)
        found[np.isnan(users[owner, 0]) | np.isnan(self._candidates[item, 0])] = np.nan
        return users, found

    def _read(self, requests: Requests, histories: Histories) -> tuple[F32, F32]:
        """Return float32[g, 2d] states, and float32[g, d] user vectors."""
        seen = self._seen(requests, histories)
        if len(requests) == 1:  # whose vector comes first, for it keeps the state
            users = self.user_vectors(requests, histories)
            return self._one_state(histories, seen), users
        states, context = self._states(histories, seen), self.spec.request_codes(requests)
        return states, self._of_states("user", states, context, self._unknown(seen))

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
    with progress_bar(total=total, desc="user vectors", unit=" users", mininterval=1, leave=False) as bar:
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
    lists = {name: tuple(value) for name, value in saved.items() if isinstance(value, list)}
    return TokenSpec(**saved | lists | {"context": ContextSpec.of_json(saved["context"])})


def load_runtime(folder: Path, lag: Lag) -> Runtime:
    """Open what a fit wrote into a folder."""
    spec = load_spec(folder)
    expected = load_arrays(folder / EXPECTED, ItemSignals)
    further = (open_session(folder / name) if (folder / name).exists() else None for name in (QUERY_HEAD, ANSWERS))
    heads = Heads(open_session(folder / USER_HEAD), *further)
    int8 = (folder / INT8_TRUNK).exists()
    trunk = open_session(folder / (INT8_TRUNK if int8 else TRUNK))
    return Runtime(trunk, heads, spec, Vectors.load(folder), expected, lag, alone=int8)
