"""The encoder as it is served: ONNX Runtime and NumPy, no torch."""

from typing import Any

from features.schema import F32, I64

#: names of the inputs, in the order of the `forward` of `Encoder`
INPUTS = ("item", "length")


class ServedEncoder:
    """A `neural.wanted.Encode` by a session."""

    def __init__(self, session: Any) -> None:
        """session: it takes INPUTS."""
        self.session = session

    def __call__(self, item: F32, length: I64) -> F32:
        """item: float32[b, t, d], length: int64[b] -> float32[b, d]."""
        vectors: F32 = self.session.run(None, dict(zip(INPUTS, (item, length), strict=True)))[0]
        return vectors
