"""The documents' tools/train.py: trains by a recipe; the same as `ppcls train`.

python -m paddle.distributed.launch --gpus 0,1,2,3 tools/train.py -c ./configs/ResNet/ResNet50_vd.yaml
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))      # where the package is not installed

from ppcls_nb.cli import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main(['train', *sys.argv[1:]]))
