"""`ppcls export`, `predict` and `quantize`: what a run becomes as an inference model, equal predictions in all engines,
and every mistake as one line."""
import csv, json, shutil

import paddle, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.cli.export import find_export
from ppcls_nb.cli.quantize import labelled_files
from ppcls_nb.deploy.export import read_export
from ppcls_nb.models import create_model
from ppcls_nb.train import save_weights
from small_run import check_refused, ppcls, train_run



@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    "A trained run, exported to the folder `exported`, and four of its images, `pictures`."
    flowers = train_run(tmp_path_factory.mktemp('flowers'))
    (flowers.run/'classes.txt').write_text('daisy\npoppy\ngreat mullein\ngentian\n')
    flowers.exported = flowers.home/'exported'
    code, flowers.printed, err = ppcls('export', '-m', flowers.run, '-o', flowers.exported, '--onnx')
    assert (code, err) == (0, '')
    lines = (flowers.garden/'val_list.txt').read_text().splitlines()[:4]
    flowers.pictures = [flowers.garden/line.split()[0] for line in lines]
    return flowers


@pytest.fixture(scope='module')
def other(flowers):
    "An export of weights from elsewhere, as the documents write the command."
    folder = flowers.home/'other'
    save_weights(flowers.home/'elsewhere.pdparams', create_model('MobileNetV1_x0_25', class_num=4))
    code, _, err = ppcls('export', '--model=MobileNetV1_x0_25', f"--pretrained_model={flowers.home/'elsewhere'}",
                         f'--output_path={folder}', '--softmax')
    assert (code, err) == (0, '')
    return folder


def test_an_export_has_all_that_prediction_needs(flowers):
    record = read_export(flowers.exported)
    assert record.class_names[2] == 'great mullein'
    assert record.image_shape == [3, 32, 32]
    assert record.about['data'] == 'petals'
    assert record.about['weights'].endswith('best.pdparams')
    operations = [next(iter(operation)) for operation in record.preprocess]
    assert operations == ['DecodeImage', 'ResizeImage', 'NormalizeImage', 'ToCHWImage']
    assert 'inference.onnx' in record.files
    assert 'next: ppcls predict -m' in flowers.printed


def test_an_export_of_weights_from_elsewhere(other):
    assert read_export(other).image_shape == [3, 224, 224]
    assert read_export(other).softmax


def test_the_last_weights_of_a_run_can_be_exported(flowers, tmp_path):
    assert ppcls('export', '-m', flowers.run, '--weights', 'last', '-o', tmp_path/'last')[0] == 0
    assert read_export(tmp_path/'last').about['weights'].endswith('last.pdparams')


def test_weights_in_a_run_keep_its_operations(flowers, tmp_path):
    argv = ['export', '-m', 'MobileNetV1_x0_25', '-p', flowers.run/'best', '-o', tmp_path/'third']
    assert ppcls(*argv)[0] == 0
    assert read_export(tmp_path/'third').image_shape == [3, 32, 32]


def test_weights_for_a_part_of_the_network_are_refused(flowers, tmp_path):
    whole = create_model('MobileNetV1_x0_25', class_num=4).state_dict()
    missing = 'blocks.3.pointwise_conv.bn.bias'
    paddle.save({name: value for name, value in whole.items() if name != missing}, str(tmp_path/'part.pdparams'))
    check_refused(f'1 missing ({missing})', 'export', '-m', 'MobileNetV1_x0_25', '-p', tmp_path/'part',
                  '-o', tmp_path/'out')
    check_refused('cover only', 'export', '-m', 'MobileNetV1_x0_25', '-p', tmp_path/'part', '-o', tmp_path/'out')
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('argv, message', [
    ([], 'required: -m'),
    (['-m', 'ResNet18', '-p', 'RUN/best', '-o', 'OUT'], 'weights of MobileNetV1_x0_25, by the run in their folder'),
    (['-m', 'RUN', '-o', 'RUN'], 'name another folder'),
    (['-m', 'MobileNetV1', '--weights', 'last'], 'is not a run folder'),
    (['-m', 'RUN', '--classes', 'OUT/two.txt', '-o', 'OUT'], '2 class names for a network with 4')])
def test_an_export_that_is_refused(argv, message, flowers, tmp_path):
    (tmp_path/'two.txt').write_text('a\nb\n')
    argv = [argument.replace('RUN', str(flowers.run)).replace('OUT', str(tmp_path)) for argument in argv]
    check_refused(message, 'export', *argv)
    assert (flowers.run/'config.yaml').is_file()


def test_an_export_is_found_by_the_documents_paths(flowers, other):
    folder = flowers.exported
    assert find_export(folder) == (folder, None, None)
    assert find_export(folder/'model', folder/'params') == (folder, None, None)
    assert find_export(folder/'inference') == (folder, None, None)
    with pytest.raises(PPClsError, match='nowhere: no such folder'):
        find_export(flowers.home/'nowhere')
    with pytest.raises(PPClsError, match='a program and its weights belong together'):
        find_export(folder, other/'inference.pdiparams')


def test_the_documents_predict_command(flowers):
    folder = flowers.exported
    code, out, err = ppcls('predict', f'-i={flowers.pictures[0]}', f"-m={folder/'model'}", f"-p={folder/'params'}",
                           '--use_gpu=0', '--use_tensorrt=False')
    assert (code, err) == (0, '')
    assert out.startswith(str(flowers.pictures[0]))


def rounded(saved):
    "Predictions of a JSON file without the last digits."
    return [[(top['label'], top['name'], round(top['score'], 4)) for top in row['top']] for row in saved['predictions']]


ENGINES = ['paddle', 'training', 'onnx', 'openvino']


def predict_list(flowers, folder, *argv):
    "(JSON, first column of the CSV) of a command with a list, of which one image is damaged."
    (folder/'broken.jpg').write_bytes(b'no image')
    lines = [f'{file.relative_to(flowers.garden).as_posix()} 0\n' for file in flowers.pictures]
    (folder/'list.txt').write_text(''.join(lines))
    code, out, err = ppcls(*argv, '-i', folder/'list.txt', folder/'broken.jpg', '--data_dir', flowers.garden,
                           '--topk', 4, '--json', folder/'saved.json', '--csv', folder/'saved.csv')
    assert code == 1
    assert 'not an image that can be decoded, or a damaged one (8 bytes)' in err
    assert out.count('\n') == 4
    return json.loads((folder/'saved.json').read_text()), [row[0] for row in csv.reader((folder/'saved.csv').open())]


@pytest.mark.parametrize('engine', ENGINES)
def test_all_engines_predict_what_infer_does(engine, flowers, tmp_path):
    expected, files = predict_list(flowers, tmp_path, 'infer', '-m', flowers.run)
    found, found_files = predict_list(flowers, tmp_path, 'predict', '-m', flowers.exported, '--engine', engine)
    assert rounded(found) == rounded(expected)
    assert found['failed'] == expected['failed']
    assert found_files == files


@pytest.mark.parametrize('argument, message', [
    ('--use_gpu=1', 'use_gpu: '),
    ('--use_tensorrt=True', 'use_tensorrt: '),
    ('--gpu_mem=8000', 'gpu_mem: only with use_gpu'),
    ('--use_fp16=1', 'use_fp16: only with use_gpu'),
    ('--engine=padle', "did you mean 'paddle'"),
    ('--model_name=ResNet18', 'holds MobileNetV1_x0_25'),
    ('--threads=0', 'threads 0'),
    ('--topk=0', '--topk 0')])
def test_an_option_of_predict_that_is_refused(argument, message, flowers):
    if paddle.is_compiled_with_cuda() and 'gpu' in argument:
        pytest.skip('this Paddle supports GPUs')
    check_refused(message, 'predict', '-i', flowers.pictures[0], '-m', flowers.exported, argument)


def test_a_program_may_be_run_as_it_was_written(flowers):
    argv = ['predict', '-i', flowers.pictures[0], '-m', flowers.exported, '--ir_optim=False']
    assert ppcls(*argv)[0] == 0
    check_refused('ir_optim: only with the engine paddle', *argv, '--engine', 'training')


def test_files_without_a_record_need_the_name_of_the_network(flowers, other):
    foreign = flowers.home/'foreign'
    shutil.copytree(other, foreign, ignore=shutil.ignore_patterns('*.yml'))
    program, = other.glob('inference.[jp]*[nl]')
    argv = ['predict', '-i', flowers.pictures[0]]
    name = ['--model_name', 'MobileNetV1_x0_25']
    check_refused('inference.yml is missing', *argv, '-m', foreign)
    expected = ppcls(*argv, '-m', other)[1]
    assert expected.count('  ') == 4
    assert ppcls(*argv, '-m', foreign, *name)[1] == expected
    files = ['-m', foreign/program.name, '-p', foreign/'inference.pdiparams']
    assert ppcls(*argv, *files, *name)[1] == expected


def test_the_speed_is_measured_after_the_predictions(flowers):
    code, out, _ = ppcls('predict', '-i', *flowers.pictures, '-m', flowers.exported, '-b', 4, '--enable_benchmark')
    assert code == 0
    assert 'batch of 4: median ' in out.splitlines()[-1]


def test_labels_of_lists(flowers):
    garden = flowers.garden
    files, labels = labelled_files([garden/'val_list.txt'])
    assert len(files) == len(labels) == 24
    assert labelled_files([garden])[1] is None
    assert labelled_files(files[:2]) == (files[:2], None)
    with pytest.raises(PPClsError, match='label 3, but the network has 3 classes'):
        labelled_files([garden/'val_list.txt'], class_num=3)


def test_quantize_after_training(flowers):
    folder, garden = flowers.home/'eight_bits', flowers.garden
    code, out, err = ppcls('quantize', flowers.exported, '-o', folder, '--images', garden/'train_list.txt',
                           '--test', garden/'val_list.txt', '--runs', 5, '--max_drop', 100)
    assert 'top-1' in out, (code, err)
    assert 'calibration     minmax on 48 images' in out
    assert 'speed, onnx' in out
    assert code == ('slower than before' in err)
    assert read_export(folder).about['int8']['images'] == 48
    assert ppcls('predict', '-m', folder, '--engine', 'onnx', '-i', flowers.pictures[0])[0] == 0
    check_refused('quantized already', 'quantize', folder, '-o', flowers.home/'again', '--images', garden)


def test_a_loss_of_accuracy_is_reported_and_the_network_is_written(flowers, tmp_path):
    garden = flowers.garden
    code, _, err = ppcls('quantize', flowers.exported, '-o', tmp_path/'worse', '--images', garden/'train_list.txt',
                         '--test', garden/'val_list.txt', '--runs', 0, '--max_drop', '-100', '--method', 'percentile')
    assert code == 1
    assert 'ppcls: warning: ' in err
    assert (tmp_path/'worse').is_dir()


@pytest.mark.parametrize('argv, message', [
    (['EXPORTED'], '--images is missing'),
    (['EXPORTED', '--images', 'BROKEN'], 'broken.jpg'),
    (['EXPORTED', '--images', 'GARDEN', '--method', 'minimax'], "did you mean 'minmax'"),
    (['HOME/data', '--images', 'GARDEN'], 'inference.yml is missing'),
    (['EXPORTED', '--qat', '1'], 'not a run folder'),
    (['RUN', '--images', 'GARDEN'], 'export it first'),
    (['EXPORTED', '--images', 'GARDEN', '--lr', '.1'], '--lr: only with --qat'),
    (['EXPORTED', '--count', '0'], 'expected a whole number of 1 or more')])
def test_quantize_refuses(argv, message, flowers, tmp_path):
    (tmp_path/'broken.jpg').write_bytes(b'no image')
    files = dict(EXPORTED=flowers.exported, BROKEN=tmp_path/'broken.jpg', GARDEN=flowers.garden, RUN=flowers.run,
                 HOME=flowers.home)
    for name, file in files.items():
        argv = [argument.replace(name, str(file)) for argument in argv]
    check_refused(message, 'quantize', *argv, '-o', tmp_path/'refused')
    assert not (tmp_path/'refused').exists()


def test_quantize_with_training(flowers):
    folder = flowers.home/'trained_eight_bits'
    code, _, err = ppcls('quantize', flowers.run, '--qat', 1, '-o', folder, '--runs', 0, '--max_drop', 100)
    assert (code, err) == (0, '')
    assert read_export(folder).about['int8']['learned_ranges'] == 28
    assert (flowers.home/'trained_eight_bits_qat'/'last.pdparams').is_file()
