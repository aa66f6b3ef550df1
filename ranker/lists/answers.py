"""The lists themselves: every user asked by the server's own path, and each source alone."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np

from features.progress import progress_bar
from features.schema import HOUR, I32, I64
from ranker.bundle import Bundle
from ranker.candidates.gathering import is_for, kept_alone, limit_alone
from ranker.candidates.shortage import kind_of
from ranker.candidates.source import CandidateSource, proposed
from ranker.config import Config
from ranker.lanes import source_lane
from ranker.lists.asked import Asked
from ranker.pipeline import Pipeline
from ranker.request import NO_ITEMS, U32, Answer, Request


@dataclass(slots=True)
class Answers:
    """What u users got, each a list of up to m items, best first, -1 behind its end."""

    lists: I32  # [u, m], of Recommend
    masks: U32  # [u, m], the sources of each entry, by their bits
    alone: dict[str, I32]  # by source, [u, m]: what it proposes by itself
    reached: I64  # [u], how many of the wanted items are among the candidates of all sources, behind the quotas
    candidates: I64  # [u], how many there are
    empty: dict[int, str] = field(default_factory=dict)  # by user's place: why the list is empty
    degraded: dict[int, tuple[str, ...]] = field(default_factory=dict)  # by user's place: which lanes failed


def patient(bundle: Bundle) -> Bundle:
    """Return the bundle with deadlines that cut no list: on a busy machine, they would measure the machine."""
    return replace(bundle, config=without_deadlines(bundle.config))


def without_deadlines(config: Config) -> Config:
    """Return the configuration with deadlines that cut no list."""
    slow = {name: source.model_copy(update={"deadline": HOUR}) for name, source in config.sources.limits.items()}
    return config.model_copy(
        update={
            "sources": config.sources.model_copy(update=slow),
            "serve": config.serve.model_copy(update={"plugin_deadline": HOUR}),
            "surfaces": {name: of.model_copy(update={"deadline": None}) for name, of in config.surfaces.items()},
        }
    )


def ask(pipeline: Pipeline, who: Asked, m: int, alone: Collection[str] | None = None) -> Answers:
    """Ask `Recommend` and each source for a list of m items for each user. pipeline: see `patient`.

    alone: names of the sources that are asked by themselves; None: all.
    """
    shape = (len(who), m)
    sources = [(source, of) for source, of in pipeline.sources if alone is None or source.name in alone]
    found = Answers(
        lists=np.full(shape, -1, np.int32),
        masks=np.zeros(shape, np.uint32),
        alone={source.name: np.full(shape, -1, np.int32) for source, _ in sources},
        reached=np.zeros(len(who), np.int64),
        candidates=np.zeros(len(who), np.int64),
    )
    for k in progress_bar(range(len(who)), desc="lists", unit=" users"):
        request = Request.of(who.requests, k, pipeline.state)
        _keep(found, k, pipeline.recommend(request, pipeline.quotas(request).all), who)
        for source, settings in sources:
            row = _alone(pipeline, source, request, m) if is_for(settings, request) else NO_ITEMS
            found.alone[source.name][k, : len(row)] = row
    return found


def _keep(found: Answers, k: int, answer: Answer, who: Asked) -> None:
    """Write an answer that has all candidates: its first m items are the list, all of them the union."""
    n = min(len(answer.item), found.lists.shape[1])
    found.lists[k, :n], found.masks[k, :n] = answer.item[:n], answer.sources[:n]
    found.candidates[k] = len(answer.item)
    found.reached[k] = np.isin(who.item[who.offsets[k] : who.offsets[k + 1]], answer.item).sum()
    if not len(answer.item):
        found.empty[k] = kind_of(answer.reason)
    if answer.degraded:
        found.degraded[k] = answer.degraded


def _alone(pipeline: Pipeline, source: CandidateSource, request: Request, m: int) -> I32:
    """Return int32[<= m]: what one source proposes that the filters keep, in its own order; nothing where it fails."""
    try:
        found = proposed(source, request, limit_alone(m, request, pipeline.filters))
    except Exception as error:
        pipeline.failures.add(source_lane(source.name), error)
        return NO_ITEMS
    return kept_alone(found, m, request, pipeline.filters)
