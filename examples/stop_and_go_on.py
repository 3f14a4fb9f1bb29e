"""Look at the records while training, stop in the middle, and go on: the result is the same as without the stop."""

import tempfile
from pathlib import Path

from headstart.api import prepare
from headstart.runlog import StepRecord

rows = [{"text": f"{word} number {index}", "label": word} for index in range(40) for word in ("first", "second")]

with tempfile.TemporaryDirectory() as folder:
    run_dir = str(Path(folder) / "run")
    preparation = prepare(rows, values={"output.run": run_dir, "train.epochs": 1, "train.batch_size": 8})
    for record in preparation.train():
        if isinstance(record, StepRecord):
            print(f"step {record.step}: loss {record.loss:.3f}, {record.rows / record.seconds:.0f} rows/s")
            if record.step == 3:
                preparation.requests.add("stop")

    resumed = prepare(rows, values={"output.run": run_dir}, resume=True)
    for record in resumed.train():
        if isinstance(record, StepRecord):
            print(f"step {record.step}: loss {record.loss:.3f}, resumed")
    print(resumed.finish())
