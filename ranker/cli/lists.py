"""The command `lists`, which measures whole lists; `ranker.cli.main` adds it to the group."""

from pathlib import Path

import click

from features.schema import GIB
from ranker.cli.train import CONFIG, Together, memory_option, needs_training


@click.command(cls=Together, short_help="Measure whole lists of Recommend on a held-out future.")
@CONFIG
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write lists.json into.")
@click.option("--users", type=click.IntRange(1), metavar="N", help="At most so many users, in place of [lists] users.")
@memory_option("What counting the items that are taken together may take, as in `pairlift train`.")
def lists(config: Path, out: Path | None, users: int | None, memory: float) -> None:
    """Ask Recommend for the lists of users of the test, and say what they are worth, beside simpler lists.

    Trains (or resumes) the stages of CONFIG as `pairlift train` does; what is fitted is of before t2. Each user with an
    event of a wanted grade ([lists] wanted) in the test, with an item that is new to them, is asked about by the
    server's own path: as of their first request in the test, and as of t2. Printed, for users with and without
    history too:

    \b
    recall@k    hits among the first k / min(k, wanted items)
    ndcg@k      the same, places discounted by 1 / log2(place + 1)
    mrr         1 / place of the first hit
    coverage    share of the items known before t2 that are in the first 10 of some list
    novelty     bits: -log2 of the share of users who had an event with an item, of the first 10

    Beside Recommend stand the most popular items as of the request (with the half-life that was best on the validation
    slice), ALS of 64 factors (with the best alpha; the popular items for users without a vector), and each source alone
    (`source popular` has the half-life of the TOML); and the best order of what all sources propose: what it lacks, no
    ranker can give. A difference has its 95 % interval about new users, paired by user; last comes each
    user's mean of the two times.

    Deadlines do not count here, and items that the user has seen are left out of all lists. A held-out future favours
    what the logging system showed: a list of other good items is worth more than these figures say.
    """
    needs_training()
    import json

    from features.files import check_folder, made_folder, written
    from ranker.config import load_config
    from ranker.lists.table import as_table
    from ranker.training.measured import measure_lists

    loaded = load_config(config)
    if out is not None:
        check_folder(out)
    report = measure_lists(loaded, users, int(memory * GIB))
    click.echo(as_table(report))
    if out is not None:
        made_folder(out)
        with written(out / "lists.json") as partial:
            partial.write_text(json.dumps(report, indent=1, allow_nan=False))
        click.echo(f"\nwrote {out / 'lists.json'}")
