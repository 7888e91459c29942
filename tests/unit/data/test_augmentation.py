"""Moved and mirrored images are those of a plain loop, and depend on seed, epoch and example alone."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Layout, Views
from distsgd.core.random import normal, random_words, uniform
from distsgd.data.augmentation import ONE_PIXEL, Augmentation, example_words, keyed_words, move, parse_augmentation
from distsgd.data.examples import Examples
from distsgd.data.loader import Loader
from distsgd.data.sampling import ORDER_BY_SORT
from distsgd.nn.layers import Dense
from distsgd.nn.losses import SoftmaxCrossEntropy
from distsgd.nn.objective import Supervised
from distsgd.run.config import TrainConfig, resolved
from distsgd.run.fit import fit

NOTHING = Layout.of({}).views(np.zeros(0))


def bytes_of(shape: tuple[int, ...], name: str = "pixels") -> Array:
    return (uniform(shape, 1, name) * 255).astype(np.uint8) + np.uint8(1)  # no 0, which is what moves in


def moved_pixel_by_pixel(image: Array, down: int, right: int) -> Array:
    """Zeros, and each pixel that stays inside at its new place."""
    height, width = image.shape[-2:]
    out = np.zeros_like(image)
    for row, column in product(range(height), range(width)):
        if 0 <= row + down < height and 0 <= column + right < width:
            out[..., row + down, column + right] = image[..., row, column]
    return out


@given(st.data())
def test_moved_as_a_loop_moves(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(2, 7)), data.draw(st.integers(2, 7))
    channels = data.draw(st.sampled_from([(), (1,), (3,)]))
    dtype = data.draw(st.sampled_from(["u1", "i2", "f4", ">f4", "f8"]))
    count = data.draw(st.integers(0, 5))
    reach = data.draw(st.integers(1, min(height, width) - 1))
    images = bytes_of((count, *channels, height, width)).astype(dtype)
    offsets = st.lists(st.integers(-reach, reach), min_size=count, max_size=count)
    down, right = (np.array(data.draw(offsets), dtype=np.int64) for _ in "dr")
    found = images.copy()
    move(found, down, right, reach)
    for image, result, *offset in zip(images, found, down, right, strict=True):
        np.testing.assert_array_equal(result, moved_pixel_by_pixel(image, *offset), strict=True)


def test_every_offset_of_real_sizes_and_several_blocks() -> None:
    for shape, reach, count in (((28, 28), 2, 700), ((3, 32, 32), 4, 162)):
        images = bytes_of((count, *shape))
        offsets = np.array(list(product(range(-reach, reach + 1), repeat=2)))
        down, right = offsets[np.arange(count) % len(offsets)].T
        found = images.copy()
        move(found, down, right, reach)
        pad = [(0, 0)] * len(shape[:-2]) + [(reach, reach)] * 2
        for image, result, a, b in zip(images, found, down, right, strict=True):
            padded = np.pad(image, pad)
            top, left = reach - a, reach - b
            np.testing.assert_array_equal(result, padded[..., top : top + shape[-2], left : left + shape[-1]])


def test_what_moves_in_is_zero_whatever_lies_beside_it() -> None:
    images = np.full((3, 4, 4), -1.0, np.float32)
    images[1] = np.nan
    move(images, np.array([1, 0, -1]), np.array([0, 0, 1]), 1)
    assert images[0, 0].tobytes() == bytes(16)  # +0, not -0 or NaN
    assert images[2, 3].tobytes() == bytes(16)
    assert images[2, :, 0].tobytes() == bytes(16)
    assert np.isnan(images[1]).all()


def nielsen(image: Array) -> list[Array]:
    """The image, and it rolled by one pixel along each axis both ways with the line that came around blanked."""
    variants = [image]
    for axis, step in ((0, -1), (0, 1), (1, -1), (1, 1)):
        rolled = np.roll(image, step, axis)
        line: list[Any] = [slice(None), slice(None)]
        line[axis] = 0 if step > 0 else -1
        rolled[tuple(line)] = 0
        variants.append(rolled)
    return variants


def loader(examples: Examples, augmentation: Augmentation | None = None, seed: int = 0) -> Loader:
    features = int(np.prod(examples.x.shape[1:]))
    objective = Supervised(Dense(features, 10), SoftmaxCrossEntropy(), (features,))
    return Loader(examples, objective, np.dtype(np.float32), seed, augmentation=augmentation)


def test_expanded_examples_are_nielsens() -> None:
    images, labels = bytes_of((12, 28, 28)), np.arange(12) % 10
    chosen = np.array([1, 4, 5, 8, 11])
    expanded = Examples(images, labels, scale=255.0).subset(chosen).expanded(ONE_PIXEL)
    assert len(expanded) == 25
    rows = loader(expanded).gather(np.arange(25))
    for position in range(25):
        variant, example = divmod(position, 5)
        image = nielsen(images[chosen[example]])[variant]
        np.testing.assert_array_equal(rows.x[position], image.reshape(-1) / np.float32(255))
        assert rows.y[position] == labels[chosen[example]]
        assert rows.row_indices[position] == chosen[example]
    assert len(Examples(images, labels).expanded(ONE_PIXEL)) == 60


IMAGES = bytes_of((40, 6, 5))
BOTH = Augmentation(2, True)


def test_each_example_comes_out_the_same_in_any_company() -> None:
    examples = Examples(IMAGES, np.arange(40) % 10, scale=255.0)
    for one in (examples, examples.subset(np.arange(3, 37)), examples.expanded(ONE_PIXEL)):
        feed = loader(one, BOTH)
        whole = feed.gather(np.arange(len(one)), epoch=3)
        order = np.argsort(uniform((len(one),), 2, "order"))
        for start in range(0, len(one), 7):
            part = feed.gather(order[start : start + 7], epoch=3)
            np.testing.assert_array_equal(part.x, whole.x[order[start : start + 7]])
        twice = feed.gather(np.array([5, 5]), epoch=3)  # drawn twice, it is the same twice
        assert twice.x[0].tobytes() == twice.x[1].tobytes() == whole.x[5].tobytes()
    outside = loader(examples.subset(np.array([9, 30])), BOTH).gather(np.arange(2), epoch=3)
    np.testing.assert_array_equal(outside.x, loader(examples, BOTH).gather(np.array([9, 30]), epoch=3).x)


def test_seed_and_epoch_are_what_it_depends_on() -> None:
    examples = Examples(IMAGES, np.arange(40) % 10)
    results = {
        (seed, epoch): loader(examples, BOTH, seed).gather(np.arange(40), epoch).x.tobytes()
        for _ in range(2)
        for seed in (0, 1)
        for epoch in (0, 1, 7)
    }
    assert len(set(results.values())) == 6
    again = loader(examples, BOTH, 1).gather(np.arange(40), 7).x.tobytes()
    assert again == results[1, 7]


def test_training_batches_alone_are_augmented() -> None:
    feed = loader(Examples(IMAGES, np.arange(40) % 10), BOTH)
    plain = IMAGES.reshape(40, 30).T.astype(np.float32)
    np.testing.assert_array_equal(feed.batch(np.arange(40), NOTHING, epoch=2).x, plain)
    np.testing.assert_array_equal(feed.gather(np.arange(40)).x.T, plain)
    assert not np.array_equal(feed.batch(np.arange(40), NOTHING, epoch=2, statistics=NOTHING).x, plain)


def test_data_stay_as_they_are() -> None:
    before = IMAGES.copy()
    for augmentation in (BOTH, Augmentation(mirror=True)):
        loader(Examples(IMAGES, np.arange(40) % 10), augmentation).gather(np.arange(40), epoch=0)
    assert np.array_equal(IMAGES, before)


@pytest.mark.parametrize("reach", [1, 4])
def test_offsets_and_flips_are_equally_likely(reach: int) -> None:
    """Chi-square of the (2 reach + 1)² · 2 outcomes, which must lie within 5 standard deviations of its mean."""
    side, count = 2 * reach + 1, 200_000
    image = np.zeros((side + 2, side + 2), np.uint8)
    image[reach + 1, reach + 1] = 1
    image[reach + 1, reach] = 2  # beside it on the left, unless it was mirrored
    words = example_words(count, 5, 1)
    found = np.broadcast_to(image, (count, *image.shape)).copy()
    Augmentation(reach, True).apply(found, words)
    place = (found == 1).reshape(count, -1).argmax(axis=1)
    row, column = np.divmod(place, side + 2)
    flipped = found[np.arange(count), row, np.minimum(column + 1, side + 1)] == 2
    outcomes = (row - 1) * side + (column - 1) + side * side * flipped
    seen = np.bincount(outcomes, minlength=2 * side * side)
    assert len(seen) == 2 * side * side
    expected = count / len(seen)
    chi_square = float(np.sum(np.square(seen - expected)) / expected)
    degrees = len(seen) - 1
    assert abs(chi_square - degrees) < 5 * (2 * degrees) ** 0.5


def test_neighbouring_examples_and_epochs_are_independent() -> None:
    words = np.stack([example_words(50_000, 0, epoch) >> np.uint64(63) for epoch in (0, 1)]).astype(np.int64)
    for one, other in ((words[0], words[1]), (words[0, 1:], words[0, :-1])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / len(one) ** 0.5


def test_words_of_more_examples_begin_alike() -> None:
    few, many = example_words(10, 3, 4), example_words(5_000, 3, 4)
    assert few.tolist() == many[:10].tolist()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), None),
        (("shift", "1"), Augmentation(1)),
        (("crop", "4", "flip"), Augmentation(4, True)),
        (("crop 4", "flip"), Augmentation(4, True)),
        (("flip, crop 4",), Augmentation(4, True)),
        (("flip,crop 4",), Augmentation(4, True)),
        (("flip",), Augmentation(0, True)),
    ],
)
def test_forms(words: tuple[str, ...], expected: Augmentation | None) -> None:
    assert parse_augmentation(words) == expected
    config = resolved(TrainConfig(augment=words))
    assert parse_augmentation(config.augment) == expected
    assert resolved(config) == config
    assert (config.name() == resolved(TrainConfig()).name()) == (expected is None)


@pytest.mark.parametrize(
    "text",
    ["rotate", "shift", "crop", "4", "shift -1", "shift 1.5", "crop4", "flip 2", "flipflip", "Flip", "crop 4; flip"],
)
def test_unknown_words(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"augment: expected shift N, crop N and flip, .*, got '"):
        TrainConfig(augment=tuple(text.split()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flip, flip", "each word once"),
        ("crop 4, shift 1", "one of shift and crop"),
        ("crop 4, crop 4", "each word once"),
        ("shift 0", "at least 1 pixel"),
    ],
)
def test_words_that_do_not_go_together(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TrainConfig(augment=(text,))


FLAT = normal((50, 12), 0, "flat").astype(np.float32)
SMALL = bytes_of((50, 4, 3))


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (FLAT, {"augment": ("flip",)}, r"^augment flip: expected images, .* shape \(12,\)"),
        (FLAT, {"expand": "shifts"}, r"^expand shifts: expected images, .* shape \(12,\)"),
        (SMALL, {"augment": ("crop 3", "flip")}, r"^augment shift 3, flip: .* fewer pixels than it has, got 3 for 4×3"),
        (SMALL[:, :1], {"expand": "shifts"}, r"^expand shifts: .* got 1 for 1×3"),
        (bytes_of((50, 2, 2, 2, 2)), {"augment": ("flip",)}, r"expected images, .*\(2, 2, 2, 2\)"),
        (SMALL, {"expand": "rotations"}, r"expand: expected one of none, shifts, got 'rotations'"),
    ],
)
def test_data_that_cannot_be_augmented(x: Array, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fit("softmax", (x, np.arange(50) % 3), epochs=1, **options)


class Seen:
    """A model that notes what it is given: the rows of training batches, and all that is scored."""

    def __init__(self, features: int) -> None:
        self.training: list[tuple[int, int, bytes]] = []
        self.scored: list[bytes] = []
        self.params = {"w": np.zeros(features)}

    def __call__(self, params: Views, grads: Views, batch: Any) -> tuple[float, int]:
        for example, column in zip(batch.indices, batch.x.T, strict=True):
            if batch.training:
                self.training.append((batch.epoch, int(example), np.ascontiguousarray(column).tobytes()))
            else:
                self.scored.append(np.ascontiguousarray(column).tobytes())
        grads["w"][...] = 0.0
        return 0.0, len(batch)


PICTURES = bytes_of((30, 5, 4)).astype(np.float32)
CLASSES = np.arange(30) % 3


def watched(**options: Any) -> tuple[Seen, dict[str, Any]]:
    """(what a model saw in a run on PICTURES, the run's summary)."""
    seen = Seen(20)
    options = {"batch_size": 16, "threads": 1, "epochs": 2, **options}
    return seen, fit(seen, (PICTURES, CLASSES), params=seen.params, **options).summary


@pytest.mark.parametrize("options", [{}, {"batch_size": "full"}, {"shuffle": False}], ids=str)
def test_an_epoch_visits_each_expanded_example_once(options: dict[str, Any]) -> None:
    seen, summary = watched(validation_last=6, expand="shifts", **options)
    assert summary["steps"] == 2 * (1 if "batch_size" in options else 8)
    expected = sorted(variant.tobytes() for image in PICTURES[:24] for variant in nielsen(image))
    # Each rank computes its first microbatch three times, twice to see whether that repeats itself.
    orders = [list(dict.fromkeys(row for when, _, row in seen.training if when == epoch)) for epoch in range(2)]
    for order in orders:
        assert sorted(order) == expected
    assert (orders[0] == orders[1]) == ("shuffle" in options)
    assert set(seen.scored) == {image.tobytes() for image in PICTURES[24:]}


@pytest.mark.parametrize("where", ["validation", "test", "train"])
def test_nothing_that_is_scored_is_augmented(where: str) -> None:
    other = bytes_of((9, 5, 4), "other").astype(np.float32)
    part: dict[str, Any] = {where: (other, np.arange(9) % 3)} if where != "train" else {"train_metrics": "full"}
    seen, _ = watched(augment=("shift 1", "flip"), validation_fraction=0.0, **part)
    assert set(seen.scored) == {image.tobytes() for image in (PICTURES if where == "train" else other)}
    assert len({row for _, _, row in seen.training} - {image.tobytes() for image in PICTURES}) > 30


def test_an_epoch_with_replacement_augments_an_example_one_way() -> None:
    seen, _ = watched(validation_fraction=0.0, sampling="replacement", augment=("shift 1", "flip"), epochs=3)
    ways: dict[tuple[int, int], set[bytes]] = {}
    for epoch, example, row in seen.training:
        ways.setdefault((epoch, example), set()).add(row)
    assert len(seen.training) > len(ways)  # some were drawn twice
    assert all(len(rows) == 1 for rows in ways.values())


def test_both_at_once() -> None:
    """An expanded example is moved first, as a fixed image, and then augmented by a word of its own."""
    images = bytes_of((4, 8, 8))
    expanded = Examples(images, np.zeros(4, np.int64)).expanded(ONE_PIXEL)
    rows = loader(expanded, Augmentation(1)).gather(np.arange(20), epoch=0)
    fixed = np.stack([nielsen(images[i % 4])[i // 4] for i in range(20)])
    Augmentation(1).apply(fixed, example_words(20, 0, 0))
    np.testing.assert_array_equal(rows.x, fixed.reshape(20, 64))
    assert len({fixed[k * 4].tobytes() for k in range(5)}) > 1


def test_words_of_many_examples_need_none_of_the_others() -> None:
    """They are splitmix64's, whose published words of seed 0 begin so, where the epoch's key is 0; and those of fewer
    examples stay what they were."""
    augmentation, indices = Augmentation(2, True), np.array([7, 3_000_000_000, 7, 0])
    words = augmentation.random_words(ORDER_BY_SORT * 1000, 5, 2, indices)
    assert np.array_equal(words, keyed_words(indices, 5, 2))
    assert np.array_equal(Augmentation(2, True, keyed=True).random_words(10, 5, 2, indices), words)
    assert words[0] == words[2] != augmentation.random_words(ORDER_BY_SORT, 5, 3, indices)[0]
    few = augmentation.random_words(10, 5, 2, np.array([7, 0]))
    assert few.tolist() == example_words(10, 5, 2)[[7, 0]].tolist()
    key = int(random_words(1, 0, "augmentation, keyed", 0)[0])
    inverse = pow(0x9E3779B97F4A7C15, -1, 1 << 64)
    first = [np.array([(k * 0x9E3779B97F4A7C15 - key) * inverse % (1 << 64)], np.uint64) for k in (1, 2, 3)]
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(keyed_words(one, 0, 0)[0]) for one in first] == published
    bits = keyed_words(np.arange(1 << 16), 0, 1)
    for bit in range(64):
        ones = int((bits >> np.uint64(bit) & np.uint64(1)).sum())
        assert abs(ones - (1 << 15)) < 6 * 128
