"Operations in a row, datasets and subsets in their corner cases (nbs/01_data/05a_transform and 06_datasets)."
import cv2, numpy as np, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.datasets import BadImage, ImageDataset, ListDataset, class_counts, subset
from ppcls_nb.data.lists import read_list
from ppcls_nb.data.transform import InPlaceOp, transform


class Dot(InPlaceOp):
    "A white dot at a random place."
    def paint(self, img, rng):
        y, x = rng.integers(0, [len(img) - 4, img.shape[1] - 4])
        img[y:y+4, x:x+4] = 255


def test_the_generator_decides():
    black = np.zeros((24, 24), np.uint8)
    assert (Dot()(black, np.random.default_rng(1)) == Dot()(black, np.random.default_rng(1))).all()


def test_one_generator_for_all_operations():
    seen = []
    def record(data, rng): seen.append(rng)
    transform(b'', [record, record])
    assert seen[0] is seen[1]


def test_no_operations():
    assert transform(7) == 7


def test_without_a_place_the_result_is_new():
    place = np.zeros((2, 2), np.uint8)
    def doubled(img, rng, out=None): return np.multiply(img, 2, out=out)
    doubled.supports_out = True
    def unpack(data, rng): return np.frombuffer(data, np.uint8).reshape(2, 2)
    assert transform(bytes(4), [unpack, doubled]) is not place
    assert transform(bytes(4), [unpack, doubled], out=place) is place


@pytest.fixture
def folder(tmp_path):
    "Four images in two classes, with a list file."
    lines = ''
    for i in range(4):
        cv2.imwrite(str(tmp_path/f'{i}.jpg'), np.full((16, 16, 3), 50*i, np.uint8))
        lines += f'{i}.jpg {i//2}\n'
    (tmp_path/'list.txt').write_text(lines)
    return tmp_path


@pytest.mark.parametrize('text, why', [
    ('0.jpg 0\n1.jpg', "list.txt:2: no label in '1.jpg'"),
    ('0.jpg 0\n1.jpg rose', "list.txt:2: label 'rose' is not a whole number"),
    ('0.jpg 0\n0.jpg 0\n1.jpg 6', 'list.txt:3: label 6 is out of range, expected 0…5'),
    ('1.jpg -1', ':1: label -1 is out of range'),
    ('0.jpg 0\n9.jpg 1', ':2: no such image: .*9.jpg'),
    ('png/0.jpg 1', ':1: no such image'),
    ('1.jpg 1.0', "label '1.0' is not"),
    ('\n \n', 'list.txt: the list is empty')])
def test_lists_that_are_refused(folder, text, why):
    (folder/'list.txt').write_text(text)
    with pytest.raises(PPClsError, match=why):
        read_list(folder/'list.txt', class_num=6)


def test_lists_that_cannot_be_read(folder):
    with pytest.raises(PPClsError, match='none.txt: list file cannot be read: No such file'):
        read_list(folder/'none.txt')
    with pytest.raises(PPClsError, match='not a text file'):
        read_list(folder/'0.jpg')
    (folder/'list.txt').write_text('rose.jpg')
    with pytest.raises(PPClsError, match=':1: no such image'):
        read_list(folder/'list.txt', labelled=False)


def decode(data, rng):
    img = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if img is None:
        raise PPClsError('not an image')
    return img


def brighten(img, rng): return img*rng.uniform(.5, 2.)


def test_samples_and_attributes(folder):
    ds = ListDataset(folder, folder/'list.txt', [decode, brighten])
    assert (len(ds), ds.class_num, ds.name) == (4, 2, folder.name)
    assert ds[3, 1][1].dtype == np.int64
    assert (ListDataset(folder, folder/'list.txt', [decode, brighten], seed=1)[3, 1][0] != ds[3, 1][0]).any()
    assert ListDataset(folder, folder/'list.txt', class_num=6).class_num == 6
    with pytest.raises(IndexError):
        ds[4]


def test_damaged_files_are_named(folder):
    ds = ListDataset(folder, folder/'list.txt', [decode])
    (folder/'1.jpg').write_bytes(b'GIF89a but not really')
    (folder/'2.jpg').write_bytes((folder/'2.jpg').read_bytes()[:100])
    (folder/'3.jpg').unlink()
    for i, why in ((1, 'not an image'), (2, 'not an image'), (3, 'No such file')):
        with pytest.raises(BadImage, match=f'{i}.jpg: {why}') as e:
            ds[i]
        assert e.value.path.endswith(f'{i}.jpg')
        assert e.value.reason.startswith(why)
    assert ds[0][0].shape == (16, 16, 3)
    with pytest.raises(PPClsError, match='TypeError in an operation') as e:
        ImageDataset(ds.paths, ds.labels, [decode, lambda img, rng: img/None])[0]
    assert isinstance(e.value.__cause__, TypeError)


def test_operations_for_an_epoch(folder):
    class Epoch:
        def at(self, epoch): return lambda img, rng: epoch
    ds = ImageDataset([str(folder/'0.jpg')], [0], [decode, Epoch()])
    assert [ds[epoch, 0][0] for epoch in (0, 2, 1)] == [0, 2, 1]
    assert ds.transforms[0] is decode
    assert ds.ops(1)[0] is decode


def test_counts_of_no_labels():
    assert class_counts([], 2).tolist() == [0, 0]
    with pytest.raises(TypeError):
        class_counts(np.array([.5]))


def test_an_empty_subset(folder):
    ds = ListDataset(folder, folder/'list.txt', [decode])
    assert len(subset(ds, [])) == 0
    part = subset(ds, [3, 1])
    assert part.class_num == 2
    assert part.labels.tolist() == [1, 0]
    assert part[0][1] == ds.labels[3]
