"""The commands `recommend` and `rank`, which ask a running server; `ranker.cli.main` adds them to the group."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import click

from features.errors import PairliftError
from features.pairing.split import iso, utc
from ranker.client import DEFAULT_ADDRESS, Client, Id, Ranked, Reply

TOP_FEATURES = 3
#: the parts of the ranker whose scores an explained answer has
PARTS = ("liked", "wanted")
ADDRESS = click.option("--address", default=DEFAULT_ADDRESS, show_default=True, help="HOST:PORT of the server.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The options that both commands share."""

    user: str  # ids as they are typed; the server knows whether its own are integers
    source_item: str | None
    surface: str
    as_of: int | None  # µs UTC; None: the server's clock
    explain: bool
    address: str
    timeout: float  # seconds
    as_json: bool


def _time(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return utc(datetime.fromisoformat(value), "UTC")
    except ValueError as error:
        raise click.BadParameter(
            f"'{value}': a time such as 1998-04-22 or 1998-04-22T10:00:00Z was expected (UTC unless it says otherwise)"
        ) from error


def _asking(command: Any) -> Any:
    """Add the options of a `Question`."""
    options = [
        click.option("--user", required=True, help="Id of the user; one that is neither known nor recorded is cold."),
        click.option("--surface", default="", help="Where the list is shown, as the log names it."),
        click.option("--source-item", help="The item that the list is related to."),
        click.option("--as-of", callback=_time, help="ISO time before which data counts; default: the server's clock."),
        click.option("--explain", is_flag=True, help="Show what moved each score most, and what every stage did."),
        ADDRESS,
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
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="How many items.")
@click.option("--exclude", default="", help="Ids that must not be in the list, comma-separated.")
def recommend(*, k: int, exclude: str, **shared: Any) -> None:
    """Ask a running server for a user's list, and print it with where each item came from.

    \b
    Examples:
      pairlift recommend --user 42
      pairlift recommend --user 42 --k 5 --surface feed --explain
      pairlift recommend --user 42 --as-of 1998-04-01 --json | jq '.items[].item'
    """
    asked = Question(**shared)
    with Client(asked.address, asked.timeout) as client:
        user, source, excluded = _ids(client, asked, exclude)
        reply = client.recommend(
            user,
            k,
            surface=asked.surface,
            source_item=source,
            as_of=asked.as_of,
            exclude=excluded,
            explain=asked.explain,
        )
    _print(reply, asked)


@click.command(short_help="Ask a running server to rank given items.")
@_asking
@click.option("--items", required=True, help="Ids of the items to rank, comma-separated; unknown ones are cold.")
def rank(*, items: str, **shared: Any) -> None:
    """Ask a running server to rank items of one's own for a user; every one of them comes back, best first.

    \b
    Examples:
      pairlift rank --user 42 --items 50,181,300
      pairlift rank --user 42 --items 50,181,300 --explain
    """
    asked = Question(**shared)
    with Client(asked.address, asked.timeout) as client:
        user, source, candidates = _ids(client, asked, items)
        reply = client.rank(
            user, candidates, surface=asked.surface, source_item=source, as_of=asked.as_of, explain=asked.explain
        )
    _print(reply, asked)


def _ids(client: Client, asked: Question, items: str) -> tuple[Id, Id | None, list[Id]]:
    """Return user, source item and items in the kind of ids that the server's bundle has."""
    served = client.describe()
    listed = [_id(part.strip(), "item", served.text_items) for part in items.split(",") if part.strip()]
    source = None if asked.source_item is None else _id(asked.source_item, "item", served.text_items)
    return _id(asked.user, "user", served.text_users), source, listed


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
    if asked.explain:
        head += [*parts, "moved most by (value, part of the score)"]
    rows = [_row(number, item, asked.explain, parts) for number, item in enumerate(reply.items, 1)]
    click.echo(_table(head, rows) if rows else "no items")
    if reply.reason:
        click.echo(reply.reason)
    if asked.explain:
        for name, proposed, scored, problem in reply.proposed:
            click.echo(f"source {name}: {proposed} proposed, {scored} scored{f' ({problem})' if problem else ''}")
        for name, count in reply.removed:
            click.echo(f"filter {name}: {count} removed")
        click.echo("took " + ", ".join(f"{name} {took / 1000:.1f} ms" for name, took in reply.stages))
    click.echo(f"bundle {reply.bundle_version}, snapshot {iso(reply.snapshot_time)}, as of {iso(reply.as_of)}")
    if reply.degraded:
        click.echo(f"degraded: {', '.join(reply.degraded)}", err=True)


def _row(number: int, item: Ranked, explain: bool, parts: list[str]) -> list[str]:
    row = [str(number), str(item.item), f"{item.score:.4f}", "+".join(item.sources)]
    if explain:
        scores = [getattr(item, part) for part in parts]
        row += ["" if score is None else f"{score:.4f}" for score in scores]
        row.append(", ".join(f"{n}={v:.4g} ({part:+.3f})" for n, v, part in item.features[:TOP_FEATURES]))
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
