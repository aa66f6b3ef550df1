"""What a bundle would have shown in the place of logged lists, by the server's own path.

Each request of the log is answered again as of its time. That gives the bundle's own candidates with their scores, all
of them, and so the chance with which its own policy shows each logged item: 1 or 0 of the best order, behind rules,
diversity and `[lists] at_most`, or what its `[exploration]` draws with, under the last of these alone. What is not
among its candidates it never shows: 0. The log has none of that, and need not: it tells the chances of the policy that
was logged.

Of a bundle everything that is fitted is of before the requests, as `pairlift lists` has it: up to the end of its own
log where that lies before them, else up to its own t2, and requests before that are left out.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from features.errors import PairliftError
from features.log.loading import load_log
from features.progress import progress_bar
from features.schema import F64, I64
from features.state.store import State
from ranker.bundle import Bundle, load_bundle, read_manifest
from ranker.candidates.at_most import AtMost
from ranker.candidates.cooccurrence import Cooccurrence
from ranker.candidates.named import SourceData, fit_sources
from ranker.config import Config, unasked_of, wanted_floor
from ranker.exploration.draw import chances, race, standing
from ranker.lists.answers import without_deadlines
from ranker.offpolicy.logged import DrawnLists
from ranker.offpolicy.rewards import Scored
from ranker.pipeline import Pipeline
from ranker.request import Request
from ranker.reranking.reranked import Reranking
from ranker.settings import DataSettings
from ranker.training.category_codes import recode
from ranker.training.earlier_bundle import differing, meanings, moved_to, texts_of
from ranker.training.prepared import Grouped, paired_log

NO_RACE = np.empty(0)


@dataclass(frozen=True, slots=True)
class Shows:
    """What a bundle says of the n items of logged lists."""

    chance: F64  # [n], with which it shows each at its place
    scored: Scored
    degraded: int  # lists that a source or plugin of it failed in


@dataclass(frozen=True, slots=True)
class Target:
    """A bundle that can be asked about the past of a log."""

    bundle: Bundle  # in the codes of the log
    since: int  # µs: it may be asked about requests from then on

    @classmethod
    def of(cls, folder: Path, made: Grouped, first: int, memory: int) -> "Target":
        """Read a bundle for a log. first: as_of of the first request (µs). memory: bytes, of `Cooccurrence.build`.

        PairliftError where its features would mean something else on this log.
        """
        old, manifest = load_bundle(folder), read_manifest(folder)
        _refuse_other_meanings(folder, old.config, made.config)
        config = _with_log_of(old.config, made.config)
        log, catalog = load_log(made.database)
        log, _ = paired_log(config, made.database, log, catalog, made.split)
        moved, plugins, matching = moved_to(str(folder), old, catalog)
        end = manifest["snapshot_time"]
        since = end if end <= first else int(manifest["split"]["t2"])
        before, floor = log.until(since), wanted_floor(config)
        bundle = replace(
            old,
            config=without_deadlines(config),
            spec=replace(old.spec, unasked=unasked_of(config, catalog), matching=matching),
            state=State.build(log, catalog, old.state.counters, config.grade_names),
            plugins=plugins,
            booster=recode(old.booster, moved),
            wanted=None if old.wanted is None else recode(old.wanted, moved),
            cooccurrence=Cooccurrence.build(before, catalog.n_items, floor, memory=memory),
            fitted=fit_sources(config.sources, SourceData(log=before, catalog=catalog, floor=floor)),
        )
        return cls(bundle, since)

    def shows(self, lists: DrawnLists, *, explored: bool, above: bool) -> Shows:
        """Ask for every list. explored: of the bundle's own draw, in place of its best order.

        above: chances are given the items above, as they were logged; else they are of each item at its place.
        """
        if explored and self.bundle.config.exploration is None:
            raise PairliftError(f"--explored: bundle {self.bundle.version} has no [exploration], so it draws nothing")
        requests, n = lists.requests, len(lists.place)
        found = np.zeros((5, n))
        pipeline, degraded = Pipeline(self.bundle), 0
        limits = pipeline.reranking.at_most  # heeded here: all candidates are asked for
        rules, diversity = (None, None) if explored else (pipeline.reranking.rules, pipeline.reranking.diversity)
        pipeline.reranking = Reranking(rules, diversity, at_most=None)
        try:
            for k in progress_bar(range(len(requests)), desc=f"bundle {self.bundle.version}", unit=" lists"):
                rows = slice(requests.offsets[k], requests.offsets[k + 1])
                request = Request.of(requests, k, pipeline.state)
                answer = pipeline.recommend(request, pipeline.quotas(request).all)
                asked = _Asked(answer.item, answer.score, self._race(answer.score, explored), limits)
                shown = requests.item[rows]
                found[:, rows] = asked.given(shown) if above else asked.alone(shown, lists.place[rows])
                degraded += bool(answer.degraded)
        finally:
            pipeline.close()
        return Shows(found[0], Scored(*found[1:]), degraded)

    def _race(self, score: F64, explored: bool) -> F64:
        """Return float64[m], the weights of what is drawn of candidates that stand best first; none without a draw."""
        drawn = self.bundle.config.exploration
        if not explored or drawn is None:
            return NO_RACE
        return race(score, np.arange(len(score)), drawn.draw_temperature, drawn.top)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The candidates of one request, best first."""

    item: Any  # int32[n]
    score: F64  # [n]
    weight: F64  # [m], of the race
    limits: AtMost | None

    def given(self, shown: Any) -> F64:
        """Return float64[5, k]: chance, score, and the three of `Scored` of what is shown, given the items above."""
        place = self._places(shown)
        last = standing(place, self._last(shown))
        out = np.zeros((5, len(shown)))
        out[0] = chances(place, np.arange(len(self.item)), self.weight, last)
        out[1] = self._scores(place)
        for p in range(len(shown)):
            out[2:, p] = self._choice(last >= p)
        return out

    def alone(self, shown: Any, at: I64) -> F64:
        """Return likewise, of each item at a place of the bundle's own list, whatever was logged above it."""
        most = int(at.max(initial=-1)) + 1
        own = np.arange(len(self.item))[:most]
        if self.limits is not None:
            own, _ = self.limits.first_of(self.item, np.arange(len(self.item)), most)
        out = np.zeros((5, len(shown)))
        out[1] = self._scores(self._places(shown))
        for p, (item, place) in enumerate(zip(shown, at.tolist(), strict=True)):
            if place < len(own):
                out[0, p] = self.item[own[place]] == item
                out[2:, p] = _moments(self.score[own[place]])
        return out

    def _places(self, shown: Any) -> I64:
        """Return int64[k]: where each item stands among the candidates, -1 where it does not."""
        order = np.argsort(self.item, kind="stable")
        at = np.minimum(np.searchsorted(self.item, shown, sorter=order), max(len(order) - 1, 0))
        if not len(order):
            return np.full(len(shown), -1)
        return np.where(self.item[order[at]] == shown, order[at], -1)

    def _last(self, shown: Any) -> I64:
        if self.limits is None:
            return np.full(len(self.item), len(shown))
        return self.limits.last_of(self.item, shown)

    def _scores(self, place: I64) -> F64:
        return np.array([self.score[at] if at >= 0 and np.isfinite(self.score[at]) else np.nan for at in place])

    def _choice(self, there: Any) -> F64:
        """Return float64[3] of `Scored` for what the policy shows of the candidates of a mask bool[n]."""
        m = len(self.weight)
        racing = np.flatnonzero(there[:m])
        if len(racing):
            share = np.exp(self.weight[racing] - self.weight[racing].max())
            share /= share.sum()
            return np.array([share @ self.score[racing], share @ self.score[racing] ** 2, 1.0])
        rest = np.flatnonzero(there[m:])
        return _moments(self.score[m + rest[0]]) if len(rest) else np.zeros(3)


def _moments(score: float) -> F64:
    """Return a score, its square, and 1; what is not finite counts as 0."""
    known = score if np.isfinite(score) else 0.0
    return np.array([known, known * known, 1.0])


def _with_log_of(own: Config, log: Config) -> Config:
    """Return a bundle's configuration with the log of another."""
    tables = ("events", "items", "users", "grades", "pairing", "time", "split")
    data = DataSettings(root=str(log.data_root), work=str(log.work))
    return own.model_copy(update={name: getattr(log, name) for name in tables} | {"data": data})


def _refuse_other_meanings(folder: Path, was: Config, now: Config) -> None:
    """Raise where the bundle reads columns of one name that are made in another way."""
    if differ := differing(_read(was), _read(now)):
        raise PairliftError(
            f"{folder}: {', '.join(differ)} of {now.path} are not what it was trained with, so it would read this log "
            "wrongly: put them back, or name a bundle of this TOML"
        )


def _read(config: Config) -> dict[str, object]:
    """Return, by table of the TOML, what gives all that is read of a log its meaning."""
    columns = {
        f"[{name}.columns]": own and own.columns for name, own in (("items", config.items), ("users", config.users))
    }
    return meanings(config) | columns | {"[items.text]": texts_of(config)}
