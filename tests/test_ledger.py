"The ledger of the tutorials, from run folders that were written without any training."
import json
from math import nan
from pathlib import Path

import numpy as np
import pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.course.ledger import (
    REPORTED_ACCURACY, REPORTED_NETWORKS, REPORTED_PIXELS, ROLE_TITLES, claim_sentence, claim_table,
    document_sentence, document_table, is_comparable, main, make_ledger, markdown_claims, markdown_roles,
    mean_and_error, origin, plot_ledger, read_ledger, role_table, verdict)
from ppcls_nb.course.profiles import load_profile
from ppcls_nb.data.prepare import DataInfo
from ppcls_nb.recipe.schema import network_names

PROFILES = Path(__file__).parents[1]/'nbs'/'00_tutorials'/'profiles'
CORRECT = dict(zip(ROLE_TITLES, (6, 24, 26, 22, 28, 30, 23)))      # of 40 images


def write_run(folder, role, seed, correct, images=40, steps=10, data='petals'):
    "A run folder with `correct` of the images right."
    path = folder/'runs'/role
    path.mkdir(parents=True)
    hits = np.zeros((images, 5), bool)
    hits[np.random.default_rng([seed, correct]).permutation(images)[:correct], 0] = True
    labels = np.arange(images)
    np.savez(path/'predictions.npz', hits=hits, labels=labels, predictions=np.where(hits[:, 0], labels, -1))
    row = dict(data=data, epoch=0, step=steps, seconds=3., valid_top1_correct=correct, valid_top5_correct=images,
               valid_total=images)
    (path/'metrics.jsonl').write_text(json.dumps(row) + '\n')
    (path/'config.yaml').write_text(f'seed: {seed}\nimage_shape: [3, 64, 64]\n'
                                    'ARCHITECTURE: {name: EfficientNetLite0}\n')


@pytest.fixture
def write_seed(tmp_path):
    "A function that writes the output of one seed and returns its folder."
    def write(name, seed, shift=0, **settings):
        for role, correct in CORRECT.items():
            write_run(tmp_path/name, role, seed, correct + shift, **settings)
        return tmp_path/name
    return write


@pytest.fixture
def folders(write_seed):
    return [write_seed(f'seed-{seed}', seed, shift) for seed, shift in enumerate((0, 1, -1))]


@pytest.mark.parametrize('points, errors, expected', [
    (2.1, (1.0,), 'gains'),
    (2.1, (1.0, 1.1), 'undecided'),
    (-2.1, (1.0,), 'loses'),
    (0, (1.0,), 'undecided'),
    (5.0, (nan, 1.0), 'gains'),
    (5.0, (), 'undecided'),
    (5.0, (nan,), 'undecided')])
def test_a_verdict_needs_two_standard_errors(points, errors, expected):
    assert verdict(points, *errors) == expected


def test_one_value_has_no_error():
    assert mean_and_error([1, 3]) == (2, 1)
    mean, error = mean_and_error([7])
    assert mean == 7
    assert np.isnan(error)


def test_a_ledger_has_counts_differences_and_errors(folders):
    ledger = make_ledger(folders, 'smoke')
    assert ledger['seeds'] == [0, 1, 2]
    assert ledger['roles']['server_scratch']['correct'] == [6, 7, 5]
    assert ledger['claims']['pretrained weights']['points'] == [45.0]*3
    assert ledger['claims']['pretrained weights']['image_error'] > 0
    assert all(ledger[key] for key in ('profile', 'data', 'date', 'ppcls_nb', 'processor', 'cores', 'paddle'))


def test_runs_that_cannot_be_compared_are_refused(folders, write_seed, tmp_path):
    with pytest.raises(PPClsError, match='metrics.jsonl is missing'):
        make_ledger([tmp_path])
    with pytest.raises(PPClsError, match=r'the folders have the seeds \[0, 0\]'):
        make_ledger([folders[0]]*2)
    with pytest.raises(PPClsError, match='20 steps, 40 images; .* 10 steps.* differ only in their seed'):
        make_ledger([folders[0], write_seed('longer', 7, steps=20)])
    with pytest.raises(PPClsError, match=r'different data \(flowers102, petals\)'):
        make_ledger([folders[0], write_seed('other', 8, data='flowers102')])


def test_tables_and_sentences(folders):
    ledger = make_ledger(folders, 'smoke')
    claims, roles = claim_table(ledger), role_table(ledger)
    assert claims.verdict['pretrained weights'] == 'gains'
    assert claims.verdict['RandomErasing, trained longer'] == 'undecided'
    assert roles.top1['server, from scratch'] == 15.0
    assert np.isnan(roles.documents.iloc[-1])
    assert claim_sentence(ledger, 'pretrained weights').endswith('gains')
    assert 'no ledger for this profile' in claim_sentence(None, 'pretrained weights')
    assert '3 seeds' in origin(ledger)
    assert '| pretrained weights | 45.0 ± ' in markdown_claims(ledger)
    assert markdown_roles(ledger).count('\n') == 8
    assert markdown_roles(ledger).endswith('| – |')


def test_the_ledger_of_one_seed_has_no_seed_error(folders):
    ledger = make_ledger(folders[:1])
    assert ', 1 seed,' in origin(ledger)
    assert '| 15.0 |' in markdown_roles(ledger)


def test_only_ledgers_are_read(folders, tmp_path):
    assert main([*map(str, folders), '--profile', 'smoke']) == 0
    assert read_ledger(folders[0]/'ledger.json') == make_ledger(folders, 'smoke')
    assert read_ledger(tmp_path/'none.json') is None
    (tmp_path/'other.json').write_text('{"roles": 3}')
    with pytest.raises(PPClsError, match='other.json: not a ledger of the tutorials'):
        read_ledger(tmp_path/'other.json')


def test_the_command_finds_the_seeds_of_a_course(write_seed, tmp_path, capsys):
    for seed, name in enumerate(('course', 'course/seed-1', 'course/seed-2')):
        write_seed(name, seed)
    assert main([str(tmp_path/'course'), '--seeds', '3']) == 0
    assert read_ledger(tmp_path/'course'/'ledger.json')['seeds'] == [0, 1, 2]
    assert main([str(tmp_path/'nothing')]) == 2
    assert 'ppcls-ledger: ' in capsys.readouterr().err


def test_the_picture_shows_each_role_while_training_and_at_the_end(folders, tmp_path):
    assert main([*map(str, folders), '--picture', str(tmp_path/'new'/'picture.png')]) == 0
    assert (tmp_path/'new'/'picture.png').read_bytes().startswith(b'\x89PNG')
    ledger = make_ledger(folders)
    curves, bars = plot_ledger(ledger, folders).axes
    assert [bar.get_width() for bar in bars.patches] == pytest.approx(role_table(ledger).top1.tolist())
    assert [line.get_ydata()[-1] for line in curves.lines] == pytest.approx(role_table(ledger).top1.tolist())
    assert [line.get_xdata().tolist() for line in curves.lines] == [[10]]*len(ROLE_TITLES)


# ── the accuracies of the documents

def gpu_ledger(**correct):
    "An invented ledger of the documents' networks: their accuracies on 1,020 images, unless `correct` says how many."
    counts = {role: round(1020*top1) for role, top1 in REPORTED_ACCURACY.items()} | {'mobile_alone': 900} | correct
    return dict(profile='gpu', roles={
        role: dict(network=REPORTED_NETWORKS[role.partition('_')[0]], pixels=REPORTED_PIXELS, steps=640, images=1020,
                   correct=[n]) for role, n in counts.items()})


@pytest.mark.parametrize('images, agrees', [(0, True), (10, True), (-10, True), (11, False), (-11, False)])
def test_an_accuracy_agrees_within_a_point(images, agrees):
    ledger = gpu_ledger(server_finetune=959 + images)     # 94.02 % of 1,020, then 10 images are 0.98 points
    table = document_table(ledger)
    assert len(table) == 6
    assert table.agrees[ROLE_TITLES['server_finetune']] == agrees
    assert table.agrees.sum() == 5 + agrees
    assert table.points[ROLE_TITLES['server_finetune']] == pytest.approx(100*(959 + images)/1020 - 94.02)
    assert document_sentence(ledger).startswith(f"{5 + agrees} of the documents' 6 accuracies")
    assert ('server, finetuned' in document_sentence(ledger)) != agrees


def test_other_networks_are_not_compared_with_the_documents(folders):
    ledger = make_ledger(folders, 'smoke')
    assert not is_comparable(ledger)
    with pytest.raises(PPClsError, match="the profile 'smoke' did not train the documents' networks"):
        document_table(ledger)
    smaller = gpu_ledger()
    smaller['roles']['mobile_distilled']['pixels'] = 192
    assert is_comparable(gpu_ledger())
    assert not is_comparable(smaller)


@pytest.mark.parametrize('role', REPORTED_ACCURACY)
def test_the_profile_gpu_trains_the_networks_of_the_documents(role):
    info = DataInfo('flowers102', Path('images'), Path('lists'), '', 102)
    conf = load_profile('gpu', PROFILES).recipe(role, info)
    assert network_names(conf.ARCHITECTURE.name)[1] == REPORTED_NETWORKS[role.partition('_')[0]]
    assert conf.image_shape[1] == REPORTED_PIXELS
