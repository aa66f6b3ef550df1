"""The command `offpolicy`, which estimates what other lists would have got; `ranker.cli.main` adds it to the group."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from features.schema import GIB
from ranker.cli.lists import write_report
from ranker.cli.report import made_by
from ranker.cli.train import CONFIG, memory_option, needs_training


@click.command(short_help="Estimate what other bundles' lists would have got.")
@CONFIG
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of report.html and offpolicy.json.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, in place of the table.")
@click.option("--places", type=click.IntRange(1), metavar="N", help="Only the first N places of each list.")
@click.option("--explored", is_flag=True, help="Estimate what a BUNDLE's own draws would get, not its best order.")
@click.option(
    "--propensity",
    "given",
    type=click.Choice(["above", "place"]),
    default="above",
    show_default=True,
    help="What [events] propensity is the chance of: an item given those above it, as Pairlift's servers have it; or "
    "an item at its place, whatever else was shown.",
)
@memory_option("What counting the items that are taken together may take, as in `pairlift train`.")
def offpolicy(
    config: Path,
    bundles: tuple[Path, ...],
    out: Path | None,
    as_json: bool,
    places: int | None,
    explored: bool,
    given: Any,
    memory: float,
) -> None:
    """Estimate, from a log whose lists were drawn with known chances, what the lists of each BUNDLE would have got.

    CONFIG maps such a log: [events] request_id, position and propensity, which [exploration] gave (NULL in lists that
    were not drawn). Read are the lists of the test, [t2, t3) of [split]. Each request is answered again by the BUNDLE,
    as of its time, with nothing fitted on what came later; so the chance is known with which its own policy would have
    shown each logged item. The value of a list is how many of its items were wanted ([lists] wanted).

    \b
    item_position  weighs an item by its own chances at its place (--propensity place)
    cascade        by the product down to it: what is wanted depends on what stands above
    list           by the product over the list: on all of it
    ips, snips     inverse propensity scores, and the same normalised at each place
    dr             doubly robust: a model of the reward takes noise away, and adds no bias

    Beside each stand its 95 % interval about new users, how much more it is than what was logged, how many lists the
    weighted ones are worth, and the largest weight. What the bundle would show and the log never does, up to a tenth,
    counts in the intervals as anything from nothing to all of it wanted. It says "not known", and why, where the log
    cannot tell: no overlap, too few lists, other propensities. Long lists of a bundle's best order seldom match a
    draw: --places 3 asks less.

    \b
    Examples:
      pairlift offpolicy mine/pairlift.toml mine/bundle mine/candidate
      pairlift offpolicy mine/pairlift.toml mine/candidate --places 3 --out mine/report
    """
    needs_training()
    from features.files import check_folder
    from ranker.config import load_config
    from ranker.offpolicy.page import write_page
    from ranker.offpolicy.report import offpolicy_report
    from ranker.offpolicy.table import as_table

    loaded = load_config(config)
    if out is not None:
        check_folder(out)
    report: dict[str, Any] = {"made": made_by(shlex.join(["pairlift", *sys.argv[1:]]))}
    report |= offpolicy_report(loaded, bundles, given=given, places=places, explored=explored, memory=int(memory * GIB))
    click.echo(json.dumps(report, indent=1, allow_nan=False) if as_json else as_table(report))
    if out is not None:
        for path in (write_report(report, out, "offpolicy.json"), write_page(report, out)):
            click.echo(f"wrote {path}", err=as_json)
