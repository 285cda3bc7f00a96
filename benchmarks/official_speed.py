"""Compares the speed of our networks with the official ones (paddleclas 2.6.0), with the same Paddle and weights.

python benchmarks/official_speed.py [NETWORK ...] [--batch 4] [--size 224] [--rounds 8] [--official DIR] [--control]
[--cpu-time] [--table FILE.csv]

Forward passes and training steps run in one process in turns: a round is one step of ours, two of theirs, one of ours
(A B B A), the next begins with theirs (B A A B), so that other load on the machine affects both; half of the rounds
have our network built first. Printed are the median over the rounds of official time / our time (above 1: ours is
faster) and its quartiles. Before the timing, both get equal weights and must give equal outputs. `--control` compares
ours with a copy of ours, which shows the variation by chance; `--cpu-time` measures the processor time of this process
instead of wall time, for a machine with other load (best with OMP_NUM_THREADS=1: waiting threads count too). The
official package is installed into DIR, or into a temporary folder, without its dependencies; modules that it imports
for other purposes are replaced by empty ones. `--table` writes the results to a CSV file after each network, with the
machine and the date; rows of other networks in it stay. The course shows ppcls_nb/facts/official_speed.csv."""
import argparse, csv, datetime, gc, importlib, logging, statistics, subprocess, sys, tempfile, time, types
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import paddle
from ppcls_nb.basics import suggest, write_csv
from ppcls_nb.course.timing import processor_name
from ppcls_nb.models import build_model, list_models
from ppcls_nb.models.registry import fact_rows

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from official import fill

REQUIREMENT = 'paddleclas==2.6.0'
NETWORKS = ['ResNet50_vd', 'MobileNetV3_large_x1_0', 'DenseNet121', 'HRNet_W18_C', 'PPLCNet_x1_0', 'PPLCNetV2_small',
            'PPHGNet_tiny', 'PPHGNetV2_B0', 'MobileNetV4_conv_small', 'GhostNet_x1_0', 'MixNet_S', 'CSPDarkNet53',
            'RepVGG_A0', 'RegNetX_200MF', 'ResNeSt50_fast_1s1x64d', 'ConvNeXt_tiny', 'DeiT_tiny_patch16_224',
            'MobileViT_XXS']
# not here: the released Swin, whose outputs are not those of 2.5.2, and Swin V2, which does not run
COLUMNS = ['network', 'step', 'ms', 'ratio', 'lower_quartile', 'upper_quartile', 'batch', 'size', 'threads', 'rounds',
           'time', 'paddle', 'date', 'processor']
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


def measure(name, size, builders, args, clock):
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
        x, y = paddle.randn([args.batch, 3, size, size]), paddle.randint(0, CLASSES, [args.batch])
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


def add_rows(file, rows):
    "Write `rows` into the CSV `file`, in place of earlier rows of the same network."
    known = list(csv.DictReader(file.read_text().splitlines())) if file.exists() else []
    kept = [row for row in known if row['network'] != rows[0]['network']]
    write_csv(file, [COLUMNS, *([row[column] for column in COLUMNS] for row in kept + rows)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('networks', nargs='*', metavar='NETWORK', help=f'default: {", ".join(NETWORKS)}')
    for name, default in dict(batch=4, rounds=8).items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--size', type=int, help="pixels; default: those of each network's evaluation")
    parser.add_argument('--table', type=Path, metavar='FILE', help='CSV file for the results')
    parser.add_argument('--official', metavar='DIR', help='folder to install the official package into, or where it is')
    parser.add_argument('--control', action='store_true', help='ours against ours')
    parser.add_argument('--cpu-time', action='store_true', help='processor time instead of wall time')
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    for name in args.networks:
        if name not in list_models():
            parser.error(suggest(name, list_models(), 'network'))

    sizes = {row['arch']: int(row['size']) for row in reversed(fact_rows('costs'))}     # the first of several
    with tempfile.TemporaryDirectory() as temporary:
        official = None if args.control else official_networks(args.official or temporary)
        ratio = 'control: ours against ours' if args.control else f'{REQUIREMENT} time / our time'
        if args.cpu_time:
            ratio += ' (processor time)'
        threads = ppcls_nb.set_threads()
        print(f'paddle {paddle.__version__}, {paddle.device.get_device()}, {threads} threads, batch {args.batch}; '
              f'{ratio}, median of {args.rounds} rounds (quartiles)')
        for name in args.networks or NETWORKS:
            def ours(): return build_model(name, CLASSES)
            def theirs(): return getattr(official, name)(class_num=CLASSES)

            builders = [ours, ours if args.control else theirs]
            size = args.size or sizes[name]
            times, ratios = measure(name, size, builders, args, clock)
            rows = []
            for kind in times:
                low, middle, high = statistics.quantiles(ratios[kind], n=4)
                ms = 1000*statistics.median(times[kind])
                print(f'{name:40s} {kind:9s} {size} px {ms:7.0f} ms   ratio {middle:.3f} ({low:.3f} … {high:.3f})',
                      flush=True)
                rows.append(dict(network=name, step=kind, ms=f'{ms:.1f}', ratio=f'{middle:.3f}',
                                 lower_quartile=f'{low:.3f}', upper_quartile=f'{high:.3f}', batch=args.batch, size=size,
                                 threads=threads, rounds=args.rounds, paddle=paddle.__version__,
                                 time='processor' if args.cpu_time else 'wall',
                                 date=datetime.date.today().isoformat(), processor=processor_name()))
            if args.table:
                add_rows(args.table, rows)


if __name__ == '__main__': main()
