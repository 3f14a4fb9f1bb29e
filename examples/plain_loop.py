"""MRPC in a plain PyTorch loop, with headstart's parts. Every line is explained in docs/plain_loop.md.

"glue" and "bert-base-uncased" are folders here, in the cache, or on the hub, whichever is found first. Start it again
after a kill, and it goes on where it was saved last, to the same numbers.
"""

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

import headstart
from headstart import AutoModelForSequenceClassification, AutoTokenizer, evaluate, load_dataset, set_seed

EPOCHS, SEED, RUN_DIR = 3, 42, "runs/plain-loop"

set_seed(SEED)
tables = load_dataset("glue", "mrpc")
tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
train = headstart.encode_rows(tables["train"], tokenizer, text="sentence1", pair="sentence2", max_length=128)
validation = headstart.encode_rows(tables["validation"], tokenizer, task=train.task, max_length=128)
batches = headstart.PlannedBatches(train.lengths, batch_size=32, order="random", seed=SEED)
train_loader = DataLoader(train, batch_sampler=batches, collate_fn=train.collate)
validation_loader = DataLoader(validation, batch_size=32, collate_fn=validation.collate)

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased", num_labels=2).to(device)
fast = headstart.speed_up(model)
optimizer = headstart.build_optimizer(model, learning_rate=2e-4)
total_steps = batches.total_steps(EPOCHS)
scheduler = headstart.build_schedule(optimizer, total_steps=total_steps)
saved = headstart.last_checkpoint(RUN_DIR)
if saved is not None:
    saved.restore(model, optimizer)
    scheduler.load_state_dict(saved.state["scheduler"])
    batches.seek(saved.step)

metric = evaluate.load("glue", "mrpc")
bar = tqdm(total=total_steps, initial=batches.step)
while batches.epoch < EPOCHS:
    model.train()
    for update in headstart.iterate_updates(train_loader):
        for batch in update.micro_batches:
            tensors = {name: tensor.to(device) for name, tensor in batch.tensors.items()}
            with batch.randomness(model), fast.autocast():
                loss = model(**tensors).loss
            (loss * batch.share).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        bar.update()
    model.eval()
    for tensors in validation_loader:
        with torch.no_grad(), fast.autocast():
            logits = model(**{name: tensor.to(device) for name, tensor in tensors.items()}).logits
        metric.add_batch(predictions=logits.argmax(-1), references=tensors["labels"])
    bar.write(f"epoch {batches.epoch}: {metric.compute()}")
    state = {"scheduler": scheduler.state_dict()}
    headstart.save_checkpoint(RUN_DIR, update.step, model=model, optimizer=optimizer, state=state, keep=2)
