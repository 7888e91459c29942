"""What a small fit on a CPU imports: nothing of what it doesn't use."""

from __future__ import annotations

import subprocess
import sys

from tests.unit.project.test_structure import ROOT

MOST = 115
"""The last twenty-five: `optim.layerwise`, `optim.registry` and `training.norms`, for every step may need norms, three
folders of `run/`, `core.kernel_family`, for every run says which kernels its bits are of, `run.caller`, for every fit
takes back what it has set in the process, `data.features`, for every run keeps the ranges of its inputs, the two
files that `run.fit` became, `run.fit_arguments` and `run.trained.trained_model`, and five where losses, metrics and
`run.build` became several files, so that losses and metrics that aren't used are not imported: two `base`, two of
classes, `run.build_metrics`, `parallel.owned_state`, for every run gathers its optimizer's state at the end, five
for dense networks, whose microbatches are computed at once: `core.kernels.blas`, `core.kernels.several`, `nn.stack`,
`training.stacks` and `training.zero_gradients`, which was a part of `training.gradients`, `core.kernels.squares`,
which was a part of `core.kernels.cpu` and says where shards end, and `run.devices` and
`core.device_options`, for every run and every prediction chooses its device."""
SMALL = """
import sys
sys.modules["cupy"] = None  # as where it isn't installed
import numpy as np
import distsgd
x = np.random.default_rng(0).random((60, 4), np.float32)
result = distsgd.fit("mlp", (x, np.arange(60) % 3), epochs=1, batch_size=20)
result.predict(x)
print(*(name for name in sys.modules if name.partition(".")[0] == "distsgd"))
"""


def modules_of(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(done.stdout.split())


def test_a_small_fit_imports_little() -> None:
    found = modules_of(SMALL)
    assert "distsgd.run.fit" in found
    unused = ("gpu", "plots", "launching", "cli")
    wrong = [name for name in found if any(f"{name}.".startswith(f"distsgd.{part}.") for part in unused)]
    assert not wrong
    assert not [name for name in found if name.startswith(("distsgd.data.named", "distsgd.data.sources"))]
    assert not {"distsgd.run.files.folder", "distsgd.core.locks", "distsgd.run.batch_job"} & set(found)
    assert len(found) <= MOST, "\n".join(found)
