"""What is known of the official networks: those of the documents of June 2020 (tests/facts/networks.json.gz), later
ones (tests/facts/later/, made by tools/make_golden.py), and the rule of their golden outputs."""
import gzip, hashlib, json
from contextlib import contextmanager
from pathlib import Path

import numpy as np, paddle
from paddle.nn.initializer import Constant, Initializer

FACTS = json.loads(gzip.decompress((Path(__file__).parent/'facts'/'networks.json.gz').read_bytes()))['networks']
LATER = {
    name: facts
    for file in sorted((Path(__file__).parent/'facts'/'later').glob('*.json.gz'))
    for name, facts in json.loads(gzip.decompress(file.read_bytes())).items()}
ALL = FACTS | LATER


def official_state(name):
    "Key → shape, in order."
    out = {}
    for entry in ALL[name]['state']:
        key, shape = entry.rsplit(' ', 1)
        shape = tuple(map(int, shape.split('x')))
        for leaf in ('weight', 'bias', '_mean', '_variance') if key.endswith('.*') else [None]:
            out[key if leaf is None else f'{key[:-1]}{leaf}'] = shape
    return out


@contextmanager
def without_random_weights():
    "Inside the `with`, networks have zeros where they would have random numbers: they are filled afterwards."
    call, zeros = Initializer.__call__, Constant(0.)
    Initializer.__call__ = lambda self, *args: call(self if isinstance(self, Constant) else zeros, *args)
    try:
        yield
    finally:
        Initializer.__call__ = call


def filled(key, shape, gain):
    "The array that the golden rule (see the facts) puts at `key`."
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], 'little')
    n = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float64).astype('float32')
    if len(shape) == 4: return n*np.float32(np.sqrt(gain/np.prod(shape[1:])))
    if len(shape) == 2: return n*np.float32(np.sqrt(gain/shape[0]))
    if key.endswith('_variance'): return 1 + 0.1*np.abs(n)
    if key.endswith('_mean'): return 0.1*n
    return 1 + 0.1*n if key.endswith(('.weight', '.scale')) else 0.1*n


def fill(model, gain):
    "Fill `model` by the rule and put it into evaluation mode."
    for key, p in model.state_dict().items():
        if 'float' in str(p.dtype):
            p.set_value(filled(key, tuple(p.shape), gain))
    model.eval()


def golden_output(model, gain, size):
    "Logits of `model` filled by the rule, on the rule's input."
    fill(model, gain)
    x = np.random.Generator(np.random.PCG64(0)).standard_normal((2, 3, size, size)).astype('float32')
    with paddle.no_grad(): return model(paddle.to_tensor(x)).numpy()
