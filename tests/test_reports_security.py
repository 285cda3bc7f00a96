"""Files that attack or are damaged: what runs code, reads the environment, replaces devices or resumes to other
numbers."""
import errno
import os
import pickle
import stat
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import numpy as np
import paddle
import pytest

from ppcls_nb.basics import PPClsError, atomic_path, write_json
from ppcls_nb.models import create_model, load_pretrained
from ppcls_nb.models.formats.paddle_file import read_paddle
from ppcls_nb.models.weights import read_arrays
from ppcls_nb.recipe.load import load_config
from ppcls_nb.train import load_state, save_state
from ppcls_nb.train.checkpoint import RunLock


class Attack:
    "Unpickling it creates a file."
    def __init__(self, file): self.file = file

    def __reduce__(self): return Path.touch, (self.file, )


@pytest.mark.parametrize('protocol', range(2, 6))
@pytest.mark.parametrize('suffix', ['.pdparams', '.pdopt', '.pdstate', '.pth', '.npz', '.bin', ''])
@pytest.mark.parametrize('read', [read_arrays, load_state, read_paddle,
                                  lambda file: load_pretrained(create_model('SqueezeNet1_0'), file)])
def test_no_reader_of_weights_and_states_runs_code(tmp_path, read, suffix, protocol):
    file, sign = tmp_path/f'weights{suffix}', tmp_path/'executed'
    file.write_bytes(pickle.dumps({'conv1.weight': Attack(sign)}, protocol))
    with pytest.raises(PPClsError):
        read(str(file))
    assert not sign.exists()


def test_what_paddle_writes_is_read(tmp_path):
    state = {'model': {'w': paddle.ones([2, 3])}, 'epoch': 3, 'name': 'ä', 'rate': np.float64(0.1),
             'ids': np.arange(3), 'list': [1, (2, None)], 'flag': True}
    for protocol in (2, 4):
        paddle.save(state, str(tmp_path/'a.pdstate'), protocol=protocol)
        found = read_paddle(tmp_path/'a.pdstate')
        assert (found['model']['w'] == 1).all() and found['model']['w'].shape == (2, 3)
        assert {key: found[key] for key in ('epoch', 'name', 'rate', 'list', 'flag')} == {
            key: state[key] for key in ('epoch', 'name', 'rate', 'list', 'flag')}
        assert found['ids'].tolist() == [0, 1, 2]


@pytest.mark.parametrize('seed', range(10))
def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path, seed):
    save_state(tmp_path/'a.pdstate', {'w': paddle.rand([100]), 'epoch': 3})
    data = bytearray((tmp_path/'a.pdstate').read_bytes())
    rng = np.random.default_rng(seed)
    data[rng.integers(len(data) - 80)] ^= 1 << rng.integers(8)
    (tmp_path/'a.pdstate').write_bytes(data)
    with pytest.raises(PPClsError, match='a.pdstate'):
        load_state(tmp_path/'a.pdstate')


@pytest.mark.parametrize('text, reason', [
    ('pretrained_model: https://x.org/${oc.env:HOME}', 'cannot refer to other keys or to the environment'),
    ('a: &a [x, x, x, x, x, x, x, x, x]\n' + ''.join(f'{new}: &{new} [{", ".join([f"*{old}"]*9)}]\n'
                                                 for old, new in zip('abcdefg', 'bcdefgh')), 'aliases of aliases'),
    ('epochs: ' + '['*3000 + ']'*3000, 'nested too deeply')])
def test_recipes_that_read_the_environment_or_never_end(tmp_path, text, reason):
    (tmp_path/'r.yaml').write_text(text)
    with pytest.raises(PPClsError, match=reason):
        load_config(tmp_path/'r.yaml')


def test_a_chain_of_a_hundred_bases(tmp_path):
    for n in range(100):
        (tmp_path/f'r{n}.yaml').write_text(f'base: r{n + 1}\n')
    with pytest.raises(PPClsError, match='more than 20 recipes'):
        load_config(tmp_path/'r0.yaml')


def test_writing_to_a_pipe_leaves_it_a_pipe(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    reader = os.open(tmp_path/'pipe', os.O_RDONLY | os.O_NONBLOCK)
    write_json(tmp_path/'pipe', {'a': 1})
    assert os.read(reader, 100) == b'{\n "a": 1\n}\n'
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path/'pipe').stat().st_mode)
    assert [p.name for p in tmp_path.iterdir()] == ['pipe']


def test_a_link_stays_a_link(tmp_path):
    (tmp_path/'there').mkdir()
    (tmp_path/'link.txt').symlink_to(tmp_path/'there'/'file.txt')
    with atomic_path(tmp_path/'link.txt') as tmp:
        tmp.write_text('new')
    assert (tmp_path/'link.txt').is_symlink()
    assert (tmp_path/'there'/'file.txt').read_text() == 'new'


@pytest.mark.parametrize('code', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys, code):
    def refuse(fd):
        raise OSError(code, os.strerror(code))
    monkeypatch.setattr('ppcls_nb.train.checkpoint._try_lock', refuse)
    RunLock(tmp_path/'run')
    assert 'has no locks' in capsys.readouterr().err


def test_a_held_lock_is_refused(tmp_path):
    first = RunLock(tmp_path/'run')
    with pytest.raises(PPClsError, match='is writing this run'):
        RunLock(tmp_path/'run')
    first.release()


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path/'thesis.txt').write_text('mine')
    (tmp_path/'.run.lock').symlink_to(tmp_path/'thesis.txt')
    with pytest.raises(PPClsError, match='link'):
        RunLock(tmp_path/'run')
    assert (tmp_path/'thesis.txt').read_text() == 'mine'
