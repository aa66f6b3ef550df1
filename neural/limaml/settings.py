"""The options of `[plugins.NAME]` with `class = "neural.limaml:LiMAML"`."""

from pydantic import Field

from neural.settings import FitSettings


class LiMAMLSettings(FitSettings):
    """The sizes of the meta block, its inner loop, and how all of it is meta-trained; its one column is `dot`.

    Pre-training asks for the grades of later events, fine-tuning for the order of the weighted pairs.

    Tried on the validation slice of the towers' period of the smaller example, one fit each: PairAccuracy .6927 with
    3 inner steps, .6855 with 1 and .6924 with 5; .6867 with a history of 512, .6858 with learning_rate = 0.01.
    """

    hidden: int = Field(
        default=32, ge=1, le=1024, description="Width of the hidden layer of the meta block, which each user adapts."
    )
    inner_steps: int = Field(
        default=3, ge=1, le=32, description="Gradient steps that adapt the meta block to a user's events."
    )
    query: int = Field(
        default=16,
        ge=1,
        description="The most events that pre-training asks of one meta embedding: the ones that came next.",
    )
