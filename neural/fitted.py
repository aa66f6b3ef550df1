"""What plugins have in common whose fit is a folder: networks in ONNX, vectors, and what the ranker is told of it."""

import json
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from features.arrays import save_arrays
from features.errors import PairliftError
from features.schema import I32
from features.settings import Settings
from features.state.lag import Lag
from neural.data import TowerData
from neural.expected import ItemSignals
from neural.histories import TokenSpec
from neural.runtime import EXPECTED, Vectors, save_spec
from neural.settings import FitSettings
from neural.vocabulary.words import check_words


class Opened(Protocol):
    """A fit that is open to be served."""

    vectors: Vectors
    expected: ItemSignals
    spec: TokenSpec


class Fit(Protocol):
    """What a training gives, of what stands beside the network."""

    @property
    def inputs(self) -> TowerData:
        """What the network was fitted on."""


R = TypeVar("R", bound=Opened)


class FolderFit:
    """What is fitted into a folder, and saved by copying it; a subclass has `fit`, which ends with `_write`."""

    options: ClassVar[type[Settings]]
    about: ClassVar[str]  # the file that says what was fitted
    format: ClassVar[int]  # version of what `save` writes
    wanted_format: ClassVar[str]  # of the sentence that refuses another one

    def __init__(self, **params: Any) -> None:
        self.settings: Any = self.options(**params)
        self.report: dict[str, Any] = {}
        self._folder: Path | None = None

    def _open(self, folder: Path, about: dict[str, Any]) -> None:
        """Open what a fit wrote into a folder. about: of `_write`."""
        raise NotImplementedError

    def _unfitted(self) -> PairliftError:
        return PairliftError(f"{type(self).__name__} is not fitted: call fit() or load() first")

    @property
    def curve(self) -> list[dict[str, Any]]:
        """What the training reached: see `features.plugin.CurvePlugin`."""
        return list(self.report.get("curve", ()))

    def _write(self, folder: Path, **more: Any) -> None:
        """Write what was fitted beside the files of a fit, and open them. folder: of `new_folder`, for this object."""
        about = {"format": self.format, "settings": self.settings.model_dump(), **more, "report": self.report}
        (folder / self.about).write_text(json.dumps(about, indent=1))
        self._folder = folder
        self._open(folder, about)

    def save(self, folder: Path) -> None:
        """Copy the fitted files into an empty folder: the networks, the arrays, JSON."""
        if self._folder is None:
            raise self._unfitted()
        copy_files(self._folder, folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote. The folder must stay for as long as the object may be saved again."""
        about = json.loads((folder / cls.about).read_text())
        if about.get("format") != cls.format:
            raise PairliftError(
                f"{folder / cls.about}: {cls.wanted_format} expected, found {about.get('format', 1)}; train anew"
            )
        fitted = cls(**about["settings"])
        fitted.report, fitted._folder = about["report"], folder
        fitted._open(folder, about)
        return fitted


class FittedPlugin(FolderFit, Generic[R]):
    """A FeaturePlugin over a runtime; a subclass has `fit`, which ends with `_finish`, and `values`."""

    options: ClassVar[type[FitSettings]]

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.zone = "UTC"
        self._runtime: R | None = None

    def check_texts(self, texts: Sequence[str]) -> None:
        """Raise PairliftError where `words` is asked for and the log has no text: see `features.plugin.TextPlugin`."""
        if self.settings.words:
            check_words(texts)

    @staticmethod
    def _opened(folder: Path, lag: Lag) -> R:
        """Open what a fit wrote into a folder."""
        raise NotImplementedError

    def _open(self, folder: Path, about: dict[str, Any]) -> None:
        self.zone = about["zone"]
        self._runtime = self._opened(folder, Lag(self.settings.lag, self.zone))

    @property
    def runtime(self) -> R:
        """What was fitted; PairliftError before `fit` or `load`."""
        if self._runtime is None:
            raise self._unfitted()
        return self._runtime

    def _finish(self, trained: Fit, vectors: Vectors, folder: Path, zone: str) -> None:
        """Write what stands beside the networks of a fit, and open it. folder: of `new_folder`, for this plugin."""
        vectors.save(folder)
        save_arrays(folder / EXPECTED, trained.inputs.expected)
        save_spec(folder, trained.inputs.spec)
        self._write(folder, zone=zone)

    def recoded(self, items: I32, users: I32) -> Self:
        """Return it for another catalogue: see `features.plugin.RecodedPlugin`."""
        folder = Path(tempfile.mkdtemp(prefix="pairlift-fit-"))
        self.save(folder)
        runtime = self.runtime
        runtime.vectors.recoded(items, users).save(folder)
        save_arrays(folder / EXPECTED, runtime.expected.recoded(items))
        save_spec(folder, replace(runtime.spec, n_items=len(items)))
        moved = type(self).load(folder)
        weakref.finalize(moved, shutil.rmtree, folder, ignore_errors=True)
        return moved


def copy_files(source: Path, folder: Path) -> None:
    """Copy what is in a folder into another, which is there; not the modes: that of a fit's is its owner's alone."""
    for path in sorted(source.rglob("*")):
        to = folder / path.relative_to(source)
        if path.is_dir():
            to.mkdir(exist_ok=True)
        else:
            shutil.copyfile(path, to)


def new_folder(plugin: object) -> Path:
    """Return a new folder, which goes when the plugin does."""
    folder = Path(tempfile.mkdtemp(prefix="pairlift-fit-"))
    weakref.finalize(plugin, shutil.rmtree, folder, ignore_errors=True)
    return folder
