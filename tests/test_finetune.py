"""Finetuning across notebooks: from a folder of images to a run that `ppcls eval`, `ppcls infer` and a recipe
understand; a killed run; the large-scale weights of the documents as an archive of 2020."""
import io, shutil, tarfile
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import numpy as np, paddle, pytest

from networks import old_state, variable
from ppcls_nb.basics import PPClsError
from ppcls_nb.cli import main
from ppcls_nb.recipe.build import load_config
from ppcls_nb.data.petals import make_petals
from ppcls_nb.data.prepare import prepare_data
from ppcls_nb.models import build_model, create_model, list_pretrained, model_info, weights_info
from ppcls_nb.models.registry import fact_rows
from ppcls_nb.models.weights import weights_home
from ppcls_nb.train import Callback
from ppcls_nb.transfer import finetune as lesson
from ppcls_nb.transfer.finetune import finetune

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
    assert main(['finetune', 'MobileNetV3_small_x0_35', str(photographs), '--weights', 'none', '--output', str(run), '--size', '32', '--epochs', '2']) == 0 if 'cli.finetune' in ppcls_nb.cli.MORE \
        else finetune('MobileNetV3_small_x0_35', photographs, run, **SMALL)
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
    whole = finetune('MobileNetV3_small_x0_35', photographs, tmp_path/'whole', **{
        **SMALL, 'epochs': 3}, freeze_epochs=1)

    class Killed(Callback):
        def after_epoch(self, t):
            if t.epoch == 2:
                raise KeyboardInterrupt
    standard = lesson.standard_callbacks
    monkeypatch.setattr(lesson, 'standard_callbacks', lambda *a, **kw: [*standard(*a, **kw), Killed()])
    Killed.order = 95                                                       # when the epoch is saved
    with pytest.raises(KeyboardInterrupt):
        finetune('MobileNetV3_small_x0_35', photographs, tmp_path/'run', **{**SMALL, 'epochs': 3}, freeze_epochs=1)
    monkeypatch.setattr(lesson, 'standard_callbacks', standard)
    again = finetune('MobileNetV3_small_x0_35', photographs, tmp_path/'run', **{**SMALL, 'epochs': 3}, freeze_epochs=1)
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
