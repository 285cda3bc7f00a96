"""Exported networks from strangers, measurements that say nothing, file names for a phone's shell, full disks: what
users of deployment report."""
import contextlib
import json
import os
import pickle
import resource
import shutil
import sys
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import numpy as np
import paddle
import pytest
from paddle.base.proto import framework_pb2 as proto

from ppcls_nb.basics import PPClsError
from ppcls_nb.cli import main
from ppcls_nb.cli.export import write_export
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.deploy.benchmark import choose_engine, timing_rows
from ppcls_nb.deploy.export import atomic_folder, export_model, is_export_file, read_export
from ppcls_nb.deploy.mobile import device_benchmark, find_device
from ppcls_nb.deploy import onnx as onnx_module
from ppcls_nb.deploy.onnx import check_onnx, to_onnx
from ppcls_nb.deploy.predict import Predictor, open_foreign
from ppcls_nb.deploy.quantize import Quantized
from ppcls_nb.deploy.timing import speed_ratio
from ppcls_nb.models import create_model
from ppcls_nb.models.formats.program_file import COMPUTATIONS, OUTSIDE, check_program
from ppcls_nb.models.inference import PADDLE_3, InferenceEngine, load_layer
from ppcls_nb.models.network import relative_difference
from small_run import check_refused, ppcls

IMAGES = np.zeros((1, 3, 32, 32), np.float32)


def old_format():
    "Inside, Paddle writes and loads `inference.pdmodel`."
    return paddle.pir_utils.DygraphOldIrGuard() if PADDLE_3 else contextlib.nullcontext()


@pytest.fixture(scope='module')
def network():
    paddle.seed(0)
    return create_model('MobileNetV1_x0_25', class_num=4)


@pytest.fixture(scope='module')
def good(network, tmp_path_factory):
    "A network exported in this Paddle's format."
    return export_model(network, tmp_path_factory.mktemp('good')/'net', eval_ops(32))


@pytest.fixture(scope='module')
def good_old(network, tmp_path_factory):
    "The network exported as inference.pdmodel."
    with old_format():
        return export_model(network, tmp_path_factory.mktemp('old')/'net', eval_ops(32))


def rewrite(folder, change):
    "Change the program of an export, and the record with it: `change(program)` for the messages of protobuf."
    record = read_export(folder)
    program = proto.ProgramDesc.FromString((folder/'inference.pdmodel').read_bytes())
    change(program)
    (folder/'inference.pdmodel').write_bytes(program.SerializeToString())
    record.save(folder)
    return folder


def insert_save(program, file, block=0, kind='save'):
    "Let a program write its output into `file`."
    fetch = next(operation for operation in program.blocks[0].ops if operation.type == 'fetch')
    save = proto.OpDesc(type=kind)
    save.inputs.add(parameter='X', arguments=fetch.inputs[0].arguments)
    save.attrs.add(name='file_path', type=proto.STRING, s=str(file))
    save.attrs.add(name='overwrite', type=proto.BOOLEAN, b=True)
    save.attrs.add(name='save_as_fp16', type=proto.BOOLEAN, b=False)
    if block:
        program.blocks.add(idx=block, parent_idx=0)
    operations = program.blocks[block].ops
    before = [proto.OpDesc.FromString(operation.SerializeToString()) for operation in operations]
    at = sum(operation.type != 'fetch' for operation in before)
    del operations[:]
    operations.extend([*before[:at], save, *before[at:]])


@pytest.fixture
def evil(good_old, tmp_path):
    "An export whose program writes the file stolen.bin, and that file."
    folder = Path(shutil.copytree(good_old, tmp_path/'evil'))
    stolen = tmp_path/'stolen.bin'
    return rewrite(folder, lambda program: insert_save(program, stolen)), stolen


def test_the_attack_works_where_nothing_is_checked(evil):
    folder, stolen = evil
    InferenceEngine(folder, onednn=False, check=False)(IMAGES)
    assert stolen.exists()


def foreign(folder, engine):
    return open_foreign(folder/'inference.pdmodel', folder/'inference.pdiparams', eval_ops(32), engine=engine)


READERS = {
    'engine': lambda folder: InferenceEngine(folder)(IMAGES),
    'layer': lambda folder: load_layer(folder/'inference.pdmodel'),
    'record': read_export,
    'record without digests': lambda folder: read_export(folder, verify=False),
    'predictor': lambda folder: Predictor(folder, 'paddle').logits(IMAGES),
    'files of 2020': lambda folder: foreign(folder, 'paddle'),
    'files of 2020, training engine': lambda folder: foreign(folder, 'training'),
    'openvino': lambda folder: foreign(folder, 'openvino')}


@pytest.mark.parametrize('name', READERS)
def test_a_program_that_writes_a_file_is_not_run(evil, name):
    if PADDLE_3 and 'training' in name:
        pytest.skip('the training engine of Paddle 3 does not read this format')
    folder, stolen = evil
    with pytest.raises(PPClsError, match="refused, nothing was executed: it contains the operation 'save'"):
        READERS[name](folder)
    assert not stolen.exists()


def test_a_program_that_writes_a_file_is_not_converted(evil, tmp_path):
    folder, stolen = evil
    with pytest.raises(PPClsError, match="the operation 'save'"):
        to_onnx(folder/'inference.pdmodel', tmp_path/'net.onnx')
    (folder/'inference.pdiparams').unlink()      # paddle2onnx would unpickle the program then
    with pytest.raises(PPClsError, match='inference.pdiparams, are missing'):
        to_onnx(folder/'inference.pdmodel', tmp_path/'net.onnx')
    assert not stolen.exists()


@pytest.mark.parametrize('argv', [
    ['predict', '-i', 'IMAGE', '-m', 'DIR'],
    ['predict', '-i', 'IMAGE', '-m', 'DIR/inference.pdmodel'],
    ['benchmark', 'DIR'], ['serve', 'DIR', '--port', '0'], ['lite', 'DIR', '--out', 'net.nb'],
    ['ort', 'DIR', '--out', 'net.ort'],
    ['quantize', 'DIR', '--images', 'IMAGE', '--out', 'DIR8']], ids=' '.join)
def test_no_command_runs_such_a_program(evil, tmp_path, argv):
    folder, stolen = evil
    image = tmp_path/'image.png'
    image.write_bytes(b'no image is needed')
    argv = [text.replace('DIR', str(folder)).replace('IMAGE', str(image)) for text in argv]
    check_refused("the operation 'save'", *argv)
    assert not stolen.exists()


def test_an_operation_in_an_inner_block_is_seen(good_old, tmp_path):
    folder = Path(shutil.copytree(good_old, tmp_path/'net'))
    rewrite(folder, lambda program: insert_save(program, tmp_path/'stolen.bin', block=1, kind='save_combine'))
    with pytest.raises(PPClsError, match="the operation 'save_combine'"):
        read_export(folder)


def json_program(*operations):
    "The text of a Paddle 3 program with these operations."
    block = {'#': 'block_0', 'args': [], 'ops': [{'#': name, 'A': [], 'I': [], 'O': []} for name in operations]}
    return json.dumps({'base_code': {'magic': 'pir'}, 'program': {'regions': [{'#': 'region_0', 'blocks': [block]}]}})


@pytest.mark.parametrize('name, shown', [
    ('1.save_combine', 'save_combine'), ('1.load_combine', 'load_combine'), ('1.py_func', 'py_func'),
    ('1.print', 'print'), ('1.py_layer', 'py_layer'), ('3.relu', '3.relu'), ('1.if', 'if'),
    ('1.fused_thing_', 'fused_thing')])
def test_operations_of_a_json_program_that_do_more_than_compute(tmp_path, name, shown):
    (tmp_path/'inference.json').write_text(json_program('1.data', '1.conv2d', '1.relu_', name, '1.fetch'))
    with pytest.raises(PPClsError, match=f"refused, nothing was executed: it contains the operation '{shown}'"):
        check_program(tmp_path/'inference.json')


@pytest.mark.parametrize('text, reason', [
    (json_program('1.relu').replace('"ops"', '"ops": [{"#": "1.save"}], "ops"'), 'a key occurs twice'),
    ('['*100_000, 'not a Paddle program'), ('{"program": [}', 'not a Paddle program'), ('[1]', 'not a Paddle program'),
    (json_program('1.relu') + json_program('1.save'), 'not a Paddle program')])
def test_json_that_two_readers_could_understand_differently(tmp_path, text, reason):
    (tmp_path/'inference.json').write_text(text)
    with pytest.raises(PPClsError, match=reason):
        check_program(tmp_path/'inference.json')


def test_a_program_of_another_kind_than_its_name(tmp_path):
    "What Paddle would read as a protocol buffer is checked as one, even if it looks like JSON."
    (tmp_path/'inference.pdmodel').write_text(json_program('1.relu'))
    with pytest.raises(PPClsError, match='inference.pdmodel: not a Paddle program'):
        check_program(tmp_path/'inference.pdmodel')


def test_an_operation_can_be_allowed_but_not_one_that_reaches_outside(tmp_path, monkeypatch):
    file = tmp_path/'inference.json'
    file.write_text(json_program('1.erfinv', '1.lgamma'))
    with pytest.raises(PPClsError, match="'erfinv', which is not known .* PPCLS_ALLOW_OPS=erfinv,lgamma"):
        check_program(file)
    monkeypatch.setenv('PPCLS_ALLOW_OPS', 'erfinv, lgamma, save')
    check_program(file)
    file.write_text(json_program('1.erfinv', '1.save'))
    with pytest.raises(PPClsError, match="the operation 'save', which reaches outside"):
        check_program(file)


def test_no_allowed_operation_reaches_outside():
    assert not COMPUTATIONS & OUTSIDE


FACTS = json.loads((Path(__file__).parent/'facts'/'program_ops.json').read_text(encoding='utf-8'))


@pytest.mark.parametrize('version', FACTS)
def test_the_operations_of_all_families_are_allowed(version):
    assert {name for names in FACTS[version].values() for name in names} <= COMPUTATIONS


class Attack:
    "Unpickling it creates a file."
    def __init__(self, file): self.file = file

    def __reduce__(self): return Path.touch, (self.file, )


def test_the_pickle_beside_the_weights_is_never_read(network, good_old, tmp_path):
    folder, executed = Path(shutil.copytree(good_old, tmp_path/'net')), tmp_path/'executed'
    record = read_export(folder)
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    expected = InferenceEngine(folder, onednn=False)(images)
    (folder/'inference.pdiparams.info').write_bytes(pickle.dumps(Attack(executed)))
    if 'inference.pdiparams.info' not in record.files:
        with pytest.raises(PPClsError, match='inference.pdiparams.info: not named in inference.yml'):
            read_export(folder)
    record.save(folder)
    with old_format():
        layer = load_layer(folder/'inference.pdmodel')
        assert relative_difference(layer(paddle.to_tensor(images)).numpy(), expected) < 1e-4
    Predictor(folder, 'paddle')
    assert not executed.exists()
    with old_format(), pytest.raises(Exception):
        paddle.jit.load(str(folder/'inference'))
    assert executed.exists()     # what Paddle itself does


@pytest.mark.parametrize('name', ['inference.pdiparams.info', 'inference.onnx', 'inference.more.pdmodel',
                                  'inference.more.json', 'inference.meta'])
def test_files_that_the_record_does_not_name(good, tmp_path, name):
    folder = Path(shutil.copytree(good, tmp_path/'net'))
    record = read_export(folder)
    if name in record.files:
        pytest.skip('this Paddle writes such a file')
    (folder/name).write_bytes(b'anything')
    with pytest.raises(PPClsError, match=f'{name}: not named in inference.yml'):
        read_export(folder)


def test_notes_and_converted_networks_may_be_in_the_folder(good, tmp_path):
    folder = Path(shutil.copytree(good, tmp_path/'net'))
    for name in ('README.md', 'inference.nb', 'inference.ort', '.DS_Store'):
        (folder/name).write_bytes(b'anything')
    assert read_export(folder).network == 'MobileNetV1_x0_25'


def test_the_speed_without_images(good, tmp_path):
    argv = ['predict', '-m', good, '--batch_size=2']
    code, out, err = ppcls(*argv, '--enable_benchmark=True')
    assert (code, err) == (0, '')
    assert 'batch of 2: median ' in out and 'random images' in out and out.count('\n') == 1
    check_refused('--image-file IMAGE is missing', *argv)
    check_refused('--image-file IMAGE is missing', *argv, '--enable_benchmark', '--json', tmp_path/'a.json')


def test_the_script_of_the_documents(good, tmp_path):
    "Section 2.1.2 names a program, its weights and a network, and no images."
    (tmp_path/'infer').mkdir()
    program = read_export(good).file('inference.json', 'inference.pdmodel')
    for source, name in ((program, 'model'), (good/'inference.pdiparams', 'params')):
        shutil.copyfile(source, tmp_path/'infer'/name)
    code, out, _ = ppcls('predict', f'--model_file={tmp_path}/infer/model', f'--params_file={tmp_path}/infer/params',
                         '--enable_benchmark=True', '--model_name=MobileNetV1_x0_25', '--use_fp16=False',
                         '--batch_size=1')
    assert code == 0 and 'batch of 1: median ' in out


def quantized(*ratio):
    return Quantized(Path('x'), 'minmax', 32, (4e6, 1e6), 100, 1., (.8, .8), {'onnx': ratio})


@pytest.mark.parametrize('ratio', [(.83, 10.19, 16.), (.5, .8, 1.3), (.2, .4, .9), (0., 1.3, float('inf'))])
def test_no_conclusion_is_drawn_from_wide_quartiles(ratio):
    report = quantized(*ratio)
    assert f'speed, onnx     undecided: × {ratio[1]:.2f}' in str(report)
    assert report.warnings == []


@pytest.mark.parametrize('ratio, slower', [((1.4, 1.5, 1.6), False), ((.7, .8, .9), True), ((.97, 1., 1.04), False)])
def test_a_narrow_ratio_is_printed_with_its_quartiles(ratio, slower):
    report = quantized(*ratio)
    assert f'× {ratio[1]:.2f} (quartiles {ratio[0]:.2f} to {ratio[2]:.2f})' in str(report)
    assert 'undecided' not in str(report)
    assert [('slower than before' in warning) for warning in report.warnings] == [True]*slower


def test_two_runs_have_no_quartiles():
    low, _, high = speed_ratio(abs, abs, np.zeros(1), runs=2)
    assert (low, high) == (0, float('inf'))
    rows = timing_rows({'a': np.ones((1, 5)), 'b': np.full((1, 5), 2.)}, 1)
    assert rows['b']['ratio'] == 2 and rows['b']['ratio_75'] == float('inf')
    assert rows['a']['ratio_25'] == rows['a']['ratio_75'] == 1


def test_the_default_engine_stays_unless_another_is_faster_in_most_rounds():
    import pandas as pd
    columns = ['engine', 'batch', 'p50', 'ratio_25', 'ratio', 'ratio_75', 'failed']
    def table(low): return pd.DataFrame([('onnx', 1, 4., low, 1.4, 16., ''), ('openvino', 1, 3., 1, 1, 1, '')],
                                        columns=columns)
    assert choose_engine(table(.8), 'onnx')[0] == 'onnx'
    assert choose_engine(table(1.3), 'onnx')[0] == 'openvino'


PHONE = '''
import os, pathlib, subprocess, sys
home, args = pathlib.Path(__file__).parent, sys.argv[1:]
if args[0] == '-s': args = args[2:]
if args[0] == 'devices': print('* daemon started successfully\\nList of devices attached\\n712QSD\\tdevice\\n')
elif 'getprop' in args: print('arm64-v8a')
elif args[0] == 'push': (home/'pushed.txt').open('a').write(args[2] + chr(0))
elif args[0] == 'shell' and 'benchmark_bin ' in args[1]:
    command = args[1].replace('/data/local/tmp/ppcls_nb/benchmark_bin', '"$SHOW"', 1)
    subprocess.run(['sh', '-c', command], env={**os.environ, 'SHOW': str(home/'show')}, cwd=home)
elif args[0] == 'pull': pathlib.Path(args[2]).write_text('PaddleLite Benchmark')
'''
NAMES = ['my net.nb', "it's.nb", 'a;touch owned;.nb', '$(touch owned).nb', '`touch owned`.nb', '"quoted".nb',
         "'; touch owned; '.nb", '-v.nb', '花.nb', 'a\\b.nb', '*.nb', 'two\nlines.nb']


@pytest.mark.skipif(os.name != 'posix', reason='scripts cannot be started by their name')
def test_file_names_reach_the_phone_as_they_are(tmp_path):
    "A script in the place of adb gives the commands to a real shell, in which a script is the phone's program."
    home = tmp_path/'adb'
    for folder in (home, tmp_path/'models'):
        folder.mkdir()
    for name in NAMES:
        (tmp_path/'models'/name).write_bytes(b'nb')
    for name, text in (('adb', PHONE), ('show', f'open({str(home/"seen.txt")!r}, "a").write(sys.argv[1] + chr(0))')):
        (home/name).write_text(f'#!{sys.executable}\nimport sys\n{text}')
        (home/name).chmod(0o755)
    binary = tmp_path/'benchmark_bin'
    binary.write_bytes(b'\x7fELF' + bytes(14) + (183).to_bytes(2, 'little'))
    assert find_device(home/'adb') == '712QSD'
    device_benchmark(binary, tmp_path/'models', tmp_path/'result.txt', adb=home/'adb', threads=(1, ))
    remote = [f'/data/local/tmp/ppcls_nb/models/{name}' for name in sorted(NAMES)]
    assert (home/'pushed.txt').read_text().split('\0')[1:-1] == remote
    assert (home/'seen.txt').read_text().split('\0')[:-1] == [f'--model_dir={name}' for name in remote]
    assert not list(tmp_path.rglob('owned'))


@pytest.mark.skipif(os.name != 'posix', reason='scripts cannot be started by their name')
def test_a_program_that_cannot_be_started(tmp_path):
    (tmp_path/'adb').write_text('text without the right to be executed')
    with pytest.raises(PPClsError, match='adb: cannot be started: Permission denied; install it'):
        find_device(tmp_path/'adb')


@contextlib.contextmanager
def full_disk(limit):
    "Inside, no file can grow above `limit` bytes: what a full disk does."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize('limit', [100_000, 20_000, 0])
def test_an_export_to_a_full_disk_keeps_the_old_one(network, good, tmp_path, limit):
    folder = Path(shutil.copytree(good, tmp_path/'net'))
    before = contents(folder)
    with full_disk(limit), pytest.raises(PPClsError, match='cannot be written|cannot be read back'):
        export_model(network, folder, eval_ops(32))
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ['net']


def test_a_folder_on_a_read_only_disk(good, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError(30, 'Read-only file system', str(tmp_path))
    monkeypatch.setattr('tempfile.mkdtemp', refuse)
    with pytest.raises(PPClsError, match=f'{tmp_path}/net: cannot be written: Read-only file system'):
        with atomic_folder(tmp_path/'net', is_export_file):
            pass


def test_an_unreadable_image_is_not_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(PermissionError):
        with atomic_folder(tmp_path/'net', is_export_file):
            raise PermissionError(13, 'Permission denied', '/elsewhere/image.jpg')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('error, line', [
    (OSError(28, 'No space left on device', '/data/out'), 'ppcls: /data/out: No space left on device\n'),
    (OSError(30, 'Read-only file system'), 'ppcls: Read-only file system\n'),
    (PermissionError(13, 'Permission denied', 'a\nb'), 'ppcls: a b: Permission denied\n')])
def test_errors_of_the_system_are_one_line(monkeypatch, capsys, error, line):
    def fail(argv):
        raise error
    monkeypatch.setattr('ppcls_nb.cli.run_command', fail)
    assert main(['list']) == 2
    assert capsys.readouterr().err == line


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='only on Linux')
def test_output_to_a_full_disk(monkeypatch, capsys):
    with open('/dev/full', 'w') as full:
        monkeypatch.setattr(sys, 'stdout', full)
        assert main(['--version']) == 2
        monkeypatch.undo()
    assert 'No space left on device' in capsys.readouterr().err


def field(number, value):
    "A field of a protocol buffer: a number below 128, or bytes."
    if isinstance(value, int):
        return bytes([number << 3, value])
    size = len(value)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return bytes([number << 3 | 2]) + length + value


TENSOR = field(1, 1) + field(8, b'w')
OUTSIDE_DATA = field(13, field(1, b'location') + field(2, b'/etc/passwd'))


@pytest.mark.parametrize('graph', [
    field(5, TENSOR + OUTSIDE_DATA + field(14, 1)), field(5, TENSOR + field(14, 1)),
    field(1, field(5, field(5, TENSOR + OUTSIDE_DATA))), field(15, field(1, TENSOR + OUTSIDE_DATA)),
    field(1, field(5, field(6, field(5, TENSOR + OUTSIDE_DATA))))])
def test_an_onnx_file_with_numbers_in_another_file_is_refused(good, tmp_path, graph):
    folder = Path(shutil.copytree(good, tmp_path/'net'))
    record = read_export(folder)
    (folder/'inference.onnx').write_bytes(field(1, 8) + field(7, graph))
    record.save(folder)
    with pytest.raises(PPClsError, match='inference.onnx: refused: a tensor of it is in another file'):
        read_export(folder)
    with pytest.raises(PPClsError, match='is in another file'):
        check_onnx(folder/'inference.onnx')


@pytest.mark.parametrize('data', [b'\x3a\x7f\x01', b'\x3b', b'\xff'*20])
def test_what_is_no_onnx_file(tmp_path, data):
    (tmp_path/'a.onnx').write_bytes(data)
    with pytest.raises(PPClsError, match='a.onnx: cannot be read as an ONNX network'):
        check_onnx(tmp_path/'a.onnx')
    (tmp_path/'a.onnx').write_bytes(field(1, 8) + field(7, field(5, TENSOR + field(9, bytes(8)))))
    check_onnx(tmp_path/'a.onnx')


@pytest.mark.parametrize('convertible', [True, False])
def test_a_disk_that_fills_while_inference_onnx_is_written(network, tmp_path, monkeypatch, convertible):
    "The network is not exported without inference.onnx then, even if the folder is called so."
    if not convertible:
        monkeypatch.setattr(onnx_module, 'CONVERTIBLE', frozenset())
        monkeypatch.setattr(onnx_module, '_CHILD', 'import sys; sys.exit(28)')
    def fail(*args):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(onnx_module, '_convert', fail)
    with pytest.raises(PPClsError, match='my-onnx-net: cannot be written: No space left on device; nothing was left'):
        write_export(network, tmp_path/'my-onnx-net', eval_ops(32), None, None)
    assert list(tmp_path.iterdir()) == []
