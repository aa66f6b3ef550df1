"""Bundles in motion: deployed, refused, rolled back, followed and kept, on running servers."""

import errno
import gc
import json
import shutil
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from served import pairlift, recording, serving, user_id, within
from world import make_world, train_parts, write_world_bundle

from features.baselines import ALS
from features.errors import PairliftError
from features.state.store import State
from ranker import server as servers
from ranker.administrator import Admin
from ranker.bundle import Bundle, load_bundle
from ranker.client import Client
from ranker.hashes import hash_value
from ranker.server import Server
from ranker.serving.rollout import deployer as deployers
from ranker.serving.rollout.following import Following
from ranker.serving.rollout.store import Store


def as_of(world, parts, time):
    """The parts with a state that ends earlier."""
    return parts._replace(state=State.build(world.log.until(time), world.catalog, parts.state.counters, world.grades))


@pytest.fixture(scope="module")
def older_parts(world, parts):
    return as_of(world, parts, parts.split.t1)


@pytest.fixture(scope="module")
def folders(world, parts, older_parts, bundle_folder, tmp_path_factory):
    """The bundle, two of the same log as of earlier times, and one whose ids are text."""
    place = tmp_path_factory.mktemp("bundles")
    write_world_bundle(older_parts, place / "older")
    write_world_bundle(as_of(world, parts, parts.split.t2), place / "third")
    write_world_bundle(train_parts(make_world(text_ids=True)), place / "text")
    return {"first": bundle_folder, **{name: place / name for name in ("older", "third", "text")}}


@pytest.fixture
def running(folders, tmp_path):
    with serving(load_bundle(folders["first"]), clock="snapshot", bundles=tmp_path / "kept") as server:
        yield server


@pytest.fixture
def client(running):
    with Client(running.address, timeout=20) as client:
        yield client


@pytest.fixture
def scored(monkeypatch):
    """Let a bundle give other scores: `scored(version, change)`."""

    def change_scores(version, change):
        for name in ("score", "score_wanted"):
            honest = getattr(Bundle, name)

            def score(bundle, matrix, honest=honest):
                found = honest(bundle, matrix)
                return change(found) if bundle.version == version else found

            monkeypatch.setattr(Bundle, name, score)

    return change_scores


def version_of(folder):
    return json.loads((folder / "manifest.json").read_text())["version"]


def deploy(server, *words):
    return pairlift("deploy", *words, "--to", server.address)


def answers(client):
    return client.rank(1000, [10, 13]).bundle_version


def test_a_deployed_bundle_answers_and_a_rollback_brings_the_one_before_back(running, client, folders, world):
    first, older = version_of(folders["first"]), version_of(folders["older"])
    assert client.rank(user_id(world, 1), [10, 13]).bundle_version == first
    code, said = deploy(running, folders["older"])
    assert code == 0, said
    assert "rank correlation" in said
    assert client.rank(user_id(world, 1), [10, 13]).bundle_version == older
    assert client.recommend(user_id(world, 1)).bundle_version == older
    assert client.describe().bundle_version == older
    for expected in (first, older, first):
        code, said = pairlift("rollback", "--to", running.address, "--json")
        assert code == 0, said
        assert answers(client) == expected
        roles = {one["role"]: one["version"] for one in json.loads(said)["bundles"]}
        assert roles == {"active": expected, "previous": ({first, older} - {expected}).pop()}


def test_what_is_active_already_and_an_arm_that_gets_another_bundle_are_said(running, folders):
    first, older, third = (version_of(folders[name]) for name in ("first", "older", "third"))
    code, said = deploy(running, folders["first"])
    assert (code, f"bundle {first} is active already: nothing has changed" in said, "deployed:" in said) == (
        0,
        True,
        False,
    )
    arm = ("--arm", "b", "--share", "0.1", "--force")
    replaced = f"arm b answers with bundle {older}, in whose place {third} comes"
    for name, says in (("older", False), ("older", False), ("third", True)):
        code, said = deploy(running, folders[name], *arm)
        assert (code, replaced in " ".join(said.split())) == (0, says), said
    assert "deployed:" in said


def test_a_rollback_of_nothing_is_a_sentence(running):
    code, said = pairlift("rollback", "--to", running.address)
    assert (code, "no previous bundle" in said) == (2, True)


def test_a_bundle_with_a_changed_byte_is_refused(running, client, folders, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(folders["older"], damaged)
    path = damaged / "booster.txt"
    path.write_bytes(path.read_bytes().replace(b"num_leaves", b"num_Leaves", 1))
    code, said = deploy(running, damaged, "--force")
    assert code == 2
    assert "booster.txt: changed" in said
    assert answers(client) == version_of(folders["first"])


def test_a_bundle_of_another_contract_is_refused_even_by_force(running, client, folders):
    code, said = deploy(running, folders["text"], "--force")
    assert code == 2
    assert "its user ids are text, and callers send integers" in said
    assert answers(client) == version_of(folders["first"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda scores: np.where(np.arange(len(scores)) == 1, np.nan, scores), "not finite"),
        (np.zeros_like, "one score"),
        (np.negative, "it ranks otherwise"),
        (lambda scores: time.sleep(0.05) or scores, "too slow"),
    ],
)
def test_a_bundle_that_is_slow_or_odd_in_its_scores_is_refused_unless_forced(
    running, client, folders, scored, change, reason
):
    first, older = version_of(folders["first"]), version_of(folders["older"])
    scored(older, change)
    code, said = deploy(running, folders["older"])
    assert code == 2
    assert reason in said
    assert "--force" in said
    assert answers(client) == first
    assert deploy(running, folders["older"], "--force")[0] == 0
    assert answers(client) == older


def test_a_bundle_that_fails_on_recent_requests_is_refused(running, client, folders, scored, world):
    def fail_on_one(scores):
        if len(scores) == 1:
            raise ValueError("a list of one")
        return scores

    for k in range(4):
        client.rank(user_id(world, k), [10])
        time.sleep(0.06)
    scored(version_of(folders["older"]), fail_on_one)
    code, said = deploy(running, folders["older"], "--force")
    assert code == 2
    assert "4 of" in said
    assert "a list of one" in said


def test_what_callers_may_send_must_be_read_unless_forced(running, folders, parts, tmp_path):
    catalog = replace(parts.state.catalog, surfaces=("feed",))
    write_world_bundle(parts._replace(state=replace(parts.state, catalog=catalog)), tmp_path / "fewer")
    code, said = deploy(running, tmp_path / "fewer")
    assert code == 2
    assert "ignores what callers may send: surface search" in said
    assert deploy(running, tmp_path / "fewer", "--force")[0] == 0


def test_a_bundle_that_does_not_load_or_warm_up_is_refused(running, client, folders, monkeypatch):
    active = running.deployment.active.bundle.plugins["als"]
    honest = ALS.values

    def values(plugin, *rest):
        if plugin is not active:
            raise RuntimeError("no factors")
        return honest(plugin, *rest)

    monkeypatch.setattr(ALS, "values", values)
    code, said = deploy(running, folders["older"])
    assert (code, "plugins.als failed while warming up" in said) == (2, True)
    monkeypatch.setattr(ALS, "load", lambda _: 1 / 0)
    code, said = deploy(running, folders["older"])
    assert (code, "ZeroDivisionError" in said) == (2, True)
    assert answers(client) == version_of(folders["first"])


def test_only_one_change_at_a_time_and_what_is_not_there_is_told(running, folders, tmp_path):
    with running.deployer._alone():
        code, said = deploy(running, folders["older"])
        assert (code, "another deployment is under way" in said) == (2, True)
    code, said = deploy(running, tmp_path / "nothing")
    assert (code, "sees no bundle at" in said) == (2, True)
    for words in (("--share", "0.1"), (folders["older"], "--share", "0.1"), ("--arm", "a b", "--share", "0.1")):
        code, said = deploy(running, *words)
        assert (code, "expected" in said or "--share" in said) == (2, True)


def test_where_the_plan_cannot_be_written_the_one_before_goes_on(running, client, folders, monkeypatch):
    first = running.deployment.active

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", full)
        with pytest.raises(PairliftError, match=r"the disk refused: .* No space left"):
            Admin(client).deploy(folders["older"], print, force=True)
        assert running.deployment.active is first
        assert running.deployer.store.plan() is None
    assert running.deployer.plan.active.version == version_of(folders["first"])


def test_a_restart_goes_on_with_what_is_deployed_and_keeps_nothing_else(folders, tmp_path):
    first, older, kept = version_of(folders["first"]), version_of(folders["older"]), tmp_path / "kept"
    with serving(load_bundle(folders["first"]), clock="snapshot", bundles=kept) as server:
        assert deploy(server, folders["older"])[0] == 0
        assert deploy(server, folders["older"], "--arm", "b", "--share", "0.25")[0] == 0
        assert deploy(server, folders["third"], "--shadow", "--share", "0.5")[0] == 0
        assert deploy(server, folders["first"], "--shadow", "--share", "0.5")[0] == 0
        before = server.deployer.plan
    assert {p.name for p in kept.iterdir() if p.is_dir()} == {first, older}
    with serving(load_bundle(folders["first"]), clock="snapshot", bundles=kept) as server:
        standing = server.deployment.standing
        assert server.deployer.plan == before
        assert standing.active.bundle.version == standing.arms["b"].bundle.version == older
        assert standing.previous.bundle.version == standing.shadow.served.bundle.version == first
        assert standing.split.share("b") == 0.25
        assert pairlift("rollback", "--to", server.address)[0] == 0
        assert pairlift("drop", "b", "--to", server.address)[0] == 0
    with serving(load_bundle(folders["older"]), clock="snapshot", bundles=kept) as server:
        assert server.deployment.active.bundle.version == first  # it was rolled back from the one that is named
    with serving(load_bundle(folders["third"]), clock="snapshot", bundles=kept) as server:
        assert server.deployment.active.bundle.version == version_of(folders["third"])
        assert server.deployer.plan.number == 0


def test_a_damaged_plan_is_a_sentence(folders, tmp_path):
    (tmp_path / "deployment.json").write_text('{"started": 3}')
    with pytest.raises(PairliftError, match="json is damaged"):
        Server(load_bundle(folders["first"]), bundles=tmp_path)


def test_processes_that_keep_the_same_folder_follow_each_other(folders, tmp_path):
    older = version_of(folders["older"])
    options = {"clock": "snapshot", "bundles": tmp_path / "kept"}
    with (
        serving(load_bundle(folders["first"]), **options) as one,
        serving(load_bundle(folders["first"]), **options) as two,
    ):
        assert deploy(one, folders["older"])[0] == 0
        assert within(10, lambda: two.deployment.active.bundle.version == older)
        assert pairlift("rollback", "--to", two.address)[0] == 0
        assert within(10, lambda: one.deployment.active.bundle.version == version_of(folders["first"]))
        assert one.deployer.plan == two.deployer.plan


def test_a_bundle_that_the_server_does_not_see_is_uploaded(running, client, folders, tmp_path, monkeypatch):
    older = version_of(folders["older"])
    away = tmp_path / "away"
    shutil.copytree(folders["older"], away)
    honest = deployers.read_manifest

    def read_manifest(folder):
        if folder == away:
            raise PairliftError(f"{folder} is not a bundle")
        return honest(folder)

    monkeypatch.setattr(deployers, "read_manifest", read_manifest)
    sent = []
    Admin(client).deploy(away, sent.append, lambda done, total: sent.append((done, total)))
    assert answers(client) == older
    done, total = [one for one in sent if isinstance(one, tuple)][-1]
    assert done == total > 0
    # The trees are those of the bundle before, which the store has only once that was deployed by path.
    assert load_bundle(running.deployer.store.folder / older).version == older


def test_an_upload_cannot_leave_its_folder_and_sends_only_what_is_missing(folders, tmp_path):
    store = Store(tmp_path)
    place = store.keep(folders["first"])
    manifest = (folders["older"] / "manifest.json").read_bytes()
    missing = store.offered(manifest)
    assert "booster.txt" not in missing
    assert any(name.startswith("snapshot/") for name in missing)
    with pytest.raises(PairliftError, match="missing or damaged"):
        store.uploaded(version_of(folders["older"]))
    with pytest.raises(PairliftError, match="is no file of bundle"):
        store.write(version_of(folders["older"]), "../x", b"", True)
    evil = json.loads(manifest) | {"files": {"../../evil": "00"}}
    with pytest.raises(PairliftError, match="damaged"):
        store.offered(json.dumps(evil).encode())
    del evil["version"]
    with pytest.raises(PairliftError, match="outside of the bundle"):
        store.offered(json.dumps(evil | {"version": hash_value(evil)[:12]}).encode())
    for version in ("../kept", "nothing", ""):
        with pytest.raises(PairliftError, match="was not"):
            store.uploaded(version)
        with pytest.raises(PairliftError, match="was not offered"):
            store.write(version, "booster.txt", b"", True)
    for first in (True, False):  # what it has of another bundle it has by a link: that one's file is not written to
        store.write(version_of(folders["older"]), "booster.txt", b"other trees", first)
        assert (folders["first"] / "booster.txt").read_bytes() != b"other trees"
    assert store.offered(manifest) == missing
    for name in missing:
        data = (folders["older"] / name).read_bytes()
        store.write(version_of(folders["older"]), name, data[:7], True)
        store.write(version_of(folders["older"]), name, data[7:], False)
    assert load_bundle(Path(store.uploaded(version_of(folders["older"])).folder)).version
    assert load_bundle(Path(place.folder)).version == version_of(folders["first"])


def test_a_bundle_that_takes_its_place_is_followed(folders, parts, older_parts, tmp_path, monkeypatch):
    monkeypatch.setattr(servers, "FOLLOW_EVERY", 0.05)
    place = tmp_path / "bundle"
    write_world_bundle(parts, place)
    with serving(load_bundle(place), clock="snapshot", follow=place) as server, Client(server.address, 20) as client:
        first = answers(client)
        write_world_bundle(older_parts, place)
        assert within(20, lambda: answers(client) == version_of(place) != first)
        assert client.recommend(1000).items
        assert pairlift("rollback", "--to", server.address)[0] == 0  # its folder is gone, and it is mapped
        time.sleep(0.3)
        assert answers(client) == first == client.recommend(1000).bundle_version


def test_a_followed_bundle_that_was_replaced_does_not_come_back_with_a_restart(folders, tmp_path):
    """Nor in a process of several that is started again: it may have been replaced because it was bad."""
    first, options = load_bundle(folders["first"]), {"clock": "snapshot", "bundles": tmp_path / "kept"}
    with serving(first, **options) as server, Client(server.address, timeout=20) as client:
        Following(server.deployer, folders["older"]).look()
        assert answers(client) == version_of(folders["older"])
        Admin(client).rollback()
        Admin(client).deploy(folders["third"], print, force=True)
    with serving(first, **options) as server:
        Following(server.deployer, folders["older"]).look()
        assert server.deployment.active.bundle.version == version_of(folders["third"])


def test_a_followed_bundle_that_is_refused_is_told_once_and_tried_again_when_it_changes(
    folders, parts, older_parts, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(servers, "FOLLOW_EVERY", 0.05)
    place = tmp_path / "bundle"
    with serving(load_bundle(folders["first"]), clock="snapshot", follow=place) as server:
        write_world_bundle(older_parts, tmp_path / "damaged")
        (tmp_path / "damaged" / "booster.txt").write_text("tree")
        shutil.move(tmp_path / "damaged", place)
        assert within(10, lambda: "booster.txt: changed" in caplog.text)
        time.sleep(0.5)
        assert caplog.text.count("booster.txt: changed") == 1
        write_world_bundle(older_parts, place)
        assert within(20, lambda: server.deployment.active.bundle.version == version_of(place))


def test_no_request_fails_and_no_bundle_stays_over_fifty_swaps_under_load(running, folders, world):
    stop, failed, seen = threading.Event(), [], set()

    def ask(k):
        with Client(running.address, timeout=20) as client:
            while not stop.is_set():
                try:
                    reply = (
                        client.rank(user_id(world, k), [10, 13, 16]) if k % 2 else client.recommend(user_id(world, k))
                    )
                    seen.add(reply.bundle_version)
                    failed.extend(reply.degraded)
                except Exception as error:
                    failed.append(error)

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    retired = []
    with Client(running.address, timeout=60) as client:
        admin = Admin(client)
        for turn in range(10):  # a deployment and four rollbacks each
            retired.append(weakref.ref(running.deployment.active))
            admin.deploy((folders["older"], folders["third"], folders["first"])[turn % 3], lambda _: None)
            for _ in range(4):
                admin.rollback()
    stop.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(seen) == 3
    gc.collect()
    kept = [served for ref in retired if (served := ref()) is not None]
    assert len(set(map(id, kept))) <= 2  # the active one, and the one before


def test_a_bundle_that_is_replaced_follows_the_log_no_longer(folders, tmp_path):
    with recording(load_bundle(folders["first"]), tmp_path / "log") as (server, client):
        first = server.deployment.active  # a process of several holds it for as long as it runs
        for name in ("older", "third"):
            Admin(client).deploy(folders[name], lambda _: None)
        served = server.deployment.standing.all
        assert first not in served
        assert within(10, lambda: not first.follower.live.running)
        assert all(one.follower.live.running for one in served)
