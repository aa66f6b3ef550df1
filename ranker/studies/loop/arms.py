"""What the loop is run with: the TOML of a generated world, and what of it each arm leaves out."""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from features.errors import PairliftError

#: of arms that explore or re-tune, where the TOML does not say how
EXPLORATION: dict[str, Any] = {"share": 0.05}
RETUNE_MINUTES = 0.5
#: Parquet with what the users did before the first served day, and what was recorded since
OLD, LOG = "old.parquet", "log"

Toml = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Arm:
    """One life of the service."""

    name: str  # in the table
    toml: Toml  # its configuration
    retrained: bool = True  # else the first bundle is served to the end
    by_rank: bool = False  # the users are shown what `Rank` puts first of a long list, which undoes what is drawn


def arms_of(toml: Toml, plugin: str) -> list[Arm]:
    """Return the arms of a world's TOML: the first has all, each other lacks one thing, or orders by `Rank`.

    Raises PairliftError where the TOML does not serve the plugin.
    """
    served = toml.get("ranker", {}).get("plugins", [])
    if plugin not in served:
        raise PairliftError(f"study loop: '{plugin}' among [ranker] plugins was expected, found {served}")
    whole = _whole(toml)
    return [
        Arm("all of it", whole),
        Arm("without exploration", _changed(whole, _no_exploration)),
        Arm(f"without {plugin}", _changed(whole, lambda t: t["ranker"]["plugins"].remove(plugin))),
        Arm("without re-tuning", _changed(whole, lambda t: t["booster"].update(retune_minutes=0))),
        Arm("never trained again", whole, retrained=False),
        Arm("in the order of Rank", whole, by_rank=True),
    ]


def _no_exploration(toml: Toml) -> None:
    del toml["exploration"]


def _changed(toml: Toml, change: Callable[[Toml], object]) -> Toml:
    own = deepcopy(toml)
    change(own)
    return own


def _whole(toml: Toml) -> Toml:
    """Return the TOML of a server that records: its log is trained on, and unborn items are not proposed."""
    own = deepcopy(toml)
    own["events"]["source"] = OLD  # of the first training; `with_log` adds what is recorded
    own.setdefault("exploration", dict(EXPLORATION))
    own.setdefault("booster", {}).setdefault("retune_minutes", RETUNE_MINUTES)
    own["items"]["columns"]["born"] = "born"
    own.setdefault("filters", {})["born"] = {"keep": "born <= context.as_of"}
    # Small files, so that all but the last minutes of a day are exported when the next training begins.
    own.setdefault("record", {}).setdefault("segment_mb", 0.02)
    return own


def with_log(toml: Toml) -> Toml:
    """Return the TOML of a later training: it reads what was recorded too."""
    source = f"read_parquet(['{OLD}', '{LOG}/events/*.parquet'], union_by_name=true)"
    return {**toml, "events": {**toml["events"], "source": source}}


def toml_text(toml: Mapping[str, Any]) -> str:
    """Return TOML, a line for each table."""
    return "\n".join(f"{json.dumps(key)} = {_inline(value)}" for key, value in toml.items()) + "\n"


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_inline(own)}" for key, own in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    # A JSON text, true, false or a number is a TOML one; dates are not JSON, and stand in TOML as they are.
    return json.dumps(value) if isinstance(value, str | bool | int | float) else str(value.isoformat())
