"""The command `serve`; `ranker.cli.main` adds it to the group."""

import logging
import signal
import sys
import threading
from pathlib import Path

import click

from features.pairing.split import iso
from ranker.cli.plugins import PLUGINS


@click.command(short_help="Answer Recommend and Rank requests over gRPC.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--snapshot",
    type=click.Path(path_type=Path),
    help="Serve this snapshot folder instead of the bundle's own.",
)
@click.option(
    "--clock",
    type=click.Choice(["wall", "snapshot"]),
    default="wall",
    show_default=True,
    help="The time of a request that gives none: now, or the end of the snapshot (for a log of the past).",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=50051,
    show_default=True,
    help="Port to listen on; 0 takes any free one and prints it.",
)
@click.option(
    "--log",
    "record_to",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Record events into this folder (made where it is missing), and serve what it has.",
)
@click.option(
    "--feature-log",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write the feature values that sampled requests used into this folder, as Parquet.",
)
@click.option(
    "--feature-share",
    type=float,
    default=0.01,
    show_default=True,
    help="Share of the requests (those with a request_id) that --feature-log takes.",
)
@click.option(
    "--bundles",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Keep what `pairlift deploy` deploys in this folder, so that a restart goes on with it.",
)
@click.option(
    "--follow",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Deploy the bundle at this place whenever another stands there, such as by `pairlift train --out DIR`.",
)
@PLUGINS
def serve(
    *,
    bundle: Path,
    snapshot: Path | None,
    clock: str,
    host: str,
    port: int,
    record_to: Path | None,
    feature_log: Path | None,
    feature_share: float,
    bundles: Path | None,
    follow: Path | None,
) -> None:
    """Answer Recommend and Rank requests over gRPC from BUNDLE until stopped (Ctrl-C or SIGTERM).

    The bundle is verified, loaded and warmed up before the port answers; then one line with the address is
    printed. The contract is proto/pairlift/v1/ranking.proto; health (grpc.health.v1) and reflection are
    served beside it. There is no encryption and no login: keep it on a private network.

    With --log, RecordEvents is served too: an acknowledged event is on disk in DIR, counts once, and is in the
    features, histories and filters of later requests within a second, for users and items that BUNDLE does not know too
    ([record] new_users, new_items). At the next start DIR is read again, on top of
    the bundle, or of --snapshot where `pairlift snapshot` wrote one (faster). DIR/events/*.parquet has what closed
    segments of the log hold: name it in [events] source to train on it. The bundle then knows which events it was
    trained on, and each counts once. [record] in the TOML has the limits. Where events cannot be written, served or
    exported, Describe says why (recording_problem), and the health of pairlift.v1.Recording is NOT_SERVING.

    `pairlift deploy` puts another bundle in the place of BUNDLE while the server runs; see there. With --bundles, what
    is deployed is kept in DIR (linked or copied, and what is replaced is removed), a restart with the same BUNDLE goes
    on with it, and bundles of other machines can be uploaded. With --follow, a bundle that takes the place of the one
    in DIR is deployed in the same way: DIR is a bundle's folder, mostly BUNDLE itself. One that is refused is logged
    once, and tried again when it changes.

    \b
    Examples:
      pairlift serve work/bundle
      pairlift serve work/bundle --clock snapshot --port 0     # a log of the past, any free port
      pairlift serve work/bundle --log work/log                # record events too
      pairlift serve work/bundle --feature-log work/features --feature-share 0.05
      pairlift serve work/bundle --bundles work/deployed --follow work/bundle
      grpcurl -plaintext 127.0.0.1:50051 pairlift.v1.RankingService/Describe
    """
    # Here and not above: the other commands start in a fraction of the time without LightGBM and the kernels.
    from ranker.bundle import load_bundle
    from ranker.recording.recorder import SWITCH
    from ranker.recording.snapshots import origin_of, with_snapshot
    from ranker.server import RecordTo, Server, warn_if_old
    from ranker.serving.clock import now_wall
    from ranker.serving.served import FeaturesTo

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    loaded = load_bundle(bundle)
    if snapshot is not None:
        loaded = with_snapshot(loaded, snapshot)
    origin = None if snapshot is None else origin_of(snapshot)
    if clock == "wall":
        warn_if_old(loaded, now_wall())
    if record_to is not None:
        sys.setswitchinterval(SWITCH)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = Server(
        loaded,
        clock=clock,
        host=host,
        port=port,
        record_to=None if record_to is None else RecordTo(record_to, origin),
        features_to=None if feature_log is None else FeaturesTo(feature_log, feature_share),
        bundles=bundles,
        follow=follow,
    )
    server.start()
    click.echo(
        f"pairlift serves bundle {loaded.version} (snapshot {iso(loaded.state.end)}, clock {clock}) on {server.address}"
    )
    sys.stdout.flush()
    stop.wait()
    click.echo("pairlift is stopping: calls under way are finished")
    server.stop()
