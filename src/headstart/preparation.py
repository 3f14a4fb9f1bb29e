"""From a recipe to a training that is ready to start: everything is read, checked and planned, nothing is written.

May import layers 0 to 4, and `resumption`.
"""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headstart.addresses import is_address, mask
from headstart.data.batches import BatchPlan
from headstart.data.databases import absolute_address
from headstart.display.plan import PlanSummary
from headstart.durations import parse_duration
from headstart.errors import CheckpointError, RecipeError
from headstart.learning_plan import (
    check_sharded,
    choose_layer_decay,
    choose_learning_rate,
    describe_learning,
    plan_unfreezing,
)
from headstart.metrics import resolve_scores
from headstart.models.dropout import RandomKey, find_unkeyed_draws
from headstart.models.forward_pass import check_compiler, compile_forward, parts_in_the_way, recompute_activations
from headstart.models.load import LoadedModel, load_classifier, max_length_of, resolve_checkpoint, rows_end_at
from headstart.models.lora import add_adapters, check_peft, digest_of_frozen
from headstart.plan_summary import model_name, summarise_plan
from headstart.reading import DEFAULT_VALIDATION_FRACTION, ReadData, read_data, tokenise_splits, with_training_rows
from headstart.recipe import SOURCES, Recipe, build_recipe, read_recipe_file
from headstart.records import Report
from headstart.resumption import check_unfinished, resumed_recipe
from headstart.runlog import DATA_FILE, ENVIRONMENT_FILE, TASK_FILE
from headstart.training.averaged_weights import AveragedWeights
from headstart.training.device import (
    Device,
    choose_device,
    count_processes,
    is_joined,
    is_sharded,
    join_processes,
    own_rank,
)
from headstart.training.fast_path import FastPath, describe_parts, must_compile_kernels, start_fast_path
from headstart.training.frozen import Unfreezing, freeze_parameters
from headstart.training.optimizer_classes import check_optimizer
from headstart.training.processes import Processes
from headstart.training.state import TrainState
from headstart.training.trackers import Trackers, check_trackers

__all__ = [
    "Plan",
    "choose_run_dir",
    "filled_recipe",
    "make_plan",
    "prepare_plan",
    "process_timeout_seconds",
    "take_folder_of_runs",
]

DEBUG_STEPS = 4
DEFAULT_PROCESS_TIMEOUT = "10 minutes"


@dataclass
class Plan:
    """A training that is ready to start.

    Args:
        recipe: with everything filled in that was found by looking.
        derived: what follows from the recipe, the data and the machine.
        data: checked, tokenised splits.
        loaded: the model with its new head.
        fast: the optimizer, and which parts of the fast path are on.
        batches: which rows make up which update.
        device: where and how it computes.
        total_steps, warmup_steps: in updates.
        scores: names, the first is shown first.
        summary: what a person reads before the first step.
        run_dir: where the run goes; not there yet unless it is resumed.
        resume: go on with the run in `run_dir`.
        debug: a handful of rows.
        num_processes: how many train together.
        processes: the others; this one alone until they are joined.
        allow: what may have changed since the run was started.
        identities: what this run is now, and what it was before changes that were allowed.
        changes: what follows otherwise from the recipe here than where it was written.
        requests: words to the loop: "stop", "save", "evaluate".
        state: where training stands.
        unfreezing: which parameters are trained in which step; None where all are in every step that ever are.
        averages: of the weights, once training has begun, where the recipe asks for them.
        trackers: get the numbers of the run; None before the first step, and in a process that does not write.
    """

    recipe: Recipe
    derived: dict[str, Any]
    data: ReadData
    loaded: LoadedModel
    fast: FastPath
    batches: BatchPlan
    device: Device
    total_steps: int
    warmup_steps: int
    scores: list[str]
    summary: PlanSummary
    run_dir: Path
    resume: bool
    debug: bool
    num_processes: int = 1
    processes: Processes = field(default_factory=Processes)
    allow: tuple[str, ...] = ()
    identities: list[dict[str, Any]] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    requests: set[str] = field(default_factory=set)
    state: TrainState = field(default_factory=TrainState)
    unfreezing: Unfreezing | None = None
    averages: AveragedWeights | None = None
    trackers: Trackers | None = None


def prepare_plan(
    source: Any = None,
    *,
    recipe_file: Path | None = None,
    settings: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    resume: bool = False,
    allow: Sequence[str] = (),
    debug: bool = False,
    progress: Report | None = None,
) -> Plan:
    """Read, check and plan; nothing is written to a run folder.

    Args:
        source: training source; a path or hub name, or a table. None takes it from the recipe.
        recipe_file: a YAML recipe.
        settings: "section.key=value" texts.
        values: "section.key" to value.
        resume: go on with the run named by `output.run`.
        allow: what may have changed since that run was started: "data", "tokenizer", "model", "recipe", "versions".
        debug: a handful of rows, a few steps.
        progress: gets what is done now, and how many of the rows are done.

    Raises:
        HeadstartError: of the kind that fits, before any work is lost.
        RunIsFinished: the run to resume is finished.
    """
    values = {key: value for key, value in (values or {}).items() if value is not None}
    for key in ("data.train", "data.validation", "data.test"):
        if isinstance(values.get(key), str | os.PathLike):
            values[key] = absolute_source(str(values[key]))
    if isinstance(source, str | os.PathLike):
        source = absolute_source(str(source))
        values["data.train"] = source
    if resume:
        recipe, derived_before = resumed_recipe(recipe_file, settings, values, allow)
        debug = bool(derived_before.get("debug", False))
        if not allow:
            check_unfinished(Path(str(values["output.run"])))
    else:
        recipe = build_recipe(recipe_file, settings, values)
        derived_before = read_recipe_file(recipe_file)[1] if recipe_file is not None else {}
        if debug and recipe.train.max_steps is None and "train.epochs" not in values:
            recipe = recipe.replace({"train.max_steps": DEBUG_STEPS, "train.epochs": None})
    source = with_training_rows(source, recipe)
    if source is None:
        raise RecipeError(
            "No training source is named.",
            "a file, a folder or hub:NAME.",
            "Run: headstart train reviews.csv (or set data.train in the recipe).",
        )
    num_processes = count_processes(recipe.train.processes)
    if num_processes > 1:
        _refuse_secrets(recipe)
    device = choose_device(recipe.train.device, recipe.train.precision, recipe.train.threads, processes=num_processes)
    processes = Processes()
    if is_sharded(num_processes):
        check_sharded(recipe)
    if num_processes > 1:
        processes = _join(recipe, device, source)
    elif recipe.train.process_timeout is not None and not resume:
        raise RecipeError(
            "train.process_timeout has no effect: one process trains, which waits for no other.",
            "several processes.",
            "Remove train.process_timeout, or set --processes.",
        )
    check_trackers(recipe.output.log_to)
    check_optimizer(recipe.optim.name)
    if recipe.model.lora is not None:
        check_peft()
    if recipe.train.compile:
        check_compiler(device.torch_device)
    data = read_data(source, recipe, debug=debug)
    checkpoint = resolve_checkpoint(recipe.model.checkpoint)
    loaded = load_classifier(
        checkpoint,
        data.task.label_names,
        seed=recipe.train.seed if recipe.model.seed is None else recipe.model.seed,
        problem_type=data.task.problem_type,
        revision=recipe.model.revision,
        dropout=recipe.model.dropout,
    )
    freeze_parameters(loaded.model, recipe.model.freeze)
    if recipe.model.lora is not None:
        loaded.adapted = add_adapters(
            loaded.model, recipe.model.lora, new_parameters=loaded.new_parameters, seed=recipe.train.seed
        )
        loaded.frozen = digest_of_frozen(loaded.model)
    limit = max_length_of(loaded)
    max_length = rows_end_at(recipe.data.max_length, limit, model_name(checkpoint))
    data = tokenise_splits(data, loaded.tokenizer, max_length, progress, strict=recipe.data.strict)
    recipe, scores = filled_recipe(recipe, data, source)
    run_dir = choose_run_dir(recipe, data, resume)
    if progress is not None and must_compile_kernels(device, recipe.train.wants_part):
        progress("making the kernels for this processor (once, up to half a minute)", 0, 0)
    plan = make_plan(recipe, data, loaded, device, scores, run_dir, resume, debug, derived_before, limit, num_processes)
    plan.processes, plan.allow = processes, tuple(allow)
    processes.announce("prepared")
    return plan


def _join(recipe: Recipe, device: Device, source: Any) -> Processes:
    """Join the processes that were started together; those that process 0 starts itself come when training begins."""
    if not isinstance(source, str):
        raise RecipeError(
            "The rows are in memory, where other processes cannot read them.",
            "a source that every process can open, with several processes.",
            "Write them to a file (CSV, JSONL, Parquet), or leave train.processes out.",
        )
    if not is_joined():
        return Processes()
    processes = join_processes(device, timeout_seconds=process_timeout_seconds(recipe))
    # Process 0 reads, checks and tokenises first; the others then find the tokens in the cache.
    processes.wait_for("prepared")
    return processes


def _check_sharded(recipe: Recipe) -> None:
    """Refuse what needs a model that is whole in every process.

    Raises:
        RecipeError: the message names all such settings.
    """
    wanted = {
        "model.lora": recipe.model.lora is not None,
        "train.compile": recipe.train.compile,
        "train.gradient_checkpointing": recipe.train.gradient_checkpointing,
        "train.precision=fp16": recipe.train.precision == "fp16",
    }
    names = [name for name, is_set in wanted.items() if is_set]
    if names:
        raise RecipeError(
            f"{' and '.join(names)} is set, but each process holds a part of the model only (FSDP).",
            "a model that is whole in every process.",
            "Leave it out, or train without FSDP.",
        )


def process_timeout_seconds(recipe: Recipe) -> float:
    """Give the time after which a process that does not answer counts as lost."""
    return parse_duration(recipe.train.process_timeout or DEFAULT_PROCESS_TIMEOUT).number * 60


def _refuse_secrets(recipe: Recipe) -> None:
    """Raise where other processes would have to read a secret from the recipe, which holds none."""
    for name in SOURCES:
        spec = getattr(recipe.data, name)
        if spec is not None and mask(spec) != spec and not is_joined():
            raise RecipeError(
                f"data.{name}: {mask(spec)} holds a secret, which is not written for the other processes to read.",
                "the secret in a variable of the environment.",
                "Write ${NAME} in its place, and export NAME=... before.",
            )


def absolute_source(spec: str) -> str:
    """Make the path in a source absolute, so that a recipe means the same from every folder.

    Names that are no path here (`hub:...`, a missing file) stay as they are.
    """
    if is_address(spec):
        return absolute_address(spec)
    match = re.fullmatch(r"(.*?)((?::[\w.-]+)?(?:\[[^\]]*\])?)", spec)
    for path, suffix in ((spec, ""), match.groups() if match else (spec, "")):
        if path and Path(path).expanduser().exists():
            return str(Path(path).expanduser().resolve()) + suffix
    if glob.has_magic(spec) and not spec.startswith("hub:"):
        return os.path.join(os.path.abspath(""), os.path.expanduser(spec))  # a pattern, or a file that is missing
    return spec


def filled_recipe(recipe: Recipe, data: ReadData, source: Any) -> tuple[Recipe, list[str]]:
    """Write into the recipe what was found by looking, so that it is enough to repeat the run."""
    task, num_labels = data.task, len(data.task.label_names)
    validation = data.splits.get("validation")
    can_evaluate = validation is not None and validation.is_labelled
    origin = str(source) if isinstance(source, str) else None
    scores = resolve_scores(recipe.evaluate.scores, num_labels, origin, task.score_kind)
    best = recipe.train.best
    if not can_evaluate:
        if recipe.optim.schedule == "plateau":
            raise RecipeError(
                "optim.schedule is plateau, which follows the evaluations; there are no labelled validation rows.",
                "validation rows with labels.",
                "Give --validation SOURCE, or choose another optim.schedule.",
            )
        for name in ("best", "patience"):
            if getattr(recipe.train, name) not in (None, "last"):
                raise RecipeError(
                    f"train.{name} has no effect: there are no labelled validation rows.",
                    "validation rows with labels.",
                    f"Remove train.{name}, or give --validation SOURCE.",
                )
    elif recipe.train.evaluate_every is not None:
        best = best or scores[0]
        if best != "last":
            resolve_scores([best], num_labels, None, task.score_kind)
    values: dict[str, Any] = {
        "task.name": task.name,
        "data.columns": {
            role: name if isinstance(name, str) else list(name)
            for role, name in (("text", task.text), ("pair", task.pair), ("label", task.label))
            if name is not None
        },
        "evaluate.scores": scores,
        "train.best": best if can_evaluate else None,
    }
    if not can_evaluate:
        values["train.evaluate_every"] = None
    if recipe.data.validation is None and recipe.data.fold is None and "validation" not in data.source.splits:
        values["data.validation_fraction"] = recipe.data.validation_fraction or DEFAULT_VALIDATION_FRACTION
    return recipe.replace(values), scores


def choose_run_dir(recipe: Recipe, data: ReadData, resume: bool) -> Path:
    """Choose the run folder, and refuse one that cannot be written or belongs to another run."""
    if recipe.output.run is None:
        name = re.sub(r"[^\w.-]+", "-", data.source.name).strip("-.") or "run"
        number = 1
        while (Path("runs") / f"{name}-{number}").exists():
            number += 1
        run_dir = Path("runs") / f"{name}-{number}"
    else:
        run_dir = Path(recipe.output.run).expanduser()
        # A process that is not number 0 writes nothing; number 0 may have made the folder already.
        if not resume and own_rank() == 0:
            check_new_folder(run_dir)
    parent = run_dir
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK) or not parent.is_dir():
        raise CheckpointError(
            f"{run_dir}: no permission to write in {parent}.",
            "a folder that you may write to.",
            "Choose another --run.",
        )
    return run_dir


def check_new_folder(folder: Path, *, what: str = "run", command: str = "train") -> None:
    """Refuse a folder that holds something.

    Args:
        folder: that is to be made.
        what: it is to hold.
        command: that goes on with one.

    Raises:
        CheckpointError: it is not free.
    """
    if folder.exists() and not _is_free(folder):
        raise CheckpointError(
            f"{folder} exists and is not empty.",
            f"a new folder for a new {what}.",
            f"Go on with it: headstart {command} --resume --run {folder}; or choose another --run.",
        )


def take_folder_of_runs(
    recipe: Recipe, settings: Sequence[str], values: Mapping[str, Any], *, what: str, command: str
) -> tuple[Path | None, list[str], dict[str, Any]]:
    """Read `output.run` as the folder of several runs, and give the settings and values that each of them has.

    Args:
        recipe: of `settings`, `values` and a file.
        settings: texts such as "train.epochs=5".
        values: "section.key" to value.
        what: the folder is to hold.
        command: that goes on with one.

    Returns:
        The folder, None where the recipe names none; settings and values without it.

    Raises:
        CheckpointError: the folder is not free.
    """
    folder = Path(recipe.output.run).expanduser() if recipe.output.run is not None else None
    if folder is not None:
        check_new_folder(folder, what=what, command=command)
    settings = [text for text in settings if text.partition("=")[0].strip() != "output.run"]
    return folder, settings, {key: value for key, value in values.items() if key != "output.run"}


def _is_free(run_dir: Path) -> bool:
    """Say whether a folder holds nothing, or only what a start that was killed before its recipe left there."""
    if not run_dir.is_dir():
        return False
    names = {path.name for path in run_dir.iterdir() if not path.name.startswith(".")}
    return names <= {TASK_FILE, ENVIRONMENT_FILE, DATA_FILE}


def make_plan(
    recipe: Recipe,
    data: ReadData,
    loaded: LoadedModel,
    device: Device,
    scores: list[str],
    run_dir: Path,
    resume: bool,
    debug: bool,
    derived_before: Mapping[str, Any],
    limit: int,
    num_processes: int,
) -> Plan:
    """Put together what `prepare_plan` has read, loaded and chosen: fast path, batches, schedule, and what follows."""
    device.apply_threads()
    recipe = choose_layer_decay(recipe, loaded.model)
    if recipe.train.gradient_checkpointing:
        recompute_activations(loaded.model)
    fast = start_fast_path(
        loaded.model.to(device.torch_device),  # type: ignore[arg-type]
        recipe.optim,
        device,
        recipe.train.wants_part,
        is_sharded=is_sharded(num_processes),
        adds_gradients=num_processes > 1 or recipe.train.accumulation > 1,
        why_not={
            **parts_in_the_way(
                recompute=recipe.train.gradient_checkpointing, compiles=recipe.train.compile, precision=device.precision
            ),
            **({"lazy_rows": "train.ema averages all rows"} if recipe.train.ema is not None else {}),
        },
    )
    if recipe.train.compile:
        compile_forward(loaded.model)
    order = recipe.train.order
    if order == "auto":
        # A model learns more from rows in random order; a budget of tokens counts padding.
        order = "random" if fast.leaves_padding_out and recipe.train.tokens_per_batch is None else "length"
        recipe = recipe.replace({"train.order": order})
    tokens = data.splits["train"].encoded()
    lengths = np.asarray(tokens.lengths)
    batches = BatchPlan(
        lengths,
        batch_size=recipe.train.batch_size,
        tokens_per_batch=recipe.train.tokens_per_batch,
        order=order,
        accumulation=recipe.train.accumulation,
        seed=recipe.train.seed,
    )
    total_steps = recipe.train.max_steps or batches.total_steps(recipe.train.epochs or 1.0)
    steps_in_epoch = batches.steps_in_epoch(0)
    if recipe.optim.learning_rate is None:
        rows = recipe.train.batch_size
        rows_per_update = rows * recipe.train.accumulation if rows is not None else len(lengths) / steps_in_epoch
        recipe = choose_learning_rate(recipe, loaded.model, rows_per_update)
    warmup_steps = parse_duration(recipe.optim.warmup or 0).in_steps(
        total_steps=total_steps, steps_per_epoch=steps_in_epoch
    )
    unfreezing = plan_unfreezing(recipe, loaded, total_steps, steps_in_epoch)
    longest = max(int(split.encoded().lengths.max()) for split in data.splits.values() if len(split.rows))
    max_length = recipe.data.max_length or min(limit, math.ceil(longest / 8) * 8)
    unkeyed = _unkeyed_draws(loaded, data, device)
    derived: dict[str, Any] = {
        "total_steps": total_steps,
        "steps_in_epoch": steps_in_epoch,
        "warmup_steps": min(warmup_steps, total_steps),
        **({"unfreeze_every_steps": unfreezing.steps_each} if unfreezing is not None else {}),
        "trained_parameters": sum(value.numel() for value in loaded.model.parameters() if value.requires_grad),
        "max_length": max_length,
        "device": str(device.torch_device),
        "precision": device.precision,
        "threads": device.threads,
        "processes": num_processes,
        "attention": loaded.model.config._attn_implementation,
        "fast": describe_parts(fast.parts),
        "randomness": "seed, step, micro-batch" if unkeyed else "seed, step, row, module, element",
        "debug": debug,
    }
    before, here = _flat(derived_before), _flat(derived)
    changes = [
        f"{key} was {before[key]} when the recipe was written, and is {value} here"
        for key, value in here.items()
        if key in before and before[key] != value
    ]
    notes = list(changes)
    if unkeyed:
        others = f" and {len(unkeyed) - 3} more" if len(unkeyed) > 3 else ""
        notes.append(
            f"random numbers that depend on the micro-batch, not on the row alone: {', '.join(unkeyed[:3])}{others}; "
            "other micro-batches give other numbers"
        )
    notes += describe_learning(recipe, loaded, total_steps, unfreezing)
    summary = summarise_plan(recipe, data, loaded, derived, batches, device, run_dir, [*data.notes, *notes], fast)
    return Plan(
        recipe, derived, data, loaded, fast, batches, device, total_steps, derived["warmup_steps"], scores, summary,
        run_dir, resume, debug, num_processes, changes=changes, unfreezing=unfreezing,
    )  # fmt: skip


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give values by one name each: {"a": {"b": 1}} is {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _unkeyed_draws(loaded: LoadedModel, data: ReadData, device: Device) -> list[str]:
    """Name what in this model draws numbers that are not keyed by row, found with a forward pass of two rows."""
    tokens = data.splits["train"].encoded()
    rows = np.argsort(tokens.lengths, kind="stable")[:2]
    batch = data.task.collate(tokens, rows, None, loaded.tokenizer.pad_token_id)
    model = loaded.model
    batch = device.place(batch)
    model.train()
    try:
        return find_unkeyed_draws(
            lambda: data.task.run(model, batch, "train"), RandomKey(0, 0, rows.tolist()), device.torch_device, model
        )
    finally:
        model.eval()
