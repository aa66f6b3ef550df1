"""The command `token`; `ranker.cli.main` adds it to the group."""

import click

from ranker.serving.callers.tokens import new_token, read_rights


@click.command(short_help="Make a token for callers of a server.")
@click.argument("name")
@click.option(
    "--rights",
    default="read",
    show_default=True,
    help="What it allows, with commas between: read (ask), record (events), admin (snapshots, deploying).",
)
def token(name: str, rights: str) -> None:
    """Make a token for the caller NAME: printed once, on stderr, with its line for `serve --tokens FILE` on stdout.

    The file has a line for each token, NAME SHA256 RIGHTS, and so nothing that lets anybody in. A running server
    sees a change of it within a second. To renew a token, add a line for another one of the same name, and delete the
    old line once its caller has the new one; a deleted line ends no stream that is open.

    \b
    Examples:
      pairlift token feed --rights read,record >> tokens.txt
      pairlift serve work/bundle --tokens tokens.txt
      pairlift recommend --user 42 --token-file feed.token
    """
    made, line = new_token(name, read_rights(rights, "--rights"))
    click.echo(f"the token of '{name}', which is shown this once:", err=True)
    click.echo(made, err=True)
    click.echo(line)
