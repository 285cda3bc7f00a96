"""Compares the speed of training steps and predictions on a CPU with PyTorch and timm's networks.

python benchmarks/torch_training.py [--networks NAME ...] [--sizes 64 128] [--modes train eval] [--against CONTESTANT
...] [--old FOLDER] [--threads 1] [--scaling] [--batch 32] [--rounds 12] [--seconds 0.5] [--quick] [--peers FOLDER]

Contestants: ours, ours-plain (all convolutions Paddle's own), torch, torch-channels-last and, with --old, an older
checkout of ppcls_nb. Each runs in a separate process (torch_training_peer.py), one at a time. `train`: forward, cross
entropy, backward and SGD with momentum; `eval`: forward in evaluation mode, without gradients. In a round each
contestant makes the same few steps (ours take about `--seconds`), in random order, so that other load on the machine
affects all alike. A ratio is their time / our time (above 1: ours is faster): the median over the rounds and its
quartiles, of processor time and of wall time. The targets apply to processor time with one thread, to wall time with
several; `old` misses its target where even the upper quartile is below it. Before the timing, logits and gradients are
compared, with the same weights and batch; exit status 1 if they differ. --scaling: ours with `--threads` (at least 2)
against ours with one thread; the ratio of wall times is the speedup. PyTorch (6 GB) is installed once, into an
environment under `--peers`. Environment variables such as MKL_DEBUG_CPU_TYPE are passed on."""
import argparse, contextlib, itertools, os, statistics, sys, tempfile
from pathlib import Path

import numpy as np
from augment import Contestant, installed
from ppcls_nb import usable_cores
from ppcls_nb.course.timing import processor_name
from torch_training_peer import NETWORKS
from tqdm import tqdm

RIVALS = ['ours-plain', 'torch', 'torch-channels-last']
# target ratios
SMALL, RESNET = {'torch': 1.3, 'torch-channels-last': 1.0, 'old': 0.98}, {'torch-channels-last': 0.9, 'old': 0.98}
# allowed |theirs − ours| / |ours|; at the kinks of ReLU, rounding alone changes gradients by up to 0.04 (in float64 by
# 4e-8)
LIMITS = dict(logits=1e-4, gradients=0.1)


def start(args, folder):
    "Name → `Contestant`; ours first."
    names = ['ours', *args.against, *(['old'] if args.old else [])]
    peer = installed('torch', args.peers) if any(name.startswith('torch') for name in names) else None
    for name in names:
        env = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'),
                            '1' if name == 'ours-one-thread' else str(args.threads))
        if name == 'old':
            env['PYTHONPATH'] = str(args.old.resolve())
        python = peer if name.startswith('torch') else sys.executable
        yield name, Contestant(name, python, folder, folder/f'{name}.log', 'torch_training_peer.py', args.batch, env)


def outputs_agree(contestants, network, sizes, folder):
    "Print the differences of the outputs; returns whether all are within the limits."
    good, outputs = True, {}
    for size, (name, call) in itertools.product(sizes, contestants.items()):
        call('outputs', network, size)
        with np.load(folder/f'{name}.npz') as file:
            outputs[name] = got = dict(file)
        if name == 'ours': continue
        difference = {
            key: np.linalg.norm(got[key] - a)/np.linalg.norm(a) if got[key].shape == a.shape else np.inf
            for key, a in outputs['ours'].items()}
        fine = all(difference[key] <= limit for key, limit in LIMITS.items())
        good &= fine
        cells = ', '.join(f'{key} differ by {value:.1e}' for key, value in difference.items())
        print(f'{network:22s} {size:>3d} px  {name:19s}  {cells}{"" if fine else "   DIFFERS"}', flush=True)
    peers = [call for name, call in contestants.items() if name.startswith('torch')]
    if peers:
        print(f"{network:22s} changes to timm's {NETWORKS[network][0]}: {', '.join(peers[0]('changes', network))}")
    return good


def time_interleaved(contestants, case, args, rng):
    "Name → [(processor seconds, wall seconds)] of the rounds, and the number of steps in each."
    times = {name: [] for name in contestants}
    for call in contestants.values(): call('time', *case, 1)                                # the first steps are slower
    steps = max(1, round(args.seconds/contestants['ours']('time', *case, 1)[1]))
    for _ in tqdm(range(args.rounds), desc=' '.join(map(str, case)), leave=False):
        for name in rng.permutation(list(contestants)):
            times[name].append(contestants[name]('time', *case, steps))
    return times, steps


def row(case, times, images, judged):
    "The cells of a row of the table; `judged` is the column of the times that the targets apply to."
    targets, ours = RESNET if case[0].startswith('ResNet') else SMALL, np.array(times['ours'])
    cells, verdicts = [*map(str, case), *(f'{speed:.1f}' for speed in images/np.median(ours, 0))], []
    for name in list(times)[1:]:
        quartiles = [statistics.quantiles(column, n=4) for column in (np.array(times[name])/ours).T]
        cells += [f'{middle:.2f} ({low:.2f} … {high:.2f})' for low, middle, high in quartiles]
        reached = quartiles[judged][2 if name == 'old' else 1]
        if name in targets:
            met = 'met' if reached >= targets[name] else 'MISSED'
            verdicts.append(f'{name} ≥ {targets[name]:g} {met}')
    return [*cells, '; '.join(verdicts)]


def main():
    home = Path(os.environ.get('PPCLS_HOME') or Path.home()/'.cache'/'ppcls_nb')
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', choices=list(NETWORKS), default=list(NETWORKS), metavar='NAME',
                        help=f'of {", ".join(NETWORKS)} (default: all)')
    parser.add_argument('--sizes', nargs='+', type=int, help='pixels (default: 64 128; --quick: 64)')
    parser.add_argument('--modes', nargs='+', choices=['train', 'eval'], default=['train', 'eval'])
    parser.add_argument('--against', nargs='*', choices=RIVALS, default=RIVALS, metavar='CONTESTANT',
                        help=f'of {", ".join(RIVALS)} (default: all)')
    parser.add_argument('--old', type=Path, metavar='FOLDER', help='a checkout of an older ppcls_nb')
    for name, default in dict(threads=1, batch=32, rounds=12).items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--seconds', type=float, default=0.5, help='of a contestant\'s turn (default: %(default)s)')
    parser.add_argument('--scaling', action='store_true', help='ours with several threads against ours with one')
    parser.add_argument('--quick', action='store_true', help='a few rounds, to check that it runs')
    parser.add_argument('--peers', type=Path, default=home/'peers', help='folder of the peers\' environments '
                                                                         '(default: %(default)s)')
    args = parser.parse_args()
    if args.old and not (args.old/'ppcls_nb').is_dir():
        parser.error(f'--old {args.old}: expected a checkout with the folder ppcls_nb')
    if args.scaling:
        args.threads, args.against = max(2, args.threads), ['ours-one-thread']
    if args.quick:
        args.rounds, args.seconds = 3, 0.1
    sizes = args.sizes or ([64] if args.quick else [64, 128])

    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder, rng = Path(temporary), np.random.default_rng(0)
        contestants = dict(start(args, folder))
        for contestant in contestants.values():
            stack.callback(contestant.close)
        print(f'{processor_name()}, {usable_cores()} of {os.cpu_count()} cores usable; {args.threads} thread(s), '
              f'batches of {args.batch}, {args.rounds} rounds')
        for name, call in contestants.items():
            print(f'{name}: {call("version")}', flush=True)
        if not all([outputs_agree(contestants, network, sizes, folder) for network in args.networks]):
            sys.exit('outputs differ; nothing is timed')
        head = [
            'network', 'px', 'mode', 'ours, img/s: processor', 'wall',
            *(cell for name in list(contestants)[1:] for cell in (f'{name}: processor', 'wall')), 'targets']
        print(f'\nratios: their time / our time, median (quartiles)\n\n| {" | ".join(head)} |\n|{" --- |"*len(head)}')
        for case in itertools.product(args.networks, sizes, args.modes):
            times, steps = time_interleaved(contestants, case, args, rng)
            print(f'| {" | ".join(row(case, times, steps*args.batch, int(args.threads > 1)))} |', flush=True)


if __name__ == '__main__': main()
