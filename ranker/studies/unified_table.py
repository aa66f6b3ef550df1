"""The report of the study `unified` as text: a table in Markdown, and the same as CSV."""

import csv
import io
from typing import Any

from ranker.studies.table import interval
from ranker.studies.unified import ONE, UNTOLD


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    arms, told = report["arms"], bool(report["told"])
    truth = arms[0]["best"] is not None
    heads = ["surface", "users", "pairs", "own model", "one model", "one over own [95 %]"]
    heads += ["untold", "one over untold [95 %]"] if told else []
    heads += ["best order"] if truth else []
    lines = [
        f"# unified: {report['asks']}",
        "",
        f"{report['data']}, PairAccuracy of {report['pairs_kind']} pairs on the test, ties as one half; plugins: "
        f"{', '.join(report['plugins']) or 'none'}.",
        "",
        _line(heads),
        _line(["---"] * len(heads)),
        *(_line(_cells(arm, told, truth)) for arm in arms),
        "",
        "Own model: learned from the rows of the surface alone, and stopped by them.",
    ]
    if told:
        lines.append(f"Untold: the one model without {', '.join(f'`{name}`' for name in report['told'])}.")
    if report["lacking"]:
        lines.append(f"Left out, for a period has no pairs of them: {', '.join(report['lacking'])}.")
    lines += [
        f"Booster seeds {report['seeds']}; intervals are about new users and seeds, of these fits of the plugins.",
        f"`{report['command']}`, {report['date']}, {report['minutes']:.1f} minutes in this run.",
    ]
    return "\n".join(lines) + "\n"


def _cells(arm: dict[str, Any], told: bool, truth: bool) -> list[str]:
    of, over = arm["pair_accuracy"], arm["over"]
    cells = [arm["arm"], f"{arm['users']:,}", f"{arm['pairs']:,}", f"{of['own']:.4f}", f"{of[ONE]:.4f}"]
    cells += [interval(over["own"])]
    cells += [f"{of[UNTOLD]:.4f}", interval(over[UNTOLD])] if told else []
    return [*cells, *([f"{arm['best']:.4f}"] if truth else [])]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def as_csv(report: dict[str, Any]) -> str:
    """Return a line for each surface; shares, not per cent."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    arms = list(report["arms"][0]["pair_accuracy"])
    others = [arm for arm in arms if arm != ONE]
    over = [f"one_over_{arm}{end}" for arm in others for end in ("", "_low", "_high")]
    writer.writerow(["surface", "users", "pairs", *arms, *over, "best"])
    for of in report["arms"]:
        gains = [[of["over"][arm]["relative_uplift"], *of["over"][arm]["ci95"]] for arm in others]
        cells = [of["arm"], of["users"], of["pairs"], *(of["pair_accuracy"][arm] for arm in arms)]
        writer.writerow([*cells, *(value for gain in gains for value in gain), of["best"]])
    return text.getvalue()
