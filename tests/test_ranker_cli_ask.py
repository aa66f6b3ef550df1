"""What `recommend` and `rank` say beside the answer: names that nobody knows, and rules that moved items."""

import json
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from served import serving, user_id
from world import World, with_config

from features.errors import PairliftError
from ranker.bundle import Bundle
from ranker.cli.ask import recommend
from ranker.client import Client
from ranker.server import Server
from ranker.settings import RuleSettings


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(recommend, [str(argument) for argument in arguments])


def test_a_surface_or_a_source_item_that_nobody_knows_is_said(server: Server, world: World) -> None:
    asked = ("--user", user_id(world, 3), "--address", server.address)
    found = run(*asked, "--surface", "fed", "--source-item", 999999)
    assert "--surface: the log has no 'fed' (did you mean 'feed'?), so none counts as named" in found.stderr
    assert "neither in the bundle nor recorded, so left out: source item 999999" in found.stderr
    assert found.stdout == run(*asked).stdout
    known = run(*asked, "--surface", "feed", "--source-item", world.catalog.item_ids[0], "--json")
    assert known.stderr == ""
    assert json.loads(known.stdout)["unknown_source_item"] is False


def test_explained_answers_name_the_rules(bundle: Bundle, world: World) -> None:
    last = int(world.catalog.item_ids[-1])
    ruled = with_config(bundle, rules={"lift": RuleSettings(items=f"item_id = '{last}'", pin=2)})
    with serving(ruled, clock="snapshot") as server:
        found = run("--user", 999999, "--explain", "--address", server.address)
    assert f"rule lift: 1 changed, of this list {last}" in found.stdout


def test_what_was_typed_is_not_said_twice(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = replace(Client(server.address).describe(), context_attributes={"query": True})
    monkeypatch.setattr(Client, "describe", lambda _: typed)
    asked = ("--user", 3, "--address", server.address, "--context", "query=hats")
    assert run(*asked).exit_code == 0
    found = run(*asked, "--query", "shoes").exception
    assert isinstance(found, PairliftError)
    assert "--query and --context query= are two names of one text" in str(found)
