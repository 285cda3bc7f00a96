"""The contract of the networks of the zoo. Every network: official keys and shapes, costs, and outputs unless it is one
of the largest. Every kind of block: any size, channels and class count, gradients, features, export. With
PPCLS_ALL_NETWORKS=1 everything for every network.

One network alone: pytest tests/test_zoo.py -k ResNet50_vd"""
import gc, math

import ppcls_nb  # before paddle: sets the threads
import numpy as np, paddle, pytest

from networks import ALL_NETWORKS, NAMES, OTHER_BLOCKS, computed, every_block, small, smallest
from official import ALL, FACTS, golden_output, official_state, without_random_weights
from ppcls_nb.basics import fact_rows
from ppcls_nb.models import build_model, create_model, model_info, weights_info
from ppcls_nb.models.inference import save_inference
from ppcls_nb.models.layers import is_weight
from ppcls_nb.models.network import classifier_names, relative_difference
from ppcls_nb.models.zoo import network_costs, without_computing

OURS = {'ResNet50_ACNet', 'ResNet50_ACNet_deploy',      # no official checkpoint with today's names
        # not PaddleClas's; their weights: test_models.py
        'EfficientNetLite0', 'EfficientNetLite1', 'EfficientNetLite2'}
# deployed, without weights of their own
OURS |= {name for name in NAMES if name.startswith('RepVGG') and name.endswith('_deploy')}
COSTS = fact_rows('costs')


@pytest.fixture(autouse=True)
def free_memory():
    yield
    gc.collect()


def record(model, method, results):
    "Append to the list `results` whatever this method of `model` returns."
    whole = getattr(model, method)
    # not setattr: a sublayer may have this name
    model.__dict__[method] = lambda x: results.append(whole(x)) or results[-1]


def main_output(y): return y[0] if isinstance(y, (list, tuple)) else y


def test_every_network_of_the_documents_is_there():
    assert set(NAMES) == set(ALL) | OURS
    assert len(FACTS) == 108


def check_state(name, model):
    "The arrays of `model` and their numbers are those of the official checkpoint; also in static mode."
    state = {k: v for k, v in model.state_dict().items() if 'float' in str(v.dtype)}
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    assert list(shapes.items()) == list(official_state(name).items())
    assert {str(v.dtype).split('.')[-1] for v in state.values()} == {'float32'}
    assert sum(math.prod(p.shape) for p in model.parameters() if is_weight(p)) == ALL[name]['trainable']
    assert sum(map(math.prod, shapes.values())) == ALL[name]['total']


@pytest.mark.parametrize('name', sorted(set(ALL) - computed()))
def test_official_keys_shapes_and_counts_of_the_largest(name):
    with without_computing():
        check_state(name, build_model(name))


@pytest.mark.parametrize('name', sorted(computed() - OURS))
def test_official_keys_shapes_counts_and_outputs(name):
    with without_random_weights():
        model, stages = build_model(name), []
    check_state(name, model)
    # the second calls the first, maybe in another order of axes, and is recorded last
    for method in ('features', 'stage_maps'):
        record(model, method, stages)
    g = ALL[name]['golden']
    out, ref = golden_output(model, g['gain'], g['S']), np.array(g['logits'])
    assert np.linalg.norm(out[:, :16] - ref) < 1e-4*np.linalg.norm(ref)
    np.testing.assert_allclose(out.std(1), g['std'], rtol=1e-4)
    np.testing.assert_allclose(out.mean(1), g['mean'], atol=1e-4*max(g['std']))
    assert out.argmax(1).tolist() == g['argmax']
    if not stages:          # the head of a vision transformer reads no map
        with paddle.no_grad(): model.stage_maps(paddle.zeros([1, 3, g['S'], g['S']]))
    maps = stages[-1]
    assert [m.shape[1] for m in maps] == list(model.channels)
    assert [2**round(math.log2(g['S']/m.shape[2])) for m in maps] == list(model.strides)


@pytest.mark.parametrize('name', every_block())
def test_any_task_learns(name):
    """Two sizes, other channels, another class count; every weight gets a finite gradient; an image's answer does not
    depend on its batch."""
    paddle.seed(0)
    model, (h, w) = build_model(name, class_num=7, in_channels=2), small(name)
    y = model(paddle.randn([4, 2, h, h]))
    loss = sum(
        paddle.nn.functional.cross_entropy(out, paddle.to_tensor([0, 1, 2, 3]))
        for out in (y if isinstance(y, (list, tuple)) else [y]))
    loss.backward()
    bad = [
        k for k, p in model.named_parameters()
        if is_weight(p) and (p.grad is None or not np.isfinite(p.grad.numpy()).all())]
    assert main_output(y).shape == [4, 7]
    assert not bad
    model.clear_gradients()
    model.eval()
    x = paddle.randn([2, 2, h, w])
    with paddle.no_grad(): assert relative_difference(model(x)[1:], model(x[1:])) < 1e-4


@pytest.mark.parametrize('name', NAMES if ALL_NETWORKS else OTHER_BLOCKS)
def test_exported_network_gives_the_same_outputs(name, tmp_path):
    "Of the smallest of each family: test_deploy.py, with every engine."
    model, (h, w) = build_model(name, class_num=5), small(name)
    model.eval()
    x = paddle.rand([2, 3, h, w])
    with paddle.no_grad(): ours = model(x).numpy()
    program = save_inference(model, tmp_path, (3, h, w))
    del model
    gc.collect()
    exported = paddle.jit.load(str(program.with_suffix('')))
    assert relative_difference(exported(x), ours) < 1e-4
    for f in tmp_path.iterdir(): f.unlink()


@pytest.mark.parametrize('name,size', [(r['arch'], int(r['size'])) for r in COSTS if r['arch'] in every_block()])
def test_costs_are_what_the_counter_counts(name, size):
    assert {
        k: str(v)
        for k, v in network_costs(name, size).items()} == next(r for r in COSTS
                                                               if r['arch'] == name and r['size'] == str(size))


@pytest.mark.parametrize('name', smallest())
def test_features_of_the_smallest_of_each_family(name):
    "Without the head: maps as announced, and no weight is left without a gradient."
    net, (h, _) = create_model(name, features_only=True), small(name)
    maps = net(paddle.randn([2, 3, h, h]))
    assert [m.shape[1] for m in maps] == net.channels
    assert len(maps) == len(net.strides) >= 3
    sum(m.mean() for m in maps).backward()
    assert not [k for k, p in net.named_parameters() if is_weight(p) and p.grad is None]


@pytest.mark.parametrize('name', ['MobileNetV3_small_x0_35', 'ResNet18_vd', 'SqueezeNet1_1'])
def test_stages_are_picked(name):
    net, picked = (create_model(name, features_only=True, out_indices=indices) for indices in (None, [1, -1]))
    assert picked.channels == [net.channels[1], net.channels[-1]]
    assert picked.strides == [net.strides[1], net.strides[-1]]
    x = paddle.randn([1, 3, 64, 64])
    assert [m.shape[1] for m in picked(x)] == picked.channels


def test_golden_check_notices_a_wrong_network():
    """The comparison above can fail: the same weights with another activation, padding or epsilon are far outside its
    tolerance."""
    g = FACTS['EfficientNetB0_small']['golden']
    ref = np.array(g['logits'])
    for wrong in (dict(act='relu6'), dict(padding='SAME')):
        out = golden_output(create_model('EfficientNetB0_small', **wrong), g['gain'], g['S'])
        assert np.linalg.norm(out[:, :16] - ref) > 1e-3*np.linalg.norm(ref), wrong


def test_every_network_has_its_record():
    for name in FACTS:
        tags = model_info(name)['weights']
        assert tags, name
        for tag in tags:
            keys = official_state(name)
            for classifier in classifier_names(weights_info(tag)):
                assert f'{classifier}.weight' in keys, tag
