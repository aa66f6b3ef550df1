"""The command line. Each verb's `--help` teaches; a user's mistake is a sentence and exit status 2."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from features.errors import PairliftError
from ranker.cli.ask import rank, recommend
from ranker.cli.bundle import bundle
from ranker.cli.config import config
from ranker.cli.pairs import pairs
from ranker.cli.record import record, snapshot
from ranker.cli.rows import rows
from ranker.cli.serve import serve
from ranker.cli.train import CONFIG, retune, train


class Mistake(click.ClickException):
    """A PairliftError on its way to the user."""

    exit_code = 2


class Verbs(click.Group):
    """A group whose commands may raise PairliftError."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; turn a user's mistake into its text and exit status 2."""
        try:
            return super().invoke(ctx)
        except PairliftError as error:
            raise Mistake(str(error)) from error
        except OSError as error:
            if error.filename is None:
                raise
            raise Mistake(f"{error.filename}: {error.strerror}") from error


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and results.")
def cli(quiet: bool) -> None:
    """A ranking stack: weighted pairs in LightGBM, point-in-time features, towers, gRPC, and the uplift.

    \b
    A first round, on MovieLens-100K (fetched when used):
      pairlift init demo --example movielens
      pairlift validate demo/pairlift.toml
      pairlift train demo/pairlift.toml --out demo/bundle
      pairlift uplift demo/pairlift.toml --plugin two_tower --out demo
      pairlift serve demo/bundle --clock snapshot
      pairlift recommend --user 1 --k 10 --explain
    """
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    for package in ("features", "neural", "ranker"):
        logging.getLogger(package).setLevel(logging.WARNING if quiet else logging.INFO)


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--example", metavar="NAME", help="Map an example data set in place of your own: movielens or kuairand.")
def init(folder: Path, example: str | None) -> None:
    """Write a commented pairlift.toml into DIR, for your own log or for an example data set.

    The file maps your columns to Pairlift's with SQL expressions; your log is not rewritten. Edit it, then run
    `pairlift validate DIR/pairlift.toml`.
    """
    from ranker.examples import example_text

    target = folder / "pairlift.toml"
    if target.exists():
        raise PairliftError(f"{target} is there already: edit it, remove it, or choose another folder")
    text = example_text(example or "template")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    except OSError as error:
        raise PairliftError(f"{target}: {error.strerror}") from error
    click.echo(f"wrote {target}; next: pairlift validate {target}")


@cli.command()
@CONFIG
def validate(config: Path) -> None:
    """Check the file and the data of CONFIG before anything is trained.

    Prints rows, users, items and the time span, events per grade, pairs per grade pair and per period of the
    split, how many groups each boundary of the split cuts in two or leaves outside, and what looks wrong.
    """
    from ranker.config import load_config
    from ranker.training.validate import validation_text

    click.echo(validation_text(load_config(config)))


@cli.command()
@CONFIG
@click.option("--plugin", required=True, metavar="NAME", help="A [plugins.NAME] of the TOML: is it worth serving?")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of uplift.json.")
def uplift(config: Path, plugin: str, out: Path) -> None:
    """Train rankers with and without a plugin's columns and report the relative uplift in PairAccuracy.

    Same rows, pairs, weights, parameters and seeds for both arms; the plugin is fitted [uplift] fits times, and each
    fit meets each seed. Prints a table and writes OUT/uplift.json: the uplift with its 95 % interval (about new users,
    fits and seeds), what each user weighing one, ties wrong, and knowing which values are missing give, shuffled
    columns, slices and the gain's shares.

    Two controls look for leaks: values of sampled groups from histories cut at their as_of, and values of a fit on
    the log cut at t1. Exit status 1 where one is found.
    """
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


@cli.command()
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
    from ranker.config import load_config
    from ranker.train import drift_report

    rows = drift_report(load_config(config), features)
    click.echo(f"{'column':48}{'differs':>9}{'mean gap':>12}{'largest':>12}{'missing':>9}  example")
    for row in rows:
        click.echo(
            f"{row['column']:48}{100 * row['differs']:7.2f} %{row['mean_gap']:12.4g}{row['largest_gap']:12.4g}"
            f"{row['missing_in_one']:9}  {row['example'] or ''}"
        )


for verb in (config, train, retune, pairs, rows, bundle, serve, recommend, rank, record, snapshot):
    cli.add_command(verb)


def main() -> None:
    """Run the command line."""
    # OpenMP's idle threads spin: beside another busy process a fit of one second took twenty. Passive ones sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    cli(prog_name="pairlift")
