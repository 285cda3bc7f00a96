"The estimate of the memory that a training takes, compared with what Paddle allocates."
import numpy as np, paddle, pytest
from paddle import nn

from ppcls_nb.basics import PPClsError
from ppcls_nb.models import create_model
from ppcls_nb.train import CELoss, Data, Trainer, build_optimizer
from ppcls_nb.train.callbacks.optimization import EMA
from ppcls_nb.train.memory import KEPT_BY, allocated, describe_memory, map_bytes, training_memory
from ppcls_nb.train.optim import OPTIMIZERS


def test_every_optimizer_keeps_what_the_table_says():
    assert set(KEPT_BY) == set(OPTIMIZERS)


@pytest.mark.parametrize('name', KEPT_BY)
def test_the_state_of_an_optimizer_has_the_size_of_the_table(name):
    layer = nn.Linear(30, 20, bias_attr=False)
    optimizer = build_optimizer(name, layer.parameters(), 0.01)
    layer(paddle.rand([2, 30])).sum().backward()
    optimizer.step()
    state = [v for v in optimizer.state_dict().values() if isinstance(v, paddle.Tensor) and v.size == 600]
    assert len(state) == KEPT_BY[name]


def trainer(network, *callbacks, function='Momentum'):
    "A trainer without data."
    optimizer = build_optimizer(function, network.parameters(), 0.01)
    return Trainer(network, Data([], None, 10, 'none'), CELoss(), optimizer, callbacks)


def test_parts():
    network = create_model('MobileNetV1_x0_25', class_num=10)
    weights = 4*sum(int(np.prod(v.shape)) for v in network.state_dict().values())
    trained = 4*sum(p.size for p in network.parameters() if not p.stop_gradient)
    images = paddle.rand([4, 3, 64, 64])
    parts = training_memory(trainer(network, EMA(), function='Adam'), images, 8, [network, network])
    assert parts == dict(weights=weights, gradients=trained, optimizer=2*trained, maps=parts['maps'], average=weights,
                         teachers=2*weights)
    assert describe_memory(parts).startswith(f'{sum(parts.values())/1e6:,.0f} MB: weights ')
    double = training_memory(trainer(network), images, 16)
    assert double['maps'] == pytest.approx(2*parts['maps'], rel=1e-6)
    assert 'average' not in double


# for small maps the kernel, and what it keeps, depends on the batch
@pytest.mark.parametrize('name, tolerance', [('ResNet18', 0.05), ('GoogLeNet', 0.1), ('MobileNetV3_small_x0_35', 0.4)])
def test_maps_are_those_of_a_larger_batch(name, tolerance):
    network = create_model(name, class_num=10)
    per_image = map_bytes(network, paddle.rand([4, 3, 64, 64]))
    network.train()
    images = paddle.rand([16, 3, 64, 64])
    before = allocated()
    output = network(images)
    assert (allocated() - before)/16 == pytest.approx(per_image, rel=tolerance)
    del output


@pytest.mark.parametrize('training', [True, False])
def test_the_network_is_left_as_it_was(training):
    network = create_model('ResNet18', class_num=3)
    network.train() if training else network.eval()
    before = {key: v.numpy().copy() for key, v in network.state_dict().items()}
    map_bytes(network, paddle.rand([2, 3, 32, 32]))
    assert network.training == training
    assert all((before[key] == v.numpy()).all() for key, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_one_image_is_too_few():
    with pytest.raises(PPClsError, match='memory: 1 images, expected 2 or more'):
        map_bytes(create_model('ResNet18'), paddle.rand([1, 3, 32, 32]))


def test_each_layer_keeps_its_mode():
    "A batch norm that a finetuning keeps in evaluation mode is still in it after the measurement."
    net = create_model('MobileNetV1_x0_25', class_num=3)
    net.train()
    norm = next(layer for layer in net.sublayers() if isinstance(layer, nn.BatchNorm2D))
    norm.eval()
    modes = [layer.training for layer in net.sublayers(include_self=True)]
    map_bytes(net, paddle.rand([2, 3, 32, 32]))
    assert [layer.training for layer in net.sublayers(include_self=True)] == modes
    assert not norm.training
