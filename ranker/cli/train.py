"""The commands `train` and `retune`; `ranker.cli.main` adds them to the group."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from features.errors import PairliftError
from features.schema import GIB
from ranker.torchrun.place import after_the_first, place

CONFIG = click.argument("config", type=click.Path(path_type=Path))

#: what `pairlift[train]` installs beside what serves and asks
TRAIN = ("gensim", "implicit", "matplotlib", "onnx", "onnxscript", "optuna", "torch")

FC = TypeVar("FC", bound=Callable[..., Any] | click.Command)

#: LightGBM's own default of `refit_decay_rate`
DECAY = 0.9


def memory_option(text: str) -> Callable[[FC], FC]:
    """Return `--memory GIB` with its help."""
    kind = click.FloatRange(0, min_open=True)
    return click.option("--memory", type=kind, default=2.0, show_default=True, metavar="GIB", help=text)


def needs_training() -> None:
    """Raise PairliftError where not all is installed that fits towers, searches, and writes ONNX.

    At once: else a training would end after minutes, with what is imported where it is used.
    """
    missing = [name for name in TRAIN if find_spec(name) is None]
    if missing:
        raise PairliftError(
            f"what trains is not installed ({', '.join(missing)}): `pip install 'pairlift[train]'` adds it to what "
            "serves and asks"
        )


class Together(click.Command):
    """A command of CONFIG that fits plugins; of a `torchrun` the first process runs it, the others share its fits."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it, or what this process has to do for the one that runs it."""
        number, of = place()
        if of == 1 or ctx.params["config"] is None:
            return super().invoke(ctx)
        from ranker.config import load_config
        from ranker.torchrun.together import follow, leading

        try:
            work = load_config(ctx.params["config"]).work
        except PairliftError:
            after_the_first()
            raise
        if number:
            return follow(work)
        with leading(work):
            return super().invoke(ctx)


@click.command(cls=Together, short_help="Train the ranker, from the import to a bundle.")
@CONFIG
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the bundle; an old one is replaced."
)
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="A folder that `pairlift serve --feature-log` wrote: its values are learned from in place of recomputed ones, "
    "by the liked part.",
)
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    help="Pairs to learn from in place of made ones: a file as `pairlift pairs --slice train` writes it. The cap and "
    "the corrections of [pairing] do not touch them; validation and test keep the pairs that are made. They are the "
    "liked part's.",
)
@click.option(
    "--warm-start",
    metavar="BUNDLE",
    type=click.Path(path_type=Path),
    help="Boost on from this earlier bundle's trees, which stay as they are, in place of from nothing.",
)
@click.option(
    "--refit",
    metavar="BUNDLE",
    type=click.Path(path_type=Path),
    help="Keep this earlier bundle's trees, and give their leaves new values from the rows of today.",
)
@click.option(
    "--refit-decay",
    type=click.FloatRange(0, 1),
    help="The share of an old leaf value that --refit keeps (without it 0.9).",
)
@click.option(
    "--warm-plugins",
    metavar="BUNDLE",
    type=click.Path(path_type=Path),
    help="Let plugins that can (towers) go on from what those of this earlier bundle have learned, in place of from "
    "nothing; the trees are learned anew.",
)
@memory_option(
    "What counting the items that are taken together may take, beside the log itself and the table of neighbours "
    "(800 bytes an item); 5 to 9 bytes an event and 40 an item are needed in any case. Less makes more and "
    "smaller blocks of items, the same numbers, and every block reads all events anew.",
)
def train(
    *,
    config: Path,
    out: Path,
    features: Path | None,
    pairs: Path | None,
    warm_start: Path | None,
    refit: Path | None,
    refit_decay: float | None,
    warm_plugins: Path | None,
    memory: float,
) -> None:
    """Train the ranker of CONFIG, from the import to a bundle that `pairlift serve` loads.

    Stages whose inputs are unchanged are resumed from CONFIG's work folder, and so are towers whose training was
    killed: they go on from where they were half a minute before, to the same bits. The bundle holds exactly the towers
    and the booster whose PairAccuracy on the test is printed, and the curves of their training (BUNDLE/curves, CSV
    and SVG).

    The ranker has two parts. The liked part orders Rank: it learns which of two shown items is liked more, and is
    stopped by PairAccuracy. The wanted part orders Recommend: it learns which of the items that the sources propose
    will be wanted ([lists] wanted), and is stopped by NDCG@10 of those lists. To its own trees it adds a share of
    the liked part's score: the largest that costs this NDCG nothing ([lists] liked); Rank has nothing of the wanted
    part, so neither order is bought by the other. Printed beside PairAccuracy: recall@10 and NDCG@10 of Recommend
    on the test, beside the most popular items, for at most 1,000 users (`pairlift lists` measures more); and of the
    same pairs, popularity and, where the log has positions, the order that was shown, with a figure debiased for
    how likely each place is to be looked at.

    With [ranker] model = "network", a network ([network]) orders Rank in the booster's place: it learns from the same
    rows, pairs and weights, and is stopped by the same slice. The booster is trained as well, and its PairAccuracy
    printed beside; Recommend is ordered by the wanted part as ever. --warm-start and --refit are about trees: the
    network is trained anew.

    On several processes: `torchrun --nproc-per-node 2 -m ranker.cli train CONFIG --out BUNDLE`. The first does all;
    the others take a share of every batch of the networks over histories (DistributedDataParallel).

    For a retraining every day, --warm-start and --refit take the trees of an earlier bundle (OUT itself may be it) and
    the rows of the present log. Its plugins (towers, ALS) are kept as they were fitted, not trained anew, for old
    splits mean nothing on a new tower's columns, and so is what source_item_cooccurrence counts; ids and categories
    that have come or gone are allowed for. A TOML with other columns, counters, grades or plugins is refused, and so is
    a bundle that was trained on events of the present test. The old trees' PairAccuracy on the test is printed beside
    the new. All this is about the liked part: the wanted part is learned anew, with the plugins that were kept.

    --warm-plugins is the other half: towers take up the weights of an earlier bundle's, new items and users start as in
    any training, vanished ones go, and a few epochs at a lower rate ([plugins.NAME] warm_...) go over the period. All
    trees are learned anew, for the columns are new. Networks of other options are refused, and so are those that have
    learned from events of the present validation slice.
    """
    needs_training()
    from ranker.bundle import CURVES
    from ranker.config import load_config
    from ranker.lists.table import brief_lines
    from ranker.metrics.shown import figure_lines
    from ranker.train import train as run
    from ranker.training.booster import cap_reached
    from ranker.training.earlier_bundle import StartFrom

    if sum(given is not None for given in (warm_start, refit, warm_plugins)) > 1:
        raise PairliftError("--warm-start, --refit and --warm-plugins: choose one")
    if refit is None and refit_decay is not None:
        raise PairliftError("--refit-decay goes with --refit BUNDLE")
    start = None if warm_start is None else StartFrom("warm-start", warm_start)
    if refit is not None:
        start = StartFrom("refit", refit, DECAY if refit_decay is None else refit_decay)
    loaded = load_config(config)
    measured = run(
        loaded, out, features=features, pairs=pairs, start=start, earlier=warm_plugins, memory=int(memory * GIB)
    )
    of_network = "network_parameters" in measured
    if measured["at_cap"]:
        what = "the booster beside the network" if of_network else "the liked part"
        click.echo(cap_reached(loaded.booster, f"WARNING: {what}"))
    if of_network and (warning := worse_than_booster(measured)):
        click.echo(warning)
    old = f" (the old trees: {measured['old_pair_accuracy']:.4f})" if start else ""
    for line in (*brief_lines(measured["lists"]), *figure_lines(measured)):
        click.echo(line)
    for picture in sorted((out / CURVES).glob("*.svg")):
        click.echo(f"curve of {picture.stem}'s training: {picture}, and .csv beside it")
    by = f"{measured['trees']} trees"
    if of_network:
        by = f"of the network (the booster, {by}: {measured['booster_pair_accuracy']:.4f})"
    click.echo(f"test PairAccuracy {measured['pair_accuracy']:.4f}{old}, {by}; bundle in {out}")


def worse_than_booster(measured: dict[str, Any]) -> str:
    """Return what to say of a network that ranks worse than the booster beside it, empty of one that does not.

    By the slice that both were stopped by: nothing is chosen on the test.
    """
    ours, booster = measured["validation_accuracy"], measured["booster_validation_accuracy"]
    if ours >= booster:
        return ""
    return (
        f"WARNING: the network's PairAccuracy on the validation slice is {ours:.4f}, the booster's {booster:.4f}: "
        '[ranker] model = "booster" ranks better'
    )


@click.command(cls=Together, short_help="Search for better parameters with Optuna.")
@CONFIG
@click.option(
    "--minutes", type=click.FloatRange(0, min_open=True), default=10, show_default=True, help="No trial starts later."
)
@click.option("--trials", type=click.IntRange(1), help="At most so many trials in this run.")
@click.option(
    "--part",
    type=click.Choice(["liked", "wanted"]),
    default="liked",
    show_default=True,
    help="liked: the part that orders Rank, by [booster] and [pairing]. wanted: the one that orders Recommend, by "
    "[lists.params].",
)
def retune(config: Path, minutes: float, trials: int | None, part: Literal["liked", "wanted"]) -> None:
    """Search for better parameters of a part of CONFIG's ranker, with Optuna, and print them for the TOML.

    Every change of the stack moves the optimum: run this after one. Trial 0 has the TOML's own parameters. A trial
    is two fits of other seeds on the booster's validation slice, the one that also stops each fit; the test is not
    read. Each part is judged and stopped by what it is for, liked by PairAccuracy of shown pairs, wanted by NDCG@10 of
    what the sources propose: they share no parameter that is searched, so neither order is bought by the other; search
    both, one after the other. The gain, of five fits each, has an interval about new users and seeds; where that
    holds zero, it is "not distinguishable from the TOML's own". The best of many trials is flattered by the choice.

    The plugins are those of [ranker], fitted once: where [pairing] values change, `pairlift train` fits towers anew.
    A run goes on where an earlier one on the same rows, parameters and code ended; Ctrl-C keeps what is finished. Every
    trial is in retune.json (or retune-wanted.json) of CONFIG's work folder. The TOML is not changed.
    """
    needs_training()
    from ranker.config import load_config
    from ranker.retune.report import as_table
    from ranker.retune.search import retune as run

    click.echo(as_table(run(load_config(config), minutes, trials, part)))
