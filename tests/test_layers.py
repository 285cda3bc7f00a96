"Layers, the base class and the counter of multiply-accumulates: cases beyond those that the lessons show."
import ppcls_nb  # before paddle: sets the threads
import paddle
import pytest
from paddle import nn

from ppcls_nb.models.flops import count_flops, flops_table, forward_hooks
from ppcls_nb.models.attention import Attention
from ppcls_nb.models.layers import ConvBN, SqueezeExcite, conv2d, drop_path, make_divisible
from ppcls_nb.models.network import classifier_names, evaluating, relative_difference
from ppcls_nb.models.zoo import without_computing


@pytest.fixture
def net():
    return nn.Sequential(
        ConvBN(3, 16, 3, 2, act='relu'),
        ConvBN(16, 16, 3, groups=16, act='relu'),
        SqueezeExcite(16),
        ConvBN(16, 32, 1),
        nn.AdaptiveAvgPool2D(1),
        nn.Flatten(),
        nn.Linear(32, 10))


def hooks_left(model):
    return [layer for layer in model.sublayers() if layer._forward_post_hooks]


def test_width_is_a_multiple_of_eight_and_never_much_smaller():
    for width in range(1, 2000):
        assert make_divisible(width) % 8 == 0
        assert make_divisible(width) >= 0.9*width


def test_hooks_are_removed_and_modes_restored_after_an_error():
    block = nn.Sequential(ConvBN(3, 8, 3, act='relu'), ConvBN(8, 4, 1))
    block[1].bn.eval()
    with pytest.raises(ZeroDivisionError):
        with forward_hooks(block, nn.BatchNorm2D, lambda *args: 1/0):
            block(paddle.rand([1, 3, 6, 6]))
    assert block.training
    assert block[0].bn.training
    assert not block[1].bn.training
    assert not hooks_left(block)


def test_modes_are_restored_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm2D(3))
    model[1].eval()
    with pytest.raises(ZeroDivisionError):
        with evaluating(model):
            1/0
    assert [layer.training for layer in model.sublayers(include_self=True)] == [True, True, False]


def test_macs_grow_with_the_image(net):
    assert count_flops(net, (32, 64)) > 1.9*count_flops(net, 32)      # except in the layers after the mean
    assert net.training


def test_groups_divide_the_macs():
    full, grouped = conv2d(8, 8, 3), conv2d(8, 8, 3, groups=4)
    assert 4*count_flops(grouped, 10, in_channels=8) == count_flops(full, 10, in_channels=8)


def test_a_layer_that_is_used_twice_counts_twice():
    linear = nn.Linear(4, 4)
    assert count_flops(nn.Sequential(nn.Flatten(), linear, linear), 2, in_channels=1) == 2*16


def test_products_of_activations_are_counted_with_and_without_computing():
    def macs():
        layers = nn.Flatten(2), Attention(64, 2)        # 4 tokens of 64 channels
        return flops_table(nn.Sequential(*layers), 8, in_channels=4).groupby('kind').macs.sum().to_dict()
    expected = dict(Linear=4*4*64**2, MatMul=2*4**2*64)
    assert macs() == expected
    with without_computing():
        assert macs() == expected


def test_windows_along_the_first_axis_are_counted():
    class Windows(nn.Layer):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 5)

        def forward(self, x): return self.linear(x.reshape([-1, 4, 3]))
    table = flops_table(Windows(), 4, in_channels=3)
    assert (table.macs[0], table['map'][0]) == (4*4*3*5, '4×4')


def test_stochastic_depth_takes_samples_with_any_number_of_axes():
    paddle.seed(0)
    for shape in ([100, 2], [100, 3, 2], [100, 3, 2, 2]):
        kept = drop_path(paddle.ones(shape), .5, True).reshape([100, -1])
        assert set(kept.flatten().tolist()) == {0, 2}
        assert (kept.min(1) == kept.max(1)).all().item()


def test_a_network_without_convolutions_costs_nothing():
    assert count_flops(nn.ReLU()) == 0
    assert flops_table(nn.ReLU()).empty


def test_a_failed_count_leaves_no_hooks(net):
    with pytest.raises(ValueError):
        count_flops(net, 32, in_channels=1)
    assert not hooks_left(net)
    assert net.training


def test_classifier_names():
    model = nn.Linear(1, 1)
    assert classifier_names(model) == ('fc',)
    model.classifier = ['main', 'auxiliary']
    assert classifier_names(model) == ('main', 'auxiliary')


@pytest.mark.parametrize('outputs, reference, expected', [
    ([1., 2.], [1., 4.], 0.5),
    ([0.], [0.], 0.),
    ([1e-6], [0.], 1.),
    ([float('nan')], [1.], float('inf')),
    ([], [], 0.),
])
def test_relative_difference(outputs, reference, expected):
    assert relative_difference(outputs, reference) == pytest.approx(expected)
