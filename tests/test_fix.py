"The Fix strategy on networks of the zoo: what moves, what does not, the file it ends in, and what is refused."
from pathlib import Path

import cv2, numpy as np, paddle, pytest
from paddle import nn

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.datasets import ImageDataset
from ppcls_nb.data.imaug.presets import eval_ops
from ppcls_nb.data.loader import make_loader
from ppcls_nb.distill.fix import Fix, _probe, fix_train, freeze_but_classifier, head_features, head_of, last_batch_norm
from ppcls_nb.models import create_model, lr_table, set_lr_mult
from ppcls_nb.train import CELoss, Data, RunFolder, Trainer, build_optimizer, evaluate, save_weights

# name of a network and of its classifier: behind dropout, with stochastic depth, the main one of three heads
NETWORKS = dict(MobileNetV3_small_x0_35='fc', EfficientNetB0_small='_fc', GoogLeNet='_fc_out')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    "Twelve noisy pictures of 80 pixels in three classes."
    folder, rng = tmp_path_factory.mktemp('fix'), np.random.default_rng(0)
    for i in range(12): cv2.imwrite(str(folder/f'{i}.png'), rng.integers(0, 256, (80, 80, 3), np.uint8))
    return ImageDataset([str(folder/f'{i}.png') for i in range(12)], np.arange(12) % 3, eval_ops(64, 64), class_num=3)


def network(name):
    paddle.seed(0)
    return create_model(name, class_num=3)


def arrays(model): return {k: v.numpy().copy() for k, v in model.state_dict().items()}


@pytest.mark.parametrize('name', NETWORKS)
def test_only_the_classifier_moves(name, images):
    model, head = network(name), NETWORKS[name]
    before = arrays(model)
    assert head_of(model)[0] == head
    t = fix_train(model, images, images, trained_at=56, epochs=2, lr=.01, batch_size=4, bar=False, cache=False)
    assert {k for k, v in arrays(model).items() if (v != before[k]).any()} == {f'{head}.weight', f'{head}.bias'}
    assert t.model is model
    assert t.valid.metric.total == 12
    assert t.images.shape[2:] == [64, 64]


def test_fast_and_slow_agree(images):
    heads = []
    for cache in (True, False):
        model = network('EfficientNetB0_small')          # dropout and stochastic depth, both off
        fix_train(model, images, trained_at=64, size=72, epochs=2, lr=.1, batch_size=5, seed=3, cache=cache, bar=False)
        heads.append([p.numpy() for p in head_of(model)[1].parameters()])
    for fast, slow in zip(*heads): np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-6)


def test_modes_are_left_as_found(images):
    model = network('MobileNetV3_small_x0_35')
    model.train(); model.blocks.eval()
    modes = [m.training for m in model.sublayers(include_self=True)]
    before = arrays(model)
    features = head_features(model, make_loader(images, 5), bar=False)
    assert last_batch_norm(model, 64)
    assert [m.training for m in model.sublayers(include_self=True)] == modes
    assert all((v == before[k]).all() for k, v in arrays(model).items())
    assert len(features) == 12


def test_a_run_folder_keeps_the_network(images, tmp_path):
    model, trained = network('MobileNetV3_small_x0_35'), tmp_path/'trained.pdparams'
    save_weights(trained, model)
    fix_train(model, images, images, trained_at=64, size=64, epochs=1, batch_size=4, cache=False,
              callbacks=[RunFolder(tmp_path/'run')], bar=False)
    again = create_model('MobileNetV3_small_x0_35', class_num=3, pretrained=tmp_path/'run'/'last.pdparams')
    loader = make_loader(images, 4)
    assert again.load_report.complete
    assert (evaluate(again, loader).predictions == evaluate(model, loader).predictions).all()
    assert all(not p.stop_gradient for p in again.fc.parameters())
    assert not next(iter(again.parameters())).stop_gradient


def test_a_resumed_run_ends_the_same(images, tmp_path):
    def run(epochs, folder):
        model = network('MobileNetV3_small_x0_35')
        fix = Fix(model, batch_norm=True)
        data = Data(make_loader(images, 4, shuffle=True), None, 3, 'noise')
        Trainer(model, data, CELoss(), build_optimizer('Momentum', model.parameters(), .01, momentum=.9),
                [fix, RunFolder(tmp_path/folder)], topk=(1, 3)).fit(epochs)
        return arrays(model)
    straight, _, resumed = run(2, 'a'), run(1, 'b'), run(2, 'b')
    assert all((v == resumed[k]).all() for k, v in straight.items())


def test_refused(images, tmp_path):
    model, labels = network('MobileNetV3_small_x0_35'), ImageDataset(images.paths, images.labels + 5)
    for arguments, words in [(dict(train=images, size=63), 'size 63: expected at least 64'),
                             (dict(train=labels), 'label 7: the network has 3 classes, expected 0…2'),
                             (dict(train=images, valid=labels), 'label 7'),
                             (dict(train=images, batch_norm='bn'), 'batch norm'),
                             (dict(train=images, batch_norm=True, cache=True), 'cache with batch_norm'),
                             (dict(train=images, callbacks=[RunFolder(tmp_path)]), 'cache with a RunFolder')]:
        with pytest.raises(PPClsError, match=words): fix_train(model, trained_at=64, bar=False, **arguments)
    model.classifier = 'head'
    with pytest.raises(PPClsError, match="it has no layer 'head'"): freeze_but_classifier(model)
    with pytest.raises(PPClsError, match='is not a Linear layer whose outputs are the logits'):
        head_features(network('SqueezeNet1_1'), make_loader(images, 4), bar=False)
    Path(images.paths[0]).write_bytes(b'no image')
    with pytest.raises(PPClsError, match='0.png'):
        fix_train(network('MobileNetV3_small_x0_35'), images, trained_at=64, size=64, bar=False)


def test_the_optimizer_is_made_after_the_fix(images):
    model = network('MobileNetV3_small_x0_35')
    optimizer = build_optimizer('Momentum', model.parameters(), 0.1)
    with pytest.raises(PPClsError, match=r'make Fix\(model\) first'):
        Trainer(model, Data(make_loader(images, 4), None, 3, 'noise'), CELoss(), optimizer, [Fix(model)]).fit(1)


def test_an_image_that_the_network_cannot_take():
    rigid = nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 5))
    with pytest.raises(PPClsError, match='Sequential cannot take images of 40 pixels'): _probe(rigid, 40)


def test_freezing_scales_learning_rates_and_can_be_undone():
    paddle.seed(0)
    model = create_model('ResNet18_vd', class_num=5, lr_mult_list=[0.1, 0.1, 0.2, 0.2, 0.3])
    learning = freeze_but_classifier(model)
    assert [tuple(p.shape) for p in learning] == [(512, 5), (5,)]
    assert [p for p in model.parameters() if not p.stop_gradient] == learning
    assert len(freeze_but_classifier(model, batch_norm=True)) == 4
    assert (lr_table(model).multiplier > 0).tolist() == [False, False, True, True]        # stem, blocks, the norm, fc
    with pytest.raises(PPClsError, match="did you mean 'blocks.7.conv1.bn'"):
        freeze_but_classifier(model, 'blocks.7.conv1.bm')
    assert set(set_lr_mult(model, {'*': 1}).multiplier) == {1}
