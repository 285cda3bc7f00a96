"Every test file runs with what `import ppcls_nb` sets for the process, whatever it imports first."
import os
import sys
from pathlib import Path

import pytest

import ppcls_nb  # before paddle: threads, MKL's path, memory
from ppcls_nb.gpu import use_deterministic_kernels

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


@pytest.fixture(scope='session', autouse=True)
def equal_results_on_a_gpu():
    "Many tests compare bits; on a GPU the fastest kernels do not repeat them."
    use_deterministic_kernels()
