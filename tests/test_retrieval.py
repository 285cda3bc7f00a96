"Retrieval: embeddings of every kind of head, scores against scikit-learn's, and the command with images people have."
import json

import ppcls_nb  # before paddle: sets the threads
import numpy as np
import paddle
import pytest
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.datasets import BadImage
from ppcls_nb.data.lists import read_list
from ppcls_nb.deploy.retrieval import Gallery, classifier_layer, embed, embed_files, retrieval_scores
from ppcls_nb.models import build_model
from ppcls_nb.recipe.trained import load_predictor
from ppcls_nb.train import save_weights
from small_run import check_refused, ppcls, train_run


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    "`train_run`: a run on drawn flowers."
    return train_run(tmp_path_factory.mktemp('flowers'))


@pytest.fixture(scope='module')
def found(flowers, tmp_path_factory):
    "The validation images searched among the training images: (standard output, what was written)."
    file = tmp_path_factory.mktemp('found')/'found.json'
    code, out, _ = search(flowers, flowers.garden/'val_list.txt', '--json', file)
    assert code == 0
    return out, json.loads(file.read_text())


def photographs(flowers, n): return sorted((flowers.garden/'jpg').glob('*.jpg'))[:n]


def search(flowers, images, *more, gallery=None):
    "(exit code, standard output, error output) of `ppcls retrieve` with the run's network."
    gallery = gallery or flowers.garden/'train_list.txt'
    return ppcls('retrieve', '-m', flowers.run, '--gallery', gallery, '-i', images, *more)


# the last layer is a linear one, a convolution over maps, one of three, one below a head with a dot in its name
@pytest.mark.parametrize('name', ['MobileNetV3_small_x0_35', 'SqueezeNet1_1', 'GoogLeNet', 'ViT_small_patch16_224'])
def test_embeddings_of_every_kind_of_head(name):
    paddle.seed(0)
    net = build_model(name, class_num=3)
    net.train()
    size = 224 if name.startswith('ViT') else 96
    images = np.random.default_rng(0).standard_normal((2, 3, size, size)).astype('float32')
    first, again = embed(net, images), embed(net, images)
    np.testing.assert_allclose(first, again, atol=1e-6)                    # in evaluation mode, so without dropout
    assert net.training
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    assert not classifier_layer(net)._forward_pre_hooks


def test_a_layer_without_classifier_is_refused():
    with pytest.raises(PPClsError, match="Conv2D: has no layer 'fc'"):
        classifier_layer(paddle.nn.Conv2D(3, 4, 3))


def test_the_most_similar_ones_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    vectors, queries = (rng.standard_normal((n, 8)).astype('float32') for n in (30, 7))
    vectors, queries = (v/np.linalg.norm(v, axis=1, keepdims=True) for v in (vectors, queries))
    similarities, indices = Gallery(vectors, range(30)).search(queries, 4)
    expected = cosine_similarity(queries, vectors)
    np.testing.assert_array_equal(indices, np.argsort(-expected, axis=1)[:, :4])
    np.testing.assert_allclose(similarities, -np.sort(-expected, axis=1)[:, :4], atol=1e-6)


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    vectors, queries = (rng.standard_normal((n, 6)).astype('float32') for n in (40, 9))
    labels, wanted = rng.integers(0, 4, 40), rng.integers(0, 4, 9)
    scores = retrieval_scores(Gallery(vectors, range(40), labels), queries, wanted, (1, 3))
    similarity = queries @ vectors.T
    precision = [average_precision_score(labels == label, row) for row, label in zip(similarity, wanted)]
    np.testing.assert_allclose(scores['mAP'], np.mean(precision), rtol=1e-6)
    for k in (1, 3):
        hits = [label in labels[np.argsort(-row)[:k]] for row, label in zip(similarity, wanted)]
        assert scores[f'recall@{k}'] == np.mean(hits)


def test_a_class_that_the_gallery_lacks_is_not_found_and_not_in_the_mean_precision():
    gallery = Gallery(np.eye(3), range(3), [0, 1, 2])
    assert retrieval_scores(gallery, np.eye(3)[:2], [0, 7], (1,)) == {'recall@1': 0.5, 'mAP': 1.0}


def test_galleries_that_cannot_be_searched():
    with pytest.raises(PPClsError, match='the gallery has no images'):
        Gallery(np.zeros((0, 4)), [])
    with pytest.raises(PPClsError, match='the gallery has no labels'):
        retrieval_scores(Gallery(np.eye(2), 'ab'), np.eye(2), [0, 1])


def test_images_of_a_run_are_searched(flowers, found):
    _, written = found
    lines = (flowers.garden/'val_list.txt').read_text().splitlines()
    assert len(written['predictions']) == len(lines)
    for row in written['predictions']:
        scores = [entry['score'] for entry in row['top']]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 5


def test_an_image_of_the_gallery_is_most_similar_to_itself(flowers, tmp_path):
    search(flowers, flowers.garden/'train_list.txt', '--topk', 1, '--json', tmp_path/'found.json')
    for row in json.loads((tmp_path/'found.json').read_text())['predictions']:
        assert row['top'][0]['score'] == pytest.approx(1, abs=1e-4)


def test_labels_on_both_sides_give_scores(flowers, found):
    assert 'recall@1:' in found[0]
    code, out, _ = search(flowers, flowers.garden/'val_list.txt', gallery=flowers.garden)
    assert (code, 'recall@1:' in out) == (0, False)


def test_more_results_than_images(flowers, tmp_path):
    [image] = photographs(flowers, 1)
    search(flowers, image, '--topk', 9, '--json', tmp_path/'found.json', gallery=image)
    [row] = json.loads((tmp_path/'found.json').read_text())['predictions']
    assert len(row['top']) == 1


def test_damaged_images_are_named_and_the_others_found(flowers, tmp_path):
    pictures = tmp_path/'pictures'
    pictures.mkdir()
    for file in photographs(flowers, 3):
        (pictures/file.name).write_bytes(file.read_bytes())
    (pictures/'cut.jpg').write_bytes(file.read_bytes()[:60])
    code, _, err = search(flowers, pictures, '--json', tmp_path/'found.json', gallery=pictures)
    written = json.loads((tmp_path/'found.json').read_text())
    assert (code, len(written['predictions'])) == (1, 3)
    assert 'cut.jpg' in err


def test_a_gallery_of_damaged_images_is_refused(flowers, tmp_path):
    (tmp_path/'cut.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    check_refused('none of its images could be read', 'retrieve', '-m', flowers.run, '--gallery', tmp_path, '-i',
                  flowers.garden)


def test_lists_with_several_labels_have_no_scores(flowers, tmp_path):
    files = photographs(flowers, 2)
    (tmp_path/'list.txt').write_text(''.join(f'{file} {labels}\n' for file, labels in zip(files, ('0,1', '1,1'))))
    code, out, _ = search(flowers, tmp_path/'list.txt', gallery=tmp_path/'list.txt')
    assert (code, 'recall' in out) == (0, False)


def scores_of(out): return [line for line in out.splitlines() if line.startswith('recall')]


def test_an_image_of_the_gallery_does_not_count_for_itself(flowers, tmp_path):
    "The same list on both sides, and the gallery through a link: the scores of searching among the other images."
    train = flowers.garden/'train_list.txt'
    code, out, _ = search(flowers, train, '--topk', 3)
    assert code == 0
    assert '48 of them are in the gallery, too' in out
    [line] = scores_of(out)
    network, operations, _ = load_predictor(flowers.run)
    paths, labels = read_list(train)
    _, vectors = embed_files(network, operations, paths)
    expected = retrieval_scores(Gallery(vectors, paths, labels), vectors, labels, (1, 3), range(len(labels)))
    assert line.split()[:3] == [f'{name}:{value:.4f}' for name, value in expected.items()]
    (tmp_path/'linked').symlink_to(flowers.garden)
    _, again, _ = search(flowers, train, '--topk', 3, gallery=tmp_path/'linked'/'train_list.txt')
    assert scores_of(again) == [line]


@pytest.mark.parametrize('factor', [float('nan'), 0.])
def test_features_without_a_direction_are_similar_to_nothing(flowers, factor, tmp_path):
    net = build_model('MobileNetV1_x0_25', class_num=4)
    for p in net.parameters():
        p.set_value(p*factor)
    save_weights(tmp_path/'w.pdparams', net)
    check_refused('the features of the network are not finite, or all 0', 'retrieve', '-m', 'MobileNetV1_x0_25', '-p',
                  tmp_path/'w.pdparams', '--gallery', flowers.garden/'train_list.txt', '-i', flowers.garden/'jpg')
    first = photographs(flowers, 1)
    with pytest.raises(BadImage, match='not finite, or all 0'):
        embed_files(net, load_predictor(flowers.run)[1], first)


def test_lists_of_other_people_and_folders_with_other_files(flowers, tmp_path):
    "Tabs between path and labels, several labels: found, and it is said why there are no scores; notes are counted."
    files = photographs(flowers, 3)
    (tmp_path/'list.txt').write_text(''.join(f'{file}\t0,1\n' for file in files))
    code, out, err = search(flowers, tmp_path/'list.txt', '--delimiter', r'\t', gallery=tmp_path/'list.txt')
    assert (code, scores_of(out)) == (0, [])
    assert 'no scores: they need lists with one label for each image' in err
    _, _, err = search(flowers, files[0], gallery=flowers.garden)
    assert 'left out, without the suffix of an image' in err


@pytest.mark.parametrize('command', ['retrieve', 'infer'])
def test_a_run_and_other_weights(command, flowers):
    "-m RUN -p FILE: the run has weights of its own, so a network's name is expected."
    more = ['--gallery', flowers.garden] if command == 'retrieve' else []
    weights = flowers.run.parent/'other.pdparams'
    weights.write_bytes((flowers.run/'best.pdparams').read_bytes())
    check_refused(f'{flowers.run}: a file or folder, expected the name of a network', command, '-m', flowers.run, '-p',
                  weights, '-i', flowers.garden, *more)
