"""A bundle's place on the disk is followed: what takes the place of the bundle there is deployed."""

import logging
from pathlib import Path

from features.errors import PairliftError
from ranker.bundle import read_manifest
from ranker.hashes import MANIFEST
from ranker.serving.rollout.deployer import BusyError, Deployer, Wanted

log = logging.getLogger(__name__)

#: of the file by which one process of a server follows, and not all of them
LOCK = "follow.lock"


class Following:
    """Looks at a folder that `pairlift train --out` replaces in one step. `look` from one thread, again and again."""

    def __init__(self, deployer: Deployer, folder: Path) -> None:
        """What stands there now is deployed by the first look, unless it is active, or was: it was replaced since."""
        self._deployer, self.folder = deployer, folder
        self._known = set(deployer.plan.known)
        self._seen: tuple[int, int] | None = None  # the manifest that was looked at

    def look(self) -> None:
        """Deploy what stands there, where it is another bundle than at the last look."""
        try:
            found = (self.folder / MANIFEST).stat()
        except OSError:
            return  # between two renames nothing stands there
        seen = found.st_ino, found.st_mtime_ns
        if seen == self._seen:
            return
        store = self._deployer.store
        if store is None:
            self._take(seen)
            return
        with store.locked(LOCK) as alone:
            if alone:
                self._take(seen)

    def _take(self, seen: tuple[int, int]) -> None:
        try:
            version = str(read_manifest(self.folder)["version"])
            if version not in self._known:
                log.info("%s: bundle %s stands there now, and is tried", self.folder, version)
                self._deployer.deploy(Wanted(folder=self.folder, version=version), log.info)
        except BusyError:
            return  # the next look tries again
        except (PairliftError, OSError) as error:
            log.error("%s: %s; it is tried again when it changes", self.folder, error)
            version = ""
        self._seen, self._known = seen, {version}
