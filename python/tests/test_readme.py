"""The README's snippet does what it says."""

import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_snippet(launch):
    printed = subprocess.run([sys.executable, Path(__file__).with_name("readme.py"), README], capture_output=True, text=True)
    done = launch(3, printed.stdout)
    assert done.returncode == 0, done.stderr
    for rank in range(3):
        assert f"[{rank}] rank {rank}: the mean over 3 ranks is 1.0" in done.stdout, done.stdout
