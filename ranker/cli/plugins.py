"""The option `--plugins` of the commands that read no TOML of the user's, and so no plugin beside it."""

from pathlib import Path

import click


def _search(_: click.Context, __: click.Parameter, folder: Path | None) -> None:
    if folder is not None:
        from features.plugin import search_plugins_in

        search_plugins_in(folder)


PLUGINS = click.option(
    "--plugins",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    callback=_search,
    expose_value=False,
    help="Folder of the modules of your own plugins, searched after those that Python finds without it.",
)
