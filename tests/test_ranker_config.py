"""The TOML's keys as `pairlift config` lists them: every key, with a default that means what it says."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from features.baselines import ALSSettings, NoiseSettings
from features.errors import PairliftError
from features.final import make_ranker
from features.plugin import make_plugin
from features.settings import duration_text, parse_duration
from neural.settings import TowerSettings
from ranker.cli.config import forms, kind
from ranker.cli.main import cli
from ranker.config import Config, load_config, wanted_floor
from ranker.examples import example_text
from ranker.settings import BoosterSettings
from ranker.training.booster import DEFAULTS

CLASSES = {
    "neural.two_tower:TwoTower": TowerSettings,
    "features.baselines:ALS": ALSSettings,
    "features.baselines:Noise": NoiseSettings,
}
ROOT = Path(__file__).parent.parent
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
        if inner and value.get("default") not in (None, False):
            table[key] = shown_defaults(definitions[inner[0].rpartition("/")[2]], definitions)
        elif value.get("default") is not None:
            table[key] = value["default"]
    return table


def test_the_shown_defaults_are_those_of_a_file_that_says_nothing() -> None:
    schema = json.loads(listed("--json"))
    needed = tomllib.loads(NEEDED)
    said = shown_defaults(schema, schema["$defs"]) | needed
    assert said["pairing"]["window"] == "30m"
    assert said["sources"]["popular"] == {"deadline": "0.05s", "half_life": "7d"}
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
        (
            "pairing",
            ["[pairing]", 'window duration such as "7d" (s, m, h or d); default "30m"', "[pairing.towers]"],
            ["[split]"],
        ),
        ("pairing.towers", ["[pairing.towers]", "max_size integer >= 2 and <= 1000000; default none"], ["negatives"]),
        ("pairing.negatives", ["[pairing]", "negatives integer >= 0; default 0"], ["window"]),
        ("[[counters]]", ["[[counters]]", "stats list of text, not empty; required"], ["[features]"]),
        ("name", ["name text; required"], ["[data]"]),
        ("plugins.two_tower.class", ["[plugins.NAME]", "class text; required"], ["[ranker]"]),
        (".record", ["[record]", "dedupe_days number > 0"], ["[serve]"]),
        ("neural.two_tower:TwoTower.width", ["[plugins.NAME] with class", "width integer"], ["heads"]),
        ("plugins.two_tower", ["[plugins.NAME]", "class text; required"], ["[ranker]"]),
        ("split.t1", ["t1 number, time or date; default 0.5"], ["validation"]),
        ("sources.nearest", ["quota integer >= 1", "weight number >= 0; default 0.5"], ["cooccurrence"]),
        ("booster.monotone", ["monotone table of -1 or 1; default {}"], ["margin"]),
        ("uplift.seeds", ["seeds list of integers >= 0 and < 2147483648, not empty; default [0, 1, 2, 3, 4]"], []),
        (
            "neural.two_tower:TwoTower",
            ['lag duration such as "7d" (s, m, h or d) or "daily"; default "0s"', "width integer"],
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
        ("window", "the TOML has no 'window' (did you mean 'pairing.window' or 'pairing.towers.window'?)"),
        ("half_life", "did you mean 'pairing.half_life' or 'sources.popular.half_life' or"),
        ("plugins.als.factors", "the other keys of [plugins.NAME] are options of its class; `pairlift config CLASS`"),
        ("booster.params.num_leaves", "the keys of [booster.params] are your own; `pairlift config booster.params`"),
        ("events.feedback.click", "the keys of [events.feedback] are your own; `pairlift config events.feedback`"),
        ("neural.two_tower:TwoTower.widht", "neural.two_tower:TwoTower has no option 'widht' (did you mean 'width'?)"),
        ("features.baselines:SLA", "has no attribute 'SLA'"),
        ("features.plugin:FeaturePlugin", "class attribute `options`"),
    ],
)
def test_an_unknown_section_is_a_sentence_and_status_2(section: str, says: str) -> None:
    done = CliRunner().invoke(cli, ["config", section])
    assert done.exit_code == 2
    assert says in done.output


@pytest.mark.parametrize(
    ("section", "needed"), [("pairing", {"GroupSettings"}), ("record", set()), ("features.baselines:ALS", set())]
)
def test_the_schema_of_a_section_has_the_definitions_that_it_needs_alone(section: str, needed: set[str]) -> None:
    schema = json.loads(listed(section, "--json"))
    assert set(schema.get("$defs", {})) == needed
    assert set(schema.get("required", ())) <= set(schema["properties"])


def test_no_summary_of_a_verb_is_cut() -> None:
    done = CliRunner().invoke(cli, ["--help"], env={"COLUMNS": "80"})
    width = max(map(len, cli.commands))
    for name, command in cli.commands.items():
        assert f"{name:{width}}  {command.short_help}\n" in done.output, name


def test_the_boosters_defaults_are_those_that_its_description_lists() -> None:
    said = BoosterSettings.model_fields["params"].description
    for name, value in DEFAULTS.items():
        assert f"{name} = {value}" in str(said), name


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


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("", '[split]\nt1 = "1998-01-01"', "split.t1: a number, a time or a date was expected, found '1998-01-01': "
         "write it without quotes"),
        ("", "[split]\nt1 = 1", "split: t1 = 1.0: a quantile lies between 0 and 1; a time is written 2022-04-25"),
        ("", "[sources.popular]\nquta = 3", "sources.popular.quta: unknown key (did you mean 'quota'?); "
         "`pairlift config sources.popular` lists the keys"),
        ("", "[sources]\npopular = true", "sources.popular: a table or false was expected, found true"),
        ("", '[pairing]\nmax_size = "20"', "pairing.max_size: an integer was expected, found '20': write it without "
         "quotes"),
        ("", "[pairing]\nmax_size = 2.5", "pairing.max_size: an integer was expected, found 2.5"),
        ("", "[pairing]\nmax_size = 1", "pairing.max_size: a number of at least 2 was expected, found 1"),
        ("", '[pairing]\nwindow = "1w"', "pairing.window: a duration such as '90s', '30m', '24h' or '7d' was expected, "
         "found '1w'"),
        ("", "[pairing.weights]\n'a > b' = 'x'", "pairing.weights.a > b: a number was expected, found 'x'"),
        ("", "[booster.monotone]\nx = 2", "booster.monotone.x: -1 or 1 was expected, found 2"),
        ("", "[booster]\nmargin = inf", "booster.margin: a finite number was expected, found inf"),
        ("", "[sources.nearest]\nweight = inf", "sources.nearest.weight: a finite number was expected, found inf"),
        ("", "[booster.params]\nx = 2020-01-01", "booster.params.x: true or false, an integer, a number, text or a "
         "list was expected, found 2020-01-01"),
        ("", "[uplift]\nseeds = []", "uplift.seeds: a list that is not empty was expected, found []"),
        ("", "[uplift]\nseeds = [1, 1]", "uplift.seeds: distinct seeds were expected, found [1, 1]"),
        ("", "[ranker]\nplugins = 'als'", "ranker.plugins: a list was expected, found 'als'"),
        ("", "[plugins.als]\nfactors = 3", "plugins.als.class: missing key; `pairlift config plugins` lists the keys"),
        ("", "[[counters]]\nkey = ['user']\nevent = 'x'", "counters.0.stats: missing key; `pairlift config counters` "
         "lists the keys"),
        ("", "[events.feedback]\n1a = 'x'", "events.feedback.1a: '1a': a letter, then letters, digits and single "
         "underscores were expected, and no '_x_'"),
        ('name = "mine"\n', "", "name: missing key; `pairlift config` lists the keys"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_sentence_about_one_place(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = tmp_path / "pairlift.toml"
    path.write_text((NEEDED.replace(old, "") if old else NEEDED) + new)
    with pytest.raises(PairliftError) as found:
        load_config(path)
    assert str(found.value) == f"{path} has 1 problem:\n  {says}"
    assert found.value.__context__ is None  # it would be alive at the end of the process


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ("[filters.x]\nkeep = 'price <'", "filters.x.keep: 'price <': a SQL condition was expected, found what DuckDB"),
        (
            "[filters.x]\nkeep = 'upper(author)'",
            r"upper\(…\) is not supported in a condition; supported are comparisons",
        ),
        (
            "[filters.x]\nkeep = 'prize > 1'",
            r"\[filters.x\] keep: 'prize' is not of \[items.columns\] .did you mean 'pri",
        ),
        (
            "[filters.x]\nkeep = 'price > context.ages'",
            "keep: 'context.ages' is not of .events.context. .did you mean 'ag",
        ),
        ("[filters.seen]\nkeep = 'price > 1'", r"\[filters.seen\]: a filter of Pairlift's own has this name"),
        ("[filters.x]\nkeep = 'title > 1'", "keep: 'title' is not of .items.columns."),
        ("[filters.x]\nkep = 'price > 1'", r"filters.x.kep: unknown key .did you mean 'keep'"),
        (
            "[lists]\nat_most = {auther = 2}",
            r"\[lists\] at_most: 'auther' is not of \[items.columns\] .did you mean 'auth",
        ),
        ("[lists]\nat_most = {author = 0}", "lists.at_most.author: a number of at least 1 was expected, found 0"),
    ],
)
def test_filters_are_checked_when_the_file_is_read(tmp_path: Path, tables: str, says: str) -> None:
    path = tmp_path / "pairlift.toml"
    items = "[items]\nsource = 'i'\ncolumns = {price = 'p', author = 'a'}\ntext = {title = 't'}\n"
    whole = NEEDED + "[events.context]\nage = 'a'\n" + items
    path.write_text(f'{whole}[filters.fit]\nkeep = "price <= context.age AND author <> context.surface"\n')
    assert list(load_config(path).filters) == ["fit"]
    path.write_text(whole + tables)
    with pytest.raises(PairliftError, match=says):
        load_config(path)


@pytest.mark.parametrize(
    ("top", "tables", "says"),
    [
        ("", '[features]\ncounters = "add"', "adds the [[counters]] to the default ones, but there is none"),
        ("counters = []\n", '[features]\ncounters = "add"', "but counters = [] switches all of them off"),
        ("", '[features]\ncolumns = ["hour"]\nadd = ["weekday"]', "keep one of the two"),
        ("", '[features]\ncounters = "replace"', "features.counters: 'add' was expected, found 'replace'"),
    ],
)
def test_contradictions_about_the_defaults_are_told(tmp_path: Path, top: str, tables: str, says: str) -> None:
    path = tmp_path / "pairlift.toml"
    path.write_text(top + NEEDED + tables)
    with pytest.raises(PairliftError, match=re.escape(says)):
        load_config(path)


@pytest.mark.parametrize(("names", "floor"), [("a", 0), ("ab", 1), ("abc", 1), ("abcd", 2), ("abcde", 2)])
def test_wanted_is_from_the_middle_grade_on_or_from_the_one_named(tmp_path: Path, names: str, floor: int) -> None:
    path = tmp_path / "pairlift.toml"
    grades = "".join(f"[[grades]]\nname = 'g_{name}'\nwhen = 'true'\n" for name in names)
    text = NEEDED[: NEEDED.index("[[grades]]")] + grades
    path.write_text(text)
    assert wanted_floor(load_config(path)) == floor
    path.write_text(f"{text}[lists]\nwanted = 'g_{names[-1]}'")
    assert wanted_floor(load_config(path)) == len(names) - 1
    path.write_text(f"{text}[lists]\nwanted = 'g'")
    with pytest.raises(PairliftError, match=r"\[lists\] wanted names the grade 'g' \(did you mean 'g_"):
        load_config(path)


@pytest.mark.parametrize(
    ("path", "params", "says"),
    [
        ("neural.two_tower:TwoTower", {"heads": 3}, "heads = 3 must divide width = 64"),
        ("neural.two_tower:TwoTower", {"lag": "1w"}, "lag: a duration such as '90s', '30m', '24h' or '7d' was "
         "expected, found '1w'; or \"daily\""),
        ("neural.two_tower:TwoTower", {"columns": ["x"]}, "columns.0: dot, user_vector, item_vector, grade or "
         "feedback:NAME was expected, found 'x'"),
        ("neural.two_tower:TwoTower", {"width": 30}, "width: a multiple of 8 was expected, found 30"),
        ("features.baselines:ALS", {"factors": "3"}, "factors: an integer was expected, found '3': write it without "
         "quotes"),
        ("features.baselines:ALS", {"factros": 3}, "factros: unknown key (did you mean 'factors'?); "
         "`pairlift config features.baselines:ALS` lists the keys"),
        ("features.baselines:Noise", {"seed": 1}, "seed: unknown key: features.baselines:Noise takes no options"),
    ],
)  # fmt: skip
def test_a_wrong_option_of_a_plugin_is_one_sentence(path: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(PairliftError) as found:
        make_plugin("mine", path, params)
    assert str(found.value) == f"[plugins.mine]: {says}"
    assert found.value.__context__ is None


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("two_tower:TwoTower", 'columns = ["dot", "feedback:lik"]', "columns: 'feedback:lik' is none of "
         "[events.feedback] (did you mean 'like'?)"),
        ("two_tower:TwoTower", 'context = ["surface", "devise"]', "context: surface, hour, weekday or a name of "
         "[events.context] was expected, found 'devise' (did you mean 'device'?)"),
        ("cross_encoder:CrossEncoder", 'context = ["devise"]', "context: surface, hour, weekday or a name of "
         "[events.context] was expected, found 'devise' (did you mean 'device'?)"),
        ("two_tower:TwoTower", "words = true", "words: [items.text] and [users.text] name no text; name one, or leave "
         "`words` out"),
        ("limaml:LiMAML", "words = true", "words: [items.text] and [users.text] name no text; name one, or leave "
         "`words` out"),
        ("two_tower:TwoTower", "words = true\n[users]\nsource = 'u'\n[users.text]\nabout = 'a'", ""),
        ("two_tower:TwoTower", 'columns = ["feedback:like", "grade"]\ncontext = ["device", "hour"]', ""),
    ],
)  # fmt: skip
def test_what_a_plugin_reads_of_the_log_is_checked_with_the_toml(
    tmp_path: Path, kind: str, options: str, says: str
) -> None:
    path = tmp_path / "pairlift.toml"
    tables = "[events.feedback]\nlike = 'x'\n[events.context]\ndevice = 'y'\n"
    path.write_text(f"{NEEDED}{tables}[plugins.mine]\nclass = 'neural.{kind}'\n{options}\n")
    if not says:
        load_config(path)
        return
    with pytest.raises(PairliftError) as found:
        load_config(path)
    assert str(found.value) == f"[plugins.mine]: {says}"


def test_a_class_that_is_none_is_called_by_its_table() -> None:
    with pytest.raises(PairliftError, match=r"^\[network\] class 'neural.final:Netwrok'.* has no attribute"):
        make_ranker("neural.final:Netwrok", {})
    with pytest.raises(PairliftError, match=r"^\[network\] class 'features.baselines:ALS' lacks score of"):
        make_ranker("features.baselines:ALS", {})
    with pytest.raises(PairliftError, match=r"^plugin class 'neural.two_tower:TwoTwoer'"):
        make_plugin("mine", "neural.two_tower:TwoTwoer", {})


@pytest.mark.parametrize("wrong", ["[pairing]\nwindow = '1w'", "[uplift]\nseeds = [1, 1]", "[time]\nzone = 'Mars'"])
def test_a_wrong_value_prints_one_sentence_and_nothing_of_native_modules(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "pairlift.toml").write_text(NEEDED + wrong)
    done = subprocess.run(
        [sys.executable, "-m", "ranker.cli", "validate", str(tmp_path / "pairlift.toml")],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])},
    )  # fmt: skip
    assert done.returncode == 2
    head, line = done.stderr.splitlines()
    assert head.endswith("has 1 problem:")
    assert line.startswith("  ")
    assert not done.stdout


def test_variables_are_expanded_in_both_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pairlift.toml").write_text(NEEDED + "[data]\nroot = '$PLACE/data'\nwork = '${PLACE}/work'\n")
    config = load_config(tmp_path / "pairlift.toml")
    with pytest.raises(PairliftError, match=r"\[data\] work: the environment variable PLACE is not set"):
        _ = config.work
    monkeypatch.setenv("PLACE", str(tmp_path / "place"))
    assert (config.data_root, config.work) == (tmp_path / "place" / "data", tmp_path / "place" / "work")
    monkeypatch.delenv("PAIRLIFT_DATA", raising=False)
    (tmp_path / "pairlift.toml").write_text(NEEDED + "[data]\nroot = '$PAIRLIFT_DATA/x'\n")
    assert load_config(tmp_path / "pairlift.toml").data_root == Path("../shared/data/x").resolve()


def test_the_template_says_where_the_keys_are_listed() -> None:
    assert "pairlift config" in "".join(example_text("template").splitlines()[:3])


@pytest.mark.parametrize("text", ["0.05s", "90s", "5m", "1h", "36h", "7d", "0s"])
def test_a_duration_is_written_as_it_was_read(text: str) -> None:
    assert parse_duration(duration_text(int(str(parse_duration(text))))) == parse_duration(text)
