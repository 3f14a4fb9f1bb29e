import sys

import pytest

from headstart.cli.commands import COMMANDS
from headstart.cli.main import _Parser, main
from headstart.recipe import Recipe


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_page_begins_with_an_example_and_names_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    page = capsys.readouterr().out
    assert page.splitlines()[2].strip().startswith("$ headstart")
    for option in COMMANDS[name].options:
        assert f"{option.name} {option.metavar}".strip() in page
    assert max(map(len, page.splitlines())) <= 80


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_first_page_names_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    page = capsys.readouterr().out
    assert all(command.summary in page for command in COMMANDS.values())


def test_defaults_on_the_pages_are_those_of_the_recipe() -> None:
    recipe = Recipe().model_dump()
    for command in COMMANDS.values():
        for option in command.options:
            section, _, key = option.key.partition(".")
            value = recipe[section].get(key) if option.key else None
            if isinstance(value, int | float):
                assert float(option.default) == value, option.name


def test_every_key_of_an_option_is_in_the_recipe() -> None:
    recipe = Recipe().model_dump()
    for command in COMMANDS.values():
        for option in command.options:
            if option.key:
                section, key, *_ = option.key.split(".")
                assert key in recipe[section], option.key


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["trian"], 'Did you mean "train"?'),
        (["train", "x.csv", "--epoch", "3"], 'Did you mean "--epochs"?'),
        (["train", "x.csv", "--epochs", "three"], "Expected: a number: --epochs N"),
        (["train", "x.csv", "--batch-size", "2.5"], "a whole number"),
        (["train", "x.csv", "--epochs"], "--epochs has no value"),
        (["train", "x.csv", "y.csv"], '"y.csv" is one word too many'),
        (["show"], "headstart show: SOURCE is missing."),
        (["evaluate", "runs/a-1"], "SOURCE is missing"),
        (["help", "trian"], 'Did you mean "train"?'),
        (["predict", "a", "b", "--txt", "c"], 'Did you mean "--text"?'),
        (["runs", "-x"], 'has no option "-x"'),
    ],
)
def test_a_wrong_word_is_named_with_the_nearest_one(
    words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert part in captured.err.replace("\n", " ")
    assert captured.out == "" and "Traceback" not in captured.err


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_and_a_name_is_the_page_of_the_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", name]) == 0
    page = capsys.readouterr().out
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out == page


def test_a_page_has_the_defaults_and_no_colours_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--help"]) == 0
    page = capsys.readouterr().out
    for option in COMMANDS["train"].options:
        assert not option.default or f"(default: {option.default})" in " ".join(page.split())
    assert "\033" not in page
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["train", "--help"]) == 0
    assert "\033" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["train", "--help"]) == 0
    assert capsys.readouterr().out == page


@pytest.mark.parametrize(
    ("words", "run", "texts", "output"),
    [
        (["a", "--output", "o.csv", "b", "c"], "a", ["b", "c"], "o.csv"),
        (["--output=o.csv", "a"], "a", [], "o.csv"),
        (["a", "-5 degrees", "-1", "-", "a -- b"], "a", ["-5 degrees", "-1", "-", "a -- b"], None),
        (["a", "--", "--output", "-x"], "a", ["--output", "-x"], None),
        (["--", "a", "b"], "a", ["b"], None),
    ],
)
def test_options_and_words_come_in_any_order(words: list[str], run: str, texts: list[str], output: str | None) -> None:
    arguments = _Parser(COMMANDS["predict"]).parse(words)
    assert (arguments.run, arguments.texts, arguments.output) == (run, texts, output)


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    import headstart

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"headstart {headstart.__version__}\n"
