"""Finetuning across notebooks: from a folder of images to a run that `ppcls eval`, `ppcls infer` and a recipe
understand; a killed run; the large-scale weights of the documents as an archive of 2020."""
import io, shutil, tarfile

import ppcls_nb  # before paddle: sets the threads
import numpy as np, paddle, pytest

from networks import old_state, variable
from ppcls_nb.basics import PPClsError
from ppcls_nb.cli import main
from ppcls_nb.recipe.build import load_config
from ppcls_nb.data.datasets import ImageDataset
from ppcls_nb.data.imaug import build_ops, describe_ops
from ppcls_nb.data.lists import read_list
from ppcls_nb.data.loader import make_loader
from ppcls_nb.data.petals import make_petals
from ppcls_nb.data.prepare import prepare_data
from ppcls_nb.models import build_model, create_model, list_pretrained, model_info, weights_info
from ppcls_nb.models.registry import fact_rows
from ppcls_nb.models.weights import all_weights, weights_home
from ppcls_nb.train import Callback, Data, save_weights
from ppcls_nb.transfer import finetune as lesson
from ppcls_nb.transfer.finetune import (finetune, finetune_defaults, finetune_ops, gather_images,
                                        start_network)

SMALL = dict(size=32, epochs=2, pretrained=False, bar=False, show=False)


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    "A folder for each of three drawn flowers."
    tmp = tmp_path_factory.mktemp('finetune')
    info = prepare_data(str(make_petals(tmp/'drawn', 3, (10, 1, 0), 48, progress=False)), tmp)
    for line in (info.lists/'train_list.txt').read_text().splitlines():
        path, label = line.rsplit(' ', 1)
        (folder := tmp/'photographs'/'abc'[int(label)]).mkdir(parents=True, exist_ok=True)
        shutil.copy(info.root/path, folder)
    return tmp/'photographs'


def test_a_run_is_understood_by_the_other_commands(photographs, tmp_path, capsys):
    run = tmp_path/'run'
    command = ['finetune', 'MobileNetV3_small_x0_35', str(photographs), '--weights', 'none', '--output', str(run),
               '--size', '32', '--epochs', '2']
    assert main(command) == 0
    conf = load_config(run/'config.yaml')
    assert (conf.ARCHITECTURE.name, conf.classes_num, conf.epochs,
            list(conf.image_shape)) == ('MobileNetV3_small_x0_35', 3, 2, [3, 32, 32])
    capsys.readouterr()
    assert main(['eval', '--run', str(run), '--weights', 'last']) == 0
    assert 'the same' in capsys.readouterr().out
    picture = next((photographs/'b').iterdir())
    assert main(['infer', '-m', str(run), '-i', str(picture), '--topk', '3']) == 0
    assert {word for word in capsys.readouterr().out.split() if word in 'abc'} == set('abc')


def test_a_killed_run_goes_on_to_the_same_end(photographs, tmp_path, monkeypatch):
    settings = {**SMALL, 'epochs': 3, 'freeze_epochs': 1}
    whole = finetune('MobileNetV3_small_x0_35', photographs, tmp_path/'whole', **settings)

    class Killed(Callback):
        def after_epoch(self, t):
            if t.epoch == 2:
                raise KeyboardInterrupt
    standard = lesson.standard_callbacks
    monkeypatch.setattr(lesson, 'standard_callbacks', lambda *a, **kw: [*standard(*a, **kw), Killed()])
    Killed.order = 95                                                       # when the epoch is saved
    with pytest.raises(KeyboardInterrupt):
        finetune('MobileNetV3_small_x0_35', photographs, tmp_path/'run', **settings)
    monkeypatch.setattr(lesson, 'standard_callbacks', standard)
    again = finetune('MobileNetV3_small_x0_35', photographs, tmp_path/'run', **settings)
    assert again.epoch == 3
    assert not list(tmp_path.glob('run.old*'))
    for (name, a), b in zip(whole.model.named_parameters(), again.model.parameters()):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=name)


def test_other_images_are_another_run(photographs, tmp_path, capsys):
    mine = tmp_path/'mine'
    shutil.copytree(photographs, mine)
    settings = {**SMALL, 'epochs': 1}
    finetune('MobileNetV3_small_x0_35', mine, tmp_path/'run', **settings)
    next((mine/'a').iterdir()).unlink()
    t = finetune('MobileNetV3_small_x0_35', mine, tmp_path/'run', **settings)
    assert t.epoch == 1
    assert (tmp_path/'run.old-1').is_dir()
    assert 'other settings' in capsys.readouterr().out


def test_distilled_weights_get_rates_of_stages(tmp_path):
    weights = tmp_path/'MobileNetV3_small_x1_0_ssld_pretrained.pdparams'
    paddle.save(build_model('MobileNetV3_small_x1_0', class_num=7).state_dict(), str(weights))
    net, record, tag = lesson.start_network('MobileNetV3_small_x1_0', 3, weights)
    plan = lesson.make_plan(100, 3, net, record, tag)
    assert plan['lr_mult_list'] == [.25, .25, .5, .5, .75]
    assert plan['lr'] == .01
    assert set(net.load_report.skipped_shape) == {'fc.weight', 'fc.bias'}


# the plan

def test_the_plan_depends_on_the_amount_of_data_and_on_the_weights():
    few, large, new = finetune_defaults(100, 5), finetune_defaults(200_000, 5), finetune_defaults(100, 5, weights=None)
    assert finetune_defaults(100, 5, False)['freeze_epochs'] == 10
    assert finetune_defaults(200_000, 5, False)['lr'] == .06
    assert large['freeze_epochs'] == 1
    assert not large['keep_statistics']
    assert new['lr'] == new['head_lr'] == .1
    assert new['freeze_epochs'] == 0
    assert finetune_defaults(100, 5, weights='ResNet50_vd')['lr_mult_list'] is None
    assert finetune_defaults(100, 5, weights='MobileNetV3_large_x1_0_ssld')['lr_mult_list'][-1] == .75
    assert finetune_defaults(200_000, 5, False, 'ResNet50_vd_ssld')['lr_mult_list'] is None
    assert finetune_defaults(100, 5, epochs=6)['freeze_epochs'] == 3
    assert finetune_defaults(100, 5, epochs=1)['freeze_epochs'] == 1
    assert finetune_defaults(100, 5, params_M=4)['l2_decay'] == 3e-5
    assert all(set(plan['why']) == set(plan) - {'why'} for plan in (few, large, new))
    with pytest.raises(PPClsError, match='100 images of 1 classes'): finetune_defaults(100, 1)


@pytest.mark.parametrize('settings, message', [
    (dict(epoch=3), "unknown setting 'epoch'; did you mean 'epochs'"),
    (dict(lr=0), 'lr is 0, expected more than 0; to train the classifier alone'),
    (dict(pretrained='ssld'), 'names weights already')])
def test_wrong_settings(photographs, settings, message):
    with pytest.raises(PPClsError, match=message):
        finetune('EfficientNet_Lite0_imagenet', photographs, bar=False, show=False, **settings)


# the images

@pytest.fixture
def listed(photographs, tmp_path):
    "A function that makes a folder with lists; 'lines' are those of all photographs."
    lines = [f'{path.parent.name}/{path.name} {label}' for label, name in enumerate('abc')
             for path in sorted((photographs/name).iterdir())]
    def make(train, valid=None, names=None):
        folder = tmp_path/'listed'
        shutil.copytree(photographs, folder)
        (folder/'train_list.txt').write_text('\n'.join(train))
        if valid: (folder/'val_list.txt').write_text('\n'.join(valid))
        if names: (folder/'classes.txt').write_text('\n'.join(names))
        return folder
    make.lines = lines
    return make


def test_a_split_depends_on_the_seed_alone(photographs):
    images = gather_images(photographs)
    assert gather_images(photographs).valid[0] == images.valid[0]
    assert gather_images(photographs, seed=1).valid[0] != images.valid[0]
    assert set(np.bincount(images.valid[1])) <= {2, 3}
    assert images.split == '20% of each class'
    assert gather_images(images) is images


def test_a_missing_validation_list_is_split_off(listed):
    images = gather_images(listed(listed.lines))
    assert images.split == '20% of train_list.txt'
    assert len(images.train[0]) + len(images.valid[0]) == len(listed.lines)
    assert not set(images.train[0]) & set(images.valid[0])


def test_prepared_data_keep_their_lists(tmp_path):
    info = prepare_data(str(make_petals(tmp_path/'drawn', 3, (4, 2, 0), 32, progress=False)), tmp_path)
    images = gather_images(info)
    assert images.split == 'val_list.txt'
    assert len(images.train[0]) == 12 == len(gather_images(info.root).train[0])


def test_lists_that_cannot_be_trained_on(listed):
    lines = listed.lines
    cases = {'label 7 is out of range, expected 0…2': (lines, [f'{lines[0][:-1]}7'], 'abc'),
             'val_list.txt:1: ': (lines, lines[:1]),
             f'train_list.txt:{len(lines) + 1}: no such image': ([*lines, 'a/lost.jpg 0'],)}
    for message, arguments in cases.items():
        folder = listed(*arguments)
        with pytest.raises(PPClsError, match=message): gather_images(folder)
        shutil.rmtree(folder)


def test_folders_that_cannot_be_trained_on(photographs, tmp_path):
    (tmp_path/'empty').mkdir()
    with pytest.raises(PPClsError, match='holds 0 images and no folders'): gather_images(tmp_path/'empty')
    shutil.copytree(photographs/'a', tmp_path/'one'/'a')
    with pytest.raises(PPClsError, match='1 class in the training images'): gather_images(tmp_path/'one')
    with pytest.raises(PPClsError, match='nor is it a folder'): gather_images(tmp_path/'photos')


# the operations and the network

def test_described_operations_build_the_same_ones():
    lite0 = all_weights()['EfficientNet_Lite0_imagenet']
    train_ops, _ = finetune_ops(lite0, 48, .35)
    assert [repr(op) for op in build_ops(describe_ops(train_ops))] == [repr(op) for op in train_ops]
    assert describe_ops(finetune_ops(lite0)[1]) == describe_ops(lite0.eval_ops())


def test_a_random_start_has_the_usual_record():
    _, record, tag = start_network('ResNet18', 4, pretrained=False)
    assert tag is None
    assert record.crop_size == 224


def test_weights_that_do_not_belong_to_the_network(tmp_path):
    net = start_network('EfficientNet_Lite0_imagenet', 4)[0]
    paddle.save({k: v for k, v in net.state_dict().items() if '.1.' not in k}, str(tmp_path/'holes.pdparams'))
    paddle.save(net.state_dict(), str(tmp_path/'lite0.pdparams'))
    with pytest.raises(PPClsError, match='the rest would stay random; .*holes.*missing'):
        start_network('EfficientNetLite0', 4, tmp_path/'holes.pdparams')
    with pytest.raises(PPClsError, match='none of its .* tensors fits ResNet18'):
        start_network('ResNet18', 4, tmp_path/'lite0.pdparams')
    with pytest.raises(PPClsError, match='names weights already; for others, name the network, EfficientNetLite0'):
        start_network('EfficientNet_Lite0_imagenet', 4, pretrained='ssld')


def test_the_run_folder_lists_the_images(photographs, tmp_path):
    t = finetune('MobileNetV3_small_x0_35', photographs, tmp_path/'run', **{**SMALL, 'epochs': 1})
    for part, dataset in (('train', t.data.train.dataset), ('val', t.data.valid.dataset)):
        assert read_list(tmp_path/'run'/f'{part}_list.txt', photographs)[0] == dataset.paths
    kept = {p.name for p in (tmp_path/'run').iterdir() if p.suffix in ('.txt', '.json', '.yaml')}
    assert kept == {'classes.txt', 'config.yaml', 'finetune.json', 'train_list.txt', 'val_list.txt'}


def test_loaders_that_cannot_be_finetuned_on(photographs):
    images = gather_images(photographs)
    ops = finetune_ops(all_weights()['EfficientNet_Lite0_imagenet'], 32)[1]
    valid = make_loader(ImageDataset(*images.valid, ops), 8)
    with pytest.raises(PPClsError, match='is in the training and in the validation images'):
        finetune('MobileNetV3_small_x0_35', Data(valid, valid, 3, 'same'), pretrained=False)
    with pytest.raises(PPClsError, match='data.valid is None'):
        finetune('MobileNetV3_small_x0_35', Data(valid, None, 3, 'none'), pretrained=False)


# the large-scale weights (documents 4.1.2)

TEN_W = 'https://paddle-imagenet-models-name.bj.bcebos.com/ResNet50_vd_10w_pretrained.tar'


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('PPCLS_HOME', str(tmp_path/'home'))
    monkeypatch.setenv('PPCLS_OFFLINE', '1')


def test_the_tag_of_the_large_scale_weights():
    record = weights_info('ResNet50_vd_10w')
    assert (record.arch, record.legacy_url, record.url, record.class_num) == ('ResNet50_vd', TEN_W, None, 100_000)
    assert 'ResNet50_vd_10w' in model_info('ResNet50_vd')['weights']
    assert 'ResNet50_vd_10w' in list_pretrained('ResNet50_vd*')
    # the documents' table has their 120
    assert 'ResNet50_vd_10w' not in {r['tag'] for r in fact_rows('weights')}


def test_offline_the_large_scale_weights_say_what_to_do(home):
    with pytest.raises(PPClsError) as e: create_model('ResNet50_vd', pretrained='10w', class_num=102)
    assert all(text in str(e.value) for text in (TEN_W, str(weights_home()/'ResNet50_vd_10w.tar'), 'PPCLS_OFFLINE'))


def test_the_large_scale_weights_load_all_but_the_classifier(home):
    """An archive like the official one, scattered variables under old names, put where the message says; with fewer
    classes, to be small."""
    ours = build_model('ResNet50_vd', class_num=500)
    arrays = old_state(ours)
    # another script's count of layers
    arrays['fc_7.w_0'], arrays['fc_7.b_0'] = arrays.pop('fc_0.w_0'), arrays.pop('fc_0.b_0')
    weights_home().mkdir(parents=True)
    with tarfile.open(weights_home()/'ResNet50_vd_10w.tar', 'w') as tar:
        for name, a in arrays.items():
            m, data = tarfile.TarInfo(f'ResNet50_vd_10w_pretrained/{name}'), variable(a)
            m.size = len(data)
            tar.addfile(m, io.BytesIO(data))
    net = create_model('ResNet50_vd', pretrained='10w', class_num=102)
    report = net.load_report
    assert report.body_complete
    assert report.skipped_shape == {'fc.weight': ((2048, 500), (2048, 102)), 'fc.bias': ((500,), (102,))}
    assert not report.missing
    assert not report.unexpected
    theirs = ours.state_dict()
    for key, value in net.state_dict().items():
        if not key.startswith('fc.'): np.testing.assert_array_equal(value.numpy(), theirs[key].numpy(), err_msg=key)
    assert lesson.start_network('ResNet50_vd_10w', 102)[2] == 'ResNet50_vd_10w'
    with pytest.raises(PPClsError, match='these weights are for ResNet50_vd, not for ResNet50'):
        create_model('ResNet50', 'ResNet50_vd_10w')


def test_a_network_with_official_weights_keeps_their_preprocessing(tmp_path, monkeypatch):
    "The network itself, and its tag, are finetuned with the same record: mean, interpolation and size of the weights."
    monkeypatch.setenv('PPCLS_HOME', str(tmp_path))
    tag = 'EfficientNet_Lite0_imagenet'
    save_weights(tmp_path/'weights'/f'{tag}.pdparams', create_model('EfficientNetLite0'))
    _, record, found = start_network(tag, 4)
    net = create_model('EfficientNetLite0', tag, 4)
    assert start_network(net, 4)[1:] == (record, found)
    assert (record.tag, found) == (tag, tag)
    assert str(tmp_path/'weights') in str(net.load_report)
