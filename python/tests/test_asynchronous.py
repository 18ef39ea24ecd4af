"""Requests, groups, persistent calls and streams."""

import asyncio
import gc
import threading
import time

import numpy as np
import pytest
from conftest import in_threads

import maypole


def test_requests():
    def rank(comm):
        x = np.ones(3)
        request = comm.start.all_reduce(x)
        assert request.wait() is x and (x == 2).all() and request.done
        assert request.wait() is x, "again"
        assert repr(request) == "<maypole.Request: done>"
        requests = [comm.start.all_reduce(np.full(1, i)) for i in range(5)]
        first = maypole.wait_any(requests)
        assert requests[first].done
        assert [int(x[0]) for x in maypole.wait_all(requests)] == [0, 2, 4, 6, 8]
        with pytest.raises(maypole.ArgumentError, match="requests: there are none"):
            maypole.wait_any([])

    in_threads(2, rank)


def test_a_wait_with_a_timeout_can_be_repeated():
    late = threading.Event()

    def rank(comm):
        x = np.ones(1)
        if comm.rank:
            assert late.wait(20)
            comm.all_reduce(x)
            return
        request = comm.start.all_reduce(x)
        with pytest.raises(TimeoutError, match="not done after 0.05 s"):
            request.wait(0.05)
        assert not request.done
        late.set()
        assert request.wait(20)[0] == 2

    in_threads(2, rank)


def test_await():
    def rank(comm):
        async def several():
            x, y, z = np.ones(1), np.ones(1), np.zeros(1)
            peer = 1 - comm.rank
            ticks = 0

            async def tick():
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0.001)

            ticking = asyncio.ensure_future(tick())

            async def reduced():
                return (await comm.start.all_reduce(x))[0]

            async def received():
                return (await comm.start.recv(z, peer))[0]

            async def sent():
                await asyncio.sleep(0.05)
                await comm.start.send(y, peer)

            results = await asyncio.wait_for(asyncio.gather(reduced(), received(), sent()), 20)
            ticking.cancel()
            return results, ticks

        results, ticks = asyncio.run(several())
        assert results == [2, 1, None] or results[:2] == [2, 1]
        assert ticks > 5, "the loop went on"

    in_threads(2, rank)


def test_a_cancelled_await_leaves_the_request():
    late = threading.Event()

    def rank(comm):
        if comm.rank:
            assert late.wait(20)
            comm.all_reduce(np.ones(1))
            return None

        async def impatient():
            request = comm.start.all_reduce(np.ones(1))

            async def waiting():
                return await request

            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(waiting(), 0.05)
            late.set()
            return (await request)[0]

        return asyncio.run(impatient())

    assert in_threads(2, rank)[0] == 2


def test_awaiting_a_failure():
    def rank(comm):
        async def fails():
            await comm.start.barrier()

        if comm.rank:
            comm.abort("enough")
        with pytest.raises(maypole.AbortedError, match="rank 1 aborted the communicator: enough"):
            asyncio.run(fails())

    in_threads(2, rank)


def test_awaiting_a_message_that_does_not_come():
    over = threading.Event()

    def rank(comm):
        if comm.rank:
            assert over.wait(30)
            return
        comm.set_timeout(0.3)

        async def waits():
            await comm.start.recv(np.zeros(1), 1)

        try:
            with pytest.raises(maypole.StalledError, match="recv"):
                asyncio.run(asyncio.wait_for(waits(), 20))
        finally:
            over.set()

    in_threads(2, rank)


@pytest.mark.parametrize("what", ["persistent", "stream", "request"])
def test_nothing_is_waited_for_where_it_is_let_go_of(what):
    """Nobody could end that wait: Ctrl-C does nothing there."""
    over = threading.Event()

    def rank(comm):
        x = np.ones(1)
        if comm.rank:
            assert over.wait(30)
            comm.all_reduce(x)
        else:
            comm.set_timeout(8)
            if what == "persistent":
                kept = comm.persistent.all_reduce(x)
                kept.start()
            elif what == "stream":
                kept = maypole.Stream()
                request = comm.start_on(kept).all_reduce(x)
            else:
                kept = comm.start.all_reduce(x)
            del kept
            over.set()
            if what == "stream":
                request.wait()
        comm.barrier()
        assert x[0] == 2

    in_threads(2, rank)


def test_a_request_that_nobody_keeps_goes_on():
    def rank(comm):
        x = np.ones(1 << 16)
        comm.start.all_reduce(x)
        gc.collect()
        comm.barrier()
        assert (x == 2).all()

    in_threads(2, rank)


def test_groups():
    def rank(comm):
        r, n = comm.rank, comm.size
        x, y, z = np.full(2, r), np.zeros(2, int), np.ones(3, "f4")
        with comm.group() as group:
            group.send(x, (r + 1) % n)
            group.recv(y, (r - 1) % n)
            assert group.all_reduce(z) is None and len(group) == 3
        assert (y == (r - 1) % n).all() and (z == n).all()
        group = comm.group()
        group.all_reduce(z)
        group.all_gather_v(x, [2] * n, np.zeros(2 * n, int))
        results = group.start().wait()
        assert results[0] is z and (results[1] == np.repeat(np.arange(n), 2)).all()
        with pytest.raises(ZeroDivisionError), comm.group() as group:
            group.all_reduce(z)
            1 / 0
        assert len(group) == 0, "an exception in the block drops what it collected"
        with pytest.raises(maypole.ArgumentError, match="x: is read-only"), comm.group() as group:
            group.all_reduce(b"")
        comm.barrier()

    in_threads(3, rank)


def test_persistent_calls():
    def rank(comm):
        x = np.zeros(100, "f4")
        step = comm.persistent.all_reduce(x, "avg")
        for i in range(20):
            x[:] = i + comm.rank
            if i % 2:
                assert step.run() is x
            else:
                step.start()
                with pytest.raises(maypole.ArgumentError, match="started twice without a wait"):
                    step.start()
                assert step.wait() is x and step.done
            assert (x == i + 0.5).all()
        parts = comm.persistent.all_gather_v(x[: comm.rank + 1].copy(), [1, 2], np.zeros(3, "f4"))
        assert (parts.run() == 19.5).all()
        step.start()
        del step  # goes on, with its array

    in_threads(2, rank)


def test_streams():
    def rank(comm):
        stream, other = maypole.Stream(), maypole.Stream()
        twin = comm.duplicate()
        x, y = np.ones(1), np.ones(1)
        requests = [c.start_on(s).all_reduce(a) for c, s, a in [(comm, stream, x), (twin, other, y)] for _ in range(10)]
        maypole.wait_all(requests)
        assert x[0] == y[0] == 2**10

    in_threads(2, rank)


def test_other_threads_run_while_one_waits():
    """One thread waits for the other, which could not come if the first kept the interpreter."""

    came = threading.Event()

    def rank(comm):
        if comm.rank:
            time.sleep(0.2)
            came.set()
        comm.barrier()
        assert came.is_set()

    in_threads(2, rank)
