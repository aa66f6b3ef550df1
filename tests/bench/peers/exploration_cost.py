"""What a draw adds to the CPU time of Recommend: `exploration_overhead` of WHAT=candidates."""

import time
from dataclasses import replace

import numpy as np

from ranker.bundle import Bundle
from ranker.pipeline import Pipeline
from ranker.request import Request
from ranker.settings import ExplorationSettings

#: requests of a turn, turns of each, and how long a list is
REQUESTS, TURNS, K = 200, 9, 10


def exploration_overhead(bundle: Bundle) -> float:
    """Return the CPU time of Recommend with all requests drawn, over that without: the median of turns side by side."""
    drawn = bundle.config.model_copy(update={"exploration": ExplorationSettings(share=1)})
    plain = bundle.config.model_copy(update={"exploration": None})
    pipelines = {}
    for name, config in (("drawn", drawn), ("plain", plain)):
        pipelines[name] = Pipeline(replace(bundle, config=config))
        _turn(pipelines[name])
    try:
        ratios = []
        for turn in range(TURNS):
            order = ("drawn", "plain") if turn % 2 else ("plain", "drawn")
            took = {name: _turn(pipelines[name]) for name in order}
            ratios.append(took["drawn"] / took["plain"])
    finally:
        for pipeline in pipelines.values():
            pipeline.close()
    return float(np.median(ratios))


def _turn(pipeline: Pipeline) -> float:
    """Return the CPU seconds of some requests of known users."""
    state = pipeline.state
    users = np.linspace(0, state.catalog.n_users - 1, REQUESTS).astype(int).tolist()
    begun = time.process_time()
    for number, user in enumerate(users):
        pipeline.recommend(Request(user, state.end, state=state, request_id=f"r{number}", may_explore=True), K)
    return time.process_time() - begun
