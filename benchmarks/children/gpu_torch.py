"""Times steps of PyTorch on a device, with all examples there: eager, or compiled with CUDA graphs."""

from __future__ import annotations

from typing import Any

from benchmarks.children.protocol import report_result, settings, timed_steps
from benchmarks.workloads import Workload, gpu_workload, synthetic

wanted = settings()

import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.children.torch_parts import network, optimizer_of  # noqa: E402

ON_GPU = wanted["device"] != "cpu"
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


class Steps:
    """Whole training steps, one a call: gather, forward, backward, update; indices of an epoch are made there, too."""

    def __init__(self, work: Workload, channels_last: bool, compiled: bool) -> None:
        self.batch = work.batch
        x, self.y = (torch.from_numpy(array).to(DEVICE) for array in synthetic(work))
        self.x = x.to(memory_format=torch.channels_last) if channels_last else x
        torch.manual_seed(0)
        self.model = network(work, channels_last).to(DEVICE)
        self.optimizer = optimizer_of(work, self.model)
        self.loss: Any = self._loss
        if compiled:
            self.loss = torch.compile(self._loss, mode="reduce-overhead", fullgraph=True)
        self.position = len(self.x)

    def _loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(x), y)

    def __call__(self) -> int:
        if self.position == len(self.x):
            self.order, self.position = torch.randperm(len(self.x), device=DEVICE), 0
        chosen = self.order[self.position : self.position + self.batch]
        self.position += self.batch
        self.optimizer.zero_grad()
        self.loss(self.x.index_select(0, chosen), self.y.index_select(0, chosen)).backward()
        self.optimizer.step()
        return self.batch


def main() -> None:
    work = gpu_workload(wanted["workload"], wanted["examples"], wanted["quick"], wanted["device"])
    if not ON_GPU:
        torch.set_num_threads(1)
    tf32 = work.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    steps = Steps(work, wanted.get("channels_last", False), wanted.get("compiled", False))
    result = timed_steps(steps, wanted["seconds"], finish=torch.cuda.synchronize if ON_GPU else lambda: None)
    name = torch.cuda.get_device_name() if ON_GPU else "cpu"
    report_result({**result, "metadata": {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda}})


main()
