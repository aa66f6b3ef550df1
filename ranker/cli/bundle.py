"""The commands of `pairlift bundle`, `report` and `vectors`; `ranker.cli.main` adds the group and the commands."""

from datetime import datetime
from pathlib import Path

import click

from features.errors import PairliftError
from ranker.cli.ask import as_pairs, as_time, micros
from ranker.cli.plugins import PLUGINS
from ranker.cli.train import needs_training

BUNDLE = click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))

RECORDED = click.option(
    "--log",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Know the events of this folder of `serve --log` too; a server may be recording into it.",
)


@click.group(short_help="Look at a bundle, or check its bytes.")
def bundle() -> None:
    """Look at a trained bundle, or check that none of its bytes has changed."""


@bundle.command()
@BUNDLE
def show(folder: Path) -> None:
    """Print a bundle's version, measured figures, snapshot time and size, and what each column does in each part.

    liked orders Rank (booster: the trees beside a network that does), wanted orders Recommend. gain: share of the
    training loss's fall; splits: how many compare the column; |SHAP|: by how much it moves a raw score, on average over
    rows of the validation slice (liked), or over what the sources propose to requests of the test (wanted; its trees
    are added to source__popular, which is not in it); direction: +1 where a higher value raises the score, -1 where it
    lowers it, - for a category or a column that is not used. The same is in BUNDLE/importance.json.
    """
    import json

    from features.pairing.split import iso
    from ranker.bundle import IMPORTANCE, read_manifest
    from ranker.card import measured_lines
    from ranker.metrics.importance import importance_tables

    manifest = read_manifest(folder)
    size = sum((folder / name).stat().st_size for name in manifest["files"] if (folder / name).is_file())
    click.echo(f"{'version':23}{manifest['version']} (format {manifest['format']})")
    click.echo(f"{'snapshot':23}{iso(manifest['snapshot_time'])}")
    for line in measured_lines(manifest["measured"]):
        click.echo(line)
    click.echo(f"{'size':23}{size / 1e6:.1f} MB in {len(manifest['files'])} files")
    click.echo(f"{'columns':23}{len(manifest['columns'])}")
    for line in importance_tables(json.loads((folder / IMPORTANCE).read_text())):
        click.echo(line)


@bundle.command()
@BUNDLE
@PLUGINS
def verify(folder: Path) -> None:
    """Hash every file of a bundle against its manifest, and load it; exit status 2 names what differs."""
    from ranker.bundle import load_bundle

    loaded = load_bundle(folder)
    click.echo(f"{folder}: version {loaded.version}, whole and loadable")


@bundle.command()
@BUNDLE
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write, such as forest.onnx.")
@click.option(
    "--part",
    type=click.Choice(["liked", "wanted"]),
    default="liked",
    show_default=True,
    help="liked orders Rank, wanted orders Recommend.",
)
def onnx(folder: Path, out: Path, part: str) -> None:
    """Write a part of a bundle as an ONNX graph, for what does not read LightGBM's text (booster.txt, wanted.txt).

    Input `features`: float32[n, columns] in the bundle's order, NaN where missing; output `score`: float64[n], as it is
    served. Of the wanted part, the sources' columns stand behind the others, and its score is that of the trees and
    source__popular (0 where missing). The forest is one TreeEnsemble of ai.onnx.ml 5 (ONNX Runtime 1.20 or later),
    categories and missing values included, and is compared with LightGBM on rows at every threshold before it is
    written. The columns' names are in the file's metadata.
    """
    needs_training()
    from ranker.export.onnx import export_forest

    trees = export_forest(folder, out, part)
    click.echo(f"wrote {out}: {part}, {trees} trees, {out.stat().st_size / 1e3:,.0f} kB, equal to LightGBM's scores")


@click.command(short_help="Write a page about a bundle.")
@BUNDLE
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of report.html and bundle.json, not BUNDLE."
)
def report(folder: Path, out: Path) -> None:
    """Write OUT/report.html, a page about BUNDLE that needs no network, and what it shows as OUT/bundle.json.

    What it was trained on and when its periods were; its figures of the test beside popularity; the curve of each
    plugin that was trained in steps; each column's share of the gain, and each source's; how many candidates each
    source has, what pre-ranking keeps, the weight of the liked part's score in lists; and the figures of the bundles
    in the same folder that are not later, the latest eight. It reads the bundle's files and loads nothing.

    \b
    Example:
      pairlift report mine/bundle --out mine/about
    """
    needs_training()
    from features.files import check_folder
    from ranker.cli.lists import write_report
    from ranker.export.bundle_page import as_page, bundle_report
    from ranker.uplift.markup import keep_page

    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise PairliftError(f"--out {out} is in the bundle, whose files are hashed: name another folder")
    check_folder(out)
    found = bundle_report(folder)
    paths = [write_report(found, out, "bundle.json"), keep_page(as_page(found), out)]
    click.echo("\n".join(f"wrote {path}" for path in paths))


@click.command(short_help="Write a bundle's user and item vectors as Parquet.")
@BUNDLE
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of users.parquet and items.parquet."
)
@click.option("--plugin", metavar="NAME", help="A served [plugins.NAME] with vectors; default: the first.")
@RECORDED
@click.option(
    "--as-of",
    callback=as_time,
    help="ISO time before which events count, of [time] zone if it says none; default: the end of what is known.",
)
@click.option(
    "--only",
    type=click.Choice(["users", "items"]),
    help="Of one side alone; the other's file stays, where it is of the same bundle and plugin.",
)
@click.option(
    "--ids",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Users to write: one column, or user_id, of Parquet, CSV or JSON. Default: all with an event before --as-of.",
)
@click.option("--surface", default="", help="Where the list is shown, as the log names it; default: not known.")
@click.option(
    "--context",
    multiple=True,
    callback=as_pairs,
    metavar="NAME=VALUE",
    help="What the request says of itself: a name of [events.context], repeatable.",
)
@PLUGINS
def vectors(
    *,
    folder: Path,
    out: Path,
    plugin: str | None,
    log: Path | None,
    as_of: datetime | None,
    only: str | None,
    ids: Path | None,
    surface: str,
    context: dict[str, str],
) -> None:
    """Write the vectors of BUNDLE's users and items, for a vector store or another team.

    users.parquet has user_id (as in your log) and vector (float32, of the plugin's width), items.parquet item_id and
    vector. They are made by the code that serves, in chunks: a user's vector times an item's is the plugin's product
    as a request of that time, surface and context has it (of the towers, the feature `dot`). The lag that the plugin is
    trained with holds here too. It, the time, the context and the bundle's version stand in the file's metadata.

    Who has no vector has no row, and is counted: a user of whom nothing is known, an item that is new to the bundle.
    The folder is there whole or not at all; an earlier one is replaced.

    \b
    Examples:
      pairlift vectors work/bundle --out work/vectors
      pairlift vectors work/bundle --log work/log --out work/vectors --only users --surface feed
      duckdb -c "SELECT decode(key), decode(value) FROM parquet_kv_metadata('work/vectors/users.parquet')"
    """
    from ranker.bundle import load_bundle
    from ranker.export.vectors import ITEMS, USERS, Wanted, write_vectors

    if ids is not None and only == "items":
        raise PairliftError("--ids are of users: leave out --only items")
    sides = {"users": (USERS,), "items": (ITEMS,), None: (USERS, ITEMS)}[only]
    bundle = load_bundle(folder)
    at = micros(as_of, bundle.config.time.zone)
    wanted = Wanted(plugin=plugin, as_of=at, surface=surface, context=context, sides=sides, ids=ids)
    for path, rows, without in write_vectors(bundle, out, wanted, log):
        click.echo(f"wrote {path}: {rows:,} vectors; {without:,} have none")
