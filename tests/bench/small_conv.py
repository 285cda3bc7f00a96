"""Training speed with the product form of small convolutions (`models.small_conv`) against Paddle's own, interleaved in one run.

python tests/bench/small_conv.py [NETWORK:PIXELS ...]   prints images/s of both and their ratio: the median over the rounds, one CPU process.
"""
import statistics, sys, time

import ppcls_nb
import paddle
from ppcls_nb.models import create_model
from ppcls_nb.models.small_conv import Conv2D

BATCH, STEPS, ROUNDS = 32, 3, 5


def speed(model, optimizer, x, y, fast):
    "Images per second of a few training steps, after one to warm up."
    Conv2D.fast = fast
    for i in range(STEPS + 1):
        if i == 1: since = time.perf_counter()
        paddle.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.clear_grad()
    return BATCH*STEPS/(time.perf_counter() - since)


def main(cases):
    print(f'paddle {paddle.__version__}, {ppcls_nb.set_threads()} threads, batch {BATCH}, median of {ROUNDS} interleaved rounds')
    for name, size in (case.rsplit(':', 1) for case in cases):
        model = create_model(name, class_num=102)
        optimizer = paddle.optimizer.Momentum(0.01, parameters=model.parameters())
        x, y = paddle.rand([BATCH, 3, int(size), int(size)]), paddle.randint(0, 102, [BATCH])
        rounds = [(speed(model, optimizer, x, y, True), speed(model, optimizer, x, y, False)) for _ in range(ROUNDS)]
        ours, theirs = (statistics.median(column) for column in zip(*rounds))
        print(f'{name:26s} {size:>4s} px   {ours:7.1f} against {theirs:7.1f} images/s   ratio {statistics.median(a/b for a, b in rounds):.2f}')


if __name__ == '__main__': main(sys.argv[1:] or ['EfficientNetB0_small:64', 'EfficientNetB0_small:96', 'MobileNetV3_small_x1_0:64', 'ResNet18_vd:64'])
