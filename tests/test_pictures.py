"Pictures of an evaluation, and Grad-CAM: few images, long names, every family of the zoo, derivatives measured."
import cv2, matplotlib.pyplot as plt, numpy as np, paddle, pytest
from paddle import nn

from networks import smallest
from ppcls_nb.basics import PPClsError
from ppcls_nb.data.imaug.standard import DecodeImage, NormalizeImage, ResizeImage, ToCHWImage
from ppcls_nb.models import build_model
from ppcls_nb.models.layers import ConvBN
from ppcls_nb.models.network import FeatureNet, Network, computes_in_cnhw
from ppcls_nb.models.small_conv import Conv2D
from ppcls_nb.train import Evaluation, Interpretation, TopK, grad_cam, plot_grad_cam, plot_predictions
from ppcls_nb.train.grad_cam import as_picture, class_map, map_weights, overlay, prepare_pictures
from ppcls_nb.train.pictures import RIGHT, UNKNOWN, WRONG, shorten

LABELS, PREDICTIONS = [0, 1, 2]*2 + [0, 1], [0, 1, 1]*2 + [2, 1]


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close('all')


def drawn(figure): return [ax for ax in figure.axes if ax.has_data()]


def titles(figure): return [ax.get_title() for ax in drawn(figure)]


# -- pictures of an evaluation


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "Eight image files of several sizes."
    folder, rng = tmp_path_factory.mktemp('files'), np.random.default_rng(0)
    for i in range(8):
        cv2.imwrite(str(folder/f'{i}.png'), rng.integers(0, 256, (20 + i, 30 - i, 3), dtype=np.uint8))
    return [folder/f'{i}.png' for i in range(8)]


def interpretation_of(files, labels, predictions, classes, detail=True):
    "The `Interpretation` of these answers, the first the surest."
    labels, predictions = np.array(labels), np.array(predictions)
    probs = np.linspace(.9, .5, len(labels), dtype=np.float32)
    losses = np.where(labels == predictions, -np.log(probs), 3).astype(np.float32)
    details = (probs, losses) if detail else ()
    hits, indices = (labels == predictions)[:, None], np.arange(len(labels))
    result = Evaluation(TopK(), None, labels, predictions, hits, indices, *details)
    return Interpretation(result, classes, paths=files)


@pytest.mark.parametrize('n, columns, expected', [(1, 6, 1), (7, 3, 7), (8, 1, 8), (100, 6, 8)])
def test_as_many_predictions_as_there_are(files, n, columns, expected):
    interp = interpretation_of(files, LABELS, PREDICTIONS, ['a', 'b', 'c'])
    assert len(titles(interp.plot_predictions(n, columns=columns))) == expected


def test_titles_say_answer_probability_and_truth(files):
    name = 'a name of a class that no picture is wide enough for'
    interp = interpretation_of(files[:3], [0, 1, 0], [0, 0, 1], [name, 'b'])
    axes = drawn(interp.plot_predictions())
    short = shorten(name, 20)
    assert [ax.get_title() for ax in axes] == [f'{short} 0.90', f'{short} 0.70\nis b', f'b 0.50\nis {shorten(name)}']
    assert [ax.title.get_color() for ax in axes] == [RIGHT, WRONG, WRONG]
    assert len(short) <= 20
    assert len(shorten(name)) <= 24
    assert shorten(name)[-1] == '…'
    plain = interpretation_of(files[:3], [0, 1, 0], [0, 0, 1], None, detail=False)
    assert titles(plain.plot_predictions()) == ['0', '0\nis 1', '1\nis 0']


def test_the_sample_depends_on_the_seed_alone(files):
    interp = interpretation_of(files, range(8), range(8), None)
    assert titles(interp.plot_predictions(4, seed=3)) == titles(interp.plot_predictions(4, seed=3))
    assert len({tuple(titles(interp.plot_predictions(4, seed=seed))) for seed in range(5)}) > 1


def test_answers_without_labels_for_arrays_and_files(files):
    array = np.zeros((5, 6, 3), np.uint8)
    axes = drawn(plot_predictions([array, files[0]], None, [1, 0]))
    assert [ax.get_title() for ax in axes] == ['1', '0']
    assert {ax.title.get_color() for ax in axes} == {UNKNOWN}
    assert axes[0].images[0].get_array().shape == (5, 6, 3)


@pytest.mark.parametrize('arguments, message', [
    (([], [], []), '0 images'), ((['a'], [0, 1], [0]), '2 labels'), ((['a'], None, [0], [.5, .5]), '2 probabilities'),
    ((['a'], [0], [2], None, ['x', 'y']), '2 names'), ((['a'], [-1], [0], None, ['x', 'y']), 'classes -1 to 0'),
    ((['a'], [0], [0], None, None, 0), 'n=0'), ((['a'], [0], [0], None, None, 1, 0), 'columns=0')])
def test_wrong_answers_are_refused(arguments, message):
    with pytest.raises(PPClsError, match=message): plot_predictions(*arguments)


def test_confused_pairs_add_up_both_directions(files):
    answers = [0, 0, 1, 1, 1, 2, 2, 3], [0, 1, 0, 0, 1, 3, 2, 3]
    interp = interpretation_of(files, *answers, None)
    assert interp.confused_pairs().values.tolist() == [[1, 0, 2, 1], [2, 3, 1, 0]]
    assert len(interp.confused_pairs(1)) == 1
    assert [p.tolist() for p in interp.pair_examples(1, 0)] == [[2, 3], [0, 1]]
    first = ['1\n→ 0 0.79', '1\n→ 0 0.73', '0\nrecognised 0.90', '0\n→ 1 0.84']
    assert titles(interp.plot_confused_pairs(1)) == first
    assert len(titles(interp.plot_confused_pairs())) == 6               # the second pair has one image on each side
    plain = interpretation_of(files, *answers, None, detail=False)
    assert titles(plain.plot_confused_pairs(1))[0] == '1\n→ 0'


def test_a_class_without_images_has_none_to_show(files):
    interp = interpretation_of(files[:2], [0, 0], [1, 0], ['x'*60, 'y'*60])
    assert len(titles(interp.plot_confused_pairs())) == 1


def test_no_confusion_is_said_in_a_sentence(files):
    interp = interpretation_of(files[:2], [0, 1], [0, 1], None)
    figure = interp.plot_confused_pairs()
    assert not drawn(figure)
    assert 'No image' in figure.get_suptitle()
    assert not len(interp.confused_pairs())


@pytest.mark.parametrize('method, arguments', [
    ('plot_predictions', ()), ('plot_confused_pairs', ()), ('plot_grad_cam', (None, ()))])
def test_without_files_there_are_no_pictures(files, method, arguments):
    interp = interpretation_of(None, [0, 1], [1, 1], None)
    with pytest.raises(PPClsError, match=f'{method}: .*paths=dataset.paths'): getattr(interp, method)(*arguments)


# -- Grad-CAM


class Two(Network):
    "Two stages; the head has a hidden layer and dropout."
    strides, channels, cnhw = (2, 4), (8, 12), True

    def __init__(self, class_num=5):
        super().__init__()
        self.one, self.two = ConvBN(3, 8, 3, 2, act='swish'), ConvBN(8, 12, 3, 2, act='swish')
        self.hidden, self.drop, self.fc = nn.Linear(12, 16), nn.Dropout(.5), nn.Linear(16, class_num)

    def features(self, x):
        one = self.one(x)
        return [one, self.two(one)]

    def logits(self, x): return self.fc(self.drop(nn.functional.silu(self.hidden(x.mean([2, 3])))))


@pytest.fixture
def two():
    paddle.seed(1)
    return Two()


def rest_of(model, maps, stage):
    "The logits that the rest of `Two` makes of the maps of a stage."
    x = paddle.to_tensor(maps)
    return model.logits(model.two(x) if stage == 0 else x).numpy()


@pytest.mark.parametrize('stage', [0, 1])
def test_weights_are_the_measured_derivatives(two, stage):
    two.eval()
    images, classes = np.random.default_rng(0).standard_normal((3, 3, 16, 16), np.float32), np.array([4, 0, 2])
    maps, weights, logits = map_weights(two, images, classes, stage)
    e, pixels = .05, maps[0, 0].size
    for k in range(maps.shape[1]):
        raised, lowered = maps.copy(), maps.copy()
        raised[:, k] += e
        lowered[:, k] -= e
        change = (rest_of(two, raised, stage) - rest_of(two, lowered, stage))[range(3), classes]
        np.testing.assert_allclose(weights[:, k], change/(2*e*pixels), atol=2e-5)
    np.testing.assert_allclose(logits, rest_of(two, maps, stage), atol=1e-5)
    assert np.abs(weights).max() > 1e-3


@pytest.mark.parametrize('stage', [0, 1])
def test_a_map_that_is_scaled_changes_the_logit_by_map_times_gradient(two, stage):
    two.eval()
    images = np.random.default_rng(0).standard_normal((2, 3, 16, 16), np.float32)
    maps, weights, _ = map_weights(two, images, 1, stage)
    flat = np.broadcast_to(maps.mean((2, 3), keepdims=True), maps.shape).copy()   # in constant maps the means suffice
    e, x = 1e-2, paddle.to_tensor(flat)
    x.stop_gradient = False
    gradient, = paddle.grad(two.logits(two.two(x) if stage == 0 else x)[:, 1].sum(), x)
    expected = (gradient.numpy().mean((2, 3))*flat[:, :, 0, 0])*maps[0, 0].size
    for k in range(maps.shape[1]):
        factor = np.ones((1, maps.shape[1], 1, 1), np.float32)
        factor[0, k] += e
        up, down = rest_of(two, flat*factor, stage), rest_of(two, flat*(2 - factor), stage)
        np.testing.assert_allclose((up - down)[:, 1]/(2*e), expected[:, k], atol=1e-4)


def test_the_model_is_as_before(two):
    two.train()
    two.one.eval()
    for p in two.two.parameters(): p.stop_gradient = True
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16), np.float32)
    two(paddle.to_tensor(images)).sum().backward()
    state = {k: v.numpy().copy() for k, v in two.state_dict().items()}
    modes = [layer.training for layer in two.sublayers(include_self=True)]
    gradients = {k: None if p.grad is None else p.grad.numpy().copy() for k, p in two.named_parameters()}
    frozen = [p.stop_gradient for p in two.parameters()]
    for stage in (0, -1):
        a, b = (grad_cam(two, images, stage=stage) for _ in range(2))
        assert (a == b).all()                                                     # without dropout
    with pytest.raises(PPClsError): grad_cam(two, images, 99)
    assert [layer.training for layer in two.sublayers(include_self=True)] == modes
    assert [p.stop_gradient for p in two.parameters()] == frozen
    for k, p in two.named_parameters():
        assert (p.grad is None) == (gradients[k] is None)
        assert p.grad is None or (p.grad.numpy() == gradients[k]).all()
    for k, v in two.state_dict().items(): assert (v.numpy() == state[k]).all()


def test_frozen_networks_and_no_grad_and_both_orders_of_axes(two, monkeypatch):
    two.eval()
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16), np.float32)
    assert computes_in_cnhw(two, paddle.to_tensor(images))
    expected = [grad_cam(two, images, stage=stage) for stage in (0, 1)]
    alone = np.concatenate([grad_cam(two, images[i:i + 1]) for i in range(4)])
    for p in two.parameters(): p.stop_gradient = True
    with paddle.no_grad(): frozen = [grad_cam(two, paddle.to_tensor(images), stage=stage) for stage in (0, 1)]
    monkeypatch.setattr(Conv2D, 'fast', False)
    plain = [grad_cam(two, images, stage=stage) for stage in (0, 1)]
    np.testing.assert_allclose(alone, expected[1], atol=1e-4)
    for stage in (0, 1):
        np.testing.assert_allclose(frozen[stage], expected[stage], atol=1e-4)
        np.testing.assert_allclose(plain[stage], expected[stage], atol=1e-4)


def test_classes_by_default_one_for_all_and_one_each(two):
    images = np.random.default_rng(0).standard_normal((3, 3, 16, 16), np.float32)
    predicted = map_weights(two, images)[2].argmax(1)
    assert (grad_cam(two, images) == grad_cam(two, images, predicted)).all()
    assert (grad_cam(two, images, 2) == grad_cam(two, images, [2, 2, 2])).all()


@pytest.mark.parametrize('shape, more, message', [
    ((3, 16, 16), {}, r'images of shape \(3, 16, 16\)'), ((0, 3, 16, 16), {}, 'N of 1 or more'),
    ((1, 3, 16, 16), dict(stage=2), 'no stage 2'), ((1, 3, 16, 16), dict(stage=.5), 'no stage 0.5'),
    ((2, 3, 16, 16), dict(classes=[1, 5]), 'classes 1 to 5; expected 0…4'),
    ((2, 3, 16, 16), dict(classes=-1), 'classes -1'),
    ((2, 3, 16, 16), dict(classes=[.5, 1.]), 'float64'), ((2, 3, 16, 16), dict(classes=[1]), 'each of 2 images')])
def test_wrong_arguments(two, shape, more, message):
    with pytest.raises(PPClsError, match=message): grad_cam(two, np.zeros(shape), **more)


@pytest.mark.parametrize('model', [nn.Linear(2, 2), FeatureNet(Two())], ids=['layer', 'features'])
def test_a_model_without_stages_is_refused(model):
    with pytest.raises(PPClsError, match='has no stages; expected a Network'): grad_cam(model, np.zeros((1, 3, 16, 16)))


def test_a_map_without_anything_for_the_class_is_zero():
    heat = class_map(np.ones((2, 1, 2, 2), np.float32), np.array([[-1.], [2.]], np.float32), (5, 7))
    assert heat.shape == (2, 5, 7)
    assert heat.dtype == np.float32
    assert not heat[0].any()
    assert (heat[1] == 1).all()


def smaller(name):
    "That network with fewer hidden neurons where it has an argument for them."
    return build_model(name, class_num=6, **(dict(hidden=32) if name.startswith(('AlexNet', 'VGG')) else {}))


@pytest.mark.parametrize('name', smallest())
def test_every_family_has_maps_of_all_its_stages(name):
    paddle.seed(0)
    model = smaller(name)
    size = (80, 96) if 'ception' in name else (64, 80)
    images = np.random.default_rng(0).standard_normal((2, 3, *size), np.float32)
    for stage in (None, 0):
        maps, weights, logits = map_weights(model, images, 1, stage)
        assert maps.shape[:2] == weights.shape == (2, model.channels[model.cam_stage if stage is None else stage])
        assert logits.shape == (2, 6)
        assert np.isfinite(weights).all()
        assert weights.any() or 'Squeeze' in name                                # whose logits may be 0, behind a ReLU
        heat = class_map(maps, weights, size)
        assert heat.shape == (2, *size)
        assert heat.dtype == np.float32
        assert np.isfinite(heat).all()
        assert heat.min() >= 0
        assert all(h.max() in (0, 1) for h in heat)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    with paddle.no_grad(): expected = model(paddle.to_tensor(images)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_a_stage_that_the_logits_do_not_depend_on_is_refused():
    model = build_model('DeiT_tiny_patch16_224', class_num=2)
    with pytest.raises(PPClsError, match='do not depend on the maps of stage 3; expected 0 to 2'):
        grad_cam(model, np.zeros((1, 3, 32, 32), np.float32), stage=-1)


# -- pictures with maps


def test_pictures_are_what_was_there_before_normalizing(files):
    ops = [DecodeImage(), ResizeImage(size=[16, 12]), NormalizeImage(order=''), ToCHWImage()]
    late = [DecodeImage(), ResizeImage(size=[16, 12]), ToCHWImage(), NormalizeImage(order='chw')]
    images, pictures = prepare_pictures(files[:3], ops)
    again, same = prepare_pictures(files[:3], late)
    assert images.shape == (3, 3, 12, 16)
    assert images.dtype == np.float32
    assert all(p.shape == (12, 16, 3) and p.dtype == np.uint8 for p in pictures)
    np.testing.assert_allclose(images, again, atol=1e-6)
    assert all((a == b).all() for a, b in zip(pictures, same))
    as_float = lambda x, rng: x.astype(np.float32)
    plain, stretched = prepare_pictures(files[:3], [*ops[:2], ToCHWImage(), as_float])
    assert all((s.min(), s.max()) == (0, 255) and s.shape == (12, 16, 3) for s in stretched)


def test_pictures_are_rgb_for_a_network_that_reads_bgr(files):
    rest = [ResizeImage(size=[16, 12]), NormalizeImage(order=''), ToCHWImage()]
    images, pictures = prepare_pictures(files[:3], [DecodeImage(), *rest])
    swapped, same = prepare_pictures(files[:3], [DecodeImage(to_rgb=False), *rest])
    assert not np.allclose(images, swapped, atol=1e-3)
    assert all((a == b).all() for a, b in zip(pictures, same))


def test_grey_and_flat_images_have_pictures():
    assert as_picture(np.full((1, 4, 5), .5, np.float32)).tolist() == np.zeros((4, 5, 3)).tolist()
    assert as_picture(np.full((4, 5, 1), 7, np.uint8)).tolist() == np.full((4, 5, 3), 7).tolist()


def test_overlay_takes_maps_of_any_size():
    picture = np.full((9, 13, 3), 100, np.uint8)
    assert (overlay(picture, np.zeros((3, 3), np.float32)) == 100).all()
    hot = overlay(picture, np.ones((3, 4), np.float32))
    assert hot.shape == picture.shape
    assert hot.dtype == np.uint8
    assert hot[0, 0, 0] > hot[0, 0, 2]


def test_grad_cam_figures(two, files):
    ops = [DecodeImage(), ResizeImage(size=[16, 16]), NormalizeImage(order=''), ToCHWImage()]
    images, pictures = prepare_pictures(files[:3], ops)
    axes = drawn(plot_grad_cam(two, images, pictures, [0, 1, 2], list('abcde'), [0, 0, 2]))
    assert [ax.get_title().split()[0] for ax in axes] == ['a', 'b', 'c']
    assert [ax.title.get_color() for ax in axes] == [RIGHT, WRONG, RIGHT]
    interp = interpretation_of(files, LABELS, PREDICTIONS, list('abcde'))
    for n, expected in ((1, 3), (3, 9), (100, 24)): assert len(titles(interp.plot_grad_cam(two, ops, n))) == expected
    first = titles(interp.plot_grad_cam(two, ops, 1))
    assert first == ['c', '→ b 0.79', 'c 0.05']
    plain = interpretation_of(files, LABELS, PREDICTIONS, list('abcde'), detail=False)
    with pytest.raises(PPClsError, match='detail=True'): plain.plot_grad_cam(two, ops)


@pytest.mark.parametrize('model, detail, names', [
    (Two(), True, ['predictions', 'confused_pairs', 'grad_cam']), (Two(), False, ['predictions', 'confused_pairs']),
    (nn.Linear(2, 2), True, ['predictions', 'confused_pairs']), (None, True, ['predictions', 'confused_pairs'])])
def test_a_folder_of_pictures(files, tmp_path, model, detail, names):
    ops = [DecodeImage(), ResizeImage(size=[16, 16]), NormalizeImage(order=''), ToCHWImage()]
    interp = interpretation_of(files, LABELS, PREDICTIONS, list('abcde'), detail)
    assert [f.stem for f in interp.save_pictures(tmp_path/'a'/'b', model, ops)] == names
    assert sorted(f.name for f in (tmp_path/'a'/'b').iterdir()) == sorted(f'{n}.png' for n in names)
    assert not plt.get_fignums()
