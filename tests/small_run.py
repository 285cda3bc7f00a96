"What the tests of commands share: a small recipe on drawn flowers, a trained run, and the command `ppcls` itself."
import contextlib, io
from types import SimpleNamespace

import yaml

from ppcls_nb.cli import main
from ppcls_nb.data.prepare import prepare_data


def ppcls(*argv):
    "(exit code, standard output, error output) of `ppcls` with these arguments."
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = main([str(argument) for argument in argv])
        except SystemExit as e:
            code = e.code
    return code, out.getvalue(), err.getvalue()


def check_refused(message, *argv):
    "`ppcls` with these arguments ends with exit code 2 and one line that contains `message`."
    code, out, err = ppcls(*argv)
    assert code == 2, (argv, out, err)
    assert out == ''
    assert message in err
    assert err.startswith('ppcls: ')
    assert err.count('\n') == 1


def transforms(*more):
    "Operations from a file to an array, with `more` after decoding."
    return [{'DecodeImage': {}}, *more, {'NormalizeImage': {'order': ''}}, {'ToCHWImage': None}]


def small_recipe(output) -> dict:
    "A recipe of two epochs for images of 32 pixels; runs are in the folder `output`."
    return {
        'ARCHITECTURE': {'name': 'MobileNetV1_x0_25'},
        'epochs': 2,
        'model_save_dir': str(output),
        'LEARNING_RATE': {'function': 'Cosine', 'params': {'lr': .05}},
        'OPTIMIZER': {'function': 'Momentum', 'params': {'momentum': .9}},
        'TRAIN': {
            'batch_size': 16, 'file_list': 'train_list.txt', 'data_dir': '.',
            'transforms': transforms({'RandCropImage': {'size': 32}})},
        'VALID': {
            'batch_size': 16, 'file_list': 'val_list.txt', 'data_dir': '.',
            'transforms': transforms({'ResizeImage': {'size': [32, 32]}})}}


def make_recipe(home) -> SimpleNamespace:
    "small.yaml (`recipe`) and the drawn flowers `garden`, 48 to train on and 24 to validate on, in the folder `home`."
    settings = dict(classes=4, per_class=[12, 6, 1], size=40, progress=False)
    garden = prepare_data('petals', home/'data', settings).root
    recipe = home/'small.yaml'
    recipe.write_text(yaml.safe_dump(small_recipe(home/'output')))
    return SimpleNamespace(home=home, garden=garden, recipe=recipe)


def train_run(home) -> SimpleNamespace:
    "`make_recipe`, with the folder `run` of a finished run."
    made = make_recipe(home)
    code, _, err = ppcls('train', '-c', made.recipe, '--data', made.garden)
    assert (code, err) == (0, '')
    made.run = home/'output'/'small'
    return made
