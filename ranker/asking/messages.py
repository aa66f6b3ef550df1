"""Messages of Python values, and back. A client loads this, and of what is installed grpcio and protobuf alone."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pairlift.v1 import ranking_pb2 as pb

if TYPE_CHECKING:
    from features.schema import F32, I64


def id_message(value: int | str) -> pb.Id:
    """Return the Id of a Python int or str."""
    return pb.Id(text=value) if isinstance(value, str) else pb.Id(integer=value)


def ids_message(values: "Iterable[int | str] | I64") -> pb.Ids:
    """Return the Ids of Python ints or strs, all of one kind, or of int64[n]; TypeError for a mixture."""
    plain: list[Any] = values.tolist() if hasattr(values, "tolist") else list(values)
    if plain and isinstance(plain[0], str):
        return pb.Ids(texts=pb.TextIds(values=plain))
    return pb.Ids(integers=pb.IntegerIds(values=plain))


def column_message(name: str, values: "Iterable[float | str | None] | F32") -> pb.CandidateColumn:
    """Return the column of numbers, or of texts, with None where unknown; TypeError for a mixture."""
    plain: list[Any] = values.tolist() if hasattr(values, "tolist") else list(values)
    if any(isinstance(value, str) for value in plain):
        return pb.CandidateColumn(name=name, texts=["" if value is None else value for value in plain])
    return pb.CandidateColumn(name=name, numbers=[math.nan if value is None else value for value in plain])


def id_list(message: pb.Ids) -> list[Any]:
    """Return the ids of an Ids as Python ints or strs."""
    kind = message.WhichOneof("kind")
    return [] if kind is None else list(getattr(message, kind).values)
