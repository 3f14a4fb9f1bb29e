"""What chapter 3 of the Hugging Face course does, with headstart in the import lines: are two sentences paraphrases?

"glue" and "bert-base-uncased" are folders here, in the cache, or on the hub, whichever is found first.
"""

import numpy as np

from headstart import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    evaluate,
    load_dataset,
)

checkpoint = "bert-base-uncased"
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
splits = load_dataset("glue", "mrpc").map(
    lambda rows: tokenizer(rows["sentence1"], rows["sentence2"], truncation=True), batched=True
)
model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=2)


def compute_metrics(predicted: EvalPrediction) -> dict[str, float]:
    """Compute the scores of a task of GLUE."""
    metric = evaluate.load("glue", "mrpc")
    return metric.compute(predictions=np.argmax(predicted.predictions, axis=-1), references=predicted.label_ids)


trainer = Trainer(
    model,
    TrainingArguments(
        "test-trainer",
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="f1",
        logging_steps=5,
    ),
    train_dataset=splits["train"],
    eval_dataset=splits["validation"],
    data_collator=DataCollatorWithPadding(tokenizer),
    processing_class=tokenizer,
    compute_metrics=compute_metrics,
    callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
)
trainer.train()
print(trainer.evaluate())
print(trainer.predict(splits["validation"]).predictions.shape)
