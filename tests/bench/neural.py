"""What the towers cost, in training and in a request, against what one would write or take instead.

`make bench WHAT=neural`, in small: make bench WHAT='neural --rounds 1 --only tower'
All times are CPU time of one thread, in turns with what they are compared with, so a busy machine changes them little;
figures are medians over `--rounds`. Sections (--only) can be run alone; what each found is kept below
.pairlift/bench/neural, and --resume goes on behind what is there. A figure that cannot be had is null, and `why` says
why. RecBole is in .venv-recbole, which `make bench WHAT=neural` makes; the padding is measured on the examples' logs
(KuaiRand-Pure needs PAIRLIFT_DATA) and on a generated one.

finetune_vs_per_impression   peers/neural_finetune.py: CPU time of a pass for each impression over that of one pass
pretrain_vs_recbole_sasrec   peers/neural_pretrain.py: positions with a loss in a second, over RecBole's
sasrec_vs_recbole_sasrec     likewise, of our own SASRec
user_tower_vs_floor          peers/neural_serving.py: CPU time of a call, over that of a bare export of the blocks
batch_padding                peers/neural_padding.py: share of the tokens of training batches
history_4096_gib             peers/neural_memory.py: peak memory of a process that trains on 4,096 events
cross_encoder_ms             peers/neural_serving.py: CPU time of a call with 500 candidates
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read once, when they are loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
PARTS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PARTS))

import click  # noqa: E402
from bars import Bars, table  # noqa: E402
from last_line import last_line  # noqa: E402
from neural_finetune import finetune  # noqa: E402
from neural_padding import padding  # noqa: E402
from neural_pretrain import pretrain  # noqa: E402
from neural_serving import cross, tower  # noqa: E402

KEPT = Path(".pairlift/bench/neural")
#: events of the history whose training is to be bounded in memory, and of shorter ones beside it
MEMORY_LENGTHS = (128, 1024, 4096)
#: the figures, and what each should be: at most, or at least
FIGURES: Bars = {
    "finetune_vs_per_impression": (">=", 20.0),
    "pretrain_vs_recbole_sasrec": (">=", 3.0),
    "sasrec_vs_recbole_sasrec": ("", None),
    "user_tower_vs_floor": ("<=", 1.1),
    "batch_padding": ("<=", 0.1),
    "history_4096_gib": ("<=", 2.0),
    "cross_encoder_ms": ("<=", 10.0),
}


def memory() -> dict[str, Any]:
    """Return the peak of the longest history, and of each; a process each, for a peak never falls."""
    # -P: the folder of the parts must not hide a package of the same name.
    command = [sys.executable, "-P", str(PARTS / "neural_memory.py")]
    found = [json.loads(last_line([*command, str(length)])) for length in MEMORY_LENGTHS]
    for of in found:
        print(
            f"  {of['length']:5} events: {of['peak_gib']:.2f} GiB, {of['before_gib']:.2f} before the steps", flush=True
        )
    return {"history_4096_gib": found[-1]["peak_gib"], "by_length": found}


#: by name, of how many rounds
SECTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "finetune": finetune,
    "pretrain": lambda rounds: pretrain(KEPT / "recbole", rounds),
    "tower": tower,
    "padding": lambda rounds: padding(KEPT),
    "memory": lambda rounds: memory(),
    "cross": cross,
}


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Of what takes turns; figures are medians over them.")
@click.option("--only", type=click.Choice(list(SECTIONS)), multiple=True, help="Run these sections alone.")
@click.option("--resume", is_flag=True, help="Keep what sections found that are done.")
def main(rounds: int, only: tuple[str, ...], resume: bool) -> None:
    """Print a table, and one line of JSON."""
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = KEPT / "sections.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() and (only or resume) else {}
    for name in [name for name in SECTIONS if name in only or (not only and name not in found)]:
        click.echo(f" {name}")
        begun = time.monotonic()
        found[name] = SECTIONS[name](rounds) | {"seconds": round(time.monotonic() - begun, 1)}
        kept.write_text(json.dumps(found, indent=1))
    why = {name: reason for part in found.values() for name, reason in part.get("why", {}).items()}
    measured = {name: value for part in found.values() for name, value in part.items()}
    figures = {name: measured.get(name) for name in FIGURES}
    click.echo(table(FIGURES, figures, why))
    click.echo(json.dumps({"bench": "neural", "rounds": rounds, **figures, "why": why, "parts": found}))


if __name__ == "__main__":
    main()
