"Exported folders: what is refused at export and at opening, and that a failed export leaves the folder as it was."
import re, shutil
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import paddle, pytest

from ppcls_nb.basics import PPClsError, file_digest
from ppcls_nb.data.imaug import DecodeImage, ResizeImage, ToCHWImage, eval_ops, train_ops
from ppcls_nb.deploy.export import RECORD_FILE, atomic_folder, export_model, ops_to_recipe, output_shape, read_export
from ppcls_nb.deploy import onnx
from ppcls_nb.deploy.onnx import program_ops
from ppcls_nb.models import build_model
from ppcls_nb.models.inference import PADDLE_3

NAMES = ['daisy', 'poppy', 'great mullein', 'gentian']


class MeanColor(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.fc = paddle.nn.Linear(3, 4)

    def forward(self, x): return self.fc(x.mean([2, 3]))


class Inconsistent(MeanColor):
    "Its outputs in Python differ from those of the traced program."
    def forward(self, x):
        return MeanColor.forward(self, x) + (10. if paddle.in_dynamic_mode() else 0.)


class Upsampling(MeanColor):
    "Adaptive pooling to more pixels than there are: ONNX has no such operation."
    def forward(self, x):
        return MeanColor.forward(self, paddle.nn.functional.adaptive_avg_pool2d(x, 48))


@pytest.fixture(scope='module')
def net():
    paddle.seed(0)
    return build_model('MobileNetV1_x0_25', class_num=4)


@pytest.fixture(scope='module')
def folder(net, tmp_path_factory):
    return export_model(net, tmp_path_factory.mktemp('export')/'daisies', eval_ops(32), NAMES, onnx=True)


def digests(folder): return {f.name: file_digest(f) for f in folder.iterdir()}


def test_operations_as_recipe_entries():
    entries = ops_to_recipe(eval_ops(32))
    assert [*entries[0]] == ['DecodeImage']
    with pytest.raises(PPClsError, match='RandCropImage draws random numbers'):
        ops_to_recipe(train_ops())
    with pytest.raises(PPClsError, match='function is not an operation that a recipe can name'):
        ops_to_recipe([lambda img, rng=None: img])


@pytest.mark.parametrize('ops, message', [
    ([DecodeImage(), ResizeImage(resize_short=64), ToCHWImage()], 'a wide image becomes'),
    (eval_ops(32)[:-1], 'is ToCHWImage missing'),
    (eval_ops(32)[1:], 'the first operation must be DecodeImage'),
    ([], 'the first operation must be DecodeImage')])
def test_operations_without_one_output_shape_are_refused(ops, message):
    with pytest.raises(PPClsError, match=message):
        output_shape(ops)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    is_line = lambda path: path.name == 'line'
    for text in 'first', 'second':
        with atomic_folder(tmp_path/'poem', is_line) as new:
            (new/'line').write_text(text)
    with pytest.raises(KeyboardInterrupt):
        with atomic_folder(tmp_path/'poem', is_line) as new:
            (new/'line').write_text('thi')
            raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ['poem']
    assert (tmp_path/'poem'/'line').read_text() == 'second'
    (tmp_path/'poem'/'notes').write_text('')
    with pytest.raises(PPClsError, match='poem: holds notes, which is no part'):
        with atomic_folder(tmp_path/'poem', is_line): pass
    (tmp_path/'poem'/'more').write_text('')
    with pytest.raises(PPClsError, match='holds more and 1 more, which is no part'):
        with atomic_folder(tmp_path/'poem', is_line): pass
    with pytest.raises(PPClsError, match='is a file, expected a folder'):
        with atomic_folder(tmp_path/'poem'/'notes', lambda path: True): pass
    assert not [p for p in tmp_path.rglob('*') if p.name.endswith('.tmp')]


def test_operations_of_a_program(folder, tmp_path):
    ops = program_ops(folder/('inference.json' if PADDLE_3 else 'inference.pdmodel'))
    assert ops['relu'] == 27
    assert {'conv2d', 'batch_norm'} <= {*ops}
    (tmp_path/'text.json').write_text('{}')
    with pytest.raises(PPClsError, match='text.json: not a Paddle program'):
        program_ops(tmp_path/'text.json')


def test_the_folder_is_complete(net, folder):
    assert net.training
    assert {f.name for f in folder.iterdir()} >= {RECORD_FILE, 'inference.pdiparams'}
    record = read_export(folder)
    assert ops_to_recipe(record.ops()) == ops_to_recipe(eval_ops(32))
    assert record.class_names == NAMES
    assert record.file('inference.onnx') == folder/'inference.onnx'


@pytest.mark.parametrize('options, message', [
    (dict(names=NAMES[:3]), '3 class names for a network with 4'),
    (dict(image_shape=(3, 64, 64)), 'image_shape .3, 64, 64., but the operations give')])
def test_arguments_that_do_not_fit_are_refused(net, folder, options, message):
    before = digests(folder)
    with pytest.raises(PPClsError, match=message):
        export_model(net, folder, eval_ops(32), **options)
    assert before == digests(folder)


def test_other_outputs_than_the_network_are_refused(folder):
    before = digests(folder)
    with pytest.raises(PPClsError, match='gives other outputs than the network'):
        export_model(Inconsistent(), folder, eval_ops(32))
    assert before == digests(folder)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_an_onnx_file_that_does_not_run_is_refused(folder):
    before = digests(folder)
    with pytest.raises(PPClsError, match='ONNX Runtime cannot run the converted network on images of shape .3, 32'):
        export_model(Upsampling(), folder, eval_ops(32), onnx=True)
    assert before == digests(folder)


def test_a_folder_with_other_files_is_not_replaced(net, tmp_path):
    (tmp_path/'config.yaml').write_text('')
    with pytest.raises(PPClsError, match='holds config.yaml, which is no part'):
        export_model(net, tmp_path, eval_ops(32))


def edit(pattern, by):
    "A change of the text of `inference.yml`."
    def change(folder):
        file = folder/RECORD_FILE
        file.write_text(re.sub(pattern, by, file.read_text(), flags=re.M))
    return change


def flip_bit(folder):
    data = bytearray((folder/'inference.pdiparams').read_bytes())
    data[100] ^= 1
    (folder/'inference.pdiparams').write_bytes(data)


@pytest.mark.parametrize('change, message', [
    (flip_bit, 'inference.pdiparams: damaged or replaced'),
    (lambda f: (f/'inference.pdiparams').unlink(), 'inference.pdiparams: missing'),
    (lambda f: (f/RECORD_FILE).unlink(), 'inference.yml is missing'),
    (lambda f: (f/RECORD_FILE).write_bytes(b'\xff\xfe: ['), 'damaged, not valid YAML'),
    (lambda f: (f/RECORD_FILE).write_text('a text'), "key 'format' is missing"),
    (edit('^format: 1', 'format: 2'), 'has format 2, ppcls_nb .* reads format 1; use the version that wrote it'),
    (edit('^network: .*\n', ''), "key 'network' is missing"),
    (edit('^softmax', 'sofmax'), "unknown key 'sofmax'; did you mean 'softmax'"),
    (edit('CropImage', 'CropImages'), "unknown operation 'CropImages'"),
    (edit('inference.pdiparams:', '../secret:'), "file '../secret', expected one of"),
    (shutil.rmtree, 'no such folder')])
def test_damaged_folders_are_refused(folder, tmp_path, change, message):
    copy = Path(shutil.copytree(folder, tmp_path/'copy'))
    change(copy)
    with pytest.raises(PPClsError, match=message):
        read_export(copy)


def test_a_run_is_not_an_exported_network(tmp_path):
    (tmp_path/'config.yaml').write_text('epochs: 1\n')
    with pytest.raises(PPClsError, match='a run folder, not an exported network; export it first: ppcls export -m '):
        read_export(tmp_path)


def test_a_converter_for_another_paddle_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, 'version', lambda name: '1.3.1' if PADDLE_3 else '2.1.0')
    with pytest.raises(PPClsError, match=re.escape(f'does not fit Paddle {paddle.__version__}; get the one that does '
                                                   f'with: pip install {onnx.CONVERTER}')):
        onnx.to_onnx(folder/'inference.pdmodel', tmp_path/'net.onnx')


def test_the_extras_install_the_converter_that_the_message_names():
    settings = (Path(__file__).parents[1]/'settings.ini').read_text(encoding='utf-8')
    extra = re.search(f"^{'cpu' if PADDLE_3 else 'cpu26'}_requirements = (.*)", settings, re.M).group(1)
    assert onnx.CONVERTER in extra
