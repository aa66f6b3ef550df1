"""The commands `uplift` and `drift`, which compare; `ranker.cli.main` adds them to the group."""

import sys
from pathlib import Path

import click

from ranker.cli.train import CONFIG, needs_training


@click.command(short_help="Measure a plugin's relative uplift in PairAccuracy.")
@CONFIG
@click.option("--plugin", required=True, metavar="NAME", help="A [plugins.NAME] of the TOML: is it worth serving?")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of uplift.json.")
def uplift(config: Path, plugin: str, out: Path) -> None:
    """Train rankers with and without a plugin's columns and report the relative uplift in PairAccuracy.

    Same rows, pairs, weights, parameters and seeds for both arms; the plugin is fitted [uplift] fits times, and each
    fit meets each seed. Prints a table and writes OUT/uplift.json: the uplift with its 95 % interval (about new users,
    fits and seeds), what each user weighing one, ties wrong, and knowing which values are missing give, shuffled
    columns, slices and the gain's shares.

    Beside it stands what the plugin brings to the lists of Recommend, in recall@10 and NDCG@10 of the test's users, for
    the first three seeds; a plugin that leaks has no such figures.

    Two controls look for leaks: values of sampled groups from histories cut at their as_of, and values of a fit on
    the log cut at t1. Exit status 1 where one is found.
    """
    needs_training()
    import json

    from features.files import written
    from ranker.config import load_config
    from ranker.uplift.report import uplift_report
    from ranker.uplift.table import as_table

    loaded = load_config(config)
    out.mkdir(parents=True, exist_ok=True)
    report = uplift_report(loaded, plugin)
    with written(out / "uplift.json") as partial:
        partial.write_text(json.dumps(report, indent=1, allow_nan=False))
    click.echo(as_table(report))
    click.echo(f"\nwrote {out / 'uplift.json'}")
    if report["leaks"]:
        sys.exit(1)


@click.command(short_help="Compare features as served with recomputed ones.")
@CONFIG
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    required=True,
    help="A folder that `pairlift serve --feature-log` wrote.",
)
def drift(config: Path, features: Path) -> None:
    """Compare the feature values that requests were served with, with values recomputed from the log of CONFIG.

    The two are equal up to rounding: a value differs where it is off by more than 1e-6 of itself (and 1e-6), a plugin's
    also by more than 1e-5 of its column's standard deviation, or where it is missing in one of the two. A column that
    differs was served with other values than it is trained on: late events, another version, or a bug. Plugins and
    priors are those of the present log: where [split] has quantiles in place of dates, they move as it grows.
    """
    needs_training()
    from ranker.config import load_config
    from ranker.train import drift_report

    rows = drift_report(load_config(config), features)
    click.echo(f"{'column':48}{'differs':>9}{'mean gap':>12}{'largest':>12}{'missing':>9}  example")
    for row in rows:
        click.echo(
            f"{row['column']:48}{100 * row['differs']:7.2f} %{row['mean_gap']:12.4g}{row['largest_gap']:12.4g}"
            f"{row['missing_in_one']:9}  {row['example'] or ''}"
        )
