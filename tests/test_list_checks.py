"Checks of list files in the corner cases (nbs/01_data/08a_checks.ipynb)."
import shutil

import cv2, matplotlib.pyplot as plt, numpy as np, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.checks import (ListReport, _decode_or_raise, _missing_classes, _undecodable, check_list,
                                  check_splits, plot_class_counts, require_ok)


def photo(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode('.jpg', np.full((32, 32, 3), value, np.uint8))[1].tobytes())


@pytest.fixture
def garden(tmp_path):
    for i in range(6):
        photo(tmp_path/'rose'/f'{i}.jpg', 40*i)
    (tmp_path/'rose'/'broken.jpg').write_bytes((tmp_path/'rose'/'0.jpg').read_bytes()[:200])
    return tmp_path


def write(file, *lines):
    file.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return file


def test_reports():
    report = ListReport([('l', 3, 'x.jpg', 'repeated', 'warning'), ('l', 0, '', 'empty', 'error')], {'l': 0})
    assert report.table.line.tolist() == [0, 3]
    assert ListReport().ok
    require_ok(ListReport(report.rows[1:]))
    assert str(report).splitlines() == ['l: 0 valid lines', '1 error:', '  l: empty', '1 warning:',
                                        '  l:3: repeated (x.jpg)']
    many = ListReport([('l', i, '', 'bad', 'error') for i in range(1, 10)])
    with pytest.raises(PPClsError, match='^9 errors in the lists: l:1: bad; l:2: bad; l:3: bad; and 6 more$'):
        require_ok(many)
    assert '  … and 4 more' in repr(many)
    assert '0 warnings' in repr(many)


@pytest.mark.parametrize('entries, class_num, expected', [
    ([(1, 'a', 0), (2, 'b', 3)], 5, 'no image of class 1, 2, 4'),
    ([(1, 'a', 2), (2, 'b', 1)], None, 'no image of class 0; labels are counted from 0'),
    ([(1, 'a', 10**15)], None, 'no image of class 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 999,999,999,999,990 more')])
def test_missing_classes(entries, class_num, expected):
    assert _missing_classes(entries, class_num)[0][2] == expected


def test_no_missing_classes():
    assert _missing_classes([(1, 'a', -1)], None) == []
    assert _missing_classes([(1, 'a', 0)], 1) == []


def test_files_that_cannot_be_decoded(garden):
    (garden/'empty.png').write_bytes(b'')
    (garden/'page.png').write_text('<html>')
    files = ('rose/broken.jpg', 'empty.png', 'page.png', 'gone.png', 'rose/1.jpg')
    rows = _undecodable([(i, str(garden/path), 0) for i, path in enumerate(files)], _decode_or_raise, 1, '')
    assert [row[0] for row in rows] == [0, 1, 2, 3]
    assert '0 bytes' in rows[1][2]
    assert rows[3][2] == 'No such file or directory'


def test_every_problem_has_its_line(garden):
    file = write(garden/'list.txt', 'rose/0.jpg 1', 'rose/1.jpg', 'rose/2.jpg red', '', 'rose/9.jpg 1', 'rose/3.jpg 5',
                 'rose/0.jpg 1', 'rose/./0.jpg 0', 'rose/broken.jpg 1')
    report = check_list(file, class_num=3, decode=True)
    problems = dict(zip(report.table.line, report.table.problem))
    assert problems[0] == 'no image of class 2'
    for line, problem in {2: 'no label', 3: 'not a whole number', 5: 'no such image', 6: 'out of range',
                          7: 'listed already in line 1', 8: 'label 1, here with 0', 9: 'without its end'}.items():
        assert problem in problems[line]
    assert {row[1] for row in report.level('warning')} == {0, 7}
    assert report.images == {str(file): 4}
    assert report.table.path.iloc[-1] == str(garden/'rose'/'broken.jpg')


def test_lists_that_are_missing_or_empty(garden):
    missing = check_list(garden/'none.txt')
    assert missing.rows[0][3] == 'list file cannot be read: No such file or directory'
    assert check_list(write(garden/'blank.txt')).rows[0][3] == 'the list is empty'


def test_lists_without_labels(garden):
    file = write(garden/'bare.txt', 'rose/0.jpg', 'rose/1.jpg', 'rose/0.jpg')
    assert [row[1] for row in check_list(file, labelled=False).rows] == [3]
    assert len(check_list(file).rows) == 3


def test_another_decoder(garden):
    def refuse(data):
        raise PPClsError('refused')
    report = check_list(write(garden/'list.txt', 'rose/0.jpg 0'), decode=refuse)
    assert {row[3] for row in report.rows} == {'refused'}


def test_lists_that_share_images(garden):
    shutil.copy(garden/'rose'/'1.jpg', garden/'rose'/'copy.jpg')
    train = write(garden/'train.txt', 'rose/0.jpg 0', 'rose/1.jpg 0', 'invalid')
    val = write(garden/'val.txt', 'rose/5.jpg 0', 'rose/0.jpg 0', 'rose/copy.jpg 0')
    assert [row[1] for row in check_splits(train, val).rows] == [2]
    rows = check_splits(train, val, same_bytes=True).rows
    assert [row[1] for row in rows] == [2, 3]
    assert rows[0][3] == f'stands in {train}:1 too'
    assert rows[1][3] == f"stands in {train}:2 too as {garden/'rose'/'1.jpg'}"
    assert len(check_splits(train, train).rows) == 2
    with pytest.raises(PPClsError, match='none.txt: list file cannot be read'):
        check_splits(train, garden/'none.txt')


def test_figures_of_few_and_many_classes():
    assert plot_class_counts({'none': []})[0].get_title() == 'none: 0 images, 0 classes, imbalance 1.0'
    names = ['rose', 'daisy']
    train, val = plot_class_counts({'train': [0, 0, 1], 'val': [1]}, names)
    assert train.get_title() == 'train: 3 images, 2 classes, imbalance 2.0'
    assert val.get_title() == 'val: 1 images, 1 classes, imbalance 1.0, 1 empty'
    tail = np.random.default_rng(0).zipf(1.4, 20_000)
    long = plot_class_counts({'a long tail': tail[tail <= 300] - 1})[0]
    assert long.get_title().startswith('a long tail: ')
    assert long.get_xscale() == 'log'
    plt.close('all')
