"""What `pairlift validate` says of a file and its data, before anything is trained."""

from collections.abc import Callable, Iterator

import numpy as np

from features.counters.spec import ambiguous_events
from features.errors import PairliftError
from features.log.expressions import integer_lists
from features.log.loading import load_log, load_repeats
from features.pairing.cuts import count_cuts
from features.pairing.heavy import heavy_user_lines
from features.pairing.pairs import count_by_grades, make_pairs
from features.pairing.split import PERIODS, iso
from features.schema import DAY, SAMPLED, Catalog, EventLog
from ranker.config import Config, wanted_floor
from ranker.metrics.pair_accuracy import pair_accuracy
from ranker.metrics.shown import shown_lines
from ranker.metrics.simple import events_before, freshness
from ranker.training.booster import FULL_SIZE
from ranker.training.importing import import_stage
from ranker.training.measured import past_of, shown_of
from ranker.training.network import check_network
from ranker.training.prepared import Prepared, prepare
from ranker.training.wanted import JUDGED, NO_SOURCES, asked_in_slices

#: fewer requests, or users, than this are too few to order lists by or to measure them
FEW = 200
#: arms of experiments that are listed
MOST_ARMS = 20
#: PairAccuracy of freshness alone from which on drawn losers are too easy to tell
TOO_FRESH = 0.8


def validation(config: Config, check: Callable[[Prepared], None]) -> Iterator[str]:
    """Import the log, make groups and pairs, and yield the lines of the report.

    check: raises PairliftError for what a report of an uplift would stop at, which is above training.
    Raises PairliftError for what stops a training, behind the lines of what was found before.
    """
    database = import_stage(config) / "log.duckdb"
    log, catalog = load_log(database)
    yield f"{config.name}: {len(log):,} events, {catalog.n_users:,} users, {catalog.n_items:,} items"
    yield f"from {iso(int(log.ts[0]))} to {iso(int(log.ts[-1]))} ({(log.ts[-1] - log.ts[0]) / DAY:.1f} days)"
    yield from _repeat_lines(load_repeats(database))
    yield from ("", "events per grade, worst to best", *_grade_lines(log, config), *_arm_lines(log, catalog))
    try:
        prepared = prepare(config, database)
    except PairliftError as error:
        raise PairliftError(f"cannot be trained on: {error}") from error
    check_network(config)
    for part in (_period_lines, _boundary_lines, _list_lines, _simple_lines, _warning_lines):
        yield from ("", *part(prepared))
    check(prepared)


def _repeat_lines(repeats: int | None) -> list[str]:
    if repeats is None:
        return []
    return [f"{repeats:,} rows repeated the event_id of another and were dropped, the first of each kept"]


def _grade_lines(log: EventLog, config: Config) -> list[str]:
    counts = np.bincount(log.grade + 1, minlength=len(config.grades) + 1)
    names = ("(no grade)", *config.grade_names)
    return [
        f"  {name:20} {count:>12,} {100 * count / len(log):6.1f} %" for name, count in zip(names, counts, strict=True)
    ]


def _period_lines(prepared: Prepared) -> list[str]:
    lines = []
    bounds = (prepared.split.t0, prepared.split.t1, prepared.split.t2, prepared.split.t3)
    for number, period in enumerate(PERIODS):
        groups = prepared.groups.of(period)
        pairs = count_by_grades(groups, prepared.weights, prepared.config.grade_names)
        users = len(np.unique(groups.requests.user))
        lines.append(
            f"{period:8} [{iso(bounds[number])}, {iso(bounds[number + 1])}): {len(groups.requests):,} groups, "
            f"{len(groups.grade):,} impressions, {users:,} users, {sum(pairs.values()):,} pairs"
        )
        for name, count in pairs.items():
            winner, loser = (("sampled", *prepared.config.grade_names).index(part) for part in name.split(" > "))
            lines.append(f"  {name:28} {count:>12,} pairs of weight {prepared.weights[winner, loser]:g}")
    return lines


def _arm_lines(log: EventLog, catalog: Catalog) -> list[str]:
    """Return each arm of an experiment with its share of the events, the largest first; nothing without arms."""
    if not catalog.arms:
        return []
    counts = np.bincount(log.arm + 1, minlength=len(catalog.arms) + 1)
    order = 1 + np.argsort(-counts[1:], kind="stable")[:MOST_ARMS]
    names = ("(no arm)", *catalog.arms)
    lines = [f"  {names[k]:20} {counts[k]:>12,} {100 * counts[k] / len(log):6.1f} %" for k in (*order.tolist(), 0)]
    further = f", the {MOST_ARMS} largest of {len(catalog.arms):,}" if len(catalog.arms) > MOST_ARMS else ""
    return ["", f"events per arm of experiments{further}", *lines]


def _boundary_lines(prepared: Prepared) -> list[str]:
    """Return, for each boundary, how many groups it cuts in two, and what lies before t0 and after t3."""
    split = prepared.split
    cuts = count_cuts(prepared.log, prepared.config.pairing, split)
    lines = ["boundaries of the split: a group that one cuts in two is two groups (a sitting: made in time order)"]
    outside = {0: (0, "before it"), 3: (1, "at or after it")}
    for k, bound in enumerate((split.t0, split.t1, split.t2, split.t3)):
        line = f"  t{k} {iso(bound)}: cuts {cuts.requests[k]:,} requests and {cuts.sittings[k]:,} sittings"
        if k in outside:
            side, where = outside[k]
            groups, impressions = cuts.groups_outside[side], cuts.impressions_outside[side]
            line += f"; {groups:,} groups of {impressions:,} impressions lie {where} and make no pairs"
        lines.append(line)
    return lines


def _list_lines(prepared: Prepared) -> list[str]:
    """Return how much the order of Recommend's lists is learned from, stopped by and measured by."""
    config, split, floor = prepared.config, prepared.split, wanted_floor(prepared.config)
    if not config.sources.on:
        return [NO_SOURCES]
    wanted = " or ".join(config.grade_names[floor:])
    new = " of items new to them" if config.sources.exclude_seen else ", again or not"
    train, validation = asked_in_slices(prepared)
    test = past_of(prepared).asked(split.t2, split.t3)
    return [
        f"lists of Recommend: what their users wanted later ({wanted}){new}",
        _enough("learned from", len(train), f"requests of the booster's period (at most {config.lists.groups:,})"),
        _enough("stopped by", len(validation), f"requests of its validation slice (at most {JUDGED:,})"),
        _enough("measured by", len(test), "users of the test"),
    ]


def _simple_lines(prepared: Prepared) -> list[str]:
    """Return what orders that learn nothing reach on the booster's validation slice; the test is not read."""
    log, state, groups = prepared.log, prepared.state, prepared.slices()["validation"]
    pairs, popularity = make_pairs(groups, prepared.weights), events_before(log, state, groups)
    lines = ["orders that learn nothing, on the booster's validation slice"]
    shown, drawn = pairs.select(~pairs.sampled), pairs.select(pairs.sampled)
    found = shown_of(prepared, groups, pairs)
    if found is not None:
        lines += shown_lines(found.reported({"popularity": popularity}), {"popularity": "popularity"})
    elif len(shown):
        lines.append(f"PairAccuracy of shown pairs: popularity {pair_accuracy(popularity, shown).value:.4f}")
    if len(drawn):
        sampler, fresh = prepared.config.pairing.sampler, pair_accuracy(freshness(log, state, groups), drawn).value
        popular = pair_accuracy(popularity, drawn).value
        of = f"{SAMPLED} pairs (losers by sampler = '{sampler}')"
        lines.append(
            f"PairAccuracy of {of}: popularity {popular:.4f}, freshness (time since the last event) {fresh:.4f}"
        )
        if fresh >= TOO_FRESH:
            lines.append(
                "  WARNING: freshness alone tells these losers, so a ranker learns that and little else: choose "
                "[pairing] sampler = 'recent' with a shorter sampler_window, or 'in_catalogue'"
            )
    return [lines[0], *(f"  {line}" for line in lines[1:])]


def _enough(use: str, count: int, what: str) -> str:
    few = f"; WARNING: of fewer than {FEW} little can be said of lists" if count < FEW else ""
    return f"  {use:14} {count:>9,} {what}{few}"


def _warning_lines(prepared: Prepared) -> list[str]:
    """Return what does not stop a training and is worth a look."""
    log, groups = prepared.log, prepared.groups
    found = []
    same = np.lexsort((log.ts, log.item, log.user))
    repeated = int(
        np.sum((np.diff(log.user[same]) == 0) & (np.diff(log.item[same]) == 0) & (np.diff(log.ts[same]) == 0))
    )
    if repeated:
        found.append(f"{repeated:,} events repeat the user, item and time of another: is the log doubled?")
    left_out = int(((log.grade >= 0) & ~log.pairable).sum())
    if left_out:
        found.append(f"{left_out:,} graded events make no pairs, for pairing.where is not true of them")
    outside = int((prepared.split.period(log.ts) < 0).sum())
    if outside:
        found.append(f"{outside:,} events lie outside [t0, t3): those before count as history alone")
    owner = groups.requests.row_request()
    shown = ~groups.sampled
    for name in ("surface", "arm"):
        of_event, of_group = getattr(log, name)[groups.event[shown]], getattr(groups.requests, name)[owner[shown]]
        elsewhere = np.mean(of_event != of_group)
        if elsewhere:
            found.append(
                f"{100 * elsewhere:.1f} % of the impressions have another {name} than their group, whose first counts"
            )
    if prepared.config.events.source_item is not None:
        started = float(np.mean(groups.requests.source_item >= 0))
        hint = "" if started else ": is it the id of an item, as item_id is?"
        found.append(f"[events] source_item is an item of the log in {100 * started:.1f} % of the groups{hint}")
        found += _other_source_items(prepared)
    if any(counter.by_arm for counter in prepared.config.counters or ()) and not prepared.catalog.arms:
        found.append("[events] arm is NULL in every event: [[counters]] by_arm count as others do")
    pairs_of_items = np.unique(np.stack([owner, groups.requests.item], axis=1), axis=0)
    if len(pairs_of_items) < len(owner):
        found.append(
            f"{len(owner) - len(pairs_of_items):,} impressions repeat an item of their group: they tie with it"
        )
    rows = int(np.diff(groups.of("booster", False).requests.offsets).sum())
    if rows < FULL_SIZE:
        found.append(f"the booster learns from {rows:,} impressions: an uplift will hardly be shown")
    test = groups.of("test").requests
    start, stop = prepared.state.histories.before(test.user, test.as_of)
    cold = int((start == stop).sum())
    found.append(f"{100 * cold / len(test):.1f} % of the test's groups have no history before as_of")
    for column, name in enumerate(prepared.config.events.feedback):  # behind these stand counted values of candidates
        unknown = float(np.isnan(log.feedback[:, column]).mean())
        if unknown:
            found.append(f"feedback '{name}' is unknown (NULL) in {100 * unknown:.1f} % of the events")
    found += ambiguous_events(prepared.counters, log, prepared.config.grade_names)
    found += heavy_user_lines(log, prepared.catalog, groups, prepared.weights)
    found += _integer_list_lines(prepared.config)
    return ["worth a look", *(f"  {line}" for line in found)]


def _other_source_items(prepared: Prepared) -> list[str]:
    """Return how many impressions start from another item than their group, with one of them; nothing of none."""
    groups, catalog = prepared.groups, prepared.catalog
    shown = ~groups.sampled
    of_event = prepared.log.source_item[groups.event[shown], 0]
    of_group = groups.requests.source_item[groups.requests.row_request()[shown]]
    if not len(other := np.flatnonzero(of_event != of_group)):
        return []
    first = other[0]
    own, counts = (
        f"from item {catalog.ids_of_items(np.array([code]))[0]}" if code >= 0 else "from no item of the log"
        for code in (int(of_event[first]), int(of_group[first]))
    )
    user = catalog.ids_of_users(groups.requests.user[groups.requests.row_request()[shown]][[first]])[0]
    return [
        f"[events] source_item: {len(other):,} impressions ({100 * len(other) / len(of_event):.1f} %) have another "
        f"than their group, whose first counts; such as one of user {user}, {own}, in a group that starts {counts}"
    ]


def _integer_list_lines(config: Config) -> list[str]:
    """Return of each attribute that is a list of whole numbers what it is taken as: they could be a vector's, too."""
    return [
        f"[{table}.columns] {name} is a list of whole numbers: each is a category of its own; if they are a vector's "
        f"numbers, write ({settings.columns[name]})::FLOAT[]"
        for table, settings in (("items", config.items), ("users", config.users))
        if settings is not None
        for name in integer_lists(table, settings, config.data_root)
    ]
