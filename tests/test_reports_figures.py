"""Names of classes, runs and parameters in figures: `$`, and scripts that Matplotlib's own font lacks."""
import warnings

import ppcls_nb  # before paddle: sets the threads
import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.text import Text

from ppcls_nb import figures
from ppcls_nb.data.checks import plot_class_counts
from ppcls_nb.figures import drawable_names, plain_texts
from ppcls_nb.train import Interpretation
from ppcls_nb.train.metrics import Evaluation, TopK
from ppcls_nb.train.pictures import plot_predictions
from ppcls_nb.train.runs import plot_curves

NOBODYS = '\U0010fffd'      # for private use: no font has it
MONEY = ['$5 and $10 notes', r'$\foo$', 'rose']


def make_font(file, letters, name):
    "Write a font with a square for each of `letters`."
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(point)
    pen.closePath()
    glyphs = ['.notdef', *(f'g{n}' for n in range(len(letters)))]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(glyphs)
    font.setupCharacterMap({ord(c): f'g{n}' for n, c in enumerate(letters)})
    font.setupGlyf(dict.fromkeys(glyphs, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (800, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable(dict(familyName=name, styleName='Regular'))
    font.setupOS2()
    font.setupPost()
    font.save(file)


@pytest.fixture
def fonts(tmp_path, monkeypatch):
    "Only Matplotlib's own fonts are installed, and what the returned function adds: add(letters, name)."
    manager = font_manager.fontManager
    own = [font for font in manager.ttflist if font.name.startswith('DejaVu')]
    monkeypatch.setattr(manager, 'ttflist', own)
    monkeypatch.setattr(figures, '_told', set())

    def add(letters, name):
        make_font(tmp_path/f'{name}.ttf', letters, name)
        manager.addfont(tmp_path/f'{name}.ttf')

    yield add
    plt.close('all')


def drawn(artist) -> list:
    "The texts of a figure or axes, drawn without a warning of Matplotlib."
    figure = artist.figure or artist
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        figure.canvas.draw()
    return [text.get_text() for text in artist.findobj(Text) if text.get_text()]


def interpretation(tmp_path, classes, title='') -> Interpretation:
    "The mistakes in six images of three classes."
    files = [str(tmp_path/f'{i}.png') for i in range(6)]
    for i, file in enumerate(files):
        cv2.imwrite(file, np.full((32, 32, 3), 40*i, np.uint8))
    labels, predictions = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 0, 2, 0])
    metric = TopK((1, 2))
    metric.total, metric.correct = 6, {1: 3, 2: 6}
    result = Evaluation(metric, 1., labels, predictions, np.ones((6, 2), bool))
    result.probs, result.losses, result.indices = np.full(6, .5), np.arange(6.), np.arange(6)
    return Interpretation(result, classes, paths=files, title=title)


PLOTS = ['plot_classes', 'plot_confusion', 'plot_top_losses', 'plot_reliability', 'plot_predictions',
         'plot_confused_pairs']


@pytest.mark.parametrize('plot', PLOTS)
def test_dollars_in_class_names_are_drawn_as_they_are(tmp_path, fonts, plot):
    texts = '\n'.join(drawn(getattr(interpretation(tmp_path, MONEY, 'a $5 and $6 garden'), plot)()))
    assert '$5 and $' in texts
    if plot in ('plot_classes', 'plot_confusion', 'plot_top_losses', 'plot_predictions'):
        assert r'$\foo$' in texts


@pytest.mark.parametrize('plot', PLOTS)
def test_chinese_class_names_are_drawn_with_an_installed_font_that_has_them(tmp_path, fonts, plot, capsys):
    fonts('玫瑰花', 'Flowers Sans')
    fonts('玫', 'Another Sans')
    texts = '\n'.join(drawn(getattr(interpretation(tmp_path, ['玫瑰', 'rose 花', 'tulip'], '花'), plot)()))
    assert '玫瑰' in texts or plot == 'plot_reliability' and '花' in texts
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('plot', PLOTS)
def test_names_without_a_font_are_numbers_and_that_is_said_once(tmp_path, fonts, plot, capsys):
    names = [f'{NOBODYS}{NOBODYS}', 'rose', '玫瑰']
    found = interpretation(tmp_path, names, f'the {NOBODYS} garden of 玫瑰')
    for _ in range(2):
        texts = '\n'.join(drawn(getattr(found, plot)()))
    assert NOBODYS not in texts and '玫' not in texts
    if plot != 'plot_reliability':
        assert 'class 0' in texts
    drawable_names(names)
    said = capsys.readouterr().err
    assert said.count('no installed font has') == 1 and said.count('\n') == 1
    assert found.classes == names and found.report()['classes'] == names


def test_as_few_fonts_as_possible_and_no_placeholders(fonts):
    fonts('玫瑰花', 'LastResort')
    fonts('玫', 'A Sans')
    fonts('玫瑰', 'B Sans')
    fonts('花', 'C Sans')
    assert figures.fonts_with('玫瑰') == ['B Sans']
    assert figures.fonts_with('玫瑰花') == ['B Sans', 'C Sans']
    assert drawable_names(['玫花', '玫', 'x']) == ['玫花', '玫', 'x']


def test_numbers_of_images_by_class(fonts):
    for ax in plot_class_counts({'a $1 $2 part': [0, 0, 1, 2]}, [*MONEY[:2], NOBODYS]):
        texts = drawn(ax)
        assert {*MONEY[:2], 'class 2'} <= set(texts)
        assert any(text.startswith('a $1 $2 part') for text in texts)


def test_spaces_and_characters_that_draw_nothing(fonts, capsys):
    names = ['red\trose', 'red\u3000rose', 'ro\u200dse\ufe0f', '\ufeffrose', 'lone \ud800']
    assert drawable_names(names) == ['red rose', 'red rose', 'rose', 'rose', 'class 4']
    for ax in plot_class_counts({'a\tpart': [0, 1, 2, 3, 4]}, names):
        assert {'red rose', 'rose', 'class 4'} <= set(drawn(ax))
    capsys.readouterr()
    drawn(plain_texts(plt.figure().text(0, 0, f'{NOBODYS} and \ud800')))
    assert f'no installed font has \\ud800, {NOBODYS}; they are shown' in capsys.readouterr().err


def test_titles_of_runs(fonts):
    class Run:
        rows, data = [dict(epoch=0, valid_total=4, valid_top1_correct=3)], 'the $x$ data'
        def top1(self): return .75

    texts = drawn(plot_curves({r'$\foo$ run': Run(), NOBODYS: Run(), '_tmp': Run()}))
    assert {r'$\foo$ run 0.750', 'run 1 0.750', '_tmp 0.750'} <= set(texts)
    assert 'validation accuracy on the $x$ data' in texts


def test_predictions_of_arrays(fonts):
    figure = plot_predictions([np.zeros((8, 8, 3), np.uint8)]*2, None, [0, 1], classes=[r'$\foo$', NOBODYS])
    assert {r'$\foo$', 'class 1'} < set(drawn(figure))


def test_grad_cam_names(fonts):
    from ppcls_nb.models import create_model
    from ppcls_nb.train.grad_cam import plot_grad_cam
    images = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    figure = plot_grad_cam(create_model('MobileNetV1_x0_25', class_num=2), images, names=[r'$\foo$', NOBODYS],
                           classes=[0, 1])
    assert {r'$\foo$', 'class 1'} < {text.rpartition(' ')[0] for text in drawn(figure)}


def test_parameters_of_a_search(fonts):
    optuna = pytest.importorskip('optuna')
    from ppcls_nb.transfer.study import plot_search
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction='maximize')
    study.optimize(lambda trial: trial.suggest_float('$a$', 0, 1) + trial.suggest_float('$b^$', 0, 1), 6)
    assert {'$a$', '$b^$'} <= set(drawn(plot_search(study)))


def test_a_search_of_one_trial_fits_its_figure(tmp_path):
    optuna = pytest.importorskip('optuna')
    from ppcls_nb.transfer.study import plot_search
    study = optuna.create_study(direction='maximize')
    study.optimize(lambda trial: trial.suggest_float('lr', 0, 1), 1)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='constrained_layout not applied')
        plot_search(study, tmp_path)


def test_networks_of_a_benchmark(fonts):
    from ppcls_nb.deploy.benchmark import figure
    row = dict(network=r'my $\foo$', pixels=32, threads=1, batch=1, engine='paddle', p25=1., p50=2., p75=3., failed='')
    assert r'my $\foo$, 32 px, 1 thread' in drawn(figure(pd.DataFrame([row])))


def test_logarithmic_axes_keep_their_powers(fonts):
    _, ax = plt.subplots()
    ax.plot([1, 1000], [1, 1000])
    ax.set(xscale='log', yscale='log', title='$')
    plain_texts(ax)
    assert any('mathdefault' in text for text in drawn(ax))
    for label in ax.get_xticklabels():
        assert label.get_parse_math()
    plain_texts(ax)      # now that they are there
    assert any('mathdefault' in text for text in drawn(ax))
    assert all(label.get_parse_math() for label in ax.get_xticklabels())
