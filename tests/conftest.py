"Every test file runs with what `import ppcls_nb` sets for the process, whatever it imports first."
import sys
from pathlib import Path

import ppcls_nb  # before paddle: threads, MKL's path, memory

sys.path.append(str(Path(__file__).resolve().parents[1]/'tools'))
