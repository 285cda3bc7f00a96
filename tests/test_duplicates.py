"""What spans the notebooks of near-duplicates: drawn photographs, copies of every kind, lists with spaces and odd
files, a run that is killed."""
import csv

import cv2, numpy as np, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.data import duplicates
from ppcls_nb.data.datasets import BadImage
from ppcls_nb.data.duplicates import References, check_leakage, find_duplicates, fingerprint, match_descriptors
from ppcls_nb.data.duplicates import mirrored, remove_duplicates, same_photo


def scene(seed, h=96, w=112):
    "A picture with corners to hold on to, uint8 (h, w, 3)."
    rng = np.random.default_rng(seed)
    img = np.full((h, w, 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(50):
        x, y, a, b = (int(v) for v in rng.integers(0, h, 4))
        cv2.ellipse(img, (x + 8, y), (a//5 + 2, b//5 + 2), int(rng.integers(180)), 0, 360,
                    rng.integers(0, 256, 3).tolist(), -1)
    return cv2.GaussianBlur(img, (0, 0), .8)


def save(path, img):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, img)[1].tobytes())
    return str(path)


COPIES = {
    'crop': lambda x: x[9:89, 20:105],
    'small': lambda x: cv2.resize(x, None, fx=.55, fy=.55, interpolation=cv2.INTER_AREA),
    'large': lambda x: cv2.resize(x, None, fx=2.2, fy=2.2),
    'jpeg': lambda x: cv2.imdecode(cv2.imencode('.jpg', x, [cv2.IMWRITE_JPEG_QUALITY, 25])[1], 1),
    'dark': lambda x: (x*.5 + 20).astype(np.uint8),
    'grey': lambda x: cv2.cvtColor(x, cv2.COLOR_BGR2GRAY),
    'untouched': lambda x: x,
    'mirror': lambda x: x[:, ::-1],
    'stretched': lambda x: cv2.resize(x, (96, 112))}
ROOMS = range(100, 112)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('duplicates')
    for i in ROOMS: save(root/'val set'/f'room {i}.png', scene(i))
    for i in range(30): save(root/'pool'/f'{i}.png', scene(i))
    return root


@pytest.fixture(scope='module')
def rooms(folder): return sorted(str(p) for p in (folder/'val set').iterdir())


@pytest.fixture(scope='module')
def strangers(folder): return sorted(str(p) for p in (folder/'pool').iterdir())


@pytest.mark.parametrize('kind', COPIES)
def test_every_kind_of_copy_is_the_same_photograph_and_no_other_is(kind):
    grey = lambda x: x if x.ndim == 2 else cv2.cvtColor(x, cv2.COLOR_BGR2GRAY)
    copy = fingerprint(grey(np.ascontiguousarray(COPIES[kind](scene(100)))))
    sides = (copy, mirrored(copy))
    assert any(same_photo(side, fingerprint(grey(scene(100)))) for side in sides)
    assert not any(same_photo(side, fingerprint(grey(scene(i)))) for side in sides for i in (101, 102, 103))


def test_the_hash_first_finds_what_all_pairs_find(folder, rooms, strangers):
    planted = [
        save(folder/'planted'/f'{k}{i}.png', np.ascontiguousarray(make(scene(i))))
        for k, make in COPIES.items()
        for i in (100, 107)]
    pool = strangers[:6] + planted
    fast, slow = (find_duplicates(pool, rooms, prefilter=first, progress=False) for first in (True, False))
    assert fast == slow
    assert {m.pool for m in fast} == set(planted)
    assert all(f' {m.pool.rsplit(".", 1)[0][-3:]}.png' in m.reference for m in fast)
    assert {m.pool for m in fast if m.flipped} == {p for p in planted if 'mirror' in p}
    assert not any('mirror' in m.pool for m in find_duplicates(pool, rooms, mirror=False, progress=False))


def test_two_runs_and_any_number_of_threads_give_the_same(folder, rooms, strangers):
    pool = strangers[:12] + rooms[:2] + [save(folder/'more'/'crop.png', scene(103)[5:90, 5:90])]
    runs = [find_duplicates(pool, rooms[2:], workers=n, progress=False) for n in (1, 3)]
    assert runs[0] == runs[1]
    assert [m.how for m in runs[0]] == ['sift']


def test_a_killed_run_goes_on_and_a_changed_reference_counts_as_new(folder, rooms, strangers, tmp_path, monkeypatch):
    pool = [save(tmp_path/f'{i}.png', scene(i % 30)) for i in range(3)]*100 + [rooms[3]]
    looked = []
    look = duplicates._look
    def counting(path):
        looked.append(path)
        # in the second portion
        if len(looked) > len(rooms) + 256 + 20:
            raise RuntimeError('killed')
        return look(path)
    # files alone, no time for SIFT
    monkeypatch.setattr(duplicates, 'fingerprint', lambda gray, flat=fingerprint(np.zeros((9, 9), np.uint8)): flat)
    monkeypatch.setattr(duplicates, '_look', counting)
    run = lambda reference=rooms: find_duplicates(pool, reference, cache=tmp_path/'cache', progress=False)
    with pytest.raises(RuntimeError, match='killed'): run()
    monkeypatch.setattr(duplicates, '_look', lambda path: (looked.append(path), look(path))[1])
    looked.clear()
    found = run()
    assert len(looked) == len(rooms) + len(pool) - 256
    assert [m.how for m in found] == ['file']
    looked.clear()
    assert run() == found
    assert len(looked) == len(rooms)
    assert len(run(rooms[4:])) == 0


def test_lists_keep_their_lines_and_the_report_says_why(folder, rooms):
    save(folder/'pool'/'stolen crop.png', scene(104)[5:90, 5:90])
    (folder/'pool'/'same.png').write_bytes((folder/'val set'/'room 105.png').read_bytes())
    (folder/'pool'/'cut.png').write_bytes((folder/'pool'/'0.png').read_bytes()[:20])
    (folder/'pool'/'empty.png').write_bytes(b'')
    rows = [
        'pool/1.png 7', 'pool/stolen crop.png 3', 'pool/2.png', '', 'val set/room 106.png 0', 'pool/same.png',
        'pool/cut.png 1', 'pool/empty.png', 'pool/not there.png 1', 'pool/1.png 7']
    (folder/'pool.txt').write_text('\n'.join(rows), encoding='utf-8-sig')
    (folder/'val.txt').write_text(''.join(f'val set/room {i}.png 0\n' for i in ROOMS))
    removal = remove_duplicates(folder/'pool.txt', folder/'val.txt', out=folder/'out'/'kept.txt', progress=False)
    assert removal.kept.read_text(encoding='utf-8').splitlines() == ['pool/1.png 7', 'pool/2.png', 'pool/1.png 7']
    with open(removal.report, newline='', encoding='utf-8') as f: report = list(csv.DictReader(f))
    assert [(r['line'], r['reason'].split(':')[0]) for r in report] == [
        ('2', 'near-duplicate (SIFT)'), ('5', 'same file'), ('6', 'identical bytes'), ('7', 'unreadable'),
        ('8', 'unreadable'), ('9', 'unreadable')]
    assert report[0]['reference'].endswith('room 104.png')
    assert sorted(p.name for p in (folder/'out').iterdir()) == ['kept.txt', 'kept.txt.csv']
    assert not check_leakage(removal.kept, folder/'val.txt', root=folder, progress=False)


def test_leakage_of_lists_and_of_paths(folder, rooms, strangers):
    link = folder/'pool'/'link.png'
    link.symlink_to(folder/'val set'/'room 101.png')
    near = save(folder/'pool'/'near.png', scene(108)[:, ::-1])
    leak = check_leakage([*strangers[:5], str(link), near], rooms, progress=False)
    assert leak
    assert [m.how for m in leak.same] == ['file']
    assert [m.flipped for m in leak.near] == [True]
    assert len(str(leak).splitlines()) == 3
    clean = check_leakage(strangers[:5], rooms, progress=False)
    assert not clean
    assert str(clean) == 'no leakage between 5 training and 12 validation images, by file, bytes and SIFT'
    (folder/'wrong.txt').write_text('val set/room 999.png 0\n')
    with pytest.raises(PPClsError, match='wrong.txt:1: no such image'): check_leakage(folder/'wrong.txt', rooms)


def test_images_without_features_are_compared_by_their_thumbnails():
    def fog(phase):
        waves = np.sin(np.linspace(0, 3, 64) + phase)[:, None]*40
        return (waves + np.linspace(0, 50, 64) + 100).astype(np.uint8)
    misty, other = fingerprint(fog(0)), fingerprint(fog(1))
    assert same_photo(misty, fingerprint(cv2.resize(fog(0), (96, 96)))).how == 'thumbnail'
    assert same_photo(misty, other) is None
    flat = fingerprint(np.full((64, 64), 100, np.uint8))
    assert (flat.points.shape, flat.descriptors.shape) == ((0, 2), (0, 128))
    assert same_photo(flat, flat) is None
    assert len(match_descriptors(flat, misty)) == 0


def test_references_by_file_bytes_and_picture(folder, rooms, tmp_path):
    copy = save(tmp_path/'copy.png', scene(100)[9:89, 20:105][:, ::-1])
    known = References(rooms, progress=False)
    look = duplicates._look(copy)[:3]
    assert [m.flipped for m in known.matches(*look)] == [True]
    assert known.matches(*look, mirror=False) == []
    assert known.matches(*look, min_inliers=1000) == []
    with pytest.raises(PPClsError, match='no reference images'): References([])
    (tmp_path/'broken.jpg').write_bytes(b'not an image')
    with pytest.raises(BadImage, match='broken.jpg: not an image'):
        References([*rooms, tmp_path/'broken.jpg'], progress=False)


def test_leakage_by_files_and_bytes_alone(folder, rooms, strangers, tmp_path):
    copy = tmp_path/'copy.png'
    copy.write_bytes((folder/'val set'/'room 100.png').read_bytes())
    leak = check_leakage([*strangers[:3], str(copy), rooms[1]], rooms, near=False)
    assert [m.how for m in leak.same] == ['bytes', 'file']
    assert [(m.pool, m.reference) for m in leak.same] == [(str(copy), rooms[0]), (rooms[1], rooms[1])]
    assert leak.near == []
    lists = {name: tmp_path/f'{name}.txt' for name in ('pool', 'val')}
    lists['pool'].write_text(''.join(f'pool/{i}.png\n' for i in range(3)))
    lists['val'].write_text(''.join(f'val set/room {i}.png 0\n' for i in ROOMS))
    assert len(check_leakage(lists['pool'], lists['val'], folder, near=False).same) == 0
    assert len(check_leakage(lists['val'], lists['val'], folder, near=False).same) == len(ROOMS)
    with pytest.raises(PPClsError, match='no validation images'): check_leakage(rooms, [])
    with pytest.raises(PPClsError, match='gone.jpg'): check_leakage([str(tmp_path/'gone.jpg')], rooms, near=False)


def test_a_list_of_which_nothing_is_left(folder, rooms, tmp_path):
    (tmp_path/'val.txt').write_text(''.join(f'val set/room {i}.png 0\n' for i in ROOMS))
    with pytest.raises(PPClsError, match='nothing would be left'):
        remove_duplicates(tmp_path/'val.txt', rooms, folder, progress=False)
    (tmp_path/'nowhere.txt').write_text('a.jpg\nb.jpg\n')
    with pytest.raises(PPClsError, match='an empty pool: no line names an image .no such image'):
        remove_duplicates(tmp_path/'nowhere.txt', rooms)


def test_wrong_input(folder, rooms, strangers, capsys):
    (folder/'bad.png').write_bytes(b'nothing')
    assert find_duplicates([str(folder/'bad.png'), str(folder/'gone.png')], rooms, progress=False) == []
    assert '2 of 2 pool images cannot be read and were left out' in capsys.readouterr().out
    for pool, reference, words in (([], rooms, 'an empty pool'), (strangers, [], 'no reference images'),
                                   (strangers, [str(folder/'bad.png')], 'bad.png: not an image')):
        with pytest.raises(PPClsError, match=words): find_duplicates(pool, reference, progress=False)
