"""Compare headstart's default hyperparameters with those of transformers' Trainer, in one loop and on whole data sets.

    python benchmarks/defaults.py --data mrpc=mrpc/train.jsonl,mrpc/validation.jsonl,mrpc/test.jsonl ... --json

Both sets of numbers go through headstart's loop, so that nothing but the numbers differs: the learning rate, its decay
from layer to layer, rows of an update and weight decay, over the same epochs. (How much faster the loop is, is another
question: against_trainer.py.) Each trains with each seed. What is compared is the mean over the seeds on the test rows,
or on the validation rows where no third source is named, with a 95 % interval of the difference over these rows.
NAME=TRAIN,,TEST cuts the validation rows from the training rows.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measuring

CONTESTANTS = {
    "headstart": (),
    "Trainer": ("optim.learning_rate=5e-5", "train.batch_size=8", "optim.weight_decay=0"),
}
NUM_RESAMPLES = 2_000


def parse_arguments() -> argparse.Namespace:
    parser = measuring.make_parser(__doc__)
    parser.add_argument("--data", action="append", metavar="NAME=TRAIN[,VALIDATION[,TEST]]", help="default: the demo")
    parser.add_argument("--seeds", type=int, help="how many (default 3)")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of both")
    arguments = parser.parse_args()
    measuring.fill_by_form(arguments, seeds=(3, 2, 2))
    return arguments


def main() -> None:
    arguments = parse_arguments()
    tables = {}
    for text in arguments.data or ["reviews=demo:rotten-tomatoes"]:
        name, _, sources = text.partition("=")
        tables[name] = compare(name, sources.split(","), arguments)
    settings = {"seeds": arguments.seeds, "epochs": arguments.epochs}
    measuring.tell(arguments, __file__, settings, {"tables": tables}, draw_defaults({"tables": tables}))


def compare(name: str, sources: Sequence[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Train all seeds of both contestants, and compare what they predict."""
    import headstart

    train, validation, test = [source or None for source in [*sources, "", ""][:3]]
    form = measuring.form_of(arguments)
    settings = [*arguments.set, "evaluate.baselines=false"]
    # Rows of an evaluation, too: a tiny form is for seconds.
    limit = {"full": None, "short": 1000, "tiny": 64}[form]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for contestant, own in CONTESTANTS.items():
            study = headstart.finetune_seeds(
                train,
                validation=validation,
                test=test if form != "tiny" else None,
                seeds=arguments.seeds,
                epochs=arguments.epochs,
                limit=limit,
                settings=[*settings, *own],
                run=Path(folder) / contestant,
                progress=False,
            )
            split = "test" if "test" in study.scores else "validation"
            found[contestant] = read(study, split)
            scores = ", ".join(f"{value:.4f}" for value in found[contestant]["values"])
            print(f"{name}: {contestant:10} {found[contestant]['score']} {scores}", flush=True)
        return {
            "split": split,
            **found,
            "difference": difference(
                [Path(folder) / contestant for contestant in CONTESTANTS], split, found["headstart"]["score"]
            ),
        }


def read(study: Any, split: str) -> dict[str, Any]:
    """Give the first score of each run that both kinds of task have, and the seconds of each training."""
    from headstart.records import StopRecord
    from headstart.runlog import read_log

    score = "accuracy" if "accuracy" in study.scores[split] else "spearman"
    stops = [record for run in study.runs for record in read_log(run.run_dir) if isinstance(record, StopRecord)]
    values = [run.scores[split][score]["value"] for run in study.runs]
    return {"score": score, "values": values, "seconds": [stop.seconds for stop in stops]}


def difference(studies: Sequence[Path], split: str, score: str) -> dict[str, float]:
    """Give how much better the first one's mean over the seeds is, with a bootstrap interval over the rows."""
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from scipy.stats import rankdata

    def predictions(study: Path) -> tuple[Any, Any]:
        tables = [pq.read_table(path) for path in sorted(study.glob("seed-*/predictions.parquet"))]
        tables = [table.filter(pc.equal(table["split"], split)) for table in tables]
        return np.asarray(tables[0]["label"].to_pylist()), np.stack([t["prediction"].to_pylist() for t in tables])

    def score_of(labels: Any, predicted: Any) -> float:
        if score == "accuracy":
            return float((labels == predicted).mean())
        ranks = [rankdata(labels), *(rankdata(run) for run in predicted)]
        return float(np.mean([np.corrcoef(ranks[0], run)[0, 1] for run in ranks[1:]]))

    (labels, ours), (_, theirs) = (predictions(study) for study in studies)
    draws = np.random.default_rng(0).integers(len(labels), size=(NUM_RESAMPLES, len(labels)))
    found = [score_of(labels[rows], ours[:, rows]) - score_of(labels[rows], theirs[:, rows]) for rows in draws]
    low, high = np.percentile(found, [2.5, 97.5])
    value = score_of(labels, ours) - score_of(labels, theirs)
    return {"value": value, "low": float(low), "high": float(high), "rows": len(labels)}


def draw_defaults(result: Mapping[str, Any]) -> str:
    """Give a line for each data set."""
    titles = ["", "scored on", "Trainer's numbers", "headstart's", "difference", "time, times Trainer's numbers"]
    return measuring.draw_table(titles, [describe(name, table) for name, table in result["tables"].items()])


def describe(name: str, table: dict[str, Any]) -> list[str]:
    ours, theirs, apart = table["headstart"], table["Trainer"], table["difference"]

    def mean(found: dict[str, Any]) -> str:
        return f"{statistics.mean(found['values']):.4f} ± {statistics.stdev(found['values']):.4f}"

    seconds = sum(ours["seconds"]) / sum(theirs["seconds"])
    interval = f"{apart['value']:+.4f} [{apart['low']:+.4f}, {apart['high']:+.4f}]"
    scored = f"{ours['score']}, {table['split']}, {apart['rows']:,} rows"
    return [name, scored, mean(theirs), mean(ours), interval, f"{seconds:.2f}"]


if __name__ == "__main__":
    main()
