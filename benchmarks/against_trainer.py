"""Fine-tune the same model on the same rows with transformers' Trainer and with headstart, side by side in one run.

    python benchmarks/against_trainer.py                                    (the demo's rows)
    python benchmarks/against_trainer.py --train train.jsonl --validation validation.jsonl --columns text=s1,pair=s2
    python benchmarks/against_trainer.py --seeds 5 --epochs 3 --limit 0     (final scores over five seeds)
    python benchmarks/against_trainer.py --seeds 5 --epochs 3 --limit 0 --only headstart "headstart, plain path"
    python benchmarks/against_trainer.py --trials                           (which options of the Trainer are fastest)

Trainer                  as its tutorials have it: `map` with truncation, DataCollatorWithPadding, batches of 8, float32
Trainer, padded to 128   the same with `padding="max_length"`, as other tutorials have it
Trainer, bf16            the first with `bf16=True`
Trainer, best options    what was fastest of its options: bf16, batches of 32 grouped by length, its fused AdamW (the
                         default)
Trainer, best, eager     the same with eager attention, an option of the model that nobody would look for: a little
                         faster here
drop-in                  the first script with headstart's Trainer; "fast" with headstart's fast path and precision,
                         and with its batch order where padding costs something
headstart, fp32          the hyperparameters of the first, in float32
headstart, batch 8       the hyperparameters of the first
headstart                its defaults
headstart, plain path    its defaults, the order of the rows too, without the fast path; with --only, to compare scores

Batches of 32 train with the learning rate of headstart's defaults; the others with `--learning-rate`, without weight
decay. Nobody warms up. All train the same rows for the same number of epochs. Each contestant runs in a process of
its own; rounds alternate, and their order turns from round to round, so that a machine that slows down slows all of
them. Samples a second cover the training steps after the first five, loading of batches included; loading of the
model, evaluating and saving apart. Memory is the highest resident size of the process up to the end of the training.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from fine_tuning import (
    AS_ITS_OWN_DEFAULTS,
    StepTimes,
    add_job_options,
    as_tutorials,
    check_job,
    describe_job,
    read_rows,
    tabulate,
    tokenise,
    train_with_headstart,
)
from measuring import fill_by_form, give_result, make_parser, measure_rounds, run_worker, tell

BEST_OPTIONS = {
    "bf16": True,
    "per_device_train_batch_size": 32,
    "learning_rate": 2e-4,
    "train_sampling_strategy": "group_by_length",
    "optim": "adamw_torch_fused",
}
# What the best options were chosen from: each trial is "bf16, 32 rows, grouped" with one thing changed.
TRIALS: dict[str, dict[str, Any]] = {
    "bf16, 32 rows, grouped": {},
    "eager attention": {"attention": "eager"},
    "random order": {"options": {"train_sampling_strategy": "random"}},
    "8 rows": {"options": {"per_device_train_batch_size": 8}},
    "16 rows": {"options": {"per_device_train_batch_size": 16}},
    "64 rows": {"options": {"per_device_train_batch_size": 64}},
    "AdamW not fused": {"options": {"optim": "adamw_torch"}},
    "a worker loads": {"options": {"dataloader_num_workers": 1}},
    "memory not pinned": {"options": {"dataloader_pin_memory": False}},
}
CONTESTANTS: dict[str, dict[str, Any]] = {
    "Trainer": {"library": "transformers"},
    "Trainer, padded to 128": {"library": "transformers", "pad_to": 128},
    "Trainer, bf16": {"library": "transformers", "options": {"bf16": True}},
    "Trainer, best options": {"library": "transformers", "options": BEST_OPTIONS},
    "Trainer, best, eager": {"library": "transformers", "options": BEST_OPTIONS, "attention": "eager"},
    "drop-in": {"library": "drop-in"},
    "drop-in, fast": {"library": "drop-in", "options": {"headstart": "fast"}},
    "headstart, fp32": {"library": "headstart", "values": {"train.precision": "fp32"}},
    "headstart, batch 8": {"library": "headstart"},
    "headstart": {"library": "headstart", "has_own_defaults": True},
}
EXTRA = {
    "headstart, plain path": {
        "library": "headstart",
        "has_own_defaults": True,
        "values": {"train.fast": False, "train.order": "random"},
    }
}
ALL = (
    CONTESTANTS
    | EXTRA
    | {
        name: {"library": "transformers", **trial, "options": BEST_OPTIONS | trial.get("options", {})}
        for name, trial in TRIALS.items()
    }
)
SHORT = ["Trainer", "Trainer, bf16", "Trainer, best options", "headstart, batch 8", "headstart"]
TINY = ["Trainer", "drop-in, fast", "headstart"]


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_job_options(parser)
    parser.add_argument("--only", nargs="+", choices=list(ALL), metavar="NAME", help="some of the contestants")
    parser.add_argument("--trials", action="store_true", help="compare options of the Trainer with each other instead")
    arguments = parser.parse_args()
    check_job(parser, arguments)
    if arguments.trials:
        arguments.only = arguments.only or list(TRIALS)
    fill_by_form(arguments, rounds=(5, 1, 1), limit=(2000, 240, 96), only=(list(CONTESTANTS), SHORT, TINY))
    return arguments


def train_with_trainer(arguments: argparse.Namespace, contestant: dict[str, Any], folder: str) -> dict[str, float]:
    """Fine-tune with a Trainer: that of transformers, or the drop-in's."""
    import numpy as np
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback, set_seed

    if contestant["library"] == "drop-in":
        from headstart import DataCollatorWithPadding, Trainer, TrainingArguments
    else:
        from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    from headstart.models.load import resolve_checkpoint

    times = StepTimes()

    class NoteSteps(TrainerCallback):
        def on_step_end(self, *given: Any, **more: Any) -> None:
            times.step_ends()

    tables, columns = read_rows(arguments)
    set_seed(arguments.seed)
    checkpoint = resolve_checkpoint(None)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    encoded, num_labels = tokenise(tables, columns, tokenizer, pad_to=contestant.get("pad_to"))
    attention = {"attn_implementation": contestant["attention"]} if "attention" in contestant else {}
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=num_labels, **attention)
    options = {
        "per_device_train_batch_size": arguments.batch_size,
        "learning_rate": arguments.learning_rate,
        "num_train_epochs": arguments.epochs,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": arguments.seed,
        **contestant.get("options", {}),
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(folder, **options),
        train_dataset=encoded["train"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        callbacks=[NoteSteps()],
    )
    trainer.train()
    num_tokens = sum(map(sum, encoded["train"]["attention_mask"])) * arguments.epochs
    rows = len(encoded["train"]) * arguments.epochs
    result = times.rates(rows, num_tokens, options["per_device_train_batch_size"])
    predicted = trainer.predict(encoded["validation"])
    result["accuracy"] = float(np.mean(np.argmax(predicted.predictions, axis=1) == predicted.label_ids))
    return result


def run_contestant(arguments: argparse.Namespace) -> None:
    contestant = ALL[arguments.worker]
    with tempfile.TemporaryDirectory() as folder:
        if contestant["library"] == "headstart":
            settings = AS_ITS_OWN_DEFAULTS if contestant.get("has_own_defaults") else as_tutorials(arguments)
            give_result(train_with_headstart(arguments, {**settings, **contestant.get("values", {})}, folder))
        else:
            give_result(train_with_trainer(arguments, contestant, folder))


def main() -> None:
    arguments = parse_arguments()
    if arguments.worker:
        run_contestant(arguments)
        return
    results = measure_rounds(
        arguments.only,
        arguments.rounds,
        lambda name, number: run_worker(__file__, "--worker", name, "--seed", str(number)),
        "samples",
        "samples/s",
    )
    rows, table = tabulate(results)
    tell(arguments, __file__, describe_job(arguments), {"rows": rows}, table)


if __name__ == "__main__":
    main()
