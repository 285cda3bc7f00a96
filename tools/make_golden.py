"""Writes what is known of networks of the released package paddleclas: keys and shapes of their checkpoints and golden
outputs, by the rule of tests/facts/networks.json.gz. Needs an environment of its own, since its requirements are old:
pip install paddlepaddle==3.3.1 paddleclas==2.6.0.

python tools/make_golden.py -o tests/facts/later/pp_lcnet.json.gz --size 64 PPLCNet_x0_25 PPLCNet_x1_0
"""
import argparse, gzip, importlib, json, sys, types
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np, paddle
from paddle.utils import unique_name

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from official import golden_output


def released_networks():
    "The module of paddleclas that holds its networks; the package's own __init__ would want its whole requirements."
    root = Path(find_spec('paddleclas').submodule_search_locations[0])
    for name in ('paddleclas', 'paddleclas.ppcls', 'paddleclas.ppcls.arch', 'ppcls', 'ppcls.arch'):
        module = types.ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.replace('paddleclas.', '').replace('paddleclas', '').split('.')))]
        sys.modules[name] = module
    networks = importlib.import_module('paddleclas.ppcls.arch.backbone')
    importlib.import_module('paddleclas.ppcls.utils.logger').init_logger()
    return networks


def replace_module(networks, file):
    "Let `networks` be those of `file` where it has them: another version of the module of the same name."
    name = next(name for name in sys.modules if name.endswith(f'.{file.stem}') and name.startswith(networks.__name__))
    spec = spec_from_file_location(name, file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    for network in module.__all__:
        setattr(networks, network, getattr(module, network))


def packed_state(state):
    "'key 3x4' for each array of numbers that are learned or kept; the four of a batch norm as one, 'name.* 4'."
    kept = {key: value for key, value in state.items() if 'float' in str(value.dtype)}
    entries = []
    for key, value in kept.items():
        name, _, leaf = key.rpartition('.')
        norm = f'{name}._mean' in kept
        if norm and leaf == 'weight':
            entries.append(f'{name}.* {value.shape[0]}')
        elif not norm:
            entries.append(f"{key} {'x'.join(map(str, value.shape))}")
    return entries


def count_learned(network, size):
    "How many numbers get a gradient; a parameter that the output does not depend on learns nothing."
    out = network(paddle.ones([1, 3, size, size]))
    sum(o.sum() for o in (out if isinstance(out, (list, tuple)) else [out])).backward()
    return sum(int(np.prod(p.shape)) for p in network.parameters() if p.grad is not None)


# tables that some releases keep among the state, although they follow from the sizes
CONSTANTS = {'attn_mask', 'relative_coords_table'}


def without_constants(network):
    "Take `CONSTANTS` out of the state of `network`, so that they keep their values."
    for layer in network.sublayers():
        layer._non_persistable_buffer_names_set.update(CONSTANTS & layer._buffers.keys())


def described(network, gain, size, release, keys_only=False):
    "The facts of one network of a `release`; without the golden output where `keys_only`."
    without_constants(network)
    state = network.state_dict()
    facts = {
        'trainable': count_learned(network, size),
        'total': sum(int(np.prod(v.shape)) for v in state.values() if 'float' in str(v.dtype)),
        'state': packed_state(state)}
    if keys_only:
        return facts
    out = golden_output(network, gain, size)
    rounded = lambda values: [float(f'{v:.7g}') for v in np.asarray(values).ravel()]
    return facts | {
        'golden': {'S': size, 'gain': gain, 'logits': [rounded(row) for row in out[:, :16]],
                   'mean': rounded(out.mean(1)), 'std': rounded(out.std(1)), 'argmax': out.argmax(1).tolist()},
        'golden_source': f'paddleclas {release}'}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='+')
    parser.add_argument('-o', '--out', type=Path, required=True)
    parser.add_argument('--size', type=int, default=64, help='height and width of the images (default 64)')
    parser.add_argument('--gain', type=float, default=2.0, help='of the rule; smaller where rounding shows (default 2)')
    parser.add_argument('--keys-only', action='store_true', help='no outputs: for networks too large for tests')
    parser.add_argument('--module', type=Path, help='a file that stands for the module of the same name')
    parser.add_argument('--release', default='2.6.0', help='of paddleclas, for the record (default 2.6.0)')
    a = parser.parse_args()
    networks = released_networks()
    if a.module:
        replace_module(networks, a.module)
    facts = json.loads(gzip.decompress(a.out.read_bytes())) if a.out.exists() else {}
    for name in a.names:
        with unique_name.guard():          # some networks name their parameters
            network = getattr(networks, name)()
        facts[name] = described(network, a.gain, a.size, a.release, a.keys_only)
        print(name, facts[name]['total'], facts[name].get('golden', {}).get('std'), flush=True)
    a.out.write_bytes(gzip.compress(json.dumps(facts, separators=(',', ':')).encode(), mtime=0))


if __name__ == '__main__': main()
