"Families of networks: cases beyond those that their lessons show (the contract of all networks: test_zoo.py)."
import ppcls_nb  # before paddle: sets the threads
import numpy as np, paddle, pytest
from paddle.nn import functional as F

from official import ALL, fill
from ppcls_nb.basics import PPClsError
from ppcls_nb.models import build_model
from ppcls_nb.models.acnet import AsymmetricConv
from ppcls_nb.models.efficientnet import Features, block_names, layer_pads
from ppcls_nb.models.layers import count_weights, is_weight
from ppcls_nb.models.network import FeatureNet, branched_layers, deploy_form
from ppcls_nb.models.pp_lcnet_v2 import RepDepthwiseSeparable
from ppcls_nb.models.se_resnet_vd import ChannelGate


@pytest.mark.parametrize('size', [(63, 63), (80, 112), (224, 224)])
def test_alexnet_takes_any_size(size):
    assert build_model('AlexNet', class_num=10, hidden=32)(paddle.rand([2, 3, *size])).shape == [2, 10]


@pytest.mark.parametrize('name, kw, parts', [
    ('AlexNet', dict(hidden=32), ['_fc']),
    ('VGG11', dict(hidden=16), ['fc']),
    ('GoogLeNet', {}, ['_o', 'fc']),
    ('Xception41', dict(middle=1), ['_out'])])
def test_features_have_no_head(name, kw, parts):
    names = [name for name, _ in FeatureNet(build_model(name, **kw)).named_parameters()]
    assert not [name for name in names if any(part in name for part in parts)]


@pytest.mark.parametrize('size', [6, 13])
def test_averaging_to_the_official_size_changes_nothing(size):
    x = paddle.rand([1, 4, size, size])
    assert (F.adaptive_avg_pool2d(x, size) == x).all().item()


@pytest.mark.parametrize('name, kw, message', [
    ('AlexNet', dict(width=2), "AlexNet: .*unexpected keyword argument 'width'"),
    ('InceptionV4', dict(depth=3), "InceptionV4: .*unexpected keyword argument 'depth'"),
    ('GoogleNet', {}, "unknown network 'GoogleNet'; did you mean 'GoogLeNet'"),
    ('Xception42', {}, "unknown network 'Xception42'; did you mean 'Xception41'"),
    ('SENet154_vd', dict(depths=(1,)*5), 'SE_ResNeXt: depths has 5 stages; expected 4'),
    ('SqueezeNet1_1', dict(lr_mult_list=[1]*5), 'SqueezeNet1_1 has no stages for it'),
    ('EfficientNetB0_small', dict(lr_mult_list=[1]*5), 'EfficientNetB0_small has no stages for it')])
def test_wrong_arguments(name, kw, message):
    with pytest.raises(PPClsError, match=message):
        build_model(name, **kw)


def test_inception_takes_small_images():
    assert build_model('InceptionV4', class_num=10)(paddle.rand([1, 3, 75, 96])).shape == [1, 10]


def test_a_gate_has_one_factor_for_each_image_and_channel():
    gate, x = ChannelGate(32, 4), paddle.rand([4, 32, 6, 6]) + 0.1
    np.testing.assert_allclose((gate(x)/x).std([2, 3]), np.zeros((4, 32)), atol=1e-6)
    with pytest.raises(ValueError):
        gate(paddle.rand([1, 16, 6, 6]))


def test_se_resnext_keeps_its_keys_and_maps():
    net = build_model('SE_ResNeXt50_32x4d', class_num=10)
    assert len(net.state_dict()) == 331
    maps = FeatureNet(net, [0, 2])(paddle.rand([1, 3, 64, 64]))
    assert [m.shape[1:] for m in maps] == [[256, 16, 16], [1024, 4, 4]]


def test_xception_with_other_flows():
    entry = ((16, 2), (24, 2), (32, 2))
    net = build_model('Xception41', entry=entry, middle=1, class_num=3, in_channels=1)
    assert net(paddle.rand([2, 1, 33, 50])).shape == [2, 3]
    assert len(FeatureNet(net)(paddle.rand([1, 1, 64, 64]))) == 4


@pytest.mark.parametrize('name', ['SqueezeNet1_0', 'SqueezeNet1_1'])
def test_squeezenet_has_the_official_names(name):
    assert list(build_model(name).state_dict())[2] == '_conv1._conv._conv.weight'


def test_efficientnet_padding():
    assert layer_pads('SAME', [(3, 2)]*2) == ['SAME']*2
    assert layer_pads(None, [(3, 1)]) == [None]


def test_efficientnet_drops_later_blocks_more_often():
    drops = [block.drop for block in list(Features(3, 'swish', None, 0.2).children())[1:]]
    assert drops == sorted(drops)
    assert (drops[0], drops[-1]) == (0, 0.2*15/16)
    assert len(block_names(3.1)) == 55


def test_efficientnet_running_averages():
    net = build_model('EfficientNetB0_small', bn_momentum=0.5)
    before = net._conv._bn._mean.numpy().copy()
    net(paddle.rand([2, 3, 32, 32]))
    assert (net._conv._bn._mean.numpy() != before).any()


def test_efficientnet_widths():
    lite = build_model('EfficientNetLite2')
    assert lite.channels == (24, 48, 120, 352)
    assert lite._conv._bn.weight.shape == [1280]
    b1 = build_model('EfficientNetB1')
    assert b1.channels == (24, 40, 112, 320)
    assert count_weights(b1) == 7_794_184


@pytest.mark.parametrize('k, stride', [(3, 1), (3, 2), (7, 2)])
def test_asymmetric_convolutions_are_fused(k, stride):
    layer, x = AsymmetricConv(4, 6, k, stride), paddle.randn([2, 4, 15, 16])
    layer(paddle.randn([8, 4, 15, 16])*3 + 1)
    layer.eval()
    kernel, bias = map(paddle.to_tensor, layer.fused())
    np.testing.assert_allclose(F.conv2d(x, kernel, bias, stride, k//2), layer(x), atol=1e-5)


def test_asymmetric_convolutions_take_an_activation():
    assert AsymmetricConv(3, 8, 3, act='relu')(paddle.randn([2, 3, 9, 9])).min().item() == 0
    with pytest.raises(PPClsError, match='unknown activation'):
        AsymmetricConv(3, 8, 3, act='rleu')


def test_a_fused_state_loads_into_the_deploy_network():
    net = build_model('ResNet50_ACNet', class_num=5)
    fused, target = deploy_form(net), build_model('ResNet50_ACNet_deploy', class_num=5)
    assert list(net.state_dict()) != list(fused.state_dict())
    target.set_state_dict(fused.state_dict())
    target.eval()
    x = paddle.randn([2, 3, 64, 80])
    with paddle.no_grad():
        np.testing.assert_allclose(target(x), fused(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['PPLCNetV2_small'])
def test_a_deploy_form_loads_into_a_network_built_for_deployment(name):
    net = build_model(name, class_num=5)
    for _ in range(2): net(paddle.randn([4, 3, 32, 32])*2)                # the running averages get somewhere
    net.eval()
    fused, target = deploy_form(net), build_model(name, class_num=5, deploy=True)
    assert list(net.state_dict()) != list(fused.state_dict()) == list(target.state_dict())
    assert branched_layers(net)
    assert not branched_layers(fused)
    target.set_state_dict(fused.state_dict())
    target.eval()
    x = paddle.randn([2, 3, 64, 48])
    with paddle.no_grad():
        np.testing.assert_allclose(target(x), net(x), rtol=1e-4, atol=1e-5)


def test_a_fused_convolution_that_does_not_learn_before_learns_after():
    block = RepDepthwiseSeparable(4, 4, 5, 1)
    kept = {id(p) for p in block.dw_conv.parameters()}
    assert not [p for p in block.parameters() if id(p) in kept and is_weight(p)]
    fused = block.deployed()
    fused(paddle.randn([2, 4, 6, 6])).sum().backward()
    assert fused.dw_conv.weight.grad is not None
    optimizer = paddle.optimizer.Momentum(0.1, parameters=block.parameters())
    before = block.dw_conv.weight.numpy()
    block(paddle.randn([2, 4, 6, 6])).sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(block.dw_conv.weight, before)


@pytest.mark.parametrize('name', ['RepVGG_A0', 'RepVGG_B1g4'])
def test_the_deployed_repvgg_gives_the_released_outputs(name):
    g = ALL[name]['golden']
    net = build_model(name)
    fill(net, g['gain'])
    fused, reference = deploy_form(net), np.array(g['logits'])
    x = np.random.Generator(np.random.PCG64(0)).standard_normal((2, 3, g['S'], g['S'])).astype('float32')
    with paddle.no_grad():
        out = fused(paddle.to_tensor(x)).numpy()
    assert np.linalg.norm(out[:, :16] - reference) < 1e-4*np.linalg.norm(reference)
    target = build_model(f'{name}_deploy')
    assert {k: v.shape for k, v in fused.state_dict().items()} == {k: v.shape for k, v in target.state_dict().items()}
