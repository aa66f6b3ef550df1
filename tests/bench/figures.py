"""Write the README's tables from the committed results: `make figures`."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
NAMES = {"movielens": "MovieLens-100K", "kuairand": "KuaiRand-Pure"}
PLUGINS = {"two_tower": "transformer towers, `dot`", "als": "ALS, `dot` (baseline)", "noise": "noise (control)"}


def uplift_table(result: dict[str, Any]) -> str:
    """Return the headline table as Markdown."""
    lines = [
        "| data | column | without | with | uplift [95 %] | each user weighs one [95 %] | effective users | useful |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for data, reports in result["result"].items():
        for plugin, label in PLUGINS.items():
            r = reports[plugin]
            lines.append(
                f"| {NAMES.get(data, data)} | {label} | {r['without']:.4f} | {r['with']:.4f} | {_interval(r)} "
                f"| {_interval(r['macro'])} | {r['effective_users']:,.0f} of {r['users']:,} "
                f"| {'yes' if r['useful'] else 'not shown'} |"
            )
    r = next(iter(result["result"].values()))["noise"]
    crossed = f"{r['fits']} fits of each plugin, each with {len(r['seeds'])} booster seeds"
    lines += [
        "",
        f"PairAccuracy on the test, ties as one half. `{result['command']}`, {result['date']}, {crossed}; "
        f"{result['machine']}.",
    ]
    return "\n".join(lines)


def _interval(part: dict[str, Any]) -> str:
    low, high = part["ci95"]
    return f"{100 * part['relative_uplift']:+.2f} % [{100 * low:+.2f}, {100 * high:+.2f}]"


def trust_line(result: dict[str, Any]) -> str:
    """Return what simulated reports say of the report, as a sentence."""
    r = result["result"]
    found = round(r["leaks_found"] * r["reports"]["leaks"])
    return (
        f"Can it be trusted? `{result['command']}`: the interval held the truth in {r['coverage']:.3f} of "
        f"{r['reports']['coverage']:,} simulated reports; columns that know nothing were called useful in at most "
        f"{r['false_useful']:.3f}; {found} of {r['reports']['leaks']} planted leaks were found, and "
        f"{r['false_leaks']} of {r['reports']['honest']} honest columns called one."
    )


def with_figures(readme: str) -> str:
    """Return the README with its tables as the results have them."""
    result, trust = (json.loads((HERE / "results" / f"{name}.json").read_text()) for name in ("uplift", "trust"))
    start, end = "<!-- figures: uplift -->\n", "<!-- /figures -->"
    before, _, rest = readme.partition(start)
    return before + start + uplift_table(result) + "\n\n" + trust_line(trust) + "\n" + end + rest.partition(end)[2]


if __name__ == "__main__":
    README.write_text(with_figures(README.read_text()))
