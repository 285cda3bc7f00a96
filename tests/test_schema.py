"The keys of a recipe: every mistake in a key, name, type or value is reported with its path and what was expected."
import pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.recipe.schema import check_functions, check_keys, check_names, network_names


def fail(path, message):
    raise PPClsError(f"{'.'.join(path)}: {message}")


@pytest.mark.parametrize('given, message', [
    (dict(epoch=3), "unknown key 'epoch'; did you mean 'epochs'"),
    (dict(TRAIN=dict(batchsize=3)), "unknown TRAIN key 'batchsize'; did you mean 'batch_size'"),
    (dict(batch_size=3), "unknown key 'batch_size'; it belongs to TRAIN or VALID"),
    (dict(TRAIN=3), 'TRAIN is 3, expected a section: batch_size, '),
    (dict(OPTIMIZER=dict(regularizer=dict(factr=1))),
     'OPTIMIZER.regularizer.factr: unknown OPTIMIZER regularizer key'),
    (dict(image_shape=224), 'image_shape is 224, expected a list'),
    (dict(LEARNING_RATE=dict(params=[3])), 'LEARNING_RATE.params: params is .3., expected names with values')])
def test_a_key_that_does_not_exist_or_has_another_type(given, message):
    with pytest.raises(PPClsError, match=message):
        check_keys(given, fail)


def test_parameters_of_functions_are_free_for_the_check_of_keys():
    check_keys(dict(epochs=3, TRAIN=dict(batch_size=1), LEARNING_RATE=dict(params=dict(anything=1))), fail)


@pytest.mark.parametrize('given, message', [
    (dict(LEARNING_RATE=dict(function='Cosin')), "unknown schedule 'Cosin'; did you mean 'Cosine'"),
    (dict(LEARNING_RATE=dict(function='Cosine', params=dict(gama=1))), "unknown parameter of Cosine 'gama'"),
    (dict(OPTIMIZER=dict(function='RMSprop')), "did you mean 'RMSProp'"),
    (dict(ARCHITECTURE=dict(name='ResNet50vd')), "unknown network 'ResNet50vd'; did you mean 'ResNet50_vd'"),
    (dict(TRAIN=dict(transforms=['DecodeImage', {'RandCrpImage': None}])),
     "TRAIN.transforms.1: TRAIN.transforms: unknown operation 'RandCrpImage'"),
    (dict(VALID=dict(transforms=[{'CropImage': {'sise': 3}}])), "unknown argument 'sise'; did you mean 'size'"),
    (dict(mode='trian'), 'expected train or valid'),
    (dict(ARCHITECTURE=dict(name='ResNet18_vd+ResNet34vd_distill_ResNet18')), "unknown network 'ResNet34vd'"),
    (dict(ARCHITECTURE=dict(name='ResNet18_vd_distill_')), "unknown network ''"),
    (dict(ARCHITECTURE=dict(teacher_engine='fast')), 'expected auto or eager or inference'),
    (dict(leakage='on'), "leakage is 'on', expected auto or same"),
    (dict(fix='head'), "fix is 'head', expected True or False or batch_norm"),
    (dict(distill=dict(kind='jss')), "unknown divergence 'jss'"),
    (dict(distill=dict(temprature=2)), 'its keys are arguments of JSDivLoss: kind, temperature'),
    (dict(TRAIN=dict(batch_size=0)), 'TRAIN.batch_size is 0, expected 1 or more')])
def test_a_name_or_value_that_does_not_exist(given, message):
    with pytest.raises(PPClsError, match=message):
        check_functions(given, fail)
        check_names(given, fail)


def test_steps_of_a_linear_schedule_are_accepted():
    check_functions(dict(LEARNING_RATE=dict(function='Linear', params=dict(lr=.1, steps=100, end_lr=0))), fail)


def test_leakage_may_be_false():
    check_names(dict(ARCHITECTURE=dict(name='ShuffleNetV2'), leakage=False), fail)


@pytest.mark.parametrize('name, teacher, student', [
    ('ResNet50_vd_distill_MobileNetV3_large_x1_0', 'ResNet50_vd', 'MobileNetV3_large_x1_0'),
    ('ResNeXt101_32x16d_wsl_distill_ResNet50_vd', 'ResNeXt101_32x16d_wsl', 'ResNet50_vd')])
def test_names_of_the_documents_distillations(name, teacher, student):
    assert network_names(name) == ([teacher], student)
    check_names(dict(ARCHITECTURE=dict(name=name)), fail)
