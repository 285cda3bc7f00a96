"""Five ways of inference give the same classes: evaluation in training, `infer`, and the exported folder with Paddle's
two engines and ONNX Runtime.

This is tested for the smallest network of each family at 64 pixels (96 if that is too small; 224 for the two whose
pooling would enlarge a smaller map, which ONNX cannot do). The weights are random, but the batch norms have the
statistics of real images, so that the outputs are as large as a trained network's. The logits differ by at most 1e-4,
absolutely if they are below 1 and relative to an image's largest logit if they are above. Deep and wide networks have
fewer blocks and hidden units here (SMALLER). One alone: pytest tests/test_deploy.py -k DenseNet121"""
import shutil
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import numpy as np, paddle, pytest, yaml
from paddle import nn

from ppcls_nb.basics import PPClsError
from ppcls_nb.cli.train import load_predictor, predict_files
from ppcls_nb.recipe.build import load_config
from ppcls_nb.recipe.data import build_loader
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.data.prepare import prepare_data
from ppcls_nb.deploy.export import export_model
from ppcls_nb.deploy.predict import Predictor
from ppcls_nb.models import create_model
from ppcls_nb.train import CELoss, evaluate, save_weights
from networks import small, smallest

TEACHER_ENGINES = ['paddle', 'training', 'onnx']

ONE_BLOCK = dict(depths=[1, 1, 1, 1])
SMALLER = {
    'AlexNet': dict(hidden=64),
    'VGG11': dict(hidden=64),
    'CSPDarkNet53': dict(depths=[1]*5),
    'ConvNeXt_tiny': ONE_BLOCK,
    'DPN68': ONE_BLOCK,
    'DarkNet53': dict(depths=[1]*5),
    'DeiT_tiny_patch16_224': dict(depth=4),
    'DenseNet121': dict(depths=[2]*4),
    'HRNet_W18_C': dict(modules=[1, 1, 1]),
    'InceptionV4': dict(depths=[1, 1, 1]),
    'Res2Net50_14w_8s': ONE_BLOCK,
    'ResNeSt50_fast_1s1x64d': ONE_BLOCK,
    'ResNeXt101_32x8d_wsl': ONE_BLOCK,
    'ResNeXt50_32x4d': ONE_BLOCK,
    'ResNet50_ACNet_deploy': ONE_BLOCK,
    'SE_ResNeXt50_32x4d': ONE_BLOCK,
    'SwinTransformerV2_tiny_patch4_window8_256': dict(depths=[2, 1, 1, 1]),
    'SwinTransformer_tiny_patch4_window7_224': dict(depths=[2, 1, 1, 1]),
    'Xception41': dict(middle=1),
    'Xception41_deeplab': dict(middle=1)}


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    return prepare_data('petals', tmp_path_factory.mktemp('data'),
                        dict(classes=5, per_class=[1, 1, 1], size=64, progress=False))


def calibrate(model, images):
    """Move the statistics of batch norms half-way to those of `images`: then no variance is below 0.5, and no channel
    amplifies rounding errors."""
    model.eval()
    for layer in model.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            layer._momentum = .5
            layer.train()
    with paddle.no_grad():
        model(images)
    model.eval()


def fresh_run(name, size, flowers, folder):
    "A run folder whose weights are random."
    ops = [{'DecodeImage': {}}, {'ResizeImage': {'size': [size, size]}}, {'NormalizeImage': {'order': ''}},
           {'ToCHWImage': None}]
    def reader(part):
        file = Path(flowers.lists)/f'{part}_list.txt'
        return dict(batch_size=5, data_dir=str(flowers.root), file_list=str(file), transforms=ops)
    recipe = dict(ARCHITECTURE={'name': name, 'params': SMALLER.get(name, {})}, classes_num=5, TRAIN=reader('train'),
                  VALID=reader('val'))
    folder.mkdir(parents=True)
    (folder/'config.yaml').write_text(yaml.safe_dump(recipe))
    conf = load_config(folder/'config.yaml')
    paddle.seed(0)
    model = create_model(name, class_num=5, **SMALLER.get(name, {}))
    calibrate(model, next(iter(build_loader(conf.VALID, conf, False)))[0])
    save_weights(folder/'best.pdparams', model)
    return conf


def size_of(name):
    return 224 if name in ('AlexNet', 'VGG11') else small(name)[0]


def is_close(outputs, expected):
    "Whether all logits (N, C) are within 1e-4 of those expected, relative to an image's largest if that is above 1."
    largest = abs(expected).max(1, keepdims=True)
    return (abs(outputs - expected) <= 1e-4*np.maximum(1, largest)).all()


@pytest.mark.parametrize('name', smallest())
def test_all_ways_of_inference_agree(name, flowers, tmp_path):
    conf = fresh_run(name, size_of(name), flowers, tmp_path/'run')
    net, ops, names = load_predictor(str(tmp_path/'run'))
    result = evaluate(net, build_loader(conf.VALID, conf, False), CELoss(), (1,), detail=True)
    folder = export_model(net, tmp_path/'net', ops, names, onnx=True)
    files = [str(f) for f in build_loader(conf.VALID, conf, False).dataset.paths]
    inferred = [labels[0] for _, labels, _ in predict_files(net, ops, files, 1)]
    predictors = {e: Predictor(folder, e) for e in TEACHER_ENGINES}
    images = predictors['paddle'].preprocess(files)
    with paddle.no_grad(): logits = net(paddle.to_tensor(images)).numpy()
    assert abs(logits).max() < 100
    assert inferred == logits.argmax(1).tolist()
    assert (logits.argmax(1) == build_loader(conf.VALID, conf, False).dataset.labels).sum() == result.metric.correct[1]
    for engine, p in predictors.items():
        out = p.logits(images)
        assert is_close(out, logits), engine
        assert out.argmax(1).tolist() == inferred, engine
        assert [top[0][0] for top in p(files, topk=1, batch_size=5)] == inferred, engine
    shutil.rmtree(tmp_path)


class Shuffled(nn.Layer):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 5)

    def forward(self, x): return self.fc(nn.functional.channel_shuffle(paddle.concat([x, x], 1), 2).mean([2, 3]))


def test_an_operation_that_onnx_lacks_is_an_error_and_does_not_end_the_process(tmp_path):
    message = 'cannot convert this network; it contains operations .*: channel_shuffle'
    with pytest.raises(PPClsError, match=message):
        export_model(Shuffled(), tmp_path/'net', eval_ops(32), onnx=True)
    assert not [*tmp_path.iterdir()]
