"""The last part of chapter 3 of the Hugging Face course with headstart in the import lines: an own training loop.

"glue" and "bert-base-uncased" are folders here, in the cache, or on the hub, whichever is found first.
"""

import torch
from torch.utils.data import DataLoader

from headstart import (
    Accelerator,
    AdamW,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    evaluate,
    get_scheduler,
    load_dataset,
    set_seed,
)

set_seed(42)
tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
splits = load_dataset("glue", "mrpc").map(
    lambda rows: tokenizer(rows["sentence1"], rows["sentence2"], truncation=True), batched=True
)
splits = splits.remove_columns(["sentence1", "sentence2"]).rename_column("label", "labels").with_format("torch")
collate = DataCollatorWithPadding(tokenizer)
accelerator = Accelerator()
model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased", num_labels=2)
model, optimizer, train_batches, validation_batches = accelerator.prepare(
    model,
    AdamW(model.parameters(), lr=3e-5),
    DataLoader(splits["train"], shuffle=True, batch_size=8, collate_fn=collate),
    DataLoader(splits["validation"], batch_size=8, collate_fn=collate),
)
num_epochs = 3
scheduler = get_scheduler("linear", optimizer, 0, num_epochs * len(train_batches))
metric = evaluate.load("glue", "mrpc")
for epoch in range(num_epochs):
    model.train()
    for batch in train_batches:
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    model.eval()
    for batch in validation_batches:
        with torch.no_grad():
            predictions = model(**batch).logits.argmax(-1)
        predictions, labels = accelerator.gather_for_metrics((predictions, batch["labels"]))
        metric.add_batch(predictions=predictions, references=labels)
    print(epoch, metric.compute())
