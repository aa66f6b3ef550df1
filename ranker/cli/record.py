"""The commands `record` and `snapshot`; `ranker.cli.main` adds them to the group."""

import logging
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import click

from features.errors import PairliftError
from features.pairing.split import iso
from features.progress import progress_bar
from ranker.cli.target import Target, asks_server
from ranker.client import Client, ServerError
from ranker.recording.batch import count_events, is_local, read_batches

#: reasons that are told one by one
SHOWN = 10
#: of a reason, what differs from event to event: numbers and times
_VALUES = re.compile(r"-?\d[\w.:+-]*")


@dataclass(slots=True)
class Refused:
    """What was refused so far, by reason: reasons that differ in numbers and times alone are one."""

    kinds: dict[str, tuple[int, int, str]] = field(default_factory=dict)  # number of events, first row, its reason

    def add(self, row: int, reason: str) -> str:
        """Count an event; return what to say of it where it is the first of its kind, else an empty text."""
        kind = _VALUES.sub("", reason)
        count, first, said = self.kinds.get(kind, (0, row, reason))
        self.kinds[kind] = count + 1, first, said
        return "" if count or len(self.kinds) > SHOWN else f"refused ({len(self.kinds)}): row {row}: {reason}"

    @property
    def total(self) -> int:
        """How many events."""
        return sum(count for count, _, _ in self.kinds.values())

    def brief(self) -> str:
        """Return the counts of the kinds that were told for a line, by the numbers with which they were."""
        counts = [count for count, _, _ in self.kinds.values()]
        told = [f"refused ({k}) {count:,}" for k, count in enumerate(counts[:SHOWN], 1)]
        return ", ".join([*told, *([f"others {sum(counts[SHOWN:]):,}"] if counts[SHOWN:] else [])])

    def lines(self) -> list[str]:
        """Return a line for each of the most frequent kinds."""
        by_count = sorted(self.kinds.values(), key=lambda kind: -kind[0])
        lines = [f"  {count:,}, the first of them row {row}: {reason}" for count, row, reason in by_count[:SHOWN]]
        return [*lines, f"  and for {len(by_count) - SHOWN:,} other reasons"] if by_count[SHOWN:] else lines


@click.command(short_help="Record the events of a file into a server.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@asks_server
@click.option("--batch", type=click.IntRange(1), default=1000, show_default=True, help="Events of one message.")
def record(*, file: Path, server: Target, batch: int) -> None:
    """Record the events of FILE (Parquet) into a server that was started with `pairlift serve --log`.

    Columns: event_id, user_id, item_id, ts (a timestamp, or µs UTC; one without a zone is of the [time] zone of the
    server's bundle, as in the training); where known surface, organic, request_id,
    position, grade; any other is a column of the TOML's [events.feedback], [events.columns], [events.context] (which is
    in the user's history then) or [events.candidate]. What was recorded before is known by its event_id and counts
    once, so a run that broke off may simply be run again. While it runs, a line shows the events a second and what was
    refused, by reason. Exit status 2 where events were refused.

    \b
    Examples:
      pairlift record today.parquet
      pairlift record today.parquet --address 127.0.0.1:50051 --batch 5000
    """
    recorded = duplicates = first = 0
    refused, quiet = Refused(), not logging.getLogger("ranker").isEnabledFor(logging.INFO)
    with (
        server.client() as client,
        progress_bar(total=count_events(file), desc="recording", unit=" events", disable=quiet) as bar,
    ):
        zone = _zone(client) if is_local(file) else ""
        for outcome in client.record(read_batches(file, batch, zone or "UTC")):
            recorded, duplicates = recorded + outcome.recorded, duplicates + outcome.duplicates
            for place, reason in outcome.refused:
                if told := refused.add(first + place, reason):
                    bar.write(told, file=sys.stderr)
            size = outcome.recorded + outcome.duplicates + len(outcome.refused)
            first += size
            bar.set_postfix_str(refused.brief(), refresh=False)
            bar.update(size)
    click.echo(f"{recorded:,} events recorded, {duplicates:,} were recorded before, {refused.total:,} refused")
    if zone:
        click.echo(f"ts has no time zone: it was read as {zone}, the bundle's [time] zone", err=True)
    if refused.total:
        raise PairliftError("\n".join([f"{refused.total:,} events of {file} were refused:", *refused.lines()]))


def _zone(client: Client) -> str:
    """Return the zone of times that say none; PairliftError where this caller may not ask, or the server does not tell:
    UTC would be a guess.
    """
    zone, why = "", "this server is older, and does not tell that of its bundle"
    try:
        zone = client.describe().time_zone
    except ServerError as error:
        if error.code != "PERMISSION_DENIED":
            raise
        why = "this token may not ask the server for that of its bundle (the right `read`)"
    if not zone:
        raise PairliftError(f"ts has no time zone, and {why}: write ts with a zone, or as µs UTC")
    return zone


@click.command(short_help="Have a server that records write its state.")
@asks_server
def snapshot(*, server: Target) -> None:
    """Have a server that records write its state into the log's folder, and print where.

    The server goes on answering and recording meanwhile. A server that is started with this snapshot and the same
    --log goes on from there in place of reading the whole log again.

    \b
    Examples:
      pairlift snapshot
      pairlift serve work/bundle --log work/log --snapshot "$(pairlift snapshot)"
    """
    with server.client() as client:
        taken = client.snapshot()
    click.echo(f"events up to {iso(taken.time)}, frame {taken.frame} of the log", err=True)
    click.echo(taken.folder)
