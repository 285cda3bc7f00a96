"""Compares the speed of our networks with the official ones (paddleclas 2.6.0), with the same Paddle and weights.

python benchmarks/official_speed.py [NETWORK ...] [--batch 4] [--size 224] [--rounds 8] [--official DIR] [--control]
[--cpu-time]

Forward passes and training steps run in one process in turns: a round is one step of ours, two of theirs, one of ours
(A B B A), the next begins with theirs (B A A B), so that other load on the machine affects both; half of the rounds
have our network built first. Printed are the median over the rounds of official time / our time (above 1: ours is
faster) and its quartiles. Before the timing, both get equal weights and must give equal outputs. `--control` compares
ours with a copy of ours, which shows the variation by chance; `--cpu-time` measures the processor time of this process
instead of wall time, for a machine with other load (best with OMP_NUM_THREADS=1: waiting threads count too). The
official package is installed into DIR, or into a temporary folder, without its dependencies; modules that it imports
for other purposes are replaced by empty ones."""
import argparse, gc, importlib, logging, statistics, subprocess, sys, tempfile, time, types
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import paddle
from ppcls_nb.basics import suggest
from ppcls_nb.models import build_model, list_models

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from official import fill

REQUIREMENT = 'paddleclas==2.6.0'
NETWORKS = ['ResNet50_vd', 'MobileNetV3_large_x1_0', 'DenseNet121', 'HRNet_W18_C', 'PPLCNet_x1_0', 'PPLCNetV2_small',
            'PPHGNetV2_B0', 'MobileNetV4_conv_small', 'GhostNet_x1_0', 'MixNet_S', 'CSPDarkNet53', 'RepVGG_A0',
            'RegNetX_200MF', 'ResNeSt50_fast_1s1x64d', 'ConvNeXt_tiny', 'DeiT_tiny_patch16_224', 'MobileViT_XXS']
CLASSES = 1000


class Empty(types.ModuleType):
    "A module in which every name is an empty class and every submodule exists."
    __path__ = []

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return type(name, (), {})


def import_with_stand_ins(name):
    "Import the module `name`; modules that it needs and that are not installed become `Empty`."
    while True:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as e:
            if e.name.split('.')[0] in ('ppcls', 'paddle'):
                raise
            sys.modules[e.name] = Empty(e.name)


def official_networks(folder):
    "The module of the official networks, installed into `folder` unless it is there."
    root = Path(folder)/'paddleclas'
    if not root.is_dir():
        pip = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', str(folder)]
        subprocess.run([*pip, REQUIREMENT], check=True)
    sys.path.insert(0, str(root))
    logger = import_with_stand_ins('ppcls.utils.logger')
    logger._logger = logging.getLogger('official')
    return import_with_stand_ins('ppcls.arch.backbone')


def relative_error(a, b): return ((a - b).norm()/b.norm()).item()


def wait():
    "Until the device has finished; on a CPU it always has."
    if paddle.device.get_device().startswith('gpu'): paddle.device.cuda.synchronize()


def seconds(step, clock):
    wait()
    since = clock()
    step()
    wait()
    return clock() - since


def evaluation(model, x, y):
    "A step without gradients."
    def _step():
        with paddle.no_grad(): model(x)
    model.eval()
    return _step


def training(model, x, y):
    "A step of cross entropy and momentum."
    optimizer = paddle.optimizer.Momentum(1e-3, parameters=model.parameters())
    def _step():
        paddle.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.clear_grad()
    model.train()
    return _step


def compare(ours, theirs, rounds, clock):
    """(our seconds, ratios theirs/ours of the rounds) of two steps run in turns, after two each to warm up; no garbage
    is collected meanwhile."""
    times, ratios = [], []
    for step in (ours, theirs, theirs, ours): step()
    gc.collect(); gc.disable()
    for i in range(rounds):
        # A B B A, then B A A B: each comes first as often
        first, second = ((ours, theirs) if i % 2 else (theirs, ours))
        a, b, c, d = (seconds(step, clock) for step in (first, second, second, first))
        us, them = (a + d, b + c) if first is ours else (b + c, a + d)
        times.append(us/2); ratios.append(them/us)
    gc.enable()
    return statistics.median(times), ratios


def measure(name, builders, args, clock):
    """Step kind → our times, and step kind → ratios.

    Half of the rounds have our network built first, half theirs, since the order affects the speed."""
    times, ratios = {}, {}
    for swapped in (False, True):
        paddle.seed(0)
        with paddle.utils.unique_name.guard():
            built = [build() for build in (builders[::-1] if swapped else builders)]
        ours, theirs = built[::-1] if swapped else built
        for model in (ours, theirs):
            fill(model, 1.0)
        x, y = paddle.randn([args.batch, 3, args.size, args.size]), paddle.randint(0, CLASSES, [args.batch])
        with paddle.no_grad():
            error = relative_error(ours(x), theirs(x))
        if not error < 1e-4:
            sys.exit(f'{name}: outputs differ by {error:.1e} with equal weights; nothing to compare')
        for kind, step in dict(forward=evaluation, training=training).items():
            steps = [step(model, x, y) for model in built]
            took, ratio = compare(*(steps[::-1] if swapped else steps), max(args.rounds//2, 2), clock)
            times.setdefault(kind, []).append(took)
            ratios.setdefault(kind, []).extend(ratio)
        del built, ours, theirs, steps, model
        gc.collect()
    return times, ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('networks', nargs='*', metavar='NETWORK', help=f'default: {", ".join(NETWORKS)}')
    for name, default in dict(batch=4, size=224, rounds=8).items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--official', metavar='DIR', help='folder to install the official package into, or where it is')
    parser.add_argument('--control', action='store_true', help='ours against ours')
    parser.add_argument('--cpu-time', action='store_true', help='processor time instead of wall time')
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    for name in args.networks:
        if name not in list_models():
            parser.error(suggest(name, list_models(), 'network'))

    with tempfile.TemporaryDirectory() as temporary:
        official = None if args.control else official_networks(args.official or temporary)
        ratio = 'control: ours against ours' if args.control else f'{REQUIREMENT} time / our time'
        if args.cpu_time:
            ratio += ' (processor time)'
        print(f'paddle {paddle.__version__}, {paddle.device.get_device()}, {ppcls_nb.set_threads()} threads, batch '
              f'{args.batch}, {args.size} px; '
              f'{ratio}, median of {args.rounds} rounds (quartiles)')
        for name in args.networks or NETWORKS:
            def ours(): return build_model(name, CLASSES)
            def theirs(): return getattr(official, name)(class_num=CLASSES)

            builders = [ours, ours if args.control else theirs]
            times, ratios = measure(name, builders, args, clock)
            for kind in times:
                low, middle, high = statistics.quantiles(ratios[kind], n=4)
                print(f'{name:24s} {kind:9s} {1000*statistics.median(times[kind]):7.0f} ms   ratio {middle:.3f} '
                      f'({low:.3f} … {high:.3f})', flush=True)


if __name__ == '__main__': main()
