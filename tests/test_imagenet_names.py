"Official weights answer with the names of ImageNet's classes, in every command; other weights do not."
import hashlib

import ppcls_nb  # before paddle: sets the threads
import cv2, numpy as np, paddle, pytest
from fastapi.testclient import TestClient

from ppcls_nb.basics import PPClsError, fact_rows
from ppcls_nb.cli.select import require_same_names
from ppcls_nb.data.imagenet import as_imagenet_names, imagenet_names, imagenet_synsets
from ppcls_nb.deploy.export import read_export
from ppcls_nb.deploy.predict import Predictor
from ppcls_nb.deploy.serve import create_app
from ppcls_nb.models import create_model
from ppcls_nb.models.weights import all_weights
from ppcls_nb.recipe.trained import load_predictor
from ppcls_nb.train import save_weights
from small_run import ppcls

NETWORK = 'MobileNetV1_x0_25'
# labels as everybody uses them, from Caffe to torchvision
KNOWN = {0: ('n01440764', 'tench'), 1: ('n01443537', 'goldfish'), 2: ('n01484850', 'great white shark'),
         65: ('n01751748', 'sea snake'), 207: ('n02099601', 'golden retriever'), 281: ('n02123045', 'tabby'),
         285: ('n02124075', 'Egyptian cat'), 388: ('n02510455', 'giant panda'), 817: ('n04285008', 'sports car'),
         933: ('n07697313', 'cheeseburger'), 985: ('n11939491', 'daisy'), 999: ('n15075141', 'toilet tissue')}
WNIDS_SHA256 = '791ce0333040dd249d13133f90d28ef0263ffc01e5de0afd85b3e32048d7d456'


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder of cached weights with random ones under the official name, an image, and copies of the weights."
    folder, monkeypatch = tmp_path_factory.mktemp('home'), pytest.MonkeyPatch()
    monkeypatch.setenv('PPCLS_HOME', str(folder))
    monkeypatch.setenv('PPCLS_OFFLINE', '1')
    paddle.seed(0)
    network = create_model(NETWORK)
    (folder/'weights').mkdir()
    for path in (folder/'weights'/NETWORK, folder/f'{NETWORK}_pretrained', folder/'mine'):
        save_weights(f'{path}.pdparams', network)
    cv2.imwrite(str(folder/'image.png'), np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    yield folder
    monkeypatch.undo()


@pytest.fixture(scope='module')
def exported(home):
    assert ppcls('export', '-m', NETWORK, '-o', home/'exported', '--onnx', 'False')[0] == 0
    return home/'exported'


def first_word(out):
    "(label, rest of the first prediction) of the printed line of one image."
    _, first, *_ = out.strip().split('  ')
    label, _, rest = first.partition(' ')
    return int(label), rest


def test_the_table_of_classes():
    rows = fact_rows('imagenet_classes')
    assert [int(row['label']) for row in rows] == list(range(1000))
    assert {label: (rows[label]['wnid'], rows[label]['name']) for label in KNOWN} == KNOWN
    assert hashlib.sha256(' '.join(imagenet_synsets()).encode()).hexdigest() == WNIDS_SHA256
    assert len(set(imagenet_names())) == 1000
    assert all(row['name'].split()[0] in row['lemmas'] for row in rows)


def test_infer_with_official_weights(home):
    code, out, _ = ppcls('infer', '-m', NETWORK, '-i', home/'image.png', '--topk', 1)
    label, rest = first_word(out)
    assert code == 0
    assert rest.startswith(f'{imagenet_names()[label]} 0.')
    official = home/f'{NETWORK}_pretrained'
    assert ppcls('infer', '-m', NETWORK, '-p', official, '-i', home/'image.png', '--topk', 1)[1] == out


def test_weights_of_another_name_have_no_names(home):
    label, rest = first_word(ppcls('infer', '-m', NETWORK, '-p', home/'mine', '-i', home/'image.png', '--topk', 1)[1])
    assert rest.startswith('0.')


def test_an_official_name_with_other_classes_has_no_names(home, tmp_path):
    file = tmp_path/f'{NETWORK}_pretrained.pdparams'
    save_weights(file, create_model(NETWORK, class_num=5))
    assert load_predictor(NETWORK, file)[2] is None


def test_names_of_a_file_go_first(home, tmp_path):
    (tmp_path/'names.txt').write_text(''.join(f'thing {n}\n' for n in range(1000)))
    out = ppcls('infer', '-m', NETWORK, '-i', home/'image.png', '--topk', 1, '--classes', tmp_path/'names.txt')[1]
    label, rest = first_word(out)
    assert rest.startswith(f'thing {label} ')


def test_export_predict_and_serve(home, exported):
    assert read_export(exported).class_names == imagenet_names()
    label, rest = first_word(ppcls('predict', '-m', exported, '-i', home/'image.png', '--topk', 1)[1])
    assert rest.startswith(imagenet_names()[label])
    with TestClient(create_app(Predictor(exported))) as client:
        files = {'image': (home/'image.png').read_bytes()}
        top = client.post('/predict', files=files).json()['predictions'][0]['top'][0]
    assert (top['label'], top['name']) == (label, imagenet_names()[label])


def test_an_inference_model_without_a_record(home, exported, tmp_path):
    program = next(path for path in exported.iterdir() if path.name in ('inference.json', 'inference.pdmodel'))
    for source, name in ((program, program.name), (exported/'inference.pdiparams', 'inference.pdiparams')):
        (tmp_path/name).write_bytes(source.read_bytes())
    out = ppcls('predict', '-m', tmp_path, '--model_name', NETWORK, '-i', home/'image.png', '--topk', 1)[1]
    label, rest = first_word(out)
    assert rest.startswith(imagenet_names()[label])


def test_which_weights_are_of_imagenet():
    without = {tag for tag, record in all_weights().items() if record.class_names is None}
    assert without == {tag for tag, record in all_weights().items()
                       if record.class_num != 1000 or record.origin == 'made here'}
    assert 'ResNet50_vd_10w' in without
    assert 'EfficientNet_Lite0_imagenet' not in without


def test_a_list_of_imagenet_by_any_of_its_names(tmp_path):
    names, list_file = imagenet_names(), tmp_path/'train_list.txt'
    for written in (names, list(imagenet_synsets()), list(imagenet_synsets().values())):
        (tmp_path/'classes.txt').write_text(''.join(f'{n} {name}\n' for n, name in enumerate(written)))
        require_same_names(list_file, names)
    (tmp_path/'classes.txt').write_text('0 goldfish\n1 tench\n')
    with pytest.raises(PPClsError, match='goldfish, tench.*are not those of the teacher'):
        require_same_names(list_file, names)
    assert as_imagenet_names(names[::-1]) == names[::-1]
