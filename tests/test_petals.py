"The drawn data set: its parts and its corner cases (nbs/01_data/04_petals.ipynb)."
from dataclasses import FrozenInstanceError, replace

import cv2, numpy as np, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.petals import (Brush, Pose, Species, draw_flower, hsv, make_petals, make_species, paint,
                                  petal_outline, photograph)

SMALL = dict(classes=6, per_class=(2, 1, 1), size=32, progress=False)


def test_the_outline_starts_at_the_base():
    assert abs(petal_outline(2., .8, points=64)[0]) < 3e-3


def test_belly_moves_the_widest_place_outwards():
    def widest(outline): return outline.real[np.argmax(outline.imag)]
    assert widest(petal_outline(1., .5, belly=1., points=64)) > widest(petal_outline(1., .5, points=64)) + .1


def test_colours_and_paint():
    assert hsv(0, 1, 1).tolist() == [0, 0, 255]
    assert hsv(4/3, 1, 1).round().tolist() == [0, 255, 0]
    assert hsv(0, -1, 2).tolist() == [255]*3
    img = np.zeros((20, 20, 3), np.uint8)
    paint(img, np.array([[5+5j, 15+5j, 15+15j, 5+15j]]), np.array([[10., 20., 30.]]))
    assert img[10, 10].tolist() == [10, 20, 30]
    assert img[2, 2].tolist() == [0, 0, 0]


def test_values_outside_of_the_range():
    with pytest.raises(FrozenInstanceError):
        Pose(0, 1).tilt = 1
    with pytest.raises(TypeError):
        Species('single')
    with pytest.raises(ValueError):
        make_species(-3)
    img, rng = np.zeros((20, 20, 3), np.uint8), np.random.default_rng(0)
    with pytest.raises(KeyError):
        draw_flower(img, replace(make_species(0), form='cactus'), Pose(0, 1), rng)
    with pytest.raises(cv2.error):
        photograph(img, rng, 0)


def test_one_petal_is_copied():
    polys, colours = Brush(None, replace(make_species(0), petals=8), Pose(0, 1), np.random.default_rng(0)).petals(
        [0., 1., 2.], 1., .5)
    assert polys.shape[0] == len(colours)
    assert len(polys) % 3 == 0


def test_existing_data_are_not_drawn_again(tmp_path):
    root = make_petals(tmp_path/'small', **SMALL)
    before = (root/'about.json').stat().st_mtime_ns
    assert make_petals(root, **SMALL) == root
    assert (root/'about.json').stat().st_mtime_ns == before
    other = make_petals(tmp_path/'other', **SMALL, seed=1)
    first = 'jpg/image_00001.jpg'
    assert (other/first).read_bytes() != (root/first).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['other', 'small']


@pytest.mark.parametrize('bad, why', [(dict(classes=7), 'exists and is not petals 7x'),
                                      (dict(per_class=(1, 2)), 'expected at least'),
                                      (dict(per_class=(2, 1, -1)), 'expected at least'),
                                      (dict(classes=1), 'expected at least'),
                                      (dict(size=4), 'expected at least')])
def test_settings_that_are_refused(tmp_path, bad, why):
    (tmp_path/'small').mkdir()
    with pytest.raises(PPClsError, match=why):
        make_petals(tmp_path/'small', **(SMALL | bad))


def test_a_file_where_a_folder_is_expected(tmp_path):
    (tmp_path/'file').touch()
    with pytest.raises(PPClsError, match='cannot be written'):
        make_petals(tmp_path/'file'/'petals', **SMALL)
