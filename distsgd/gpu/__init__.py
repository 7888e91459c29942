"""Everything that knows CuPy, CUDA or NCCL: kernels, transports and recorded steps."""
