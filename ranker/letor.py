"""LETOR files as a log: each query is a request, its documents' features are what was known of each candidate.

    scan          a file's queries, labels and features: everything is checked before anything is written
    _table        its lines as rows of events.parquet
    _toml         the TOML that maps them: no counters, no towers, no sources; only what the files say

A query has no user and no time: it is its own user, and has a second of its own, in the order of the files. So files
are periods of the split, and nothing that is known as of a time plays a part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import PairliftError
from features.files import made_folder, written
from features.log.svmlight import Lines, read_lines
from features.schema import I64, SECOND

#: the second of the first query
START = datetime(2000, 1, 1, tzinfo=UTC)
#: of a single file, the share of the queries that is the test: the last ones
TEST_SHARE = 0.2
#: more are a sparse space, which a table is not made for
MOST_FEATURES = 5_000
MOST_LABELS = 64

TOML = """\
# LETOR files as a log: `pairlift import-letor` wrote this and events.parquet. A query is a request, at its own second.
# Next: `pairlift validate` and `pairlift train` with this file; a Rank request carries the features as columns.
name = "letor"
counters = []                # nothing is counted: a query's documents are its own

[events]
source = "events.parquet"
user_id = "query"            # a query has no user: it is its own
item_id = "document"         # query:place, or what your own documents are called
ts = "ts"
request_id = "query"

[events.columns]
label = "label"

[events.candidate]           # a feature that a line leaves out is 0; `nan` is unknown
{candidates}

[features]
columns = [
{columns}
]

{grades}

[split]                      # no towers' period; {periods}
t1 = {t1}
t2 = {t2}
{validation}
[sources]                    # nothing is proposed: this ranker orders what it is given
popular = false
cooccurrence = false
nearest = false
"""


@dataclass(frozen=True, slots=True)
class Scan:
    """What a file holds: q queries in its order."""

    path: Path
    names: list[str]  # [q], as qid has them; the number of the query where the file has none
    sizes: I64  # [q], documents of each
    labels: set[int]
    features: set[int]  # the indexes that occur


def import_letor(files: Sequence[Path], out: Path) -> str:
    """Write LETOR files as `out`/events.parquet and `out`/pairlift.toml; return a line that says what is in them.

    files: one (its last queries are the test), two (train, test), or three (train, validation, test). Raises
    PairliftError for a line that is not one, for queries whose lines are apart, and where `out` has a TOML.
    """
    target = out / "pairlift.toml"
    if target.exists():
        raise PairliftError(f"{target} is there already: remove it, or choose another folder")
    scans = [scan(path) for path in files]
    labels, features = (sorted(set().union(*(getattr(s, key) for s in scans))) for key in ("labels", "features"))
    _check(labels, features)
    made_folder(out)
    with written(out / "events.parquet") as path, pq.ParquetWriter(path, _schema(features)) as writer:
        first = 0
        for one in scans:
            for table in _tables(one, first, np.array(features, np.int64)):
                writer.write_table(table)
            first += len(one.sizes)
    target.write_text(_toml(scans, labels, features))
    documents = sum(int(one.sizes.sum()) for one in scans)
    return (
        f"{first:,} queries, {documents:,} documents, {len(features):,} features, labels "
        f"{', '.join(map(str, labels))}; wrote {target}; next: pairlift validate {target}"
    )


def scan(path: Path) -> Scan:
    """Read a file for what it holds. Queries are runs of one qid; without any, PATH.query has the size of each."""
    names: list[str] = []
    sizes: list[int] = []
    labels: set[int] = set()
    features: set[int] = set()
    for lines in read_lines(path):
        labels |= set(np.unique(lines.label).tolist())
        features |= set(np.unique(lines.index).tolist())
        for name in lines.qid:
            if names and name == names[-1]:
                sizes[-1] += 1
            else:
                names.append(name)
                sizes.append(1)
    if not names:
        raise PairliftError(f"{path} has no documents: lines such as 'label qid:7 1:0.5 3:2' were expected")
    if names == [""]:
        sizes = _query_file(path, sizes[0])
        names = [str(k + 1) for k in range(len(sizes))]
    _check_queries(path, names)
    return Scan(path, names, np.array(sizes, np.int64), labels, features)


def _query_file(path: Path, rows: int) -> list[int]:
    """Return the sizes of the queries of a file without qids, from the file that LightGBM keeps beside it."""
    beside = path.with_name(f"{path.name}.query")
    if not beside.exists():
        raise PairliftError(
            f"{path} has no 'qid:': a query for each line was expected there, or {beside.name} beside it, with the "
            "number of documents of each query, one a line"
        )
    said = beside.read_text().split()
    if not all(size.isdecimal() and int(size) for size in said) or sum(map(int, said)) != rows:
        raise PairliftError(f"{beside}: sizes of queries were expected, together the {rows:,} lines of {path.name}")
    return [int(size) for size in said]


def _check_queries(path: Path, names: Sequence[str]) -> None:
    if "" in names:
        raise PairliftError(f"{path}: some lines have a 'qid:' and some have none; give one to each")
    met: set[str] = set()
    for name in names:
        if name in met:
            raise PairliftError(
                f"{path}: the lines of qid {name} are apart; sort the file by query, or number its queries anew"
            )
        met.add(name)


def _check(labels: Sequence[int], features: Sequence[int]) -> None:
    if not 2 <= len(labels) <= MOST_LABELS:
        raise PairliftError(f"2 to {MOST_LABELS} different labels were expected, found {len(labels)}: {labels[:5]}")
    if not 1 <= len(features) <= MOST_FEATURES:
        raise PairliftError(
            f"1 to {MOST_FEATURES:,} features were expected, found {len(features):,}: each becomes a column; leave out "
            "the rare ones, or hash them to fewer"
        )


def _schema(features: Sequence[int]) -> pa.Schema:
    of = [("query", pa.int64()), ("qid", pa.string()), ("document", pa.string()), ("ts", pa.timestamp("us"))]
    of += [("label", pa.int32()), ("comment", pa.string())]
    return pa.schema([*of, *((f"f{index}", pa.float32()) for index in features)])


def _tables(one: Scan, first: int, features: I64) -> Iterator[pa.Table]:
    """Yield the rows of a file. first: how many queries the files before it have."""
    query = np.repeat(np.arange(len(one.sizes)), one.sizes)
    place = np.arange(len(query)) - np.repeat(np.cumsum(one.sizes) - one.sizes, one.sizes) + 1
    done = 0
    for lines in read_lines(one.path):
        rows = slice(done, done + len(lines.label))
        yield _table(lines, query[rows], first, place[rows], one.names, features)
        done = rows.stop


def _table(lines: Lines, query: I64, first: int, place: I64, names: Sequence[str], features: I64) -> pa.Table:
    number = query + first
    of = {
        "query": number + 1,
        "qid": [names[k] for k in query.tolist()],
        "document": [f"{q}:{k}" for q, k in zip((number + 1).tolist(), place.tolist(), strict=True)],
        "ts": int(START.timestamp()) * SECOND + number * SECOND,
        "label": lines.label.astype(np.int32),
        "comment": lines.comment,
    }
    values = lines.dense(features)
    of |= {f"f{index}": values[:, k] for k, index in enumerate(features.tolist())}
    schema = _schema(features.tolist())
    return pa.table([pa.array(of[field.name], field.type) for field in schema], schema=schema)


def _toml(scans: Sequence[Scan], labels: Sequence[int], features: Sequence[int]) -> str:
    """Return the TOML: the first file is the booster's period, a second of three its validation slice."""
    queries = [len(one.sizes) for one in scans]
    learned = sum(queries[:-1]) or max(round((1 - TEST_SHARE) * queries[0]), 1)
    validation = ""
    if len(scans) == 3:
        rows = [int(one.sizes.sum()) for one in scans[:2]]
        # Half a document less: so that rounding takes no query of the first file.
        validation = f"validation = {(rows[1] - 0.5) / sum(rows)!r}   # the second file\n"
    periods = ("its last queries are the test", "the second file is the test", "the third file is the test")
    return TOML.format(
        candidates="\n".join(f'f{index} = "f{index}"' for index in features),
        columns="\n".join(f'    "candidate_f{index}",' for index in features),
        grades="\n".join(f'[[grades]]\nname = "label{label}"\nwhen = "label >= {label}"' for label in labels),
        periods=periods[len(scans) - 1],
        t1=_second(0),
        t2=_second(learned),
        validation=validation,
    )


def _second(query: int) -> str:
    """Return the time of a query as TOML has it."""
    return (START + timedelta(seconds=query)).strftime("%Y-%m-%dT%H:%M:%SZ")
