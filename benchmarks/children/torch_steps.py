"""Times steps of PyTorch, eager in one process, or DistributedDataParallel over gloo under torchrun."""

from __future__ import annotations

from benchmarks.children.protocol import Memory, report_result, settings, timed_steps
from benchmarks.workloads import Workload, synthetic, workload

wanted = settings()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from benchmarks.children.torch_parts import RANK, SIZE, finish, network, optimizer_of, start, train_step  # noqa: E402


class Steps:
    """Whole training steps, one a call; each rank takes its part of one global, shuffled minibatch."""

    def __init__(self, work: Workload, channels_last: bool) -> None:
        self.batch = work.batch
        self.x, self.y = (torch.from_numpy(array) for array in synthetic(work))
        if channels_last:
            self.x = self.x.to(memory_format=torch.channels_last)
        self.memory = Memory()
        torch.manual_seed(0)
        self.model = network(work, channels_last)
        self.optimizer = optimizer_of(work, self.model)
        self.position = len(self.x)

    def __call__(self) -> int:
        if self.position == len(self.x):
            self.order, self.position = torch.randperm(len(self.x)), 0
        minibatch = self.order[self.position : self.position + self.batch]
        self.position += self.batch
        train_step(self.model, self.optimizer, self.x, self.y, minibatch)
        return self.batch


def agree(number: int) -> int:
    """Rank 0's number, on every rank."""
    if SIZE == 1:
        return number
    reported = torch.tensor(number)
    dist.broadcast(reported, 0)
    return int(reported)


def main() -> None:
    start(wanted["threads"])
    steps = Steps(workload(wanted["workload"], wanted["examples"]), wanted.get("channels_last", False))
    result = timed_steps(steps, wanted["seconds"], agree=agree)
    if RANK == 0:
        report_result(
            {
                **result,
                **steps.memory.grown(),
                "metadata": {"torch": torch.__version__, "threads": torch.get_num_threads()},
            }
        )
    finish()


main()
