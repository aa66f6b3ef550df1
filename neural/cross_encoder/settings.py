"""The options of `[plugins.NAME]` with `class = "neural.cross_encoder:CrossEncoder"`."""

from pydantic import Field

from neural.settings import NetworkSettings


class CrossSettings(NetworkSettings):
    """The sizes of the network, and how it is trained; its one column is `score`.

    The defaults were chosen on the validation slice of the towers' period, on the log of the smaller example, of one
    fit each: by PairAccuracy, 20 and 10 epochs .695, 10 and 6 .689, the same with two
    cross_layers .688, and no pre-training with 12 epochs on the pairs .675: the pairs alone are too few.
    """

    cross_layers: int = Field(
        default=1, ge=1, le=8, description="How many times a candidate looks at the history, one block for each."
    )
