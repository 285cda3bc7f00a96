"""State dicts of torchvision and timm load into our networks: names and shapes of all that are known, and the outputs
of the packages' own networks, filled by a rule that needs neither package (tests/facts/torch_names.json.gz)."""
import json, os, struct
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import numpy as np, paddle, pytest

from networks import torch_zip
from official import official_state
from ppcls_nb.basics import PPClsError
from ppcls_nb.models import build_model, create_model, load_pretrained
from ppcls_nb.models.formats.torch_names import NETWORKS, Known, identify, layer_pairs, translate
from ppcls_nb.models.registry import model_class
from ppcls_nb.models.network import classifier_names, relative_difference
from ppcls_nb.models.weights import resolve_weights, torch_record
from torch_rule import rule_input, torch_facts, torch_filled, unpacked

FACTS = torch_facts()
ALL = [f'{library}/{name}' for library, networks in NETWORKS.items() for name in networks]
# one of each map and of each set of arguments; the others with PPCLS_ALL_NETWORKS=1
SMALL = [
    'torchvision/resnet18', 'torchvision/resnet50', 'torchvision/resnext50_32x4d', 'torchvision/mobilenet_v2',
    'torchvision/mobilenet_v3_large', 'torchvision/mobilenet_v3_small', 'torchvision/efficientnet_b0',
    'timm/resnet18d', 'timm/resnet50d', 'timm/resnext50d_32x4d', 'timm/mobilenetv2_100', 'timm/mobilenetv3_large_100',
    'timm/mobilenetv3_small_100', 'timm/tf_mobilenetv3_small_100', 'timm/efficientnet_b0', 'timm/tf_efficientnet_b0',
    'timm/efficientnet_lite0', 'timm/tf_efficientnet_lite0']
COMPUTED = ALL if os.environ.get('PPCLS_ALL_NETWORKS') == '1' else SMALL


def known_of(name):
    "What is known of LIBRARY/NETWORK."
    library, network = name.split('/')
    return NETWORKS[library][network]


def state_of(name):
    "The state dict of LIBRARY/NETWORK, filled by the rule, under the keys of that library."
    facts = FACTS[name]
    state = {key: torch_filled(key, shape, facts['gain']) for key, shape in unpacked(facts['state']).items()}
    counters = {f'{key.rpartition(".")[0]}.num_batches_tracked': np.array(3) for key in state if 'running_var' in key}
    return {**state, **counters, **{key: np.zeros((1, ), 'int64') for key in facts['whole_numbers']}}


def safetensors_bytes(state):
    "Float32 and int64 arrays {name: array} as the bytes of a safetensors file."
    header, end, types = {}, 0, {'float32': 'F32', 'int64': 'I64'}
    for key, a in state.items():
        header[key] = dict(dtype=types[a.dtype.name], shape=a.shape, data_offsets=[end, end + a.nbytes])
        end += a.nbytes
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + b''.join(np.ascontiguousarray(a).tobytes() for a in state.values())


@pytest.mark.parametrize('name', COMPUTED)
def test_outputs_are_those_of_the_other_library(name, tmp_path):
    facts, (library, network) = FACTS[name], name.split('/')
    (tmp_path/f'{network}-1a2b3c4d.safetensors').write_bytes(safetensors_bytes(state_of(name)))
    model = create_model(known_of(name).network, f'{library}:{tmp_path}/{network}-1a2b3c4d.safetensors')
    assert model.load_report.complete
    model.eval()
    with paddle.no_grad():
        out = model(paddle.to_tensor(rule_input(facts['size']))).numpy()
    assert relative_difference(out[:, :16], facts['logits']) < 1e-4
    assert relative_difference(out.std(1), facts['std']) < 1e-4
    assert out.argmax(1).tolist() == facts['argmax']


def test_every_known_network_has_facts():
    assert sorted(FACTS) == sorted(ALL)


def shapes_of(known):
    "Key → shape of our network for weights of another library."
    if known.args.keys() <= {'padding', 'eps'}:
        return official_state(known.network)
    return {key: tuple(p.shape) for key, p in build_model(known.network, **known.args).state_dict().items()}


@pytest.mark.parametrize('name', ALL)
def test_every_name_and_shape_has_its_place(name):
    known = known_of(name)
    own = shapes_of(known)
    theirs = {key: np.broadcast_to(np.float32(0), shape) for key, shape in unpacked(FACTS[name]['state']).items()}
    ours = translate(theirs, own, known, classifier_names(model_class(known.network)[0]), name)
    assert {key: a.shape for key, a in ours.items()} == own
