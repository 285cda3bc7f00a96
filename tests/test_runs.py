"""Where runs are: the folder of a recipe's run cannot be mistaken for another's, and a missing teacher is found."""
import json, shlex, subprocess

import pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.models import create_model
from ppcls_nb.recipe.build import build_models
from ppcls_nb.recipe.load import find_config, list_configs, load_config, read_recipe
from ppcls_nb.recipe.runs import COPIES, SHARED_FOLDERS, how_to_get, last_saved, require_weights, run_name, runs_of
from ppcls_nb.recipe.schema import OLD_NETWORKS, network_names
from ppcls_nb.train import save_weights

RECIPES = [name for name in list_configs() if name != 'eval']
TEACHER = './pretrained/flowers102_R50_vd_final/ppcls'
NETWORK = 'MobileNetV1_x0_25'


def test_every_recipe_has_a_run_of_its_own():
    names = [run_name(name) for name in RECIPES]
    assert len(set(names)) == len(names)
    for name in RECIPES:
        folder, stem = name.split('/')
        network = read_recipe(find_config(name))[0]['ARCHITECTURE']['name']
        if folder in SHARED_FOLDERS:
            assert run_name(name) == name
            assert run_name(name) != network
        else:
            assert run_name(name) == stem
            # as in the documents: output/NETWORK
            assert OLD_NETWORKS.get(stem, stem) == OLD_NETWORKS.get(network, network)


def test_a_copy_of_a_recipe_has_the_name_of_the_bundled_one(tmp_path, monkeypatch):
    copy = tmp_path/'configs'/'quick_start'/'ResNet50_vd.yaml'
    copy.parent.mkdir(parents=True)
    copy.write_text(find_config('quick_start/ResNet50_vd').read_text())
    assert run_name(copy) == 'quick_start/ResNet50_vd'
    monkeypatch.chdir(copy.parent)
    assert run_name('ResNet50_vd.yaml') == 'quick_start/ResNet50_vd'
    other = tmp_path/'mine.yaml'
    other.write_text('epochs: 3\n')
    assert run_name(other) == 'mine'


def make_run(folder, correct, network=NETWORK, classes=2, epochs=(0, 1, 10)):
    "A run folder with weights of `epochs` and a log with an accuracy of `correct`/10."
    folder.mkdir(parents=True)
    (folder/'config.yaml').write_text(f'ARCHITECTURE: {{name: {network}}}\nclasses_num: {classes}\n')
    row = dict(epoch=0, valid_total=10, valid_top1_correct=correct)
    (folder/'metrics.jsonl').write_text(json.dumps(row) + '\n')
    for epoch in epochs:
        save_weights(folder/str(epoch)/'ppcls.pdparams', create_model(NETWORK, class_num=classes))


@pytest.fixture
def output(tmp_path, monkeypatch):
    "A folder output in the working directory with runs of two networks, and files that are no runs."
    monkeypatch.chdir(tmp_path)
    output = tmp_path/'output'
    make_run(output/'quick_start'/'scratch', 2)
    make_run(output/'quick_start'/'fine tuned', 9)
    make_run(output/'quick_start'/'other classes', 10, classes=3, epochs=())
    make_run(output/'VGG11', 10, network='VGG11', epochs=())
    make_run(output/'distilled', 5, network=f'VGG11_distill_{NETWORK}', epochs=())
    (output/'broken').mkdir()
    (output/'broken'/'config.yaml').write_text('no run\n')
    return output


def test_runs_of_a_network_the_best_first(output):
    assert [(run.name, top1) for run, top1 in runs_of(output, NETWORK, 2)] == [
        ('fine tuned', 0.9), ('distilled', 0.5), ('scratch', 0.2)]
    assert last_saved(output/'quick_start'/'scratch').name == '10'
    assert last_saved(output/'distilled') is None
    assert runs_of(output/'nowhere', NETWORK, 2) == []


def distillation(**changes):
    "A distillation whose teacher is missing."
    return load_config('quick_start/R50_vd_distill_MV3_large_x1_0', {
        'ARCHITECTURE.name': f'{NETWORK}_distill_MobileNetV1_x0_5', 'pretrained_model': [TEACHER, ''],
        'classes_num': 2, 'use_gpu': False, **changes})


def test_a_missing_teacher_is_copied_by_the_command_in_the_message(output):
    with pytest.raises(PPClsError, match=f'pretrained_model: {TEACHER} does not exist, the weights of {NETWORK}') as e:
        build_models(distillation())
    command = str(e.value).rpartition(': ')[2]
    assert shlex.split(command)[-2:] == ['output/quick_start/fine tuned/10', 'pretrained/flowers102_R50_vd_final']
    subprocess.run(command, shell=True, check=True)
    _, (teacher,) = build_models(distillation())
    assert teacher.load_report.complete


def test_without_a_run_the_documents_recipe_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = 'quick_start/ResNet50_vd_ssld_random_erasing_finetune'
    conf = load_config('quick_start/R50_vd_distill_MV3_large_x1_0', {'use_gpu': False})
    with pytest.raises(PPClsError) as e:
        build_models(conf)
    assert f'ppcls train -c {source}, then mkdir -p pretrained && cp -r output/{source}/19 ' in str(e.value)
    assert str(e.value).endswith('pretrained/flowers102_R50_vd_final')
    for name in COPIES.values():
        assert network_names(conf.ARCHITECTURE.name)[0] == [load_config(name).ARCHITECTURE.name]
        assert (load_config(name).epochs, load_config(name).save_interval) == (20, 1)


def test_a_run_without_saved_epochs_is_named_itself(output):
    hint = how_to_get('pretrained/x/ppcls', NETWORK, 2, output/'..'/'output')
    assert 'fine tuned' in hint
    make_run(output/'only', 10, classes=7, epochs=())
    assert f"is {output/'only'} (top-1 1.0000); write its folder" in how_to_get('p/x', NETWORK, 7, output)


@pytest.mark.parametrize('source', ['', None, 'ssld', 'ResNet50_vd', './pretrained/ResNet50_vd_pretrained',
                                    'https://example.org/x.pdparams', 'mine/ppcls', 'plain'])
def test_other_weights_are_left_to_the_loader(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    require_weights(source, 'ResNet50_vd', 102, 'output')


@pytest.mark.parametrize('suffix', ['', '.pdparams', '.tar'])
def test_weights_that_exist_are_left_to_the_loader(suffix, output):
    file = output/f'ppcls{suffix}'
    file.write_text('')
    require_weights(str(output/'ppcls'), NETWORK, 2, output)
