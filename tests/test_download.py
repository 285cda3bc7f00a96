"Downloads that fail and archives that must be refused (nbs/01_data/02_download.ipynb)."
import io, tarfile, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest, requests

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.download import _fetch, download, md5sum, unpack


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture
def server(tmp_path):
    "The address of a server that serves tmp_path/served."
    (tmp_path/'served').mkdir()
    (tmp_path/'served'/'flowers.bin').write_bytes(b'petals')
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(QuietHandler, directory=str(tmp_path/'served')))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def test_missing_files(server, tmp_path):
    with pytest.raises(FileNotFoundError):
        md5sum(tmp_path/'no such file')
    with pytest.raises(requests.HTTPError):
        _fetch(f'{server}/none', tmp_path/'none.part', 'missing')
    with pytest.raises(PPClsError, match='cannot be downloaded: the server answers 404'):
        download(f'{server}/none', tmp_path/'none')
    assert not list(tmp_path.glob('none*'))


def test_a_file_where_a_folder_is_expected(server, tmp_path):
    (tmp_path/'file').touch()
    with pytest.raises(PPClsError, match='cannot be written'):
        download(f'{server}/flowers.bin', tmp_path/'file'/'flowers.bin')


def make_tar(path, names, mode='w:gz', size=10, **attributes):
    "A tar file with members `names` of `size` zeros; `attributes` are set on each member."
    with tarfile.open(path, mode) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = size
            for key, value in attributes.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(bytes(size)))
    return path


def test_a_marker_that_exists(tmp_path):
    archive, out = make_tar(tmp_path/'good.tgz', ['jpg/a.jpg', 'notes.txt'], size=50_000), tmp_path/'out'
    unpack(archive, out, marker='jpg')
    assert (out/'jpg'/'a.jpg').stat().st_size == 50_000
    (out/'notes.txt').unlink()
    unpack(archive, out, marker='jpg')
    assert not (out/'notes.txt').exists()
    unpack(archive, out)
    assert (out/'notes.txt').exists()


def damaged(path):
    path.write_text('<html>please log in</html>')


LINK = dict(size=0, type=tarfile.SYMTYPE, linkname='/etc')


@pytest.mark.parametrize('make, reason', [
    (damaged, 'truncated or damaged'),
    (lambda path: make_tar(path, ['jpg/a', '../../evil'], 'w'), 'refused'),
    (lambda path: make_tar(path, ['/tmp/evil'], 'w'), 'refused'),
    (lambda path: make_tar(path, ['jpg'], 'w', **LINK), 'refused'),
    (lambda path: make_tar(path, ['notes.txt'], 'w'), "contains no 'jpg'"),
    (lambda path: None, 'No such file')])
def test_archives_that_are_refused(tmp_path, make, reason):
    make(tmp_path/'a.tar')
    with pytest.raises(PPClsError, match=reason):
        unpack(tmp_path/'a.tar', tmp_path/'out', marker='jpg')
    assert not list((tmp_path/'out').iterdir())
