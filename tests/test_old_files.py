"""Recipe files of 2020 are read unchanged: keys have moved, have no effect, or are refused by name."""
import cv2, numpy as np, paddle, pytest, yaml

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.imaug import AutoAugment
from ppcls_nb.models import build_model
from ppcls_nb.models.efficientnet import RENAMED_ARGUMENTS, VARIANTS, present_arguments
from ppcls_nb.recipe.build import build_mixing, build_models
from ppcls_nb.recipe.data import build_transforms
from ppcls_nb.recipe.load import load_config
from ppcls_nb.recipe.old_files import IGNORED, modernize
from ppcls_nb.train import build_optimizer, build_schedule

NORMALIZE = dict(scale='1./255.', mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], order='')
DECODE = {'DecodeImage': dict(to_rgb=True, to_np=False, channel_first=False)}


def reader(crops, batch_size=32, mix=None, **normalize):
    "A section TRAIN or VALID of a file of 2020."
    operations = [DECODE, *crops, {'NormalizeImage': {**NORMALIZE, **normalize}}, {'ToCHWImage': None}]
    section = dict(batch_size=batch_size, num_workers=4, file_list='./list.txt', data_dir='./', shuffle_seed=0,
                   transforms=operations)
    return {**section, 'mix': mix} if mix else section


def old_recipe(size=224, train=(), mix=None, normalize=None, **keys):
    "A whole file of 2020 with `keys` at the top, and operations `train` and batch operations `mix`."
    crops = [{'RandCropImage': {'size': size}}, {'RandFlipImage': {'flip_code': 1}}, *train]
    return {
        'mode': 'train', 'pretrained_model': '', 'model_save_dir': './output/', 'classes_num': 1000,
        'total_images': 1281167, 'save_interval': 1, 'validate': True, 'valid_interval': 1, 'epochs': 120, 'topk': 5,
        'image_shape': [3, size, size],
        'LEARNING_RATE': dict(function='Cosine', params=dict(lr=0.1)),
        'OPTIMIZER': dict(function='Momentum', params=dict(momentum=0.9), regularizer=dict(function='L2', factor=1e-4)),
        'TRAIN': reader(crops, mix=mix, **(normalize or {})),
        'VALID': reader([{'ResizeImage': {'resize_short': 256}}, {'CropImage': {'size': size}}]),
        **keys}


B0 = dict(
    epochs=360, ls_epsilon=0.1, use_ema=True, ema_decay=0.9999,
    LEARNING_RATE=dict(function='ExponentialWarmup', params=dict(lr=0.032)),
    OPTIMIZER=dict(function='RMSProp', params=dict(momentum=0.9, rho=0.9, epsilon=0.001),
                   regularizer=dict(function='L2', factor=1e-5)))
ARGUMENTS = dict(is_test=False, padding_type='SAME', override_params=dict(drop_connect_rate=0.1))
MIXUP = [{'MixupOperator': {'alpha': 0.2}}]
HALF = dict(use_fp16=True, amp_scale_loss=128., use_dynamic_loss_scaling=True, fuse_bn_act_ops=True,
            fuse_elewise_add_act_ops=True, fuse_bn_add_act_ops=True, enable_addto=True, use_dali=False)
FILES = {
    'B0, first': old_recipe(
        train=[{'AA': None}], use_aa=True,
        ARCHITECTURE=dict(name='EfficientNetB0', drop_connect_rate=0.1, padding_type='SAME'), **B0),
    'B0, later': old_recipe(
        train=[{'AutoAugment': None}], ARCHITECTURE=dict(name='EfficientNetB0', params=ARGUMENTS), **B0),
    'Lite0': old_recipe(
        train=[{'AutoAugment': None}], use_aa=True, **B0,
        ARCHITECTURE=dict(name='EfficientNetLite0', params={
            **ARGUMENTS, 'override_params': dict(drop_connect_rate=0.1, fix_head_stem=True, relu_fn=True)})),
    'spring': old_recipe(architecture='SqueezeNet1_1', use_mix=False, ls_epsilon=-1),
    'spring, mixed': old_recipe(architecture='MobileNetV1_x0_25', use_mix=True, ls_epsilon=0.1, mix=MIXUP),
    'spring, another name': old_recipe(architecture='ShuffleNetV2'),
    'a loss': old_recipe(ARCHITECTURE=dict(name='ResNet18'), use_mix=True, mix=MIXUP,
                         LOSS=dict(function='MixCELoss', params=None)),
    'half precision': old_recipe(ARCHITECTURE=dict(name='ResNet18', params=dict(data_format='NHWC')), **HALF),
    'half precision, summer': old_recipe(
        ARCHITECTURE=dict(name='ResNet18', params=dict(data_format='NCHW')), use_fp16=True, scale_loss=128.,
        use_dynamic_loss_scaling=True),
    'half precision, autumn': old_recipe(
        ARCHITECTURE=dict(name='ResNet18_vd'), use_amp=True, use_pure_fp16=False, multi_precision=False,
        scale_loss=128., use_dynamic_loss_scaleing=True, data_format='NCHW'),
    'pure half precision': old_recipe(
        ARCHITECTURE=dict(name='ResNet18'), is_distributed=True, use_dali=True, data_format='NHWC',
        image_channel=4, image_shape=[4, 224, 224], normalize=dict(output_fp16=True, channel_num=4),
        AMP=dict(scale_loss=128., use_dynamic_loss_scaling=True, use_pure_fp16=True)),
    'finetuning': old_recipe(
        ARCHITECTURE=dict(name='ResNet18_vd', params=dict(lr_mult_list=[0.1, 0.1, 0.2, 0.2, 0.3])),
        load_static_weights=True, train=[{'RandomErasing': {'EPSILON': 0.5}}]),
    'distillation': old_recipe(
        ARCHITECTURE=dict(name='ResNeXt101_32x16d_wsl_distill_ResNet50_vd'), use_distillation=True,
        pretrained_model='./pretrained/ResNeXt101_32x16d_wsl_pretrained'),
    'another spelling': old_recipe(
        ARCHITECTURE=dict(name='ResNet18'), OPTIMIZER=dict(function='RmsProp', params=dict(rho=0.9, momentum=0.9))),
    'without is_test': old_recipe(ARCHITECTURE=dict(name='GoogLeNet'), use_xpu=False, print_interval=10)}


def written(keys, folder):
    "The file of the recipe `keys`."
    file = folder/'old.yaml'
    file.write_text(yaml.safe_dump(keys))
    return file


@pytest.mark.parametrize('name', FILES)
def test_a_file_of_2020_is_built_unchanged(name, tmp_path):
    conf = load_config(written(FILES[name], tmp_path))
    image = cv2.imencode('.png', np.zeros((260, 270, 3), np.uint8))[1].tobytes()
    for section, train in (('TRAIN', True), ('VALID', False)):
        out = image
        for op in build_transforms(conf[section], conf, train):
            out = op(out)
        assert out.shape == (3, *conf.image_shape[1:])
    assert (build_mixing(conf) is not None) == bool(FILES[name]['TRAIN'].get('mix'))
    if not conf.use_distillation:
        model, teachers = build_models(conf)
        assert not teachers
        schedule = build_schedule(conf.LEARNING_RATE.function, 2, 2, **conf.LEARNING_RATE.params)
        build_optimizer(conf.OPTIMIZER.function, model.parameters(), schedule, conf.OPTIMIZER.regularizer,
                        **conf.OPTIMIZER.params)


@pytest.mark.parametrize('name', ['B0, first', 'B0, later'])
def test_both_files_of_efficientnet_are_our_recipe(name, tmp_path):
    old, ours = load_config(written(FILES[name], tmp_path)), load_config('EfficientNet/EfficientNetB0')
    for key in ('use_ema', 'ema_decay', 'ls_epsilon', 'epochs', 'LEARNING_RATE', 'OPTIMIZER'):
        assert old[key] == ours[key], key
    assert (ours.use_ema, ours.ema_decay, ours.ARCHITECTURE.params.drop_connect) == (True, 0.9999, 0.1)
    assert any(isinstance(op, AutoAugment) for op in build_transforms(old.TRAIN, old, True))
    networks = [build_models(conf)[0] for conf in (old, ours)]
    drops = [[block.drop for block in list(network._ef.children())[1:]] for network in networks]
    assert drops[0] == drops[1]
    assert drops[0][-1] == pytest.approx(0.1*15/16)
    images = paddle.rand([1, 3, 64, 64])
    for network in networks:
        network.set_state_dict(networks[0].state_dict())
        network.eval()
    assert (networks[0](images) == networks[1](images)).all()


@pytest.mark.parametrize('given, expected', [
    (dict(padding_type='DYNAMIC'), dict(padding=None)),
    (dict(is_test=True, drop_connect_rate=0.3), dict(drop_connect=0.)),
    (dict(use_se=False), dict(se=False)),
    (dict(override_params=dict(relu_fn=True, dropout_rate=0.4)), dict(act='relu6', dropout=0.4)),
    (dict(drop_connect=0.5), dict(drop_connect=0.5))])
def test_arguments_of_efficientnet(given, expected):
    assert present_arguments(given, VARIANTS['EfficientNetB1']) == expected


@pytest.mark.parametrize('variant, padding', [
    ('EfficientNetB0_small', 224), ('EfficientNetB3', 300), ('EfficientNetLite0', 'SAME')])
def test_same_is_the_padding_of_the_network(variant, padding):
    assert present_arguments(dict(padding_type='SAME'), VARIANTS[variant]) == dict(padding=padding)


@pytest.mark.parametrize('given, message', [
    (dict(padding_type='VALID'), "padding_type is 'VALID', expected SAME or DYNAMIC"),
    (dict(override_params=dict(drop_connect=0.1)), "unknown argument 'drop_connect'; did you mean 'drop_connect_rate'"),
    (dict(override_params=dict(batch_norm_epsilon=0.1)), "override_params: unknown argument 'batch_norm_epsilon'")])
def test_what_efficientnet_cannot_honour_is_named(given, message):
    with pytest.raises(PPClsError, match=message):
        build_model('EfficientNetB0', **given)


def test_every_renamed_argument_is_one_of_the_network():
    own = present_arguments(dict.fromkeys(RENAMED_ARGUMENTS, 1), {})
    assert build_model('EfficientNetB0_small', class_num=2, **{**own, 'dropout': 0.1})


def test_old_keys_join_the_section_amp():
    old = dict(use_fp16=True, AMP=dict(level='O2'), use_dynamic_loss_scaling=False)
    assert modernize(old) == {'use_fp16': True, 'AMP': {'use_dynamic_loss_scaling': False, 'level': 'O2'}}
    assert modernize(dict(AMP=dict(level='O2'), scale_loss=8.)) == {'AMP': {'level': 'O2', 'init_loss_scaling': 8.}}


@pytest.mark.parametrize('name, on, level', [
    ('half precision', True, 128.), ('half precision, summer', True, 128.), ('half precision, autumn', True, 128.),
    ('spring', False, None)])
def test_mixed_precision_of_every_spelling(name, on, level, tmp_path):
    conf = load_config(written(FILES[name], tmp_path))
    assert bool(conf.use_fp16) == on
    assert (conf.AMP and conf.AMP.init_loss_scaling) == level


def test_the_present_key_counts_where_both_are_given():
    both = modernize(dict(architecture='ResNet18', ARCHITECTURE=dict(name='ResNet34')))
    assert both == dict(ARCHITECTURE=dict(name='ResNet34'))


def test_an_override_changes_an_old_key(tmp_path):
    file = written(FILES['spring'], tmp_path)
    assert load_config(file, ['ARCHITECTURE.name=ResNet18']).ARCHITECTURE.name == 'ResNet18'
    assert load_config(file, ['architecture=ResNet18']).ARCHITECTURE.name == 'ResNet18'


@pytest.mark.parametrize('key', sorted(IGNORED))
def test_an_ignored_key_is_named_once_if_it_is_on(key, capsys):
    assert modernize({key: 'on'}) == {}
    assert capsys.readouterr().out.count(f'{key} has no effect') == 1
    assert modernize({key: False}) == {}
    assert not capsys.readouterr().out


def test_the_given_keys_are_not_changed():
    keys = old_recipe(architecture='ResNet18', train=[{'AA': None}])
    modernize(keys)
    assert keys == old_recipe(architecture='ResNet18', train=[{'AA': None}])


@pytest.mark.parametrize('old, message', [
    (dict(architecture='ResNet50vd'), r"old.yaml:\d+: unknown network 'ResNet50vd'; did you mean 'ResNet50_vd'"),
    (dict(ARCHITECTURE=dict(name='ResNet18', drop_conect_rate=1)), r"old.yaml:\d+: unknown ARCHITECTURE key"),
    (dict(LOSS=dict(function='TripletLoss')), r"old.yaml:\d+: LOSS.function is 'TripletLoss', expected one of CELoss"),
    (dict(LOSS=dict(function='CELoss', params=dict(margin=1))), r"old.yaml:\d+: unknown LOSS parameter 'margin'"),
    (dict(architecture='ResNeSt26'), "unknown network 'ResNeSt26'")])
def test_what_cannot_be_honoured_is_refused_with_its_line(old, message, tmp_path):
    with pytest.raises(PPClsError, match=message):
        load_config(written(old_recipe(**old), tmp_path))
