"""The PyTorch backend: what it promises beyond equality with gloo, and what it says when something goes wrong."""

import pytest

pytest.importorskip("torch")

from worlds import run  # noqa: E402


@pytest.mark.parametrize("size", [1, 2, 3])
def test_backend(size):
    for output in run("backend.py", size):
        assert "ok: after_destroy" in output


@pytest.mark.parametrize("what", ["shapes", "types", "collectives", "deadline", "death", "raised", "aborted", "future"])
def test_failures(what):
    run("failures.py", 2, what, timeout=90)


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
