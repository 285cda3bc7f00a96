"Every algorithm of models.small_conv gives the numbers of Paddle's convolution, by layer and by network."
import itertools

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F

from ppcls_nb.basics import PPClsError, fact_rows
from ppcls_nb.models import create_model
from ppcls_nb.models.image_filter import depthwise_filter
from ppcls_nb.models.layers import is_weight
from ppcls_nb.models.network import computes_in_cnhw
from ppcls_nb.models.gemm import depthwise_matmul, same_padding
from ppcls_nb.models.small_conv import Conv2D, choose_algorithm, cnhw_layout, swap_batch

NETWORKS = {
    'MobileNetV1_x0_25': {},
    'MobileNetV2_x0_25': {},
    'MobileNetV3_small_x0_35': {},
    'MobileNetV3_large_x0_35': {},
    'EfficientNetB0_small': dict(padding='SAME'),
    'EfficientNetB0': {},
    'PPLCNet_x0_25': {},
    'PPLCNetV2_small': {}}


def gradients(function, x, w):
    "y, dx and dw of Σ y²/2 for copies of the arrays x and w."
    x, w = paddle.to_tensor(x, stop_gradient=False), paddle.to_tensor(w, stop_gradient=False)
    y = function(x, w)
    y.backward(y.detach())
    return y.numpy(), x.grad.numpy(), w.grad.numpy()


def close(ours, theirs):
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4*np.abs(b).max())


@pytest.mark.parametrize('k, stride, pad', itertools.product([1, 3, 5, 7], [1, 2, 3], ['half', 'SAME']))
def test_depthwise_forms_agree_on_any_map(k, stride, pad):
    rng = np.random.default_rng(k*10 + stride)
    for n, h, w in [(1, 7, 7), (3, 8, 13), (2, 1, 9), (4, 16, 5)]:
        pads = [same_padding(size, k, stride) if pad == 'SAME' else (k//2, k//2) for size in (h, w)]
        (top, bottom), (left, right) = pads
        oh, ow = (h + top + bottom - k)//stride + 1, (w + left + right - k)//stride + 1
        x, weight = rng.standard_normal((n, 5, h, w), np.float32), rng.standard_normal((5, 1, k, k), np.float32)
        wanted = gradients(lambda x, w: F.conv2d(F.pad(x, [left, right, top, bottom]), w, stride=stride, groups=5), x,
                           weight)
        arguments = stride, (top, left, bottom, right), oh, ow
        close(gradients(lambda x, w: depthwise_filter(x, w, *arguments), x, weight), wanted)
        close(gradients(lambda x, w: swap_batch(depthwise_filter(swap_batch(x), w, *arguments, cnhw=True)), x, weight),
              wanted)
        close(gradients(lambda x, w: swap_batch(depthwise_matmul(swap_batch(x), w, *arguments)), x, weight), wanted)


def test_filter_computes_only_the_gradients_that_are_asked_for():
    x, w = paddle.rand([8, 4, 20, 20]), paddle.rand([4, 1, 3, 3])
    w.stop_gradient = False
    depthwise_filter(x, w, 1, (1, 1, 1, 1), 20, 20).sum().backward()
    assert x.grad is None
    assert w.grad is not None
    x.stop_gradient, w.stop_gradient = False, True
    depthwise_filter(x, w, 1, (1, 1, 1, 1), 20, 20).sum().backward()
    assert x.grad is not None


def test_threads_do_not_change_a_bit(monkeypatch):
    x, w = np.random.default_rng(0).standard_normal((8, 7, 20, 20), np.float32), np.ones((7, 1, 3, 3), np.float32)
    found = []
    for threads in ('1', '2', '3', '16'):
        monkeypatch.setenv('OMP_NUM_THREADS', threads)
        found.append(gradients(lambda x, w: depthwise_filter(x, w, 2, (1, 1, 1, 1), 10, 10), x, w))
    for other in found[1:]:
        assert all((a == b).all() for a, b in zip(found[0], other))


def both_ways(name, kw, monkeypatch, training, size=(64, 48), batch=12, seed=0):
    "Output and gradients of a network by our forms and by Paddle's alone, with the same random numbers."
    paddle.seed(seed)
    model, results = create_model(name, class_num=5, **kw), []
    model.train() if training else model.eval()
    x, y = paddle.randn([batch, 3, *size]), paddle.arange(batch) % 5
    for fast in (True, False):
        monkeypatch.setattr(Conv2D, 'fast', fast)
        paddle.seed(1)
        model.clear_gradients()
        out = model(x)
        F.cross_entropy(out, y).backward()
        results.append([out.numpy()] + [p.grad.numpy() for p in model.parameters() if is_weight(p)])
    return model, x, results


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name', NETWORKS)
def test_networks_agree_with_dropout_and_stochastic_depth(name, training, monkeypatch):
    """An input of a ReLU that rounding takes to the other side of 0 changes the gradients by a percent or two, in large
    batches of large images more often; a wrong form is wrong for every batch."""
    differences = []
    for seed, size, batch in ((0, (64, 48), 12), (0, (32, 32), 8), (1, (32, 32), 8), (2, (32, 32), 8)):
        _, _, (ours, theirs) = both_ways(name, NETWORKS[name], monkeypatch, training, size, batch, seed)
        assert np.linalg.norm(ours[0] - theirs[0]) < 1e-3*np.linalg.norm(theirs[0])
        length = np.sqrt(sum((g**2).sum() for g in theirs[1:]))
        differences.append(np.sqrt(sum(((a - b)**2).sum() for a, b in zip(ours[1:], theirs[1:])))/length)
        if differences[-1] < 1e-3:
            return
    pytest.fail(f'relative differences of the gradients: {differences}')


@pytest.mark.parametrize('name', NETWORKS)
def test_running_statistics_agree(name, monkeypatch):
    states = []
    for fast in (True, False):
        monkeypatch.setattr(Conv2D, 'fast', fast)
        paddle.seed(0)
        model = create_model(name, class_num=5, **NETWORKS[name])
        paddle.seed(1)
        model(paddle.randn([8, 3, 32, 32]))
        states.append({k: v.numpy() for k, v in model.state_dict().items() if k.endswith(('_mean', '_variance'))})
    for key, value in states[1].items():
        # of activations with a spread of about 1
        np.testing.assert_allclose(states[0][key], value, rtol=1e-3, atol=1e-4)


def test_where_the_usual_order_stays():
    model, x = create_model('MobileNetV3_small_x0_35', class_num=5), paddle.rand([4, 3, 32, 32])
    assert computes_in_cnhw(model, x)
    assert not computes_in_cnhw(model, x[:1])
    assert not computes_in_cnhw(model, x.astype('float64'))
    hook = model.blocks[0].register_forward_post_hook(lambda layer, inputs, y: None)
    assert not computes_in_cnhw(model, x)
    hook.remove()
    model.blocks[1].linear_conv.conv = nn.Conv2D(24, 16, 1)
    assert not computes_in_cnhw(model, x)


def test_a_layer_of_the_users_own_gets_the_usual_order():
    paddle.seed(0)
    model, seen = create_model('MobileNetV2_x0_25', class_num=5), []

    class Own(nn.Conv2D):
        def forward(self, x):
            seen.append(x.shape)
            return super().forward(x)

    conv = model.conv1._conv
    own = Own(3, conv.weight.shape[0], 3, 2, 1, bias_attr=False)
    own.weight.set_value(conv.weight)
    model.eval()
    x = paddle.rand([4, 3, 32, 32])
    before = model(x).numpy()
    model.conv1._conv = own
    np.testing.assert_allclose(model(x).numpy(), before, rtol=1e-3, atol=1e-5)
    assert seen == [[4, 3, 32, 32]]


def test_order_ends_with_an_error():
    with pytest.raises(PPClsError, match='use larger images'), cnhw_layout():
        Conv2D(2, 2, 5)(paddle.rand([2, 4, 3, 3]))
    assert Conv2D(2, 3, 3)(paddle.rand([4, 2, 5, 5])).shape == [4, 3, 3, 3]


def test_plan_is_complete_and_dated():
    rows = fact_rows('conv_plan')
    assert {(r['kind'], r['kernel'], r['stride'])
            for r in rows} >= {('depthwise', k, s)
                               for k in '35'
                               for s in '12'} | {('dense', '1', '1'), ('dense', '3', '1')}
    assert all(r['processor'] and r['date'] and r['matrix_to'] for r in rows)
    for k, stride, n, size in itertools.product((1, 3, 5, 7, 9), (1, 2, 4), (1, 32), (9, 64)):
        assert choose_algorithm('depthwise', k, stride, k//2, n, size, size)[0] in ('matrix', 'filter', 'paddle')
