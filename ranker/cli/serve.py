"""The command `serve`; `ranker.cli.main` adds it to the group."""

import sys
from functools import partial
from pathlib import Path

import click

from features.errors import PairliftError
from features.pairing.split import iso
from ranker.cli.plugins import PLUGINS
from ranker.cli.processes import Place, run_processes, until_told
from ranker.serving.callers.tls import ServerTls

PATH = click.Path(path_type=Path, dir_okay=False)


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
    "--feature-seconds",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds that they wait at most before they are written: a crash loses no more; lower makes more files.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Answer GET /metrics for Prometheus on this port of the same address; 0 takes any free one. Default: none.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Lines of the log on stderr: text, or a JSON object each.",
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
@click.option(
    "--drain",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="After SIGTERM: report NOT_SERVING and answer all the same for so long, until load balancers ask others.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 99),
    default=1,
    show_default=True,
    help="Processes that answer, behind one port: for machines with more cores than one process can use.",
)
@click.option("--tls-cert", type=PATH, help="PEM of the server's certificate; read anew when it changes.")
@click.option("--tls-key", type=PATH, help="PEM of its private key, without a password; likewise.")
@click.option(
    "--tls-client-ca",
    type=PATH,
    help="PEM of roots: only clients with a certificate from one of them are let in (mutual TLS).",
)
@click.option(
    "--tokens",
    type=PATH,
    help="File of the tokens that are let in (`pairlift token`), by their hashes; read anew when it changes.",
)
@click.option(
    "--insecure", is_flag=True, help="Listen on an address of the network without TLS: on a private one alone."
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
    feature_seconds: float,
    metrics_port: int | None,
    log_format: str,
    bundles: Path | None,
    follow: Path | None,
    drain: float,
    processes: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    tokens: Path | None,
    insecure: bool,
) -> None:
    """Answer Recommend and Rank requests over gRPC from BUNDLE until stopped (Ctrl-C or SIGTERM).

    The bundle is verified, loaded and warmed up before a request is answered; then one line with the address is
    printed. The contract is proto/pairlift/v1/ranking.proto; health (grpc.health.v1) and reflection are
    served beside it.

    As it is, anybody on this machine may call, and nobody else: another --host is refused without --tls-cert and
    --tls-key, or --insecure. With --tokens each call needs a token with the right for it: read (Recommend, Rank,
    Describe, reflection), record (RecordEvents) or admin (all else). Health is open to all.

    The port answers from the start: health says SERVING for pairlift.v1.Live (liveness), NOT_SERVING for
    pairlift.v1.RankingService (readiness) until all is warm, and requests get UNAVAILABLE. SIGTERM drains: readiness is
    NOT_SERVING, requests are answered for --drain seconds more, those under way then have 5 s to end, and the exit
    status is 0. In Kubernetes, let --drain be 5 to 10 (endpoints take that long to go) and
    terminationGracePeriodSeconds 10 more. Ctrl-C does not wait.

    More requests than can be answered are refused at once (RESOURCE_EXHAUSTED, when to ask again in the trailer
    grpc-retry-pushback-ms), first those whose metadata says `pairlift-priority: low`. [serve] workers and max_wait in
    the TOML have the limits.

    With --log, RecordEvents is served too: an acknowledged event is on disk in DIR, counts once, and is in the
    features, histories and filters of later requests within a second, for users and items that BUNDLE does not know too
    ([record] new_users, new_items). At the next start DIR is read again, on top of
    the bundle, or of --snapshot where `pairlift snapshot` wrote one (faster). DIR/events/*.parquet has what closed
    segments of the log hold: name it in [events] source to train on it. The bundle then knows which events it was
    trained on, and each counts once. [record] in the TOML has the limits. Where events cannot be written, served or
    exported, Describe says why (recording_problem), and the health of pairlift.v1.Recording is NOT_SERVING.

    `pairlift top` shows what the server does. --metrics-port is for Prometheus. Traces, metrics and logs go to an
    OpenTelemetry collector where pairlift[otel] is installed and OTEL_EXPORTER_OTLP_ENDPOINT is set, with the SDK's
    other usual variables. Calls may carry `traceparent` and `x-request-id` as metadata.

    With --processes, so many are forked once all is loaded, and share its memory and the port; with --log, one more
    records, and what comes to the others is sent on to it. Each follows the log, so that events are seen by all within
    a second. One that dies is started again; those who asked it get UNAVAILABLE, and a client that tries again finds
    another. Each answers GET /metrics on a port of its own, from --metrics-port on. Plugins are loaded and warmed
    before the fork: threads of their own they must begin later.

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
      pairlift serve work/bundle --log work/log --processes 8  # on a machine with more cores
      pairlift serve work/bundle --feature-log work/features --feature-share 0.05
      pairlift serve work/bundle --bundles work/deployed --follow work/bundle
      pairlift serve work/bundle --host 0.0.0.0 --tls-cert tls.crt --tls-key tls.key --tokens tokens.txt
      grpcurl -plaintext 127.0.0.1:50051 pairlift.v1.RankingService/Describe
    """
    # Here and not above: the other commands start in a fraction of the time without LightGBM and the kernels.
    from ranker.bundle import Bundle, config_of, load_bundle
    from ranker.recording.recorder import SWITCH
    from ranker.recording.snapshots import origin_of, with_snapshot
    from ranker.server import RecordTo, Server, prepare, warn_if_old
    from ranker.serving.callers.access import Access
    from ranker.serving.clock import now_wall
    from ranker.serving.listener import Listener
    from ranker.serving.served import FeaturesTo
    from ranker.serving.watching.logs import set_up

    set_up(log_format)
    sys.setswitchinterval(SWITCH)
    # Before the bundle is loaded, which takes a while.
    access = Access(_tls(tls_cert, tls_key, tls_client_ca), tokens, insecure)
    access.check(host)
    listen = partial(Listener, host, settings=config_of(bundle).serve, access=access)
    records = None if record_to is None else RecordTo(record_to, None if snapshot is None else origin_of(snapshot))
    features = None if feature_log is None else FeaturesTo(feature_log, feature_share, feature_seconds)

    def load() -> Bundle:
        loaded = load_bundle(bundle) if snapshot is None else with_snapshot(load_bundle(bundle), snapshot)
        if clock == "wall":
            warn_if_old(loaded, now_wall())
        return loaded

    def tell(served: Bundle, address: str, metrics: str) -> None:
        end = iso(served.state.end)
        click.echo(f"pairlift serves bundle {served.version} (snapshot {end}, clock {clock}) on {address}")
        if metrics:
            click.echo(f"metrics are on http://{metrics}/metrics")
        sys.stdout.flush()

    if processes == 1:
        with listen(port, metrics_port=metrics_port) as listener:
            make = partial(
                Server,
                clock=clock,
                listener=listener,
                record_to=records,
                features_to=features,
                bundles=bundles,
                follow=follow,
            )
            until_told(
                lambda: make(load()), drain, lambda s: tell(s.pipeline.bundle, s.address, listener.metrics_address)
            )
        return
    # Several processes listen once they are forked: gRPC's threads cannot be.
    loaded = load()
    run_processes(
        prepare(loaded, past=clock == "snapshot", record_to=records, features_to=features),
        partial(Server, loaded, clock=clock, follow=follow),
        partial(listen, shared=True),
        Place(processes, host, port, metrics_port, bundles, drain),
        lambda address, metrics: tell(loaded, address, metrics),
    )


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    if cert is not None and key is not None:
        return ServerTls(cert, key, client_ca)
    if cert is not None or key is not None or client_ca is not None:
        raise PairliftError("--tls-cert and --tls-key go together, and --tls-client-ca with both")
    return None
