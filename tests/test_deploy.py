"""One network, five ways to ask it: training's evaluation, `infer`'s network, the exported folder on Paddle's two
engines and on ONNX Runtime name the same classes.

For the smallest network of each family at 64 pixels (96 where that is too small; 224 for the two that pool to a map
larger than that, which ONNX cannot), with random weights whose batch norms have seen images, so that the outputs are of
the size of a trained network's; the logits differ by at most 1e-4, absolutely where they are below 1 and relative to an
image's largest logit where they are above. The deep and the wide ones have fewer blocks and hidden units here (SHORT),
of every kind that they have. One alone: pytest tests/test_deploy.py -k DenseNet121"""
import shutil
from importlib.util import find_spec
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import numpy as np, paddle, pytest, yaml
from paddle import nn

from ppcls_nb.basics import PPClsError
from ppcls_nb.cli.train import load_predictor, predict_files
from ppcls_nb.recipe.build import build_loader, load_config
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.data.prepare import prepare_data
from ppcls_nb.deploy.export import export_model
from ppcls_nb.deploy.predict import Predictor
from ppcls_nb.models import create_model
from ppcls_nb.train import CELoss, evaluate, save_weights
from networks import small, smallest

ENGINES = ['paddle', 'training', *['onnx']*bool(find_spec('paddle2onnx') and find_spec('onnxruntime'))]

FEW = dict(depths=[1, 1, 1, 1])
SHORT = {
    'AlexNet': dict(hidden=64),
    'VGG11': dict(hidden=64),
    'DPN68': FEW,
    'DarkNet53': dict(depths=[1]*5),
    'DenseNet121': dict(depths=[2]*4),
    'Res2Net50_14w_8s': FEW,
    'ResNeXt101_32x8d_wsl': FEW,
    'ResNeXt50_32x4d': FEW,
    'ResNet50_ACNet_deploy': FEW,
    'SE_ResNeXt50_32x4d': FEW,
    'Xception41': dict(middle=1),
    'Xception41_deeplab': dict(middle=1)}


@pytest.fixture(scope='module')
def garden(tmp_path_factory):
    return prepare_data('petals', tmp_path_factory.mktemp('data'),
                        dict(classes=5, per_class=[1, 1, 1], size=64, progress=False))


def calibrate(model, images):
    """Batch norms take over the statistics of `images`, by half: no variance is then below 0.5, and no channel
    magnifies rounding."""
    norms = [m for m in model.sublayers() if isinstance(m, nn.BatchNorm2D)]
    model.eval()
    for m in norms: m._momentum = .5; m.train()
    with paddle.no_grad(): model(images)
    model.eval()


def fresh_run(name, size, garden, folder):
    "A run folder whose weights are random."
    ops = [{
        'DecodeImage': {}}, {
            'ResizeImage': {
                'size': [size, size]}}, {
                    'NormalizeImage': {
                        'order': ''}}, {
                            'ToCHWImage': None}]
    reader = lambda part: dict(batch_size=5, data_dir=str(garden.root), file_list=str(
        Path(garden.lists)/f'{part}_list.txt'), transforms=ops)
    folder.mkdir(parents=True)
    (folder/'config.yaml').write_text(
        yaml.safe_dump(
            dict(ARCHITECTURE={
                'name': name,
                'params': SHORT.get(name, {})}, classes_num=5, TRAIN=reader('train'), VALID=reader('val'))))
    conf = load_config(folder/'config.yaml')
    paddle.seed(0)
    model = create_model(name, class_num=5, **SHORT.get(name, {}))
    calibrate(model, next(iter(build_loader(conf.VALID, conf, False)))[0])
    save_weights(folder/'best.pdparams', model)
    return conf


def size_of(name): return 224 if name in ('AlexNet', 'VGG11') else small(name)[0]


def close(ours, theirs): return (abs(ours - theirs) <= 1e-4*np.maximum(1, abs(ours).max(1, keepdims=True))).all()


@pytest.mark.parametrize('name', smallest())
def test_all_ways_of_inference_agree(name, garden, tmp_path):
    conf = fresh_run(name, size_of(name), garden, tmp_path/'run')
    net, ops, names = load_predictor(str(tmp_path/'run'))
    result = evaluate(net, build_loader(conf.VALID, conf, False), CELoss(), (1,), detail=True)
    folder = export_model(net, tmp_path/'net', ops, names, onnx='onnx' in ENGINES)
    files = [str(f) for f in build_loader(conf.VALID, conf, False).dataset.paths]
    inferred = [labels[0] for _, labels, _ in predict_files(net, ops, files, 1)]
    predictors = {e: Predictor(folder, e) for e in ENGINES}
    images = predictors['paddle'].preprocess(files)
    with paddle.no_grad(): logits = net(paddle.to_tensor(images)).numpy()
    assert abs(logits).max() < 100
    assert inferred == logits.argmax(1).tolist()
    assert (logits.argmax(1) == build_loader(conf.VALID, conf, False).dataset.labels).sum() == result.metric.correct[1]
    for engine, p in predictors.items():
        out = p.logits(images)
        assert close(logits, out) and out.argmax(1).tolist() == inferred, engine
        assert [top[0][0] for top in p(files, topk=1, batch_size=5)] == inferred, engine
    shutil.rmtree(tmp_path)


class Shuffled(nn.Layer):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 5)

    def forward(self, x): return self.fc(nn.functional.channel_shuffle(paddle.concat([x, x], 1), 2).mean([2, 3]))


@pytest.mark.skipif('onnx' not in ENGINES, reason='no paddle2onnx')
def test_an_operation_that_onnx_lacks_is_an_error_and_not_the_end_of_the_process(tmp_path):
    with pytest.raises(PPClsError, match='cannot translate this network; among its operations are unusual ones: '
                                         'channel_shuffle'):
        export_model(Shuffled(), tmp_path/'net', eval_ops(32), onnx=True)
    assert not [*tmp_path.iterdir()]
