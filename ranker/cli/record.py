"""The commands `record` and `snapshot`; `ranker.cli.main` adds them to the group."""

from pathlib import Path

import click

from features.errors import PairliftError
from features.pairing.split import iso
from ranker.cli.ask import ADDRESS
from ranker.client import Client
from ranker.recording.batch import read_batches

SHOWN = 5


@click.command(short_help="Record the events of a file into a server.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@ADDRESS
@click.option("--batch", type=click.IntRange(1), default=1000, show_default=True, help="Events of one message.")
def record(file: Path, address: str, batch: int) -> None:
    """Record the events of FILE (Parquet) into a server that was started with `pairlift serve --log`.

    Columns: event_id, user_id, item_id, ts (a timestamp, or µs UTC); where known surface, organic, request_id,
    position, grade; any other is a column of the TOML's [events.feedback], [events.columns], [events.context] or
    [events.candidate]. What was recorded before is known by its event_id and counts once, so a run that broke off may
    simply be run again. Exit status 2 where events were refused.

    \b
    Examples:
      pairlift record today.parquet
      pairlift record today.parquet --address 127.0.0.1:50051 --batch 5000
    """
    recorded = duplicates = first = 0
    refused: list[tuple[int, str]] = []
    with Client(address) as client:
        for outcome in client.record(read_batches(file, batch)):
            recorded, duplicates = recorded + outcome.recorded, duplicates + outcome.duplicates
            refused += [(first + place, reason) for place, reason in outcome.refused]
            first += outcome.recorded + outcome.duplicates + len(outcome.refused)
    click.echo(f"{recorded:,} events recorded, {duplicates:,} were recorded before, {len(refused):,} refused")
    if refused:
        shown = "\n".join(f"  row {place}: {reason}" for place, reason in refused[:SHOWN])
        raise PairliftError(f"{len(refused):,} events of {file} were refused; the first of them:\n{shown}")


@click.command(short_help="Have a server that records write its state.")
@ADDRESS
def snapshot(address: str) -> None:
    """Have a server that records write its state into the log's folder, and print where.

    The server goes on answering and recording meanwhile. A server that is started with this snapshot and the same
    --log goes on from there in place of reading the whole log again.

    \b
    Examples:
      pairlift snapshot
      pairlift serve work/bundle --log work/log --snapshot "$(pairlift snapshot)"
    """
    with Client(address) as client:
        taken = client.snapshot()
    click.echo(f"events up to {iso(taken.time)}, frame {taken.frame} of the log", err=True)
    click.echo(taken.folder)
