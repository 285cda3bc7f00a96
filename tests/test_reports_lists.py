"""Lists as people have them: other spaces, other normalizations, other delimiters, lines that no image can have."""
import json
import os
import shutil
from pathlib import Path
from unicodedata import normalize

import ppcls_nb  # before paddle: sets the threads
import cv2
import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from ppcls_nb.basics import PPClsError
from ppcls_nb.cli.answers import given_delimiters
from ppcls_nb.cli.quantize import labelled_files
from ppcls_nb.data.cache import prepare_cache
from ppcls_nb.data.datasets import BadImage, ImageDataset
from ppcls_nb.data.lists import LARGEST_LABEL, check_delimiter, list_rows, read_list, visible
from ppcls_nb.data.resolve import resolve_data
from ppcls_nb.deploy.predict import prepare_image
from ppcls_nb.distill.select import write_merged_list
from ppcls_nb.distill.soft_labels import ListedFiles, soft_labels
from ppcls_nb.recipe.data import build_data, use_data
from ppcls_nb.recipe.load import load_config
from ppcls_nb.recipe.trained import data_settings, image_files, run_delimiters
from ppcls_nb.transfer.finetune import gather_images

from small_run import ppcls, train_run


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    "`train_run`: a run on drawn flowers."
    return train_run(tmp_path_factory.mktemp('flowers'))


def photo(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode('.png', np.full((40, 40, 3), value, np.uint8))[1].tobytes())


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(('my rose.png', 'rose/café.png', 'Big/PHOTO.PNG', 'rose/a.png', 'rose/b.png')):
        photo(tmp_path/name, 40*i)
    return tmp_path


def problem(folder, line, labelled=True, **settings) -> str:
    "What is said about a list with this line."
    (folder/'list.txt').write_text(line, encoding='utf-8')
    with pytest.raises(PPClsError) as e:
        read_list(folder/'list.txt', labelled=labelled, **settings)
    assert '\n' not in str(e.value)
    assert len(str(e.value)) < 900
    assert str(e.value).startswith(f"{folder/'list.txt'}:1: ")
    return str(e.value)


# --- 24. characters that nobody sees

INVISIBLE = {'\u00a0': 'U+00A0 NO-BREAK SPACE', '\u3000': 'U+3000 IDEOGRAPHIC SPACE', '\t': 'U+0009 TAB',
             '\u200b': 'U+200B ZERO WIDTH SPACE', '\ufeff': 'U+FEFF ZERO WIDTH NO-BREAK SPACE', '\0': 'U+0000 NUL',
             '\u202f': 'U+202F NARROW NO-BREAK SPACE', '\u2028': 'U+2028 LINE SEPARATOR', '\x1b': 'U+001B',
             '\u3164': 'U+3164 HANGUL FILLER'}


@pytest.mark.parametrize('labelled', [True, False])
@pytest.mark.parametrize('character, name', INVISIBLE.items())
def test_an_invisible_character_in_a_path_is_named_with_its_place(folder, character, name, labelled):
    line = f'my{character}rose.png 0' if labelled else f'my{character}rose.png'
    said = problem(folder, line, labelled)
    assert f'it contains {name}' in said and 'at character 3' in said
    assert "did you mean 'my rose.png'?" in said
    assert character not in said


@pytest.mark.parametrize('character, name', list(INVISIBLE.items())[:3])
def test_another_space_before_the_label_is_named(folder, character, name):
    said = problem(folder, f'rose/a.png{character}0')
    assert 'no label in' in said and f'{name} is between them' in said and 'delimiter' in said
    assert f'{name} is between them' in problem(folder, f'my rose.png{character}0')


def test_a_comma_before_the_label_is_named(folder):
    assert "',' is between them" in problem(folder, 'rose/a.png,0')
    assert 'between them' not in problem(folder, 'rose/a.png')
    assert 'between them' not in problem(folder, 'rose/photo-3')


def test_an_invisible_character_behind_the_label_is_named(folder):
    assert 'U+200B' in problem(folder, 'rose/a.png 3\u200b')


def test_the_mark_of_an_appended_file_is_named(folder):
    (folder/'list.txt').write_text('rose/a.png 0\n\ufeffrose/b.png 0\n', encoding='utf-8')
    with pytest.raises(PPClsError, match=r"list.txt:2: .*U\+FEFF .* at character 1; did you mean 'rose/b.png'"):
        read_list(folder/'list.txt')
    (folder/'list.txt').write_text('\ufeffrose/b.png 0\n', encoding='utf-8')
    assert len(read_list(folder/'list.txt')[0]) == 1


@pytest.mark.parametrize('forms', [('NFC', 'NFD'), ('NFD', 'NFC')])
@pytest.mark.parametrize('labelled', [True, False])
def test_a_name_in_another_unicode_normalization_is_named(tmp_path, forms, labelled):
    listed, present = (normalize(form, 'rosé/café.png') for form in forms)
    photo(tmp_path/present)
    said = problem(tmp_path, f'{listed} 0', labelled)
    assert f"'{present}' is the same name in another Unicode normalization" in said
    assert f'({forms[0]} in the list, {forms[1]} in the folder)' in said


def test_two_files_in_both_normalizations_are_no_guess(tmp_path):
    for form in ('NFC', 'NFD'):
        photo(tmp_path/normalize(form, 'ế.png'))
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip('this file system normalizes names')
    said = problem(tmp_path, 'ê\u0301.png 0')        # a third form of the same name
    assert 'no such image' in said
    assert 'same name' not in said and 'did you mean' not in said


def test_backslashes_are_named_with_the_file_that_is_meant(folder):
    said = problem(folder, 'rose\\a.png 0')
    assert 'backslashes' in said and "did you mean 'rose/a.png'?" in said


@pytest.mark.parametrize('line, meant', [
    ('big/photo.png', 'Big/PHOTO.PNG'), ('rose/a.jpg', 'rose/a.png'), ('roses/a.png', 'rose/a.png'),
    ('images/rose/a.png', 'rose/a.png'), ('ｒｏｓｅ/a.png', 'rose/a.png'), ('myrose.png', 'my rose.png'),
    ('my  rose.png', 'my rose.png')])
@pytest.mark.parametrize('labelled', [True, False])
def test_a_missing_image_has_a_likely_one(folder, line, meant, labelled):
    assert f"did you mean '{meant}'?" in problem(folder, f'{line} 0', labelled)
    if not labelled:
        said = problem(folder, line, labelled)
        assert 'no such image' in said and f"did you mean '{meant}'?" in said


def test_a_missing_unlabelled_image_with_a_space_is_no_wrong_label(folder):
    said = problem(folder, 'another tulip.png', labelled=False)
    assert said.endswith(f"no such image: {folder/'another tulip.png'}")


def test_a_missing_list_has_a_likely_one(folder):
    (folder/'train_list.txt').write_text('rose/a.png 0\n')
    for read in (read_list, ListedFiles):
        with pytest.raises(PPClsError, match="did you mean '.*/train_list.txt'"):
            read(folder/'train-list.txt')


def test_lists_in_other_encodings(folder):
    (folder/'list.txt').write_text('rose/a.png 0\n', encoding='utf-16')
    with pytest.raises(PPClsError, match='list.txt: not a text file .*UTF-16; save it as UTF-8'):
        read_list(folder/'list.txt')
    (folder/'list.txt').write_bytes('rose/a.png 0\n花.png 0\n'.encode('gbk'))
    with pytest.raises(PPClsError, match='list.txt: not a text file .*in line 2'):
        read_list(folder/'list.txt')


def test_lines_are_counted_as_an_editor_counts_them(folder):
    (folder/'list.txt').write_bytes('rose/a.png 0\r\nrose/x\u2028y.png 0\rrose/b.png 0\nnone 0'.encode())
    photo(folder/'rose'/'x\u2028y.png')
    with pytest.raises(PPClsError, match='list.txt:4: '):
        read_list(folder/'list.txt')


# --- 39. lines that no image can have

@pytest.mark.parametrize('label', ['1' + '0'*30, '9'*5000, str(LARGEST_LABEL + 1), '٣'*40])
def test_a_label_that_is_too_large_is_named_with_its_line(folder, label):
    said = problem(folder, f'rose/a.png {label}')
    assert f'is out of range, expected 0…{LARGEST_LABEL}' in said
    assert 'expected 0…2' in problem(folder, f'rose/a.png {label}', class_num=3)


@pytest.mark.parametrize('label', ['-1', '-' + '9'*30])
def test_a_negative_label_is_named_with_its_line(folder, label):
    assert 'is out of range' in problem(folder, f'rose/a.png {label}')


def test_a_line_of_megabytes_is_shortened(folder):
    for line in ('x'*3_000_000, 'x'*3_000_000 + ' 3', 'rose/a.png ' + '7'*3_000_000, 'a/'*1_000_000):
        for labelled in (True, False):
            problem(folder, line, labelled)


@pytest.mark.parametrize('label', ['1' + '0'*30, '9'*5000])
def test_a_folder_with_an_impossible_label_names_file_and_line(folder, label):
    (folder/'train_list.txt').write_text(f'rose/a.png 0\nrose/b.png {label}\n')
    (folder/'val_list.txt').write_text('my rose.png 0\n')
    with pytest.raises(PPClsError, match=r'train_list.txt:2: label .* is out of range'):
        resolve_data(folder)
    (folder/'train_list.txt').write_text('rose/a.png 0\nrose/b.png 2000000000\n')
    with pytest.raises(PPClsError, match=r'are they ids.*the largest is in .*train_list.txt:2'):
        resolve_data(folder)


@pytest.mark.parametrize('name', ['a\0b.png', 'x'*5000, 'no\u00a0such.png', '\ud800.png'])
def test_a_path_that_no_file_can_have_is_a_bad_image(tmp_path, name):
    with pytest.raises(BadImage) as e:
        ImageDataset([str(tmp_path/name)], [0])[0]
    assert e.value.path == str(tmp_path/name)
    with pytest.raises(BadImage) as e:
        prepare_image(str(tmp_path/name), [])
    if '\0' in name:
        assert 'no file can have this name; it contains U+0000 NUL' in e.value.reason
    if '\u00a0' in name:
        assert 'the name contains U+00A0 NO-BREAK SPACE' in e.value.reason


def test_a_mistake_in_an_operation_is_no_bad_image(tmp_path):
    def broken(image, rng=None):
        raise ValueError('a mistake')
    photo(tmp_path/'a.png')
    with pytest.raises(PPClsError, match='ValueError in an operation: a mistake') as e:
        ImageDataset([str(tmp_path/'a.png')], [0], [broken])[0]
    assert not isinstance(e.value, BadImage)
    with pytest.raises(ValueError, match='a mistake'):
        prepare_image(str(tmp_path/'a.png'), [broken])


BAD_LINES = ['a\0b.png 3', 'jpg/none.jpg', f"{'x'*2_000_000} 1", f"jpg/image_00001.jpg 1{'0'*30}"]


def list_with_bad_lines(flowers, file, bad=tuple(BAD_LINES)) -> int:
    "Write a list with three images of the flowers among the `bad` lines."
    good = [path for _, path, _ in list_rows(flowers.garden/'val_list.txt')][:3]
    rows = [line for pair in zip(bad, [*good, '']) for line in pair]
    file.write_text('\n'.join(rows), encoding='utf-8', errors='surrogateescape')
    return len(good)


def test_bad_lines_of_a_list_cost_nobody_elses_prediction(flowers, tmp_path):
    count = list_with_bad_lines(flowers, tmp_path/'list.txt')
    code, _, err = ppcls('export', '-m', flowers.run, '--out', tmp_path/'exported')
    assert (code, err) == (0, '')
    for command, model in (('infer', flowers.run), ('predict', tmp_path/'exported')):
        code, out, err = ppcls(command, '-m', model, '-i', tmp_path/'list.txt', '--data-dir', flowers.garden,
                               '--json', tmp_path/'a.json')
        assert (code, out.count('\n')) == (1, count)
        assert [line.partition(': no ')[0].partition(': label')[0] for line in err.splitlines()] == [
            f"ppcls: left out: {tmp_path/'list.txt'}:{n}" for n in (1, 3, 5, 7)]
        found = json.loads((tmp_path/'a.json').read_text(encoding='utf-8'))
        assert len(found['predictions']) == count and len(found['failed']) == 4


def test_a_list_without_any_image_is_an_error(flowers, tmp_path):
    (tmp_path/'list.txt').write_text('none.png\nnothing.png\n')
    code, out, err = ppcls('infer', '-m', flowers.run, '-i', tmp_path/'list.txt')
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert 'list.txt:1: no such image' in err
    with pytest.raises(PPClsError, match='list.txt:1: no such image'):
        image_files([tmp_path/'list.txt'])


def test_bad_lines_of_a_pool_cost_nobody_elses_soft_label(flowers, tmp_path):
    gbk = os.fsdecode('花.png'.encode('gbk'))
    count = list_with_bad_lines(flowers, tmp_path/'pool.txt', [*BAD_LINES[:3], gbk])
    code, out, err = ppcls('select', '-i', tmp_path/'pool.txt', '--data-dir', flowers.garden, '-m', flowers.run,
                           '-k', 2, '--out', tmp_path/'out')
    assert code == 0, err
    assert f'soft labels of {count} images' in out and '4 could not be read' in out
    failed = (tmp_path/'out'/'soft_labels'/'failed.csv').read_text(encoding='utf-8', errors='surrogateescape')
    assert 'it contains U+0000 NUL' in failed and gbk in failed
    assert len(failed) < 20_000


def test_names_that_a_list_cannot_hold_cost_nobody_elses_place_in_a_pool(flowers, tmp_path):
    pool = tmp_path/'pool'
    pool.mkdir()
    images = sorted((flowers.garden/'jpg').iterdir())[:4]
    names = [os.fsdecode('花.jpg'.encode('gbk')), 'a\nb.jpg', 'c.jpg', 'd.jpg']
    for image, name in zip(images, names):
        shutil.copy(image, pool/name)
    (tmp_path/'reference.txt').write_text('')
    photo(tmp_path/'other.png')
    (tmp_path/'reference.txt').write_text('other.png\n')
    code, out, err = ppcls('select', '-i', pool, '-m', flowers.run, '-k', 2, '--out', tmp_path/'out',
                           '--remove-duplicates-of', tmp_path/'reference.txt')
    assert code == 0, err
    assert '2 images are left out, since a list cannot hold their names' in out
    assert 'soft labels of 2 images' in out


# --- 20. the delimiter of a recipe

@pytest.mark.parametrize('delimiter', ['\t', ',', '::', ' | ', r'\t', '\u3000', 'label='])
def test_a_list_with_another_delimiter(folder, delimiter):
    mark = '\t' if delimiter == r'\t' else delimiter
    (folder/'list.txt').write_text(f'my rose.png{mark}1\nrose/a.png{mark} 0\n', encoding='utf-8')
    paths, labels = read_list(folder/'list.txt', delimiter=delimiter)
    assert [Path(path).name for path in paths] == ['my rose.png', 'a.png']
    assert labels.tolist() == [1, 0]
    (folder/'list.txt').write_text(f'my rose.png{mark}1\nmy rose.png\n', encoding='utf-8')
    assert read_list(folder/'list.txt', labelled=False, delimiter=delimiter)[1].tolist() == [1, -1]
    said = problem(folder, 'my rose.png', delimiter=delimiter)
    assert f"expected 'path{visible(mark)}label'" in said


@pytest.mark.parametrize('delimiter', ['', None, '1', 'a0', '\n', 'x\r', 3, [' ']])
def test_a_delimiter_that_no_list_can_have(delimiter):
    with pytest.raises(PPClsError, match='delimiter is .*expected one or more characters'):
        check_delimiter(delimiter)
    for section in ('TRAIN', 'VALID'):
        with pytest.raises(PPClsError, match=f'override {section}.delimiter: .*{section}.delimiter is'):
            load_config('quick_start/ResNet50_vd', {f'{section}.delimiter': delimiter})


def with_delimiter(source, out, delimiters):
    "Copy the flowers' lists to the folder `out` with other delimiters for {part: delimiter}."
    out.mkdir()
    for part, delimiter in delimiters.items():
        rows = list_rows(source/f'{part}_list.txt')
        (out/f'{part}_list.txt').write_text(''.join(f'{path}{delimiter}{label}\n' for _, path, label in rows))
    return out


def test_a_recipe_reads_lists_with_its_delimiters(flowers, tmp_path):
    lists = with_delimiter(flowers.garden, tmp_path/'lists', {'train': '\t', 'val': ','})
    recipe = yaml.safe_load(flowers.recipe.read_text())
    for section, part, delimiter in (('TRAIN', 'train', '\t'), ('VALID', 'val', ',')):
        recipe[section] |= dict(file_list=str(lists/f'{part}_list.txt'), data_dir=str(flowers.garden),
                                delimiter=delimiter)
    (tmp_path/'recipe.yaml').write_text(yaml.safe_dump({**recipe, 'classes_num': 4, 'epochs': 1}))
    data = build_data(load_config(tmp_path/'recipe.yaml'))
    assert (len(data.train.dataset), len(data.valid.dataset)) == (48, 24)
    with pytest.raises(PPClsError, match='train_list.txt:1: no label .*TAB'):
        build_data(load_config(tmp_path/'recipe.yaml', ['TRAIN.delimiter=" "']))
    code, out, err = ppcls('train', '-c', tmp_path/'recipe.yaml', '--out', tmp_path/'run')
    assert (code, err) == (0, '')
    code, out, err = ppcls('eval', '--run', tmp_path/'run')
    assert (code, err) == (0, '') and 'the same' in out


@pytest.mark.parametrize('parts', [{'train': '\t', 'val': ','}, {'train': '\t'}, {'train': ' ', 'val': '\t'}])
def test_a_folder_of_lists_with_the_delimiters_of_a_recipe(flowers, tmp_path, parts):
    data = with_delimiter(flowers.garden, tmp_path/'data', parts)
    (data/'jpg').symlink_to(flowers.garden/'jpg')
    conf = load_config(flowers.recipe, {'TRAIN.delimiter': r'\t', 'VALID.delimiter': ','})
    if parts.get('val') == '\t':
        conf.VALID.delimiter = r'\t'
    settings = data_settings(data, conf, spare=tmp_path/'spare')
    assert settings['classes_num'] == 4
    both = build_data(load_config(flowers.recipe, settings))
    counts = (len(both.train.dataset), len(both.valid.dataset))
    assert counts == (48, 24) if 'val' in parts else sum(counts) == 48 > counts[0] > counts[1] > 0
    assert max(both.train.dataset.labels) == 3


def test_lists_that_a_command_made_have_a_space_whatever_the_recipe_says(flowers, tmp_path):
    for kind in 'ab':
        for i in range(4):
            photo(tmp_path/'data'/kind/f'{i}, 5.png', 40*i)
    conf = load_config(flowers.recipe, {'TRAIN.delimiter': ',', 'VALID.delimiter': ','})
    for _ in range(2):      # made, then read again
        settings = data_settings(tmp_path/'data', conf)
        assert settings['TRAIN.delimiter'] == ' '
        assert len(build_data(load_config(flowers.recipe, settings)).train.dataset) == 6
    info = resolve_data(tmp_path/'data')
    assert use_data(conf, info).TRAIN.delimiter == ' '


def test_labels_follow_the_classes_of_a_run_in_lists_with_tabs(flowers, tmp_path):
    data = with_delimiter(flowers.garden, tmp_path/'data', {'train': '\t', 'val': '\t'})
    (data/'jpg').symlink_to(flowers.garden/'jpg')
    (data/'classes.txt').write_text('\n'.join(f'flower {i}' for i in (3, 2, 1, 0)))
    info = resolve_data(data, classes=[f'flower {i}' for i in range(4)], spare=tmp_path/'spare', delimiters=['\t'])
    old, new = (list_rows(folder/'val_list.txt', ['\t']) for folder in (data, info.lists))
    assert [3 - int(label) for _, _, label in old] == [int(label) for _, _, label in new]


@pytest.mark.parametrize('delimiter', ['\t', ',', ';'])
def test_every_reader_of_lists_takes_a_delimiter(flowers, tmp_path, delimiter):
    lists = with_delimiter(flowers.garden, tmp_path/'lists', {'val': delimiter})
    file, root = lists/'val_list.txt', flowers.garden
    expected, labels = read_list(root/'val_list.txt')
    assert image_files([file], root, delimiters=(delimiter,)) == expected
    assert labelled_files([file], root, delimiters=(delimiter,)) == (expected, labels.tolist())
    assert list(ListedFiles(file, root, (delimiter,))) == expected
    assert list(ListedFiles(root/'val_list.txt', root, (delimiter,))) == expected
    merged = write_merged_list(file, [], tmp_path/'merged.txt', root, root, delimiters=(delimiter,))
    assert (tmp_path/'merged.txt').read_text() == (root/'val_list.txt').read_text() and merged.labelled == len(labels)
    report = prepare_cache(file, root, tmp_path/'cache', short=16, delimiter=delimiter)
    assert report.resized == len(expected)
    assert (tmp_path/'cache'/'val_list.txt').read_text() == file.read_text()
    assert ppcls('check', file, '--data-dir', root, '--delimiter', delimiter)[0] == 0
    assert ppcls('check', file, '--data-dir', root)[0] == 1


def test_finetune_reads_lists_with_a_delimiter(flowers, tmp_path):
    data = with_delimiter(flowers.garden, tmp_path/'data', {'train': '\t', 'val': ','})
    (data/'jpg').symlink_to(flowers.garden/'jpg')
    with pytest.raises(PPClsError, match='delimiter'):
        gather_images(data)
    (data/'val_list.txt').write_text((data/'val_list.txt').read_text().replace(',', '\t'))
    images = gather_images(data, delimiter=r'\t')
    assert images.train[1].tolist() == read_list(flowers.garden/'train_list.txt')[1].tolist()
    command = ('finetune', 'MobileNetV3_small_x0_35', data, '--weights', 'none', '--plan')
    assert ppcls(*command, '--delimiter', r'\t')[0] == 0
    code, _, err = ppcls(*command)
    assert code and 'no label in' in err


def test_the_delimiter_of_a_run_is_that_of_its_recipe(flowers, tmp_path):
    (tmp_path/'config.yaml').write_text(OmegaConf.to_yaml(load_config(flowers.recipe, {'TRAIN.delimiter': ';'})))
    (tmp_path/'last.pdparams').touch()
    assert run_delimiters(tmp_path) == (';', ' ')
    assert run_delimiters(tmp_path/'last.pdparams') == (';', ' ')
    assert run_delimiters('SqueezeNet1_0') == ()
    assert given_delimiters('\\t', (';', ' ')) == ('\t',) and given_delimiters(None, (';', ' ')) == (';', ' ')


def test_a_bad_line_of_a_list_is_reported_and_the_others_go_on(flowers, tmp_path):
    good = (flowers.garden/'val_list.txt').read_text().splitlines()
    file = tmp_path/'images.txt'
    file.write_text('\n'.join([good[0], 'no/such.jpg 1', *good[1:4]]) + '\n')
    failed = {}
    files, labels = labelled_files([file], flowers.garden, 4, failed=failed)
    assert (len(files), len(labels)) == (4, 4)
    assert list(failed) == [f'{file}:2'] and 'no such image' in failed[f'{file}:2']
    with pytest.raises(PPClsError, match=r'images.txt:1: label \d+, but the network has 1 class'):
        file.write_text(good[-1])
        labelled_files([file], flowers.garden, 1)
    file.write_text('\n'.join([good[0], 'no/such.jpg 1', *good[1:4]]) + '\n')
    with pytest.raises(PPClsError, match=rf'1 of 5 images are bad \({file}:2: no such image'):
        prepare_cache(file, flowers.garden, tmp_path/'cache', short=16)
    report = prepare_cache(file, flowers.garden, tmp_path/'cache', short=16, skip_bad=True)
    assert report.kept == 4 and (tmp_path/'cache'/'images.txt').read_text().splitlines() == [good[0], *good[1:4]]
    code, _, err = ppcls('select', '-i', flowers.garden, '-m', 'M', '-k', 1, '--out', tmp_path/'o', '--labelled', file,
                         '--labelled-dir', flowers.garden)
    assert code == 2 and f'{file}:2: no such image' in err       # labels that train: strict


class Answers:
    "In the place of a `ServiceClient`."
    def __init__(self, *args): pass
    def __enter__(self): return self
    def __exit__(self, *args): pass
    def stream(self, files, *args): return ((file, [(0, '', 1.)]) for file in files)


def test_client_leaves_out_a_bad_line(flowers, tmp_path, monkeypatch):
    pytest.importorskip('httpx')
    monkeypatch.setattr('ppcls_nb.deploy.client.ServiceClient', Answers)
    first = (flowers.garden/'val_list.txt').read_text().splitlines()[0].replace(' ', ';')
    (tmp_path/'a.txt').write_text(f'{first}\nno/such.jpg;1\n')
    code, out, err = ppcls('client', tmp_path/'a.txt', '--data-dir', flowers.garden, '--delimiter', ';')
    assert code == 1 and out.count('\n') == 1 and first.split(';')[0] in out
    assert err.startswith(f'ppcls: left out: {tmp_path/"a.txt"}:2: no such image')
