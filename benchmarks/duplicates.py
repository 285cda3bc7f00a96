"""Measures how the cost of finding near-duplicates grows with the pool and the reference, with and without the index.

python benchmarks/duplicates.py [--sizes 500 1000 2000 4000] [--brute 4] [--looks 40] [--side 96] [--data FOLDER ...]

For each size, pool and reference have that many images. Printed is the processor time per pool image in milliseconds:
reading and SIFT; querying the index and checking its candidates; and, without the index, checking all references (for
`--brute` pool images, since it is the same work for each). Everything runs in one process and thread. Then the exponent
of growth of the whole job, `cost ~ size ** exponent`, by least squares on the logarithms (1: linear, 2: every pair),
and an extrapolation, not a measurement, to the documents' 4 million pool images and 50,000 validation images. Images:
those below the --data folders (default: $PPCLS_DATA), else drawn shapes. Exit status 1 where the exponent with the
index is 1.5 or more, or the index is slower than all pairs at the largest size."""
import argparse, os, sys, tempfile, time
from pathlib import Path

import cv2, numpy as np
from ppcls_nb.data.folders import SUFFIXES
from ppcls_nb.data.duplicates import References, _look, mirrored, same_photo

POOL, VALID = 4_000_000, 50_000


def draw_shapes(folder, n, side):
    "`n` images of random ellipses and lines, as JPEG; their paths."
    paths = []
    for i in range(n):
        rng = np.random.default_rng(i)
        img = np.full((side, side, 3), rng.integers(0, 256, 3), np.uint8)
        for _ in range(40):
            x, y, a, b = (int(v) for v in rng.integers(0, side, 4))
            cv2.ellipse(img, (x, y), (a//4 + 1, b//4 + 1), int(rng.integers(180)), 0, 360,
                        rng.integers(0, 256, 3).tolist(), -1)
            cv2.line(img, (x, y), (b, a), rng.integers(0, 256, 3).tolist(), 1)
        paths.append(str(Path(folder)/f'{i}.jpg'))
        cv2.imwrite(paths[-1], cv2.GaussianBlur(img, (0, 0), .7))
    return paths


def images(args, folder):
    "The paths of as many images as the largest size needs, shuffled."
    found = [str(p) for d in args.data for p in sorted(Path(d).expanduser().rglob('*')) if p.suffix.lower() in SUFFIXES]
    need = max(args.sizes) + args.looks
    if args.data and len(found) < need:
        sys.exit(f'{len(found):,} images in {", ".join(map(str, args.data))}, expected {need:,}')
    if not found:
        found = draw_shapes(folder, need, args.side)
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))[:need]]


def measure(pool, reference, args):
    "Seconds to prepare the references, and per pool image: to read it, to match it with the index and without."
    start = time.process_time()
    refs = References(reference, workers=1, progress=False)
    prepared = time.process_time() - start
    start = time.process_time()
    looks = [_look(p) for p in pool[:args.looks]]
    look = (time.process_time() - start)/args.looks
    start = time.process_time()
    for path, digest, fp, _ in looks:
        refs.matches(path, digest, fp)
    hashed = (time.process_time() - start)/args.looks
    start = time.process_time()
    for _, _, fp, _ in looks[:args.brute]:
        for side in (fp, mirrored(fp)):
            for other in refs.fps:
                same_photo(side, other)
    return prepared, look, hashed, (time.process_time() - start)/args.brute


def exponent(sizes, costs): return np.polyfit(np.log(sizes), np.log(costs), 1)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', type=int, nargs='+', default=[500, 1000, 2000, 4000])
    for name, default in dict(brute=4, looks=40, side=96).items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--data', nargs='+', default=[os.environ['PPCLS_DATA']] if os.environ.get('PPCLS_DATA') else [],
                        help='folders of images (default: $PPCLS_DATA)')
    args = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = images(args, folder)
        print(f'{"photographs" if args.data else "drawn shapes"}; ms of a pool image   | whole job, s (pool = '
              'reference = n)\n'
              '     n   read, SIFT   with index   all pairs | with index   all pairs   ratio')
        parts, whole, every = [], [], []
        for n in args.sizes:
            prepared, look, hashed, brute = measure(paths[-args.looks:], paths[:n], args)
            parts.append(hashed)
            whole.append(prepared + n*(look + hashed))
            every.append(prepared + n*(look + brute))
            print(f'{n:6,} {1000*look:12.1f} {1000*hashed:12.1f} {1000*brute:11.1f} | {whole[-1]:10.1f} '
                  f'{every[-1]:11.1f} {every[-1]/whole[-1]:7.1f}', flush=True)
    with_hash, without, per_image = (exponent(args.sizes, costs) for costs in (whole, every, parts))
    print(f'exponent of growth, pool and reference growing alike: with index {with_hash:.2f}, all pairs '
          f'{without:.2f}; of the cost of the index and its candidates per pool image: {per_image:.2f}')
    more = VALID/args.sizes[-1]
    print(f'extrapolated, not measured: {POOL:,} pool images against {VALID:,}: with index '
          f'{POOL*(look + hashed*more**max(per_image, 0))/86400:.1f} days of one core, '
          f'all pairs {POOL*(look + brute*more)/86400/365:.0f} years')
    sys.exit(not (with_hash < 1.5 and whole[-1] < every[-1]))


if __name__ == '__main__': main()
