"""The command line. Each verb's `--help` teaches; a user's mistake is a sentence and exit status 2."""

import logging
import os
import sys
from typing import Any

import click

from features.errors import PairliftError
from ranker.cli.ask import rank, recommend
from ranker.cli.batch import batch
from ranker.cli.bundle import bundle, report, vectors
from ranker.cli.config import config
from ranker.cli.deploy import deploy, deployed, drop, promote, refresh, rollback
from ranker.cli.experiments.ab import ab
from ranker.cli.experiments.offpolicy import offpolicy
from ranker.cli.lists import lists, sources
from ranker.cli.record import record, snapshot
from ranker.cli.report import drift, study, uplift, world
from ranker.cli.rows import pairs, rows
from ranker.cli.serve import serve
from ranker.cli.setup import import_letor, init, validate
from ranker.cli.token import token
from ranker.cli.top import top
from ranker.cli.train import Together, retune, train
from ranker.torchrun.place import after_the_first, place, tell


class Mistake(click.ClickException):
    """A PairliftError on its way to the user."""

    exit_code = 2


class Verbs(click.Group):
    """A group whose commands may raise PairliftError."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; turn a user's mistake into its text and exit status 2."""
        try:
            return super().invoke(ctx)
        except PairliftError as error:
            said = str(error)
        except OSError as error:
            if error.filename is None:
                raise
            said = f"{error.filename}: {error.strerror}"
        # Behind the blocks: an error in the chain of this one would live until the process ends, and what its frames
        # hold of native modules would be reported as leaked behind the sentence.
        tell(said)
        raise Mistake(said)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and results.")
@click.pass_context
def cli(ctx: click.Context, quiet: bool) -> None:
    """A ranking stack: weighted pairs in LightGBM, point-in-time features, towers, gRPC, and the uplift.

    \b
    A first round, on MovieLens-100K (fetched when used):
      pairlift init demo --example movielens
      pairlift validate demo/pairlift.toml
      pairlift train demo/pairlift.toml --out demo/bundle
      pairlift uplift demo/pairlift.toml --plugin two_tower --out demo
      pairlift serve demo/bundle --clock snapshot
      pairlift recommend --user 1 --k 10 --explain
    """
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    for package in ("features", "neural", "ranker"):
        logging.getLogger(package).setLevel(logging.WARNING if quiet or place()[0] else logging.INFO)
    _refuse_several(ctx.invoked_subcommand)


def _refuse_several(verb: str | None) -> None:
    """Raise PairliftError where a `torchrun` starts a command whose processes would all do the same."""
    if place()[1] > 1 and not isinstance(cli.commands.get(verb or ""), Together):
        after_the_first()
        shared = ", ".join(name for name, command in cli.commands.items() if isinstance(command, Together))
        raise PairliftError(f"torchrun is for commands whose fits processes can share ({shared}), not for {verb}")


for verbs in (
    (init, import_letor, validate, config),
    (train, retune, pairs, rows),
    (bundle, report, vectors, batch, lists, sources, offpolicy, ab, uplift, study, world, drift),
    (serve, token, record, snapshot, top),
    (deploy, rollback, promote, drop, deployed, refresh),
    (recommend, rank),
):
    for verb in verbs:
        cli.add_command(verb)


def main() -> None:
    """Run the command line."""
    # OpenMP's idle threads spin: beside another busy process a fit of one second took twenty. Passive ones sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    cli(prog_name="pairlift")
