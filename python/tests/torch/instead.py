"""A program that knows the backend gloo only: one rank of it. Run by `test_backend.py`.

With `accelerate`: one that accelerate makes; with `asks`: one that asks for it in its own code.
"""

import sys

import torch
import torch.distributed as dist

if not hasattr(dist.Backend, "_ensure_backend_registered"):
    sys.exit(print("skipped: Maypole stands in for gloo from PyTorch 2.15 on"))


def is_maypole(group):
    return type(group).__module__.startswith("maypole.")


def accelerate():
    try:
        from accelerate import Accelerator
    except ImportError:
        sys.exit(print("skipped: accelerate is not installed here"))
    accelerator = Accelerator(cpu=True)
    rank, size = accelerator.process_index, accelerator.num_processes
    assert size == 2 and dist.get_backend() == "gloo" and is_maypole(dist.group.WORLD)
    torch.manual_seed(rank)
    model = torch.nn.Linear(3, 1)
    data = torch.utils.data.DataLoader(torch.arange(24.0).view(8, 3), batch_size=2)
    model, data, sgd = accelerator.prepare(model, data, torch.optim.SGD(model.parameters(), 0.001))
    for batch in data:
        accelerator.backward(model(batch).square().mean())
        sgd.step()
        sgd.zero_grad()
    weights = accelerator.gather(next(model.parameters()).detach())
    assert torch.equal(weights[0], weights[1]), weights
    accelerator.wait_for_everyone()
    assert accelerator.gather_for_metrics(torch.tensor([rank])).tolist() == [0, 1]
    accelerator.end_training()


def plain():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    group = dist.group.WORLD
    assert is_maypole(group) and dist.get_backend() == "gloo" and group.name() == "gloo"
    assert group._get_backend(torch.device("cpu"))._get_backend_name() == "gloo"
    tensor = torch.ones(3) * (rank + 1)
    dist.all_reduce(tensor)
    assert tensor.tolist() == [3.0] * 3
    part = dist.new_group([0, 1], backend="gloo")
    assert is_maypole(part) and dist.get_backend(part) == "gloo"
    dist.monitored_barrier(part)
    objects = [None, None]
    dist.all_gather_object(objects, {"rank": rank}, group=part)
    assert [o["rank"] for o in objects] == [0, 1]
    # By its own name, and as a part of a group with another backend.
    assert is_maypole(dist.new_group([0, 1], backend="maypole"))
    mixed = dist.new_group([0, 1], backend="cpu:gloo,cuda:maypole")
    assert is_maypole(mixed._get_backend(torch.device("cpu")))
    assert mixed._get_backend(torch.device("cpu"))._get_backend_name() == "gloo"
    dist.broadcast(tensor, 0, group=mixed)
    dist.destroy_process_group()


how = sys.argv[1]
if how == "not asked":
    dist.init_process_group("gloo")
    assert not is_maypole(dist.group.WORLD), dist.group.WORLD
    dist.destroy_process_group()
elif how == "accelerate":
    accelerate()
else:
    if how == "asks":
        import maypole.torch

        maypole.torch.stand_in("gloo")
        try:
            maypole.torch.stand_in("nccl")
        except ValueError as error:
            assert "'nccl', but Maypole stands in for gloo only" in str(error), error
        else:
            raise AssertionError("nobody stands in for nccl")
    plain()
print("ok")
