"Finding flowers102, its list files and the choice of the data (nbs/01_data/03_flowers102 and 05_prepare)."
import shutil

import numpy as np, pytest, scipy.io

from ppcls_nb.basics import PPClsError
from ppcls_nb.data import flowers102
from ppcls_nb.data.flowers102 import FILES, URL, data_folder, find_flowers102, make_lists
from ppcls_nb.data.petals import make_petals
from ppcls_nb.data.prepare import data_name, prepare_data

TINY = dict(classes=3, per_class=(2, 1, 1), size=32, progress=False)


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv('PPCLS_DATA', raising=False)


@pytest.fixture(scope='module')
def petals(tmp_path_factory):
    root = make_petals(tmp_path_factory.mktemp('data')/'petals', **TINY)
    make_lists(root)
    return root


@pytest.fixture
def photos(petals, tmp_path):
    "The same images without about.json, so they count as flowers102."
    return shutil.copytree(petals, tmp_path/'disk'/'flowers', ignore=shutil.ignore_patterns('about.json', '*.txt'))


def test_addresses():
    assert URL.startswith('https://')
    assert all(len(md5) == 32 for md5 in FILES.values())


def test_the_order_in_which_a_copy_is_searched(photos, tmp_path, monkeypatch):
    empty = tmp_path/'empty'
    assert data_folder(empty) is None
    assert data_folder(photos.parent.parent) is None
    assert find_flowers102(photos) == find_flowers102(None, photos.parent) == find_flowers102(empty, photos) == photos
    assert find_flowers102(empty, empty) is None
    monkeypatch.setenv('PPCLS_DATA', str(photos))
    assert find_flowers102(empty, empty) == find_flowers102(None, empty) == photos
    monkeypatch.setenv('PPCLS_DATA', str(empty))
    assert find_flowers102(photos) == photos
    with pytest.raises(PPClsError, match='PPCLS_DATA=.*empty: contains no flowers102'):
        find_flowers102()


def save_mat(file, **columns):
    scipy.io.savemat(file, {name: np.array([values]) for name, values in columns.items()})


@pytest.mark.parametrize('change, why', [
    (lambda file: save_mat(file, trnid=[9999], valid=[1], tstid=[2]), 'trnid names images 9999 to 9999'),
    (lambda file: save_mat(file, trnid=[1]), "contains no 'valid'"),
    (lambda file: file.write_text('<html>'), 'cannot be read as a .mat file'),
    (lambda file: file.unlink(), 'cannot be read as a .mat file')])
def test_damaged_tables(photos, change, why):
    change(photos/'setid.mat')
    with pytest.raises(PPClsError, match=f'setid.mat: {why}'):
        make_lists(photos)
    assert not list(photos.glob('*_list.txt'))


def test_the_name_of_the_data(petals, photos, tmp_path):
    assert data_name(petals) == 'petals'
    assert data_name(photos) == 'flowers102'
    assert data_name(tmp_path) == tmp_path.name
    (tmp_path/'about.json').write_text('[1]')
    with pytest.raises(PPClsError, match="about.json: expected a JSON object with a 'name'"):
        data_name(tmp_path)


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(flowers102, 'URL', 'http://127.0.0.1:9/')


def test_petals_without_a_network(no_network, tmp_path):
    info = prepare_data(root=tmp_path, petals=TINY)
    assert info.name == 'petals'
    assert '\n' not in info.why
    assert prepare_data('petals', tmp_path, TINY | dict(seed=1)).root != info.root
    names = (info.lists/'classes.txt').read_text().splitlines()
    assert names == ['0 flower 0', '1 flower 1', '2 flower 2']


def test_flowers102_in_the_data_folder(photos, tmp_path):
    shutil.copytree(photos, tmp_path/'work'/'flowers102')
    assert prepare_data(root=tmp_path/'work').root == tmp_path/'work'/'flowers102'


def test_one_folder_of_lists_for_a_path(photos, tmp_path, monkeypatch):
    by_path = prepare_data(str(photos.parent), tmp_path)
    monkeypatch.setenv('PPCLS_DATA', str(photos))
    assert prepare_data('auto', tmp_path/'.'/'').lists == by_path.lists


def test_images_that_cannot_be_decoded(photos, tmp_path):
    for path in photos.glob('jpg/*'):
        path.write_bytes(b'no image')
    with pytest.raises(PPClsError, match='image_00001.jpg: not an image that can be decoded'):
        prepare_data(str(photos), tmp_path)


def test_no_images_for_validation(photos, tmp_path):
    save_mat(photos/'setid.mat', trnid=[1], valid=[], tstid=[2])
    with pytest.raises(PPClsError, match='setid.mat: no images for val'):
        prepare_data(str(photos), tmp_path)


def test_unknown_settings_and_variables(tmp_path, monkeypatch):
    with pytest.raises(PPClsError, match="petals: unknown setting 'clases'; did you mean 'classes'"):
        prepare_data('petals', tmp_path, dict(clases=3))
    monkeypatch.setenv('PPCLS_DATA', str(tmp_path/'nowhere'))
    with pytest.raises(PPClsError, match='PPCLS_DATA='):
        prepare_data('auto', tmp_path)
