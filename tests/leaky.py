"""Plugins that know what they must not, each in its own way; and honest ones that are easily taken for useful."""

import json
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from features.baselines import ALS, ALSSettings, Noise
from features.plugin import FitData
from features.schema import DAY, F32, Requests
from features.state.histories import Histories
from features.state.lag import DAILY


class Leaky:
    """A column of one value for each candidate, which `of` computes from all that histories hold."""

    columns: tuple[str, ...] = ("x",)

    def __init__(self) -> None:
        self.item_values = np.empty(0, np.float32)

    def fit(self, data: FitData) -> None:
        """Learn nothing."""

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1]."""
        owner = requests.row_request()
        rows = zip(requests.user[owner].tolist(), requests.item.tolist(), requests.as_of[owner].tolist(), strict=True)
        return np.array([self.of(u, i, t, histories) for u, i, t in rows], np.float32).reshape(-1, 1)

    def of(self, user: int, item: int, as_of: int, histories: Histories) -> float:
        """Return one value."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write what was learned."""
        (folder / "leaky.json").write_text(json.dumps(self.item_values.tolist()))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read it."""
        plugin = cls()
        plugin.item_values = np.array(json.loads((folder / "leaky.json").read_text()), np.float32)
        return plugin


def _rows(user: int, histories: Histories) -> slice:
    # The bounds of the arrays, not `ends`: all that lies there, whatever it may be asked for.
    return slice(int(histories.offsets[user]), int(histories.offsets[user + 1]))


class Label(Leaky):
    """The candidate's own grade, of the user's next event with it."""

    def of(self, user: int, item: int, as_of: int, histories: Histories) -> float:
        """Return the grade, NaN where there is no such event."""
        rows = _rows(user, histories)
        mine = (histories.item[rows] == item) & (histories.ts[rows] >= as_of)
        return float(histories.grade[rows][mine][0]) if mine.any() else np.nan


class NoisyLabel(Label):
    """The same, with noise as large as it."""

    def of(self, user: int, item: int, as_of: int, histories: Histories) -> float:
        """Return grade and noise."""
        noise = np.random.default_rng([user, item, as_of % 2**32]).normal()
        return float(np.nan_to_num(super().of(user, item, as_of, histories)) + noise)


class LaterEvent(Leaky):
    """What the user did between `as_of` and the candidate's own event: features as of each row's own time."""

    def of(self, user: int, item: int, as_of: int, histories: Histories) -> float:
        """Return the mean grade so far."""
        rows = _rows(user, histories)
        ts, mine = histories.ts[rows], histories.item[rows] == item
        own = ts[mine & (ts >= as_of)]
        before = ts < (own[0] if len(own) else as_of)
        return float(histories.grade[rows][before].mean()) if before.any() else np.nan


class AtAsOf(Leaky):
    """`ts <= as_of` in place of `<`: leaks where events share a time."""

    def of(self, user: int, item: int, as_of: int, histories: Histories) -> float:
        """Return the last grade that the user gave the item."""
        rows = _rows(user, histories)
        mine = (histories.item[rows] == item) & (histories.ts[rows] <= as_of)
        return float(histories.grade[rows][mine][-1]) if mine.any() else -1.0


class WholeLog(Leaky):
    """The item's mean grade over the whole log."""

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1]."""
        n = int(max(histories.item.max(initial=0), requests.item.max(initial=0))) + 1
        total = np.bincount(histories.item, histories.grade, minlength=n)
        mean = total / np.maximum(np.bincount(histories.item, minlength=n), 1)
        return mean[requests.item, None].astype(np.float32)


class LookedAhead(Leaky):
    """The item's mean grade over all that lies behind the arrays that `fit` is given views of."""

    def fit(self, data: FitData) -> None:
        """Look at the whole arrays."""
        item, grade = (a if a.base is None else a.base for a in (data.log.item, data.log.grade))
        n = data.catalog.n_items
        self.item_values = (np.bincount(item, grade, n) / np.maximum(np.bincount(item, minlength=n), 1)).astype(
            np.float32
        )

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1]."""
        return self.item_values[requests.item, None]


class Remembered(Label):
    """The label, kept for whoever asks again: a cache hides a leak from a comparison that it has served before."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[tuple[int, int, int], float] = {}

    def of(self, user: int, item: int, as_of: int, histories: Histories) -> float:
        """Return what was said first."""
        return self._kept.setdefault((user, item, as_of), super().of(user, item, as_of, histories))


class BesideFarValues(Label):
    """The label, and values that are far away for some users: they must not make room for it."""

    def of(self, user: int, item: int, as_of: int, histories: Histories) -> float:
        """Return it."""
        return -1e9 if user % 10 == 0 else super().of(user, item, as_of, histories)


class InBatchAlone(Label):
    """The label where many requests are asked for at once, as in training; the user's number where it is one."""

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1]."""
        if len(requests) > 1:
            return super().values(requests, histories)
        return requests.user[requests.row_request(), None].astype(np.float32)


class Sentinel(Label):
    """The label of half of the users; what is not known is a number, as feature stores write it."""

    def of(self, user: int, item: int, as_of: int, histories: Histories) -> float:
        """Return the grade, -1 where there is no such event; -1e9 of the other users."""
        return -1e9 if user % 2 else float(np.nan_to_num(super().of(user, item, as_of, histories), nan=-1.0))


class OneCut(Leaky):
    """One cut for all requests of a call, the newest one's `as_of`: alone a request is honest, in a batch it is not."""

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1]: the first grade that the user gave the item before that cut, NaN of none."""
        owner, newest = requests.row_request(), int(requests.as_of.max(initial=0))
        rows = zip(requests.user[owner].tolist(), requests.item.tolist(), requests.as_of[owner].tolist(), strict=True)
        found = [self.known_by(newest, u, i, t, histories) for u, i, t in rows]
        return np.array(found, np.float32).reshape(-1, 1)

    def known_by(self, newest: int, user: int, item: int, as_of: int, histories: Histories) -> float:
        """Return one value. newest: the `as_of` of the call's newest request."""
        rows = _rows(user, histories)
        mine = (histories.item[rows] == item) & (histories.ts[rows] < newest)
        return float(histories.grade[rows][mine][0]) if mine.any() else np.nan


class OnceOld(OneCut):
    """The label where the group is a day older than the newest one of the call, and nothing elsewhere."""

    def known_by(self, newest: int, user: int, item: int, as_of: int, histories: Histories) -> float:
        """Return it."""
        return Label().of(user, item, as_of, histories) if as_of < newest - DAY else np.nan


class MissingOnceOld(OneCut):
    """The other way round: known of every request alone, and missing in a batch where the user will like the item."""

    def known_by(self, newest: int, user: int, item: int, as_of: int, histories: Histories) -> float:
        """Return the user's number or NaN."""
        liked = as_of < newest and Label().of(user, item, as_of, histories) >= 2
        return np.nan if liked else float(user)


class Place(Leaky):
    """The candidate's place in its group: in a log with drawn losers, or sorted by what was liked, a label."""

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1]."""
        owner = requests.row_request()
        return (np.arange(len(owner)) - requests.offsets[owner])[:, None].astype(np.float32)


class UnsteadyAhead(LookedAhead):
    """Looks ahead, and hides behind fits that do not repeat."""

    deterministic = False

    def fit(self, data: FitData) -> None:
        """Look, and add a little noise."""
        super().fit(data)
        self.item_values += np.random.default_rng().normal(0, 0.01, len(self.item_values)).astype(np.float32)


class Raises(Leaky):
    """Has a mistake in it."""

    def of(self, user: int, item: int, as_of: int, histories: Histories) -> float:
        """Look up what is not there."""
        return float({}["price_cents"])


class Flat(Leaky):
    """Gives one number a candidate, and no column of them."""

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n]."""
        return np.zeros(len(requests.item), np.float32)


class Nothing(Leaky):
    """Knows nothing of anything, perhaps by a mistake."""

    def of(self, user: int, item: int, as_of: int, histories: Histories) -> float:
        """Return NaN."""
        return np.nan


LEAKS = (Label, NoisyLabel, LaterEvent, AtAsOf, WholeLog, LookedAhead, OneCut, OnceOld)


class OnlyKnown(ALS):
    """Honest, and worth nothing for its values: noise, known where the user may like the item."""

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1], NaN below the median of ALS's product."""
        dot = super().values(requests, histories)
        noise = Noise().values(requests, histories)
        return np.where(dot > 0.2, noise, np.float32(np.nan))


class DailySettings(ALSSettings):
    """ALS with vectors of users that are computed once a day."""

    lag: Literal["daily"] = DAILY  # type: ignore[assignment]


class Daily(ALS):
    """Honest: a user's vector is that of the last midnight UTC."""

    options = DailySettings

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.settings = DailySettings(**params)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        plugin = super().load(folder)
        plugin.settings = DailySettings(**dict(plugin.settings))
        return plugin


class Unsteady(ALS):
    """Honest, and never twice the same: declared so."""

    deterministic = False

    def fit(self, data: FitData) -> None:
        """Fit with a seed that nobody gave."""
        super().fit(data)
        self.item_vectors = self.item_vectors + np.random.default_rng().normal(0, 0.02, self.item_vectors.shape).astype(
            np.float32
        )


class Steady(ALS):
    """Honest, declared as one that does not repeat, and it does."""

    deterministic = False


class Undeclared(Unsteady):
    """The same, not declared."""

    deterministic = True


MORE_LEAKS = (Remembered, BesideFarValues, InBatchAlone, MissingOnceOld, Place, UnsteadyAhead, Sentinel)


def plugin_of(kind: type[Any]) -> str:
    """Return the path of a class for the TOML."""
    return f"{kind.__module__}:{kind.__name__}"
