"""`benchmark` with its processes: a variant each, one that dies and one that cannot run here among them; the choice of
an engine from the table; and what is remembered is what `auto` takes."""
import os

import ppcls_nb  # before paddle: sets the threads
import numpy as np, paddle, pandas as pd, pytest

import ppcls_nb.cli.benchmark
from ppcls_nb.basics import PPClsError
from ppcls_nb.cli import main
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.deploy import benchmark as lib
from ppcls_nb.deploy.benchmark import (ChildRunner, benchmark, choose_engine, compare_outputs, default_variants,
                                       fastest_engine, figure, timing_rows)
from ppcls_nb.deploy.engine_choice import available_engines, remember_engine, remembered_engine, default_engine
from ppcls_nb.deploy.export import export_model, read_export
from ppcls_nb.models import create_model



@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return export_model(create_model('MobileNetV3_small_x0_35', class_num=10),
                        tmp_path_factory.mktemp('export')/'small', eval_ops(32), onnx=True)


@pytest.fixture(scope='module')
def table(folder):
    variants = ['paddle', 'paddle-plain', 'onnx', 'tensorrt']
    return benchmark(folder, variants, (1, 4), 1, rounds=6, runs=8, isolated=False, bar=False)


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv('PPCLS_HOME', str(tmp_path))
    return tmp_path


def test_default_variants():
    gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count()
    assert set(default_variants()) >= {'paddle', 'paddle-plain', 'training', 'onnx', 'openvino'}
    assert ('gpu' in default_variants()) == bool(gpu)


class Killed(ChildRunner):
    "A process that is killed from outside when it is to measure."
    def ask(self, method, *args):
        if method == 'time':
            self.process.kill()
            self.process.join()
        return super().ask(method, *args)


def test_processes_measure_and_die(folder, monkeypatch):
    def make(name, *args):
        return (Killed if name == 'openvino' else ChildRunner)(name, *args)
    monkeypatch.setattr(lib, 'ChildRunner', make)
    monkeypatch.setitem(lib.VARIANTS, 'openvino', lib.VARIANTS['paddle'])
    table = benchmark(folder, ['paddle', 'openvino'], (1,), 1, rounds=3, runs=2, bar=False).set_index('engine')
    assert table.failed['paddle'] == ''
    assert table.ratio['paddle'] == 1
    assert table.difference['paddle'] == 0
    assert table.load_s['paddle'] > 0
    assert table.failed['openvino'].startswith('its process ended with exit code')
    assert table.p50.isna()['openvino']
    assert 1 < table.memory_MB['paddle'] < 2000
    assert 'PYTHONWARNINGS' not in os.environ


def test_outputs_beyond_the_tolerance_fail():
    good, failed = np.array([[1., -2.], [0., 4.]]), {}
    outputs = {
        'paddle': good,
        'onnx': good + 1e-6,
        'openvino': good*1.01,
        'training': good*np.nan,
        'paddle-plain': good[:1]}
    differences = compare_outputs(outputs, failed)
    assert differences['paddle'] == 0
    assert differences['onnx'] < 1e-6
    assert set(failed) == {'openvino', 'training', 'paddle-plain'}
    assert 'those of paddle by 1.0e-02 of the largest' in failed['openvino']
    assert failed['training'] == 'its outputs are not finite'
    assert 'shape (1, 2), those of paddle (2, 2)' in failed['paddle-plain']


def test_rows_of_a_table():
    rows = timing_rows({'a': np.full((4, 3), .002), 'b': np.full((4, 3), .003)}, batch=6)
    assert rows['a']['ratio'] == 1
    assert rows['b']['ratio'] == pytest.approx(1.5)
    assert rows['a']['images/s'] == pytest.approx(3000)
    assert rows['a']['p50'] == pytest.approx(2)
    assert timing_rows({}, 1) == {}


def test_the_table(table):
    ran = table[table.failed == ''].set_index(['engine', 'batch'])
    assert len(table) == 8
    assert {'paddle', 'paddle-plain'} <= set(ran.index.get_level_values(0))
    assert (ran.ratio_25 <= ran.ratio).all()
    assert (ran.p5 <= ran.p50).all()
    assert (ran.p50 <= ran.p99).all()
    assert ran.difference.max() < 1e-4
    assert ran.ratio.groupby('batch').min().le(1).all()
    assert ran.ms.iloc[0].shape == (6, 8)


@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason='this Paddle has GPU support')
def test_a_variant_that_cannot_run_has_a_row_with_the_reason(table):
    assert table.failed[table.engine == 'tensorrt'].str.contains('built without GPU').all()


@pytest.mark.parametrize('options, message', [
    (dict(variants=['onix']), "did you mean 'onnx'"),
    (dict(batches=(0,)), 'batch 0: expected whole numbers'),
    (dict(threads=0), 'threads 0'),
    (dict(runs=0), 'runs 0')])
def test_wrong_arguments(folder, tmp_path, options, message):
    with pytest.raises(PPClsError, match=message):
        benchmark(folder, **options)
    with pytest.raises(PPClsError, match='no such folder'):
        benchmark(tmp_path/'nothing')


def test_the_figure(table):
    panels = figure(pd.concat([table, table.assign(threads=2)])).axes
    assert len(panels) == 2
    assert '1 thread' in panels[0].get_title()
    assert '2 threads' in panels[1].get_title()
    assert len(panels[0].patches) == 2*table[table.failed == ''].engine.nunique()
    with pytest.raises(PPClsError, match='nothing to draw'):
        figure(table[table.failed != ''])


def ratios(failed='', **by_engine):
    "A table for batches 1 and 8 with these ratios of each engine."
    rows = [(engine, batch, r, r, r, failed) for engine, own in by_engine.items() for batch, r in zip((1, 8), own)]
    return pd.DataFrame(rows, columns=['engine', 'batch', 'p50', 'ratio', 'ratio_25', 'failed'])


def test_the_engine_with_the_smallest_worst_ratio_is_chosen():
    assert choose_engine(ratios(paddle=(2., 1.), onnx=(1., 1.04), openvino=(1.2, 1.)))[:2] == ('onnx', 1.04)
    assert choose_engine(ratios(onnx=(1.01, 1.), openvino=(1., 1.01)), 'onnx')[0] == 'onnx'
    assert choose_engine(ratios(onnx=(1.04, 1.), openvino=(1., 1.)), 'onnx')[0] == 'openvino'


def test_an_engine_that_failed_once_is_not_chosen():
    table = pd.concat([ratios(onnx=(1., 1.)), ratios(paddle=(1.3, 1.2))]).assign(failed=['', 'ended', '', ''])
    assert choose_engine(table)[:2] == ('paddle', 1.)
    with pytest.raises(PPClsError, match='no engine can run this network: onnx: no'):
        choose_engine(ratios('no', onnx=(1., 1.)))


def test_the_fastest_engine_is_measured_once(folder, home):
    record = read_export(folder)
    engines = available_engines(record)
    if len(engines) == 1:
        pytest.skip('only one engine is installed')
    assert fastest_engine(folder, (1,), 1, seconds=.1) in engines
    assert default_engine(record, 1) == remembered_engine(record, 1)['engine']
    remember_engine(record, 1, 'paddle', {1: {}})
    assert default_engine(record, 1) == fastest_engine(folder, (1,), 1) == 'paddle'
    assert fastest_engine(folder, (1,), 1, .1, again=True) in engines
    assert set(remembered_engine(record, 1)['ms']) == {1}


def test_command_remembers(folder, home, capfd):
    argv = ['--engines', 'onnx', '--batch', '1', '--threads', '1', '--runs', '3', '--remember']
    assert main(['benchmark', str(folder), *argv]) == 0
    out, err = capfd.readouterr()
    assert 'remembered for' in out
    assert 'auto, batch 1: onnx, × 1.00' in out
    assert 'Warning' not in err
    assert default_engine(read_export(folder), 1) == 'onnx'
    assert len(list((home/'engines').iterdir())) == 1
