"""The commands `uplift`, `study`, `world` and `drift`, which compare; `ranker.cli.main` adds them to the group."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ranker.cli.lists import write_report
from ranker.cli.train import CONFIG, Together, needs_training

if TYPE_CHECKING:
    from ranker.config import Config
    from ranker.uplift.result import UpliftReport

#: the study of a whole service
LOOP = "loop"
#: of `study`: `ranker.studies.variants.NAMES`, which would be slow to import for every command
STUDIES = (
    *("sizes", "encoders", "history", "pretraining", "losses", "finetuning"),
    *("lag", "period", "warm", "rankers", "plugins", "beside", "unified", LOOP),
)


@click.command(cls=Together, short_help="Measure the relative uplift of plugins; compare reports.")
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="NAME",
    help="A [plugins.NAME] of the TOML: is it worth serving? Repeatable. With days of --compare: whose reports.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of report.html, uplift.json and Parquet.")
@click.option(
    "--compare",
    "both",
    nargs=2,
    metavar="OLD NEW",
    type=click.Path(path_type=Path),
    help="Two reports (folders, uplift.json, or days such as 2026-11-20 with --list) or two bundles: what changed, and "
    "what moved. Without CONFIG.",
)
@click.option(
    "--list",
    "past",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write DIR/index.html of all reports in DIR; with --compare, where days look for reports. Without CONFIG.",
)
def uplift(
    config: Path | None, plugins: tuple[str, ...], out: Path | None, both: tuple[Path, Path] | None, past: Path | None
) -> None:
    """Train rankers with and without a plugin's columns and report the relative uplift in PairAccuracy.

    Same rows, pairs, weights, parameters and seeds for both arms; the plugin is fitted [uplift] fits times, and each
    fit meets each seed. Prints a table and writes OUT/report.html, a page that needs no network, with OUT/uplift.json
    and Parquet of what its figures show: the verdict, what to doubt and what the plugin costs (milliseconds in a
    request, memory in a process that serves, time of a fit, size in a bundle); the uplift with its 95 % interval (about
    new users, fits and seeds), what each user weighing one, ties wrong, and knowing which values are missing give,
    shuffled columns, slices, the gain's shares and the test's losses of heads that only training has.

    Beside it stands what the plugin brings to the lists of Recommend, in recall@10 and NDCG@10 of the test's users, for
    the first three seeds; a plugin that leaks has no such figures.

    Two controls look for leaks: values of sampled groups from histories cut at their as_of, and values of a fit on
    the log cut at t1. Exit status 1 where one is found.

    With several --plugin the page says of each what it brings alone, of all what they bring together, and of each what
    it adds to the rest, verdicts corrected by Holm over the plugins; the whole report of each lies in OUT/NAME.

    \b
    Examples:
      pairlift uplift mine/pairlift.toml --plugin two_tower --out mine/report
      pairlift uplift mine/pairlift.toml --plugin two_tower --plugin als --out mine/both
      pairlift uplift --compare mine/october mine/november --out mine/moved
      pairlift uplift --compare 2026-10-31 2026-11-30 --list mine --plugin two_tower --out mine/moved
      pairlift uplift --list mine

    --compare says first what changed in data, settings and versions, then what moved and whether the intervals allow to
    say so: user by user where both reports kept users.parquet and share users. It prints that, and with --out writes
    OUT/report.html and OUT/compare.json. A day stands for the last report below --list DIR that was made by its end
    (UTC), of the --plugin where there are several; which one that is, is said first. Of two bundles it says what
    changed in data, split, settings (the keys of their TOML), columns and code, then the figures of both, each of the
    test of its own days. --list prints a line for each report, and writes a page with their intervals; one of several
    plugins stands for those in its folder.
    """
    asked = [word for word, of in (("CONFIG", config), ("--compare", both), ("--list", past)) if of]
    if len(asked) != 1 and (config or not both):
        found = " and ".join(asked) or "none"
        raise click.UsageError(f"one of CONFIG, --compare OLD NEW and --list DIR was expected, found {found}")
    if config is None and plugins and len(asked) == 1:
        raise click.UsageError(f"--plugin goes with CONFIG, or with days of --compare, not with {asked[0]}")
    if both:
        _compare(*(both if past is None else _of_days(both, past, plugins)), out)
    elif past:
        _list(past, out)
    elif config:
        _measure(config, plugins, out)


def _measure(config: Path, plugins: tuple[str, ...], out: Path | None) -> None:
    """Measure one plugin, or several at once."""
    if not plugins or out is None:
        raise click.UsageError(f"Missing option '{'--out' if plugins else '--plugin'}'.")
    needs_training()
    from features.files import check_folder
    from ranker.config import load_config

    loaded = load_config(config)
    check_folder(out)
    named = [word for name in plugins for word in ("--plugin", name)]
    made = made_by(shlex.join(["pairlift", "uplift", str(config), *named, "--out", str(out)]))
    text, paths, leaks = (_one if len(plugins) == 1 else _several)(loaded, plugins, out, made)
    click.echo(text)
    click.echo("\n" + "\n".join(f"wrote {path}" for path in paths))
    if leaks:
        sys.exit(1)


def _compare(old: Path, new: Path, out: Path | None) -> None:
    """Say what changed between two reports or bundles, and what moved."""
    needs_training()
    from features.files import check_folder
    from ranker.export import two_bundles
    from ranker.uplift.past import compared
    from ranker.uplift.past.compare import compare
    from ranker.uplift.past.dated import is_day
    from ranker.uplift.result import UpliftReport

    if out is not None:
        check_folder(out)
    if day := next(filter(is_day, (old, new)), None):
        raise click.UsageError(f"{day} is a day: with --list DIR, of reports, it stands for the last one made by then")
    bundles = two_bundles.are_bundles(old, new)
    found = (
        two_bundles.compare_bundles(old, new) if bundles else compare(UpliftReport.read(old), UpliftReport.read(new))
    )
    written = two_bundles if bundles else compared
    click.echo(written.as_lines(found))
    if out is not None:
        paths = [write_report(found, out, "compare.json"), written.write_page(found, out)]
        click.echo("\n" + "\n".join(f"wrote {path}" for path in paths))


def _of_days(both: tuple[Path, Path], folder: Path, plugins: tuple[str, ...]) -> tuple[Path, Path]:
    """Return the reports that two words stand for, of which one is a day at least, and say which the days took."""
    needs_training()
    from ranker.uplift.past.dated import is_day, reports_of

    if len(plugins) > 1:
        raise click.UsageError(f"one --plugin of two reports was expected, found {' and '.join(plugins)}")
    if not any(map(is_day, both)):
        raise click.UsageError("with --list DIR a day such as 2026-11-20 was expected of --compare, found two paths")
    (old, new), lines = reports_of(both, folder, *plugins)
    click.echo("\n".join([*lines, ""]))
    return old, new


def _list(folder: Path, out: Path | None) -> None:
    """Write the index of past reports."""
    if out is not None:
        raise click.UsageError("--list writes index.html into its own folder, for it links to the reports: no --out")
    needs_training()
    from ranker.uplift.past.index import as_lines, index_of, write_index

    found = index_of(folder)
    click.echo(as_lines(found))
    click.echo(f"\nwrote {write_index(found, folder)}")


#: what is printed, the files that were written, and whether a plugin leaks
Written = tuple[str, list[Path], bool]


def _one(config: Config, plugins: Sequence[str], out: Path, made: dict[str, str]) -> Written:
    """Write the report of one plugin."""
    from ranker.uplift.result import UpliftReport
    from ranker.uplift.table import as_table

    report = UpliftReport.measured(config, plugins[0])
    return as_table(report.figures), _written(report, out, made), bool(report.figures["leaks"])


def _written(report: UpliftReport, out: Path, made: dict[str, str]) -> list[Path]:
    """Write a report, its page and its tables; return their paths."""
    report.figures["made"] = made
    return [write_report(report.figures, out, "uplift.json"), *report.write_page(out)]


def _several(config: Config, plugins: Sequence[str], out: Path, made: dict[str, str]) -> Written:
    """Write the report of several plugins, and in a folder of each its own."""
    from ranker.uplift.family.report import family_report
    from ranker.uplift.family.table import as_table, write_page

    found, reports = family_report(config, plugins)
    family = found | {"made": made}
    paths = [write_report(family, out, "uplift.json"), *write_page(family, out)]
    for name, report in reports.items():
        paths += _written(report, out / name, made)[:2]
    return as_table(family), paths, any(report.figures["leaks"] for report in reports.values())


def made_by(command: str) -> dict[str, str]:
    """Return how and when a report was made."""
    now = datetime.now(UTC)
    date, time = now.strftime("%Y-%m-%d"), now.strftime("%H:%M:%S UTC")
    return {"command": command, "date": date, "time": time, "version": version("pairlift")}


@click.command(cls=Together, short_help="Measure what sizes, history or training of a plugin bring.")
@CONFIG
@click.option("--study", "name", type=click.Choice(STUDIES), required=True, help="What is varied; see above.")
@click.option("--plugin", default="two_tower", show_default=True, metavar="NAME", help="The [plugins.NAME] to vary.")
@click.option(
    "--truth",
    type=click.Path(path_type=Path),
    help="truth.parquet of `pairlift world`: what the best order reaches stands beside the arms.",
)
@click.option("--days", type=click.IntRange(1, 30), default=5, show_default=True, help="Of the study loop.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the results.")
def study(config: Path, name: str, plugin: str, truth: Path | None, days: int, out: Path) -> None:
    """Vary one thing of a plugin and report each arm's relative uplift in PairAccuracy of the final ranker.

    \b
    sizes        layers and width; the slope over log10 of the network's parameters, without its embedding table
    encoders     a transformer, or the blocks of HSTU, over the history
    history      the events of a user that are read, 32 to 1,024; the slope over log10 of it
    pretraining  none, and as the TOML has it
    losses       pre-training as it is; next item alone; feedback alone; without logQ; next items of wanted events alone
    finetuning   none, on a quarter, on half and on all of the groups
    lag          vectors as of now, and those of the last midnight
    period       the latest quarter and half, and all, of the plugin's period; the slope over log10 of it
    warm         learned anew, or gone on from a fit whose period ended a day or a week earlier
    rankers      the booster and the [network], each with the plugin's columns as they are, and with whole vectors
    plugins      every plugin of the TOML, against the counters and attributes alone
    beside       the plugin alone, and with each other plugin of the TOML beside it
    unified      no plugin is varied: one model of all surfaces against one for each, and against one without the
                 columns of source items and queries; with [ranker] plugins, PairAccuracy by surface
    loop         a whole service for --days days: see below

    All arms share rows, pairs and booster seeds; each is fitted [uplift] fits times. Intervals are about new users,
    fits and seeds, and so is the gain over the first arm, paired by user. A fit that is finished is kept in CONFIG's
    work folder under a hash of data, settings and code: a study that was ended goes on. Writes OUT/STUDY.md, .csv, .svg
    and .json. A study looks for no leaks: `pairlift uplift` of a plugin does.

    Of networks with a next-item and a feedback head, each arm also has their mean losses on the events of the test, as
    pre-training left them.

    The study loop takes the TOML of a `pairlift world`, whose users can be asked what they make of a list. Each day
    begins with a training of what was recorded before it, which is deployed into a running server (its towers go on
    from those of the day before); then every request of the day is served, met and recorded over gRPC. Its arms: all
    of it; without [exploration]; without the plugin; without re-tuning ([booster] retune_minutes); never trained again.
    In the middle day the server is killed and started again. The report has the true reward by day: the expected grade
    of a place of a list, beside that of the best lists by the truth, of the world's own and of random ones. Values and
    scores that were served are computed again from the log, and what differs is said. What the TOML has not, it adds:
    a share of explored lists, half a minute of re-tuning. An arm that ended is kept.

    \b
    Example, on a generated log:
      pairlift world generated --scale 0.05
      pairlift study generated/pairlift.toml --study history --truth generated/truth.parquet --out results
    """
    needs_training()
    from ranker.config import load_config
    from ranker.studies.write import write_loop, write_study

    command = ["pairlift", "study", config, "--study", name, "--plugin", plugin, "--out", out]
    command += (["--truth", truth] if truth else []) + (["--days", days] if name == LOOP else [])
    said, loaded = shlex.join(map(str, command)), load_config(config)
    if name == LOOP:
        paths = write_loop(loaded, plugin, days, out, said)
    else:
        paths = write_study(loaded, name, plugin, truth, out, said)
    for path in paths:
        click.echo(f"wrote {path}")
    click.echo((out / f"{name}.md").read_text(), nl=False)


@click.command(short_help="Write a generated log whose truth is known.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--scale",
    type=click.FloatRange(0, 100, min_open=True),
    default=1.0,
    show_default=True,
    help="1: 20,000 users, 6,000 items, about 2.4 million events; of surfaces 5,000 items, 2 million events.",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option(
    "--kind",
    type=click.Choice(["sequences", "surfaces"]),
    default="sequences",
    show_default=True,
    help="surfaces: a feed, lists beside an item and lists for a query, for `pairlift study --study unified`.",
)
def world(folder: Path, scale: float, seed: int, kind: str) -> None:
    """Write a sequential log, and what is true of it, to an empty or new folder DIR: a seed always gives the same.

    Users have tastes that drift, lean to what they liked and change in the evening, and a mood that goes from topic to
    topic; items have attributes, are born and fade. A policy shows lists of 8, and users look for items themselves.
    Feedback is a share watched, a like and a count. DIR gets pairlift.toml, events, items and users as Parquet, and
    truth.parquet, for `pairlift study --truth`: the expected grade of each event as of its list, by its ts. No order
    has a higher expected PairAccuracy than the one by it; none reaches it, for tastes and moods are hidden.

    Of --kind surfaces nothing drifts: in the feed taste decides, beside an item what is like it, for a query its words
    and what was meant by them.
    """
    from ranker.studies.surfaces_world import make_surfaces_world
    from ranker.studies.world import make_world

    made = (make_world if kind == "sequences" else make_surfaces_world)(folder, scale, seed)
    click.echo(f"wrote {folder}: {', '.join(f'{n:,} {what}' for what, n in made.items())}")


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
