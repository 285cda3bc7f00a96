"Trained networks: which data, weights, class names and images the commands use."
import os
from pathlib import Path

import numpy as np, paddle, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.deploy.export import export_model
from ppcls_nb.models import create_model
from ppcls_nb.recipe.trained import class_names, image_files, load_predictor, open_recipe, predict_files, run_of
from ppcls_nb.recipe.trained import run_weights, set_device, trained_network
from ppcls_nb.train import save_weights
from small_run import train_run


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    "A recipe, its data and a trained run."
    return train_run(tmp_path_factory.mktemp('flowers'))


def test_a_recipe_is_pointed_at_data(flowers):
    conf = open_recipe(flowers.recipe, ['epochs=3', 'TRAIN.batch_size=8'], flowers.garden)
    assert (conf.epochs, conf.TRAIN.batch_size, conf.classes_num) == (3, 8, 4)
    assert conf.TRAIN.data_dir == str(flowers.garden)
    assert Path(conf.TRAIN.file_list).is_file()
    relative = open_recipe(flowers.recipe, data=os.path.relpath(flowers.garden))
    assert Path(relative.TRAIN.data_dir).is_absolute()


def test_keys_that_are_none_leave_the_recipe_as_it_is(flowers):
    assert open_recipe(flowers.recipe, vdl_dir='scalar').vdl_dir == 'scalar'
    assert open_recipe(flowers.recipe, vdl_dir=None).vdl_dir is None


def test_a_folder_for_each_class_is_data(flowers, tmp_path):
    lines = (flowers.garden/'train_list.txt').read_text().splitlines()
    for line in lines[:24]:
        name, label = line.split()
        kind = tmp_path/'kinds'/f'kind {label}'
        kind.mkdir(parents=True, exist_ok=True)
        (kind/Path(name).name).write_bytes((flowers.garden/name).read_bytes())
    conf = open_recipe(flowers.recipe, data=tmp_path/'kinds')
    assert conf.classes_num == len([*(tmp_path/'kinds').glob('kind *')])
    assert conf.data_name == 'kinds'
    assert (tmp_path/'kinds'/'classes.txt').is_file()


def test_a_key_that_does_not_exist(flowers):
    with pytest.raises(PPClsError, match="unknown key 'epoch'; did you mean 'epochs'"):
        open_recipe(flowers.recipe, ['epoch=3'])


def test_weights_of_a_run(flowers, tmp_path):
    best = run_weights(flowers.run)
    network, file = trained_network(open_recipe(flowers.run/'config.yaml'), best.with_suffix(''))
    assert file == best
    assert not network.training
    assert run_of(file) == flowers.run
    assert run_of(tmp_path/'x.pdparams') is None
    with pytest.raises(PPClsError, match='not a run folder'):
        run_weights(tmp_path)


def test_class_names(flowers):
    conf = open_recipe(flowers.recipe, data=flowers.garden)
    assert class_names(conf, flowers.run) == [f'flower {i}' for i in range(4)]
    assert class_names(None) is None
    with pytest.raises(PPClsError, match='nowhere.txt: no such file'):
        class_names(None, file=flowers.home/'nowhere.txt')


def test_weights_from_elsewhere_are_those_of_the_run(flowers, tmp_path):
    network = load_predictor(flowers.run)[0]
    save_weights(tmp_path/'flowers.pdparams', network)
    other, _, _ = load_predictor('MobileNetV1_x0_25', tmp_path/'flowers')
    assert (other.fc.weight.numpy() == network.fc.weight.numpy()).all()


def test_predictions_do_not_depend_on_the_batch_size(flowers):
    files = image_files([flowers.garden/'val_list.txt'])[:5]
    network, operations, _ = load_predictor(flowers.run)
    single, batched = (list(predict_files(network, operations, files, 4, batch_size=n)) for n in (1, 3))
    assert [row[:2] for row in single] == [row[:2] for row in batched]
    assert np.allclose([row[2] for row in single], [row[2] for row in batched], atol=1e-6)


def test_the_images_of_a_list(flowers):
    assert len(image_files([flowers.garden/'val_list.txt'], flowers.garden)) == 24


def test_the_cpu_can_be_chosen():
    device = paddle.device.get_device()
    set_device(False)
    assert paddle.device.get_device() == 'cpu'
    paddle.set_device(device)


def test_an_exported_network_is_named_as_such(tmp_path):
    export_model(create_model('MobileNetV1_x0_25', class_num=2), tmp_path/'net', eval_ops(32))
    with pytest.raises(PPClsError, match='net: an exported network, for ppcls predict, .*; expected the run'):
        load_predictor(str(tmp_path/'net'))
