"Real photographs for tests: Imagenette, ten classes of ImageNet, below the folder that PPCLS_DATA names."
import os
from pathlib import Path

import pytest

# ImageNet class indices of Imagenette's ten folders
CLASSES = dict(n01440764=0, n02102040=217, n02979186=482, n03000684=491, n03028079=497, n03394916=566, n03417042=569,
               n03425413=571, n03445777=574, n03888257=701)


def imagenette():
    "The folder of Imagenette's validation images: `$PPCLS_DATA/imagenette_96/val` or `$PPCLS_DATA/val`, or None."
    root = Path(os.environ.get('PPCLS_DATA') or 'nowhere')
    return next((p for p in (root/'imagenette_96'/'val', root/'val') if (p/'n01440764').is_dir()), None)


needs_photographs = pytest.mark.skipif(
    imagenette() is None, reason='set PPCLS_DATA to the folder that holds imagenette_96 (real photographs)')


def photographs(per_class: int) -> list:
    "[(file, ImageNet's label)], the first `per_class` of each of the ten classes."
    return [(file, label) for wnid, label in CLASSES.items()
            for file in sorted((imagenette()/wnid).iterdir())[:per_class]]
