"""Callers in other languages, generated from the contract: they get what our own client gets. `pytest -m clients`."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import ROOT, recording, user_id

from ranker.client import ServerError

pytestmark = pytest.mark.clients

CLIENTS = ROOT / "tests" / "clients"
#: exact: what is tested does not change by itself
NODE_PACKAGES = ("@grpc/grpc-js@1.14.7", "@grpc/proto-loader@0.8.1")
#: where Debian's golang-google-grpc-dev has its packages
GO_SOURCES = Path("/usr/share/gocode")


def run(words: list[Any], reason: str, **options: Any) -> str:
    """Run a tool; skip where it, or the registry behind it, is missing."""
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False, timeout=300, **options)
    if done.returncode and reason:
        pytest.skip(f"{reason}: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages that the README names."""
    folder = tmp_path_factory.mktemp("node")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, *NODE_PACKAGES]
    run(install, "the npm registry is not reached")
    return folder


@pytest.fixture(scope="module")
def go_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go client, compiled with the stubs that protoc makes."""
    folder = tmp_path_factory.mktemp("go")
    (folder / "src").mkdir()
    for tool in ("go", "protoc-gen-go", "protoc-gen-go-grpc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if not (GO_SOURCES / "src" / "google.golang.org" / "grpc").is_dir():
        pytest.skip("golang-google-grpc-dev is not installed")
    out = [f"--go_out={folder}/src", f"--go-grpc_out={folder}/src"]
    run(["protoc", "-I", ROOT / "proto", *out, "pairlift/v1/ranking.proto"], "")
    where = {"GO111MODULE": "off", "GOPATH": f"{folder}:{GO_SOURCES}", "GOFLAGS": "", "GOCACHE": f"{folder}/cache"}
    run(["go", "build", "-o", folder / "client", CLIENTS / "client.go"], "", env=os.environ | where)
    return folder / "client"


@pytest.fixture
def asked(bundle, world, tmp_path: Path) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """The arguments of a client after the contract's folder, and what it is to print."""
    user, items = user_id(world, 3), world.catalog.item_ids[:8].tolist()
    with recording(bundle, tmp_path / "log") as (server, client):
        with pytest.raises(ServerError) as error:
            client.rank("who", items)
        ranked, listed = client.rank(user, items, surface="feed"), client.recommend(user, 5)
        wanted = {
            "rank": {**_columns(ranked), "indexes": [one.index for one in ranked.items]},
            "recommend": _columns(listed),
            "wrong": str(error.value),
            "recorded": [[1, 0, []], [0, 1, []]],
        }
        yield [server.address, user, ",".join(map(str, items)), bundle.state.end + 1], wanted


def _columns(reply: Any) -> dict[str, Any]:
    return {"items": [one.item for one in reply.items], "scores": [one.score for one in reply.items]}


def check(printed: str, wanted: dict[str, Any], code: str, late: str) -> None:
    wrong = {"code": code, "details": wanted["wrong"]}
    assert json.loads(printed) == {**wanted, "wrong": wrong, "late": late}


def test_node_is_answered_as_python_is(node: Path, asked: tuple[list[Any], dict[str, Any]]) -> None:
    arguments, wanted = asked
    script = shutil.copy(CLIENTS / "client.js", node)
    printed = run(["node", script, ROOT / "proto", *arguments], "")
    check(printed, wanted, "INVALID_ARGUMENT", "DEADLINE_EXCEEDED")


def test_go_is_answered_as_python_is(go_client: Path, asked: tuple[list[Any], dict[str, Any]]) -> None:
    arguments, wanted = asked
    printed = run([go_client, *arguments], "")
    check(printed, wanted, "InvalidArgument", "DeadlineExceeded")


def test_the_readmes_lines_for_node_run_as_they_stand(node: Path, asked: tuple[list[Any], dict[str, Any]]) -> None:
    (snippet,) = re.findall(r"```js\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "127.0.0.1:50051" in snippet
    script = node / "readme.js"
    script.write_text(snippet.replace("127.0.0.1:50051", asked[0][0]) + "\nsetTimeout(() => client.close(), 500)\n")
    printed = run(["node", script], "", cwd=ROOT)
    assert len(re.findall(r"\d+", printed.partition("]")[0])) == 10, printed
