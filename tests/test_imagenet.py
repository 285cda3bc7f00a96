"""ImageNet-1k in miniature: interrupted unpacking, damaged archives, missing files and every layout
(nbs/01_data/09_imagenet.ipynb)."""
import io, json, os, shutil, tarfile
from unittest.mock import patch

import cv2, numpy as np, pytest, scipy.io

from ppcls_nb.basics import PPClsError
from ppcls_nb.data import imagenet
from ppcls_nb.data.checks import check_list, check_splits, require_ok
from ppcls_nb.data.imagenet import (ARCHIVES, COMPLETE, DEVKIT, KIT_DATA, TRAIN, VAL, _class_labels,
                                    _classes_from_kaggle, _classes_from_kit, _image_number, _train_rows, _unpack_all,
                                    _unpack_train, _val_rows, prepare_imagenet, read_synsets)
from ppcls_nb.data.lists import read_list

# kit's number, wnid, words, number of children, number of training images
TABLE = [(1, 'n15075141', 'toilet tissue, toilet paper, bathroom tissue', 0, 4),
         (2, 'n01440764', 'tench, Tinca tinca', 0, 3),
         (3, 'n02102040', 'English springer, English springer spaniel', 0, 2),
         (4, 'n00001740', 'entity', 3, 0)]
TRUTH = [2, 3, 1, 1, 2, 3]
WNIDS = [row[1] for row in TABLE[:3]]


def jpeg(*seed):
    img = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    return cv2.imencode('.jpg', img)[1].tobytes()


def tar_bytes(files, mode='w'):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def meta_bytes():
    fields = ['ILSVRC2012_ID', 'WNID', 'words', 'num_children', 'num_train_images']
    synsets = np.zeros(len(TABLE), dtype=[(field, object) for field in fields])
    for i, row in enumerate(TABLE):
        synsets[i] = row
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {'synsets': synsets.reshape(-1, 1)})
    return buffer.getvalue()


def val_name(i): return f'ILSVRC2012_val_{i:08d}.JPEG'


def make_archives(root, which=ARCHIVES):
    root.mkdir(parents=True, exist_ok=True)
    classes = {w: {f'{w}_{7*i + 3}.JPEG': jpeg(c, i) for i in range(n)} for c, w, _, _, n in TABLE[:3]}
    truth = ''.join(f'{t}\n' for t in TRUTH).encode()
    kit = {f'{KIT_DATA}/meta.mat': meta_bytes(), f'{KIT_DATA}/ILSVRC2012_validation_ground_truth.txt': truth}
    made = {TRAIN: tar_bytes({f'{w}.tar': tar_bytes(files) for w, files in classes.items()}),
            VAL: tar_bytes({val_name(i): jpeg(9, i) for i in (4, 1, 6, 2, 5, 3)}),
            DEVKIT: tar_bytes(kit, 'w:gz')}
    for name in which:
        (root/name).write_bytes(made[name])
    return root


def files_in(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def unpacked_files(root):
    "Images, lists and about.json; the kit's .mat file has its time in it."
    return {path: data for path, data in files_in(root).items() if not path.startswith('ILSVRC2012_')}


def cut_off(after):
    "Replace `copyfileobj` by one that is interrupted when it has written half of file number `after`."
    left, copy = iter(range(after)), shutil.copyfileobj
    def half(source, f):
        if next(left, None) is None:
            f.write(source.read(100))
            raise KeyboardInterrupt
        copy(source, f)
    return patch('ppcls_nb.data.imagenet.shutil.copyfileobj', half)


@pytest.fixture
def mini(tmp_path): return make_archives(tmp_path/'mini')


@pytest.fixture
def ready(mini):
    _unpack_all(mini, ('train', 'val'), None)
    return mini


@pytest.fixture
def full_val(tmp_path):
    "Validation images without their classes."
    root = make_archives(tmp_path/'full', [VAL])
    _unpack_all(root, ('val',), None)
    return root


@pytest.fixture
def solution(tmp_path):
    "Kaggle's table of the validation images."
    wnids = [TABLE[t-1][1] for t in TRUTH]
    lines = [f'{val_name(i)[:-5]},{wnids[i-1]} 1 2 30 40 {WNIDS[0]} 5 6 7 8 ' for i in (3, 1, 2, 6, 5, 4)]
    file = tmp_path/'LOC_val_solution.csv'
    file.write_text('\n'.join(['ImageId,PredictionString', *lines]) + '\n')
    return file


@pytest.fixture
def thousand(tmp_path):
    "A synset map of a thousand classes."
    file = tmp_path/'thousand.txt'
    file.write_text('\n'.join(sorted(WNIDS + [f'n{i:08d}' for i in range(2_000_000, 2_000_997)])))
    return file


# ---- archives ----

def test_checksums():
    assert all(len(text[-32:]) == 32 for text in ARCHIVES.values())


def test_interrupted_at_each_training_image(mini, tmp_path):
    _unpack_train(mini/TRAIN, tmp_path/'whole')
    whole = files_in(tmp_path/'whole')
    assert whole['n01440764/n01440764_3.JPEG'] == jpeg(2, 0)
    for k in range(9):
        at = tmp_path/f'cut{k}'
        with cut_off(k), pytest.raises(KeyboardInterrupt):
            _unpack_train(mini/TRAIN, at)
        done = [wnid for wnid in WNIDS if (at/wnid).exists()]
        assert len(done) == (k >= 4) + (k >= 7)
        assert all(path[0] == '.' or whole[path] == data for path, data in files_in(at).items())
        before = {wnid: (at/wnid).stat().st_ino for wnid in done}
        _unpack_train(mini/TRAIN, at)
        assert files_in(at) == whole
        assert before == {wnid: (at/wnid).stat().st_ino for wnid in done}


def test_some_classes(tmp_path):
    root = make_archives(tmp_path/'some', [TRAIN])
    _unpack_all(root, ('train', 'val'), {'n02102040'})
    assert [path.name for path in (root/'train').iterdir()] == ['n02102040']


@pytest.mark.parametrize('archive, why', [
    (None, 'truncated or damaged'),
    (b'<html>', 'truncated or damaged'),
    (tar_bytes({'../n01440764.tar': b''}), 'refused'),
    (tar_bytes({'n01440764.tar': tar_bytes({'../../evil.jpg': b''})}), "refused, '../../evil.jpg'"),
    (tar_bytes({'n01440764.tar': tar_bytes({'/tmp/evil.jpg': b''})}), 'refused')])
def test_archives_that_are_refused(ready, tmp_path, archive, why):
    data = (ready/TRAIN).read_bytes()
    root = tmp_path/'bad'
    root.mkdir()
    (root/TRAIN).write_bytes(data[:len(data)//2] if archive is None else archive)
    with pytest.raises(PPClsError, match=why):
        _unpack_all(root, ('train',), None)
    assert not list(tmp_path.rglob('evil.jpg'))
    whole = files_in(ready/'train')
    assert all(whole.get(path) == d for path, d in files_in(root/'train').items() if path[0] != '.')


def test_an_interrupted_validation_archive(ready, tmp_path):
    root = make_archives(tmp_path/'val', [VAL])
    full_disk = OSError(28, 'No space left on device')
    with patch('ppcls_nb.data.imagenet.shutil.copyfileobj', side_effect=full_disk):
        with pytest.raises(PPClsError, match='No space left on device; run it again'):
            _unpack_all(root, ('val',), None)
    assert not (root/'val').exists()
    with cut_off(3), pytest.raises(KeyboardInterrupt):
        _unpack_all(root, ('val',), None)
    (root/'val').mkdir()                                 # an empty folder made by hand
    _unpack_all(root, ('val',), None)
    assert files_in(root/'val') == files_in(ready/'val')


# ---- classes ----

def test_synset_maps(ready, tmp_path):
    def from_text(text):
        (tmp_path/'s.txt').write_text(text)
        return read_synsets(tmp_path/'s.txt')
    words = from_text(''.join(f'{wnid} {text}\n' for _, wnid, text, _, _ in TABLE[:3]))
    assert list(words.items()) == list(read_synsets(ready/KIT_DATA/'meta.mat').items())
    with pytest.raises(PPClsError, match=':1: expected'):
        from_text('tench n01440764\n')
    with pytest.raises(PPClsError, match=':2: n01440764 occurs twice'):
        from_text('n01440764\nn01440764 tench')
    (tmp_path/'no.mat').write_text('<html>')
    with pytest.raises(PPClsError, match='no.mat: cannot be read as the table'):
        read_synsets(tmp_path/'no.mat')
    with pytest.raises(PPClsError, match='none.txt: list file cannot be read: No such file'):
        read_synsets(tmp_path/'none.txt')


def test_kaggles_table(ready, solution, tmp_path):
    assert _classes_from_kaggle(solution) == _classes_from_kit(ready/KIT_DATA)
    (tmp_path/'bad.csv').write_text('a,b\n1,2\n')
    with pytest.raises(PPClsError, match='bad.csv: expected the columns'):
        _classes_from_kaggle(tmp_path/'bad.csv')
    assert _image_number('n01440764_1.JPEG') is None


@pytest.mark.parametrize('text, why', [('7\n', 'found 7, expected a class number'),
                                       (None, 'cannot be read: No such file .*; remove the folder')])
def test_a_damaged_kit(ready, text, why):
    truth = ready/KIT_DATA/'ILSVRC2012_validation_ground_truth.txt'
    truth.unlink()
    if text:
        truth.write_text(text)
    with pytest.raises(PPClsError, match=f'ground_truth.txt: {why}'):
        _val_rows(ready)


def test_missing_images(ready, full_val, solution, tmp_path):
    (ready/'train'/'n15075141').rename(ready/'train'/'rolls')
    with pytest.raises(PPClsError, match='rolls: expected folders named by wnid.* make_list_files'):
        _train_rows(ready)
    with pytest.raises(PPClsError, match='no classes of the validation images.*devkit_t12.*LOC_val_solution.csv'):
        _val_rows(full_val)
    (full_val/'val'/val_name(7)).write_bytes(jpeg(1))
    shutil.copy(solution, full_val)
    with pytest.raises(PPClsError, match='LOC_val_solution.csv has no class for ILSVRC2012_val_00000007'):
        _val_rows(full_val)
    (tmp_path/'empty'/'val').mkdir(parents=True)
    with pytest.raises(PPClsError, match='no image named as'):
        _val_rows(tmp_path/'empty')


@pytest.mark.parametrize('numbering, synsets, why', [
    ('imagnet', None, "did you mean 'imagenet'"),
    ('own', 'none.txt', 'cannot be read')])
def test_labels_that_are_refused(full_val, numbering, synsets, why):
    with pytest.raises(PPClsError, match=why):
        _class_labels(sorted(WNIDS), numbering, full_val, synsets and full_val/synsets)


def test_labels_among_the_thousand_need_no_file(full_val):
    labels, class_num, words = _class_labels(sorted(WNIDS), 'imagenet', full_val, None)
    assert labels == {'n01440764': 0, 'n02102040': 217, 'n15075141': 999}
    assert class_num == 1000
    assert words['n01751748'] == 'sea snake'
    with pytest.raises(PPClsError, match='ImageNet-1k: does not have n99999999'):
        _class_labels(['n99999999'], 'imagenet', full_val, None)


def test_a_map_of_too_few_classes(tmp_path):
    (tmp_path/'few.txt').write_text('\n'.join(WNIDS))
    with pytest.raises(PPClsError, match="few.txt: has 3 classes, numbering 'imagenet' needs all 1,000"):
        _class_labels(sorted(WNIDS), 'imagenet', tmp_path, tmp_path/'few.txt')


def test_an_unknown_class(full_val, thousand):
    with pytest.raises(PPClsError, match='does not have n99999999'):
        _class_labels(['n99999999'], 'imagenet', full_val, thousand)


# ---- the whole ----

def test_three_layouts_give_the_same_lists(mini, solution, tmp_path):
    prepared = prepare_imagenet(mini, full=False)
    by_class, kaggle = tmp_path/'sorted', tmp_path/'kaggle'
    images = kaggle/'ILSVRC'/'Data'/'CLS-LOC'
    shutil.copytree(mini/'train', by_class/'train')
    shutil.copytree(mini/'train', images/'train')
    shutil.copytree(mini/'val', images/'val')
    for i, t in enumerate(TRUTH, 1):
        folder = by_class/'val'/TABLE[t-1][1]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(mini/'val'/val_name(i), folder)
    shutil.copy(solution, kaggle)
    (kaggle/'LOC_synset_mapping.txt').write_text(''.join(f'{wnid} {text}\n' for _, wnid, text, _, _ in TABLE[:3]))
    expected = [(val_name(i), {2: 0, 3: 1, 1: 2}[t]) for i, t in enumerate(TRUTH, 1)]
    for info in (prepared, prepare_imagenet(by_class, full=False), prepare_imagenet(kaggle, full=False)):
        paths, labels = read_list(info.lists/'val_list.txt')
        assert list(zip(map(os.path.basename, paths), labels)) == expected
        require_ok(*(check_list(info.lists/f'{part}_list.txt', class_num=3, decode=True) for part in ('train', 'val')))
    train = (mini/'train_list.txt').read_text()
    assert train == (by_class/'train_list.txt').read_text()
    assert train == (kaggle/'train_list.txt').read_text().replace('ILSVRC/Data/CLS-LOC/', '')
    assert (mini/'synsets.txt').read_bytes() == (kaggle/'synsets.txt').read_bytes()
    words = {wnid: text for _, wnid, text, _, _ in TABLE}
    assert (by_class/'synsets.txt').read_text().splitlines() == [
        f'{label} {wnid} {text}' for label, (wnid, text) in enumerate((wnid, words[wnid]) for wnid in sorted(WNIDS))]
    require_ok(check_splits(mini/'train_list.txt', mini/'val_list.txt', same_bytes=True))
    shutil.rmtree(by_class/'train'/'n15075141')
    with pytest.raises(PPClsError, match='n15075141 has no training images'):
        prepare_imagenet(by_class, full=False)


def test_a_second_call_changes_nothing(mini):
    info = prepare_imagenet(mini, full=False)
    assert (info.name, info.class_num, info.counts) == ('imagenet-3', 3, dict(train=9, val=6))
    assert json.loads((mini/'about.json').read_text())['name'] == 'imagenet-3'
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in mini.rglob('*') if path.is_file()}
    assert prepare_imagenet(mini, full=False) == info
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in mini.rglob('*') if path.is_file()}


def test_interrupted_at_any_image(mini, tmp_path):
    prepare_imagenet(mini, full=False)
    for k in range(0, 15, 2):
        root = make_archives(tmp_path/f'again{k}')
        with cut_off(k), pytest.raises(KeyboardInterrupt):
            prepare_imagenet(root, full=False)
        assert not (root/'train_list.txt').exists()
        prepare_imagenet(root, full=False)
        assert unpacked_files(root) == unpacked_files(mini)


TWO = ['n15075141', 'n02102040']


def labels_in(info, part): return read_list(info.lists/f'{part}_list.txt', info.root)[1].tolist()


def test_a_part(mini, thousand, tmp_path):
    own = prepare_imagenet(mini, tmp_path/'two', classes=TWO)
    assert labels_in(own, 'val') == [0, 1, 1, 0]
    assert (own.lists, own.class_num) == (tmp_path/'two', 2)
    (tmp_path/'pick.txt').write_text('\n'.join(TWO))
    assert prepare_imagenet(mini, tmp_path/'two', classes=tmp_path/'pick.txt') == own
    standard = prepare_imagenet(mini, tmp_path/'standard', classes=TWO, numbering='imagenet', synsets=thousand)
    assert [line.split()[:2] for line in (standard.lists/'synsets.txt').read_text().splitlines()] == [
        ['998', 'n02102040'], ['999', 'n15075141']]
    without_kit = make_archives(tmp_path/'no kit', [TRAIN])
    known = prepare_imagenet(without_kit, classes=TWO, numbering='imagenet', parts='train')
    assert labels_in(known, 'train') == [217]*2 + [999]*4
    only_val = prepare_imagenet(make_archives(tmp_path/'only', [VAL, DEVKIT]), full=False, parts='val')
    assert not (only_val.root/'train_list.txt').exists()


def test_fewer_training_images(ready, tmp_path, capsys):
    (ready/'train'/'n15075141'/'n15075141_3.JPEG').unlink()
    prepare_imagenet(ready, tmp_path/'fewer', full=False)
    out = capsys.readouterr().out
    assert 'fewer training images than in ImageNet-1k: n15075141 (3 of 4)' in out
    assert 'classes, 8 train' in out


@pytest.mark.parametrize('options, why', [
    ({}, '3 classes, ImageNet-1k has 1,000; for a part'),
    (dict(classes=['n00000001']), 'no train images of n00000001'),
    (dict(classes=TWO), 'exists with other contents'),
    (dict(parts='test'), "unknown part 'test'")])
def test_calls_that_are_refused(mini, options, why):
    prepare_imagenet(mini, full=False)
    before = files_in(mini)
    with pytest.raises(PPClsError, match=why):
        prepare_imagenet(mini, **options)
    assert files_in(mini) == before


def test_a_missing_folder(tmp_path):
    with pytest.raises(PPClsError, match='none: no such folder; put ILSVRC2012_img_train.tar'):
        prepare_imagenet(tmp_path/'none')
    (tmp_path/'bare').mkdir()
    with pytest.raises(PPClsError, match='no training images; .*img_train.tar .138 GB.* from https://image-net.org'):
        prepare_imagenet(tmp_path/'bare')


def test_numbers_of_the_whole(mini, tmp_path, monkeypatch, capsys):
    def numbers(**kw):
        monkeypatch.setattr(imagenet, 'COMPLETE', COMPLETE | dict(classes=3, train=9, val=6, first_label=0) | kw)
    numbers(val=7)
    with pytest.raises(PPClsError, match='6 validation images, ImageNet-1k has 7; remove the folder'):
        prepare_imagenet(mini, tmp_path/'whole')
    numbers(first_label=2)
    with pytest.raises(PPClsError, match='00000001.JPEG has label 0, expected 2'):
        prepare_imagenet(mini, tmp_path/'whole')
    numbers(train=10)
    assert prepare_imagenet(mini, tmp_path/'whole').name == 'imagenet'
    assert 'ImageNet-1k has 10 training images' in capsys.readouterr().out
