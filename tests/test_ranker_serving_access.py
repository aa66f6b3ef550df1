"""Who may reach a server, and what they may do there: TLS, tokens, rights, and limits of one caller."""

import contextlib
import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pairlift.v1 import ranking_pb2 as pb
from pairlift.v1 import ranking_pb2_grpc
from served import pairlift, recording, serving, user_id, within
from world import with_config

from features.errors import PairliftError
from ranker.asking.channel import Tls
from ranker.asking.expiry import spans_of, warn_of_end
from ranker.client import Client, ServerError
from ranker.server import Server
from ranker.serving.callers import tls
from ranker.serving.callers.access import Access
from ranker.serving.callers.rights import NEEDS, Rights, right_of
from ranker.serving.callers.tls import ServerTls
from ranker.serving.callers.tokens import RIGHTS, Tokens, new_token, read_tokens
from ranker.serving.health import SERVICE
from ranker.serving.reflection import MOST


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def make_root(folder: Path, name: str) -> None:
    openssl(
        folder,
        "req",
        "-x509",
        *KEY,
        "-days",
        "9",
        "-subj",
        f"/CN={name}",
        "-keyout",
        f"{name}.key",
        "-out",
        f"{name}.pem",
    )


def make_leaf(folder: Path, root: str, name: str) -> None:
    """Write NAME.pem and NAME.key, of this machine, from a root."""
    openssl(folder, "req", *KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    issuer = ("-CA", f"{root}.pem", "-CAkey", f"{root}.key", "-CAcreateserial", "-days", "9")
    openssl(folder, "x509", "-req", "-in", f"{name}.csr", *issuer, "-extfile", "names", "-out", f"{name}.pem")


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`server` and `client` come from `root`, `stranger` from `other`."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("pems")
    for root, leaves in {"root": ("server", "client"), "other": ("stranger",)}.items():
        make_root(folder, root)
        for name in leaves:
            make_leaf(folder, root, name)
    return folder


def tls_of(pems: Path, name: str = "server", client_ca: str | None = None) -> ServerTls:
    return ServerTls(
        pems / f"{name}.pem", pems / f"{name}.key", None if client_ca is None else pems / f"{client_ca}.pem"
    )


def client_tls(pems: Path, ca: str, name: str | None = None) -> Tls:
    return Tls(pems / f"{ca}.pem", *((pems / f"{name}.pem", pems / f"{name}.key") if name else ()))


def refused(server: Server, code: str, *parts: str, **options) -> None:
    with Client(server.address, timeout=10, **options) as client, pytest.raises(ServerError) as error:
        client.describe()
    assert error.value.code == code
    for part in parts:
        assert part in str(error.value), str(error.value)


def test_tls_lets_in_who_knows_the_root_and_says_why_others_are_not(bundle, pems):
    with serving(bundle, clock="snapshot", access=Access(tls_of(pems))) as server:
        with Client(server.address, timeout=10, tls=client_tls(pems, "root")) as client:
            assert client.describe().name == "world"
        for options in ({"tls": client_tls(pems, "other")}, {"tls": Tls()}, {}):
            refused(server, "UNAVAILABLE", "did not come to terms", "TLS", **options)
    with serving(bundle, clock="snapshot") as plain:
        refused(plain, "UNAVAILABLE", "only one of them speaks TLS", tls=client_tls(pems, "root"))


def test_mutual_tls_lets_in_clients_with_a_certificate_of_the_root(bundle, pems):
    with serving(bundle, clock="snapshot", access=Access(tls_of(pems, client_ca="root"))) as server:
        with Client(server.address, timeout=10, tls=client_tls(pems, "root", "client")) as client:
            assert client.describe().name == "world"
        for name in (None, "stranger"):
            refused(server, "UNAVAILABLE", "does not take the other's certificate", tls=client_tls(pems, "root", name))


def test_a_changed_certificate_is_met_by_new_connections_and_a_wrong_one_is_not(bundle, pems, tmp_path, caplog):
    """The stranger's certificate in the server's place: who knows `root` alone is let in as long as it is not read."""
    caplog.set_level(logging.INFO)

    def put(name: str, *suffixes: str) -> None:
        for suffix in suffixes:
            shutil.copyfile(pems / f"{name}.{suffix}", tmp_path / f"server.{suffix}")

    def let_in(root: str) -> bool:
        with Client(server.address, timeout=10, tls=client_tls(pems, root)) as client:
            return _code(client) == ""

    put("server", "pem", "key")
    with serving(bundle, clock="snapshot", access=Access(tls_of(tmp_path))) as server:
        with Client(server.address, timeout=10, tls=client_tls(pems, "root")) as old:
            assert old.describe().name == "world"
            put("stranger", "pem")  # the key is still the other's
            for _ in range(2):
                assert let_in("root")
            assert not let_in("other")
            said = [r.message for r in caplog.records if "stays in force" in r.message]
            assert len(said) == 1, "one line for one content"
            assert "private key" in said[0]
            put("stranger", "key")
            assert let_in("other")
            assert not let_in("root")
            assert old.describe().name == "world", "an open connection keeps the certificate that it began with"
            (tmp_path / "server.key").unlink()
            assert let_in("other")
        assert sum("cannot be read" in r.message for r in caplog.records) == 1


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (("server.pem", "client.key", None), "a certificate and its private key"),
        (("server.key", "server.key", None), "a certificate and its private key"),
        (("server.pem", "server.key", "server.key"), "certificates (PEM) were expected"),
        (("server.pem", "nowhere.key", None), "cannot be read"),
    ],
)
def test_files_that_no_handshake_could_use_are_refused_at_the_start(pems, names, part):
    cert, key, roots = (None if name is None else pems / name for name in names)
    with pytest.raises(PairliftError) as error:
        ServerTls(cert, key, roots).credentials()
    assert part in str(error.value)


def make_signed(folder: Path, name: str, begin: str, end: str) -> Path:
    """Write NAME.pem, which is valid between two times in UTC such as 20200101000000Z, and NAME.key."""
    words = ("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
    openssl(folder, "req", *KEY, *words)
    (folder / "index.txt").write_text("")
    (folder / "ca.cnf").write_text(
        "[ca]\ndefault_ca=c\n[c]\ndatabase=index.txt\nnew_certs_dir=.\nrand_serial=yes\ndefault_md=sha256\npolicy=p\n"
        "[p]\ncommonName=supplied\n"
    )
    sign = ("ca", "-config", "ca.cnf", "-selfsign", "-batch", "-keyfile", f"{name}.key", "-in", f"{name}.csr")
    openssl(folder, *sign, "-startdate", begin, "-enddate", end, "-notext", "-out", f"{name}.pem")
    return folder / f"{name}.pem"


@pytest.mark.parametrize(
    ("begin", "end", "said"),
    [
        (-400, -1, "the certificate ended at {end}, so no handshake succeeds"),
        (-400, 5.5, "the certificate ends at {end}, in 131 hours"),
        (-400, 40, ""),
        (-400, 365 * 40, ""),  # its year has four digits
        (2, 400, "the certificate is not valid before {begin}"),
    ],
)
def test_a_certificate_that_ends_is_a_line_with_the_date(pems, tmp_path, caplog, begin, end, said):
    now = datetime.now(UTC)
    times = [now + timedelta(days=days) for days in (begin, end)]
    pem = make_signed(tmp_path, "own", *(f"{time:%Y%m%d%H%M%SZ}" for time in times))
    assert list(spans_of(pem.read_bytes())) == [tuple(time.replace(microsecond=0) for time in times)]
    ServerTls(pem, tmp_path / "own.key", pem).credentials()
    Tls(ca=pem, cert=pem, key=tmp_path / "own.key").credentials()
    dates = [f"{time:%Y-%m-%dT%H:%M:%SZ}" for time in times]
    expected = said.format(begin=dates[0], end=dates[1])
    assert len(caplog.messages) == (4 if said else 0)
    assert all(message.startswith(f"{pem}: {expected}") for message in caplog.messages)


def test_a_server_that_runs_on_says_once_a_day_what_ends(bundle, pems, tmp_path, caplog, monkeypatch):
    now = datetime.now(UTC)
    ends = (now + timedelta(days=3)).strftime("%Y%m%d%H%M%SZ")
    pem = make_signed(tmp_path, "own", (now - timedelta(days=3)).strftime("%Y%m%d%H%M%SZ"), ends)
    with serving(bundle, clock="snapshot", access=Access(ServerTls(pem, tmp_path / "own.key"))) as server:
        for a_day, said in ((86_400, 1), (0, 2)):  # at the start, and at a handshake of a later day
            monkeypatch.setattr(tls, "A_DAY", a_day)
            with Client(server.address, timeout=10, tls=client_tls(pems, "root")) as client:
                _code(client)  # whether it lets in or not
            assert sum("the certificate ends at" in message for message in caplog.messages) >= said


def test_of_roots_one_that_is_valid_will_do_and_what_is_none_is_for_tls_to_say(pems, tmp_path, caplog):
    now = datetime.now(UTC)
    ends = {"a": now - timedelta(days=3), "b": now + timedelta(days=99)}
    made = [make_signed(tmp_path, name, "20200101000000Z", f"{end:%Y%m%d%H%M%SZ}") for name, end in ends.items()]
    chain = b"".join(path.read_bytes() for path in made)
    warn_of_end(Path("roots"), chain, roots=True)
    for wrong in (b"AAAA", b"~"):
        warn_of_end(Path("none"), b"-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----" % wrong)
    assert caplog.messages == []
    warn_of_end(Path("chain"), chain)
    assert [message[:32] for message in caplog.messages] == ["chain: the certificate ended at "]


def test_an_encrypted_key_is_refused_without_asking_anybody_for_its_password(pems, tmp_path):
    openssl(pems, "ec", "-in", "server.key", "-aes128", "-passout", "pass:x", "-out", str(tmp_path / "server.key"))
    with pytest.raises(PairliftError, match="no password"):
        ServerTls(pems / "server.pem", tmp_path / "server.key").credentials()


def test_plain_text_and_tokens_stay_on_this_machine(pems, tmp_path):
    tokens = tmp_path / "tokens"
    for host in ("127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"):
        Access(tokens=tokens).check(host)
    for host in ("0.0.0.0", "::", "10.0.0.7", "ranker.example"):
        with pytest.raises(PairliftError, match="--insecure where the network itself is private"):
            Access().check(host)
        with pytest.raises(PairliftError, match="could read the tokens"):
            Access(tokens=tokens, insecure=True).check(host)
        Access(insecure=True).check(host)
        Access(tls_of(pems), tokens).check(host)
    with pytest.raises(PairliftError, match="in plain text"):
        Client("10.0.0.7:50051", token="x")
    with pytest.raises(PairliftError, match="one of the two"):
        Client(tls=Tls(cert=pems / "client.pem"))


def test_serve_refuses_an_open_address_before_it_loads_the_bundle(tmp_path):
    code, said = pairlift("serve", tmp_path / "none", "--host", "0.0.0.0")
    assert code == 2
    assert "--tls-cert and --tls-key, or --insecure" in said
    code, said = pairlift("serve", tmp_path / "none", "--tls-cert", tmp_path / "a")
    assert code == 2
    assert "go together" in said


@pytest.fixture
def tokens(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A file with a token for each right alone, and the tokens by it."""
    made = {right: new_token(right, [right]) for right in RIGHTS}
    path = tmp_path / "tokens.txt"
    path.write_text("# callers\n\n" + "\n".join(line for _, line in made.values()) + "   # of us\n")
    return path, {right: token for right, (token, _) in made.items()}


def test_every_method_needs_its_right_and_health_none(bundle, world, tokens, tmp_path):
    path, token = tokens
    user, item = user_id(world, 3), int(world.catalog.item_ids[0])
    with recording(bundle, tmp_path / "log", access=Access(tokens=path)) as (server, _):
        refused(server, "UNAUTHENTICATED", "authorization: Bearer", "--token-file")
        refused(server, "UNAUTHENTICATED", "not known", token="pairlift_wrong")
        for right in RIGHTS:
            with Client(server.address, timeout=20, token=token[right]) as client:
                calls = {
                    "read": [
                        client.describe,
                        lambda c=client: c.rank(user, [item]),
                        lambda c=client: c.recommend(user),
                    ],
                    "record": [lambda c=client: list(c.record([]))],
                    "admin": [client.snapshot],
                }
                for needed, made in calls.items():
                    for call in made:
                        if needed == right:
                            call()
                            continue
                        with pytest.raises(
                            ServerError, match=f"needs the right '{needed}'.* of '{right}' has"
                        ) as error:
                            call()
                        assert error.value.code == "PERMISSION_DENIED"
        with grpc.insecure_channel(server.address) as channel:
            assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE)).status == 1
            ask = reflection_pb2.ServerReflectionRequest(list_services="")
            info = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
            with pytest.raises(grpc.RpcError) as error:
                next(info(iter([ask])))
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert next(info(iter([ask]), metadata=[("authorization", f"Bearer {token['read']}")]))
            # what is not there is not told to who may not know
            unknown = channel.unary_unary("/pairlift.v1.RankingService/Nothing")
            with pytest.raises(grpc.RpcError) as error:
                unknown(b"")
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_each_method_of_the_contract_has_a_right(tmp_path):
    from importlib import import_module

    proto = Path(pb.__file__).parent
    known = set()
    for path in proto.glob("*_pb2.py"):
        for service in import_module(f"pairlift.v1.{path.stem}").DESCRIPTOR.services_by_name.values():
            known |= {f"{service.full_name}/{method.name}" for method in service.methods}
    assert {name for name in known if right_of(f"/{name}") != "admin"} == NEEDS.keys() & known
    assert right_of("/pairlift.v1.AdminService/Deploy") == right_of("/grpc.channelz.v1.Channelz/GetServers") == "admin"
    assert right_of("/pairlift.v1.AdminService/Refresh") == "admin"
    assert right_of("/pairlift.v1.MetricsService/Metrics") == "read"
    assert right_of("/pairlift.v1.RankingService/TakeSnapshot") == "admin"
    assert right_of("/grpc.health.v1.Health/Watch") is None


def test_tokens_are_read_anew_and_a_wrong_file_changes_nothing(tokens, monkeypatch, caplog):
    path, token = tokens
    monkeypatch.setattr("ranker.serving.callers.tokens.LOOK_EVERY", 0.0)
    known = Tokens(path)
    made, line = new_token("late", ["read", "admin"])
    assert known.find(made) is None
    good = path.read_text()
    path.write_text(good + line)
    grant = known.find(made)
    assert grant is not None
    assert (grant.name, grant.rights) == ("late", {"read", "admin"})
    path.write_text(good + line.replace("late", "la te"))
    assert known.find(made) is not None
    assert known.find(made) is not None
    assert [r.message.count("NAME SHA256 RIGHTS was expected") for r in caplog.records if r.levelname == "ERROR"] == [1]
    path.write_text(good)
    assert known.find(made) is None
    assert known.find(token["read"]) is not None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "has no token"),
        ("# none\n", "has no token"),
        ("feed abc read", "line 1: NAME SHA256 RIGHTS"),
        (f"feed {'a' * 64}", "line 1: NAME SHA256 RIGHTS"),
        (
            f"ok {'b' * 64} read\nfeed {'a' * 64} read,rite",
            "line 2: rights of read, record, admin were",
        ),
        (f"a {'a' * 64} read\nb {'a' * 64} read", "line 2: this hash stands in the file twice"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, part):
    with pytest.raises(PairliftError) as error:
        read_tokens(tmp_path / "tokens", text.encode())
    assert part in str(error.value)


def test_the_command_makes_a_token_that_is_let_in_and_whose_line_does_not_tell_it(bundle, tmp_path):
    words = [sys.executable, "-m", "ranker.cli", "token", "feed", "--rights", "record,read"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    token = done.stderr.split()[-1]
    assert done.stdout.split()[0] == "feed"
    assert done.stdout.split()[2] == "read,record"
    assert token not in done.stdout
    (tmp_path / "tokens").write_text(done.stdout)
    (tmp_path / "feed.token").write_text(token + "\n")
    with serving(bundle, clock="snapshot", access=Access(tokens=tmp_path / "tokens")) as server:
        code, said = pairlift("top", server.address, "--once", "--every", 0.1)
        assert (code, "--token-file" in said) == (2, True)
        code, said = pairlift("top", server.address, "--once", "--every", 0.1, "--token-file", tmp_path / "feed.token")
        assert code == 0, said
        code, said = pairlift("recommend", "--user", 42, "--address", server.address, "--json")
        assert (code, "--token-file" in said) == (2, True)
        code, said = pairlift(
            "recommend", "--user", 42, "--address", server.address, "--json", "--token-file", tmp_path / "feed.token"
        )
        assert code == 0, said
        assert json.loads(said)["items"]
    code, said = pairlift("token", "feed", "--rights", "rite")
    assert (code, "found 'rite'" in said) == (2, True)
    code, said = pairlift("token", "fe ed")
    assert (code, "letters, digits" in said) == (2, True)


def test_commands_speak_tls(bundle, pems):
    with serving(bundle, clock="snapshot", access=Access(tls_of(pems, client_ca="root"))) as server:
        own = ("--tls-cert", pems / "client.pem", "--tls-key", pems / "client.key")
        ask = ("rank", "--user", 1, "--items", "1,2", "--address", server.address)
        code, said = pairlift(*ask, "--tls-ca", pems / "root.pem", *own)
        assert code == 0, said
        code, said = pairlift(*ask, "--tls")
        assert (code, "did not come to terms" in said) == (2, True)
        code, said = pairlift(*ask, "--tls-ca", pems / "nothing.pem")
        assert (code, "nothing.pem cannot be read" in said) == (2, True)


def _code(client: Client) -> str:
    try:
        client.describe()
    except ServerError as error:
        return error.code
    return ""


def test_one_caller_has_only_so_many_calls_at_work(bundle, tokens, tmp_path):
    """A stream that is open is such a call; of two callers each has a place of its own."""
    path, _ = tokens
    held = [new_token(name, ["read", "record"]) for name in ("first", "second")]
    path.write_text("\n".join(line for _, line in held))
    few = with_config(bundle, serve=bundle.config.serve.model_copy(update={"calls_per_caller": 1}))
    ended = threading.Event()

    def waiting():
        ended.wait(20)
        yield from ()

    with contextlib.ExitStack() as stack:
        server, _ = stack.enter_context(recording(few, tmp_path / "log", access=Access(tokens=path)))
        first, second = (stack.enter_context(Client(server.address, timeout=20, token=token)) for token, _ in held)
        stream = threading.Thread(target=lambda: list(first.record(waiting())))
        stream.start()
        assert within(10, lambda: _code(first) == "RESOURCE_EXHAUSTED")
        with pytest.raises(ServerError, match=r"1 calls of 'first' are at work, and \[serve\] calls_per_caller is 1"):
            first.describe()
        assert second.describe().name == "world"
        ended.set()
        stream.join(20)
        assert within(10, lambda: _code(first) == "")


def test_a_host_is_one_caller_whatever_its_connections(bundle):
    few = with_config(bundle, serve=bundle.config.serve.model_copy(update={"calls_per_caller": 2}))
    ask, own = reflection_pb2.ServerReflectionRequest(list_services=""), [("grpc.use_local_subchannel_pool", 1)]
    ended = threading.Event()

    def waiting():
        yield ask
        ended.wait(20)

    with serving(few, clock="snapshot") as server, contextlib.ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(server.address, own)) for _ in range(2)]
        streams = [reflection_pb2_grpc.ServerReflectionStub(one).ServerReflectionInfo(waiting()) for one in channels]
        for stream in streams:
            next(stream)
        refused(server, "RESOURCE_EXHAUSTED", "2 calls of 'ipv4:127.0.0.1' are at work")
        ended.set()


def test_open_reflection_streams_leave_threads_for_calls(bundle):
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    ended = threading.Event()

    def waiting():
        yield ask
        ended.wait(20)

    with serving(bundle, clock="snapshot") as server, grpc.insecure_channel(server.address) as channel:
        info = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        streams = [info(waiting()) for _ in range(MOST)]
        for stream in streams:
            next(stream)
        for _ in range(30):
            with pytest.raises(grpc.RpcError) as error:
                next(info(waiting()))
            assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        answer = ranking_pb2_grpc.RankingServiceStub(channel).Describe(pb.DescribeRequest(), timeout=10)
        assert answer.name == "world"
        ended.set()


def test_a_token_costs_microseconds(tokens):
    """CPU time of what stands before a call: reading its metadata, the hash, the right."""
    path, token = tokens
    rights = Rights(Tokens(path))
    metadata = (("user-agent", "x"), ("authorization", f"Bearer {token['read']}"))
    details = SimpleNamespace(method=f"/{SERVICE}/Rank", invocation_metadata=metadata)
    took = []
    for _ in range(5):
        start = time.thread_time()
        for _ in range(2000):
            assert rights.intercept_service(lambda _: 1, details) == 1
        took.append((time.thread_time() - start) / 2000 * 1e6)
    print(f"a token: {min(took):.2f} µs")
    assert min(took) < 10
