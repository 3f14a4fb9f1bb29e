"""Fine-tune the same model on the same rows in a Lightning loop and with headstart, side by side in one run.

    python benchmarks/against_lightning.py
    python benchmarks/against_lightning.py --train train.jsonl --validation validation.jsonl --columns text=s1,pair=s2

Lightning                as its tutorials have it: a LightningModule around the model of transformers, a DataLoader
                         whose collate function pads to the longest row of the batch, AdamW, float32, batches of 8
Lightning, bf16-mixed    the same with `precision="bf16-mixed"`
headstart, batch 8       the hyperparameters of the first, the learning rate constant as there
headstart                its defaults

Needs the package lightning, which headstart does not: pip install lightning. Rows, rounds, warm-up, samples a second
and memory are as in against_trainer.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import warnings
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

PRECISIONS = {"Lightning": "32-true", "Lightning, bf16-mixed": "bf16-mixed"}
CONTESTANTS = [*PRECISIONS, "headstart, batch 8", "headstart"]
MISSING = 2


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_job_options(parser)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, metavar="NAME", help="some of the contestants")
    arguments = parser.parse_args()
    check_job(parser, arguments)
    tiny = ["Lightning", "headstart"]
    fill_by_form(arguments, rounds=(5, 1, 1), limit=(2000, 240, 96), only=(CONTESTANTS, CONTESTANTS, tiny))
    return arguments


def train_with_lightning(arguments: argparse.Namespace, precision: str, folder: str) -> dict[str, float]:
    """Fine-tune in Lightning's loop."""
    import lightning
    import torch
    from torch.utils.data import DataLoader
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from headstart.models.load import resolve_checkpoint

    tables, columns = read_rows(arguments)
    lightning.seed_everything(arguments.seed, verbose=False)
    checkpoint = resolve_checkpoint(None)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    encoded, num_labels = tokenise(tables, columns, tokenizer)
    times = StepTimes()

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=num_labels)
            self.right: list[torch.Tensor] = []

        def training_step(self, batch: Any, index: int) -> Any:
            return self.model(**batch).loss

        def on_train_batch_end(self, *given: Any) -> None:
            times.step_ends()

        def validation_step(self, batch: Any, index: int) -> None:
            logits = self.model(**batch).logits
            self.right.append(logits.argmax(-1) == batch["labels"])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=arguments.learning_rate, weight_decay=0.0)

    def pad(rows: list[dict[str, Any]]) -> Any:
        return tokenizer.pad(rows, return_tensors="pt")

    def load(split: str, *, shuffle: bool) -> Any:
        return DataLoader(encoded[split], batch_size=arguments.batch_size, shuffle=shuffle, collate_fn=pad)

    module = Classifier().train()
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs,
        accelerator="cpu",
        devices=1,
        precision=precision,
        gradient_clip_val=1.0,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, load("train", shuffle=True))
    num_tokens = sum(map(len, encoded["train"]["input_ids"])) * arguments.epochs
    result = times.rates(len(encoded["train"]) * arguments.epochs, num_tokens, arguments.batch_size)
    trainer.limit_val_batches = 1.0
    trainer.validate(module, load("validation", shuffle=False), verbose=False)
    result["accuracy"] = float(torch.cat(module.right).float().mean())
    return result


def run_contestant(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if arguments.worker in PRECISIONS:
            warnings.simplefilter("ignore")  # of the number of workers, which tutorials leave as it is
            give_result(train_with_lightning(arguments, PRECISIONS[arguments.worker], folder))
        else:
            is_default = arguments.worker == "headstart"
            like_the_first = {**as_tutorials(arguments), "optim.schedule": "constant"}
            settings = AS_ITS_OWN_DEFAULTS if is_default else like_the_first
            give_result(train_with_headstart(arguments, settings, folder))


def main() -> None:
    arguments = parse_arguments()
    if importlib.util.find_spec("lightning") is None:
        print("This comparison needs Lightning, which is not installed. Run: pip install lightning", file=sys.stderr)
        raise SystemExit(MISSING)
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
