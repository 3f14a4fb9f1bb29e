"""Trackers (TensorBoard, Weights & Biases, MLflow, Trackio, Comet): they get the numbers of a run and never cost it.

May import layers 0 to 2. Each tracker works in a thread of its own, which takes what is logged from a queue:

    log(values, step) -> queue -> the tracker's thread -> accelerate's tracker -> files below trackers/, or a server

So a server that is slow or away holds no step up. A tracker that fails is left out from then on; `news` tells what went
wrong, and that becomes a warning record.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from headstart.errors import RecipeError
from headstart.run_files import write_json
from headstart.training.device import make_tracker

__all__ = ["RUNS_FILE", "TRACKERS_DIR", "Trackers", "check_trackers", "flatten_settings"]

TRACKERS_DIR: Final = "trackers"
RUNS_FILE: Final = "runs.json"
"""Under which name each tracker knows the run, so that a resumed run goes on in it."""

PROJECT: Final = "headstart"
PACKAGES: Final[dict[str, tuple[str, ...]]] = {"mlflow": ("mlflow", "sqlalchemy", "alembic")}
STALL_SECONDS: Final = 30.0
"""How long the end of a run waits for a tracker that finishes nothing."""

FLUSH_SECONDS: Final = 5.0
"""How long the last record waits for what the trackers have to say."""

MAX_WAITING: Final = 100_000
"""Calls that may wait for a tracker; at ~1 KB each, what it may cost in memory."""

_write_lock = threading.Lock()


def check_trackers(names: Sequence[str]) -> None:
    """Raise where the package of a tracker is missing, before anything is written.

    Raises:
        RecipeError: with the line that installs it.
    """
    for name in names:
        for package in PACKAGES.get(name, (name,)):
            if importlib.util.find_spec(package) is None:
                raise RecipeError(
                    f'output.log_to names "{name}", but its package is not installed.',
                    f"the package {package}.",
                    f"Run: pip install 'headstart[{name}]', or remove it from output.log_to.",
                )


def flatten_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Write settings as one flat dict, which is what trackers take; those that are null are left out.

    Example:
        >>> flatten_settings({"train": {"epochs": 3.0, "seed": None}, "data": {"columns": {"text": "t"}}})
        {'train.epochs': 3.0, 'data.columns.text': 't'}
    """
    flat: dict[str, int | float | str | bool] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten_settings(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat


class Trackers:
    """Hands the numbers of a run to trackers; nothing here raises or waits, but for the end.

    Args:
        names: as in `output.log_to`.
        run_dir: files go to its folder `trackers`.
        config: the recipe's values, shown beside the curves.
    """

    def __init__(self, names: Sequence[str], run_dir: Path, config: Mapping[str, Any]) -> None:
        self._trackers: list[_Tracker] = []
        if not names:
            return
        folder = run_dir / TRACKERS_DIR
        flat = flatten_settings(config)
        self._trackers = [_Tracker(name, folder, run_dir.name, flat) for name in dict.fromkeys(names)]
        atexit.register(self.close)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record named numbers at a step (optimizer updates made so far)."""
        for tracker in self._trackers:
            tracker.log(values, step)

    def news(self) -> list[str]:
        """Give what the user should know of the trackers, each thing once."""
        return [news for tracker in self._trackers for news in tracker.take_news()]

    def flush(self) -> None:
        """Wait until what was logged has arrived, a few seconds at most."""
        until = time.monotonic() + FLUSH_SECONDS
        for tracker in self._trackers:
            tracker.flush(until)

    def close(self) -> None:
        """Wait until everything has arrived, at most half a minute for a tracker that finishes nothing."""
        for tracker in self._trackers:
            tracker.end()
        for tracker in self._trackers:
            tracker.wait()
        atexit.unregister(self.close)


class _Tracker:
    """One tracker and its thread.

    Args:
        name: as in `output.log_to`.
        folder: of all trackers of the run.
        run_name: shown for the run.
        config: flat.
    """

    def __init__(self, name: str, folder: Path, run_name: str, config: dict[str, Any]) -> None:
        self._name, self._folder, self._run_name, self._config = name, folder, run_name, config
        self._calls: queue.Queue[tuple[dict[str, float], int] | None] = queue.Queue(MAX_WAITING)
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._failed = False
        self._calls_made = self._calls_done = 0
        self._is_closed = False
        # The accelerator is made here: accelerate's state is shared by all threads.
        self._accelerator = make_tracker(name, folder)
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self._failed or self._is_closed:
            return
        try:
            self._calls.put_nowait((dict(values), step))
            self._calls_made += 1
        except queue.Full:
            self._fail(f"{MAX_WAITING:,} of its numbers wait: it does not answer")

    def take_news(self) -> Iterator[str]:
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._news.get_nowait()

    def flush(self, until: float) -> None:
        while self._thread.is_alive() and self._calls_done < self._calls_made and time.monotonic() < until:
            self._thread.join(0.02)

    def end(self) -> None:
        self._is_closed = True
        with contextlib.suppress(queue.Full):
            self._calls.put_nowait(None)

    def wait(self) -> None:
        if self._failed:
            return
        done, since = self._calls_done, time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.05)
            if self._calls_done != done:
                done, since = self._calls_done, time.monotonic()
            elif time.monotonic() - since > STALL_SECONDS:
                self._fail(f"it finished nothing in {STALL_SECONDS:g} seconds; what it had not sent is lost")
                return

    def _fail(self, why: str) -> None:
        if not self._failed:
            self._failed = True
            self._news.put(f"{self._name} gets no more numbers, training goes on: {why}")

    def _work(self) -> None:
        with contextlib.ExitStack() as stack:
            try:
                self._open(stack)
                while not self._failed and (call := self._calls.get()) is not None:
                    values, step = call
                    if self._name == "wandb":
                        # Its own steps never go back, which those of a resumed run do: the step is a value of its own.
                        self._accelerator.log(values | {"step": step})
                    else:
                        self._accelerator.log(values, step=step)
                    self._calls_done += 1
                self._accelerator.end_training()
            except BaseException as error:  # the thread's top: whatever a library raises, also SystemExit, ends here
                first = (str(error).strip().splitlines() or [""])[0]
                self._fail(f"{type(error).__name__}: {first}"[:300])
                with contextlib.suppress(BaseException):  # what it has can still be finished; nobody waits for it
                    self._accelerator.end_training()

    def _open(self, stack: contextlib.ExitStack) -> None:
        former = _read_runs(self._folder).get(self._name)
        self._folder.mkdir(parents=True, exist_ok=True)
        settle = _SETTLERS.get(self._name)
        settings, remarks = settle(self._folder / self._name, self._run_name, former, stack) if settle else ({}, [])
        for remark in remarks:
            self._news.put(remark)
        # The recipe is not written again where it cannot change (MLflow) or would stand there twice (TensorBoard).
        config = self._config if former is None or self._name not in ("mlflow", "tensorboard") else None
        project = "" if self._name == "tensorboard" else _project(self._name)
        if self._name == "trackio":
            config, settings["config"] = None, self._config
        self._accelerator.init_trackers(project, config=config, init_kwargs={self._name: settings})
        if not self._accelerator.trackers:
            raise RuntimeError("accelerate does not find its package")
        own = self._accelerator.get_tracker(self._name, unwrap=True)
        if self._name == "wandb":
            own.define_metric("*", step_metric="step", step_sync=True)
        with _write_lock:
            write_json(self._folder / RUNS_FILE, _read_runs(self._folder) | {self._name: _identify(self._name, own)})


def _project(name: str) -> str:
    """Name the project (MLflow: experiment) that runs stand in, as the tracker's own variable says."""
    variables = {"wandb": "WANDB_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME", "comet_ml": "COMET_PROJECT_NAME"}
    return os.environ.get(variables.get(name, "")) or PROJECT


def _read_runs(folder: Path) -> dict[str, Any]:
    try:
        runs = json.loads((folder / RUNS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return runs if isinstance(runs, dict) else {}


def _identify(name: str, own: Any) -> dict[str, str]:
    """Give what finds the run again."""
    if name == "wandb":
        # An offline run has no address, and wandb prints a warning when it is asked for one.
        return {"id": own.id} if own.offline else {"id": own.id, "url": own.url}
    if name == "mlflow":
        return {"run_id": own.info.run_id}
    if name == "comet_ml":
        return {"experiment_key": own.get_key()}
    return {"name": own.name} if name == "trackio" else {}


Settled = tuple[dict[str, Any], list[str]]


def _settle_wandb(folder: Path, run_name: str, former: dict[str, str] | None, stack: contextlib.ExitStack) -> Settled:
    import wandb

    # What is printed belongs to the progress, and what is sent is what the run logs, not its code.
    settings = wandb.Settings(silent=True, console="off", disable_code=True, init_timeout=30)
    given: dict[str, Any] = {"dir": str(folder.parent), "name": run_name, "settings": settings}
    if former is not None:
        given |= {"id": former["id"], "resume": "allow"}
    remarks = []
    if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False):
        given["mode"] = "offline"
        remarks.append(
            f"wandb: no account is set up here (WANDB_API_KEY, or wandb login): the run is kept in {folder}; "
            "wandb sync sends it"
        )
    return given, remarks


def _settle_mlflow(folder: Path, run_name: str, former: dict[str, str] | None, stack: contextlib.ExitStack) -> Settled:
    import mlflow

    _quieten(stack, "mlflow", "alembic")
    given: dict[str, Any] = {"run_name": run_name}
    if former is not None:
        given["run_id"] = former["run_id"]
    if not mlflow.is_tracking_uri_set():
        folder.mkdir(exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{folder.resolve() / 'mlflow.db'}")
        stack.callback(mlflow.set_tracking_uri, None)
        given["logging_dir"] = (folder.resolve() / "artifacts").as_uri()
    return given, []


def _settle_trackio(folder: Path, run_name: str, former: dict[str, str] | None, stack: contextlib.ExitStack) -> Settled:
    is_imported = "trackio" in sys.modules
    own_folder = "TRACKIO_DIR" not in os.environ
    if own_folder and not is_imported:
        os.environ["TRACKIO_DIR"] = str(folder.resolve())
        stack.callback(os.environ.pop, "TRACKIO_DIR", None)
    import trackio  # noqa: F401

    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] != "trackio":
            continue
        # Its modules read their folder when they are imported, which is once a process: each run has its own.
        if own_folder and hasattr(module, "TRACKIO_DIR"):
            module.TRACKIO_DIR = folder.resolve()  # type: ignore[attr-defined]
        module.print = lambda *_, **__: None  # type: ignore[attr-defined]  # standard output may be JSON
    given: dict[str, Any] = {"name": run_name, "embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
    if former is not None:
        given |= {"name": former["name"], "resume": "must"}
    return given, []


def _settle_comet(folder: Path, run_name: str, former: dict[str, str] | None, stack: contextlib.ExitStack) -> Settled:
    import comet_ml

    _quieten(stack, "comet_ml")
    # The numbers and the recipe alone: no code, no output of the program, nothing that it finds by patching libraries.
    config = comet_ml.ExperimentConfig(
        name=run_name, offline_directory=str(folder), display_summary_level=0, log_code=False, log_graph=False,
        log_git_metadata=False, log_git_patch=False, log_env_details=False, auto_output_logging=False,
        auto_param_logging=False, auto_metric_logging=False, parse_args=False,
    )  # fmt: skip
    given: dict[str, Any] = {"experiment_config": config}
    if former is not None:
        given |= {"experiment_key": former["experiment_key"], "mode": "get_or_create"}
    if comet_ml.config.get_config("comet.api_key"):
        return given, []
    folder.mkdir(exist_ok=True)
    given["online"] = False
    said = f"comet_ml: no account is set up here (COMET_API_KEY): the run is kept in {folder}; comet upload sends it"
    return given, [said]


def _quieten(stack: contextlib.ExitStack, *names: str) -> None:
    """Keep what a library logs for people out of the progress, while its tracker works."""
    for name in names:
        logger = logging.getLogger(name)
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)


_SETTLERS: Final[dict[str, Callable[[Path, str, dict[str, str] | None, contextlib.ExitStack], Settled]]] = {
    "wandb": _settle_wandb,
    "mlflow": _settle_mlflow,
    "trackio": _settle_trackio,
    "comet_ml": _settle_comet,
}
