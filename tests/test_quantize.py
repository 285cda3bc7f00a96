"From a run to 8 bits and back to names, over the notebooks: the commands, and what a network of each kind becomes."
import numpy as np, paddle, pytest
pytest.importorskip('onnxruntime')
from ppcls_nb.basics import PPClsError
from ppcls_nb.data.datasets import read_list
from ppcls_nb.data.imaug.presets import eval_ops
from ppcls_nb.data.prepare import prepare_data
from ppcls_nb.deploy.export import export_model, read_export
from ppcls_nb.deploy.predict import Predictor, image_batches
from ppcls_nb.deploy.quantize import export_quant_aware, learned_ranges, plain, quant_aware, quantize
from ppcls_nb.models import create_model
from ppcls_nb.models.layers import conv2d

pytestmark = pytest.mark.skipif(int(paddle.__version__.split('.')[0]) < 3, reason='paddle2onnx needs Paddle 3')
OPS = eval_ops(32, 32)

@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    root = prepare_data('petals', tmp_path_factory.mktemp('data'), dict(classes=4, per_class=[10, 1, 1], size=32, progress=False)).root
    return [str(f) for f in read_list(root/'train_list.txt', root)[0]]

def learn(net, x, steps, lr=.003):
    "Train on the pictures, ten of each class in order; the network is in evaluation mode afterwards."
    optimizer, labels = paddle.optimizer.AdamW(lr, parameters=net.parameters()), paddle.to_tensor(np.arange(40)//10)
    net.train()
    for _ in range(steps):
        paddle.nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step(); optimizer.clear_grad()
    net.eval()

def settled(name, pictures, steps=0):
    "A network after `steps` of training on the pictures, and these as a tensor."
    paddle.seed(0)
    net, x = create_model(name, class_num=4), paddle.to_tensor(next(image_batches(pictures, OPS, 40))[1])
    learn(net, x, steps)
    return net, x

def relative(a, b): return float(np.linalg.norm(a - b)/np.linalg.norm(a))

def test_softmax_stays_float(pictures, tmp_path):
    net, x = settled('MobileNetV1_x0_25', pictures)
    export_model(net, tmp_path/'float', OPS, softmax=True, onnx=True)
    report = quantize(tmp_path/'float', tmp_path/'int8', pictures, runs=0, bar=False)
    p = Predictor(tmp_path/'int8', 'onnx').logits(x.numpy())
    assert report.size[1] < .5*report.size[0] and report.seen and np.allclose(p.sum(1), 1, atol=1e-5) and abs(p*256 - (p*256).round()).max() > .2

def test_learned_ranges_reach_the_file(pictures, tmp_path):
    "Every layer of a network with squeeze and excitation, hard-swish and a last linear layer is found again in the file, which rounds no more coarsely than training did."
    net, x = settled('MobileNetV3_small_x0_35', pictures, 8)
    learn(quant_aware(net), x, 3, .0005)
    rounded = net(x).numpy()
    report = export_quant_aware(net, tmp_path/'int8', OPS, pictures, tests=pictures, runs=0, bar=False)
    y = Predictor(tmp_path/'int8', 'onnx').logits(x.numpy())
    assert relative(net(x).numpy(), y) < .1 and relative(rounded, y) < .5 and report.tests == 40
    assert read_export(tmp_path/'int8').about['int8']['learned_ranges'] == 55

def test_same_padding_is_rounded_too():
    "Layers that pad as TensorFlow does give about the same, rounded."
    paddle.seed(0)
    net, x = paddle.nn.Sequential(conv2d(3, 8, 3, 2, padding='SAME'), conv2d(8, 8, 5, 2, 8, padding='SAME')), paddle.rand([4, 3, 31, 31])
    y = net(x).numpy()
    quant_aware(net).train()
    net(x)
    net.eval()
    assert 0 < relative(y, net(x).numpy()) < .05 and len(learned_ranges(net)) == 2 and relative(y, plain(net)(x).numpy()) < 1e-6

def test_a_failed_quantization_leaves_what_was_there(pictures, tmp_path):
    net, _ = settled('MobileNetV1_x0_25', pictures)
    export_model(net, tmp_path/'float', OPS, onnx=True)
    quantize(tmp_path/'float', tmp_path/'int8', pictures, runs=0, bar=False)
    kept = read_export(tmp_path/'int8').files
    (tmp_path/'bad.jpg').write_bytes(b'')
    with pytest.raises(PPClsError, match='bad.jpg'): quantize(tmp_path/'float', tmp_path/'int8', [*pictures[:4], tmp_path/'bad.jpg'], runs=0, bar=False)
    assert read_export(tmp_path/'int8').files == kept and sorted(p.name for p in tmp_path.iterdir()) == ['bad.jpg', 'float', 'int8']
