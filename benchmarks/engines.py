"""Compares the inference engines on exported networks, and checks the choice of `engine='auto'`.

python benchmarks/engines.py [NETWORK:PIXELS ...] [--batch 1 8] [--threads N ...] [--engines NAME ...] [--rounds 10]
[--runs 3] [--seconds 15] [--cpu-time] [--csv FILE] [--figure FILE] [--measured]

Every network, with random weights and 100 classes, is exported with ONNX. `ppcls_nb.deploy.benchmark.benchmark` runs
each engine in a separate process, in rounds of changing order, compares their outputs, and measures latency, load time
and memory. Printed are, for each network, size, batch and number of threads, the median ms of each engine and its ratio
to the fastest (the median over the rounds of the ratio within a round); then the worst ratio of each engine, and of
`auto` without a stored choice. With `--measured`, `auto` is what `fastest_engine` chooses for each batch beforehand, in
a temporary home, as a service does when it starts. Exit status 1 where the worst ratio of `auto` is above 1.05.
`--cpu-time` measures processor time, for a machine with other load; only with one thread, as waiting threads count
too."""
import argparse, os, sys, tempfile, time
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import paddle, pandas as pd
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.deploy.benchmark import VARIANTS, benchmark, fastest_engine, figure
from ppcls_nb.deploy.engine_choice import engine_versions, default_engine
from ppcls_nb.deploy.export import export_model, read_export
from ppcls_nb.deploy.timing import ratio_text
from ppcls_nb.basics import PPClsError
from ppcls_nb.models.inference import default_threads
from ppcls_nb.models import create_model

CASES = ('MobileNetV3_large_x1_0:64', 'MobileNetV3_large_x1_0:224', 'ResNet50_vd:64', 'ResNet50_vd:224',
         'MobileNetV1_x0_25:224', 'ShuffleNetV2_x0_25:224', 'SqueezeNet1_1:224', 'EfficientNetB0:224', 'ResNet18:224',
         'SE_ResNet18_vd:64', 'ResNeXt50_32x4d:64', 'DenseNet121:64', 'GoogLeNet:224', 'HRNet_W18_C:64')
LIMIT = 1.05


def export(case, folder):
    "The export of a case, with ONNX where paddle2onnx can convert it."
    name, pixels = case.rsplit(':', 1)
    paddle.seed(0)
    model = create_model(name, class_num=100)
    try:
        return export_model(model, folder, eval_ops(int(pixels)), onnx=True)
    except PPClsError as e:
        print(f'{case}: exported without ONNX, so only Paddle can run it: {e}', flush=True)
        return export_model(model, folder, eval_ops(int(pixels)))


def show(table):
    "Print a line for each batch size."
    for batch, rows in table.groupby('batch'):
        cells = [
            f'{r.engine} {r.p50:.2f} ms {ratio_text(r.ratio_25, r.ratio, r.ratio_75)}'
            for r in rows[rows.failed == ''].sort_values('p50').itertuples()]
        first = rows.iloc[0]
        print(f'{first.network}, {first.pixels} px, batch {batch}, {first.threads} thread(s): {", ".join(cells)}; '
              f'auto: {first.auto}', flush=True)
    ran = table[table.failed == ''].groupby('engine', sort=False)
    print('    load: ' + ', '.join(f'{e} {r.load_s.iloc[0]:.2f} s, {r.memory_MB.max():.0f} MB' for e, r in ran),
          flush=True)
    for e, why in table[table.failed != ''].groupby('engine').failed.first().items():
        print(f'    {e}: {why[:160]}', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('cases', nargs='*', default=CASES, metavar='NETWORK:PIXELS',
                        help=f'(default: {", ".join(CASES)})')
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--threads', type=int, nargs='+', default=None, help='(default: 1, and all cores)')
    parser.add_argument('--engines', nargs='+', default=['paddle', 'onnx', 'openvino'], metavar='NAME',
                        help=f'of {", ".join(VARIANTS)} (paddle onnx openvino)')
    for name, kind, default in (('rounds', int, 10), ('runs', int, 3), ('seconds', float, 15.)):
        parser.add_argument(f'--{name}', type=kind, default=default)
    for name in ('csv', 'figure'):
        parser.add_argument(f'--{name}', type=Path, metavar='FILE')
    for name in ('cpu-time', 'measured'):
        parser.add_argument(f'--{name}', action='store_true')
    args = parser.parse_args()
    threads = args.threads or sorted({1, default_threads()})
    if args.cpu_time and threads != [1]:
        parser.error('--cpu-time: only with --threads 1')
    print(f'{engine_versions()}, {default_threads()} cores, {"processor time" if args.cpu_time else "wall time"}',
          flush=True)
    tables = []
    with tempfile.TemporaryDirectory() as tmp:
        os.environ['PPCLS_HOME'] = f'{tmp}/home'
        for i, case in enumerate(args.cases):
            folder = export(case, Path(tmp)/str(i))
            for n in threads:
                start = time.perf_counter()
                if args.measured:
                    print(f'{case}: {fastest_engine(folder, args.batch, n)} for all batches together, chosen in '
                          f'{time.perf_counter() - start:.1f} s', flush=True)
                tables.append(benchmark(folder, args.engines, args.batch, n, args.rounds, args.runs, args.seconds,
                                        clock='cpu' if args.cpu_time else 'wall', bar=False))
                tables[-1]['auto'] = [default_engine(read_export(folder, False), n, int(b)) for b in tables[-1].batch]
                show(tables[-1])
    table = pd.concat(tables, ignore_index=True)
    if args.csv:
        table.drop(columns='ms').to_csv(args.csv, index=False)
    if args.figure:
        figure(table).savefig(args.figure)
    ran = table[table.failed == '']
    ratios = ran.groupby('engine', sort=False).ratio.agg(['max', 'median', 'size']).round(3)
    ratios.columns = ['worst ratio', 'median ratio', 'cases']
    print(ratios.to_string())
    chosen = ran[ran.engine == ran.auto].sort_values('ratio')
    if len(chosen) < len(table.groupby(['network', 'pixels', 'threads', 'batch'])):
        print('FAIL: the engine of auto did not run in every case')
        sys.exit(1)
    worst, fine = chosen.iloc[-1], chosen.ratio.max() <= LIMIT
    print(f'auto: at worst {worst.ratio:.3f} times the fastest ({worst.network}, {worst.pixels} px, '
          f'batch {worst.batch}, {worst.threads} threads); above {LIMIT} in {(chosen.ratio > LIMIT).sum()} of '
          f'{len(chosen)}')
    print('PASS' if fine else 'FAIL')
    sys.exit(not fine)


if __name__ == '__main__': main()
