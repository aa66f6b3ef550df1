"""The TOML's keys as `pairlift config` lists them: every key, with a default that means what it says."""

import json
import tomllib
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from features.baselines import ALSSettings, NoiseSettings
from features.errors import PairliftError
from features.settings import duration_text, parse_duration
from neural.settings import TowerSettings
from ranker.cli.config import forms, kind
from ranker.cli.main import cli
from ranker.config import Config, load_config
from ranker.examples import example_text

CLASSES = {
    "neural.two_tower:TwoTower": TowerSettings,
    "features.baselines:ALS": ALSSettings,
    "features.baselines:Noise": NoiseSettings,
}
NEEDED = """
name = "mine"
[events]
source = "log.parquet"
[[grades]]
name = "skip"
when = "true"
"""


def listed(*words: str, columns: int = 100) -> str:
    done = CliRunner().invoke(cli, ["config", *words], env={"COLUMNS": str(columns)})
    assert done.exit_code == 0, done.output
    return done.output


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models_in(field.annotation)
    for part in get_args(annotation):
        yield from models_in(part)


MODELS = sorted({*models_in(Config), *CLASSES.values()}, key=lambda model: model.__name__)


@pytest.mark.parametrize("model", MODELS)
def test_every_key_has_a_description(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert field.description, f"{model.__name__}.{name}"
        assert field.description.endswith((".", "?")), name


def shown_defaults(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The table that a user would write to say every default; None is said by leaving the key out."""
    table = {}
    for key, value in schema["properties"].items():
        inner = [form["$ref"] for form in forms(value) if "$ref" in form]
        if inner and value.get("default") is not None:
            table[key] = shown_defaults(definitions[inner[0].rpartition("/")[2]], definitions)
        elif value.get("default") is not None:
            table[key] = value["default"]
    return table


def test_the_shown_defaults_are_those_of_a_file_that_says_nothing() -> None:
    schema = json.loads(listed("--json"))
    needed = tomllib.loads(NEEDED)
    said = shown_defaults(schema, schema["$defs"]) | needed
    assert said["pairing"]["window"] == "30m"
    assert said["sources"]["popular"] == {"quota": 200, "deadline": "0.05s"}
    assert Config(**said) == Config(**needed)
    for path, model in CLASSES.items():
        assert model(**shown_defaults(json.loads(listed(path, "--json")), {})) == model()


def test_every_key_is_listed_with_type_default_and_meaning() -> None:
    text = " ".join((listed() + "".join(listed(path) for path in CLASSES)).split())
    schema = json.loads(listed("--json"))
    tables = [schema, *schema["$defs"].values(), *(json.loads(listed(path, "--json")) for path in CLASSES)]
    for table in tables:
        for key, value in table["properties"].items():
            assert " ".join(value["description"].split()) in text, key
            if "$ref" not in json.dumps(value):
                default = value.get("default", "required")
                words = default if default == "required" else f"default {json.dumps(default).replace('null', 'none')}"
                assert f" {key} {kind(value)}; {words} " in text, key


@pytest.mark.parametrize(
    ("section", "says", "not_says"),
    [
        ("pairing", ["[pairing]", 'window duration such as "7d"; default "30m"', "[pairing.towers]"], ["[split]"]),
        ("pairing.towers", ["[pairing.towers]", "max_size integer >= 2 and <= 1000000; default none"], ["negatives"]),
        ("pairing.negatives", ["[pairing]", "negatives integer >= 0; default 0"], ["window"]),
        ("[[counters]]", ["[[counters]]", "stats list of text, not empty; required"], ["[features]"]),
        ("name", ["name text; required"], ["[data]"]),
        ("plugins.two_tower", ["[plugins.NAME]", "class text; required"], ["[ranker]"]),
        ("split.t1", ["t1 number, time or date; default 0.5"], ["validation"]),
        ("sources.nearest", ["quota integer >= 1; default 200", "turns it off"], ["popular"]),
        ("booster.monotone", ["monotone table of -1 or 1; default {}"], ["margin"]),
        ("uplift.seeds", ["seeds list of integers >= 0 and < 2147483648, not empty; default [0, 1, 2, 3, 4]"], []),
        (
            "neural.two_tower:TwoTower",
            ['lag duration such as "7d" or "daily"; default "0s"', "width integer"],
            ["trees"],
        ),
        ("features.baselines:Noise", ["takes no options"], []),
    ],
)
def test_a_section_is_a_table_a_key_or_a_plugins_class(section: str, says: list[str], not_says: list[str]) -> None:
    text = " ".join(listed(section).split())
    for words in says:
        assert words in text
    for words in not_says:
        assert words not in text


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("pairng", "did you mean 'pairing'?"),
        ("pairing.windw", "did you mean 'pairing.window'?"),
        ("pairing.towers.windw", "did you mean 'pairing.towers.window'?"),
        ("nothing like it", "known: booster, counters"),
        ("features.baselines:SLA", "has no attribute 'SLA'"),
        ("features.plugin:FeaturePlugin", "class attribute `options`"),
    ],
)
def test_an_unknown_section_is_a_sentence_and_status_2(section: str, says: str) -> None:
    done = CliRunner().invoke(cli, ["config", section])
    assert done.exit_code == 2
    assert says in done.output


@pytest.mark.parametrize("columns", [40, 72, 300])
def test_lines_fit_the_terminal(columns: int) -> None:
    lines = listed(columns=columns).splitlines()
    assert max(map(len, lines)) <= min(columns, 110)
    assert max(map(len, lines)) > min(columns, 110) - 20


@pytest.mark.parametrize(
    ("key", "place", "command"),
    [
        ("boster = 1\n", "", "pairlift config"),
        ("[pairing.towers]\nwindw = '1h'\n", "pairing.towers", "pairlift config pairing.towers"),
        ("[[counters]]\nkye = ['user']\n", "counters", "pairlift config counters"),
        ("[sources.popular]\nqouta = 1\n", "sources.popular", "pairlift config sources.popular"),
    ],
)
def test_an_unknown_key_says_what_lists_the_known_ones(tmp_path: Any, key: str, place: str, command: str) -> None:
    (tmp_path / "pairlift.toml").write_text(key + NEEDED)
    with pytest.raises(PairliftError, match=f"unknown key .did you mean '.*'.*`{command}` lists the keys"):
        load_config(tmp_path / "pairlift.toml")
    assert listed(*command.split()[2:])


def test_the_template_says_where_the_keys_are_listed() -> None:
    assert "pairlift config" in "".join(example_text("template").splitlines()[:3])


@pytest.mark.parametrize("text", ["0.05s", "90s", "5m", "1h", "36h", "7d", "0s"])
def test_a_duration_is_written_as_it_was_read(text: str) -> None:
    assert parse_duration(duration_text(int(str(parse_duration(text))))) == parse_duration(text)
