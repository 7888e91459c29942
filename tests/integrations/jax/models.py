"""Small models of every kind that JaxModel promises the same bits for, each with its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distsgd.integrations.jax import JaxModel

EXAMPLES, CLASSES, WORDS, LENGTH, NODES = 150, 3, 20, 7, 6


def _images() -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    y = rng.integers(0, CLASSES, EXAMPLES)
    x = rng.random((EXAMPLES, 8, 8, 2), np.float32)
    x[np.arange(EXAMPLES), 0, y, 0] += 1
    return x, y


def _sentences() -> tuple[Any, Any]:
    rng = np.random.default_rng(2)
    ids = rng.integers(0, WORDS, (EXAMPLES, LENGTH)).astype(np.int32)
    return ids, (ids == 1).sum(1) % CLASSES


class _Values:
    """Initial values of layers, in the order in which they are asked for."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(3)

    def weight(self, *shape: int) -> Any:
        return (self.rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)

    def dense(self, inputs: int, outputs: int) -> dict[str, Any]:
        return {"w": self.weight(inputs, outputs), "b": jnp.zeros(outputs)}


def _dense(layer: Any, x: Any) -> Any:
    return x @ layer["w"] + layer["b"]


def _dropout(key: Any, x: Any) -> Any:
    return jnp.where(jax.random.bernoulli(key, 0.8, x.shape), x / 0.8, 0.0)


def _convolved(w: Any, x: Any) -> Any:
    return jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _mlp() -> tuple[JaxModel, Any, Any]:
    values = _Values()
    params = [values.dense(128, 32), (values.dense(32, CLASSES), None, 7)]

    def apply(params: Any, x: Any) -> Any:
        return _dense(params[1][0], jnp.tanh(_dense(params[0], x.reshape(len(x), -1))))

    return JaxModel(apply, params, "softmax-cross-entropy"), *_images()


def _convolution() -> tuple[JaxModel, Any, Any]:
    values = _Values()
    params = {"first": values.weight(3, 3, 2, 8), "second": values.weight(3, 3, 8, 8), "out": values.dense(8, CLASSES)}

    def apply(params: Any, x: Any, key: Any, *, train: bool) -> Any:
        x = jax.nn.relu(_convolved(params["first"], x))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = jax.nn.relu(_convolved(params["second"], x)).reshape(len(x), -1)
        return _dense(params["out"], _dropout(key, x) if train else x)

    return JaxModel(apply, params, "softmax-cross-entropy"), *_images()


def _normalized() -> tuple[JaxModel, Any, Any]:
    values = _Values()
    params = {"hidden": values.dense(128, 16), "scale": jnp.ones(16), "out": values.dense(16, CLASSES)}
    state = {"mean": jnp.zeros(16), "variance": jnp.ones(16), "steps": jnp.zeros((), jnp.int32)}

    def apply(params: Any, state: Any, x: Any, training: bool) -> Any:
        x = _dense(params["hidden"], x.reshape(len(x), -1))
        mean, variance = (x.mean(0), x.var(0)) if training else (state["mean"], state["variance"])
        after = {key: 0.9 * state[key] + 0.1 * one for key, one in (("mean", mean), ("variance", variance))}
        x = params["scale"] * (x - mean) / jnp.sqrt(variance + 1e-5)
        return _dense(params["out"], jax.nn.relu(x)), {**after, "steps": state["steps"] + 1}

    return JaxModel(apply, params, "softmax-cross-entropy", state=state), *_images()


def _gru() -> tuple[JaxModel, Any, Any]:
    values = _Values()
    params = {"words": values.weight(WORDS, 8), "gates": values.dense(20, 24), "new": values.dense(20, 12),
              "out": values.dense(12, CLASSES)}  # fmt: skip

    def apply(params: Any, ids: Any) -> Any:
        def cell(h: Any, x: Any) -> tuple[Any, None]:
            update, reset = jnp.split(jax.nn.sigmoid(_dense(params["gates"], jnp.concatenate([h, x], 1))), 2, 1)
            new = jnp.tanh(_dense(params["new"], jnp.concatenate([reset * h, x], 1)))
            return update * h + (1 - update) * new, None

        words = params["words"][ids].transpose(1, 0, 2)
        return _dense(params["out"], jax.lax.scan(cell, jnp.zeros((len(ids), 12)), words)[0])

    return JaxModel(apply, params, "softmax-cross-entropy"), *_sentences()


def _transformer() -> tuple[JaxModel, Any, Any]:
    values = _Values()
    ids, y = _sentences()
    layers = [{"qkv": values.dense(16, 48), "out": values.dense(16, 16), "up": values.dense(16, 32),
               "down": values.dense(32, 16)} for _ in range(2)]  # fmt: skip
    params = {"words": values.weight(WORDS, 16), "places": values.weight(LENGTH, 16), "layers": layers,
              "out": values.dense(16, CLASSES)}  # fmt: skip

    def normalized(x: Any) -> Any:
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def attention(layer: Any, x: Any, mask: Any) -> Any:
        q, k, v = jnp.split(_dense(layer["qkv"], x).reshape(*x.shape[:2], 4, 12), 3, -1)
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / 2.0 + jnp.where(mask, 0.0, -1e9)[:, None, None]
        return _dense(layer["out"], jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), v).reshape(x.shape))

    def apply(params: Any, ids: Any, mask: Any, rng: Any = None, training: bool = False) -> Any:
        x = params["words"][ids] + params["places"]
        for place, layer in enumerate(params["layers"]):
            found = attention(layer, normalized(x), mask)
            x = x + (_dropout(jax.random.fold_in(rng, place), found) if training else found)
            x = x + _dense(layer["down"], jax.nn.gelu(_dense(layer["up"], normalized(x))))
        return _dense(params["out"], x.mean(1))

    mask = np.arange(LENGTH) < 2 + np.arange(EXAMPLES)[:, None] % (LENGTH - 2)
    return JaxModel(apply, params, "softmax-cross-entropy"), {"ids": ids, "mask": mask}, y


def _tied() -> tuple[JaxModel, Any, Any]:
    """Predicts each next token with the matrix that reads them; targets (n, tokens)."""
    values = _Values()
    ids = _sentences()[0]

    def apply(params: Any, ids: Any) -> Any:
        return jnp.tanh(params["words"][ids] @ params["inside"]) @ params["words"].T

    def loss(outputs: Any, y: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(outputs), y[..., None], -1)[..., 0].mean(1)

    return (
        JaxModel(apply, {"words": values.weight(WORDS, 8), "inside": values.weight(8, 8)}, loss),
        ids[:, :-1],
        ids[:, 1:],
    )


def _graphs() -> tuple[JaxModel, Any, Any]:
    """Each example is a graph: features of its nodes and a list of edges, whose messages are added up at their ends."""
    values, rng = _Values(), np.random.default_rng(4)
    edges = rng.integers(0, NODES, (EXAMPLES, 9, 2)).astype(np.int32)
    x = {"nodes": rng.normal(size=(EXAMPLES, NODES, 5)).astype(np.float32), "edges": edges}
    params = {"in": values.dense(5, 12), "rounds": [values.dense(12, 12) for _ in range(2)], "out": values.dense(12, 1)}

    def one(params: Any, nodes: Any, edges: Any) -> Any:
        h = jnp.tanh(_dense(params["in"], nodes))
        for layer in params["rounds"]:
            messages = jax.nn.relu(_dense(layer, h))[edges[:, 0]]
            h = h + jax.ops.segment_sum(messages, edges[:, 1], num_segments=NODES)
        return _dense(params["out"], h.mean(0))

    def apply(params: Any, x: Any) -> Any:
        return jax.vmap(one, (None, 0, 0))(params, x["nodes"], x["edges"])

    return JaxModel(apply, params, "squared-error"), x, x["nodes"].sum((1, 2), dtype=np.float32)[:, None]


def _linen() -> tuple[JaxModel, Any, Any]:
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = nn.Dense(16)(x.reshape(len(x), -1))
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            return nn.Dense(CLASSES)(nn.Dropout(0.2, deterministic=not train)(x))

    x, y = _images()
    net = Net()
    return JaxModel(net.apply, net.init(jax.random.key(0), x[:1], False), "softmax-cross-entropy"), x, y


def _haiku() -> tuple[JaxModel, Any, Any]:
    import haiku

    def forward(x: Any) -> Any:
        x = jax.nn.relu(haiku.Linear(16)(haiku.Flatten()(x)))
        return haiku.Linear(CLASSES)(haiku.dropout(haiku.next_rng_key(), 0.2, x))

    x, y = _images()
    net = haiku.transform(forward)
    return JaxModel(net.apply, net.init(jax.random.key(0), x[:1]), "softmax-cross-entropy"), x, y


def _equinox() -> tuple[JaxModel, Any, Any]:
    import equinox

    x, y = _images()
    net = equinox.nn.MLP(128, CLASSES, 16, 1, key=jax.random.key(0))
    return JaxModel(lambda net, x: jax.vmap(net)(x.reshape(len(x), -1)), net, "softmax-cross-entropy"), x, y


MODELS: Mapping[str, Callable[[], tuple[JaxModel, Any, Any]]] = {
    "mlp": _mlp,
    "convolution, dropout": _convolution,
    "batch norm": _normalized,
    "gru": _gru,
    "transformer encoder": _transformer,
    "tied weights": _tied,
    "graphs": _graphs,
}
"""(model, x, y) by kind."""
LIBRARIES: Mapping[str, Callable[[], tuple[JaxModel, Any, Any]]] = {
    "flax": _linen, "haiku": _haiku, "equinox": _equinox,
}  # fmt: skip
"""Models of libraries, which may be missing."""


def build(name: str) -> tuple[JaxModel, Any, Any]:
    """The same model and data in each process."""
    return {**MODELS, **LIBRARIES}[name]()


def held(model: JaxModel) -> list[Any]:
    """All arrays that the model holds."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves((model.params, model.state))]
