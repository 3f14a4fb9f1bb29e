"""The training while it runs: bars on a terminal, plain lines elsewhere.

Layer 4; imports layer 0 and rich.

    records -> Progress -> a bar and a line of numbers that are drawn again   (terminal)
                        -> a line now and then                                (file, pipe, notebook)

Evaluations, warnings and the end are lines on both. What is shown follows from the records alone: they hold the
seconds, so that the same records give the same lines.
"""

from __future__ import annotations

import math
import time
from collections import deque
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headstart.display.layout import FAINT, HEADING, format_seconds, make_console, plain, show_line
from headstart.runlog import (
    EvaluationRecord,
    Record,
    StepRecord,
    StopRecord,
    WarningRecord,
)

__all__ = ["Progress"]

_WINDOW_STEPS = 100  # enough to even out batches of short and of long rows
_REDRAW_SECONDS = 0.1
_LINE_SECONDS = 5.0  # plain lines: never more often
_LONGEST_SILENCE_SECONDS = 60.0  # and not much less often
_MAX_SCORES_SHOWN = 4


class Progress:
    """Show the records of a training as they come.

    Args:
        total_steps: optimizer updates of the whole training, those made before a resume included.
        console: where to; None is the standard output. With a terminal a bar is drawn, else lines are written: after
            the first step, then at every tenth of the way or every minute, never two within five seconds.

    Example:
        >>> import io
        >>> file = io.StringIO()
        >>> with Progress(2, Console(file=file, width=120)) as progress:
        ...     progress.update(StepRecord(1, 0.5, 0.69, 1e-4, 1.0, 32, 900, 0.5))
        >>> print(file.getvalue().strip())
        step 1/2   epoch 0.50   loss 0.6900   lr 1.0e-04   64.0 rows/s   1,800 tokens/s
    """

    def __init__(self, total_steps: int, console: Console | None = None) -> None:
        self.total_steps = total_steps
        self.console = make_console(console)
        self._recent: deque[StepRecord] = deque(maxlen=_WINDOW_STEPS)
        self._first: StepRecord | None = None
        self._line_step, self._seconds_since_line = 0, math.inf
        self._drawn = -math.inf
        self._live: Live | None = None
        if self.console.is_interactive and not self.console.is_jupyter:
            # Drawn from update() and not from a thread: nothing changes in between, and data workers may fork.
            self._live = Live(
                console=self.console,
                auto_refresh=False,
                transient=True,
                get_renderable=self._render,
                vertical_overflow="visible",
            )

    def __enter__(self) -> Progress:
        """Draw the empty bar."""
        if self._live is not None:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bar away; where the training was left before its end, say where."""
        if self._live is None:
            return
        self._live.stop()
        if exception is not None and self._recent:
            self._say(Text(self._describe()))

    def update(self, record: Record) -> None:
        """Show a record; checkpoints are no news and show nothing."""
        if isinstance(record, StepRecord):
            self._step(record)
        elif isinstance(record, EvaluationRecord):
            self._seconds_since_line += record.seconds
            self._say(_describe_evaluation(record, self.console))
        elif isinstance(record, WarningRecord):
            self._say(
                Text.assemble(
                    (f"step {record.step:,}", FAINT), "   ", ("warning", "yellow"), "  ", plain(record.message)
                )
            )
        elif isinstance(record, StopRecord):
            self._stop(record)
        self._redraw(force=not isinstance(record, StepRecord))

    def _step(self, record: StepRecord) -> None:
        first = self._first is None
        if first:
            self._first = record
        self._recent.append(record)
        if self._live is not None:
            return
        self._seconds_since_line += record.seconds
        tenths = 10 * record.step // max(1, self.total_steps)
        new_tenth = tenths > 10 * self._line_step // max(1, self.total_steps)
        due = self._seconds_since_line >= _LINE_SECONDS and (
            new_tenth or self._seconds_since_line >= _LONGEST_SILENCE_SECONDS
        )
        if first or due:
            self._line_step, self._seconds_since_line = record.step, 0.0
            show_line(self.console, Text(self._describe()))

    def _stop(self, record: StopRecord) -> None:
        style = {"done": "green", "non_finite": "bold red"}.get(record.reason, "yellow")
        word = {"done": "done", "non_finite": "failed"}.get(record.reason, "stopped")
        self._say(
            Text.assemble(
                (f"step {record.step:,}", FAINT),
                "   ",
                (word, style),
                "  ",
                plain(record.message),
                (f"   {format_seconds(record.seconds)} of training", FAINT),
            )
        )

    def _say(self, line: Text) -> None:
        show_line(self.console, Text(" ").append_text(line) if self._live is not None else line)

    def _redraw(self, *, force: bool) -> None:
        now = time.monotonic()
        if self._live is not None and (force or now - self._drawn >= _REDRAW_SECONDS):
            self._drawn = now
            self._live.refresh()

    def _render(self) -> RenderableType:
        """Draw the bar and the numbers below it."""
        step = self._recent[-1].step if self._recent else 0
        share = step / self.total_steps if self.total_steps else 1.0
        line = Table.grid(padding=(0, 2, 0, 0), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(justify="right", no_wrap=True)
        line.add_column(justify="right", no_wrap=True)
        line.add_row(
            Text(f" step {step:,}/{self.total_steps:,}", style=HEADING),
            ProgressBar(total=max(1, self.total_steps), completed=step, complete_style="cyan", finished_style="green"),
            Text(f"{share:.0%}"),
            Text(self._time_left()),
        )
        return Group(line, Text(" " + "   ".join(self._numbers()), style=FAINT, no_wrap=True, overflow="ellipsis"))

    def _describe(self) -> str:
        step = self._recent[-1].step
        parts = [f"step {step:,}/{self.total_steps:,}", *self._numbers(), self._time_left()]
        return "   ".join(part for part in parts if part)

    def _numbers(self) -> list[str]:
        if not self._recent:
            return ["preparing the first step"]
        last = self._recent[-1]
        numbers = [f"epoch {last.epoch:.2f}", f"loss {last.loss:.4f}", f"lr {last.learning_rate:.1e}"]
        seconds = sum(record.seconds for record in self._recent)
        if seconds > 0:
            rows = sum(record.rows for record in self._recent) / seconds
            tokens = sum(record.tokens for record in self._recent) / seconds
            numbers += [f"{rows:,.0f} rows/s" if rows >= 100 else f"{rows:.1f} rows/s", f"{tokens:,.0f} tokens/s"]
        return numbers

    def _time_left(self) -> str:
        # The first step of a start also fills caches and memory: it says little about the others.
        usual = [record.seconds for record in self._recent if record is not self._first]
        if not usual:
            return ""
        mean = sum(usual) / len(usual)
        seconds = mean * max(0, self.total_steps - self._recent[-1].step)
        return f"{format_seconds(max(1.0, seconds))} left" if seconds else ""


def _describe_evaluation(record: EvaluationRecord, console: Console) -> Text:
    """Write the scores, on a terminal as many as its line has room for."""
    line = Text.assemble((f"step {record.step:,}", FAINT), "   ", plain(record.split, HEADING))
    best = Text("   best so far" if record.best else "", style="green")
    for index, (name, value) in enumerate(record.scores.items()):
        score = plain(f"   {name} {value:.3f}" if math.isfinite(value) else f"   {name} not defined")
        full = console.is_terminal and line.cell_len + score.cell_len + best.cell_len >= console.width
        if index == _MAX_SCORES_SHOWN or (index and full):
            break
        line.append_text(score)
    return line.append_text(best)
