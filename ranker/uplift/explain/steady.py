"""Whether SQL says the same each time that it is asked: by DuckDB's parse of it, and what it says of its functions."""

import json
from collections.abc import Collection, Iterator
from typing import Any

import duckdb

#: of the clock, unmarked by DuckDB: what it takes for a column that is none, two functions, and `age` of one time
WORDS = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}
CLOCK = {"current_localtime", "current_localtimestamp"}
AGE = "age"
#: a function is one value for all time, or it is marked; a macro has the clock by a word
MARKED = """SELECT function_name FROM duckdb_functions()
WHERE stability <> 'CONSISTENT' OR macro_definition LIKE '%current_timestamp%'"""


def unsteady(con: duckdb.DuckDBPyConnection, sql: str, columns: Collection[str]) -> str:
    """Return the first part of an expression that luck or the clock decides, such as `random`.

    Empty where there is none, and of what cannot be parsed. columns: that the expression sees.
    """
    asked = con.execute("SELECT json_serialize_sql(?)", [f"SELECT ({sql}) AS x"]).fetchall()
    marked = CLOCK | {name for (name,) in con.execute(MARKED).fetchall()}
    own = {name.lower() for name in columns}
    return next((found for node in _nodes(json.loads(asked[0][0])) if (found := _luck(node, marked, own))), "")


def _luck(node: dict[str, Any], marked: Collection[str], own: Collection[str]) -> str:
    """Return a node of the parsed SQL as it is written, where it is none that says the same each time."""
    if node.get("sample"):
        return "USING SAMPLE"
    if node.get("class") == "FUNCTION":
        name = node["function_name"].lower()
        given = len(node["arguments"]) + (len(node["qualified_name"]["path"]) > 1)  # x.age() is age(x)
        return name if name in marked or (name == AGE and given == 1) else ""
    if node.get("class") == "COLUMN_REF" and len(node["column_names"]) == 1:
        name = node["column_names"][0].lower()
        return name if name in WORDS and name not in own else ""
    return ""


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects of a JSON document."""
    if isinstance(tree, dict):
        yield tree
    for of in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(of)
