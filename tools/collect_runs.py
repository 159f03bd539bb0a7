"""Collect the reports of runs into one table: a row per run and kind of features.

    for s in 0 1 2 3 4; do mae_pretrain --recipe cluttered --seed $s --output_dir runs/demo-$s; mae_report runs/demo-$s; done
    python tools/collect_runs.py results/demo.csv runs/demo-*
"""
import argparse, csv, json
from pathlib import Path

def rows(run):
    "The rows of one run."
    r = json.loads((run/'results.json').read_text()); m = r['machine']
    for x in r['rows']:
        yield dict(features=x['features'], knn=x['knn'], linear=x['linear'], seed=r['job']['seed'], data=r['job']['data'], model=r['job']['model'],
                   epochs=r['job']['epochs'], steps=r['last']['step'], seconds=r['last']['seconds'], loss=round(r['last']['loss'], 4),
                   hardware=f"{m['cores']} CPU cores" if m['device'] == 'cpu' else m['device'], threads=m['threads'], python=m['python'],
                   **{k: m['versions'][k] for k in ('torch', 'torchvision', 'timm')}, commit=m['commit'])

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('table', type=Path, help='CSV file to write')
    p.add_argument('runs', type=Path, nargs='+', help='folders of runs, each with results.json')
    args = p.parse_args()
    table = [row for run in args.runs for row in rows(run)]
    with open(args.table, 'w', newline='') as f:
        w = csv.DictWriter(f, table[0].keys()); w.writeheader(); w.writerows(table)
