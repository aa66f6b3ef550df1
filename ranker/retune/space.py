"""What `pairlift retune` tries: parameters of the booster and of its pairs, or of the wanted part, with ranges."""

from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from features.schema import DAY
from ranker.config import Config
from ranker.training.booster import LIKED_TABLE, WANTED_TABLE, check_params, parameters

#: significant digits: what is tried is what stands in the table, and then in the TOML
DIGITS = 3
#: (name, low, high, by ratio) of LightGBM's parameters; whole numbers where both ends are
_PARAMS: tuple[tuple[str, float, float, bool], ...] = (
    ("learning_rate", 0.01, 0.2, True),
    ("num_leaves", 4, 127, True),
    ("min_data_in_leaf", 5, 500, True),
    ("lambda_l2", 0.1, 100.0, True),
    ("path_smooth", 0.0, 20.0, False),
    ("feature_fraction", 0.3, 1.0, False),
    ("bagging_fraction", 0.4, 1.0, False),
)
#: tables of the TOML in which parameters stand
TABLES = ("booster", LIKED_TABLE, WANTED_TABLE, "pairing")
_CATEGORICAL = ("cat_smooth", 1.0, 200.0, True)
_CAPS = (30, 100, 300, 1000)
_HALF_LIVES = (1, 3, 7, 14, 30, 90)
_NDCG_AT = 10


@dataclass(frozen=True, slots=True)
class Parameter:
    """One that is searched over."""

    table: str  # where it stands in the TOML
    name: str  # its key in that table
    own: Any  # its value there, or our default
    distribution: BaseDistribution  # what is drawn from

    def rounded(self, value: Any) -> Any:
        """Return a value with few digits."""
        return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value

    def has(self, value: Any) -> bool:
        """Return whether a value is in the range that is searched."""
        of = self.distribution
        if isinstance(of, CategoricalDistribution):
            return value in of.choices
        return isinstance(of, (IntDistribution, FloatDistribution)) and of.low <= value <= of.high

    def as_toml(self, value: Any) -> str:
        """Return a value as a TOML has it, `-` for none."""
        if value is None:
            return "-"
        return f'"{value / DAY:g}d"' if self.name == "half_life" else f"{value:g}"


def make_space(config: Config, rows: int, categorical: bool, most_pairs: int, span: int) -> list[Parameter]:
    """Return the parameters of a log; a range is stretched to the TOML's own value.

    rows: of the training slice. most_pairs: of its largest group. span: µs from its first group to its last. Of
    [pairing] only what a metric over uncorrected pairs can judge: not the corrections for exposure.
    """
    space = _tree_space(LIKED_TABLE, parameters(config.booster, rows), categorical)
    margin, ndcg_at, pairing = config.booster.margin, config.booster.ndcg_at, config.pairing
    space.append(Parameter("booster", "margin", margin, _range(margin, 0.0, 1.0, False)))
    space.append(Parameter("booster", "ndcg_at", ndcg_at, _choice(ndcg_at, [_NDCG_AT])))
    caps = [cap for cap in _CAPS if cap < most_pairs]
    lives = [days * DAY for days in _HALF_LIVES if days * DAY < span]
    for name, values in (("train_cap", caps), ("half_life", lives)):
        if values:
            space.append(Parameter("pairing", name, getattr(pairing, name), _choice(getattr(pairing, name), values)))
    return space


def make_wanted_space(own: dict[str, Any], categorical: bool) -> list[Parameter]:
    """Return the parameters of the wanted part; a range is stretched to the TOML's own value. own: all of its own."""
    return _tree_space(WANTED_TABLE, own, categorical)


def _tree_space(table: str, own: dict[str, Any], categorical: bool) -> list[Parameter]:
    ranges = (*_PARAMS, _CATEGORICAL) if categorical else _PARAMS
    return [
        Parameter(table, name, value, _range(value, low, high, log))
        for name, low, high, log in ranges
        if isinstance(value := own.get(name, 0.0 if name == "path_smooth" else None), (int, float))
    ]


def _range(own: float, low: float, high: float, log: bool) -> BaseDistribution:
    log = log and own > 0
    if isinstance(low, int) and isinstance(own, int):
        return IntDistribution(min(int(low), own), max(int(high), own), log=log)
    return FloatDistribution(min(float(low), own), max(float(high), own), log=log)


def _choice(own: Any, values: list[int]) -> BaseDistribution:
    return CategoricalDistribution([None, *sorted({*values, *([] if own is None else [own])})])


def with_values(config: Config, space: list[Parameter], values: dict[str, Any]) -> Config:
    """Return the configuration with other values of the parameters."""
    of = {table: {p.name: values[p.name] for p in space if p.table == table} for table in TABLES}
    of["booster"]["params"] = check_params(config.booster) | of[LIKED_TABLE]
    of["lists"] = {"params": check_params(config.lists, WANTED_TABLE) | of[WANTED_TABLE]}
    tables = {name: getattr(config, name).model_copy(update=of[name]) for name in ("booster", "lists", "pairing")}
    return config.model_copy(update=tables)


def toml_lines(space: list[Parameter], values: dict[str, Any]) -> list[str]:
    """Return the lines that stand for the values in a TOML, table by table; a value of None is a key left out."""
    lines: list[str] = []
    for table in TABLES:
        of_table = [p for p in space if p.table == table]
        if not of_table:
            continue
        lines.append(f"[{table}]")
        for p in of_table:
            value = values[p.name]
            lines.append(f"# no {p.name}" if value is None else f"{p.name} = {p.as_toml(value)}")
    return lines
