"""Latency of every network of the zoo on this CPU: batch 1, at the size of its evaluation, one network at a time.

python benchmarks/zoo_latency.py [PATTERN ...]     measures the networks whose names match (default: all) and writes
their rows of ppcls_nb/facts/cpu_latency.csv.

A network with random weights is exported in its form for deployment and run by paddle.inference with oneDNN (without
oneDNN where Paddle does not support it; the column `through` says so). The latency is the median of up to 15 runs after
a warm-up, at least 5 for slow networks. Each row has the runs, threads, Paddle version, date and processor. The file is
written after each network, so the program can be interrupted."""
import datetime, gc, statistics, sys, tempfile, time
from fnmatch import fnmatchcase
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import numpy as np, paddle
from paddle import inference

from ppcls_nb.basics import write_csv
from ppcls_nb.course.timing import processor_name
from ppcls_nb.models import build_model
from ppcls_nb.models.network import branched_layers
from ppcls_nb.models.registry import WEIGHTS, fact_rows
from ppcls_nb.models.zoo import without_computing

FILE = Path(ppcls_nb.__file__).parent/'facts'/'cpu_latency.csv'
COLUMNS = ['arch', 'size', 'cpu_ms', 'runs', 'threads', 'through', 'paddle', 'date', 'cpu']
WARM_UP, RUNS, FEWEST, SECONDS = 2, 15, 5, 1.


def predictor(name, size, threads, onednn=True):
    "A predictor of the network `name` with random weights."
    scope = paddle.static.scope_guard(paddle.static.global_scope().new_scope())
    with tempfile.TemporaryDirectory() as folder, scope, without_computing():
        model = build_model(name)
        if branched_layers(model):
            model = build_model(name, deploy=True)
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
    "(median in ms, number of runs) for one image."
    image = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype('float32')
    net.get_input_handle(net.get_input_names()[0]).copy_from_cpu(image)
    times, since = [], time.perf_counter()
    for i in range(WARM_UP + RUNS):
        start = time.perf_counter()
        net.run()
        if i >= WARM_UP:
            times.append(time.perf_counter() - start)
        if len(times) >= FEWEST and time.perf_counter() - since > SECONDS: break
    return 1000*statistics.median(times), len(times)


def main(patterns):
    threads, known = int(ppcls_nb.set_threads()), {}
    todo = list(dict.fromkeys((record.arch, str(record.crop_size)) for record in WEIGHTS.values()))
    if FILE.exists():
        known = {(r['arch'], r['size']): r for r in fact_rows('cpu_latency')}
    for name, size in (t for t in todo if any(fnmatchcase(t[0], p) for p in patterns)):
        through = 'paddle.inference with oneDNN'
        try:
            ms, runs = latency(predictor(name, int(size), threads), int(size))
        except NotImplementedError:             # Paddle 3.3.1 cannot enlarge feature maps with oneDNN (HRNet)
            through = 'paddle.inference without oneDNN'
            ms, runs = latency(predictor(name, int(size), threads, onednn=False), int(size))
        gc.collect()
        known[name, size] = dict(arch=name, size=size, cpu_ms=f'{ms:.2f}', runs=runs, threads=threads, through=through,
                                 paddle=paddle.__version__, date=datetime.date.today().isoformat(),
                                 cpu=processor_name())
        write_csv(FILE, [COLUMNS, *([known[t][column] for column in COLUMNS] for t in todo if t in known)])
        print(f'{name:32s} {size:>4s} px  {ms:9.2f} ms  ({runs} runs)', flush=True)


if __name__ == '__main__': main(sys.argv[1:] or ['*'])
