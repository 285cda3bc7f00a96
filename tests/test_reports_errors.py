"""Errors that help, and values that are read as people mean them: what users of such tools report."""
import json
import os
import subprocess
import sys
import zipfile

import ppcls_nb  # before paddle: sets the threads
import pytest
import yaml

from ppcls_nb.basics import PPClsError
from ppcls_nb.cli.finetune import more_settings
from ppcls_nb.course import notebooks
from ppcls_nb.course.notebooks import parse_parameters
from ppcls_nb.data.lists import read_list
from ppcls_nb.models import create_model
from ppcls_nb.models.formats.any_file import read_arrays
from ppcls_nb.recipe.load import load_config, pairs, parse_yaml
from ppcls_nb.transfer.finetune import check_setting
from small_run import check_refused

VALUES = {'1e-3': 0.001, '5E4': 5e4, '1.5': 1.5, '.5': 0.5, '7': 7, '-3': -3, '0x10': 16, 'None': None, 'null': None,
          'True': True, 'false': False, '2026-01-01': '2026-01-01', '12:30': '12:30', '1:30:00': '1:30:00',
          'a#b': 'a#b', 'a #b': 'a #b', '"quoted"': 'quoted', '[1, 2e-1]': [1, 0.2], '': None,
          'v1.2.3': 'v1.2.3', '1_000': 1000}


@pytest.mark.parametrize('text, value', VALUES.items())
@pytest.mark.parametrize('read', [pairs, more_settings, parse_parameters])
def test_values_on_the_command_line(read, text, value):
    found = read([f'x={text}'])['x']
    assert found == value and type(found) is type(value)


def test_values_in_a_recipe():
    keys, _ = parse_yaml('a: 1e-3\nb: 2026-01-01\nc: 12:30\nd: 1.\ne: .inf\nf: off\n')
    assert keys == {'a': 0.001, 'b': '2026-01-01', 'c': '12:30', 'd': 1.0, 'e': float('inf'), 'f': False}


def test_a_date_is_a_folder():
    assert load_config('ResNet50_vd_finetune', ['model_save_dir=2026-01-01']).model_save_dir == '2026-01-01'


@pytest.mark.parametrize('name, value, default, expected', [
    ('freeze_epochs', 'half', 3, 'a number'), ('keep_statistics', 'maybe', True, 'True or False'),
    ('epochs', 2.5, 10, 'a whole number'), ('lr', True, 0.1, 'a number')])
def test_settings_of_the_wrong_kind_are_one_line(name, value, default, expected):
    with pytest.raises(PPClsError, match=f'finetune: {name} is {value!r}, expected {expected}'):
        check_setting(name, value, default)


def test_a_file_name_that_cannot_be_printed_costs_nobody_elses_answer(tmp_path):
    "A GBK file name under an ASCII console: the name is escaped, the second answer comes, and JSON is valid."
    names = [os.fsdecode('花.jpg'.encode('gbk')), 'b.jpg']
    code = ('import sys; from ppcls_nb.cli import protect_output; '
            'from ppcls_nb.cli.answers import print_predictions; protect_output(); '
            f'print_predictions([(name, [(1, "", .5)]) for name in {names!r}], {{}}, json=sys.argv[1])')
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path/'a.json')], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONIOENCODING': 'ascii'})
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.splitlines()[1] == 'b.jpg  1 0.5000'
    rows = json.loads((tmp_path/'a.json').read_text(encoding='utf-8'))['predictions']
    assert [row['file'] for row in rows] == names


def test_a_service_on_this_machine_is_not_asked_through_a_proxy(monkeypatch):
    monkeypatch.setenv('HTTP_PROXY', 'http://127.0.0.1:9')
    client = pytest.importorskip('ppcls_nb.deploy.client')
    assert not client.ServiceClient('9292').http._mounts
    assert client.ServiceClient('http://example.org').http._mounts


@pytest.mark.parametrize('name, inside, words', [
    ('a.safetensors', 'archive/data.pkl', 'not a safetensors file'),
    ('a.pt', 'archive/data.pkl', 'not a PyTorch file, or a damaged one'),
    ('a.pth', 'photo.jpg', 'a zip archive, but not one of PyTorch: data.pkl is missing'),
    ('a.pdparams', 'photo.jpg', 'a zip archive, but not one of PyTorch')])
def test_damaged_weights_say_what_they_are_not(tmp_path, name, inside, words):
    with zipfile.ZipFile(tmp_path/name, 'w') as file:
        file.writestr(inside, b'x')
    with pytest.raises(PPClsError, match=f'{name}: .*{words}'):
        read_arrays(tmp_path/name)


def test_quantize_without_onnx_names_the_package(monkeypatch, tmp_path):
    from ppcls_nb.deploy import quantize
    monkeypatch.setattr(quantize, 'find_spec', lambda name: None)
    with pytest.raises(PPClsError, match='quantize: onnx, onnxruntime: not installed; install with: pip install'):
        quantize.quantize(tmp_path, tmp_path/'out', [])


@pytest.mark.parametrize('text', ['AQID', 'AQ\nID\r\n', 'data:image/png;base64,AQID', ' AQID '])
def test_data_urls_and_wrapped_base64_are_understood(text):
    serve = pytest.importorskip('ppcls_nb.deploy.serve')
    assert serve.read_json(json.dumps({'image': text}).encode()) == [b'\1\2\3']


def test_an_empty_host_is_not_all_addresses(tmp_path):
    server = pytest.importorskip('ppcls_nb.deploy.server')
    with pytest.raises(PPClsError, match="host '': expected an address"):
        server.serve(tmp_path, host='')


@pytest.mark.parametrize('argv, said', [
    ('benchmark DIR --seconds nan', '--seconds nan'), ('benchmark DIR --seconds -1', '--seconds -1'),
    ('benchmark DIR -b 0', '--batch 0'), ('benchmark DIR --threads -2', '--threads -2'),
    ('quantize DIR --out X --images a.jpg --max-drop nan', '--max-drop nan'),
    ('quantize DIR --out X --images a.jpg --runs -1', '--runs -1'),
    ('quantize DIR --out X --qat 2 --lr nan', '--lr nan'), ('quantize DIR --out X --qat 2 --lr -1', '--lr -1'),
    ('quantize DIR --out X --images a.jpg --lr 0', '--lr 0'),
    ('select -i a -m M -k 1 --out X --min-score nan', '--min-score nan'),
    ('select -i a -m M -k 1 --out X --top 0', '--top 0'),
    ('select -i a -m M -k 1 --out X --num-workers -1', '--num-workers -1'),
    ('search -c ResNet50_vd_finetune --seed -1', '--seed -1'),
    ('search -c ResNet50_vd_finetune --trials 0', '--trials 0'),
    ('finetune SqueezeNet1_0 DIR --seed -1', '--seed -1'), ('finetune SqueezeNet1_0 DIR --val nan', '--val nan'),
    ('infer -i a.jpg -m M --num-workers -1', '--num-workers -1'),
    ('predict -i a.jpg -m M --threads 0', '--threads 0'), ('lists DIR --val nan', '--val nan'),
    ('lists DIR --test inf', '--test inf'), ('lite_benchmark a b c --repeats 0', '--repeats 0'),
    ('prepare a.txt --data-dir DIR --out X --workers 0', '--workers 0'), ('check a.txt --classes -1', '--classes -1')])
def test_numbers_that_are_none_are_named(tmp_path, argv, said):
    check_refused(said, *argv.replace('DIR', str(tmp_path)).split())


@pytest.mark.parametrize('name, value', [('lr', float('inf')), ('head_lr', float('nan')), ('l2_decay', -1e-4),
                                         ('freeze_epochs', -1), ('lower_scale', -0.1)])
def test_settings_of_a_finetuning_are_finite_and_not_negative(name, value):
    with pytest.raises(PPClsError, match=f'finetune: {name} is'):
        check_setting(name, value, 1 if name == 'freeze_epochs' else 0.1)


@pytest.mark.parametrize('argv', ['--seeds 0', '--kernel-timeout -1', '--cell-timeout -5', '--cell-timeout nan'])
def test_numbers_of_the_course(tmp_path, capsys, argv):
    assert notebooks.main([str(tmp_path), *argv.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith('ppcls-run: ') and err.count('\n') == 1 and argv.split()[0] in err


@pytest.mark.parametrize('name, value', [
    ('LEARNING_RATE.params.lr', '.nan'), ('OPTIMIZER.regularizer.factor', '.inf'), ('ls_epsilon', '.nan'),
    ('ema_decay', '-.inf'), ('OPTIMIZER.params.momentum', '.nan')])
def test_numbers_of_a_recipe_are_finite(name, value):
    with pytest.raises(PPClsError, match=f'{name} is {value.replace(".", "")}, expected a finite number'):
        load_config('quick_start/ResNet50_vd', [f'{name}={value}'])


@pytest.mark.parametrize('arguments', [dict(scale='wide'), dict(scale=-1), dict(scale=float('nan'))])
def test_arguments_with_which_no_network_can_be_built(arguments):
    with pytest.raises(PPClsError, match='MobileNetV1: no network can be built with the arguments'):
        create_model('MobileNetV1', **arguments)


@pytest.mark.parametrize('delimiter, name', [('\t', r'U\+0009 TAB'), (';', "';'")])
def test_a_list_with_several_labels_and_another_delimiter(delimiter, name, tmp_path):
    (tmp_path/'a.jpg').touch()
    (tmp_path/'list.txt').write_text(f'a.jpg{delimiter}1,0,0\n')
    with pytest.raises(PPClsError, match=f'several labels and another delimiter than .*; here {name} is between'):
        read_list(tmp_path/'list.txt')


@pytest.mark.parametrize('size, pairs, expected', [
    ([3, 64, 64], [[1, 96]], [[1, 48]]), ([3, 64, 64], [[1, [96, 96]]], [[1, [48, 48]]])])
def test_sizes_of_the_first_epochs_follow_image_shape(size, pairs, expected, tmp_path):
    operations = [{'RandCropImage': {'size': 128, 'progressive': pairs}}]
    recipe = tmp_path/'a.yaml'
    recipe.write_text(yaml.safe_dump(dict(image_shape=[3, 128, 128], TRAIN=dict(transforms=operations))))
    found = load_config(recipe, [f'image_shape={size}']).TRAIN.transforms[0]['RandCropImage']
    assert (found['size'], found['progressive']) == (64, expected)
