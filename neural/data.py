"""All that a fit of the towers reads, arranged from the log, the groups and their pairs. NumPy alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from features.plugin import FitData, LaterEvents
from features.schema import I32, I64, Attribute, Bool, Catalog, EventLog, Ids
from features.state.histories import Histories
from features.state.lag import Lag
from neural.batches import Batches, TargetMask
from neural.expected import ItemSignals
from neural.histories import TokenSpec, raw_signals
from neural.semantic_ids.attributes import code_attributes
from neural.settings import FitSettings
from neural.vocabulary.context import SURFACE_ALONE, ContextSpec
from neural.vocabulary.earlier import Known, Side
from neural.vocabulary.entities import Coding, Entities, count_values, encode, table_rows
from neural.vocabulary.feedback import FeedbackKinds, known_scale
from neural.vocabulary.words import with_words_of_both
from neural.wanted import floor_of

#: salts of `encode`
ITEMS, USERS = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerData:
    """All that a fit of the towers reads."""

    spec: TokenSpec  # the vocabulary and scales of events before the validation slice
    expected: ItemSignals  # over all events of the fit
    items: Entities  # what the item tower embeds
    users: Entities  # what a history's first token embeds
    rows: int  # of the shared embedding table
    known: Known  # what the codes of this fit are, by name
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
        cls,
        data: FitData,
        settings: FitSettings,
        context: Sequence[str] = SURFACE_ALONE,
        all_kinds: bool = False,
        earlier: Known | None = None,
    ) -> Self:
        """Arrange the data of a fit. context, all_kinds: the options `context` and `feedback_kinds` of networks.

        earlier: of the fit that this one goes on from; its scales are kept. Raises PairliftError where it cannot.

        Events in the validation slice are no targets, and nothing is counted or scaled by them; they only appear in
        histories, those of the validation's groups, and the towers are served as they were trained.
        """
        catalog, in_validation = data.catalog, data.groups.validation
        as_of = data.groups.requests.as_of[in_validation]
        boundary = int(as_of.min(initial=np.iinfo(np.int64).max))
        learned = data.log.until(boundary)
        codes = _Codes.build(data, learned, settings, context, all_kinds)
        until = min(boundary, int(data.log.ts.max(initial=-1)) + 1)
        if earlier is not None:
            earlier.check(until, data.grades, learned.feedback_names, codes.spec.context, catalog)
            codes = codes.gone_on(earlier)
        spec, rows, popularity = codes.spec, codes.rows, codes.popularity
        expected = ItemSignals.build(data.log, spec)
        histories = Histories.build(data.log, catalog.n_users)
        batches = Batches(histories, data.groups, data.pairs, spec, expected, Lag(settings.lag, data.zone))
        events, no_events = histories.ts < boundary, np.zeros(len(histories.ts), bool)
        floor = floor_of(learned.grade, data.wanted)
        wanted = histories.grade >= floor
        return cls(
            spec=spec,
            expected=expected,
            items=encode(popularity, codes.of_items, rows, settings.id_shrink, salt=ITEMS, coding=codes.items),
            users=encode(codes.activity, codes.of_users, rows, None, salt=USERS, coding=codes.users),
            rows=rows,
            known=codes.known(until, data.grades, learned.feedback_names),
            popularity=popularity,
            feedback=codes.feedback,
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
        histories = Histories.build(events.log, data.catalog.n_users)
        batches = Batches(histories, data.groups, data.pairs, self.spec, self.expected, self.batches.lag)
        return batches, (histories.ts >= events.since) & (histories.item >= 0)

    def describe(self, chosen: I64) -> str:
        """Return whose windows these are, for an error."""
        return f"{len(chosen)} windows of {self.named(self.batches.windows.user[chosen])}"

    def named(self, user: I32) -> str:
        """Return how many users these are, and the ids of the first."""
        ids = self.user_ids[np.unique(user)]
        return f"{len(ids)} users ({', '.join(map(str, ids[:5]))}{' …' * (len(ids) > 5)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Codes:
    """What all codes and numbers of a fit mean."""

    catalog: Catalog
    of_items: tuple[Attribute, ...]
    of_users: tuple[Attribute, ...]
    popularity: I64  # [n_items], events before the validation slice
    activity: I64  # [n_users], likewise
    spec: TokenSpec
    feedback: FeedbackKinds
    items: Coding
    users: Coding
    rows: int  # of the shared embedding table

    @classmethod
    def build(
        cls, data: FitData, learned: EventLog, settings: FitSettings, context: Sequence[str], all_kinds: bool
    ) -> Self:
        """Take them from what is learned from."""
        catalog = data.catalog
        popularity = np.bincount(learned.item, minlength=catalog.n_items)
        activity = np.bincount(learned.user, minlength=catalog.n_users)
        of_items, of_users = catalog.item_attributes, catalog.user_attributes
        if settings.words:
            of_items, of_users = with_words_of_both(of_items, of_users)
        if settings.semantic_ids:
            of_items += code_attributes(replace(data, log=learned), settings.semantic_ids)
        return cls(
            catalog=catalog,
            of_items=of_items,
            of_users=of_users,
            popularity=popularity,
            activity=activity,
            spec=_spec(data, learned, settings.history, context),
            feedback=FeedbackKinds.build(learned.feedback, all_kinds),
            items=Coding.build(popularity, of_items, with_id=True),
            users=Coding.build(activity, of_users, with_id=False),
            rows=table_rows(count_values(catalog.n_items, of_items + of_users)),
        )

    def gone_on(self, earlier: Known) -> Self:
        """Return them as they are to an earlier fit's weights."""
        catalog, (mean, scale) = self.catalog, earlier.signals
        context = earlier.context(self.spec.context)
        return replace(
            self,
            spec=replace(self.spec, signal_mean=tuple(mean), signal_scale=tuple(scale), context=context),
            feedback=earlier.kinds(self.feedback),
            items=earlier.items.coding(catalog.item_ids, self.popularity, self.of_items),
            users=earlier.users.coding(None, self.activity, self.of_users),
            rows=max(self.rows, earlier.rows),
        )

    def known(self, until: int, grades: Sequence[str], feedback: Sequence[str]) -> Known:
        """Return all of it by name."""
        catalog, spec, kinds = self.catalog, self.spec, self.feedback
        numbers = (x.tolist() for x in (kinds.mean, kinds.scale, kinds.unit))
        each = zip(feedback, kinds.kind, *numbers, strict=True)
        return Known(
            until=until,
            rows=self.rows,
            grades=list(grades),
            surfaces=list(catalog.surfaces[: spec.n_surfaces]),
            contexts=Known.named(spec.context, catalog),
            signals=[list(spec.signal_mean), list(spec.signal_scale)],
            feedback={name: of for name, *of in each},
            items=Side.of(ITEMS, catalog.item_ids, self.popularity, self.of_items, self.items),
            users=Side.of(USERS, None, self.activity, self.of_users, self.users),
        )


def _drawn(data: FitData, settings: FitSettings) -> Bool:
    """Return bool[groups]: the share that fine-tuning learns from; a smaller share is a part of a larger one."""
    return np.random.default_rng(0).random(len(data.groups.requests)) < settings.finetune_share


def _spec(data: FitData, learned: EventLog, length: int, context: Sequence[str]) -> TokenSpec:
    """Return the vocabulary and the scale of what is learned from, whatever else the catalogue has."""
    mean, scale = known_scale(raw_signals(learned.grade, learned.feedback))
    return TokenSpec(
        n_items=data.catalog.n_items,
        n_grades=len(data.grades),
        n_surfaces=int(learned.surface.max(initial=-1)) + 1,
        signal_mean=mean,
        signal_scale=scale,
        length=length,
        context=ContextSpec.build(context, data.catalog, learned.context, data.zone),
    )
