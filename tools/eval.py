"""The documents' tools/eval.py: evaluates weights on a recipe's validation images; the same as `ppcls eval`.

python tools/eval.py -c ./configs/eval.yaml -o ARCHITECTURE.name=ResNet50_vd -o pretrained_model=WEIGHTS
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))      # where the package is not installed

from ppcls_nb.cli import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main(['eval', *sys.argv[1:]]))
