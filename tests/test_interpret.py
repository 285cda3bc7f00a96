"Tables and figures of an evaluation, and run folders read back: classes without images, wrong numbers, missing files."
import json

import cv2, matplotlib.pyplot as plt, numpy as np, pytest
from paddle import nn

from ppcls_nb.basics import PPClsError
from ppcls_nb.train.interpret import Interpretation, calibration, confusion_matrix, wilson
from ppcls_nb.train.metrics import Evaluation, TopK, evaluate
from ppcls_nb.train.runs import load_run, paired_difference


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close('all')


def evaluation(labels, predictions, detail=False, indices=None):
    "The `Evaluation` of these predictions; with details, the first is the most confident."
    labels, predictions = np.array(labels), np.array(predictions)
    right = labels == predictions
    probs = np.linspace(.9, .5, len(labels), dtype=np.float32)
    losses = np.where(right, -np.log(probs), 3 + probs).astype(np.float32)
    return Evaluation(TopK(), None, labels, predictions, right[:, None], indices, *((probs, losses) if detail else ()))


@pytest.fixture
def few():
    "Four classes, of which two have images."
    return Interpretation(evaluation([0, 0, 2], [0, 2, 2]), class_num=4)


@pytest.fixture
def many():
    "102 classes, of which every fifth is often taken for the tenth after it."
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(102), 10)
    p = np.where(rng.random(1020) < .1, rng.integers(0, 102, 1020), y)
    p = np.where((y % 5 == 0) & (rng.random(1020) < .5), (y + 10) % 102, p)
    return Interpretation(evaluation(y, p), [f'flower {c}' for c in range(102)], title='made up')


@pytest.fixture
def detailed(tmp_path):
    "Sixty images of three classes with files and details."
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 3, 60), rng.integers(0, 3, 60)
    for i in range(60): cv2.imwrite(str(tmp_path/f'{i}.png'), rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    paths = [tmp_path/f'{i}.png' for i in range(60)]
    return Interpretation(evaluation(labels, predictions, True, np.arange(60)), ['a', 'b', 'c'], paths=paths)


# -- counts and intervals


def test_confusion_of_nothing(): assert confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize('labels, predictions, message', [
    ([3], [0], 'label 3; expected 0…2'), ([-1], [0], 'label -1'), ([0], [5], 'prediction 5; expected 0…2')])
def test_numbers_that_are_no_class(labels, predictions, message):
    with pytest.raises(PPClsError, match=message): confusion_matrix(labels, predictions, 3)


def test_the_interval_of_no_images(): assert np.isnan(wilson(0, 0)).all()


def test_classes_without_images_come_last(few):
    table = few.per_class()
    assert table['class'].tolist() == [0, 2, 1, 3]
    assert table['taken for'].tolist() == ['2', '', '', '']
    assert table.accuracy.isna().sum() == 2
    assert few.most_confused().values.tolist() == [['0', '2', 1, .5]]
    assert few.report()['per_class'][2]['accuracy'] is None
    assert 'ece' not in few.report()


def test_wrong_interpretations(few):
    with pytest.raises(PPClsError, match='3 names for 4 classes'):
        Interpretation(few.result, ['a', 'b', 'c'], class_num=4)
    with pytest.raises(PPClsError, match='no images'): Interpretation(evaluate(nn.Linear(1, 1), []))




# -- figures


def test_bars_of_the_worst_classes(many):
    assert len(many.plot_classes(worst=4).patches) == 4
    assert many.plot_classes().get_title() == 'made up: the 25 worst of 102 classes'


def test_confusion_of_few_classes_has_numbers(detailed):
    ax = detailed.plot_confusion()
    assert len(ax.texts) == (detailed.matrix > 0).sum()
    assert [t.get_text() for t in ax.get_xticklabels()] == ['a', 'b', 'c']


def test_confusion_of_many_classes_has_colours(many):
    ax = many.plot_confusion()
    pixels = ax.images[0].get_array()
    assert not ax.texts
    assert len(ax.get_yticks()) == 102
    assert pixels.shape == (102, 102, 3)
    assert 0 <= pixels.min() <= pixels.max() == 1
    assert many.most_confused(20).images.min() >= 3
    assert many.most_confused(1).label[0].split()[1] in map(str, range(0, 102, 5))


def test_images_with_the_largest_losses(detailed):
    worst = detailed.top_losses(5)
    assert [detailed.classes[c] for c in detailed.result.labels[worst['index']]] == worst.label.tolist()
    assert sum(ax.has_data() for ax in detailed.plot_top_losses(5).axes) == 5


def test_what_needs_details_or_files(many, detailed):
    with pytest.raises(PPClsError, match='detail=True'): many.top_losses()
    with pytest.raises(PPClsError, match='detail=True'): many.calibration()
    with pytest.raises(PPClsError, match='paths=dataset.paths'): Interpretation(detailed.result).plot_top_losses()


# -- calibration


def test_bins_are_closed_above():
    assert calibration([.2, .4, .4001, 1.], [0, 0, 1, 1], 5)[1].images.tolist() == [1, 1, 1, 0, 1]
    assert calibration([0.], [0])[1].images[0] == 1


@pytest.mark.parametrize('probs, right', [([1.2], [1]), ([.5, .5], [1]), ([], []), ([float('nan')], [1])])
def test_wrong_probabilities(probs, right):
    with pytest.raises(PPClsError, match='calibration:'): calibration(probs, right)


# -- a report


def test_a_report(detailed, tmp_path):
    files = detailed.save(tmp_path/'report')
    saved = json.loads(files[0].read_text(encoding='utf-8'))
    assert all(f.read_bytes()[1:4] == b'PNG' for f in files[1:])
    assert np.array(saved['matrix']).tolist() == detailed.matrix.tolist()
    assert saved['ece'] == detailed.calibration()[0]
    assert len(saved['top_losses']) == 50
    assert len(list(files[0].parent.iterdir())) == 5
    assert not plt.get_fignums()


# -- run folders


def run_with(folder, hits, rows=3):
    "A run folder whose last evaluation has these `hits`."
    folder.mkdir()
    lines = [
        dict(epoch=e, data='made up', step=10*(e + 1), seconds=1., valid_total=len(hits),
             valid_top1_correct=int(hits.sum()), valid_top5_correct=len(hits))
        for e in range(rows)]
    (folder/'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    (folder/'config.yaml').write_text('lr: 0.1\n')
    np.savez(folder/'predictions.npz', labels=np.zeros(len(hits), int), predictions=1 - hits, hits=hits[:, None])
    return load_run(folder)


def test_damaged_and_unfinished_runs(tmp_path):
    run = run_with(tmp_path/'a', np.arange(20) < 10)
    (tmp_path/'a'/'predictions.npz').unlink()
    with pytest.raises(PPClsError, match='predictions.npz is missing'): paired_difference(run, load_run(tmp_path/'a'))
    (tmp_path/'a'/'metrics.jsonl').write_text('{}\n{"epo')
    with pytest.raises(PPClsError, match='metrics.jsonl, line 2: not valid JSON'): load_run(tmp_path/'a')
    (tmp_path/'a'/'metrics.jsonl').write_text('')
    with pytest.raises(PPClsError, match='no epoch is finished yet'): load_run(tmp_path/'a')
    (tmp_path/'a'/'metrics.jsonl').write_text('{"epoch": 0}\n')
    with pytest.raises(PPClsError, match='no epoch has a validation'): load_run(tmp_path/'a').top1()
    with pytest.raises(PPClsError, match='no run here'): load_run(tmp_path/'nowhere')


def test_different_images_cannot_be_paired(tmp_path):
    hits = np.arange(20) < 10
    a, b = run_with(tmp_path/'a', hits), run_with(tmp_path/'b', hits[:5])
    with pytest.raises(PPClsError, match='different images'): paired_difference(a, b)
