"""Two processes on a CPU train as one would: the same losses, the same counts, one log, an exact resume, and an end
when one of them fails."""
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path

if __name__ == '__main__':
    os.environ['CUDA_VISIBLE_DEVICES'] = ''      # a rank: it computes on the CPU and talks through gloo

import numpy as np
import paddle
import pytest
from paddle import nn

import ppcls_nb
from ppcls_nb.basics import PPClsError
from ppcls_nb.data.datasets import BadImage, ListDataset
from ppcls_nb.data.imaug import build_ops
from ppcls_nb.data.loader import make_loader
from ppcls_nb.data.prepare import prepare_data
from ppcls_nb.models.layers import BatchNorm2D
from ppcls_nb.train import Callback, CELoss, Data, Trainer, load_run, load_state, standard_callbacks
from ppcls_nb.train.callbacks.optimization import EMA, GradientAccumulation
from ppcls_nb.train.distributed import (Distributed, average_in_place, gather, init_distributed, is_connection_error,
                                        running_stats, to_sync_bn)
from ppcls_nb.train.optim import Cosine, Momentum

pytestmark = pytest.mark.skipif(not paddle.distributed.is_available(), reason='this Paddle trains in one process only')

OPS = [{'DecodeImage': {}}, {'RandCropImage': {'size': 24}}, {'RandFlipImage': {}}, {'NormalizeImage': {'order': ''}},
       {'ToCHWImage': None}]
VALID = [{'DecodeImage': {}}, {'ResizeImage': {'size': [24, 24]}}, {'NormalizeImage': {'order': ''}},
         {'ToCHWImage': None}]


def trainer(root, run=None, callbacks=(), train='train43.txt', bn=False, dataset=None, net=None):
    "What every process runs: a small network on drawn flowers, 8 images a step over all processes."
    rank, ranks = init_distributed()
    # the weights of rank 0 are those of the single process, the others must get them
    paddle.seed(rank)
    normalize = nn.BatchNorm2D(8) if bn else nn.Identity()
    net = net or nn.Sequential(nn.Conv2D(3, 8, 5, 2), normalize, nn.ReLU(), nn.AdaptiveAvgPool2D(3), nn.Flatten(),
                               nn.Linear(72, 4))
    images = lambda name, ops: ListDataset(root, Path(root)/name, build_ops(ops), class_num=4)
    train_loader = make_loader(dataset or images(train, OPS), 8//ranks, shuffle=dataset is None, rank=rank, ranks=ranks,
                               skip_bad=True)
    valid_loader = make_loader(images('val23.txt', VALID), 10//ranks, rank=rank, ranks=ranks)
    data = Data(train_loader, valid_loader, 4, 'petals')
    optimizer = Momentum(net.parameters(), Cosine(0.05, 4, len(data.train)), weight_decay=1e-4)
    callbacks = [*standard_callbacks(run, dict(batch=8), bar=False), *callbacks, Distributed(timeout=60)]
    return Trainer(net, data, CELoss(0.1), optimizer, callbacks, topk=(1, 2))


class Poison(Callback):
    "The loss of rank 1 is NaN in step 2."
    def before_step(self, t):
        if t.step == 2 and t.rank == 1: t.loss = lambda output, target: output.sum()*float('nan')


class Damaged:
    "24 images; the first is damaged, and so are all of rank 1 in the last batch."
    paths = [f'{i}.jpg' for i in range(24)]
    def __len__(self): return 24
    def __getitem__(self, at):
        if at[1] >= 20 or not at[1]:
            raise BadImage(self.paths[at[1]], 'torn')
        return np.ones((3, 24, 24), 'float32'), 0


def error_of(f):
    "The message of the `PPClsError` that `f` raises."
    try:
        f()
    except PPClsError as e:
        return str(e)


def together(root, out):
    "Everything that is tested with two processes, in one start."
    root, out, found = Path(root), Path(out), {}
    rank, _ = init_distributed()
    trainer(root, out/'straight').fit(4)
    trainer(root, out/'half').fit(2)
    if rank == 0:
        for name in ('half1', 'half_elsewhere'): shutil.copytree(out/'half', out/name)
    paddle.distributed.barrier()
    trainer(root, out/'half').fit(4)
    trainer(root, out/('half_elsewhere' if rank == 0 else 'on_no_disk')).fit(4)      # only rank 0 finds the state
    trainer(root, out/'accumulated', [GradientAccumulation(2)]).fit(2)

    ema = EMA(.9)
    t = trainer(root, None, [ema], bn=True)
    # statistics, too, are rank 0's from the start
    if rank:
        t.model[1]._mean.set_value(t.model[1]._mean + 1)
    t.fit(1)
    again = trainer(root, net=t.model).fit(1)                                        # the same network in another fit
    state = {**t.model.state_dict(), **{f'ema {k}': v for k, v in ema.shadow.items()}}
    found['bn'] = len(set(gather(json.dumps({k: v.numpy().tolist() for k, v in state.items()}))))
    found['counts'] = [again.valid.metric.total, again.metric.total, again.history[0]['train_total']]
    found['nan'] = error_of(lambda: trainer(root, None, [Poison()]).fit(1))
    found['lengths'] = error_of(lambda: trainer(root, train='train41.txt').fit(1))
    found['damaged'] = error_of(lambda: trainer(root, dataset=Damaged()).fit(1))
    found['sync_bn'] = error_of(lambda: Distributed(sync_bn=True).before_fit(trainer(root)))
    (out/f'{rank}.json').write_text(json.dumps(found))


class Fail(Callback):
    "Rank 1 fails in step 3."
    def __init__(self, how): self.how = how
    def before_step(self, t):
        if t.step < 3 or t.rank == 0:
            return
        if self.how == 'raise':
            raise RuntimeError('boom in rank 1')
        if self.how == 'kill': os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)


def harm(root, how):
    "A run in which rank 1 fails."
    t = trainer(root, None, [Fail(how)])
    t.callbacks[-1].timeout = 4
    t.fit(1)


def launch(*args, folder, script=__file__, ranks=2):
    "Start `script` in two processes by the launcher; returns (exit code, what it printed, the log of rank 1)."
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(ppcls_nb.__file__).parent.parent)}
    options = ['--nproc_per_node', str(ranks), '--log_dir', str(folder/'log')]
    command = [sys.executable, '-m', 'paddle.distributed.launch', *options, str(script), *map(str, args)]
    job = subprocess.run(command, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         timeout=120)
    return job.returncode, job.stdout, (folder/'log'/'workerlog.1').read_text()


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Drawn flowers: 4 classes; lists of 43 and 41 images to train on and 23 to validate on."
    options = dict(classes=4, per_class=[12, 6, 1], size=32, progress=False)
    root = Path(prepare_data('petals', tmp_path_factory.mktemp('data'), options).root)
    for new, old, n in (('train43', 'train_list', 43), ('train41', 'train_list', 41), ('val23', 'val_list', 23)):
        (root/f'{new}.txt').write_text(''.join((root/f'{old}.txt').read_text().splitlines(keepends=True)[:n]))
    return root


@pytest.fixture(scope='module')
def two(data, tmp_path_factory):
    "What two processes did: (folder of the runs, output, log of rank 1, findings of both)."
    out = tmp_path_factory.mktemp('two')
    code, printed, log1 = launch('together', data, out, folder=out)
    assert code == 0, printed + log1
    return out, printed, log1, [json.loads((out/f'{rank}.json').read_text()) for rank in (0, 1)]


def same_run(a, b, exact=()):
    "Two run folders have the same losses, counts and weights, as far as float32 goes."
    a, b = load_run(a), load_run(b)
    assert len(a.rows) == len(b.rows)
    for one, other in zip(a.rows, b.rows):
        for k in ('epoch', 'train_total', 'valid_total', 'lr', *exact): assert one[k] == other[k]
        for k in ('train_loss', 'valid_loss'): np.testing.assert_allclose(one[k], other[k], rtol=2e-5)
    np.testing.assert_array_equal(a.predictions['labels'], b.predictions['labels'])
    one, other = (load_state(run.path/'last.pdparams') for run in (a, b))
    for k in one: np.testing.assert_allclose(one[k], other[k], rtol=1e-3, atol=2e-5, err_msg=k)


COUNTS = ('train_top1_correct', 'train_top2_correct', 'valid_top1_correct', 'valid_top2_correct')


def test_two_processes_have_the_losses_and_counts_of_one_with_the_double_batch(data, two, tmp_path):
    trainer(data, tmp_path/'one').fit(4)
    same_run(tmp_path/'one', two[0]/'straight', COUNTS)
    rows = load_run(two[0]/'straight').rows
    assert (rows[0]['train_total'], rows[0]['valid_total'], rows[-1]['step']) == (43, 23, 24)


def test_accumulated_batches_of_two_processes(data, two, tmp_path):
    trainer(data, tmp_path/'one', [GradientAccumulation(2)]).fit(2)
    same_run(tmp_path/'one', two[0]/'accumulated', COUNTS)


def test_resumed_in_two_processes(two):
    out, printed, _, _ = two
    for name in ('half', 'half_elsewhere'):
        assert f'{name}: resumed, 2 of 4 epochs are done' in printed
        same_run(out/'straight', out/name, COUNTS)
        one, other = (load_state(out/run/'last.pdparams') for run in ('straight', name))
        assert all(np.array_equal(one[k], other[k]) for k in one)


def test_from_two_processes_to_one(data, two, tmp_path, capsys):
    shutil.copytree(two[0]/'half1', tmp_path/'half')
    assert trainer(data, tmp_path/'half').fit(4).step == 24
    assert 'resumed, 2 of 4' in capsys.readouterr().out
    same_run(two[0]/'straight', tmp_path/'half', COUNTS)


def test_only_rank_0_speaks_and_writes(two):
    out, printed, log1, _ = two
    assert 'epoch:' in printed
    assert 'epoch:' not in log1
    assert 'resumed' not in log1
    assert printed.count('[petals] epoch:3 ') == 3
    assert not (out/'on_no_disk').exists()
    assert len((out/'straight'/'metrics.jsonl').read_text().splitlines()) == 4


def test_networks_statistics_and_averages_are_the_same_everywhere(two):
    for found in two[3]:
        assert found['bn'] == 1
        assert found['counts'] == [23, 43, 43]


def test_all_processes_stop_with_the_same_error(two):
    zero, one = two[3]
    assert zero == one
    assert zero['nan'].startswith('loss is nan in epoch 0, step 2')
    assert zero['lengths'].startswith('the processes have 6, 5 batches an epoch')
    assert 'do not have the same number of batches in this epoch' in zero['damaged']
    assert zero['sync_bn'].startswith('use_sync_bn: Paddle synchronizes BatchNorm on GPUs only')


@pytest.mark.parametrize('how', ['raise', 'kill', 'hang'])
def test_a_process_that_fails_ends_the_job_and_its_error_is_seen(how, data, tmp_path):
    code, printed, log1 = launch('harm', data, how, folder=tmp_path)
    assert code != 0, printed
    assert 'epoch:0' not in printed
    if how == 'raise':
        assert 'boom in rank 1' in log1
        assert 'rank 1 status failed' in printed
        assert 'boom in rank 1' in printed
    if how == 'kill': assert 'rank 1 status failed' in printed
    if how == 'hang': assert 'Timeout' in printed or 'Timeout' in log1


def test_the_command_line_in_two_processes(data, tmp_path):
    (tmp_path/'ppcls.py').write_text('import sys\nfrom ppcls_nb.cli import main\n'
                                     'if __name__ == "__main__": sys.exit(main())\n')
    code, printed, log1 = launch(
        'train', '-c', 'quick_start/ResNet50_vd', '--data', data, '--output', tmp_path/'run', '-o',
        'ARCHITECTURE.name=EfficientNetB0_small', 'epochs=1', 'TRAIN.batch_size=8', 'TRAIN.num_workers=0',
        'VALID.num_workers=0', 'LEARNING_RATE.params.lr=0.01',
        *(f'{k}.transforms={json.dumps(ops)}' for k, ops in (('TRAIN', OPS), ('VALID', VALID))), folder=tmp_path,
        script=tmp_path/'ppcls.py')
    assert code == 0, printed + log1
    row, = load_run(tmp_path/'run').rows
    assert (row['train_total'], row['valid_total'], row['step']) == (48, 24, 6)
    assert printed.count('epoch:0') == 1
    assert 'epoch:0' not in log1
    assert printed.count('done: ppcls eval') == 1


# -- in one process


@pytest.fixture
def convnet():
    "A network with our BatchNorm and Paddle's."
    return nn.Sequential(nn.Conv2D(3, 4, 3), BatchNorm2D(4, momentum=.8), nn.Sequential(nn.BatchNorm2D(4)))


def test_averages_of_one_process_are_its_own(convnet):
    before = convnet[1]._mean.numpy()
    average_in_place(running_stats(convnet).values())
    assert (convnet[1]._mean.numpy() == before).all()
    assert gather('alone') == ['alone']


@pytest.mark.skipif(paddle.get_device().startswith('gpu'), reason='a GPU can synchronize BatchNorm')
def test_synchronous_batchnorm_needs_a_gpu(convnet):
    with pytest.raises(PPClsError, match='use_sync_bn: Paddle synchronizes BatchNorm on GPUs only, and this is cpu'):
        to_sync_bn(convnet)


def test_synchronous_batchnorm_keeps_parameters_and_momentum(convnet):
    parameters = [id(p) for p in convnet.parameters()]
    sync = nn.SyncBatchNorm.convert_sync_batchnorm(convnet)
    assert isinstance(sync[1], nn.SyncBatchNorm)
    assert sync[1]._momentum == .8
    assert [id(p) for p in sync.parameters()] == parameters


@pytest.mark.parametrize('error, expected', [
    (OSError('(External) NCCL error(6), unhandled system error'), True), (RuntimeError('boom'), False), (None, False),
    (PPClsError('no such file: gloo.jpg'), False)])
def test_errors_of_a_broken_connection(error, expected): assert is_connection_error(error) == expected


if __name__ == '__main__': dict(together=together, harm=harm)[sys.argv[1]](*sys.argv[2:])
