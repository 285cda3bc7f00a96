"Every test file runs with what `import ppcls_nb` sets for the process, whatever it imports first."
import sys
from pathlib import Path

import pytest
import ppcls_nb  # before paddle: threads, MKL's path, memory

sys.path.append(str(Path(__file__).resolve().parents[1]/'tools'))


@pytest.hookimpl(tryfirst=True)       # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """With several processes (-n 2 --dist loadgroup), the tests of a file share one, and so its fixtures; those of the
    networks are spread."""
    for item in items:
        if item.path.name != 'test_zoo.py':
            item.add_marker(pytest.mark.xdist_group(item.path.name))
