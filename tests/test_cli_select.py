"`ppcls select`: pools, selections that label nothing again, removal of near-duplicates, and mistakes in one line."
import csv
from types import SimpleNamespace

import cv2, numpy as np, paddle, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.cli.select import pool_of
from ppcls_nb.data.lists import write_list
from ppcls_nb.data.petals import draw_scene, make_species
from ppcls_nb.models import create_model
from ppcls_nb.train import save_weights
from small_run import check_refused, ppcls


def draw(file, kind, seed, size=40, options=()):
    "Draw a flower of one of three kinds into an image file."
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), draw_scene(make_species(7*kind + 1), np.random.default_rng(seed), size), options)


@pytest.fixture(scope='module')
def pool(tmp_path_factory):
    "24 images in two folders, one file that is no image, nine labelled images, a teacher, and a first selection."
    work = tmp_path_factory.mktemp('pool')
    for i in range(24):
        draw(work/'photos'/f'roll {i % 2}'/f'{i:02}.png', i % 3, i)
    (work/'photos'/'roll 0'/'broken.jpg').write_bytes(b'no image')
    for i in range(9):
        draw(work/'labelled'/f'{i}.png', i % 3, 50 + i)
    write_list(work/'labelled'/'train_list.txt', [(f'{i}.png', i % 3) for i in range(9)])
    (work/'pool.txt').write_text(''.join(f'photos/roll {i % 2}/{i:02}.png\n' for i in range(24)))
    paddle.seed(1)
    save_weights(work/'teacher.pdparams', create_model('MobileNetV1_x0_25', class_num=3))
    rolls = [work/'photos'/f'roll {i}' for i in range(2)]
    teacher = ['-m', 'MobileNetV1_x0_25', '-p', work/'teacher']
    base = ['select', '-i', *rolls, *teacher, '--out', work/'chosen', '--shard_size', 16]
    code, printed, _ = ppcls(*base, '-k', 6, '--labelled', work/'labelled'/'train_list.txt')
    assert code == 0
    lines = (work/'chosen'/'train_list.txt').read_text().splitlines()
    return SimpleNamespace(work=work, teacher=teacher, base=base, printed=printed, lines=lines,
                           rows=read_selection(work))


def read_selection(work):
    "The rows of selection.csv."
    return list(csv.DictReader((work/'chosen'/'selection.csv').open()))


def test_pools(pool, tmp_path):
    work = pool.work
    assert list(pool_of([work/'pool.txt'], work))[0] == str(work/'photos'/'roll 0'/'00.png')
    with pytest.raises(PPClsError, match='--data-dir .* the pool is not a list file'):
        pool_of([work/'photos'], work)
    with pytest.raises(PPClsError, match='no images in this folder'):
        pool_of([tmp_path])
    with pytest.raises(PPClsError, match='no.txt: no such list file'):
        pool_of([work/'no.txt'])


def test_the_first_selection(pool):
    assert 'soft labels of 24 images, 3 classes, 1 could not be read' in pool.printed
    assert 'fewer than k in' in pool.printed
    assert f'9 labelled + {len(pool.rows)} selected' in pool.printed
    assert pool.lines[:2] == ['labelled/0.png 0', 'labelled/1.png 1']
    assert [str(pool.work/line) for line in pool.lines[9:]] == [row['file'] for row in pool.rows]
    assert 'broken.jpg,' in (pool.work/'chosen'/'soft_labels'/'failed.csv').read_text()


def test_another_selection_labels_nothing_again(pool):
    shards = pool.work/'chosen'/'soft_labels'
    written = {path: path.stat().st_mtime_ns for path in shards.glob('shard*')}
    code, out, _ = ppcls(*pool.base, '-k', 2, '--rank', 'any', '--pseudo')
    assert code == 0
    assert len(read_selection(pool.work)) == 6
    assert 'all classes have k' in out
    assert '0 labelled + ' in out
    assert written == {path: path.stat().st_mtime_ns for path in shards.glob('shard*')}


def test_images_of_the_validation_list_are_removed(pool, tmp_path):
    work = pool.work
    for i in range(4):
        draw(tmp_path/f'{i}.png', i % 3, 70 + i, 160)
        draw(work/'copies'/f'copy {i}.jpg', i % 3, 70 + i, 160, [cv2.IMWRITE_JPEG_QUALITY, 80])
    write_list(tmp_path/'val_list.txt', [(f'{i}.png', i % 3) for i in range(4)])
    code, out, _ = ppcls('select', '-i', work/'photos', work/'copies', *pool.teacher, '-k', 30, '--rank', 'any',
                         '--out', work/'clean', '--remove-duplicates-of', tmp_path/'val_list.txt')
    assert code == 0
    assert '4 of 29 images are similar to one of this list, 1 could not be read' in out
    lines = (work/'clean'/'train_list.txt').read_text().splitlines()
    assert len(lines) == 24
    assert not any('copy' in line for line in lines)


@pytest.mark.parametrize('argv, message', [
    ([], 'required: -k'),
    (['-k', 0], '-k 0: expected 1 or more'),
    (['-k', 2, '--labelled-dir', 'x'], '--labelled-dir: only with --labelled LIST'),
    (['-k', 2, '--reference-dir', 'x'], '--reference-dir: only with --remove-duplicates-of LIST'),
    (['-k', 2, '--labelled', 'no.txt'], 'no.txt: list file cannot be read'),
    (['-k', 2, '--dtype', 'float32'], 'holds soft labels of another dtype'),
    (['-k', 2, '--rank', 'best'], "not 'best'"),
    (['-k', 2, '--classes', 5], 'classes 5 to 5'),
    (['-k', 2, '--min-score', 1.5], '--min-score 1.5'),
    (['-k', 2, '--min-score', 1], 'no image was selected')])
def test_a_mistake_is_one_line(argv, message, pool):
    code, _, err = ppcls(*pool.base, *argv)
    assert code == 2
    assert message in err.splitlines()[-1]


def test_nothing_is_written_for_an_unknown_teacher(pool, tmp_path):
    check_refused('no run folder', 'select', '-i', pool.work/'photos', '-m', 'nothing', '-k', 2, '--out', tmp_path/'x')
    assert not (tmp_path/'x').exists()
