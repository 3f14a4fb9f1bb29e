"""MRPC in a loop of Accelerate, with headstart's parts; docs/accelerate.md explains it and says how to start it.

"glue" and "bert-base-uncased" are folders here, in the cache, or on the hub, whichever is found first.
"""

from pathlib import Path

import torch
from torch.utils.data import DataLoader

import headstart
from headstart import Accelerator, AutoTokenizer, DataLoaderConfiguration, evaluate, load_dataset, set_seed
from headstart import AutoModelForSequenceClassification as Model

EPOCHS, SEED, STATE_DIR = 3, 42, Path("runs/accelerate-loop")

accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True))
set_seed(SEED)
with accelerator.main_process_first():
    tables = load_dataset("glue", "mrpc")
    tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
    train = headstart.encode_rows(tables["train"], tokenizer, text="sentence1", pair="sentence2", max_length=128)
    validation = headstart.encode_rows(tables["validation"], tokenizer, task=train.task, max_length=128)
batches = headstart.PlannedBatches(train.lengths, batch_size=32, order="random", seed=SEED)
in_order = headstart.PlannedBatches(validation.lengths, batch_size=32, order="sequential")
model = Model.from_pretrained("bert-base-uncased", num_labels=2).to(accelerator.device)
fast = headstart.speed_up(model)
optimizer = headstart.build_optimizer(model, learning_rate=2e-4)
scheduler = headstart.build_schedule(optimizer, total_steps=batches.total_steps(EPOCHS))
model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
train_loader = DataLoader(train, batch_sampler=batches, collate_fn=train.collate)
train_loader = headstart.prepare_loader(accelerator, train_loader)
validation_loader = DataLoader(validation, batch_sampler=in_order, collate_fn=validation.collate)
validation_loader = headstart.prepare_loader(accelerator, validation_loader, mode="predict")
if STATE_DIR.exists():
    accelerator.load_state(STATE_DIR)

metric = evaluate.load("glue", "mrpc")
while batches.epoch < EPOCHS:
    model.train()
    for batch in train_loader:
        with accelerator.accumulate(model):
            with fast.autocast(), train_loader.randomness(model):
                loss = model(**batch).loss
            accelerator.backward(loss * train_loader.weight)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    model.eval()
    for batch in validation_loader:
        with torch.no_grad(), fast.autocast():
            logits = model(**batch).logits
        predictions, labels = accelerator.gather_for_metrics((logits.argmax(-1), batch["labels"]))
        metric.add_batch(predictions=predictions, references=labels)
    accelerator.print(f"epoch {batches.epoch}: {metric.compute()}")
    accelerator.save_state(STATE_DIR)
