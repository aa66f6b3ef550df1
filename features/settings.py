"""The part of the TOML that describes a log: sources, SQL expressions, grades, groups, split, counters.

Frozen pydantic models; an unknown key is an error. What a key means is its `description`, which `pairlift config`
prints. `ranker.config` reads the file and puts the tables together.
"""

import re
from datetime import date, datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from features.schema import BY_ARM, DAY, HOUR, MINUTE, SAMPLED, SECOND

UNITS = {"s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY}
LONGEST = 36_525 * DAY
#: how a duration is written
DURATION = r"(\d+(?:\.\d+)?)\s*([smhd])"
#: names of the contract's own, which a user's column, grade or attribute must not take
RESERVED = {
    SAMPLED,
    "impression",
    "grade",
    "user",
    "item",
    "surface",
    BY_ARM,
    "idx",
    "user_id",
    "item_id",
    "source_row",
}


def parse_duration(text: object) -> object:
    """Read `"90s"`, `"30m"`, `"24h"` or `"7d"` as int microseconds; ValueError on anything else."""
    match = re.fullmatch(DURATION, text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"a duration such as '90s', '30m', '24h' or '7d' was expected, found {text!r}")
    duration = round(float(match[1]) * UNITS[match[2]])
    if duration > LONGEST:
        raise ValueError(f"a duration of at most 100 years was expected, found {text!r}")
    return duration


def duration_text(duration: int) -> str:
    """Return int microseconds as the TOML has them, in the largest unit that gives a whole number: `"30m"`."""
    unit = next((unit for unit, size in reversed(UNITS.items()) if duration >= size and duration % size == 0), "s")
    return f"{duration / UNITS[unit]:g}{unit}"


#: µs; the JSON Schema says what the TOML has, a text
Duration = Annotated[
    int, BeforeValidator(parse_duration, json_schema_input_type=Annotated[str, Field(pattern=f"^{DURATION}$")])
]


def check_name(name: str) -> str:
    """Return a name that may stand in a column `<key>__<event>__<span>__<stat>`; ValueError otherwise."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or "__" in name or "_x_" in name:
        raise ValueError(f"'{name}': a letter, then letters, digits and single underscores were expected, and no '_x_'")
    if name.endswith(f"_{BY_ARM}"):
        raise ValueError(f"'{name}': another ending than '_{BY_ARM}' was expected, which names counters of one arm")
    if name in RESERVED:
        raise ValueError(f"'{name}' is a reserved name: choose another")
    return name


Name = Annotated[str, AfterValidator(check_name)]
#: of a `Name`, for descriptions
NAMED = (
    'a letter, then letters, digits and single underscores, without "_x_"; not one of the reserved '
    f"{', '.join(sorted(RESERVED))}"
)


class Settings(BaseModel):
    """The base of every table of the TOML: immutable, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class EventsSettings(Settings):
    """`[events]`: where the log is, and a SQL expression for each column of the contract."""

    source: str = Field(
        description="Path or glob of the log, or SQL that DuckDB reads as a table: \"read_csv('{data}/log.csv')\"."
    )
    user_id: str = Field(default="user_id", description="SQL of the user's id: integers or text.")
    item_id: str = Field(default="item_id", description="SQL of the item's id: integers or text.")
    ts: str = Field(
        default="ts",
        description='SQL of the event\'s time, a timestamp; of seconds since 1970: "to_timestamp(seconds)".',
    )
    event_id: str | None = Field(
        default=None,
        description="SQL of an integer or text that names each event (7 and '7' are one name): of rows with the same "
        "one, that of the earliest ts is imported, and the others are counted. Left out: the column event_id where "
        'the source has one; "NULL" for none.',
    )
    surface: str | None = Field(
        default=None, description="SQL of the place where the list was shown (feed, search, …), text."
    )
    source_item: str | None = Field(
        default=None,
        description="SQL of the id of the item that the list was shown beside or asked from (related items), NULL for "
        "none: its co-occurrence, attributes and vectors beside those of each candidate are then features. A server "
        "that records has no such column of its own: take it with [events.columns], by a name that this SQL reads.",
    )
    organic: str | None = Field(
        default=None,
        description="SQL condition: true where the recommender did not cause the event. Only the towers read it.",
    )
    arm: str | None = Field(
        default=None,
        description="SQL of the arm of an experiment that the user was in at that time, text; NULL: in none. "
        "[[counters]] by_arm count by it. Of experiments that are over write NULL (CASE WHEN arm IN ('control', 'new') "
        "THEN arm END): their events then count for all again. A server that splits users records it as column arm.",
    )
    request_id: str | None = Field(
        default=None,
        description="SQL of the request's id. Impressions of one request are one pairing group; groups of those "
        "without an id are made from time ([pairing] window and max_size).",
    )
    position: str | None = Field(
        default=None,
        description="SQL of the place in the list, 1 is the first. For corrections and conditions of [pairing], and "
        "for the shown order and debiased figures in reports; never a feature.",
    )
    propensity: str | None = Field(
        default=None,
        description="SQL of the chance, in (0, 1], with which the logging policy showed this item at this place: 1.0 "
        "/ 20 of a shuffled list of 20; of lists that [exploration] drew, given the items above it, as answers and the "
        "feature log have it. NULL: it was not drawn. Below 1, such impressions tell which places are looked at. For "
        "corrections and conditions of [pairing], and for `pairlift offpolicy`; never a feature.",
    )
    feedback: dict[Name, str] = Field(
        default={},
        description="What the user did: numbers of at most 1e12 either way, or true/false; NULL is unknown. Counters, "
        "histories and towers read these columns.",
    )
    context: dict[Name, str] = Field(
        default={},
        description="What a request says of itself (device, locale …), text or numbers: the features context_<name>. "
        "A request to the server carries them as context.attributes; a server that records takes them with each event. "
        "Histories keep them beside each event (4 bytes each), for plugins that read them.",
    )
    candidate: dict[Name, str] = Field(
        default={},
        description="What was known of each candidate of a request before the answer (the price shown, the distance, "
        "an upstream score), text or numbers: the features candidate_<name>. NULL and the empty text are not known. A "
        "Rank request carries them as columns; a server that records takes them with each event. Of a number, "
        "[[counters]] can count candidate_<name>, and candidate_<name>_of_<grade> (of events of that grade or better).",
    )
    columns: dict[Name, str] = Field(
        default={},
        description="Whatever else the conditions of [[grades]] and of [pairing] where read. No feature and no "
        "counter reads them; a server that records takes them with each event and stores them.",
    )


class ItemsSettings(Settings):
    """`[items]`: attributes of items."""

    source: str = Field(description="Path or glob of the items, or SQL that DuckDB reads as a table.")
    item_id: str = Field(default="item_id", description="SQL of the item's id, as in [events].")
    columns: dict[Name, str] = Field(
        default={},
        description="SQL of each attribute. Its SQL type says what it is: text is a category, a list has several "
        "values, a number is a number. A list of fractions (FLOAT[], DOUBLE[], FLOAT[64] …) is a vector, such as an "
        "embedding of the title or picture, of one length for all: for the networks alone, no feature of the ranker.",
    )
    text: dict[Name, str] = Field(
        default={},
        description="SQL of text for people to read, such as a title: kept with the items, but not a feature (of the "
        "towers their option `words` makes one), and printed by no command.",
    )


class UsersSettings(Settings):
    """`[users]`: attributes of users."""

    source: str = Field(description="Path or glob of the users, or SQL that DuckDB reads as a table.")
    user_id: str = Field(default="user_id", description="SQL of the user's id, as in [events].")
    columns: dict[Name, str] = Field(default={}, description="SQL of each attribute, as in [items].")
    text: dict[Name, str] = Field(default={}, description="SQL of text for people to read, as in [items].")


class Grade(Settings):
    """`[[grades]]`: one class of feedback."""

    name: Name = Field(description=f"Name of the grade: {NAMED}.")
    when: str = Field(
        description="SQL condition over the names on the left in [events] and its tables, not over the source's "
        "columns. A row gets the best grade whose condition is true."
    )


class GroupSettings(Settings):
    """How impressions without a request id become pairing groups: what `[pairing.towers]` may override."""

    window: Duration | None = Field(
        default=None, description="In place of [pairing] window, where the group is in the towers' period."
    )
    max_size: int | None = Field(
        default=None,
        ge=2,
        le=1_000_000,
        description="In place of [pairing] max_size, where the group is in the towers' period.",
    )


class PairingSettings(GroupSettings):
    """`[pairing]`: groups, pair weights, drawn negatives, and corrections (formulas: `features.pairing.exposure`)."""

    window: Duration = Field(
        default=30 * MINUTE,
        description="Of impressions without a request id: a group starts at one and ends this much later.",
    )
    max_size: int = Field(
        default=50,
        ge=2,
        le=1_000_000,
        description="Of impressions without a request id: a group ends at so many, if not before.",
    )
    where: str | None = Field(
        default=None,
        description="SQL condition, over the same names as those of [[grades]]: the impressions that may make pairs. "
        "The others stay in histories. Left out: all of them.",
    )
    weights: dict[str, float] = Field(
        default={},
        description='What a pair weighs, by its grades: "click > skip" = 1.0, for every pair of grades; with '
        'negatives also "skip > sampled" = 0.5, for every grade. Left out: the difference of the ranks, where a drawn '
        "loser (sampled) is one below the worst grade.",
    )
    negatives: int = Field(
        default=0,
        ge=0,
        description="For a log of positives only: at most so many losers are drawn for each impression of a group, "
        "whatever its grade, as sampler says.",
    )
    sampler: Literal["popularity", "recent", "uniform", "in_catalogue"] = Field(
        default="popularity",
        description="Where drawn losers come from, always of what was known before as_of; PairAccuracy then measures "
        "that choice. popularity: an event of the past, so the item by how often it was met; in a log whose items age "
        "(news) most of these are out of date, and an order by freshness wins. recent: an event of the last "
        "sampler_window, so the choice is among what is met now. uniform: each item with an event before as_of alike; "
        "popular ones win easily. in_catalogue: each item that can be had at as_of alike (available_from, "
        "available_until); new items are among them, expired ones are not.",
    )
    sampler_window: Duration | None = Field(default=None, gt=0, description='Of sampler = "recent". Left out: 7 days.')
    available_from: Name | None = Field(
        default=None,
        description='Of sampler = "in_catalogue": the attribute of [items.columns], seconds since 1970 (kept to two '
        "minutes), from which on an item can be had; where it is NULL, or left out: from its first event on.",
    )
    available_until: Name | None = Field(
        default=None, description="Likewise: until when. Where it is NULL, or left out, an item does not expire."
    )
    train_cap: int | None = Field(
        default=None,
        ge=1,
        description="For training, draw so many pairs of a group that has more; the metric has all. Left out: all.",
    )
    position_power: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="Place k is looked at with the chance k ** -position_power, and its winners count the more in "
        "training; the metric does not change. pairlift validate prints the power that it estimates from items at "
        "several places. Left out: no correction.",
    )
    examination: list[Annotated[float, Field(gt=0, le=1)]] | None = Field(
        default=None,
        min_length=1,
        description="In place of position_power: that chance for the places 1, 2, …; the last one holds for all "
        "further places.",
    )
    propensity: bool = Field(
        default=False,
        description="Weigh a training pair by the inverse of its two [events] propensity: what was seldom shown counts "
        "more. The metric does not change.",
    )
    explored_only: bool = Field(
        default=False,
        description="Learn only from pairs both of whose impressions have an [events] propensity: those of lists whose "
        "order was drawn ([exploration]). What stops a training and the metric do not change, nor does what orders "
        "Recommend, which learns from no pairs.",
    )
    max_correction: float = Field(
        default=10.0,
        ge=1,
        allow_inf_nan=False,
        description="The most that position and propensity together weigh a pair up.",
    )
    half_life: Duration | None = Field(
        default=None,
        gt=0,
        description="A training pair so much older than another weighs half as much. Left out: age does not matter.",
    )
    towers: GroupSettings = Field(
        default=GroupSettings(), description="Other groups for the towers' period than for the booster's and the test."
    )

    @model_validator(mode="after")
    def _sampler(self) -> Self:
        dates = self.available_from is not None or self.available_until is not None
        if self.sampler != "popularity" and not self.negatives:
            raise ValueError(
                f"sampler = '{self.sampler}' says how losers are drawn: set negatives = 4 too, or leave it out"
            )
        if self.sampler_window is not None and self.sampler != "recent":
            raise ValueError(f"sampler_window goes with sampler = 'recent', found '{self.sampler}'")
        if dates != (self.sampler == "in_catalogue"):
            raise ValueError(
                "sampler = 'in_catalogue' and available_from or available_until, which say when an item can be had, go "
                "together: name an attribute of [items.columns], or choose sampler = 'uniform'"
            )
        return self

    @model_validator(mode="after")
    def _one_examination(self) -> Self:
        if self.position_power is not None and self.examination is not None:
            raise ValueError("position_power and examination say the same thing in two ways: keep one of them")
        return self

    @property
    def by_position(self) -> bool:
        """Whether training pairs are corrected for the winner's position."""
        return self.position_power is not None or self.examination is not None

    def for_towers(self) -> GroupSettings:
        """Return window and max_size in the towers' period."""
        return GroupSettings.model_construct(
            window=self.window if self.towers.window is None else self.towers.window,
            max_size=self.max_size if self.towers.max_size is None else self.towers.max_size,
        )


Boundary = float | datetime | date


class SplitSettings(Settings):
    """`[split]`: towers learn on [t0, t1), the booster on [t1, t2), the test is [t2, t3)."""

    t0: Boundary | None = Field(
        default=None, description="Where the towers' period begins, as for t1. Left out: the start of the log."
    )
    t1: Boundary = Field(
        default=0.5,
        description="Where the towers' period ends and the booster's begins: a date or time such as 2026-04-25, or a "
        "quantile, above 0 and below 1, of the events' times. At t0, or at the log's first time, there is no towers' "
        "period, and no plugin that learns on it.",
    )
    t2: Boundary = Field(default=0.8, description="Where the booster's period ends and the test begins, as for t1.")
    t3: Boundary | None = Field(
        default=None, description="Where the test ends, as for t1. Left out: the end of the log."
    )
    validation: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Share of each training period's impressions, the latest ones, that stops and tunes towers and "
        "booster.",
    )

    @model_validator(mode="after")
    def _quantiles(self) -> Self:
        for name in ("t0", "t1", "t2", "t3"):
            value = getattr(self, name)
            if isinstance(value, float) and not 0 < value < 1:
                raise ValueError(f"{name} = {value}: a quantile lies between 0 and 1; a time is written 2022-04-25")
        return self


class FeatureSettings(Settings):
    """`[features]`: the plain columns beside the counters (`features.plain`), and what becomes of the defaults."""

    columns: list[str] | None = Field(
        default=None,
        description="item_<column> and user_<column>; of a column with several values item_<column>_count and "
        "item_<column>_main, of seconds since 1970 item_<column>_age (days since); item_age (days since the item's "
        "first event), hour, weekday, surface, context_<name>, candidate_<name>. Left out: numbers, categories of at "
        "most 1,000 values, item_age, hour and surface.",
    )
    add: list[str] = Field(
        default=[],
        description="Further columns, by the same names, beside those that are there where columns is left out.",
    )
    counters: Literal["add"] | None = Field(
        default=None,
        description='"add": [[counters]] are counted beside the default counters, and in place of those of the same '
        "column. Left out: in place of all of them.",
    )
    listed: list[str] = Field(
        alias="list",
        default=[],
        description="Features of the whole list, beside the others: of a number of [events.candidate] "
        "candidate_<name>_rank (its rank among the request's candidates, 1 the lowest, the mean rank of equals) and "
        "candidate_<name>_less_median (the value less their median). A score then depends on the other candidates.",
    )

    @model_validator(mode="after")
    def _add_to_defaults(self) -> Self:
        if self.columns is not None and self.add:
            raise ValueError("columns takes the place of the default columns and add adds to them: keep one of the two")
        return self


class CounterSettings(Settings):
    """`[[counters]]`: aggregates of one kind of event for one key, over several spans."""

    key: list[str] = Field(
        min_length=1,
        description="For what is counted, together: any of user, item, surface, item attributes, and user attributes "
        "as user_<name>; attributes that are text or lists, not numbers.",
    )
    event: str = Field(
        description="What is counted: impression, a grade (events that have it, and no better one), grade (the grade's "
        "rank), or a column of [events.feedback]; of a name that is both, the grade. "
        'A SQL condition or value of your own is one more column there: long = "play_ms > 60000".'
    )
    spans: list[str] = Field(
        default=["all"],
        min_length=1,
        description="w7d (a window of 7 days; w12h of 12 hours), h3d (a half-life of 3 days) or all; whole days (d) or "
        "hours (h) only.",
    )
    stats: list[str] = Field(
        min_length=1,
        description="count (events whose value is not 0), sum, rate (share of them that is not 0), mean, ratio_<event> "
        "(sum of the event over the sum of another), since (seconds since the last event that is not 0), "
        "distinct_<part> (how many items, users, … it had), rank_<attribute> (of an item: 1 has the highest count of "
        "those with the same attribute value, as of the last full hour). rate, mean and ratio are smoothed: "
        "(sum + strength · prior) / (trials + strength).",
    )
    strength: float = Field(
        default=10.0, gt=0, description="How many trials of the prior are added to rate, mean and ratio."
    )
    prior: float | None = Field(
        default=None,
        description="What rate, mean and ratio are without a trial. Left out: the quotient of all events before "
        "[split] t1.",
    )
    delay: Duration = Field(default=0, description="How long after its ts an event is known.")
    by_arm: bool = Field(
        default=False,
        description="Whether only events of the request's own arm ([events] arm) are counted, and those of users in no "
        "arm, such as all before the experiment began; a request of no arm counts the latter alone. So what one arm "
        "shows moves no feature of another. Not for distinct_… and rank_…; the column's key ends in _by_arm.",
    )
