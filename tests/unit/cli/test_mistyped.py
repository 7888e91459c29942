"""Mistyped command lines, and the sentence that each one gets: what was expected, and what was probably meant."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from distsgd.cli import doctor, evaluate, launch, plot, predict
from distsgd.cli.command_line import Finished, load_config, parse_arguments
from distsgd.core.components import suggestion
from distsgd.core.errors import ConfigurationError
from distsgd.data.named.datasets import open_dataset
from distsgd.gpu.devices import choose_device
from distsgd.nn.initializers import parse_initializer
from distsgd.nn.layers import Activation
from distsgd.nn.models import ModelOptions, build_model
from distsgd.optim.schedules import build_schedule
from distsgd.run.build_trainer import monitored
from distsgd.run.config import TrainConfig, resolved

# The names of an optimizer, a schedule and so on are looked up where they are built, before anything is read or sent.
TRAIN = {
    "--epochz 3": "unknown option --epochz; did you mean --epochs?",
    "--epoch 3": "unknown option --epoch; did you mean --epochs?",
    "--num-epochs 3": "did you mean --epochs?",
    "--EPOCHS 3": "unknown option --EPOCHS; did you mean --epochs?",
    "--batchsize 3": "did you mean --batch-size?",
    "--batch 3": "did you mean --batch-size?",
    "--bs 3": "did you mean --batch-size?",
    "--batch_sise=3": "unknown option --batch_sise; did you mean --batch-size?",
    "--learn-rate 1": "did you mean --learning-rate?",
    "--lrate 1": "unknown option --lrate",
    "--optimiser sgd": "did you mean --optimizer?",
    "--optim sgd": "did you mean --optimizer?",
    "--wd 1": "did you mean --weight-decay?",
    "--eps 1e-8": "unknown option --eps; did you mean --epsilon?",
    "--beta 0.9": "unknown option --beta; did you mean --beta1 and --beta2?",
    "--betas 0.9 0.999": "unknown option --betas; did you mean --beta1 and --beta2?",
    "--data-set digits": "did you mean --dataset?",
    "--output runs/a": "did you mean --out?",
    "--outs runs/a": "did you mean --out?",
    "--hiden 3": "did you mean --hidden?",
    "--layers 3": "did you mean --hidden?",
    "--no-shufle": "did you mean --no-shuffle?",
    "--no-epochs": "unknown option --no-epochs",
    "--gpu": "did you mean --device?",
    "--drop-out 0.5": "did you mean --dropout?",
    "--early-stop patience": "did you mean --early-stopping?",
    "--logical-ranks 4": "the option --logical-ranks is now called --microbatches; give it by that name",
    "--qqq": "unknown option --qqq (see python -m distsgd.train --help)",
    "-e 3": "unknown option -e",
    "-lr 3": "unknown option -lr; did you mean --lr?",
    "-n 4": "-n is an option of mpirun: start ranks with mpirun -n 4 python -m distsgd.train …",
    "-np 4 --epochs 3": "start ranks with mpirun -n 4",
    "--np": "start ranks with mpirun -n R",
    "-n4": "-n is an option of mpirun: start ranks with mpirun -n 4 python -m distsgd.train …",
    "-np4 --epochs 3": "-np is an option of mpirun: start ranks with mpirun -n 4 python",
    "--n 4": "start ranks with mpirun -n 4 python",
    "--world-size 4": "--world-size: the number of ranks is an option of mpirun: mpirun -n 4 python",
    "--val data.npz": "unknown option --val; did you mean --validation?",
    "--precision fp16": "got 'fp16'; did you mean float16?",
    "--precision bf16": "got 'bf16'; did you mean bfloat16?",
    "--precision double": "precision: expected one of float32, tf32, bfloat16, float16, got 'double'; did you mean "
    "--dtype float64?",
    "--dtype double": "got 'double'; did you mean float64?",
    "--dtype fp16": "dtype: expected one of float32, float64, got 'fp16'; did you mean --precision float16?",
    "--dtype BF16": "got 'BF16'; did you mean --precision bfloat16?",
    "--early-stopping off": "early_stopping: expected one of epochs, patience, none, got 'off'; did you mean "
    "--early-stopping none?",
    "mnist": "unexpected argument 'mnist'",
    "--epochs 3 4": "unexpected argument '4'",
    "--": "unknown option --",
    "--epochs 3 --epochs 4": "--epochs is given 2 times; give it once",
    "--lr 1 --learning-rate 2": "--lr and --learning-rate set the same option; give one of them",
    "--batch-size 1 --batch_size=2": "--batch-size is given 2 times",
    "--shuffle --no-shuffle": "--shuffle and --no-shuffle set the same option",
    "--hidden 3 --hidden 4": "--hidden is given 2 times; give it once, with all its values",
    "--quiet --quiet": "--quiet is given 2 times",
    "--epochs": "--epochs: expected a value after it",
    "--lr": "--learning-rate/--lr: expected a value after it",
    "--max-time -1s": "max_time: expected a time such as 90s, 10m or 3h50m, got '-1s'",
    "--epochs --quiet": "--epochs: expected a value after it",
    "--epochs ten": "--epochs: expected a whole number, got 'ten'",
    "--epochs 1e3": "--epochs: expected a whole number, got '1e3'",
    "--epochs=": "--epochs: expected a whole number, got ''",
    "--lr fast": "--learning-rate: expected a number, got 'fast'",
    "--batch-size half": "--batch-size: expected a whole number or full, got 'half'",
    "--hidden 3,4": "--hidden: expected a whole number, got '3,4'",
    "--shuffle=no": "--shuffle",
    "--epochs -1": "epochs: expected a whole number, at least 0, got -1",
    "--lr -1e-3": "learning_rate: expected a finite number, at least 0, got -0.001",
    "--lr inf": "learning_rate: expected a finite number, at least 0, got inf",
    "--validation-fraction 1": "validation_fraction: expected a finite number, at least 0 and below 1, got 1.0",
    "--microbatches 0": "microbatches: expected a whole number, at least 1 and at most 65536, got 0",
    "--loss mse": "got 'mse'; did you mean squared-error?",
    "--loss cross_entropy": "did you mean softmax-cross-entropy?",
    "--loss crossentropy": "did you mean softmax-cross-entropy?",
    "--loss CrossEntropyLoss": "did you mean softmax-cross-entropy?",
    "--loss categorical_crossentropy": "did you mean softmax-cross-entropy?",
    "--loss sparse_categorical_crossentropy": "did you mean softmax-cross-entropy?",
    "--loss binary_crossentropy": "did you mean binary-cross-entropy?",
    "--loss BCE": "did you mean binary-cross-entropy?",
    "--dtype Float64": "dtype: expected one of float32, float64, got 'Float64'; did you mean float64?",
    "--on-non-finite abort": "on_non_finite: expected one of stop, skip, rollback, got 'abort'",
    "--optimizer Adam": "got 'Adam'; did you mean adam?",
    "--optimizer sdg": "did you mean sgd?",
    "--metric acuracy": "or file.py:function, got 'acuracy'; did you mean accuracy?",
    "--max-time 4:30": "max_time: expected a time such as 90s, 10m or 3h50m, got '4:30'",
    "--checkpoint-every 5minutes": "checkpoint_every: expected steps (500), epochs (1epoch) or a time (30s, 5m)",
    "epochs 3": "unexpected argument 'epochs'; did you mean --epochs?",
    "epochs=3": "unexpected argument 'epochs=3'; did you mean --epochs?",
    "help": "unexpected argument 'help'; did you mean --help?",
    "––epochs 3": "'––epochs', which begins with another dash than -; did you mean --epochs?",
    "—epochs 3": "'—epochs', which begins with another dash than -; did you mean --epochs?",
    "--lr −3": "got '−3'; begin a negative number with the plain -",
    "--hidden [30,20]": "got '[30,20]'; separate them with spaces: --hidden 30 20",
    "--no-shuffle=3": "--shuffle takes no value, got '3'; give --shuffle or --no-shuffle alone",
    "--plot true --epochs 3": "--plot takes no value, got 'true'; give --plot or --no-plot alone",
    "--ranks 4": "--ranks: the number of ranks is an option of mpirun: mpirun -n 4 python -m distsgd.train …",
    "--num_processes 4": "mpirun -n 4 python -m distsgd.train",
    "-o runs/a": "unknown option -o; did you mean --out?",
    "--resume yes": "expected auto, never, or the path of a checkpoint, got 'yes'; did you mean auto?",
    "--resume Never": "got 'Never'; did you mean never?",
    "--config none.toml": "could not read the configuration none.toml",
}  # fmt: skip


@pytest.mark.parametrize(("line", "sentence"), TRAIN.items())
def test_train(line: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolved(load_config(shlex.split(line)))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "line", "sentence"),
    [
        (evaluate.Options, "--dataset digits", "the following arguments are required: RUN"),
        (evaluate.Options, "runs/a --data digits", "unknown option --data; did you mean"),
        (evaluate.Options, "runs/a --dataset digits --top-k 0", "top_k: expected a whole number, at least 1, got 0"),
        (predict.Options, "runs/a x.npy", "the following arguments are required: --out"),
        (predict.Options, "runs/a x.npy -o a --out b", "-o and --out set the same option; give one of them"),
        (plot.Options, "runs/a --score acc", "score: expected one of accuracy, error, got 'acc'"),
        (plot.Options, "runs/a --only curve", "got 'curve'; did you mean curves?"),
        (plot.Options, "runs/a --loss_scale=lag", "got 'lag'; did you mean log?"),
        (launch.Options, "-n two", "--ranks: expected a whole number, got 'two'"),
        (launch.Options, "-n 2 -n 3", "-n is given 2 times; give it once"),
        (doctor.Options, "all", "unexpected argument 'all'"),
    ],
)  # fmt: skip
def test_other_commands(kind: type, line: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_arguments(kind, shlex.split(line), "a command")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epochz = 3", "unknown option 'epochz'; did you mean epochs?"),
        ("betas = [0.9, 0.999]", "unknown option 'betas'; did you mean beta1 and beta2?"),
        ("eps = 1e-8", "unknown option 'eps'; did you mean epsilon?"),
        ("bs = 3", "unknown option 'bs'; did you mean batch_size?"),
        ("[train]\nepochs = 3", "unknown table [train]; options stand in the file without a table"),
        ("lr = 0.1\nlearning_rate = 0.1", "learning_rate is given twice, under two names; give it once"),
        ("batch-size = 3\nbatch_size = 3", "batch_size is given twice, under two names; give it once"),
        ('epochs = "3"', "epochs: expected a whole number, got '3'"),
        ("epochs = 3\nepochs = 3", "is not a TOML file"),
    ],
)
def test_configuration_files(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_config(["--config", str(tmp_path / "run.toml")])
    assert str(tmp_path / "run.toml") in str(caught.value)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("float16", ("float32", "float64")),
        ("resnet50", ("mlp", "resnet20")),
        ("cifar-100", ("mnist", "cifar-10")),
        ("--", ("--lr", "--out")),
    ],
)
def test_another_number_is_no_near_name(name: str, names: tuple[str, ...]) -> None:
    assert suggestion(name, names) == ""


def test_help_is_plain_text_everywhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """argparse of Python 3.14 colours it where it can, and where it is told to."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(Finished):
        load_config(["--help"])
    assert "\x1b" not in capsys.readouterr().out


def test_names_that_are_looked_up_later() -> None:
    with pytest.raises(ConfigurationError, match=r"got 'ReLU'; did you mean relu\?"):
        Activation("ReLU")
    with pytest.raises(ConfigurationError, match=r"got 'xavier'; did you mean glorot\?"):
        parse_initializer("xavier")
    with pytest.raises(ConfigurationError, match=r"got 'Cosine'; did you mean cosine\?"):
        build_schedule("Cosine", epochs=3)
    with pytest.raises(ConfigurationError, match=r"got 'LeNet'; did you mean lenet\?"):
        build_model("LeNet", (4,), 2, ModelOptions())
    with pytest.raises(Exception, match=r"got 'cifar10'; did you mean cifar-10\?"):
        open_dataset("cifar10")
    with pytest.raises(ConfigurationError, match=r"got 'cuda:1'; did you mean gpu:1\?"):
        choose_device("cuda:1")
    with pytest.raises(ConfigurationError, match=r"got 'GPU:0'; did you mean gpu:0\?"):
        choose_device("GPU:0")
    with pytest.raises(ConfigurationError, match=r"got 'loss'; did you mean validation_loss\?"):
        monitored(TrainConfig(target="loss=0.1"), ())
    with pytest.raises(ConfigurationError, match=r"got 'loss'; did you mean validation_loss\?"):
        monitored(TrainConfig(monitor="loss"), ())


def test_what_is_right_is_taken() -> None:
    given = load_config(shlex.split("--min-delta 1e-3 --hidden --max-steps None --max-time 4h30 --checkpoint_every=5m"))
    assert given == TrainConfig(min_delta=1e-3, hidden=(), max_time="4h30", checkpoint_every="5m")
