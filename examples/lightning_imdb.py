"""Long reviews with Lightning: SGD with momentum, a share of a data set that is sorted by label. docs/lightning.md.

"imdb" is a folder with train and test here, or a data set on the hub; so is the model.

    python examples/lightning_imdb.py --debug
    python examples/lightning_imdb.py --model bert-base-uncased --percent 5 --seq-length 256 --epochs 10
"""

import argparse

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

import headstart
from headstart.lightning import TaskDataModule, TaskModule, fast_precision


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debug", action="store_true", help="one batch of each kind, to see that it runs")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-2, help="the highest learning rate")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--model", default="bert-base-uncased")
    parser.add_argument("--seq-length", type=int, default=64, help="tokens of a review; longer ones are cut, and said")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--percent", type=float, default=10, help="share of the training rows, drawn by the seed")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = read_arguments()
    data = TaskDataModule(
        headstart.load_dataset("imdb"),
        model=arguments.model,
        batch_size=arguments.batch_size,
        max_length=arguments.seq_length,
        limit=f"{arguments.percent:g}%",
        seed=42,
    )
    module = TaskModule(optimizer="sgd", learning_rate=arguments.lr, momentum=arguments.momentum)
    trainer = Trainer(
        max_epochs=arguments.epochs,
        precision=fast_precision(),
        fast_dev_run=arguments.debug,
        logger=CSVLogger("logs", name="imdb"),
        log_every_n_steps=1,
    )
    trainer.fit(module, data)
    trainer.test(module, data)
