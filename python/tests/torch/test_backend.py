"""The PyTorch backend: what it promises beyond equality with gloo, and what it says when something goes wrong."""

import pytest

pytest.importorskip("torch")

from worlds import run  # noqa: E402


def unless_skipped(outputs):
    """Skip the test if a program has skipped what it is for, for the reason that it gives."""
    for output in outputs:
        if "skipped: " in output:
            pytest.skip(output.partition("skipped: ")[2])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_backend(size):
    for output in run("backend.py", size):
        assert "ok: after_destroy" in output


@pytest.mark.parametrize(
    "what",
    "shapes types collectives deadline interrupted death raised aborted future backward a_timeout_of_one_call".split(),
)
def test_failures(what):
    run("failures.py", 2, what, timeout=90)


def test_who_is_slow_to_leave_says_so():
    outputs = run("failures.py", 2, "slow_to_leave")
    said = "rank 0 of 2> waits for its asynchronous calls, before it is destroyed"
    assert [said in output for output in outputs] == [True, False], outputs


def test_a_rank_that_does_not_come_is_named(tmp_path):
    run("failures.py", 2, "absent", tmp_path / "store", timeout=120)


@pytest.mark.parametrize("what", ["keys", "keyless"])
def test_keys_count(what):
    run("failures.py", 2, what)


def test_beside_other_backends():
    run("beside.py", 2)


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_children_leave_when_they_end(how):
    run("children.py", 1, how, timeout=120)


def test_messages_that_nobody_keeps_go_on():
    run("letting_go.py", 2, timeout=120)


@pytest.mark.parametrize(
    "how, rank", [("elsewhere", 1), ("elsewhere", 0), ("other group", 1), ("finally", 1)]
)
def test_a_rank_that_raises_tells_the_others(how, rank):
    outputs = run("raising.py", 2, how, rank, timeout=110, expect=None)
    assert "ok: told" in outputs[1 - rank], outputs


def test_the_backend_is_found_by_its_name():
    unless_skipped(run("named.py", 2))


@pytest.mark.parametrize("how", ["plain", "asks", "accelerate"])
def test_it_stands_in_for_gloo(how):
    outputs = run("instead.py", 2, how, environment={} if how == "asks" else {"MAYPOLE_TORCH": "gloo"})
    unless_skipped(outputs)
    said = [output.count("the backend gloo of torch.distributed is Maypole") for output in outputs]
    assert said == [1, 0], outputs


def test_it_stands_in_for_nobody_unasked():
    outputs = run("instead.py", 2, "not asked")
    unless_skipped(outputs)
    assert not any("maypole" in output for output in outputs), outputs


def test_it_stands_in_for_no_other():
    outputs = run("instead.py", 1, "plain", environment={"MAYPOLE_TORCH": "nccl"}, expect=1)
    assert "MAYPOLE_TORCH: is 'nccl', but Maypole stands in for gloo only" in outputs[0], outputs


def test_retries_meet():
    run("retries.py", 2, timeout=120)


def test_descriptors():
    run("descriptors.py", 3, timeout=120)


@pytest.mark.parametrize("what", ["code", "environment"])
def test_calls_are_seen(what):
    asked = {"TORCH_DIST_NAN_CHECK": "1", "TORCH_FR_BUFFER_SIZE": "100"} if what == "environment" else {}
    unless_skipped(run("seen.py", 2, what, environment=asked))
