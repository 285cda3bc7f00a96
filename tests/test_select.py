"""Soft labels that survive being killed, several processes at once, a pool larger than memory should hold, and a recipe
that trains on the merged list."""
import csv, os, subprocess, sys, tracemalloc

import cv2, numpy as np, pytest, yaml

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.data.petals import draw_scene, make_species
from ppcls_nb.distill.select import top_k_per_class, write_merged_list
from ppcls_nb.distill.soft_labels import (ListedFiles, SoftLabels, _pack, _probabilities, _read, count_and_digest,
                                          op_repr, read_manifest, soft_labels, teacher_digest)
from ppcls_nb.models import create_model
from ppcls_nb.train import save_weights

OPS = eval_ops(32, 36)
HOW = dict(name='means', batch_size=4, shard_size=8, progress=False)
SCRIPT = '''
import sys, time
from ppcls_nb.data.imaug import eval_ops
from ppcls_nb.distill.soft_labels import ListedFiles, soft_labels
def means(images):
    print('batch', flush=True)
    time.sleep(float(sys.argv[3]))
    return 5*images.mean((2, 3))
out = soft_labels(means, ListedFiles(sys.argv[1]), eval_ops(32, 36), sys.argv[2], rank=int(sys.argv[4]),
                  ranks=int(sys.argv[5]), name='means', batch_size=4, shard_size=8, progress=False)
print(out.complete)
'''


def means(images): return 5*images.mean((2, 3))


@pytest.fixture(scope='module')
def pool(tmp_path_factory):
    "pool.txt with 60 lines: 58 drawn flowers, one file that is no image, one that is missing."
    home = tmp_path_factory.mktemp('pool')
    for i in range(58):
        cv2.imwrite(str(home/f'{i:02}.png'), draw_scene(make_species(7*(i%3) + 1), np.random.default_rng(i), 36))
    (home/'broken.jpg').write_bytes(b'no image')
    (home/'pool.txt').write_text(''.join(f'{name}\n' for name in [
        *(f'{i:02}.png' for i in range(20)), 'broken.jpg', *(f'{i:02}.png' for i in range(20, 58)), 'missing.jpg']))
    return home/'pool.txt'


def files(pool): return [str(pool.parent/name) for name in pool.read_text().split()]


@pytest.fixture(scope='module')
def straight(pool, tmp_path_factory):
    "The soft labels of a run without interruption."
    return soft_labels(means, files(pool), OPS, tmp_path_factory.mktemp('straight'), **HOW)


def start(pool, folder, pause=0., rank=0, ranks=1):
    arguments = [str(value) for value in (pool, folder, pause, rank, ranks)]
    return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', SCRIPT, *arguments], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})


def contents(folder): return {f.name: f.read_bytes() for f in sorted(folder.iterdir())}


def test_killed_in_the_middle_of_a_shard_then_the_same_call_is_bit_equal(pool, straight, tmp_path):
    process = start(pool, tmp_path, .15)
    for _ in range(6): assert process.stdout.readline() == 'batch\n'
    process.kill()
    process.wait(timeout=60)
    half = SoftLabels(tmp_path)
    assert not half.complete
    assert 0 < len(half.missing()) < half.shards == 8
    with pytest.raises(PPClsError, match='shards are missing; run soft_labels'): top_k_per_class(half, 3)
    partial = tmp_path/f'.{half.shard_file(half.missing()[0]).name}.abc.tmp'
    partial.write_bytes(b'what a process that was killed while it wrote leaves behind')
    seen = []
    done = soft_labels(lambda x: seen.append(len(x)) or means(x), files(pool), OPS, tmp_path, **HOW)
    assert done.complete
    assert len(seen) < 15
    assert contents(tmp_path) == contents(straight.folder)
    assert top_k_per_class(done, 9).rows == top_k_per_class(straight, 9).rows


def test_two_processes_share_the_work(pool, straight, tmp_path):
    process = start(pool, tmp_path, rank=0, ranks=2)
    mine = soft_labels(means, files(pool), OPS, tmp_path, rank=1, ranks=2, **HOW)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and 0 < out.count('batch') < 15, err
    assert (mine.complete or 'True' in out)
    assert contents(tmp_path) == contents(straight.folder)


def test_what_cannot_be_read_is_reported_and_left_out(pool, straight):
    reasons = {os.path.basename(f): reason for f, reason in straight.failed.items()}
    assert reasons['broken.jpg'].startswith('not an image')
    assert reasons['missing.jpg'] == 'No such file or directory'
    assert len(reasons) == 2
    assert len(straight) == 58
    assert not {'broken.jpg', 'missing.jpg'} & {os.path.basename(f) for s in straight for f in s.files}


@pytest.mark.parametrize('names, why', [
    ([], 'an empty pool'),
    (['broken.jpg'], 'none of the 1 images in the pool could be read; the first: .*broken.jpg: ')])
def test_a_pool_of_nothing(pool, tmp_path, names, why):
    with pytest.raises(PPClsError, match=why):
        soft_labels(means, [str(pool.parent/n) for n in names], OPS, tmp_path, **HOW)


def test_memory_holds_a_shard_and_the_chosen_ones():
    rng, n, classes, k = np.random.default_rng(0), 2000, 50, 20
    def shards(count):
        for s in range(count):
            p = rng.random((n, classes), np.float32)
            yield [f'{s}/{i}.jpg' for i in range(n)], p/p.sum(1, keepdims=True)
    peak = []
    for count in (5, 25):
        tracemalloc.start()
        assert not top_k_per_class(shards(count), k).short
        peak.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peak[1] < 1.2*peak[0]


def test_a_recipe_trains_on_the_merged_list(pool, straight, tmp_path):
    from ppcls_nb.recipe.build import Trainer, load_config
    labelled = tmp_path/'labelled.txt'
    labelled.write_text(''.join(f'{i:02}.png {i%3}\n' for i in range(8)))
    chosen = top_k_per_class(straight, 4, rank='any')
    merged = write_merged_list(labelled, chosen, tmp_path/'train_list.txt', labelled_root=pool.parent)
    save_weights(tmp_path/'teacher.pdparams', create_model('MobileNetV1_x0_25', class_num=3))
    ops = [{'DecodeImage': {}}, {'ResizeImage': {'size': [32, 32]}}, {'NormalizeImage': {'order': ''}},
           {'ToCHWImage': None}]
    data = dict(batch_size=8, data_dir=str(merged.root), transforms=ops, num_workers=0)
    recipe = dict(ARCHITECTURE={'name': 'MobileNetV1_x0_25_distill_MobileNetV1_x0_25'}, use_distillation=True,
                  pretrained_model=[str(tmp_path/'teacher')], classes_num=3, epochs=1,
                  LEARNING_RATE={'function': 'Cosine', 'params': {'lr': .01}},
                  OPTIMIZER={'function': 'Momentum', 'params': {'momentum': .9}},
                  TRAIN=dict(data, file_list=str(merged.list)),
                  VALID=dict(data, file_list=str(labelled), data_dir=str(pool.parent)),
                  model_save_dir=str(tmp_path/'out'))
    (tmp_path/'ssld.yaml').write_text(yaml.safe_dump(recipe))
    t = Trainer.from_config(load_config(tmp_path/'ssld.yaml'), run=tmp_path/'run', bar=False)
    assert len(t.data.train.dataset) == len(merged) == merged.labelled + merged.selected
    assert (t.data.train.dataset.labels == -1).sum() == merged.selected > 0
    t.fit(1)
    assert t.metric.total == len(merged)


# soft labels: shards, manifest, wrong arguments

def test_a_shard_comes_back_as_it_was_written(tmp_path):
    probs = np.random.default_rng(0).dirichlet([.3]*20, 5)
    np.savez(tmp_path/'some.npz', **_pack('abcde', probs, [('f', 'gone')], 3, 'float32'))
    s = _read(tmp_path/'some.npz')
    assert s.failed == [['f', 'gone']]
    assert s.classes.dtype == np.uint8
    assert len(s) == 5
    assert len(_pack([], np.zeros((0, 0), 'float32'), [], 3, 'float16')['score']) == 0
    (tmp_path/'some.npz').write_bytes((tmp_path/'some.npz').read_bytes()[:200])
    with pytest.raises(PPClsError, match='some.npz: a damaged shard'): _read(tmp_path/'some.npz')


@pytest.mark.parametrize('outputs, softmax, message', [
    (np.zeros(4), True, r'shape \(4,\), expected \(4, classes\)'), (np.zeros((3, 5)), True, 'shape'),
    (np.full((4, 5), np.nan), True, 'not finite'), (np.full((4, 5), .2), True, 'softmax=False'),
    (np.zeros((4, 5)), False, 'do not sum to 1')])
def test_outputs_that_a_teacher_cannot_give(outputs, softmax, message):
    with pytest.raises(PPClsError, match=message): _probabilities(outputs, 4, softmax)


def test_a_function_needs_a_name():
    with pytest.raises(PPClsError, match='type function cannot be identified: .* name='): teacher_digest(means)


def test_the_manifest_says_what_differs(tmp_path):
    (tmp_path/'manifest.json').write_text('{"teacher": "a", "images": 3}')
    with pytest.raises(PPClsError, match='soft labels of another dtype .None, now float16.'):
        read_manifest(tmp_path, dict(dtype='float16'))
    (tmp_path/'manifest.json').write_text('no JSON')
    with pytest.raises(PPClsError, match='not a manifest of soft labels'): read_manifest(tmp_path, {})
    (tmp_path/'manifest.json').unlink()
    (tmp_path/'shard-000000.npz').touch()
    with pytest.raises(PPClsError, match='missing, so the shards cannot be identified'): read_manifest(tmp_path, {})
    with pytest.raises(PPClsError, match='an empty pool'): count_and_digest(iter([]))


@pytest.mark.parametrize('change, what', [
    (dict(name='colors'), 'another teacher'), (dict(dtype='float32'), 'another dtype'),
    (dict(batch_size=9), 'another batch_size'), (dict(top=2), 'another top'), (dict(mirror=True), 'another mirror'),
    (dict(ops=eval_ops(32, 44)), 'other operations'), (dict(reverse=True), 'another list of images')])
def test_a_folder_of_other_soft_labels_is_refused(pool, straight, change, what):
    names = files(pool)[::-1] if change.get('reverse') else files(pool)
    options = {**HOW, **{k: v for k, v in change.items() if k not in ('ops', 'reverse')}}
    with pytest.raises(PPClsError, match=f'holds soft labels of {what}'):
        soft_labels(means, names, change.get('ops', OPS), straight.folder, **options)


def test_wrong_arguments(pool, tmp_path):
    with pytest.raises(PPClsError, match='dtype float8'):
        soft_labels(means, files(pool), OPS, tmp_path, **HOW, dtype='float8')
    with pytest.raises(PPClsError, match='expected 1 or more'):
        soft_labels(means, files(pool), OPS, tmp_path, **{**HOW, 'batch_size': 0})
    with pytest.raises(PPClsError, match='rank 2 of 2: expected 0…1'):
        soft_labels(means, files(pool), OPS, tmp_path, **HOW, rank=2, ranks=2)
    with pytest.raises(PPClsError, match='no soft labels here'): SoftLabels(tmp_path/'none')
    with pytest.raises(PPClsError, match='no such list file'): ListedFiles(tmp_path/'none.txt')


def test_the_best_classes_alone_can_be_stored(pool, straight, tmp_path):
    sparse = soft_labels(means, files(pool), OPS, tmp_path, **HOW, top=2)
    assert next(iter(sparse)).probs.shape[1] == 2
    assert (next(iter(sparse)).label == next(iter(straight)).label).all()


def test_operations_without_a_repr(pool, tmp_path):
    crop = lambda img, rng: img[:32, :32]
    assert ' at 0x' not in op_repr(crop)
    assert soft_labels(means, files(pool)[:3], [*OPS[:1], crop, *OPS[3:]], tmp_path, **HOW).complete


# top k of every class

SCORES = np.random.default_rng(0).dirichlet([.4]*4, 300).round(2).astype('float32')
NAMES = [f'{i:03}.jpg' for i in range(300)]


def by_definition(k, rank, least=0.):
    "The selection, without regard to memory."
    place = np.argsort(np.argsort(-SCORES, 1, kind='stable'), 1)
    rows = []
    for c in range(4):
        ranked = sorted((-SCORES[i, c].item(), NAMES[i]) for i in range(300)
                        if place[i, c] < rank and SCORES[i, c] >= least)
        rows += [(file, c, -score) for score, file in ranked[:k]]
    return rows


@pytest.mark.parametrize('shards', (1, 7, 300))
@pytest.mark.parametrize('k, rank, least', [
    (1, 1, 0.), (20, 1, 0.), (20, 2, 0.), (100, 1, .5), (400, 4, 0.), (50, 3, .3)])
def test_the_top_k_in_any_order_and_any_shards(k, rank, least, shards):
    order = np.random.default_rng(k + shards).permutation(300)
    parts = [([NAMES[i] for i in part], SCORES[part]) for part in np.array_split(order, shards)]
    got = top_k_per_class(parts, k, rank='argmax' if rank == 1 else rank, min_score=least)
    assert got.rows == by_definition(k, rank, least)
    assert got.total == 300


def test_rank_any_ranks_all_images_in_all_classes():
    assert top_k_per_class([(NAMES, SCORES)], 400, rank='any').rows == by_definition(400, 4)


def test_a_selection_of_some_classes_and_its_file(straight, tmp_path):
    assert top_k_per_class(straight, 3, classes=[2]).classes == [2]
    assert len(top_k_per_class(straight, 3, min_score=1.1)) == 0
    chosen = top_k_per_class(straight, 5)
    chosen.save(tmp_path/'chosen.csv')
    with open(tmp_path/'chosen.csv', newline='') as f: rows = list(csv.DictReader(f))
    first = [r for r in rows if r['class'] == rows[0]['class']]
    assert [r['place'] for r in first] == [str(i + 1) for i in range(len(first))]
    file, score = chosen.of(int(rows[0]['class']))[0]
    assert (rows[0]['file'], float(rows[0]['score'])) == (file, pytest.approx(score))


@pytest.mark.parametrize('k', (0, -1, 2.5, True, '3'))
def test_k_is_a_whole_number(k):
    with pytest.raises(PPClsError, match='expected a whole number'): top_k_per_class([(NAMES, SCORES)], k)


@pytest.mark.parametrize('options, message', [
    (dict(rank='all'), "rank is 'all'"), (dict(rank=0), 'rank is 0'),
    (dict(classes=[1, 7]), 'classes 1 to 7 asked for, the teacher knows 0…3')])
def test_wrong_selections(options, message):
    with pytest.raises(PPClsError, match=message): top_k_per_class([(NAMES, SCORES)], 3, **options)


def test_wrong_scores():
    with pytest.raises(PPClsError, match='there are no scores'): top_k_per_class([], 3)
    with pytest.raises(PPClsError, match='scores of shape .2,. for 2 images'):
        top_k_per_class([(['a', 'b'], [.5, .5])], 3)


# the merged list

def test_what_a_merged_list_leaves_out(pool, tmp_path):
    home = pool.parent
    labelled = tmp_path/'labelled.txt'
    labelled.write_text(''.join(f'{i:02}.png {i%3}\n' for i in range(8)))
    rows = [(str(home/'03.png'), 1, .5), (str(home/'20.png'), 1, .5), (str(home/'a\nb.png'), 0, .4)]
    merged = write_merged_list(labelled, rows, tmp_path/'merged.txt', home, root=home)
    assert (merged.labelled, merged.selected, merged.already, merged.unlistable) == (8, 1, 1, 1)
    assert 'left out: 1 selected images that are labelled, 1 images with names that' in repr(merged)


def test_lists_that_cannot_be_merged(pool, straight, tmp_path):
    home, out = pool.parent, tmp_path/'no.txt'
    chosen = top_k_per_class(straight, 4)
    (tmp_path/'two.txt').write_text('00.png 0\n00.png 1\n')
    with pytest.raises(PPClsError, match='is listed with label 0 and with 1'):
        write_merged_list(tmp_path/'two.txt', chosen, out, home)
    with pytest.raises(PPClsError, match=f'.png is outside of root .*{tmp_path.name}'):
        write_merged_list(None, chosen, out, root=tmp_path)
    with pytest.raises(PPClsError, match='no image was selected'): write_merged_list(None, [], out)
    with pytest.raises(PPClsError, match='list file cannot be read'):
        write_merged_list(tmp_path/'gone.txt', chosen, out)
    assert not out.exists()
