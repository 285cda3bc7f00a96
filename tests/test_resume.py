"""A training process that is interrupted or killed at any moment can be resumed, and ends with exactly the weights of
an uninterrupted one."""
import json, os, random, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest

from ppcls_nb.data.datasets import ListDataset
from ppcls_nb.data.imaug import build_mix, build_ops
from ppcls_nb.data.loader import make_loader
from ppcls_nb.data.prepare import prepare_data
from ppcls_nb.train import Data, Mix, Trainer, load_run, load_state, standard_callbacks
from ppcls_nb.train.callbacks.optimization import EMA, GradientAccumulation, GradientClip, EarlyStopping
from ppcls_nb.train.optim import Cosine, Momentum

SCRIPT = '''
import sys
from ppcls_nb.recipe.build import Trainer, load_config
from ppcls_nb.recipe.data import use_data
from ppcls_nb.data.prepare import prepare_data
info = prepare_data(sys.argv[1], sys.argv[1])
train_ops = [{'DecodeImage': {}}, {'RandCropImage': {'size': 32}}, {'RandFlipImage': {}},
             {'NormalizeImage': {'order': ''}}, {'RandomErasing': {}}, {'ToCHWImage': None}]
valid_ops = [{'DecodeImage': {}}, {'ResizeImage': {'size': [32, 32]}}, {'NormalizeImage': {'order': ''}},
             {'ToCHWImage': None}]
small = {'ARCHITECTURE.name': 'EfficientNetB0_small', 'epochs': 4, 'TRAIN.batch_size': 8, 'TRAIN.num_workers': 0,
         'VALID.num_workers': 0, 'LEARNING_RATE.params.lr': 0.01, 'ls_epsilon': 0.1, 'TRAIN.transforms': train_ops,
         'VALID.transforms': valid_ops}
conf = use_data(load_config('quick_start/ResNet50_vd', small), info)
Trainer.from_config(conf, run=sys.argv[2], bar=False).fit(conf.epochs)
'''


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Drawn flowers: 4 classes, 48 training images."
    return prepare_data('petals', tmp_path_factory.mktemp('data'),
                        dict(classes=4, per_class=[12, 6, 1], size=40, progress=False)).root


def start(data, run):
    "The training process; its output goes to a pipe."
    command = [sys.executable, '-W', 'ignore', '-c', SCRIPT, str(data), str(run)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, 'OMP_NUM_THREADS': '1'})


def finish(process):
    "Wait; returns the output."
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out
    return out


@pytest.fixture(scope='module')
def straight(data, tmp_path_factory):
    "The uninterrupted run."
    run = tmp_path_factory.mktemp('runs')/'straight'
    finish(start(data, run))
    return run


def same_weights(a, b):
    one, two = (load_state(run/'last.pdparams') for run in (a, b))
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_of_a_fit_then_the_same_command(how, data, straight, tmp_path):
    run, process = tmp_path/'run', start(data, tmp_path/'run')
    for line in process.stdout:
        if 'epoch:1 ' in line: break
    time.sleep(random.uniform(0, 0.3))
    process.send_signal(how)
    process.wait(timeout=60)
    assert process.returncode != 0
    assert not (run/'predictions.npz').exists()
    assert (run/'last.pdstate').exists()
    out = finish(start(data, run))
    assert 'resumed' in out
    assert 'epoch:0 ' not in out
    assert same_weights(straight, run)
    correct = lambda run: [row['valid_top1_correct'] for row in load_run(run).rows]
    assert correct(run) == correct(straight)


def test_killed_before_the_first_epoch_starts_over(data, straight, tmp_path):
    process = start(data, tmp_path/'run')
    while not (tmp_path/'run'/'config.yaml').exists(): time.sleep(0.02)
    process.kill()
    process.wait(timeout=60)
    finish(start(data, tmp_path/'run'))
    assert same_weights(straight, tmp_path/'run')


EPOCHS, BATCH, PARTS = 12, 8, 2
TRAIN = [{'DecodeImage': {}}, {'RandCropImage': {'size': 16}}, {'RandFlipImage': {}}, {'ImageNetPolicy': {}},
         {'NormalizeImage': {'order': ''}}, {'GridMask': {'d1': 4, 'd2': 12, 'rotate': 90, 'max_epoch': 6}},
         {'ToCHWImage': None}]
VALID = [{'DecodeImage': {}}, {'ResizeImage': {'size': [16, 16]}}, {'NormalizeImage': {'order': ''}},
         {'ToCHWImage': None}]


def everything(data, run, epochs=EPOCHS):
    """A trainer with everything that has a state or is random: augmentation, mixing, Dropout, BatchNorm, warm-up,
    accumulation, clipping, EMA, early stopping."""
    import paddle
    from paddle import nn
    paddle.seed(0)
    net = nn.Sequential(nn.Conv2D(3, 8, 3, stride=2), nn.BatchNorm2D(8), nn.ReLU(), nn.AdaptiveAvgPool2D(2),
                        nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 4))
    dataset = lambda part, ops: ListDataset(data, Path(data)/f'{part}_list.txt', build_ops(ops), class_num=4)
    loader = lambda part, ops, shuffle: make_loader(dataset(part, ops), BATCH, shuffle=shuffle)
    pair = Data(loader('train', TRAIN, True), loader('val', VALID, False), 4, 'petals')
    mix = Mix(build_mix([{'MixupOperator': {'alpha': 0.2}}, {'CutmixOperator': {'alpha': 0.2}}]), 4, 0.1)
    schedule = Cosine(0.1, epochs, -(-len(pair.train)//PARTS), warmup_epoch=2)
    standard = standard_callbacks(run, dict(lr=0.1), bar=False, save_interval=5)
    optimization = [GradientAccumulation(PARTS), GradientClip(norm=1.), EMA(0.98), EarlyStopping(1000)]
    callbacks = [*standard, mix, *optimization]
    return Trainer(net, pair, mix.loss, Momentum(net.parameters(), schedule, weight_decay=1e-4), callbacks, topk=(1, 2))


def kept(run):
    "All that a run leaves behind, without its times: weights, state, rows, predictions."
    state = load_state(run/'last.pdstate')
    rows = lambda text: [{k: v for k, v in row.items() if k not in ('seconds', 'images_per_s')} for row in text]
    found = dict(state=state, rows=rows(load_run(run).rows), history=rows(json.loads(state.pop('history'))),
                 predictions=dict(np.load(run/'predictions.npz')))
    return {**found, **{str(p.relative_to(run)): load_state(p) for p in sorted(run.rglob('*.pdparams'))}}


def assert_same(a, b, where=''):
    "Equal to the last bit, however nested."
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for k in a: assert_same(a[k], b[k], f'{where}.{k}')
    elif isinstance(a, list): assert a == b, where
    else: assert np.array_equal(a, b), where


def test_two_epochs_and_two_more_are_four(data, tmp_path):
    everything(data, tmp_path/'straight', 4).fit(4)
    first = everything(data, tmp_path/'run', 4).fit(2)
    second = everything(data, tmp_path/'run', 4).fit(4)
    straight, resumed = kept(tmp_path/'straight'), kept(tmp_path/'run')
    assert_same(straight, resumed)
    assert (first.step, second.step, second.optimizer_steps) == (12, 24, 12)
    assert {'EMA', 'EarlyStopping'} <= straight['state']['callbacks'].keys()
    # the average is not the network
    assert any((straight['last.pdparams'][k] != v).any() for k, v in straight['state']['model'].items())


def serve(data):
    "For each folder read from stdin, train in it in a child process; print the child's number and its exit code."
    os.environ['OMP_NUM_THREADS'] = '1'
    import paddle.nn  # noqa: F401, once, for all children
    while line := sys.stdin.readline():
        sys.stdout.flush()
        if (child := os.fork()) == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            try:
                everything(data, line.strip()).fit(EPOCHS)
            except BaseException as e:
                print(f'{type(e).__name__}: {e}', file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        # the number is not used again before waitpid
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks, to import Paddle only once for all killed processes')
def test_killed_twenty_times(data, tmp_path):
    server = subprocess.Popen([sys.executable, '-W', 'ignore', __file__, str(data)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    say = lambda text: (server.stdin.write(f'{text}\n'), server.stdin.flush())
    hear = lambda: int(server.stdout.readline())
    try:
        began = time.perf_counter()
        say(tmp_path/'straight')
        hear()
        say('wait')
        assert hear() == 0
        whole, kills, runs, epochs = time.perf_counter() - began, 0, 0, []
        done = False
        while kills < 20 or not done:
            run = tmp_path/f'run-{runs}'
            say(run)
            child = hear()
            if kills < 20:
                time.sleep(random.uniform(0, whole/8))
                os.kill(child, signal.SIGKILL)
            say('wait')
            ended = hear()
            assert ended in (0, -signal.SIGKILL)
            kills, done = kills + (ended != 0), ended == 0
            if ended: epochs.append(load_state(run/'last.pdstate')['epoch'] if (run/'last.pdstate').exists() else 0)
            else: runs += 1
        print(f'{kills} kills in {runs} runs, after epochs {epochs}')
        straight = kept(tmp_path/'straight')
        assert len(straight['rows']) == EPOCHS
        assert len(set(epochs)) > 3
        for n in range(runs):
            assert_same(straight, kept(tmp_path/f'run-{n}'), f'run-{n}')
            assert not list((tmp_path/f'run-{n}').rglob('.*'))
    finally:
        server.stdin.close()
        server.wait(timeout=60)
        server.stdout.close()


if __name__ == '__main__': serve(sys.argv[1])
