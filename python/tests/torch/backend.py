"""What the backend promises beyond equality with gloo: one rank of a world that checks it. Run by `test_backend.py`.

Each check is a function of the rank and the number of ranks; all ranks run all of them in one world, since importing
PyTorch takes longer than the checks.
"""

import os
import sys
import threading
import time
import warnings
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

import maypole
import maypole.torch

warnings.simplefilter("ignore")


def raises(kind, call, *words):
    """Whether `call` raises `kind` with these words in its text."""
    try:
        call()
    except kind as error:
        for word in words:
            assert word in str(error), f"{word!r} is not in {error}"
        return
    raise AssertionError(f"{call} raised nothing")


def averages(rank, size):
    tensor = torch.full((5,), float(rank))
    dist.all_reduce(tensor, dist.ReduceOp.AVG)
    assert tensor.tolist() == [(size - 1) / 2] * 5
    output = torch.empty(2)
    dist.reduce_scatter_tensor(output, torch.full((2 * size,), float(rank)), dist.ReduceOp.AVG)
    assert output.tolist() == [(size - 1) / 2] * 2


def premultiplied_sums(rank, size):
    if not hasattr(dist, "_make_nccl_premul_sum"):
        return
    tensor = torch.full((5,), float(rank))
    dist.all_reduce(tensor, dist._make_nccl_premul_sum(2.0))
    assert tensor.tolist() == [size * (size - 1.0)] * 5
    outputs, inputs = torch.empty(rank + 1), [torch.full((r + 1,), 1.0) for r in range(size)]
    dist.reduce_scatter(outputs, inputs, dist._make_nccl_premul_sum(0.5))
    assert outputs.tolist() == [size / 2] * (rank + 1)


def every_type_moves(rank, size):
    names = "uint16 uint32 uint64 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu complex32"
    for dtype in (getattr(torch, name) for name in names.split() if hasattr(torch, name)):
        width = torch.empty(0, dtype=dtype).element_size()
        given = (torch.arange(6 * width, dtype=torch.int32) + rank).to(torch.uint8).view(dtype)
        outputs = [torch.empty_like(given) for _ in range(size)]
        dist.all_gather([o.view(torch.uint8) for o in outputs], given.view(torch.uint8))
        again = [torch.empty_like(given) for _ in range(size)]
        dist.group.WORLD.allgather([again], [given]).wait()
        for ours, theirs in zip(again, outputs):
            assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)), dtype


def small_floats_and_integers_are_reduced(rank, size):
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "uint16", "uint32", "uint64"):
        dtype = getattr(torch, name, None)
        if dtype is not None:
            tensor = torch.ones(9).to(dtype)
            dist.group.WORLD.allreduce([tensor]).wait()
            assert tensor.to(torch.float64).tolist() == [float(size)] * 9, (dtype, tensor)


def truth_values(rank, size):
    mine = torch.tensor([True, False, rank == 0])
    for op, expected in [("SUM", [True, False, True]), ("PRODUCT", [True, False, size == 1]),
                         ("BXOR", [size % 2 == 1, False, True])]:  # fmt: skip
        tensor = mine.clone()
        dist.all_reduce(tensor, getattr(dist.ReduceOp, op))
        assert tensor.tolist() == expected, (op, tensor)


def views(rank, size):
    wide = torch.zeros(4, 6)
    wide[:, 1] = rank + 1.0
    dist.all_reduce(wide[:, 1])
    assert wide[:, 1].tolist() == [size * (size + 1) / 2] * 4 and wide.sum() == wide[:, 1].sum()
    turned = torch.full((3, 4), float(rank)).t()
    dist.all_reduce(turned)
    assert turned.unique().tolist() == [size * (size - 1) / 2]
    conjugated = torch.full((3,), complex(1, rank)).conj()
    outputs = [torch.empty(3, dtype=torch.complex64) for _ in range(size)]
    dist.group.WORLD.allgather([outputs], [conjugated]).wait()
    assert [o[0].item() for o in outputs] == [complex(1, -r) for r in range(size)]
    leaf = torch.ones(4, requires_grad=True)
    dist.all_reduce(leaf[::2].detach())
    outputs = torch.zeros(size, 3)
    dist.all_gather(list(outputs.unbind()), torch.full((3,), float(rank)))
    assert outputs[:, 0].tolist() == list(range(size))
    # The input is a part of the output, but not this rank's.
    shared = torch.arange(float(size))
    dist.all_gather_into_tensor(shared, shared[:1])
    assert shared.tolist() == [0.0] * size


def blocks_of_different_lengths(rank, size):
    outputs = [torch.empty(r + 1) for r in range(size)]
    dist.group.WORLD.allgather([outputs], [torch.full((rank + 1,), float(rank))]).wait()
    assert [o.tolist() for o in outputs] == [[float(r)] * (r + 1) for r in range(size)]
    output = torch.empty(rank + 1)
    dist.group.WORLD.reduce_scatter([output], [[torch.ones(r + 1) for r in range(size)]]).wait()
    assert output.tolist() == [float(size)] * (rank + 1)
    received = [torch.empty(other + 1) for other in range(size)]
    dist.all_to_all(received, [torch.full((rank + 1,), float(rank)) for _ in range(size)])
    assert [o.tolist() for o in received] == [[float(r)] * (r + 1) for r in range(size)]


def futures_complete_on_their_own(rank, size):
    tensor = torch.full((1000,), float(rank))
    future = dist.all_reduce(tensor, async_op=True).get_future()
    doubled = future.then(lambda done: done.value()[0] * 2)
    end = time.monotonic() + 30
    while not doubled.done():
        assert time.monotonic() < end
        time.sleep(0.001)
    assert doubled.value()[0].item() == size * (size - 1)


def callbacks_may_call(rank, size):
    # As PowerSGD does: a callback makes a call, and waits for it, while more is queued.
    first, second, third = (torch.ones(10) for _ in range(3))

    def again(done):
        return dist.all_reduce(second, async_op=True).get_future().wait()[0] + done.value()[0]

    chained = dist.all_reduce(first, async_op=True).get_future().then(again)
    last = dist.all_reduce(third, async_op=True)
    assert chained.wait()[0].item() == 2 * size
    last.wait()
    assert third[0].item() == size


def many_at_once(rank, size):
    tensors = [torch.full((n * 100 + 1,), float(rank)) for n in range(50)]
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    dist.barrier()
    for work in reversed(works):
        assert work.wait(timedelta(seconds=20)) and work.is_success()
    assert all(tensor[0].item() == size * (size - 1) / 2 for tensor in tensors)


def asynchronous_errors_are_raised_by_wait(rank, size):
    work = dist.all_reduce(torch.ones(3), async_op=True)
    work.wait()
    assert work.exception() is None and work.result()[0].tolist() == [size] * 3


def receives_from_anyone(rank, size):
    if size == 1:
        return
    if rank == 0:
        seen = {}
        for _ in range(2 * (size - 1)):
            tensor = torch.zeros(3, dtype=torch.int64)
            source = dist.recv(tensor, tag=5)
            assert tensor[0].item() == source
            seen.setdefault(source, []).append(tensor[1].item())
        assert seen == {r: [0, 1] for r in range(1, size)}, seen
        big = torch.zeros(100_000)
        assert dist.recv(big, tag=6) == size - 1 and big[-1].item() == 6.0
        work = dist.group.WORLD.recv_anysource([big], 7)
        dist.barrier()
        work.wait()
        assert work._source_rank() == 1
    else:
        for number in range(2):
            dist.send(torch.tensor([rank, number, 0]), 0, tag=5)
        if rank == size - 1:
            dist.send(torch.full((100_000,), 6.0), 0, tag=6)
        dist.barrier()
        if rank == 1:
            dist.send(torch.zeros(100_000), 0, tag=7)


def receives_from_anyone_have_their_places(rank, size):
    """A message goes to the earliest receive that it fits, from when that was called."""
    group = dist.group.WORLD
    if size == 1:
        return
    if rank == 0:
        first, second, big = torch.zeros(2), torch.zeros(2), torch.zeros(2_000_000)
        anyone = group.recv_anysource([first], 9)
        named = group.recv([second], 1, 9)
        large = group.recv_anysource([big], 10)
        assert anyone._source_rank() == -1 and not anyone.is_completed()
        dist.barrier()
        # Rank 1 comes here when all it has sent was taken, though nobody waits for it.
        dist.barrier()
        named.wait()
        anyone.wait()
        large.wait()
        assert (first[0].item(), second[0].item(), big[-1].item()) == (1.0, 2.0, 3.0)
        assert anyone._source_rank() == large._source_rank() == named._source_rank() == 1
        # Where a tensor has gaps, and by a future.
        gaps = torch.zeros(4, 2)[:, 0]
        work = group.recv_anysource([gaps], 11)
        dist.barrier()
        assert work.get_future().wait()[0].tolist() == [5.0] * 4 and work._source_rank() == 1
    else:
        dist.barrier()
        if rank == 1:
            dist.send(torch.full((2,), 1.0), 0, tag=9)
            dist.send(torch.full((2,), 2.0), 0, tag=9)
            dist.send(torch.full((2_000_000,), 3.0), 0, tag=10)
        dist.barrier()
        dist.barrier()
        if rank == 1:
            dist.send(torch.full((4,), 5.0), 0, tag=11)


def communicators_of_groups(rank, size):
    """What the library has and PyTorch has no words for."""
    comm = maypole.torch.communicator()
    assert (comm.rank, comm.size) == (rank, size)
    pairs = np.array([(rank % 2, rank), (-rank, rank)], [("value", "f4"), ("index", "i4")])
    comm.all_reduce(pairs, "maxloc")
    assert pairs["index"].tolist() == [1 if size > 1 else 0, 0]

    def product(a, b):
        return (a.reshape(-1, 2, 2) @ b.reshape(-1, 2, 2)).reshape(-1, 4)

    # Upper triangular matrices with this rank's number: their product has the sum, in order.
    matrices = torch.tensor([[1.0, rank, 0.0, 1.0]] * 5)
    work = dist.all_reduce(torch.ones(3), async_op=True)
    comm.all_reduce(matrices, maypole.Op(product, width=4, commutes=False))
    work.wait()
    assert matrices[:, 1].tolist() == [size * (size - 1) / 2] * 5
    group = dist.new_group([0])
    if rank == 0:
        assert maypole.torch.communicator(group).size == 1
    comm.close()
    raises(maypole.ArgumentError, lambda: maypole.torch.communicator(dist.new_group(backend="gloo")), "no process group")


def batches(rank, size):
    left, right = (rank - 1) % size, (rank + 1) % size
    given, taken = torch.full((50_000,), float(rank)), [torch.empty(50_000) for _ in range(2)]
    works = dist.batch_isend_irecv([
        dist.P2POp(dist.irecv, taken[0], left, tag=1),
        dist.P2POp(dist.irecv, taken[1], right, tag=2),
        dist.P2POp(dist.isend, given, right, tag=1),
        dist.P2POp(dist.isend, given, left, tag=2),
    ])  # fmt: skip
    for work in works:
        work.wait()
    assert taken[0][7].item() == left and taken[1][7].item() == right
    group = dist.group.WORLD
    group._start_coalescing(torch.device("cpu"))
    one, other = torch.ones(4), torch.ones(5)
    group.allreduce([one])
    group.allreduce([other])
    group._end_coalescing(torch.device("cpu")).wait()
    assert one[0].item() == other[0].item() == size


def strided_messages(rank, size):
    if size == 1:
        return  # messages need two ranks
    wide = torch.zeros(6, 4)
    works = []
    if rank == 1:
        works.append(dist.irecv(wide[:, 2], 0))
    elif rank == 0:
        works.append(dist.isend(torch.arange(12.0)[::2], 1))
    for work in works:
        work.wait()
    if rank == 1:
        assert wide[:, 2].tolist() == [0, 2, 4, 6, 8, 10] and wide.sum() == wide[:, 2].sum()


def subgroups(rank, size):
    halves = [dist.new_group(list(range(size))[part::2]) for part in range(min(2, size))]
    mine = halves[rank % 2]
    tensor = torch.full((3,), float(rank))
    dist.all_reduce(tensor, group=mine)
    assert tensor[0].item() == sum(range(rank % 2, size, 2))
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("all",))
    tensor = torch.ones(2)
    dist.all_reduce(tensor, group=mesh.get_group("all"))
    assert tensor[0].item() == size
    dist.destroy_process_group(mine)
    if hasattr(c10d.ProcessGroup, "shutdown"):
        # Older releases do not tell a group that it was destroyed.
        raises((RuntimeError, ValueError, TypeError), lambda: dist.all_reduce(tensor, group=mine))


def splits(rank, size):
    if not hasattr(dist, "split_group") or maypole.torch.MaypoleBackend is None:
        return
    try:
        group = dist.split_group(dist.group.WORLD, [list(range(size))[part::2] for part in range(min(2, size))])
    except RuntimeError as error:
        # Releases before 2.15 split only groups that were made for one device.
        assert "No device associated" in str(error), error
        return
    tensor = torch.full((3,), float(rank))
    dist.all_reduce(tensor, group=group)
    assert tensor[0].item() == sum(range(rank % 2, size, 2))


def functional(rank, size):
    import torch.distributed._functional_collectives as funcol

    group = dist.group.WORLD
    assert funcol.all_reduce(torch.ones(4), "sum", group).tolist() == [size] * 4
    assert funcol.all_gather_tensor(torch.full((1,), float(rank)), 0, group).tolist() == list(range(size))
    assert funcol.reduce_scatter_tensor(torch.ones(size), "sum", 0, group).tolist() == [size]
    several = funcol.all_reduce_coalesced([torch.ones(2), torch.ones(3)], "sum", group)
    assert [t[0].item() for t in several] == [size] * 2
    swapped = funcol.all_to_all_single(torch.full((size,), float(rank)), None, None, group)
    assert swapped.tolist() == list(range(size))
    assert funcol.broadcast(torch.full((2,), float(rank)), 0, group).tolist() == [0, 0]


def through_cpp(rank, size):
    # DDP's reducer calls from C++, and keeps only C++'s part of what a Python method returns.
    tensor = torch.ones(3)
    dist._broadcast_coalesced(dist.group.WORLD, [tensor], 1 << 20, 0)
    works = [c10d.ProcessGroup.allreduce(dist.group.WORLD, [tensor], c10d.AllreduceOptions()) for _ in range(3)]
    for work in works:
        work.get_future().wait()
    assert tensor[0].item() == size**3


def bad_arguments(rank, size):
    good, group = torch.ones(4), dist.group.WORLD
    error = maypole.ArgumentError
    meta = torch.ones(3, device="meta")
    for call in (
        lambda: dist.all_reduce(meta),
        lambda: dist.broadcast(meta, 0),
        lambda: dist.all_gather_into_tensor(torch.ones(3 * size, device="meta"), meta),
        lambda: dist.group.WORLD.send([meta], 0, 0),
    ):
        raises(error, call, "it is on the device meta, where tensors have shapes but no elements to send")
    raises(error, lambda: dist.all_reduce(good, dist.ReduceOp.BAND), "op", "BAND", "float32")
    raises(error, lambda: group.allreduce([good, good]), "tensor", "2")
    raises(error, lambda: dist.all_gather_into_tensor(torch.ones(1), good), "output_tensor", "1 elements")
    raises(error, lambda: dist.all_gather_into_tensor(torch.ones(4 * size).double(), good), "output_tensor", "float64")
    raises(error, lambda: group.allgather([[good]] if size > 1 else [[]], [good]), "tensor_list")
    raises(error, lambda: dist.all_to_all_single(good, torch.ones(4), [1] * (size + 1), [4] + [0] * (size - 1)), "sizes")
    raises(error, lambda: group.broadcast([good], root_options(size)), "root", str(size))
    raises(error, lambda: group.allreduce([torch.eye(3).to_sparse_csr()]), "tensor", "sparse_csr")
    raises(error, lambda: group.send([good], size, 0), "peer")
    dist.barrier()


def root_options(root):
    options = c10d.BroadcastOptions()
    options.rootRank = root
    return options


def monitored(rank, size):
    maypole.torch.monitored_barrier(timeout=timedelta(seconds=10), wait_all_ranks=True)
    if rank == size - 1:
        time.sleep(1.0)
        # It is to be at the same barrier as the others afterwards.
        next(dist.group.WORLD._barriers)
    else:
        # The last rank has not come: all others are told, and the group goes on.
        raises(
            maypole.StalledError,
            lambda: maypole.torch.monitored_barrier(timeout=timedelta(seconds=0.3), wait_all_ranks=True),
            f"Rank {size - 1} failed to pass monitoredBarrier",
        )
    dist.barrier()
    for _ in range(3):
        maypole.torch.monitored_barrier()
    keys = [f"maypole/barrier/{dist.group.WORLD._key}/2/{who}" for who in ("end", size - 1)]
    dist.barrier()
    assert not any(dist.group.WORLD._store.check([key]) for key in keys), "keys of a barrier that is over stay"


def monitored_again(rank, size):
    # A backend of the group is the group; and another group at the same place of the store is not.
    if maypole.torch.MaypoleBackend is not None:
        together(rank, size, dist.group.WORLD, dist.group.WORLD._get_backend(torch.device("cpu")))
    groups = []
    for _ in range(2):
        # The same place of the store: what rank 0 says there for the first must not be read for the second.
        group = make_again()
        together(rank, size, group)
        groups.append(group)
        group.shutdown()


def make_again():
    store = dist.PrefixStore("again", dist.group.WORLD._store)
    rank, size, timeout = dist.get_rank(), dist.get_world_size(), timedelta(seconds=60)
    link, key = maypole.torch.meeting.meet(store, rank, size, timeout.total_seconds())
    return maypole.torch.MaypoleGroup(link, key, store, rank, size, timeout)


def together(rank, size, *faces):
    """Whether a monitored barrier waits for the last rank, by whichever face of a group the ranks call it."""
    came = torch.zeros(1, dtype=torch.float64)
    for face in faces:
        dist.barrier()
        if rank == size - 1:
            time.sleep(0.5)
            came[0] = time.monotonic()
        face.monitored_barrier(timedelta(seconds=60))
        left = time.monotonic()
        dist.broadcast(came, size - 1)
        assert left >= came.item(), "a rank passed before the last had come"


def facts_about_backends(rank, size):
    if maypole.torch.MaypoleBackend is None:
        return
    group = dist.group.WORLD
    backend = group._get_backend(torch.device("cpu"))
    for face in (group, backend):
        for name in dir(type(face)):
            # Those that a Python class does not answer itself are asked for again and again, without end.
            if name.startswith(("supports_", "_supports_")) and isinstance(getattr(type(face), name), property):
                assert getattr(face, name) in (True, False), name
    before = backend._get_sequence_number_for_group()
    dist.barrier()
    dist.all_reduce(torch.ones(3), async_op=True).wait()
    assert backend._get_sequence_number_for_group() == group._get_sequence_number_for_group() == before + 2
    assert str(backend.get_error()).endswith("SUCCESS")
    # Both have one timeout, whoever sets it.
    for face, seconds in ((group, 51), (backend, 52)):
        face.set_timeout(timedelta(seconds=seconds))
        assert group._timeout == backend._timeout == timedelta(seconds=seconds)
        assert group.options._timeout == backend.options._timeout == timedelta(seconds=seconds)


def coalescing_is_a_thread_s(rank, size):
    group, begun, ended = dist.group.WORLD, threading.Event(), threading.Event()
    mine, theirs, outcome = torch.ones(4), torch.ones(4), []

    def other():
        begun.wait(60)
        group.allreduce([theirs]).wait()
        outcome.append(group._coalescing and threading.get_ident() in group._coalescing)
        ended.set()

    thread = threading.Thread(target=other)
    thread.start()
    group._start_coalescing(torch.device("cpu"))
    begun.set()
    assert ended.wait(60)
    # Not before: the order of operations is the same on all ranks.
    group.allreduce([mine])
    work = group._end_coalescing(torch.device("cpu"))
    thread.join()
    assert len(work.result()) == 1 and not outcome[0]
    work.wait()
    assert mine[0].item() == theirs[0].item() == size


def timeouts_for_one_call(rank, size):
    options = c10d.BarrierOptions()
    options.timeout = timedelta(seconds=15)
    dist.group.WORLD.barrier(options).wait()
    dist.group.WORLD.set_timeout(timedelta(seconds=55))
    dist.barrier()


def forks_are_told(rank, size):
    child = os.fork()
    if child == 0:
        try:
            dist.all_reduce(torch.ones(1))
        except maypole.Error as error:
            os._exit(0 if "forked" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    dist.barrier()


def after_destroy(rank, size):
    group = dist.group.WORLD
    dist.destroy_process_group()
    group.shutdown()
    raises(RuntimeError, lambda: group.allreduce([torch.ones(1)]).wait(), "destroyed")
    raises(ValueError, lambda: dist.all_reduce(torch.ones(1)))


CHECKS = [
    averages, premultiplied_sums, every_type_moves, small_floats_and_integers_are_reduced, truth_values, views,
    blocks_of_different_lengths, futures_complete_on_their_own, callbacks_may_call, many_at_once,
    asynchronous_errors_are_raised_by_wait, receives_from_anyone, receives_from_anyone_have_their_places,
    communicators_of_groups, batches,
    strided_messages, subgroups, splits, functional,
    through_cpp, bad_arguments, monitored, monitored_again, facts_about_backends, coalescing_is_a_thread_s,
    timeouts_for_one_call, forks_are_told, after_destroy,
]  # fmt: skip


def main():
    torch.set_num_threads(1)
    dist.init_process_group("maypole", timeout=timedelta(seconds=60))
    rank, size = dist.get_rank(), dist.get_world_size()
    for check in CHECKS:
        check(rank, size)
        print("ok:", check.__name__, flush=True)


if __name__ == "__main__":
    sys.exit(main())
