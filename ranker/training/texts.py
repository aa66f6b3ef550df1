"""The index that the source `search` looks items up in: a stage of its own, as it depends on the items alone."""

from collections.abc import Iterator
from pathlib import Path

from features.arrays import load_arrays, save_arrays
from features.schema import Catalog
from ranker.code_hash import code_hash
from ranker.search.index import TextIndex
from ranker.training.prepared import Prepared
from ranker.training.stages import run_stage, stage_key

#: what the stage reads of our code
CODE = ("ranker.search", "ranker.training.texts")


def text_stage(prepared: Prepared) -> TextIndex | None:
    """Index the items' texts (or reuse the index), memory-mapped; None where [sources] search is off."""
    config = prepared.config
    if not config.sources.search:
        return None

    def make(folder: Path) -> None:
        save_arrays(folder, TextIndex.build(texts_of(prepared.catalog), prepared.catalog.n_items))

    inputs = [stage_key(config.work, "import"), code_hash(*CODE)]
    return load_arrays(run_stage(config.work, "search", inputs, make), TextIndex)


def texts_of(catalog: Catalog) -> Iterator[str]:
    """Yield the text of each item: all of [items.text], a line each."""
    columns = [attribute.values for attribute in catalog.item_attributes if attribute.kind == "text"]
    return map("\n".join, zip(*columns, strict=True))
