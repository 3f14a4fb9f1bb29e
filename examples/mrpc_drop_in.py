"""MRPC by the drop-in: a script for transformers' Trainer with headstart in the import lines, and its fast path on.

"glue" and "bert-base-uncased" are folders here, in the cache, or on the hub, whichever is found first.
"""

import numpy as np

from headstart import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    evaluate,
    load_dataset,
    set_seed,
)

SEED, RUN_DIR = 42, "runs/mrpc-drop-in"

set_seed(SEED)
tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
splits = load_dataset("glue", "mrpc").map(
    lambda rows: tokenizer(rows["sentence1"], rows["sentence2"], truncation=True, max_length=128), batched=True
)
metric = evaluate.load("glue", "mrpc")


def compute_metrics(predicted: EvalPrediction) -> dict[str, float]:
    """Compute accuracy and F1."""
    return metric.compute(predictions=np.argmax(predicted.predictions, axis=-1), references=predicted.label_ids)


trainer = Trainer(
    model=AutoModelForSequenceClassification.from_pretrained("bert-base-uncased", num_labels=2),
    args=TrainingArguments(
        output_dir=RUN_DIR,
        headstart="fast",
        num_train_epochs=3,
        per_device_train_batch_size=32,
        learning_rate=2e-4,
        eval_strategy="epoch",
        seed=SEED,
    ),
    train_dataset=splits["train"],
    eval_dataset=splits["validation"],
    processing_class=tokenizer,
    compute_metrics=compute_metrics,
)
trainer.train()
print(trainer.evaluate())
