"""`ppcls benchmark` with its processes: a variant each, one that dies and one that cannot run here among them; and what
is remembered is what `auto` takes."""
import os
from importlib.util import find_spec

import ppcls_nb  # before paddle: sets the threads
import pytest

import ppcls_nb.cli.benchmark
from ppcls_nb.cli import main
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.deploy import benchmark as lib
from ppcls_nb.deploy.benchmark import ChildRunner, benchmark
from ppcls_nb.deploy.export import export_model, read_export
from ppcls_nb.models import create_model


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return export_model(create_model('MobileNetV3_small_x0_35', class_num=10),
                        tmp_path_factory.mktemp('export')/'small', eval_ops(32), onnx=bool(find_spec('paddle2onnx')))


class Killed(ChildRunner):
    "A process that is killed from outside when it is to measure."
    def ask(self, what, *args):
        if what == 'time': self.process.kill(); self.process.join()
        return super().ask(what, *args)


def test_processes_measure_and_die(folder, monkeypatch):
    monkeypatch.setattr(lib, 'ChildRunner', lambda name, *args: (Killed
                                                                 if name == 'openvino' else ChildRunner)(name, *args))
    monkeypatch.setitem(lib.VARIANTS, 'openvino', lib.VARIANTS['paddle'])
    table = benchmark(folder, ['paddle', 'openvino'], (1,), 1, rounds=3, runs=2, bar=False).set_index('engine')
    assert table.failed['paddle'] == ''
    assert table.ratio['paddle'] == 1
    assert table.difference['paddle'] == 0
    assert table.load_s['paddle'] > 0
    assert table.failed['openvino'].startswith('its process ended with exit code')
    assert table.p50.isna()['openvino']
    if find_spec('psutil'): assert 1 < table.memory_MB['paddle'] < 2000
    assert 'PYTHONWARNINGS' not in os.environ


@pytest.mark.skipif(not (find_spec('paddle2onnx') and find_spec('onnxruntime')), reason='needs ONNX Runtime and '
                                                                                        'paddle2onnx')
def test_command_remembers(folder, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv('PPCLS_HOME', str(tmp_path))
    assert main([
        'benchmark',
        str(folder), '--engines', 'onnx', '--batch', '1', '--threads', '1', '--runs', '3', '--remember']) == 0
    out, err = capfd.readouterr()
    assert 'remembered for' in out
    assert 'auto, batch 1: onnx, ×1.00' in out
    assert 'Warning' not in err
    from ppcls_nb.deploy.engine_choice import usual_engine
    assert usual_engine(read_export(folder), 1) == 'onnx'
    assert len(list((tmp_path/'engines').iterdir())) == 1
