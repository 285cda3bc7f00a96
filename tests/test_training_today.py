"""Training of today: each key does what its paper says, all of them together resume exactly, and each is refused where
it cannot work."""
import json

import numpy as np
import paddle
import pytest
from paddle import nn

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.imaug import build_ops, describe_ops
from ppcls_nb.data.prepare import prepare_data
from ppcls_nb.models import create_model, layer_groups, set_drop_path, set_grad_checkpointing, set_layer_decay
from ppcls_nb.models.grad_checkpointing import checkpoint_blocks
from ppcls_nb.models.layers import is_weight, scale_lr
from ppcls_nb.recipe.build import Trainer, load_config
from ppcls_nb.recipe.data import build_loader, use_data
from ppcls_nb.train import BCELoss, build_optimizer, load_run, load_state

SMALLEST = {'DenseNet': 'DenseNet121', 'EfficientNet': 'EfficientNetLite0', 'ResNet': 'ResNet18',
            'ResNet_vd': 'ResNet18_vd', 'SE_ResNet_vd': 'SE_ResNet18_vd', 'ResNeXt': 'ResNeXt50_32x4d',
            'MobileNetV3': 'MobileNetV3_small_x0_35', 'ShuffleNetV2': 'ShuffleNetV2_x0_25', 'HRNet': 'HRNet_W18_C',
            'SqueezeNet': 'SqueezeNet1_1', 'VGG': 'VGG11', 'MobileNetV1': 'MobileNetV1_x0_25',
            'Xception_deeplab': 'Xception41_deeplab', 'GoogLeNet': 'GoogLeNet'}
# the families after 2020, with the number of their layers by depth: stem, blocks, layers between stages, head
NEWER = {'PPLCNet_x0_25': 1 + 13 + 1, 'PPLCNetV2_small': 2 + 10 + 1, 'PPHGNet_tiny': 3 + 5 + 3 + 1,
         'PPHGNetV2_B0': 1 + 5 + 3 + 1, 'MobileNetV4_conv_small': 1 + 17 + 1, 'GhostNet_x0_5': 1 + 16 + 1,
         'RepVGG_A0': 1 + 21 + 1, 'ResNeSt50_fast_1s1x64d': 1 + 16 + 1, 'RegNetX_200MF': 1 + 13 + 1,
         'CSPDarkNet53': 1 + 23 + 10 + 1, 'MixNet_S': 1 + 15 + 1, 'MobileViT_XXS': 1 + 10 + 1,
         'ConvNeXt_tiny': 4 + 18 + 1, 'DeiT_tiny_patch16_224': 1 + 12 + 1,
         'SwinTransformer_tiny_patch4_window7_224': 1 + 12 + 3 + 1,
         'SwinTransformerV2_tiny_patch4_window8_256': 1 + 12 + 3 + 1}


@pytest.mark.parametrize('name', [*SMALLEST.values(), *NEWER])
def test_layers_by_depth_hold_every_weight_once_and_are_in_the_order_of_computation(name):
    net = create_model(name, class_num=3)
    groups = layer_groups(net)
    names = [n for group in groups for n in group]
    assert sorted(names) == sorted(n for n, p in net.named_parameters() if is_weight(p))
    assert len(groups) == NEWER.get(name, len(groups)) > 5
    depth = {n: i for i, group in enumerate(groups) for n in group}
    order, called = [], set()
    net.eval()
    for path, layer in net.named_sublayers():
        own = [f'{path}.{n}' for n in layer._parameters if f'{path}.{n}' in depth]
        layer.register_forward_post_hook(lambda *_, own=own: order.extend(depth[n] for n in own))
        layer.register_forward_pre_hook(lambda *_, path=path: called.add(path))
    with paddle.no_grad():
        net(paddle.zeros([1, 3, 64, 64]))
    assert order == sorted(order)
    assert order[-1] == len(groups) - 1
    # a container that is never called itself would be computed once, as the first one is, which has the images
    assert {path for path, _ in checkpoint_blocks(net)[1:]} <= called


@pytest.mark.parametrize('decay', [0.75, 1])
def test_a_step_of_adamw_with_layer_decay_is_the_formula(decay):
    "The first step of AdamW from w with gradient g is w - eta d^k (g/(|g| + eps) + lambda w)."
    paddle.seed(0)
    net = create_model('ResNet18', class_num=3)
    set_layer_decay(net, decay)
    optimizer = build_optimizer('AdamW', net.parameters(), 0.01, dict(function='L2', factor=0.1))
    before = {n: p.numpy().astype('float64') for n, p in net.named_parameters() if is_weight(p)}
    nn.functional.cross_entropy(net(paddle.rand([4, 3, 32, 32])), paddle.to_tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    for k, group in enumerate(reversed(layer_groups(net))):
        for name, p in group.items():
            g, w, rate = p.grad.numpy().astype('float64'), before[name], 0.01*decay**k
            expected = w*(1 - rate*0.1) - rate*g/(np.abs(g) + 1e-8)
            large = np.abs(g) > 1e-6
            np.testing.assert_allclose(p.numpy()[large], expected[large], rtol=1e-4, atol=2e-6, err_msg=name)


def test_layer_decay_multiplies_and_leaves_frozen_layers_frozen():
    net = create_model('ResNet18', class_num=3)
    scale_lr(net.stem.parameters(), 0)
    scale_lr(net.fc.parameters(), 2)
    set_layer_decay(net, 0.5)
    assert net.stem[0].conv.weight.stop_gradient
    assert net.fc.weight.optimize_attr['learning_rate'] == 2
    assert net.blocks[-1].conv1.conv.weight.optimize_attr['learning_rate'] == 0.5
    with pytest.raises(PPClsError, match='Linear has no layers below its classifier'):
        set_layer_decay(nn.Linear(2, 2), 0.5)


@pytest.mark.parametrize('name', ['ResNet50', 'ResNet18_vd', 'SE_ResNeXt50_32x4d', 'Res2Net50_26w_4s',
                                  'ResNet50_ACNet'])
def test_stochastic_depth_grows_linearly(name):
    blocks = [layer for layer in create_model(name, class_num=2, drop_path_rate=0.3).sublayers()
              if isinstance(getattr(layer, 'drop', None), float)]
    np.testing.assert_allclose([b.drop for b in blocks], np.linspace(0, 0.3, len(blocks)), atol=1e-12)


def test_stochastic_depth_of_efficientnet_is_its_own_and_others_are_refused():
    one, other = (create_model('EfficientNetB0_small', class_num=2, **{name: 0.4})
                  for name in ('drop_path_rate', 'drop_connect'))
    assert [b.drop for b in one.sublayers() if hasattr(b, 'drop')] == [b.drop for b in other.sublayers()
                                                                       if hasattr(b, 'drop')]
    with pytest.raises(PPClsError, match='drop_path_rate: VGG11 has no blocks that can be left out'):
        create_model('VGG11', drop_path_rate=0.1)
    with pytest.raises(PPClsError, match='drop_path_rate is 1'):
        set_drop_path(create_model('ResNet18'), 1)


def step(name, checkpointing):
    "(gradients, state) after one backward pass of the network `name` in training mode."
    paddle.seed(0)
    net = create_model(name, class_num=3)
    if checkpointing:
        assert set_grad_checkpointing(net)
    output = net(paddle.rand([3, 3, 64, 64]))
    output = output[0] if isinstance(output, tuple) else output
    nn.functional.cross_entropy(output, paddle.to_tensor([0, 1, 2])).backward()
    return ({n: p.grad.numpy() for n, p in net.named_parameters() if p.grad is not None},
            {n: v.numpy() for n, v in net.state_dict().items()})


@pytest.mark.parametrize('name', [
    *(n for n in SMALLEST.values() if n not in ('VGG11', 'HRNet_W18_C')), 'CSPDarkNet53', 'MixNet_S', 'MobileViT_XXS',
    'PPHGNetV2_B0', 'PPLCNetV2_small', 'SwinTransformer_tiny_patch4_window7_224'])
def test_checkpointing_changes_nothing(name):
    for one, other in zip(step(name, False), step(name, True)):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=f'{name} {key}')


def test_checkpointing_survives_a_copy_and_is_taken_back():
    from copy import deepcopy
    net = create_model('ResNet18', class_num=3)
    set_grad_checkpointing(net)
    copied = deepcopy(net)
    for p in copied.parameters():
        p.set_value(paddle.zeros_like(p))
    assert copied(paddle.rand([2, 3, 32, 32])).abs().max().item() == 0
    set_grad_checkpointing(net, False)
    assert not any('forward' in layer.__dict__ for layer in net.sublayers())
    assert len(checkpoint_blocks(net)) == 9


def test_bce_of_a_mixed_label():
    logits = paddle.to_tensor([[2., -1., .5]])
    z, share = np.array([2., -1., .5]), np.array([.7, .15, .15])

    def by_hand(t):
        return np.mean(np.log1p(np.exp(z)) - t*z)

    soft = paddle.to_tensor([share], 'float32')
    for arguments, target in (({}, share), (dict(target_thresh=.2), [1, 0, 0]), (dict(target_thresh=.1), [1, 1, 1]),
                              (dict(epsilon=.3, target_thresh=.2), [.8, .1, .1])):
        assert BCELoss(**arguments)(logits, soft).item() == pytest.approx(by_hand(np.array(target)), abs=1e-6)
    with pytest.raises(PPClsError, match='bce_target_thresh is 1.5'):
        BCELoss(target_thresh=1.5)


def test_new_operations_are_described_and_built_again():
    config = [{'TrivialAugment': {'num_magnitude_bins': 11}}, {'AugMix': {'mixture_width': 2}},
              {'RandomErasing': {'mode': 'pixel', 'use_log_aspect': True, 'attempt': 10}},
              {'RandCropImage': {'size': 64, 'progressive': [[2, 32]]}}]
    described = describe_ops(build_ops(config))
    assert describe_ops(build_ops(json.loads(json.dumps(described)))) == described


@pytest.fixture(scope='module')
def info(tmp_path_factory):
    "Drawn flowers: 4 classes, 48 training images."
    return prepare_data('petals', tmp_path_factory.mktemp('data'),
                        dict(classes=4, per_class=[12, 6, 1], size=40, progress=False))


ALL = {
    'ARCHITECTURE.name': 'EfficientNetB0_small', 'ARCHITECTURE.params': {'drop_path_rate': 0.3}, 'epochs': 4,
    'OPTIMIZER': {'function': 'AdamW', 'regularizer': {'function': 'L2', 'factor': 0.05}, 'layer_decay': 0.8},
    'LEARNING_RATE': {'function': 'Cosine', 'params': {'lr': 0.002, 'warmup_steps': 7, 'warmup_start_lr': 1e-4,
                                                       'end_lr': 1e-5}},
    'TRAIN.batch_size': 8, 'TRAIN.num_workers': 0, 'VALID.num_workers': 0, 'TRAIN.aug_repeats': 3, 'use_mix': True,
    'TRAIN.mix': [{'MixupOperator': {'alpha': 0.8}}, {'CutmixOperator': {'alpha': 1.0}}], 'bce_loss': True,
    'bce_target_thresh': 0.2, 'ls_epsilon': 0.1, 'use_ema': True, 'grad_checkpointing': True,
    'image_shape': [3, 32, 32],
    'TRAIN.transforms': [{'DecodeImage': {}}, {'RandCropImage': {'size': 32, 'progressive': [[1, 16], [3, 24]]}},
                         {'RandFlipImage': {}}, {'TrivialAugment': {}}, {'AugMix': {'prob': 0.5}},
                         {'NormalizeImage': {'order': ''}}, {'RandomErasing': {'mode': 'pixel'}}, {'ToCHWImage': None}],
    'VALID.transforms': [{'DecodeImage': {}}, {'ResizeImage': {'size': [32, 32]}}, {'NormalizeImage': {'order': ''}},
                         {'ToCHWImage': None}]}


def trained(info, run, epochs, **changes):
    "A trainer with everything, after `epochs` epochs in the folder `run`."
    conf = use_data(load_config('quick_start/ResNet50_vd', ALL, changes), info)
    return Trainer.from_config(conf, run=run, bar=False).fit(epochs)


def same(one, other):
    "Whether two folders end with the same weights, state of training and rows."
    weights = [load_state(run/'last.pdparams') for run in (one, other)]
    models = [load_state(run/'last.pdstate')['model'] for run in (one, other)]
    rows = [[(r['train_loss'], r['lr'], r['valid_top1_correct']) for r in load_run(run).rows] for run in (one, other)]
    return rows[0] == rows[1] and all(a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
                                      for a, b in (weights, models))


def test_all_together_resume_exactly(info, tmp_path):
    straight = trained(info, tmp_path/'straight', 4)
    trained(info, tmp_path/'run', 2)
    # whether blocks are computed twice may change: the result does not depend on it
    trained(info, tmp_path/'run', 4, grad_checkpointing=False)
    assert same(tmp_path/'straight', tmp_path/'run')
    assert straight.images.shape == [8, 3, 32, 32]
    assert isinstance(straight.loss, BCELoss)
    # another seed gives other weights, so the comparison can fail
    trained(info, tmp_path/'other', 4, seed=1)
    assert not same(tmp_path/'straight', tmp_path/'other')


def test_images_grow_and_are_repeated(info):
    conf = use_data(load_config('quick_start/ResNet50_vd', ALL), info)
    loader = build_loader(conf.TRAIN, conf, True)
    sizes = []
    for epoch in range(4):
        loader.set_epoch(epoch)
        batches = list(loader)
        sizes.append(batches[0][0].shape[-1])
        assert sum(len(labels) for _, labels in batches) == 48
        indices = [index for batch in loader.batch_sampler for index in batch]
        assert len({i for _, i, *_ in indices}) == 16
    assert sizes == [16, 24, 24, 32]
    images = batches[0][0].numpy()
    # copies of an image are not equal
    assert not np.array_equal(images[0], images[1])


@pytest.mark.parametrize('changes, message', [
    ({'bce_target_thresh': 0.2, 'bce_loss': False}, 'bce_target_thresh without bce_loss has no effect'),
    ({'VALID.aug_repeats': 3}, 'VALID.aug_repeats: images are repeated in training only'),
    ({'OPTIMIZER.layer_decay': 1.5}, 'layer_decay is 1.5; expected a number above 0 and up to 1'),
    ({'ARCHITECTURE.name': 'VGG11'}, 'drop_path_rate: VGG11 has no blocks'),
    ({'LEARNING_RATE.params.warmup_epoch': 1}, 'expected only one of them'),
    ({'bce_target_thresh': 1.}, 'bce_target_thresh is 1.0')])
def test_refused_before_the_training(info, changes, message):
    conf = use_data(load_config('quick_start/ResNet50_vd', ALL, changes), info)
    with pytest.raises(PPClsError, match=message):
        Trainer.from_config(conf, bar=False)


@pytest.mark.parametrize('override, message', [
    ('TRAIN.aug_repeats=0', 'TRAIN.aug_repeats is 0, expected 1 or more'),
    ('TRAIN.aug_repeat=3', "unknown TRAIN key 'aug_repeat'; did you mean 'aug_repeats'"),
    ('OPTIMIZER.layer_decy=0.7', "did you mean 'layer_decay'"),
    ('TRAIN.transforms.1.RandCropImage.progressive=[[3,24],[1,16]]', 'with increasing epochs'),
    ('TRAIN.transforms.3.TrivialAugment.num_magnitude_bins=1', 'expected a whole number of 2 or more'),
    ('LEARNING_RATE.params.warmup_step=3', "did you mean 'warmup_steps'")])
def test_refused_when_the_recipe_is_read(override, message):
    with pytest.raises(PPClsError, match=message):
        load_config('quick_start/ResNet50_vd', ALL, [override])


def test_another_image_shape_scales_the_growing_sizes():
    conf = load_config('ResNet/ResNet50', {'TRAIN.transforms.1.RandCropImage.progressive': [[3, 112], [6, 160]]})
    assert conf.TRAIN.transforms[1].RandCropImage.progressive == [[3, 112], [6, 160]]
    from ppcls_nb.recipe.load import resized
    settings = resized('RandCropImage', dict(size=224, progressive=[[3, 112]]), (224, 224), (112, 112))
    assert settings == dict(size=112, progressive=[[3, 56]])


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(paddle.distributed, 'get_world_size', lambda: 2)
    with pytest.raises(PPClsError, match='grad_checkpointing does not work with several processes'):
        set_grad_checkpointing(create_model('ResNet18'))
