"""The command `batch`, which writes lists of many users; `ranker.cli.main` adds it to the group."""

from datetime import datetime
from pathlib import Path

import click

from features.errors import PairliftError
from ranker.cli.ask import as_pairs, as_time, micros
from ranker.cli.bundle import RECORDED
from ranker.cli.plugins import PLUGINS
from ranker.cli.processes import ended_in_order
from ranker.cli.train import needs_training

PARQUET = ".parquet"


@click.command(short_help="Write the lists of many users as Parquet.")
@click.argument("source", metavar="BUNDLE|CONFIG", type=click.Path(path_type=Path))
@click.option(
    "--users",
    required=True,
    metavar="FILE|all",
    help="Ids: one column, or user_id, of Parquet, CSV or JSON; or all who have an event before --as-of.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write, such as lists.parquet.")
@click.option("--surface", default="", help="What the lists are for, as the log names it: its sources and its profile.")
@click.option("--k", type=click.IntRange(1), help="Items of a list; default: the k of [surfaces.NAME], or 10.")
@click.option(
    "--as-of",
    callback=as_time,
    help="ISO time before which data counts, of [time] zone if it says none; default: the end of what is known.",
)
@click.option(
    "--context",
    multiple=True,
    callback=as_pairs,
    metavar="NAME=VALUE",
    help="What the requests say of themselves: a name of [events.context], repeatable.",
)
@RECORDED
@PLUGINS
def batch(
    *,
    source: Path,
    users: str,
    out: Path,
    surface: str,
    k: int | None,
    as_of: datetime | None,
    context: dict[str, str],
    log: Path | None,
) -> None:
    """Write what Recommend answers to each of many users: lists for notifications and e-mail.

    A row for each item: user_id and item_id (as in your log), rank (1 is the best), score, and sources, which proposed
    it. The path is the server's own, with as many threads as [serve] workers and the cores allow; nobody waits, so
    deadlines do not count. All lists are in the best order: [exploration] draws none here, for nothing would record the
    chances of what was drawn. A user that the bundle does not know gets the list of a new user. The file is there whole
    or not at all. Bundle, time, surface, k and order stand in its metadata.

    Of a CONFIG the bundle is trained first, as by `pairlift train`, into `batch` in its work folder.

    \b
    Examples:
      pairlift batch work/bundle --users all --surface notification --k 3 --out work/lists.parquet
      pairlift batch work/bundle --users today.csv --log work/log --out work/lists.parquet
      duckdb -c "SELECT user_id, list(item_id ORDER BY rank) FROM 'work/lists.parquet' GROUP BY ALL"
    """
    if not out.resolve().parent.is_dir():
        raise PairliftError(f"--out {out}: there is no folder {out.parent}; make it, or name another")
    with ended_in_order(f"{out} is as it was before"):  # what is imported and loaded takes seconds too
        from ranker.bundle import load_bundle
        from ranker.export.batch import ALL, Wanted, write_lists

        file = None if users == ALL else Path(users)
        _check_out(out, *([] if file is None else [("--users", file)]), ("CONFIG", source))
        bundle = load_bundle(_trained(source) if source.is_file() else source)
        at = micros(as_of, bundle.config.time.zone)
        found = write_lists(bundle, out, Wanted(users=file, surface=surface, k=k, as_of=at, context=context), log)
    click.echo(f"wrote {out}: {found.rows:,} rows of {found.users:,} users, {found.unknown:,} of them not known")
    for reason, count in found.empty.items():
        click.echo(f"  {count:,} have no list: {reason}")
    if bundle.config.exploration is not None:
        click.echo("  all in the best order: [exploration] of the bundle draws none here")
    for lane, count in found.degraded.items():
        click.echo(f"  {lane} failed for {count:,}")


def _check_out(out: Path, *read: tuple[str, Path]) -> None:
    """Raise PairliftError where `out` is, by whatever path or link, a file that is read, or not named as Parquet."""
    for name, path in read:
        if out.exists() and path.is_file() and out.samefile(path):
            raise PairliftError(f"--out {out} is the file of {name}, {path}, and would replace it; name another")
    if out.suffix.lower() != PARQUET:
        raise PairliftError(
            f"--out {out}: a name that ends in {PARQUET} was expected, for that is what is written; DuckDB and pandas "
            "make any other format of it"
        )


def _trained(toml: Path) -> Path:
    """Train the bundle of a TOML and return its folder."""
    needs_training()
    from ranker.config import load_config
    from ranker.train import train

    config = load_config(toml)
    train(config, config.work / "batch")
    return config.work / "batch"
