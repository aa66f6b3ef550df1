"""Sessions of wanted events, and gensim's skip-gram over them."""

import logging
from typing import Any

import numpy as np

from features.plugin import FitData
from features.progress import progress_bar
from features.schema import F32
from features.state.histories import Histories
from neural.item2vec.settings import Item2VecSettings
from neural.wanted import floor_of


def fit(data: FitData, settings: Item2VecSettings) -> tuple[F32, int]:
    """Return float32[n_items, d] unit vectors, NaN of an item that shares no session, and the wanted floor.

    The same data, settings and seed give the same bits: one thread.
    """
    floor = floor_of(data.log.grade, data.wanted)
    found = sessions(Histories.build(data.log, data.catalog.n_users), floor, settings.session)
    vectors = np.full((data.catalog.n_items, settings.width), np.nan, np.float32)
    if found:
        words = _skip_gram(found, settings, data.seed)
        items = np.array([int(word) for word in words.index_to_key])
        vectors[items] = words.get_normed_vectors()
    return vectors, floor


def sessions(histories: Histories, floor: int, gap: int) -> list[list[str]]:
    """Return the items of each session of two or more wanted events, in time order, as words.

    A session is a run of one user's events of grade `floor` or better, each at most `gap` µs behind the one before.
    """
    user, row = histories.rows()
    keep = (histories.grade[row] >= floor) & (histories.item[row] >= 0)
    user, row = user[keep], row[keep]
    new = (np.diff(user) != 0) | (np.diff(histories.ts[row]) > gap)
    bounds = np.concatenate([[0], np.flatnonzero(new) + 1, [len(row)]])
    items = histories.item[row]
    words = np.array([str(k) for k in range(int(items.max(initial=-1)) + 1)], object)[items].tolist()
    return [words[a:b] for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True) if b - a > 1]


def _skip_gram(found: list[list[str]], settings: Item2VecSettings, seed: int) -> Any:
    """Return gensim's `KeyedVectors`, with a bar on stderr."""
    from gensim.models.callbacks import CallbackAny2Vec
    from gensim.models.word2vec import Word2Vec

    with progress_bar(total=settings.epochs, desc="item2vec", unit="epoch", mininterval=1) as bar:

        class Progress(CallbackAny2Vec):
            def on_epoch_end(self, model: Any) -> None:
                bar.update()

        # It warns of so few words that some of its threads would have none: there is one.
        logging.getLogger("gensim").setLevel(logging.ERROR)
        model = Word2Vec(
            found,
            sg=1,
            vector_size=settings.width,
            window=settings.window,
            negative=settings.negatives,
            epochs=settings.epochs,
            min_count=1,
            # Its default leaves out most of what is more frequent than 1 in 1,000: in a small catalogue, all events.
            sample=0,
            workers=1,
            seed=seed,
            callbacks=[Progress()],
        )
    return model.wv
