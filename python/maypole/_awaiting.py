"""How a request is awaited: ``await request`` in asyncio."""

import asyncio


def wait(request):
    """The generator behind ``await request``.

    The loop goes on meanwhile. A task that is cancelled leaves the request as it is; it may be awaited again.
    """
    if not request.done:
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def settle():
            if not future.done():
                future.set_result(None)

        def done():
            try:
                loop.call_soon_threadsafe(settle)
            except RuntimeError:
                pass  # the loop was closed, and nobody waits

        request.when_done(done)
        yield from future
    return request.wait()
