"""All that a fit of the towers reads, arranged from the log, the groups and their pairs. NumPy alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from features.plugin import FitData, LaterEvents
from features.schema import F32, I32, I64, Bool, EventLog, Ids
from features.state.histories import Histories
from neural.batches import Batches, TargetMask
from neural.expected import ItemSignals
from neural.histories import Lag, TokenSpec, raw_signals
from neural.semantic_ids.attributes import code_attributes
from neural.settings import FitSettings
from neural.vocabulary.context import SURFACE_ALONE, ContextSpec
from neural.vocabulary.entities import Entities, count_values, encode, table_rows
from neural.vocabulary.feedback import FeedbackKinds, known_scale
from neural.vocabulary.words import with_words
from neural.wanted import floor_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerData:
    """All that a fit of the towers reads."""

    spec: TokenSpec  # the vocabulary and scales of events before the validation slice
    expected: ItemSignals  # over all events of the fit
    items: Entities  # what the item tower embeds
    users: Entities  # what a history's first token embeds
    rows: int  # of the shared embedding table
    popularity: I64  # [n_items], events before the validation slice
    feedback: FeedbackKinds  # of events before the validation slice
    batches: Batches  # of all events and groups of the fit; the masks say which are targets
    pretrain: TargetMask  # events before the validation slice
    finetune: TargetMask  # groups with pairs before it
    validation: TargetMask  # groups with pairs in the slice, which choose the epoch
    user_ids: Ids  # [n_users], as the log names them
    floor: int  # rank of the lowest grade that is wanted: see `neural.wanted.floor_of`
    wanted: Bool  # [rows of the histories], wanted events before the validation slice
    wanted_later: Bool  # [rows of the histories], those in the slice, of items that are met before it

    @classmethod
    def build(
        cls, data: FitData, settings: FitSettings, context: Sequence[str] = SURFACE_ALONE, all_kinds: bool = False
    ) -> Self:
        """Arrange the data of a fit. context, all_kinds: the options `context` and `feedback_kinds` of networks.

        Events in the validation slice are no targets, and nothing is counted or scaled by them; they only appear in
        histories, those of the validation's groups, and the towers are served as they were trained.
        """
        catalog, in_validation = data.catalog, data.groups.validation
        as_of = data.groups.requests.as_of[in_validation]
        boundary = int(as_of.min(initial=np.iinfo(np.int64).max))
        learned = data.log.until(boundary)
        spec = _spec(data, learned, settings.history, context)
        expected = ItemSignals.build(data.log, spec)
        histories = Histories.build(data.log, catalog.n_users)
        said = _by_user(data.context, data.log)
        batches = Batches(histories, data.groups, data.pairs, spec, expected, Lag(settings.lag, data.zone), said)
        popularity = np.bincount(learned.item, minlength=catalog.n_items)
        activity = np.bincount(learned.user, minlength=catalog.n_users)
        attributes, of_users = catalog.item_attributes, catalog.user_attributes
        if settings.words:
            attributes, of_users = with_words(attributes), with_words(of_users)
        if settings.semantic_ids:
            attributes += code_attributes(replace(data, log=learned), settings.semantic_ids)
        rows = table_rows(count_values(catalog.n_items, attributes + of_users))
        events, no_events = histories.ts < boundary, np.zeros(len(histories.ts), bool)
        floor = floor_of(learned.grade, data.wanted)
        wanted = histories.grade >= floor
        return cls(
            spec=spec,
            expected=expected,
            items=encode(popularity, attributes, rows, settings.id_shrink, salt=1),
            users=encode(activity, of_users, rows, None, salt=2),
            rows=rows,
            popularity=popularity,
            feedback=FeedbackKinds.build(learned.feedback, all_kinds),
            batches=batches,
            pretrain=TargetMask(events, np.zeros(len(in_validation), bool)),
            finetune=TargetMask(no_events, ~in_validation & batches.with_pairs & _drawn(data, settings)),
            validation=TargetMask(no_events, in_validation & batches.with_pairs),
            user_ids=catalog.user_ids,
            floor=floor,
            wanted=wanted & events,
            wanted_later=wanted & ~events & (popularity[histories.item] > 0),
        )

    def later(self, data: FitData, events: LaterEvents) -> tuple[Batches, Bool]:
        """Return batches of all events up to the end of the later ones, and which are to be predicted.

        bool[rows of their histories]; an event of no item of the catalogue is not. Each event's token is what serving
        makes of it: what is expected of an item is of the fit's events alone. data: what this was built of.
        """
        histories, said = Histories.build(events.log, data.catalog.n_users), _by_user(events.context, events.log)
        batches = Batches(histories, data.groups, data.pairs, self.spec, self.expected, self.batches.lag, said)
        return batches, (histories.ts >= events.since) & (histories.item >= 0)

    def describe(self, chosen: I64) -> str:
        """Return whose windows these are, for an error."""
        return f"{len(chosen)} windows of {self.named(self.batches.windows.user[chosen])}"

    def named(self, user: I32) -> str:
        """Return how many users these are, and the ids of the first."""
        ids = self.user_ids[np.unique(user)]
        return f"{len(ids)} users ({', '.join(map(str, ids[:5]))}{' …' * (len(ids) > 5)})"


def _by_user(context: F32, log: EventLog) -> F32:
    """Return what requests said, float32[events, contexts], in the order of the log's histories."""
    return context[np.argsort(log.user, kind="stable")] if len(context) else context


def _drawn(data: FitData, settings: FitSettings) -> Bool:
    """Return bool[groups]: the share that fine-tuning learns from; a smaller share is a part of a larger one."""
    return np.random.default_rng(0).random(len(data.groups.requests)) < settings.finetune_share


def _spec(data: FitData, learned: EventLog, length: int, context: Sequence[str]) -> TokenSpec:
    """Return the vocabulary and the scale of what is learned from, whatever else the catalogue has."""
    mean, scale = known_scale(raw_signals(learned.grade, learned.feedback))
    groups = data.groups
    # An empty context has no rows to choose from.
    said = groups.requests.context[~groups.validation] if len(groups.requests.context) else groups.requests.context
    return TokenSpec(
        n_items=data.catalog.n_items,
        n_grades=len(data.grades),
        n_surfaces=int(learned.surface.max(initial=-1)) + 1,
        signal_mean=mean,
        signal_scale=scale,
        length=length,
        context=ContextSpec.build(context, data.catalog, said, data.zone),
    )
