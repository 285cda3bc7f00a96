"Timer, memory, scalars and CSV: packages that are missing, interrupted runs, several processes, late columns."
import importlib.util, sys, time, types
from contextlib import redirect_stdout
from io import StringIO
from unittest import mock

import numpy as np, paddle, pytest
from paddle import nn

from ppcls_nb.basics import PPClsError
from ppcls_nb.train.callbacks.monitors import WRITERS, CSVLog, MemoryMonitor, ScalarLogger, Timer
from ppcls_nb.train.callbacks.monitors import epoch_scalars, peak_memory, writer_class
from ppcls_nb.train.callbacks.run_folder import History, log_value, standard_callbacks
from ppcls_nb.train.losses import CELoss
from ppcls_nb.train.optim import Cosine, Momentum
from ppcls_nb.train.trainer import Callback, Data, Trainer


class Points(list):
    "Batches of `n` noisy points around three corners; loading each takes `delay` seconds."
    def __init__(self, n, seed, delay=0., size=32):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 3, n)
        x = (np.array([[0, 2], [-1.7, -1], [1.7, -1]])[y] + rng.normal(size=(n, 2))).astype('float32')
        super().__init__((paddle.to_tensor(x[i:i+size]), paddle.to_tensor(y[i:i+size])) for i in range(0, n, size))
        self.delay = delay

    def __iter__(self):
        for batch in super().__iter__():
            time.sleep(self.delay)
            yield batch


def trainer(callbacks=(), epochs=4, delay=0., **options):
    "A trainer on those points: 5 batches an epoch."
    paddle.seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
    data = Data(Points(160, 0, delay), Points(64, 1), 3, 'points')
    return Trainer(net, data, CELoss(), Momentum(net.parameters(), Cosine(.1, epochs, 5)), callbacks, topk=(1, 2),
                   **options)


def output_of(f):
    "What `f` prints."
    with redirect_stdout(StringIO()) as out: f()
    return out.getvalue()


# -- time and memory


class Nap(Callback):
    "Sleep in every step."
    order = -50
    def before_step(self, t): time.sleep(.01)
    def after_step(self, t): time.sleep(.01)


def test_sleep_of_a_callback_is_compute_time():
    timer = Timer(warn=None)
    t = trainer([History(), Nap(), timer], delay=.001).fit(1)
    assert t.history[0]['compute_s'] >= 5*.02
    assert t.history[0]['start_s'] >= .001
    assert timer.compute >= 5*.02


def test_an_epoch_that_waits_is_reported():
    timer = Timer(warn=0.)
    printed = output_of(lambda: trainer([timer], delay=.005).fit(2))
    assert printed.count('of the training time was spent waiting for data; more workers') == 2
    assert 0 < timer.wait_fraction < 1


def test_no_epochs_are_no_division_by_zero():
    assert trainer([Timer()]).fit(0).history == []


def test_accumulated_batches_are_data_time():
    t = trainer([History(), Timer(warn=None)], delay=.004)
    t.accumulate = 2
    assert t.fit(1).history[0]['data_s'] >= 5*.004
    assert t.optimizer_steps == 3


@pytest.mark.skipif(peak_memory()['ram'] is None, reason='the operating system does not say')
def test_peak_memory_grows():
    t = trainer([History(), MemoryMonitor()]).fit(2)
    before = peak_memory()['ram']
    block = np.ones(64 << 20, np.uint8)
    assert before > 50
    assert peak_memory()['ram'] >= max(before, block.nbytes >> 20)
    assert t.history[0]['peak_ram_mib'] <= t.history[1]['peak_ram_mib'] <= before


def test_unknown_memory():
    found = []
    with mock.patch.dict(sys.modules, resource=None):
        printed = output_of(lambda: found.append(trainer([History(), MemoryMonitor()]).fit(1)))
    assert printed.startswith('peak memory: RAM unknown')
    assert found[0].history[0]['peak_ram_mib'] is None


# -- scalars


@pytest.mark.parametrize('writer, package', [('visualdl', 'visualdl'), ('tensorboard', 'tensorboardX')])
def test_a_missing_package_says_what_to_install(writer, package):
    message = f'need a package that is not installed: pip install {WRITERS[writer][0]}'
    with mock.patch.dict(sys.modules, {package: None}), pytest.raises(PPClsError, match=message): writer_class(writer)


def test_a_broken_package_says_why(tmp_path, monkeypatch):
    (tmp_path/'tensorboardX.py').write_text('import a_module_that_does_not_exist\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'tensorboardX', raising=False)
    with pytest.raises(PPClsError, match='tensorboardX cannot be imported .*a_module_that_does_not_exist'):
        writer_class('tensorboard')


def test_an_unknown_writer():
    with pytest.raises(PPClsError, match="did you mean 'tensorboard'"): writer_class('tensorbord')


def test_scalars_of_an_epoch():
    row = trainer([History(), Timer(warn=None)]).fit(1).history[0]
    assert {'epoch/valid_top1', 'epoch/valid_top2', 'epoch/valid_loss', 'epoch/images_per_s',
            'epoch/data_s'} <= epoch_scalars(row).keys()
    odd = dict(epoch=3, step=40, lr=.1, data='points', train_loss=.5, train_total=200, train_top1_correct=150,
               valid_loss=None, peak_ram_mib=float('nan'))
    assert epoch_scalars(odd) == {'epoch/train_loss': .5, 'epoch/train_top1': .75}


class Writer:
    "A `SummaryWriter` that keeps its points."
    def __init__(self, logdir, purge_step=None, **kwargs):
        self.points, self.closed, self.purge_step = [], False, purge_step
        Writer.last = self
    def add_scalar(self, tag, value, step): self.points.append((tag, step, float(value)))
    def flush(self): self.flushed = len(self.points)
    def close(self): self.closed = True
    def curve(self, tag): return [(step, value) for name, step, value in self.points if name == tag]


@pytest.fixture
def tensorboard():
    "`Writer` in place of tensorboardX."
    Writer.last = None
    with mock.patch.dict(sys.modules, tensorboardX=types.SimpleNamespace(SummaryWriter=Writer)): yield


def test_all_points_are_written(tensorboard, tmp_path):
    t = trainer([History(), ScalarLogger(tmp_path, 'tensorboard')]).fit(4)
    steps, rates = zip(*Writer.last.curve('train/lr'))
    assert steps == tuple(range(1, 21))
    assert rates[0] == .1
    assert Writer.last.closed
    assert Writer.last.flushed == len(Writer.last.points)
    assert Writer.last.purge_step == 1
    accuracies = [(row['step'], row['valid_top1_correct']/row['valid_total']) for row in t.history]
    assert Writer.last.curve('epoch/valid_top1') == accuracies


def test_another_process_writes_nothing(tensorboard, tmp_path):
    logger = ScalarLogger(tmp_path, 'tensorboard')
    t = trainer([logger])
    t.rank = 1
    t.fit(1)
    assert Writer.last is None
    assert logger.out is None


def test_a_resumed_run_voids_later_points(tensorboard, tmp_path):
    t = trainer([ScalarLogger(tmp_path, 'tensorboard')])
    t.epoch, t.step = 2, 10
    t.fit(4)
    assert Writer.last.purge_step == 11
    assert [step for step, _ in Writer.last.curve('train/loss')] == list(range(11, 21))


def test_old_records_are_moved_and_other_files_stay(tensorboard, tmp_path):
    curves = tmp_path/'curves'
    curves.mkdir()
    (curves/'events.out.tfevents.1').write_text('old')
    (curves/'mine.txt').write_text('stays')
    trainer([ScalarLogger(curves, 'tensorboard')]).fit(1)
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*.*') if p.is_file())
    assert files == ['curves.old-1/events.out.tfevents.1', 'curves/mine.txt']


class Kill(Callback):
    "End the run in the middle of epoch 2, as Ctrl-C would."
    order = 100
    def after_step(self, t):
        if t.step == 13:
            raise KeyboardInterrupt


@pytest.mark.skipif(not importlib.util.find_spec('visualdl'), reason='VisualDL is not installed')
def test_visualdl_has_every_step_once_after_an_interruption(tmp_path):
    from visualdl import LogReader

    def run(*more):
        callbacks = [*standard_callbacks(tmp_path/'run', bar=False), ScalarLogger(tmp_path/'v'), *more]
        return trainer(callbacks).fit(4)

    with pytest.raises(KeyboardInterrupt): run(Kill())
    run()
    reader = LogReader(file_path=str(tmp_path/'v'/'vdlrecords.log'))
    steps_of = lambda tag: [point.id for point in reader.get_data('scalar', tag)]
    assert steps_of('train/loss') == steps_of('train/lr') == list(range(1, 21))
    assert steps_of('epoch/valid_top1') == [5, 10, 15, 20]


# -- CSV


class Header(Callback):
    "The first line of the file after each epoch."
    order = 60
    def __init__(self, path): self.path, self.lines = path, []
    def after_epoch(self, t): self.lines.append(self.path.read_text().splitlines()[0])


class Late(Callback):
    "A value that appears in the last epoch."
    order = 20
    def after_epoch(self, t):
        if t.epoch == 4: log_value(t, train_skipped=1)


def test_columns_do_not_move_and_late_ones_are_last(tmp_path):
    path, every = tmp_path/'deeper'/'history.csv', tmp_path/'every.csv'
    header, validated = Header(path), Header(every)
    trainer([History(), Late(), CSVLog(path), header], valid_interval=2).fit(4)
    trainer([History(), CSVLog(every), validated]).fit(1)
    assert header.lines[0] == header.lines[1] == header.lines[2] == validated.lines[0]
    assert header.lines[3] == header.lines[0] + ',train_skipped'
    assert ',valid_total,valid_top1_correct,valid_top2_correct,valid_loss,' in header.lines[0]
    assert sorted(p.name for p in path.parent.iterdir()) == ['history.csv']
    assert path.read_text().splitlines()[1].endswith(',')


def test_a_path_below_a_file(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(PPClsError, match='x.csv: cannot be written'):
        trainer([History(), CSVLog(tmp_path/'file'/'x.csv')]).fit(1)


def test_monitors_do_not_change_the_training(tensorboard, tmp_path):
    scalars = [ScalarLogger(tmp_path/'t', 'tensorboard')]
    if importlib.util.find_spec('visualdl'): scalars.append(ScalarLogger(tmp_path/'v'))
    for logger in scalars:
        monitors = [Timer(), MemoryMonitor(), CSVLog(tmp_path/f'{logger.writer}.csv'), logger]
        monitored = trainer([*standard_callbacks(tmp_path/logger.writer, bar=False), *monitors]).fit(3)
        plain = trainer().fit(3)
        for a, b in zip(monitored.model.parameters(), plain.model.parameters()): assert (a.numpy() == b.numpy()).all()
