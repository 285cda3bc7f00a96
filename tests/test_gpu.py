"""Training and inference on a GPU (`make test-gpu`): precision, equal results, several processes, speed and memory.
What needs a GPU is skipped with the reason without one; the same code runs on the CPU where it can."""
import os, subprocess, sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

import ppcls_nb
from ppcls_nb.course.ledger import document_sentence, document_table, make_ledger
from ppcls_nb.data.imaug.presets import eval_ops
from ppcls_nb.deploy.export import export_model
from ppcls_nb.deploy.predict import Predictor
from ppcls_nb.gpu import gpu_problem, use_deterministic_kernels
from ppcls_nb.models import create_model
from ppcls_nb.train import CELoss, Data, Trainer, standard_callbacks
from ppcls_nb.train.callbacks.precision import AMP
from ppcls_nb.train.optim import Cosine, Momentum

pytestmark = pytest.mark.gpu
PROBLEM = gpu_problem()
on_gpu = pytest.mark.skipif(bool(PROBLEM), reason=f'needs a GPU: {PROBLEM}')
CLASSES, ROOT = 4, Path(__file__).resolve().parent.parent
TUTORIAL = ROOT/'output'/'tutorial-gpu'


def batches(n=3, size=8, pixels=32, seed=0):
    "`n` batches of random images and labels."
    rng = np.random.default_rng(seed)
    return [(paddle.to_tensor(rng.standard_normal((size, 3, pixels, pixels), 'float32')),
             paddle.to_tensor(rng.integers(0, CLASSES, size))) for _ in range(n)]


def trainer(run=None, callbacks=(), epochs=2, **settings):
    "A small network with convolutions and BatchNorm, and the standard callbacks."
    paddle.seed(1)
    net = nn.Sequential(nn.Conv2D(3, 8, 3, 2), nn.BatchNorm2D(8), nn.ReLU(), nn.Conv2D(8, 16, 3, 2), nn.ReLU(),
                        nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(16, CLASSES))
    optimizer = Momentum(net.parameters(), Cosine(0.05, epochs, 3), weight_decay=1e-4)
    data = Data(batches(), batches(1, seed=1), CLASSES, 'random')
    t = Trainer(net, data, CELoss(), optimizer, [*standard_callbacks(run, bar=False), *callbacks], topk=(1, 2))
    vars(t).update(settings)
    return t


def weights(t):
    "The weights and statistics of a trainer's network as arrays."
    return {k: v.numpy() for k, v in t.model.state_dict().items()}


def assert_equal_weights(one, other):
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert [k for k in a if (a[k] != b[k]).any()] == []


def counts(t):
    "The rows of the history without times."
    return [{k: v for k, v in row.items() if k not in ('seconds', 'images_per_s')} for row in t.history]


# -- the same on a CPU and on a GPU


def test_runs_are_equal_bit_by_bit():
    assert use_deterministic_kernels()
    one, other = trainer().fit(2), trainer().fit(2)
    assert_equal_weights(one, other)
    assert counts(one) == counts(other)


def test_counting_on_the_device_changes_no_number():
    "Losses and hits that are read once an interval are those read in each step."
    read, kept = trainer(read_interval=1).fit(2), trainer(read_interval=2).fit(2)
    assert_equal_weights(read, kept)
    assert counts(read) == counts(kept)


def test_a_resumed_run_is_equal(tmp_path):
    use_deterministic_kernels()
    whole = trainer(tmp_path/'whole').fit(2)
    trainer(tmp_path/'half').fit(1)
    resumed = trainer(tmp_path/'half').fit(2)
    assert_equal_weights(whole, resumed)
    assert counts(whole) == counts(resumed)


def test_steps_do_not_read_numbers_from_the_device(monkeypatch):
    copies = []
    originals = {name: getattr(paddle.Tensor, name) for name in ('numpy', 'item', 'tolist')}
    t = trainer(read_interval=20)
    t.data.valid = None

    def watched(name):
        def method(self, *args):
            copies.append(t.step)
            return originals[name](self, *args)
        return method

    for name in originals:
        monkeypatch.setattr(paddle.Tensor, name, watched(name))
    t.callbacks = [cb for cb in t.callbacks if type(cb).__name__ != 'RunFolder']
    t.fit(1)
    # the learning rate is a number of the CPU; the sums are read after the last step
    assert set(copies) <= {3}


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "An exported network."
    return export_model(create_model('MobileNetV3_small_x0_35', class_num=CLASSES),
                        tmp_path_factory.mktemp('export')/'net', eval_ops(32))


@pytest.mark.parametrize('level', ['O1', 'O2'])
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_mixed_precision_and_its_resume(level, dtype, tmp_path, monkeypatch):
    "On a CPU Paddle computes in float32, but the loss is scaled, weights are decorated and the scaler is saved."
    if PROBLEM:
        monkeypatch.setattr(AMP, 'before_fit', lambda amp, t: amp.on or amp.switch_on(t))
    elif dtype == 'bfloat16' and paddle.device.cuda.get_device_capability()[0] < 8:
        pytest.skip('this GPU has no bfloat16')
    amp = AMP(level, dtype, init_loss_scaling=1024.)
    whole = trainer(tmp_path/'whole', [amp]).fit(2)
    assert amp.on
    assert (amp.scaler is not None) == (dtype == 'float16')
    assert np.isfinite([row['train_loss'] for row in whole.history]).all()
    trainer(tmp_path/'half', [AMP(level, dtype, init_loss_scaling=1024.)]).fit(1)
    resumed = trainer(tmp_path/'half', [AMP(level, dtype, init_loss_scaling=1024.)]).fit(2)
    assert_equal_weights(whole, resumed)


PEAK = '''import resource, sys
import ppcls_nb, paddle
sys.path.insert(0, 'benchmarks')
from trainer import Momentum, bare_step, create_model, fit_silently, make_trainer
from ppcls_nb.train.optim import Cosine
model = create_model(sys.argv[2], class_num=102)
optimizer = Momentum(model.parameters(), Cosine(1e-3, 1, 10))
batch = paddle.randn([8, 3, 64, 64]), paddle.randint(0, 102, [8])
if sys.argv[1] == 'trainer':
    fit_silently(make_trainer(model, optimizer, [batch]*4))
for _ in range(4) if sys.argv[1] == 'bare' else ():
    bare_step(model, optimizer, *batch)
if paddle.get_device() == 'cpu':
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
else:
    print(paddle.device.cuda.max_memory_allocated())
'''


def peak(how, network):
    "The peak memory of four steps of `how`: 'bare' or 'trainer'; on the GPU, else of the process."
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', PEAK, how, network], cwd=ROOT, env=env, text=True, capture_output=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def test_the_trainer_needs_no_more_memory_than_a_bare_loop():
    network, tolerance = ('MobileNetV1', 1.1) if PROBLEM else ('ResNet50_vd', 1.02)
    assert peak('trainer', network) <= tolerance*peak('bare', network)


# -- with a GPU only


@on_gpu
def test_one_rank_of_nccl_with_synchronous_batchnorm(tmp_path):
    script = tmp_path/'rank.py'
    script.write_text('''import sys
import ppcls_nb, paddle
from paddle.distributed import fleet
from ppcls_nb.train.distributed import to_sync_bn
fleet.init(is_collective=True)
group = paddle.distributed.new_group([0])
x = paddle.ones([4]); paddle.distributed.all_reduce(x, group=group)
net = to_sync_bn(paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4)))
net(paddle.randn([2, 3, 8, 8])).sum().backward()
open(sys.argv[1], 'w').write(f'{x.tolist()} {type(net[1]).__name__}')
''')
    command = [sys.executable, '-m', 'paddle.distributed.launch', '--devices', '0', '--log_dir', tmp_path/'log', script,
               tmp_path/'out.txt']
    env = {**os.environ, 'PYTHONPATH': str(Path(ppcls_nb.__file__).parent.parent)}
    subprocess.run(list(map(str, command)), env=env, cwd=tmp_path, check=True, timeout=300)
    assert (tmp_path/'out.txt').read_text() == '[1.0, 1.0, 1.0, 1.0] SyncBatchNorm'


@on_gpu
@pytest.mark.parametrize('options', [dict(use_gpu=True), dict(use_gpu=True, use_tensorrt=True)])
def test_inference_on_the_gpu_agrees_with_the_cpu(exported, options):
    if options.get('use_tensorrt') and not any(paddle.inference.get_trt_compile_version()):
        pytest.skip('this Paddle was built without TensorRT')
    images = np.random.default_rng(0).standard_normal((3, *Predictor(exported).record.image_shape)).astype('float32')
    expected, found = Predictor(exported, 'paddle').logits(images), Predictor(exported, **options).logits(images)
    assert abs(found - expected).max() < 1e-2*abs(expected).max()


@on_gpu
def test_the_trainer_is_as_fast_as_a_bare_loop():
    "Measured by benchmarks/trainer.py at the documents' size; its exit status says whether the ratio is within 1.05."
    done = subprocess.run([sys.executable, 'benchmarks/trainer.py', 'step', 'ResNet50_vd:224'], cwd=ROOT, text=True,
                          capture_output=True, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@on_gpu
@pytest.mark.skipif(not (TUTORIAL/'results.json').is_file(), reason='first: make tutorial PROFILE=gpu')
def test_the_tutorials_reach_the_accuracies_of_the_documents():
    "The six accuracies of documents 1.2.3, each within a percentage point."
    ledger = make_ledger([TUTORIAL], 'gpu')
    print(document_sentence(ledger))
    assert document_table(ledger).agrees.all(), document_sentence(ledger)
