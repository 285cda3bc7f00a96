"The learning rate search leaves no trace, with every optimizer; who takes part in it; what it refuses."
import random

import numpy as np, paddle, pytest
from paddle import nn

from ppcls_nb.basics import PPClsError
from ppcls_nb.train.callbacks.optimization import EMA, EarlyStopping, GradientAccumulation, GradientClip
from ppcls_nb.train.callbacks.run_folder import History, NaNMonitor, Progress
from ppcls_nb.train.checkpoint import optimizer_state
from ppcls_nb.train.losses import CELoss
from ppcls_nb.train.lr_finder import LRFinderResult, clone_optimizer, lr_find, preserve_state, smoothed
from ppcls_nb.train.optim import OPTIMIZERS, Cosine, build_optimizer
from ppcls_nb.train.trainer import Callback, Data, Trainer


def spiral(n, seed, size=32):
    "Batches of `n` points in three arms."
    rng = np.random.default_rng(seed)
    y, r = rng.integers(0, 3, n), rng.uniform(.2, 2, n)
    angle = 2*np.pi*y/3 + 1.5*r + rng.normal(0, .1, n)
    x = (r*np.stack([np.cos(angle), np.sin(angle)])).T.astype('float32')
    return [(paddle.to_tensor(x[i:i+size]), paddle.to_tensor(y[i:i+size])) for i in range(0, n, size)]


def trainer(callbacks=(), function='Momentum'):
    "A trainer on the spiral with BatchNorm and Dropout: 15 batches an epoch."
    paddle.seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1D(32), nn.ReLU(), nn.Dropout(.1), nn.Linear(32, 32), nn.ReLU(),
                        nn.Linear(32, 3))
    data = Data(spiral(480, 0), spiral(300, 1), 3, 'spiral')
    optimizer = build_optimizer(function, net.parameters(), Cosine(.1, 4, len(data.train)))
    return Trainer(net, data, CELoss(), optimizer, callbacks, topk=(1, 2))


def same_weights(a, b): return all((v.numpy() == b.state_dict()[k].numpy()).all() for k, v in a.state_dict().items())


def snapshot(t):
    "All that a search might change, as arrays."
    slots = optimizer_state(t.model, t.optimizer)['slots']
    drawn = np.random.get_state()[1], np.array(random.getstate()[1]), paddle.rand([4]).numpy()
    counters = [t.schedule.last_epoch, t.schedule(), t.step, t.epoch, t.optimizer_steps, t.metric.total]
    modes = [layer.training for layer in t.model.sublayers(include_self=True)]
    return [*(v.numpy() for v in t.model.state_dict().values()),
            *(by_slot[k] for by_slot in slots.values() for k in sorted(by_slot)), *drawn, np.array(counters),
            np.array(modes)]


def same(a, b): return all((x == y).all() for x, y in zip(a, b, strict=True))


def seed_all():
    np.random.seed(0)
    random.seed(0)
    paddle.seed(7)


@pytest.mark.parametrize('function', OPTIMIZERS)
@pytest.mark.parametrize('epochs', [0, 1])
def test_a_search_leaves_no_trace(function, epochs):
    plain, searched = trainer(function=function).fit(epochs), trainer(function=function).fit(epochs)
    searched.model[1].eval()
    plain.model[1].eval()
    seed_all()
    lr_find(searched, steps=10)
    seed_all()
    expected = snapshot(plain)
    seed_all()
    lr_find(searched, steps=10)
    assert same(expected, snapshot(searched))
    assert same(snapshot(plain.fit(epochs + 1)), snapshot(searched.fit(epochs + 1)))


def test_an_error_is_not_hidden_and_the_state_is_restored():
    t = trainer()
    with pytest.raises(ZeroDivisionError):
        with preserve_state(t):
            t.fit(1)
            1/0
    assert t.step == 0
    assert same_weights(t.model, trainer().model)


def test_a_cloned_optimizer_has_slots_of_its_own():
    t = trainer().fit(1)
    twin, velocities = clone_optimizer(t.optimizer), t.optimizer._accumulators['velocity']
    before = {name: v.numpy().copy() for name, v in velocities.items()}
    weight = t.model[0].weight.numpy().copy()
    t.loss(t.model(t.images), t.labels).backward()
    twin.step()
    assert all((velocities[name].numpy() == v).all() for name, v in before.items())
    assert (t.model[0].weight.numpy() != weight).any()
    assert any((twin._accumulators['velocity'][name].numpy() != v).any() for name, v in before.items())
    assert twin._accumulators['velocity'].keys() == before.keys()


class Rotate(Callback):
    "Train on other labels, as a mix would; `steps` counts over all trainers."
    steps = calls = 0
    def before_fit(self, t): self.ready = True
    def before_step(self, t):
        t.target = (t.labels + 1) % 3
        self.calls += self.ready
        Rotate.steps = self.calls


def test_callbacks_that_influence_a_step_take_part_and_are_restored():
    rotate, clip, ema = Rotate(), GradientClip(1.), EMA(.9)
    t = trainer([rotate, clip, ema, EarlyStopping(2), Progress(bar=False), History(), NaNMonitor()])
    lr_find(t, steps=20)
    assert Rotate.steps == 20
    assert not hasattr(rotate, 'ready')
    assert rotate.calls == 0
    assert not hasattr(clip, 'norms')
    assert not ema.shadow
    assert t.history == []


class Sampler:
    "A sampler that knows the epoch."
    def __init__(self): self.epoch, self.asked = 5, []
    def set_epoch(self, epoch):
        self.epoch = epoch
        self.asked.append(epoch)


class Loader(list):
    "A list of batches with a sampler."
    def __init__(self, batches):
        super().__init__(batches)
        self.batch_sampler = Sampler()


def test_accumulation_takes_part_and_the_sampler_is_restored():
    t = trainer([GradientAccumulation(3)])
    t.data.train = Loader(t.data.train)
    assert t.steps_per_epoch == 15
    assert len(lr_find(t, steps=12).rates) == 12
    assert (t.optimizer_steps, t.accumulate) == (0, 1)
    assert t.data.train.batch_sampler.epoch == 5
    assert t.data.train.batch_sampler.asked == []


@pytest.mark.parametrize('arguments', [dict(low=0), dict(low=1, high=.1), dict(steps=5)])
def test_wrong_arguments(arguments):
    with pytest.raises(PPClsError, match='expected 0 < low < high and at least 10 steps'):
        lr_find(trainer(), **arguments)


def test_an_empty_loader_and_several_processes():
    t = trainer()
    with pytest.raises(PPClsError, match='the training loader has no batches'):
        lr_find(Trainer(t.model, Data([], [], 3, 'nothing'), CELoss(), t.optimizer))
    t.ranks = 2
    with pytest.raises(PPClsError, match='one of 2 processes'): lr_find(t)


def test_smoothing():
    assert np.allclose(smoothed(np.full(50, 3.)), 3)
    assert np.isclose(smoothed([1., 2.])[1], (.9*1 + 2)/1.9)


def test_a_loss_that_never_falls():
    rates = np.geomspace(1e-6, 1, 400)
    with pytest.raises(PPClsError, match='the loss never falls between the learning rates 1e-06 and 1'):
        LRFinderResult(rates, np.linspace(1, 2, 400)).suggestion


def test_the_search_ends_when_the_loss_has_diverged():
    found = lr_find(trainer(), low=1e-4, high=30.)
    assert np.allclose(found.rates, np.geomspace(1e-4, 30, 100)[:len(found.rates)])
    assert len(found.losses) == len(found.rates) < 100
    assert .001 < found.suggestion < found.lowest < 30
