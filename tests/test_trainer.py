"Metrics, the trainer, its callbacks and the run folder: corner cases and what is refused."
import json, math, os, re
from contextlib import redirect_stdout
from io import StringIO
from unittest import mock

import numpy as np, paddle, pytest
from omegaconf import OmegaConf
from paddle import nn

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.datasets import BadImage
from ppcls_nb.data.imaug.mixing import CutmixOperator, MixupOperator
from ppcls_nb.data.loader import make_loader
from ppcls_nb.train.callbacks.mix import Mix
from ppcls_nb.train.callbacks.optimization import EMA, EarlyStopping, GradientAccumulation, GradientClip
from ppcls_nb.train.callbacks.precision import AMP
from ppcls_nb.train.callbacks.run_folder import History, NaNMonitor, RunFolder, standard_callbacks
from ppcls_nb.train.checkpoint import load_state
from ppcls_nb.train.losses import CELoss
from ppcls_nb.train.metrics import TopK, _collect, _indices, _row, evaluate
from ppcls_nb.train.optim import Cosine, Momentum
from ppcls_nb.train.trainer import Callback, Data, Trainer

# -- metrics

rng = np.random.default_rng(0)
X = paddle.to_tensor(rng.normal(size=(20, 10)).astype('float32'))
Y = paddle.to_tensor(rng.integers(0, 10, 20))


def batches_of(size): return [(X[i:i+size], Y[i:i+size]) for i in range(0, 20, size)]


@pytest.fixture(scope='module')
def net():
    paddle.seed(0)
    return nn.Sequential(nn.Linear(10, 10), nn.Dropout(0.5))


@pytest.fixture(scope='module')
def result(net): return evaluate(net, batches_of(6), nn.CrossEntropyLoss(), detail=True)


@pytest.mark.parametrize('size', [1, 3, 7, 20])
def test_counts_do_not_depend_on_the_batch_size(size):
    whole, parts = TopK(), TopK()
    whole.update(X, Y)
    for x, y in batches_of(size): parts.update(x, y)
    assert parts.as_dict() == whole.as_dict()
    assert whole.total == 20
    assert all(isinstance(n, int) for n in whole.as_dict().values())


def test_no_images():
    assert str(TopK()).startswith('top1:nan')


@pytest.mark.parametrize('size', [1, 3, 20])
def test_evaluations_do_not_depend_on_the_batch_size(net, result, size):
    other = evaluate(net, batches_of(size), nn.CrossEntropyLoss())
    assert other.metric.as_dict() == result.metric.as_dict()
    assert abs(other.loss - result.loss) < 1e-6
    np.testing.assert_array_equal(other.predictions, result.predictions)
    assert other.probs is other.losses is other.indices is None


def test_details_agree_with_counts_and_loss(net, result):
    assert result.hits[:, 0].sum() == result.metric.correct[1] == (result.labels == result.predictions).sum()
    assert abs(result.losses.mean() - result.loss) < 1e-6
    assert result.probs.shape == (20,)
    assert .1 < result.probs.min() <= result.probs.max() < 1


def test_an_empty_loader(net):
    assert evaluate(net, []).metric.total == 0
    assert evaluate(net, [], nn.CrossEntropyLoss()).loss is None


class Numbers(paddle.io.Dataset):
    "The rows of `X` and `Y` as samples; those in `broken` cannot be read."
    paths = [f'{i}.jpg' for i in range(20)]

    def __init__(self, broken=()): self.broken = broken
    def __len__(self): return 20
    def __getitem__(self, index):
        i = index[1]
        if i in self.broken:
            raise BadImage(self.paths[i], 'broken')
        return X[i].numpy(), Y[i].numpy()


def in_ranks(net, ranks, size, broken=(), skip_bad=False):
    "An `Evaluation` as `ranks` processes with batches of `size` would make it."
    def part(rank):
        loader = make_loader(Numbers(broken), size, rank=rank, ranks=ranks, skip_bad=skip_bad)
        net.eval()
        with paddle.no_grad():
            rows = [_row(net(a), b, nn.CrossEntropyLoss(), (1, 5), True) for a, b in loader]
        return rows, _indices(loader)
    return _collect([part(rank) for rank in range(ranks)], (1, 5), True)


@pytest.mark.parametrize('ranks, size', [(1, 6), (2, 3), (2, 20), (3, 4), (4, 1), (7, 5)])
def test_evaluations_do_not_depend_on_the_number_of_processes(net, result, ranks, size):
    other = in_ranks(net, ranks, size)
    assert other.as_dict() | {'valid_loss': 0} == result.as_dict() | {'valid_loss': 0}
    assert abs(other.loss - result.loss) < 1e-6
    assert other.indices.tolist() == list(range(20))
    for column in ('labels', 'predictions', 'hits'):
        np.testing.assert_array_equal(getattr(other, column), getattr(result, column))


def test_skipped_images_are_not_counted(net):
    broken = 3, 7, 19
    with pytest.warns(UserWarning, match='left out'): rest = in_ranks(net, 2, 3, broken, skip_bad=True)
    assert rest.metric.total == 17
    assert set(range(20)) - set(rest.indices) == set(broken)
    assert (rest.labels == Y.numpy()[rest.indices]).all()
    with pytest.raises(BadImage, match='7.jpg: broken'): in_ranks(net, 2, 3, broken)


# -- mixing


@pytest.fixture(scope='module')
def flowers(): return paddle.rand([4, 3, 16, 16])


@pytest.mark.parametrize('op', [MixupOperator(1.), CutmixOperator(1.)])
@pytest.mark.parametrize('n', [1, 3, 4])
def test_batches_of_any_size_are_mixed(flowers, op, n):
    mix, before = Mix(op, 4), flowers.numpy().copy()
    mixed, target = mix(flowers[:n], paddle.arange(4)[:n], np.random.default_rng(n))
    assert mixed.shape == flowers[:n].shape
    assert target.shape == [n, 4]
    assert np.allclose(target.sum(1).numpy(), 1)
    assert np.isfinite(mix.loss(mixed[:, 0, 0, :4], target).item())
    assert (flowers.numpy() == before).all()


def test_one_of_several_operations_is_drawn():
    both = Mix([MixupOperator(1.), CutmixOperator(1.)], 4)
    flat = paddle.arange(4., dtype='float32').reshape([4, 1, 1, 1]).tile([1, 1, 8, 8])
    mixtures = [both(flat, paddle.arange(4), np.random.default_rng(i))[0].numpy() for i in range(40)]
    # only Mixup makes values that are not in the batch
    mixups = sum(bool((np.abs(x - x.round()) > 1e-3).any()) for x in mixtures)
    assert 8 < mixups < 32


@pytest.mark.parametrize('ops', [[], [3], 'mixup'])
def test_other_operations_are_refused(ops):
    with pytest.raises(PPClsError, match='expected one or more of MixupOperator and CutmixOperator'): Mix(ops)


# -- the trainer


def test_without_validation_data_nothing_is_validated():
    net = nn.Linear(10, 10)
    t = Trainer(net, Data(batches_of(6), None, 10, 'numbers'), CELoss(), Momentum(net.parameters(), .1)).fit(1)
    assert t.valid is None


# -- the run folder


def points(n, seed, size=32):
    "Batches of `n` noisy points around three corners."
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = (np.array([[0, 2], [-1.7, -1], [1.7, -1]])[y] + rng.normal(size=(n, 2))).astype('float32')
    return [(paddle.to_tensor(x[i:i+size]), paddle.to_tensor(y[i:i+size])) for i in range(0, n, size)]


def trainer(callbacks=(), epochs=4, lr=.1, size=32, n=300, accumulate=1, norm=False, **options):
    "A trainer on those points, with Dropout."
    paddle.seed(0)
    normalize = nn.BatchNorm1D(16) if norm else nn.Identity()
    net = nn.Sequential(nn.Linear(2, 16), normalize, nn.ReLU(), nn.Dropout(.3), nn.Linear(16, 3))
    data = Data(points(n, 0, size), points(100, 1), 3, 'points')
    schedule = Cosine(lr, epochs, -(-len(data.train)//accumulate)) if lr else 0.
    return Trainer(net, data, CELoss(), Momentum(net.parameters(), schedule), callbacks, topk=(1, 2), **options)


def standard(run, *more, **options): return [*standard_callbacks(run, bar=False, **options), *more]


def weights(t): return {k: v.numpy() for k, v in t.model.state_dict().items()}


def same(a, b): return a.keys() == b.keys() and all((np.asarray(a[k]) == np.asarray(b[k])).all() for k in a)


def output_of(f):
    "What `f` prints."
    with redirect_stdout(StringIO()) as out: f()
    return out.getvalue()


LINE = re.compile(r'\[points\] epoch:(\d+) +train   step:(\d+)   loss:([\d.]+)   top1:([\d.]+)   top2:([\d.]+)   '
                  r'lr:([\d.]+)   batch_cost:[\d.]+   ips:[\d.]+$')


def test_a_line_every_few_steps():
    t = trainer([History(), *standard_callbacks(bar=False, print_interval=5)[2:]], epochs=2, size=30)
    lines = output_of(lambda: t.fit(2)).splitlines()
    steps = [LINE.match(line) for line in lines if 'batch_cost' in line]
    assert [(int(m[1]), int(m[2])) for m in steps] == [(0, 5), (0, 10), (1, 5), (1, 10)]
    for epoch, row in enumerate(t.history):
        parts = [m for m in steps if int(m[1]) == epoch]
        for place, value in ((3, row['train_loss']), (4, row['train_top1_correct']/300),
                             (5, row['train_top2_correct']/300)):
            assert sum(float(m[place]) for m in parts)/2 == pytest.approx(value, abs=1e-4)
    assert float(steps[-1][6]) == 0
    epochs = [line for line in lines if 'elapse' in line]
    assert len(epochs) == 2
    assert f"top1:{t.metric.accuracy(1):.4f}   top2:{t.metric.accuracy(2):.4f}   lr:" in epochs[-1]


def test_an_interval_of_0_prints_only_epochs():
    assert 'batch_cost' not in output_of(lambda: trainer(standard_callbacks(bar=False)).fit(1))


def test_a_loss_that_is_not_finite_ends_the_run():
    broken = trainer([NaNMonitor()], lr=1e12)
    with pytest.raises(PPClsError, match=r'loss is (nan|inf) in epoch 0, step \d+, learning rate \S+: try a smaller'):
        broken.fit(4)


class StopAfter(Callback):
    "Raise in the middle of epoch `epoch`, as Ctrl-C would."
    def __init__(self, epoch): self.epoch = epoch
    def after_step(self, t):
        if t.epoch == self.epoch and t.step % 10 == 5:
            raise KeyboardInterrupt


def timeless(run):
    "The rows of a run without its times."
    rows = [json.loads(line) for line in open(run/'metrics.jsonl')]
    return [{k: v for k, v in row.items() if k not in ('seconds', 'images_per_s')} for row in rows]


def test_an_interrupted_run_has_the_rows_of_an_uninterrupted_one(tmp_path):
    trainer(standard(tmp_path/'a')).fit(4)
    with pytest.raises(KeyboardInterrupt): trainer(standard(tmp_path/'b', StopAfter(2))).fit(4)
    trainer(standard(tmp_path/'b')).fit(4)
    assert timeless(tmp_path/'a') == timeless(tmp_path/'b')


def test_a_damaged_state_is_refused(tmp_path):
    trainer(standard(tmp_path/'run', config=dict(lr=.1))).fit(1)
    assert OmegaConf.load(tmp_path/'run'/'config.yaml').lr == .1
    (tmp_path/'run'/'last.pdstate').write_bytes(b'torn')
    with pytest.raises(PPClsError, match='last.pdstate: it is not a pickle, or a damaged one'):
        trainer(standard(tmp_path/'run')).fit(1)


@pytest.fixture(scope='module')
def full(tmp_path_factory):
    "A run of four epochs, of which every second was saved: (folder, trainer)."
    run = tmp_path_factory.mktemp('runs')/'full'
    return run, trainer(standard(run, save_interval=2)).fit(4)


@pytest.mark.parametrize('source', ['full/1', 'full/1/ppcls', 'full/1/ppcls.pdstate', 'full'])
def test_a_new_run_starts_from_any_saved_state(full, source, tmp_path):
    run, t = full
    resumed = trainer(standard(tmp_path/'b', checkpoints=run.parent/source)).fit(4)
    assert same(weights(t), weights(resumed))
    assert len(resumed.history) == 4
    # the best of *this* run
    assert (tmp_path/'b'/'best.pdparams').exists() == (source != 'full')


def test_saved_epochs(full):
    run, t = full
    assert sorted(p.name for p in run.iterdir() if p.is_dir()) == ['1', '3']
    assert sorted(p.name for p in (run/'1').iterdir()) == ['ppcls.pdparams', 'ppcls.pdstate']
    assert (load_state(run/'3'/'ppcls.pdparams')['0.weight'] == weights(t)['0.weight']).all()


def test_no_state_and_the_state_of_another_network(full, tmp_path):
    run, _ = full
    with pytest.raises(PPClsError, match='full/2 is no saved state; expected a .pdstate file.*pretrained_model'):
        trainer(standard(tmp_path/'c', checkpoints=run/'2')).fit(4)
    other = trainer(standard(tmp_path/'c', checkpoints=run))
    other.model = nn.Linear(2, 3)
    with pytest.raises(PPClsError, match=r"another network: '0.bias' \(6 entries in all\)"): other.fit(4)


class Count(Callback):
    "Count the steps, over all interruptions."
    def __init__(self): self.steps = 0
    def after_step(self, t): self.steps += 1
    def state(self): return dict(steps=self.steps)
    def load_state(self, state): self.steps = state['steps']


def test_states_of_callbacks(tmp_path):
    run, counted = tmp_path/'run', Count()
    trainer(standard(run, Count())).fit(2)
    (run/'.last.pdstate.x.tmp').write_bytes(b'torn')
    assert 'Count' not in output_of(lambda: trainer(standard(run, counted)).fit(4))
    assert counted.steps == 40
    assert not list(run.glob('.*'))                             # leftovers of a killed process are removed
    assert 'run: Count is not among the callbacks' in output_of(lambda: trainer(standard(run)).fit(5))
    assert 'run: Count has no saved state' in output_of(lambda: trainer(standard(run, Count())).fit(6))
    with pytest.raises(PPClsError, match='Count: two callbacks'): trainer(standard(run, Count(), Count())).fit(4)


def test_only_rank_0_writes(tmp_path):
    run = tmp_path/'run'
    trainer(standard(run)).fit(4)
    other = trainer(standard(run))
    other.rank = 1                                              # another process of the same training
    stamps = {p.name: p.stat().st_mtime_ns for p in run.iterdir()}
    assert other.fit(5).step == 50
    assert stamps == {p.name: p.stat().st_mtime_ns for p in run.iterdir()}


def test_one_writer(tmp_path):
    busy = RunFolder(tmp_path/'run')
    busy.before_fit(trainer())
    with pytest.raises(PPClsError, match=f'run: process {os.getpid()} on .* is writing this run'):
        trainer(standard(tmp_path/'run')).fit(5)
    busy.cleanup(None)


def test_no_row_without_a_history():
    t = trainer([History()]).fit(2)
    assert [r['epoch'] for r in t.history] == [0, 1]
    assert t.history[1]['reference'] == 'labels'
    assert re.search('epoch.*train_loss.*reference.*train_total.*valid_total.*seconds', json.dumps(t.history[1]))


# -- mixed precision


@pytest.mark.skipif(paddle.get_device() != 'cpu', reason='only a CPU trains in float32 instead')
def test_on_a_cpu_mixed_precision_is_off_and_says_so():
    amp = AMP()
    printed = output_of(lambda: trainer([amp]).fit(1))
    assert printed == 'AMP: no GPU, so O1 in float16 is not used and training runs in float32\n'
    assert amp.scaler is None
    assert amp.state() == {}


def test_bfloat16_needs_no_scaler():
    with mock.patch('paddle.get_device', lambda: 'gpu:0'): wired = trainer([AMP(dtype='bfloat16')]).fit(1)
    assert wired.scaler is None
    assert wired.valid.top1 > .7


@pytest.mark.parametrize('arguments, message', [
    (dict(level='O3'), "level 'O3'; did you mean 'O"), (dict(dtype='fp16'), "dtype 'fp16'; did you mean 'float16'"),
    (dict(init_loss_scaling=0), 'init_loss_scaling is 0; expected a number above 0')])
def test_wrong_precisions(arguments, message):
    with pytest.raises(PPClsError, match=f'AMP: .*{message}'): AMP(**arguments)


# -- accumulation, clipping, averaging, early stopping


@pytest.mark.parametrize('make, message', [
    (lambda: GradientAccumulation(0), 'accumulate is 0; expected a whole number'),
    (lambda: GradientAccumulation(2.5), 'accumulate is 2.5; expected a whole number'),
    (lambda: GradientClip(norm=1, value=1), 'expected only one of them'),
    (lambda: GradientClip(norm=0), 'clip.norm is 0'), (lambda: GradientClip(value=-1), 'clip.value is -1'),
    (lambda: EMA(1), r'ema_decay is 1; expected a number in \[0, 1\)'),
    (lambda: EarlyStopping(0), 'patience is 0; expected a whole number')])
def test_wrong_arguments_of_callbacks(make, message):
    with pytest.raises(PPClsError, match=message): make()


class Gradients(Callback):
    "Keep the gradients of every step, after clipping."
    order = 30
    def __init__(self): self.steps = []
    def after_backward(self, t): self.steps.append([p.grad.numpy() for p in t.model.parameters()])


def test_clipped_gradients_are_within_their_bound():
    by_norm, by_value = Gradients(), Gradients()
    trainer([GradientClip(norm=.1), by_norm]).fit(1)
    trainer([GradientClip(value=.01), by_value]).fit(1)
    assert max(math.sqrt(sum((g**2).sum() for g in grads)) for grads in by_norm.steps) < .1001
    assert max(np.abs(g).max() for grads in by_value.steps for g in grads) <= np.float32(.01)


def test_a_gradient_that_is_not_finite_ends_the_run():
    with pytest.raises(PPClsError, match='the gradient has norm (nan|inf) in epoch 0, step [01], loss'):
        trainer([GradientClip(norm=1.)], lr=1e38).fit(1)


class Weigh(Callback):
    "Keep the first layer's weights after each step, in double precision."
    def __init__(self): self.weights = []
    def after_step(self, t): self.weights.append(t.model[0].weight.numpy().astype(np.float64))


def test_the_average_is_its_formula():
    average, ema, weigh = trainer().model[0].weight.numpy().astype(np.float64), EMA(.5), Weigh()
    trainer([ema, weigh]).fit(1)
    for n, w in enumerate(weigh.weights):
        d = min(.5, (1 + n)/(10 + n))
        average = d*average + (1 - d)*w
    np.testing.assert_allclose(ema.shadow['0.weight'].numpy(), average, rtol=1e-5, atol=1e-7)
    assert ema.n == 10


@pytest.fixture(scope='module')
def averaged(tmp_path_factory):
    "Runs with accumulation, clipping and EMA: one of four epochs, one of two and two; and one without EMA."
    folder, options = tmp_path_factory.mktemp('averaged'), dict(norm=True, accumulate=2)
    optimization = lambda: [GradientAccumulation(2), GradientClip(norm=2.), EMA(.98)]
    straight = trainer(standard(folder/'a', *optimization()), **options).fit(4)
    trainer(standard(folder/'b', *optimization()), **options).fit(2)
    resumed = trainer(standard(folder/'b', *optimization()), **options).fit(4)
    plain = trainer([GradientAccumulation(2), GradientClip(norm=2.)], **options).fit(4)
    return folder, straight, resumed, plain


@pytest.mark.parametrize('name', ['best.pdparams', 'last.pdparams'])
def test_a_resumed_average_is_exact(averaged, name):
    folder, straight, resumed, plain = averaged
    assert same(load_state(folder/'a'/name), load_state(folder/'b'/name))
    assert [r['valid_loss'] for r in straight.history] == [r['valid_loss'] for r in resumed.history]
    assert same(weights(resumed), weights(plain))
    assert 'grad_norm_max' in resumed.history[0]


def test_the_average_is_evaluated_and_saved_and_the_weights_are_trained(averaged):
    folder, straight, _, plain = averaged
    ema = {k: v.numpy() for k, v in straight.callbacks[-1].shadow.items()}
    state = load_state(folder/'a'/'last.pdstate')
    assert same(load_state(folder/'a'/'last.pdparams'), ema)
    assert same(state['callbacks']['EMA']['shadow'], ema)
    assert same(state['model'], weights(plain))
    assert same(weights(straight), weights(plain))
    assert not same(ema, weights(plain))
    assert straight.valid.loss != plain.valid.loss
    other = trainer(norm=True)
    other.model.set_state_dict(ema)
    # the number in the log is that of the file
    assert other.evaluate().loss == straight.valid.loss == straight.evaluate().loss


def test_early_stopping_ends_in_the_normal_way_and_does_not_continue(tmp_path, capsys):
    def stopped(patience):
        "A network that does not learn, in a folder."
        t = trainer(standard(tmp_path/'run', EarlyStopping(patience)), lr=0).fit(10)
        return t, capsys.readouterr().out

    t, printed = stopped(2)
    assert t.epoch == 3
    assert 'early stopping: 2 validations without more than 0.' in printed
    assert 'the run ends after 3 of 10 epochs' in printed
    assert (tmp_path/'run'/'predictions.npz').exists()
    again, printed = stopped(2)
    assert (again.epoch, again.step) == (3, t.step)
    assert 'the run ends after 3 of 10' in printed
    patient, _ = stopped(4)                                     # with more patience, it continues
    assert patient.epoch == 5


def test_early_stopping_with_a_minimal_improvement():
    assert trainer([EarlyStopping(1, min_delta=1.)]).fit(10).epoch == 2


def test_early_stopping_needs_a_validation():
    t = trainer([EarlyStopping(1)])
    t.data.valid = None
    with pytest.raises(PPClsError, match='nothing is validated'): t.fit(1)
