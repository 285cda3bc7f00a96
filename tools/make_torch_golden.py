"""Writes what is known of networks of torchvision and timm: keys and shapes of their state dicts, and their outputs
with weights of a rule (tests/torch_rule.py) that needs neither package. In an environment of its own:
pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31 numpy==1.26.4

python tools/make_torch_golden.py [LIBRARY/NETWORK ...]        default: all of NETWORKS
"""
import argparse, gzip, json, sys
from pathlib import Path

import numpy as np, timm, torch, torchvision

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from torch_rule import FILE, packed, rule_input, torch_facts, torch_filled

BLOCKS = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152', 'resnext50_32x4d', 'resnext101_32x8d',
          'resnext101_64x4d')
EFFICIENTNET = [f'efficientnet_b{n}' for n in range(8)]
LITE = [f'efficientnet_lite{n}' for n in range(3)]
NETWORKS = dict(
    torchvision=[*BLOCKS, 'mobilenet_v2', 'mobilenet_v3_large', 'mobilenet_v3_small', *EFFICIENTNET],
    timm=[
        *BLOCKS, 'resnet18d', 'resnet34d', 'resnet50d', 'resnet101d', 'resnet152d', 'resnext101_32x4d',
        'resnext101_32x16d', 'resnext50d_32x4d', 'mobilenetv2_100', 'mobilenetv3_large_100', 'mobilenetv3_small_100',
        'tf_mobilenetv3_large_100', 'tf_mobilenetv3_small_100', *EFFICIENTNET, *LITE,
        *(f'tf_{name}' for name in (*EFFICIENTNET, *LITE))])
SIZES = {}                      # part of a network's name → height and width of its images, where it is not 64
GAIN = 2.0
VERSIONS = f'torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}'


def new_network(library, name):
    "The network `name` of `library` with random weights."
    make = timm.create_model if library == 'timm' else torchvision.models.get_model
    return make(name).eval()


def described(library, name):
    "The facts of one network."
    size = next((size for part, size in SIZES.items() if part in name), 64)
    network = new_network(library, name)
    state = {key: value for key, value in network.state_dict().items() if value.is_floating_point()}
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    with torch.no_grad():
        for key, value in state.items():
            value.copy_(torch.from_numpy(np.asarray(torch_filled(key, shapes[key], GAIN))))
        out = network(torch.from_numpy(rule_input(size))).numpy()
    rounded = lambda values: [float(f'{v:.7g}') for v in np.asarray(values).ravel()]
    whole = [key for key in network.state_dict() if key not in state and not key.endswith('num_batches_tracked')]
    return dict(state=packed(shapes), whole_numbers=whole, size=size, gain=GAIN, source=VERSIONS,
                logits=[rounded(row) for row in out[:, :16]], mean=rounded(out.mean(1)), std=rounded(out.std(1)),
                argmax=out.argmax(1).tolist())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = [f'{library}/{name}' for library, names in NETWORKS.items() for name in names]
    parser.add_argument('names', nargs='*', default=everything, metavar='LIBRARY/NETWORK')
    parser.add_argument('-o', '--out', type=Path, default=FILE)
    a = parser.parse_args()
    facts = torch_facts() if FILE.exists() else {}
    for name in a.names:
        facts[name] = described(*name.split('/'))
        print(name, len(facts[name]['state']), facts[name]['std'], flush=True)
    a.out.write_bytes(gzip.compress(json.dumps(facts, separators=(',', ':')).encode(), mtime=0))


if __name__ == '__main__':
    main()
