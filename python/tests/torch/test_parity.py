"""Every collective, type and operation that gloo has, under gloo and under maypole."""

import pytest

pytest.importorskip("torch")

from worlds import run  # noqa: E402


@pytest.mark.parametrize("size", [2, 3, 4])
def test_results_equal_those_of_gloo(size):
    output = run("parity.py", size)
    assert "results are equal" in output[0]
