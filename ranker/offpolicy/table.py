"""A report of off-policy estimates as text."""

from typing import Any

ESTIMATORS = ("ips", "snips", "dr")


def as_table(report: dict[str, Any]) -> str:
    """Return the report as text."""
    logged, wanted = report["logged"], " or ".join(report["wanted"])
    first = f" (their first {report['places']} places)" if report["places"] else ""
    lines = [
        f"{report['data']}: {logged['lists']:,} lists of {logged['users']:,} users{first} whose order was drawn, from "
        f"{report['from']} to {report['to']}",
        f"value: items of a list that were wanted ({wanted}); logged {_between(logged)}",
    ]
    lines += [f"left out: {count:,} lists, for {reason}" for reason, count in report["left_out"].items()]
    for bundle in report["bundles"]:
        lines += ["", *_bundle(bundle, report["policy"])]
    return "\n".join(lines)


def _bundle(found: dict[str, Any], policy: str) -> list[str]:
    lines = [f"{found['bundle']} ({found['version']}), its {policy}:"]
    if found.get("refused"):
        return [*lines, f"  not known: {found['refused']}"]
    if found["before"]:
        logged = found["logged"]
        lines.append(
            f"  {found['before']:,} lists are from before its training ended and left out; of the other "
            f"{logged['lists']:,}, logged {_between(logged)}"
        )
    if found["degraded"]:
        lines.append(f"  WARNING: in {found['degraded']:,} lists a source or plugin of it failed")
    for kind, part in found["estimates"].items():
        lines.append(f"  {kind}: by {part['uses']}")
        if part["refused"]:
            lines.append(f"    not known: {part['refused']}")
            continue
        lines += [
            f"    {name:5} {_between(part[name])}, {_number(part[name]['gain'], '+')} "
            f"{_ends(part[name]['gain_ci95'], '+')} than logged"
            for name in ESTIMATORS
        ]
        lines.append(
            f"    as much as {part['effective_lists']:,.0f} lists of its own; mean weight {part['mean_weight']:.2f} "
            f"{_ends(part['mean_weight_ci95'])}, largest {part['largest_weight']:.1f} "
            f"({100 * part['largest_share']:.1f} % of all)"
        )
        if part["unshown"] >= 0.0005:
            lines.append(
                f"    {100 * part['unshown']:.1f} % of what the bundle would show was never shown: the intervals count "
                "it as anything from nothing to all of it wanted"
            )
    return lines


def _between(part: dict[str, Any]) -> str:
    return f"{_number(part['value'])} {_ends(part['ci95'])}"


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"


def _ends(ends: list[float | None], sign: str = "") -> str:
    return f"[{_number(ends[0], sign)}, {_number(ends[1], sign)}]"
