"The choice of an engine: what it depends on, how it is remembered, and that damaged memories do no harm."
from importlib.util import find_spec
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import pytest

from ppcls_nb.deploy import engine_choice
from ppcls_nb.deploy.engine_choice import (available_engines, choice_key, choices_home, remember_engine,
                                           remembered_engine, default_engine)
from ppcls_nb.deploy.export import Exported

FILES = {'inference.json': 'aa', 'inference.pdiparams': 'bb', 'inference.onnx': 'cc'}


def export(files): return Exported('net', 3, [3, 8, 8], [], files=files, folder=Path('exported'))


@pytest.fixture
def record(): return export(FILES)


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv('PPCLS_HOME', str(tmp_path))
    return tmp_path


def test_key_depends_on_files_threads_processor_and_versions(record, monkeypatch):
    key = choice_key(record, 1)
    assert key == choice_key(record, 1)
    assert key != choice_key(record, 2)
    assert key != choice_key(export({**FILES, 'inference.pdiparams': 'b2'}), 1)
    with monkeypatch.context() as changed:
        changed.setattr(engine_choice, 'processor_name', lambda: 'another')
        assert key != choice_key(record, 1)
    monkeypatch.setattr(engine_choice, 'engine_versions', lambda: {'paddle': '9.9'})
    assert key != choice_key(record, 1)


def test_a_choice_is_remembered(record, home):
    times = {1: {'onnx': 4., 'paddle': 1.5}, 8: {'paddle': 9.}}
    assert remember_engine(record, 1, 'paddle', times)
    assert remembered_engine(record, 1)['ms'] == times
    assert remembered_engine(record, 1)['engine'] == 'paddle'
    assert remembered_engine(record, 2) is None
    assert remembered_engine(export({**FILES, 'inference.pdiparams': 'b2'}), 1) is None


@pytest.mark.parametrize('text', [
    '', '{"engine": "onn', '[]', '{"engine": "paddle"}', '{"engine": "warp", "ms": {}, "each": {}}',
    '{"engine": "paddle", "ms": {"x": {}}, "each": {}}'])
def test_a_damaged_choice_counts_as_none(record, home, text):
    remember_engine(record, 1, 'paddle', {})
    next(choices_home().iterdir()).write_text(text)
    assert remembered_engine(record, 1) is None


def test_an_export_without_digests_has_no_choice(home):
    record = export({'inference.json': ''})
    assert remember_engine(record, 1, 'paddle', {})
    assert remembered_engine(record, 1) is None


def test_a_folder_that_cannot_be_written_is_reported(record, monkeypatch, tmp_path, capsys):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('PPCLS_HOME', str(tmp_path/'file'))
    assert not remember_engine(record, 1, 'paddle', {})
    assert remembered_engine(record, 1) is None
    assert 'cannot remember the choice of engine' in capsys.readouterr().err


def test_available_engines(record, monkeypatch):
    assert available_engines(export({'inference.pdmodel': ''}))[0] == 'paddle'
    monkeypatch.setattr(engine_choice, 'find_spec', lambda name: None)
    assert available_engines(record) == ['paddle']


def test_auto_without_and_with_a_choice(record, home):
    assert default_engine(record) == available_engines(record)[0]
    assert (default_engine(record) == 'onnx') == bool(find_spec('onnxruntime'))
    remember_engine(record, None, 'paddle', {})
    assert default_engine(record) == default_engine(record, None, 4) == 'paddle'


@pytest.mark.skipif(not find_spec('onnxruntime'), reason='needs ONNX Runtime')
@pytest.mark.parametrize('batch, engine', [(None, 'paddle'), (1, 'onnx'), (2, 'onnx'), (4, 'paddle'), (64, 'paddle')])
def test_auto_takes_the_nearest_batch(record, home, batch, engine):
    remember_engine(record, None, 'paddle', {}, {1: 'onnx', 9: 'paddle'})
    assert default_engine(record, None, batch) == engine
