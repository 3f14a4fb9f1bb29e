"""Run commands in a terminal of 80 columns and draw what they print, for the README. Needs tmux.

python docs/pictures/capture.py            all pictures; `demo` takes about a minute
python docs/pictures/capture.py error      one

Each picture is what the command really left on the screen.
"""

import io
import re
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
CHARACTER_WIDTH = 12.2  # of rich's SVG, in its units
REVIEWS = "review,stars\n" + "\n".join(
    f"{text} {number},{stars}"
    for number in range(40)
    for text, stars in (("I would watch it again tonight", 5), ("I left before the end", 1), ("it was all right", 3))
)
# Command, and the line at which the picture ends.
PICTURES = {
    "demo": ("headstart demo", None),
    "plan": ("headstart train reviews.csv --debug --yes", "remarks"),
    "error": ("headstart train reviews.csv --set train.epohcs=3 --set optim.learning_rate=-1", None),
}


def run_in_terminal(command: str, folder: Path) -> str:
    """Run a command in a terminal of its own and give what is on the screen at the end, colours included."""
    name = f"capture-{uuid.uuid4().hex[:8]}"
    program = f"PATH={Path(sys.executable).parent}:$PATH; clear; {command}; tmux wait-for -S {name}; sleep 60"
    size = ["-x", "80", "-y", "120"]
    subprocess.run(["tmux", "new-session", "-d", "-s", name, *size, "-c", str(folder), program], check=True)
    try:
        subprocess.run(["tmux", "wait-for", name], check=True)
        captured = subprocess.run(
            ["tmux", "capture-pane", "-e", "-p", "-t", name], check=True, capture_output=True, text=True
        )
        return captured.stdout.rstrip()
    finally:
        subprocess.run(["tmux", "kill-session", "-t", name], check=False)


def draw(name: str, folder: Path) -> None:
    """Draw one picture beside this file."""
    command, until = PICTURES[name]
    shown = []
    for line in run_in_terminal(command, folder).split("\n"):
        if until is not None and until in Text.from_ansi(line).plain:
            break
        shown.append(line)
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(Text(f"$ {command}", style="bold"))
    console.print(Text.from_ansi("\n".join(shown).rstrip()))
    svg = console.export_svg(title="headstart")
    # A font from elsewhere would be a request to a stranger; every viewer has a monospaced one.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' x="([\d.]+)" (y="[\d.]+") textLength="([\d.]+)"([^>]*)>((?:&#160;)+)', _move, svg)
    (HERE / f"{name}.svg").write_text(svg, encoding="utf-8")
    print(f"{name}.svg")


def _move(match: re.Match[str]) -> str:
    """Turn leading spaces into a place further right: some viewers leave them out."""
    spaces = CHARACTER_WIDTH * match[5].count("&#160;")
    x, length = float(match[1]) + spaces, float(match[3]) - spaces
    return f' x="{x:.1f}" {match[2]} textLength="{length:.1f}"{match[4]}>'


def main() -> None:
    """Draw the pictures that are named, or all."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "reviews.csv").write_text(REVIEWS + "\n", encoding="utf-8")
        for name in sys.argv[1:] or PICTURES:
            draw(name, Path(folder))


if __name__ == "__main__":
    main()
