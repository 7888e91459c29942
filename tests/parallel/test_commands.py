"""evaluate, predict, fine-tuning, and a user's own code: the same on several ranks as on one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from distsgd.data.named.datasets import open_dataset, read_array
from tests.parallel.launch import module, records, result, run_command, summary, train

OWN = '''
import json
import os

import numpy as np

import distsgd


def model(shape, outputs):
    """A two-layer network of the user's own, over views of the flat buffers, without any layer."""
    features = int(np.prod(shape))
    rng = np.random.default_rng(1)
    return distsgd.FunctionObjective(
        function,
        {"w1": rng.normal(0, 0.1, (20, features)), "b1": np.zeros((20, 1)), "w2": np.zeros((outputs, 20))},
        outputs=lambda params, batch: params["w2"] @ hidden(params, batch),
    )


def hidden(params, batch):
    return np.tanh(params["w1"] @ batch.x + params["b1"])


def function(params, grads, batch):
    h = hidden(params, batch)
    z = params["w2"] @ h
    p = np.exp(z - z.max(axis=0))
    p /= p.sum(axis=0)
    rows = (batch.y, np.arange(len(batch)))
    loss = -np.log(p[rows]).sum(dtype=np.float64)
    p[rows] -= 1
    grads["w2"][...] = p @ h.T
    dh = (params["w2"].T @ p) * (1 - np.square(h))
    grads["w1"][...] = dh @ batch.x.T
    grads["b1"][...] = dh.sum(axis=1, keepdims=True)
    return float(loss), len(batch)


def margin(outputs, y):
    """How far the true class is above the mean."""
    return outputs[y, np.arange(outputs.shape[1])] - outputs.mean(axis=0)


class Watch(distsgd.Callback):
    """Writes what it receives, and ends the run after two records."""

    def on_start(self, run):
        self.run, self.reported, self.steps = run, [], 0

    def on_step(self, step, loss, examples):
        self.steps += 1

    def on_record(self, record):
        self.reported.append([record["step"], record["train_loss"]])
        if len(self.reported) == 2:
            self.run.stop()

    def on_end(self, summary):
        text = json.dumps({"reported": self.reported, "steps": self.steps, "status": summary["status"]})
        with open(os.environ["TEST_WATCH"], "x") as file:
            file.write(text)
'''
QUICK = ("--hidden", 24, "--batch-size", 200, "--epochs", 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the digits, with batch normalization, so that running statistics matter."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(2, out, *QUICK, "--batch-norm")
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def output(ranks: int | None, name: str, folder: Path, *arguments: object) -> str:
    done = module(ranks, name, folder, *arguments)
    assert done.status == 0, done.text
    assert done.err == ""
    return done.out


def test_evaluate(trained: Path, tmp_path: Path) -> None:
    texts = {output(ranks, "evaluate", tmp_path, trained, "--dataset", "digits") for ranks in (None, 2)}
    (text,) = texts
    scores = json.loads(text)
    assert (scores["dataset"], scores["split"], scores["examples"]) == ("digits", "validation", 180)
    assert np.sum(scores["confusion_matrix"]) == 180
    assert scores["accuracy"] == np.trace(scores["confusion_matrix"]) / 180
    single = trained / "checkpoints" / "best.safetensors"
    assert output(None, "evaluate", tmp_path, single, "--dataset", "digits") == text


def test_evaluate_with_other_metrics(trained: Path, tmp_path: Path) -> None:
    scores = json.loads(output(None, "evaluate", tmp_path, trained, "--dataset", "digits", "--top-k", 3))
    assert scores["accuracy"] < scores["top_3_accuracy"] <= 1


@pytest.mark.long
def test_evaluate_with_sample_weights(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((300, 5)).astype(np.float32)
    parts = {"train": slice(0, 200), "validation": slice(200, None)}
    arrays = {f"x_{name}": x[part] for name, part in parts.items()}
    arrays |= {f"y_{name}": (x[part, 0] > 0).astype(int) for name, part in parts.items()}
    arrays |= {f"weights_{name}": np.abs(x[part, 1]) for name, part in parts.items()}
    np.savez(tmp_path / "data.npz", **arrays)
    train(None, tmp_path / "run", *QUICK, "--dataset", "data.npz")
    text = output(2, "evaluate", tmp_path, "run", "--dataset", "data.npz", "--split", "validation")
    assert json.loads(text)["loss"] == summary(tmp_path / "run")["validation_loss"]


def test_evaluate_refuses_other_data(trained: Path, tmp_path: Path) -> None:
    done = module(2, "evaluate", tmp_path, trained, "--dataset", "moons")
    assert set(done.statuses.values()) == {2}
    assert "64 numbers each" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", [("evaluate", "--dataset", "last.npz"), ("predict", "last.npz", "-o", "out.npz")])
def test_images_with_their_channels_last_are_refused(tmp_path: Path, command: tuple[str, ...]) -> None:
    x, y = np.ones((40, 3, 4, 5), np.float32), np.arange(40) % 3
    np.savez(tmp_path / "first.npz", x=x, y=y)
    np.savez(tmp_path / "last.npz", x=x.transpose(0, 2, 3, 1), y=y)
    train(None, tmp_path / "run", "--dataset", "first.npz", "--model", "conv 2 2x2, dense", "--epochs", "1")
    done = module(None, command[0], tmp_path, "run", *command[1:])
    assert done.status == 2
    assert "was trained on examples of shape (3, 4, 5), the data has (4, 5, 3); put the axes" in done.err


@pytest.mark.long
def test_training_on_images_with_their_channels_last_is_doubted(tmp_path: Path) -> None:
    x, y = np.ones((40, 8, 6, 3), np.float32), np.arange(40) % 3
    np.savez(tmp_path / "last.npz", x=x, y=y)
    np.savez(tmp_path / "first.npz", x=x.transpose(0, 3, 1, 2), y=y)
    options = ("--model", "conv 2 2x2, dense", "--epochs", "1")
    texts = {
        name: train(None, tmp_path / name, "--dataset", f"{name}.npz", *options).text for name in ("first", "last")
    }
    printed = "note: examples of shape (8, 6, 3) are images of 8 channels, 6 by 3; if their channels come last"
    assert [text.count(printed) for text in texts.values()] == [0, 1]


@pytest.mark.long
@pytest.mark.parametrize("scale", [None, 255])
def test_inputs_of_another_kind_are_doubted(tmp_path: Path, scale: int | None) -> None:
    """A model of bytes divides what it is given, floats between 0 and 1 too: a line says so."""
    x, y = np.random.default_rng(0).integers(0, 256, (60, 4)).astype(np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "bytes.npz", x=x, y=y)
    np.savez(tmp_path / "floats.npz", x=(x / 255).astype(np.float32), y=y)
    options = () if scale is None else ("--scale", scale)
    train(None, tmp_path / "run", "--dataset", "bytes.npz", "--hidden", 4, "--epochs", 1, *options)
    commands = {
        "evaluate": lambda name: ("run", "--dataset", name),
        "predict": lambda name: ("run", name, "-o", "out.npz"),
    }
    for command, arguments in commands.items():
        done = module(2, command, tmp_path, *arguments("floats.npz"))
        assert done.status == 0
        assert done.err.count("warning: the inputs lie between 0 and 1, those of training lay between 0 and 255") == 1
        assert module(2, command, tmp_path, *arguments("bytes.npz")).err == ""


def test_predict(trained: Path, tmp_path: Path) -> None:
    x = read_array(open_dataset("digits").arrays["x_train"])
    labels = read_array(open_dataset("digits").arrays["y_train"])
    np.savez(tmp_path / "in.npz", x=x)
    np.save(tmp_path / "in.npy", x)
    for ranks, source, out in ((None, "in.npy", "a"), (2, "in.npz", "b.npz")):
        output(ranks, "predict", tmp_path, trained, source, "-o", out)
    found = [np.load(tmp_path / f"{name}.npz") for name in "ab"]
    assert all(found[1][key].tobytes() == found[0][key].tobytes() for key in ("predictions", "labels"))
    predictions = found[0]["predictions"]
    assert predictions.shape == (1797, 10)
    np.testing.assert_allclose(predictions.sum(axis=1), 1, rtol=1e-5)
    assert (predictions.argmax(axis=1) == found[0]["labels"]).all()
    scores = json.loads(output(None, "evaluate", tmp_path, trained, "--dataset", "digits", "--split", "all"))
    assert np.mean(found[0]["labels"] == labels) == scores["accuracy"]


@pytest.mark.long
def test_predict_few_examples_on_many_ranks(trained: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.full((1, 64), 8.0, np.float32))
    output(2, "predict", tmp_path, trained, "one.npy", "-o", "one.npz")
    assert np.load(tmp_path / "one.npz")["predictions"].shape == (1, 10)
    np.save(tmp_path / "none.npy", np.empty((0, 64), np.float32))
    output(2, "predict", tmp_path, trained, "none.npy", "-o", "none.npz")
    found = np.load(tmp_path / "none.npz")
    assert (found["predictions"].shape, found["labels"].shape) == ((0, 10), (0,))


def test_fine_tuning(trained: Path, tmp_path: Path) -> None:
    options = ("--init-from", trained, *QUICK, "--batch-norm", "--lr", 0.001, "--validation-fraction", 0)
    for ranks in (None, 2):
        train(ranks, tmp_path / f"run-{ranks}", *options)
    assert result(tmp_path / "run-None") == result(tmp_path / "run-2")
    fresh = records(trained)
    assert records(tmp_path / "run-2")[0]["train_loss"] < fresh[0]["train_loss"] / 2


@pytest.mark.long
def test_fine_tuning_without_a_step_is_the_model_itself(trained: Path, tmp_path: Path) -> None:
    train(2, tmp_path / "run", *QUICK, "--batch-norm", "--init-from", trained, "--max-steps", 0)
    assert summary(tmp_path / "run")["parameters_sha256"] == summary(trained)["parameters_sha256"]


@pytest.mark.long
def test_fine_tuning_another_model_is_refused(trained: Path, tmp_path: Path) -> None:
    done = train(2, tmp_path / "run", "--hidden", 25, "--batch-norm", "--init-from", trained, status=1)
    assert "dense1.weight has shape (24, 64)" in done.err
    assert done.err.count("\n") == 1


def test_own_model(folder: Path) -> None:
    own = ("--model", "own.py:model", "--batch-size", 100, "--epochs", 6, "--lr", 0.05)
    for ranks in (None, 2):
        train(ranks, folder / f"run-{ranks}", *own)
    assert result(folder / "run-None") == result(folder / "run-2")
    assert summary(folder / "run-2")["validation_accuracy"] > 0.8
    run = folder / "run-2"
    texts = {
        output(ranks, "evaluate", folder, run, "--dataset", "digits", "--model", "own.py:model") for ranks in (None, 2)
    }
    assert len(texts) == 1
    refused = module(None, "evaluate", folder, run, "--dataset", "digits")
    assert refused.status == 2
    assert "--model own.py:model" in refused.err
    checked = module(None, "train", folder, *own, "--check-gradient")
    assert checked.status == 0, checked.text
    assert "gradient right" in checked.out


@pytest.mark.long
def test_own_metric(folder: Path) -> None:
    own = (*QUICK, "--metric", "own.py:margin")
    for ranks in (1, 2):
        train(ranks, folder / f"run-{ranks}", *own)
    assert result(folder / "run-1") == result(folder / "run-2")
    margins = [record["validation_margin"] for record in records(folder / "run-1")]
    assert margins == sorted(margins)
    assert summary(folder / "run-1")["validation_margin"] == margins[-1]


@pytest.mark.long
def test_own_callback(folder: Path) -> None:
    for ranks in (1, 2):
        watch = {"TEST_WATCH": str(folder / f"watch-{ranks}")}
        more = (*QUICK, "--epochs", 50, "--callback", "own.py:Watch")
        train(ranks, folder / f"run-{ranks}", *more, status=75, extra=watch)
    reported = json.loads((folder / "watch-1").read_text())
    assert reported == json.loads((folder / "watch-2").read_text())
    steps = [[record["step"], record["train_loss"]] for record in records(folder / "run-1")]
    assert reported == {"reported": steps, "steps": 19, "status": "stopped"}


@pytest.mark.long
def test_configuration_reproduces_a_run(folder: Path) -> None:
    options = (*QUICK, "--optimizer", "rmsprop", "--l1", 1e-5, "--metric", "own.py:margin", "--no-shuffle")
    train(1, folder / "first", *options)
    text = (folder / "first" / "config.toml").read_text()
    assert "resume" not in text
    assert "\nout =" not in text
    train(3, folder / "second", "--config", "first/config.toml", "--metric", "own.py:margin")
    assert result(folder / "second") == result(folder / "first")
    assert (folder / "second" / "config.toml").read_text() == text


@pytest.mark.long
def test_name_of_the_folder(folder: Path) -> None:
    """Made from what decides the bits: not from how long, or on how many ranks."""
    for ranks, epochs in ((None, 1), (2, 2)):
        assert module(ranks, "train", folder, "--hidden", 8, "--epochs", epochs, "--quiet").status == 0
    (run,) = (folder / "runs").iterdir()
    assert run.name.startswith("digits-mlp-")
    assert summary(run)["epochs"] == 2


def test_fit_from_a_script(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os\nimport numpy as np\nimport distsgd\n"
        "x = np.random.default_rng(0).normal(size=(500, 6)).astype('f4')\n"
        "done = distsgd.fit('mlp', (x, x[:, :2].sum(1)), optimizer=distsgd.Adam(1e-2), epochs=3, batch_size=60,\n"
        "                   hidden=(16,))\n"
        "with open(f'told-{os.getpid()}', 'w') as file:\n"
        "    print(done.summary['parameters_sha256'], done.predict(x[:3]).shape, file=file)\n"
    )
    for ranks in (None, 2):
        done = run_command(ranks, [sys.executable, "script.py"], tmp_path)
        assert (done.status, done.text) == (0, "")
    texts = [path.read_text() for path in tmp_path.glob("told-*")]
    assert texts == [texts[0]] * 3
    assert texts[0].endswith("(3, 1)\n")
    assert not (tmp_path / "runs").exists()
