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


#: what lists are compared with in the README, by how their names begin
KINDS = ("popular", "als", "source")


def lists_table(result: dict[str, Any]) -> str:
    """Return what lists of Recommend are worth, beside those of others, as Markdown."""
    found = result["result"]
    lines = [
        "| data | NDCG@10 of `Recommend` | most popular | ALS | best source | more than the best [95 %] | users |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for data, name in NAMES.items():
        part = found[data]["lists"]["both"]
        worth = {of: figures["ndcg@10"]["mean"] for of, figures in part["lists"].items()}
        lines.append(_row(name, worth["Recommend"], worth, _gain(part["best_peer"]["ndcg@10"]), part["users"]))
    world = found["world0"]
    gain = _gain({"mean": world["gain"][0], "ci95": world["gain"][1:]})
    lines.append(_row("generated, true reward@10", world["recommend"][0], world["others"], gain, world["users"]))
    lines += [
        "",
        "Lists of items new to the user, by the server's own path: each user's mean of two, as of their first request "
        "in the test and as of its start. Wanted is a later rating of 4 or 5 stars, or a long view. Popularity and ALS "
        "are tuned before the test. In the generated world what a list is worth is known, and no log favours what was "
        "shown. "
        f"`{result['command']}`, {result['date']}; {result['machine']}.",
    ]
    return "\n".join(lines)


def _row(name: str, own: float, others: dict[str, float], gain: str, users: int) -> str:
    """Return one line of the table of lists; of several lists of a kind the best."""
    best = {kind: max((of for of in others if of.startswith(kind)), key=others.__getitem__) for kind in KINDS}
    cells = [f"{others[of]:.3f}" + (f" ({of.split()[1]})" if kind == "source" else "") for kind, of in best.items()]
    return f"| {name} | {own:.3f} | {' | '.join(cells)} | {gain} | {users:,} |"


def _gain(part: dict[str, Any]) -> str:
    low, high = part["ci95"]
    return f"{part['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"


#: of the table of serving: what a row says, and its figure of Rank and of Recommend
SERVED = {
    "CPU time of a request, over that of its bare stages": "{}_cpu_vs_floor",
    "likewise, of a user whose state is cached": "{}_cpu_vs_floor_cached",
    "requests/s of one core, the 99th percentile under 20 ms": "{}_per_second",
    "99th percentile at half of these, over that of an ideal queue": "{}_p99_vs_ideal_queue",
}


def serving_table(result: dict[str, Any]) -> str:
    """Return what a server bears as Markdown."""
    r = result["result"]
    lines = ["| 1 million items and users, 500 candidates | `Rank` | `Recommend` |", "| --- | --- | --- |"]
    for label, figure in SERVED.items():
        cells = (_plain(r[figure.format(method)]) for method in ("rank", "recommend"))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Asked for 3 times as many, it still answers {_plain(r['overload_goodput_3x'])} of these in time. FastAPI, "
        "Feast on Redis and LightGBM's own predict answer one request where it answers "
        f"{_plain(r['throughput_vs_fastapi_feast'])}. The bare stages are a gRPC echo of the same messages, the tower, "
        "a gather, the compiled forest, and the nearest 500 by faiss. "
        f"`{result['command']}`, {result['date']}; {result['machine']}.",
    ]
    return "\n".join(lines)


#: of the line of the towers: a figure, and what is said of it
NETWORKS = {
    "finetune_vs_per_impression": "64 impressions of a history of 256 events are fine-tuned {} times as fast by one "
    "pass as by a pass for each",
    "pretrain_vs_recbole_sasrec": "pre-training has {} times the positions/s of RecBole's SASRec of the same size",
    "user_tower_vs_floor": "the user tower's call takes {} of the time of a bare export of its blocks",
    "history_4096_gib": "a process that trains on 4,096 events of a user has a peak of {} GiB",
    "batch_padding": "of a batch's tokens at most {} are padding",
    "cross_encoder_ms": "the cross-encoder scores 500 candidates in {} ms",
}


def neural_line(result: dict[str, Any]) -> str:
    """Return what the networks cost, as a sentence; what could not be measured is left out."""
    r = result["result"]
    said = [text.format(_plain(r[figure])) for figure, text in NETWORKS.items() if r[figure] is not None]
    return f"What the networks cost: {'; '.join(said)}. `{result['command']}`, {result['date']}; {result['machine']}."


def _plain(value: float | None) -> str:
    """Return a figure with three digits, and a dash for one that could not be had."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def with_figures(readme: str) -> str:
    """Return the README with its tables as the results have them."""
    uplift, trust, lists = (_result(name) for name in ("uplift", "trust", "lists"))
    readme = _between(readme, "uplift", uplift_table(uplift) + "\n\n" + trust_line(trust))
    readme = _between(readme, "lists", lists_table(lists))
    for name, text in (("serving", serving_table), ("neural", neural_line)):
        if (HERE / "results" / f"{name}.json").exists():
            readme = _between(readme, name, text(_result(name)))
    return readme


def _result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "results" / f"{name}.json").read_text())
    return found


def _between(readme: str, name: str, text: str) -> str:
    """Return the README with another text between its marks of that name."""
    start, end = f"<!-- figures: {name} -->\n", "<!-- /figures -->"
    before, _, rest = readme.partition(start)
    return before + start + text + "\n" + end + rest.partition(end)[2]


if __name__ == "__main__":
    README.write_text(with_figures(README.read_text()))
