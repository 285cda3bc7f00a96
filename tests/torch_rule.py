"""The rule that fills the networks of torchvision and timm for their golden outputs (tests/facts/torch_names.json.gz,
made by tools/make_torch_golden.py). It needs only NumPy, and nothing of these packages."""
import gzip, hashlib, json
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent/'facts'/'torch_names.json.gz'
NORM = ('weight', 'bias', 'running_mean', 'running_var')


def torch_facts():
    "LIBRARY/NETWORK → the facts of that network."
    return json.loads(gzip.decompress(FILE.read_bytes()))


def packed(shapes):
    "{key: shape} as 'key 3x4' each, without whole numbers; the four of a batch norm as one, 'name.* 4'."
    entries = []
    for key, shape in shapes.items():
        name, _, leaf = key.rpartition('.')
        norm = f'{name}.running_mean' in shapes
        if norm and leaf == 'weight':
            entries.append(f'{name}.* {shape[0]}')
        elif not norm:
            entries.append(f"{key} {'x'.join(map(str, shape))}")
    return entries


def unpacked(entries):
    "Key → shape of the entries of `packed`."
    shapes = {}
    for entry in entries:
        key, shape = entry.rsplit(' ', 1)
        for leaf in NORM if key.endswith('.*') else ['']:
            shapes[key.removesuffix('*') + leaf] = tuple(int(n) for n in shape.split('x') if n)
    return shapes


def torch_filled(key, shape, gain):
    "The array that the rule puts at `key` of a state dict of PyTorch, in whose linear weights the inputs are last."
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], 'little')
    n = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype('float32')
    leaf = key.rpartition('.')[2]
    if leaf == 'running_var':
        return 1 + 0.1*np.abs(n)
    if leaf == 'weight' and len(shape) > 1:
        return n*np.float32(np.sqrt(gain/np.prod(shape[1:])))
    if leaf == 'in_proj_weight':
        return n*np.float32(np.sqrt(gain/shape[1]))
    return 1 + 0.1*n if leaf == 'weight' else 0.1*n


def rule_input(size):
    "The two images of the rule, (2, 3, size, size) float32."
    return np.random.Generator(np.random.PCG64(0)).standard_normal((2, 3, size, size)).astype('float32')
