"""MRPC by `headstart.finetune()`: the same engine as the command.

"glue/mrpc" and "bert-base-uncased" are folders here; of the hub, the first would be "hub:glue/mrpc".
"""

import headstart

SEED, RUN_DIR = 42, "runs/mrpc-finetune"

run = headstart.finetune(
    "glue/mrpc",
    text="sentence1",
    pair="sentence2",
    label="label",
    model="bert-base-uncased",
    epochs=3,
    batch_size=32,
    learning_rate=2e-4,
    max_length=128,
    seed=SEED,
    settings=["train.order=random", "train.best=last"],
    run=RUN_DIR,
)
for name, score in run.scores["validation"].items():
    print(f"{name}: {score['value']:.4f} [{score['low']:.4f}, {score['high']:.4f}]")
print(run.predict([("The bank raised its rates.", "Rates were raised by the bank.")])[0])
