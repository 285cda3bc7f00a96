"Quantization: its arithmetic, its refusals, and that every layer of the 8-bit file computes what it was trained to."
from dataclasses import replace
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import numpy as np, paddle, pytest

pytest.importorskip('onnxruntime')
from ppcls_nb.basics import PPClsError
from ppcls_nb.data.lists import read_list
from ppcls_nb.data.imaug.presets import eval_ops
from ppcls_nb.data.prepare import prepare_data
from ppcls_nb.deploy.export import export_model, read_export
from ppcls_nb.deploy.onnx import onnx_session
from ppcls_nb.deploy.predict import Predictor, image_batches
from ppcls_nb.deploy.quantize import (CALIBRATION_METHODS, InputRounding, Quantized, calibrate, export_quant_aware,
                                      fake_quant, float_graph, input_names, learned_ranges, merge_ranges, quant_aware,
                                      quant_params, quantize, strip_quant, weight_error, write_int8)
from ppcls_nb.models import create_model
from ppcls_nb.models.layers import ConvBN, conv2d

OPS = eval_ops(32, 32)

@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    root = prepare_data('petals', tmp_path_factory.mktemp('data'),
                        dict(classes=4, per_class=[10, 1, 1], size=32, progress=False)).root
    return [str(f) for f in read_list(root/'train_list.txt', root)[0]]

def learn(net, x, steps, lr=.003):
    "Train on the pictures, ten of each class in order; the network is in evaluation mode afterwards."
    optimizer, labels = paddle.optimizer.AdamW(lr, parameters=net.parameters()), paddle.to_tensor(np.arange(40)//10)
    net.train()
    for _ in range(steps):
        paddle.nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
        optimizer.clear_grad()
    net.eval()

def settled(name, pictures, steps=0):
    "A network after `steps` of training on the pictures, and these as a tensor."
    paddle.seed(0)
    net, x = create_model(name, class_num=4), paddle.to_tensor(next(image_batches(pictures, OPS, 40))[1])
    learn(net, x, steps)
    return net, x

def relative(a, b): return float(np.linalg.norm(a - b)/np.linalg.norm(a))

@pytest.mark.parametrize('low, high, scale, zero', [(0., 255., 1., 0), (-1., 1., 2/255, 128), (2., 2.55, .01, 0),
                                                    (0., 0., 1., 0)])
def test_scale_and_zero_point(low, high, scale, zero):
    assert quant_params(low, high) == (pytest.approx(scale), zero)

def test_rounding_is_at_most_half_a_step_and_zero_is_exact():
    scale, zero = quant_params(-.375, 6.)
    inside = np.random.default_rng(0).uniform(-.37, 5.9, 1000).astype(np.float32)
    assert abs(fake_quant(inside, scale, zero) - inside).max() <= scale*.501
    assert fake_quant(np.float32([0]), scale, zero)[0] == 0
    assert abs(fake_quant(np.float32([9.]), scale, zero)[0] - 6) <= scale

def test_a_scale_for_each_channel_is_more_accurate():
    w = np.random.default_rng(0).standard_normal((16, 64))*np.geomspace(.01, 1, 16)[:, None]
    assert weight_error(w) < weight_error(w, False)
    assert weight_error(np.zeros((2, 3)) + 1) < 1e-6

class Small(paddle.nn.Layer):
    "(N, 3, H, W) → logits (N, 4)."
    name = 'Small'
    def __init__(self):
        super().__init__()
        self.body = paddle.nn.Sequential(ConvBN(3, 16, 3, 2, act='hardswish'), ConvBN(16, 32, 3, 2, act='relu'))
        self.fc = paddle.nn.Linear(32, 4)

    def forward(self, x): return self.fc(self.body(x).mean([2, 3]))

@pytest.fixture(scope='module')
def exported(pictures, tmp_path_factory):
    "A small trained network as a float export."
    paddle.seed(0)
    net = Small()
    learn(net, paddle.to_tensor(next(image_batches(pictures, OPS, 40))[1]), 20, .02)
    return export_model(net, tmp_path_factory.mktemp('exported')/'float', OPS, list('abcd'), onnx=True)

def test_float_graphs(exported, tmp_path):
    record = read_export(exported)
    program_only = replace(record, files={name: '' for name in record.files if name != 'inference.onnx'})
    file, folded = float_graph(program_only, tmp_path)
    assert file == tmp_path/'inference.onnx'
    assert file.is_file()
    assert folded.is_file()
    with pytest.raises(PPClsError, match='holds neither'):
        float_graph(replace(record, files={}), tmp_path)

def test_calibration_methods(exported, pictures, tmp_path):
    _, folded = float_graph(read_export(exported), tmp_path)
    batches = [images for _, images in image_batches(pictures[:32], OPS, 8)]
    found = {method: calibrate(folded, batches, method) for method in CALIBRATION_METHODS}
    whole = calibrate(folded, [np.concatenate(batches)])
    width = lambda ranges: sum(high - low for low, high in ranges.values())
    assert whole.keys() == found['minmax'].keys()
    # how the images are divided into batches does not matter
    assert all(np.allclose(whole[name], found['minmax'][name], atol=1e-4) for name in whole)
    assert all(low <= high for ranges in found.values() for low, high in ranges.values())
    assert width(found['percentile']) < width(whole)
    assert width(found['entropy']) < width(whole)
    with pytest.raises(PPClsError, match="did you mean 'entropy'"):
        calibrate(folded, batches, 'entropie')
    with pytest.raises(PPClsError, match='calibrate: no images'):
        calibrate(folded, [])

def test_given_ranges_and_seven_bits(exported, pictures, tmp_path):
    file, folded = float_graph(read_export(exported), tmp_path)
    _, images = next(image_batches(pictures, OPS, 40))
    ranges, expected = calibrate(folded, [images]), onnx_session(file)(images)
    def error(name, ranges, **options):
        return relative(expected, onnx_session(write_int8(folded, tmp_path/name, ranges, **options))(images))
    narrow = {name: (low/8, high/8) for name, (low, high) in ranges.items()}
    assert 0 < error('int8.onnx', ranges) < .2
    assert error('narrow.onnx', narrow) > 2*error('int8.onnx', ranges)
    assert error('seven.onnx', ranges, reduce_range=True) < .3

def test_warnings_of_a_result():
    report = Quantized(Path('x'), 'minmax', 32, (4e6, 1e6), 100, .97, (.80, .78), {'onnx': (.7, .8, .9)})
    assert 'loses 2.0 points' in report.warnings[0]
    assert 'slower than before on this machine, by a factor of 1.25' in report.warnings[1]
    assert not replace(report, top1=(.8, .79), speed={'onnx': (1, 2, 3)}).warnings
    assert 'another class for 3.0 %' in replace(report, top1=None).warnings[0]
    assert not replace(report, top1=None, max_drop=3, speed={}).warnings

def test_few_images_are_tested_on_the_calibration(exported, pictures, tmp_path):
    report = quantize(exported, tmp_path/'few', pictures[:3], runs=0, bar=False)
    assert 'tested on the images that it was calibrated on' in report.warnings[-1]
    report = quantize(exported, tmp_path/'split', pictures, count=32, runs=0, bar=False)
    assert not report.tested_on_calibration
    assert report.tests == 8

def test_quantize_refuses(exported, pictures, tmp_path):
    quantize(exported, tmp_path/'int8', pictures[:3], runs=0, bar=False)
    (tmp_path/'bad.jpg').write_bytes(b'no image')
    (tmp_path/'empty').mkdir()
    refused = {
        'quantized already': (tmp_path/'int8', pictures),
        'no images; expected a few hundred': (exported, []),
        'bad.jpg': (exported, [pictures[0], tmp_path/'bad.jpg']),
        'inference.yml is missing': (tmp_path/'empty', pictures),
        'no such folder': (tmp_path/'nowhere', pictures)}
    for message, (source, images) in refused.items():
        with pytest.raises(PPClsError, match=message):
            quantize(source, tmp_path/'refused', images, runs=0, bar=False)
        assert not (tmp_path/'refused').exists()
    with pytest.raises(PPClsError, match='name another folder'):
        quantize(exported, exported, pictures)
    with pytest.raises(PPClsError, match='3 labels for 40'):
        quantize(exported, tmp_path/'refused', pictures, pictures, [0, 0, 0])
    with pytest.raises(PPClsError, match='0 images for calibration'):
        quantize(exported, tmp_path/'refused', pictures, count=0)

def test_merged_ranges():
    merged = merge_ranges({'a': (-2., 3.), 'b': (0., 9.)}, {'w': 'a', 'v': 'a'}, {'w': (-.5, 2.), 'v': (0., 4.)})
    assert merged == {'a': (-.5, 4.), 'b': (0., 9.)}
    with pytest.raises(PPClsError, match='1 of 1 layers'):
        merge_ranges({'a': (0, 1)}, {'w': 'b'}, {'w': (0., 1.)})

def test_rounding_layer_learns_a_range_and_passes_gradients():
    layer = InputRounding()
    x = paddle.to_tensor(np.random.default_rng(0).uniform(-1, 3, 1000).astype(np.float32))
    layer.eval()
    assert (layer(x) == x).all()
    layer.train()
    layer(x)
    assert (layer(x) - x).abs().max() <= 4/255*.51
    layer(10*x)
    weight = (.81 + .9 + 10)/2.71
    expected = x.min().item()*weight, x.max().item()*weight
    assert [t.item() for t in layer.range()] == pytest.approx(expected, abs=1e-3)
    scale, zero = quant_params(*[t.item() for t in layer.range()])
    layer.eval()
    assert np.allclose(layer(40*x), fake_quant(40*x.numpy(), scale, zero), rtol=1e-6)
    x.stop_gradient = False
    layer(x).sum().backward()
    assert (x.grad == 1).all()

def test_preparing_a_network_and_undoing_it():
    net = paddle.nn.Sequential(conv2d(3, 4, 3), paddle.nn.ReLU())
    weight, keys = net[0].weight, list(net.state_dict())
    quant_aware(net)
    with pytest.raises(PPClsError, match='prepared already'):
        quant_aware(net)
    assert strip_quant(net)[0].weight is weight
    assert list(net.state_dict()) == keys
    assert learned_ranges(net) == {}
    with pytest.raises(PPClsError, match='no convolution'):
        quant_aware(paddle.nn.Sequential(paddle.nn.ReLU()))
    with pytest.raises(PPClsError, match='expected a network that quant_aware'):
        export_quant_aware(net, 'refused', OPS, [])

def test_softmax_stays_float(pictures, tmp_path):
    net, x = settled('MobileNetV1_x0_25', pictures)
    export_model(net, tmp_path/'float', OPS, softmax=True, onnx=True)
    report = quantize(tmp_path/'float', tmp_path/'int8', pictures, runs=0, bar=False)
    p = Predictor(tmp_path/'int8', 'onnx').logits(x.numpy())
    assert report.size[1] < .5*report.size[0]
    assert report.tested_on_calibration
    assert np.allclose(p.sum(1), 1, atol=1e-5)
    assert abs(p*256 - (p*256).round()).max() > .2

@pytest.fixture(scope='module')
def deployed(pictures, tmp_path_factory):
    """A network with squeeze and excitation, hard-swish and a last linear layer, trained with rounding: its layers as
    training computes them, and the folder of its 8-bit file."""
    folder = tmp_path_factory.mktemp('deployed')
    net, x = settled('MobileNetV3_small_x0_35', pictures, 40)
    learn(quant_aware(net), x, 3, .0005)
    learned = learned_ranges(net)
    layers = {layer.original[0].weight.name: layer for layer in net.sublayers() if hasattr(layer, 'original')}
    blocks = [block for block in net.sublayers() if isinstance(block, ConvBN)]
    norms = {id(getattr(block, block.names[0])): getattr(block, block.names[1]) for block in blocks}
    report = export_quant_aware(net, folder/'int8', OPS, pictures, tests=pictures, runs=0, bar=False)
    export_model(net, folder/'float', OPS, onnx=True)
    layers = {weight: (layer, norms.get(id(layer))) for weight, layer in layers.items()}
    return dict(folder=folder, x=x.numpy(), learned=learned, report=report, layers=layers)

@pytest.fixture(scope='module')
def rounded_layers(deployed):
    """{weight: what the file makes of that layer}: its input before and after rounding, scale and zero point of this,
    its weights, their scales, and its output."""
    import onnx, onnxruntime
    model = onnx.load(str(deployed['folder']/'int8'/'inference.onnx'))
    inputs = input_names(deployed['folder']/'float'/'inference.onnx')
    made = {n.output[0]: n for n in model.graph.node}
    constant = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    layers = [n for n in model.graph.node if n.op_type in ('Conv', 'Gemm', 'MatMul')]
    rounding = [made[made[n.input[0]].input[0]] for n in layers]
    assert [q.input[0] for q in rounding] == list(inputs.values())
    known = {v.name for v in [*model.graph.input, *model.graph.output]}
    wanted = list({name for n, q in zip(layers, rounding) for name in (q.input[0], n.input[0], n.output[0])} - known)
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    entry = model.graph.input[0].name
    seen = {entry: deployed['x'], **dict(zip(wanted, session.run(wanted, {entry: deployed['x']})))}
    found = {}
    for weight, n, q in zip(inputs, layers, rounding):
        stored, scales = (constant[name] for name in made[n.input[1]].input[:2])
        scale, zero = (constant[name].item() for name in q.input[1:3])
        found[weight] = dict(before=seen[q.input[0]], after=seen[n.input[0]], output=seen[n.output[0]], scale=scale,
                             zero=zero, stored=stored, scales=scales)
    return found

def test_every_learned_range_is_in_the_file(deployed, rounded_layers):
    "Scale and zero point of every layer's input are those of its learned range."
    assert rounded_layers.keys() == deployed['learned'].keys()
    assert len(rounded_layers) == 55
    assert read_export(deployed['folder']/'int8').about['int8']['learned_ranges'] == 55
    assert deployed['report'].tests == 40
    for weight, layer in rounded_layers.items():
        scale, zero = quant_params(*deployed['learned'][weight])
        assert layer['scale'] == pytest.approx(scale, rel=1e-5) and layer['zero'] == zero, weight

def test_the_file_rounds_inputs_as_training_does(deployed, rounded_layers):
    "Where both round the same numbers they give the same; a number halfway between two steps may go either way."
    for weight, layer in rounded_layers.items():
        rounding = deployed['layers'][weight][0]._layer._fake_quant_input
        steps = abs(rounding(paddle.to_tensor(layer['before'])).numpy() - layer['after'])/layer['scale']
        assert steps.max() < 1.01 and (steps > .01).mean() < .001, weight

def test_weights_in_the_file_are_half_a_step_off_at_most(deployed, rounded_layers):
    "Batch norms are folded in, which scales every channel; its largest weight is step 127."
    for weight, layer in rounded_layers.items():
        wrapper, norm = deployed['layers'][weight]
        w, scales = wrapper.original[0].weight.numpy(), layer['scales']
        if norm is not None: w = w*(norm.weight/(norm._variance + norm._epsilon).sqrt()).numpy()[:, None, None, None]
        largest = abs(w).max((1, 2, 3) if w.ndim == 4 else 0)
        assert np.allclose(scales, largest/127, rtol=1e-4), weight
        if w.ndim == 4: scales = scales[:, None, None, None]
        assert (abs(layer['stored']*scales - w) <= .501*scales).all(), weight

def test_every_layer_computes_what_it_was_trained_to(deployed, rounded_layers):
    """From the same rounded input, the layer with its batch norm as in training and as in the file: these differ by
    half a step of the bias (the input's step times the weights'), and by a step of a weight that lies halfway between
    two."""
    for weight, layer in rounded_layers.items():
        wrapper, norm = deployed['layers'][weight]
        y = wrapper(paddle.to_tensor(layer['after']))
        y = (y if norm is None else norm(y)).numpy()
        # the quantizer puts a ReLU into the layer before it
        if layer['output'].min() >= 0:
            y = y.clip(0)
        w, stored = wrapper.original[0].weight, layer['stored']
        rest = (0, *range(2, y.ndim))
        # axes of a weight that are not its output channels
        others = ((1, 2, 3) if w.ndim == 4 else 0)
        steps = abs(wrapper._layer._fake_quant_weight(w).numpy())/abs(w.numpy()).max(others, keepdims=True)*127
        ties = (steps.round() != abs(stored.astype(int))).sum(others)
        limit = layer['scales']*(.501*layer['scale'] + ties*abs(layer['after']).max()) + 1e-4*abs(y).max()
        assert ties.sum() <= 1e-4*w.size + 1 and (abs(y - layer['output']).max(rest) <= limit).all(), weight

def test_products_of_eight_bits_do_not_overflow(tmp_path):
    """The largest products, in pairs, are beyond 16 bits; x86 processors without VNNI instructions add them there
    unless ONNX Runtime is told otherwise."""
    import onnx
    x, w = np.ones([2, 64, 8, 8], np.float32), onnx.numpy_helper.from_array(np.ones([64, 64, 1, 1], np.float32), 'w')
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ['N', 64, 8, 8]) for name in 'xy']
    graph = onnx.helper.make_graph([onnx.helper.make_node('Conv', ['x', 'w'], ['y'], 'conv')], 'products', ends[:1],
                                   ends[1:], [w])
    file = tmp_path/'float.onnx'
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 17)], ir_version=8), file)
    write_int8(file, tmp_path/'int8.onnx', calibrate(file, [x]))
    assert abs(onnx_session(tmp_path/'int8.onnx')(x) - 64).max() < 64/255

def test_same_padding_is_rounded_too():
    "Layers that pad as TensorFlow does give about the same, rounded."
    paddle.seed(0)
    net = paddle.nn.Sequential(conv2d(3, 8, 3, 2, padding='SAME'), conv2d(8, 8, 5, 2, 8, padding='SAME'))
    x = paddle.rand([4, 3, 31, 31])
    y = net(x).numpy()
    quant_aware(net).train()
    net(x)
    net.eval()
    assert 0 < relative(y, net(x).numpy()) < .05
    assert len(learned_ranges(net)) == 2
    assert relative(y, strip_quant(net)(x).numpy()) < 1e-6

def test_a_failed_quantization_leaves_what_was_there(pictures, tmp_path):
    net, _ = settled('MobileNetV1_x0_25', pictures)
    export_model(net, tmp_path/'float', OPS, onnx=True)
    quantize(tmp_path/'float', tmp_path/'int8', pictures, runs=0, bar=False)
    kept = read_export(tmp_path/'int8').files
    (tmp_path/'bad.jpg').write_bytes(b'')
    with pytest.raises(PPClsError, match='bad.jpg'):
        quantize(tmp_path/'float', tmp_path/'int8', [*pictures[:4], tmp_path/'bad.jpg'], runs=0, bar=False)
    assert read_export(tmp_path/'int8').files == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ['bad.jpg', 'float', 'int8']
