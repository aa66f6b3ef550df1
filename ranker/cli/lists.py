"""The commands `lists` and `sources`, which measure what is proposed; `ranker.cli.main` adds them to the group."""

import json
from pathlib import Path
from typing import Any

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
    event of a wanted grade ([lists] wanted) in the test, with an item that is new to them (with any, where [sources]
    exclude_seen = false), is asked about by the server's own path: as of their first request in the test, and as of t2.
    Printed, for users with and without history too:

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

    Deadlines do not count here. Lists are as they are served: items that the user has met are left out of all of them,
    unless [sources] exclude_seen = false. A held-out future favours what the logging system showed: a list of other
    good items is worth more than these figures say.
    """
    needs_training()
    from features.files import check_folder
    from ranker.config import load_config
    from ranker.lists.table import as_table
    from ranker.training.measured import measure_lists

    loaded = load_config(config)
    if out is not None:
        check_folder(out)
    report = measure_lists(loaded, users, int(memory * GIB))
    click.echo(as_table(report))
    if out is not None:
        click.echo(f"\nwrote {write_report(report, out, 'lists.json')}")


@click.command(cls=Together, short_help="Measure what each candidate source finds.")
@CONFIG
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write sources.json into.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, in place of the table.")
@click.option("--users", type=click.IntRange(1), metavar="N", help="At most so many users, in place of [lists] users.")
@memory_option("What counting the items that are taken together may take, as in `pairlift train`.")
def sources(config: Path, out: Path | None, as_json: bool, users: int | None, memory: float) -> None:
    """Say how much of what users came to want each source of [sources] finds, alone and beside the others.

    Fits (or resumes) the plugins of [ranker], and each source on what is before t2; no ranker is trained. Each user
    with an event of a wanted grade ([lists] wanted) in the test, with an item that is new to them (with any, where
    [sources] exclude_seen = false), is asked about as of their first request in it. Printed for all users; for known
    and for new ones, with and without an event before; and for new items, which had no event before t2:

    \b
    alone    recall@k of the first k items of the source: hits / min(k, wanted items)
    blend    of the k items whose places in all lists are worth most together, by what was wanted before t2; in turns
             by their quotas where that was not shown to be better, or [sources] leaves no quota open
    adds     what the blend has more than that of the other sources alone, at the largest k
    ms       median CPU time of one request as of now; of the blend: all sources, merge and filters

    Intervals of 95 % are about new users. A source that is not for a request's surface has nothing there. Behind these
    stands what lies within the quotas, or within the shares that were learned where [sources] leaves them open, which
    is what Recommend's ranker gets; and last the shares. Items that the user has met are left out, unless [sources]
    exclude_seen = false.

    \b
    Examples:
      pairlift sources mine/pairlift.toml
      pairlift sources mine/pairlift.toml --json --out mine/report
    """
    needs_training()
    from features.files import check_folder
    from ranker.config import load_config
    from ranker.lists.table import as_sources
    from ranker.training.measured import measure_sources

    loaded = load_config(config)
    if out is not None:
        check_folder(out)
    report = measure_sources(loaded, users, int(memory * GIB))
    click.echo(json.dumps(report, indent=1, allow_nan=False) if as_json else as_sources(report))
    if out is not None:
        click.echo(f"\nwrote {write_report(report, out, 'sources.json')}", err=as_json)


def write_report(report: dict[str, Any], out: Path, name: str) -> Path:
    """Write a report as JSON into a folder, which is made where there is none; return its path."""
    from features.files import made_folder, written

    made_folder(out)
    with written(out / name) as partial:
        partial.write_text(json.dumps(report, indent=1, allow_nan=False))
    return out / name
