"""Features of a candidate beside its request's source item, and of its text beside the query.

`source_item_cooccurrence`      how often both are taken by one user, as the source `cooccurrence` counts it
`source_item_same_<column>`     1 where both have one value of an item attribute (of a list: share one), else 0
`query_bm25`, `query_share`     BM25 of the item's text; share of the query's tokens that are in it

They are of logs that map `[events] source_item`, and `[events.context] query` with `[items.text]`; of others there is
none. NaN where a request has no source item or query, or nothing is known of either item.

What is counted is of the events of [t0, t1), and what a bundle serves is the same table that its rows were made of, as
the towers are: the table of the whole log, which the source `cooccurrence` proposes by, has seen the answers of the
rows, and another function than the one that the trees learned would be another feature. For the same reason trees of an
earlier bundle that go on keep its table (`moved`). An item that came since is NaN there. Texts have no time: the index
is of the whole catalogue. The product of both items' vectors is a column of the plugin that has them
(`ranker.columns`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.arrays import load_array, load_arrays, save_arrays
from features.plain import Columns
from features.schema import F32, NO_SOURCE_ITEMS, Attribute, Catalog, EventLog, Ids, Requests, lookup
from ranker.candidates.cooccurrence import Cooccurrence
from ranker.config import Config, wanted_floor
from ranker.matching.source_item import beside, same_value
from ranker.matching.texts import query_values
from ranker.request import QUERY
from ranker.sources.bm25 import TextIndex, index_of

COOCCURRENCE, SAME = "source_item_cooccurrence", "source_item_same_"
BM25, SHARE = "query_bm25", "query_share"
#: of a bundle's folder of it
TAKEN, TEXTS = "cooccurrence", "texts"


def matched_columns(config: Config, catalog: Catalog) -> list[str]:
    """Return the names of the features that a log has."""
    names = []
    if config.events.source_item is not None:
        names += [COOCCURRENCE, *(f"{SAME}{attribute.name}" for attribute in _compared(catalog))]
    typed = any(known.name == QUERY and known.kind == "categorical" for known in catalog.contexts)
    if typed and any(attribute.kind == "text" for attribute in catalog.item_attributes):
        names += [BM25, SHARE]
    return names


def _compared(catalog: Catalog) -> Iterator[Attribute]:
    return (attribute for attribute in catalog.item_attributes if attribute.kind in ("categorical", "multi"))


@dataclass(frozen=True, slots=True)
class Matches:
    """A `features.rows.Matching`: what was counted, and the texts; None where no column needs it."""

    taken: Cooccurrence | None
    texts: TextIndex | None

    @classmethod
    def fit(cls, names: tuple[str, ...], log: EventLog, catalog: Catalog, floor: int) -> "Matches":
        """Count what columns need of the events of [t0, t1). floor: rank of the lowest grade that counts as taken."""
        texts = index_of(catalog) if {BM25, SHARE} & set(names) else None
        taken = Cooccurrence.build(log, catalog.n_items, floor) if COOCCURRENCE in names else None
        return cls(taken, texts)

    def moved(self, item_ids: Ids, catalog: Catalog) -> "Matches":
        """Return it for another catalogue: the table as it was counted, and the texts that items have there.

        item_ids: of the catalogue that it was fitted on.
        """
        taken = self.taken
        if taken is not None and not np.array_equal(item_ids, catalog.item_ids):
            taken = taken.recoded(lookup(item_ids, catalog.item_ids), lookup(catalog.item_ids, item_ids))
        texts = None if self.texts is None else index_of(catalog)
        return Matches(taken, texts)

    def write(self, catalog: Catalog, columns: Columns, requests: Requests, out: F32) -> None:
        """Write to float32[n, width] `out` the columns (where each stands, name)."""
        at = {name: k for k, name in columns}
        started = (requests.source_item >= 0).any()
        source = np.repeat(requests.source_item, np.diff(requests.offsets)) if started else NO_SOURCE_ITEMS
        for k, name in columns:
            if not started:
                out[:, k] = np.nan
            elif name == COOCCURRENCE and self.taken is not None:
                out[:, k] = beside(self.taken, source, requests.item)
            elif name.startswith(SAME):
                of = catalog.item_attribute(name.removeprefix(SAME))
                out[:, k] = same_value(of, source, requests.item)
        if self.texts is not None:
            score, share = query_values(self.texts, requests)
            for name, values in ((BM25, score), (SHARE, share)):
                if name in at:
                    out[:, at[name]] = values

    def save(self, folder: Path) -> None:
        """Write what `load` reads."""
        if self.taken is not None:
            save_arrays(folder / TAKEN, self.taken)
        if self.texts is not None:
            (folder / TEXTS).mkdir(parents=True)
            for name, array in self.texts._asdict().items():
                np.save(folder / TEXTS / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path) -> "Matches":
        """Map what `save` wrote."""
        taken = load_arrays(folder / TAKEN, Cooccurrence) if (folder / TAKEN).is_dir() else None
        texts = None
        if (folder / TEXTS).is_dir():
            texts = TextIndex(**{name: load_array(folder / TEXTS / f"{name}.npy") for name in TextIndex._fields})
        return cls(taken, texts)


def fit_matches(config: Config, names: tuple[str, ...], log: EventLog, catalog: Catalog) -> Matches | None:
    """Return what was fitted for columns, None where there are none. log: the events of [t0, t1)."""
    return Matches.fit(names, log, catalog, wanted_floor(config)) if names else None
