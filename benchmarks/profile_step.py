"""Profiles a training step with Paddle's profiler: the time of each operation without the operations inside it.

python benchmarks/profile_step.py [NETWORK:PIXELS …] [--rows 15]
"""
import argparse
from collections import Counter

import ppcls_nb
import paddle
from paddle import profiler
from paddle.nn import functional as F

from ppcls_nb.models import create_model

NETWORKS = ('MobileNetV3_small_x1_0', 'MobileNetV3_large_x1_0', 'EfficientNetB0_small', 'ResNet18_vd', 'ResNet50_vd')
BATCH, WARM_UP, STEPS = 32, 3, 3


def add_own_times(node, times: Counter, calls: Counter):
    "Add the milliseconds of `node` and of all below it, each without its children, under their names."
    inside = sum(child.end_ns - child.start_ns for child in node.children_node)
    times[node.name] += (node.end_ns - node.start_ns - inside)/1e6
    calls[node.name] += 1
    for child in node.children_node:
        add_own_times(child, times, calls)


def profile(name: str, size: int) -> tuple:
    "(milliseconds, calls) of one training step by name of the operation."
    model = create_model(name, class_num=102)
    optimizer = paddle.optimizer.Momentum(0.01, parameters=model.parameters())
    x, y = paddle.rand([BATCH, 3, size, size]), paddle.randint(0, 102, [BATCH])

    def step():
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.clear_grad()

    for _ in range(WARM_UP):
        step()
    times, calls = Counter(), Counter()
    watch = profiler.Profiler(targets=[profiler.ProfilerTarget.CPU])
    watch.start()
    for _ in range(STEPS):
        step()
    watch.stop()
    for root in watch.profiler_result.get_data().values():
        for node in root.children_node:
            add_own_times(node, times, calls)
    return {k: t/STEPS for k, t in times.items()}, {k: n/STEPS for k, n in calls.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('cases', nargs='*', metavar='NETWORK:PIXELS',
                        default=[f'{name}:{size}' for name in NETWORKS for size in (64, 96, 128)])
    parser.add_argument('--rows', type=int, default=15, metavar='N',
                        help='operations listed for each network (%(default)s)')
    args = parser.parse_args()
    print(f'paddle {paddle.__version__}, {ppcls_nb.set_threads()} threads, batch {BATCH}, one training step')
    for name, size in (case.rsplit(':', 1) for case in args.cases):
        times, calls = profile(name, int(size))
        total = sum(times.values())
        print(f'\n{name} at {size} px: {total:.0f} ms')
        for operation, t in sorted(times.items(), key=lambda pair: -pair[1])[:args.rows]:
            print(f'{t:8.1f} ms {t/total:5.0%} {calls[operation]:6.0f} ×  {operation}', flush=True)


if __name__ == '__main__':
    main()
