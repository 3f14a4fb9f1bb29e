"""`load` and `combine`: from names and functions to metrics.

Imports layer 0 and the modules beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from headstart.errors import RecipeError, suggest
from headstart.evaluate.combined import CombinedEvaluations
from headstart.evaluate.definition import define_own
from headstart.evaluate.metric import Metric
from headstart.evaluate.processes import DEFAULT_TIMEOUT, ProcessGroup, check_numbers
from headstart.evaluate.registry import all_metrics, find_metric

__all__ = ["combine", "list_evaluation_modules", "load"]

# They say where to download from, or how files are kept: there are no downloads, and one file a process.
_WITHOUT_OBJECT: Final = (
    "download_config",
    "download_mode",
    "force_download",
    "hash",
    "local_files_only",
    "max_concurrent_cache_files",
    "revision",
    "script_version",
    "token",
    "trust_remote_code",
    "use_auth_token",
)


def load(
    path: str | Callable[..., Any],
    config_name: str | None = None,
    module_type: str | None = None,
    process_id: int = 0,
    num_process: int = 1,
    cache_dir: str | os.PathLike[str] | None = None,
    experiment_id: str | None = None,
    keep_in_memory: bool = False,
    *,
    seed: int | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    **others: Any,
) -> Metric:
    """Load a metric by name, or make one of a function.

    Where several processes score together, each loads the metric, adds its own rows and calls `compute`; process 0 gets
    the score over all rows, the others None. The rows go through files in a folder that all of them see.

    Args:
        path: name of a metric (see `list_evaluation_modules`), or a function that takes `predictions` and `references`
            and returns a dict. A script is not run.
        config_name: of the metric, such as `"mrpc"` of `"glue"` or `"multilabel"` of `"f1"`.
        module_type: None or `"metric"`.
        process_id: number of this process, from 0.
        num_process: how many processes score together.
        cache_dir: the folder for the rows; None for `evaluate` in $HEADSTART_CACHE or ~/.cache/headstart. Without
            effect for one process, whose rows stay in memory.
        experiment_id: a name of the processes that score together; needed where two jobs use one folder at a time.
        keep_in_memory: may be set for one process, whose rows are always kept in memory.
        seed: of numpy's random numbers inside `compute`, which `rouge` uses; None takes numpy's present one.
        timeout: seconds that process 0 waits for the parts of the others.
        **others: what else evaluate takes (`download_mode`, `revision`, ...): accepted, as nothing is downloaded.

    Raises:
        UnknownMetricError: there is no metric of this name; also a FileNotFoundError.
        UnknownConfigError: the metric has no such configuration, or needs one; also a KeyError.
        RecipeError: another argument cannot be used.

    Example:
        >>> from headstart import evaluate
        >>> evaluate.load("f1").compute(predictions=[0, 1, 1], references=[0, 1, 0])
        {'f1': 0.6666666666666666}
        >>> def same(predictions, references):
        ...     return {"same": predictions == references}
        >>> evaluate.load(same).compute(predictions=["a"], references=["a"])
        {'same': True}
    """
    unknown = [name for name in others if name not in _WITHOUT_OBJECT]
    if unknown:
        names = [*load.__annotations__, *_WITHOUT_OBJECT]
        raise RecipeError(
            f"load has no argument {unknown[0]!r}.",
            "an argument of load; options of the metric are given to compute.",
            suggest(unknown[0], [name for name in names if name not in ("others", "return")]),
        )
    if module_type not in (None, "metric"):
        raise RecipeError(f"module_type is {module_type!r}.", '"metric".', "Leave it out: there are metrics only.")
    if isinstance(path, str):
        definition = find_metric(path, config_name)
    elif callable(path):
        definition = define_own(path)
        if config_name not in (None, "default"):
            raise RecipeError(
                f"config_name is {config_name!r}, but {definition.name} is a function.",
                "the name of a metric, which has configurations.",
                "Leave config_name out; give options to compute.",
            )
    else:
        raise RecipeError(f"load was given {type(path).__name__}.", "a name or a function.", 'Write: load("accuracy")')
    check_numbers(num_process, process_id, timeout)
    experiment = experiment_id or "default_experiment"
    if num_process == 1:
        return Metric(definition, experiment_id=experiment, seed=seed)
    if keep_in_memory:
        raise RecipeError(
            f"keep_in_memory is set with num_process={num_process}.",
            "rows in files, which the processes share.",
            "Leave keep_in_memory out.",
        )
    group = ProcessGroup(
        f"{definition.name} {definition.config}",
        num_process=num_process,
        process_id=process_id,
        experiment_id=experiment,
        cache_dir=cache_dir,
        timeout=timeout,
    )
    return Metric(definition, processes=group, experiment_id=experiment, seed=seed)


Evaluation = str | Callable[..., Any] | Metric


def combine(
    evaluations: Sequence[Evaluation] | Mapping[str, Evaluation], force_prefix: bool = False
) -> CombinedEvaluations:
    """Make one object of several metrics over the same rows.

    Args:
        evaluations: names, functions or loaded metrics; as a dict, its keys are the names in prefixes.
        force_prefix: puts the metric's name before every score, not only where two scores have one name.

    Raises:
        RecipeError: there are none.

    Example:
        >>> from headstart import evaluate
        >>> evaluate.combine(["accuracy", "f1"]).compute(predictions=[0, 1], references=[1, 1])
        {'accuracy': 0.5, 'f1': 0.6666666666666666}
    """
    if isinstance(evaluations, str | Metric):
        raise RecipeError(
            f"combine was given {evaluations!r}.", "a list or dict of metrics.", "Put it into a list, or use load."
        )
    if isinstance(evaluations, Mapping):
        return CombinedEvaluations([(name, _loaded(item)) for name, item in evaluations.items()], force_prefix)
    metrics = [_loaded(item) for item in evaluations]
    return CombinedEvaluations([(metric.name, metric) for metric in metrics], force_prefix)


def _loaded(item: Evaluation) -> Metric:
    return item if isinstance(item, Metric) else load(item)


def list_evaluation_modules(
    module_type: str | None = None, include_community: bool = True, with_details: bool = False
) -> list[Any]:
    """Name the metrics that `load` knows.

    Args:
        module_type: None or `"metric"`; of other types there are none.
        include_community: accepted; all of them come with headstart.
        with_details: gives dicts with name, type and configurations.

    Example:
        >>> list_evaluation_modules()[:3]
        ['accuracy', 'bleu', 'exact_match']
    """
    if module_type not in (None, "metric"):
        return []
    if not with_details:
        return list(all_metrics())
    return [
        {"name": name, "type": "metric", "community": False, "likes": None, "configs": list(configs)}
        for name, configs in all_metrics().items()
    ]
