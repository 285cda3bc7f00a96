"Every test file runs with what `import ppcls_nb` sets for the process, whatever it imports first."
import os
import sys
from pathlib import Path

import pytest

import ppcls_nb  # before paddle: threads, MKL's path, memory

sys.path.append(str(Path(__file__).resolve().parents[1]/'tools'))


OURS = ('PYTHON', 'OMP_', 'MKL_', 'PPCLS_', 'CUDA_VISIBLE_DEVICES')     # Paddle sets others when it is imported


def our_variables() -> dict:
    "The environment variables that the package, its tools and its tests set or read."
    return {name: value for name, value in os.environ.items() if name.startswith(OURS)}


@pytest.fixture(scope='module', autouse=True)
def environment_is_left_as_found():
    "A file of tests that leaves an environment variable behind would change what the next one sees."
    before = our_variables()
    yield
    assert our_variables() == before
