"""Compares the speed of the augmentation pipelines on one core with PaddleClas, albumentations and torchvision.

python benchmarks/augment.py [PIPELINE ...] [--files KIND ...] [--data FOLDER] [--peers FOLDER] [--rounds 32] [--quick]
[--cpu-time]

The input are files of each kind: `small`, of about 224 px and 12 kB; `256` and `500`, of 256 and 500 px and quality
92, for which only `standard` and `single` are timed, since only the decoding differs. The output are batches of 32 as
float32 arrays (32, 3, 224, 224); `single` is the standard pipeline image by image, without a loader: (3, 224, 224), in
any memory order. Every contestant runs in a separate process with one thread (augment_peers.py), one at a time. In a
round each makes the same few batches, in random order, so that other load on the machine affects all alike. Printed
are the median over the rounds of their time / our time (above 1: ours is faster), its quartiles, and images per
second. Pipelines that hide parts are compared with our own standard pipeline instead, on the same crops. Before the
timing, outputs are compared: the pipeline without randomness image by image, the others by mean and standard deviation
of the channels and by the hidden fraction. Exit status 1 if they differ. At the end, the time of each stage of our
pipelines is printed.

Images: photographs from `--data` or $PPCLS_DATA (its folder imagenette_96, or any folder of JPEGs), scaled to a short
side of 230, 256 or 500 px and encoded again; without them, drawn scenes. Enlarged photographs lack fine detail, so the
larger kinds get noise, which makes the files as large as those of photographs. Each peer is installed once, into an
environment under `--peers` (6 GB for torchvision), with the versions of NumPy, OpenCV, Pillow and SciPy used here.
`--cpu-time` measures processor time instead of wall time, for a machine with other load."""
import argparse, contextlib, importlib.metadata, itertools, json, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import cv2, numpy as np
from augment_peers import AUGMENT, HIDE, SIZE
from tqdm import tqdm

SHARED = [
    f'{name}=={importlib.metadata.version(name)}' for name in ('numpy', 'opencv-python-headless', 'pillow', 'scipy')]
# environment → the arguments of one or more calls of `pip install`
PEERS = dict(
    original=[['six==1.17.0', *SHARED], ['--no-deps', 'paddleclas==2.2.1']],
    albumentations=[['albumentations==2.0.8', *SHARED]],
    torch=[['torch==2.14.1', 'torchvision==0.29.1', 'timm==1.0.31', 'numpy==1.26.4']])
# contestant → its environment
ENVIRONMENTS = dict(original='original', albumentations='albumentations', torchvision='torch')
# pipelines timed on files of every kind: contestant → target ratio; albumentations' target depends on the kind
DECODING = dict(standard=dict(original=2, albumentations=None, torchvision=None),
                single=dict(albumentations=None, torchvision=None))
TARGETS = DECODING | {name: dict(original=2, torchvision=2) for name in AUGMENT}
SLOWER = 1.1                    # limit for pipelines that hide parts: time / time of the standard pipeline
BATCH = 32
# kind of files → short side in px, quality, noise of enlarged images (standard deviation in grey levels), target ratio
# for albumentations
KINDS = {'small': (230, 90, 0, 1.5), '256': (256, 92, 9, 1.5), '500': (500, 92, 6, 2)}
# allowed mean difference to ours, in standard deviations of a channel; torchvision scales and decodes differently
FIXED = dict(original=1e-4, albumentations=1e-4, torchvision=0.1)
# the same for means and standard deviations of the random pipelines
ALIKE = dict(standard=0.06, single=0.06, autoaugment=0.2, randaugment=0.2)
# and for the hidden fraction; the original's RandomErasing is excluded, since version 2.2.1 erases almost nothing
HIDDEN = 0.04


def installed(name, folder):
    "The Python of the peer's environment, which is created unless it exists with the present requirements."
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
    """A process of `script`, a file beside this one, with the additional environment variables `env`.

    A call with a method's name and arguments returns the answer of the process."""
    def __init__(self, name, python, folder, log, script='augment_peers.py', batch=BATCH, env=None):
        threads = {f'{library}_NUM_THREADS': '1' for library in ('OMP', 'MKL', 'OPENBLAS')}
        command = [python, Path(__file__).with_name(script), name, folder, str(batch)]
        self.name, self.log = name, log
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(log, 'w'),
                                        text=True, env=os.environ | threads | (env or {}))

    def __call__(self, *question):
        self.process.stdin.write(json.dumps(question) + '\n')
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f'{self.name}: ended at {question[:2]}\n{Path(self.log).read_text()[-3000:]}')
        answer = json.loads(answer)
        if 'error' in answer:
            sys.exit(f'{self.name}: {question[:2]} failed\n{answer["error"]}')
        return answer['answer']

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def source_images(root, n, short):
    """`n` BGR photographs from the JPEGs below `root`, evenly spaced, and a description of them.

    Without photographs, drawn scenes with a short side of `short` px."""
    folder = next((f for f in (root/'imagenette_96', root) if f.is_dir()), None) if root else None
    files = sorted(p for p in folder.rglob('*') if p.suffix.lower() in ('.jpg', '.jpeg')) if folder else []
    if files:
        images = (cv2.imread(str(files[i*len(files)//n])) for i in range(n))
        return images, f'{n} photographs of {folder.name} scaled to a short side of {short} px'
    from ppcls_nb.data.petals import draw_scene, make_species
    rng = np.random.default_rng(0)
    scenes = (draw_scene(make_species(i % 60), rng, short) for i in range(n))
    return scenes, f'{n} drawn scenes (no photographs; give --data)'


def write_images(folder, root, n, kind):
    "Write JPEGs of the kind and list.txt into `folder`; returns a description."
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
    "Compare the outputs of the pipeline without randomness; yields (line, whether within the limit)."
    for name, call in contestants.items():
        call('save', 'fixed', list(range(BATCH)), str(folder/f'{name}.npy'))
    ours = np.load(folder/'ours.npy')
    for name in list(contestants)[1:]:
        theirs = np.load(folder/f'{name}.npy')
        same = theirs.shape == ours.shape and theirs.dtype == ours.dtype
        difference = np.abs(theirs - ours) if same else np.array([np.inf])
        related = np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] if same else 0
        fine = difference.mean() <= FIXED[name] and related > .98
        yield (f'{"fixed":15s} {name:15s} difference {difference.max():.1e} at most, '
               f'{difference.mean():.1e} on average; correlation {related:.5f}'), fine


def compare_random(contestants, pipeline, n, epochs):
    "Compare the statistics of a random pipeline; yields (line, whether within the limits)."
    batches = [list(range(i, i + BATCH)) for i in range(0, n, BATCH)]
    compared = {'ours', *TARGETS.get(pipeline, {})}
    if pipeline in HIDE and pipeline != 'random_erasing':
        compared.add('original')
    ours = None      # the first of the contestants
    for name in [name for name in contestants if name in compared]:
        got = contestants[name]('describe', pipeline, list(range(epochs)), batches)
        ours = got if name == 'ours' else ours
        channels = ' '.join(f'{m:5.2f} ± {s:.2f}' for m, s in zip(got['mean'], got['spread']))
        line = f'{pipeline:15s} {name:15s} channels {channels}'
        if pipeline in HIDE:
            fine = .01 < got['zero'] < .99 and abs(got['zero'] - ours['zero']) <= HIDDEN
            line += f'   hidden {got["zero"]:.3f}'
        else:
            difference = max(abs(a - b) for key in ('mean', 'spread') for a, b in zip(got[key], ours[key]))
            fine = got['zero'] == 0 and difference <= ALIKE[pipeline]
        if got['kind'] != [[BATCH, 3, SIZE, SIZE], 'float32', True]:
            fine, line = False, f'{line}   {got["kind"]}'
        yield line, fine


def outputs_agree(contestants, pipelines, folder, n, epochs):
    "Print all comparisons; returns whether all are within the limits."
    good = True
    print(f'\noutputs, compared on {BATCH} images (fixed) and {n*epochs} (others)')
    comparisons = [compare_fixed(contestants, folder)]
    comparisons += [compare_random(contestants, pipeline, n, epochs) for pipeline in pipelines]
    for line, fine in itertools.chain(*comparisons):
        print(f'{line}{"" if fine else "   DIFFERS"}', flush=True)
        good &= bool(fine)
    return good


def groups(contestants, pipelines):
    "The groups that are timed together, lists of (contestant, pipeline); the first one is the reference."
    out = []
    for pipeline in pipelines:
        if pipeline in TARGETS:
            out.append([(name, pipeline) for name in contestants if name == 'ours' or name in TARGETS[pipeline]])
    hiding = [('ours', pipeline) for pipeline in pipelines if pipeline in HIDE]
    if hiding:
        out.append([('ours', 'standard'), *hiding])
    return out


def time_interleaved(contestants, parts, args):
    "(group number, contestant, pipeline) → seconds of the rounds; each round has a random order within a group."
    times, rng = {}, np.random.default_rng(0)
    for turn in tqdm(range(args.rounds + 1), desc='rounds', leave=False):                # the first one does not count
        start = np.random.default_rng(turn).integers(0, args.images//BATCH)
        batches = [[(b*BATCH + i) % args.images for i in range(BATCH)] for b in range(start, start + args.batches)]
        for g, jobs in enumerate(parts):
            for j in rng.permutation(len(jobs)):
                name, pipeline = jobs[j]
                took = contestants[name]('time', pipeline, turn, batches, args.cpu_time)
                if turn:
                    times.setdefault((g, name, pipeline), []).append(took)
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
                line += f'   {ratio:5.2f} ({low:.2f} … {high:.2f})   {"of its time" if hiding else "           "}'
                if target is not None:
                    line += f'   {"≤" if hiding else "≥"} {target:g} {"met" if met else "MISSED"}'
            print(line)
    types = contestants['torchvision']('image_types') if 'torchvision' in contestants else {}
    if types:
        print('torchvision used ' + ', '.join(f'{name} ({p})' for p, name in types.items() if p != 'fixed'))


def report_stages(ours, pipelines, args):
    "Print the time of each stage of our pipelines per image."
    batches = [[(b*BATCH + i) % args.images for i in range(BATCH)] for b in range(4*args.batches)]
    stages = {}
    for pipeline in ['standard', *pipelines]:
        if pipeline != 'single' and pipeline not in stages:
            stages[pipeline] = ours('stages', pipeline, 0, batches, args.cpu_time)
    total = sum(stages['standard'].values())
    print(f'\n{"stage of our standard pipeline":32s} µs an image')
    for stage, t in stages['standard'].items():
        print(f'{stage:32s} {t:6.1f} {t/total:5.0%}')
    print(f'{"total":32s} {total:6.1f}')
    for pipeline, times in stages.items():
        for stage in times.keys() - stages['standard'].keys():
            print(f'{stage + " adds":32s} {times[stage]:6.1f}')


def measure(kind, pipelines, pythons, args):
    "Compare and time the pipelines on files of one kind, and print it."
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        what = write_images(folder, Path(args.data) if args.data else None, args.images, kind)
        contestants = {name: Contestant(name, python, folder, folder/f'{name}.log') for name, python in pythons.items()}
        for contestant in contestants.values():
            stack.callback(contestant.close)
        print(f'\n── {kind}: {what}; batches of {BATCH} to {SIZE} px, one thread each; {", ".join(SHARED)}')
        for name, call in contestants.items():
            print(f'{name}: {call("version")}')
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
