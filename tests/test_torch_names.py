"""State dicts of torchvision and timm load into our networks: names and shapes of all that are known, and the outputs
of the packages' own networks, filled by a rule that needs neither package (tests/facts/torch_names.json.gz)."""
import json, os, struct, threading
from argparse import Namespace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import numpy as np, paddle, pytest
from omegaconf import OmegaConf

from networks import torch_zip
from official import ALL as FACTS_OF_OURS, official_state
from ppcls_nb.basics import PPClsError
from ppcls_nb.cli import main
from ppcls_nb.data.imaug import describe_ops
from ppcls_nb.models import build_model, create_model, load_pretrained
from ppcls_nb.models.formats.downloads import fetch_hub
from ppcls_nb.models.formats.torch_names import (NETWORKS, Known, NameMap, foreign_record, identify, torch_config,
                                                 translate)
from ppcls_nb.models.network import classifier_names, relative_difference
from ppcls_nb.models.registry import model_class
from ppcls_nb.models.weights import resolve_weights, torch_record
from ppcls_nb.recipe.load import load_config
from ppcls_nb.recipe.data import with_settings_of_weights
from ppcls_nb.recipe.trained import as_started, load_predictor
from ppcls_nb.transfer.finetune import start_network
from torch_rule import rule_input, torch_facts, torch_filled, unpacked

FACTS = torch_facts()
ALL = [f'{library}/{name}' for library, networks in NETWORKS.items() for name in networks]
# one of each map and of each set of arguments; the others with PPCLS_ALL_NETWORKS=1
SMALL = [
    'torchvision/resnet18', 'torchvision/resnet50', 'torchvision/resnext50_32x4d', 'torchvision/mobilenet_v2',
    'torchvision/mobilenet_v3_large', 'torchvision/mobilenet_v3_small', 'torchvision/efficientnet_b0',
    'timm/resnet18d', 'timm/resnet50d', 'timm/resnext50d_32x4d', 'timm/mobilenetv2_100', 'timm/mobilenetv3_large_100',
    'timm/mobilenetv3_small_100', 'timm/tf_mobilenetv3_small_100', 'timm/efficientnet_b0', 'timm/tf_efficientnet_b0',
    'timm/efficientnet_lite0', 'timm/tf_efficientnet_lite0', 'torchvision/regnet_x_800mf', 'timm/regnetx_002',
    'torchvision/convnext_tiny', 'timm/convnext_tiny', 'torchvision/vit_b_16', 'timm/deit_tiny_patch16_224',
    'timm/deit_tiny_distilled_patch16_224', 'torchvision/swin_t', 'timm/swin_tiny_patch4_window7_224',
    'timm/resnet50c', 'torchvision/swin_v2_t', 'timm/swinv2_tiny_window8_256']
COMPUTED = [name for name in ALL if 'logits' in FACTS[name]] if os.environ.get('PPCLS_ALL_NETWORKS') == '1' else SMALL


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
    if known.network in FACTS_OF_OURS and known.args.keys() <= {'padding', 'eps'}:
        return official_state(known.network)
    return {key: tuple(p.shape) for key, p in build_model(known.network, **known.args).state_dict().items()}


@pytest.mark.parametrize('name', ALL)
def test_every_name_and_shape_has_its_place(name):
    known = known_of(name)
    own = shapes_of(known)
    theirs = {key: np.broadcast_to(np.float32(0), shape) for key, shape in unpacked(FACTS[name]['state']).items()}
    ours = translate(theirs, own, known, classifier_names(model_class(known.network)[0]), name)
    assert {key: a.shape for key, a in ours.items()} == own


# files of weights that are used in the tests below: a small network of timm

SMALLEST = 'timm/mobilenetv3_small_100'


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "(file, state) of timm's mobilenetv3_small_100."
    file, state = tmp_path_factory.mktemp('timm')/'mobilenetv3_small_100-1a2b.safetensors', state_of(SMALLEST)
    file.write_bytes(safetensors_bytes(state))
    return file, state


def found(state, path='weights.pth', network=None, library=None, config=None):
    "(library, their name) that `identify` finds."
    foreign = identify(state, Path(path), network, library, config)
    return foreign and foreign[:2]


def zeros_of(name):
    "The state dict of LIBRARY/NETWORK with zeros that take no memory."
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in unpacked(FACTS[name]['state']).items()}


def test_a_file_is_recognised_by_its_names(weights):
    file, _ = weights
    model = create_model('MobileNetV3_small_x1_0', file, class_num=10)
    report = model.load_report
    assert sorted(report.skipped_shape) == ['fc.bias', 'fc.weight']
    assert report.body_complete
    assert 'timm mobilenetv3_small_100; preprocessing not known, the usual one is assumed' in str(report)
    assert (model.arguments['style'], model.arguments['eps']) == ('torch', 1e-5)


def test_saved_by_pytorch_since_1_6(weights, tmp_path):
    _, state = weights
    floats = {f'module.{key}': a for key, a in state.items() if a.dtype == np.float32}
    torch_zip(tmp_path/'mobilenetv3_small_100.pth', floats, lambda tensors: {'epoch': 3, 'state_dict': tensors})
    assert create_model('MobileNetV3_small_x1_0', tmp_path/'mobilenetv3_small_100.pth').load_report.complete


@pytest.mark.parametrize('name, wrapper', [
    ('mobilenetv3_small_100.pth.tar', 'module.'), ('mobilenetv3_small_100.ckpt', 'model.'),
    ('mobilenetv3_small_100.pth', '_orig_mod.'), ('mobilenetv3_small_100.pt', 'module._orig_mod.')])
def test_checkpoints_of_training_scripts(name, wrapper, weights, tmp_path):
    floats = {f'{wrapper}{key}': a for key, a in weights[1].items() if a.dtype == np.float32}
    torch_zip(tmp_path/name, floats, lambda tensors: {
        'epoch': 3, 'state_dict': tensors, 'optimizer': {'state': {}, 'param_groups': [{'lr': 0.1}]},
        'args': Namespace(lr=0.1, data='images')})
    assert create_model('MobileNetV3_small_x1_0', tmp_path/name).load_report.complete


def test_a_whole_network_of_pytorch_is_refused_with_advice(weights, tmp_path):
    floats = {key: a for key, a in weights[1].items() if a.dtype == np.float32}
    torch_zip(tmp_path/'mobilenetv3_small_100.pth', floats, lambda tensors: {'model': SMALLEST, 'net': partial(len, 1)})
    with pytest.raises(PPClsError, match=r'refused, nothing was executed; .* alone: torch.save.model.state_dict'):
        create_model('MobileNetV3_small_x1_0', tmp_path/'mobilenetv3_small_100.pth')


@pytest.mark.parametrize('state, path, network, library', [
    ('torchvision/resnet50', 'resnet50-11ad3fa6.pth', 'ResNet50', None),
    ('torchvision/resnet50', 'anything.pth', 'ResNet50', 'timm'),
    ('timm/resnet50d', 'resnet50d_ra2-464e36ba.pth', None, None),
    ('timm/tf_efficientnet_b0', 'tf_efficientnet_b0_ns-c0e6a31c.pth', 'EfficientNetB0', None),
    ('timm/efficientnet_b0', 'efficientnet_b0_ra-3dd342df.pth', 'EfficientNetB0', 'timm'),
    ('torchvision/mobilenet_v2', 'mine.pth', 'MobileNetV2', None),
    ('torchvision/resnet50', 'resnet50_from_regnet_y_16gf.pth', 'ResNet50', None),
    ('torchvision/resnet50', 'teacher_vgg16_student_resnet50.pth', 'ResNet50', None),
    # the name that the other library has for the same network
    ('timm/swin_tiny_patch4_window7_224', 'swin_t.pth', 'SwinTransformer_tiny_patch4_window7_224', None),
    ('torchvision/swin_v2_t', 'swin_v2_t-b137f0e2.pth', None, None),
    ('timm/swinv2_tiny_window16_256', 'swinv2_tiny_window16_256.pth', None, None),
    # no network is named, and the file has the name of one elsewhere
    ('timm/regnetx_080', 'my_regnetx_080.pth', None, None)])
def test_the_network_of_a_file(state, path, network, library):
    their_library, name = found(zeros_of(state), path, network, library)
    assert name == state.split('/')[1]
    assert library in (None, their_library)


@pytest.mark.parametrize('state, arguments, message', [
    ('timm/efficientnet_b0', dict(network='EfficientNetB0'),
     'efficientnet_b0 and tf_efficientnet_b0 have the same names and compute differently; rename the file'),
    ('timm/mobilenetv3_small_100', dict(network='MobileNetV3_small_x1_0', library='timm'),
     'mobilenetv3_small_100 and tf_mobilenetv3_small_100 have the same names'),
    ('timm/resnet50', dict(path='resnetblur50-84f4748f.pth', network='ResNet50'),
     'resnetblur50 has the names and shapes of resnet50 and computes differently'),
    ('timm/resnet50d', dict(path='resnetaa50d_sw.pth', network='ResNet50_vd'), 'resnetaa50d has the names'),
    ('torchvision/resnet101', dict(path='resnet101-63fe2227.pth', network='ResNet50'),
     'weights of resnet101, which is ResNet101 here, not of ResNet50'),
    ('timm/mobilenetv2_100', dict(network='MobileNetV2', library='torchvision'),
     'its names .conv_stem.weight, .* are not those of a network of torchvision that is known here'),
    ('timm/resnet50', dict(network='ResNet50_vd', library='timm'), 'where no network is known that ResNet50_vd equals'),
    ('timm/resnet50', dict(config={'architecture': 'resnet5O'}), "'resnet5O'; did you mean 'resnet50'"),
    ('torchvision/regnet_x_800mf', dict(path='regnet_y_800mf-1b27b58c.pth', network='RegNetX_800MF'),
     r'the file is named after regnet_y_800mf, and its names \(stem.0.weight, .* are those of another network; rename'),
    ('torchvision/regnet_x_800mf', dict(path='regnet_y_800mf.pth'), 'the file is named after regnet_y_800mf'),
    ('timm/regnetx_002', dict(path='best_regnety_002.pth'), 'the file is named after regnety_002'),
    ('torchvision/resnet50', dict(path='vit_b_16-c867db91.pth', network='ResNet50'), 'named after vit_b_16'),
    ('torchvision/resnet50', dict(path='wide_resnet50_2-95faca4d.pth', network='ResNet50'), 'after wide_resnet50_2'),
    ('torchvision/efficientnet_b0', dict(path='efficientnet_v2_s-dd5fe13b.pth', network='EfficientNetB0'),
     'named after efficientnet_v2_s'),
    ('timm/deit_tiny_patch16_224', dict(config={'architecture': 'resnet50'}), 'named after resnet50'),
    ('timm/resnet50', dict(config={'architecture': 'resnetblur50'}), 'resnetblur50 has the names and shapes'),
    ('timm/resnet50', dict(path='best_resnetaa50.pth', network='ResNet50'), 'resnetaa50 has the names and shapes'),
    ('timm/efficientnet_b0', dict(path='efficientnet_blur_b0.pth', network='EfficientNetB0'),
     'efficientnet_blur_b0 has the names and shapes of efficientnet_b0'),
    ('timm/mobilenetv2_100', dict(path='mobilenetv2_050-3d30d450.pth', network='MobileNetV2_x0_5'),
     'mobilenetv2_050 has widths that are multiples of 8, and MobileNetV2_x0_5 has not'),
    ('torchvision/regnet_x_800mf', dict(path='regnet_x_400mf-adf1edd5.pth', network='RegNetX_400MF'),
     'regnet_x_400mf has 400 channels in its last stage, and RegNetX_400MF 384'),
    ('timm/regnetx_004', dict(config={'architecture': 'regnetx_004_tv'}), 'regnetx_004_tv has 400 channels'),
    ('timm/mobilenetv3_small_100', dict(path='mobilenetv3_small_075.pth'),
     'mobilenetv3_small_075 has the channels of its blocks by another rule than MobileNetV3_small_x0_75'),
    ('timm/swinv2_base_window8_256', dict(path='swinv2_base_window12_192.pth'),
     'swinv2_base_window12_192 has the names and shapes of swinv2_base_window8_256'),
    ('timm/swinv2_tiny_window8_256', dict(path='best_swinv2_tiny_window16_256.pth',
                                          network='SwinTransformerV2_tiny_patch4_window8_256'),
     'the file is named after swinv2_tiny_window16_256, which is SwinTransformerV2_tiny_patch4_window16_256 here, not'),
    ('timm/vit_tiny_patch16_224', dict(path='mine.pth'), 'the weights of one of 1. networks .DeiT_.* name the network'),
    ('torchvision/resnet50', dict(path='mine.pth'), r'the weights of one of \d+ networks .ResNeXt101'),
    ('timm/resnet50', dict(config={'architecture': 'resnet50', 'global_pool': 'max'}),
     "resnet50 with global_pool='max'; there is no such network here"),
    ('timm/resnet50', dict(config={'architecture': 'resnet50', 'model_args': {'act_layer': 'gelu', 'drop_rate': 0.1}}),
     "resnet50 with act_layer='gelu'; there is no such network here")])
def test_what_is_not_known_is_an_error(state, arguments, message):
    with pytest.raises(PPClsError, match=message):
        found(zeros_of(state), **arguments)


@pytest.mark.parametrize('state, path, network, library, alike', [
    ('torchvision/resnet50', 'mine.pth', 'ResNet50', None, ('resnetblur50', 'resnetaa50')),
    ('timm/resnet50d', 'mine.pth', 'ResNet50_vd', 'timm', ('resnetblur50d', 'resnetaa50d')),
    ('timm/swinv2_tiny_window8_256', 'mine.pth', 'SwinTransformerV2_tiny_patch4_window16_256', None,
     ('swinv2_tiny_window8_256', )),
    ('torchvision/resnet50', 'mine.pth', 'ResNet50', 'torchvision', ()),
    ('torchvision/resnet50', 'my_resnet50.pth', 'ResNet50', None, ()),
    ('torchvision/swin_v2_t', 'mine.pth', 'SwinTransformerV2_tiny_patch4_window8_256', None, ()),
    ('torchvision/efficientnet_b0', 'mine.pth', 'EfficientNetB0', None, ()),
    ('torchvision/resnet101', 'mine.pth', 'ResNet101', None, ())])
def test_networks_that_the_arrays_cannot_tell_apart(state, path, network, library, alike):
    assert identify(zeros_of(state), Path(path), network, library).alike == alike


def test_what_is_assumed_is_said_once(tmp_path, capsys):
    state = {key: a for key, a in state_of('timm/resnet18').items() if a.dtype == np.float32}
    for name in ('mine', 'resnet18'):
        (tmp_path/f'{name}.safetensors').write_bytes(safetensors_bytes(state))
    assert create_model('ResNet18', tmp_path/'resnet18.safetensors').load_report.complete
    assert not capsys.readouterr().err
    assert create_model('ResNet18', tmp_path/'mine.safetensors').load_report.complete
    said, = capsys.readouterr().err.splitlines()
    assert 'mine.safetensors: nothing in it names its network: read as resnet18 of torchvision' in said
    assert "timm's resnetblur18, with the same arrays, would be read wrongly" in said


def test_names_of_our_own_are_left_alone():
    own = {key: np.zeros(shape, 'float32') for key, shape in official_state('MobileNetV2').items()}
    assert found(own, 'mobilenet_v2.pth', 'MobileNetV2') is None


def changed(state, **changes):
    "`state` with other arrays at some keys, in which __ stands for a dot; None removes a key."
    new = {**state, **{key.replace('__', '.'): a for key, a in changes.items()}}
    return {key: a for key, a in new.items() if a is not None}


@pytest.mark.parametrize('state, known, message', [
    ('torchvision/resnet101', 'torchvision/resnet50', 'they have 33 blocks, and ResNet50 has 16'),
    (dict(layer1__0__conv1__weight=np.zeros((64, 65, 1, 1))), None,
     r'blocks.0.conv0.conv.weight has the shape \(64, 65, 1, 1\), in ResNet50 \(64, 64, 1, 1\)'),
    (dict(layer1__0__se__weight=np.zeros(3)), None, 'no block of ours has the layers of layer1.0: .*se'),
    (dict(layer1__0__conv1__weight=None), None, 'no block of ours has the layers of layer1.0: '),
    (dict(bn1__running_mean=None), None, '1 of its tensors are missing .stem.0.bn._mean'),
    (dict(extra__weight=np.zeros(3)), None, '1 have no place in ResNet50 .extra.weight'),
    (dict(fc__weight=np.zeros((10, 2048)), fc__bias=np.zeros(10)), None, None)])
def test_what_does_not_fit_is_an_error(state, known, message):
    known = known_of(known or 'torchvision/resnet50')
    theirs = zeros_of(state) if isinstance(state, str) else changed(zeros_of('torchvision/resnet50'), **state)
    if message is None:
        assert translate(theirs, shapes_of(known), known, ('fc', ), 'x')['fc.weight'].shape == (2048, 10)
        return
    with pytest.raises(PPClsError, match=message):
        translate(theirs, shapes_of(known), known, ('fc', ), 'x.pth')


def test_a_network_with_other_arguments_is_refused(weights):
    file, _ = weights
    model = build_model('MobileNetV3_small_x1_0')
    with pytest.raises(PPClsError, match="need MobileNetV3_small_x1_0 with style='torch'; build it by create_model"):
        load_pretrained(model, file)
    with pytest.raises(PPClsError, match='with eps=1e-05'):
        create_model('MobileNetV3_small_x1_0', file, eps=1e-3)


def test_a_square_matrix_is_transposed():
    known = Known('Toy', layer_names_of_toy(), {})
    square = np.arange(4.).reshape(2, 2)
    theirs = {'layer1.conv1.weight': np.zeros((2, 2, 1, 1)), 'fc.weight': square}
    own = {'blocks.0.conv0.weight': (2, 2, 1, 1), 'fc.weight': (2, 2)}
    np.testing.assert_array_equal(translate(theirs, own, known, ('fc', ), 'x')['fc.weight'], square.T)


def layer_names_of_toy():
    "Names of a network with one convolution in each block."
    return NameMap(r'(layer\d+)\.', r'(blocks\.\d+)\.', [{'conv1': 'conv0'}], {'fc': 'fc'})


# preprocessing, downloads and everything that takes weights

CONFIG = dict(architecture='mobilenetv3_small_100', num_classes=1000,
              pretrained_cfg=dict(input_size=[3, 192, 192], crop_pct=0.96, interpolation='bicubic', mean=[.5, .5, .5],
                                  std=[.25, .25, .25]))


@pytest.fixture
def hub(weights, tmp_path, monkeypatch):
    "A server in place of huggingface.co with a repository of that network; returns the list of requested paths."
    folder = tmp_path/'server'/'timm'/'small.in1k'/'resolve'/'main'
    folder.mkdir(parents=True)
    (folder/'model.safetensors').symlink_to(weights[0])
    (folder/'config.json').write_text(json.dumps(CONFIG))
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=str(tmp_path/'server')))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{server.server_port}')
    monkeypatch.setenv('PPCLS_HOME', str(tmp_path/'home'))
    monkeypatch.delenv('PPCLS_OFFLINE', raising=False)
    yield asked
    server.shutdown()


def test_a_repository_is_fetched_once_and_says_how_images_are_prepared(hub, monkeypatch):
    record = resolve_weights('hf:timm/small.in1k', 'MobileNetV3_small_x1_0').record
    assert (record.crop_size, record.resize_short, record.interpolation) == (192, 200, 'bicubic')
    assert (record.mean, record.std, record.class_num) == ((.5, .5, .5), (.25, .25, .25), 1000)
    assert record.class_names[0] == 'tench'
    monkeypatch.setenv('PPCLS_OFFLINE', '1')
    model = create_model('MobileNetV3_small_x1_0', 'hf:timm/small.in1k')
    assert 'preprocessing from config.json' in str(model.load_report)
    assert hub == [f'/timm/small.in1k/resolve/main/{name}' for name in ('config.json', 'model.safetensors')]
    with pytest.raises(PPClsError, match='hf:timm/other: not in the cache, and PPCLS_OFFLINE forbids downloads'):
        create_model('MobileNetV3_small_x1_0', 'hf:timm/other')


@pytest.mark.parametrize('source', ['hf:timm', 'hf:timm/../x', 'hf:a/b/../c.pth', 'hf:a b/c'])
def test_a_repository_has_an_owner_and_a_name(source, hub):
    with pytest.raises(PPClsError, match='expected hf:OWNER/NAME'):
        fetch_hub(source)
    assert not hub


@pytest.mark.parametrize('text, message', [
    ('{', 'not JSON'), ('{}', "no 'architecture'"), ('{"architecture": "resnet50"}', "no 'input_size'")])
def test_a_config_that_is_not_of_timm(text, message, tmp_path):
    (tmp_path/'config.json').write_text(text)
    with pytest.raises(PPClsError, match=f'config.json: {message}'):
        torch_config(tmp_path/'model.safetensors')


def test_torchvision_files_are_known_by_their_names(tmp_path):
    path = tmp_path/'efficientnet_b1-c27df63c.pth'
    foreign = identify(zeros_of('torchvision/efficientnet_b1'), path)
    record = foreign_record(zeros_of('torchvision/efficientnet_b1'), foreign, path, 'x')
    assert (record.arch, record.resize_short, record.crop_size, record.interpolation) == (
        'EfficientNetB1', 255, 240, 'bilinear')


def test_every_way_into_the_library_takes_them(hub, weights, capsys):
    record = torch_record('hf:timm/small.in1k')
    network, operations, names = load_predictor('hf:timm/small.in1k')
    assert (network.name, names[0]) == ('MobileNetV3_small_x1_0', 'tench')
    assert describe_ops(operations) == describe_ops(record.eval_ops())
    network, _, _ = load_predictor('MobileNetV3_small_x1_0', f'timm:{weights[0]}')
    assert network.load_report.complete
    _, found, tag = start_network('hf:timm/small.in1k', 5)
    assert (found.args, found.crop_size, tag) == (record.args, 192, 'hf:timm/small.in1k')
    assert main(['info', 'hf:timm/small.in1k']) in (0, None)
    assert 'mobilenetv3_small_100' in capsys.readouterr().out


def test_a_run_does_not_need_the_file_again(hub, tmp_path):
    conf = load_config('quick_start/MobileNetV3_large_x1_0_finetune', {
        'ARCHITECTURE.name': 'MobileNetV3_small_x1_0', 'pretrained_model': 'hf:timm/small.in1k',
        'TRAIN.transforms': [], 'VALID.transforms': []})
    settled = with_settings_of_weights(conf)
    assert settled.ARCHITECTURE.params.style == 'torch'
    assert settled.VALID.transforms[1] == {'ResizeImage': settled.VALID.transforms[1]['ResizeImage']}
    run = tmp_path/'run'
    run.mkdir()
    (run/'config.yaml').write_text(OmegaConf.to_yaml(settled))
    assert as_started(conf, run).pretrained_model == ''
    plain = load_config('quick_start/MobileNetV3_large_x1_0_finetune')
    assert with_settings_of_weights(plain) is plain


def test_a_file_of_paddle_is_not_translated(weights, tmp_path):
    _, state = weights
    np.savez(tmp_path/'a.npz', **state)
    assert resolve_weights(tmp_path/'a.npz', 'MobileNetV3_small_x1_0').record is None
    assert resolve_weights(f'timm:{weights[0]}', 'MobileNetV3_small_x1_0').record.arch == 'MobileNetV3_small_x1_0'


@pytest.mark.parametrize('prefix', ['', 'timm:'])
def test_a_folder_of_timm(prefix, weights, tmp_path):
    (tmp_path/'model.safetensors').symlink_to(weights[0])
    args = dict(in_chans=3, num_classes=1000, global_pool='avg', drop_path_rate=0.1)     # as timm writes them
    (tmp_path/'config.json').write_text(json.dumps({**CONFIG, 'global_pool': 'avg', 'model_args': args}))
    for source in (f'{prefix}{tmp_path}', f'{prefix}{tmp_path}/model.safetensors'):
        report = create_model('MobileNetV3_small_x1_0', source).load_report
        assert report.complete
        assert 'timm mobilenetv3_small_100; preprocessing from config.json' in report.origin
    assert load_predictor(f'{prefix}{tmp_path}')[0].name == 'MobileNetV3_small_x1_0'
    (tmp_path/'config.json').write_text(json.dumps({**CONFIG, 'architecture': 'mobilenetv3_small_075'}))
    with pytest.raises(PPClsError, match='mobilenetv3_small_075 has the channels of its blocks by another rule'):
        create_model('MobileNetV3_small_x0_75', f'{prefix}{tmp_path}')


def test_a_folder_without_anything_is_an_error(tmp_path):
    with pytest.raises(PPClsError, match='without .pdparams files, without model.safetensors and without variables'):
        create_model('ResNet18', f'timm:{tmp_path}')


def test_a_config_of_something_else_is_no_reason_to_refuse_a_file(weights, tmp_path):
    (tmp_path/'mobilenetv3_small_100.safetensors').symlink_to(weights[0])
    (tmp_path/'config.json').write_text('{"epochs": 3}')
    for prefix in ('', 'timm:'):
        file = f'{prefix}{tmp_path}/mobilenetv3_small_100.safetensors'
        record = resolve_weights(file, 'MobileNetV3_small_x1_0').record
        assert 'preprocessing not known' in record.origin


@pytest.mark.parametrize('changes, message', [
    (dict(input_size=[3, 256, 128]), r'input_size is \[3, 256, 128\], expected 3 channels and a square'),
    (dict(input_size=[1, 28, 28]), r'input_size is \[1, 28, 28\], expected 3 channels and a square'),
    (dict(input_size=224), 'input_size is 224'),
    (dict(mean=[0.5]), r'mean is \[0.5\], expected three numbers'),
    (dict(std=[0, 1, 1]), r'std is \[0, 1, 1\], expected three numbers'),
    (dict(crop_pct=0), 'crop_pct 0: expected a number above 0')])
def test_a_config_that_says_nothing_about_square_images(changes, message, tmp_path):
    entries = {**CONFIG['pretrained_cfg'], **changes}
    (tmp_path/'config.json').write_text(json.dumps({**CONFIG, 'pretrained_cfg': entries}))
    with pytest.raises(PPClsError, match=f'config.json: {message}'):
        torch_config(tmp_path/'model.safetensors')


@pytest.mark.parametrize('entry', [dict(pretrained_cfg=5), dict(architecture=['resnet50'])])
def test_a_config_of_another_form(entry, tmp_path):
    (tmp_path/'config.json').write_text(json.dumps({**CONFIG, **entry}))
    with pytest.raises(PPClsError, match='expected the config.json of a network of timm'):
        torch_config(tmp_path/'model.safetensors')
