"""MRPC with Lightning's Trainer, and headstart's data module and module. Explained in docs/lightning.md.

"glue" and "bert-base-uncased" are folders here, in the cache, or on the hub, whichever is found first. Start it again
after a kill, and it goes on where it was saved last, to the same numbers.
"""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

import headstart
from headstart.lightning import TaskDataModule, TaskModule

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
    )
    module = TaskModule(learning_rate=5e-5, settings=["evaluate.scores=[accuracy, f1]"])
    best = ModelCheckpoint(CHECKPOINTS, monitor="val_f1", mode="max", save_last=True)
    trainer = Trainer(
        max_epochs=EPOCHS,
        logger=TensorBoardLogger("logs"),
        log_every_n_steps=1,
        callbacks=[best, EarlyStopping("val_f1", mode="max", patience=2), LearningRateMonitor()],
    )
    last = CHECKPOINTS / "last.ckpt"
    trainer.fit(module, data, ckpt_path=last if last.exists() else None)

    module = TaskModule.load_from_checkpoint(best.best_model_path)
    trainer.validate(module, data)
    run = module.save_run(datamodule=data)
    print(run, run.predict([("The cat sat on the mat.", "A cat was sitting on the mat.")])[0])
