"Networks for phones: what can be checked without a phone, with a script in the place of `adb`."
import os, sys
from importlib.util import find_spec

import ppcls_nb  # before paddle: sets the threads
import paddle, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.deploy.export import export_model, read_export
from ppcls_nb.deploy.mobile import (_check_binary, device_benchmark, find_device, find_lite, lite_networks, to_lite,
                                    to_ort, why_no_lite)
from ppcls_nb.models import create_model

posix = pytest.mark.skipif(os.name != 'posix', reason='scripts cannot be started by their name')
ADB = '''
import pathlib, sys
home, args = pathlib.Path(__file__).parent, sys.argv[1:]
if args[0] == '-s': args = args[2:]
with open(home/'log.txt', 'a') as f: f.write(' '.join(args) + chr(10))
if args[0] == 'devices': print('List of devices attached' + chr(10) + (home/'devices.txt').read_text())
elif 'getprop' in args: print('arm64-v8a')
elif args[0] == 'pull': pathlib.Path(args[2]).write_text('PaddleLite Benchmark')
'''


def make_adb(folder, devices='712QSD device'):
    "A script that answers as adb does, and logs the commands in log.txt."
    folder.mkdir(exist_ok=True)
    (folder/'devices.txt').write_text(devices)
    adb = folder/'adb'
    adb.write_text(f'#!{sys.executable}\n{ADB}')
    adb.chmod(0o755)
    return adb


def make_binary(file, machine):
    "A file with the ELF header of a program for this machine number."
    file.write_bytes(b'\x7fELF' + bytes(14) + machine.to_bytes(2, 'little'))
    return file


@pytest.fixture(scope='module')
def net():
    paddle.seed(0)
    return create_model('MobileNetV1_x0_25', class_num=5)


@pytest.fixture(scope='module')
def exported(net, tmp_path_factory):
    return export_model(net, tmp_path_factory.mktemp('export')/'net', eval_ops(64, 72))


@pytest.fixture
def models(tmp_path):
    (tmp_path/'models').mkdir()
    (tmp_path/'models'/'MobileNetV1.nb').write_bytes(b'nb')
    return tmp_path/'models'


def test_a_python_without_paddle_lite_is_reported(monkeypatch):
    with pytest.raises(PPClsError, match='no-such-python: cannot be started: .*PPCLS_LITE_PYTHON'):
        find_lite('no-such-python')
    if why_no_lite():
        assert 'paddlelite==2.13rc0' in why_no_lite()
        with pytest.raises(PPClsError, match='Paddle-Lite cannot be imported'):
            find_lite()


def test_exports_that_paddle_lite_cannot_read(exported, tmp_path):
    with pytest.raises(PPClsError, match="target 'gpu'"):
        to_lite(exported, tmp_path/'net.nb', 'gpu')
    if not read_export(exported).file('inference.pdmodel'):
        with pytest.raises(PPClsError, match='FLAGS_enable_pir_api=0'):
            to_lite(exported, tmp_path/'net.nb')


@pytest.mark.skipif(not (find_spec('paddle2onnx') and find_spec('onnxruntime')), reason='needs ONNX Runtime')
def test_ort_file(net, tmp_path):
    folder = export_model(net, tmp_path/'with_onnx', eval_ops(64, 72), onnx=True)
    ort = to_ort(folder, tmp_path/'phone'/'net.ort')
    assert ort.stat().st_size > .8*(folder/'inference.onnx').stat().st_size
    assert 'Conv' in ort.with_suffix('.required_operators.config').read_text()
    assert sorted(f.name for f in ort.parent.iterdir()) == ['net.ort', 'net.required_operators.config']


def test_ort_refusals(exported, tmp_path):
    with pytest.raises(PPClsError, match="target 'x86', expected arm or amd64"):
        to_ort(exported, tmp_path/'x.ort', 'x86')
    with pytest.raises(PPClsError, match='has no inference.onnx; export again with --onnx'):
        to_ort(exported, tmp_path/'x.ort')
    assert not (tmp_path/'x.ort').exists()


@posix
def test_the_steps_on_a_phone(models, tmp_path):
    binary, adb = make_binary(tmp_path/'benchmark_bin_v8', 183), make_adb(tmp_path/'adb')
    result = device_benchmark(binary, models, tmp_path/'result.txt', adb=adb)
    assert result.read_text() == 'PaddleLite Benchmark'
    log = (tmp_path/'adb'/'log.txt').read_text()
    assert log.count('--threads=') == 3
    assert '--run_model_optimize=false' in log
    assert 'models/MobileNetV1.nb' in log


@posix
@pytest.mark.parametrize('devices, message', [
    ('', 'adb sees no device'),
    ('712QSD unauthorized', "712QSD is 'unauthorized': unlock the phone"),
    ('a device\nb device', 'adb sees 2 devices: choose one, ANDROID_SERIAL=a')])
def test_phones_that_cannot_be_used(tmp_path, monkeypatch, devices, message):
    monkeypatch.delenv('ANDROID_SERIAL', raising=False)
    with pytest.raises(PPClsError, match=message):
        find_device(make_adb(tmp_path/'adb', devices))


@posix
def test_a_chosen_phone(tmp_path, monkeypatch):
    monkeypatch.setenv('ANDROID_SERIAL', 'b')
    assert find_device(make_adb(tmp_path/'adb', 'a device\nb device')) == 'b'
    with pytest.raises(PPClsError, match='ANDROID_SERIAL is b, but adb sees a'):
        find_device(make_adb(tmp_path/'adb', 'a device'))


@posix
def test_a_binary_for_another_processor(models, tmp_path):
    binary, adb = make_binary(tmp_path/'v7', 40), make_adb(tmp_path/'adb')
    with pytest.raises(PPClsError, match='another processor than the phone has .arm64-v8a.; get .*benchmark_bin_v8'):
        device_benchmark(binary, models, tmp_path/'r.txt', adb=adb)


def test_what_is_no_binary_no_network_and_no_adb(tmp_path):
    (tmp_path/'text').write_text('text, and more than twenty bytes of it')
    with pytest.raises(PPClsError, match='not a program for Android'):
        _check_binary(tmp_path/'text', 'arm64-v8a')
    with pytest.raises(PPClsError, match='no such file; for this phone get'):
        _check_binary(tmp_path/'nothing', 'armeabi-v7a')
    with pytest.raises(PPClsError, match="processor is 'x86_64'"):
        _check_binary(tmp_path/'text', 'x86_64')
    with pytest.raises(PPClsError, match='no-adb: cannot be started: .*; install it'):
        find_device(tmp_path/'no-adb')
    with pytest.raises(PPClsError, match='no networks here'):
        lite_networks(tmp_path)
