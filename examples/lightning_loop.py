"""MRPC with Lightning's Trainer, and headstart's data module and module. Explained in docs/lightning.md.

"glue" and "bert-base-uncased" are folders here, in the cache, or on the hub, whichever is found first. Start it again
after a kill, and it goes on where it was saved last, to the same numbers.
"""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

import headstart
from headstart.lightning import TaskDataModule, TaskModule, fast_precision

EPOCHS, SEED, CHECKPOINTS = 3, 42, Path("checkpoints/lightning-loop")

if __name__ == "__main__":
    data = TaskDataModule(
        headstart.load_dataset("glue", "mrpc"),
        text="sentence1",
        pair="sentence2",
        model="bert-base-uncased",
        batch_size=32,
        max_length=128,
        seed=SEED,
        settings=["train.order=random"],
    )
    module = TaskModule(learning_rate=2e-4, settings=["evaluate.scores=[accuracy, f1]"])
    trainer = Trainer(
        max_epochs=EPOCHS,
        precision=fast_precision(),
        logger=TensorBoardLogger("logs"),
        log_every_n_steps=1,
        callbacks=[ModelCheckpoint(CHECKPOINTS, monitor="val_f1", mode="max", save_last=True)],
    )
    last = CHECKPOINTS / "last.ckpt"
    trainer.fit(module, data, ckpt_path=last if last.exists() else None)

    trainer.validate(module, data)
    run = module.save_run(datamodule=data)
    print(run, run.predict([("The cat sat on the mat.", "A cat was sitting on the mat.")])[0])
