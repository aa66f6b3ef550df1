"""The options of `[plugins.NAME]` with `class = "neural.semantic_ids:SemanticIds"`."""

from pydantic import Field

from features.settings import Settings


class SemanticIdsSettings(Settings):
    """What items are made comparable by, and how many codes there are."""

    levels: int = Field(
        default=3, ge=1, le=8, description="Codes of an item, from coarse to fine; the column code_L has the first L."
    )
    codes: int = Field(default=16, ge=2, le=1024, description="Different codes of a level.")
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
        default=0.5,
        ge=0,
        description="How far apart attributes set two items, as a share of what behaviour does. 0: they only say what "
        "behaviour to expect.",
    )
