"""Compares the implementations of a convolution, and derives the plan of facts/conv_plan.csv.

python benchmarks/small_conv.py plan [--quick]            times each layer and prints the rows of the plan
python benchmarks/small_conv.py networks [NAME:PIXELS …]  training with the plan against Paddle's convolutions alone

Measured is the processor time of forward and backward passes, the implementations of a layer in turns, the minimum of
a few rounds. Each limit of the plan is the one with the smallest average loss against the best implementation of each
shape, over all shapes of a row."""
import argparse, itertools, math, statistics, time
from datetime import date

import ppcls_nb
import paddle
from paddle.nn import functional as F
from tqdm import tqdm

from ppcls_nb.course.timing import processor_name
from ppcls_nb.models import create_model
from ppcls_nb.models.image_filter import depthwise_filter
from ppcls_nb.models.gemm import dense_matmul, depthwise_matmul
from ppcls_nb.models.small_conv import Conv2D

# channels of a depthwise layer; the largest number of elements of a feature map, or of its patches, that is timed
CHANNELS, LARGEST = 64, 1e7
DEPTHWISE = [(k, stride) for k in (3, 5) for stride in (1, 2)]
DENSE = [(1, 1), (3, 1), (3, 2)]
SIZES, BATCHES, DENSE_CHANNELS = (2, 4, 7, 8, 14, 16, 24, 32, 56, 112), (1, 8, 32, 128), (64, 256, 512)
TRAINING = [
    'MobileNetV3_small_x1_0:64', 'EfficientNetB0_small:64', 'EfficientNetB0_small:96', 'MobileNetV1:64',
    'MobileNetV2:64', 'ResNet18_vd:64']


def milliseconds(forms: dict, rounds: int) -> dict:
    "{name: minimum processor time of a forward and backward pass}; `forms` are functions that return an output."
    took = {name: [] for name in forms}
    for turn in range(rounds + 1):
        for name, form in forms.items():
            start = time.process_time()
            y = form()
            y.backward(y.detach())
            if turn:
                took[name].append(1000*(time.process_time() - start))
    return {name: min(t) for name, t in took.items()}


def tensor(*shape):
    t = paddle.rand(shape)
    t.stop_gradient = False
    return t


def depthwise_forms(n: int, size: int, k: int, stride: int) -> dict:
    "The forms of a depthwise layer; ours start from (C, N, H, W)."
    pads, out = (k//2,)*4, (size + 2*(k//2) - k)//stride + 1
    x, cnhw, w = tensor(n, CHANNELS, size, size), tensor(CHANNELS, n, size, size), tensor(CHANNELS, 1, k, k)
    forms = dict(paddle=lambda: F.conv2d(x, w, stride=stride, padding=k//2, groups=CHANNELS),
                 filter=lambda: depthwise_filter(cnhw, w, stride, pads, out, out, cnhw=True))
    if (size*out)**2 <= 7e4:
        forms['matrix'] = lambda: depthwise_matmul(cnhw, w, stride, pads, out, out)
    return forms


def dense_forms(n: int, size: int, k: int, stride: int, channels: int) -> dict:
    "The forms of a dense layer, from (N, C, H, W)."
    pads, out = (k//2,)*4, (size + 2*(k//2) - k)//stride + 1
    x, w = tensor(n, channels, size, size), tensor(channels, channels, k, k)
    return dict(paddle=lambda: F.conv2d(x, w, stride=stride, padding=k//2),
                matrix=lambda: dense_matmul(x, w, stride, pads, out, out))


def best_limit(rows, candidates, choose) -> float:
    """The limit of `candidates` with the smallest mean logarithm of (time of the chosen form / time of the best form).

    `choose(limit, row)` gives the name of the chosen form."""
    def loss(limit):
        return statistics.mean(math.log(times[choose(limit, row)]/min(times.values())) for row, times in rows)
    return min(candidates, key=loss)


def plan_depthwise(k: int, stride: int, rounds: int, batches) -> tuple:
    "(matrix_to, filter_from) of a row, and the times."
    rows = []
    for n, size in itertools.product(batches, SIZES):
        if n*size*size*CHANNELS <= LARGEST and size + 2*(k//2) >= k:
            out = (size + 2*(k//2) - k)//stride + 1
            rows.append(((n, size, (size*out)**2/min(n, 32), n*size*size),
                         milliseconds(depthwise_forms(n, size, k, stride), rounds)))
    small = [(row, times) for row, times in rows if 'matrix' in times]
    matrix_to = best_limit(small, [2**i for i in range(4, 13)], lambda limit, row: 'matrix'
                           if row[2] <= limit else 'filter' if row[0] >= 8 else 'paddle')
    rest = [(row, {name: times[name] for name in ('paddle', 'filter')}) for row, times in rows if row[2] > matrix_to]
    return matrix_to, best_limit(rest, [500*i for i in range(1, 21)], lambda limit, row: 'filter'
                                 if row[3] >= limit else 'paddle'), rows


def plan_dense(k: int, stride: int, rounds: int, batches) -> tuple:
    "(matrix_to, None) of a row, and the times."
    rows = []
    for n, size, channels in itertools.product(batches, SIZES[:6], DENSE_CHANNELS):
        out = (size + 2*(k//2) - k)//stride + 1
        if n*out*out*k*k*channels > LARGEST:
            continue
        rows.append(((n, size, out*out, channels), milliseconds(dense_forms(n, size, k, stride, channels), rounds)))
    return best_limit(rows, [1, 4, 9, 16, 49, 64, 196, 256], lambda limit, row: 'matrix'
                      if row[2] <= limit else 'paddle'), None, rows


def print_plan(quick: bool):
    "Time all layers and print the rows of the plan, then the times."
    rounds, batches = (1, (32,)) if quick else (4, BATCHES)
    processor = processor_name().replace(',', ' ')
    lines, details = ['kind,kernel,stride,matrix_to,filter_from,processor,date'], []
    jobs = [('depthwise', plan_depthwise, *row) for row in DEPTHWISE] + [('dense', plan_dense, *row) for row in DENSE]
    for kind, plan, k, stride in tqdm(jobs, desc='layers'):
        matrix_to, filter_from, rows = plan(k, stride, rounds, batches)
        lines.append(f'{kind},{k},{stride},{matrix_to},{filter_from or ""},{processor},{date.today()}')
        for row, times in rows:
            cells = '  '.join(f'{name} {t:8.2f} ms' for name, t in times.items())
            details.append(f'{kind} {k}×{k} stride {stride}  batch {row[0]:3d}  {row[1]:3d} px  {cells}')
    print('\n'.join([*lines, '', *details]))


def images_per_second(model, optimizer, x, y, fast: bool, steps: int) -> float:
    "Training speed in images a second of processor time, after a warm-up step."
    Conv2D.fast = fast
    for step in range(steps + 1):
        if step == 1:
            since = time.process_time()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.clear_grad()
    return len(x)*steps/(time.process_time() - since)


def compare_networks(cases, quick: bool):
    "Print images/s of training with the plan and with Paddle's convolutions, and the quartiles of the ratio."
    rounds, steps, batch = (2, 1, 32) if quick else (7, 2, 32)
    print(f'{processor_name()}, paddle {paddle.__version__}, {ppcls_nb.set_threads()} threads, batch {batch}, {rounds} '
          'rounds in turns')
    for name, size in (case.rsplit(':', 1) for case in cases):
        model = create_model(name, class_num=102)
        optimizer = paddle.optimizer.Momentum(0.01, parameters=model.parameters())
        x, y = paddle.rand([batch, 3, int(size), int(size)]), paddle.randint(0, 102, [batch])
        pairs = [[images_per_second(model, optimizer, x, y, fast, steps) for fast in (True, False)]
                 for _ in range(rounds)]
        ours, theirs = (statistics.median(column) for column in zip(*pairs))
        low, ratio, high = statistics.quantiles([a/b for a, b in pairs], n=4)
        print(f'{name:26s} {size:>4s} px   {ours:7.1f} against {theirs:7.1f} images/s   ratio {ratio:.2f} ({low:.2f} '
              f'… {high:.2f})', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['plan', 'networks'])
    parser.add_argument('cases', nargs='*', metavar='NAME:PIXELS', default=TRAINING)
    parser.add_argument('--quick', action='store_true', help='a few rounds, to check that it runs')
    args = parser.parse_args()
    if args.what == 'plan':
        print_plan(args.quick)
    else:
        compare_networks(args.cases, args.quick)


if __name__ == '__main__':
    main()
