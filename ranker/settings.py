"""The tables of the TOML that are the ranker's own; what a key means is its `description`: see `pairlift config`."""

from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from features.errors import PairliftError, did_you_mean
from features.schema import DAY, HOUR, MINUTE, SECOND
from features.settings import Duration, Name, Settings, check_name
from ranker.conditions.sql import SUPPORTED, parsed

#: of `[record] max_id_bytes`
MAX_ID_BYTES = 256
#: up to so many items are compared with a query one by one, where the TOML gives no other number
EXACT = 65_536
#: of a source or a plugin, where the TOML gives none: 50 ms
DEADLINE = SECOND // 20
#: of a source that has no quota, where none was learned
QUOTA = 200


Quota = Annotated[int, Field(ge=1)]


class DataSettings(Settings):
    """`[data]`: folders."""

    root: str = Field(
        default=".",
        description="What relative paths and {data} in SQL stand for, from the folder of the TOML. Environment "
        "variables are expanded; $PAIRLIFT_DATA, where it is not set, is ../shared/data of the working directory.",
    )
    work: str = Field(
        default="work",
        description="Folder, from that of the TOML, where the stages keep what they made. Environment variables are "
        "expanded, as in root.",
    )


class FetchSettings(Settings):
    """`[fetch]`: how to get the files of `[data] root` where they are missing (`ranker.training.fetch`)."""

    pip: str = Field(description="The Python package, with its version, whose archive has the files.")
    member: str = Field(description="Path in the archive below which the files lie.")
    to: str = Field(description="Folder below [data] root to write them into; where it exists, nothing is fetched.")
    licence: str = Field(description="Licence of the data, which is printed when it is fetched.")


class TimeSettings(Settings):
    """`[time]`: the time zone."""

    zone: str = Field(
        default="UTC",
        description="Time zone, such as Europe/Paris, of timestamps and of dates of [split] without one, of the "
        'features hour and weekday, and of the towers\' lag = "daily".',
    )

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"'{zone}' is not a time zone; one such as 'Europe/Paris' was expected") from error
        return zone


#: parameters of LightGBM's by their names
TreeParams = dict[str, bool | int | float | str | list[int] | list[float] | list[str] | list[list[int]]]


class BoosterSettings(Settings):
    """`[booster]`: LightGBM's training."""

    trees: int = Field(default=2000, ge=1, description="The most boosting rounds.")
    stop_after: int = Field(
        default=100,
        ge=1,
        description="Stop after so many rounds without a better figure on the validation slice, as a mean of 25 "
        "rounds: PairAccuracy, and for the part that orders Recommend NDCG@10 of its lists.",
    )
    params: TreeParams = Field(
        default={},
        description="Parameters of LightGBM's trees. Pairlift's own defaults: learning_rate = 0.03, num_leaves = 15, "
        "min_data_in_leaf = 50 and min_sum_hessian_in_leaf = 1.0 (less for under 5,000 rows), lambda_l2 = 5.0, "
        "feature_fraction = 0.7, bagging_fraction = 0.8, bagging_freq = 1, cat_smooth = 20.0, max_bin = 255. "
        "Refused: those of LightGBM's objectives, metrics and files, what Pairlift sets itself (seed …), and quantised "
        "gradients, by which LightGBM fails on large logs.",
    )
    retune_minutes: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        exclude=True,  # it is no part of what a fit is
        description="So many minutes `pairlift train` searches for better parameters of each part of the ranker, as "
        "`pairlift retune` does but not of [pairing], whenever the rows are other ones: it tries the TOML's own first, "
        "then the best of the search before. What is better by more than noise is used, and the bundle says it. 0: "
        "never.",
    )
    monotone: dict[str, Literal[-1, 1]] = Field(
        default={},
        description="By column: 1 where a higher value may never lower the score, -1 where it may never raise it.",
    )
    margin: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="How far a winner's score should lie above a loser's for each rank of grades between them. 0: it "
        "need only lie above.",
    )
    ndcg_at: int | None = Field(
        default=None,
        ge=1,
        description="k, to multiply a pair's weight by what NDCG@k would change if the two swapped places "
        "(LambdaMART). These factors are below 1: lower lambda_l2 and min_sum_hessian_in_leaf with them. Left out: "
        "pairs have their own weights alone, which is what PairAccuracy measures.",
    )


#: slices that every uplift report has, beside those of reserved names
TAKEN = {
    "day",
    "familiarity",
    "grade_pair",
    "user_activity",
    "vector_age",
    "week",
    "winner_age",
    "winner_first_seen",
    "winner_popularity",
}


class UpliftSettings(Settings):
    """`[uplift]`: the fits and slices of an uplift report."""

    fits: int = Field(
        default=3,
        ge=1,
        description="How often the plugin is fitted, each time with another seed, counted from seeds[0].",
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(
        default=[0, 1, 2, 3, 4],
        min_length=1,
        description="Seeds of the boosters, the same for both arms; every fit meets every seed. The first is also that "
        "of `pairlift train`.",
    )
    familiar: list[Name] = Field(
        default=[],
        description="Item attributes, text or lists, by which the report splits the uplift, beside the item itself: "
        "had the user met an item with this value before?",
    )
    slices: dict[Name, str] = Field(
        default={},
        description="SQL by which the report splits the uplift, of a pair's winner: the item's attributes by their "
        "names, `user.NAME`, `context.NAME` with `as_of` and `surface`; at most 50 different values, which neither "
        "luck nor the clock decides.",
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"distinct seeds were expected, found {seeds}")
        return seeds

    @field_validator("slices")
    @classmethod
    def _own(cls, slices: dict[str, str]) -> dict[str, str]:
        taken = [name for name in slices if name in TAKEN or name.startswith("familiarity_")]
        if taken:
            raise ValueError(f"every report has slices of the name {taken[0]}; choose another one")
        return slices

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
    """`[sources.NAME]`: the limits of one candidate source."""

    quota: Quota | Annotated[dict[str, Quota], Field(min_length=1)] | None = Field(
        default=None,
        description="The most candidates that the source may propose: a number, or one for each surface, such as "
        "{ feed = 100, search = 300 }. What is left out is learned, see candidates of [sources]; where nothing can be "
        f"learned it is {QUOTA}, and more where other sources leave their places empty.",
    )
    deadline: Duration = Field(
        default=DEADLINE,
        description="How long the source may take for a request, its proposal and its scores together, where it runs "
        "code that is not Pairlift's own; later, the list is made without it, or without its scores. What "
        "is Pairlift's own waits for nothing and is never cut off.",
    )
    surfaces: list[str] | None = Field(
        default=None,
        min_length=1,
        description="The surfaces for whose lists the source is asked, as the log names them. Left out: all, and "
        "requests that name none.",
    )

    def most(self, surface: str) -> int | None:
        """Return the quota for a surface, empty for none; None where there is none."""
        return self.quota.get(surface) if isinstance(self.quota, dict) else self.quota


class PopularSettings(SourceSettings):
    """`[sources.popular]`: the limits of the source, and how fast it forgets."""

    half_life: Duration = Field(
        default=7 * DAY, gt=0, description="An event so much older than another counts half as much."
    )


def exact_limit() -> Any:
    """Return the key of sources that search vectors: up to how many items they do it in full."""
    return Field(
        default=EXACT,
        ge=0,
        description="Up to so many items, the product with each one is computed in full; of more, with those that a "
        "pass in 8 bits leaves, which loses few: how many, `train` measures, and the bundle says.",
    )


class NearestSettings(SourceSettings):
    """`[sources.nearest]`: the limits of the source, and how it mixes the user's taste with demand."""

    weight: float = Field(
        default=0.5,
        ge=0,
        allow_inf_nan=False,
        description="Of a plugin whose product is what is left over demand (the towers): items are proposed by weight "
        "times the product plus log(1 + decayed count of wanted events).",
    )
    half_life: Duration | None = Field(
        default=None, gt=0, description="Of these counts. Left out: that of [sources.popular]."
    )
    exact: int = exact_limit()


class NamedSource(SourceSettings):
    """A further source, by a name that you choose: its class, its limits, and the options that the class takes."""

    model_config = ConfigDict(extra="allow")

    path: str = Field(
        alias="class",
        description="Import path of the class: ranker.sources.similar:Similar (neighbours by item vectors), "
        "ranker.sources.nearest:NearestBy (nearest to the user by a further plugin), "
        "ranker.sources.walks:RandomWalks (walks on the graph of users and items), ranker.sources.popular:PopularBy "
        "(popular or trending by surface or attribute), ranker.sources.fresh:Fresh (new items), "
        "ranker.sources.search:Search (what has words of the request's query), or mine:Mine of mine.py beside this "
        "file. All other keys are options of that class: `pairlift config ranker.sources.walks:RandomWalks` lists "
        "them. NAME is its bit in sources and its column source__NAME.",
    )

    @property
    def params(self) -> dict[str, Any]:
        """The arguments of the class."""
        return dict(self.model_extra or {})


class SurfaceSettings(Settings):
    """`[surfaces.NAME]`: what is different for the requests of a surface, which the log calls so."""

    plugins: list[str] | None = Field(
        default=None,
        description="Those of [ranker] plugins that are asked for its requests. Of the others the columns are missing "
        "values there, in training as when it is served, so that the one booster learns to do without. Which sources "
        "are asked say their own surfaces. Left out: all.",
    )
    deadline: Duration | None = Field(
        default=None,
        gt=0,
        description="The most that a source or plugin which is not Pairlift's own may take for its requests, where its "
        "own deadline is later.",
    )
    k: int | None = Field(
        default=None, ge=1, description="The k of a Recommend request that names none. Left out: 10, or max_k."
    )


class FilterSettings(Settings):
    """`[filters.NAME]`: a filter of the candidates of Recommend."""

    keep: str = Field(
        description="SQL condition: an item stays where it is true, so not where it is NULL, as everything is of an "
        f"item that came with recorded events. It may have {SUPPORTED}: the request's attributes of [events.context], "
        "its surface, and as_of in seconds since 1970. A list that is NULL is an empty one.",
    )

    @field_validator("keep")
    @classmethod
    def _parsed(cls, keep: str) -> str:
        return _read(keep)


class RuleSettings(Settings):
    """`[rules.NAME]`: what is pinned, boosted or buried in lists of Recommend, and when: one of the three."""

    when: str | None = Field(
        default=None,
        description="SQL condition on the request, such as context.surface = 'feed': its attributes of "
        "[events.context], its surface, as_of in seconds since 1970. Left out: in every request.",
    )
    items: str = Field(
        description="SQL condition on the items, as that of a filter (`pairlift config filters`), such as "
        "item_id IN ('42', '50')."
    )
    pin: int | None = Field(
        default=None,
        ge=1,
        description="Place of the list, 1 the first, that the best of the items gets; with two pins to one place, the "
        "later one gets the next place. Up to 100 items that such a condition names are candidates even where no "
        "source proposes them. What a filter or [lists] at_most removes is not pinned.",
    )
    boost: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="What is added to the score of the items, before [lists] diversity; below 0, it lowers them. The "
        "scores that are answered stay as they are. Scores lie further apart the more of the liked part's score lists "
        "add ([lists] liked, which a training chooses anew unless it is given), and a boost moves items less.",
    )
    bury: Literal[True] | None = Field(default=None, description="true: the items come behind all others.")

    @field_validator("when", "items")
    @classmethod
    def _parsed(cls, condition: str | None) -> str | None:
        return condition if condition is None else _read(condition)

    @model_validator(mode="after")
    def _one(self) -> Self:
        found = [key for key in ("pin", "boost", "bury") if getattr(self, key) is not None]
        if len(found) != 1:
            raise ValueError(f"one of pin, boost and bury was expected, found {' and '.join(found) or 'none'}")
        return self


def _read(condition: str) -> str:
    """Return a SQL condition; ValueError where it cannot be read."""
    try:
        parsed(condition)
    except PairliftError as error:
        raise ValueError(f"{condition!r}: {error}") from error
    return condition


class SourcesSettings(Settings):
    """`[sources]`: the candidate sources of `Recommend`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, NamedSource] = Field(init=False)

    popular: PopularSettings | Literal[False] = Field(
        default=PopularSettings(),
        description="The items with the highest decayed count of wanted events ([lists] wanted). false turns it off.",
    )
    cooccurrence: SourceSettings | Literal[False] = Field(
        default=SourceSettings(),
        description="Items that others took together with what the user wanted last ([lists] wanted). false turns it "
        "off.",
    )
    nearest: NearestSettings | Literal[False] = Field(
        default=NearestSettings(),
        description="Items that are nearest to the user by the first of [ranker] plugins that has vectors: by its own "
        "query and keys where it has these, mixed with demand where they leave that out. false turns it off.",
    )
    candidates: int | None = Field(
        default=None,
        ge=1,
        description="How many candidates a request has: the items whose places in the sources' lists are worth most "
        "together, as the booster's period showed it for users with and without history, and for surfaces with users "
        "enough. Of each source they have the first 10, or fewer where those are more than a quarter of all; none has "
        "more than its quota. Where users of whom this was not learned find no more by it than by sources that take "
        f"turns by their quotas, they do that. Left out: as many as quotas of {QUOTA}, where there is none, would give "
        "in the mean; where each source has a quota, these hold as they are.",
    )
    exclude_seen: bool = Field(
        default=True,
        description="Do not propose items that are in the user's history. false: the order of lists is then learned "
        "from what was wanted again, too, and measured by it.",
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, table: Any) -> Any:
        own = [name for name in table if name not in cls.model_fields] if isinstance(table, dict) else []
        for name in own:
            if not (isinstance(table[name], NamedSource) or (isinstance(table[name], dict) and "class" in table[name])):
                near = did_you_mean(name, cls.model_fields)
                raise ValueError(
                    f"'{name}': a key of [sources]{near}, or a table with a class was expected; "
                    "`pairlift config sources.NAME` names the classes"
                )
            check_name(name)
        return table

    @property
    def named(self) -> dict[str, NamedSource]:
        """Those with a class, by name, in the order of the file."""
        return dict(self.__pydantic_extra__)

    @property
    def limits(self) -> dict[str, SourceSettings]:
        """The settings of all that are on, by name, in the order of their bits."""
        fixed = {name: getattr(self, name) for name in ("popular", "cooccurrence", "nearest")}
        return {name: source for name, source in fixed.items() if source} | self.named

    @property
    def shared(self) -> bool:
        """Whether it is learned how many candidates each source has, for the table leaves that open."""
        return self.candidates is not None or any(not isinstance(of.quota, int) for of in self.limits.values())

    @property
    def on(self) -> bool:
        """Whether any source is left: without one, `Recommend` proposes nothing, and a ranker is for `Rank` alone."""
        return bool(self.limits)


class DiversitySettings(Settings):
    """`[lists] diversity`: how unlike the items of a list are to be."""

    weight: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Of similarity beside the score: place by place, the item with the most of (1 - weight) · score - "
        "weight · similarity to what stands above is next; the scores of a list, from its lowest to its highest, count "
        "as 0 to 1, a similarity is the highest cosine. 0: lists are as without it.",
    )
    plugin: str | None = Field(
        default=None,
        description="The one of [ranker] plugins whose item vectors are compared. Left out: the first that has some.",
    )
    among: int = Field(
        default=100,
        ge=1,
        description="How many of the best items are put in such an order; what is behind them stays there. The work "
        "grows with its square.",
    )


class PrerankSettings(Settings):
    """`[prerank]`: the stage before the ranker."""

    keep: int = Field(
        default=500,
        ge=1,
        description="How many candidates of a request are ranked, at least [serve] max_k. Of more, those stay that a "
        "small forest over the sources' own scores and the items' counters puts first; it learns from the ranker's "
        "scores, and the manifest says how much of the ranker's own first 50 it keeps. What [rules] pin is never cut.",
    )


class ListSettings(Settings):
    """`[lists]`: what a list of Recommend is for."""

    wanted: Name | None = Field(
        default=None,
        description="Name of the grade from which on an item was wanted: what sources count, and what a list should "
        "have. Left out: the middle grade, of an even number the upper one of the two.",
    )
    liked: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="How much of the liked part's score the order of Recommend adds to that of the wanted part. The "
        "log's lists favour what an earlier policy showed, so by them a small weight looks best; where lists are yours "
        "to choose, a larger one may earn more: ask an A/B test, or `pairlift offpolicy` of bundles that differ in it. "
        "Left out: the largest of 0.125 to 2 that costs NDCG@10 on the validation slice nothing that could be told, "
        "and where losers are drawn the smallest; else 0.",
    )
    at_most: dict[Name, Annotated[int, Field(ge=1)]] = Field(
        default={},
        description="Of a column of [items.columns], text or lists: how many items of one of its values a list has at "
        "most, the best ones, such as { author = 2 }. Items without a value are not limited.",
    )
    diversity: DiversitySettings | None = Field(
        default=None,
        description="Maximal marginal relevance: lists whose items are unlike each other, by a plugin's item vectors, "
        "such as { weight = 0.3 }; `pairlift lists` says what it costs. Left out: the order is that of the scores.",
    )
    users: int = Field(
        default=5000,
        ge=1,
        description="The most users whose lists `pairlift lists` asks for; of more, so many are drawn evenly.",
    )
    groups: int = Field(
        default=5000,
        ge=1,
        description="The most requests of the booster's period from which the order of Recommend's lists is learned.",
    )
    params: TreeParams = Field(
        default={},
        description="Parameters of LightGBM's trees for the part that orders Recommend; those of [booster.params] are "
        "of the other part alone. Pairlift's own defaults: as there, but lambda_l2 = 0.5 and min_sum_hessian_in_leaf = "
        "0.05. The same ones are refused.",
    )


class ExplorationSettings(Settings):
    """`[exploration]`: lists of Recommend whose order is drawn."""

    share: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="Of the requests whose lists are drawn; the request's id decides, without one user and as_of, so a "
        "resend gets the same list. 0.01 costs little of what lists are worth, and a tenth of a million requests a day "
        "is enough to compare bundles by.",
    )
    kind: Literal["plackett_luce", "uniform"] = Field(
        default="plackett_luce",
        description="plackett_luce: place after place is drawn, each item in proportion to exp(score / temperature). "
        "uniform: all of the first `top` alike.",
    )
    temperature: float = Field(
        default=1.0,
        ge=1e-6,
        allow_inf_nan=False,
        description="Of plackett_luce: the higher, the more even the draw. At 1 an item comes before another with the "
        "chance with which the trees, whose loss is logistic, take it to be the better one, where [lists] liked is 0: "
        "scores lie further apart the more of the liked part's score lists add.",
    )
    top: int = Field(
        default=50,
        ge=2,
        description="How many of the best candidates take part in the draw; the others stand behind them, in their "
        "order. What is not drawn here, no log can tell about (`pairlift offpolicy`).",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Another one draws other requests, and other orders.")

    @model_validator(mode="after")
    def _temperature_of_scores(self) -> Self:
        if self.kind == "uniform" and "temperature" in self.model_fields_set:
            raise ValueError("temperature goes with kind = 'plackett_luce'; 'uniform' has none: leave one of them out")
        return self

    @property
    def draw_temperature(self) -> float | None:
        """The temperature that scores are divided by; None where the draw does not read them."""
        return None if self.kind == "uniform" else self.temperature


class ServeSettings(Settings):
    """`[serve]`: limits of requests."""

    max_items: int = Field(
        default=2000, ge=1, description="The most items that a Rank request has, or that a request excludes."
    )
    max_k: int = Field(default=500, ge=1, description="The longest list that a Recommend request may ask for.")
    workers: int = Field(
        default=8,
        ge=1,
        description="The most requests that are answered at a time, each by a thread. How many they are, from 1 on, "
        "follows the measured times: as many as give more answers a second.",
    )
    max_wait: Duration = Field(
        default=SECOND // 5,
        gt=0,
        description="How long a request may wait for others. What could not be begun by then is refused at once "
        "(RESOURCE_EXHAUSTED), first what calls of low priority ask.",
    )
    plugin_deadline: Duration = Field(
        default=DEADLINE,
        description="How long a plugin that is not Pairlift's own may take; later, or 5 ms before its "
        "caller's deadline, its columns are missing values in this answer.",
    )
    calls_per_caller: int = Field(
        default=0,
        ge=0,
        description="The most calls of one caller that are at work at a time, open streams among them: of the tokens "
        "of one name, else of one host, however many stand behind it. 0: no limit, as where all calls come from one "
        "service or one proxy.",
    )
    connection_age: Duration = Field(
        default=30 * MINUTE,
        gt=0,
        description="A connection that is so old takes no new calls, and its client opens another: so calls spread "
        "over servers that were added, and meet a new certificate. Calls under way end as usual; a stream has an hour "
        "more.",
    )
    max_snapshot_age: Duration = Field(
        default=DAY, description="At the start, the server warns of a snapshot that is older than this."
    )


class RecordSettings(Settings):
    """`[record]`: what `pairlift serve --log DIR` records."""

    dedupe_days: float = Field(
        default=7, gt=0, description="For so many days event ids are known; older events are refused."
    )
    tolerance: Duration = Field(default=5 * MINUTE, description="How far in the future an event's time may lie.")
    max_events: int = Field(
        default=10_000_000,
        ge=1,
        description="The most recorded events, which are served from memory beside the bundle's own; further ones are "
        "refused.",
    )
    new_users: int = Field(
        default=1_000_000,
        ge=0,
        le=1_000_000_000,
        description="How many users that the bundle does not know are served from their recorded events. Further ones "
        "are recorded too, and cold until a training knows them.",
    )
    new_items: int = Field(default=100_000, ge=0, le=1_000_000_000, description="How many items, likewise.")
    max_id_bytes: int = Field(
        default=MAX_ID_BYTES,
        ge=1,
        description="The longest text id, in bytes of UTF-8, in events and in requests. Longer ones are refused, but "
        "for users and items that the bundle knows.",
    )
    memory: float | None = Field(
        default=None,
        gt=0,
        description="GiB that the served state may take (counters, histories, ids; not the booster and the plugins), "
        "also while it is rebuilt; a server that could need more does not start. Left out: three quarters of the "
        "machine's.",
    )
    max_batch: int = Field(default=10_000, ge=1, description="The most events of one message.")
    streams: int = Field(default=4, ge=1, description="The most RecordEvents calls that are open at a time.")
    segment_mb: float = Field(
        default=64,
        gt=0,
        description="Size in MB at which the next event starts a new file of the log. The ended one is also written as "
        "Parquet, for a training.",
    )
    segment_time: Duration = Field(
        default=HOUR, gt=0, description="Age of a file of the log at which the next event starts a new one, likewise."
    )


class PluginSettings(BaseModel):
    """`[plugins.NAME]`: a plugin's class, and the options that the class takes."""

    model_config = {"frozen": True, "extra": "allow"}

    path: str = Field(
        alias="class",
        description="Import path of the class, such as neural.two_tower:TwoTower, or mine:Mine of mine.py beside this "
        "file. All other keys are options of that "
        "class: `pairlift config neural.two_tower:TwoTower` lists them.",
    )

    @property
    def params(self) -> dict[str, Any]:
        """The arguments of the class."""
        return dict(self.model_extra or {})


class NetworkTable(PluginSettings):
    """`[network]`: the class of the network that ranks, and the options that the class takes."""

    path: str = Field(
        default="neural.final:NetworkRanker",
        alias="class",
        description="Import path of a class that learns to rank from the booster's own rows, pairs and weights "
        "(features.final.FinalRanker). All other keys are options of that class: `pairlift config "
        "neural.final:NetworkRanker` lists them.",
    )


class RankerSettings(Settings):
    """`[ranker]`: what the served ranker is made of."""

    plugins: list[str] = Field(
        default=[],
        description="Names of the [plugins.NAME] that are served, and whose columns the bundle's booster has.",
    )
    model: Literal["booster", "network"] = Field(
        default="booster",
        description="What orders Rank: LightGBM, or the [network], which is then trained beside it and has no "
        "contributions to explain. Recommend is ordered by the trees of the wanted part in both cases. uplift, retune "
        "and the other studies are about the booster in both cases.",
    )
