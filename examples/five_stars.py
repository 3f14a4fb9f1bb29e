"""How many stars has a review? Accuracy and how far off, epoch by epoch, with intervals, in a plain loop.

"yelp_review_full" and "bert-base-uncased" are folders here, in the cache, or on the hub, whichever is found first.
"""

import torch
from torch.utils.data import DataLoader

import headstart
from headstart import AutoModelForSequenceClassification, AutoTokenizer, load_dataset, set_seed

EPOCHS, SEED, NUM_ROWS = 3, 42, 5_000

set_seed(SEED)
tables = load_dataset("yelp_review_full")
few = {name: table.shuffle(seed=SEED).select(range(min(NUM_ROWS, len(table)))) for name, table in tables.items()}
tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
train = headstart.encode_rows(few["train"], tokenizer, max_length=256)
test = headstart.encode_rows(few["test"], tokenizer, task=train.task, max_length=256)
batches = headstart.PlannedBatches(train.lengths, batch_size=16, seed=SEED)
loader = DataLoader(train, batch_sampler=batches, collate_fn=train.collate)

num_labels = len(train.task.label_names)
model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased", num_labels=num_labels)
fast = headstart.speed_up(model)
optimizer = headstart.build_optimizer(model, learning_rate=1e-4)
scheduler = headstart.build_schedule(optimizer, total_steps=batches.total_steps(EPOCHS), warmup="5%")
for epoch in range(EPOCHS):
    model.train()
    for update in headstart.iterate_updates(loader):
        for batch in update.micro_batches:
            with batch.randomness(model), fast.autocast():
                loss = model(**batch.tensors).loss
            (loss * batch.share).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    model.eval()
    logits = []
    for tensors in DataLoader(test, batch_size=32, collate_fn=test.collate):
        with torch.no_grad(), fast.autocast():
            logits.append(model(**tensors).logits.float())
    scores = headstart.score(torch.cat(logits), test.targets, ["accuracy", "f1_macro"])
    stars_off = (torch.cat(logits).argmax(-1) - torch.tensor(test.targets)).abs().float().mean()
    line = ", ".join(
        f"{name} {score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" for name, score in scores.items()
    )
    print(f"epoch {epoch + 1}: {line}, stars off {stars_off:.2f}")
