"""The weights of a fit, kept for one that goes on from it: NumPy's arrays without pickles, and what their rows mean."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from features.errors import PairliftError
from features.schema import I64, Bool, Catalog
from neural.data import TowerData
from neural.histories import CODES
from neural.model import Argus
from neural.parallel.device import array, tensor
from neural.settings import TowerSettings
from neural.vocabulary.earlier import Known

WEIGHTS = "weights.npz"
#: the parameter whose rows values are hashed to, and beside it in the file: which of its rows are kept
TABLE, TABLE_ROWS = "table.weight", "table_rows"
#: options without which the weights are those of another network, or of other inputs
SHAPING = (
    "encoder",
    "layers",
    "width",
    "heads",
    "history",
    "context",
    "feedback_kinds",
    "id_shrink",
    "semantic_ids",
    "words",
)


def save_weights(model: Argus, inputs: TowerData, folder: Path) -> None:
    """Write the network with all its heads, and what it knows by name. Of the table, the rows of trained values alone.

    They are fewer than the table's, of which each value has two; a bundle grows by at most 2 (width / 2) numbers for
    each of these, as much as its item's vector takes.
    """
    arrays = {name: array(parameter) for name, parameter in model.named_parameters()}
    rows = np.flatnonzero(kept_rows(inputs.known, inputs.known, inputs.rows))
    arrays |= {TABLE: arrays[TABLE][rows], TABLE_ROWS: rows}
    np.savez(folder / WEIGHTS, allow_pickle=False, **arrays)
    inputs.known.save(folder)


def kept_rows(earlier: Known, now: Known, rows: int) -> Bool:
    """Return bool[rows] of the table: a value that both fits have trained has it."""
    return earlier.items.kept_rows(now.items, rows) | earlier.users.kept_rows(now.users, rows)


def check_fit(about: Path, form: int, settings: TowerSettings) -> None:
    """Raise PairliftError where a fit of another format, or a network of other options, was saved.

    about: the file of its settings.
    """
    saved, now = json.loads(about.read_text()), settings.model_dump()
    if saved["format"] != form:
        raise PairliftError(f"a fit of format {form} was expected, found {saved['format']}")
    was = saved["settings"]
    differ = [f"{name} was {was.get(name)}, now it is {now[name]}" for name in SHAPING if was.get(name) != now[name]]
    if differ:
        raise PairliftError(f"it is another network: {'; '.join(differ)}")
    if settings.semantic_ids:
        raise PairliftError(
            f"semantic_ids = {settings.semantic_ids}: their codes are learned anew in each fit, and mean nothing to "
            "the weights of an earlier one"
        )


def take_up(model: Argus, folder: Path, earlier: Known, inputs: TowerData, catalog: Catalog) -> None:
    """Give a drawn network the weights of an earlier one; new ids and values keep what was drawn for them.

    A value's two rows of the table are those of then; both halves of a table that has grown to twice the rows are the
    smaller one. Rows that no kept value has are new, also those of values that are gone. PairliftError where the parts
    are others.
    """
    with np.load(folder / WEIGHTS) as file:
        saved = dict(file)
    moved = {TABLE: _table(saved.pop(TABLE_ROWS), kept_rows(earlier, inputs.known, inputs.rows), earlier.rows)}
    moved |= _codes(earlier, inputs, catalog)
    if any(name.startswith("user.codes.") and name not in saved for name in moved):
        raise PairliftError(
            "it was fitted before towers read what past requests said ([events.context]), and has no weights for it"
        )
    parameters = dict(model.named_parameters())
    odd = sorted(parameters.keys() ^ saved.keys())
    odd += [n for n in parameters.keys() & saved.keys() - moved.keys() if parameters[n].shape != saved[n].shape]
    if odd:
        raise PairliftError(f"it is another network: it differs in {', '.join(odd[:3])}{' …' * (len(odd) > 3)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            _fill(parameter, tensor(saved[name]), moved.get(name))


def _table(saved: I64, kept: Bool, earlier_rows: int) -> I64:
    """Return int64[rows]: the place in the saved rows of each row of the table, -1 of a new one."""
    row = np.arange(len(kept)) % earlier_rows
    place = np.minimum(np.searchsorted(saved, row), max(len(saved) - 1, 0))
    return np.where(kept, place, -1)


def _codes(earlier: Known, inputs: TowerData, catalog: Catalog) -> dict[str, I64]:
    """Return the row that each row was of the embeddings of codes: of surfaces, and of attributes of the context."""
    spec, context = inputs.spec, inputs.spec.context
    surfaces = earlier.surface_rows(catalog, spec.n_surfaces)
    moved = {f"user.codes.{CODES.index('surface')}.weight": surfaces}
    parts = {"user.context": 1, "next_context": 1}  # where the clock's codes begin, and behind them the attributes'
    if context.surface:
        moved |= {f"{part}.codes.0.weight": surfaces for part in parts}
    for part, first in (parts | {"user": len(CODES)} if context.in_tokens else parts).items():
        for k, attribute in enumerate(context.attributes, first + len(context.clock_sizes)):
            moved[f"{part}.codes.{k}.weight"] = earlier.context_rows(attribute, catalog)
    return moved


def _fill(parameter: nn.Parameter, saved: Tensor, row: I64 | None) -> None:
    """Copy what was saved. row: int64[n] of the saved one for each row, -1 of a new one; None: as it is."""
    if row is None:
        parameter.copy_(saved)
        return
    kept = np.flatnonzero(row >= 0)
    parameter[tensor(kept)] = saved[tensor(row[kept])]
