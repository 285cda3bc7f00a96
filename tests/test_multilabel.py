"""Images with several labels: lists, training, evaluation, predictions and services, and what is mixed up."""
import json

import cv2
import numpy as np
import paddle
import pytest
import yaml
from fastapi.testclient import TestClient
from paddle import nn

from ppcls_nb.basics import PPClsError
from ppcls_nb.cli import main
from ppcls_nb.data.checks import check_list
from ppcls_nb.data.datasets import ListDataset, class_counts
from ppcls_nb.data.imaug import CutmixOperator, MixupOperator
from ppcls_nb.data.lists import list_delimiter, read_list
from ppcls_nb.data.resolve import resolve_data
from ppcls_nb.deploy.export import read_export
from ppcls_nb.deploy.predict import Predictor, ranked_classes
from ppcls_nb.deploy.serve import create_app
from ppcls_nb.deploy.web import network_record
from ppcls_nb.recipe.build import Trainer, build_models
from ppcls_nb.recipe.load import load_config
from ppcls_nb.train import Data, LabelCounts, load_run
from ppcls_nb.train.callbacks.mix import Mix
from ppcls_nb.train.multilabel import average_precision

COLOURS = (0, 0, 255), (0, 255, 0), (255, 0, 0)
NAMES = 'red', 'green', 'blue'


def draw_squares(folder, n=24, delimiter=' '):
    "Images with squares of the colours that their labels say, with train_list.txt, val_list.txt and classes.txt."
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(n):
        labels = [int(i + 1 >> c & 1) for c in range(3)]
        image = np.full((36, 36, 3), 128, np.uint8)
        for c, (there, colour) in enumerate(zip(labels, COLOURS)):
            if there:
                image[12*c:12*c + 12] = colour
        cv2.imwrite(str(folder/f'{i}.png'), image)
        lines.append(f"{i}.png{delimiter}{','.join(map(str, labels))}\n")
    for part in ('train', 'val'):
        (folder/f'{part}_list.txt').write_text(''.join(lines))
    (folder/'classes.txt').write_text(''.join(f'{c} {name}\n' for c, name in enumerate(NAMES)))
    return folder


def recipe_file(tmp_path, folder, delimiter=' ', **changes):
    "A recipe for MobileNetV3_small_x0_35 on the images in `folder`."
    normalize = {'NormalizeImage': dict(order='')}
    reader = dict(batch_size=8, data_dir=str(folder), delimiter=delimiter, transforms=[
        {'DecodeImage': None}, {'ResizeImage': dict(size=32)}, normalize, {'ToCHWImage': None}])
    keys = dict(
        ARCHITECTURE=dict(name='MobileNetV3_small_x0_35'), classes_num=3, multilabel=True, image_shape=[3, 32, 32],
        LEARNING_RATE=dict(function='Cosine', params=dict(lr=0.002)), epochs=1, save_interval=0,
        OPTIMIZER=dict(function='Adam', params={}), model_save_dir=str(tmp_path/'output'), use_gpu=False,
        TRAIN=dict(reader, file_list=str(folder/'train_list.txt')),
        VALID=dict(reader, file_list=str(folder/'val_list.txt')))
    file = tmp_path/'squares.yaml'
    file.write_text(yaml.safe_dump(keys | changes, sort_keys=False))
    return file


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "(folder of the images, run folder) of a network that was trained by the command."
    tmp_path = tmp_path_factory.mktemp('several')
    folder = draw_squares(tmp_path/'images', delimiter='\t')
    file = recipe_file(tmp_path, folder, delimiter='\t', epochs=40)
    assert main(['train', '-c', str(file), '--out', str(tmp_path/'run')]) == 0
    return folder, tmp_path/'run'


@pytest.fixture(scope='module')
def exported(trained, tmp_path_factory):
    "The folder of the exported network."
    folder = tmp_path_factory.mktemp('several_export')/'inference'
    assert main(['export', '-m', str(trained[1]), '-o', str(folder)]) == 0
    return folder


# lists and data

def test_labels_are_read_as_rows_of_zeros_and_ones(tmp_path):
    folder = draw_squares(tmp_path, 4, delimiter='\t')
    paths, labels = read_list(folder/'train_list.txt', delimiter='\t', multilabel=True)
    assert labels.dtype == np.float32
    assert labels.tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]]
    dataset = ListDataset(folder, folder/'train_list.txt', delimiter='\t', multilabel=True)
    assert dataset.class_num == 3
    assert dataset[2][1].tolist() == [1, 1, 0]
    assert class_counts(dataset.labels).tolist() == [2, 2, 1]
    assert list_delimiter(folder/'train_list.txt', ('\t',)) == '\t'
    info = resolve_data(folder, delimiters=('\t',))
    assert (info.class_num, info.counts['train'], info.classes) == (3, 4, list(NAMES))
    assert check_list(folder/'train_list.txt', delimiter='\t', multilabel=True).ok


@pytest.mark.parametrize('line, message', [
    ('0.png 3', "labels '3', expected 3 times 0 or 1"), ('0.png 0,1', "labels '0,1' .2., expected 3 times 0 or 1"),
    ('0.png 0,2,1', "labels '0,2,1', expected 3 times 0 or 1"), ('0.png', 'no label'),
    ('0.png 0,a,1', "label '0,a,1' is not a whole number")])
def test_a_wrong_line_is_named(tmp_path, line, message):
    folder = draw_squares(tmp_path, 2)
    (folder/'train_list.txt').write_text(f'1.png 0,1,0\n{line}\n')
    with pytest.raises(PPClsError, match=f'train_list.txt:2: .*{message}'):
        read_list(folder/'train_list.txt', class_num=3, multilabel=True)
    assert main(['check', str(folder/'train_list.txt'), '--multilabel']) == 1


def test_the_two_kinds_of_lists_are_not_mixed_up(tmp_path, capsys):
    folder = draw_squares(tmp_path/'images', 4)
    file = recipe_file(tmp_path, folder)
    assert main(['train', '-c', str(file), '-o', 'multilabel=False']) == 2
    assert "train_list.txt:1: several labels, '1,0,0', expected one; for several write multilabel: True" in (
        capsys.readouterr().err)
    (folder/'train_list.txt').write_text('0.png 1\n1.png 0\n')
    assert main(['train', '-c', str(file)]) == 2
    assert "train_list.txt:1: labels '1' (1), expected 3 times 0 or 1 with commas" in capsys.readouterr().err


@pytest.mark.parametrize('changes, message', [
    (dict(threshold=1.5), r'squares.yaml:\d+: threshold is 1.5; expected a probability between 0 and 1'),
    (dict(multilabel=False, threshold=0.4), r'squares.yaml:\d+: threshold without multilabel has no effect'),
    (dict(use_distillation=True, ARCHITECTURE=dict(name='ResNet18_distill_ResNet18')), 'multilabel with use_distill')])
def test_settings_that_do_not_fit_are_refused(tmp_path, changes, message):
    file = recipe_file(tmp_path, draw_squares(tmp_path/'images', 4), **changes)
    with pytest.raises(PPClsError, match=message):
        build_models(load_config(file))


# training

def test_a_training_learns_the_labels_and_keeps_them(trained):
    folder, run = trained
    log = load_run(run)
    last = log.rows[-1]
    assert last['valid_mAP'] > 0.9
    assert {'train_f1', 'valid_f1', 'valid_precision', 'valid_recall', 'valid_loss'} <= last.keys()
    assert not any('top1' in key for key in last)
    assert log.best() == max(row['valid_mAP'] for row in log.rows if 'valid_mAP' in row)
    scores, labels = log.predictions['scores'], log.predictions['labels']
    assert scores.shape == labels.shape == (24, 3)
    assert np.mean([average_precision(scores[:, c], labels[:, c]) for c in range(3)]) == pytest.approx(
        last['valid_mAP'], abs=1e-6)


def test_an_interrupted_training_continues_with_the_same_result(tmp_path):
    folder = draw_squares(tmp_path/'images', 12)
    conf = load_config(recipe_file(tmp_path, folder, epochs=3))
    whole = Trainer.from_config(conf, run=tmp_path/'whole', bar=False).fit(3)

    class Stop(Exception):
        pass

    part = Trainer.from_config(conf, run=tmp_path/'part', bar=False)
    part.callbacks.append(type('Halt', (), dict(order=95, after_epoch=lambda self, t: stop(t)))())

    def stop(t):
        if t.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        part.fit(3)
    resumed = Trainer.from_config(conf, run=tmp_path/'part', bar=False).fit(3)
    for key in ('train_loss', 'valid_mAP', 'valid_loss', 'train_f1'):
        assert resumed.history[-1][key] == whole.history[-1][key], key


@pytest.mark.parametrize('op', (MixupOperator(1.), CutmixOperator(1.)), ids=('mixup', 'cutmix'))
def test_mixed_labels_are_weighted_means_of_the_rows(op):
    images = paddle.to_tensor(np.random.default_rng(0).random((4, 3, 8, 8), np.float32))
    labels = paddle.to_tensor([[1., 0., 1.], [0., 1., 1.], [0., 0., 0.], [1., 1., 1.]])
    _, a, b, lam = op.mix(images, labels, np.random.default_rng(3))
    mixed, target = Mix(op, 3)(images, labels, np.random.default_rng(3))
    np.testing.assert_allclose(target.numpy(), lam*a.numpy() + (1 - lam)*b.numpy(), atol=1e-6)


def test_a_recipe_may_mix_images_with_several_labels(tmp_path):
    folder = draw_squares(tmp_path/'images', 8)
    conf = load_config(recipe_file(tmp_path, folder, use_mix=True, ls_epsilon=0.1), {
        'TRAIN.mix': [{'MixupOperator': {'alpha': 0.2}}]})
    trainer = Trainer.from_config(conf, bar=False).fit(1)
    assert np.isfinite(trainer.history[0]['train_loss'])
    assert isinstance(trainer.metric, LabelCounts)


def test_counts_of_batches_add_up():
    draw = np.random.default_rng(1)
    logits, labels = draw.normal(size=(30, 4)).astype('float32'), (draw.random((30, 4)) < .3).astype('float32')
    whole, parts = LabelCounts(.6), LabelCounts(.6)
    whole.add(paddle.to_tensor(logits), paddle.to_tensor(labels))
    for start in range(0, 30, 7):
        parts.add(paddle.to_tensor(logits[start:start+7]), paddle.to_tensor(labels[start:start+7]))
    found = 1/(1 + np.exp(-logits)) >= .6
    expected = [(found*labels).sum(0), (found*(1 - labels)).sum(0), (~found*labels).sum(0)]
    assert whole.counts.tolist() == parts.counts.tolist() == np.array(expected).tolist()
    assert (whole - whole).total == 0


def test_a_trainer_asks_the_model_whether_an_image_has_several_labels():
    class Flat(nn.Layer):
        threshold = 0.3

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 2)

        def forward(self, images):
            return self.fc(images.flatten(1))

    model = Flat()
    batch = [(paddle.rand([4, 3, 2, 2]), paddle.to_tensor([[1., 0.]]*4))]
    trainer = Trainer(model, Data(batch, batch, 2, 'drawn'), nn.BCEWithLogitsLoss(),
                      paddle.optimizer.SGD(0.1, model.parameters()))
    trainer.fit(1)
    assert trainer.metric.threshold == trainer.valid.metric.threshold == 0.3


# evaluation, predictions, services

def test_an_evaluation_agrees_with_the_log_and_writes_a_table(trained, tmp_path, capsys):
    folder, run = trained
    assert main(['eval', '--run', str(run), '--weights', 'last', '--report', str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert 'mAP:' in said
    assert ', the same' in said
    rows = json.loads((tmp_path/'classes.json').read_text())
    assert [row['name'] for row in rows] == list(NAMES)
    assert all(0 <= row['f1'] <= 1 and row['images'] == 12 for row in rows)


def labels_of(rows):
    return [[entry['name'] for entry in row['top']] for row in rows]


def test_all_commands_answer_with_all_labels_over_the_threshold(trained, exported, tmp_path, capsys):
    folder, run = trained
    record = read_export(exported)
    assert record.threshold == 0.5
    assert main(['infer', '-m', str(run), '-i', str(folder/'val_list.txt'), '--json', str(tmp_path/'a.json')]) == 0
    assert main(['predict', '-m', str(exported), '-i', str(folder/'val_list.txt'), '--delimiter', '\\t', '--json',
                 str(tmp_path/'b.json')]) == 0
    inferred, predicted = (json.loads((tmp_path/name).read_text())['predictions'] for name in ('a.json', 'b.json'))
    scores = load_run(run).predictions['scores']
    assert labels_of(inferred) == labels_of(predicted)
    assert max(map(len, labels_of(inferred))) > 1, 'several for an image'
    assert len(inferred[6]['top']) == (1/(1 + np.exp(-Predictor(exported).logits(
        Predictor(exported).preprocess([folder/'6.png'])))) >= .5).sum()
    assert scores.shape == (24, 3)
    with TestClient(create_app(exported)) as client:
        with open(folder/'6.png', 'rb') as image:
            answer = client.post('/predict?topk=1', files={'image': image}).json()
    assert labels_of(answer['predictions']) == labels_of([predicted[6]])


def test_an_export_with_probabilities_gives_sigmoids(trained, exported, tmp_path):
    folder, run = trained
    assert main(['export', '-m', str(run), '-o', str(tmp_path/'p'), '--softmax', '--onnx']) == 0
    plain, activated = Predictor(exported, 'paddle'), Predictor(tmp_path/'p', 'onnx')
    images = plain.preprocess([folder/'0.png', folder/'6.png'])
    np.testing.assert_allclose(activated.logits(images), plain.probabilities(images), atol=1e-4)
    np.testing.assert_allclose(plain.probabilities(images), 1/(1 + np.exp(-plain.logits(images))), atol=1e-6)


def test_pages_that_answer_with_one_label_refuse(exported):
    with pytest.raises(PPClsError, match='several labels an image'):
        network_record(read_export(exported))


def test_ranked_classes():
    p = np.array([.2, .9, .6])
    assert ranked_classes(p, 1) == [1]
    assert ranked_classes(p, 1, .5) == [1, 2]
    assert ranked_classes(p, 5, .95) == []
