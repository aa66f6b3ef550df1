"""The Dockerfile's steps, run without docker: in a folder that stands for its root, beside packages that are here."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.resources import files
from pathlib import Path

import pytest
from world import train_parts, write_world_bundle

ROOT = Path(__file__).parent.parent
#: steps of a distribution's own tools, which there are in a container alone
OF_THE_CONTAINER = ("apt-get", "useradd")


def steps():
    """Return (instruction, rest) of the Dockerfile, continued lines joined."""
    text = (files("ranker.examples") / "deploy" / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]


def below(root, words):
    """Return words with absolute paths moved below a folder."""
    return re.sub(r"(?<![\w/*.])/(opt|srv|tmp|home)\b", rf"{root}/\1", words)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """A folder with what is beside the Dockerfile when it is built: a wheel and a bundle."""
    folder = tmp_path_factory.mktemp("context")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--disable-pip-version-check",
        "-w",
        folder / "dist",
        ROOT,
    ]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no wheel can be built here: {done.stderr[-300:]}")
    return folder


def test_its_steps_lead_to_a_server_that_answers(context, tmp_path, world):
    write_world_bundle(train_parts(world), context / "bundle")
    root, environment, entry, said, health = tmp_path / "root", dict(os.environ), [], [], []
    environment.pop("PYTHONPATH", None)
    for folder in ("tmp", "opt", "srv", "home"):
        (root / folder).mkdir(parents=True)
    for instruction, rest in steps():
        if instruction == "COPY" and not rest.startswith("--from"):
            sources, target = rest.replace("${BUNDLE}", "bundle").rsplit(maxsplit=1)
            for source in context.glob(sources):
                place = Path(below(root, target))
                if source.is_dir():
                    shutil.copytree(source, place)
                else:
                    shutil.copy(source, place / source.name)
        elif instruction == "RUN" and not rest.startswith(OF_THE_CONTAINER):
            command = below(root, rest).replace("&& chown pairlift", "&& ls")  # there is no such user here
            # What it depends on is here already; that it is enough is what test_ranker_serving_installed is for.
            command = command.replace("pip install", "pip install --no-deps")
            subprocess.run(command, shell=True, check=True, cwd=context, env=environment, capture_output=True)
        elif instruction == "ENV":
            name, value = rest.split("=")
            environment[name] = below(root, value)
        elif instruction in ("ENTRYPOINT", "CMD"):
            entry += [below(root, word) for word in json.loads(rest)]
        elif instruction == "HEALTHCHECK":
            health = [below(root, word) for word in json.loads(rest.partition("CMD")[2])]
    packages = next((root / "opt/pairlift/lib").glob("python*")) / "site-packages"
    (packages / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    own = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--clock", "snapshot"]
    server = subprocess.Popen([*entry, *own], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        said.append(line)
        address = re.search(r"on (\S+)$", line).group(1)
        assert "metrics are on http://127.0.0.1:" in server.stdout.readline()
        done = subprocess.run([*health, address], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "bundle" in done.stdout
        where = [shlex.split(entry[0])[0].replace("pairlift/bin/pairlift", "pairlift/bin/python"), "-c"]
        found = subprocess.run(
            [*where, "import ranker; print(ranker.__file__)"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.startswith(str(root)), "the wheel's own package answers"
    finally:
        server.terminate()
        server.wait(30)
        server.stdout.close()
    assert server.returncode == 0, said
