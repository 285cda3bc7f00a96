"""Measures the overhead of the trainer over a bare Paddle loop, and the time that training waits for images.

python benchmarks/trainer.py [step] [loading] [NETWORK:PIXELS ...] [--batch 32] [--rounds 12] [--epochs 3] [--workers
2] [--data FOLDER] [--control] [--cpu-time] [--profile]

step: a step of `Trainer` with the standard callbacks and the timer, and a bare loop (forward, loss, backward,
optimizer, schedule), on the same network, optimizer and batch, in one process in turns: a round is one step of the
trainer, two of the bare loop, one of the trainer (A B B A), the next round B A A B, so that other load on the machine
affects both.
Printed are the median over the rounds of trainer time / bare time and its quartiles. `--control` compares the bare loop
with itself, which shows the variation by chance; `--cpu-time` measures processor time instead of wall time, for a
machine with other load (best with OMP_NUM_THREADS=1: waiting threads count too); `--profile` lists the functions of the
trainer that take time outside the network. loading: the fraction of the training time that ResNet50_vd at 64 px waits
for its images, by `Timer`, per epoch, without the wait for an epoch's first batch, which is printed separately. Images:
training images of flowers102 in --data or $PPCLS_DATA, else drawn ones, as JPEG; decoded, cropped at random, flipped
and normalized in `--workers` threads. Exit status 1 where a median is above its limit: 1.05 times the bare loop, 5 % of
waiting."""
import argparse, contextlib, cProfile, gc, io, os, pstats, statistics, sys, tempfile, time
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import paddle
from ppcls_nb.basics import write_text
from ppcls_nb.data.datasets import ListDataset
from ppcls_nb.data.flowers102 import find_flowers102, make_lists
from ppcls_nb.data.imaug.presets import train_ops
from ppcls_nb.data.lists import list_lines
from ppcls_nb.data.loader import make_loader
from ppcls_nb.data.petals import make_petals
from ppcls_nb.models import create_model
from ppcls_nb.train.callbacks.run_folder import standard_callbacks
from ppcls_nb.train.losses import CELoss
from ppcls_nb.train.optim import Cosine, Momentum
from ppcls_nb.train.trainer import Data, Trainer
from ppcls_nb.train.callbacks.monitors import Timer

CASES, CLASSES, SLOWER, WAITING = ('ResNet18_vd:64', 'MobileNetV3_small_x1_0:64'), 102, 1.05, 0.05
STEPS = 12                      # of an epoch of the loading part


def synchronize():
    "Wait until the device has finished; on a CPU it always has."
    if not paddle.device.get_device().startswith('cpu'):
        paddle.device.synchronize()


def bare_step(model, optimizer, x, y):
    "The loop without a trainer."
    paddle.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.clear_grad()
    optimizer._learning_rate.step()


class Turns(list):
    """A training set that repeats one batch: between two requests for it the trainer or the bare loop makes a step.

    `rounds` has the seconds (trainer, bare loop) of each round."""
    def __init__(self, batch, bare, rounds, clock):
        super().__init__([batch])
        self.bare, self.n, self.clock, self.rounds = bare, rounds, clock, []

    def __len__(self): return 2 + 2*self.n                     # two steps of the trainer to warm up, two a round

    def timed(self, step):
        "Time `step` or, when it is None, yield the batch and time the trainer's step."
        synchronize()
        since = self.clock()
        if step is None:
            yield self[0]
        else:
            step()
        synchronize()
        self.took = self.clock() - since

    def __iter__(self):
        for step in (None, self.bare, self.bare, None):
            yield from self.timed(step)
        gc.collect()
        gc.disable()
        for i in range(self.n):
            sums = {True: 0., False: 0.}
            for ours in (True, False, False, True) if i % 2 else (False, True, True, False):
                yield from self.timed(None if ours else self.bare)
                sums[ours] += self.took
            self.rounds.append((sums[True]/2, sums[False]/2))
        gc.enable()


def make_trainer(model, optimizer, train):
    "A trainer with the standard callbacks and the timer."
    return Trainer(model, Data(train, None, CLASSES, 'bench'), CELoss(), optimizer,
                   [*standard_callbacks(), Timer(warn=None)])


def fit_silently(t, epochs=1):
    "`t.fit(epochs)` without output."
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return t.fit(epochs)


def time_interleaved(name, size, args, clock):
    "The rounds of a network, [(trainer seconds, bare seconds)], and the trainer."
    model = create_model(name, class_num=CLASSES)
    optimizer = Momentum(model.parameters(), Cosine(1e-3, 1, 1000), weight_decay=paddle.regularizer.L2Decay(1e-4))
    batch = paddle.randn([args.batch, 3, size, size]), paddle.randint(0, CLASSES, [args.batch])

    def bare(): bare_step(model, optimizer, *batch)

    turns = Turns(batch, bare, args.rounds, clock)
    t = make_trainer(model, optimizer, turns)
    if not args.control:
        fit_silently(t)
    else:
        model.train()
        for _ in turns:
            bare()
    return turns.rounds, t


def show_profile(t, steps=20):
    "Print the cumulative time per step of the functions of the trainer, outside the networks."
    batch = t.data.train[0]
    t.data.train, t.epoch, profile = [batch]*steps, 0, cProfile.Profile()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        profile.runcall(t.fit, 1)
    rows = [(took, f'{Path(file).stem}.{function}:{line}')
            for (file, line, function), (_, calls, _, took, _) in pstats.Stats(profile).stats.items()
            if Path(file).parent.name == 'train' and calls >= steps]
    print('    cumulative ms a step: ' +
          ', '.join(f'{label} {1000*took/steps:.3f}' for took, label in sorted(rows, reverse=True)))


def step_part(args, clock):
    "Print a line for each network; returns whether all are within the limit."
    print(f'step: {"bare loop / bare loop (control)" if args.control else "trainer / bare loop"}, batch {args.batch}, '
          f'median of {args.rounds} rounds (quartiles)')
    fine = True
    for name, size in (case.rsplit(':', 1) for case in args.networks or CASES):
        paddle.seed(0)
        rounds, t = time_interleaved(name, int(size), args, clock)
        low, middle, high = statistics.quantiles([a/b for a, b in rounds], n=4)
        fine &= middle <= SLOWER
        ours, bare = (1000*statistics.median(column) for column in zip(*rounds))
        print(f'{name:26s} {size:>4s} px   {ours:7.1f} against {bare:7.1f} ms   ratio {middle:.3f} ({low:.3f} … '
              f'{high:.3f})', flush=True)
        if args.profile and not args.control:
            show_profile(t)
    return fine


def images(args, folder):
    "(root, list file, description) of `STEPS` batches of training images."
    root = find_flowers102(args.data, default=Path(folder)/'none') if args.data else None
    kind = 'photographs of flowers102' if root else 'drawn flowers'
    if root is None:
        per_class = -(-STEPS*args.batch//8), 1, 0
        root = make_petals(Path(folder)/'petals', classes=8, per_class=per_class, size=72, progress=False)
    train = make_lists(root, Path(folder)/'lists')['train']
    lines = [line for _, line in list_lines(train)]
    few, count = Path(folder)/'few.txt', STEPS*args.batch
    write_text(few, '\n'.join((lines*(count//len(lines) + 1))[:count]) + '\n')
    return root, few, kind


def loading_part(args):
    "Print the waiting time of each epoch; returns whether the median is within the limit."
    with tempfile.TemporaryDirectory() as folder:
        root, few, kind = images(args, folder)
        train = make_loader(ListDataset(root, few, train_ops(64), class_num=CLASSES), args.batch, shuffle=True,
                            num_workers=args.workers)
        model = create_model('ResNet50_vd', class_num=CLASSES)
        t = fit_silently(make_trainer(model, Momentum(model.parameters(), 1e-3), train), args.epochs)
    rows = t.history
    waits = [row['data_s'] - row['start_s'] for row in rows]
    fractions = [wait/(wait + row['compute_s']) for wait, row in zip(waits, rows)]
    print(f'loading: ResNet50_vd, 64 px, batch {args.batch}, {args.workers} workers, {kind}, {len(train)} steps an '
          'epoch')
    for row, fraction in zip(rows, fractions):
        print(f'epoch {row["epoch"]}   computing {row["compute_s"]:7.2f} s   waiting {fraction:6.2%}   '
              f'first batch {1000*row["start_s"]:6.1f} ms   {row["images_per_s"]:.1f} images/s')
    whole = statistics.median(row['data_s']/(row['data_s'] + row['compute_s']) for row in rows)
    print(f'waiting: median {statistics.median(fractions):.2%}, with the first batches {whole:.2%}')
    return statistics.median(fractions) < WAITING


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', nargs='*', metavar='step|loading|NETWORK:PIXELS',
                        help=f'parts (default: both) and networks for `step` (default: {", ".join(CASES)})')
    for name, default in dict(batch=32, rounds=12, epochs=3, workers=2).items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--data', type=Path, default=os.environ.get('PPCLS_DATA'),
                        help='folder of flowers102 (default: $PPCLS_DATA)')
    for name in ('control', 'cpu-time', 'profile'):
        parser.add_argument(f'--{name}', action='store_true')
    args = parser.parse_args()
    args.networks = [w for w in args.what if ':' in w]
    for word in args.what:
        if ':' not in word and word not in ('step', 'loading'):
            parser.error(f'{word}: expected step, loading or NETWORK:PIXELS')
    parts = {w for w in args.what if ':' not in w} or ({'step'} if args.networks else {'step', 'loading'})
    clock = time.process_time if args.cpu_time else time.perf_counter
    print(f'paddle {paddle.__version__}, {paddle.device.get_device()}, {ppcls_nb.set_threads()} threads, '
          f'{"processor time" if args.cpu_time else "wall time"} of steps')
    done = [step_part(args, clock)] if 'step' in parts else []
    if 'loading' in parts:
        done.append(loading_part(args))
    sys.exit(not all(done))


if __name__ == '__main__': main()
