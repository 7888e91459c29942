"""Which family of kernels is chosen for all hosts, and the sentence where none can be."""

from __future__ import annotations

from pathlib import Path

import pytest

from distsgd.core.errors import ConfigurationError
from distsgd.core.kernel_family import Host
from distsgd.run.config import TrainConfig
from distsgd.run.config_file import read_toml, to_toml
from distsgd.run.kernels import decide, recorded_for, recorded_in
from tests.unit.core.test_kernel_family import V2, V3, V4

FLAGS = {"4": V4, "3": V3, "2": V2, "0": "fpu", "a": "asimd"}


def hosts(kinds: str, **cores: str) -> list[Host]:
    """Of such kinds, named h0, h1, …; OPENBLAS_CORETYPE by name, ? for a host that shows no flags."""
    return [
        Host(
            f"h{number}",
            "aarch64" if kind == "a" else "x86_64",
            frozenset(FLAGS[kind].split()) if kind in FLAGS else None,
            cores.get(f"h{number}", ""),
        )
        for number, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("kinds", "asked", "recorded", "cores", "chosen"),
    [
        ("444", "auto", None, {}, "avx512"), ("434", "auto", None, {}, "avx2"), ("432", "auto", None, {}, "sse42"),
        ("aa", "auto", None, {}, "arm64"), ("0", "auto", None, {}, None), ("4?", "auto", None, {}, None),
        ("444", "avx2", None, {}, "avx2"), ("4?", "avx2", None, {}, "avx2"), ("43", "sse42", None, {}, "sse42"),
        ("444", "auto", "avx2", {}, "avx2"), ("33", "auto", "avx2+numpy-sse42", {}, "avx2+numpy-sse42"),
        ("44", "avx2", "avx2", {}, "avx2"),
        ("44", "auto", None, {"h0": "ZEN"}, "avx2"), ("44", "auto", "avx2", {"h0": "Haswell", "h1": "ZEN"}, "avx2"),
        ("43", "auto", None, {"h1": "Sandybridge"}, "sandybridge+numpy-avx2"),
        ("44", "avx512", None, {"h1": "COOPERLAKE"}, "avx512"),
    ],
)  # fmt: skip
def test_the_family_for_all_hosts(
    kinds: str, asked: str, recorded: str | None, cores: dict[str, str], chosen: str | None
) -> None:
    assert decide(hosts(kinds, **cores), asked, None if recorded is None else (recorded, "runs/a")) == chosen


@pytest.mark.parametrize(
    ("kinds", "asked", "recorded", "cores", "words"),
    [
        ("443", "avx512", None, {}, ["on h2 (lacks avx512", "all hosts can run avx2 and sse42", "--kernels avx2"]),
        ("4440", "avx2", None, {}, ["avx2 is asked for, which can't run on h3 (lacks abm, avx, avx2)"]),
        ("44", "arm64", None, {}, ["h0 (lacks an aarch64 CPU), h1"]),
        ("43", "auto", "avx512", {}, ["runs/a was computed with the kernels avx512", "h1", "folder with --out"]),
        ("44", "avx2", "avx512", {}, ["runs/a holds a run with avx512, and avx2 is asked for; leave --kernels out"]),
        ("44", "avx2", None, {"h0": "SkylakeX"}, ["OPENBLAS_CORETYPE is SkylakeX, which is avx512; unset"]),
        ("44", "auto", "avx2", {"h0": "SkylakeX"}, ["runs/a was computed", "which is avx512; unset"]),
        ("44", "auto", None, {"h0": "Haswell", "h1": "Nehalem"}, ["differs between hosts: Haswell on h0, Nehalem"]),
        ("33", "auto", None, {"h0": "SKYLAKEX"}, ["OPENBLAS_CORETYPE is SKYLAKEX, which can't run on h0"]),
        ("4a", "auto", None, {}, ["none in common: h0 can run avx512, h1 can run arm64; use hosts of one kind"]),
    ],
)  # fmt: skip
def test_what_no_host_or_not_each_can_do_is_refused_in_one_sentence(
    kinds: str, asked: str, recorded: str | None, cores: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        decide(hosts(kinds, **cores), asked, None if recorded is None else (recorded, "runs/a"))
    assert caught.value.exit_status == 2
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_a_family_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert recorded_in(tmp_path) is None
    (tmp_path / "config.toml").write_text(to_toml(TrainConfig()))
    assert recorded_in(tmp_path) is None, "an older run says nothing"
    (tmp_path / "config.toml").write_text(to_toml(TrainConfig(kernels="avx2+numpy-avx512")))
    assert read_toml(tmp_path / "config.toml").kernels == "avx2+numpy-avx512"
    assert recorded_in(tmp_path) == "avx2+numpy-avx512"
    assert recorded_in(tmp_path / "checkpoints" / "best.safetensors") == "avx2+numpy-avx512"
    (tmp_path / "config.toml").write_text("kernels = 3")
    assert recorded_in(tmp_path) is None


def test_a_run_is_continued_only_where_there_is_one(tmp_path: Path) -> None:
    from distsgd.run.files.folder import RunFolder

    (tmp_path / "config.toml").write_text('kernels = "sse42"')
    assert recorded_for(TrainConfig(), RunFolder(tmp_path)) is None, "no checkpoint"
    assert recorded_for(TrainConfig(resume=str(tmp_path)), RunFolder(tmp_path / "b")) == ("sse42", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-3.safetensors").write_bytes(b"")
    assert recorded_for(TrainConfig(), RunFolder(tmp_path)) == ("sse42", str(tmp_path))
    assert recorded_for(TrainConfig(resume="never"), RunFolder(tmp_path)) is None


def test_the_name_of_a_run_has_no_family() -> None:
    assert TrainConfig(kernels="avx2").name() == TrainConfig().name()
