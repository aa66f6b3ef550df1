"""The losses of the heads of pre-training over many events."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from features.schema import I64
from features.state.histories import Histories
from neural import losses
from neural.parallel.device import tensor
from neural.vocabulary.feedback import FeedbackKinds

#: the heads, as `pretrain_losses` names them
NEXT_ITEM, FEEDBACK = "next_item", "feedback"
#: the next-item loss of wanted events alone
NEXT_WANTED = "next_wanted"
#: the loss of a head that no event concerns
NOTHING = torch.tensor(torch.nan)


@dataclass(frozen=True, slots=True)
class Said:
    """What the heads say of n events, each from the state before it."""

    row: I64  # [n], of the histories
    next_item: Tensor  # [n], loss of the event's item
    grade: Tensor  # [n, grades - 1], logits of "the grade is above this one"
    feedback: Tensor  # [n, k], logits


def mean_losses(
    said: Sequence[Said], histories: Histories, kinds: FeedbackKinds, floor: int, heads: Collection[str]
) -> dict[str, float]:
    """Return mean losses over all events, by name, of the heads that are named; none where there are no events.

    next_item: -log P(item | history, context), in nats, of the softmax that `Said.next_item` was told the item by.
    next_wanted: the same of wanted events (of grade `floor` or better) alone.
    grade: `losses.grade` of graded events, in nats: a cross-entropy for each question whether the grade is above one.
    feedback: `losses.feedback`, of k > 0 columns: the sum of their means over known values; a cross-entropy in nats
    of what is within 0 to 1, the Huber loss of scaled numbers, which is not in nats.
    """
    if not said:
        return {}
    row, found = np.concatenate([part.row for part in said]), dict[str, Tensor]()
    if NEXT_ITEM in heads:
        each = torch.cat([part.next_item for part in said]).double()
        found[NEXT_ITEM] = each.mean()
        found[NEXT_WANTED] = each[tensor(histories.grade[row] >= floor)].mean()
    if FEEDBACK in heads:
        rank = tensor(histories.grade[row].astype(np.int64))
        each = losses.grade(torch.cat([part.grade for part in said]).double(), rank)
        found["grade"] = each if (rank >= 0).any() else NOTHING
        if len(kinds):
            wanted, bounded = tensor(kinds.wanted(histories.feedback[row])), tensor(kinds.bounded)
            logits = torch.cat([part.feedback for part in said])
            each = losses.feedback(logits.double(), wanted.double(), bounded)
            found["feedback"] = each if wanted.isfinite().any() else NOTHING
    return {name: float(loss) for name, loss in found.items()}
