"""Weights from anywhere: the stores of Paddle 1.x (format against Paddle's own writer, names of every network),
downloads, the offline switch, the command line.

Everything runs on this machine: a server in a thread stands in for the official one.
"""
import io, os, pickle, struct, subprocess, sys, tarfile, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import ppcls_nb  # before paddle: sets the threads
import numpy as np, paddle, pytest

from official import FACTS, official_state
from ppcls_nb.basics import PPClsError
from ppcls_nb.cli import main
from ppcls_nb.models import build_model, create_model, load_pretrained, list_pretrained, weights_info
from ppcls_nb.models.formats.old_names import OldNamesError, has_old_names, old_names
from ppcls_nb.models.registry import WEIGHTS, Weights
from ppcls_nb.models.formats.static_file import read_static
from ppcls_nb.models.weights import fetch_weights, find_weights, weights_home

SMALL = [
    'DPN68', 'DenseNet121', 'EfficientNetB0_small', 'GoogLeNet', 'MobileNetV1_x0_25', 'MobileNetV2_x0_25',
    'MobileNetV3_small_x0_35', 'ResNet18_vd', 'ResNet50_ACNet_deploy', 'SE_ResNet18_vd', 'ShuffleNetV2_x0_25',
    'SqueezeNet1_1']


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "A cache of its own, online, for each test."
    monkeypatch.setenv('PPCLS_HOME', str(tmp_path/'home'))
    monkeypatch.delenv('PPCLS_OFFLINE', raising=False)


def varint(n): return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def variable(a):
    "An array as a file of Paddle 1.x."
    code = {'float32': 5, 'float64': 6, 'int8': 21, 'int64': 3}[str(a.dtype)]
    desc = b'\x08' + varint(code) + b''.join(b'\x10' + varint(n) for n in a.shape)
    return struct.pack('<IQIi', 0, 0, 0, len(desc)) + desc + a.tobytes()


def old_state(model):
    "The network's arrays under their old names."
    state = model.state_dict()
    return {name: state[key].numpy() for key, name in old_names(model.name, state).items()}


def write_folder(folder, arrays):
    for name, a in arrays.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(variable(a))
    return folder


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


def test_what_has_no_place_is_listed(tmp_path):
    arrays = old_state(build_model('MobileNetV1_x0_25', class_num=10))
    arrays['conv7_weights'] = arrays.pop('conv2_1_dw_weights')
    arrays['@LR_DECAY_COUNTER@'] = np.zeros(1, 'int64')
    write_folder(tmp_path/'net', arrays)
    with pytest.raises(OldNamesError, match='net: no place in MobileNetV1_x0_25 for conv7_weights; nothing for '
                                            'blocks.0.depthwise_conv.conv.weight$') as e:
        create_model('MobileNetV1_x0_25', tmp_path/'net', class_num=10)
    assert (e.value.unplaced, e.value.empty) == (['conv7_weights'], ['blocks.0.depthwise_conv.conv.weight'])
    with pytest.raises(OldNamesError, match='weights of another network: 135 of its 138 tensors have no place in '
                                            'ResNet18_vd; it has conv1_bn_mean, ') as e:
        create_model('ResNet18_vd', tmp_path/'net')
    assert len(e.value.unplaced) == 135


def test_int8_weights(tmp_path):
    "Scales beside float32 weights are set aside and told; whole-number codes are refused."
    name, tag = 'MobileNetV3_small_x0_35', 'MobileNetV3_large_x1_0_ssld_int8'
    ours = build_model(name, class_num=10)
    arrays = {**old_state(ours), 'conv2d_3.tmp_0.scale': np.ones(1, 'f4'), 'conv1_weights.quantized': np.ones(3, 'f4')}
    write_tar(tmp_path/'trained.tar', 'x', arrays)
    report = create_model(name, tmp_path/'trained.tar', class_num=10).load_report
    assert report.complete
    assert report.aside == {'of quantization': ['conv2d_3.tmp_0.scale', 'conv1_weights.quantized']}
    assert '2 of quantization (conv2d_3.tmp_0.scale, conv1_weights.quantized)' in str(report)
    write_tar(tmp_path/'frozen.tar', 'x', {**arrays, 'conv1_weights': np.full((16, 3, 3, 3), 7, 'int8')})
    with pytest.raises(PPClsError, match='frozen.tar: 1 tensors are int8 codes .conv1_weights'):
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
    x = paddle.static.nn.conv2d(paddle.static.data('x', [None, 3, 8, 8]), 4, 3, param_attr=paddle.ParamAttr(name='conv1_weights'), bias_attr=paddle.ParamAttr(name='entry/conv1/biases'))
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
            # the writer of these tests is right, too
            assert (tmp_path/'store'/name).read_bytes() == variable(a)


def test_archives_cannot_reach_out(tmp_path):
    for name in ('../evil', '/etc/evil', 'net/../../evil'):
        with tarfile.open(tmp_path/'evil.tar', 'w') as tar: tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        with pytest.raises(PPClsError, match='evil.tar: refused'): create_model('ResNet18_vd', tmp_path/'evil.tar')
    assert not (tmp_path.parent/'evil').exists()


# downloads

class Shop(BaseHTTPRequestHandler):
    "Serves the dictionary `files` with ranges; hangs up after `cut` bytes once."
    files, asked, cut = {}, [], None
    def do_GET(self):
        body, wish = self.files.get(self.path.split('?')[0].strip('/')), self.headers.get('Range', '')
        self.asked.append((self.path, wish))
        if body is None: return self.send_error(404)
        start = int(wish[6:-1]) if wish else 0
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(body) - start))
        if start: self.send_header('Content-Range', f'bytes {start}-{len(body) - 1}/{len(body)}')
        self.end_headers()
        self.wfile.write(body[start:][:Shop.cut])
        Shop.cut = None
    def log_message(self, *args): pass


@pytest.fixture
def shop(monkeypatch, tmp_path):
    """Address of a server that has weights of MobileNetV3_small_x0_35 as `.pdparams` and as an old `.tar`, under the
    tags Far and Old."""
    ours = build_model('MobileNetV3_small_x0_35', class_num=10)
    paddle.save(ours.state_dict(), str(tmp_path/'far.pdparams'))
    write_tar(tmp_path/'old.tar', 'Old_pretrained', old_state(ours))
    Shop.files = {
        'Far_pretrained.pdparams': (tmp_path/'far.pdparams').read_bytes(),
        'Old_pretrained.tar': (tmp_path/'old.tar').read_bytes()}
    Shop.asked = []
    server = ThreadingHTTPServer(('127.0.0.1', 0), Shop)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}'
    monkeypatch.setitem(
        WEIGHTS, 'Far',
        Weights('Far', 'MobileNetV3_small_x0_35', url=f'{url}/Far_pretrained.pdparams', legacy_url=f'{url}/none.tar',
                class_num=10))
    monkeypatch.setitem(WEIGHTS, 'Old',
                        Weights('Old', 'MobileNetV3_small_x0_35', legacy_url=f'{url}/Old_pretrained.tar', class_num=10))
    yield url, ours
    server.shutdown()


def load(source): return create_model('MobileNetV3_small_x0_35', source, class_num=10)


def test_tags_and_addresses_are_fetched_once(shop, monkeypatch):
    url, ours = shop
    for source in ('Far', 'Old', f'{url}/Far_pretrained.pdparams', f'{url}/Old_pretrained.tar',
                   f'{url}/Old_pretrained.tar?copy=1'):
        net = load(source)
        assert net.load_report.complete
        assert_same(ours, net)
    assert [path for path, _ in Shop.asked
            ] == ['/Far_pretrained.pdparams', '/Old_pretrained.tar', '/Old_pretrained.tar?copy=1']
    assert sorted(p.name for p in weights_home().iterdir())[:1] == ['Far.pdparams']
    assert (weights_home()/'Old.tar').is_file()
    monkeypatch.setenv('PPCLS_OFFLINE', '1')
    assert load('Far').load_report.complete                                             # what is cached stays usable


def test_a_cut_download_is_continued_and_named_when_whole(shop):
    Shop.cut = 300_000
    assert load('Far').load_report.complete
    (_, first), (_, second) = Shop.asked
    assert first == ''
    assert 0 < int(second[6:-1]) <= 300_000
    fetch_weights(WEIGHTS['Far']).unlink()
    del Shop.files['Far_pretrained.pdparams']
    with pytest.raises(PPClsError, match='404'): load('Far')
    assert not list(weights_home().glob('Far.pdparams*'))


def test_offline_says_what_from_where_and_where_to(shop, monkeypatch, tmp_path):
    url, _ = shop
    monkeypatch.setenv('PPCLS_OFFLINE', '1')
    for source, address, place in (('Far', f'{url}/Far_pretrained.pdparams', weights_home()/'Far.pdparams'),
                                   ('Old', f'{url}/Old_pretrained.tar', weights_home()/'Old.tar')):
        with pytest.raises(PPClsError) as e: load(source)
        assert 'PPCLS_OFFLINE' in str(e.value)
        assert address in str(e.value)
        assert str(place) in str(e.value)
    with pytest.raises(PPClsError, match='PPCLS_OFFLINE'): load(f'{url}/Far_pretrained.pdparams')
    assert not Shop.asked
    assert not weights_home().exists()
    weights_home().mkdir(parents=True)
    (weights_home()/'Far.pdparams').write_bytes(Shop.files['Far_pretrained.pdparams'])       # by hand, as it said
    assert load('Far').load_report.complete


def test_the_documents_prefix_and_a_folder_of_a_run(tmp_path):
    ours = build_model('MobileNetV3_small_x0_35', class_num=10)
    for path in ('pretrained/Net_pretrained', 'run/best', 'old_run/0/ppcls'):
        (tmp_path/path).parent.mkdir(parents=True)
        paddle.save(ours.state_dict(), str(tmp_path/f'{path}.pdparams'))
    for source in ('pretrained/Net_pretrained', 'run', 'old_run/0', 'old_run/0/ppcls', 'pretrained'):
        assert load(tmp_path/source).load_report.complete
    assert find_weights(tmp_path/'pretrained'/'Net_pretrained').suffix == '.pdparams'


# the command line

def test_download_command(shop, tmp_path, capsys):
    assert main(['download', '-a', 'Far', 'Old', '-p', str(tmp_path/'p'), '-d', 'True']) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path/'p'/'Far_pretrained.pdparams'),
        str(tmp_path/'p'/'Old_pretrained')]
    assert load(tmp_path/'p'/'Far_pretrained').load_report.complete
    assert load(tmp_path/'p'/'Old_pretrained').load_report.complete
    assert main(['download', '-a', 'Old', '-p', str(tmp_path/'q'), '-d', 'False']) == 0
    assert [p.name for p in (tmp_path/'q').iterdir()] == ['Old_pretrained.tar']
    asked = len(Shop.asked)
    assert main(['download', '-a', 'Far', '-p', str(tmp_path/'p')]) == 0
    assert len(Shop.asked) == asked
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
    assert '0.824' in out
    assert 'ResNet50_vd_ssld_pretrained.pdparams' in out
    for name in ('GoogLeNet', 'MobileNetV3_large_x1_0_ssld_int8', 'ResNet50_ACNet_deploy'):
        assert main(['info', name]) == 0


def test_the_module_is_the_command_too():
    "As a process: exit code, output and no stack of Python."
    done = subprocess.run([sys.executable, '-m', 'ppcls_nb', 'download', '-a', 'ResNet50_vd', '-p', 'nowhere'],
                          capture_output=True, text=True, env={
                              **os.environ, 'PPCLS_OFFLINE': '1'})
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (2, '', 1)
    assert done.stderr.startswith('ppcls: ResNet50_vd: is not here and PPCLS_OFFLINE forbids')
    assert not os.path.exists('nowhere')
