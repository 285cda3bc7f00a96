"""Speed of the augmentation pipelines, per core, against the original's, albumentations' and torchvision's, with their
outputs compared first.

python benchmarks/augment.py [PIPELINE ...] [--files KIND ...] [--data FOLDER] [--peers FOLDER] [--rounds 32] [--quick]
[--cpu-time]

Files of each kind in (`small`, of about 224 px and 12 kB; `256`, `500`: 256 and 500 px, quality 92, for which only
`standard` and `single` are timed, since they differ in nothing but decoding), batches of 32 as float32 arrays (32, 3,
224, 224) out; `single` is the standard pipeline image by image, as one calls it without a loader: (3, 224, 224) out, in
whatever order it lies in memory, and no batch. Every contestant is a process of its own with one thread
(augment_peers.py); they all stay, and work one at a time. In a round each makes the same few batches, in an order drawn
anew, so that whatever else the machine does hits all alike. Printed: the median over the rounds of their time / our
time (above 1: ours is faster), its quartiles, and images per second. The pipelines that hide parts are compared with
our own standard pipeline instead, on the same crops: their time / its time. Before anything is timed, outputs are
compared: a pipeline without chance image by image, the others by mean and spread of their channels and by what they
hide. Exit status 1 if they disagree. At the end, what our pipelines spend their time on, stage by stage.

Images: photographs from `--data` or $PPCLS_DATA (imagenette_96 in it, or any folder of JPEGs), scaled to a short side
of 230, 256 or 500 px and encoded anew; without them, drawn scenes. An enlarged photograph has nothing fine in it, and
its file is small: the larger kinds get noise in their brightness, so that their files have the size of photographs.
Each peer is installed once, into an environment under `--peers` (that of torchvision, `torch`, takes 6 GB), with the
NumPy, OpenCV, Pillow and SciPy that we have here. `--cpu-time` counts processor time instead of time on the wall, for a
machine that has other things to do."""
import argparse, contextlib, importlib.metadata, json, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import cv2, numpy as np
from augment_peers import AUGMENT, HIDE, SIZE
from tqdm import tqdm

SHARED = [
    f'{name}=={importlib.metadata.version(name)}' for name in ('numpy', 'opencv-python-headless', 'pillow', 'scipy')]
PEERS = dict(
    original=[['six==1.17.0', *SHARED], ['--no-deps', 'paddleclas==2.2.1']],
    albumentations=[['albumentations==2.0.8', *SHARED]],
    # what pip is called with, one after the other
    torch=[['torch==2.14.1', 'torchvision==0.29.1', 'timm==1.0.31', 'numpy==1.26.4']])
# contestant → its environment
ENVIRONMENTS = dict(original='original', albumentations='albumentations', torchvision='torch')
# what is timed on files of every kind; albumentations' target is that of the kind
DECODING = dict(standard=dict(original=2, albumentations=None, torchvision=None),
                single=dict(albumentations=None, torchvision=None))
TARGETS = DECODING | {name: dict(original=2, torchvision=2) for name in AUGMENT}
SLOWER = 1.1                    # what hides parts may take of the standard pipeline's time
BATCH = 32
# files: short side in px, quality, noise where enlarged (standard deviation in grey levels), target against
# albumentations
KINDS = {'small': (230, 90, 0, 1.5), '256': (256, 92, 9, 1.5), '500': (500, 92, 6, 2)}
# mean difference allowed to ours, in units of a channel's spread; torchvision scales and decodes otherwise
FIXED = dict(original=1e-4, albumentations=1e-4, torchvision=0.1)
# the same for means and spreads of the pipelines with chance
ALIKE = dict(standard=0.06, single=0.06, autoaugment=0.2, randaugment=0.2)
# and for the share that is hidden; of the original's operations RandomErasing is left out, since that of 2.2.1 erases
# next to nothing
HIDDEN = 0.04


def installed(name, folder):
    "The Python of the peer's environment, which is made unless it is there, complete and of today's requirements."
    home, wanted = folder/name, json.dumps(PEERS[name])
    python, stamp = home/('Scripts/python.exe' if os.name == 'nt' else 'bin/python'), home/'installed.json'
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f'installing {name} into {home}', flush=True)
        subprocess.run([sys.executable, '-m', 'venv', '--clear', home], check=True)
        for arguments in PEERS[name]:
            subprocess.run([python, '-m', 'pip', 'install', '-qq', '--disable-pip-version-check', *arguments],
                           check=True)
        stamp.write_text(wanted)
    return str(python)


class Contestant:
    """A process of `script`, beside this file; called with a question and its arguments, it returns the answer. `env`:
    what its environment has more."""
    def __init__(self, name, python, folder, log, script='augment_peers.py', batch=BATCH, env={}):
        threads = {f'{library}_NUM_THREADS': '1' for library in ('OMP', 'MKL', 'OPENBLAS')}
        command = [python, Path(__file__).with_name(script), name, folder, str(batch)]
        self.name, self.log = name, log
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(log, 'w'),
                                        text=True, env=os.environ | threads | env)

    def __call__(self, *question):
        self.process.stdin.write(json.dumps(question) + '\n')
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer: sys.exit(f'{self.name}: ended at {question[:2]}\n{Path(self.log).read_text()[-3000:]}')
        answer = json.loads(answer)
        if 'error' in answer: sys.exit(f'{self.name}: {question[:2]} failed\n{answer["error"]}')
        return answer['answer']

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def source_images(root, n, short):
    """`n` BGR photographs from below `root`, evenly over its JPEGs, and what they are; where there are none, drawn
    scenes of a short side of `short` px."""
    folder = next((f for f in (root/'imagenette_96', root) if f.is_dir()), None) if root else None
    if files := sorted(p for p in folder.rglob('*') if p.suffix.lower() in ('.jpg', '.jpeg')) if folder else []:
        files = [files[i*len(files)//n] for i in range(n)]
        return (cv2.imread(str(p))
                for p in files), f'{n} photographs of {folder.name} scaled to a short side of {short} px'
    from ppcls_nb.data.petals import draw_scene, make_species
    rng = np.random.default_rng(0)
    return (draw_scene(make_species(i % 60), rng, short)
            for i in range(n)), f'{n} drawn scenes (no photographs; give --data)'


def write_images(folder, root, n, kind):
    "JPEGs of the kind and list.txt in `folder`; returns what they are."
    short, quality, noise, _ = KINDS[kind]
    images, what = source_images(root, n, short)
    lines, size = [], 0
    for i, img in enumerate(images):
        k = short/min(img.shape[:2])
        img = cv2.resize(img, (round(k*img.shape[1]), round(k*img.shape[0])),
                         interpolation=cv2.INTER_CUBIC if k > 1 else cv2.INTER_AREA)
        if k > 1 and noise:
            img = np.clip(img + np.random.default_rng(i).normal(0, noise, (*img.shape[:2], 1)), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder/f'{i:04d}.jpg'), img, [cv2.IMWRITE_JPEG_QUALITY, quality])
        size += (folder/f'{i:04d}.jpg').stat().st_size
        lines.append(f'{i:04d}.jpg 0')
    (folder/'list.txt').write_text('\n'.join(lines) + '\n')
    return f'{what}, JPEG quality {quality}, {size/n/1000:.0f} kB each'


def compare_fixed(contestants, folder):
    "Differences of the pipeline without chance; yields (line, fine)."
    for name, call in contestants.items(): call('save', 'fixed', list(range(BATCH)), str(folder/f'{name}.npy'))
    ours = np.load(folder/'ours.npy')
    for name in list(contestants)[1:]:
        theirs = np.load(folder/f'{name}.npy')
        same = theirs.shape == ours.shape and theirs.dtype == ours.dtype
        difference = np.abs(theirs - ours) if same else np.array([np.inf])
        related = np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] if same else 0
        fine = difference.mean() <= FIXED[name] and related > .98
        yield f'{"fixed":15s} {name:15s} difference {difference.max():.1e} at most, {difference.mean():.1e} on average; correlation {related:.5f}', fine


def compare_random(contestants, pipeline, n, epochs):
    "Statistics of a pipeline with chance; yields (line, fine)."
    batches = [list(range(i, i + BATCH)) for i in range(0, n, BATCH)]
    rivals = [
        name for name in contestants
        if name == 'ours' or name in TARGETS.get(pipeline, {}) or name == 'original' and pipeline in set(HIDE) -
        {'random_erasing'}]
    for name in rivals:
        got = contestants[name]('describe', pipeline, list(range(epochs)), batches)
        ours = got if name == 'ours' else ours
        far = max(abs(a - b) for key in ('mean', 'spread') for a, b in zip(got[key], ours[key]))
        right, hidden = got['kind'] == [[BATCH, 3, SIZE, SIZE], 'float32', True], abs(got['zero'] - ours['zero'])
        fine = (right and (.01 < got['zero'] < .99 and hidden <= HIDDEN
                           if pipeline in HIDE else got['zero'] == 0 and far <= ALIKE[pipeline]))
        channels = ' '.join(f'{m:5.2f} ± {s:.2f}' for m, s in zip(got['mean'], got['spread']))
        yield f'{pipeline:15s} {name:15s} channels {channels}' + f'   hidden {got["zero"]:.3f}'*(pipeline in HIDE) + (
            '' if right else f'   {got["kind"]}'), fine


def outputs_agree(contestants, pipelines, folder, n, epochs):
    "Print all comparisons; whether all are fine."
    good = True
    print(f'\noutputs, compared on {BATCH} images (fixed) and {n*epochs} (others)')
    for line, fine in (pair for part in [
            compare_fixed(contestants, folder), *(compare_random(contestants, p, n, epochs) for p in pipelines)]
                       for pair in part):
        print(f'{line}{"" if fine else "   DIFFERS"}', flush=True)
        good &= bool(fine)
    return good


def groups(contestants, pipelines):
    "What is timed together: a list of (contestant, pipeline), the first one being what the others are compared with."
    out = [[(name, p)
            for name in contestants
            if name == 'ours' or name in TARGETS[p]]
           for p in pipelines
           if p in TARGETS]
    hiding = [('ours', p) for p in pipelines if p in HIDE]
    return [*out, *([[('ours', 'standard'), *hiding]] if hiding else [])]


def time_interleaved(contestants, parts, args):
    "(group number, contestant, pipeline) → seconds of the rounds; the order within a group is drawn for each round."
    times, rng = {}, np.random.default_rng(0)
    for turn in tqdm(range(args.rounds + 1), desc='rounds', leave=False):                # the first one does not count
        start = np.random.default_rng(turn).integers(0, args.images//BATCH)
        batches = [[(b*BATCH + i) % args.images for i in range(BATCH)] for b in range(start, start + args.batches)]
        for g, jobs in enumerate(parts):
            for j in rng.permutation(len(jobs)):
                name, pipeline = jobs[j]
                took = contestants[name]('time', pipeline, turn, batches, args.cpu_time)
                if turn: times.setdefault((g, name, pipeline), []).append(took)
    return times


def report(times, parts, images, contestants, kind):
    "Print the table."
    print(f'\n{"pipeline":15s} {"contestant":15s} {"img/s":>6s}   ratio (quartiles)        target')
    for g, jobs in enumerate(parts):
        reference = times[(g, *jobs[0])]
        for name, pipeline in jobs:
            took, hiding = times[g, name, pipeline], g == len(parts) - 1 and jobs[-1][1] in HIDE
            line = f'{pipeline:15s} {name:15s} {images/statistics.median(took):6.0f}'
            if took is not reference:
                low, ratio, high = statistics.quantiles([a/b for a, b in zip(took, reference)], n=4)
                target = SLOWER if hiding else KINDS[kind][-1] if name == 'albumentations' else TARGETS[pipeline][name]
                met = target is None or (ratio <= target if hiding else ratio >= target)
                verdict = '' if target is None else f'{"≤" if hiding else "≥"} {target:g} {"met" if met else "MISSED"}'
                line += f'   {ratio:5.2f} ({low:.2f} … {high:.2f})   {"of its time" if hiding else "           "}   {verdict}'
            print(line)
    if ways := contestants['torchvision']('ways') if 'torchvision' in contestants else {}:
        print('torchvision worked on ' + ', '.join(f'{make_batch_function} ({p})' for p, make_batch_function in ways.items() if p != 'fixed'))


def report_stages(ours, pipelines, args):
    "Print what our pipelines spend an image's time on."
    batches = [[(b*BATCH + i) % args.images for i in range(BATCH)] for b in range(4*args.batches)]
    stages = {
        p: ours('stages', p, 0, batches, args.cpu_time)
        for p in dict.fromkeys(['standard', *pipelines])
        if p != 'single'}
    total = sum(stages['standard'].values())
    print(f'\n{"stage of our standard pipeline":32s} µs an image\n' +
          '\n'.join(f'{stage:32s} {t:6.1f} {t/total:5.0%}' for stage, t in stages['standard'].items()) +
          f'\n{"together":32s} {total:6.1f}')
    for pipeline, times in stages.items():
        for stage in times.keys() - stages['standard'].keys(): print(f'{stage + " adds":32s} {times[stage]:6.1f}')


def measure(kind, pipelines, pythons, args):
    "Compare and time the pipelines on files of one kind, and print it."
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        what = write_images(folder, Path(args.data) if args.data else None, args.images, kind)
        contestants = {name: Contestant(name, python, folder, folder/f'{name}.log') for name, python in pythons.items()}
        for contestant in contestants.values(): stack.callback(contestant.close)
        print(f'\n── {kind}: {what}; batches of {BATCH} to {SIZE} px, one thread each; {", ".join(SHARED)}')
        for name, call in contestants.items(): print(f'{name}: {call("version")}')
        if not outputs_agree(contestants, pipelines, folder, args.images, 1 if args.quick else 2):
            sys.exit('outputs differ; nothing is timed')
        parts, since = groups(contestants, pipelines), time.perf_counter()
        times = time_interleaved(contestants, parts, args)
        print(f'\nmedian of {args.rounds} rounds of {args.batches*BATCH} images in {time.perf_counter() - since:.0f} '
              f's, {"processor" if args.cpu_time else "wall"} time; '
              'ratio: their time / our time, or, for what hides parts, its time / our standard pipeline\'s')
        report(times, parts, args.batches*BATCH, contestants, kind)
        report_stages(contestants['ours'], pipelines, args)


def main():
    known, home = [*TARGETS, *HIDE], Path(os.environ.get('PPCLS_HOME') or Path.home()/'.cache'/'ppcls_nb')
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pipelines', nargs='*', metavar='PIPELINE', help=f'of {", ".join(known)} (default: all)')
    parser.add_argument('--data', type=Path, default=os.environ.get('PPCLS_DATA'), help='folder of photographs '
                                                                                        '(default: $PPCLS_DATA)')
    parser.add_argument('--peers', type=Path, default=home/'peers', help='folder of the peers\' environments '
                                                                         '(default: %(default)s)')
    parser.add_argument('--files', nargs='+', choices=list(KINDS), default=list(KINDS), metavar='KIND',
                        help=f'of {", ".join(KINDS)} (default: all)')
    parser.add_argument('--against', nargs='+', choices=list(ENVIRONMENTS), default=list(ENVIRONMENTS), metavar='PEER',
                        help=f'of {", ".join(ENVIRONMENTS)} (default: all)')
    for name, default in dict(rounds=32, images=256, batches=3).items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--quick', action='store_true', help='few rounds: does it run?')
    parser.add_argument('--cpu-time', action='store_true', help='processor time instead of wall time')
    args = parser.parse_args()
    if unknown := [p for p in args.pipelines if p not in known]:
        parser.error(f'{unknown[0]}: choose of {", ".join(known)}')
    if args.images < 7*BATCH or args.images % BATCH:
        parser.error(f'--images {args.images}: expected a multiple of {BATCH}, at least {7*BATCH}')
    if args.quick: args.rounds, args.batches = 4, 1
    pythons = dict(ours=sys.executable) | {name: installed(ENVIRONMENTS[name], args.peers) for name in args.against}
    for kind in args.files:
        chosen = [p for p in args.pipelines or known if kind == 'small' or p in DECODING]
        if chosen: measure(kind, chosen, pythons, args)


if __name__ == '__main__': main()
