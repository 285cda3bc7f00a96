"""Compares reduced decoding and a cache of smaller copies with decoding the original files.

python benchmarks/decode.py [SHORT_SIDE ...]   writes 4:3 JPEGs with these short sides (default 375 750 1500 3000) to a
temporary folder. For each it prints images/s on one core and ratios, as medians over interleaved rounds: full decoding,
`reduce_to` (512 for validation, 800 for training), and decoding the copies of `prepare_cache` (short sides 256 and 384;
making them is timed, too), and the training and validation pipelines with each. The files are in the system's file
cache; with a slow disk the gain is larger."""
import contextlib, io, statistics, sys, tempfile, time
from pathlib import Path

import cv2, numpy as np
from ppcls_nb.data.cache import prepare_cache
from ppcls_nb.data.imaug.standard import (
    CropImage, DecodeImage, NormalizeImage, RandCropImage, RandFlipImage, ResizeImage, ToCHWImage, transform)
from ppcls_nb.data.petals import draw_scene, make_species

IMAGES, ROUNDS = 8, 5
NORMAL = [NormalizeImage(scale='1./255.', order=''), ToCHWImage()]
TRAIN, VALID = [RandCropImage(224), RandFlipImage(), *NORMAL], [ResizeImage(resize_short=256), CropImage(224), *NORMAL]

# name, operations after decoding, `reduce_to`, short side of the cached copies
PIPELINES = ('decode', [], 512, 256), ('valid', VALID, 512, 256), ('train', TRAIN, 800, 384)


def speed(files, ops):
    "Images per second of reading the files and applying the operations, with one thread."
    rng, since, n = np.random.default_rng(0), time.perf_counter(), 0
    while n == 0 or time.perf_counter() - since < .15:
        for file in files:
            transform(file.read_bytes(), ops, rng)
        n += len(files)
    return n/(time.perf_counter() - since)


def originals(folder, short):
    "Write drawn scenes with some noise; returns the files."
    (folder/'list.txt').write_text(''.join(f'{i}.jpg 0\n' for i in range(IMAGES)))
    for i in range(IMAGES):
        scene = draw_scene(make_species(i), np.random.default_rng(i), 1024)[:768]
        interpolation = cv2.INTER_AREA if short <= 768 else cv2.INTER_CUBIC
        scene = cv2.resize(scene, (short*4//3, short), interpolation=interpolation)
        noise = np.random.default_rng(i).integers(-6, 7, scene.shape, np.int16)
        noisy = np.clip(scene + noise, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder/f'{i}.jpg'), noisy, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return [folder/f'{i}.jpg' for i in range(IMAGES)]


def main(shorts):
    cv2.setNumThreads(0)
    print(f'OpenCV {cv2.__version__}, one core, {IMAGES} files each, median of {ROUNDS} interleaved rounds; ratios '
          'are to the full decode of the originals')
    for short in shorts:
        with tempfile.TemporaryDirectory() as temp:
            folder = Path(temp)/'original'
            folder.mkdir()
            files, copies = originals(folder, short), {}
            for size in (256, 384):
                since = time.perf_counter()
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    report = prepare_cache(folder/'list.txt', folder, Path(temp)/f'{size}', size, num_workers=1)
                copies[size] = [Path(temp)/f'{size}'/f.name for f in files]
                print(f'{short:5d} px: cache {size}: {IMAGES/(time.perf_counter() - since):7.1f} images/s to make, '
                      f'{report.bytes_before/IMAGES/1024:6.0f} kB → {report.bytes_after/IMAGES/1024:4.0f} kB a file')
            for what, ops, reduce_to, size in PIPELINES:
                sources = {'full': (files, None), f'reduce_to {reduce_to}': (files, reduce_to),
                           f'cache {size}': (copies[size], None)}
                rounds = [{name: speed(f, [DecodeImage(reduce_to=n), *ops]) for name, (f, n) in sources.items()}
                          for _ in range(ROUNDS)]
                cells = [f"{name} {statistics.median(r[name] for r in rounds):7.1f}/s "
                         f"x{statistics.median(r[name]/r['full'] for r in rounds):.2f}" for name in sources]
                print(f'          {what:7s}', '   '.join(cells))


if __name__ == '__main__': main([int(s) for s in sys.argv[1:]] or [375, 750, 1500, 3000])
