"""RecBole's SASRec as its own trainer trains it: positions with a loss in a second of CPU time, one thread.

Run by `neural_pretrain.py` with the Python of .venv-recbole, where RecBole is (`make bench WHAT=neural` makes it):
FOLDER LENGTH WIDTH LAYERS HEADS BATCH. FOLDER/log/log.inter is the log. RecBole makes of each event a sequence of what
came before it, padded to LENGTH, with one loss at its end: cross-entropy over all items, its default. The last line is
a JSON object: positions of an epoch, CPU seconds of the second one (by `Trainer._train_epoch`), and RecBole's version.
"""

import json
import os
import sys
import time

import recbole
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed


def main(folder: str, length: int, width: int, layers: int, heads: int, batch: int) -> None:
    """Train two epochs and print what the second one took."""
    torch.set_num_threads(1)
    os.chdir(folder)
    settings = {
        "data_path": ".",
        "checkpoint_dir": "saved",
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
        "MAX_ITEM_LIST_LENGTH": length,
        "hidden_size": width,
        "inner_size": 2 * width,  # as our blocks have it
        "n_layers": layers,
        "n_heads": heads,
        "train_neg_sample_args": None,  # of cross-entropy over all items
        "train_batch_size": batch,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": "full",
        },
    }
    config = Config(model="SASRec", dataset="log", config_dict=settings)
    init_seed(0, True)
    train, _, _ = data_preparation(config, create_dataset(config))
    trainer = Trainer(config, SASRec(config, train.dataset).to(config["device"]))
    for epoch in range(2):
        begun = time.process_time()
        loss = trainer._train_epoch(train, epoch)
        seconds = time.process_time() - begun
    if not loss > 0:
        raise SystemExit(f"a loss above 0 was expected, found {loss}")
    found = {"positions": len(train.dataset), "seconds": seconds, "version": recbole.__version__, "batch": batch}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
