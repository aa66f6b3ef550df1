"""What is asked of an experiment's log: its metrics, columns, period and planned shares, checked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from features.errors import PairliftError, did_you_mean
from ranker.ab.sequence import TIGHT_AT

#: the default name of the control, which the split between bundles has too
CONTROL = "control"
#: of the users, that shares may miss 1 by
NEARLY = 1e-6
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*\"""")


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of each arm: the sum over users of one SQL aggregate, by that of another."""

    name: str
    num: str  # an aggregate over the rows of a user
    den: str | None = None  # None: each user counts 1

    @property
    def sql(self) -> str:
        """How it was stated."""
        return self.num if self.den is None else f"{self.num} / {self.den}"

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return "mean over users" if self.den is None else "ratio of sums over users"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to read of a log, and how to judge it."""

    metrics: Sequence[Metric]  # the first one decides
    user: str = "user_id"  # SQL expressions over the log's columns
    arm: str = "arm"  # NULL or empty: no arm
    time: str = "ts"  # empty: the log has no times
    control: str = ""  # empty: the arm `control`
    shares: Mapping[str, float] | None = None  # planned, by arm; None: equal ones
    start: int | None = None  # µs UTC; None: the first row with an arm
    end: int | None = None  # µs UTC, from which rows are left out; None: none are
    looks: int = 10
    tight_at: int = TIGHT_AT  # users at which intervals for every look are narrowest
    final: bool = False  # this is the only look

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        names = [metric.name for metric in self.metrics]
        if not names:
            raise PairliftError(
                "a metric was expected, found none: state one as SQL over the rows of a user, such as "
                '--metric "clicks=sum(click)" or --ratio "ctr=sum(click)/count(*)"'
            )
        if twice := [name for name in names if names.count(name) > 1]:
            raise PairliftError(f"metrics of different names were expected, found '{twice[0]}' twice: rename one")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise PairliftError("an --end after the --start was expected, found one before it: exchange them")

    def of_arms(self, arms: Sequence[str]) -> tuple[str, dict[str, float]]:
        """Return the control, and the planned share of each arm; PairliftError where the log has other arms."""
        if len(arms) < 2:
            only = f"only '{arms[0]}'" if arms else "none"
            raise PairliftError(f"users of at least two arms were expected in {self.arm}, found {only}: {NO_ARMS}")
        control = self.control or (CONTROL if CONTROL in arms else "")
        if control not in arms:
            asked = f"'{control}'" if control else "none by that name"
            raise PairliftError(
                f"the control was expected among the arms {', '.join(arms)}, found {asked}"
                f"{did_you_mean(control, arms) if control else ''}: name it by --control"
            )
        shares = self.shares or {arm: 1 / len(arms) for arm in arms}
        if empty := [arm for arm in shares if arm not in arms]:
            raise PairliftError(
                f"users of the arm '{empty[0]}' were expected, found none (arms of the log: {', '.join(arms)}): look "
                "whether its events are recorded, or leave its --share out"
            )
        if unplanned := [arm for arm in arms if arm not in shares]:
            raise PairliftError(
                f"a --share of each arm of the log was expected, found none of '{unplanned[0]}': give it, or leave the "
                f"arm out by --arm \"nullif({self.arm}, '{unplanned[0]}')\""
            )
        return control, dict(shares)


NO_ARMS = "name the column of the arm by --arm, or look whether [record] has written the arm of each event"


def metric_of(stated: str) -> Metric:
    """Return the metric of `NAME=SQL`."""
    return Metric(*_named(stated, "--metric", "clicks=sum(click)"))


def ratio_of(stated: str) -> Metric:
    """Return the metric of `NAME=NUM/DEN`; the slash that divides stands in no parentheses and no quotes."""
    name, sql = _named(stated, "--ratio", "ctr=sum(click)/count(*)")
    at = _slashes(sql)
    if len(at) != 1 or not sql[: at[0]].strip() or not sql[at[0] + 1 :].strip():
        raise PairliftError(
            f"--ratio '{stated}': NAME=NUM/DEN with one dividing slash was expected, found {len(at)}: put parentheses "
            "around the parts, such as ctr=(sum(click))/(count(*))"
        )
    return Metric(name, sql[: at[0]].strip(), sql[at[0] + 1 :].strip())


def led_by(primary: str, metrics: Sequence[Metric]) -> list[Metric]:
    """Return the metrics with the one of a name first; as they are, where the name is empty."""
    if primary and primary not in (names := [metric.name for metric in metrics]):
        raise PairliftError(
            f"--primary '{primary}': a metric's name was expected, found none of it{did_you_mean(primary, names)}"
        )
    return sorted(metrics, key=lambda metric: bool(primary) and metric.name != primary)


def _named(stated: str, option: str, example: str) -> tuple[str, str]:
    name, equals, sql = stated.partition("=")
    if not (equals and name.strip() and sql.strip()):
        raise PairliftError(f"{option} '{stated}': NAME=SQL was expected, such as '{example}'")
    return name.strip(), sql.strip()


def _slashes(sql: str) -> list[int]:
    """Return where slashes stand outside of quotes and parentheses."""
    bare = _QUOTED.sub(lambda found: "x" * len(found[0]), sql)
    depth, at = 0, []
    for k, character in enumerate(bare):
        depth += (character in "([") - (character in ")]")
        if character == "/" and not depth:
            at.append(k)
    return at


def shares_of(stated: Sequence[str]) -> dict[str, float] | None:
    """Return the planned shares of `ARM=SHARE` each, which sum to 1; None of none."""
    found: dict[str, float] = {}
    for one in stated:
        arm, _, share = one.rpartition("=")
        try:
            found[arm] = float(share)
        except ValueError:
            found[arm] = float("nan")
        if not arm or not 0 < found[arm] < 1:
            raise PairliftError(f"--share '{one}': ARM=SHARE was expected, a share between 0 and 1, such as new=0.1")
    if found and abs(sum(found.values()) - 1) > NEARLY:
        raise PairliftError(
            f"shares that sum to 1 were expected, found {sum(found.values()):g}: give each arm's, the control's too"
        )
    # What misses 1 by rounding would fail the test of the split.
    return {arm: share / sum(found.values()) for arm, share in found.items()} or None


def time_of(text: str | None, option: str) -> int | None:
    """Return µs UTC of an ISO date or time, in UTC where it has no zone; None of None."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise PairliftError(
            f"{option} '{text}': a date or time was expected, such as 2026-11-01 or 2026-11-01T12:00"
        ) from error
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return int(at.timestamp()) * 1_000_000 + at.microsecond
