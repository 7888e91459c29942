"""A training on the stand-in for GPUs under a real MPI, which is handed their memory; prints how it went."""

from __future__ import annotations

from distsgd import parallel as communication
from distsgd.gpu import choose_transport, cuda_aware
from distsgd.parallel.mpi import MPITransport
from tests.strict_device import StrictModule, strict_device
from tests.unit.gpu.test_training import train

OPTIONS = {"hidden": (200, 200, 100), "max_steps": 5, "batch_norm": True, "microbatches": 4}


def main() -> None:
    """Trains and prints on rank 0: what the library says, the way, and the parameters' sha256."""
    communicator = communication.start()
    reported = cuda_aware.takes_device_memory(communicator.transport)
    choose_transport.takes_device_memory = lambda transport: True  # type: ignore[attr-defined]
    calls = []
    alltoall = MPITransport.alltoall

    def noted(self: MPITransport, *arguments: object) -> None:
        calls.append([type(one).__name__ for one in arguments[::2]])
        alltoall(self, *arguments)  # type: ignore[arg-type]

    MPITransport.alltoall = noted  # type: ignore[method-assign, assignment]
    with strict_device(StrictModule(gpus=4)):
        result = train("gpu", communicator=communicator, communication="mpi", **OPTIONS)
    of_steps = [kinds for kinds in calls if kinds != ["ndarray"] * 2]  # the optimizer's state is sent from the host
    assert all(kinds == ["StrictArray"] * 2 for kinds in of_steps)
    if communicator.is_root:
        print(reported, len(of_steps) > 5, result.summary["run"]["device"], result.summary["parameters_sha256"])


if __name__ == "__main__":
    main()
