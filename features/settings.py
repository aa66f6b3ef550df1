"""The part of the TOML that describes a log: sources, SQL expressions, grades, groups, split, counters.

Frozen pydantic models; an unknown key is an error. `ranker.config` reads the file and puts these together.
"""

import re
from datetime import date, datetime
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from features.schema import DAY, HOUR, MINUTE, SAMPLED, SECOND

UNITS = {"s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY}
LONGEST = 36_525 * DAY
#: names of the contract's own, which a user's column, grade or attribute must not take
RESERVED = {SAMPLED, "impression", "grade", "user", "item", "surface", "idx", "user_id", "item_id", "source_row"}


def parse_duration(text: object) -> object:
    """Read `"90s"`, `"30m"`, `"24h"` or `"7d"` as int microseconds; ValueError on anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"a duration such as '90s', '30m', '24h' or '7d' was expected, found {text!r}")
    duration = round(float(match[1]) * UNITS[match[2]])
    if duration > LONGEST:
        raise ValueError(f"a duration of at most 100 years was expected, found {text!r}")
    return duration


Duration = Annotated[int, BeforeValidator(parse_duration)]


def check_name(name: str) -> str:
    """Return a name that may stand in a column `<key>__<event>__<span>__<stat>`; ValueError otherwise."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or "__" in name or "_x_" in name:
        raise ValueError(f"'{name}': letters, digits and single underscores were expected, and no '_x_'")
    if name in RESERVED:
        raise ValueError(f"'{name}' is a reserved name: choose another")
    return name


Name = Annotated[str, AfterValidator(check_name)]


class Settings(BaseModel):
    """The base of every table of the TOML: immutable, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class EventsSettings(Settings):
    """`[events]`: where the log is, and a SQL expression for each column of the contract.

    feedback: what the user did (numbers of at most 1e12 either way or true/false, NULL unknown); counters, histories
    and towers read it.
    context: what a request says of itself (device, locale …): text or numbers, features `context_<name>`; a request to
    the server carries them as `context.attributes`.
    columns: whatever else the conditions of grades and of `pairing.where` read; nothing else sees them.
    position: 1 is the first place of the list. propensity: the chance, in (0, 1], with which the logging policy showed
    this item at this place. Both are for `[pairing]` corrections and conditions, and never features.
    event_id: an integer or text that names each event (7 and '7' are one name): of rows with the same one, the first
    is imported and the others are counted. Left out: the column `event_id` where the source has one; "NULL" for none.
    """

    source: str
    user_id: str = "user_id"
    item_id: str = "item_id"
    ts: str = "ts"
    event_id: str | None = None
    surface: str | None = None
    organic: str | None = None
    request_id: str | None = None
    position: str | None = None
    propensity: str | None = None
    feedback: dict[Name, str] = Field(default_factory=dict)
    context: dict[Name, str] = Field(default_factory=dict)
    columns: dict[Name, str] = Field(default_factory=dict)


class ItemsSettings(Settings):
    """`[items]`: optional attributes of items. The kind of a column follows from its SQL type."""

    source: str
    item_id: str = "item_id"
    columns: dict[Name, str] = Field(default_factory=dict)
    text: dict[Name, str] = Field(default_factory=dict)


class UsersSettings(Settings):
    """`[users]`: optional attributes of users, as for items."""

    source: str
    user_id: str = "user_id"
    columns: dict[Name, str] = Field(default_factory=dict)
    text: dict[Name, str] = Field(default_factory=dict)


class Grade(Settings):
    """`[[grades]]`: one class of feedback; they are listed from worst to best, the best true one counts."""

    name: Name
    when: str


class GroupSettings(Settings):
    """How impressions without a request id become pairing groups."""

    window: Duration | None = None
    max_size: int | None = Field(default=None, ge=2, le=1_000_000)


class PairingSettings(GroupSettings):
    """`[pairing]`: groups, pair weights, drawn negatives. `[pairing.towers]` overrides for the towers' period.

    train_cap: of a group with more pairs so many are drawn, in training alone. What else is of training alone, and
    never changes the metric (formulas: `features.pairing.exposure`): position_power: place k is looked at with the
    chance k ** -power; or examination, that chance for the places 1, 2, … (the last one holds for all further places);
    propensity: weigh by the inverse of `[events] propensity`; max_correction: the most that these weigh a pair up;
    half_life: a pair so much older than another weighs half as much.
    """

    window: Duration = Field(default=30 * MINUTE)
    max_size: int = Field(default=50, ge=2, le=1_000_000)
    where: str | None = None
    weights: dict[str, float] = Field(default_factory=dict)
    negatives: int = Field(default=0, ge=0)
    train_cap: int | None = Field(default=None, ge=1)
    position_power: float | None = Field(default=None, gt=0, le=10)
    examination: list[Annotated[float, Field(gt=0, le=1)]] | None = Field(default=None, min_length=1)
    propensity: bool = False
    max_correction: float = Field(default=10.0, ge=1, allow_inf_nan=False)
    half_life: Duration | None = Field(default=None, gt=0)
    towers: GroupSettings = GroupSettings()

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
    """`[split]`: towers learn on [t0, t1), the booster on [t1, t2), the test is [t2, t3).

    A boundary is a date or time, or a quantile in (0, 1) of the events' times. t0 and t3 default to the whole log.
    """

    t0: Boundary | None = None
    t1: Boundary = 0.5
    t2: Boundary = 0.8
    t3: Boundary | None = None
    validation: float = Field(default=0.2, gt=0, lt=1)

    @model_validator(mode="after")
    def _quantiles(self) -> Self:
        for name in ("t0", "t1", "t2", "t3"):
            value = getattr(self, name)
            if isinstance(value, float) and not 0 < value < 1:
                raise ValueError(f"{name} = {value}: a quantile lies between 0 and 1; a time is written 2022-04-25")
        return self


class FeatureSettings(Settings):
    """`[features]`: the plain columns beside the counters, by the names of `features.plain`; None is a good default."""

    columns: list[str] | None = None


class CounterSettings(Settings):
    """`[[counters]]`: aggregates of one kind of event for one key, over several spans.

    key: any of `user`, `item`, `surface`, item attributes, and user attributes as `user_<name>`.
    event: `impression`, a grade, `grade` (the rank of the grade), or a column of `[events.feedback]`: a SQL
    condition or value of your own is one more column there, for example `long = "play_ms > 60000"`.
    spans: `w7d` (window), `h3d` (half-life) or `all`. delay: how long after its `ts` an event is known.
    stats: `count` (events whose value is not 0), `sum`, `rate` (share of them that is not 0), `mean`,
    `ratio_<event>` (sum of the event over the sum of another), `since` (seconds since the last event that is not
    0), `distinct_<part>` (how many items, users, … it had), `rank_<attribute>` (1 is the item with the highest
    count of those with the same attribute value, as of the last full hour). rate, mean and ratio are smoothed:
    (sum + strength · prior) / (trials + strength); without `prior` it is the quotient of the whole log.
    """

    key: list[str] = Field(min_length=1)
    event: str
    spans: list[str] = Field(default=["all"], min_length=1)
    stats: list[str] = Field(min_length=1)
    strength: float = Field(default=10.0, gt=0)
    prior: float | None = None
    delay: Duration = Field(default=0)
