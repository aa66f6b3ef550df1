"""The command `train`; `ranker.cli` adds it to the group."""

from pathlib import Path

import click

CONFIG = click.argument("config", type=click.Path(path_type=Path))


@click.command()
@CONFIG
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the bundle; an old one is replaced."
)
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="A folder that `pairlift serve --feature-log` wrote: its values are learned from in place of recomputed ones.",
)
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    help="Pairs to learn from in place of made ones: a file as `pairlift pairs --slice train` writes it. The cap and "
    "the corrections of [pairing] do not touch them; validation and test keep the pairs that are made.",
)
def train(config: Path, out: Path, features: Path | None, pairs: Path | None) -> None:
    """Train the ranker of CONFIG, from the import to a bundle that `pairlift serve` loads.

    Stages whose inputs are unchanged are resumed from CONFIG's work folder. The bundle holds exactly the towers
    and the booster whose PairAccuracy on the test is printed.
    """
    from ranker.config import load_config
    from ranker.train import train as run

    measured = run(load_config(config), out, features, pairs)
    click.echo(f"test PairAccuracy {measured['pair_accuracy']:.4f}, {measured['trees']} trees; bundle in {out}")
