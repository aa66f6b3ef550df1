"""Options of the towers: presets, and what they set."""

import pytest

from features.errors import PairliftError
from features.plugin import make_plugin
from neural.entities import Layout
from neural.histories import TokenSpec
from neural.model import Argus, Shape
from neural.settings import PRESETS, TowerSettings
from neural.train import network_size


def test_today_sets_every_option_to_what_it_was() -> None:
    today = TowerSettings(preset="today").model_dump()
    assert today.pop("preset") == "today"
    assert today == PRESETS["today"]  # none is left to a default, which may change


def test_an_option_beside_a_preset_wins_and_the_others_keep_their_defaults() -> None:
    settings = TowerSettings(preset="large", width=96, dropout=0.5)
    assert (settings.layers, settings.width, settings.heads, settings.dropout) == (4, 96, 8, 0.5)
    rest = {"preset", "layers", "width", "heads", "dropout"}
    assert settings.model_dump(exclude=rest) == TowerSettings().model_dump(exclude=rest)
    assert TowerSettings(**settings.model_dump()) == settings  # as a bundle is read


def test_the_networks_of_the_sizes_span_thirty_times() -> None:
    tokens = TokenSpec(n_items=9, n_grades=3, n_surfaces=2, signal_mean=(1.0,), signal_scale=(1.0,), length=8)
    sizes = []
    for preset in ("small", "base", "large", "huge"):
        s = TowerSettings(preset=preset)
        shape = Shape(
            width=s.width, layers=s.layers, heads=s.heads, dropout=s.dropout, rows=16, tokens=tokens,
            item=Layout((1,), 2), user=Layout((), 2),
        )  # fmt: skip
        sizes.append(network_size(Argus(shape)))
    assert sizes == sorted(sizes)
    assert sizes[-1] / sizes[0] > 30


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"preset": "hug"}, "preset: 'today', 'small', 'base', 'large' or 'huge' was expected, found 'hug'"),
        ({"preset": ["base"]}, "preset: "),
        ({"preset": "base", "heads": 3}, "heads = 3 must divide width = 64"),
        ({"columns": ["feedback:"]}, "feedback:NAME was expected, found 'feedback:'"),
        ({"context": ["hour", "hour"]}, "each name once"),
    ],
)
def test_a_wrong_option_is_told(params: dict[str, object], says: str) -> None:
    with pytest.raises(PairliftError) as found:
        make_plugin("t", "neural.two_tower:TwoTower", params)
    assert says in str(found.value)
