"`Predictor` and the functions that prepare its images: every kind of image, damaged ones, every engine, every refusal."
import shutil
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import cv2, numpy as np, paddle, pytest
from scipy.special import softmax

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.datasets import BadImage
from ppcls_nb.data.imaug import DecodeImage, NormalizeImage, ToCHWImage, eval_ops
from ppcls_nb.deploy.export import export_model, read_export
from ppcls_nb.deploy.predict import Predictor, image_batches, open_foreign, prepare_image, rank_images
from ppcls_nb.models import build_model

OPS, NAMES = eval_ops(32), ['star', 'wheel', 'bell', 'spiral']
TEACHER_ENGINES = ['paddle', 'training', 'onnx', 'openvino']


def blurred(seed):
    noise = np.random.default_rng(seed).integers(0, 255, (60, 80, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 6)


def png(image): return cv2.imencode('.png', image[..., ::-1])[1].tobytes()


@pytest.fixture(scope='module')
def net():
    paddle.seed(1)
    net = build_model('MobileNetV1_x0_25', class_num=4)
    net.eval()
    return net


@pytest.fixture(scope='module')
def folder(net, tmp_path_factory):
    return export_model(net, tmp_path_factory.mktemp('export')/'flowers', OPS, NAMES, onnx=True)


@pytest.fixture(scope='module')
def with_softmax(net, tmp_path_factory):
    "An export without ONNX whose outputs are probabilities."
    return export_model(net, tmp_path_factory.mktemp('softmax')/'flowers', OPS, softmax=True)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    paths = [folder/f'{i}.png' for i in range(5)]
    for i, path in enumerate(paths):
        path.write_bytes(png(blurred(i)))
    return [str(path) for path in paths]


@pytest.fixture(scope='module')
def logits(net, files):
    images = np.stack([prepare_image(f, OPS) for f in files])
    with paddle.no_grad():
        return images, net(paddle.to_tensor(images)).numpy()


def test_files_and_arrays_are_prepared_alike():
    photo = blurred(0)
    assert np.array_equal(prepare_image(png(photo), OPS), prepare_image(photo, OPS))
    bgr = [DecodeImage(to_rgb=False), *OPS[1:]]
    assert np.array_equal(prepare_image(png(photo), bgr), prepare_image(photo, bgr))
    assert not np.array_equal(prepare_image(photo, bgr), prepare_image(photo, OPS))


@pytest.mark.parametrize('image, name, error, message', [
    (b'no image', 'image 3', BadImage, 'image 3: not an image that can be decoded'),
    ('nowhere.jpg', 'image', BadImage, 'nowhere.jpg: No such file'),
    (blurred(0)/255, 'image', BadImage, 'an array float64 .60, 80, 3., expected uint8'),
    (blurred(0)[..., 0], 'image', BadImage, 'an array uint8 .60, 80., expected uint8'),
    (3, 'image', PPClsError, 'image: int, expected a path')])
def test_images_that_cannot_be_prepared(image, name, error, message):
    with pytest.raises(error, match=message):
        prepare_image(image, OPS, name)


def bright(images):
    "Probabilities of the classes light and dark."
    mean = images.mean((1, 2, 3))
    return softmax(np.stack([mean, -mean], 1), axis=1)


SHEETS = [np.full((40, 40, 3), value, np.uint8) for value in (250, 5, 200)]


@pytest.mark.parametrize('batch_size', [1, 2, 5])
@pytest.mark.parametrize('num_workers', [0, 2])
def test_ranking_in_batches(batch_size, num_workers):
    rows = list(rank_images(bright, OPS, SHEETS, 2, batch_size, num_workers))
    assert [row[:2] for row in rows] == [(0, [0, 1]), (1, [1, 0]), (2, [0, 1])]
    assert sum(rows[0][2]) == pytest.approx(1)


def test_batches_leave_out_bad_images_or_raise():
    failed = {}
    rows = list(rank_images(bright, OPS, [*SHEETS[:2], b'?', SHEETS[2]], 1, 2, failed=failed))
    assert [row[0] for row in rows] == [0, 1, 3]
    assert list(failed) == ['image 2']
    with pytest.raises(BadImage, match='image 0'):
        list(rank_images(bright, OPS, [b'?']))
    no_resize = [DecodeImage(), NormalizeImage(order=''), ToCHWImage()]
    with pytest.raises(PPClsError, match='crop or resize all images to one size'):
        list(rank_images(bright, no_resize, [SHEETS[0], SHEETS[0][:20]]))
    with pytest.raises(PPClsError, match='batch_size 0'):
        next(image_batches(SHEETS, OPS, 0))


@pytest.mark.parametrize('engine', TEACHER_ENGINES)
def test_every_engine_gives_the_networks_outputs(folder, files, logits, engine):
    images, expected = logits
    predictor = Predictor(folder, engine)
    outputs = predictor.logits(images)
    assert outputs.dtype == np.float32
    assert abs(outputs - expected).max() < 1e-4
    assert np.array_equal(predictor.preprocess(files), images)
    top = predictor([files[0], Path(files[1]).read_bytes(), cv2.imread(files[2])[..., ::-1]], topk=2)
    assert [t[0][0] for t in top] == expected[:3].argmax(1).tolist()
    assert top[0][0][1] == NAMES[top[0][0][0]]
    assert len(top[0]) == 2
    assert predictor.logits(images[:0]).shape == (0, 4)
    assert predictor([]) == []
    for batch_size, num_workers in ((2, 0), (64, 2)):
        found = predictor(files, batch_size=batch_size, num_workers=num_workers)
        assert [t[0][0] for t in found] == expected.argmax(1).tolist()


def test_bad_images_of_a_predictor(folder, files):
    predictor, failed = Predictor(folder, 'paddle'), {}
    top = predictor([files[0], b'?', 'nowhere.jpg'], failed=failed)
    assert top[0]
    assert top[1:] == [None, None]
    assert list(failed) == ['image 1', 'nowhere.jpg']
    with pytest.raises(BadImage, match='image 1: not an image'):
        predictor([files[0], b'?'])
    with pytest.raises(PPClsError, match='images of shape .1, 3, 64, 64., expected .N, 3, 32, 32.'):
        predictor.logits(np.zeros((1, 3, 64, 64), np.float32))


def test_an_export_with_softmax(folder, with_softmax, files, logits):
    images, _ = logits
    predictor = Predictor(with_softmax)
    assert np.allclose(predictor.logits(images).sum(1), 1, atol=1e-5)
    assert np.allclose(predictor.probabilities(images), Predictor(folder).probabilities(images), atol=1e-5)
    assert predictor(files[:1])[0][0][1] == ''


@pytest.mark.parametrize('engine, options, message', [
    ('padle', {}, "unknown engine 'padle'; did you mean 'paddle'"),
    ('training', dict(ir_optim=False), 'ir_optim: only with the engine paddle, not with training'),
    ('paddle', dict(gpu_mem=800), 'gpu_mem: only with use_gpu'),
    ('auto', dict(threads=0), 'threads 0: expected 1')])
def test_refused_options(folder, engine, options, message):
    with pytest.raises(PPClsError, match=message):
        Predictor(folder, engine, **options)


@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason='this Paddle has GPU support')
@pytest.mark.parametrize('option, message', [
    ('use_gpu', 'use_gpu: this Paddle .* was built without GPU support'),
    ('use_tensorrt', 'use_tensorrt: this Paddle .* was built without TensorRT')])
def test_options_that_this_paddle_lacks(folder, option, message):
    with pytest.raises(PPClsError, match=message):
        Predictor(folder, 'paddle', **{option: True})


@pytest.mark.parametrize('engine, message', [
    ('onnx', 'has no inference.onnx; export it again with --onnx'),
    ('openvino', 'export it again with --onnx')])
def test_engines_without_their_file(with_softmax, engine, message):
    record = read_export(with_softmax)
    record.files = {name: digest for name, digest in record.files.items() if name != 'inference.pdmodel'}
    with pytest.raises(PPClsError, match=message):
        Predictor(record, engine)


def test_without_optimization_onednn_is_off(folder, logits):
    images, expected = logits
    predictor = Predictor(folder, 'paddle', ir_optim=False)
    assert not predictor.run.onednn
    assert abs(predictor.logits(images) - expected).max() < 1e-4


def test_programs_of_another_paddle(folder):
    record = read_export(folder)
    other = {'inference.json': 'inference.pdmodel', 'inference.pdmodel': 'inference.json'}
    record.files = {other.get(name, name): digest for name, digest in record.files.items()}
    record.versions['paddle'] = '9.9'
    message = 'written by Paddle 9.9, which the training engine of Paddle .* does not read'
    with pytest.raises(PPClsError, match=message):
        Predictor(record, 'training')
    record.files = {'inference.onnx': ''}
    with pytest.raises(PPClsError, match='holds no inference model, only inference.onnx'):
        Predictor(record, 'paddle')


def test_inference_models_without_a_record(folder, with_softmax, logits, tmp_path):
    images, _ = logits
    program = read_export(with_softmax).file('inference.json', 'inference.pdmodel').name
    shutil.copyfile(with_softmax/program, tmp_path/'model')
    shutil.copyfile(with_softmax/'inference.pdiparams', tmp_path/'params')
    foreign = open_foreign(tmp_path/'model', tmp_path/'params', OPS)
    assert foreign.record.class_num == 4
    assert foreign.record.softmax
    assert np.allclose(foreign.probabilities(images), Predictor(folder).probabilities(images), atol=1e-5)
    assert not open_foreign(folder/program, folder/'inference.pdiparams', OPS).record.softmax
    with pytest.raises(PPClsError, match='nothing: no such file'):
        open_foreign(tmp_path/'nothing', tmp_path/'params', OPS)
