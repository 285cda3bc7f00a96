"""Measures the speedup of 8-bit networks at batch 1 in ONNX Runtime, OpenVINO and Paddle.

    python benchmarks/quantize.py MobileNetV3_large_x1_0 ResNet18_vd [--size 224] [--runs 100]

Printed is the time of the float network divided by that of its 8-bit version, run alternately. The weights and images
are random, so only the times are meaningful. Paddle uses static post-training quantization and oneDNN int8; it needs a
.pdmodel file, so on Paddle 3 it runs in a separate process with the old intermediate representation."""
import argparse, os, subprocess, sys, tempfile
from pathlib import Path

import numpy as np



def make_network(name, size, images):
    "A network with random weights, in evaluation mode, whose batch norm statistics are those of `images`."
    import paddle
    from ppcls_nb.models import create_model
    paddle.seed(0)
    net = create_model(name)
    net.train()
    for _ in range(3):
        net(paddle.to_tensor(images))
    net.eval()
    return net


def print_ratio(name, engine, ratio):
    from ppcls_nb.deploy.timing import ratio_text
    print(f'{name:26}{engine:12}{ratio_text(*ratio)}', flush=True)


def compare_onnx(name, size, runs, images):
    from dataclasses import replace
    from ppcls_nb.data.imaug.presets import eval_ops
    from ppcls_nb.deploy.export import export_model, read_export
    from ppcls_nb.deploy.predict import Predictor
    from ppcls_nb.deploy.quantize import calibrate, float_graph, speed_ratio, write_int8
    with tempfile.TemporaryDirectory() as tmp:
        work = Path(tmp)
        export_model(make_network(name, size, images), work/'float', eval_ops(size), onnx=True)
        record = read_export(work/'float')
        _, folded = float_graph(record, work)
        (work/'int8').mkdir()
        write_int8(folded, work/'int8'/'inference.onnx', calibrate(folded, [images]))
        after = replace(record, folder=work/'int8', files={'inference.onnx': ''})
        for engine in ('onnx', 'openvino'):
            a, b = Predictor(record, engine), Predictor(after, engine)
            print_ratio(name, engine, speed_ratio(a.run, b.run, images[:1], runs))


def compare_paddle(name, size, runs, images):
    import paddle
    from paddle.static.quantization import PostTrainingQuantization
    from ppcls_nb.deploy.quantize import speed_ratio
    from ppcls_nb.models.inference import InferenceEngine, save_inference
    with tempfile.TemporaryDirectory() as tmp:
        save_inference(make_network(name, size, images), f'{tmp}/float', (3, size, size))
        paddle.enable_static()
        tool = PostTrainingQuantization(paddle.static.Executor(paddle.CPUPlace()), model_dir=f'{tmp}/float',
                                        model_filename='inference.pdmodel', params_filename='inference.pdiparams',
                                        data_loader=lambda: ({'image': x[None]} for x in images),
                                        batch_size=1, batch_nums=len(images), algo='avg', onnx_format=True)
        tool.quantize()
        tool.save_quantized_model(f'{tmp}/int8', model_filename='inference.pdmodel',
                                  params_filename='inference.pdiparams')
        paddle.disable_static()
        a, b = InferenceEngine(f'{tmp}/float'), InferenceEngine(f'{tmp}/int8', config=lambda c: c.enable_mkldnn_int8())
        print_ratio(name, 'paddle int8', speed_ratio(a, b, images[:1], runs))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('networks', nargs='+')
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--runs', type=int, default=100)
    parser.add_argument('--paddle', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    import ppcls_nb
    images = np.random.default_rng(0).standard_normal((8, 3, args.size, args.size), np.float32)
    for name in args.networks:
        if args.paddle:
            compare_paddle(name, args.size, args.runs, images)
            continue
        compare_onnx(name, args.size, args.runs, images)
        command = [sys.executable, __file__, name, '--paddle', '--size', str(args.size), '--runs', str(args.runs)]
        out = subprocess.run(command, env={**os.environ, 'FLAGS_enable_pir_api': '0'}, capture_output=True, text=True)
        lines = [line for line in out.stdout.splitlines() if 'quartiles' in line]
        error = (out.stderr.strip().splitlines() or ['no output'])[-1]
        print(lines[0] if lines else f'{name}: Paddle: {error}', flush=True)
