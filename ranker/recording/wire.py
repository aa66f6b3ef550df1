"""Between RecordEvents' messages of `ranking.proto` and batches of events. The clients load this, and no kernels."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from pairlift.v1 import ranking_pb2 as pb

from ranker.asking.messages import ids_message
from ranker.recording.batch import Batch, Outcome
from ranker.request import RequestError

#: fields of RecordEventsRequest with ids, and the columns of a batch
_ID_FIELDS = {"event_ids": "event_id", "users": "user_id", "items": "item_id"}


def batch_of(message: pb.RecordEventsRequest) -> Batch:
    """Return the batch of a message; RequestError where its arrays are not parallel."""
    columns = {name: _ids_array(getattr(message, field)) for field, name in _ID_FIELDS.items()}
    n = len(columns["event_id"])
    columns["ts"] = pa.array(np.array(message.ts, np.int64))
    codes, names = np.array(message.surfaces, np.int64), [None, *message.surface_names]
    if len(codes) and codes.max() >= len(names):
        raise RequestError(f"surfaces: at most {len(names) - 1} was expected, found {codes.max()}")
    columns["surface"] = pa.array(names, pa.string()).take(pa.array(codes)) if len(codes) else _none(n, pa.string())
    organic, position = np.array(message.organic, np.int64), np.array(message.positions, np.int32)
    columns["organic"] = pa.array(organic == 1, mask=organic < 0) if len(organic) else _none(n, pa.bool_())
    columns["request_id"] = _texts(message.request_ids, n)
    columns["position"] = pa.array(position, mask=position < 0) if len(position) else _none(n, pa.int32())
    feedback = {column.name: _feedback(column, n) for column in message.feedback}
    if len(feedback) < len(message.feedback):
        raise RequestError("feedback: each column once was expected, found a name twice")
    parallel = {**columns, **{f"feedback '{name}'": values for name, values in feedback.items()}}
    if message.grades:
        parallel["grades"] = message.grades
    for name, values in parallel.items():
        if len(values) != n:
            raise RequestError(f"{name}: {n} entries were expected, one for each event id, found {len(values)}")
    return Batch(pa.table(columns), feedback, list(message.grades))


def _ids_array(ids: pb.Ids) -> pa.Array:
    if ids.WhichOneof("kind") == "texts":
        return pa.array(list(ids.texts.values), pa.string())
    return pa.array(np.array(ids.integers.values, np.int64))


def _none(n: int, kind: pa.DataType) -> pa.Array:
    return pa.nulls(n, kind)


def _texts(values: Sequence[str], n: int) -> pa.Array:
    return pa.array([text or None for text in values], pa.string()) if len(values) else _none(n, pa.string())


def _feedback(column: pb.FeedbackColumn, n: int) -> pa.Array:
    if column.texts and column.numbers:
        raise RequestError(f"feedback '{column.name}': numbers or texts were expected, found both")
    if column.texts:
        return _texts(column.texts, n)
    if not column.numbers:
        return _none(n, pa.float64())
    return pa.array(np.array(column.numbers, np.float64), from_pandas=True)  # NaN becomes null


def batch_message(batch: Batch) -> pb.RecordEventsRequest:
    """Return the message of a batch: what `batch_of` reads."""
    events = batch.events.combine_chunks()
    ids = {field: events[name].to_pylist() for field, name in _ID_FIELDS.items()}
    surface = events["surface"].combine_chunks().dictionary_encode()
    return pb.RecordEventsRequest(
        **{field: ids_message(values) for field, values in ids.items()},
        ts=events["ts"].to_pylist(),
        surfaces=[0 if code is None else code + 1 for code in surface.indices.to_pylist()],
        surface_names=surface.dictionary.to_pylist(),
        feedback=[_feedback_message(name, values) for name, values in batch.feedback.items()],
        request_ids=[text or "" for text in events["request_id"].to_pylist()],
        positions=[-1 if place is None else place for place in events["position"].to_pylist()],
        organic=[-1 if flag is None else int(flag) for flag in events["organic"].to_pylist()],
        grades=batch.grades,
    )


def _feedback_message(name: str, values: pa.Array) -> pb.FeedbackColumn:
    if pa.types.is_string(values.type):
        return pb.FeedbackColumn(name=name, texts=[text or "" for text in values.to_pylist()])
    return pb.FeedbackColumn(name=name, numbers=values.to_numpy(zero_copy_only=False).tolist())


def outcome_message(number: int, outcome: Outcome) -> pb.RecordEventsResponse:
    """Return the answer to the batch of that number."""
    places, reasons = zip(*outcome.refused, strict=True) if outcome.refused else ((), ())
    return pb.RecordEventsResponse(
        batch=number, recorded=outcome.recorded, duplicates=outcome.duplicates, refused=places, reasons=reasons
    )
