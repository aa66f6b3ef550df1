"""The commands that change which bundles a server answers with, and what they computed ahead.

`ranker.cli.main` adds them to the group.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from features.errors import PairliftError
from features.pairing.split import iso
from features.progress import progress_bar
from features.schema import GIB
from ranker.cli.target import Target, asks_server

if TYPE_CHECKING:
    from ranker.administrator import Deployed

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")


@click.command(short_help="Let a running server answer with another bundle.")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@asks_server
@click.option("--arm", default="", metavar="NAME", help="Answer only a share of the users: an arm of an experiment.")
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the users of --arm, or of the requests that --shadow scores (all of them where it is left out).",
)
@click.option("--experiment", default="", metavar="NAME", help="Who is in an arm follows from this name and the user.")
@click.option("--shadow", is_flag=True, help="Score a share of the requests aside, and drop the answers.")
@click.option("--force", is_flag=True, help="Take a bundle that is slower, or that scores or reads otherwise.")
@AS_JSON
def deploy(*, bundle: Path | None, server: Target, share: float | None, as_json: bool, **wanted: Any) -> None:
    """Let the server at ADDRESS answer with BUNDLE, without a restart and without a failed request.

    BUNDLE is a folder on the server's machine. Where the server does not see it there and was started with --bundles,
    it is uploaded from here: only files that the server lacks.

    The server loads the bundle beside the one that answers, verifies its hashes, warms it, and scores the latest
    requests by both. It refuses a bundle that is damaged, whose ids or values are of another kind, or that fails; and,
    unless --force, one that is too slow, whose scores are not finite, all the same, or in another order, and one that
    ignores what callers may send. Then the one before goes on. What is taken answers the requests that begin from then
    on; `pairlift rollback` brings the one before back at once.

    With --arm, the bundle answers a share of the users alone. Who is in an arm follows from a hash of user and
    experiment (GrowthBook's), and an arm that grows takes users of the control alone. Without BUNDLE, the share of an
    arm changes. `pairlift promote` gives an arm's bundle to all, `pairlift drop` ends an arm.

    With --shadow, it answers nobody: it scores a share of the requests aside, and `pairlift deployed` tells how its
    answers compare.

    \b
    Examples:
      pairlift deploy work/bundle --to 127.0.0.1:50051
      pairlift deploy work/new --to 127.0.0.1:50051 --shadow --share 0.2
      pairlift deploy work/new --to 127.0.0.1:50051 --arm new --share 0.1 --experiment spring
      pairlift deploy --to 127.0.0.1:50051 --arm new --share 0.5      # more users for it
      pairlift promote new --to 127.0.0.1:50051
    """
    from ranker.administrator import Admin

    if bundle is None and not (wanted["arm"] and share):
        raise PairliftError("BUNDLE was expected; without it, --arm NAME and --share change the share of an arm")
    with server.client() as client, _Bar("uploading", "B") as bar:
        found = Admin(client).deploy(
            bundle, lambda step: click.echo(step, err=True), bar.done, share=share or 0.0, **wanted
        )
    _show(found, as_json)


class _Bar:
    """A bar of what a server is told or tells, which appears with the first of it."""

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit = what, unit
        self._bar: Any = None

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def done(self, done: int, total: int) -> None:
        """Show how much of all is done; another whole begins where less is done than before."""
        if self._bar is None:
            self._bar = progress_bar(total=total, desc=self._what, unit=self._unit, unit_scale=True)
        if done < self._bar.n:
            self._bar.reset(total)
        self._bar.update(done - self._bar.n)


@click.command(short_help="Let a server answer with the bundle before.")
@asks_server
@AS_JSON
def rollback(server: Target, as_json: bool) -> None:
    """Let the server answer with the bundle that was active before the last `pairlift deploy`, at once.

    The server keeps it warm, its state up to date. The two change places, so a second rollback undoes the first. Arms
    and the shadow stay as they are.

    \b
    Examples:
      pairlift rollback --to 127.0.0.1:50051
    """
    _ask(server, lambda admin: admin.rollback(), as_json)


@click.command(short_help="Let an arm's bundle answer all users.")
@click.argument("arm")
@asks_server
@AS_JSON
def promote(arm: str, server: Target, as_json: bool) -> None:
    """Let the bundle of ARM answer all users, and end the arm. `pairlift rollback` brings the bundle before back.

    \b
    Examples:
      pairlift promote new --to 127.0.0.1:50051
    """
    _ask(server, lambda admin: admin.promote(arm), as_json)


@click.command(short_help="End an arm of an experiment, or the shadow.")
@click.argument("arm", required=False)
@click.option("--shadow", is_flag=True, help="End the shadow.")
@asks_server
@AS_JSON
def drop(arm: str | None, shadow: bool, server: Target, as_json: bool) -> None:
    """End ARM, whose users go back to the active bundle, or with --shadow the shadow.

    \b
    Examples:
      pairlift drop new --to 127.0.0.1:50051
      pairlift drop --shadow
    """
    if shadow == (arm is not None):
        raise PairliftError("either the name of an arm or --shadow was expected")
    _ask(server, lambda admin: admin.drop(arm or ""), as_json)


@click.command(short_help="Show which bundles a server answers with.")
@asks_server
@AS_JSON
def deployed(server: Target, as_json: bool) -> None:
    """Show the bundles of a server: the active one, the one that a rollback brings back, arms, and the shadow.

    Of the shadow it shows how its answers compare with those that were given, over the latest 4,096 requests: median
    rank correlation (Spearman) of the items that both answered, share of the first ten that both have, means and
    deviations of the scores and their stability index (PSI, under 0.1 is said to be stable), and median and 99th
    percentile of the time for an answer.

    \b
    Examples:
      pairlift deployed --to 127.0.0.1:50051
      pairlift deployed --json | jq '.bundles[] | select(.role == "shadow") | .comparison'
    """
    _ask(server, lambda admin: admin.deployed(), as_json)


@click.command(short_help="Have a server compute users' states ahead.")
@asks_server
@click.option(
    "--users",
    type=click.IntRange(1),
    help="At most so many users, those with the latest events; default: as many as --memory has room for.",
)
@click.option(
    "--memory",
    type=click.FloatRange(0, 1024, min_open=True),
    default=0.5,
    show_default=True,
    metavar="GIB",
    help="What the states of one plugin may take; twice that while they take the place of earlier ones.",
)
@AS_JSON
def refresh(*, server: Target, users: int | None, memory: float, as_json: bool) -> None:
    """Have the server compute ahead what its plugins make of users' histories, so that requests need not.

    Of the towers it is each user's state (532 bytes at width 64), with which a request need not ask the transformer; of
    LiMAML the meta embedding. A request uses a state where its own would be the same: until the user's next event, and
    with lag = "daily" in the plugin's table until the midnight after that event. Else it computes its own, as ever. Run
    this once a day, a little after 00:00 of [time] zone, or more often: states that are still right are kept, and the
    others are computed anew.

    The server goes on answering. It computes on a thread of low priority that rests three quarters of its time, for the
    bundles that answer; what is deployed later has no states until the next refresh. A caller who goes away does not
    end it. With `serve --processes`, the other processes do the same, each for itself, and this command waits for the
    one that took its call.

    \b
    Examples:
      pairlift refresh --to 127.0.0.1:50051
      pairlift refresh --to 127.0.0.1:50051 --users 100000 --memory 0.2 --json | jq '.plugins[].users'
    """
    from ranker.administrator import Admin

    with server.client() as client, _Bar("users", "user") as bar:
        found = Admin(client).refresh(users or 0, int(memory * GIB), bar.done)
    if as_json:
        click.echo(json.dumps({"plugins": [asdict(one) for one in found]}))
        return
    for one in found:
        click.echo(
            f"{one.plugin} of bundle {one.bundle_version}: states of {one.users:,} users as of {iso(one.as_of)}, "
            f"{one.computed:,} of them computed now, {one.bytes / 1e6:,.1f} MB"
        )


def _ask(server: Target, call: Any, as_json: bool) -> None:
    from ranker.administrator import Admin

    with server.client() as client:
        _show(call(Admin(client)), as_json)


def _show(found: "Deployed", as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    for one in found.bundles:
        words = f"arm {one.arm}" if one.arm else one.role
        share = f"  {one.share:.2%} of the {'users' if one.arm else 'requests'}" if one.share else ""
        click.echo(f"{words:16}{one.version}  events up to {iso(one.snapshot_time)}  {one.folder}{share}")
        for line in _lines(one.comparison):
            click.echo(f"{'':16}{line}")
    if found.experiment:
        click.echo(f"experiment {found.experiment}: all other users are in its arm 'control'")


def _lines(comparison: dict[str, float | None] | None) -> list[str]:
    if not comparison:
        return []
    known = {name: "-" if value is None else f"{value:.4g}" for name, value in comparison.items()}
    return [
        "{requests} requests compared, {errors} failed, {dropped} dropped while it was busy".format(**known),
        "rank correlation {rank_correlation}, overlap@10 {overlap_at_10}, not finite {not_finite}".format(**known),
        "scores {mean} ± {std}, active {mean_active} ± {std_active}, PSI {psi}".format(**known),
        "p50 {p50} ms, p99 {p99}; active {p50_active}, {p99_active}".format(**known),
    ]
