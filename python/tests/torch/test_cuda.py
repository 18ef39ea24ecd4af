"""The PyTorch backend on CUDA tensors: on the double of `torch.cuda` and the emulated driver, and
on a GPU if there is one."""

import pytest

torch = pytest.importorskip("torch")

from worlds import run  # noqa: E402

NAMES = ["overlap", "order", "everything", "memory", "futures", "coalescing", "leaving", "capture"]
NO_GPU = f"torch {torch.__version__} finds no CUDA device here"
has_gpu = torch.cuda.is_available()


def double(driver):
    """The variables of a rank that is to use the double."""
    return {"LD_LIBRARY_PATH": str(driver), "MAYPOLE_TEST_DOUBLE": "1"}


@pytest.fixture(params=["double", "gpu"])
def on(request):
    """Run a part of `on_cuda.py` on two ranks: what they have printed."""
    if request.param == "double":
        settings = double(request.getfixturevalue("driver"))
    elif has_gpu:
        settings = {}
    else:
        pytest.skip(NO_GPU)

    def part(name, expect=0, **more):
        environment = {**settings, "MAYPOLE_TIMEOUT": "20", **more}
        return run("on_cuda.py", 2, name, timeout=100, environment=environment, expect=expect)

    return part


@pytest.mark.parametrize("name", NAMES)
def test_it_holds(on, name):
    for output in on(name):
        assert "ok" in output, output


def test_a_death_is_told_to_who_waits_and_to_people(on):
    outputs = on("death")
    assert "ok" in outputs[0], outputs
    assert "rank 0: all_reduce on device #" in outputs[0], outputs
    assert "and 2 more will have no result" in outputs[0], outputs


def test_a_rank_ends_before_anything_goes_on_if_it_is_to(on):
    outputs = on("ends", expect=None, MAYPOLE_DEVICE_ABORT="1")
    assert "will have no result" in outputs[0] and "the process ends" in outputs[0], outputs
    assert "went on" not in outputs[0], outputs


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_streams_that_are_late_change_nothing(driver, seed):
    settings = {**double(driver), "MAYPOLE_EMULATOR_CHAOS": str(seed)}
    for output in run("on_cuda.py", 2, "order", timeout=100, environment=settings):
        assert "ok" in output, output


def test_ddp():
    if not has_gpu:
        pytest.skip(f"{NO_GPU}, and DDP's buckets are made by C++, which a double cannot replace")
    for output in run("on_cuda.py", 2, "ddp", timeout=100):
        assert "ok" in output, output
