"""Speed of training steps and of predictions on a CPU against PyTorch with timm's networks, with their outputs compared
first.

python benchmarks/torch_training.py [--networks NAME ...] [--sizes 64 128] [--modes train eval] [--against CONTESTANT
...] [--old FOLDER] [--threads 1] [--scaling] [--batch 32] [--rounds 12] [--seconds 0.5] [--quick] [--peers FOLDER]

Contestants: ours, ours-plain (all convolutions Paddle's own), torch, torch-channels-last and, with --old, an older
checkout of ppcls_nb. Each is a process of its own (torch_training_peer.py); they all stay, and work one at a time.
`train`: forward, cross entropy, backward and SGD with momentum; `eval`: forward in evaluation mode, without gradients.
In a round each contestant makes the same few steps (about `--seconds`, by ours), in an order drawn anew, so that
whatever else the machine does hits all alike. A ratio is their time / our time (above 1: ours is faster): the median
over the rounds and its quartiles, of processor time and of wall time. Aims are judged by processor time with one
thread, by wall time with several; `old` misses its aim where even the upper quartile is below it. Before anything is
timed, logits and gradients are compared, from the same weights on the same batch; exit status 1 if they disagree.
--scaling: ours with `--threads` (at least 2) against ours with one thread; the ratio of wall times is what more threads
bring. PyTorch (6 GB) is installed once, into an environment of its own under `--peers`. Environment variables are
passed on, MKL_DEBUG_CPU_TYPE too."""
import argparse, contextlib, itertools, os, platform, re, statistics, sys, tempfile
from pathlib import Path

import numpy as np
from augment import Contestant, installed
from ppcls_nb import usable_cores
from torch_training_peer import NETWORKS
from tqdm import tqdm

RIVALS = ['ours-plain', 'torch', 'torch-channels-last']
# the ratios aimed at
SMALL, RESNET = {'torch': 1.3, 'torch-channels-last': 1.0, 'old': 0.98}, {'torch-channels-last': 0.9, 'old': 0.98}
# |theirs − ours| / |ours| allowed; through ReLU's kinks, rounding alone moves gradients by up to 0.04 (in float64 they
# differ by 4e-8)
LIMITS = dict(logits=1e-4, gradients=0.1)


def processor():
    "Model, vendor and cores of this machine's processor."
    info = Path('/proc/cpuinfo')
    found = dict(re.findall(r'^(model name|vendor_id)\s*: (.*)$', info.read_text(), re.M)) if info.is_file() else {}
    return f'{found.get("model name") or platform.processor()} ({found.get("vendor_id", "vendor unknown")}), {usable_cores()} of {os.cpu_count()} cores usable'


def start(args, folder):
    "Name → `Contestant`; ours first."
    names = ['ours', *args.against, *['old']*bool(args.old)]
    peer = installed('torch', args.peers) if any(name.startswith('torch') for name in names) else None
    for name in names:
        env = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'),
                            '1' if name == 'ours-one-thread' else str(args.threads))
        if name == 'old': env['PYTHONPATH'] = str(args.old.resolve())
        python = peer if name.startswith('torch') else sys.executable
        yield name, Contestant(name, python, folder, folder/f'{name}.log', 'torch_training_peer.py', args.batch, env)


def outputs_agree(contestants, network, sizes, folder):
    "Print the comparisons; whether all are fine."
    good, outputs = True, {}
    for size, (name, ask) in itertools.product(sizes, contestants.items()):
        ask('outputs', network, size)
        with np.load(folder/f'{name}.npz') as file: outputs[name] = got = dict(file)
        if name == 'ours': continue
        far = {
            key: np.linalg.norm(got[key] - a)/np.linalg.norm(a) if got[key].shape == a.shape else np.inf
            for key, a in outputs['ours'].items()}
        good &= (fine := all(far[key] <= limit for key, limit in LIMITS.items()))
        print(
            f'{network:22s} {size:>3d} px  {name:19s}  '
            f'{", ".join(f"{key} differ by {value:.1e}" for key, value in far.items())}{"" if fine else "   DIFFERS"}',
            flush=True)
    if peer := next((ask for name, ask in contestants.items() if name.startswith('torch')), None):
        print(f'{network:22s} timm\'s {NETWORKS[network][0]} was changed to be ours: '
              f'{", ".join(peer("changes", network))}')
    return good


def race(contestants, case, args, rng):
    "Name → [(processor seconds, wall seconds)] of the rounds, and the number of steps that each has."
    times = {name: [] for name in contestants}
    for ask in contestants.values(): ask('time', *case, 1)                                # the first steps are slower
    steps = max(1, round(args.seconds/contestants['ours']('time', *case, 1)[1]))
    for _ in tqdm(range(args.rounds), desc=' '.join(map(str, case)), leave=False):
        for name in rng.permutation(list(contestants)): times[name].append(contestants[name]('time', *case, steps))
    return times, steps


def row(case, times, images, judged):
    "The cells of a line of the table; `judged`: column of the times that counts for the aims."
    aims, ours = RESNET if case[0].startswith('ResNet') else SMALL, np.array(times['ours'])
    cells, verdicts = [*map(str, case), *(f'{speed:.1f}' for speed in images/np.median(ours, 0))], []
    for name in list(times)[1:]:
        quartiles = [statistics.quantiles(column, n=4) for column in (np.array(times[name])/ours).T]
        cells += [f'{middle:.2f} ({low:.2f} … {high:.2f})' for low, middle, high in quartiles]
        reached = quartiles[judged][2 if name == 'old' else 1]
        if name in aims: verdicts.append(f'{name} ≥ {aims[name]:g} {"met" if reached >= aims[name] else "MISSED"}')
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
    parser.add_argument('--quick', action='store_true', help='few rounds: does it run?')
    parser.add_argument('--peers', type=Path, default=home/'peers', help='folder of the peers\' environments '
                                                                         '(default: %(default)s)')
    args = parser.parse_args()
    if args.old and not (args.old/'ppcls_nb').is_dir(): parser.error(f'--old {args.old}: no ppcls_nb in it')
    if args.scaling: args.threads, args.against = max(2, args.threads), ['ours-one-thread']
    if args.quick: args.rounds, args.seconds = 3, 0.1
    sizes = args.sizes or ([64] if args.quick else [64, 128])

    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder, rng = Path(temporary), np.random.default_rng(0)
        contestants = dict(start(args, folder))
        for contestant in contestants.values(): stack.callback(contestant.close)
        print(f'{processor()}; {args.threads} thread(s), batches of {args.batch}, {args.rounds} rounds')
        for name, ask in contestants.items(): print(f'{name}: {ask("version")}', flush=True)
        if not all([outputs_agree(contestants, network, sizes, folder) for network in args.networks]):
            sys.exit('outputs differ; nothing is timed')
        head = [
            'network', 'px', 'mode', 'ours, img/s: processor', 'wall',
            *(cell for name in list(contestants)[1:] for cell in (f'{name}: processor', 'wall')), 'aims']
        print(f'\nratios: their time / our time, median (quartiles)\n\n| {" | ".join(head)} |\n|{" --- |"*len(head)}')
        for case in itertools.product(args.networks, sizes, args.modes):
            times, steps = race(contestants, case, args, rng)
            print(f'| {" | ".join(row(case, times, steps*args.batch, int(args.threads > 1)))} |', flush=True)


if __name__ == '__main__': main()
