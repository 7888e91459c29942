"""A JaxModel in distsgd beside JAX alone, on one core of each process: python -m benchmarks.jax_integration."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common import Contender, Report, interleave, options, ratios, speeds
from benchmarks.processes import child, measure, require, under_mpirun

DEFAULT = ("mlp512",)
CASES = (
    ("JaxModel, 1 rank", "distsgd", 1, None), ("jit loop, 1 core", "jit", 1, None),
    ("JaxModel, 2 ranks", "distsgd", 2, 2), ("jit and Allreduce, 2 ranks", "allreduce", 2, 2),
)  # fmt: skip
"""(name, what the child does, microbatches, ranks)."""
PAIRS = (("JaxModel, 1 rank", "jit loop, 1 core"), ("JaxModel, 2 ranks", "jit and Allreduce, 2 ranks"))


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(__doc__, arguments)
    report = Report("jax_integration", chosen)
    for name in chosen.workload or DEFAULT:
        contenders = []
        for title, how, microbatches, ranks in CASES:
            settings = {
                "workload": name, "examples": chosen.examples, "seconds": chosen.seconds, "how": how,
                "microbatches": microbatches,
            }  # fmt: skip
            contenders.append(_contender(title, settings, ranks, chosen.jax_python))
        found = interleave(contenders, chosen.rounds)
        report.add(name, found, speeds(found), ratios(found, PAIRS))
    report.write()


def _contender(title: str, settings: dict[str, object], ranks: int | None, interpreter: str) -> Contender:
    def run(_: int) -> dict[str, float]:
        require(interpreter, "jax")
        return dict(measure(under_mpirun(ranks, child("jax_integration", settings, interpreter))))

    return Contender(title, run)


if __name__ == "__main__":
    main()
