"""The commands `pairs` and `rows`: what a booster learns from, as files; `ranker.cli.main` adds them to the group."""

from pathlib import Path

import click

from features.pairing.split import PERIODS
from features.schema import GIB
from ranker.cli.train import CONFIG, memory_option


@click.command(short_help="Write the weighted pairs of a slice to a file.")
@CONFIG
@click.option(
    "--slice",
    "name",
    type=click.Choice(["train", "validation", "test"]),
    required=True,
    help="train and validation are the booster's; the pairs of train are capped and weighed as [pairing] says.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="FILE.parquet, or FILE.tsv (also .txt, .pairs) for CatBoost's form.",
)
def pairs(config: Path, name: str, out: Path) -> None:
    """Write the weighted pairs of a slice of CONFIG's log to a file, and the impressions that they count beside it.

    A pair is `winner loser weight`; rows count from 0. FILE.tsv is what CatBoost reads as pairs (tabs, no header).
    FILE.parquet has a column more, `sampled`: the loser was drawn. FILE.rows.parquet has the rows: group, request_id,
    user_id, item_id, as_of, grade and event, the number of the log's event in time order. Edit the pairs as you like:
    `pairlift train CONFIG --pairs FILE` learns from them.

    \b
    Examples:
      pairlift pairs pairlift.toml --slice train --out train.tsv
      pairlift train pairlift.toml --out bundle --pairs train.tsv
    """
    from ranker.config import load_config
    from ranker.export.pairfile import export_pairs, rows_path

    written, groups = export_pairs(load_config(config), name, out)
    click.echo(f"wrote {out}: {len(written):,} pairs of {len(groups.requests):,} groups")
    click.echo(f"wrote {rows_path(out)}: the {len(groups.event):,} impressions that they count")


@click.command(short_help="Write the training rows with their features.")
@CONFIG
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="FILE.duckdb, whose table is named `rows`, or FILE.parquet. An older one is replaced.",
)
@click.option(
    "--period",
    type=click.Choice([*PERIODS, "all"]),
    default="all",
    show_default=True,
    help="The impressions of one period of [split], or of all three.",
)
@memory_option(
    "What the rows and their counters may take at a time, beside the log itself (some 40 bytes an event) and its "
    "ids; DuckDB needs about 0.5 of its own in any case. Less makes more and smaller blocks of rows, and "
    "every block reads the events before it anew.",
)
def rows(config: Path, out: Path, period: str, memory: float) -> None:
    """Write the training rows of CONFIG's log to a file: every impression with the features that a booster learns from.

    Nothing is trained. All features of a row are strictly before the `as_of` of its group (a request, or a sitting), as
    they would be served then, up to rounding; they are the numbers that `pairlift train` uses. Use the file to look at
    a feature, to train another learner on the same rows, or to check for yourself that nothing leaks.

    \b
    A row has, in this order:
      user_id, item_id    your own ids
      as_of               the instant before which its features were known
      ts                  the time of its event; NULL for a drawn negative
      request_id          NULL where the log has none
      surface_name        where the group was shown; NULL where that is not known
      group_number        rows of one number are compared with each other; counts from 0 in time order
      period, validation  towers, booster or test, and whether in the validation slice of that period
      grade               NULL for a drawn negative
      sampled             drawn by [pairing] negatives, not shown
      and every feature column as FLOAT, by its name in `pairlift bundle show`.

    What is not known is NULL, which LightGBM, pandas and DuckDB's aggregates take as missing. A category is the code
    that the booster sees: the place of its value, from 0, among all values of its column in order. Columns of plugins
    are not among them. Rows stand in time order of as_of, those of a group together.

    A log whose state does not fit in memory can be done too: rows are made in blocks within --memory.

    \b
    Examples:
      pairlift rows pairlift.toml --out rows.duckdb
      duckdb rows.duckdb "SELECT period, grade, avg(item__impression__all__count) FROM rows GROUP BY ALL"
      pairlift rows pairlift.toml --out test.parquet --period test --memory 0.5
    """
    from ranker.config import load_config
    from ranker.export.rows import write_rows

    count, groups, columns = write_rows(load_config(config), out, period, int(memory * GIB))
    click.echo(f"wrote {out}: {count:,} impressions of {groups:,} groups, {columns} features")
