"""Counts what every network of the zoo costs, at the sizes at which its weights are evaluated, and writes
ppcls_nb/facts/costs.csv.

python tools/make_costs.py     (a minute or two; nothing is computed, see `models.zoo.network_costs`)
"""
import csv
from pathlib import Path

import ppcls_nb
from ppcls_nb.basics import atomic_path
from ppcls_nb.models.registry import fact_rows
from ppcls_nb.models.zoo import network_costs

FILE = Path(ppcls_nb.__file__).parent/'facts'/'costs.csv'


def pairs():
    "(network, size) of all official weights, each once."
    return list(dict.fromkeys((r['arch'], int(r['crop_size'])) for r in fact_rows('weights')))


def main():
    rows = [network_costs(*pair) for pair in pairs()]
    with atomic_path(FILE) as tmp, open(tmp, 'w', encoding='utf-8', newline='') as f:
        writer = csv.DictWriter(f, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    print(f'{FILE}: {len(rows)} networks')


if __name__ == '__main__': main()
