"""Whole training steps on one GPU in one process, beside PyTorch on the same GPU; the parts of a step under --where.

Each measurement is a process of its own; contenders take turns, so that a GPU that slows down does so for all. All have
the same network, batch and optimizer, data on the GPU, and products in float32, but for mlp8192: tf32. Data are made
up, but for MNIST with --data-dir. `--device cpu --quick` runs all of it on a CPU, in sizes that say nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.children.mnist import folder
from benchmarks.common import Contender, Report, Series, interleave, options, ratio, ratios, speeds, table, with_skipped
from benchmarks.processes import Unavailable, child, environment, measure, require
from benchmarks.workloads import GPU_WORKLOADS, Workload, describe, gpu_workload

ONE, FOUR = "distsgd, M=1", "distsgd, M=4"
EAGER, LAST, GRAPHS = "PyTorch eager, fused", "PyTorch eager, fused, channels last", "PyTorch reduce-overhead"
CEILING, PARTS = "products alone", ("gather", "forward", "backward", "reduction", "update")
MNIST = "mlp512-adam"
_LIMIT = 400.0
_PAIRS = ((ONE, EAGER), (ONE, LAST), (ONE, GRAPHS), (FOUR, EAGER), (FOUR, LAST), (FOUR, GRAPHS), (FOUR, ONE))


def device_problem(device: str) -> str | None:
    """Why there is nothing to measure on this device; asked in a process of its own, which takes CUDA away with it."""
    code = (
        "import sys; from distsgd.gpu.devices import choose_device; from distsgd.core.errors import DistsgdError\n"
        "try:\n    choose_device(sys.argv[1])\nexcept DistsgdError as error:\n    sys.exit(str(error))"
    )
    done = subprocess.run([sys.executable, "-c", code, device], env=environment(), capture_output=True, text=True)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it can't be used"])[-1]


def contenders(name: str, chosen: argparse.Namespace) -> list[Contender]:
    """All that train this workload, and what its products take by themselves."""
    work, shared = GPU_WORKLOADS[name], settings(name, chosen)

    def ours(script: str, **own: Any) -> Callable[[int], dict[str, Any]]:
        return lambda _: measure(child(script, {**shared, **own}), _LIMIT)

    def peer(**own: Any) -> Callable[[int], dict[str, Any]]:
        def run(_: int) -> dict[str, Any]:
            require(chosen.torch_python, "torch")
            return measure(child("gpu_torch", {**shared, **own}, chosen.torch_python), _LIMIT)

        return run

    found = [
        Contender(ONE, ours("gpu_distsgd", microbatches=1)),
        Contender(FOUR, ours("gpu_distsgd", microbatches=4)),
        Contender(EAGER, peer()),
    ]
    if work.image:
        found.append(Contender(LAST, peer(channels_last=True)))
    else:
        found.append(Contender(CEILING, ours("gpu_ceilings")))
    return [*found, Contender(GRAPHS, peer(compiled=True, channels_last=bool(work.image)))]


def settings(name: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """What all children get."""
    return {
        "workload": name,
        "seconds": chosen.seconds,
        "examples": chosen.examples,
        "quick": chosen.quick,
        "device": chosen.device,
    }


def fractions(work: Workload, found: dict[str, Series]) -> str:
    """A step, and the part of it that its products need: each at its own rate, and all at that of a large one."""
    ceiling, rows = found[CEILING], []
    for label in (ONE, FOUR, EAGER):
        step = found[label]
        if step.skipped is not None or ceiling.skipped is not None:
            continue
        took = work.batch / step.median("examples_per_second")
        own = sum(ceiling.median(name) for name, *_ in work.gemms(work.batch))
        large = work.flop(work.batch) / ceiling.median("flops")
        shown = [f"{seconds * 1e6:,.0f}" for seconds in (took, own, large)]
        rows.append((label, *shown, f"{own / took:.0%}", f"{large / took:.0%}"))
    header = ("", "step, µs", "products, µs", "at the large one's rate, µs", "products / step", "large one's / step")
    return table(header, rows)


def race(chosen: argparse.Namespace) -> list[Contender]:
    """Who is first to know MNIST's test images to 98 %, start and reading of the files included."""
    where, reason = folder(chosen.data_dir)
    target, epochs = (0.5, 1) if chosen.quick else (0.98, 30)

    def finished(script: str, seed: int, interpreter: str = sys.executable, **own: Any) -> dict[str, Any]:
        if where is None:
            raise Unavailable(reason)
        reported = {"workload": MNIST, "folder": str(where.resolve()), "target": target, "epochs": epochs, "seed": seed}
        result = measure(child(script, {**reported, "device": chosen.device, **own}, interpreter), _LIMIT)
        if result["accuracy"] < target:
            raise Unavailable(f"reached {result['accuracy']} in {result['epochs']} epochs")
        return result

    def torch(seed: int) -> dict[str, Any]:
        require(chosen.torch_python, "torch")
        return finished("mnist_torch", seed, chosen.torch_python)

    return [
        Contender(ONE, lambda seed: finished("mnist_distsgd", seed, microbatches=1)),
        Contender(FOUR, lambda seed: finished("mnist_distsgd", seed, microbatches=4)),
        Contender(EAGER, torch),
    ]


def race_table(found: dict[str, Series]) -> str:
    """Seconds of the whole process, and how many times as fast as PyTorch."""
    rows = []
    for name, series in found.items():
        if series.skipped is None:
            gain = ratio(found[EAGER], series, "process_seconds")
            epochs = " ".join(str(int(value)) for value in sorted(series.values("epochs")))
            seconds = f"{series.median('process_seconds'):.2f}"
            rows.append((name, seconds, epochs, "" if gain is None else f"{gain:.2f}"))
    return with_skipped(table(("", "seconds", "epochs", "times as fast as PyTorch"), rows), found)


def where(chosen: argparse.Namespace) -> None:
    """Microseconds of the parts of a step, of each workload."""
    report = Report("gpu_where", chosen)
    names = chosen.workload or list(GPU_WORKLOADS)
    contenders = [
        Contender(name, lambda _, name=name: measure(child("gpu_where", settings(name, chosen)), _LIMIT))  # type: ignore[misc]
        for name in names
    ]
    found = interleave(contenders, chosen.rounds)
    rows = [
        (name, *(f"{series.median(part) * 1e6:,.0f}" for part in (*PARTS, "step")))
        for name, series in found.items()
        if series.skipped is None
    ]
    report.add("where a step's time goes, µs, M=1", found, with_skipped(table(("", *PARTS, "step"), rows), found))
    report.write()
    if chosen.picture is not None:
        from benchmarks.gpu_picture import draw

        draw({name: {part: one.median(part) for part in PARTS} for name, one in found.items() if not one.skipped},
             chosen.picture)  # fmt: skip


def own_options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark alone takes."""
    parser.add_argument("--device", default="gpu", help="gpu, gpu:N, or cpu for a smoke run (default gpu)")
    parser.add_argument("--where", action="store_true", help="only where a step's time goes")
    parser.add_argument("--picture", type=Path, help="with --where: draws it here, .svg or .png; needs matplotlib")


def main() -> None:
    chosen = options(__doc__, workloads=GPU_WORKLOADS, extra=own_options)
    problem = device_problem(chosen.device)
    if problem is not None:
        sys.exit(f"nothing to measure: {problem}")
    if chosen.where:
        where(chosen)
        return
    report = Report("gpu", chosen)
    for name in chosen.workload or GPU_WORKLOADS:
        work = gpu_workload(name, chosen.examples, chosen.quick, chosen.device)
        found = interleave(contenders(name, chosen), chosen.rounds)
        steps = {label: series for label, series in found.items() if label != CEILING}
        tables = [speeds(steps), ratios(steps, _PAIRS)]
        report.add(describe(work), found, *tables, *([] if work.image else [fractions(work, found)]))
    found = interleave(race(chosen), chosen.rounds)
    report.add("MNIST to 98 % of the test images, the whole process", found, race_table(found))
    report.write()


if __name__ == "__main__":
    main()
