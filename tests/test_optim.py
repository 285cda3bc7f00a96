"""Every optimizer with every option resumes exactly: across a state file, in a network whose parameters have other
names. And the files of a checkpoint, and the lock of a run folder."""
import os, subprocess, sys, warnings

import numpy as np, paddle, pytest
from paddle import nn

from ppcls_nb.basics import PPClsError
from ppcls_nb.train.checkpoint import RunLock, load_optimizer_state, load_state, optimizer_state
from ppcls_nb.train.checkpoint import save_state, save_weights
from ppcls_nb.train.losses import CELoss
from ppcls_nb.train.optim import DECOUPLED, OPTIMIZERS, Cosine, Momentum, build_optimizer, build_schedule

IMAGES = np.random.default_rng(0).normal(size=(6, 4, 3, 8, 8)).astype('float32')
LABELS = np.random.default_rng(1).integers(0, 3, (6, 4))


def make(name, kind):
    """A network with a BN, a frozen layer and a slow one; its optimizer with decay, parameters without decay, clipping
    and warm-up."""
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


@pytest.mark.parametrize('arguments, message', [
    (dict(function='momentun'), "OPTIMIZER.function: unknown optimizer 'momentun'; did you mean 'Momentum'"),
    (dict(function='Momentum', regularizer=dict(function='L3', factor=1)),
     "OPTIMIZER.regularizer.function: unknown regularizer 'L3'"),
    (dict(function='Momentum', regularizer=dict(function='L2')),
     'OPTIMIZER.regularizer.factor is None; expected a number'),
    (dict(function='AdamW', regularizer=dict(function='L1', factor=1)),
     'regularizer.function is L1; AdamW has decoupled weight decay, which can only be L2'),
    (dict(function='AdamW', weight_decay=0.05), 'write it as regularizer: {function: L2, factor: 0.05}'),
    (dict(function='Momentum', use_nesterof=True),
     "OPTIMIZER.params of Momentum: unknown parameter 'use_nesterof'; did you mean 'use_nesterov'"),
    (dict(function='RMSProp', rho=None), 'OPTIMIZER.params of RMSProp')])
def test_wrong_optimizers(arguments, message):
    with pytest.raises(PPClsError, match=message):
        build_optimizer(parameters=nn.Linear(1, 1).parameters(), lr=0.1, **arguments)


# -- the state of an optimizer on its own

X = paddle.to_tensor(np.random.default_rng(0).normal(size=(8, 4)).astype('float32'))


def small_network(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def step(net, optimizer):
    (net(X)**2).mean().backward()
    optimizer.step()
    optimizer.clear_grad()


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_the_state_moves_to_another_network(name):
    nets = [small_network() for _ in range(2)]
    optimizers = [build_optimizer(name, net.parameters(), 0.1, dict(function='L2', factor=.01)) for net in nets]
    for _ in range(2): step(nets[0], optimizers[0])
    nets[1].set_state_dict(nets[0].state_dict())
    load_optimizer_state(nets[1], optimizers[1], optimizer_state(nets[0], optimizers[0]))
    for net, optimizer in zip(nets, optimizers): step(net, optimizer)
    for a, b in zip(nets[0].parameters(), nets[1].parameters()):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize('done', range(8))
def test_a_schedule_with_warmup_is_restored_without_a_warning(done):
    schedule, restored = (Cosine(0.1, 4, 2, warmup_epoch=1) for _ in range(2))
    for _ in range(done): schedule.step()
    net = small_network()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_optimizer_state(net, Momentum(net.parameters(), restored), dict(slots={}, schedule=schedule.state_dict()))
    for _ in range(3):
        assert schedule() == restored()
        schedule.step()
        restored.step()


def test_the_state_of_another_network_or_optimizer_is_refused():
    net = small_network()
    optimizer = Momentum(net.parameters(), 0.1)
    step(net, optimizer)
    state, small = optimizer_state(net, optimizer), nn.Linear(4, 2)
    with pytest.raises(PPClsError, match=r"has '0.bias' \(4 such parameters in all\), which is not a trainable"):
        load_optimizer_state(small, Momentum(small.parameters(), 0.1), state)
    with pytest.raises(PPClsError, match="has 'velocity' for '0.weight', but SGD has no state"):
        load_optimizer_state(net, paddle.optimizer.SGD(parameters=net.parameters()), state)


@pytest.fixture
def half():
    "A bfloat16 network and its optimizer, after a step."
    net = nn.Linear(4, 2)
    net.to(dtype='bfloat16')
    optimizer = paddle.optimizer.SGD(1e-4, net.parameters(), multi_precision=True)
    sum(p.astype('float32').sum() for p in net.parameters()).backward()
    optimizer.step()
    optimizer.clear_grad()
    return net, optimizer


def test_master_weights_are_part_of_the_state(half):
    net, optimizer = half
    twin = nn.Linear(4, 2)
    twin.to(dtype='bfloat16')
    twin_optimizer = paddle.optimizer.SGD(1e-4, twin.parameters(), multi_precision=True)
    state = optimizer_state(net, optimizer)
    twin.set_state_dict(net.state_dict())
    load_optimizer_state(twin, twin_optimizer, state)
    assert (twin.weight.numpy() == net.weight.numpy()).all()
    assert state['slots']['weight']['master'].dtype == np.float32
    for key, slots in optimizer_state(twin, twin_optimizer)['slots'].items():
        np.testing.assert_array_equal(slots['master'], state['slots'][key]['master'])


# -- files


def test_weights_files_are_float32_and_alone(half, tmp_path):
    path = save_weights(tmp_path/'half.pdparams', half[0])
    assert load_state(path)['weight'].dtype == np.float32
    assert [f.name for f in tmp_path.iterdir()] == ['half.pdparams']


def test_states_are_read_back_and_damaged_ones_refused(tmp_path):
    net = small_network()
    save_state(tmp_path/'last.pdstate', dict(epoch=3, model=net.state_dict(), note='x'))
    saved = load_state(tmp_path/'last.pdstate')
    assert (saved['epoch'], saved['note']) == (3, 'x')
    np.testing.assert_array_equal(saved['model']['0.weight'], net[0].weight.numpy())
    whole = (tmp_path/'last.pdstate').read_bytes()
    (tmp_path/'torn.pdstate').write_bytes(whole[:len(whole)//2])
    with pytest.raises(PPClsError, match='torn.pdstate: it is truncated or damaged'):
        load_state(tmp_path/'torn.pdstate')
    with pytest.raises(PPClsError, match='none.pdstate: no such checkpoint'): load_state(tmp_path/'none.pdstate')


# -- the lock of a run folder

HOLDER = '''
import sys
from ppcls_nb.train.checkpoint import RunLock
lock = RunLock(sys.argv[1])
print('locked', flush=True)
sys.stdin.read()
'''


def test_one_writer_in_this_process(tmp_path):
    lock = RunLock(tmp_path/'run')
    with pytest.raises(PPClsError, match=rf'run: process {os.getpid()} on \S+ is writing this run'):
        RunLock(tmp_path/'run')
    lock.release()
    lock.release()
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    other = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', HOLDER, str(tmp_path/'run')],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert other.stdout.readline() == 'locked\n'
    message = rf'run: process {other.pid} on \S+ is writing this run.*choose another folder'
    with pytest.raises(PPClsError, match=message): RunLock(tmp_path/'run')
    other.kill()
    other.wait()
    other.stdin.close()
    other.stdout.close()
    assert (tmp_path/'.run.lock').exists()
    RunLock(tmp_path/'run').release()
