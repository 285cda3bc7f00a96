"The figures of the documents in the package's facts, cell by cell against the tables as they were printed."
import json, math, re
from pathlib import Path

import pytest

from ppcls_nb.basics import fact_rows

PRINTED = json.loads((Path(__file__).parent/'facts'/'documents.json').read_text(encoding='utf-8'))['pages']
NETWORK_PAGES = [page for page in PRINTED if page.startswith('models/') and page != 'models/Tricks']
DISTILL = 'advanced_tutorials/distillation/distillation'
AUGMENT = 'advanced_tutorials/image_augmentation/ImageAugment'
# table of the package → tables of the pages that it holds, in order
SOURCES = {
    'documents_networks': [(page, 0) for page in NETWORK_PAGES],
    'documents_teachers': [(DISTILL, 0)],
    'documents_students': [(DISTILL, 1), (DISTILL, 2)],
    'documents_transfer': [(DISTILL, 3)],
    'documents_backbones': [(DISTILL, 4)],
    'documents_augment_steps': [(AUGMENT, 0)],
    'documents_augment': [(AUGMENT, 1)],
    'documents_detection': [('application/object_detection', 0)],
    'documents_search': [('application/transfer_learning', 0)],
    'documents_large_scale': [('application/transfer_learning', 1)],
    'documents_tricks': [('models/Tricks', n) for n in range(6)],
    'documents_keys': [('tutorials/config', n) for n in range(3)],
    'documents_quick_start': [('tutorials/quick_start', 0)]}
# columns that name the table a row is from, which no printed cell holds
ADDED = {'documents_students': ['images'], 'documents_tricks': ['trick'], 'documents_keys': ['section']}
# printed → ours, where a cell is written differently
SPELLED = {'ResNete50_vd': 'ResNet50_vd', '-': '', r'\-': 'no', 'Y': 'yes'}
# several values in one printed cell: table and printed column → what separates them
SEPARATED = {
    ('documents_students', 'batch size/gpu cards'): '/',
    ('documents_backbones', 'train/test scale'): '/',
    ('documents_augment', 'Learning strategy'): '/',
    ('documents_tricks', 'Train acc1/acc5'): '/',
    ('documents_tricks', 'Test acc1/acc5'): '/',
    ('documents_tricks', 'Train_acc1/acc5'): '/',
    ('documents_tricks', 'Test_acc1/acc5'): '/',
    ('documents_large_scale', 'Statstics'): '<br />',
    ('documents_large_scale', 'Pretrained moel on ImageNet <br />Top-1(fixed)/Top-1(search)'): '/',
    ('documents_large_scale', 'Pretrained moel on large-scale dataset<br />Top-1(fixed)/Top-1(search)'): '/'}
# speeds and sizes: printed column → ours
SPEEDS = {
    'FP32Batch Size=1(ms)': 't4_ms', 'FP32Batch Size=4(ms)': 't4_b4_ms', 'FP32Batch Size=8(ms)': 't4_b8_ms',
    'FP16Batch Size=1(ms)': 't4_fp16_ms', 'FP16Batch Size=4(ms)': 't4_fp16_b4_ms',
    'FP16Batch Size=8(ms)': 't4_fp16_b8_ms', 'Batch Size=1(ms)': 'sd855_ms', 'Storage Size(M)': 'sd855_MB'}
# section → the figures of its text, in order
NUMBERS = {
    '2.1.1': [23, 117],
    '1.2.3': [79.12, 82.39, 75.32, 7169],
    '3.1.6': [.3, .5],
    '3.2.2': [4511, 4, 5, 75.6, 76.0, 76.2, 77.1, 78.5, 78.9],
    '3.2.3': [1.3, 120, 2048, 82.99, 83.7, 84.0, 1.15],
    '3.2.4': [.5],
    '4.1.1': [.00312],
    '4.1.2': [.00112, 20, 100_000, 43],
    '4.2.1': [41.6, 61, 47.8, 20, 1.2],
    '5.2.2': [30.7975, 18.21637, 9.97627, 30.84173, 18.18017, 9.96177],
    '5.3': [78.9, 75.9, 19.308, 14.395, 21, 10]}


def value(text):
    "A cell as a number, without its percent sign or the word before a colon, else as its text."
    text = re.sub(r'^\w+:(?=\d+$)', '', text or '')
    try:
        return float(text.removesuffix('%'))
    except ValueError:
        return text.strip('[]').replace(',', ' ').replace('，', ' ').split()


def printed_values(table, columns, row):
    "The values of a printed row."
    found = []
    for column, cell in zip(columns, row):
        cell = SPELLED.get(cell, cell)
        separator = SEPARATED.get((table, column))
        found += cell.split(separator) if separator else [cell]
    return [value(cell) for cell in found]


def own_values(table, row):
    "The values of a row of the package that were printed; a missing training accuracy was not."
    printed = {column: text for column, text in row.items() if column not in ADDED.get(table, [])}
    return [value(text) for column, text in printed.items()
            if text is not None or not column.endswith(('train_top1', '_top5'))]


def test_all_printed_tables_are_there():
    "All but the two of speeds of each family, which are in latency.csv."
    used = {source for sources in SOURCES.values() for source in sources}
    printed = {(page, n) for page, tables in PRINTED.items() for n in range(len(tables))}
    assert printed - used == {(page, n) for page in NETWORK_PAGES for n in (1, 2)}


@pytest.mark.parametrize('table', SOURCES)
def test_a_table_is_as_printed(table):
    printed = [(PRINTED[page][n]['columns'], row) for page, n in SOURCES[table] for row in PRINTED[page][n]['rows']]
    rows = fact_rows(table)
    assert len(rows) == len(printed)
    for (columns, cells), row in zip(printed, rows):
        expected = printed_values(table, columns, cells)
        if table == 'documents_tricks':
            expected = [v for v in expected if v != []]
        if table == 'documents_networks':      # figures that were not printed
            assert [value(text) for text in row.values()] == expected
        else:
            assert own_values(table, row) == expected


def test_reference_accuracies():
    rows = fact_rows('documents_networks')
    assert len(rows) == 121
    assert sum(row[column] is not None for row in rows for column in ('reference_top1', 'reference_top5')) == 113


def test_six_students_on_two_sets_of_images():
    rows = fact_rows('documents_students')
    assert [row['images'] for row in rows] == ['5 million']*6 + ['1.3 million']*6
    assert [row['student'] for row in rows[:6]] == [row['student'] for row in rows[6:]]
    best = {row['student']: float(row['top1']) for row in rows[6:]}
    assert best == {'MobileNetV1': 77.89, 'MobileNetV2': 76.73, 'MobileNetV3_large_x1_0': 78.96,
                    'MobileNetV3_small_x1_0': 71.28, 'ResNet50_vd': 82.39, 'ResNet101_vd': 83.73}


@pytest.mark.parametrize('page', NETWORK_PAGES)
def test_speeds_are_as_printed(page):
    ours = {row['tag']: row for row in fact_rows('latency')}
    for table in PRINTED[page][1:]:
        names = dict(SPEEDS)
        if 'FP16Batch Size=1(ms)' not in table['columns'] and 'Crop Size' in table['columns']:
            names['FP32Batch Size=1(ms)'] = 'v100_ms'
        for tag, *cells in table['rows']:
            for column, cell in zip(table['columns'][1:], cells):
                if column not in names:
                    continue
                own = ours[tag][names[column]]
                assert (own is None) == (cell in ('', '-')), (tag, column)
                assert own is None or math.isclose(float(own), float(cell)), (tag, column)


def test_numbers_of_the_text():
    found = {}
    for row in fact_rows('documents_numbers'):
        found.setdefault(row['section'], []).append(float(row['value']))
    assert found == NUMBERS
