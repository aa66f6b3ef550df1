"""An experiment's report as text."""

from typing import Any

from ranker.ab.verdict import cuped, doubts, others, verdict, why
from ranker.uplift.said import KINDS, UNKNOWN, Figure, as_text, interval


def as_table(report: dict[str, Any]) -> str:
    """Return the verdict, the arms, every metric, the looks and the doubts."""
    period = f", {report['start']} to {report['end']}" if report["start"] else ""
    lines = [
        f"{report['data']}: {verdict(report)}",
        as_text(report, why(report)),
        f"({report['users']:,} users, {report['rows']['within']:,} rows{period})",
        "",
        *_arms(report),
        *(line for name in report["metrics"] for line in _metric(report, name)),
        *(as_text(report, of) for arm in others(report) if (of := cuped(report, arm))),
        *_looks(report),
        *(f"NOTE {doubt.name}: {as_text(report, doubt.sentence)}" for doubt in doubts(report)),
    ]
    return "\n".join(lines)


def _arms(report: dict[str, Any]) -> list[str]:
    lines = [f"{'arm':20}{'users':>12}{'share':>9}{'planned':>9}"]
    for arm, of in report["arms"].items():
        lines.append(f"{arm:20}{of['users']:12,}{100 * of['share']:8.2f}%{100 * of['planned']:8.2f}%")
    return [*lines, f"split as planned? chi-square p = {as_text(report, [Figure(('split', 'p'), 'number')])}", ""]


def _metric(report: dict[str, Any], name: str) -> list[str]:
    metric = report["metrics"][name]
    lines = [f"{name} = {metric['sql']} ({metric['kind']})"]
    for arm in metric["arms"]:
        value = Figure(("metrics", name, "arms", arm, "value"), "number")
        line = f"  {arm:18}{as_text(report, [value]):>12}"
        if arm != report["control"]:
            path = ("metrics", name, "against", arm)
            against = metric["against"][arm]
            line += f"   not known: {against['refused']}" if against["refused"] else _compared(report, path, against)
        lines.append(line)
    return [*lines, ""]


def _compared(report: dict[str, Any], path: tuple[str, ...], of: dict[str, Any]) -> str:
    other = "always95" if report["final"] else "fixed95"
    ends = ", ".join(UNKNOWN if end is None else KINDS["ends"](end) for end in of[other])
    level = "at every look" if report["final"] else "one look alone"
    p = f"p {of['p_holm']:.2g}" if of["p_holm"] is not None else "p -"
    return f"   {as_text(report, interval(*path))}   {p}   ({level} [{ends}])"


def _looks(report: dict[str, Any]) -> list[str]:
    if len(report["looks"]) < 2:
        return []
    lines = ["", f"{report['primary']} until"]
    for k, look in enumerate(report["looks"]):
        said = [as_text(report, interval("looks", k, "metrics", report["primary"], arm)) for arm in others(report)]
        lines.append(f"  {look['until']}  " + "   ".join(f"{one:28}" for one in said).rstrip())
    return [*lines, ""]
