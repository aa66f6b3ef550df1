"""The options of `[plugins.NAME]` with `class = "neural.semantic_ids:SemanticIds"`."""

from pydantic import Field

from features.settings import Settings


class SemanticIdsSettings(Settings):
    """What items are made comparable by, and how many codes there are.

    Tried on the booster's validation slice of the smaller example, the mean of 3 seeds: .6831 without the plugin; with
    8 codes in 3 levels .6838 (content = 0.5) and .6854 (content = 2), with 16 codes .6824 and .6821; one level of 64
    codes .6792. Categories of an item's first two or three codes together, as the paper's N-grams, lost most: .6785 for
    8 and .6681 for 16 codes. Seeds differ by as much as 0.001 to 0.002, so that none of it is a gain for sure.
    """

    levels: int = Field(
        default=3, ge=1, le=8, description="Codes of an item, from coarse to fine: the columns code_1, code_2 …"
    )
    codes: int = Field(default=8, ge=2, le=1024, description="Different codes of a level.")
    factors: int = Field(
        default=32, ge=1, le=1024, description="Numbers in an item's vector of behaviour, by matrix factorisation."
    )
    shrink: float = Field(
        default=20.0,
        ge=0,
        description="The behaviour of an item with n events weighs n / (n + shrink); the rest is what its attributes "
        "lead one to expect.",
    )
    content: float = Field(
        default=2.0,
        ge=0,
        description="How far apart attributes set two items, as a share of what behaviour does. 0: they only say what "
        "behaviour to expect.",
    )
