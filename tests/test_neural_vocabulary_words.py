"""Text as words."""

from dataclasses import replace

import numpy as np
import pytest
from contracts import fit_data
from world import SMALL_TOWERS, World

from features.errors import PairliftError
from features.pairing.split import make_split
from features.schema import Attribute
from features.settings import SplitSettings
from neural.data import TowerData
from neural.settings import TowerSettings
from neural.vocabulary.words import with_words


def test_a_text_is_its_words_each_once_and_in_lower_case() -> None:
    year = Attribute("year", "numeric", numbers=np.zeros(3, np.float32))
    title = Attribute("title", "text", values=("Star Wars, the star_WARS! 2", "", "Ёлки die 2"))
    words, same = with_words((title, year))
    assert same is year
    assert (words.name, words.kind) == ("title", "multi")
    lists = [[words.values[c] for c in codes] for codes in np.split(words.codes, words.offsets[1:-1])]
    assert lists == [["2", "star", "the", "wars"], [], ["2", "die", "ёлки"]]


def test_the_towers_embed_them_where_asked(world: World) -> None:
    data = fit_data(world, make_split(SplitSettings(), world.log, "UTC"))
    title = Attribute("title", "text", values=tuple(f"a b{k}" for k in range(world.catalog.n_items)))
    data = replace(data, catalog=replace(data.catalog, item_attributes=(title,)))
    without, with_ = (TowerData.build(data, TowerSettings(**SMALL_TOWERS, words=on)).items for on in (False, True))
    assert (without.layout.slots, with_.layout.slots) == ((1,), (1, 2))
    popular = with_.weight[:, 0] > 0
    assert (with_.weight[popular, 1] == 0.5).all()  # two words of one text
    lacking = replace(data, catalog=replace(data.catalog, item_attributes=()))
    with pytest.raises(PairliftError, match="name no text"):
        TowerData.build(lacking, TowerSettings(**SMALL_TOWERS, words=True))
