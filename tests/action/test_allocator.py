"""What a training step frees stays with the process."""

import platform
import subprocess
import sys

import pytest

BLOCKS = """
import resource
import numpy as np
from action.allocator import keep_freed_memory

{first}
for counted in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones({size}, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(first: str, size: int) -> int:
    """Pages that the system hands out for a block of ``size`` bytes after four such blocks were freed."""
    run = [sys.executable, "-c", BLOCKS.format(first=first, size=size)]
    return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
@pytest.mark.parametrize("size", [2**22, 2**24, 2**27])
def test_a_freed_block_is_used_again(size):
    assert faults("keep_freed_memory()", size) < 10
    assert size < 2**25 or faults("", size) > 20, "glibc gives a large block back, so that there is something to keep"
