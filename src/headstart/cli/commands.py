"""The commands and their options as data: parsing and help pages are both made from it, so they cannot drift apart.

Layer 6; imports the standard library only, so that `headstart --help` starts at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["COMMANDS", "Argument", "Command", "Option"]


@dataclass(frozen=True)
class Argument:
    """A word without dashes.

    Args:
        name: as shown.
        help: what it means.
        count: argparse's `nargs`; None takes exactly one word.
    """

    name: str
    help: str
    count: str | None = None

    @property
    def attribute(self) -> str:
        """The name under which the parsed value is kept; several words make a plural."""
        return self.name.lower() + ("s" if self.count == "*" else "")


@dataclass(frozen=True)
class Option:
    """A word with dashes.

    Args:
        name: with its dashes.
        help: what it does, in one line.
        metavar: name of its value; empty for a switch.
        key: the recipe's "section.key" that it sets; empty where it is no setting.
        default: as shown on the page; empty where there is none to show.
        kind: turns the text into the value.
        repeated: may be given several times.
        alone: its value where it is given without one; None where it needs one.
    """

    name: str
    help: str
    metavar: str = ""
    key: str = ""
    default: str = ""
    kind: type = str
    repeated: bool = False
    alone: str | None = None

    @property
    def attribute(self) -> str:
        """The name under which the parsed value is kept."""
        return self.name.lstrip("-").replace("-", "_")


@dataclass(frozen=True)
class Command:
    """One command and its page.

    Args:
        name: as typed.
        summary: one line.
        examples: (command, what it does).
        arguments: words without dashes.
        groups: title to options.
        notes: paragraphs at the end of the page.
    """

    name: str
    summary: str
    examples: tuple[tuple[str, str], ...]
    arguments: tuple[Argument, ...] = ()
    groups: dict[str, tuple[Option, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def options(self) -> list[Option]:
        """All options, in the order of the page."""
        return [option for options in self.groups.values() for option in options]


_TRACEBACK: Final = Option("--traceback", "show the whole traceback of an error")
_JSON: Final = Option("--json", "print one JSON object; everything else goes to standard error")
_COLUMNS: Final = (
    Option("--text", "column of the text", "COL", "data.columns.text", "found by looking"),
    Option("--pair", "column of the second text of a pair", "COL", "data.columns.pair", "found by looking"),
    Option("--label", "column of the label; several with commas", "COL", "data.columns.label", "found by looking"),
)
_HOW_READ: Final = ": encoding, delimiter, header, sheet, query"
_READING: Final = Option(
    "--set",
    f"how the source is read, where it is not as in training{_HOW_READ}",
    "data.KEY=VALUE",
    repeated=True,
)
_SOURCES: Final = (
    "SOURCE is a CSV, TSV, JSON, JSONL, Parquet, Arrow, Excel or text file (also packed or in a .zip), a folder with "
    "train, "
    "validation and test files or with a folder of texts for each label, a pattern ('logs/*.csv'), an address "
    "(https://, s3://, "
    "gs://, hf://), a table or query of a database (sqlite:///FILE::TABLE, duckdb:///..., postgresql://...), or "
    "hub:NAME[/CONFIG]. A slice may follow: reviews.csv[:5%], folder:train[100:200]. docs/data.md shows them all."
)

TRAIN: Final = Command(
    "train",
    "fine-tune a model on labelled texts, and score it",
    (
        ("headstart train reviews.csv", "columns, task and settings are found; a plan says which and why"),
        ("headstart train data/ --epochs 5 --learning-rate 5e-5", "a folder with train, validation and test files"),
        ("headstart train reviews.csv --folds 5", "every row is scored by a model that has not seen it"),
        ("headstart train --resume --run runs/reviews-1", "go on with a run that was stopped or killed"),
    ),
    (Argument("SOURCE", "where the training rows come from; may stand in the recipe instead", "?"),),
    {
        "Data": (
            Option("--test", "test rows, read once at the end", "SOURCE", "data.test", "the source's own"),
            Option("--validation", "validation rows", "SOURCE", "data.validation", "the source's own, else cut"),
            *_COLUMNS,
            Option("--limit", "training rows, drawn by the seed", "N|P%", "data.limit", "all"),
            Option("--max-length", "tokens of a row at most", "N", "data.max_length", "from the data", int),
        ),
        "Training": (
            Option("--task", "what is learned", "NAME", "task.name", "found by looking"),
            Option("--model", "hub name or folder", "NAME_OR_PATH", "model.checkpoint", "the embedded one"),
            Option("--epochs", "passes over the training rows", "N", "train.epochs", "3", float),
            Option("--batch-size", "rows of one forward pass", "N", "train.batch_size", "32", int),
            Option("--learning-rate", "highest of the schedule", "X", "optim.learning_rate", "by the model", float),
            Option("--seed", "decides order, dropout and new parameters", "N", "train.seed", "0", int),
            Option("--processes", "processes of this machine that train together", "N", "train.processes", "1", int),
            Option("--seeds", "train once with each of N seeds: mean, spread, each run", "N", kind=int),
            Option("--folds", "cross validation: hold out each of N folds once", "N", kind=int),
            Option("--keep-models", "with --seeds: all, best, or average (of the weights)", "WHICH", default="all"),
        ),
        "Recipe and run": (
            Option("--recipe", "a YAML file with settings", "FILE"),
            Option("--set", "any other setting; see docs/recipe.md", "SECTION.KEY=VALUE", repeated=True),
            Option("--run", "folder of the run", "DIR", "output.run", "runs/NAME-N"),
            Option("--resume", "go on with the run in --run, bit for bit"),
            Option("--allow", "with --resume: go on though this has changed (see below)", "NAME", repeated=True),
            Option("--debug", "run everything on a handful of rows, in seconds"),
        ),
        "Output": (
            Option("--yes", "do not ask before the first step"),
            Option("--quiet", "print the result alone"),
            _JSON,
            _TRACEBACK,
        ),
    },
    (
        _SOURCES,
        "--resume refuses to go on when what decides the result has changed: data, tokenizer, model, recipe or "
        "versions. --allow NAME goes on all the same, and writes the difference into the log.",
        "Ctrl-C finishes the step, saves, and prints the command that goes on; a second Ctrl-C leaves at once.",
        "Exit codes: 0 done, 1 a fault of headstart, 2 something you can mend, 3 a loss that is not finite, "
        "130 or 143 stopped after saving.",
    ),
)

TUNE: Final = Command(
    "tune",
    "search for better settings by a score of the validation rows",
    (
        ("headstart tune reviews.csv", "20 trials of learning rate, batch size, epochs and warm-up"),
        ("headstart tune reviews.csv --search optim.learning_rate=1e-5..1e-3", "this alone, by its logarithm"),
        ("headstart tune reviews.csv --search model.dropout=0,0.1,0.2 --trials 9", "one of these"),
        ("headstart tune --resume --run runs/reviews-tune-1", "go on; or take part, beside a process that is at it"),
    ),
    (Argument("SOURCE", "where the training rows come from; may stand in the recipe instead", "?"),),
    {
        "Search": (
            Option("--trials", "trainings in all; some are pruned", "N", default="20", kind=int),
            Option("--search", "what is tried; see above", "SECTION.KEY=LOW..HIGH|A,B", repeated=True),
            Option("--workers", "processes that share the trials", "N", default="1", kind=int),
        ),
        "Data": TRAIN.groups["Data"],
        "Training": tuple(
            option for option in TRAIN.groups["Training"] if option.key and option.key != "train.processes"
        ),
        "Recipe and run": (
            Option("--recipe", "a YAML file with settings", "FILE"),
            Option("--set", "any other setting; see docs/recipe.md", "SECTION.KEY=VALUE", repeated=True),
            Option("--run", "folder of the search", "DIR", "output.run", "runs/NAME-tune-N"),
            Option("--resume", "go on with the search in --run, or take part in it"),
            Option("--debug", "run everything on a handful of rows, in seconds"),
        ),
        "Output": TRAIN.groups["Output"],
    },
    (
        "The first trial has the recipe's own values. A trial whose score is below the median of the others at the "
        "same share of its training is pruned. Trials never read the test rows; the best one is scored on them at the "
        "end. Needs: pip install 'headstart[search]'.",
        "Without --search the learning rate is tried within a factor of 4, half and twice the batch size, one epoch "
        "less to two more, and a warm-up or none, around what train would take. What you set is not searched.",
        _SOURCES,
        "Ctrl-C finishes the step, saves, and prints the command that goes on; a second Ctrl-C leaves at once.",
    ),
)

PREDICT: Final = Command(
    "predict",
    "predict texts with a finished run",
    (
        ('headstart predict runs/reviews-1 "loved it" "never again"', "texts"),
        ("headstart predict runs/reviews-1 --file new.csv --output predicted.csv", "a file; its columns are kept"),
        ("cat texts.txt | headstart predict runs/reviews-1", "a text a line; pairs are separated by a tab"),
    ),
    (
        Argument("RUN", "a run's folder, or its name in runs/"),
        Argument("TEXT", "texts; for a run that learned from pairs they come in twos", "*"),
    ),
    {
        "Input": (
            Option("--file", "predict every row of a source", "SOURCE"),
            Option("--text", "column of the text", "COL", default="as in training"),
            Option("--pair", "column of the second text", "COL", default="as in training"),
            _READING,
        ),
        "Output": (
            Option("--output", "write a .csv, .tsv, .jsonl, .json or .parquet file", "FILE", default="a table"),
            Option("--probabilities", "add a column with the probability of each class"),
            Option("--batch-size", "rows of one forward pass", "N", default="the recipe's", kind=int),
            _TRACEBACK,
        ),
    },
    (
        "The columns prediction and probability are added, prediction alone for several labels a row and for numbers; "
        "where the input has columns of these names, the new ones are called model_prediction and model_probability. "
        "A run that gives several labels writes them into one cell with a delimiter, and as lists to JSON and Parquet.",
    ),
)

EVALUATE: Final = Command(
    "evaluate",
    "score a finished run on other labelled rows",
    (("headstart evaluate runs/reviews-1 other.csv", "with the scores and intervals of the run's recipe"),),
    (Argument("RUN", "a run's folder, or its name in runs/"), Argument("SOURCE", "labelled rows")),
    {
        "Columns": tuple(
            Option(option.name, option.help, option.metavar, default="as in training") for option in _COLUMNS
        ),
        "Input": (_READING,),
        "Output": (_JSON, _TRACEBACK),
    },
    (_SOURCES,),
)

RUNS: Final = Command(
    "runs",
    "list the runs of a folder, best first",
    (("headstart runs", "the runs in runs/"),),
    (Argument("DIR", "folder that holds run folders (default: runs)", "?"),),
    {"Output": (_TRACEBACK,)},
)

SHOW: Final = Command(
    "show",
    "show a run, a study, or the data of a source",
    (
        ("headstart show reviews.csv", "columns, task, labels, lengths, findings and examples of a file"),
        ("headstart show data/ --html", "the same as a page for the browser: data.html"),
        ("headstart show runs/reviews-1", "data, training, scores and files of a run, also of one that has not ended"),
    ),
    (Argument("SOURCE", "a run's folder, or its name in runs/; or rows, from wherever train takes them"),),
    {
        "Data": (
            Option("--test", "test rows", "SOURCE", default="the source's own"),
            Option("--validation", "validation rows", "SOURCE", default="the source's own"),
            *(Option(option.name, option.help, option.metavar, default=option.default) for option in _COLUMNS),
            Option("--model", "whose tokens are counted", "NAME_OR_PATH", default="the embedded one, if installed"),
            Option("--set", f"how the source is read{_HOW_READ}", _READING.metavar, repeated=True),
            Option("--examples", "rows drawn, beside first, longest and shortest", "N", default="3; 0: none", kind=int),
            Option("--seed", "decides which rows are drawn", "N", default="0", kind=int),
        ),
        "Output": (
            Option("--html", "write a page", "[FILE]", default="NAME.html where no FILE follows", alone=""),
            _TRACEBACK,
        ),
    },
    (
        _SOURCES,
        "A folder that a training left is shown as a run, everything else as a source. Nothing is trained, and no row "
        "leaves this machine. --examples 0 shows no text of any row.",
    ),
)

DEMO: Final = Command(
    "demo",
    "see it all in about a minute, without data of your own",
    (("headstart demo", "film reviews, the embedded model, no network"),),
    (),
    {
        "Output": (
            Option("--run", "folder of the run", "DIR", "output.run", "runs/demo-N"),
            Option("--quiet", "print the result alone"),
            _TRACEBACK,
        )
    },
    ("Model and rows come with: pip install 'headstart[demo]'",),
)

COMMANDS: Final[dict[str, Command]] = {
    command.name: command for command in (DEMO, TRAIN, TUNE, PREDICT, EVALUATE, RUNS, SHOW)
}


def settings_of(command: Command, arguments: Any) -> dict[str, Any]:
    """Collect the recipe's values that options of a command were given for: "section.key" to value."""
    values = {option.key: getattr(arguments, option.attribute) for option in command.options if option.key}
    return {key: value for key, value in values.items() if value is not None}
