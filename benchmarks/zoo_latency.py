"""Latency of every network of the zoo on this CPU: batch 1, at the size of its evaluation, one network at a time.

python benchmarks/zoo_latency.py [PATTERN ...]     measures the networks whose names match (default: all) and writes
their lines of ppcls_nb/facts/cpu_latency.csv.

A network with fresh weights is exported and run by paddle.inference with oneDNN (without, where Paddle cannot; the file
says so), as one would deploy it. After warming up, the median of up to 15 runs is taken, of fewer where they are slow
(5 at least). The file says in each line: runs, threads, Paddle version, date, processor. Written after each network, so
it may be stopped."""
import csv, datetime, gc, statistics, sys, tempfile, time
from fnmatch import fnmatchcase
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import numpy as np, paddle
from paddle import inference

from ppcls_nb.basics import atomic_path
from ppcls_nb.models import build_model
from ppcls_nb.models.registry import fact_rows
from ppcls_nb.models.zoo import without_computing

FILE = Path(ppcls_nb.__file__).parent/'facts'/'cpu_latency.csv'
COLUMNS = ['arch', 'size', 'cpu_ms', 'runs', 'threads', 'through', 'paddle', 'date', 'cpu']
WARM_UP, RUNS, FEWEST, SECONDS = 2, 15, 5, 2.


def processor():
    "What the processor calls itself."
    lines = Path('/proc/cpuinfo').read_text().splitlines() if Path('/proc/cpuinfo').exists() else []
    return next((line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')), 'unknown')


def predictor(name, size, threads, onednn=True):
    "A predictor of the network `name` with fresh weights; what it was exported to is deleted again."
    with tempfile.TemporaryDirectory() as folder, paddle.static.scope_guard(
            paddle.static.global_scope().new_scope()), without_computing():
        model = build_model(name)
        model.eval()
        x = paddle.static.data('x', [1, 3, size, size])
        y, exe = model(x), paddle.static.Executor(paddle.CPUPlace())
        exe.run(paddle.static.default_startup_program())
        paddle.static.save_inference_model(f'{folder}/net', [x], [y], exe)
        program = next(p for p in Path(folder).iterdir() if p.suffix in ('.json', '.pdmodel'))
        config = inference.Config(str(program), f'{folder}/net.pdiparams')
        config.disable_gpu()
        config.enable_mkldnn() if onednn else config.disable_mkldnn()
        config.set_cpu_math_library_num_threads(threads)
        config.disable_glog_info()
        return inference.create_predictor(config)


def latency(net, size):
    "(median in ms, runs) of one image."
    net.get_input_handle(net.get_input_names()[0]).copy_from_cpu(
        np.random.default_rng(0).standard_normal((1, 3, size, size)).astype('float32'))
    times, since = [], time.perf_counter()
    for i in range(WARM_UP + RUNS):
        start = time.perf_counter()
        net.run()
        if i >= WARM_UP: times.append(time.perf_counter() - start)
        if len(times) >= FEWEST and time.perf_counter() - since > SECONDS: break
    return 1000*statistics.median(times), len(times)


def main(patterns):
    threads, known = int(ppcls_nb.set_threads()), {}
    todo = list(dict.fromkeys((r['arch'], r['crop_size']) for r in fact_rows('weights')))
    if FILE.exists(): known = {(r['arch'], r['size']): r for r in fact_rows('cpu_latency')}
    for name, size in (t for t in todo if any(fnmatchcase(t[0], p) for p in patterns)):
        through = 'paddle.inference with oneDNN'
        try: ms, runs = latency(predictor(name, int(size), threads), int(size))
        except NotImplementedError:                                # Paddle 3.3.1 cannot enlarge maps with oneDNN (HRNet)
            through = 'paddle.inference without oneDNN'
            ms, runs = latency(predictor(name, int(size), threads, onednn=False), int(size))
        gc.collect()
        known[name, size] = dict(arch=name, size=size, cpu_ms=f'{ms:.2f}', runs=runs, threads=threads, through=through,
                                 paddle=paddle.__version__, date=datetime.date.today().isoformat(), cpu=processor())
        with atomic_path(FILE) as tmp, open(tmp, 'w', encoding='utf-8', newline='') as f:
            writer = csv.DictWriter(f, COLUMNS, lineterminator='\n')
            writer.writeheader()
            writer.writerows(known[t] for t in todo if t in known)
        print(f'{name:32s} {size:>4s} px  {ms:9.2f} ms  ({runs} runs)', flush=True)


if __name__ == '__main__': main(sys.argv[1:] or ['*'])
