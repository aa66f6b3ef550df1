"""What the loop was worth: the true reward of each arm by day, and what the arm lacks against the first."""

import csv
import io
from typing import Any

from ranker.metrics.interval import finite, ratio_interval, relative_uplift
from ranker.studies.loop.bounds import Bound
from ranker.studies.loop.run import FIRST_DAY, Lived
from ranker.studies.table import drawn, interval

#: of the report
FORMAT = 1


def loop_report(name: str, plugin: str, lived: dict[str, Lived], bounds: dict[str, Bound]) -> dict[str, Any]:
    """Return the report, as its JSON has it. lived: by arm, the first has all. bounds: what they lie between."""
    first = next(iter(lived.values()))
    compared = [of.compared for of in lived.values()]
    found: dict[str, Any] = finite(
        {
            "format": FORMAT,
            "study": "loop",
            "asks": "what is each part of the loop worth to the users?",
            "data": name,
            "plugin": plugin,
            "first_day": FIRST_DAY,
            "days": len(first.reward),
            "users": int((first.lists.sum(axis=0) > 0).sum()),
            "lists": int(first.lists.sum()),
            "arms": [_arm(arm, of, first) for arm, of in lived.items()],
            "bounds": [_worth(bound, of, first) for bound, of in bounds.items()],
            "requests_compared": sum(of.requests for of in compared),
            "values_compared": sum(of.values for of in compared),
            "values_differing": {arm: of.compared.differing for arm, of in lived.items() if of.compared.differing},
            "scores_compared": sum(of.scores for of in compared),
            "scores_differing": sum(of.other_scores for of in compared),
            "lists_degraded": sum(of.degraded for of in lived.values()),
            "events_lost": sum(of.sent - of.recorded - of.duplicates for of in lived.values()),
        }
    )
    return found


def _arm(name: str, of: Lived, first: Lived) -> dict[str, Any]:
    return _worth(name, of, first) | {
        "events": of.sent,
        "recorded": of.recorded,
        "known_again": of.duplicates,
        "refused_deployments": of.refused,
        "requests_compared": of.compared.requests,
    }


def _worth(name: str, of: Lived | Bound, first: Lived) -> dict[str, Any]:
    whole, lists = of.reward.sum(axis=0), of.lists.sum(axis=0)
    mean, low, high = ratio_interval(whole, lists)
    days = [ratio_interval(reward, n) for reward, n in zip(of.reward, of.lists, strict=True)]
    # All have as many lists of the same users, so the ratio of the rewards is that of the means.
    over = None if of is first else relative_uplift(first.reward.sum(axis=0)[None, None], whole[None, None]).reported()
    return {
        "arm": name,
        "reward": mean,
        "ci95": [low, high],
        "over_first": over,
        "by_day": [{"reward": day[0], "ci95": list(day[1:])} for day in days],
    }


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    days = [str(report["first_day"] + k) for k in range(report["days"])]
    lines = [
        f"# loop: {report['asks']}",
        "",
        f"{report['data']}: {report['users']:,} simulated users, {report['lists']:,} lists of {report['days']} days "
        "in each arm, served and recorded over gRPC; each day begins with a training of what was recorded before it. "
        "The reward is the expected grade (0 to 2) of a place of a list, by the world's truth. `Recommend` orders by "
        "what is wanted of all; the last arm asks it for a long list, and `Rank` to order that. Below the arms, what "
        "the same users had from other lists: the best for each request by the truth, those that the world's own "
        "policy shows, and random ones; but for that policy's, all are of items that the user has not met.",
        "",
        f"| arm | reward [95 %] | against the first, by user [95 %] | {' | '.join(f'day {day}' for day in days)} |",
        f"| --- | --- | --- |{' --- |' * len(days)}",
        *(_row(arm) for arm in [*report["arms"], *report["bounds"]]),
        "",
        f"Events that were acknowledged and lost: {report['events_lost']}, with a kill -9 in the middle day of each "
        f"arm. Deployments that a server refused: {sum(len(arm['refused_deployments']) for arm in report['arms'])}.",
        _agreed(report),
        f"`{report['command']}`, {report['date']}, {report['minutes']:.1f} minutes in this run.",
    ]
    return "\n".join(lines) + "\n"


def _agreed(report: dict[str, Any]) -> str:
    """Return how what was served compares with the record."""
    said = (
        f"Computed again from the log: {report['values_compared']:,} values of {report['requests_compared']:,} "
        f"requests, {_odd(report)}; {report['scores_compared']:,} scores of their items, "
        f"{report['scores_differing']:,} of which differ."
    )
    if none := [arm["arm"] for arm in report["arms"] if not arm["requests_compared"]]:
        said += f" Nothing could be compared of: {', '.join(none)}."
    if late := report["lists_degraded"]:
        said += f" A source or plugin was too late for {late:,} of all lists."
    return said


def _odd(report: dict[str, Any]) -> str:
    odd = [f"{name} {100 * share:.2g} %" for of in report["values_differing"].values() for name, share in of.items()]
    return f"of which some differ ({', '.join(dict.fromkeys(odd))})" if odd else "all equal up to rounding"


def _row(arm: dict[str, Any]) -> str:
    over = arm["over_first"]
    low, high = arm["ci95"]
    against = "" if over is None else interval(over)
    days = " | ".join(f"{day['reward']:.3f}" for day in arm["by_day"])
    return f"| {arm['arm']} | {arm['reward']:.3f} [{low:.3f}, {high:.3f}] | {against} | {days} |"


def as_svg(report: dict[str, Any]) -> str:
    """Return a chart of what each arm is worth against the first."""
    arms = [{"arm": arm["arm"], **arm["over_first"]} for arm in report["arms"] if arm["over_first"]]
    return drawn(f"{report['data']}, loop: true reward against all of it, 95 %", arms)


def as_csv(report: dict[str, Any]) -> str:
    """Return a line for each arm and day."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "day", "reward", "low", "high"])
    for arm in [*report["arms"], *report["bounds"]]:
        for k, day in enumerate(arm["by_day"]):
            writer.writerow([arm["arm"], report["first_day"] + k, day["reward"], *day["ci95"]])
    return text.getvalue()
