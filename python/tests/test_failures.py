"""What goes wrong says so, on every rank, and never ends the interpreter."""

import copy
import os
import pickle
import threading

import numpy as np
import pytest
from conftest import in_threads

import maypole


def test_the_hierarchy():
    failed = ["DiedError", "MismatchError", "RefusedError", "StalledError", "AbortedError", "LinkError"]
    for name in failed:
        assert issubclass(getattr(maypole, name), maypole.FailedError)
    for name in ["ArgumentError", "FailedError", "BootstrapError", "SettingError", "DeviceError", "SystemFailure"]:
        assert issubclass(getattr(maypole, name), maypole.Error)
    assert issubclass(maypole.ArgumentError, ValueError) and issubclass(maypole.SettingError, ValueError)
    assert maypole.Error.__module__ == maypole.DiedError.__module__ == "maypole"
    error = pickle.loads(pickle.dumps(maypole.DiedError("gone")))
    assert type(error) is maypole.DiedError and str(error) == "gone" and error.rank is None


def test_keys_that_differ():
    keys = ["one secret, of more than sixteen bytes", "another secret, of more than sixteen bytes"]
    ident = maypole.unique_id(key=keys[0], connect_timeout=4)
    told = [None, None]

    def rank(r):
        try:
            maypole.from_id(ident, r, 2, key=keys[r], connect_timeout=4)
        except maypole.BootstrapError as error:
            told[r] = str(error)

    ranks = [threading.Thread(target=rank, args=(r,), daemon=True) for r in range(2)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(60)
    for text in told:
        assert text and "another key" in text and "MAYPOLE_KEY" in text and "secret" not in text


def test_mismatch():
    def rank(comm):
        x = np.ones(4 if comm.rank else 5, "f4")
        with pytest.raises(maypole.MismatchError, match="ranks disagree") as caught:
            comm.all_reduce(x)
        error = caught.value
        assert error.kind == "mismatch" and error.rank in (0, 1) and "all_reduce" in error.operation
        assert error.verdict and error.verdict in str(error) and comm.verdict == error.verdict
        with pytest.raises(maypole.MismatchError):
            comm.barrier()

    in_threads(2, rank)


def test_refused_on_one_rank():
    def rank(comm):
        if comm.rank:
            with pytest.raises(maypole.RefusedError, match="rank 0 refused operation #1 .*x: a list is no array") as caught:
                comm.all_reduce(np.ones(3))
            assert (caught.value.rank, caught.value.kind) == (0, "refused")
        else:
            with pytest.raises(maypole.ArgumentError) as caught:
                comm.all_reduce([1, 2])
            assert caught.value.rank == 0

    in_threads(2, rank)


def test_stalled():
    met = threading.Barrier(2)

    def rank(comm):
        comm.set_timeout(0.2)
        if comm.rank == 0:
            with pytest.raises(maypole.StalledError, match="did not end within") as caught:
                comm.broadcast(np.ones(1))
                comm.barrier()
            error = caught.value
            assert (error.rank, error.kind) == (1, "stalled") and error.host == comm.hosts[1]
            assert "barrier" in error.operation or "broadcast" in error.operation
        met.wait(20)

    in_threads(2, rank)


def test_an_operation_that_raises():
    def rank(comm):
        def picky(a, b):
            raise LookupError("no such thing")

        def innocent(a, b):
            return a + b

        op = maypole.Op(picky if comm.rank == 1 else innocent, name="picky")
        with pytest.raises(maypole.AbortedError, match='operation "picky" raised LookupError: no such thing') as caught:
            comm.all_reduce(np.ones(5000), op)
            comm.barrier()
        assert caught.value.rank == 1
        assert isinstance(caught.value.__cause__, LookupError) if comm.rank == 1 else caught.value.__cause__ is None

    in_threads(2, rank)


@pytest.mark.parametrize("count", [3, 1000, 250_000])
@pytest.mark.parametrize("way", ["blocking", "scan", "v", "start", "start v", "group", "persistent", "persistent run"])
def test_an_operation_that_raises_elsewhere(way, count):
    def call(comm, x, op):
        if way == "blocking":
            return comm.all_reduce(x, op)
        if way == "scan":
            return comm.scan(x, op)
        if way == "v":
            return comm.reduce_scatter_v(x, [1, count - 1], op)
        if way == "start":
            return comm.start.all_reduce(x, op).wait()
        if way == "start v":
            return comm.start.reduce_scatter_v(x, [1, count - 1], op).wait()
        if way == "group":
            with comm.group() as group:
                group.all_reduce(x, op)
            return None
        kept = comm.persistent.all_reduce(x, op)
        if way == "persistent run":
            return kept.run()
        kept.start()
        return kept.wait()

    def rank(comm):
        # The first rank combines nothing in a scan.
        raising = 1 if way == "scan" else 0
        op = maypole.Op((lambda a, b: 1 / 0) if comm.rank == raising else np.add, name="division")
        x = np.ones(count, dtype=np.float32)
        try:
            # A rank that needed nothing more of the one that raises may be done.
            done = call(comm, x, op)
            assert comm.rank != raising
            if way in ("blocking", "start", "persistent", "persistent run"):
                assert (done == 2).all()
        except maypole.AbortedError:
            pass
        with pytest.raises(maypole.AbortedError, match=f"rank {raising} aborted .*ZeroDivisionError"):
            comm.all_reduce(x)

    in_threads(2, rank)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda a, b: a[:1], r"shape \(1,\) for operands of shape \(4,\)"),
        (lambda a, b: "what", "could not convert string to float"),
        (lambda a: a, "positional argument"),
    ],
    ids=["too short", "no array", "one operand"],
)
def test_an_operation_that_returns_something_else(function, text):
    def rank(comm):
        with pytest.raises(maypole.AbortedError, match=text):
            comm.all_reduce(np.ones(4), maypole.Op(function, name="odd"))

    in_threads(2, rank)


@pytest.mark.parametrize("way", ["blocking", "start"])
def test_an_operation_that_communicates(way):
    def rank(comm):
        op = maypole.Op(lambda a, b: comm.all_reduce(a), name="nested")
        with pytest.raises(maypole.AbortedError, match="the communicator is in a call already"):
            comm.all_reduce(np.ones(3), op) if way == "blocking" else comm.start.all_reduce(np.ones(3), op).wait()

    in_threads(2, rank)


def test_operands_may_be_kept():
    kept = []

    def rank(comm):
        x = np.full(4, comm.rank + 1.0)
        comm.all_reduce(x, maypole.Op(lambda a, b: kept.append((a, b)) or a + b, name="collector"))
        assert (x == 3).all()

    in_threads(2, rank)
    assert kept and all({a[0], b[0]} == {1.0, 2.0} for a, b in kept)


def test_operations_that_differ():
    def rank(comm):
        with pytest.raises(maypole.MismatchError):
            comm.all_reduce(np.ones(4), maypole.Op(np.fmax if comm.rank else np.fmin, name=f"op {comm.rank}"))

    in_threads(2, rank)
    with pytest.raises(maypole.ArgumentError, match="function: is not callable"):
        maypole.Op(3)


def test_use_after_close():
    def rank(comm):
        x = np.ones(1)
        start, on, group, persistent = comm.start, comm.on(0), comm.group(), comm.persistent
        step, request = comm.persistent.all_reduce(x), comm.start.all_reduce(np.ones(1))
        with comm as entered:
            assert entered is comm and not comm.closed
        assert comm.closed and repr(comm) == "<maypole.Communicator: closed>"
        for call in (
            lambda: comm.rank,
            lambda: comm.all_reduce(x),
            lambda: comm.abort(),
            lambda: comm.split(0),
            lambda: start.all_reduce(x),
            lambda: on.all_reduce(x),
            lambda: group.all_reduce(x),
            lambda: persistent.all_reduce(x),
        ):
            with pytest.raises(maypole.ArgumentError, match="the communicator was closed"):
                call()
        comm.close()
        assert request.wait()[0] == comm_size and step.run()[0] == comm_size, "what was made before goes on"

    comm_size = 2
    in_threads(2, rank)


def test_no_copies_and_no_pickles():
    def rank(comm):
        for make in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be pickled or copied: it is one process's place"):
                make(comm)
        for thing in (comm.start, comm.start.barrier(), comm.group(), maypole.Stream(), comm.alloc(1)):
            with pytest.raises(TypeError, match="cannot pickle"):
                pickle.dumps(thing)

    in_threads(1, rank)


def test_settings():
    with pytest.raises(maypole.SettingError, match="MAYPOLE_TRANSPORT=carrier pigeon: expected auto, shm or tcp"):
        maypole.threads(1, transport="carrier pigeon")
    with pytest.raises(maypole.SettingError, match="tiemout: there is no such setting; there are algorithm"):
        maypole.init(tiemout=3)
    with pytest.raises(maypole.BootstrapError, match="these 3 bytes are no unique id"):
        maypole.from_id(b"abc", 0, 1)
    with pytest.raises(maypole.BootstrapError, match="at least one rank"):
        maypole.threads(0)


def test_ids():
    id = maypole.unique_id()
    assert len(id) == 128
    sums = [None, None]

    def rank(r):
        with maypole.from_id(id, r, 2) as comm:
            sums[r] = comm.all_reduce(np.array([r + 1]))[0]
            comm.barrier()

    threads = [threading.Thread(target=rank, args=(r,), daemon=True) for r in range(2)]
    [thread.start() for thread in threads]
    [thread.join(20) for thread in threads]
    assert sums == [3, 3]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_fork_after_init():
    """The child is no rank: it is told so, and its end does not disturb the parent."""

    def rank(comm):
        x = np.ones(1)
        request, step, stream = comm.start.all_reduce(np.ones(1)), comm.persistent.all_reduce(x), maypole.Stream()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for call in (
                    lambda: comm.all_reduce(x),
                    lambda: comm.start.all_reduce(x),
                    request.wait,
                    step.run,
                    lambda: maypole.threads(1)[0].start_on(stream).all_reduce(x),
                ):
                    with pytest.raises(maypole.ArgumentError, match="forked off"):
                        call()
                del comm, request, step, stream
                with maypole.threads(1)[0] as own:
                    own.all_reduce(x)
                    called = threading.Event()
                    own.start.barrier().when_done(called.set)
                    assert called.wait(20)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        request.wait()
        assert step.run()[0] == 1 and comm.all_reduce(x)[0] == 1

    rank(maypole.threads(1)[0])


def test_a_reason_of_megabytes():
    def rank(comm):
        first, second = comm.duplicate(), comm.duplicate()
        if comm.rank == 0:
            first.abort("x" * (2 << 20))
        with pytest.raises(maypole.AbortedError, match="rank 0 aborted .*xxx .*cut here: 2097152 bytes in all") as told:
            first.barrier()
        assert len(str(told.value)) < 20_000

        def verbose(a, b):
            raise ValueError("y" * (2 << 20))

        op = maypole.Op(verbose if comm.rank == 0 else np.add, name="verbose")
        with pytest.raises(maypole.AbortedError, match="rank 0 aborted .*yyy .*cut here: 20971"):
            second.all_reduce(np.ones(1000), op)
            second.barrier()
        comm.barrier()

    in_threads(2, rank)
