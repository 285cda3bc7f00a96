"""The zoo's data files against the networks: every weight has its line, what was published stays as it was published
(test_zoo.py counts the costs again)."""

import ppcls_nb  # before paddle: sets the threads
import pytest

from make_costs import pairs
from ppcls_nb.models import list_models
from ppcls_nb.models.flops import count_flops
from ppcls_nb.models.layers import count_weights
from ppcls_nb.models import build_model
from ppcls_nb.models.registry import fact_rows
from ppcls_nb.models.zoo import choose_network, facts, zoo_table

COSTS = {(r['arch'], int(r['size'])): r for r in fact_rows('costs')}


def test_every_network_has_its_costs():
    assert set(COSTS) == set(pairs())
    assert {a for a, _ in COSTS} <= set(list_models())


@pytest.mark.parametrize('name', ['ResNet18_vd', 'MobileNetV1_x0_25', 'SE_ResNeXt50_32x4d', 'GoogLeNet'])
def test_counting_without_computing_is_counting(name):
    model = build_model(name)
    assert (count_weights(model), count_flops(model)) == (int(COSTS[name, 224]['params']), int(COSTS[name,
                                                                                                     224]['macs']))


def test_published_figures_are_what_was_published():
    table, rows = zoo_table().set_index('tag'), {r['tag']: r for r in fact_rows('weights')}
    assert list(table.index) == list(rows)
    for tag, r in rows.items():
        for column, name in dict(top1='top1', top5='top5', published_params_M='params_M',
                                 published_flops_G='flops_G').items():
            assert r[name] is None and table[column][tag] != table[column][tag] or float(
                r[name]) == table[column][tag], (tag, column)


def test_every_difference_has_a_reason():
    t = zoo_table()
    for kind in ('params_M', 'flops_G'):
        ours, theirs = t[kind], t[f'published_{kind}']
        far = ((theirs/ours - 1).abs() > 0.01) & ((theirs - ours).abs() > 0.0101)
        assert (t.reason[far] != '').all()
    assert t.tag[t.reason.str.contains('not explained')].tolist() == ['HRNet_W18_C']


def test_latencies():
    latency, cpu, table = facts('latency'), facts('cpu_latency'), zoo_table()
    assert latency.tag.is_unique
    assert table.tag.isin(latency.tag).all()
    assert (latency.drop(columns='tag').min() > 0).all()
    assert latency.t4_ms.notna().sum() == 127
    assert latency.sd855_ms.notna().sum() == 37
    assert set(zip(cpu.arch, cpu['size'])) == set(pairs())
    assert (cpu.cpu_ms > 0).all()
    # a time without these says nothing
    assert cpu[['runs', 'threads', 'through', 'paddle', 'date', 'cpu']].notna().all().all()


def test_the_choice_can_be_built():
    best = choose_network(sd855_ms=10)
    assert best.arch in list_models()
    assert best.sd855_ms <= 10
