"""Which arms a study has: a plugin of the TOML with other options, or with less of the towers' period."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from features.errors import PairliftError
from features.plugin import make_plugin, plugin_class
from features.schema import DAY
from ranker.config import Config, plugin_of
from ranker.hashes import hash_value
from ranker.settings import PluginSettings
from ranker.training.plugins import goes_on

#: `over` of a study whose arms lie on the axis of what a fit says of its own size
PARAMETERS = "parameters"
#: columns of a plugin that gives its vectors whole
VECTORS = ["dot", "user_vector", "item_vector"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One arm of a study."""

    name: str  # in the table
    plugin: str  # of the TOML
    options: Mapping[str, Any] = field(default_factory=dict)  # in place of the TOML's own
    period: float = 1.0  # share of the towers' period, the latest part of it, that the plugin learns from
    at: float | None = None  # its place on the study's axis
    network: bool = False  # `[network]` ranks, not the booster
    beside: str = ""  # another plugin of the TOML, whose columns the rankers have too
    after: int = 0  # µs: it goes on from a fit whose period ended so much earlier; 0: it learns anew

    def configured(self, config: Config) -> Config:
        """Return the TOML with the arm's options in the plugin's table. Raises PairliftError for a wrong option.

        With other options all are written out, so that the same options are the same fit, whatever names them.
        """
        settings = config.plugins[self.plugin]
        if not self.options:
            return config
        params = {**settings.params, **self.options}
        make_plugin(self.plugin, settings.path, params)
        if options := getattr(plugin_class(settings.path), "options", None):
            params = options(**params).model_dump()
        changed = PluginSettings(**{"class": settings.path, **params})
        return config.model_copy(update={"plugins": {**config.plugins, self.plugin: changed}})

    def label(self, config: Config) -> str:
        """Return the name of its stages. config: of `configured`."""
        if not self.options and self.period == 1 and not self.after:
            return self.plugin  # the fits of `pairlift train` and `uplift`
        return f"{self.plugin}-{hash_value([config.plugins[self.plugin].params, self.period, self.after])[:12]}"


@dataclass(frozen=True, slots=True)
class Study:
    """What is varied, and how."""

    asks: str  # the question that it answers
    of: Callable[[str], list[Variant]]  # the arms, of a plugin; the first is what the others are compared with
    over: str = ""  # the axis of its slope: PARAMETERS, or what `Variant.at` is; without one there is no slope


def _options(*arms: tuple[str, dict[str, Any]]) -> Callable[[str], list[Variant]]:
    return lambda plugin: [Variant(name, plugin, options) for name, options in arms]


def _over(option: str, *values: float) -> Callable[[str], list[Variant]]:
    return lambda plugin: [Variant(f"{option} {v}", plugin, {option: v}, at=v) for v in values]


def _size(layers: int, width: int, heads: int) -> tuple[str, dict[str, Any]]:
    return f"{layers} x {width}", {"layers": layers, "width": width, "heads": heads}


#: by name, but for `plugins` and `beside`, whose arms are those of the TOML
STUDIES = {
    "sizes": Study(
        "does a larger network bring more?",
        _options(_size(1, 24, 2), _size(2, 64, 4), _size(3, 96, 6), _size(4, 128, 8)),
        PARAMETERS,
    ),
    "encoders": Study(
        "does a history read by HSTU bring more than by a transformer?",
        _options(("transformer", {"encoder": "transformer"}), ("hstu", {"encoder": "hstu"})),
    ),
    "history": Study("does a longer history?", _over("history", 32, 64, 128, 256, 512, 1024), "history"),
    "pretraining": Study("what does pre-training bring?", _options(("none", {"pretrain_epochs": 0}), ("as it is", {}))),
    "losses": Study(
        "what does each loss of pre-training bring?",
        _options(
            ("as it is", {}),
            ("next item alone", {"pretrain_losses": ["next_item"]}),
            ("feedback alone", {"pretrain_losses": ["feedback"]}),
            ("without logQ", {"log_q": False}),
            ("positives only", {"next_items": "wanted"}),
        ),
    ),
    "finetuning": Study(
        "what does fine-tuning bring, and what would more of it?",
        _options(
            ("none", {"finetune_epochs": 0}),
            *((f"share {share}", {"finetune_share": share}) for share in (0.25, 0.5)),
            ("all", {"finetune_share": 1.0}),
        ),
    ),
    "lag": Study("what does a day of lag cost?", _options(("runtime", {"lag": "0s"}), ("daily", {"lag": "daily"}))),
    "period": Study(
        "do more days of training bring more?",
        lambda plugin: [Variant(f"period {s}", plugin, period=s, at=s) for s in (0.25, 0.5, 1.0)],
        "period",
    ),
    "warm": Study(
        "what does it cost to go on from an earlier fit, in place of learning anew?",
        lambda plugin: [
            Variant("anew", plugin),
            *(Variant(f"after a {name}", plugin, after=span) for name, span in (("day", DAY), ("week", 7 * DAY))),
        ],
    ),
    "rankers": Study(
        "does a network rank better than trees, and what do whole vectors bring to each?",
        lambda plugin: [
            Variant(f"{ranker}{told}", plugin, options, network=ranker == "network")
            for ranker in ("booster", "network")
            for told, options in (("", {}), (", vectors", {"columns": VECTORS}))
        ],
    ),
}
PLUGINS, BESIDE = "plugins", "beside"
#: which varies no plugin (`ranker.studies.unified`)
UNIFIED = "unified"
NAMES = (*STUDIES, PLUGINS, BESIDE, UNIFIED)


def find_study(config: Config, name: str, plugin: str) -> tuple[Study, list[Variant]]:
    """Return a study and its arms. Raises PairliftError for a plugin that the TOML, or an option that it, lacks."""
    if name == PLUGINS:
        if not config.plugins:
            raise PairliftError(f"{config.path} has no [plugins.NAME], and the study compares them: add some")
        study = Study("which plugin brings most?", lambda _: [Variant(p, p) for p in config.plugins])
    elif name == BESIDE:
        plugin_of(config, plugin)
        others = [Variant(f"+ {p}", p, beside=plugin) for p in config.plugins if p != plugin]
        study = Study(f"what does each other plugin bring beside {plugin}?", lambda p: [Variant(p, p), *others])
    else:
        plugin_of(config, plugin)
        study = STUDIES[name]
    arms = study.of(plugin)
    for arm in arms:
        if arm.after and not goes_on(config, arm.plugin):
            path = config.plugins[arm.plugin].path
            raise PairliftError(f"study {name}: {path} cannot go on from an earlier fit; --plugin names another plugin")
        try:
            arm.configured(config)
        except PairliftError as error:
            what = ", ".join(f"{option} = {value!r}" for option, value in arm.options.items())
            raise PairliftError(
                f"study {name} has an arm with {what}, which {config.plugins[arm.plugin].path} does not take: --plugin "
                f"names another plugin of the TOML. {error}"
            ) from error
    return study, arms
