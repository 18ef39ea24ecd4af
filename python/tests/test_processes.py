"""Ranks as processes: the launcher, other launchers, Ctrl-C, deaths, and how a process ends."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import PATIENCE, environment

HELLO = """
import maypole, numpy
comm = maypole.init()
x = numpy.full(1000, comm.rank + 1.0)
comm.all_reduce(x)
print(f"rank {comm.rank} of {comm.size} sum {x[999]}")
"""


def test_the_launcher(launch):
    done = launch(3, "import sys\nprint(sys.argv[1:])\n" + HELLO)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n"))[1:] == sorted(
        [f"[{r}] []" for r in range(3)] + [f"[{r}] rank {r} of 3 sum 6.0" for r in range(3)]
    )


def test_the_launcher_passes_on(launch, script):
    done = launch(2, "import sys; sys.exit(7)")
    assert done.returncode == 7 and "maypole run: rank" in done.stderr
    command = [sys.executable, "-m", "maypole"]
    done = subprocess.run(
        [*command, "run", "-n", "1", "--no-prefix", "--", sys.executable, "-c", "print('no script')"],
        env=environment(), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout == "no script\n"
    done = subprocess.run([*command, "--version"], env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    import maypole

    assert done.stdout == f"maypole {maypole.__version__}\n"


LAUNCHERS = {
    "openmpi": ("MPIRUN", "mpirun", "Open MPI", ["--oversubscribe", "--allow-run-as-root", "-n", "2"]),
    "mpich": ("MPIEXEC", "mpiexec", "HYDRA", ["-n", "2"]),
    "intelmpi": ("INTEL_MPIEXEC", "mpiexec.hydra", "Intel(R) MPI", ["-n", "2"]),
    "torchrun": ("TORCHRUN", "torchrun", "", ["--no-python", "--nproc-per-node", "2"]),
    "srun": ("SRUN", "srun", "slurm", ["-n", "2"]),
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_other_launchers(name, script):
    """Found through the variables that tests/launchers.rs uses, or in PATH."""
    variable, command, version, options = LAUNCHERS[name]
    program = shutil.which(os.environ.get(variable, command))
    why = f"there is no {os.environ.get(variable, command)}; set {variable} to its path"
    if program and version:
        asked = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=PATIENCE)
        if version not in asked.stdout:
            program, why = None, f"{program} is not {name}; set {variable} to its path"
    if not program:
        assert name not in os.environ.get("MAYPOLE_TEST_LAUNCHERS", "").split(), why
        pytest.skip(why)
    done = subprocess.run(
        [program, *options, sys.executable, script(HELLO)],
        env=environment(), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(2):
        assert f"rank {rank} of 2 sum 3.0" in done.stdout


def test_death(launch):
    done = launch(
        3,
        """
        import maypole, numpy, os, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # with which the launcher ends the rest
        comm = maypole.init()
        comm.barrier()
        if comm.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            comm.all_reduce(numpy.ones(10))
        except maypole.DiedError as error:
            assert (error.rank, error.kind, error.host) == (1, "died", comm.hosts[1]), error
            print("told", comm.rank)
            rest = comm.subset([2, 0])
            print("left", rest.all_reduce(numpy.ones(1))[0], flush=True)
            comm.close()
        """,
        "--grace", "20",
    )  # fmt: skip
    assert done.returncode == 128 + signal.SIGKILL, done.stderr
    for rank in (0, 2):
        assert f"[{rank}] told {rank}" in done.stdout and f"[{rank}] left 2.0" in done.stdout, done.stdout + done.stderr


INTERRUPTED = """
import maypole, numpy, os, signal, sys, threading, time
comm = maypole.init(timeout=50)
x = numpy.ones(1)
comm.barrier()
if comm.rank == 0:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.perf_counter()
    try:
        {call}
    except KeyboardInterrupt:
        print("interrupted", time.perf_counter() - began < 25)
    try:
        comm.barrier()
    except maypole.AbortedError as error:
        print("state:", error)
    else:
        print("state: fine")
else:
    if {comes}:
        time.sleep(0.8)
    try:
        {other}
        comm.barrier()
    except maypole.AbortedError as error:
        print("other:", error)
    else:
        print("other: fine")
"""


@pytest.mark.parametrize(
    "call", ["comm.all_reduce(x)", "comm.recv(x, 1)", "comm.start.all_reduce(x); comm.barrier()"]
)
def test_ctrl_c_in_a_blocking_call(launch, call):
    """Nobody can leave an operation that the others are in: all are told."""
    done = launch(2, INTERRUPTED.format(call=call, comes=False, other="time.sleep(1)"))
    assert done.returncode == 0, done.stdout + done.stderr
    why = "rank 0 aborted the communicator: KeyboardInterrupt in a blocking call"
    assert "[0] interrupted True" in done.stdout and f"[0] state: rank 0: {why}" in done.stdout, done.stdout
    assert f"[1] other: rank 1: {why}" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("call", "other"),
    [
        ("r = comm.start.all_reduce(x); r.wait()", "comm.all_reduce(x)"),
        ("r = comm.start.recv(x, 1); r.wait()", "comm.send(x, 0)"),
        ("r = comm.persistent.all_reduce(x); r.start(); r.wait()", "comm.all_reduce(x)"),
        ("maypole.wait_any([comm.start.all_reduce(x)])", "comm.all_reduce(x)"),
    ],
)
def test_ctrl_c_while_a_request_is_waited_for(launch, call, other):
    """It goes on, and so does the communicator."""
    done = launch(2, INTERRUPTED.format(call=call, comes=True, other=other))
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("[0] interrupted True", "[0] state: fine", "[1] other: fine"):
        assert line in done.stdout, done.stdout


def test_ctrl_c_while_ranks_meet(script):
    """The others have not come; nobody waits for the timeout."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, script("""
            import maypole, os, signal, threading
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            maypole.init(connect_timeout=50)
        """)],
        env=environment(RANK="1", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="9"),
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stderr.endswith("KeyboardInterrupt\n") and time.monotonic() - began < 20


def test_ctrl_c_in_a_child_of_a_thread_that_had_waited(script):
    """The thread that forks is the main thread of its child, whatever it was before."""
    done = subprocess.run(
        [sys.executable, script("""
            import maypole, os, signal, threading, time

            def thread():
                comm, other = maypole.threads(2, timeout=20)
                late = threading.Timer(0.5, other.barrier)
                late.start()
                comm.barrier()
                late.join()
                child = os.fork()
                if child == 0:
                    status = 9
                    try:
                        comm, other = maypole.threads(2, timeout=8, late=0)
                        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
                        comm.barrier()
                    except KeyboardInterrupt:
                        status = 7
                    finally:
                        os._exit(status)
                print("ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

            forks = threading.Thread(target=thread)
            forks.start()
            forks.join()
        """)],
        env=environment(), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout == "ended with 7\n", done.stdout + done.stderr


def test_children_make_calls_whatever_their_parent_s_threads_were_at(script):
    """What other threads held while one forked is held by nobody in the child."""
    done = subprocess.run(
        [sys.executable, script("""
            import maypole, numpy, os, signal, sys, threading

            def calls(comm, times):
                for _ in range(times):
                    comm.start.all_reduce(numpy.ones(1)).wait()

            comm, other = maypole.threads(2)
            for tag in range(2000):
                # Nobody keeps it, and each call looks whether it has ended: so long that a fork comes in between.
                comm.start.recv(numpy.ones(1), 1, tag=tag)
            for each in maypole.threads(1) + maypole.threads(1):
                threading.Thread(target=calls, args=(each, sys.maxsize), daemon=True).start()
            ended = []
            while len(ended) < 100 and not any(ended):
                child = os.fork()
                if child == 0:
                    signal.alarm(20)
                    status = 9
                    try:
                        calls(maypole.threads(1)[0], 3)
                        status = 0
                    finally:
                        os._exit(status)
                ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            print(len(ended), "children,", ended[-1], flush=True)
            os._exit(0)
        """)],
        env=environment(), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout == "100 children, 0\n", done.stdout + done.stderr


def test_a_signal_handler_may_abort_but_not_communicate(launch):
    done = launch(
        2,
        """
        import maypole, numpy, os, signal, threading, time
        comm = maypole.init()
        def handler(number, frame):
            try:
                comm.barrier()
            except maypole.ArgumentError as error:
                print(error)
            comm.abort("asked to")
        signal.signal(signal.SIGUSR1, handler)
        if comm.rank == 0:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        else:
            time.sleep(1)
        try:
            comm.all_reduce(numpy.ones(1))
        except maypole.AbortedError as error:
            print(error)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert "[0] the communicator is in a call already, which has called a signal handler" in done.stdout, done.stdout
    for rank in (0, 1):
        assert f"[{rank}] rank {rank}: rank 0 aborted the communicator: asked to" in done.stdout, done.stdout


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_leave_in_good_order(script, how):
    """They run no exit functions."""
    done = subprocess.run(
        [sys.executable, script("""
            import multiprocessing, os, sys, time

            def rank(rank, port):
                os.environ.update(RANK=str(rank), WORLD_SIZE="3", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
                import maypole, numpy
                global comm
                comm = maypole.init()
                comm.all_reduce(numpy.ones(1))
                if rank == 1:
                    return
                time.sleep(1)
                # Two ranks write to one pipe, and `print` may write the end of a line by itself.
                os.write(1, f"{comm.verdict}\\n".encode())

            if __name__ == "__main__":
                import socket
                with socket.create_server(("127.0.0.1", 0)) as free:
                    port = str(free.getsockname()[1])
                context = multiprocessing.get_context(sys.argv[1])
                ranks = [context.Process(target=rank, args=(r, port)) for r in range(3)]
                for each in ranks:
                    each.start()
                for each in ranks:
                    each.join()
                print([each.exitcode for each in ranks])
        """), how],
        env=environment(), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout == "None\nNone\n[0, 0, 0]\n", done.stdout + done.stderr


SUB_INTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
other = interpreters.create()
interpreters.run_string(other, '''
try:
    import maypole
except ImportError as error:
    print(error, flush=True)
''')
import maypole
print("the main one has it", len(maypole.threads(1)))
"""


def test_a_sub_interpreter_is_refused(script):
    """Before anything could hang."""
    if not any(importlib.util.find_spec(name) for name in ("_interpreters", "_xxsubinterpreters")):
        pytest.skip("this Python has no sub-interpreters")
    done = subprocess.run(
        [sys.executable, script(SUB_INTERPRETER)], env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    first, *rest = done.stdout.splitlines()
    assert first.startswith("maypole runs in the main interpreter of a process"), done.stdout + done.stderr
    assert rest == ["the main one has it 1"], done.stdout + done.stderr


def test_an_interpreter_without_its_lock_is_refused():
    """One that was told to keep it off. (That a free-threaded build turns it on otherwise is CPython's part.)"""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys._is_gil_enabled = lambda: False; import maypole"],
        env=environment(), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 1 and "ImportError: maypole needs the interpreter's lock" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "ending",
    [
        "keep = comm.start.recv(x, 1 - comm.rank)",
        "comm.start.all_reduce(x) if comm.rank else time.sleep(0.5)",
        "keep = comm.persistent.all_reduce(x); keep.start() if comm.rank else time.sleep(0.5)",
        "comm.start.all_reduce(x, maypole.Op(lambda a, b: time.sleep(0.3) or a + b, 'slow'))",
        "comm.start.recv(x, 1 - comm.rank).when_done(print)",
        "threading.Thread(target=comm.recv, args=(x, 1 - comm.rank), daemon=True).start(); time.sleep(0.1)",
    ],
)
def test_exit_with_something_under_way(launch, ending):
    """The interpreter ends as usual; it neither hangs nor crashes."""
    began = time.monotonic()
    script = f"""
import maypole, numpy, threading, time
comm = maypole.init(timeout=50)
x = numpy.ones(1)
comm.all_reduce(x)
{ending}
print("end", flush=True)
"""
    done = launch(2, script)
    assert "[0] end" in done.stdout and "[1] end" in done.stdout, done.stderr
    assert done.returncode == 0 and "Fatal" not in done.stderr, done.stderr
    assert time.monotonic() - began < 20


FORKED = """
import multiprocessing, os, socket, time
import maypole


def rank(number, port, say):
    os.environ.update(RANK=str(number), WORLD_SIZE="3", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with maypole.init() as comm:
        pair = comm.subset([1, 2]) if number else None
        comm.barrier()
    if number:
        # Rank 0, whose process holds the job together, is at its end meanwhile.
        time.sleep(1)
        say.put(str(pair.verdict))


fork = multiprocessing.get_context("fork")
# It stays bound, so that the system gives the port to nobody else; rank 0 may listen there all the same.
free = socket.socket()
free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
free.bind(("127.0.0.1", 0))
port = free.getsockname()[1]
say = fork.Queue()
ranks = [fork.Process(target=rank, args=(number, port, say)) for number in range(3)]
for each in ranks:
    each.start()
print([say.get(timeout=50) for _ in range(2)])
for each in ranks:
    each.join()
print([each.exitcode for each in ranks])
"""


def test_children_that_multiprocessing_forks_leave_in_good_order():
    command = [sys.executable, "-c", FORKED]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "['None', 'None']\n[0, 0, 0]\n", done.stdout + done.stderr
