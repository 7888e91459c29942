"""Only text that the command line or the calling program gives is ever imported; text from a file never is."""

from __future__ import annotations

import ast
import copy
import pickle
import py_compile
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import distsgd
from distsgd.cli import command_line, doctor, evaluate, launch, plot, predict
from distsgd.cli.command_line import load_config, parse_arguments
from distsgd.core.errors import ConfigurationError
from distsgd.core.options import option, options_of
from distsgd.run.config import TrainConfig, resolved
from distsgd.run.config_file import from_mapping, read_toml, to_toml
from distsgd.run.user_code import CodeName, import_function, names_code

ROOT = Path(distsgd.__file__).parent
X, Y = np.random.default_rng(0).normal(size=(60, 4)).astype("f4"), np.arange(60) % 2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with evil.py, which leaves a file `ran` where anything imports it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\ndef f(*a): return 0\nglobals()['not a name'] = f\n")
    (tmp_path / "notes.txt").symlink_to("evil.py")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.py:f", True), ("/x/a b.py:f_1", True), ("mlp", False), ("a.py", False), ("a.py:1f", False), ("a:f", False),
        ("a.py:not a name", False), ("a.py:", False), ("notes.txt:f", False), ("a.PY:f", False), ("a.py:f.g", False),
        ("network3: conv 20 5x5", False), ("", False), (":f", False), ("a.py :f", False),
    ],
)  # fmt: skip
def test_what_names_code(text: str, expected: bool) -> None:
    assert names_code(text) is expected
    if not expected:
        with pytest.raises(ConfigurationError, match=r"expected file\.py:function"):
            CodeName(text)


@pytest.mark.parametrize("text", ["evil.py:f", "evil.py:not a name", "notes.txt:f", "none.py:f", "evil.py"])
def test_the_importer_takes_no_plain_text(folder: Path, text: str) -> None:
    for name in ("model", "metric", "callback"):
        with pytest.raises(ConfigurationError, match=f"{name}: .* runs only where the command line"):
            import_function(text, name)
    assert not (folder / "ran").exists()


def test_a_name_stays_one_until_it_is_written(tmp_path: Path) -> None:
    config = load_config(["--model", "a.py:f", "--metric", "b.py:g", "accuracy"])
    copies = [replace(config, epochs=3), resolved(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))]
    for same in copies:
        assert (type(same.model), type(same.metric[0]), type(same.metric[1])) == (CodeName, CodeName, str)
    assert asdict(config)["model"] == "a.py:f"
    (tmp_path / "config.toml").write_text(to_toml(config))
    back = read_toml(tmp_path / "config.toml")
    assert (back.model, back.metric) == ("a.py:f", ("b.py:g", "accuracy"))
    assert type(back.model) is type(back.metric[0]) is type(from_mapping({"model": "a.py:f"}, "a file").model) is str


def test_two_modules_alone_say_what_may_run() -> None:
    """Who else made a CodeName would open a door."""
    calls: dict[str, set[str]] = {"allow_code": set(), "CodeName": set()}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in calls:
                calls[getattr(node.func, "id", getattr(node.func, "attr", ""))].add(path.name)
    assert calls == {"allow_code": {"command_line.py", "fit_arguments.py"}, "CodeName": {"user_code.py"}}


@dataclass(frozen=True)
class Options:
    """A command."""

    run: str = option("", "A folder.")
    model: str | None = option(None, "A model.", code=True)
    metric: tuple[str, ...] = option((), "Metrics.", code=True)


def test_every_command_may_name_code() -> None:
    options = parse_arguments(
        Options, ["--model", "a.py:f", "--run", "b.py:g", "--metric", "c.py:h", "f1"], "a command"
    )
    assert (type(options.model), type(options.run)) == (CodeName, str)
    assert [type(name) for name in options.metric] == [CodeName, str]
    assert parse_arguments(Options, ["--run", "a"], "a command") == Options(run="a")


def test_every_option_that_may_name_code_says_so() -> None:
    commands = (command_line.TrainOptions, evaluate.Options, predict.Options, plot.Options, launch.Options)
    for kind in (*commands, doctor.Options):
        assert {name for name, one in options_of(kind).items() if one.code} == {
            name for name in options_of(kind) if name in ("model", "metric", "callback")
        }


def test_fit_takes_the_programs_own_metric(folder: Path) -> None:
    (folder / "mine.py").write_text("def half(outputs, targets): return 0.5 + 0.0 * targets\n")
    result = distsgd.fit("softmax", (X, Y), epochs=1, metric="mine.py:half", validation_fraction=0.1)
    assert result.summary["validation_half"] == 0.5
    for options, reported in (
        ({"metric": "evil.py:not a name"}, "metric: expected one of"),
        ({"metric": "notes.txt:f"}, "metric: expected one of"),
        ({"callback": "evil.py:f"}, "unknown option 'callback'"),
        ({"model": "evil.py:f"}, r"evil\.py:f is for the command line; import that function"),
    ):
        with pytest.raises(ConfigurationError, match=reported):
            distsgd.fit(**{"model": "softmax", "x": (X, Y), **options})  # type: ignore[arg-type]
    assert not (folder / "ran").exists()


def test_import_function(tmp_path: Path) -> None:
    (tmp_path / "own_code.py").write_text("import dataclasses\n\n@dataclasses.dataclass\nclass A:\n    x: 'int' = 3\n")
    path = str(tmp_path / "own_code.py")
    assert import_function(CodeName(f"{path}:A"), "model")().x == 3
    assert import_function(CodeName(f"{path}:A"), "model") is import_function(CodeName(f"{path}:A"), "metric")
    with pytest.raises(ConfigurationError, match=r"model: .* has no B"):
        import_function(CodeName(f"{path}:B"), "model")
    with pytest.raises(ConfigurationError, match="metric: there is no readable file"):
        import_function(CodeName(f"{path}x.py:A"), "metric")


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(f"def which():\n    return '{folder}'\n")
    names = [CodeName(f"{tmp_path}/{folder}/same.py:which") for folder in ("one", "two")]
    assert [import_function(name, "model")() for name in names] == ["one", "two"]


def test_a_link_that_the_user_names_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "beside_it.py").write_text("value = 7\n")
    (tmp_path / "real" / "text.txt").write_text("from beside_it import value\ndef f(): return value\n")
    (tmp_path / "link.py").symlink_to("real/text.txt")
    assert import_function(CodeName(f"{tmp_path}/link.py:f"), "model")() == 7


def test_the_source_runs_and_not_a_compiled_copy(tmp_path: Path) -> None:
    """A folder from elsewhere may bring one that says something else than the file that the user has read."""
    path = tmp_path / "source.py"
    path.write_text("def f(): return 'evil'\n")
    py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    path.write_text("def f(): return 'good'\n")
    assert import_function(CodeName(f"{path}:f"), "model")() == "good"


def test_a_file_that_fails_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "failing_code.py").write_text("1 / 0\n")
    name, before = CodeName(f"{tmp_path}/failing_code.py:f"), list(sys.path)
    with pytest.raises(ZeroDivisionError):
        import_function(name, "model")
    assert sys.path == before
    assert "failing_code" not in sys.modules
    (tmp_path / "failing_code.py").write_text("def f(): return 1\n")
    assert import_function(name, "model")() == 1
    assert sys.path == [str(tmp_path), *before]


def test_a_configuration_of_code_that_was_not_named_runs_nothing(folder: Path) -> None:
    """As if a command forgot to ask: the trainer's own builders refuse what comes from a file."""
    from distsgd.data.examples import Signature
    from distsgd.parallel.serial import SerialCommunicator
    from distsgd.run.build import build_objective, build_task, user_code
    from distsgd.run.build_metrics import build_metrics

    alone, signature = SerialCommunicator(), Signature((4,), (), 2)
    config = from_mapping({"model": "evil.py:f", "metric": ["evil.py:f"], "callback": ["evil.py:f"]}, "a file")
    with pytest.raises(ConfigurationError, match="model: expected one of"):
        build_objective(alone, config, signature)
    objective = build_objective(alone, TrainConfig(), signature)
    with pytest.raises(ConfigurationError, match=r"metric: .* runs only where"):
        build_metrics(alone, config, signature, objective, build_task(TrainConfig(), signature, objective))
    with pytest.raises(ConfigurationError, match=r"callback: .* runs only where"):
        user_code(alone, config.callback[0], "callback")
    assert not (folder / "ran").exists()
