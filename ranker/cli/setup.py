"""The commands with which a log is set up: `init`, `import-letor`, `validate`; `ranker.cli.main` adds them."""

from pathlib import Path

import click

from features.errors import PairliftError
from features.files import made_folder
from ranker.cli.train import CONFIG


@click.command(short_help="Write a commented pairlift.toml, or guess one from a log.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--from", "log", metavar="LOG", help="Your log: a Parquet, CSV or JSON file, or a glob in quotes.")
@click.option("--items", metavar="FILE", help="With --from: a file of the items' attributes.")
@click.option("--users", metavar="FILE", help="With --from: a file of the users' attributes.")
@click.option("--example", metavar="NAME", help="Map an example data set in place of your own: movielens or kuairand.")
def init(folder: Path, log: str | None, items: str | None, users: str | None, example: str | None) -> None:
    """Write a commented pairlift.toml into DIR, for your own log or for an example data set.

    The file maps your columns to Pairlift's with SQL expressions; your log is not rewritten. Edit it, then run
    `pairlift validate DIR/pairlift.toml`.

    With --from the mapping is guessed from the columns of LOG, by their names (English, German, French), types and
    values, and by what has one value for each user, item or request: ids, time, position, what the user did (with
    grades, from worst to best), what was shown of each candidate, what the request says, attributes of items and
    users. Behind each line stands why; "unsure" marks what it could not tell, which is printed too. What is known only
    after the answer (a dwell time, money) becomes feedback, never a feature. Then `validate` runs: where the log cannot
    be trained on as guessed, its error says what to decide, and the exit status is 2.
    """
    from ranker.examples import example_text

    target = folder / "pairlift.toml"
    if target.exists():
        raise PairliftError(f"{target} is there already: edit it, remove it, or choose another folder")
    if log is not None and example is not None:
        raise PairliftError("--from and --example: choose one")
    if log is None and (items or users):
        raise PairliftError("--items and --users go with --from LOG")
    if log is not None:
        _guess(target, log, items, users)
        return
    _write(target, example_text(example or "template"))
    click.echo(f"wrote {target}; next: pairlift validate {target}")


def _write(target: Path, text: str) -> None:
    made_folder(target.parent)
    target.write_text(text)


def _guess(target: Path, log: str, items: str | None, users: str | None) -> None:
    """Guess the TOML of a log, write it, say what it has, and validate it."""
    from ranker.guessing.guessed import guess_log
    from ranker.guessing.writing import summary_of, toml_of

    guessed = guess_log(log, target.parent, items, users)
    _write(target, toml_of(guessed))
    click.echo(f"{summary_of(guessed)}\n\nwrote {target}, with the reason of each line; it validates so:\n")
    _validate(target)


@click.command("import-letor", short_help="Make a log and a pairlift.toml of LETOR files.")
@click.argument(
    "files", metavar="TRAIN [[VALIDATION] TEST]", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path)
)
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), required=True, help="Folder to write into.")
def import_letor(files: tuple[Path, ...], out: Path) -> None:
    """Write LETOR (svmlight) files as a log, and the pairlift.toml that trains a ranker on their features alone.

    A line is a document of a query: `label qid:7 1:0.5 3:2 # comment`, labels from 0 (worst) on. Lines of one query
    stand together. A file without qid may have the sizes of its queries in FILE.query beside it, as LightGBM keeps
    them. A feature that a line leaves out is 0, `nan` is unknown.

    In DIR/pairlift.toml a query is a request, features are [events.candidate] f1, f2 …, labels are the grades, and the
    files are periods of the split: no counters, no towers. VALIDATION stops the trees (without it, the last queries
    of TRAIN do); without TEST, the last fifth of the queries is the test.
    """
    from ranker.letor import import_letor as run

    if len(files) > 3:
        raise PairliftError(f"one to three files were expected (TRAIN, VALIDATION, TEST), found {len(files)}")
    click.echo(run(files, out))


@click.command(short_help="Check the file and its data before training.")
@CONFIG
def validate(config: Path) -> None:
    """Check the file and the data of CONFIG before anything is trained.

    Prints rows, users, items and the time span, events per grade, pairs per grade pair and per period of the
    split, how many groups each boundary of the split cuts in two or leaves outside, and what looks wrong. Refuses
    what would stop a training, and SQL of [uplift.slices] that would stop a report.
    """
    _validate(config)


def _validate(config: Path) -> None:
    """Print what was found; what stops a training is raised behind it."""
    from ranker.config import load_config
    from ranker.training.validate import validation
    from ranker.uplift.explain.asked import check_asked

    for line in validation(load_config(config), check_asked):
        click.echo(line)
