"""A metric with the rows that it has been given so far: the object that `load` gives.

Imports numpy, layer 0 and the modules beside it.

    add, add_batch  ->  rows, read and checked  ->  compute: the parts of all processes  ->  scores; no rows are left
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from headstart.errors import DataError, RecipeError, suggest
from headstart.evaluate.columns import read_column
from headstart.evaluate.definition import MetricDefinition, Rows
from headstart.evaluate.processes import ProcessGroup

__all__ = ["Metric"]

_LONGEST_SEED: Final = 2**32


class Metric:
    """Collects predictions and references, and scores them.

    Made by `load`. Arguments are given by name only, as in evaluate.

    Args:
        definition: what the metric is.
        processes: the processes that score together; None for one.
        experiment_id: the name that these processes share.
        seed: of numpy's global random numbers inside `compute` (rouge resamples with them); None takes the seed that
            numpy has at this moment, so that a script that calls `set_seed` gets the same numbers again.

    Example:
        >>> from headstart import evaluate
        >>> metric = evaluate.load("accuracy")
        >>> metric.add_batch(predictions=[0, 1], references=[0, 1])
        >>> metric.add(prediction=1, reference=0)
        >>> metric.compute(predictions=[1], references=[1])
        {'accuracy': 0.75}
    """

    module_type: Final = "metric"

    def __init__(
        self,
        definition: MetricDefinition,
        *,
        processes: ProcessGroup | None = None,
        experiment_id: str = "default_experiment",
        seed: int | None = None,
    ) -> None:
        self._definition = definition
        self._processes = processes
        self._rows = self._no_rows()
        self.experiment_id = experiment_id
        self.seed = _seed_of_numpy() if seed is None else _checked_seed(seed)

    @property
    def name(self) -> str:
        """Name of the metric."""
        return self._definition.name

    @property
    def config_name(self) -> str:
        """Name of its configuration; `"default"` where there is one only."""
        return self._definition.config

    @property
    def description(self) -> str:
        """What it measures, in a sentence."""
        return self._definition.description

    @property
    def citation(self) -> str:
        """Where it comes from."""
        return self._definition.citation

    @property
    def inputs_description(self) -> str:
        """Its columns and options, a line each."""
        options = self._definition.options
        lines = [f"{column}: {kind.expected} a row" for column, kind in self._definition.columns.items()]
        lines += ["any options"] if options is None else [f"{name} = {value}" for name, value in options.items()]
        return "\n".join(lines)

    @property
    def features(self) -> dict[str, str]:
        """Column to type of a row."""
        return {column: kind.dtype for column, kind in self._definition.columns.items()}

    @property
    def num_process(self) -> int:
        """How many processes score together."""
        return 1 if self._processes is None else self._processes.num_process

    @property
    def process_id(self) -> int:
        """Number of this process; 0 gets the scores."""
        return 0 if self._processes is None else self._processes.process_id

    def __len__(self) -> int:
        return len(next(iter(self._rows.values())))

    def __bool__(self) -> bool:
        return True  # a metric without rows is a metric

    def __repr__(self) -> str:
        config = "" if self.config_name == "default" else f", {self.config_name!r}"
        return f"<Metric {self.name!r}{config} of {', '.join(self.features)}; {len(self):,} rows added>"

    @property
    def option_names(self) -> list[str] | None:
        """Names of the options of `compute`; None where it takes any."""
        options = self._definition.options
        return None if options is None else list(options)

    def add(self, *, prediction: Any = None, reference: Any = None, **columns: Any) -> None:
        """Add one row.

        Args:
            prediction: of this row.
            reference: the right answer of this row.
            **columns: of a metric that has others, by their names.

        Raises:
            DataError: the row does not fit the metric; nothing is added.
            RecipeError: a column is unknown.
        """
        given = {"predictions": prediction, "references": reference} | columns
        self.keep(self.read({name: None if value is None else [value] for name, value in given.items()}))

    def add_batch(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> None:
        """Add several rows.

        Args:
            predictions: list, array or tensor, one entry a row.
            references: of the same length.
            **columns: of a metric that has others, by their names.

        Raises:
            DataError: a row does not fit the metric, or the columns differ in length; nothing is added.
            RecipeError: a column is unknown.
        """
        self.keep(self.read({"predictions": predictions, "references": references} | columns))

    def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, Any] | None:
        """Score everything that was added, and the rows given here; afterwards no rows are left.

        Where an option is unknown or a row given here does not fit, what was added before stays.

        Args:
            predictions: further rows, as in `add_batch`.
            references: further rows, as in `add_batch`.
            **options: of the metric (see `inputs_description`), or further columns.

        Returns:
            Name to value; None on every process but the first.

        Raises:
            DataError: there are no rows, a row does not fit, or the score is not defined for these rows.
            RecipeError: an option is unknown.
            ProcessLostError: another process has not called `compute` in time.
        """
        columns = {"predictions": predictions, "references": references}
        columns |= {name: options.pop(name) for name in list(options) if name in self._definition.columns}
        self._definition.check_options(options)
        if any(values is not None for values in columns.values()):
            self.keep(self.read(columns))
        if self._processes is None:
            self._check_any(self._rows)
        rows: Rows | None = self._rows
        self._rows = self._no_rows()
        if self._processes is not None:
            rows = self._processes.gather(self._rows if rows is None else rows)
        if rows is None:
            return None
        self._check_any(rows)
        with _seeded(self.seed):
            return self._definition.compute(rows, options)

    def read(self, given: Mapping[str, Any]) -> Rows:
        """Read rows and check that they fit, without adding them.

        Args:
            given: by column; None where a column is not given.

        Returns:
            Plain values by column.

        Raises:
            DataError: a row does not fit the metric, or the columns differ in length.
            RecipeError: a column is unknown.
        """
        known = self._definition.columns
        unknown = [name for name, value in given.items() if name not in known and value is not None]
        if unknown:
            raise RecipeError(
                f"{self.name} takes no {unknown[0]}.",
                "the columns " + ", ".join(known) + ".",
                suggest(unknown[0], list(known)),
            )
        missing = [name for name in known if given.get(name) is None]
        if missing:
            raise DataError(
                f"{self.name}: {' and '.join(missing)} missing.",
                "the columns " + ", ".join(known) + ".",
                f"Give {', '.join(f'{name}=...' for name in known)}.",
            )
        rows = {name: read_column(kind, name, given[name]) for name, kind in known.items()}
        lengths = {name: len(values) for name, values in rows.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"{self.name}: " + ", ".join(f"{count:,} {name}" for name, count in lengths.items()) + ".",
                "as many of each, row by row.",
                "Check where the two lists come from; a padded last batch gives more predictions than rows.",
            )
        if self._definition.check is not None and any(lengths.values()):
            self._definition.check(rows)
        return rows

    def keep(self, rows: Rows) -> None:
        """Add rows that `read` has given."""
        for name, values in rows.items():
            self._rows[name].extend(values)

    def _no_rows(self) -> Rows:
        return {column: [] for column in self._definition.columns}

    def _check_any(self, rows: Rows) -> None:
        if not any(rows.values()):
            raise DataError(
                f"{self.name} has no rows to score.",
                " and ".join(self._definition.columns) + " of at least one row.",
                "Give them to compute(...), or add them before with add or add_batch.",
            )


def _checked_seed(seed: int) -> int:
    if not 0 <= seed < _LONGEST_SEED:
        raise RecipeError(f"seed is {seed}.", "a whole number from 0 to 2**32 - 1.", "Give another seed.")
    return int(seed)


def _seed_of_numpy() -> int:
    """Take the next word of numpy's global generator without drawing it; right after np.random.seed(7) it is 7."""
    state: dict[str, Any] = dict(np.random.get_state(legacy=False))
    if state["bit_generator"] != "MT19937":
        return 0
    key, position = state["state"]["key"], state["state"]["pos"]
    return int(key[position] if position < len(key) else key[0])


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Set numpy's global generator, which rouge-score draws from, and put it back as it was."""
    state = np.random.get_state(legacy=False)
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
