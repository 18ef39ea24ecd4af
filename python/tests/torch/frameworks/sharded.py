"""What shards a model over the ranks: FSDP2, tensor parallel over a DeviceMesh, pipelines; and its checkpoints."""

import shutil
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from checks import check, gloo_averages, main

WIDTH = 32


def network():
    """The same on all ranks, as the seed is. 13 outputs do not divide evenly."""
    torch.manual_seed(7)
    layers = [nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 13)]
    return nn.Sequential(*layers)


def batch(step, replica=None):
    """An input and target that differ from replica to replica; by default each rank is one."""
    replica = dist.get_rank() if replica is None else replica
    random = torch.Generator().manual_seed(1000 * replica + step)
    return torch.randn(8, WIDTH, generator=random), torch.randint(13, (8,), generator=random)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def train(model, optimizer=None, steps=3, replica=None, clip=None):
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        inputs, targets = batch(step, replica)
        loss = nn.functional.cross_entropy(whole(model(inputs)).float(), targets)
        loss.backward()
        if clip is not None:
            losses.append(whole(nn.utils.clip_grad_norm_(model.parameters(), clip)).item())
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses, "weights": [whole(parameter) for parameter in model.parameters()]}


def shard(model, **options):
    """FSDP2 by layer, and once more around the whole."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, **options)
    return fully_shard(model, **options)


def all_ranks():
    return init_device_mesh("cpu", (dist.get_world_size(),))


@check
def fully_sharded():
    return train(shard(network(), mesh=all_ranks()), clip=0.5)


@check
def fully_sharded_until_the_backward_pass():
    return train(shard(network(), mesh=all_ranks(), reshard_after_forward=False))


@check(tolerance=2e-2)
def fully_sharded_in_brain_floats():
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return train(shard(network(), mesh=all_ranks(), mp_policy=policy))


@check
def fully_sharded_with_accumulation():
    model = shard(network(), mesh=all_ranks())
    for step in range(3):
        model.set_requires_gradient_sync(step == 2)
        inputs, targets = batch(step)
        nn.functional.cross_entropy(model(inputs), targets).backward()
    return [whole(parameter.grad) for parameter in model.parameters()]


@check(ranks=4)
def sharded_in_pairs_and_replicated():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    return train(shard(network(), mesh=mesh))


@check
def fully_sharded_equals_data_parallel():
    """Beyond comparing backends: the same training by another route of collectives."""
    sharded = train(shard(network(), mesh=all_ranks()))
    replicated = train(nn.parallel.DistributedDataParallel(network()))
    for ours, theirs in zip(sharded["weights"], replicated["weights"]):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)
    return sharded


def shared_directory():
    """A new directory whose name all ranks know."""
    name = [tempfile.mkdtemp(prefix="maypole-checkpoint-") if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(name)
    return name[0]


def saved_and_loaded(save):
    """Trains, saves with `save(state, directory)`, loads into a fresh model, and trains both on."""
    directory = shared_directory()
    model = shard(network(), mesh=all_ranks())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer)
    weights, moments = get_state_dict(model, optimizer)
    save({"weights": weights, "moments": moments}, directory)

    loaded = shard(network(), mesh=all_ranks())
    other = torch.optim.AdamW(loaded.parameters(), lr=0.5)
    weights, moments = get_state_dict(loaded, other)
    state = {"weights": weights, "moments": moments}
    dcp.load(state, checkpoint_id=directory)
    set_state_dict(loaded, other, model_state_dict=state["weights"], optim_state_dict=state["moments"])
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(directory)
    first, second = train(model, optimizer), train(loaded, other)
    for ours, theirs in zip(first["weights"], second["weights"]):
        assert torch.equal(ours, theirs), "what was loaded trains otherwise than what was saved"
    return second


@check
def checkpoint():
    return saved_and_loaded(lambda state, directory: dcp.save(state, checkpoint_id=directory))


@check
def whole_state_on_rank_0():
    model = shard(network(), mesh=all_ranks())
    train(model)
    return dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)))


@check
def tensors_between_layouts():
    """Every pair of layouts: all_gather, reduce_scatter, all_to_all, all_reduce, scatter of DTensor's own making."""
    mesh = all_ranks()
    torch.manual_seed(3)
    data = torch.randn(4 * mesh.size(), 3 * mesh.size() + 1)  # the second dimension does not divide evenly
    result = {}
    for source in (Shard(0), Shard(1), Replicate()):
        spread = distribute_tensor(data, mesh, [source])
        for target in (Shard(0), Shard(1), Replicate()):
            there = spread.redistribute(mesh, [target])
            result[f"{source} {target}"] = [there.to_local(), there.full_tensor()]
    for operation in ("sum", "max", "min", *(["avg"] if gloo_averages() else [])):
        partial = DTensor.from_local(data + mesh.get_rank(), mesh, [Partial(operation)])
        for target in (Shard(0), Shard(1), Replicate()):
            result[f"{operation} {target}"] = partial.redistribute(mesh, [target]).to_local()
    product = distribute_tensor(data, mesh, [Shard(1)]) @ distribute_tensor(data.t().contiguous(), mesh, [Shard(0)])
    return {**result, "product": product.full_tensor()}


@check
def tensor_parallel():
    mesh = all_ranks()
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel(), "4": ColwiseParallel(output_layouts=Replicate())}
    return train(parallelize_module(network(), mesh, plan), replica=0)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, 4 * dist.get_world_size())

    def forward(self, inputs):
        return self.out(self.down(torch.relu(self.up(self.norm(inputs)))))


@check
def sequence_parallel_with_parallel_loss():
    """Activations sharded by rows between the parallel layers, and a loss over logits that no rank has all of."""
    mesh = all_ranks()
    plan = {
        "norm": SequenceParallel(sequence_dim=0),
        "up": PrepareModuleInput(input_layouts=Shard(0), desired_input_layouts=Replicate()),
        "down": RowwiseParallel(output_layouts=Shard(0)),
        "out": ColwiseParallel(input_layouts=Shard(0), output_layouts=Shard(-1), use_local_output=False),
    }
    model = parallelize_module(Block(), mesh, plan)
    parallelize_module(model, mesh, {"up": ColwiseParallel()})
    random = torch.Generator().manual_seed(8)
    inputs = torch.randn(4 * mesh.size(), WIDTH, generator=random)
    targets = torch.randint(13, (4 * mesh.size(),), generator=random)
    with loss_parallel():
        logits = model(inputs.chunk(mesh.size())[mesh.get_rank()])
        loss = nn.functional.cross_entropy(logits, targets % (4 * mesh.size()))
        loss.backward()
    return {"loss": whole(loss), "gradients": [whole(p.grad) for p in model.parameters()]}


@check(ranks=4)
def tensor_parallel_and_sharded():
    """Two dimensions: tensor parallel inside pairs, FSDP2 between them."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = parallelize_module(network(), mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return train(shard(model, mesh=mesh["data"]), replica=mesh.get_local_rank("data"))


@check
def meshes_and_their_groups():
    """Subgroups of a mesh of every rank, in both directions, each adding up its own."""
    size, rank = dist.get_world_size(), dist.get_rank()
    rows = 2 if size % 2 == 0 else 1
    mesh = init_device_mesh("cpu", (rows, size // rows), mesh_dim_names=("row", "column"))
    result = {}
    for name in ("row", "column"):
        group = mesh.get_group(name)
        tensor = torch.arange(5.0) + rank
        dist.all_reduce(tensor, group=group)
        gathered = [None] * dist.get_world_size(group)
        dist.all_gather_object(gathered, {"rank": rank}, group=group)
        result[name] = [tensor, gathered, mesh.get_local_rank(name)]
    reversed_mesh = DeviceMesh("cpu", list(reversed(range(size))))
    tensor = torch.full((3,), float(rank))
    dist.broadcast(tensor, src=size - 1, group=reversed_mesh.get_group())
    return {**result, "flat": mesh["row", "column"]._flatten().size(), "reversed": tensor}


@check
def pipeline():
    """Stages on ranks in a row: activations forward and gradients back by messages."""
    size, rank = dist.get_world_size(), dist.get_rank()
    torch.manual_seed(40 + rank)
    stage = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
    schedule = ScheduleGPipe(
        PipelineStage(stage, rank, size, torch.device("cpu")), n_microbatches=4, loss_fn=nn.functional.mse_loss
    )
    inputs, _ = batch(0, replica=0)
    losses = []
    if rank == 0:
        schedule.step(inputs)
    elif rank == size - 1:
        schedule.step(target=torch.ones_like(inputs), losses=losses)
    else:
        schedule.step()
    return {"gradients": [p.grad for p in stage.parameters()], "losses": [loss.item() for loss in losses]}


if __name__ == "__main__":
    main()
