"Pruning: which weights are cut, that they stay cut, and that a network without filters is the one with silent ones."
from copy import deepcopy

import ppcls_nb  # before paddle: sets the threads
import numpy as np, paddle, pytest
from paddle import nn

from ppcls_nb.basics import PPClsError
from ppcls_nb.deploy.pruning import (KeepMasks, apply_masks, choose_filters, conv_chain, magnitude_masks, prunable,
                                     remove_filters, sparsity)
from ppcls_nb.models import build_model
from ppcls_nb.models.layers import ConvBN, count_weights
from ppcls_nb.train import CELoss, Data, GradientAccumulation, Trainer


class Chain(nn.Layer):
    def __init__(self, act='relu', bias=None):
        super().__init__()
        self.a, self.b = ConvBN(3, 8, 3, 2, act=act), ConvBN(8, 12, 3, act=act)
        self.fc = nn.Linear(12, 4, bias_attr=bias)

    def forward(self, x): return self.fc(self.b(self.a(x)).mean([2, 3]))


class Crossed(Chain):
    "The same layers with a connection around the second one."
    def __init__(self):
        super().__init__()
        self.b, self.fc = ConvBN(8, 8, 3, act='relu'), nn.Linear(8, 4)

    def forward(self, x):
        x = self.a(x)
        return self.fc((x + self.b(x)).mean([2, 3]))


@pytest.fixture
def chain():
    paddle.seed(0)
    net = Chain()
    net(paddle.randn([16, 3, 16, 16])*2 + 1)        # running averages of their own
    net.eval()
    return net


def test_the_smallest_weights_of_all_layers_are_cut(chain):
    chain.fc.weight.set_value(chain.fc.weight*1e-3)
    masks = magnitude_masks(chain, .1)
    total = sum(mask.size for mask in masks.values())
    assert round(sum((mask == 0).sum() for mask in masks.values())/total, 3) == .1
    assert masks['fc.weight'].sum() == 0
    assert set(masks) == {'a.conv.weight', 'b.conv.weight', 'fc.weight'}
    assert all(mask.all() for mask in magnitude_masks(chain, 0.).values())


@pytest.mark.parametrize('fraction', [-.1, 1., 2])
def test_fractions_that_are_refused(fraction, chain):
    for function in (magnitude_masks, choose_filters):
        with pytest.raises(PPClsError, match='expected at least 0 and less than 1'):
            function(chain, fraction)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_cut_weights_stay_zero_and_the_others_learn(accumulate, chain):
    masks = magnitude_masks(chain, .5)
    apply_masks(chain, masks)
    before = {name: p.numpy().copy() for name, p in prunable(chain).items()}
    x, y = paddle.randn([8, 3, 16, 16]), paddle.arange(8) % 4
    optimizer = paddle.optimizer.Momentum(.1, .9, parameters=chain.parameters(), weight_decay=1e-4)
    callbacks = [KeepMasks(masks)] + [GradientAccumulation(2)]*(accumulate > 1)
    Trainer(chain, Data([(x, y)]*4, None, 4, 'random'), CELoss(), optimizer, callbacks, 0, (1,)).fit(2)
    assert abs(sparsity(chain) - .5) < .01
    for name, p in prunable(chain).items():
        assert (p.numpy()[masks[name] == 0] == 0).all()
        assert (p.numpy()[masks[name] == 1] != before[name][masks[name] == 1]).mean() > .9


def test_filters_with_the_smallest_norms_go(chain):
    factors = paddle.to_tensor([1., .01, 1, 1, .01, 1, 1, 1])
    chain.a.conv.weight.set_value(chain.a.conv.weight*factors.reshape([8, 1, 1, 1]))
    kept = choose_filters(chain, .25)
    assert kept['a'].tolist() == [0, 2, 3, 5, 6, 7]
    assert len(kept['b']) == 9
    assert len(choose_filters(chain, .99)['a']) == 1


@pytest.mark.parametrize('bias', [None, False])
def test_a_smaller_network_gives_what_is_left(bias):
    net = Chain(bias=bias)
    net.eval()
    kept = choose_filters(net, .5)
    small, silent = remove_filters(net, kept), deepcopy(net)
    for layer, rows in ((silent.a, kept['a']), (silent.b, kept['b'])):
        mask = paddle.to_tensor(np.isin(np.arange(layer.bn.weight.shape[0]), rows).astype('float32'))
        layer.bn.weight.set_value(layer.bn.weight*mask)
        layer.bn.bias.set_value(layer.bn.bias*mask)
    x = paddle.randn([2, 3, 20, 24])
    np.testing.assert_allclose(small(x).numpy(), silent(x).numpy(), rtol=1e-3, atol=1e-5)
    assert count_weights(small) < .5*count_weights(net)
    assert len(conv_chain(net)[0]) == 2


@pytest.mark.parametrize('net, why', [
    (Crossed(), 'its convolutions do not follow one another'),
    (Chain(act='sigmoid'), 'an activation of 0 is not 0'),
    (build_model('ResNet18', 10), 'cannot be removed one layer after the other'),
    (nn.Sequential(nn.Linear(3, 4)), 'cannot be removed one layer after the other')], ids=range(4))
def test_networks_that_are_refused(net, why):
    with pytest.raises(PPClsError, match=why):
        remove_filters(net, choose_filters(net, .5))


def test_masks_of_another_network(chain):
    with pytest.raises(PPClsError, match='the network has no weight c.weight; expected names such as a.conv.weight'):
        apply_with = KeepMasks({'c.weight': np.ones(1)})
        Trainer(chain, Data([], None, 4, 'none'), CELoss(), None, [apply_with], 0, (1,)).fit(1)
