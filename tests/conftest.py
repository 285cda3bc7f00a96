"Every test file runs with what `import ppcls_nb` sets for the process, whatever it imports first."
import os
import sys
from pathlib import Path

import pytest

import ppcls_nb  # before paddle: threads, MKL's path, memory
from ppcls_nb.gpu import use_deterministic_kernels

sys.path.append(str(Path(__file__).resolve().parents[1]/'tools'))


# the files that take longest, so that none of them is left for the end, when the other processes have nothing to do
SLOW_FILES = ('test_zoo.py', 'test_deploy.py', 'test_tutorial.py', 'test_notebooks.py', 'test_training_today.py',
              'test_weights.py', 'test_web.py', 'test_pictures.py')


def pytest_collection_modifyitems(items):
    "Tests of slow files first, otherwise in order."
    def place(item):
        return SLOW_FILES.index(item.path.name) if item.path.name in SLOW_FILES else len(SLOW_FILES)
    items.sort(key=place)


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
