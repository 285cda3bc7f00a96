"""What spans the notebooks of lists: the check agrees with the reader and the pipeline's decoder, splits never change,
and unpacking continues after the process was killed."""
import io, re, subprocess, sys, tarfile, textwrap, time
from pathlib import Path

import cv2, numpy as np, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.lists import read_list
from ppcls_nb.data.imagenet import prepare_imagenet
from ppcls_nb.data.imaug import DecodeImage
from ppcls_nb.data.folders import FolderDataset, find_images, make_list_files, split_images
from ppcls_nb.data.checks import check_list


def photo(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode('.png', np.full((8, 8, 3), value, np.uint8))[1].tobytes())


@pytest.fixture
def folder(tmp_path):
    for c in 'abc':
        for i in range(4):
            photo(tmp_path/'images'/f'kind {c}'/f'{i}.png', 20*i)
    return tmp_path/'images'


@pytest.mark.parametrize('labelled', [True, False])
def test_the_check_and_the_reader_report_the_same_error(folder, labelled):
    rng, file = np.random.default_rng(0), folder/'list.txt'
    good = [f'kind {c}/{i}.png {k}' for k, c in enumerate('abc') for i in range(4)]
    bad = [
        '', ' ', 'kind a/0.png', 'kind a/9.png 0', 'kind a/0.png 3', 'kind a/0.png -1', 'kind a/0.png x', '0',
        'kind a/0.png  1', '  kind b/0.png 1 ', 'kind a/0.png\t0', 'kind z/0.png 1', 'ä 1']
    seen = set()
    for _ in range(200):
        lines = [str(rng.choice(bad if rng.random() < .15 else good)) for _ in range(rng.integers(1, 8))]
        file.write_text('\n'.join(lines), encoding='utf-8')
        report = check_list(file, class_num=3, labelled=labelled)
        errors = [row for row in report.level('error') if 'listed already' not in row[3]]
        try:
            read_list(file, class_num=3, labelled=labelled)
            message = None
        except PPClsError as e:
            message = str(e)
        found = None
        if errors:
            name, n, _, problem, _ = errors[0]
            place = f'{name}:{n}' if n else name
            found = ' '.join(f'{place}: {problem}'.split())
        assert found == message
        seen.add(re.sub(r"'.*'|/.*", '', errors[0][3]) if errors else None)
    assert None in seen
    assert len(seen) >= 5


def test_the_check_decodes_as_the_pipeline_does(folder):
    whole = (folder/'kind a'/'0.png').read_bytes()
    for name, data in {'cut': whole[:-20], 'empty': b'', 'page': b'<html>'}.items():
        (folder/'kind b'/f'{name}.png').write_bytes(data)
    with pytest.raises(PPClsError):
        for data, _ in (FolderDataset(folder)[i] for i in range(15)):
            DecodeImage()(data)
    lists = make_list_files(folder, val=0)
    plain, pipeline = (check_list(lists['train'], decode=d).table for d in (True, DecodeImage()))
    assert plain.line.tolist() == pipeline.line.tolist()
    assert {Path(p).stem for p in plain.path} >= {'empty', 'page'}


def test_a_split_never_changes():
    "Another Python, machine or version of this package must not exchange training and validation images."
    rows = [(f'class {c}/image {i}.jpg', c) for c in range(4) for i in range(3 + 2*c)]
    parts = split_images(rows, .25, .125, seed=3)
    short = {part: ' '.join(re.sub(r'[^\d/]', '', p) for p, _ in r) for part, r in parts.items()}
    assert (short['val'], short['test']) == ('0/1 1/3 2/2 2/4 3/5 3/7', '1/0 2/5 3/6')


def test_links_to_class_folders_give_the_same_split(folder, tmp_path):
    (tmp_path/'linked').mkdir()
    for c in 'cab': (tmp_path/'linked'/f'kind {c}').symlink_to(folder/f'kind {c}')
    assert find_images(tmp_path/'linked') == find_images(folder)
    one, other = make_list_files(folder, out=tmp_path/'x'), make_list_files(tmp_path/'linked')
    for name in ('train', 'val'):
        assert one[name].read_bytes() == other[name].read_bytes()


def test_unpacking_continues_after_a_kill(tmp_path):
    def packed(files):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode='w') as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return out.getvalue()
    root, image = tmp_path/'imagenet', cv2.imencode('.jpg', np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    root.mkdir()
    wnids = [f'n{c:08d}' for c in (5, 3, 4)]
    classes = {w: packed({f'{w}_{i}.JPEG': image for i in range(300)}) for w in wnids}
    (root/'ILSVRC2012_img_train.tar').write_bytes(packed({f'{w}.tar': data for w, data in classes.items()}))
    slow = textwrap.dedent(f'''
        import shutil, time
        from ppcls_nb.data.imagenet import prepare_imagenet
        copy = shutil.copyfileobj
        shutil.copyfileobj = lambda a, b: (time.sleep(.002), copy(a, b))
        prepare_imagenet({str(root)!r}, full=False, parts='train')''')
    p = subprocess.Popen([sys.executable, '-c', slow], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(6000):
        if p.poll() is not None or (root/'train'/wnids[0]).exists():
            break
        time.sleep(.01)
    p.kill()
    p.wait()
    assert (root/'train'/wnids[0]).exists()
    assert not (root/'train'/wnids[2]).exists()
    assert not (root/'train_list.txt').exists()
    assert len(list((root/'train'/wnids[0]).iterdir())) == 300
    info = prepare_imagenet(root, full=False, parts='train')
    assert info.counts == {'train': 900}
    assert sorted(p.name for p in (root/'train').iterdir()) == sorted(wnids)
    assert np.bincount(read_list(root/'train_list.txt')[1]).tolist() == [300]*3
