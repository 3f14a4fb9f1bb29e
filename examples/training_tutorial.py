"""What the training tutorial of transformers does, with headstart in the import lines: how many stars has a review?

"yelp_review_full" and "bert-base-uncased" are folders here, in the cache, or on the hub, whichever is found first.
"""

import numpy as np

from headstart import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    load_dataset,
    load_metric,
)

tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
splits = load_dataset("yelp_review_full").map(lambda rows: tokenizer(rows["text"], truncation=True), batched=True)
few_train, few_test = (
    splits[name].shuffle(seed=42).select(range(min(1000, len(splits[name])))) for name in ("train", "test")
)
model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased", num_labels=5)
accuracy = load_metric("accuracy")


def compute_metrics(predicted: EvalPrediction) -> dict[str, float]:
    """Compute the share of right answers."""
    return accuracy.compute(predictions=np.argmax(predicted.predictions, axis=-1), references=predicted.label_ids)


trainer = Trainer(
    model=model,
    args=TrainingArguments(output_dir="yelp_review_classifier", eval_strategy="epoch", num_train_epochs=2),
    train_dataset=few_train,
    eval_dataset=few_test,
    processing_class=tokenizer,
    compute_metrics=compute_metrics,
)
trainer.train()
trainer.save_model()
