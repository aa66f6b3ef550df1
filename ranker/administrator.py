"""The administrator's side of AdminService: deploys bundles, and uploads those that the server does not see."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import grpc
from pairlift.v1 import admin_pb2 as admin
from pairlift.v1 import admin_pb2_grpc

from features.errors import PairliftError
from ranker.client import Client, ServerError

T = TypeVar("T")

#: bytes of a file in one message
CHUNK = 1 << 20
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Stands:
    """A bundle that is deployed."""

    role: str  # `active`, `previous`, `arm` or `shadow`
    version: str
    name: str  # of its TOML
    folder: str  # on the server
    snapshot_time: int  # µs UTC, the end of the events that it knows
    arm: str  # empty: none
    share: float  # of the users (arm) or of the requests (shadow)
    #: of the shadow: the fields of `Comparison` in admin.proto, None where not known
    comparison: dict[str, float | None] | None


@dataclass(frozen=True, slots=True)
class Deployed:
    """What is deployed, the active bundle first."""

    experiment: str  # under way; empty: none
    bundles: tuple[Stands, ...]


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a server has computed ahead of one plugin."""

    bundle_version: str
    plugin: str  # its name in the TOML
    users: int  # of whom there is a state
    computed: int  # of how many of them it was computed now
    bytes: int
    as_of: int  # µs UTC


class Admin:
    """Changes which bundles a server answers with, and what they computed ahead.

    Every failure is a PairliftError; a ServerError is the server's.
    """

    def __init__(self, client: Client) -> None:
        """client: of the server, with the right `admin` where there are tokens. What reports steps has no timeout."""
        self._client = client
        self._stub = admin_pb2_grpc.AdminServiceStub(client.channel)

    def deploy(
        self,
        folder: Path | None,
        say: Callable[[str], None],
        sent: Callable[[int, int], None] = lambda _, __: None,
        **wanted: Any,
    ) -> Deployed:
        """Deploy the bundle in a folder; return what is deployed now.

        folder: as the server sees it, or, where it does not, here: then what the server lacks is uploaded. None: no
        bundle, the arm gets another share. say: takes a sentence for each step. sent: takes (bytes sent, bytes in all)
        of an upload. wanted: other fields of DeployRequest (arm, share, experiment, shadow, force).
        """
        if folder is None:
            return self._deploy(admin.DeployRequest(**wanted), say)
        here = folder / MANIFEST
        version = _version(here) if here.is_file() else ""
        try:
            return self._deploy(admin.DeployRequest(folder=str(folder.resolve()), version=version, **wanted), say)
        except ServerError as error:
            if error.code != grpc.StatusCode.NOT_FOUND.name or not version:
                raise
            say(f"{error}: uploading it")
        self.upload(folder, version, sent)
        return self._deploy(admin.DeployRequest(version=version, **wanted), say)

    def _deploy(self, request: admin.DeployRequest, say: Callable[[str], None]) -> Deployed:
        found = None
        try:
            for progress in self._stub.Deploy(request):  # to its end: a stream that is left counts as CANCELLED
                if progress.HasField("deployed"):
                    found = _deployed(progress.deployed)
                else:
                    say(progress.step)
        except grpc.RpcError as error:
            raise self._client.explained(error) from error
        if found is None:
            raise PairliftError(
                "the server ended the deployment without a word; `pairlift deployed` shows what is there"
            )
        return found

    def upload(self, folder: Path, version: str, sent: Callable[[int, int], None]) -> None:
        """Send the files of a bundle that the server lacks. sent: as for `deploy`."""
        manifest = (folder / MANIFEST).read_bytes()
        missing = self._call(self._stub.Offer, admin.OfferRequest(manifest=manifest)).missing
        total = sum((folder / name).stat().st_size for name in missing)
        self._call(self._stub.Upload, _pieces(folder, version, missing, lambda done: sent(done, total)))

    def rollback(self) -> Deployed:
        """Exchange the active and the previous bundle."""
        return self._change(self._stub.Rollback, admin.RollbackRequest())

    def promote(self, arm: str) -> Deployed:
        """Let an arm's bundle answer all, and end the arm."""
        return self._change(self._stub.Promote, admin.PromoteRequest(arm=arm))

    def drop(self, arm: str = "") -> Deployed:
        """End an arm, or with an empty name the shadow."""
        return self._change(self._stub.Drop, admin.DropRequest(arm=arm))

    def deployed(self) -> Deployed:
        """Return what is deployed."""
        return self._change(self._stub.Bundles, admin.BundlesRequest())

    def refresh(
        self, users: int, memory: int, done: Callable[[int, int], None] = lambda _, __: None
    ) -> list[Refreshed]:
        """Have the server compute ahead what plugins make of users' histories; return what it has then.

        users: of each plugin at most, 0: as many as there is room for. memory: bytes that one plugin's may take. done:
        takes (users done, users in all) of the plugin at work.
        """
        found: list[Refreshed] = []
        try:
            for progress in self._stub.Refresh(admin.RefreshRequest(users=users, memory=memory)):
                found += [_fields_of(Refreshed, plugin) for plugin in progress.plugins]
                if not progress.plugins:
                    done(progress.done, progress.total)
        except grpc.RpcError as error:
            raise self._client.explained(error) from error
        return found

    def _change(self, method: Any, message: Any) -> Deployed:
        return _deployed(self._call(method, message))

    def _call(self, method: Any, message: Any) -> Any:
        try:
            return method(message)
        except grpc.RpcError as error:
            raise self._client.explained(error) from error


def _fields_of(kind: type[T], message: Any) -> T:
    """Return a dataclass of the fields of a message, which has them all."""
    return kind(**{field.name: getattr(message, field.name) for field in fields(kind)})  # type: ignore[arg-type]


def _deployed(found: admin.Deployed) -> Deployed:
    return Deployed(found.experiment, tuple(_stands(one) for one in found.bundles))


def _stands(one: admin.DeployedBundle) -> Stands:
    comparison = None
    if one.HasField("comparison"):
        values = {field.name: getattr(one.comparison, field.name) for field in admin.Comparison.DESCRIPTOR.fields}
        comparison = {name: None if math.isnan(value) else value for name, value in values.items()}
    return Stands(
        role=admin.Role.Name(one.role).removeprefix("ROLE_").lower(),
        version=one.version,
        name=one.name,
        folder=one.folder,
        snapshot_time=one.snapshot_time,
        arm=one.arm,
        share=one.share,
        comparison=comparison,
    )


def _version(manifest: Path) -> str:
    try:
        return str(json.loads(manifest.read_bytes())["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise PairliftError(f"{manifest} is damaged: train the bundle again, or copy it again") from error


def _pieces(folder: Path, version: str, names: list[str], sent: Callable[[int], None]) -> Iterator[admin.UploadRequest]:
    done = 0
    for name in names:
        path = name
        with (folder / name).open("rb") as file:
            while (chunk := file.read(CHUNK)) or path:  # an empty file has one empty piece
                yield admin.UploadRequest(version=version, path=path, chunk=chunk)
                done, path = done + len(chunk), ""
                sent(done)
