"""The options of `[plugins.NAME]` with `class = "neural.cross_encoder:CrossEncoder"`."""

from pydantic import Field

from neural.settings import NetworkSettings


class CrossSettings(NetworkSettings):
    """The sizes of the network, and how it is trained; its one column is `score`."""

    cross_layers: int = Field(
        default=1, ge=1, le=8, description="How many times a candidate looks at the history, one block for each."
    )
