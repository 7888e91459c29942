"""Defaults < TOML < command line; what can't be understood is reported in one sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import distsgd
from distsgd.cli.command_line import Finished, load_config, parse_arguments
from distsgd.core.errors import ConfigurationError
from distsgd.core.options import REQUIRED, option
from distsgd.run.config import TrainConfig
from distsgd.run.config_file import from_mapping
from distsgd.run.user_code import CodeName


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "run.toml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("option", ["--logical-ranks", "--logical_ranks"])
def test_the_former_name_of_an_option(option: str, toml: Any) -> None:
    for arguments in ([option, "4"], [f"{option}=4"]):
        with pytest.raises(ConfigurationError, match=f"the option {option} is now called --microbatches"):
            load_config(arguments)
    path = toml(f"{option[2:]} = 4")
    with pytest.raises(ConfigurationError, match=f"{path}: the option logical_ranks is now called microbatches"):
        load_config(["--config", path])


def test_defaults() -> None:
    assert load_config([]) == TrainConfig()


@pytest.mark.parametrize("name", ["same_bits", "same-bits"])
def test_a_file_of_before_the_option_for_other_sums_went(name: str, toml: Any) -> None:
    assert load_config(["--config", toml(f"{name} = true\nseed = 3")]) == TrainConfig(seed=3)
    path = toml(f"{name} = false")
    with pytest.raises(ConfigurationError, match=f"{path}: same_bits: expected true, .*, got False; leave it out"):
        load_config(["--config", path])
    with pytest.raises(ConfigurationError, match="unknown option --no-same-bits"):
        load_config(["--no-same-bits"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--batch-size", "32"], {"batch_size": 32}),
        (["--batch_size", "32"], {"batch_size": 32}),
        (["--batch-size=32"], {"batch_size": 32}),
        (["--batch-size", "full"], {"batch_size": "full"}),
        (["--lr", "0.5"], {"learning_rate": 0.5}),
        (["--lr=1e-3"], {"learning_rate": 1e-3}),
        (["--learning-rate", "1"], {"learning_rate": 1.0}),
        (["--hidden", "3", "4", "5"], {"hidden": (3, 4, 5)}),
        (["--hidden"], {"hidden": ()}),
        (["--no-shuffle"], {"shuffle": False}),
        (["--shuffle"], {"shuffle": True}),
        (["--batch-norm", "--drop-last"], {"batch_norm": True, "drop_last": True}),
        (["--no-bias"], {"bias": False}),
        (["--penalize", "dense1.*", "*"], {"penalize": ("dense1.*", "*")}),
        (["--callback", "a.py:F", "b.py:G"], {"callback": ("a.py:F", "b.py:G")}),
        (["--max-time", "3h50m", "--target", "validation_loss=0.1"],
         {"max_time": "3h50m", "target": "validation_loss=0.1"}),
        (["--class-weights", "1", "2.5"], {"class_weights": (1.0, 2.5)}),
        (["--seed", "9223372036854775807"], {"seed": 2**63 - 1}),
    ],
)  # fmt: skip
def test_options(arguments: list[str], expected: dict[str, Any]) -> None:
    assert load_config(arguments) == TrainConfig(**expected)


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["--epoch", "3"], "unknown option --epoch; did you mean --epochs?"),
        (["--optimiser", "sgd"], "did you mean --optimizer?"),
        (["--batch_sise", "3"], "did you mean --batch-size?"),
        (["--qqq"], "unknown option --qqq"),
        (["--epochs", "many"], "--epochs"),
        (["--epochs", "1.5"], "--epochs"),
        (["--epochs"], "--epochs"),
        (["--batch-size", "half"], "--batch-size"),
        (["--lr", "fast"], "--learning-rate"),
        (["extra"], "extra"),
        (["--config"], "--config"),
        (["--epochs", "-1"], "epochs: expected"),
    ],
)
def test_misunderstandings(arguments: list[str], reported: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(arguments)
    assert reported in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not set("│╭╰─") & set(str(caught.value))
    assert capfd.readouterr() == ("", "")


def test_precedence(toml: Any) -> None:
    path = toml('epochs = 3\nbatch-size = 10\nhidden = [7]\nlr = 1\noptimizer = "adam"\n')
    config = load_config(["--epochs", "5", "--config", path, "--hidden", "8", "9"])
    assert (config.epochs, config.batch_size, config.hidden) == (5, 10, (8, 9))
    assert (config.learning_rate, config.optimizer, config.dropout) == (1.0, "adam", 0.0)
    assert load_config([f"--config={path}"]).epochs == 3
    assert load_config(["--config", toml("shuffle = true"), "--no-shuffle"]).shuffle is False


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("epoch = 3", "unknown option 'epoch'; did you mean epochs?"),
        ("zzzzz = 3", "see python -m distsgd.train --help"),
        ("epochs = 3.5", "epochs: expected a whole number, got 3.5"),
        ("epochs = true", "epochs: expected a whole number, got True"),
        ("epochs = '3'", "epochs: expected a whole number, got '3'"),
        ("hidden = ['a']", "expected a whole number, got 'a'"),
        ("shuffle = 1", "shuffle: expected true or false, got 1"),
        ("dropout = 'high'", "dropout: expected a number, got 'high'"),
        ("batch_size = 'half'", "batch_size: expected a whole number or full, got 'half'"),
        ("batch_size = 0", "batch_size"),
        ("dataset = 3", "dataset: expected text, got 3"),
        ("[a]\nb = 1", "unknown table [a]"),
        ("epochs = ", "is not a TOML file"),
        ("epochs = 1\nepochs = 2", "is not a TOML file"),
        ("a = " + "[" * 5000, "is not a TOML file"),
    ],
)
def test_files_that_are_refused(toml: Any, text: str, reported: str) -> None:
    path = toml(text)
    with pytest.raises(ConfigurationError) as caught:
        load_config(["--config", path])
    assert path in str(caught.value)
    assert reported in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "noise.toml").write_bytes(b"\xff\xfe\0\1")
    (tmp_path / "huge.toml").write_bytes(b"#" * 1_000_001)
    for name, reported in (("noise.toml", "not a TOML"), ("huge.toml", "bytes"), ("none.toml", "No such file")):
        with pytest.raises(ConfigurationError, match=reported):
            load_config(["--config", str(tmp_path / name)])


def test_values_in_files() -> None:
    config = from_mapping({"hidden": 5, "dropout": 0, "clip-norm": 1, "metric": "a.py:f", "batch_size": "full"}, "f")
    assert (config.hidden, config.dropout, config.clip_norm) == ((5,), 0.0, 1.0)
    assert (config.metric, config.batch_size) == (("a.py:f",), "full")
    assert type(config.dropout) is float


def evil(option: str) -> str:
    """A line of TOML that names code."""
    return "model = 'evil.py:run'" if option == "model" else f"{option} = ['evil.py:run']"


UNNAMED: list[list[str]] = [
    [],
    ["--dataset", "evil.py:run"],  # the same words after another option
    ["--out=evil.py:run"],
    ["--out=--OPTION=evil.py:run"],
    ["--data-dir", "--OPTION", "evil.py:run"],
    ["--OTHER", "evil.py:run"],
    ["--OPTIO", "evil.py:run"],  # there are no short forms
    ["--OPTIONS", "evil.py:run"],
    ["-OPTION", "evil.py:run"],
    ["--OPTION"],
    ["--", "--OPTION", "evil.py:run"],
    ["evil.py:run"],
]


@pytest.mark.parametrize("option", ["model", "callback"])
@pytest.mark.parametrize("arguments", UNNAMED, ids=" ".join)
def test_code_that_a_file_names_is_refused(toml: Any, option: str, arguments: list[str]) -> None:
    """Or it counts for nothing: `--callback` without a value is an empty list."""
    line = [argument.replace("OPTION", option).replace("OTHER", "metric") for argument in arguments]
    given = [*line, "--config", toml(evil(option))]
    if line == ["--callback"]:
        assert load_config(given).callback == ()
        return
    with pytest.raises(ConfigurationError, match=r"names code, .*; to run it, add|\(see python|expected one"):
        load_config(given)


@pytest.mark.parametrize("option", ["model", "metric", "callback"])
def test_what_to_add_to_the_command_line(toml: Any, option: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"run\.toml names code, .*add --{option} evil\.py:run to the"):
        load_config(["--config", toml(evil(option))])
    path = toml("metric = ['accuracy', 'my code.py:run']")
    with pytest.raises(ConfigurationError, match=r"add --metric accuracy 'my code\.py:run' to the command line"):
        load_config(["--config", path])


@pytest.mark.parametrize("option", ["model", "callback"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--OPTION", "evil.py:run"], ("evil.py:run",)),
        (["--OPTION=evil.py:run"], ("evil.py:run",)),
        (["--OPTION", "mine.py:run"], ("mine.py:run",)),
        (["--OPTION=-x.py:run"], ("-x.py:run",)),
    ],
)
def test_code_that_the_command_line_names(toml: Any, option: str, arguments: list[str], expected: Any) -> None:
    path, line = toml(evil(option)), [argument.replace("OPTION", option) for argument in arguments]
    for given in ([*line, "--config", path], [f"--config={path}", *line]):
        value = getattr(load_config(given), option)
        assert value == (expected[0] if option == "model" else expected)
        assert {type(text) for text in ((value,) if option == "model" else value)} == {CodeName}


def test_the_command_line_replaces_what_a_file_names(toml: Any) -> None:
    model, lists = toml(evil("model")), "metric = ['accuracy', 'evil.py:run']\ncallback = ['evil.py:a', 'evil.py:b']"
    assert load_config(["--config", model, "--model", "softmax"]).model == "softmax"
    assert load_config(["--config", model, "--model", "mlp"]).model == "mlp"  # the default, if somebody says it
    for twice in (["--model", "evil.py:run", "--model", "mlp"], ["--model=mlp", "--model", "b.py:f"]):
        with pytest.raises(ConfigurationError, match="--model is given 2 times; give it once"):
            load_config(["--config", model, *twice])
    config = load_config(["--config", toml(lists), "--metric", "accuracy", "--callback", "evil.py:a", "c.py:C"])
    assert (config.metric, config.callback) == (("accuracy",), ("evil.py:a", "c.py:C"))
    assert load_config(["--config", toml("metric = ['accuracy']"), "--callback", "c.py:C"]).metric == ("accuracy",)


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("callback = ['evil.py:not an identifier']", "callback: expected file.py:name of a distsgd.Callback"),
        ("callback = ['notes.txt:f']", "callback: expected file.py:name"),
        ("callback = ['mine.py:f', 'evil.py:1f']", "got 'evil.py:1f'"),
        ("metric = ['evil.py:not an identifier']", "metric: expected one of"),
        ("metric = ['notes.txt:f']", "or file.py:function, got 'notes.txt:f'"),
    ],
)
def test_what_names_neither_code_nor_anything_else(toml: Any, text: str, reported: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(reported)):
        load_config(["--config", toml(text), "--epochs", "1"])


def test_names_of_models_need_no_repetition(toml: Any) -> None:
    assert load_config(["--config", toml("model = 'softmax'")]).model == "softmax"


def test_one_configuration_file(toml: Any) -> None:
    with pytest.raises(ConfigurationError, match="--config"):
        load_config(["--config", toml(evil("model")), "--config", "evil.py:run"])
    with pytest.raises(ConfigurationError, match=r"could not read the configuration evil\.py:run"):
        load_config(["--config", "evil.py:run"])


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Finished) as stop:
        load_config(["--help"])
    assert stop.value.exit_status == 0
    printed = capsys.readouterr().out
    assert "--batch-size" in printed
    assert "Examples of one global minibatch" in printed
    with pytest.raises(Finished):
        load_config(["--version"])
    assert capsys.readouterr().out == f"distsgd {distsgd.__version__}\n"


@dataclass(frozen=True)
class Small:
    """A command."""

    name: str = option(REQUIRED, "What it is called.")
    count: int = option(1, "How many.", interval="[1, 9]")


def test_other_commands() -> None:
    assert parse_arguments(Small, ["--name", "a"], prog="small") == Small("a")
    with pytest.raises(ConfigurationError, match=r"--name.*\(see small --help\)"):
        parse_arguments(Small, [], prog="small")
    with pytest.raises(ConfigurationError, match="count: expected a whole number, at least 1 and at most 9, got 10"):
        parse_arguments(Small, ["--name", "a", "--count", "10"], prog="small")
    with pytest.raises(ConfigurationError, match=r"did you mean --count\?"):
        parse_arguments(Small, ["--name", "a", "--counts", "3"], prog="small")


def test_a_list_that_is_given_twice_would_lose_values() -> None:
    with pytest.raises(ConfigurationError, match="--freeze is given 2 times; give it once, with all its values"):
        load_config(["--freeze", "dense1.*", "--freeze", "dense2.*"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "abc"], "--learning-rate: expected a number, got 'abc'"),
        (["--batch-size", "all"], "--batch-size: expected a whole number or full, got 'all'"),
        (["--early-stopping", "patience", "--validate-every", "3"], "the patience rule says itself how often"),
    ],
)
def test_values_of_another_kind_and_options_without_effect(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        load_config(arguments)


def test_help_reads_no_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text('out = "a\\u001b[31mred\\nX"\nfreeze = ["\\u001b]0;title\\u0007"]\n')
    printed = []
    for arguments in (["--config", str(path), "--help"], ["-h"]):
        with pytest.raises(Finished):
            load_config(arguments)
        printed.append(capfd.readouterr().out)
    assert printed[0] == printed[1]
    assert all(piece not in printed[0] for piece in ("\x1b]", "\x1b[31m", "\x07"))
    assert load_config(["--config", str(path)]).out == "a\x1b[31mred\nX"
