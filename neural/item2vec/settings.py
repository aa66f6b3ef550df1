"""The options of `[plugins.NAME]` with `class = "neural.item2vec:Item2Vec"`."""

from pydantic import Field

from features.schema import HOUR
from features.settings import Duration, Settings


class Item2VecSettings(Settings):
    """Sessions, the skip-gram over them, and how many items a user is known by; the rest is gensim's default."""

    lag: Duration = Field(default=0, description="How much later than its ts an event is seen by the user's vector.")
    session: Duration = Field(
        default=HOUR, description="A session ends where the user's next wanted event comes later than this."
    )
    width: int = Field(default=64, ge=1, le=1024, description="Numbers in a vector.")
    window: int = Field(
        default=10, ge=1, description="The farthest two wanted items of a session may stand apart to count as near."
    )
    negatives: int = Field(default=10, ge=1, description="Items that each pair is told from.")
    epochs: int = Field(default=20, ge=1, description="Passes over all sessions.")
    history: int = Field(
        default=20, ge=1, le=4096, description="The most wanted events whose items make a user's vector, the latest."
    )
