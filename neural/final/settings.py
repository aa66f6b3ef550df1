"""The options of `[network]` with `class = "neural.final:NetworkRanker"`."""

from pydantic import Field

from features.settings import Settings


class NetworkRankerSettings(Settings):
    """The sizes of the network, and how it is trained.

    The defaults were first chosen without a trial. One at a time (width 64 and 256, layers 1 and 3, crosses 0 and 2,
    rank 64, dropout 0 and 0.4, weight_decay 0.01 and 1, learning_rate 0.0003 and 0.003, batch_rows 512, patience 8) was
    tried on the logs of both examples, one network each, by PairAccuracy of the booster's validation slice: no change
    was better on both by more than fits of one setting differ, so none was made. The mean of 3 networks is as good as
    that of 8.
    """

    width: int = Field(default=128, ge=1, le=4096, description="Numbers in a hidden layer.")
    layers: int = Field(default=2, ge=1, le=16, description="Hidden layers.")
    crosses: int = Field(
        default=1,
        ge=0,
        le=8,
        description="Cross layers before them, in which every input meets every other one: so a user's vector meets "
        "an item's.",
    )
    rank: int = Field(default=32, ge=1, le=1024, description="Rank of the matrix of a cross layer.")
    networks: int = Field(
        default=3,
        ge=1,
        le=32,
        description="How many are drawn and trained, each for itself; their mean is the score.",
    )
    epochs: int = Field(default=30, ge=1, description="The most passes over the pairs of the booster's period.")
    patience: int = Field(
        default=4, ge=1, description="Epochs without a better PairAccuracy of the validation slice before it stops."
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="The highest learning rate.")
    weight_decay: float = Field(default=0.1, ge=0, description="Weight decay of the matrices.")
    dropout: float = Field(default=0.2, ge=0, lt=1, description="Share of the activations that training drops.")
    batch_rows: int = Field(default=2048, ge=1, description="Impressions in a batch; a group is never cut.")
    threads: int = Field(default=1, ge=1, description="Threads of training; serving has one.")
