"""The commands `recommend` and `rank`, which ask a running server; `ranker.cli.main` adds them to the group."""

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import isnan
from typing import Any

import click

from features.errors import PairliftError, did_you_mean
from features.pairing.split import iso, utc
from ranker.cli.target import Target, asks_server
from ranker.client import Asked, Description, Id, Ranked, Reply, Shown
from ranker.request import QUERY

TOP_FEATURES = 3
#: the parts of the ranker whose scores an explained answer has
PARTS = ("liked", "wanted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The options that both commands share."""

    user: str  # ids as they are typed; the server knows whether its own are integers
    source_item: str | None
    surface: str
    query: str
    context: dict[str, str]
    as_of: datetime | None  # None: the server's clock
    request_id: str
    explain: bool
    server: Target
    timeout: float  # seconds
    as_json: bool


def as_time(_: click.Context, __: click.Parameter, value: str | None) -> datetime | None:
    """Return an ISO time; what it is without a zone, the bundle says (`micros`)."""
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError as error:
        raise click.BadParameter(
            f"'{value}': a time such as 1998-04-22 or 1998-04-22T10:00:00Z was expected (in the bundle's [time] zone "
            "unless it says otherwise)"
        ) from error


def micros(time: datetime | None, zone: str) -> int | None:
    """Return the µs UTC of an `as_time`, which is of a bundle's `[time] zone` where it says none.

    zone: empty where an older server does not tell it. PairliftError then, and where UTC has no such year.
    """
    if time is None:
        return None
    if time.tzinfo is None and not zone:
        raise PairliftError(f"--as-of {time.isoformat()}: this server is older, and does not tell its zone; add Z, say")
    at, first, last = utc(time, zone or "UTC"), utc(datetime.min, "UTC"), utc(datetime(9999, 12, 31), "UTC")
    if not first <= at <= last:
        raise PairliftError(f"--as-of {time.isoformat()}: a time of the years 1 to 9999 UTC was expected")
    return at


def as_pairs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Return `name=value` options by name."""
    pairs: dict[str, str] = {}
    for value in values:
        name, equals, said = value.partition("=")
        if not equals or name in pairs:
            problem = "stands there twice" if equals else "NAME=VALUE was expected"
            raise click.BadParameter(f"'{value}': {problem}")
        pairs[name] = said
    return pairs


def _asking(command: Any) -> Any:
    """Add the options of a `Question`."""
    options: list[Callable[[Any], Any]] = [
        click.option("--user", required=True, help="Id of the user; one that is neither known nor recorded is cold."),
        click.option("--surface", default="", help="Where the list is shown, as the log names it."),
        click.option(
            "--query", default="", help="What the user typed: a source of the class Search looks it up in the texts."
        ),
        click.option(
            "--context",
            multiple=True,
            callback=as_pairs,
            metavar="NAME=VALUE",
            help="What the request says of itself: a name of [events.context], repeatable.",
        ),
        click.option("--source-item", help="The item that the list is related to."),
        click.option(
            "--as-of",
            callback=as_time,
            help="ISO time before which data counts, of the bundle's [time] zone if it says none; default: the "
            "server's clock.",
        ),
        click.option(
            "--request-id", default="", help="A name for the request, as [events] request_id has it: `drift` needs one."
        ),
        click.option("--explain", is_flag=True, help="Show what moved each score most, and what every stage did."),
        asks_server,
        click.option(
            "--timeout", type=click.FloatRange(min=0.001), default=5.0, show_default=True, help="Seconds to wait."
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command(short_help="Ask a running server for a user's list.")
@_asking
@click.option("--k", type=click.IntRange(1), help="How many items; default: the k of [surfaces.NAME], or 10.")
@click.option("--exclude", default="", help="Ids that must not be in the list, comma-separated.")
def recommend(*, k: int | None, exclude: str, **shared: Any) -> None:
    """Ask a running server for a user's list, and print it with where each item came from.

    \b
    Examples:
      pairlift recommend --user 42
      pairlift recommend --user 42 --k 5 --surface feed --context device=phone --explain
      pairlift recommend --user 42 --as-of 1998-04-01 --json | jq '.items[].item'
    """
    asked = Question(**shared)
    with asked.server.client(asked.timeout) as client:
        served = client.describe()
        reply = client.recommend(
            _id(asked.user, "user", served.text_users),
            k or 0,
            exclude=_items(served, exclude),
            **_shared(served, asked),
        )
    _print(reply, asked)


@click.command(short_help="Ask a running server to rank given items.")
@_asking
@click.option("--items", required=True, help="Ids of the items to rank, comma-separated; unknown ones are cold.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    callback=as_pairs,
    metavar="NAME=VALUE,…",
    help="What is shown of the items, in their order, nothing between two commas where it is not known: a name of "
    "[events.candidate], repeatable.",
)
def rank(*, items: str, columns: dict[str, str], **shared: Any) -> None:
    """Ask a running server to rank items of one's own for a user; every one of them comes back, best first.

    \b
    Examples:
      pairlift rank --user 42 --items 50,181,300
      pairlift rank --user 42 --items 50,181,300 --column price=9.5,12,7 --context device=phone --explain
    """
    asked = Question(**shared)
    with asked.server.client(asked.timeout) as client:
        served = client.describe()
        reply = client.rank(
            _id(asked.user, "user", served.text_users),
            _items(served, items),
            columns=_columns(served, columns),
            **_shared(served, asked),
        )
    _print(reply, asked)


def _shared(served: Description, asked: Question) -> Asked:
    """Return what both calls say beside the user; PairliftError where the served bundle cannot read it."""
    _known("--context", asked.context, served.context_attributes, "[events.context]")
    if asked.query and QUERY in asked.context:
        raise PairliftError(f"--query and --context {QUERY}= are two names of one text; leave one of the two out")
    if asked.surface and asked.surface not in served.surfaces:  # a new one may be tried, and a typing error is told
        hint = did_you_mean(asked.surface, served.surfaces)
        click.echo(f"--surface: the log has no '{asked.surface}'{hint}, so none counts as named", err=True)
    return {
        "surface": asked.surface,
        "query": asked.query,
        "source_item": None if asked.source_item is None else _id(asked.source_item, "item", served.text_items),
        "attributes": asked.context,
        "as_of": micros(asked.as_of, served.time_zone),
        "explain": asked.explain,
        "request_id": asked.request_id,
    }


def _columns(served: Description, columns: Mapping[str, str]) -> dict[str, list[Shown]]:
    """Return the values of each `--column`, of the kind that the served bundle has there."""
    _known("--column", columns, served.candidate_columns, "[events.candidate]")
    return {name: _values(name, said, served.candidate_columns[name]) for name, said in columns.items()}


def _values(name: str, said: str, text: bool) -> list[Shown]:
    values = next(csv.reader([said]), [""])
    if text:
        return [value or None for value in values]
    try:
        return [float(value) if value.strip() else None for value in values]
    except ValueError as error:
        raise PairliftError(f"--column {name}: numbers were expected, found '{said}'") from error


def _known(option: str, given: Mapping[str, str], known: Mapping[str, bool], table: str) -> None:
    """Refuse a name that the served bundle does not have: the server itself would pass over it."""
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known) if known else ""
            raise PairliftError(f"{option}: the served bundle has no '{name}' in {table}{hint}")


def _items(served: Description, items: str) -> list[Id]:
    """Return comma-separated ids of items in the kind that the server's bundle has."""
    return [_id(part.strip(), "item", served.text_items) for part in items.split(",") if part.strip()]


def _id(value: str, side: str, text: bool) -> Id:
    if text:
        return value
    try:
        return int(value)
    except ValueError as error:
        raise PairliftError(f"'{value}' is not an id: the {side} ids of the served bundle are integers") from error


def _print(reply: Reply, asked: Question) -> None:
    if asked.as_json:
        click.echo(json.dumps(_plain(reply), indent=1))
        return
    head = ["rank", "item", "score", "sources"]
    parts = [part for part in PARTS if any(getattr(item, part) is not None for item in reply.items)]
    moved = any(not isnan(part) for item in reply.items for *_, part in item.features)
    if asked.explain:
        head += [*parts, *(["moved most by (value, part of the score)"] if moved else [])]
    rows = [_row(number, item, asked.explain, parts, moved) for number, item in enumerate(reply.items, 1)]
    if reply.exploration:
        head.insert(3, "propensity")
        for row, item in zip(rows, reply.items, strict=True):
            row.insert(3, f"{item.propensity:.4g}")
    click.echo(_table(head, rows) if rows else "no items")
    if reply.exploration:
        heat = "" if reply.temperature is None else f" at temperature {reply.temperature:g}"
        click.echo(f"the order was drawn ({reply.exploration}{heat}): an item's propensity is given those above it")
    if reply.reason:
        click.echo(reply.reason)
    if asked.explain:
        _print_how(reply, moved)
    arm = f", arm {reply.arm}" if reply.arm else ""
    click.echo(f"bundle {reply.bundle_version}{arm}, snapshot {iso(reply.snapshot_time)}, as of {iso(reply.as_of)}")
    unknown = [f"user {asked.user}"] if reply.unknown_user else []
    unknown += [f"item {item}" for item in reply.unknown_items]
    if unknown:
        click.echo(f"neither in the bundle nor recorded, so ranked as new: {', '.join(unknown)}", err=True)
    if reply.unknown_source_item:
        click.echo(f"neither in the bundle nor recorded, so left out: source item {asked.source_item}", err=True)
    if reply.degraded:
        click.echo(f"degraded: {', '.join(reply.degraded)}", err=True)


def _print_how(reply: Reply, moved: bool) -> None:
    """Print what sources, filters and rules did. moved: as in `_row`."""
    if reply.items and not moved:
        click.echo("a network scored, whose scores have no parts by feature; --json has the values of the features")
    for name, proposed, scored, problem in reply.proposed:
        click.echo(f"source {name}: {proposed} proposed, {scored} scored{f' ({problem})' if problem else ''}")
    for name, count in reply.removed:
        click.echo(f"filter {name}: {count} removed")
    for name, count, places in reply.rules:
        moved_here = ", ".join(str(reply.items[place].item) for place in places)
        click.echo(f"rule {name}: {count} changed{f', of this list {moved_here}' if places else ''}")
    click.echo("took " + ", ".join(f"{name} {took / 1000:.1f} ms" for name, took in reply.stages))


def _row(number: int, item: Ranked, explain: bool, parts: list[str], moved: bool) -> list[str]:
    """Return the cells of an item. moved: whether what moved its score is known."""
    row = [str(number), str(item.item), f"{item.score:.4f}", "+".join(item.sources)]
    if explain:
        scores = [getattr(item, part) for part in parts]
        row += ["" if score is None else f"{score:.4f}" for score in scores]
        most = [f"{n}={v:.4g} ({part:+.3f})" for n, v, part in item.features[:TOP_FEATURES]]
        row += [", ".join(most)] if moved else []
    return row


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Return aligned columns; the first three are numbers or ids, to the right."""
    widths = [max(len(row[c]) for row in [head, *rows]) for c in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(w) if c < 3 else cell.ljust(w) for c, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def _plain(reply: Reply) -> dict[str, Any]:
    """Return a reply as JSON has it: times in ISO, NaN and infinities as null, features by name."""
    plain = asdict(reply)
    for name in ("snapshot_time", "as_of"):
        plain[name] = datetime.fromtimestamp(plain[name] / 1e6, UTC).isoformat()
    for item in plain["items"]:
        for name in ("score", *PARTS):
            item[name] = None if item[name] is None else _finite(item[name])
        item["features"] = [
            {"name": n, "value": _finite(v), "contribution": _finite(part)} for n, v, part in item["features"]
        ]
    return plain


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
