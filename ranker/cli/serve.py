"""The commands `serve`, `recommend` and `rank`; `ranker.cli.main` adds them to the group."""

import json
import logging
import signal
import sys
import threading
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from features.errors import PairliftError
from features.pairing.split import iso, utc
from ranker.client import DEFAULT_ADDRESS, Client, Id, Ranked, Reply

TOP_FEATURES = 3


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--snapshot",
    type=click.Path(path_type=Path),
    help="Serve this snapshot folder instead of the bundle's own.",
)
@click.option(
    "--clock",
    type=click.Choice(["wall", "snapshot"]),
    default="wall",
    show_default=True,
    help="The time of a request that gives none: now, or the end of the snapshot (for a log of the past).",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=50051,
    show_default=True,
    help="Port to listen on; 0 takes any free one and prints it.",
)
@click.option(
    "--log",
    "record_to",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Record events into this folder (made where it is missing), and serve what it has.",
)
@click.option(
    "--feature-log",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write the feature values that sampled requests used into this folder, as Parquet.",
)
@click.option(
    "--feature-share",
    type=float,
    default=0.01,
    show_default=True,
    help="Share of the requests (those with a request_id) that --feature-log takes.",
)
def serve(
    *,
    bundle: Path,
    snapshot: Path | None,
    clock: str,
    host: str,
    port: int,
    record_to: Path | None,
    feature_log: Path | None,
    feature_share: float,
) -> None:
    """Answer Recommend and Rank requests over gRPC from BUNDLE until stopped (Ctrl-C or SIGTERM).

    The bundle is verified, loaded and warmed up before the port answers; then one line with the address is
    printed. The contract is proto/pairlift/v1/ranking.proto; health (grpc.health.v1) and reflection are
    served beside it. There is no encryption and no login: keep it on a private network.

    With --log, RecordEvents is served too: an acknowledged event is on disk in DIR, counts once, and is in the
    features, histories and filters of later requests within a second, for users and items that BUNDLE does not know too
    ([record] new_users, new_items). At the next start DIR is read again, on top of
    the bundle, or of --snapshot where `pairlift snapshot` wrote one (faster). DIR/events/*.parquet has what closed
    segments of the log hold: name it in [events] source to train on it. The bundle then knows which events it was
    trained on, and each counts once. [record] in the TOML has the limits. Where events cannot be written, served or
    exported, Describe says why (recording_problem), and the health of pairlift.v1.Recording is NOT_SERVING.

    \b
    Examples:
      pairlift serve work/bundle
      pairlift serve work/bundle --clock snapshot --port 0     # a log of the past, any free port
      pairlift serve work/bundle --log work/log                # record events too
      pairlift serve work/bundle --feature-log work/features --feature-share 0.05
      grpcurl -plaintext 127.0.0.1:50051 pairlift.v1.RankingService/Describe
    """
    # Here and not above: the clients need neither LightGBM nor the kernels, and start in a fraction of the
    # time.
    from ranker.bundle import load_bundle
    from ranker.recording.recorder import SWITCH
    from ranker.recording.snapshots import origin_of, with_snapshot
    from ranker.server import FeaturesTo, RecordTo, Server, now_wall, warn_if_old

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    loaded = load_bundle(bundle)
    if snapshot is not None:
        loaded = with_snapshot(loaded, snapshot)
    origin = None if snapshot is None else origin_of(snapshot)
    if clock == "wall":
        warn_if_old(loaded, now_wall())
    if record_to is not None:
        sys.setswitchinterval(SWITCH)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = Server(
        loaded,
        clock=clock,
        host=host,
        port=port,
        record_to=None if record_to is None else RecordTo(record_to, origin),
        features_to=None if feature_log is None else FeaturesTo(feature_log, feature_share),
    )
    server.start()
    click.echo(
        f"pairlift serves bundle {loaded.version} (snapshot {iso(loaded.state.end)}, clock {clock}) on {server.address}"
    )
    sys.stdout.flush()
    stop.wait()
    click.echo("pairlift is stopping: calls under way are finished")
    server.stop()


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
    """Add the options that both clients share."""
    options = [
        click.option("--user", required=True, help="Id of the user; one that is neither known nor recorded is cold."),
        click.option("--surface", default="", help="Where the list is shown, as the log names it."),
        click.option("--source-item", help="The item that the list is related to."),
        click.option("--as-of", callback=_time, help="ISO time before which data counts; default: the server's clock."),
        click.option("--explain", is_flag=True, help="Show what moved each score most, and what every stage did."),
        click.option("--address", default=DEFAULT_ADDRESS, show_default=True, help="HOST:PORT of the server."),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0.001),
            default=5.0,
            show_default=True,
            help="Seconds to wait.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@_asking
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="How many items.")
@click.option("--exclude", default="", help="Ids that must not be in the list, comma-separated.")
def recommend(
    *,
    user: str,
    surface: str,
    source_item: str | None,
    as_of: int | None,
    explain: bool,
    address: str,
    timeout: float,
    as_json: bool,
    k: int,
    exclude: str,
) -> None:
    """Ask a running server for a user's list, and print it with where each item came from.

    \b
    Examples:
      pairlift recommend --user 42
      pairlift recommend --user 42 --k 5 --surface feed --explain
      pairlift recommend --user 42 --as-of 1998-04-01 --json | jq '.items[].item'
    """
    with Client(address, timeout) as client:
        user_id, source, excluded = _ids(client, user, source_item, exclude)
        reply = client.recommend(
            user_id, k, surface=surface, source_item=source, as_of=as_of, exclude=excluded, explain=explain
        )
    _print(reply, as_json, explain)


@click.command()
@_asking
@click.option("--items", required=True, help="Ids of the items to rank, comma-separated; unknown ones are cold.")
def rank(
    *,
    user: str,
    surface: str,
    source_item: str | None,
    as_of: int | None,
    explain: bool,
    address: str,
    timeout: float,
    as_json: bool,
    items: str,
) -> None:
    """Ask a running server to rank items of one's own for a user; every one of them comes back, best first.

    \b
    Examples:
      pairlift rank --user 42 --items 50,181,300
      pairlift rank --user 42 --items 50,181,300 --explain
    """
    with Client(address, timeout) as client:
        user_id, source, candidates = _ids(client, user, source_item, items)
        reply = client.rank(user_id, candidates, surface=surface, source_item=source, as_of=as_of, explain=explain)
    _print(reply, as_json, explain)


def _ids(client: Client, user: str, source_item: str | None, items: str) -> tuple[Id, Id | None, list[Id]]:
    """Return the ids of the command line in the kind that the server's bundle has."""
    told = client.describe()
    listed = [_id(part.strip(), "item", told.text_items) for part in items.split(",") if part.strip()]
    source = None if source_item is None else _id(source_item, "item", told.text_items)
    return _id(user, "user", told.text_users), source, listed


def _id(value: str, side: str, text: bool) -> Id:
    if text:
        return value
    try:
        return int(value)
    except ValueError as error:
        raise PairliftError(f"'{value}' is no id: the {side} ids of the served bundle are integers") from error


def _print(reply: Reply, as_json: bool, explain: bool) -> None:
    if as_json:
        click.echo(json.dumps(_plain(reply), indent=1))
        return
    head = [
        "rank",
        "item",
        "score",
        "sources",
        *(["moved most by (value, part of the score)"] if explain else []),
    ]
    rows = [_row(number, item, explain) for number, item in enumerate(reply.items, 1)]
    click.echo(_table(head, rows) if rows else "no items")
    if explain:
        for name, proposed, scored, problem in reply.proposed:
            click.echo(f"source {name}: {proposed} proposed, {scored} scored{f' ({problem})' if problem else ''}")
        for name, count in reply.removed:
            click.echo(f"filter {name}: {count} removed")
        click.echo("took " + ", ".join(f"{name} {took / 1000:.1f} ms" for name, took in reply.stages))
    click.echo(f"bundle {reply.bundle_version}, snapshot {iso(reply.snapshot_time)}, as of {iso(reply.as_of)}")
    if reply.degraded:
        click.echo(f"degraded: {', '.join(reply.degraded)}", err=True)


def _row(number: int, item: Ranked, explain: bool) -> list[str]:
    row = [str(number), str(item.item), f"{item.score:.4f}", "+".join(item.sources)]
    if explain:
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
    told = asdict(reply)
    for name in ("snapshot_time", "as_of"):
        told[name] = datetime.fromtimestamp(told[name] / 1e6, UTC).isoformat()
    for item in told["items"]:
        item["score"] = _finite(item["score"])
        item["features"] = [
            {"name": n, "value": _finite(v), "contribution": _finite(part)} for n, v, part in item["features"]
        ]
    return told


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
