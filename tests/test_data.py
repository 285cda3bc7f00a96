"""What spans the data notebooks: from a download to batches, and everything that can go wrong on the way."""
import hashlib, json, os, shutil, subprocess, sys, tarfile, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np, pytest

import ppcls_nb
from ppcls_nb.basics import PPClsError
from ppcls_nb.data import flowers102
from ppcls_nb.data.datasets import ListDataset, class_counts, subset
from ppcls_nb.data.lists import read_list
from ppcls_nb.data.download import download, unpack
from ppcls_nb.data.flowers102 import FILES, data_folder, download_flowers102, find_flowers102, make_lists
from ppcls_nb.data.imaug import build_ops
from ppcls_nb.data.loader import make_loader
from ppcls_nb.data.petals import make_petals, petals_key
from ppcls_nb.data.prepare import prepare_data

TINY = dict(classes=4, per_class=(3, 2, 2), size=32, progress=False)
NORMALIZE = [{'NormalizeImage': {'scale': '1./255.', 'order': ''}}, {'ToCHWImage': None}]
TRAIN = [{'DecodeImage': None}, {'RandCropImage': {'size': 24}}, {'RandFlipImage': {'flip_code': 1}}, *NORMALIZE,
         {'RandomErasing': {'EPSILON': 0.5}}]


def contents(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(Path(root).rglob('*')) if p.is_file()}


def names(root): return sorted(p.name for p in Path(root).iterdir())


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    "No test sees data of this machine or writes into the checkout."
    (tmp_path/'cwd').mkdir()
    monkeypatch.chdir(tmp_path/'cwd')
    monkeypatch.delenv('PPCLS_DATA', raising=False)


@pytest.fixture(scope='session')
def garden(tmp_path_factory):
    root = make_petals(tmp_path_factory.mktemp('data')/'petals', **TINY)
    make_lists(root)
    return root


class FileServer:
    """A server on 127.0.0.1 with files in memory. `cuts`: after how many bytes each of the next answers is cut off;
    `ranges` False: ignore the header Range."""
    def __init__(self):
        self.files, self.cuts, self.ranges, self.requested = {}, [], True, []
        file_server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name, header = self.path.strip('/'), self.headers.get('Range')
                file_server.requested.append((name, header))
                body = file_server.files.get(name)
                if body is None:
                    return self.send_error(404)
                start = int(header.removeprefix('bytes=')[:-1]) if header and file_server.ranges else 0
                status = 416 if start >= len(body) else 206 if start else 200
                self.send_response(status)
                if start:
                    extent = '*' if status == 416 else f'{start}-{len(body)-1}'
                    self.send_header('Content-Range', f'bytes {extent}/{len(body)}')
                body = b'' if status == 416 else body[start:]
                self.send_header('Content-Length', str(len(body)))
                self.end_headers()
                self.wfile.write(body[:file_server.cuts.pop(0) if file_server.cuts else None])
            def log_message(self, *args): pass
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_port}/'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def file_server():
    s = FileServer()
    yield s
    s.server.shutdown()
    s.server.server_close()


@pytest.fixture
def oxford(file_server, garden, tmp_path, monkeypatch):
    "The three official files, made from petals, and their checksums in FILES."
    for name in ('setid.mat', 'imagelabels.mat'): file_server.files[name] = (garden/name).read_bytes()
    with tarfile.open(tmp_path/'all.tgz', 'w:gz') as tar: tar.add(garden/'jpg', 'jpg')
    file_server.files['102flowers.tgz'] = (tmp_path/'all.tgz').read_bytes()
    for name in FILES: monkeypatch.setitem(FILES, name, hashlib.md5(file_server.files[name]).hexdigest())
    monkeypatch.setattr(flowers102, 'URL', file_server.url)
    return file_server


# ---- from a download to batches ----

def test_whole_path(oxford, garden):
    "Download (cut off twice and resumed), unpack, lists, dataset, batches."
    oxford.cuts = [None, None, 9000, 8500]                     # pieces of 8,192 bytes are kept
    info = prepare_data('auto', root='data', petals=TINY)
    assert (info.name, info.class_num, info.counts) == ('flowers102', 4, dict(train=12, val=8, extra=8, train_extra=20))
    assert info.why == 'flowers102: downloaded from Oxford'
    assert info.root == Path('data/flowers102')
    assert info.image_size == '32 x 32'
    archive = [header for name, header in oxford.requested if name == '102flowers.tgz']
    assert archive[0] is None
    assert len(archive) == 3
    assert 0 < int(archive[1][6:-1]) < int(archive[2][6:-1])
    assert names(info.root) == sorted([
        'jpg', 'setid.mat', 'imagelabels.mat', 'classes.txt', *(f'{k}_list.txt' for k in info.counts)])
    assert contents(info.root/'jpg') == contents(garden/'jpg')
    assert all((info.root/f'{k}_list.txt').read_bytes() == (garden/f'{k}_list.txt').read_bytes() for k in info.counts)
    ds = ListDataset(info.root, info.lists/'train_extra_list.txt', build_ops(TRAIN), class_num=info.class_num)
    batches = list(make_loader(ds, 8, shuffle=True))
    assert [b[0].shape for b in batches] == [[8, 3, 24, 24], [8, 3, 24, 24], [4, 3, 24, 24]]
    assert ds.name == 'flowers102'
    assert sorted(np.concatenate([y.numpy() for _, y in batches])) == sorted(ds.labels)
    assert class_counts(ds.labels).tolist() == [5]*4
    asked = len(oxford.requested)
    assert prepare_data('auto', root='data', petals=TINY).why == 'flowers102: found in data/flowers102'
    assert len(oxford.requested) == asked


def test_server_without_ranges(oxford):
    oxford.ranges = False
    Path('data').mkdir()
    Path('data/102flowers.tgz.part').write_bytes(b'an old part of something else')
    assert contents(download_flowers102('data')/'jpg')
    assert ('102flowers.tgz', 'bytes=29-') in oxford.requested


def test_server_that_always_cuts_off(oxford):
    oxford.files['setid.mat'], oxford.cuts, oxford.ranges = bytes(20000), [9000]*9, False
    with pytest.raises(PPClsError, match=r'setid.mat: cannot be downloaded: .*8,192 bytes are kept in '
                                         r'data.setid.mat.part, run again to continue$'):
        download_flowers102('data')
    # one attempt with new bytes, two without
    assert names('data') == ['setid.mat.part']
    assert len(oxford.requested) == 3


def test_interrupted_then_continued(oxford):
    body = oxford.files['102flowers.tgz']
    Path('part.tgz.part').write_bytes(body[:5000])
    assert download(oxford.url + '102flowers.tgz', 'part.tgz', FILES['102flowers.tgz']).read_bytes() == body
    assert oxford.requested == [('102flowers.tgz', 'bytes=5000-')]
    assert not Path('part.tgz.part').exists()


@pytest.mark.parametrize('data', ['flowers102', 'auto'])
def test_wrong_md5(oxford, monkeypatch, data):
    "An error where flowers102 was requested; with 'auto' petals, and the description says why."
    monkeypatch.setitem(FILES, '102flowers.tgz', '0'*32)
    if data == 'flowers102':
        with pytest.raises(PPClsError, match='102flowers.tgz: md5 .* is not the expected 0{32}; the file was removed'):
            prepare_data(data, petals=TINY)
    else:
        info = prepare_data(data, petals=TINY)
        assert info.name == 'petals'
        assert info.why.startswith('petals (drawn, not photographs)')
        assert 'md5' in info.why
        assert '\n' not in info.why
    assert names('data/flowers102') == ['imagelabels.mat', 'setid.mat']
    assert find_flowers102() is None


def test_truncated_archive(oxford, monkeypatch):
    oxford.files['102flowers.tgz'] = oxford.files['102flowers.tgz'][:-4000]
    monkeypatch.setitem(FILES, '102flowers.tgz', hashlib.md5(oxford.files['102flowers.tgz']).hexdigest())
    with pytest.raises(PPClsError, match='102flowers.tgz: truncated or damaged archive') as e:
        download_flowers102('data')
    assert '\n' not in str(e.value)
    assert names('data') == ['102flowers.tgz', 'imagelabels.mat', 'setid.mat']


@pytest.mark.parametrize('mode', ['w', 'w:gz', 'w:bz2', 'w:xz'])
def test_archives_cut_anywhere(garden, mode):
    "Whole: unpacked. Cut at any of many places: one line, and nothing in the target."
    with tarfile.open('all.tar', mode) as tar: tar.add(garden/'jpg', 'jpg')
    assert contents(unpack('all.tar', 'out', marker='jpg')/'jpg') == contents(garden/'jpg')
    body = Path('all.tar').read_bytes()
    end = body.rindex(b'\xff\xd9') if mode == 'w' else len(body)                 # a plain tar ends with padding
    for k in np.linspace(1, end-1, 15).astype(int):
        Path('cut.tar').write_bytes(body[:k])
        if mode == 'w' and k % 512 == 0: continue
        with pytest.raises(PPClsError, match='cut.tar: ') as e: unpack('cut.tar', 'bad', marker='jpg')
        assert '\n' not in str(e.value)
        assert not names('bad')


def test_no_network_is_one_quick_line(monkeypatch):
    monkeypatch.setattr(flowers102, 'URL', 'http://127.0.0.1:9/')
    with pytest.raises(PPClsError, match=r'^http://127.0.0.1:9/setid.mat: cannot be downloaded: \[Errno \d+\] '
                                         r'Connection refused$'):
        prepare_data('flowers102')


# ---- finding it ----

def test_ppcls_data_and_order(garden, tmp_path, monkeypatch):
    """PPCLS_DATA: the folder itself or the one above; before data/flowers102; never written to; an error where it holds
    nothing."""
    photos = shutil.copytree(garden, tmp_path/'disk'/'flowers', ignore=shutil.ignore_patterns('about.json', '*.txt'))
    monkeypatch.setattr(flowers102, 'URL', 'http://127.0.0.1:9/')
    shutil.copytree(photos, 'data/flowers102')
    assert prepare_data().root == Path('data/flowers102')
    before = contents(photos)
    for value in (photos, photos.parent):
        monkeypatch.setenv('PPCLS_DATA', str(value))
        info = prepare_data()
        assert info.root == photos == find_flowers102()
        assert info.why == f'flowers102: found in {photos}'
    assert contents(photos) == before
    assert info.lists.parent == Path('data')
    ds = ListDataset(info.root, info.lists/'val_list.txt', build_ops([{'DecodeImage': None}]))
    assert len(ds) == 8
    assert ds[7][0].shape == (32, 32, 3)
    monkeypatch.setenv('PPCLS_DATA', str(tmp_path))                              # two levels above
    with pytest.raises(PPClsError, match='^PPCLS_DATA=.*: contains no flowers102'): prepare_data()
    assert prepare_data('petals', petals=TINY).name == 'petals'                  # not requested, so not read
    assert data_folder(tmp_path) is None


# ---- errors in lists and images ----

@pytest.mark.parametrize('line, why', [('jpg/image_00099.jpg 1', 'no such image: .*image_00099.jpg'),
                                       ('jpg/image_00001.jpg 4', 'label 4 is out of range, expected 0…3'),
                                       ('jpg/image_00001.jpg -1', 'label -1 is out of range'),
                                       ('jpg/image_00001.jpg', "no label in 'jpg/image_00001.jpg'"),
                                       ('jpg/image_00001.jpg rose', "label 'rose' is not a whole number")])
def test_bad_line_is_named(garden, line, why):
    good = (garden/'train_list.txt').read_text()
    Path('l.txt').write_text(good + line + '\n' + good)
    with pytest.raises(PPClsError, match=f'^l.txt:13: {why}') as e: ListDataset(garden, 'l.txt', class_num=4)
    assert '\n' not in str(e.value)


def test_paths_with_spaces_and_unlabelled(garden, tmp_path):
    root = tmp_path/'my photos'
    (root/'a b').mkdir(parents=True)
    for name in ('a b/c d.jpg', 'e 7'): shutil.copy(garden/'jpg/image_00001.jpg', root/name)
    Path('l.txt').write_text('\ufeffa b/c d.jpg 3\r\ne 7 1\r\n', encoding='utf-8')
    assert read_list('l.txt', root)[1].tolist() == [3, 1]
    Path('l.txt').write_text('a b/c d.jpg\ne 7\na b/c d.jpg 2\n')
    paths, labels = read_list('l.txt', root, labelled=False)
    assert labels.tolist() == [-1, -1, 2]
    assert [str(Path(p).relative_to(root)) for p in paths] == ['a b/c d.jpg', 'e 7', 'a b/c d.jpg']


@pytest.mark.parametrize('workers', [0, 2])
def test_undecodable_jpeg_is_named(garden, tmp_path, workers):
    root = shutil.copytree(garden, tmp_path/'rotten')
    bad = root/'jpg'/'image_00010.jpg'
    bad.write_bytes(bad.read_bytes()[:500])
    ds = ListDataset(root, root/'train_extra_list.txt', build_ops(TRAIN))
    i = ds.paths.index(str(bad))
    with pytest.raises(PPClsError, match='image_00010.jpg: a JPEG file without its end'): ds[i]
    with pytest.raises(PPClsError) as e: list(make_loader(ds, 4, num_workers=workers))
    assert str(e.value) == f'{bad}: a JPEG file without its end, an incomplete copy perhaps (500 bytes)'


# ---- a full disk ----

FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import ppcls_nb
from ppcls_nb.basics import PPClsError
from ppcls_nb.data.download import download, unpack
from ppcls_nb.data.flowers102 import make_lists
from ppcls_nb.data.petals import make_petals
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try: {action}
except PPClsError as e: print(e); sys.exit(7)
"""


@pytest.mark.parametrize('action, limit, left, why', [
    ("unpack('all.tgz', 'out', marker='jpg')", 1000, [],
     'all.tgz: cannot be unpacked into out: File too large; nothing was left there'),
    ("make_petals('out/petals', classes=2, per_class=(2, 1, 0), progress=False)", 1000, [],
     'out/petals: cannot be written: File too large; nothing was left under that name'),
    ("make_lists('garden', 'out')", 100, [],
     'out/train_list.txt: cannot be written: File too large; nothing was left under that name'),
    ("download('URL/setid.mat', 'out/setid.mat')", 100, ['setid.mat.part'],
     'out/setid.mat: cannot be written: File too large; 100 bytes are kept in out/setid.mat.part, run again to '
     'continue')])
def test_full_disk(oxford, garden, tmp_path, action, limit, left, why):
    "A real refusal to write, by a limit on file sizes in a process of its own."
    shutil.copytree(garden, 'garden')
    shutil.copy(tmp_path/'all.tgz', 'all.tgz')
    code = FULL.format(limit=limit, action=action.replace('URL/', oxford.url))
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120,
                         env=os.environ | dict(PYTHONPATH=str(Path(ppcls_nb.__file__).parents[1])))
    assert run.returncode == 7, run.stderr
    assert run.stdout.strip().splitlines() == [why]
    assert names('out') == left


# ---- the same again ----

def test_petals_same_bytes_from_the_same_seed(garden, tmp_path):
    "In another process, too; and other bytes from another seed."
    code = f"from ppcls_nb.data.petals import make_petals; make_petals({str(tmp_path/'again')!r}, **{TINY!r})"
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120,
                   env=os.environ | dict(PYTHONPATH=str(Path(ppcls_nb.__file__).parents[1]), PYTHONHASHSEED='7'))
    drawn = lambda root: {k: v for k, v in contents(root).items() if not k.endswith('_list.txt')}
    assert drawn(garden) == drawn(tmp_path/'again')
    assert len(drawn(garden)) == 28 + 3
    other = contents(make_petals(tmp_path/'other', **(TINY | dict(seed=1))))
    assert not any(other[k] == v for k, v in contents(garden/'jpg').items() if k in other)
    assert other['jpg/image_00001.jpg'] != (garden/'jpg/image_00001.jpg').read_bytes()


def test_petals_pictures_do_not_depend_on_the_number_of_classes(garden, tmp_path):
    more = make_petals(tmp_path/'more', **(TINY | dict(classes=3)))
    few, all_ = contents(more/'jpg'), contents(garden/'jpg')
    same = [few[k] == all_[k] for k in few]
    # the subject is the same; a background may show a species that the other set lacks
    assert len(few) == 21
    assert np.mean(same) > .1


def test_petals_default_size():
    "The counts of the cpu profile: 102 classes, 10/10/60."
    assert petals_key() == '102x10-10-60-64px-s0-v1'


def test_loader_is_equal_for_any_number_of_workers(garden):
    def epoch(n, workers, dataset):
        loader = make_loader(dataset, 5, shuffle=True, num_workers=workers, seed=3)
        loader.set_epoch(n)
        return [(x.numpy().tobytes(), y.numpy().tobytes()) for x, y in loader]
    ds = ListDataset(garden, garden/'train_list.txt', build_ops(TRAIN), seed=3)
    for data in (ds, subset(ds, range(1, 12, 2))):
        alone = [epoch(n, 0, data) for n in (0, 1)]
        assert alone[0] != alone[1]
        for workers in (1, 2): assert [epoch(n, workers, data) for n in (0, 1)] == alone


def test_preparing_twice_writes_the_same(garden):
    first = prepare_data('petals', petals=TINY)
    before = contents('data')
    assert prepare_data('petals', petals=TINY) == first
    assert contents('data') == before
    assert json.loads((first.root/'about.json').read_text())['name'] == 'petals'
    assert first.root.name == 'petals-' + petals_key(**{k: v for k, v in TINY.items() if k != 'progress'})


# ---- the real thing ----

REAL = os.environ.get('PPCLS_DATA')


@pytest.mark.skipif(not REAL, reason='PPCLS_DATA names no copy of flowers102')
def test_real_flowers102(monkeypatch):
    monkeypatch.setenv('PPCLS_DATA', REAL)
    info = prepare_data('auto', root='data')
    if info.name != 'flowers102': pytest.skip(f'PPCLS_DATA={REAL} holds {info.name}')
    assert info.counts == dict(train=1020, val=1020, extra=6149, train_extra=7169)
    assert info.class_num == 102
    lists = {k: read_list(info.lists/f'{k}_list.txt', info.root, 102) for k in info.counts}
    assert class_counts(lists['train'][1]).tolist() == class_counts(lists['val'][1]).tolist() == [10]*102
    first = {k: (info.lists/f'{k}_list.txt').read_text().splitlines()[0] for k in ('train', 'val', 'extra')}
    assert first == dict(train='jpg/image_06765.jpg 0', val='jpg/image_06773.jpg 0', extra='jpg/image_06734.jpg 0')
    parts = [set(lists[k][0]) for k in ('train', 'val', 'extra')]
    assert len(set.union(*parts)) == 8189
    assert set(lists['train_extra'][0]) == parts[0] | parts[2]
    ops = build_ops([{'DecodeImage': None}, {'ResizeImage': {'size': 32}}, *NORMALIZE])
    ds = ListDataset(info.root, info.lists/'val_list.txt', ops, class_num=102)
    assert all(x.shape[1:] == [3, 32, 32] for x, _ in make_loader(ds, 64))
