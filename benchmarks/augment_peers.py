"""A contestant of augment.py, which runs in a separate process and environment and makes batches on request.

python augment_peers.py ours|original|albumentations|torchvision FOLDER BATCH   FOLDER holds the images and list.txt
(lines 'name label')

Every line of standard input is a JSON list [method, argument, ...], see `Answers`; every answer is one line of JSON,
{"error": ...} after a failure. All contestants read the same files, compute in one thread and return an array (BATCH,
3, 224, 224) of float32 in C order. The settings are those of the documents' recipes. The pipeline 'fixed' (decode,
scale to 224 x 224, mirror, normalize, transpose) is not random and is used to compare outputs."""
import collections.abc, functools, gc, importlib.metadata, importlib.util, io, json, os, random, statistics
import sys, time, traceback, types
from pathlib import Path

import numpy as np

SIZE, MEAN, STD = 224, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLOCKS = (time.perf_counter, time.process_time)
FILL = [128, 128, 128]           # colour outside of a rotated image; the original's default
AUGMENT = dict(autoaugment={'ImageNetPolicy': {}}, randaugment={'RandAugment': dict(num_layers=2, magnitude=5)})
HIDE = dict(cutout={'Cutout': dict(n_holes=1, length=112)}, random_erasing={'RandomErasing': dict(EPSILON=0.5)},
            hide_and_seek={'HideAndSeek': {}},
            gridmask={'GridMask': dict(d1=96, d2=224, rotate=1, ratio=0.5, mode=0, prob=1.)})


def mirror(img, rng=None): return np.ascontiguousarray(img[:, ::-1])


def recipe(pipeline, hide_last=False):
    "The documents' recipe as {operation: arguments}; operations that hide parts come before ToCHWImage, or after it."
    if pipeline == 'fixed':
        first = [{'ResizeImage': dict(size=[SIZE, SIZE])}, mirror]
    else:
        first = [{'RandCropImage': dict(size=SIZE)}, {'RandFlipImage': dict(flip_code=1)}]
    augment, hide = ([table[pipeline]] if pipeline in table else [] for table in (AUGMENT, HIDE))
    normalize, transpose = {'NormalizeImage': dict(scale='1./255.', mean=MEAN, std=STD, order='')}, {'ToCHWImage': {}}
    last = [transpose, *hide] if hide_last else [*hide, transpose]
    return [{'DecodeImage': dict(to_rgb=True, channel_first=False)}, *first, *augment, normalize, *last]


def read(path):
    with open(path, 'rb') as f: return f.read()


def assemble(images):
    "Arrays (height, width, 3) → a batch (N, 3, height, width) in C order; `np.stack` would keep the memory order."
    import cv2
    out = np.empty((len(images), 3, *images[0].shape[:2]), np.float32)
    for img, planes in zip(images, out): cv2.split(img, list(planes))
    return out


class Ours:
    """ppcls_nb's own way: its dataset and its loader without workers, up to the arrays that would be copied into
    Paddle's tensors next."""
    def __init__(self, folder, paths, batch):
        import ppcls_nb, cv2
        cv2.setNumThreads(0)
        self.folder, self.size, self.version = folder, batch, f'ppcls_nb {importlib.metadata.version("ppcls_nb")}'

    def loader(self, dataset):
        from ppcls_nb.data.loader import make_loader
        return make_loader(dataset, self.size)

    @functools.cache
    def dataset(self, pipeline):
        from ppcls_nb.data.datasets import ListDataset
        from ppcls_nb.data.imaug import build_ops
        return ListDataset(self.folder, self.folder/'list.txt',
                           [op if callable(op) else build_ops([op])[0] for op in recipe(pipeline)])

    def build(self, pipeline):
        if pipeline == 'single':
            from ppcls_nb.data.transform import transform
            dataset, rng = self.dataset(pipeline), np.random.default_rng(0)
            return lambda epoch, indices: [transform(read(dataset.paths[i]), dataset.transforms, rng) for i in indices]
        loader = self.loader(self.dataset(pipeline))
        return lambda epoch, indices: loader._arrays([(epoch, i) for i in indices])[0]

    def stages(self, pipeline, epoch, batches, clock):
        """Stage → µs an image, median over the batches.

        The operations run one by one, each on the output of the one before, which is still in the processor's cache."""
        from ppcls_nb.data.transform import InPlaceOp, joined
        dataset, laps = self.dataset(pipeline), collections.defaultdict(list)
        ops = [(type(op).__name__ if op is not mirror else 'mirror', op.paint if isinstance(op, InPlaceOp) else op)
               for op in joined(dataset.ops(epoch))]
        for indices in batches:
            spent, samples, since = collections.Counter(), [], clock()

            def lap(stage):
                nonlocal since
                now = clock()
                spent[stage] += now - since
                since = now

            for i in indices:
                data = read(dataset.paths[i])
                lap('read the file')
                rng = np.random.default_rng([dataset.seed, epoch, i])
                lap('generator')
                for name, op in ops:
                    out = op(data, rng)
                    lap(name)
                    if out is not None:                     # else an in-place operation has changed `data`
                        data = out
                samples.append((data, dataset.labels[i]))
            loader = self.loader(samples)
            since = clock()
            loader._arrays(range(len(samples)))
            lap('assembly')
            for stage in spent:
                laps[stage].append(1e6*spent[stage]/len(indices))
        return {stage: statistics.median(times) for stage, times in laps.items()}


class Original:
    "The operations of paddleclas 2.2.1 alone; names that Python and NumPy have removed since are restored."
    def __init__(self, folder, paths, batch):
        collections.Callable, np.int, np.float = collections.abc.Callable, int, float
        root = importlib.util.find_spec('paddleclas').submodule_search_locations[0]
        sys.path.insert(0, root)
        # their __init__ would import all of PaddleClas, and Paddle
        for name in ('ppcls', 'ppcls.data', 'ppcls.utils'):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [os.path.join(root, *name.split('.'))]
        import cv2, ppcls.data.preprocess as preprocess
        cv2.setNumThreads(0)
        grid = sys.modules['ppcls.data.preprocess.ops.grid']
        grid.CURR_EPOCH = grid.NUM_EPOCHS                                    # the end of GridMask's schedule
        self.paths = paths
        self.preprocess = preprocess
        self.version = f'paddleclas {importlib.metadata.version("paddleclas")}'

    def build(self, pipeline):
        names = dict(ImageNetPolicy='AutoAugment')
        ops = []
        for op in recipe(pipeline, pipeline != 'cutout'):
            if not callable(op):
                name, arguments = next(iter(op.items()))
                op = getattr(self.preprocess, names.get(name, name))(**arguments)
            ops.append(op)

        def sample(path): return self.preprocess.transform(read(path), ops).transpose(1, 2, 0)

        return lambda epoch, indices: assemble([sample(self.paths[i]) for i in indices])


class Albumentations:
    "OpenCV decodes to RGB, then one `Compose`."
    def __init__(self, folder, paths, batch):
        import albumentations, cv2
        cv2.setNumThreads(0)
        self.paths, self.A, self.version = paths, albumentations, f'albumentations {albumentations.__version__}'

    def build(self, pipeline):
        import cv2
        A = self.A
        if pipeline == 'fixed':
            crop, flip = A.Resize(SIZE, SIZE), 1
        else:
            crop, flip = A.RandomResizedCrop((SIZE, SIZE), scale=(.08, 1), ratio=(3/4, 4/3)), .5
        compose = A.Compose([crop, A.HorizontalFlip(p=flip), A.Normalize(MEAN, STD)], seed=0)

        def sample(path):
            return compose(image=cv2.imdecode(np.frombuffer(read(path), np.uint8), cv2.IMREAD_COLOR_RGB))['image']
        if pipeline == 'single':
            return lambda epoch, indices: [sample(self.paths[i]).transpose(2, 0, 1) for i in indices]
        return lambda epoch, indices: assemble([sample(self.paths[i]) for i in indices])


class TorchVision:
    """Transforms v2 on uint8 tensors or on Pillow images, whichever is faster here.

    Conversion to float and normalization are done for the whole batch, which is faster than image by image."""
    def __init__(self, folder, paths, batch):
        import torch, torchvision
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        torch.manual_seed(0)
        self.paths, self.size, self.version, self.types = paths, batch, f'torchvision {torchvision.__version__}', {}

    def make_batch_function(self, pipeline, pillow):
        import torch
        from PIL import Image
        from torchvision.io import ImageReadMode, decode_image
        from torchvision.transforms import v2
        augment = dict(autoaugment=[v2.AutoAugment(fill=FILL)],
                       randaugment=[v2.RandAugment(2, 5, num_magnitude_bins=10, fill=FILL)]).get(pipeline, [])
        if pipeline == 'fixed':
            first = [v2.Resize((SIZE, SIZE)), v2.RandomHorizontalFlip(1)]
        else:
            first = [v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip()]
        last = [v2.PILToTensor()] if pillow else []
        compose = v2.Compose([*first, *augment, *last])
        normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

        def sample(path):
            if pillow:
                return compose(Image.open(io.BytesIO(read(path))).convert('RGB'))
            return compose(decode_image(path, ImageReadMode.RGB))

        if pipeline == 'single':
            return lambda epoch, indices: [normalize(sample(self.paths[i])).numpy() for i in indices]
        return lambda epoch, indices: normalize(torch.stack([sample(self.paths[i]) for i in indices])).numpy()

    def build(self, pipeline):
        functions = {'tensors': self.make_batch_function(pipeline, False),
                     'Pillow': self.make_batch_function(pipeline, True)}
        took = {name: min(seconds(function, 0, [range(self.size)], time.process_time) for _ in range(4))
                for name, function in functions.items()}
        self.types[pipeline] = min(took, key=took.get)
        return functions[self.types[pipeline]]


def seconds(batch, epoch, batches, clock=time.perf_counter):
    "The seconds that `batch` needs for the batches, after a warm-up and without garbage collection."
    batch(epoch, batches[0][:4])
    gc.disable()
    since = clock()
    for indices in batches:
        batch(epoch, indices)
    took = clock() - since
    gc.enable()
    return took


class Answers:
    "The methods that can be called in a contestant's process."
    def __init__(self, contestant):
        self.contestant, self.batch = contestant, functools.cache(contestant.build)

    def version(self): return f'{self.contestant.version}, NumPy {np.__version__}'
    def image_types(self): return getattr(self.contestant, 'types', {})
    def time(self, pipeline, epoch, batches, cpu): return seconds(self.batch(pipeline), epoch, batches, CLOCKS[cpu])
    def stages(self, pipeline, epoch, batches, cpu):
        return self.contestant.stages(pipeline, epoch, batches, CLOCKS[cpu])

    def save(self, pipeline, indices, path):
        "Write a batch."
        np.save(path, self.batch(pipeline)(0, indices))

    def describe(self, pipeline, epochs, batches):
        """Statistics of all batches: mean and standard deviation ('spread') of each channel, and the fraction of pixels
        that are exactly 0; and shape, dtype and C order of the first batch."""
        total, square, zero, n, kind = np.zeros(3), np.zeros(3), 0, 0, None
        for epoch in epochs:
            for indices in batches:
                x = np.ascontiguousarray(self.batch(pipeline)(epoch, indices))
                kind = kind or [list(x.shape), str(x.dtype), x.flags.c_contiguous]
                zero, n = zero + (x == 0).all(1).sum(), n + x[:, 0].size
                total = total + x.sum((0, 2, 3), dtype=np.float64)
                square = square + (x*x).sum((0, 2, 3), dtype=np.float64)
        mean = total/n
        return dict(kind=kind, mean=mean.tolist(), spread=np.sqrt(square/n - mean**2).tolist(), zero=float(zero/n))


def serve(make):
    "Call methods of the object that `make` returns, as the lines [method, argument, ...] of standard input say."
    # prints of the peers go to standard error
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    contestant = None
    for line in sys.stdin:
        try:
            contestant = contestant or make()
            question, *arguments = json.loads(line)
            answer = dict(answer=getattr(contestant, question)(*arguments))
        except Exception:
            answer = dict(error=traceback.format_exc())
        print(json.dumps(answer), file=answers, flush=True)


def main(name, folder, batch):
    random.seed(0)
    np.random.seed(0)
    folder = Path(folder)
    paths = [str(folder/line.rsplit(' ', 1)[0]) for line in (folder/'list.txt').read_text().splitlines()]
    contestants = dict(ours=Ours, original=Original, albumentations=Albumentations, torchvision=TorchVision)
    serve(lambda: Answers(contestants[name](folder, paths, int(batch))))


if __name__ == '__main__': main(*sys.argv[1:])
