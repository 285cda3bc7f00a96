"`ppcls benchmark`: tables, files, the remembered engine, engines that cannot run, and mistakes in one line."
import csv

import paddle, pytest

from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.deploy import benchmark as library
from ppcls_nb.deploy.export import export_model
from ppcls_nb.models import create_model
from small_run import ppcls


class InProcess(library.Runner):
    "A runner that stays open, in place of a process."
    def close(self):
        pass


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "An exported network without inference.onnx."
    paddle.seed(0)
    network = create_model('MobileNetV3_small_x0_35', class_num=10)
    return export_model(network, tmp_path_factory.mktemp('home')/'small', eval_ops(32), onnx=False)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "A cache folder of its own, and engines in this process."
    monkeypatch.setenv('PPCLS_HOME', str(tmp_path/'home'))
    monkeypatch.setattr(library, 'ChildRunner', InProcess)
    return tmp_path/'home'


def test_tables_files_and_the_remembered_engine(folder, home, tmp_path):
    engines = ['paddle', 'paddle-plain', 'onnx']
    code, _, _ = ppcls('benchmark', folder, '--engines', *engines, '--batch', 1, 2, '--threads', 1, '--runs', 6,
                         '--rounds', 3, '--csv', tmp_path/'b.csv', '--figure', tmp_path/'b.png', '--remember')
    with open(tmp_path/'b.csv', newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert code == 0
    assert len(rows) == 6
    assert [row['engine'] for row in rows if row['failed'] == ''] == ['paddle', 'paddle-plain']*2
    assert (tmp_path/'b.png').read_bytes()[:4] == b'\x89PNG'
    assert len(list((home/'engines').iterdir())) == 1


def test_one_engine(folder):
    code, out, _ = ppcls('benchmark', folder, '--engines', 'paddle', '--batch', 1, '--threads', 1, '--runs', 2)
    assert code == 0
    assert 'images/s' in out
    assert 'auto, batch 1: paddle, × 1.00' in out
    assert 'remembered' not in out


def test_an_engine_that_cannot_run_the_network(folder):
    code, out, _ = ppcls('benchmark', folder, '--engines', 'onnx', '--batch', 1, '--runs', 2)
    assert code == 1
    assert 'onnx: not measured: ' in out
    assert 'has no inference.onnx' in out


@pytest.mark.parametrize('argv, message', [
    (['--engines', 'padle'], "did you mean 'paddle'"),
    (['--runs', '0'], '--runs 0'),
    (['--batch', '0'], 'batch 0'),
    (['--figure', 'x.txt'], 'ends in one of')])
def test_a_mistake_is_one_line(argv, message, folder):
    code, _, err = ppcls('benchmark', folder, *argv)
    assert code == 2
    assert err.splitlines()[-1].startswith('ppcls: ')
    assert message in err.splitlines()[-1]


def test_a_folder_that_does_not_exist(tmp_path):
    code, _, err = ppcls('benchmark', tmp_path/'nothing')
    assert code == 2
    assert 'no such folder' in err
