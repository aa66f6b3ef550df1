"""`make demo`: the main job, end to end, on MovieLens-100K. Each step is a command that you could type."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import duckdb

from features.errors import PairliftError


def run(*words: str) -> None:
    """Show a `pairlift` command, run it, and stop the demo where it fails."""
    click.secho(f"\n$ pairlift {' '.join(words)}", bold=True)
    done = subprocess.run([sys.executable, "-m", "ranker.cli", *words], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def last_user(database: Path) -> str:
    """Return the id of the user of the log's last event."""
    with duckdb.connect(str(database), read_only=True) as con:
        rows = con.execute("SELECT user_id FROM events JOIN users ON user = idx ORDER BY ts DESC LIMIT 1").fetchall()
    return str(rows[0][0])


@contextmanager
def server_of(bundle: Path) -> Iterator[str]:
    """Run a server of the bundle on a free port while the block runs; gives its address."""
    words = ["serve", str(bundle), "--clock", "snapshot", "--port", "0"]
    click.secho(f"\n$ pairlift {' '.join(words)} &", bold=True, err=True)
    command = [sys.executable, "-m", "ranker.cli", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield _address(server)
        finally:
            server.terminate()
            server.wait()


def _address(server: "subprocess.Popen[str]") -> str:
    """Return the address that the server prints once it is ready."""
    for line in server.stdout or ():
        click.echo(line, nl=False, err=True)
        for word in line.split():
            if word.startswith("127.0.0.1:"):
                return word
    raise PairliftError("the server stopped before it was ready; its message stands above")


def main(folder: Path) -> None:
    """Run every step in `folder`; what is done already is resumed."""
    started = time.monotonic()
    config, bundle = folder / "pairlift.toml", folder / "bundle"
    if not config.exists():
        run("init", str(folder), "--example", "movielens")
    run("validate", str(config))
    run("train", str(config), "--out", str(bundle))
    run("uplift", str(config), "--plugin", "two_tower", "--out", str(folder))
    user = last_user(folder / "work" / "import" / "log.duckdb")
    with server_of(bundle) as address:
        run("recommend", "--user", user, "--k", "10", "--explain", "--address", address)
    click.secho(f"\ndone in {time.monotonic() - started:.0f} s; the report is {folder / 'report.html'}", bold=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
