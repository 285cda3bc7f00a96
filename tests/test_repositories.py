"""Exports for other servers: Triton's model repository by Triton's own schema, Paddle Serving's files by a schema with
the fields of its own, and the networks in both by running them."""
import shutil

import ppcls_nb  # before paddle: sets the threads
import numpy as np, paddle, pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2, text_format

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.deploy.export import export_model, read_export
from ppcls_nb.models.inference import PADDLE_3
from ppcls_nb.deploy.predict import Predictor
from ppcls_nb.deploy.repositories import prototxt, triton_config, write_serving, write_triton
from ppcls_nb.models import build_model
from small_run import check_refused, ppcls, train_run

NAMES = ['daisy', 'poppy', 'great mullein', 'gentian']
IMAGES = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)


@pytest.fixture(scope='module')
def network():
    paddle.seed(0)
    return build_model('MobileNetV1_x0_25', class_num=4)


@pytest.fixture(scope='module')
def folder(network, tmp_path_factory):
    return export_model(network, tmp_path_factory.mktemp('exported')/'flowers', eval_ops(32), NAMES, onnx=True)


@pytest.fixture(scope='module')
def expected(folder):
    return Predictor(folder).probabilities(IMAGES)


def test_text_format_of_every_kind_of_value():
    value = {'struct_value': {'fields': [
        {'key': 'a "quoted" \\ name\nof two lines, ä', 'value': {'number_value': -1.5e-7}},
        {'key': 'b', 'value': {'list_value': {'values': [{'bool_value': True}, {'string_value': ''}]}}}]}}
    parsed = text_format.Parse(prototxt(value), struct_pb2.Value()).struct_value
    assert parsed['a "quoted" \\ name\nof two lines, ä'] == -1.5e-7
    assert list(parsed['b']) == [True, '']


# ── Triton

@pytest.mark.parametrize('softmax', [False, True])
def test_a_model_of_triton_gives_probabilities(network, expected, tmp_path, softmax):
    onnxruntime = pytest.importorskip('onnxruntime')
    source = export_model(network, tmp_path/'export', eval_ops(32), NAMES, softmax=softmax, onnx=True)
    model = write_triton(source, tmp_path/'repository')
    assert model == tmp_path/'repository'/'MobileNetV1_x0_25'
    files = sorted(p.relative_to(model).as_posix() for p in model.rglob('*') if p.is_file())
    assert files == ['1/model.onnx', 'config.pbtxt', 'labels.txt']
    assert (model/'labels.txt').read_text().splitlines() == NAMES
    session = onnxruntime.InferenceSession(str(model/'1'/'model.onnx'), providers=['CPUExecutionProvider'])
    (source, ), (output, ) = session.get_inputs(), session.get_outputs()
    assert (source.name, source.shape[1:]) == ('image', [3, 32, 32])
    assert (output.name, output.shape[1:]) == ('probabilities', [4])
    assert not isinstance(source.shape[0], int)
    assert np.allclose(session.run(['probabilities'], {'image': IMAGES})[0], expected, atol=1e-5)


def test_the_configuration_by_tritons_schema(folder):
    reason = "needs Triton's schema: pip install 'tritonclient[grpc]'"
    schema = pytest.importorskip('tritonclient.grpc.model_config_pb2', reason=reason)
    record = read_export(folder)
    config = text_format.Parse(prototxt(triton_config(record, 'flowers', 8, .002)), schema.ModelConfig())
    assert (config.name, config.platform, config.max_batch_size) == ('flowers', 'onnxruntime_onnx', 8)
    (source, ), (output, ) = config.input, config.output
    assert (source.name, list(source.dims)) == ('image', [3, 32, 32])
    assert source.data_type == output.data_type == schema.TYPE_FP32
    assert source.format == schema.ModelInput.FORMAT_NCHW
    assert (output.name, list(output.dims), output.label_filename) == ('probabilities', [4], 'labels.txt')
    assert config.HasField('dynamic_batching')
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000


def test_only_the_folder_of_the_model_is_replaced(folder, tmp_path):
    (tmp_path/'other').mkdir()
    first = write_triton(folder, tmp_path)
    assert write_triton(folder, tmp_path) == first
    (first/'1'/'mine.txt').write_text('mine')
    with pytest.raises(PPClsError, match='holds 1, which is no part of a model of Triton; name another folder'):
        write_triton(folder, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['MobileNetV1_x0_25', 'other']
    assert (first/'1'/'mine.txt').exists()


def test_what_triton_cannot_have(network, folder, tmp_path):
    plain = export_model(network, tmp_path/'plain', eval_ops(32))
    with pytest.raises(PPClsError, match='has no inference.onnx, which Triton needs'):
        write_triton(plain, tmp_path/'repository')
    with pytest.raises(PPClsError, match='max_batch 0: expected a whole number of 1 or more'):
        triton_config(read_export(folder), 'flowers', 0)
    assert 'label_filename' not in prototxt(triton_config(read_export(plain), 'flowers'))
    assert not (tmp_path/'repository').exists()


# ── Paddle Serving

def serving_schema():
    "Paddle Serving's message GeneralModelConfig; the numbers and types of its fields are those of release 0.2.1."
    field = descriptor_pb2.FieldDescriptorProto
    schema = descriptor_pb2.FileDescriptorProto(name='general_model_config.proto', package='serving', syntax='proto2')
    text = field.TYPE_STRING
    kinds = {'name': (1, text), 'alias_name': (2, text), 'is_lod_tensor': (3, field.TYPE_BOOL)}
    for message, kind in (('FeedVar', 'feed_type'), ('FetchVar', 'fetch_type')):
        variable = schema.message_type.add(name=message)
        for name, (number, type_) in {**kinds, kind: (4, field.TYPE_INT32)}.items():
            variable.field.add(name=name, number=number, type=type_, label=field.LABEL_OPTIONAL)
        variable.field.add(name='shape', number=5, type=field.TYPE_INT32, label=field.LABEL_REPEATED)
    config = schema.message_type.add(name='GeneralModelConfig')
    for name, number, type_name in (('feed_var', 1, '.serving.FeedVar'), ('fetch_var', 2, '.serving.FetchVar')):
        config.field.add(name=name, number=number, type=field.TYPE_MESSAGE, type_name=type_name,
                         label=field.LABEL_REPEATED)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(schema)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName('serving.GeneralModelConfig'))


def test_the_files_of_paddle_serving(network, folder, tmp_path):
    serving = write_serving(network, folder, tmp_path/'serving')
    files = sorted(p.relative_to(serving).as_posix() for p in serving.rglob('*') if p.is_file())
    assert files == [
        'ppcls_client_conf/serving_client_conf.prototxt', 'ppcls_model/__model__', 'ppcls_model/__params__',
        'ppcls_model/serving_server_conf.prototxt']
    text = (serving/'ppcls_model'/'serving_server_conf.prototxt').read_text()
    assert (serving/'ppcls_client_conf'/'serving_client_conf.prototxt').read_text() == text
    config = text_format.Parse(text, serving_schema()())
    assert text_format.MessageToString(config) == text
    (feed, ), (fetch, ) = config.feed_var, config.fetch_var
    assert (feed.name, feed.alias_name, feed.feed_type, list(feed.shape)) == ('image', 'image', 1, [3, 32, 32])
    assert (fetch.alias_name, fetch.fetch_type, list(fetch.shape)) == ('prediction', 1, [4])
    assert not feed.is_lod_tensor
    assert fetch.name in (serving/'ppcls_model'/'__model__').read_bytes().decode('latin-1')


def test_the_program_of_paddle_serving_runs(network, folder, expected, tmp_path):
    serving = write_serving(network, folder, tmp_path/'serving')
    shutil.copy(serving/'ppcls_model'/'__model__', tmp_path/'network.pdmodel')
    shutil.copy(serving/'ppcls_model'/'__params__', tmp_path/'network.pdiparams')
    config = paddle.inference.Config(str(tmp_path/'network.pdmodel'), str(tmp_path/'network.pdiparams'))
    config.disable_gpu()
    config.disable_glog_info()
    predictor = paddle.inference.create_predictor(config)
    text = (serving/'ppcls_client_conf'/'serving_client_conf.prototxt').read_text()
    names = text_format.Parse(text, serving_schema()())
    feed = predictor.get_input_handle(names.feed_var[0].name)
    feed.copy_from_cpu(IMAGES)
    predictor.run()
    assert predictor.get_output_names() == [names.fetch_var[0].name] or not PADDLE_3
    outputs = predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()
    assert np.allclose(outputs, expected, atol=1e-5)


def test_another_network_or_folder_is_refused(folder, tmp_path):
    paddle.seed(1)
    with pytest.raises(PPClsError, match='Paddle Serving: the written program gives other outputs than the export'):
        write_serving(build_model('MobileNetV1_x0_25', class_num=4), folder, tmp_path/'serving')
    assert not (tmp_path/'serving').exists()
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'ppcls_model').write_text('a file')
    with pytest.raises(PPClsError, match='holds ppcls_model, which is no part of an export for Paddle Serving'):
        write_serving(build_model('MobileNetV1_x0_25', class_num=4), folder, tmp_path/'mine')


# ── the command

def test_the_command_writes_them(tmp_path):
    run = train_run(tmp_path).run
    serving = ['--serving', tmp_path/'serving']
    triton = ['--triton', tmp_path/'repository']
    code, out, err = ppcls('export', '-m', run, '-o', tmp_path/'exported', *serving, *triton)
    assert code == 0
    assert 'Paddle Serving: ' in out
    assert (tmp_path/'serving'/'ppcls_model'/'__model__').is_file()
    assert (tmp_path/'repository'/'MobileNetV1_x0_25'/'config.pbtxt').is_file()
    check_refused('--triton: needs inference.onnx', 'export', '-m', run, '--triton', tmp_path/'x', '--onnx', 'False')
