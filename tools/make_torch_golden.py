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
REGNET = [f'regnetx_{n}' for n in ('002', '004', '006', '008', '016', '032', '040', '064', '080', '120', '160', '320')]
CONVNEXT = [f'convnext_{size}' for size in ('tiny', 'small', 'base', 'large')]
DEIT = [f'deit_{size}{kind}_patch16_224' for size in ('tiny', 'small', 'base') for kind in ('', '_distilled')]
DEIT += [f'deit_base{kind}_patch16_384' for kind in ('', '_distilled')]
VIT = [f'vit_{size}_{patch}' for size in ('base', 'large') for patch in ('patch16_224', 'patch16_384', 'patch32_384')]
SWIN = [f'swin_{size}_patch4_window7_224' for size in ('tiny', 'small', 'base', 'large')]
SWIN += [f'swin_{size}_patch4_window12_384' for size in ('base', 'large')]
SWIN_V2 = [f'swinv2_{size}_window{window}_256' for size in ('tiny', 'small', 'base') for window in (8, 16)]
SWIN_V2 += [f'swinv2_{windows}' for windows in ('large_window12to16_192to256', 'base_window12to24_192to384',
                                                'large_window12to24_192to384')]
LITE = [f'efficientnet_lite{n}' for n in range(3)]
NETWORKS = dict(
    torchvision=[*BLOCKS, 'mobilenet_v2', 'mobilenet_v3_large', 'mobilenet_v3_small', *EFFICIENTNET,
                 *(f'regnet_x_{size}' for size in ('800mf', '1_6gf', '3_2gf', '8gf', '16gf', '32gf')), *CONVNEXT,
                 'vit_b_16', 'vit_l_16', *(f'swin_{version}{size}' for version in ('', 'v2_') for size in 'tsb')],
    timm=[
        *BLOCKS, 'resnet50c', 'resnet18d', 'resnet34d', 'resnet50d', 'resnet101d', 'resnet152d', 'resnext101_32x4d',
        'resnext101_32x16d', 'resnext101_32x32d', 'resnext50d_32x4d', 'mobilenetv2_100', 'mobilenetv3_large_100',
        'mobilenetv3_small_100', 'tf_mobilenetv3_large_100', 'tf_mobilenetv3_small_100', *EFFICIENTNET, *LITE,
        *(f'tf_{name}' for name in (*EFFICIENTNET, *LITE)), *REGNET, *CONVNEXT, *DEIT, 'vit_tiny_patch16_224',
        'vit_small_patch16_224', *VIT, *SWIN, *SWIN_V2])
# of RegNet and everything after it, and of the largest ResNeXt, outputs of these only; of the others names and shapes
LATER, OUTPUTS = ('regnet', 'convnext', 'vit', 'deit', 'swin', 'resnext101_32x32d'), (
    'regnet_x_800mf', 'regnetx_002', 'convnext_tiny', 'vit_b_16', 'deit_tiny_patch16_224',
    'deit_tiny_distilled_patch16_224', 'swin_t', 'swin_tiny_patch4_window7_224', 'swin_v2_t',
    'swinv2_tiny_window8_256', 'swinv2_tiny_window16_256', 'swinv2_base_window12to24_192to384')
# part of a name → height and width of the images, else 64
SIZES = {'384': 384, 'swin_v2': 256, 'swinv2': 256, 'vit_': 224, 'deit_': 224, 'swin_': 224}
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
    state = {key: value for key, value in network.state_dict().items()
             if value.is_floating_point() and not key.endswith('.relative_coords_table')}
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    whole = [key for key in network.state_dict() if key not in state and not key.endswith('num_batches_tracked')]
    facts = dict(state=packed(shapes), whole_numbers=whole, size=size, gain=GAIN, source=VERSIONS)
    if name.startswith(LATER) and name not in OUTPUTS:
        return facts
    with torch.no_grad():
        for key, value in state.items():
            value.copy_(torch.from_numpy(np.asarray(torch_filled(key, shapes[key], GAIN))))
        out = network(torch.from_numpy(rule_input(size))).numpy()
    rounded = lambda values: [float(f'{v:.7g}') for v in np.asarray(values).ravel()]
    return dict(**facts, logits=[rounded(row) for row in out[:, :16]], mean=rounded(out.mean(1)),
                std=rounded(out.std(1)), argmax=out.argmax(1).tolist())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = [f'{library}/{name}' for library, names in NETWORKS.items() for name in names]
    parser.add_argument('names', nargs='*', default=everything, metavar='LIBRARY/NETWORK')
    parser.add_argument('-o', '--out', type=Path, default=FILE)
    a = parser.parse_args()
    facts = torch_facts() if FILE.exists() else {}
    for name in a.names:
        facts[name] = described(*name.split('/'))
        print(name, len(facts[name]['state']), facts[name].get('std', 'names only'), flush=True)
    a.out.write_bytes(gzip.compress(json.dumps(facts, separators=(',', ':')).encode(), mtime=0))


if __name__ == '__main__':
    main()
