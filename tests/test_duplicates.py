"""What spans the notebooks of near-duplicates: drawn photographs, copies of every kind, lists with spaces and odd
files, a run that is killed."""
import csv

import cv2, numpy as np, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.data import duplicates
from ppcls_nb.data.duplicates import check_leakage, find_duplicates, fingerprint, mirrored, remove_duplicates, same_photo


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


def test_a_killed_run_goes_on_and_a_changed_reference_is_not_believed(folder, rooms, strangers, tmp_path, monkeypatch):
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
    assert [(r['line'], r['reason'].split(':')[0]) for r in report] == [('2', 'near-duplicate (SIFT)'),
                                                                        ('5', 'same file'), ('6', 'identical bytes'),
                                                                        ('7', 'unreadable'), ('8', 'unreadable'),
                                                                        ('9', 'unreadable')]
    assert report[0]['reference'].endswith('room 104.png')
    assert sorted(p.name for p in (folder/'out').iterdir()) == ['kept.txt', 'kept.txt.csv']
    assert not check_leakage(removal.kept, folder/'val.txt', root=folder, progress=False)


def test_leakage_of_lists_and_of_paths(folder, rooms, strangers):
    link = folder/'pool'/'link.png'
    link.symlink_to(folder/'val set'/'room 101.png')
    leak = check_leakage([*strangers[:5],
                          str(link), save(folder/'pool'/'near.png',
                                          scene(108)[:, ::-1])], rooms, progress=False)
    assert leak
    assert [m.how for m in leak.same] == ['file']
    assert [m.flipped for m in leak.near] == [True]
    assert len(str(leak).splitlines()) == 3
    clean = check_leakage(strangers[:5], rooms, progress=False)
    assert not clean
    assert str(clean) == 'no leakage between 5 training and 12 validation images, by file, bytes and SIFT'
    (folder/'wrong.txt').write_text('val set/room 999.png 0\n')
    with pytest.raises(PPClsError, match='wrong.txt:1: no such image'): check_leakage(folder/'wrong.txt', rooms)


def test_wrong_input_is_told(folder, rooms, strangers, capsys):
    (folder/'bad.png').write_bytes(b'nothing')
    assert find_duplicates([str(folder/'bad.png'), str(folder/'gone.png')], rooms, progress=False) == []
    assert '2 of 2 pool images cannot be read and were left out' in capsys.readouterr().out
    for pool, reference, words in (([], rooms, 'an empty pool'), (strangers, [], 'no reference images'),
                                   (strangers, [str(folder/'bad.png')], 'bad.png: not an image')):
        with pytest.raises(PPClsError, match=words): find_duplicates(pool, reference, progress=False)
