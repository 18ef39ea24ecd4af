"""Starting a world of ranks for a test, each a process of its own."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent


def run(script, size, *arguments, timeout=240, environment=None, expect=0):
    """Run `script`, a file of this folder, as `size` ranks; returns what each has printed.

    Fails if one exits with another status than `expect` (None: any), or takes longer than `timeout` seconds.
    """
    # It stays bound, so that the system gives the port to nobody else; rank 0 may listen there all the same.
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
    ranks, outputs = [], []
    for rank in range(size):
        settings = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        output = tempfile.TemporaryFile("w+")
        command = [sys.executable, str(HERE / script), *map(str, arguments)]
        ranks.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=settings))
        outputs.append(output)
    end = time.monotonic() + timeout
    late = False
    for process in ranks:
        try:
            process.wait(max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            late = True
    for process in ranks:
        process.kill()
        process.wait()
    probe.close()
    texts = []
    for output in outputs:
        output.seek(0)
        texts.append(output.read())
        output.close()
    report = "\n".join(f"--- rank {rank}, status {p.returncode}\n{t}" for rank, (p, t) in enumerate(zip(ranks, texts)))
    assert not late, f"not done after {timeout} s\n{report}"
    if expect is not None:
        assert all(process.returncode == expect for process in ranks), report
    return texts
