"""Every optimizer with every option goes on exactly where it was: across a state file, in a network whose parameters
carry other names."""
import numpy as np, paddle, pytest
from paddle import nn

from ppcls_nb.train.checkpoint import load_optimizer_state, load_state, optimizer_state, save_state
from ppcls_nb.train.losses import CELoss
from ppcls_nb.train.optim import DECOUPLED, OPTIMIZERS, build_optimizer, build_schedule

IMAGES = np.random.default_rng(0).normal(size=(6, 4, 3, 8, 8)).astype('float32')
LABELS = np.random.default_rng(1).integers(0, 3, (6, 4))


def make(name, kind):
    """A network with a BN, a frozen layer and a slow one; its optimizer with decay, spared parameters, clipping and
    warm-up."""
    net = nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4),
                        nn.Linear(4, 3))
    for p in net[4].parameters(): p.stop_gradient = True
    net[0].weight.optimize_attr['learning_rate'] = 0.1
    schedule = build_schedule('CosineWarmup', 2, 3, lr=0.1, warmup_epoch=1)
    return net, build_optimizer(name, net.parameters(), schedule, dict(function=kind, factor=0.01),
                                no_weight_decay=True, grad_clip=nn.ClipGradByGlobalNorm(1.))


def train(net, optimizer, steps):
    for i in steps:
        CELoss(0.1)(net(paddle.to_tensor(IMAGES[i])), paddle.to_tensor(LABELS[i])).backward()
        optimizer.step()
        optimizer.clear_grad()
        optimizer._learning_rate.step()


@pytest.mark.parametrize('name, kind',
                         [(n, k) for n in OPTIMIZERS for k in ('L1', 'L2') if k == 'L2' or n not in DECOUPLED])
def test_exact_resume(name, kind, tmp_path):
    paddle.seed(0)
    whole, optimizer = make(name, kind)
    start = {k: v.numpy() for k, v in whole.state_dict().items()}
    train(whole, optimizer, range(6))
    first, optimizer = make(name, kind)
    first.set_state_dict(start)
    train(first, optimizer, range(3))
    save_state(tmp_path/'state', dict(model=first.state_dict(), optimizer=optimizer_state(first, optimizer)))
    state = load_state(tmp_path/'state')
    second, optimizer = make(name, kind)
    second.set_state_dict(state['model'])
    load_optimizer_state(second, optimizer, state['optimizer'])
    train(second, optimizer, range(3, 6))
    moved = [k for k, v in whole.state_dict().items() if (v.numpy() != start[k]).any()]
    assert {'0.weight', '0.bias', '1.weight', '5.weight', '1._mean'} <= set(moved)
    assert not {'4.weight', '4.bias'} & set(moved)
    for key, value in whole.state_dict().items():
        np.testing.assert_array_equal(second.state_dict()[key].numpy(), value.numpy(), err_msg=key)
