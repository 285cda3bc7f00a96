"Folders of images and their split, in the corner cases (nbs/01_data/08_folders.ipynb)."
from collections import Counter

import cv2, numpy as np, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.folders import (FolderDataset, _largest_remainders, find_images, make_list_files, split_images,
                                   walk_images)
from ppcls_nb.data.lists import read_list


def photo(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode('.png', np.full((8, 8, 3), value, np.uint8))[1].tobytes())


@pytest.fixture
def garden(tmp_path):
    "Three classes with 12, 26 and 7 images, files that are not images, and hidden ones."
    root = tmp_path/'my garden'
    for name, n in {'Gänseblümchen': 12, 'rose': 25, 'tiger lily': 7}.items():
        for i in range(n):
            photo(root/name/f'{i:02d}.jpg', i)
    photo(root/'rose'/'from my aunt'/'DSC 1.JPG')
    (root/'rose'/'notes.txt').write_text('the red ones')
    (root/'rose'/'.DS_Store').write_bytes(b'x')
    (root/'.thumbnails').mkdir()
    return root


def test_a_link_to_a_parent_is_followed_once(tmp_path):
    photo(tmp_path/'loop'/'in'/'a.png')
    (tmp_path/'loop'/'in'/'back').symlink_to(tmp_path/'loop')
    assert walk_images(tmp_path/'loop') == (['in/a.png'], [])


def test_rows_are_sorted(garden):
    names, rows = find_images(garden)
    assert rows == sorted(rows, key=lambda row: (row[1], row[0]))
    assert Counter(label for _, label in rows) == {0: 12, 1: 26, 2: 7}
    ds = FolderDataset(garden)
    assert ds.classes == names
    assert ds[0][0] == (garden/rows[0][0]).read_bytes()


def test_folders_that_are_refused(garden, tmp_path):
    photo(tmp_path/'cut'/'train'/'a'/'1.png')
    photo(tmp_path/'cut'/'val'/'a'/'2.png')
    for folder, why in {tmp_path/'none': 'no such folder',
                        garden/'tiger lily': 'holds 7 images and no folders',
                        tmp_path/'cut': 'is split already into train, val'}.items():
        with pytest.raises(PPClsError, match=why):
            find_images(folder)


@pytest.mark.parametrize('sizes, fraction, limits, ties, expected', [
    ([1, 1, 8], .5, [0, 0, 7], 'abc', [0, 0, 5]),
    ([100], .29, [99], 'a', [29])])
def test_counts_add_up(sizes, fraction, limits, ties, expected):
    assert _largest_remainders(sizes, fraction, limits, ties).tolist() == expected


def test_every_class_keeps_an_image_for_training(garden):
    _, rows = find_images(garden)
    for fraction in (.1, .5, .9):
        assert {label for _, label in split_images(rows, fraction)['train']} == {0, 1, 2}
    pair = [('a/1', 0), ('b/1', 1)]
    assert split_images(pair, .5) == {'train': pair, 'val': [], 'test': []}


def test_validation_does_not_depend_on_the_test_images(garden):
    _, rows = find_images(garden)
    assert split_images(rows, .2)['val'] == split_images(rows, .2, .2)['val']


def test_new_images_move_at_most_one_other(garden):
    _, rows = find_images(garden)
    new = [(f'rose/new {i}.jpg', 1) for i in range(40)]
    parts, more = split_images(rows, .2), split_images(rows + new, .2)
    for label in (0, 2):
        a, b = ({path for path, l in split['val'] if l == label} for split in (parts, more))
        assert a <= b or b <= a
        assert len(a ^ b) <= 1


@pytest.mark.parametrize('val, test', [(1, 0), (.6, .4), (-.1, 0)])
def test_fractions_that_are_refused(val, test):
    with pytest.raises(PPClsError, match='fractions val='):
        split_images([('a/1', 0)], val, test)


def contents(files): return {path: path.read_bytes() for path in files.values()}


def test_existing_lists_are_kept(garden, tmp_path):
    lists = make_list_files(garden, test=.1)
    before = contents(lists)
    listed = sum((read_list(lists[part])[0] for part in ('train', 'val', 'test')), [])
    assert str(garden/'rose'/'from my aunt'/'DSC 1.JPG') in listed
    assert make_list_files(garden, test=.1) == lists
    with pytest.raises(PPClsError, match='test_list.txt'):
        make_list_files(garden, val=.3)
    with pytest.raises(PPClsError, match='is among the classes'):
        make_list_files(garden, out=garden/'lists')
    assert contents(lists) == before
    assert 'test' not in make_list_files(garden, seed=1, out=tmp_path/'elsewhere')
    assert 'test' not in make_list_files(garden, overwrite=True)
    assert not (garden/'test_list.txt').exists()


def test_the_summary(garden, capsys):
    photo(garden/'iris'/'1.png')
    make_list_files(garden)
    assert capsys.readouterr().out.splitlines() == [
        f'{garden}: 4 classes, 37 train, 9 val',
        '  left out, no image by its suffix: 1 (rose/notes.txt)',
        '  only one image, for training: iris',
        '  no image for validation: iris']


def test_names_that_cannot_be_listed(tmp_path):
    root = tmp_path/'strange'
    for name in ('one/1.png', 'two/1.png', 'two/2.png'):
        photo(root/name)
    assert 'one/1.png 0\n' in make_list_files(root, val=.4)['train'].read_text()
    photo(root/'two'/'line\nbreak.png')
    with pytest.raises(PPClsError, match=r"'two/line\\nbreak.png': a name with a line break"):
        make_list_files(root, out=tmp_path/'out')
    assert not (tmp_path/'out').exists()


def test_folders_that_are_split_already(tmp_path, capsys):
    root = tmp_path/'cut'
    for name in ('train/a/1.png', 'train/b/4.png', 'val/a/2.png', 'val/b/3.png'):
        photo(root/name)
    assert make_list_files(root)['val'].read_text() == 'val/a/2.png 0\nval/b/3.png 1\n'
    assert '2 train, 2 val (split as the folders are)' in capsys.readouterr().out
    photo(root/'valid'/'a'/'1.png')
    with pytest.raises(PPClsError, match='train, val, valid: two folders for val'):
        make_list_files(root)
