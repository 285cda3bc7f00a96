"""Files that are not what they seem: pipes and devices, files of a user in the way of an unpacking, weights and
archives that ask for gigabytes, disks that are full, output that nobody reads."""
import errno
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path

from ppcls_nb import MAX_PIXELS  # before paddle: sets the threads
import cv2
import numpy as np
import paddle
import pytest
from omegaconf import OmegaConf
from PIL import Image

from networks import torch_bytes
from ppcls_nb.basics import PPClsError, atomic_path, file_bytes, file_digest, file_text, open_file
from ppcls_nb.basics import with_a_name, write_json, write_text
from ppcls_nb.cli import main
from ppcls_nb.cli.select import refuse_other_files
from ppcls_nb.course import ledger, notebooks
from ppcls_nb.data.checks import check_list
from ppcls_nb.data.datasets import ImageDataset
from ppcls_nb.data.download import download, unpack
from ppcls_nb.data.duplicates import References
from ppcls_nb.data.flowers102 import FILES, download_flowers102
from ppcls_nb.data.image_format import decode_with_opencv, decoding_cost, image_header, require_pixels
from ppcls_nb.data.imaug import DecodeImage
from ppcls_nb.data.lists import list_lines, read_class_names
from ppcls_nb.data.resolve import resolve_data
from ppcls_nb.deploy.export import atomic_folder, is_export_file
from ppcls_nb.deploy.predict import prepare_image
from ppcls_nb.deploy.web import is_site_file
from ppcls_nb.distill.soft_labels import ListedFiles
from ppcls_nb.models import create_model, load_pretrained
from ppcls_nb.models import weights as weights_module
from ppcls_nb.models.formats.paddle_file import read_paddle
from ppcls_nb.models.weights import all_weights, bundled_folder, fetch_url, read_arrays, save_bundled
from ppcls_nb.recipe.load import read_recipe
from ppcls_nb.recipe.trained import image_files
from ppcls_nb.train.callbacks.run_folder import RunFolder
from ppcls_nb.train.checkpoint import RunLock
from ppcls_nb.train.runs import load_run
from ppcls_nb.transfer.space import Space
from ppcls_nb.transfer.study import open_study
from small_run import make_recipe, ppcls

JPEG = cv2.imencode('.jpg', np.full((40, 50, 3), 99, np.uint8))[1].tobytes()


def make_tar(path, files, mode='w:gz', **attributes):
    "A tar file with `files` {name: bytes}; `attributes` are set on each member."
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in attributes.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))
    return path


# what a user has is never deleted or overwritten

@pytest.mark.parametrize('mine', ['src/thesis.txt', 'src/a.txt', 'src'])
def test_unpacking_leaves_a_folder_of_mine_alone(tmp_path, mine):
    archive = make_tar(tmp_path/'a.tgz', {'src/a.txt': b'theirs', 'src/sub/b.txt': b'theirs', 'new.txt': b''})
    file = tmp_path/'out'/mine
    file.parent.mkdir(parents=True)
    file.write_text('mine')
    with pytest.raises(PPClsError, match='out/src.*nothing was unpacked'):
        unpack(archive, tmp_path/'out')
    assert [p for p in (tmp_path/'out').rglob('*') if p.is_file()] == [file]
    assert file.read_text() == 'mine'


def test_unpacking_twice_changes_nothing_and_keeps_what_i_added(tmp_path):
    archive = make_tar(tmp_path/'a.tgz', {'src/a.txt': b'theirs', 'src/sub/b.txt': b'theirs'})
    unpack(archive, tmp_path)
    (tmp_path/'src'/'thesis.txt').write_text('mine')
    before = (tmp_path/'src'/'a.txt').stat()
    unpack(archive, tmp_path)
    assert (tmp_path/'src'/'thesis.txt').read_text() == 'mine'
    assert os.path.samestat((tmp_path/'src'/'a.txt').stat(), before)


def test_a_download_does_not_replace_a_file_of_mine(tmp_path):
    (tmp_path/'setid.mat').write_text('mine')
    with pytest.raises(PPClsError, match='setid.mat: exists already and is not the file with md5'):
        download('http://127.0.0.1:9/setid.mat', tmp_path/'setid.mat', md5='0'*32)
    assert (tmp_path/'setid.mat').read_text() == 'mine'


def test_the_archive_that_i_downloaded_myself_stays(tmp_path, monkeypatch):
    make_tar(tmp_path/'102flowers.tgz', {'jpg/image_00001.jpg': JPEG})
    for name in FILES:
        (tmp_path/name).touch()
        monkeypatch.setitem(FILES, name, None)
    download_flowers102(tmp_path)
    assert (tmp_path/'102flowers.tgz').is_file()
    assert (tmp_path/'jpg'/'image_00001.jpg').read_bytes() == JPEG


def test_a_training_list_of_mine_is_divided_elsewhere(tmp_path):
    folder = tmp_path/'data'
    for name in ('a', 'b'):
        (folder/name).mkdir(parents=True)
        for n in range(5):
            (folder/name/f'{n}.jpg').write_bytes(JPEG)
    rows = ''.join(f'{name}/{n}.jpg {label}\n' for label, name in enumerate('ab') for n in range(5))
    (folder/'train_list.txt').write_text(rows)
    info = resolve_data(folder, spare=tmp_path/'spare')
    assert (folder/'train_list.txt').read_text() == rows
    assert not (folder/'val_list.txt').exists()
    assert info.counts == {'train': 8, 'val': 2}
    assert info.lists.is_relative_to(tmp_path/'spare')


def test_fresh_does_not_move_a_run_that_is_being_written(tmp_path):
    home = make_recipe(tmp_path)
    run = tmp_path/'run'
    run.mkdir()
    lock = RunLock(run)
    code, _, err = ppcls('train', '-c', home.recipe, '--data', home.garden, '--out', run, '--fresh')
    assert (code, err.count('\n')) == (2, 1)
    assert 'is writing this run' in err
    assert run.is_dir()
    lock.release()


# only regular files are opened

def make_pipe(path):
    os.mkfifo(path)


READERS = {
    'image.jpg': lambda path: ImageDataset([str(path)], [0], [DecodeImage()])[0],
    'photo.png': lambda path: prepare_image(path, [DecodeImage()]),
    'list.txt': list_lines,
    'images.txt': lambda path: image_files([path]),
    'pool.txt': lambda path: list(ListedFiles(path)),
    'recipe.yaml': read_recipe,
    'space.yaml': Space,
    'a.pdparams': read_arrays,
    'a.npz': read_arrays,
    'a.pth': read_arrays,
    'a.safetensors': read_arrays,
    'a.tar': read_arrays,
    'b.tar.gz': lambda path: unpack(path, path.parent/'out'),
    'state.pdstate': read_paddle,
    'references.jpg': lambda path: References([path], progress=False),
    'digest': file_digest,
    'tag.json': file_bytes,
}


@pytest.mark.parametrize('make', [make_pipe, partial(Path.symlink_to, target='/dev/zero')], ids=['pipe', 'zeros'])
@pytest.mark.parametrize('name', READERS)
def test_a_pipe_or_device_is_refused_and_not_waited_for(tmp_path, name, make):
    make(tmp_path/name)
    with pytest.raises(PPClsError) as e:
        READERS[name](tmp_path/name)
    assert name in str(e.value)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', ['classes.txt', 'list.txt'])
def test_class_names_from_a_pipe(tmp_path, name):
    os.mkfifo(tmp_path/name)
    assert read_class_names(tmp_path/name) is None


def test_a_link_to_a_file_is_read(tmp_path):
    (tmp_path/'a.jpg').write_bytes(JPEG)
    (tmp_path/'link.jpg').symlink_to(tmp_path/'a.jpg')
    image, _ = ImageDataset([str(tmp_path/'link.jpg')], [0], [DecodeImage()])[0]
    assert image.shape == (40, 50, 3)


@pytest.mark.parametrize('name', ['image.jpg', 'list.txt', 'recipe.yaml', 'space.yaml'])
def test_a_file_of_terabytes_is_not_read_into_memory(tmp_path, name):
    with open(tmp_path/name, 'wb') as file:
        file.truncate(1 << 41)
    with pytest.raises(PPClsError, match='bytes, expected at most'):
        READERS[name](tmp_path/name)


@pytest.mark.parametrize('start', [b'\xff\x4f\xff\x51', b'\0\0\0\x0cjP  \r\n\x87\n'])
def test_jpeg_2000_by_another_name_reaches_no_decoder(tmp_path, start):
    (tmp_path/'photo.jpg').write_bytes(start + bytes(60))
    (tmp_path/'list.txt').write_text('photo.jpg 0\n')
    rows = check_list(tmp_path/'list.txt', decode=True).rows
    assert 'expected a JPEG' in rows[0][3]
    for name in ('image.jpg', 'photo.png', 'references.jpg'):
        with pytest.raises(PPClsError, match='expected a JPEG'):
            READERS[name](tmp_path/'photo.jpg')


@pytest.mark.parametrize('read', [open_file, file_bytes, file_text])
def test_a_number_is_not_a_file_that_is_open_already(read, tmp_path):
    "open(3) reads and closes whatever the process has open as 3: a pipe to its parent, for example."
    with open(tmp_path/'mine', 'wb') as mine:
        with pytest.raises(TypeError):
            read(mine.fileno())
        mine.write(b'still open')


@pytest.mark.parametrize('data', [
    b'P5 30000 30000 255\n', b'GIF89a' + (30000).to_bytes(2, 'little')*2 + bytes(3)
    + b',' + bytes(4) + (30000).to_bytes(2, 'little')*2 + b'\0\2\2\x4c\1\0;',
    b'BM' + bytes(8) + (54).to_bytes(4, 'little') + (40).to_bytes(4, 'little') + (30000).to_bytes(4, 'little')*2
    + b'\1\0\x18\0' + bytes(24)], ids=['pgm', 'gif', 'bmp'])
def test_every_format_has_the_limit_of_pixels(data):
    with pytest.raises(PPClsError, match='pixels, expected at most 178,956,970'):
        image_header(data + bytes(100))
    for decode in (DecodeImage(), decode_with_opencv):
        with pytest.raises(PPClsError):
            decode(data + bytes(100))


def test_opencv_has_the_same_limit_of_pixels():
    assert os.environ['OPENCV_IO_MAX_IMAGE_PIXELS'] == str(MAX_PIXELS)


# weights and archives that ask for gigabytes

class Call:
    "Pickles as a call of a function."
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def nested(depth):
    value = ()
    for _ in range(depth):
        value = (value, value)
    return value


RECONSTRUCT, SCALAR = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
STRIDE_0 = torch_bytes({'a': np.ones(1, 'f4')}).replace(b'K\x01\x85', b'J\x00\xca\x9a;\x85', 1).replace(
    b'K\x01\x85', b'K\x00\x85', 1)
PICKLES = {
    'shape': pickle.dumps({'a': Call(RECONSTRUCT, np.ndarray, (10**10, ), b'b')}, 2),
    'array': pickle.dumps({'a': Call(np.ndarray, (10**10, ))}, 2),
    'number': pickle.dumps({'a': Call(SCALAR, np.dtype('V2000000000'))}, 2),
    'text number': pickle.dumps({'a': Call(SCALAR, np.dtype('S2000000000'))}, 2),
    'remembered': b'\x80\x02}r\xff\xff\xff\xffX\x01\x00\x00\x00aK\x01s.',
    'long text': b'\x80\x02X\xff\xff\xff\x7fa.',
    'long bytes': b'\x80\x04\x8e\xff\xff\xff\xff\xff\0\0\0a.',
    'copies': (b'\x80\x02cbuiltins\ntuple\nq\x00](' + b'N'*10**5 + b'eq\x01' + b'h\x00h\x01\x85R0'*2000 + b'.'),
    'encoded': (b'\x80\x02c_codecs\nencode\nq\x00X\xa0\x86\x01\x00' + b'a'*10**5 + b'q\x01'
                + b'(' + b'h\x00h\x01\x85R'*5000 + b't.'),
    'mappings': (b'\x80\x02ccollections\nOrderedDict\nq\x00](' + b''.join(
        b'J%sN\x86' % n.to_bytes(4, 'little') for n in range(10**4)) + b'eq\x01(' + b'h\x00h\x01\x85R'*2000 + b't.'),
    'nested key': b'\x80\x02}' + pickle.dumps(nested(50), 2)[2:-1] + b'K\x01s.',
    'nested value': pickle.dumps({'a': nested(50), 'b': [nested(50)]*50}, 4),
}


def peak_memory(function, *arguments):
    "(the largest number of bytes that the call allocated at a time, its PPClsError or None)."
    tracemalloc.start()
    error = None
    try:
        function(*arguments)
    except PPClsError as e:
        error = str(e)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, error


@pytest.mark.parametrize('name', PICKLES)
def test_weights_of_a_few_bytes_take_a_few_bytes(tmp_path, name):
    file = tmp_path/'a.pdparams'
    file.write_bytes(PICKLES[name])
    peak, error = peak_memory(read_arrays, file)
    assert peak < 50_000_000
    assert error or name in ('remembered', 'nested value')
    assert error is None or ('a.pdparams' in error and len(error) < 500)


@pytest.mark.parametrize('data', [
    STRIDE_0,
    torch_bytes({'a': np.ones(1, 'f4')}).replace(b'K\x01N', b'\x8a\x08' + (2**62).to_bytes(8, 'little') + b'N'),
    PICKLES['remembered'], PICKLES['long text']])
def test_a_torch_file_of_a_few_bytes_takes_a_few_bytes(tmp_path, data):
    file = tmp_path/'a.pth'
    file.write_bytes(data)
    peak, error = peak_memory(read_arrays, file)
    assert peak < 10_000_000
    assert 'a.pth: ' in error


def test_many_tensors_in_the_same_memory(tmp_path):
    one = torch_bytes({'a': np.ones(10**5, 'f4')})
    start = one.index(b'X\x01\x00\x00\x00a')
    end = one.index(b's.', start)
    tensor = one[start + 6:end]
    entries = b''.join(b'X\x05\x00\x00\x00%05d' % n + tensor for n in range(2000))
    (tmp_path/'a.pth').write_bytes(one[:start] + b'(' + entries + b'u' + one[end + 1:])
    peak, error = peak_memory(read_arrays, tmp_path/'a.pth')
    assert error is None
    assert peak < 10_000_000


def test_tied_tensors_of_a_torch_file_are_equal(tmp_path):
    a = np.arange(6, dtype='f4').reshape(2, 3)
    (tmp_path/'a.pth').write_bytes(torch_bytes({'a': a, 'b': a.T}))
    back = read_arrays(tmp_path/'a.pth')
    assert (back['a'] == a).all() and (back['b'] == a.T).all()


def test_a_zip_archive_of_zeros(tmp_path):
    np.savez_compressed(tmp_path/'a.npz', a=np.zeros(12_000_000))
    peak, error = peak_memory(read_arrays, tmp_path/'a.npz')
    assert 'unpack to more than' in error
    assert peak < 10_000_000


def test_a_zip_archive_with_a_large_dictionary(tmp_path):
    member = io.BytesIO()
    np.save(member, np.zeros(1, 'f4'))
    with zipfile.ZipFile(tmp_path/'a.npz', 'w', zipfile.ZIP_LZMA) as archive:
        archive.writestr('a.npy', member.getvalue())
    with pytest.raises(PPClsError, match='a.npz.*compressed in another way'):
        read_arrays(tmp_path/'a.npz')


def test_an_array_that_claims_more_than_its_bytes(tmp_path):
    member = io.BytesIO()
    np.save(member, np.zeros(1, 'f4'))
    claim = member.getvalue().replace(b'(1,), }         ', b'(9000000000,), }')
    assert claim != member.getvalue()
    with zipfile.ZipFile(tmp_path/'a.npz', 'w') as archive:
        archive.writestr('a.npy', claim)
    peak, error = peak_memory(read_arrays, tmp_path/'a.npz')
    assert 'does not fit its 4 bytes' in error
    assert peak < 10_000_000


def test_arrays_come_back_from_every_format(tmp_path):
    arrays = {'half': np.ones((2, 3), 'f2'), 'fortran': np.asfortranarray(np.arange(6.).reshape(2, 3)),
              'ids': np.arange(4), 'none': np.zeros((0, 3), 'f4'), 'one': np.array(2.5, 'f4')}
    np.savez_compressed(tmp_path/'a.npz', **arrays)
    paddle.save({name: paddle.to_tensor(a) for name, a in arrays.items() if a.size}, str(tmp_path/'a.pdparams'))
    for protocol in (2, 4):
        (tmp_path/f'{protocol}.pdparams').write_bytes(pickle.dumps(OrderedDict(arrays), protocol))
    for file in tmp_path.iterdir():
        found = read_arrays(file)
        for name in found:
            np.testing.assert_array_equal(found[name], arrays[name])
            found[name][...] = 0
        assert len(found) >= 4


def long_header(path):
    make_tar(path, {'a': b'x'}, pax_headers={'comment': 'x'*3_000_000})


def zeros(path):
    make_tar(path, {'a': bytes(80_000_000)})


def sparse(path):
    names = {'GNU.sparse.major': '1', 'GNU.sparse.minor': '0', 'GNU.sparse.name': 'a',
             'GNU.sparse.realsize': f'{10**13}'}
    make_tar(path, {'a': b'0\n' + bytes(510)}, pax_headers=names)


@pytest.mark.parametrize('make, reason', [
    (long_header, 'a header of more than 1,048,576 bytes'), (zeros, 'unpack to more than'), (sparse, 'plain file')])
def test_archives_that_ask_for_gigabytes(tmp_path, make, reason):
    make(tmp_path/'a.tar.gz')
    for read in (read_arrays, lambda path: unpack(path, tmp_path/'out')):
        peak, error = peak_memory(read, tmp_path/'a.tar.gz')
        assert reason in error
        assert peak < 20_000_000
    assert list((tmp_path/'out').iterdir()) == []


# tags and files

@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    "An empty cache, and no folder of weights."
    monkeypatch.delenv('PPCLS_WEIGHTS', raising=False)
    monkeypatch.setenv('PPCLS_HOME', str(tmp_path/'home'))


def forge(folder, tag):
    "Weights of a stranger with an official tag."
    folder.mkdir(parents=True)
    np.savez(folder/f'{tag}.npz', a=np.ones(3))
    about = dict(data='x', command='x', seed=0, accuracy=0)
    write_json(folder/f'{tag}.json', dict(arch='SqueezeNet1_0', about=about))


def test_weights_in_a_folder_above_are_not_found(tmp_path, monkeypatch, no_weights):
    forge(tmp_path/'data'/'weights', 'Mine')
    (tmp_path/'work'/'deep').mkdir(parents=True)
    monkeypatch.chdir(tmp_path/'work'/'deep')
    assert not bundled_folder().is_relative_to(tmp_path/'data')
    assert 'Mine' not in all_weights()


def test_a_file_with_an_official_tag_does_not_replace_official_weights(tmp_path, monkeypatch, no_weights, capsys):
    forge(tmp_path/'data'/'weights', 'SqueezeNet1_0')
    monkeypatch.chdir(tmp_path)
    assert all_weights()['SqueezeNet1_0'].url
    assert 'SqueezeNet1_0.npz: not used' in capsys.readouterr().err
    with pytest.raises(PPClsError, match='the tag of official weights'):
        save_bundled(create_model('SqueezeNet1_0'), 'SqueezeNet1_0', dict(data='', command='', seed=0, accuracy=0))


def test_official_weights_are_not_a_file_of_that_name_in_the_working_folder(tmp_path, monkeypatch, no_weights):
    official, mine = create_model('SqueezeNet1_0'), create_model('SqueezeNet1_0')
    (tmp_path/'cache').mkdir()
    paddle.save(official.state_dict(), str(tmp_path/'cache'/'official.pdparams'))
    paddle.save(mine.state_dict(), str(tmp_path/'SqueezeNet1_0.pdparams'))
    monkeypatch.setattr(weights_module, 'fetch_weights', lambda record: tmp_path/'cache'/'official.pdparams')
    monkeypatch.chdir(tmp_path)
    found = create_model('SqueezeNet1_0', pretrained=True)
    for key, value in official.state_dict().items():
        assert (found.state_dict()[key].numpy() == value.numpy()).all()
    assert 'official.pdparams' in str(found.load_report)
    assert 'SqueezeNet1_0.pdparams' in str(load_pretrained(found, 'SqueezeNet1_0'))


def test_a_cached_file_that_was_replaced_is_noticed(tmp_path, monkeypatch, no_weights):
    def fake_download(url, path, desc=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('official')
    monkeypatch.setattr('ppcls_nb.models.formats.downloads.download', fake_download)
    file = fetch_url('https://example.org/a.pdparams')
    assert fetch_url('https://example.org/a.pdparams') == file
    file.write_text('replaced')
    with pytest.raises(PPClsError, match='no longer the file that was downloaded'):
        fetch_url('https://example.org/a.pdparams')


# disks that are full or read-only, and output that nobody reads

def test_a_disk_that_fills_while_training(tmp_path, monkeypatch):
    home, written = make_recipe(tmp_path), []

    def append(file):
        written.append(file)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    command = ['train', '-c', home.recipe, '--data', home.garden, '--out', tmp_path/'run']
    with monkeypatch.context() as patch:
        patch.setattr('ppcls_nb.train.checkpoint.append_checksum', append)
        code, _, err = ppcls(*command)
    assert code == 2
    assert err.splitlines()[-1].startswith('ppcls: ')
    assert 'cannot be written: No space left' in err
    assert str(tmp_path/'run') in err
    assert not list((tmp_path/'run').rglob('*.tmp'))
    code, out, _ = ppcls(*command)
    assert code == 0
    assert 'epochs are done' in out


@pytest.mark.parametrize('code', [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOSPC])
@pytest.mark.parametrize('command', ['lists', 'prepare', 'train', 'infer'])
def test_folders_that_cannot_be_written(tmp_path, monkeypatch, command, code):
    home = make_recipe(tmp_path)
    image = next(home.garden.rglob('*.jpg'))
    (tmp_path/'classes'/'a').mkdir(parents=True)
    for n in range(5):
        (tmp_path/'classes'/'a'/f'{n}.jpg').write_bytes(image.read_bytes())
    arguments = {
        'lists': [tmp_path/'classes'],
        'prepare': [home.garden/'val_list.txt', '--data-dir', home.garden, '--out', tmp_path/'out'],
        'train': ['-c', home.recipe, '--data', home.garden, '--out', tmp_path/'out'],
        'infer': ['-m', 'SqueezeNet1_0', '-i', image, '--json', tmp_path/'out'/'a.json']}

    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code), kwargs.get('dir'))

    if command == 'infer':
        monkeypatch.setattr('ppcls_nb.cli.train.load_predictor', lambda *args: pytest.skip('no weights here'))
    monkeypatch.setattr('tempfile.mkstemp', refuse)
    result, out, err = ppcls(command, *arguments[command])
    assert result == 2
    assert err.splitlines()[-1].startswith('ppcls: ')
    assert os.strerror(code) in err
    assert '.tmp' not in err
    assert 'Traceback' not in err


CHILD = '''
import sys
from pathlib import Path
from ppcls_nb import cli
def count(file):
    for n in range(50_000):
        print(n)
    Path(file).write_text('finished')
cli.COMMANDS['count'] = '', ''
count.options = (cli.option('file'),)
cli.FUNCTIONS['count'] = count
sys.exit(cli.main(['count', sys.argv[1]]))
'''


@pytest.mark.parametrize('flags', [[], ['-u']])
def test_a_command_goes_on_when_its_pager_is_closed(tmp_path, flags):
    with subprocess.Popen([sys.executable, *flags, '-c', CHILD, str(tmp_path/'file')], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == '0\n'
        child.stdout.close()
        assert child.stderr.read() == ''
    assert child.returncode == 0
    assert (tmp_path/'file').read_text() == 'finished'


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no device that is always full')
def test_output_to_a_full_disk_is_one_line(tmp_path):
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, '-c', CHILD, str(tmp_path/'file')], stdout=full, stderr=subprocess.PIPE,
                              text=True)
    assert done.returncode == 2
    assert done.stderr == f'ppcls: output: cannot be written: {os.strerror(errno.ENOSPC)}\n'


def test_output_that_the_shell_has_closed(tmp_path):
    done = subprocess.run(['sh', '-c', '"$0" -c "$1" "$2" >&-', sys.executable, CHILD, str(tmp_path/'file')],
                          stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    assert (tmp_path/'file').read_text() == 'finished'


@pytest.mark.parametrize('settings', [None, 'a: [', '- 1\n- ${'])
def test_a_run_without_readable_settings(tmp_path, settings):
    (tmp_path/'metrics.jsonl').write_text('{"epoch": 0, "data": "a"}\n')
    if settings:
        (tmp_path/'config.yaml').write_text(settings)
    with pytest.raises(PPClsError, match='config.yaml: the settings of the run cannot be read'):
        load_run(tmp_path)


@pytest.mark.parametrize('command, place', [(notebooks, 'run_course'), (ledger, 'make_ledger')])
def test_the_course_reports_any_file_in_one_line(tmp_path, monkeypatch, capsys, command, place):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path/'a.ipynb'))
    monkeypatch.setattr(command, place, fail)
    assert command.main([str(tmp_path)]) == 2
    assert f'{tmp_path/"a.ipynb"}: {os.strerror(errno.ENOSPC)}' in capsys.readouterr().err


def test_main_reports_any_file_in_one_line(tmp_path, monkeypatch, capsys):
    def fail(argv):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path/'a.bin'))
    monkeypatch.setattr('ppcls_nb.cli.run_command', fail)
    assert main([]) == 2
    assert capsys.readouterr().err == f'ppcls: {tmp_path/"a.bin"}: {os.strerror(errno.EACCES)}\n'


# folders and files of mine in the way of an output

def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('name', ['config.yaml', 'best.pdparams', 'classes.txt', 'metrics.jsonl'])
def test_a_training_does_not_replace_my_files(tmp_path, name):
    home = make_recipe(tmp_path)
    mine = tmp_path/'mine'
    mine.mkdir()
    (mine/name).write_text('seed: 0\n')
    before = snapshot(mine)
    code, _, err = ppcls('train', '-c', home.recipe, '--data', home.garden, '--out', mine)
    assert code == 2
    assert f'mine: holds {name} and is not the folder of this run' in err.splitlines()[-1]
    assert snapshot(mine) == before


def test_fresh_does_not_move_a_folder_that_is_no_run(tmp_path):
    home = make_recipe(tmp_path)
    mine = tmp_path/'mine'
    mine.mkdir()
    (mine/'thesis.txt').write_text('mine')
    code, _, err = ppcls('train', '-c', home.recipe, '--data', home.garden, '--out', mine, '--fresh')
    assert code == 2
    assert 'mine holds files and no run' in err.splitlines()[-1]
    assert (mine/'thesis.txt').read_text() == 'mine'


def test_a_run_that_was_killed_before_it_had_a_state_goes_on(tmp_path):
    folder = RunFolder(tmp_path/'run', dict(lr=1e-5, name='1e-3', sizes=(1, 2), num_workers=0))
    (tmp_path/'run').mkdir()
    write_text(tmp_path/'run'/'config.yaml', OmegaConf.to_yaml(OmegaConf.create(json.loads(folder.config))))
    (tmp_path/'run'/'best.pdparams').touch()
    folder.refuse_other_files()
    RunFolder(tmp_path/'run', dict(lr=1e-5, name='1e-3', sizes=(1, 2), num_workers=4)).refuse_other_files()
    with pytest.raises(PPClsError, match='is not the folder of this run'):
        RunFolder(tmp_path/'run', dict(lr=1e-4)).refuse_other_files()


def test_the_working_folder_is_an_output_folder(tmp_path, monkeypatch):
    (tmp_path/'work').mkdir()
    monkeypatch.chdir(tmp_path/'work')
    assert with_a_name('.') == tmp_path/'work'
    lock = RunLock('.')
    assert lock.path == tmp_path/'.work.lock'
    lock.release()
    with pytest.raises(PPClsError, match='expected a folder with a name'):
        with_a_name('/')


def test_a_search_and_a_selection_do_not_replace_my_files(tmp_path):
    (tmp_path/'results.csv').write_text('mine')
    with pytest.raises(PPClsError, match='holds results.csv and no search'):
        open_study(tmp_path, Space({'lr': [.1, .2]}), 'grid')
    (tmp_path/'train_list.txt').write_text('mine')
    with pytest.raises(PPClsError, match='holds train_list.txt and no selection'):
        refuse_other_files(tmp_path, [])
    (tmp_path/'soft_labels').mkdir()
    (tmp_path/'soft_labels'/'manifest.json').write_text('{}')
    refuse_other_files(tmp_path, [])
    with pytest.raises(PPClsError, match='would be read and then replaced'):
        refuse_other_files(tmp_path, [None, tmp_path/'train_list.txt'])


@pytest.mark.parametrize('is_part, name', [(is_export_file, 'inference.pdmodel'), (is_site_file, 'index.html')])
def test_files_of_the_same_name_are_not_an_export_or_a_site(tmp_path, is_part, name):
    (tmp_path/'out').mkdir()
    (tmp_path/'out'/name).write_text('mine')
    with pytest.raises(PPClsError, match=f'holds {name}, which is no part of'):
        with atomic_folder(tmp_path/'out', is_part):
            pass
    assert (tmp_path/'out'/name).read_text() == 'mine'


def make_notebook(path):
    path.parent.mkdir(exist_ok=True)
    cell = dict(cell_type='code', id='a', execution_count=None, metadata={'tags': ['parameters']}, outputs=[],
                source='seed = 0')
    write_json(path, dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5))
    return path


def test_a_course_does_not_replace_its_notebooks_or_mine(tmp_path):
    source = make_notebook(tmp_path/'notebooks'/'a.ipynb')
    with pytest.raises(PPClsError, match='would be replaced by the executed notebook'):
        notebooks.run_course([source], output=tmp_path)
    (tmp_path/'out').mkdir()
    make_notebook(tmp_path/'out'/'notebooks'/'a.ipynb')
    with pytest.raises(PPClsError, match='is not an executed notebook and would be replaced'):
        notebooks.run_course([source], output=tmp_path/'out')


def test_a_failed_write_says_what_is_there_now(tmp_path):
    for kept, text in ((False, 'nothing was left under that name'), (True, 'what was there before is still there')):
        if kept:
            (tmp_path/'a.txt').write_text('old')
        with pytest.raises(PPClsError, match=text):
            with atomic_path(tmp_path/'a.txt'):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (tmp_path/'a.txt').read_text() == 'old'


# JPEG files of several scans

def claim(data, width, height):
    "The bytes of a JPEG file with another size in its header."
    _, _, at = image_header(data)
    return data[:at+5] + height.to_bytes(2, 'big') + width.to_bytes(2, 'big') + data[at+9:]


@pytest.mark.parametrize('size, subsampling, progressive, limit, good', [
    (12_000, '4:4:4', False, None, True), (12_000, '4:4:4', True, None, False), (9_000, '4:2:0', True, None, True),
    (9_800, '4:2:0', True, None, False), (4_000, '4:4:4', True, 50_000_000, True),
    (5_000, '4:4:4', True, 50_000_000, False)])
def test_the_coefficients_of_a_progressive_jpeg_count(size, subsampling, progressive, limit, good):
    file = io.BytesIO()
    Image.new('RGB', (64, 64)).save(file, 'JPEG', subsampling=subsampling, progressive=progressive)
    data = claim(file.getvalue(), size, size)
    assert len(data) < 2000
    if good:
        require_pixels(data, image_header(data), limit or MAX_PIXELS)
        return
    with pytest.raises(PPClsError, match=r'of several scans \(progressive\) with'):
        require_pixels(data, image_header(data), limit or MAX_PIXELS)
    for decode in (DecodeImage(), DecodeImage(reduce_to=100), decode_with_opencv):
        if not limit:
            with pytest.raises(PPClsError, match='takes as much memory'):
                decode(data)


def test_scans_of_one_channel_each_count_too():
    data = JPEG
    w, h, at = image_header(data)
    scan = data.index(b'\xff\xda')
    assert decoding_cost(data, w, h, at) == w*h
    one_channel = data[:scan+4] + b'\x01' + data[scan+5:]
    assert decoding_cost(one_channel, w, h, at) > w*h


def test_a_search_on_a_full_disk_names_its_journal(tmp_path, monkeypatch):
    "The journal of the study cannot grow: one line with its name, and with room again the search goes on."
    space = Space({'lr': [0.1, 0.2]})
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', lambda fd: fail(errno.ENOSPC))
        with pytest.raises(PPClsError, match='journal.log: cannot be written: No space left on device'):
            open_study(tmp_path/'search', space, 'grid')
    assert open_study(tmp_path/'search', space, 'grid').get_trials() == []


def fail(code): raise OSError(code, os.strerror(code))


def test_a_new_folder_on_a_full_disk(tmp_path):
    "Nothing was there before, and that is what the message says; an existing one is kept."
    for folder, message in ((tmp_path/'new', 'nothing was left under that name'), (tmp_path, 'is still there')):
        with pytest.raises(PPClsError, match=f'No space left on device; .*{message}'):
            with atomic_folder(folder, lambda path: True):
                fail(errno.ENOSPC)
