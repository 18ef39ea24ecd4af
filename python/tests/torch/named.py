"""A program that imports nothing of Maypole's: one rank of it. Run by `test_backend.py`."""

import sys

import torch
import torch.distributed as dist

if not hasattr(dist.Backend, "_ensure_backend_registered"):
    sys.exit(print("skipped: this release of PyTorch looks for no backends in the packages that are installed"))
assert dist.is_backend_available("maypole")
dist.init_process_group("maypole")
tensor = torch.ones(3) * (dist.get_rank() + 1)
dist.all_reduce(tensor)
assert tensor.tolist() == [3.0] * 3 and dist.get_backend() == "maypole"
dist.destroy_process_group()
