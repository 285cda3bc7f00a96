"""The zoo's data files against the networks: every weight has its line, what was published stays as it was published
(test_zoo.py counts the costs again)."""

import ppcls_nb  # before paddle: sets the threads
import paddle, pandas as pd, pytest

from make_costs import pairs
from ppcls_nb.basics import PPClsError, fact_rows
from ppcls_nb.models import build_model, list_models
from ppcls_nb.models.flops import count_flops
from ppcls_nb.models.layers import count_weights
from ppcls_nb.models.zoo import (GROUPS_TWICE, LINEAR_ONCE, WITH_NORMS, choose_network, explain, fact_table,
                                 flops_method, html_table, network_costs, params_method, search_zoo, without_computing,
                                 zoo_table)

# later weights have no archive of 2020
DOCUMENTS = {r['tag'] for r in fact_rows('weights') if r['legacy_url']}
COSTS = {(r['arch'], int(r['size'])): r for r in fact_rows('costs')}


def test_every_network_has_its_costs():
    assert set(COSTS) == set(pairs())
    assert {a for a, _ in COSTS} <= set(list_models())


@pytest.mark.parametrize('name', ['ResNet18_vd', 'MobileNetV1_x0_25', 'SE_ResNeXt50_32x4d', 'GoogLeNet'])
def test_counting_without_computing_is_counting(name):
    model, costs = build_model(name), COSTS[name, 224]
    assert count_weights(model) == int(costs['params'])
    assert count_flops(model) == int(costs['macs'])


def test_dynamic_mode_is_on_again_after_an_error():
    with pytest.raises(ZeroDivisionError):
        with without_computing():
            1/0
    assert paddle.in_dynamic_mode()


def test_published_figures_are_what_was_published():
    table, rows = zoo_table().set_index('tag'), {r['tag']: r for r in fact_rows('weights')}
    assert list(table.index) == list(rows)
    columns = dict(top1='top1', top5='top5', published_params_M='params_M', published_flops_G='flops_G')
    for tag, row in rows.items():
        for column, name in columns.items():
            value = table[column][tag]
            if row[name] is None:
                assert pd.isna(value), (tag, column)
            else:
                assert float(row[name]) == value, (tag, column)


def test_every_difference_has_a_reason():
    t = zoo_table()
    for kind in ('params_M', 'flops_G'):
        ours, theirs = t[kind], t[f'published_{kind}']
        far = ((theirs/ours - 1).abs() > 0.01) & ((theirs - ours).abs() > 0.0101)
        assert (t.reason[far] != '').all()
    assert t.tag[t.reason.str.contains('not explained')].tolist() == ['HRNet_W18_C']


def costs_of(arch):
    "The row of `facts/costs.csv` for 224 pixels, with numbers."
    return {k: v if k == 'arch' else int(v) for k, v in COSTS[arch, 224].items()}


def test_methods_of_counting():
    assert flops_method(250., costs_of('ResNeXt101_32x48d_wsl')) is None
    assert params_method(600., costs_of('ResNeXt101_32x48d_wsl')) is None
    # 0.44, and 0.01 for batch norms and activations
    assert flops_method(0.45, costs_of('MobileNetV3_large_x1_0')) == (WITH_NORMS,)
    assert flops_method(15.09, costs_of('VGG11')) == (LINEAR_ONCE,)
    assert explain('x', float('nan'), float('nan'), costs_of('ResNet50_vd')) == 'nothing published'
    assert explain('MobileNetV1', 4.19, 1.14, costs_of('MobileNetV1')) == f'{GROUPS_TWICE} (parameters)'


def test_explanations_of_single_figures():
    assert flops_method(9.01, costs_of('Res2Net50_vd_26w_4s')) in ((), (WITH_NORMS,))
    # a network that is in no paper, but in the documents' table
    shuffle = network_costs('ShuffleNetV2_x2_0', 224, widths=(224, 488, 976))
    assert flops_method(1.12, costs_of('ShuffleNetV2_x2_0')) is None
    assert flops_method(1.12, shuffle) is not None
    assert round(shuffle['params_twice']/1e6, 2) == 7.32
    assert round((costs_of('GoogLeNet')['params'] - 3*1025*1000)/1e6, 2) == 8.46
    assert flops_method(7.84, costs_of('ResNet34_vd')) == flops_method(15.62, costs_of('ResNet101')) == ()


def test_the_table_is_complete():
    table = zoo_table()
    assert len(DOCUMENTS) == 120
    assert set(table.tag) > DOCUMENTS
    assert table[['params_M', 'flops_G']].notna().all().all()
    assert table.set_index('tag').flops_off['Fix_ResNeXt101_32x48d_wsl'] < -0.4


def test_search():
    assert set(search_zoo('HRNet', columns=['tag']).tag) >= {'HRNet_W18_C'}
    assert len(search_zoo()) == zoo_table().top1.notna().sum() >= 120
    assert 'reason' in search_zoo(columns='all')
    assert search_zoo('nothing').empty
    with pytest.raises(PPClsError, match="flops_G='1': expected a number"):
        search_zoo(flops_G='1')


def test_an_html_table_with_special_characters():
    page = html_table(pd.DataFrame({'a': ['</script><b>', None], 'b': [1.5, float('nan')]}), name='x"y')
    assert page.count('</script>') == 1
    assert 'null' in page
    assert 'id="x&quot;y"' in page


@pytest.mark.parametrize('arguments, message', [
    (dict(params_M=0.1), r'no network with params_M ≤ 0.1; smallest params_M available: 0\.47\d* .MobileNetV1_x0_25'),
    (dict(top1=0.8, flops_G=0.5), r'no network with top1 ≥ 0.8 and flops_G ≤ 0.5; largest top1 available: 0\.8\d+ '
                                  '.*smallest flops_G'),
    (dict(cpums=3), "unknown column of the zoo 'cpums'; did you mean 'cpu_ms'"),
    (dict(pattern='Alex'), "no weights of the zoo match 'Alex'"),
    (dict(pattern='VGG*', by='sd855_ms'), "sd855_ms is not known for any of the weights that match 'VGG"),
    (dict(pattern='VGG*', sd855_ms=9), 'no network with sd855_ms ≤ 9; these values are not known for any of them')])
def test_budgets_that_nothing_fits(arguments, message):
    with pytest.raises(PPClsError, match=message):
        choose_network(**arguments)


def test_latencies():
    latency, cpu, table = fact_table('latency'), fact_table('cpu_latency'), zoo_table()
    assert latency.tag.is_unique
    assert DOCUMENTS <= set(latency.tag) & set(table.tag)
    assert (latency.drop(columns='tag').min() > 0).all()
    assert latency.t4_ms.notna().sum() == 127
    assert latency.sd855_ms.notna().sum() == 37
    assert set(zip(cpu.arch, cpu['size'])) >= {(r['arch'], int(r['crop_size'])) for r in fact_rows('weights')
                                               if r['tag'] in DOCUMENTS}
    assert (cpu.cpu_ms > 0).all()
    # a time means nothing without these
    assert cpu[['runs', 'threads', 'through', 'paddle', 'date', 'cpu']].notna().all().all()


def test_the_choice_can_be_built():
    assert choose_network(by='flops_G', top1=0.8).top1 >= 0.8
    best = choose_network(sd855_ms=10)
    assert best.arch in list_models()
    assert best.sd855_ms <= 10
