"""The command line itself, and the commands that need no trained run: weights, list files, mobile conversion, the form
of predictions."""
import json

import cv2, numpy as np, pytest

from ppcls_nb.cli import COMMANDS
from ppcls_nb.cli.answers import print_predictions
from ppcls_nb.data.petals import draw_scene, make_species
from small_run import check_refused, ppcls


def test_help():
    assert ppcls('--help')[1] == ppcls()[1]
    assert ppcls('list', '--help')[0] == 0
    assert {'lite', 'ort', 'lite_benchmark'} <= COMMANDS.keys()


def test_download_names_the_file_that_is_needed_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv('PPCLS_OFFLINE', '1')
    monkeypatch.setenv('PPCLS_HOME', str(tmp_path/'home'))
    target = tmp_path/'somewhere'
    site = 'https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/legendary_models'
    address = f'{site}/ResNet50_vd_pretrained.pdparams'
    code, out, err = ppcls('download', '-a', 'ResNet50_vd', '-p', target, '-d')
    assert (code, out) == (2, '')
    assert f'put {address} into the file {target}/ResNet50_vd_pretrained.pdparams' in err
    assert not target.exists()


@pytest.mark.parametrize('argv, message', [
    (['download'], 'required: -a/--architecture'),
    (['download', '-a', 'ResNet50_vd_ssl_d'],
     "ppcls: unknown weights 'ResNet50_vd_ssl_d'; did you mean 'ResNet50_vd_ssld'?\n"),
    (['list', 'ResNet18_dv'], "ppcls: unknown network 'ResNet18_dv'; did you mean 'ResNet18_vd'?\n"),
    (['info', 'ResNet50vd'],
     "ppcls: unknown network or weights 'ResNet50vd'; did you mean 'ResNet50_vd'?\n")])
def test_a_name_that_does_not_exist(argv, message):
    check_refused(message, *argv)


def test_names_of_networks_and_weights():
    networks, weights = ppcls('list')[1].split(), ppcls('list', '--pretrained')[1].split()
    assert 'MobileNetV3_large_x1_0' in networks
    assert 'Fix_ResNet50_vd_ssld_v2' in weights
    assert 'Fix_ResNet50_vd_ssld_v2' not in networks


def test_facts_of_a_network_and_its_weights():
    code, out, err = ppcls('info', 'ResNet50_vd')
    assert (code, err) == (0, '')
    assert 'family' in out
    assert 'top1' in out


@pytest.fixture(scope='module')
def garden(tmp_path_factory):
    "A folder with two classes of five images, one file that is no image, and its list files."
    garden = tmp_path_factory.mktemp('home')/'garden'
    for kind in ('rose', 'tulip'):
        (garden/kind).mkdir(parents=True)
        for i in range(5):
            image = draw_scene(make_species(len(kind)), np.random.default_rng(i), 96)
            cv2.imwrite(str(garden/kind/f'{i}.jpg'), image)
    (garden/'rose'/'broken.jpg').write_bytes(b'no image')
    assert ppcls('lists', garden)[0] == 0
    return garden


def test_check_finds_damaged_images_and_images_in_two_lists(garden):
    train, val = garden/'train_list.txt', garden/'val_list.txt'
    code, out, _ = ppcls('check', train, val, '--decode')
    assert code == 1
    assert 'broken.jpg' in out
    assert '11 images, 1 errors' in out
    assert ppcls('check', train, train)[0] == 1
    assert ppcls('check', garden/'none.txt')[0] == 1


def test_prepare_makes_smaller_copies(garden, tmp_path):
    code, _, _ = ppcls('prepare', garden/'train_list.txt', '--data-dir', garden, '--out', tmp_path/'small',
                       '--short', 48, '--skip-bad')
    assert code == 0
    code, out, _ = ppcls('check', tmp_path/'small'/'train_list.txt', '--decode')
    assert code == 0
    assert 'images, 0 errors' in out


def test_folders_that_cannot_be_listed(garden):
    code, _, err = ppcls('lists', garden/'rose')
    assert code == 2
    assert 'expected a folder for each class' in err
    assert ppcls('imagenet', garden)[0] == 2
    check_refused('required: --data-dir', 'prepare', 'x', '--out', 'y')


def test_the_form_of_predictions(tmp_path, capsys):
    rows = [('a.jpg', [(3, 'rose', 0.75), (1, '', 0.25)])]
    code = print_predictions(rows, {'b.jpg': 'damaged'}, json=tmp_path/'saved.json', csv=tmp_path/'saved.csv')
    saved = json.loads((tmp_path/'saved.json').read_text())
    assert code == 1
    assert saved['predictions'][0]['top'][0] == {'label': 3, 'name': 'rose', 'score': 0.75}
    assert saved['failed'] == {'b.jpg': 'damaged'}
    assert (tmp_path/'saved.csv').read_text().splitlines()[1] == 'a.jpg,1,3,rose,0.75'
    assert capsys.readouterr().out == 'a.jpg  3 rose 0.7500  1 0.2500\n'


@pytest.mark.parametrize('argv', [
    ['lite', 'FOLDER', '-o', 'FOLDER/x.nb'],
    ['ort', 'FOLDER', '-o', 'FOLDER/x.ort'],
    ['lite_benchmark', 'FOLDER/bin', 'FOLDER', 'FOLDER/r.txt', 'true']])
def test_a_conversion_without_an_exported_network(argv, tmp_path):
    check_refused('ppcls: ', *(argument.replace('FOLDER', str(tmp_path)) for argument in argv))
