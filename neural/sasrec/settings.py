"""The options of `[plugins.NAME]` with `class = "neural.sasrec:SASRec"`."""

from pydantic import Field, model_validator

from features.settings import Duration, Settings


class SASRecSettings(Settings):
    """The sizes of the network, its loss, and how long it is trained.

    Blocks, head and dropout are those of Kang and McAuley (arXiv 1808.09781, section IV), negatives and calibration
    those of Petrov and Macdonald (arXiv 2308.07192); width and history are the towers'. Of the paper's learning rate of
    0.001 and three times that, the latter had the better NDCG@10 on the validation slice of the towers' period of the
    one log that was tried: 0.058 and not 0.030, at which the other stopped.
    """

    lag: Duration = Field(default=0, description="How much later than its ts an event is seen by the user's vector.")
    history: int = Field(
        default=128, ge=1, le=4096, description="The most wanted events of a user that are read, the latest ones."
    )
    width: int = Field(default=64, ge=1, le=1024, description="Numbers in a vector.")
    layers: int = Field(default=2, ge=1, le=24, description="Blocks of the transformer.")
    heads: int = Field(default=1, ge=1, description="Attention heads of a block; they must divide the width.")
    dropout: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Share of the activations that training drops; the paper has 0.5 for sparse logs.",
    )
    negatives: int = Field(
        default=256,
        ge=1,
        description="Items that each wanted one is told from, drawn evenly for each sequence; at most all others.",
    )
    calibration: float = Field(
        default=0.75,
        ge=0,
        le=1,
        description="t of gBCE. 0: plain cross-entropy, which claims too much of sampled negatives; 1: probabilities "
        "as if nothing had been sampled.",
    )
    epochs: int = Field(default=200, ge=0, description="The most epochs.")
    max_steps: int = Field(default=4000, ge=1, description="No epoch begins after so many steps.")
    patience: int = Field(
        default=20, ge=1, description="Epochs without a better NDCG@10 in the validation slice before training stops."
    )
    learning_rate: float = Field(default=3e-3, gt=0, description="The learning rate of Adam.")
    batch_tokens: int = Field(default=4096, ge=1, description="Wanted events in a batch, with padding.")
    threads: int = Field(default=1, ge=1, description="Threads of training; serving has one.")

    @model_validator(mode="after")
    def _heads_divide(self) -> "SASRecSettings":
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} must divide width = {self.width}")
        return self
