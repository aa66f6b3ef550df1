"""The daily training of the towers: from the weights of an earlier fit, a few epochs at a lower rate.

They go over the whole period, and not over what came since alone: each step lets a little decay of all that it does not
see (`table_decay` above all), so what is not gone over is forgotten day by day. That costs so many passes over the
period as there are epochs, where a training anew has its 20 and 10.

The rate, on a log of 100,000 ratings (towers of 1 x 32, one seed): a fit that ended a week earlier reached 0.6854 on
the validation slice as it was, 0.6836 after 2 and 2 epochs at 0.3 of the rates, and 0.6849 at 0.1.
"""

from dataclasses import replace
from pathlib import Path
from typing import cast

from features.errors import PairliftError
from features.pairing.split import iso
from features.plugin import FitData
from neural.data import TowerData
from neural.engine import Phase
from neural.parallel.ranks import Ranks
from neural.settings import TowerSettings
from neural.train import Trained, Trainer, repeatable, run
from neural.vocabulary.earlier import Known
from neural.warm.weights import check_fit, take_up


class WarmTrainer(Trainer):
    """Trains for fewer epochs, at lower rates."""

    def phases(self) -> tuple[Phase, ...]:
        """Return the two phases of a fit, in their order."""
        s = cast(TowerSettings, self.settings)
        epochs = (s.warm_pretrain_epochs, s.warm_finetune_epochs)
        return tuple(
            replace(phase, epochs=min(phase.epochs, most), rate=s.warm_rate * phase.rate)
            for phase, most in zip(super().phases(), epochs, strict=True)
        )


def fit_warm(data: FitData, settings: TowerSettings, earlier: Path, about: str, form: int) -> Trained:
    """Go on from the fit in the folder `earlier`; repeats, resumes and is shared by processes as `train.fit` is.

    about, form: the file of a fit's settings, and its format. The towers that teachers have taught learn on from the
    log alone. The heads behind the towers are trained anew by whoever wants them. Raises PairliftError where the
    network, or what it reads, is another one, and where it was trained on what is the validation slice now.
    """
    ranks = Ranks(data.process, data.processes)
    with repeatable(settings.threads, data.seed), ranks.joined():
        try:
            check_fit(earlier / about, form, settings)
            known = Known.load(earlier)
            inputs = TowerData.build(data, settings, settings.context, settings.feedback_kinds, known)
            trainer = WarmTrainer(inputs, settings, data.seed, ranks)
            take_up(trainer.model, earlier, known, inputs, data.catalog)
        except PairliftError as error:
            raise PairliftError(f"{earlier}: {error}; or train anew, without the earlier fit") from error
        before = trainer.accuracy()
        trained = run(trainer, data)
    # What the weights of then reach on the validation slice of now, in which new items and users have no row yet.
    trained.report["earlier"] = {"until": iso(known.until), "validation": before}
    return trained
