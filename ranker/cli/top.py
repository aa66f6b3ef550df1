"""The command `top`, which shows a running server; `ranker.cli.main` adds it to the group."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import click
from prometheus_client.parser import text_string_to_metric_families

from ranker.cli.target import Target, asks_server

#: moves the cursor to the upper left, and clears what is below it
HOME, BELOW = "\x1b[H", "\x1b[J"
#: quantiles of times that are shown
QUANTILES = (0.5, 0.99)
Labels = frozenset[tuple[str, str]]


class Page:
    """The samples of one page of metrics."""

    def __init__(self, text: str) -> None:
        self.at = time.monotonic()
        self.samples: dict[str, dict[Labels, float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value

    def of(self, name: str) -> dict[Labels, float]:
        """Return the samples of a name by their labels; none where there are none."""
        return self.samples.get(name, {})

    def one(self, name: str) -> float:
        """Return the sum of a name's samples, NaN where there are none."""
        found = self.of(name)
        return sum(found.values()) if found else float("nan")


class Row(NamedTuple):
    """Calls, stages or parts of one name."""

    name: str
    rate: float  # a second
    quantiles: list[float]  # ms, of QUANTILES; NaN without calls


@click.command(short_help="Show a running server in the terminal.")
@click.argument("at", required=False, metavar="[ADDRESS]")
@asks_server
@click.option("--every", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Look once (twice, --every apart), print, and end.")
def top(*, at: str | None, server: Target, every: float, once: bool) -> None:
    """Show the server at ADDRESS (HOST:PORT, else that of --address) until Ctrl-C.

    Rates and times are those of the last --every seconds: calls by method and status, stages of a request, sources and
    plugins, the limit of requests at work and what was refused, failures, bundles and arms, how old the served state
    is and how far recording lags. It asks for the server's metrics over gRPC, so no metrics port is needed.

    \b
    Examples:
      pairlift top
      pairlift top 127.0.0.1:50052 --every 5
      pairlift top --once | grep Rank
    """
    with (replace(server, address=at) if at else server).client() as client:
        before = Page(client.metrics())
        try:
            while True:
                time.sleep(every)
                after = Page(client.metrics())
                text = "\n".join(screen(before, after, client.address))
                click.echo(text if once else HOME + text + BELOW)
                if once:
                    return
                before = after
        except KeyboardInterrupt:
            click.echo()


def screen(before: Page, after: Page, address: str) -> Iterator[str]:
    """Yield the lines of the screen: what changed between two pages, and what is now."""
    memory = after.one("process_resident_memory_bytes") / 2**30
    yield f"{address}   {time.strftime('%H:%M:%S')}   memory {memory:.2f} GiB"
    for labels, _ in sorted(after.of("pairlift_bundle_info").items(), key=lambda pair: sorted(pair[0])):
        known = dict(labels)
        yield f"bundle {known['bundle']} '{known['name']}' {known['role']} {known['arm']}".rstrip()
    state = f"state {_age(after.one('pairlift_state_age_seconds'))} old"
    if after.of("pairlift_recorded_events_total"):
        state += f"   recorded {after.one('pairlift_recorded_events_total'):,.0f}"
        state += f"   {after.one('pairlift_recording_lag_frames'):.0f} commits not served yet"
        state += "" if after.one("pairlift_recording_ok") else "   recording has a PROBLEM: see Describe"
    yield state
    gate = {name: after.one(f"pairlift_{name}") for name in ("at_work", "limit", "waiting")}
    refused = _by(before, after, "pairlift_refused_total", "reason")
    yield (
        f"at work {gate['at_work']:.0f} of {gate['limit']:.0f}, waiting {gate['waiting']:.0f}, "
        f"refused {sum(refused.values()):.0f}/s"
    )
    yield ""
    yield f"{'':36}{'per second':>12}{'p50 ms':>10}{'p99 ms':>10}"
    for title, name, keys in (
        ("calls", "pairlift_call_seconds", ("method",)),
        ("stages", "pairlift_stage_seconds", ("method", "stage")),
        ("sources and plugins", "pairlift_part_seconds", ("part",)),
    ):
        rows = list(_timed(before, after, name, keys))
        if rows:
            yield title
        yield from (f"  {r.name:34}{r.rate:12.1f}" + "".join(f"{_shown(q):>10}" for q in r.quantiles) for r in rows)
    for title, name, label in (
        ("ended with", "pairlift_calls_total", "code"),
        ("degraded answers", "pairlift_degraded_answers_total", "part"),
        ("failures", "pairlift_failures_total", "part"),
    ):
        rates = {key: rate for key, rate in _by(before, after, name, label).items() if rate > 0}
        if rates:
            yield f"{title}: " + ", ".join(f"{key} {rate:.1f}/s" for key, rate in sorted(rates.items()))
    breakers = [dict(labels)["part"] for labels, open_ in after.of("pairlift_breaker_open").items() if open_]
    if breakers:
        yield f"not asked for a while: {', '.join(sorted(breakers))}"


def _shown(milliseconds: float) -> str:
    return "-" if math.isnan(milliseconds) else f"{milliseconds:.2f}"


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def _by(before: Page, after: Page, name: str, label: str) -> dict[str, float]:
    """Return how fast the counters of a name grow, a second, by one label."""
    rates: dict[str, float] = {}
    for labels, now in after.of(name).items():
        grown = now - before.of(name).get(labels, 0.0)
        key = dict(labels)[label]
        rates[key] = rates.get(key, 0.0) + grown / (after.at - before.at)
    return rates


def _timed(before: Page, after: Page, name: str, labels: tuple[str, ...]) -> Iterator[Row]:
    """Yield a row for each series of a histogram, of what was counted between two pages."""
    buckets: dict[str, dict[float, float]] = {}
    for found, now in after.of(f"{name}_bucket").items():
        known = dict(found)
        key = " ".join(known[label] for label in labels)
        grown = now - before.of(f"{name}_bucket").get(found, 0.0)
        of_key = buckets.setdefault(key, {})
        bound = float(known["le"])
        of_key[bound] = of_key.get(bound, 0.0) + grown
    for key, found_buckets in sorted(buckets.items()):
        count = found_buckets[float("inf")]
        yield Row(key, count / (after.at - before.at), [1000 * quantile(found_buckets, q) for q in QUANTILES])


def quantile(buckets: dict[float, float], q: float) -> float:
    """Return a quantile of cumulative buckets (bound: count) as PromQL's histogram_quantile; NaN without counts."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]]
    if total <= 0:
        return float("nan")
    low, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= q * total:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (q * total - below) / (buckets[bound] - below)
        low, below = bound, buckets[bound]
    raise AssertionError("the last bucket has all counts")
