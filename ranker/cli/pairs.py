"""The command `pairs`; `ranker.cli.main` adds it to the group."""

from pathlib import Path

import click

from ranker.cli.train import CONFIG


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
