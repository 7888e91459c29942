"""Checks a machine with a GPU in one call of a given length: does it work, is it right, are bits the same, how fast.

The phases, in this order: `look` (the environment, and each self check of the GPU in each precision), `tests` (pytest
tests/gpu), `same` (digits, and MNIST with --data-dir, trained twice, on two ranks and without CUDA graphs: one
parameters_sha256) and `bench` (benchmarks.gpu, workload by workload). They share the time out among them; a phase that
hangs is ended with all that it started. What matters is printed, in at most 12,000 characters; the rest is in --out:
a log of each command, PHASE.txt with all lines of a phase, report.json. It installs nothing and uses the environment
that it is started from. Phases can be called again alone. `--device cpu --quick` is a rehearsal without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.children.mnist import folder as mnist_folder
from benchmarks.gpu_findings import bench_lines, bits_words, look_lines, shortened, test_lines, training_words
from benchmarks.processes import ROOT, Unavailable, child, require, result_in, under_mpirun
from benchmarks.side_by_side import GRACE, Ended, Running, side_by_side
from benchmarks.workloads import CONV, GPU_WORKLOADS
from distsgd.core.device_options import FULL, PRECISIONS

WEIGHTS = {"look": 90, "tests": 170, "same": 90, "bench": 180}
"""How the phases share the time out; what one leaves over goes to those that follow."""
CHARACTERS = {"look": 2400, "tests": 3900, "same": 2600, "bench": 2600}
"""What each phase may print: together less than 12,000, with the lines around them."""
BENCHES = {"mlp512": 90, "conv": 90, "where": 60, "two-layer": 110, "mlp8192": 90, "resnet20": 120}
"""How the measurements share out what is left; what teaches most comes first. `where` is benchmarks.gpu --where."""
_LIMIT, _LEAST = 530.0, 10.0
_OF_TESTS = ("pytest", "hypothesis")
_MOST_TESTERS = 8


@dataclass
class Found:
    """What a phase found: whether all is right, the lines to print in the order of what matters, and data to keep."""

    right: bool
    lines: list[str]
    data: dict[str, Any] = field(default_factory=dict)
    go_on: bool = True


@dataclass(frozen=True)
class Check:
    """What all phases are asked with; `cores` is how many commands run at a time."""

    device: str
    quick: bool
    out: Path
    data_dir: Path | None
    torch_python: str
    workloads: tuple[str, ...]
    cores: int

    def together(self, commands: Mapping[str, Sequence[str]], until: float) -> dict[str, Ended]:
        return side_by_side(commands, self.out, until, self.cores)


def missing(prefixes: Sequence[str] = ("",), extra: str | None = None) -> list[str]:
    """The packages that pyproject.toml asks for, or one of its extras, and this environment lacks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    lacking = []
    for name in (re.split(r"[^\w.-]", one)[0] for one in wanted):
        if name.startswith(tuple(prefixes)):
            try:
                version(name)
            except PackageNotFoundError:
                lacking.append(name)
    return lacking


def look(check: Check, until: float) -> Found:
    """The driver, what the doctor says on two ranks, and the self checks; nothing follows where float32's are wrong.

    What the doctor calls a problem, such as another program on a core, is told and fails nothing.
    """
    lacking = missing()
    if lacking:
        return Found(False, [f"this environment lacks {', '.join(lacking)}: install what is missing"], go_on=False)
    query = "name,driver_version,compute_mode,mig.mode.current,memory.total"
    commands = {"look": child("gpu_look", {"device": check.device})}
    if check.device != "cpu":
        commands["nvidia-smi"] = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    doctor = [sys.executable, "-m", "distsgd.doctor"]
    lines = []
    try:
        commands["doctor"] = under_mpirun(2, doctor)
    except Unavailable as error:
        lines.append(f"{error}: nothing runs on several ranks")
        commands["doctor"] = doctor
    ended = check.together(commands, until)
    result = result_in(ended["look"].text)
    if result is None:
        lines.append(f"self checks: {ended['look']}")
    else:
        lines += look_lines(result)
    for name in ("nvidia-smi", "doctor"):
        if name in ended:
            one = ended[name]
            lines += [f"{name}: {one}" if not one.right else f"{name}:", *one.text.splitlines()]
    without = missing(_OF_TESTS, "test")
    if without:
        lines.insert(0, f"this environment lacks {', '.join(without)}, which tests needs")
    right = bool(result and result["right"])
    return Found(right and not without, lines, result or {}, go_on=right)


def tests(check: Check, until: float) -> Found:
    """tests/gpu on several processes. A warning of another version of NumPy or CuPy is told, and fails nothing.

    A thread ends the process of a test that hangs: Python handles no signal while a call of CUDA doesn't return.
    """
    without = missing(_OF_TESTS, "test")
    if without:
        return Found(False, [f"this environment lacks {', '.join(without)}: install what is missing"])
    written = check.out / "tests.jsonl"
    written.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider", "--tb=short"),
        *("-n", str(max(1, min(_MOST_TESTERS, check.cores // 2))), "--maxfail=60", "--timeout=90"),
        "--timeout-method=thread",
        *("-W", "default::DeprecationWarning", "-p", "benchmarks.children.pytest_lines", f"--lines={written}"),
    ]
    ended = check.together({"tests": command}, until)["tests"]
    told = read_lines(written)
    if not told:
        return Found(False, [f"{ended}; the last lines of its log:", *ended.text.splitlines()[-25:]])
    lines, counts = test_lines(told)
    nothing = check.device == "cpu" and not counts["failed"]  # there all of them are skipped
    if not ended.right and not nothing:
        lines.insert(1, f"pytest: {ended}")
    return Found(ended.right or nothing, lines, dict(counts))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of JSON in a file, but for one that was not written to its end."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def trainings(check: Check) -> dict[str, tuple[int, list[str], bool]]:
    """(ranks, options, whether its bits must be those of the data set's other ones) of each training, by its name."""
    there = ["--device", check.device]
    epochs = ["--epochs", "1"] if check.quick else []
    sets = {"digits": epochs}
    if check.data_dir is not None:
        mnist = ["--dataset", "mnist", "--data-dir", str(check.data_dir.resolve()), "--batch-size", "256"]
        dense = ["--hidden", "512", "512", "--optimizer", "adam", "--lr", "1e-3"]
        sets["mnist"] = [*mnist, *dense, *(epochs or ["--epochs", "5"])]
        sets["mnist-conv"] = [*mnist, "--model", CONV, *(epochs or ["--epochs", "2"])]
    found = {}
    for name, options in sets.items():
        own = [*there, *options]
        found |= {f"{name} {which}": (1, own, True) for which in ("first", "again")}
        found[f"{name} 2 ranks"] = (2, own, True)
        found[f"{name} no graphs"] = (1, [*own, "--no-cuda-graphs"], True)
        if name != "mnist-conv":  # on a CPU it takes minutes
            found[f"{name} on the CPU"] = (1, ["--device", "cpu", *options], False)
        if check.device != "cpu":
            others = [precision for precision in PRECISIONS if precision != FULL]
            found |= {f"{name} {one}": (1, [*own, "--precision", one], False) for one in others}
    return found


def same(check: Check, until: float) -> Found:
    """Trains all at once. Nothing is measured where the digits don't train, so that the time is there for a repair."""
    wanted, commands, lines = trainings(check), {}, []
    for name, (ranks, options, _) in wanted.items():
        out = check.out / "runs" / name.replace(" ", "-")
        (out / "summary.json").unlink(missing_ok=True)
        train = [sys.executable, "-m", "distsgd.train", "--out", str(out), "--resume", "never", "--quiet", *options]
        try:
            commands[name.replace(" ", "-")] = under_mpirun(ranks if ranks > 1 else None, train)
        except Unavailable as error:
            lines.append(f"{name}: {error}")
    ended = check.together(commands, until)
    bits: dict[str, dict[str, list[str]]] = {}
    data: dict[str, Any] = {}
    for name, (_, _, alike) in wanted.items():
        one = ended.get(name.replace(" ", "-"))
        if one is None:
            continue
        summary = read_summary(check.out / "runs" / one.name) if one.right else None
        if summary is None:
            lines.append(f"{name}: FAILED: {one}")
            continue
        data[name] = {key: value for key, value in summary.items() if key != "confusion_matrix"}
        lines.append(f"{name}: {training_words(summary)}, {one.seconds:.1f} s")
        if alike:
            bits.setdefault(name.split()[0], {}).setdefault(summary["parameters_sha256"], []).append(name)
    of_sets = Counter(name.split()[0] for name, (_, _, alike) in wanted.items() if alike)
    verdicts = [bits_words(of_set, hashes, of_sets[of_set]) for of_set, hashes in bits.items()]
    right = len(data) == len(wanted) and all(len(hashes) == 1 for hashes in bits.values())
    return Found(right, [*verdicts, *lines], {"trainings": data}, go_on="digits first" in data)


def read_summary(folder: Path) -> dict[str, Any] | None:
    """What a training left; None where it didn't end."""
    try:
        return dict(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    except OSError:
        return None


def warm_up(check: Check) -> Running | None:
    """PyTorch reads itself from the disk and compiles its graphs while other phases run, so that bench needn't wait.

    None where there is no PyTorch, or cores are so few that the other phases would wait for it.
    """
    if check.cores < _MOST_TESTERS:
        return None
    try:
        require(check.torch_python, "torch")
    except Unavailable:
        return None
    wanted = {"seconds": 0.05, "examples": 60_000, "quick": check.quick, "device": check.device, "compiled": True}
    settings = [
        {**wanted, "workload": name, "channels_last": bool(GPU_WORKLOADS[name].image)} for name in check.workloads
    ]
    commands = [child("gpu_torch", one, check.torch_python) for one in settings]
    return Running("warm-up", child("in_turn", {"commands": commands}), check.out)


def bench(check: Check, until: float) -> Found:
    """Measurements one after the other; each writes its JSON, and what one leaves over goes to the next."""
    names = [name for name in BENCHES if name in (*check.workloads, "where")]
    lines, right, data = [], True, {}
    torch = ["--torch-python", check.torch_python]
    of_all = [] if check.quick else ["--rounds", "2", "--seconds", "0.5"]
    for at, name in enumerate(names):
        left = until - time.monotonic()
        end = time.monotonic() + left * BENCHES[name] / sum(BENCHES[one] for one in names[at:])
        own = ["--workload", name, *torch] if name != "where" else ["--where", "--workload", *check.workloads]
        if name == "two-layer" and check.data_dir is not None:  # with it, the race on MNIST
            own += ["--data-dir", str(check.data_dir.resolve())]
        options = ["--device", check.device, *(["--quick"] if check.quick else []), "--out", str(check.out / "results")]
        command = [sys.executable, "-m", "benchmarks.gpu", *options, *of_all, *own]
        ended = check.together({f"bench-{name}": command}, end)[f"bench-{name}"]
        right &= ended.right
        data[name] = {"status": ended.status, "seconds": ended.seconds}
        lines += [] if ended.right else [f"{name}: {ended}"]
        lines += [line for line in bench_lines(ended.text) if not (line.startswith("| |") and line in lines)]
    return Found(right, lines, data)


PHASES: dict[str, Callable[[Check, float], Found]] = {"look": look, "tests": tests, "same": same, "bench": bench}


def keep(out: Path, phase: str, found: Found, seconds: float) -> None:
    """Writes all lines of a phase, and its data beside those of the other phases, which may be of earlier calls."""
    (out / f"{phase}.txt").write_text("\n".join(found.lines) + "\n", encoding="utf-8")
    path = out / "report.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    report[phase] = {"right": found.right, "seconds": seconds, "lines": found.lines, "data": found.data}
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def run_phases(check: Check, phases: Sequence[str], deadline: float) -> bool:
    """Runs the phases until the deadline; whether all are right."""
    warm, all_right = None, True
    try:
        for at, name in enumerate(phases):
            began = time.monotonic()
            if warm is not None and name == "bench":
                warm.end()
            left = deadline - GRACE - 2 - began
            print(f"\n=== {name}, {max(0.0, left):.0f} s left", flush=True)
            if left < _LEAST:
                print(f"{name}: left out, no time")
                return False
            share = left * WEIGHTS[name] / sum(WEIGHTS[one] for one in phases[at:])
            found = PHASES[name](check, began + share)
            seconds = time.monotonic() - began
            keep(check.out, name, found, seconds)
            print(*shortened(found.lines, CHARACTERS[name], check.out / f"{name}.txt"), sep="\n")
            print(f"{name}: {'right' if found.right else 'NOT RIGHT'}, {seconds:.1f} s", flush=True)
            all_right &= found.right
            if not found.go_on and at + 1 < len(phases):
                print(f"left out: {', '.join(phases[at + 1 :])}; mend {name} first")
                return False
            if name == "look" and "bench" in phases:
                warm = warm_up(check)
    finally:
        if warm is not None:
            warm.end()
    return all_right


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("phases", nargs="*", metavar="PHASE", help=f"{', '.join(PHASES)}; default: all, in this order")
    parser.add_argument("--limit", type=float, default=_LIMIT, help=f"seconds of the whole call (default {_LIMIT:g})")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "check-gpu", help="folder (default build/check-gpu)"
    )
    parser.add_argument("--data-dir", type=Path, help="folder that holds mnist/: trains on it, too")
    parser.add_argument("--device", default="gpu", help="gpu, gpu:N, or cpu for a rehearsal (default gpu)")
    parser.add_argument("--quick", action="store_true", help="one epoch each, and benchmarks that measure nothing well")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with torch (default: this one)")
    parser.add_argument("--workload", nargs="+", choices=list(GPU_WORKLOADS), default=list(GPU_WORKLOADS),
                        help="what bench measures (default: all)")  # fmt: skip
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.phases if name not in PHASES]
    if unknown:
        parser.error(f"expected phases of {', '.join(PHASES)}, got {', '.join(unknown)}")
    if chosen.data_dir is not None and mnist_folder(chosen.data_dir)[0] is None:
        parser.error(f"--data-dir: {mnist_folder(chosen.data_dir)[1]}")
    if not chosen.limit >= _LEAST:
        parser.error(f"--limit: expected at least {_LEAST:g} seconds, got {chosen.limit:g}")
    return chosen


def main() -> None:
    deadline = time.monotonic()
    chosen = options()
    deadline += chosen.limit
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs begin with SIGINT ignored
        signal.signal(number, lambda got, _: sys.exit(128 + got))
    chosen.out.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    check = Check(chosen.device, chosen.quick, chosen.out.resolve(), chosen.data_dir, chosen.torch_python,
                  tuple(chosen.workload), cores)  # fmt: skip
    phases = [name for name in PHASES if not chosen.phases or name in chosen.phases]
    right = run_phases(check, phases, deadline)
    print(f"\n{'all right' if right else 'NOT ALL RIGHT'}; logs and report.json are in {check.out}")
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
