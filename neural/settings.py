"""The options of `[plugins.NAME]` with `class = "neural.two_tower:TwoTower"`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from features.settings import Settings, parse_duration
from neural.histories import DAILY

Column = Literal["dot", "user_vector", "item_vector"]


def _lag(value: object) -> object:
    # `load` reads what `save` wrote: µs.
    return value if value == DAILY or (type(value) is int and value >= 0) else parse_duration(value)


def _distinct(columns: list[Column]) -> list[Column]:
    if len(set(columns)) != len(columns):
        raise ValueError(f"each column once was expected, found {columns}")
    return columns


class TowerSettings(Settings):
    """What the plugin gives, the sizes of the towers, and how they are trained.

    columns: `dot`, and `user_vector` or `item_vector`, which stand for `width` columns each. lag: a duration, or
    `daily` for the vectors of the last 00:00 of `[time] zone`. history: the most events of a user that are read, the
    latest ones.

    id_dropout: how often training hides an item's id, so that attributes speak for new items. id_shrink: an id of
    n events weighs n / (n + id_shrink). max_steps: of each phase; epochs beyond it are left out, but never the first
    two. patience: epochs without a better validation PairAccuracy before a phase stops. finetune_rate: its share of
    learning_rate. table_decay: weight_decay of the embedding table. threads: of training; serving has one.

    The defaults were first chosen without a record, perhaps on a test slice, and were tried again on 26 November 2026
    with `make bench WHAT=towers`: one option at a time (which, and to what value, stands in the trials:
    `tests/bench/results/towers_trials.json`), on the logs of both examples, by what `dot` gains the booster on its
    validation slice; no test group is read. A default is changed where both logs agree by more than the fits of one
    setting differ.
    """

    columns: Annotated[list[Column], AfterValidator(_distinct)] = Field(default=["dot"], min_length=1)
    lag: Annotated[Literal["daily"] | int, BeforeValidator(_lag)] = 0
    history: int = Field(default=128, ge=1, le=4096)
    width: int = Field(default=64, ge=8, le=1024, multiple_of=8)
    layers: int = Field(default=2, ge=1, le=24)
    heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    id_dropout: float = Field(default=0.1, ge=0, lt=1)
    id_shrink: float = Field(default=20.0, ge=0)
    pretrain_epochs: int = Field(default=10, ge=0)
    finetune_epochs: int = Field(default=6, ge=0)
    max_steps: int = Field(default=1500, ge=1)
    patience: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=4e-3, gt=0)
    finetune_rate: float = Field(default=0.3, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    table_decay: float = Field(default=1.0, ge=0)
    batch_tokens: int = Field(default=2048, ge=1)
    negatives: int = Field(default=256, ge=2)
    threads: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> "TowerSettings":
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} must divide width = {self.width}")
        return self
