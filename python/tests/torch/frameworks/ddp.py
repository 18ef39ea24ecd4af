"""DistributedDataParallel, its communication hooks, and the optimizers that build on it."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from checks import check, main

WIDTH = 96


def network(dtype=torch.float32):
    """Large enough for several buckets of 0.05 MB; the same on all ranks, as the seed is."""
    torch.manual_seed(7)
    layers = [nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10)]
    return nn.Sequential(*layers).to(dtype)


def batch(step, dtype=torch.float32):
    """This rank's input and target: different on each rank and in each step."""
    random = torch.Generator().manual_seed(1000 * dist.get_rank() + step)
    return torch.randn(8, WIDTH, generator=random, dtype=dtype), torch.randint(10, (8,), generator=random)


def step_loss(model, step, dtype=torch.float32):
    inputs, targets = batch(step, dtype)
    return nn.functional.cross_entropy(model(inputs).float(), targets)


def train(model, steps=3, dtype=torch.float32, optimizer=None):
    """Losses, the last gradients, and the weights that a few steps lead to."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = step_loss(model, step, dtype)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses, "gradients": [p.grad for p in model.parameters()], "weights": list(model.parameters())}


@check
def plain():
    return train(DistributedDataParallel(network()))


@check
def many_buckets_viewed_by_gradients():
    model = DistributedDataParallel(network(), bucket_cap_mb=0.05, gradient_as_bucket_view=True)
    return train(model, steps=5)


@check
def doubles():
    return train(DistributedDataParallel(network(torch.float64)), dtype=torch.float64)


@check(tolerance=3e-2)
def brain_floats():
    return train(DistributedDataParallel(network(torch.bfloat16)), dtype=torch.bfloat16)


@check
def different_weights_at_the_start():
    """DDP sends rank 0's weights to all: a broadcast of coalesced tensors."""
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(dist.get_rank())
    return list(DistributedDataParallel(model).parameters())


@check
def gradient_accumulation():
    model = DistributedDataParallel(network())
    with model.no_sync():
        for step in range(3):
            step_loss(model, step).backward()
    before = [p.grad.clone() for p in model.parameters()]
    step_loss(model, 3).backward()
    return {"not yet reduced": before, "reduced": [p.grad for p in model.parameters()]}


class Branches(nn.Module):
    """Takes one of its branches, so the other one's parameters get no gradient in that step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.branches = nn.ModuleList(nn.Linear(WIDTH, 10) for _ in range(3))

    def forward(self, inputs, branch):
        return self.branches[branch](inputs)


@check
def unused_parameters():
    model = DistributedDataParallel(Branches(), find_unused_parameters=True)
    gradients = []
    for step in range(3):
        model.zero_grad()
        inputs, targets = batch(step)
        branch = (step + dist.get_rank()) % 2  # the third branch is used by nobody
        nn.functional.cross_entropy(model(inputs, branch), targets).backward()
        gradients.append([torch.zeros(0) if p.grad is None else p.grad.clone() for p in model.parameters()])
    return gradients


class Checkpointed(nn.Module):
    """Computes its first half anew in the backward pass, which DDP bears only with a static graph."""

    def __init__(self):
        super().__init__()
        layers = network()
        self.first, self.second = layers[:3], layers[3:]

    def forward(self, inputs):
        hidden = checkpoint(self.first, inputs, use_reentrant=False)
        return self.second(checkpoint(nn.Sequential(nn.Identity()), hidden, use_reentrant=False))


@check
def static_graph():
    return train(DistributedDataParallel(Checkpointed(), static_graph=True), steps=4)


@check
def buffers_follow_rank_0():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(WIDTH, 32), nn.BatchNorm1d(32), nn.Linear(32, 10))
    model = DistributedDataParallel(model)
    result = train(model)
    model.eval()
    inputs, _ = batch(9)
    return {**result, "buffers": list(model.buffers()), "evaluated": model(inputs)}


@check
def uneven_inputs():
    """Ranks with fewer batches shadow the collectives of those with more."""
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with model.join():
        for step in range(2 + 2 * dist.get_rank()):
            optimizer.zero_grad()
            step_loss(model, step).backward()
            optimizer.step()
    return list(model.parameters())


def hooked(state, hook, steps=4, bucket_cap_mb=0.05):
    model = DistributedDataParallel(network(), bucket_cap_mb=bucket_cap_mb)
    model.register_comm_hook(state, hook)
    return train(model, steps)


@check
def hook_all_reduce():
    return hooked(None, default_hooks.allreduce_hook)


@check(tolerance=2e-3)
def hook_half_floats():
    return hooked(None, default_hooks.fp16_compress_hook)


@check(tolerance=2e-2)
def hook_brain_floats():
    return hooked(None, default_hooks.bf16_compress_hook)


@check(tolerance=1e-3)
def hook_power_sgd():
    """Low-rank gradients: all_reduce of a bucket's uncompressed part, of the left factors, of the right factors.

    One bucket. The hook makes its later calls from callbacks; with more buckets they would race, on CPU, with the calls
    that the backward pass makes for the next bucket, and gloo then ends the process.
    """
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
    return hooked(state, powerSGD_hook.powerSGD_hook, 5, bucket_cap_mb=25)


@check(tolerance=5e-3)
def hook_half_floats_around_power_sgd():
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
    return hooked(state, default_hooks.fp16_compress_wrapper(powerSGD_hook.powerSGD_hook), bucket_cap_mb=25)


@check
def hook_of_ones_own():
    """A chain of callbacks on the future of an asynchronous call, as users write them."""

    def gather_and_add(group, bucket):
        parts = [torch.empty_like(bucket.buffer()) for _ in range(dist.get_world_size())]
        work = dist.all_gather(parts, bucket.buffer(), async_op=True)
        mean = lambda _: torch.stack(parts).sum(0) / dist.get_world_size()  # noqa: E731
        return work.get_future().then(mean).then(lambda future: 2 * future.value())

    return hooked(None, gather_and_add)


@check
def zero_redundancy_optimizer():
    model = DistributedDataParallel(network())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.AdamW, lr=0.01)
    result = train(model, steps=4, optimizer=optimizer)
    optimizer.consolidate_state_dict(to=dist.get_world_size() - 1)
    if dist.get_rank() == dist.get_world_size() - 1:
        result["moments"] = [state["exp_avg"] for _, state in sorted(optimizer.state_dict()["state"].items())]
    return result


@check
def zero_redundancy_optimizer_with_views():
    model = DistributedDataParallel(network(), gradient_as_bucket_view=True)
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=torch.optim.SGD, parameters_as_bucket_view=True, lr=0.1, momentum=0.9
    )
    return train(model, steps=4, optimizer=optimizer)


@check
def periodic_averaging():
    """Weights drift apart for two steps and are averaged after each second one."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    averager = PeriodicModelAverager(period=2, warmup_steps=0)
    for step in range(5):
        optimizer.zero_grad()
        step_loss(model, step).backward()
        optimizer.step()
        averager.average_parameters(model.parameters())
    return list(model.parameters())


@check
def in_a_subgroup():
    """DDP over the even and over the odd ranks: each group trains a model of its own."""
    size = dist.get_world_size()
    groups = [dist.new_group(list(range(parity, size, 2))) for parity in range(2)]
    return train(DistributedDataParallel(network(), process_group=groups[dist.get_rank() % 2]))


@check
def ranks_hold_the_same_bits():
    model = DistributedDataParallel(network(), bucket_cap_mb=0.05)
    train(model, steps=4)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    everybodys = [torch.empty_like(weights) for _ in range(dist.get_world_size())]
    dist.all_gather(everybodys, weights)
    assert all(torch.equal(weights, other) for other in everybodys), "the ranks' weights differ"
    return weights


if __name__ == "__main__":
    main()
