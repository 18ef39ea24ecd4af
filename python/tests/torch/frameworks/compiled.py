"""Functional collectives, as they are and inside torch.compile, which turns them into calls from generated C++."""

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import nn
from torch.distributed.nn.functional import all_gather as differentiable_all_gather
from torch.nn.parallel import DistributedDataParallel

from checks import check, gloo_averages, main


OPERATIONS = ["sum", "max", "min", "product", *(["avg"] if gloo_averages() else [])]


def example(rows=8):
    random = torch.Generator().manual_seed(100 + dist.get_rank())
    return torch.randn(rows, 6, generator=random)


def reductions(x, group):
    return [functional.all_reduce(2 * x, operation, group) + 1 for operation in OPERATIONS]


def gathered_and_scattered(x, group):
    gathered = functional.all_gather_tensor(x.sin(), 0, group)
    scattered = functional.reduce_scatter_tensor(gathered * 3, "sum", 0, group)
    return [gathered.cos(), scattered + x, functional.all_gather_tensor(x, 1, group)]


def exchanged(x, group):
    size = dist.get_world_size()
    even = functional.all_to_all_single(x.relu(), None, None, group)
    shifted = functional.permute_tensor(x.flatten(), [(rank + 1) % size for rank in range(size)], group)
    return [even * 2, shifted * 3, functional.broadcast(x.exp(), 0, group)]


def coalesced(x, group):
    reduced = functional.all_reduce_coalesced([x, 2 * x.sum(0)], "sum", group)
    gathered = functional.all_gather_into_tensor_coalesced([x, x.flatten()], group)
    scattered = functional.reduce_scatter_tensor_coalesced([x, x * 2], "sum", [0, 0], group)
    return [*reduced, *gathered, *scattered]


FUNCTIONS = (reductions, gathered_and_scattered, exchanged, coalesced)


def rows():
    return 4 * dist.get_world_size()


def results(function, transform=lambda function: function):
    group = dist.group.WORLD
    values = transform(lambda x: function(x, group))(example(rows()))
    return [functional.wait_tensor(value).clone() for value in values]


@check
def functional_collectives():
    return {function.__name__: results(function) for function in FUNCTIONS}


@check
def uneven_splits():
    """Rank r gives r + p + 1 rows to rank p."""
    rank, size = dist.get_rank(), dist.get_world_size()
    given = [rank + peer + 1 for peer in range(size)]
    return functional.wait_tensor(functional.all_to_all_single(example(sum(given)), given, given, dist.group.WORLD))


@check
def gradients_through_collectives():
    x = example(rows()).requires_grad_()
    group = dist.group.WORLD
    gathered = functional.all_gather_tensor_autograd(x * 2, 0, group)
    scattered = functional.reduce_scatter_tensor_autograd(gathered.sin(), "sum", 0, group)
    exchanged = functional.all_to_all_single_autograd(scattered * x, None, None, group)
    listed = torch.stack(differentiable_all_gather(exchanged.exp().tanh()))
    listed.square().sum().backward()
    return [listed, x.grad]


def compiled(function):
    """The function compiled by inductor as one graph, after forgetting what was compiled for another group."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True)


@check
def compiled_collectives():
    found = {function.__name__: results(function, compiled) for function in FUNCTIONS}
    for function in FUNCTIONS:
        for ours, eager in zip(found[function.__name__], results(function)):
            torch.testing.assert_close(ours, eager)
    return found


@check
def compiled_calls_of_torch_distributed():
    """dist.all_reduce and its like in place inside a compiled function; dynamo replaces them by functional ones."""

    def step(x):
        y = x * 2
        dist.all_reduce(y)
        parts = torch.empty(dist.get_world_size() * y.shape[0], *y.shape[1:])
        dist.all_gather_into_tensor(parts, y + x)
        share = torch.empty_like(x)
        dist.reduce_scatter_tensor(share, parts.sin())
        return share + y

    torch._dynamo.reset()
    return torch.compile(step)(example(rows()))


@check
def compiled_data_parallel():
    """A compiled model in DDP, whose graph dynamo splits at the buckets."""
    torch._dynamo.reset()
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 600), nn.ReLU(), nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 3))
    model = torch.compile(DistributedDataParallel(model, bucket_cap_mb=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(example()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses, "weights": list(model.parameters())}


if __name__ == "__main__":
    main()
