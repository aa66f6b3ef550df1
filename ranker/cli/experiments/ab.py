"""The command `ab`, which reads an online experiment's log; `ranker.cli.main` adds it to the group."""

import json
import shlex
import sys
from pathlib import Path

import click

from ranker.cli.lists import write_report
from ranker.cli.report import made_by


@click.command(short_help="What did each arm of an online experiment change?")
@click.argument("source", metavar="LOG")
@click.option("--metric", "means", multiple=True, metavar="NAME=SQL", help="A mean over users of a SQL aggregate.")
@click.option("--ratio", "ratios", multiple=True, metavar="NAME=NUM/DEN", help="A ratio of two sums over users.")
@click.option("--primary", default="", metavar="NAME", help="The metric that decides; left out: the first one.")
@click.option("--user", default="user_id", show_default=True, metavar="SQL", help="The column of the user.")
@click.option("--arm", default="arm", show_default=True, metavar="SQL", help="The column of the arm; NULL: of none.")
@click.option("--time", default="ts", show_default=True, metavar="SQL", help='The column of the time; "": it has none.')
@click.option("--control", default="", metavar="ARM", help="Compared with; left out: the arm `control`.")
@click.option("--share", "shares", multiple=True, metavar="ARM=SHARE", help="Planned share of users; left out: equal.")
@click.option("--start", metavar="TIME", help="Of the experiment, UTC; left out: the first row that has an arm.")
@click.option("--end", metavar="TIME", help="Rows from then on are left out.")
@click.option("--looks", type=click.IntRange(1, 100), default=10, show_default=True, help="Shown, equal parts of time.")
@click.option(
    "--tight-at",
    type=click.IntRange(100),
    default=10_000,
    show_default=True,
    metavar="USERS",
    help="Users at which intervals for every look are narrowest: plan it beforehand, and leave it so.",
)
@click.option("--final", is_flag=True, help="This is the planned end, and nobody looked before: one look's interval.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of report.html and ab.json.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, in place of the table.")
def ab(
    source: str,
    means: tuple[str, ...],
    ratios: tuple[str, ...],
    primary: str,
    user: str,
    arm: str,
    time: str,
    control: str,
    shares: tuple[str, ...],
    start: str | None,
    end: str | None,
    looks: int,
    tight_at: int,
    final: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Say what each arm of an experiment changed, and whether its log may be trusted at all.

    LOG is a Parquet file, a folder of them such as the events that a server has recorded (mine/log/events), or what
    else DuckDB reads: a CSV, a glob, "read_parquet(['a.parquet', 'b.parquet'])". A row is of a user, an arm and a time.

    A metric is a SQL aggregate over the rows of a user, NULL counting as 0: --metric is its mean over users, each user
    weighing one; --ratio the sum of one over that of another, such as long views per impression. One metric decides:
    --primary, or the first --metric, or the first --ratio.

    \b
    split    chi-square of the users against the planned shares; p < 0.001: nothing below may be trusted
    uplift   relative to the control, with 95 %: ratios by the delta method, users being what is drawn
    CUPED    takes away what the users' rows from before --start tell
             (not where rows from before --start have an arm); says by how much the variance fell
    looks    the interval that decides holds at every look at once (an asymptotic confidence sequence), so look when
             you like and stop when you like; --final decides by the narrower one of a single planned look
    Holm     where several arms are compared with the control

    Nothing is known of an arm of which fewer than 30 users have a value that is not 0, or that is too small for how
    skewed values are: means of such users lie too often on one side. A user in two arms is left out, and counted. Exit
    status 1 where the split is not the planned one.

    \b
    Examples:
      pairlift ab mine/log/events --metric "clicks=sum(click)" --share control=0.9 --share new=0.1
      pairlift ab log.parquet --ratio "long=sum(long_view)/count(*)" --control a --out mine/ab
    """
    from features.files import check_folder
    from ranker.ab.plan import Plan, led_by, metric_of, ratio_of, shares_of, time_of
    from ranker.ab.report import ab_report
    from ranker.ab.result import JSON, AbReport
    from ranker.ab.table import as_table

    plan = Plan(
        metrics=led_by(primary, [*map(metric_of, means), *map(ratio_of, ratios)]),
        user=user,
        arm=arm,
        time=time,
        control=control,
        shares=shares_of(shares),
        start=time_of(start, "--start"),
        end=time_of(end, "--end"),
        looks=looks,
        tight_at=tight_at,
        final=final,
    )
    if out is not None:
        check_folder(out)
    report = ab_report(source, plan) | {"made": made_by(shlex.join(["pairlift", *sys.argv[1:]]))}
    click.echo(json.dumps(report, indent=1, allow_nan=False) if as_json else as_table(report))
    if out is not None:
        for path in (write_report(report, out, JSON), AbReport(report).write_page(out)):
            click.echo(f"wrote {path}", err=as_json)
    if report["split"]["failed"]:
        sys.exit(1)
