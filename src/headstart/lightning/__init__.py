"""headstart in a training of Lightning: rows as a `LightningDataModule`, task and model as a `LightningModule`.

Layer 6; needs the extra `lightning`. Nothing else of headstart imports it.

    data = TaskDataModule("reviews.csv", batch_size=32, seed=42)
    module = TaskModule(learning_rate=2e-5)
    lightning.Trainer(max_epochs=3).fit(module, data)
"""

from headstart.lightning.requirement import require_lightning

require_lightning()

from headstart.lightning.data_module import TaskDataModule  # noqa: E402
from headstart.lightning.task_module import TaskModule  # noqa: E402
from headstart.lightning.trainer_settings import fast_precision  # noqa: E402

__all__ = ["TaskDataModule", "TaskModule", "fast_precision"]
