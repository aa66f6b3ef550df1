"""What the wire contract says, as a plain table: to compare it with what has landed (`golden/contract.json`).

`python tests/contract.py` writes what the contract says now as what has landed: run it when a change that only adds is
to be kept from then on.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pairlift.v1

GOLDEN = Path(__file__).parent / "golden" / "contract.json"


def contract() -> dict[str, Any]:
    """Return all that callers may build on, by dotted names: fields, values of enums, methods, each with what it is."""
    found: dict[str, Any] = {}
    for path in sorted(Path(pairlift.v1.__path__[0]).glob("*_pb2.py")):
        file = import_module(f"pairlift.v1.{path.stem}").DESCRIPTOR
        for message in file.message_types_by_name.values():
            found |= _of_message(message)
        for enum in file.enum_types_by_name.values():
            found |= _of_enum(enum)
        for service in file.services_by_name.values():
            for method in service.methods:
                found[method.full_name] = {
                    "takes": method.input_type.full_name, "gives": method.output_type.full_name,
                    "takes a stream": method.client_streaming, "gives a stream": method.server_streaming,
                }  # fmt: skip
    return found


def _of_message(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in message.fields:
        of = field.message_type or field.enum_type
        found[field.full_name] = {
            "number": field.number, "type": field.type, "of": of.full_name if of else "", "repeated": field.is_repeated,
            "packed": field.is_packed, "presence": field.has_presence, "json": field.json_name,
            "oneof": field.containing_oneof.name if field.containing_oneof else "",
        }  # fmt: skip
    for nested in message.nested_types:
        found |= _of_message(nested)
    for enum in message.enum_types:
        found |= _of_enum(enum)
    return found


def _of_enum(enum: Any) -> dict[str, Any]:
    return {f"{enum.full_name}.{value.name}": {"number": value.number} for value in enum.values}


def broken(landed: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what of the landed contract is no longer so, a sentence each; what was added is nobody's concern."""
    gone = [f"{name} is gone" for name in landed if name not in now]
    return gone + [
        f"{name}: {what} was {value}, and is {now[name][what]}"
        for name, said in landed.items()
        for what, value in said.items()
        if name in now and now[name][what] != value
    ]


if __name__ == "__main__":
    problems = broken(json.loads(GOLDEN.read_text()), contract()) if GOLDEN.exists() else []
    if problems:
        raise SystemExit("\n".join(["what has landed is never changed:", *problems]))
    GOLDEN.write_text(json.dumps(contract(), indent=0, sort_keys=True) + "\n")
    print(f"wrote {GOLDEN}: {len(contract())} names")
