"""The plugin of the towers: user and item vectors of a history transformer, and their scalar product."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.errors import PairliftError, did_you_mean
from features.plugin import FitData, LaterEvents
from features.schema import F32, Requests
from features.state.histories import Histories
from features.state.lag import Lag
from features.state.refreshed import Ahead, RefreshedStates
from neural.fitted import FittedPlugin, new_folder
from neural.runtime import ITEM_TOWER, Runtime, Vectors, encode_items, load_runtime, open_session
from neural.settings import FEEDBACK, GRADE, TowerSettings, is_answer
from neural.vocabulary.context import check_context

if TYPE_CHECKING:
    from neural.train import Trained  # which imports torch

log = logging.getLogger(__name__)

#: version of what `save` writes; in version 1, an item's expected signals were one mean of the whole fit period, and
#: before version 3 there was no head that retrieves, and before version 4 each head had a trunk of its own in its file;
#: before version 5, a surface was all of a request's context
FORMAT = 5


class TwoTower(FittedPlugin[Runtime]):
    """ARGUS-like towers (`neural.model`) behind the FeaturePlugin Protocol; its options are `TowerSettings`.

    The product is trained as what is left over the items' mean grade, which the ranker's counters know. It is NaN
    for an item outside the catalogue, for an item of which neither an attribute is known nor an event that was trained
    on (one before the validation slice), and for a user of whom neither a visible event nor an attribute is known. A
    user with attributes and no history has a vector, for the attributes say something.

    A fit can go on from an earlier one (`neural.warm`): its weights are saved too.

    What it retrieves by is a head of its own over the same trunk (`neural.retrieval`), which changes no column.
    """

    options = TowerSettings
    parallel = True
    about, format = "two_tower.json", FORMAT
    wanted_format = f"towers of format {FORMAT} were"
    settings: TowerSettings
    warm = True

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.columns: tuple[str, ...] = _column_names(self.settings)

    _opened = staticmethod(load_runtime)

    def check(self, feedback: Sequence[str], contexts: Sequence[str]) -> None:
        """Raise PairliftError where `columns` or `context` name what the log does not have."""
        check_context(self.settings.context, contexts)
        for column in filter(is_answer, self.settings.columns):
            name = column.removeprefix(FEEDBACK)
            if column != GRADE and name not in feedback:
                raise PairliftError(f"columns: '{column}' is none of [events.feedback]{did_you_mean(name, feedback)}")

    def fit(self, data: FitData) -> None:
        """Train, export, check against torch, and open what was exported: what is measured is what is served."""
        from neural.export import export_towers
        from neural.precision import to_int8
        from neural.train import user_tokens
        from neural.warm.weights import save_weights

        asked = self._asked(data)
        trained = self._trained(data)
        if data.process:  # what follows is the first one's
            return
        folder = new_folder(self)
        inputs = trained.inputs
        log.info("towers to ONNX, and the vectors of %s items", f"{inputs.spec.n_items:,}")
        export_towers(trained.model, inputs.rows, inputs.spec, folder)
        save_weights(trained.model, inputs, folder)
        items = encode_items(open_session(folder / ITEM_TOWER), inputs.items)
        users, user_row = user_tokens(trained, self.settings.threads)
        keys, head = self._fit_head(trained, data, folder)
        answers = self._fit_answers(trained, asked, data, folder)
        curve = [*trained.report["curve"], *head["curve"], *answers["curve"]]
        further = {"retrieval": head["epochs"], "answers": answers["epochs"]}
        self.report = trained.report | further | {"curve": curve}
        known = inputs.items.known[:-1]
        vectors = Vectors(items=items, known_items=known, users=users, user_row=user_row, keys=keys)
        if self.settings.precision == "int8":
            lag = Lag(self.settings.lag, data.zone)
            self.report["int8"] = to_int8(trained, vectors, data, lag, folder)
        self._finish(trained, vectors, folder, data.zone)

    def _trained(self, data: FitData) -> "Trained":
        """Go on from the earlier fit where there is one; else train anew, from teachers or the log alone."""
        from neural.distil import distil
        from neural.train import fit
        from neural.warm.train import fit_warm

        if data.earlier is not None:
            return fit_warm(data, self.settings, data.earlier, self.about, self.format)
        return distil(data, self.settings) if self.settings.teachers else fit(data, self.settings)

    def _fit_head(self, trained: "Trained", data: FitData, folder: Path) -> tuple[F32, dict[str, Any]]:
        """Train the head that retrieves and export it; return the items' keys, and its report."""
        from neural.export import export_query_head
        from neural.retrieval import fit_head, item_keys

        fitted = fit_head(trained, self.settings, data.seed, data.scratch)
        if fitted is None:
            return np.empty((trained.inputs.spec.n_items, 0), np.float32), {"epochs": [], "curve": []}
        head, report = fitted
        log.info("query head to ONNX, and the keys of the items")
        export_query_head(trained.model, head, trained.inputs.spec, folder)
        return item_keys(trained, head, self.settings.threads), report

    def _asked(self, data: FitData) -> tuple[int, ...]:
        """Return what `Answers` is to give, in the columns' order; PairliftError for what the log does not have."""
        known, asked = data.log.feedback_names, []
        self.check(known, [attribute.name for attribute in data.catalog.contexts])
        for column in filter(is_answer, self.settings.columns):
            name = column.removeprefix(FEEDBACK)
            if column == GRADE:
                asked.append(-1)
            elif not np.isfinite(data.log.feedback[:, known.index(name)]).any():
                raise PairliftError(f"columns: '{column}': no value of it is known before [split] t1; leave it out")
            else:
                asked.append(known.index(name))
        return tuple(asked)

    def _fit_answers(self, trained: "Trained", asked: tuple[int, ...], data: FitData, folder: Path) -> dict[str, Any]:
        """Train the heads of grade and feedback where a column asks for them, and export them; return their report."""
        from neural.answers import fit_answers
        from neural.export import export_answers

        if not asked:
            return {"epochs": [], "curve": []}
        answers, report = fit_answers(trained, asked, self.settings, data.seed, data.scratch)
        log.info("heads of grade and feedback to ONNX")
        export_answers(answers, self.settings.width, folder)
        return report

    def head_losses(self, data: FitData, later: LaterEvents) -> dict[str, float]:
        """Return what the heads of pre-training reach behind the fit: `features.plugin.HeadsPlugin`."""
        from neural.train import head_losses

        return head_losses(data, later, self.settings)

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, len(columns)] in the order of `columns`."""
        runtime, answers = self.runtime, iter(())
        if not len(requests.item):
            return np.empty((0, len(self.columns)), np.float32)
        if any(map(is_answer, self.settings.columns)):
            users, expected = runtime.answers(requests, histories)
            answers = iter(expected.T)
        else:
            users = runtime.user_vectors(requests, histories)
        parts = []
        for column in self.settings.columns:
            if column == "dot":
                parts.append(runtime.dot(requests, users)[:, None])
            elif column == "user_vector":
                parts.append(users[requests.row_request()])
            elif column == "item_vector":
                parts.append(runtime.candidate_vectors(requests.item))
            else:
                parts.append(next(answers)[:, None])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    @property
    def contexts(self) -> tuple[str, ...]:
        """The categories of `[events.context]` that it knows by their codes."""
        return tuple(a.name for a in self.runtime.spec.context.attributes if a.category)

    @property
    def item_vectors(self) -> F32:
        """float32[n_items, d]; a row of NaN is an item without a vector."""
        return self.runtime.item_vectors

    def user_vectors(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d]; a row of NaN is a user without a vector."""
        return self.runtime.user_vectors(requests, histories)

    def refresh(self, ahead: Ahead) -> RefreshedStates:
        """Compute what the trunk makes of users' histories ahead: see `features.plugin.AheadPlugin`."""
        return self.runtime.refresh(ahead)

    @property
    def over_demand(self) -> bool:
        """Whether there is a head that retrieves: its product is what is left over the logarithm of demand."""
        return self.runtime.heads.query is not None

    @property
    def item_keys(self) -> F32:
        """float32[n_items, d]; a row of NaN is an item of which nothing is known. Without a head, the item vectors."""
        return self.runtime.vectors.keys if self.over_demand else self.item_vectors

    def queries(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d]; a row of NaN is a user without a query. Without a head, the user vectors."""
        runtime = self.runtime
        return (runtime.queries if self.over_demand else runtime.user_vectors)(requests, histories)


def _column_names(settings: TowerSettings) -> tuple[str, ...]:
    names: list[str] = []
    for column in settings.columns:
        if column.endswith("_vector"):
            names += [f"{column}_{k}" for k in range(settings.width)]
        else:
            names.append(column.replace(":", "_"))
    return tuple(names)
