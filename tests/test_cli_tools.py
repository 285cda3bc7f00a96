"""The command line itself, and the commands that need no trained run: weights, list files, mobile conversion, the form
of predictions."""
import json, re

import cv2, numpy as np, pytest, scipy.io

from ppcls_nb.cli import COMMANDS
from ppcls_nb.cli.answers import print_predictions
from ppcls_nb.data.flowers102 import make_lists
from ppcls_nb.data.petals import draw_scene, make_species
from ppcls_nb.models import create_model, weights_info
from ppcls_nb.train import save_weights
from small_run import check_refused, ppcls


def test_help():
    assert ppcls('--help')[1] == ppcls()[1]
    assert ppcls('list', '--help')[0] == 0
    assert {'lite', 'ort', 'lite_benchmark'} <= COMMANDS.keys()
    for name, (_, summary) in COMMANDS.items():
        assert re.search(f'^  {name} +{re.escape(summary)}$', ppcls('--help')[1], re.MULTILINE)


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


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    "A folder in the layout of flowers102, with six images in its tables."
    root = tmp_path_factory.mktemp('flowers')
    (root/'jpg').mkdir()
    scipy.io.savemat(root/'imagelabels.mat', {'labels': [[1, 2, 3, 1, 2, 3]]})
    scipy.io.savemat(root/'setid.mat', {'trnid': [[5, 2]], 'valid': [[1]], 'tstid': [[6, 3, 4]]})
    return root


def test_the_list_of_flowers102_as_the_documents_print_it(flowers, monkeypatch):
    monkeypatch.chdir(flowers)
    lists = make_lists(flowers)
    for part, name in (('train', 'train'), ('valid', 'val'), ('test', 'extra')):
        code, out, err = ppcls('generate_flowers102_list', 'jpg', part)
        assert (code, err) == (0, '')
        assert out == lists[name].read_text()
    assert out.splitlines()[0] == 'jpg/image_00006.jpg 2'
    monkeypatch.chdir('/')
    assert ppcls('generate_flowers102_list', flowers/'jpg', 'train')[1] == lists['train'].read_text()
    assert ppcls('generate_flowers102_list', f"{flowers/'jpg'}/", 'train')[1] == lists['train'].read_text()


@pytest.mark.parametrize('argv, message', [
    (['jpg', 'val'], "unknown part 'val'; did you mean 'valid'"),
    (['jgp', 'train'], 'jgp: no such folder; expected that of the images, jpg'),
    (['empty/jpg', 'train'], 'imagelabels.mat: cannot be read as a .mat file'),
    (['jpg'], 'the following arguments are required: PART')])
def test_a_list_of_flowers102_that_cannot_be_printed(argv, message, flowers, monkeypatch):
    monkeypatch.chdir(flowers)
    (flowers/'empty'/'jpg').mkdir(parents=True, exist_ok=True)
    check_refused(message, 'generate_flowers102_list', *argv)


def test_scattered_files_are_read_again(tmp_path):
    network = create_model('MobileNetV1_x0_25', class_num=3)
    save_weights(tmp_path/'net.pdparams', network)
    argv = ['scatter', '-m', 'MobileNetV1_x0_25', '-p', tmp_path/'net.pdparams', '--out']
    code, out, _ = ppcls(*argv, tmp_path/'new'/'old')
    assert code == 0
    assert f'{len(network.state_dict())} files of MobileNetV1_x0_25 with 3 classes' in out
    again = create_model('MobileNetV1_x0_25', pretrained=str(tmp_path/'new'/'old'), class_num=3)
    assert again.load_report.complete
    assert all((again.state_dict()[key] == v).all() for key, v in network.state_dict().items())
    assert [file.name for file in (tmp_path/'new').iterdir()] == ['old']
    check_refused('exists and is not an empty folder', *argv, tmp_path/'new'/'old')
    save_weights(tmp_path/'lite.pdparams', create_model('EfficientNetLite0', class_num=3))
    check_refused('EfficientNetLite0: the names of its tensors in weights of Paddle 1.x are not known', 'scatter', '-m',
                  'EfficientNetLite0', '-p', tmp_path/'lite.pdparams', '--out', tmp_path/'lite')
    assert not (tmp_path/'lite').exists()


@pytest.mark.parametrize('tag, documents, file', [
    ('ResNet50_vd_ssld', (0.824, 0.961), (0.83, 0.964)), ('SE_ResNeXt101_32x4d', (0.791, 0.942), (0.7939, 0.9443)),
    ('ResNet50_vd', (0.791, 0.944), (None, None))])
def test_the_figures_of_the_documents_and_of_the_file(tag, documents, file):
    record = weights_info(tag)
    assert (record.top1, record.top5) == documents
    assert (record.file_top1, record.file_top5) == file
    out = ppcls('info', tag)[1]
    expected = f'the documents print {documents[0]:g} and {documents[1]:g}; the file at url is the one that later'
    assert (expected in out) == bool(file[0])
    assert f'{file[0]}' in record.note or not file[0]
