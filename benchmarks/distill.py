"""Measures the cost of a teacher in distillation, with the teacher in eager execution and in `paddle.inference`.

python benchmarks/distill.py [TEACHER:STUDENT:PIXELS ...] [--batch 32] [--rounds 8] [--cpu-time] [--control]

Three kinds of steps of one `Trainer` on one student and one batch are timed in turns: alone (the teacher's logits are
given), eager, and engine. A round has two steps of each kind, A B C C B A, and the next round begins with another kind,
so that other load on the machine affects all alike. Printed are the median time of a step of each kind; the medians
over the rounds, with quartiles, of the ratios eager/alone, engine/alone and engine/eager; the difference of the
engine's logits from the eager ones; and the time of compiling in eager predictions, which shows after how many batches
it pays off. `--control` uses eager execution for the engine's steps, which shows the variation of engine/eager by
chance. `--cpu-time` measures processor time instead of wall time, for a machine with other load (best with
OMP_NUM_THREADS=1: waiting threads count too). A teacher that cannot be compiled is an error; exit status 1 where the
engine is not faster."""
import argparse, contextlib, gc, io, statistics, sys, time

import ppcls_nb  # before paddle: sets the threads
import paddle
from ppcls_nb.distill.ssld import Teacher
from ppcls_nb.models import create_model
from ppcls_nb.train.losses import JSDivLoss
from ppcls_nb.train.optim import Momentum
from ppcls_nb.train.trainer import Data, Trainer

CASES = 'ResNet50_vd:MobileNetV3_large_x1_0:64', 'ResNet18_vd:MobileNetV3_small_x1_0:64'
CLASSES, KINDS = 102, ('alone', 'eager', 'engine')


class Switched(Teacher):
    "A teacher whose logits are computed as `kind` says: 'alone' (once, in advance), 'eager' or 'engine'."
    kind = 'eager'

    def get_ready(self, t):
        super().get_ready(t)
        self.compiled, self.kept = self.frozen[0].engine, self.frozen[0].eager(t.images)

    def before_step(self, t):
        if not self.ready:
            self.get_ready(t)
        self.frozen[0].engine = self.compiled if self.kind == 'engine' else None
        t.target = self.kept if self.kind == 'alone' else self(t.images)
        t.metric_target = t.target.argmax(-1)


class Turns:
    "A training set of one batch for each kind in turns; `rounds` has the seconds (alone, eager, engine) of a step."
    def __init__(self, batch, teacher, rounds, clock, kinds):
        self.batch, self.teacher, self.n, self.clock, self.kinds, self.rounds = batch, teacher, rounds, clock, kinds, []

    def __len__(self): return 6*(self.n + 1)

    def round(self, first):
        "Two steps of each kind."
        order, sums = [*KINDS[first:], *KINDS[:first]], dict.fromkeys(KINDS, 0.)
        for kind in (*order, *order[::-1]):
            self.teacher.kind = self.kinds[kind]
            since = self.clock()
            yield self.batch
            sums[kind] += self.clock() - since
        return [sums[kind]/2 for kind in KINDS]

    def __iter__(self):
        yield from self.round(0)                                        # to warm up
        gc.collect()
        gc.disable()
        for i in range(self.n):
            self.rounds.append((yield from self.round(i % 3)))
        gc.enable()


def quartiles(values): return '{1:.3f} ({0:.3f} … {2:.3f})'.format(*statistics.quantiles(values, n=4))


def time_interleaved(case, args, clock) -> bool:
    "Print the results of a case; returns whether the engine was faster."
    names, pixels = case.split(':')[:2], int(case.split(':')[2])
    paddle.seed(0)
    big, small = (create_model(n, class_num=CLASSES) for n in names)
    batch = paddle.randn([args.batch, 3, pixels, pixels]), paddle.full([args.batch], -1, 'int64')
    teacher = Switched(big, engine='inference')
    (frozen,) = teacher.frozen
    frozen.eager(batch[0])
    times = {}
    for what, act in (('answer', lambda: frozen.eager(batch[0])),
                      ('compiling', lambda: frozen.prepare(batch[0], engine='inference'))):
        since = clock()
        act()
        times[what] = clock() - since
    kinds = {kind: kind for kind in KINDS}
    if args.control:
        kinds['engine'] = 'eager'
    turns = Turns(batch, teacher, args.rounds, clock, kinds)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        Trainer(small, Data(turns, None, CLASSES, 'bench'), JSDivLoss(), Momentum(small.parameters(), 1e-3), [teacher],
                topk=(1,)).fit(1)
    print(f'{names[0]} teaches {names[1]}, {pixels} px, batch {args.batch}, {args.rounds} rounds\n  teacher: '
          f'{frozen.how}')
    print('  ms a step:    ' +
          ', '.join(f'{k} {1000*statistics.median(column):.1f}' for k, column in zip(KINDS, zip(*turns.rounds))))
    for a, b in (1, 0), (2, 0), (2, 1):
        print(f'  {KINDS[a]}/{KINDS[b]}:'.ljust(16) + quartiles([r[a]/r[b] for r in turns.rounds]))
    print(f'  compiling took as long as {times["compiling"]/times["answer"]:.0f} eager predictions', flush=True)
    return args.control or statistics.median(r[2]/r[1] for r in turns.rounds) < 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('cases', nargs='*', default=CASES, metavar='TEACHER:STUDENT:PIXELS',
                        help=f'default: {" ".join(CASES)}')
    for name, default in dict(batch=32, rounds=8).items():
        parser.add_argument(f'--{name}', type=int, default=default)
    for name in ('control', 'cpu-time'):
        parser.add_argument(f'--{name}', action='store_true')
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    print(f'paddle {paddle.__version__}, {paddle.device.get_device()}, {ppcls_nb.set_threads()} threads, '
          f'{"processor time" if args.cpu_time else "wall time"}; median of rounds (quartiles)')
    sys.exit(not all([time_interleaved(case, args, clock) for case in args.cases]))


if __name__ == '__main__': main()
