"""The commands `init` and `validate`, with which a log is set up; `ranker.cli.main` adds them to the group."""

from pathlib import Path

import click

from features.errors import PairliftError
from ranker.cli.train import CONFIG


@click.command(short_help="Write a commented pairlift.toml to start from.")
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


@click.command(short_help="Check the file and its data before training.")
@CONFIG
def validate(config: Path) -> None:
    """Check the file and the data of CONFIG before anything is trained.

    Prints rows, users, items and the time span, events per grade, pairs per grade pair and per period of the
    split, how many groups each boundary of the split cuts in two or leaves outside, and what looks wrong.
    """
    from ranker.config import load_config
    from ranker.training.validate import validation_text

    click.echo(validation_text(load_config(config)))
