"""Recipe files of PaddleClas 2.x are read as they are: the settings of its own files, and what is refused by name.

The settings are those of the files below ppcls/configs/ImageNet in the public repository of PaddleClas, written by hand
as data: the released wheel, `paddleclas` 2.6.0, has only files for deployment and none for training."""
import cv2
import numpy as np
import pytest
import yaml

from ppcls_nb.basics import PPClsError
from ppcls_nb.cli import main
from ppcls_nb.data.imaug import ResizeImage, TimmAutoAugment, build_mix, build_ops
from ppcls_nb.models import create_model, list_models, list_pretrained
from ppcls_nb.recipe.build import Trainer
from ppcls_nb.recipe.data import local_batch_size
from ppcls_nb.recipe.later_files import translate
from ppcls_nb.recipe.load import load_config

# the settings of PaddleClas 2.6's own files; what most of them share
COMMON = '''
Global:
  checkpoints: null
  pretrained_model: null
  output_dir: ./output/
  device: gpu
  save_interval: 1
  eval_during_train: True
  eval_interval: 1
  epochs: 120
  print_batch_step: 10
  use_visualdl: False
  image_shape: [3, 224, 224]
  save_inference_dir: ./inference
Loss:
  Train:
    - CELoss:
        weight: 1.0
        epsilon: 0.1
  Eval:
    - CELoss:
        weight: 1.0
DataLoader:
  Train:
    dataset:
      name: ImageNetDataset
      image_root: ./dataset/ILSVRC2012/
      cls_label_path: ./dataset/ILSVRC2012/train_list.txt
      transform_ops: []
    sampler: {name: DistributedBatchSampler, batch_size: 64, drop_last: False, shuffle: True}
    loader: {num_workers: 4, use_shared_memory: True}
  Eval:
    dataset:
      name: ImageNetDataset
      image_root: ./dataset/ILSVRC2012/
      cls_label_path: ./dataset/ILSVRC2012/val_list.txt
      transform_ops: []
    sampler: {name: DistributedBatchSampler, batch_size: 64, drop_last: False, shuffle: False}
    loader: {num_workers: 4, use_shared_memory: True}
Infer:
  infer_imgs: demo.jpg
  batch_size: 10
  PostProcess: {name: Topk, topk: 5}
Metric:
  Train:
    - TopkAcc: {topk: [1, 5]}
  Eval:
    - TopkAcc: {topk: [1, 5]}
'''
AMP_OFF = dict(use_amp=False, use_fp16_test=False, scale_loss=128.0, use_dynamic_loss_scaling=True, use_promote=False,
               level='O1')
AMP_ON = {**AMP_OFF, 'use_amp': True}
DECODE = {'DecodeImage': dict(to_rgb=True, channel_first=False)}
FLIP = {'RandFlipImage': dict(flip_code=1)}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
ERASING = {'RandomErasing': dict(EPSILON=0.25, sl=0.02, sh='1.0/3.0', r1=0.3, attempt=10, use_log_aspect=True,
                                 mode='pixel')}
CUBIC, LINEAR = (dict(interpolation=kind, backend='pil') for kind in ('bicubic', 'bilinear'))


def normalize(mean=MEAN, std=STD):
    return {'NormalizeImage': dict(scale='1.0/255.0', mean=mean, std=std, order='')}


def momentum(factor, **lr):
    return dict(name='Momentum', momentum=0.9, regularizer=dict(name='L2', coeff=factor), lr=lr)


def adamw(names, **lr):
    section = dict(name='AdamW', beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.05, lr=dict(name='Cosine', **lr),
                   one_dim_param_no_weight_decay=True)
    return {**section, 'no_weight_decay_name': names} if names else section


def op_sampler(alpha):
    return [{'OpSampler': {'MixupOperator': dict(alpha=alpha, prob=0.5), 'CutmixOperator': dict(alpha=1.0, prob=0.5)}}]


def recipe(arch, optimizer, train=(), crop=(), resize=(), size=256, mix=None, batch=64, mean=MEAN, std=STD, last=(),
           epsilon=0.1, center=224, **changes):
    "A file of PaddleClas 2.6: the settings in `COMMON` with those of one network."
    keys = yaml.safe_load(COMMON)
    keys |= dict(Arch=dict(class_num=1000) | arch, Optimizer=optimizer)
    reader, valid = keys['DataLoader']['Train'], keys['DataLoader']['Eval']
    reader['dataset']['transform_ops'] = [
        DECODE, {'RandCropImage': {'size': 224, **dict(crop)}}, FLIP, *train, normalize(mean, std), *last]
    valid['dataset']['transform_ops'] = [
        DECODE, {'ResizeImage': dict(resize_short=size, **dict(resize))}, {'CropImage': dict(size=center)},
        normalize(mean, std)]
    reader['sampler']['batch_size'] = batch
    if mix:
        reader['dataset']['batch_transform_ops'] = mix
    if epsilon is None:
        del keys['Loss']['Train'][0]['CELoss']['epsilon']
    for key, value in changes.items():
        section, _, name = key.partition('__')
        keys.setdefault(section, {}).update({name: value} if name else value)
    return keys


def transformer(arch, optimizer, timm='rand-m9-mstd0.5-inc1', alpha=0.8, size=256, batch=128, **changes):
    "The augmentation that DeiT, Swin, ConvNeXt, PP-HGNet and MobileNetV4 share."
    auto = {'TimmAutoAugment': dict(config_str=timm, interpolation='bicubic', img_size=224)}
    mix = op_sampler(alpha) if alpha else None
    return recipe(arch, optimizer, [auto], CUBIC, CUBIC, size, mix, batch, last=[ERASING], **changes)


def cosine(rate, **more):
    return dict(name='Cosine', learning_rate=rate, **more)


STEPS = dict(name='Piecewise', learning_rate=0.1, decay_epochs=[30, 60, 90], values=[0.1, 0.01, 0.001, 0.0001])
FILES = {
    'ResNet50': recipe(dict(name='ResNet50'), momentum(1e-4, **STEPS), epsilon=None),
    'ResNet50_vd': recipe(
        dict(name='ResNet50_vd'), momentum(7e-5, **cosine(0.1)), mix=[{'MixupOperator': {'alpha': 0.2}}],
        Global__epochs=200, AMP=AMP_OFF, Metric__Train=None),
    'MobileNetV3': recipe(
        dict(name='MobileNetV3_large_x1_0'), momentum(2e-5, **cosine(1.3)), [{'AutoAugment': None}], batch=512,
        Global__epochs=360),
    'PPLCNet': recipe(
        dict(name='PPLCNet', scale=1.0, act='hardswish'), momentum(3e-5, **cosine(0.8, warmup_epoch=5)), batch=512,
        Global__epochs=360, AMP=AMP_OFF),
    'EfficientNetB0': recipe(
        dict(name='EfficientNetB0'),
        dict(name='RMSProp', momentum=0.9, rho=0.9, epsilon=0.001, lr=cosine(0.032, warmup_epoch=5),
             regularizer=dict(name='L2', coeff=1e-5)),
        [{'AutoAugment': None}], batch=128, Global__epochs=360, AMP=AMP_OFF),
    'ViT': recipe(dict(name='ViT_base_patch16_224'), momentum(1e-4, **STEPS), epsilon=None, mean=[.5]*3, std=[.5]*3),
    'DeiT': transformer(
        dict(name='DeiT_tiny_patch16_224', drop_path_rate=0.1, drop_rate=0.0),
        adamw('norm cls_token pos_embed dist_token', learning_rate=1e-3, eta_min=1e-5, warmup_epoch=5,
              warmup_start_lr=1e-6), batch=256, Global__epochs=300, Metric__Train=None),
    'Swin': transformer(
        dict(name='SwinTransformer_tiny_patch4_window7_224'),
        adamw('absolute_pos_embed relative_position_bias_table .bias norm ', learning_rate=5e-4, eta_min=1e-5,
              warmup_epoch=20, warmup_start_lr=1e-6), Global__epochs=300, Global__to_static=False),
    'ConvNeXt': transformer(
        dict(name='ConvNeXt_tiny', drop_path_rate=0.1, layer_scale_init_value=1e-6, head_init_scale=1.0),
        adamw(None, learning_rate=4e-3, eta_min=1e-6, warmup_epoch=20, warmup_start_lr=0),
        Global=dict(epochs=300, update_freq=4, to_static=False), EMA=dict(decay=0.9999)),
    'PPHGNet': transformer(
        dict(name='PPHGNet_small'), momentum(4e-5, **cosine(0.5, warmup_epoch=5)), 'rand-m7-mstd0.5-inc1', 0.2, 236,
        Global=dict(epochs=600, use_dali=False),
        AMP=dict(scale_loss=128.0, use_dynamic_loss_scaling=True, level='O1')),
    'PPHGNetV2': transformer(
        dict(name='PPHGNetV2_B0', pretrained=True), momentum(2e-5, **cosine(0.5, warmup_epoch=5)),
        'rand-m7-mstd0.5-inc1', None, 232, Global=dict(epochs=200, to_static=False, use_dali=False), AMP=AMP_ON),
    'MobileNetV4': transformer(
        dict(name='MobileNetV4_conv_small', drop_rate=0.25, drop_path_rate=0.03),
        adamw(None, learning_rate=2e-3, eta_min=0, warmup_epoch=5, warmup_start_lr=0)
        | dict(weight_decay=0.06, clip_grad=5.0), 'rand-m8-inc1-mstd1.0', batch=1024, center=256,
        Global=dict(epochs=2400, image_shape=[3, 256, 256]), AMP=AMP_ON, EMA=dict(decay=0.9998)),
    'GhostNet': recipe(
        dict(name='GhostNet_x1_0'), momentum(4e-5, **cosine(0.8, warmup_epoch=5)), batch=512, Global__epochs=360,
        AMP=AMP_OFF),
    'RegNet': recipe(
        dict(name='RegNetX_400MF'), momentum(1e-4, **STEPS), epsilon=None, center=256,
        Global__image_shape=[3, 256, 256]),
    'RepVGG': recipe(dict(name='RepVGG_A0'), momentum(1e-4, **cosine(0.1)), epsilon=None, AMP=AMP_OFF),
    'MobileViT': recipe(
        dict(name='MobileViT_S'),
        adamw('.bias norm', learning_rate=2e-3, eta_min=2e-4, warmup_epoch=5, warmup_start_lr=2e-4)
        | dict(weight_decay=0.01), crop=dict(size=256, **LINEAR), resize=LINEAR, size=292, batch=128, center=256,
        mean=[0.]*3, std=[1.]*3, Global=dict(epochs=300, image_shape=[3, 256, 256], use_dali=False)),
    'flowers': recipe(
        dict(name='ResNet50_vd', class_num=102), momentum(1e-5, **cosine(0.0125, warmup_epoch=5)), epsilon=None,
        batch=32, Global__epochs=20),
}
FILES['ConvNeXt']['DataLoader']['Train']['sampler']['drop_last'] = True


def file_of(tmp_path, keys):
    file = tmp_path/'later.yaml'
    file.write_text(yaml.safe_dump(keys, sort_keys=False))
    return file


def drawn_lists(tmp_path, n=6, classes=2):
    "Images in `tmp_path` with train_list.txt and val_list.txt."
    rng = np.random.default_rng(0)
    for i in range(n):
        cv2.imwrite(str(tmp_path/f'{i}.png'), rng.integers(0, 256, (40, 48, 3), np.uint8))
    for part in ('train', 'val'):
        (tmp_path/f'{part}_list.txt').write_text(''.join(f'{i}.png {i % classes}\n' for i in range(n)))
    return tmp_path


EXPECTED = {
    'ResNet50': dict(epochs=120, LEARNING_RATE=dict(function='Piecewise', params=dict(
        lr=0.1, decay_epochs=[30, 60, 90], values=[0.1, 0.01, 0.001, 0.0001]))),
    'ResNet50_vd': dict(epochs=200, use_mix=True, ls_epsilon=0.1, LEARNING_RATE=dict(
        function='Cosine', params=dict(lr=0.1))),
    'MobileNetV3': dict(OPTIMIZER=dict(function='Momentum', params=dict(momentum=0.9),
                                       regularizer=dict(function='L2', factor=2e-5))),
    'PPLCNet': dict(ARCHITECTURE=dict(name='PPLCNet_x1_0'), epochs=360, LEARNING_RATE=dict(
        function='Cosine', params=dict(lr=0.8, warmup_epoch=5))),
    'EfficientNetB0': dict(OPTIMIZER=dict(function='RMSProp', params=dict(momentum=0.9, rho=0.9, epsilon=0.001),
                                          regularizer=dict(function='L2', factor=1e-5))),
    'ViT': dict(epochs=120, topk=5),
    'DeiT': dict(
        ARCHITECTURE=dict(name='DeiT_tiny_patch16_224', params=dict(drop_path_rate=0.1, dropout=0.0)),
        OPTIMIZER=dict(function='AdamW', params=dict(beta1=0.9, beta2=0.999, epsilon=1e-8),
                       regularizer=dict(function='L2', factor=0.05)),
        no_weight_decay=True, no_weight_decay_names=['norm', 'cls_token', 'pos_embed', 'dist_token'],
        LEARNING_RATE=dict(function='Cosine', params=dict(lr=1e-3, end_lr=1e-5, warmup_epoch=5, warmup_start_lr=1e-6))),
    'Swin': dict(no_weight_decay_names=['absolute_pos_embed', 'relative_position_bias_table', '.bias', 'norm'],
                 use_mix=True),
    'ConvNeXt': dict(
        accumulate=4, use_ema=True, ema_decay=0.9999, no_weight_decay=True, ls_epsilon=0.1,
        ARCHITECTURE=dict(name='ConvNeXt_tiny', params=dict(drop_path_rate=0.1, scale=1e-6))),
    'PPHGNet': dict(use_fp16=True, AMP=dict(scale_loss=128.0, use_dynamic_loss_scaling=True, level='O1')),
    'PPHGNetV2': dict(
        pretrained_model='PPHGNetV2_B0_ssld', use_fp16=True, epochs=200, LEARNING_RATE=dict(
            function='Cosine', params=dict(lr=0.5, warmup_epoch=5))),
    'MobileNetV4': dict(
        clip=dict(norm=5.0), use_fp16=True, use_ema=True, ema_decay=0.9998, image_shape=[3, 256, 256], use_mix=True,
        ARCHITECTURE=dict(name='MobileNetV4_conv_small', params=dict(dropout=0.25, drop_path_rate=0.03)),
        OPTIMIZER=dict(function='AdamW', params=dict(beta1=0.9, beta2=0.999, epsilon=1e-8),
                       regularizer=dict(function='L2', factor=0.06)), no_weight_decay=True),
    'GhostNet': dict(epochs=360, ls_epsilon=0.1, OPTIMIZER=dict(
        function='Momentum', params=dict(momentum=0.9), regularizer=dict(function='L2', factor=4e-5))),
    'RegNet': dict(ARCHITECTURE=dict(name='RegNetX_400MF'), image_shape=[3, 256, 256]),
    'RepVGG': dict(LEARNING_RATE=dict(function='Cosine', params=dict(lr=0.1))),
    'MobileViT': dict(no_weight_decay_names=['.bias', 'norm'], image_shape=[3, 256, 256]),
    'flowers': dict(classes_num=102, epochs=20, LEARNING_RATE=dict(
        function='Cosine', params=dict(lr=0.0125, warmup_epoch=5))),
}


@pytest.mark.parametrize('name', FILES)
def test_a_file_is_translated_with_its_values(name, capsys):
    keys, origin = translate(FILES[name])
    for key, value in EXPECTED[name].items():
        assert keys[key] == value, key
    old = FILES[name]['DataLoader']['Train']
    assert keys['TRAIN']['batch_size'] == local_batch_size(old['sampler']['batch_size'])
    assert keys['TRAIN']['file_list'] == './dataset/ILSVRC2012/train_list.txt'
    assert keys['TRAIN'].get('drop_last', False) == old['sampler']['drop_last']
    assert keys['VALID']['transforms'][-1] == {'ToCHWImage': None}
    assert origin['OPTIMIZER', 'function'] == ('Optimizer', 'name')
    assert (keys['model_save_dir'], keys['validate'], keys['print_interval']) == ('./output/', True, 10)
    said = capsys.readouterr().out
    assert said.count('\n') == 1
    assert 'Infer (' in said
    assert 'Global.save_inference_dir (' in said


@pytest.mark.parametrize('name', FILES)
def test_a_file_is_a_valid_recipe(name, tmp_path):
    conf = load_config(file_of(tmp_path, FILES[name]))
    assert conf.ARCHITECTURE.name in list_models()
    assert conf.ARCHITECTURE.name.startswith(FILES[name]['Arch']['name'])
    operations = FILES[name]['DataLoader']['Train']['dataset']['transform_ops']
    assert len(build_ops(conf.TRAIN.transforms)) == len(operations) + 1


@pytest.mark.parametrize('name', ['DeiT', 'ConvNeXt', 'MobileNetV4'])
def test_the_arguments_of_a_network_are_those_of_ours(name):
    settings = translate(FILES[name])[0]['ARCHITECTURE']
    model = create_model(settings['name'], class_num=2, **settings['params'])
    rates = [layer.drop for layer in model.sublayers() if isinstance(getattr(layer, 'drop', None), float)]
    assert max(rates) == pytest.approx(FILES[name]['Arch']['drop_path_rate'])
    assert getattr(model, 'dropout', None) is None or model.dropout.p == settings['params']['dropout']


def test_clipping_by_its_names():
    for section, norm in ((dict(name='AdamW', clip_grad=5.), 5.), (dict(name='Lamb', clip_grad=2.), 2.),
                          (dict(name='Lamb'), 1.), (dict(name='AdamW', clip_norm=3., clip_norm_global=True), 3.)):
        keys, _ = translate(dict(Optimizer=section))
        assert keys['clip'] == {'norm': norm}


def test_validation_in_half_precision_is_named(capsys):
    keys, _ = translate(dict(AMP=dict(AMP_ON, use_fp16_test=True)))
    assert keys['AMP'] == dict(scale_loss=128.0, use_dynamic_loss_scaling=True, level='O1')
    assert 'no effect here: AMP.use_fp16_test (validation is in float32)' in capsys.readouterr().out


def test_operations_of_transformers_are_built():
    keys, _ = translate(FILES['Swin'])
    train = keys['TRAIN']['transforms']
    assert train[1] == {'RandCropImage': dict(size=224, interpolation=cv2.INTER_CUBIC, backend='pil')}
    assert train[5]['RandomErasing']['sh'] == 1/3
    assert isinstance(build_ops([train[3]])[0], TimmAutoAugment)
    resize, = build_ops(keys['VALID']['transforms'][1:2])
    assert isinstance(resize, ResizeImage)
    assert resize.backend == 'pil'
    assert [(type(op).__name__, op.alpha, op.prob) for op in build_mix(keys['TRAIN']['mix'])] == [
        ('MixupOperator', 0.8, 0.5), ('CutmixOperator', 1.0, 0.5)]


def small(tmp_path, **changes):
    "A file that trains MobileNetV3_small_x0_35 on drawn images of 32 pixels."
    keys = recipe(dict(name='MobileNetV3_small_x0_35', class_num=2), momentum(2e-5, **cosine(0.1)), **changes)
    folder = drawn_lists(tmp_path)
    for part, name in (('Train', 'train'), ('Eval', 'val')):
        section = keys['DataLoader'][part]
        section['dataset'] |= dict(image_root=str(folder), cls_label_path=str(folder/f'{name}_list.txt'))
        section['sampler']['batch_size'] = 3
        section['loader']['num_workers'] = 0
    keys['Global']['device'] = 'cpu'
    return keys


def test_the_command_trains_by_a_file_with_overrides_in_its_words(tmp_path, capsys):
    file = file_of(tmp_path, small(tmp_path, mix=op_sampler(0.2)))
    code = main(['train', '-c', str(file), '-o', 'Global.epochs=2', f'Global.output_dir={tmp_path}',
                 'Global.image_shape=[3,32,32]', 'Optimizer.lr.learning_rate=0.05', 'save_interval=0'])
    said = capsys.readouterr()
    assert code == 0, said.err
    rows = (tmp_path/'later'/'metrics.jsonl').read_text().splitlines()
    assert len(rows) == 2
    conf = load_config(tmp_path/'later'/'config.yaml')
    assert (conf.epochs, conf.LEARNING_RATE.params.lr, conf.save_interval) == (2, 0.05, 0)
    assert [op.size for op in build_ops(conf.TRAIN.transforms) if hasattr(op, 'size')] == [32]
    assert main(['eval', '--run', str(tmp_path/'later')]) == 0


def test_a_transformer_file_trains_a_network_that_is_here(tmp_path):
    train = [{'TimmAutoAugment': dict(config_str='rand-m9-mstd0.5-inc1', interpolation='bicubic', img_size=224)}]
    keys = small(tmp_path, train=train, crop=CUBIC, resize=CUBIC, mix=op_sampler(0.8), EMA=dict(decay=0.99))
    keys['Optimizer'] = adamw('norm .bias', learning_rate=1e-3, eta_min=1e-5, warmup_epoch=1,
                              warmup_start_lr=1e-6)
    conf = load_config(file_of(tmp_path, keys), ['Global.epochs=2', 'Global.image_shape=[3,32,32]'])
    trainer = Trainer.from_config(conf, bar=False)
    assert trainer.optimizer.get_lr() == pytest.approx(1e-6)
    trainer.fit(1)
    assert trainer.step == 2
    assert np.isfinite(trainer.history[0]['train_loss'])


def change(path, value):
    "A function that sets the dotted `path` of a file."
    def function(keys):
        *sections, last = path.split('.')
        for name in sections:
            keys = keys.setdefault(name, {})
        keys[last] = value
    return function


@pytest.mark.parametrize('path, value, message', [
    ('Global.train_mode', 'progressive', 'Global.train_mode: has no counterpart here'),
    ('Global.device', 'xpu', "Global.device: 'xpu' has no counterpart here, expected 'cpu' or 'gpu'"),
    ('Global.eval_mode', 'retrieval', "Global.eval_mode: 'retrieval' has no counterpart here"),
    ('Arch.name', 'RecModel', 'Arch.name: RecModel has no counterpart'),
    ('Arch.head_init_scale', 2.0, 'Arch.head_init_scale: 2.0 has no counterpart here, expected 1'),
    ('Loss.Train', [{'CELoss': None}, {'CenterLoss': {}}], 'Loss.Train.CenterLoss: has no counterpart'),
    ('Loss.Train', [{'CELoss': {'weight': 0.5}}], 'a weight other than 1'),
    ('Optimizer.lr.name', 'OneCycle', "Optimizer.lr.name: 'OneCycle' has no counterpart"),
    ('Optimizer.lr.by_epoch', True, 'Optimizer.lr.by_epoch: True has no counterpart'),
    ('Optimizer.clip_norm', 5., 'Optimizer.clip_norm: clipping each gradient by itself'),
    ('DataLoader.Train.dataset.name', 'VeriWild', 'VeriWild has no counterpart here'),
    ('DataLoader.Train.dataset.name', 'MultiScaleDataset', 'MultiScaleDataset has no counterpart here'),
    ('DataLoader.Train.sampler.name', 'PKSampler', "'PKSampler' has no counterpart"),
    ('DataLoader.Train.sampler.shuffle', False, 'shuffle: False has no counterpart here, expected True'),
    ('DataLoader.Eval.Query', {'dataset': {'name': 'x'}}, 'DataLoader.Eval.Query.dataset.name: has no counterpart'),
    ('DataLoader.Train.dataset.batch_transform_ops', [{'MixupOperator': {}}, {'CutmixOperator': {}}],
     'several batch operations one after the other'),
    ('Metric.Eval', [{'Recallk': {'topk': [1, 5]}}], 'Metric.Eval.Recallk'),
    ('AMP', {'use_promote': True}, 'AMP.use_promote: True has no counterpart'),
    ('Slim', {'quant': {'name': 'pact'}}, "unknown key 'Slim'"),
    ('Optimizer.momentun', 0.9, "momentun"),
])
def test_what_has_no_counterpart_is_refused_by_name(path, value, message, tmp_path):
    keys = recipe(dict(name='ResNet18'), momentum(1e-4, **cosine(0.1)))
    change(path, value)(keys)
    with pytest.raises(PPClsError) as e:
        load_config(file_of(tmp_path, keys))
    assert message in str(e.value)
    assert 'later.yaml' in str(e.value)


def test_errors_name_the_line_of_the_file(tmp_path):
    keys = recipe(dict(name='ResNet18'), momentum(1e-4, **cosine(0.1)))
    keys['DataLoader']['Train']['dataset']['transform_ops'][1] = {'RandCropImag': {'size': 224}}
    file = file_of(tmp_path, keys)
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if 'RandCropImag' in text)
    with pytest.raises(PPClsError, match=f'later.yaml:{line}: .*RandCropImag'):
        load_config(file)


def test_official_weights_are_named_by_switches(tmp_path):
    keys = recipe(dict(name='ResNet50_vd', pretrained=True, use_ssld=True), momentum(1e-4, **cosine(0.1)))
    assert load_config(file_of(tmp_path, keys)).pretrained_model == 'ResNet50_vd_ssld'
    assert load_config(file_of(tmp_path, keys), ['Arch.use_ssld=False']).pretrained_model == 'ResNet50_vd'
    assert load_config(file_of(tmp_path, keys), ['Global.pretrained_model=./w/x']).pretrained_model == './w/x'
    with pytest.raises(PPClsError, match='there are no distilled weights of ResNet18 here'):
        load_config(file_of(tmp_path, keys), ['Arch.name=ResNet18'])


def test_the_official_weights_of_a_network_may_be_distilled_ones_only():
    found = {name: translate(dict(Arch=dict(name=name, pretrained=True)))[0]['pretrained_model']
             for name in list_models()}
    assert found['ResNet50_vd'] == 'ResNet50_vd'
    assert found['PPHGNetV2_B0'] == 'PPHGNetV2_B0_ssld'
    distilled = {f'{name}_ssld' for name in found} & set(list_pretrained())
    for name, weights in found.items():
        assert weights in list_pretrained() or f'{name}_ssld' not in distilled, name


def test_recipe_a1_of_resnet_maps_to_the_training_of_today():
    keys = recipe(
        dict(name='ResNet50'), dict(name='Lamb', beta1=0.9, beta2=0.999, epsilon=1e-6, weight_decay=0.01,
                                    no_weight_decay_name=' bn norm', one_dim_param_no_weight_decay=True,
                                    lr=cosine(5e-3, warmup_epoch=5)),
        mix=op_sampler(0.2), batch=256, Loss__Train=[{'BCELoss': dict(weight=1.0, epsilon=0.1)}],
        Global__image_channel=3)
    keys['DataLoader']['Train']['sampler']['name'] = 'RepeatedAugSampler'
    found, _ = translate(keys)
    assert (found['bce_loss'], found['ls_epsilon'], found['TRAIN']['aug_repeats']) == (True, 0.1, 3)
    assert found['clip'] == {'norm': 1.}
    assert found['no_weight_decay_names'] == ['bn', 'norm']


def test_a_file_with_several_labels(tmp_path):
    keys = recipe(dict(name='MobileNetV1', class_num=33, pretrained=True), momentum(4e-5, **cosine(0.1)),
                  Global__use_multilabel=True, Loss__Train=[{'MultiLabelLoss': {'weight': 1.0}}],
                  Loss__Eval=[{'MultiLabelLoss': {'weight': 1.0}}],
                  Metric=dict(Train=[{'HammingDistance': None}], Eval=[{'HammingDistance': None}]))
    for part in ('Train', 'Eval'):
        keys['DataLoader'][part]['dataset']['name'] = 'MultiLabelDataset'
    conf = load_config(file_of(tmp_path, keys))
    assert (conf.multilabel, conf.classes_num, conf.TRAIN.delimiter, conf.VALID.delimiter) == (True, 33, '\t', '\t')
    assert conf.pretrained_model == 'MobileNetV1'


def test_numbers_without_a_point_are_numbers(tmp_path):
    file = file_of(tmp_path, recipe(dict(name='ResNet18'), momentum(1e-4, **cosine(0.1))))
    file.write_text(file.read_text().replace('learning_rate: 0.1', 'learning_rate: 5e-4'))
    assert load_config(file).LEARNING_RATE.params.lr == 5e-4


def test_words_of_2x_do_not_change_another_recipe():
    with pytest.raises(PPClsError, match='override Global.epochs: a key of PaddleClas 2.x.*; here it is epochs'):
        load_config('ResNet/ResNet50', ['Global.epochs=2'])


def test_a_training_batch_that_is_never_full_is_refused(tmp_path):
    conf = load_config(file_of(tmp_path, small(tmp_path)), ['TRAIN.drop_last=True', 'TRAIN.batch_size=7'])
    with pytest.raises(PPClsError, match='TRAIN.drop_last: 6 images are no batch of 7'):
        Trainer.from_config(conf, bar=False)
    conf.TRAIN.batch_size = 4
    assert len(Trainer.from_config(conf, bar=False).data.train) == 1


@pytest.mark.parametrize('path, value, message', [
    ('Optimizer', 5, "Optimizer: 5, expected a section"),
    ('Arch', 'ResNet50', "Arch: 'ResNet50', expected a section"),
    ('Arch.scale', 'half', "Arch.scale: 'half', expected a number such as 0.5"),
    ('Optimizer.lr', 0.1, 'Optimizer.lr: 0.1, expected a section'),
    ('DataLoader.Eval.sampler', 'x', "DataLoader.Eval.sampler: 'x', expected a section"),
    ('Loss.Train', [{'CELoss': 5}], 'Loss.Train: CELoss: 5, expected its arguments'),
    ('Metric.Eval', [{'TopkAcc': {'topk': []}}], r'Metric.Eval.TopkAcc: topk is \[\], expected whole numbers'),
    ('Metric.Eval', [{'TopkAcc': {'topk': [1, 'five']}}], r"topk is \[1, 'five'\], expected whole numbers"),
    ('DataLoader.Train.dataset.batch_transform_ops', [{'OpSampler': 3}], 'OpSampler: 3, expected its arguments'),
    ('DataLoader.Train.dataset.batch_transform_ops', [{'OpSampler': {'MixupOperator': 3}}],
     'MixupOperator: 3, expected its arguments')])
def test_values_where_names_with_values_belong(path, value, message):
    keys = dict(Arch=dict(name='PPLCNet'), Optimizer=dict(name='Momentum', lr=dict(name='Cosine')))
    *sections, last = path.split('.')
    inner = keys
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[last] = value
    with pytest.raises(PPClsError, match=message):
        translate(keys)
