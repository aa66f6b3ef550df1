"""The command `config`: what the keys of the TOML mean, from the settings' own descriptions."""

import json
import re
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import click
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from features.errors import PairliftError, did_you_mean
from features.plugin import class_of
from features.settings import duration_text
from ranker.cli.plugins import PLUGINS
from ranker.config import Config

#: a JSON Schema, or a part of one
Schema = dict[str, Any]

PIPE_WIDTH, LEAST_WIDTH, MOST_WIDTH = 100, 40, 110
SIMPLE = {"boolean": "true/false", "integer": "integer", "number": "number", "string": "text"}
FORMATS = {"date-time": "time", "date": "date"}
BOUNDS = {"exclusiveMinimum": "> {}", "minimum": ">= {}", "exclusiveMaximum": "< {}", "maximum": "<= {}"}


class FileSchema(GenerateJsonSchema):
    """JSON Schema of a settings model, with defaults as the TOML has them."""

    def encode_default(self, dft: Any) -> Any:
        """Return {} for a table: its own keys have the defaults."""
        return {} if isinstance(dft, BaseModel) else super().encode_default(dft)

    def default_schema(self, schema: Any) -> Schema:
        """Write a duration's default as text."""
        found = super().default_schema(schema)
        if type(found.get("default")) is int and any("pattern" in form for form in forms(found)):
            found["default"] = duration_text(found["default"])
        return found

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return False: a title would say the key's name once more."""
        return False


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the TOML."""

    path: str  # "pairing.towers"; "" for the top of the file
    head: str  # as the TOML has it: [pairing.towers], [[grades]], [plugins.NAME]
    meaning: str
    required: bool
    schema: Schema  # of its keys


@click.command(short_help="List the keys of the TOML: type, default, meaning.")
@click.argument("section", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON Schema, which editors of TOML read.")
@PLUGINS
def config(section: str | None, as_json: bool) -> None:
    """List the keys that the TOML may have, with type, default and meaning: all, or those of SECTION.

    SECTION is a table, a key of one, or the class of a plugin, for the options that its [plugins.NAME] table takes (of
    a candidate source, its [sources.NAME], of a network that ranks, its [network] table), or for one of them.
    "required" stands where there is no default, and "default none" where a key that is left out has no value.

    \b
    Examples:
      pairlift config
      pairlift config pairing
      pairlift config pairing.window
      pairlift config neural.two_tower:TwoTower
      pairlift config neural.two_tower:TwoTower.width
      pairlift config ranker.sources.walks:RandomWalks
      pairlift config --json > pairlift.schema.json
    """
    schema = Config.model_json_schema(schema_generator=FileSchema)
    if section is None:
        chosen = list(tables(schema))
    elif ":" in section:
        chosen = choose_option(section)
    else:
        chosen = choose(list(tables(schema)), section.strip("[]."))
    if as_json:
        click.echo(json.dumps(whole(chosen[0].schema, schema["$defs"]), indent=1, ensure_ascii=False))
    else:
        click.echo("\n\n".join("\n".join(lines) for lines in pages(chosen)))


def forms(schema: Schema) -> list[Schema]:
    """Return the forms that a value may have: one, or several where either will do."""
    return [form for form in schema.get("anyOf", [schema]) if form.get("type") != "null"]


def tables(schema: Schema) -> Iterator[Table]:
    """Give all tables of the file, the top first, each before those within it."""
    yield Table("", "", "At the top of the file, before any table:", True, schema)
    yield from _within(schema, "", schema["$defs"])


def _within(schema: Schema, path: str, definitions: Schema) -> Iterator[Table]:
    for key, value in schema["properties"].items():
        found = table_form(value)
        if found is not None:
            reference, head = found
            inner, place = definitions[reference.rpartition("/")[2]], f"{path}{key}"
            required = key in schema.get("required", [])
            yield Table(place, head.format(place), value["description"], required, inner)
            yield from _within(inner, f"{place}.", definitions)
    further = schema.get("additionalProperties")
    if isinstance(further, dict) and "$ref" in further:  # tables by names of the user's own, beside the fixed ones
        inner = definitions[further["$ref"].rpartition("/")[2]]
        yield Table(f"{path}NAME", f"[{path}NAME]", _meaning(inner), False, inner)


def table_form(schema: Schema) -> tuple[str, str] | None:
    """Return the reference to a table's keys and how the TOML writes the table's head, if the value is a table."""
    for form in forms(schema):
        for inner, head in (
            (form, "[{}]"),
            (form.get("items"), "[[{}]]"),
            (form.get("additionalProperties"), "[{}.NAME]"),
        ):
            if isinstance(inner, dict) and "$ref" in inner:
                return inner["$ref"], head
    return None


def whole(schema: Schema, definitions: Schema) -> Schema:
    """Return a table's schema with the definitions that it refers to, and no others."""
    own = {key: value for key, value in schema.items() if key != "$defs"}
    definitions = definitions | schema.get("$defs", {})
    needed, asked = set[str](), [own]
    while asked:
        names = set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(asked.pop()))) - needed
        needed |= names
        asked += [definitions[name] for name in names]
    return ({"$defs": {name: definitions[name] for name in sorted(needed)}} if needed else {}) | own


def plugin_options(path: str) -> Iterator[Table]:
    """Give the options of a class, which names their model in the attribute `options`, as `tables` does."""
    place, protocols = f"class '{path}'", "features.plugin.FeaturePlugin, or of features.final.FinalRanker"
    found = class_of(place, path, (), protocols)
    if hasattr(found, "propose"):
        table = "sources.NAME"
    else:
        found = class_of(place, path, ("fit", "save", "load"), protocols)
        table = "plugins.NAME" if hasattr(found, "values") else "network"
    model = getattr(found, "options", None)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise PairliftError(
            f"{place} does not say what its options are: a pydantic model was expected as its class attribute `options`"
        )
    schema = model.model_json_schema(schema_generator=FileSchema)
    yield Table(path, f'[{table}] with class = "{path}"', _meaning(schema), False, schema)
    yield from _within(schema, f"{table}.", schema.get("$defs", {}))


def _meaning(schema: Schema) -> str:
    """Return the first paragraph of a model's docstring."""
    return " ".join(schema.get("description", "").partition("\n\n")[0].split())


def choose_option(name: str) -> list[Table]:
    """Return the options of a class, `module:Class`, or the one that `module:Class.key` names."""
    module, _, rest = name.partition(":")
    kind, _, key = rest.partition(".")
    found = list(plugin_options(f"{module}:{kind}"))
    if not key:
        return found
    if key not in found[0].schema["properties"]:
        raise PairliftError(f"{module}:{kind} has no option '{key}'{did_you_mean(key, found[0].schema['properties'])}")
    return [_only(found[0], key)]


def choose(known: list[Table], name: str) -> list[Table]:
    """Return the table of a name and those within it, or the one key that is named; PairliftError for another name."""
    chosen = [table for table in known if table.path == name or table.path.startswith(f"{name}.")]
    if chosen:
        return chosen
    by_path = {table.path: table for table in known}
    parent, _, key = name.rpartition(".")
    table = by_path.get(parent)
    if table is not None and table.head.endswith(".NAME]"):
        return [table]
    table = table or _named(by_path, parent)
    if table is not None and key in table.schema["properties"]:
        return [_only(table, key)]
    if f"{parent}.NAME" in by_path:
        return [by_path[f"{parent}.NAME"]]
    raise PairliftError(_why_not(by_path, table, name))


def _named(by_path: dict[str, Table], path: str) -> Table | None:
    """Return the table of which `path` is one by a name of the user's own: [plugins.NAME] for `plugins.als`."""
    parent = path.rpartition(".")[0]
    table = by_path.get(f"{parent}.NAME", by_path.get(parent))
    return table if table is not None and table.head.endswith(".NAME]") else None


def _why_not(by_path: dict[str, Table], table: Table | None, name: str) -> str:
    """Return what to say of a name that is not there. table: that of its parent, where there is one."""
    parent, _, key = name.rpartition(".")
    above, _, own = parent.rpartition(".")
    if above in by_path and "additionalProperties" in by_path[above].schema["properties"].get(own, {}):
        return f"'{name}': the keys of [{parent}] are your own; `pairlift config {parent}` says what they may be"
    if table is not None and table.head.endswith(".NAME]"):
        return f"'{name}': the other keys of {table.head} are options of its class; `pairlift config CLASS` lists them"
    places = [path for path, other in by_path.items() if path and key in other.schema["properties"]]
    if places and not parent:
        return f"the TOML has no '{name}' (did you mean {' or '.join(repr(f'{path}.{key}') for path in places)}?)"
    near = [f"{parent}.{key}" if parent else key for key in table.schema["properties"]] if table else by_path
    return f"the TOML has no '{name}'{did_you_mean(name, filter(None, near))}"


def _only(table: Table, key: str) -> Table:
    required = [name for name in table.schema.get("required", ()) if name == key]
    return replace(
        table, schema=table.schema | {"properties": {key: table.schema["properties"][key]}, "required": required}
    )


def pages(chosen: list[Table]) -> Iterator[list[str]]:
    """Give the lines of each table."""
    columns = shutil.get_terminal_size((PIPE_WIDTH, 24)).columns
    width = max(LEAST_WIDTH, min(columns, MOST_WIDTH))
    heads: dict[int, str] = {}
    for table in chosen:
        lines = [click.style(table.head, bold=True) + ("  required" if table.required else "")] if table.head else []
        lines += textwrap.wrap(table.meaning, width)
        first = heads.setdefault(id(table.schema), table.head)
        if first != table.head:
            yield [*lines, f"Keys as in {first}."]
            continue
        for key, value in table.schema["properties"].items():
            if table_form(value) is None:
                lines += ["", *entry(key, value, key in table.schema.get("required", []), width)]
        yield lines


def entry(key: str, schema: Schema, required: bool, width: int) -> list[str]:
    """Return the lines of one key: its name, type and default, and below it what it means."""
    default = "required" if required else f"default {text(schema['default'])}"
    first, *more = textwrap.wrap(
        f"{key}  {kind(schema)}; {default}", width, initial_indent="  ", subsequent_indent="    "
    )
    meaning = textwrap.wrap(
        schema["description"],
        width,
        initial_indent="      ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [first.replace(key, click.style(key, bold=True), 1), *more, *meaning]


def text(value: Any) -> str:
    """Return a value as the TOML writes it."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def kind(schema: Schema, many: bool = False) -> str:
    """Return the type of a value in words, with its limits. many: in the plural."""
    if "anyOf" in schema:
        kinds = list(dict.fromkeys(kind(form, many) for form in forms(schema)))
        return " or ".join(filter(None, [", ".join(kinds[:-1]), kinds[-1]]))
    if "enum" in schema or "const" in schema:
        return " or ".join(text(value) for value in schema.get("enum", [schema.get("const")]))
    bounds = " and ".join(words.format(schema[name]) for name, words in BOUNDS.items() if name in schema)
    return f"{_name(schema, many)} {bounds}".strip()


def _name(schema: Schema, many: bool) -> str:
    plural = "s" if many else ""
    if "pattern" in schema:
        return f'duration{plural} such as "7d" (s, m, h or d)'
    if schema["type"] == "array":
        return f"list{plural} of {kind(schema['items'], many=True)}{', not empty' if 'minItems' in schema else ''}"
    if schema["type"] == "object":
        return f"table{plural} of {kind(schema['additionalProperties'], many=True)}"
    name = FORMATS.get(schema.get("format", ""), SIMPLE[schema["type"]])
    return name if name in ("text", "true/false") else f"{name}{plural}"
