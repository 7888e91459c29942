"""Defaults < TOML < command line; what can't be understood is told in one sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import distsgd
from distsgd.command_line import Finished, from_mapping, import_function, is_code, load_config, parse_arguments
from distsgd.config import TrainConfig
from distsgd.errors import ConfigurationError


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "run.toml"
        path.write_text(text)
        return str(path)

    return write


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
    ("arguments", "told"),
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
def test_misunderstandings(arguments: list[str], told: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config(arguments)
    assert told in str(caught.value)
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
    ("text", "told"),
    [
        ("epoch = 3", "unknown option 'epoch'; did you mean epochs?"),
        ("zzzzz = 3", "see python -m distsgd.train --help"),
        ("epochs = 3.5", "epochs: expected a whole number, got 3.5"),
        ("epochs = true", "epochs: expected a whole number, got True"),
        ("epochs = '3'", "epochs: expected a whole number, got '3'"),
        ("hidden = ['a']", "expected a whole number, got 'a'"),
        ("shuffle = 1", "shuffle: expected true or false, got 1"),
        ("dropout = 'high'", "dropout: expected a number, got 'high'"),
        ("batch_size = 'half'", "batch_size: expected a whole number or 'full', got 'half'"),
        ("batch_size = 0", "batch_size"),
        ("dataset = 3", "dataset: expected text, got 3"),
        ("[a]\nb = 1", "unknown option 'a'"),
        ("epochs = ", "is not a TOML file"),
        ("epochs = 1\nepochs = 2", "is not a TOML file"),
        ("a = " + "[" * 5000, "is not a TOML file"),
    ],
)
def test_files_that_are_refused(toml: Any, text: str, told: str) -> None:
    path = toml(text)
    with pytest.raises(ConfigurationError) as caught:
        load_config(["--config", path])
    assert path in str(caught.value)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "noise.toml").write_bytes(b"\xff\xfe\0\1")
    (tmp_path / "huge.toml").write_bytes(b"#" * 1_000_001)
    for name, told in (("noise.toml", "not a TOML"), ("huge.toml", "bytes"), ("none.toml", "No such file")):
        with pytest.raises(ConfigurationError, match=told):
            load_config(["--config", str(tmp_path / name)])


def test_values_in_files() -> None:
    config = from_mapping({"hidden": 5, "dropout": 0, "clip-norm": 1, "metric": "a.py:f", "batch_size": "full"}, "f")
    assert (config.hidden, config.dropout, config.clip_norm) == ((5,), 0.0, 1.0)
    assert (config.metric, config.batch_size) == (("a.py:f",), "full")
    assert type(config.dropout) is float


@pytest.mark.parametrize("option", ["model", "metric", "callback"])
def test_code_runs_only_where_it_is_named_twice(toml: Any, option: str) -> None:
    value = "'evil.py:run'" if option == "model" else "['evil.py:run']"
    path = toml(f"{option} = {value}")
    with pytest.raises(ConfigurationError, match=rf"names code.*add --{option} evil\.py:run"):
        load_config(["--config", path])
    config = load_config(["--config", path, f"--{option}", "evil.py:run"])
    assert "evil.py:run" in getattr(config, option)
    other = load_config(["--config", path, f"--{option}", "mine.py:run"])
    assert "evil.py:run" not in getattr(other, option)
    assert "evil.py:run" in getattr(load_config([f"--{option}=evil.py:run", "--config", path]), option)


def test_names_of_models_need_no_repetition(toml: Any) -> None:
    assert load_config(["--config", toml("model = 'softmax'")]).model == "softmax"


def test_named_elsewhere_is_not_named_twice(toml: Any) -> None:
    """Only the option itself counts, not the same words behind another."""
    path = toml("model = 'evil.py:run'")
    with pytest.raises(ConfigurationError, match="names code"):
        load_config(["--config", path, "--dataset", "evil.py:run"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.py:f", True), ("/x/a b.py:f_1", True), ("mlp", False), ("a.py", False), ("a.py:1f", False), ("a:f", False)],
)
def test_is_code(name: str, expected: bool) -> None:
    assert is_code(name) is expected


def test_import_function(tmp_path: Path) -> None:
    (tmp_path / "own_code.py").write_text("import dataclasses\n\n@dataclasses.dataclass\nclass A:\n    x: 'int' = 3\n")
    path = str(tmp_path / "own_code.py")
    assert import_function(f"{path}:A", "model")().x == 3
    with pytest.raises(ConfigurationError, match=r"model: .* has no B"):
        import_function(f"{path}:B", "model")
    with pytest.raises(ConfigurationError, match="metric: there is no readable file"):
        import_function(f"{path}x.py:A", "metric")


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(f"def which():\n    return '{folder}'\n")
    assert [import_function(f"{tmp_path}/{folder}/same.py:which", "model")() for folder in ("one", "two")] == [
        "one",
        "two",
    ]


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Finished) as stop:
        load_config(["--help"])
    assert stop.value.exit_status == 0
    said = capsys.readouterr().out
    assert "--batch-size" in said
    assert "Examples of one global minibatch" in said
    with pytest.raises(Finished):
        load_config(["--version"])
    assert capsys.readouterr().out == f"distsgd {distsgd.__version__}\n"


@dataclass(frozen=True)
class Small:
    """A command."""

    name: str
    count: int = 1


def test_other_commands() -> None:
    assert parse_arguments(Small, ["--name", "a"], prog="small") == Small("a")
    with pytest.raises(ConfigurationError, match=r"--name.*\(see small --help\)"):
        parse_arguments(Small, [], prog="small")
    with pytest.raises(ConfigurationError, match=r"did you mean --count\?"):
        parse_arguments(Small, ["--name", "a", "--counts", "3"], prog="small")


def test_a_list_that_is_given_twice_would_lose_values() -> None:
    with pytest.raises(ConfigurationError, match="--freeze is given 2 times; give it once, with all its values"):
        load_config(["--freeze", "dense1.*", "--freeze", "dense2.*"])
    assert load_config(["--epochs", "1", "--epochs", "2"]).epochs == 2  # as in any command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "abc"], "--learning-rate: expected a number, got 'abc'"),
        (["--batch-size", "all"], "--batch-size: expected a whole number or full, got 'all'"),
        (["--model", "softmax", "--dropout", "0.5"], "model softmax has none"),
        (["--early-stopping", "patience", "--validate-every", "3"], "the patience rule says itself how often"),
    ],
)
def test_values_of_another_kind_and_options_without_effect(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        load_config(arguments)
