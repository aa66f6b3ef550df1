"""A hash of what code does: new statements, defaults and annotations give a new one, new words about them do not.

A Python file is read as a tree without docstrings, comments, layout and the help texts of settings, so that help can be
reworded without a tower being fitted anew.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

#: our packages
OWN = ("features", "neural", "ranker")
#: arguments of pydantic's `Field` that say what a setting means, and change nothing
HELP = ("description", "title")
#: CPython counts how deep it is in a tree for all threads together: of two that parse, one raises a SystemError (seen
#: in 3.11.7; "AST constructor recursion depth mismatch")
_one_at_a_time = Lock()


@cache
def code_hash(*names: str) -> str:
    """Return `source_hash` with the versions of the libraries in it whose numbers a stage keeps."""
    return hashlib.sha256(f"{source_hash(*names)} {json.dumps(versions())}".encode()).hexdigest()


def source_hash(*names: str) -> str:
    """Return a hash of the code of modules and of whole folders of them by dotted name: new code, a new hash.

    Raises ValueError for a name that is neither.
    """
    digest = hashlib.sha256()
    for name in names:
        for label, path in _sources(name):
            digest.update(f"{name}/{label} {hash_source(path)}\n".encode())
    return digest.hexdigest()


def _sources(name: str) -> Iterator[tuple[str, Path]]:
    """Yield the file of a module, or those of a package at any depth, each by its place in the package."""
    found = find_spec(name)
    if found is None:
        raise ValueError(f"code_hash: there is no module or package {name}")
    for folder in map(Path, found.submodule_search_locations or []):
        for path in sorted(folder.rglob("*.py")):
            yield path.relative_to(folder).as_posix(), path
    if found.origin and found.submodule_search_locations is None:  # a module of one file
        yield "", Path(found.origin)


@cache  # several stages read the same files
def hash_source(path: Path) -> str:
    """Return a hash of the code of a file; of its bytes where it is not Python that this interpreter can parse."""
    content = path.read_bytes()
    if path.suffix == ".py":
        with suppress(SyntaxError, ValueError, RecursionError):
            with _one_at_a_time:
                tree = ast.parse(content)
            content = _text(tree).encode(errors="surrogatepass")
    return hashlib.sha256(content).hexdigest()


def _text(node: object) -> str:
    """Return a tree as text, with all that the interpreter acts on and no line numbers."""
    if isinstance(node, list):
        return f"[{','.join([_text(part) for part in node if not _does_nothing(part)])}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [getattr(node, name, None) for name in node._fields]
    if isinstance(node, ast.Call) and _is_field(node.func):
        fields = [node.func, node.args, [k for k in node.keywords if k.arg not in HELP]]
    return f"{type(node).__name__}({','.join([_text(field) for field in fields])})"


def _does_nothing(node: object) -> bool:
    """Return whether a statement is a constant alone, as a docstring is."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_field(function: ast.expr) -> bool:
    """Return whether it is pydantic's `Field`, by its own name or as `pydantic.Field`."""
    return "Field" in (getattr(function, "id", ""), getattr(function, "attr", ""))


def versions() -> dict[str, str]:
    """Return the versions of the libraries whose numbers a stage keeps."""
    found = {d.metadata["Name"].lower(): d.version for d in distributions()}
    return {
        name: found.get(name, "")
        for name in ("duckdb", "gensim", "implicit", "lightgbm", "numba", "numpy", "onnxruntime-gpu", "scipy", "torch")
    }
