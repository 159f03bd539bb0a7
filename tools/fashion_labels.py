"""Pre-trained against scratch on Fashion-MNIST (the part on board), with 1 %, 10 % and 100 % of the labels: one row a run.

    OMP_NUM_THREADS=1 python tools/fashion_labels.py results/fashion_labels.csv --seeds 0 1 2

A seed is everything's: the weights at the start, the masks, the order, and which labels are known. What is done is not done again: runs
are kept in runs/fashion and go on where they were stopped. About half an hour a seed on one core.
"""
import argparse, csv
from dataclasses import replace
from pathlib import Path
import torch
from mae_nb.core.files import read_json
from mae_nb.core.rng import seed_all
from mae_nb.data.datasets import load_images
from mae_nb.tasks.finetune import finetune
from mae_nb.data.labels import label_subset
from mae_nb.weights.hub import from_pretrained
from mae_nb.evaluate.knn import extract_features, knn_predict, linear_predict, raw_pixels
from mae_nb.core.files import read_jsonl
from mae_nb.model.mae import MaskedAutoencoderViT
from mae_nb.tasks.pretrain import pretrain
from mae_nb.tasks.config import FinetuneConfig, PretrainConfig, linprobe_defaults
from mae_nb.core.device import environment

PRETRAIN = PretrainConfig()
EPOCHS = {0.01: (300, 50), 0.1: (60, 64), 1.: (15, 64)}  # share of the labels: epochs, batch size; from scratch three times as long
TUNE = FinetuneConfig(encoder='-', eval_every=10_000, save_every=300, blr=5e-3, warmup_epochs=2.)
SCRATCH = replace(TUNE, encoder=None, model=PRETRAIN.model, layer_decay=None, head_init_std=0.02, blr=4e-3)

def tuned(base, home, seed, share, on, **values):
    "Train a classifier, unless it is there; accuracy and length of the run."
    epochs,batch = EPOCHS[share]
    epochs *= 1 if base.encoder else 3
    kind = 'scratch' if not base.encoder else f'blocks-{values["trainable_blocks"]:g}' if 'trainable_blocks' in values else 'tune'
    cfg = replace(base, seed=seed, label_fraction=share, epochs=epochs, batch_size=batch, warmup_epochs=epochs/20, resume='auto', **values, **on,
                  output_dir=f'{home}/{kind}-{share:g}-{seed}')
    log = read_jsonl(finetune(cfg)/'log.jsonl')
    return dict(top1=[r for r in log if 'top1' in r][-1]['top1'], epochs=epochs, steps=log[-1]['step'], seconds=next(r['seconds'] for r in log[::-1] if 'seconds' in r))

def probed(run, home, seed, share, n, on):
    "The linear probe of the paper, on cached features."
    batch = min(512, n)
    cfg = replace(linprobe_defaults, encoder=run, pool='avg', label_fraction=share, seed=seed, batch_size=batch, blr=6.4*256/batch, epochs=round(90*19/(n//batch)),
                         eval_every=10_000, save_every=1000, resume='auto', **on, output_dir=f'{home}/linear-{share:g}-{seed}')
    log = read_jsonl(finetune(cfg, log=lambda line: None)/'log.jsonl')
    return dict(top1=[r for r in log if 'top1' in r][-1]['top1'], epochs=cfg.epochs, steps=log[-1]['step'])

def frozen(features, train, seed):
    "kNN and the closed-form probe on features `(train, test)`, for each share of the labels."
    (f,y),(g,z) = features
    accuracy = lambda pred: round(100*(pred == z).float().mean().item(), 2)
    for share in EPOCHS:
        ids = torch.arange(len(y)) if share == 1 else label_subset(train, share, seed).ids
        for method,predict in ('kNN', lambda *a: knn_predict(*a, k=min(20, len(ids)//10))), ('linear, closed form', linear_predict):
            yield dict(method=method, labels=len(ids), top1=accuracy(predict(f[ids], y[ids], g)))

def one_seed(home, seed, epochs, on):
    "All rows of a seed; `on` says where data are and where it runs."
    run = pretrain(replace(PRETRAIN, seed=seed, epochs=epochs, warmup_epochs=epochs/20, output_dir=f'{home}/pretrain-{seed}', resume='auto', **on))
    sets = [load_images(on['data'], split, on['data_root']) for split in ('train', 'test')]
    seed_all(seed); untrained = MaskedAutoencoderViT(from_pretrained(run).cfg).eval()
    for start,model in ('pre-trained', from_pretrained(run, 'encoder')), ('random', untrained), ('pixels', None):
        feats = [raw_pixels(s, (28, 28)) if model is None else extract_features(model, s) for s in sets]
        for row in frozen(feats, sets[0], seed): yield dict(start=start, **row)
    for share in (0.1, 1., 0.01):
        n = round(share*len(sets[0]))
        yield dict(start='pre-trained', method='linear, LARS', labels=n, **probed(run, home, seed, share, n, on))
        yield dict(start='pre-trained', method='fine-tuned', labels=n, **tuned(TUNE, home, seed, share, on, encoder=str(run)))
        yield dict(start='random', method='fine-tuned', labels=n, **tuned(SCRATCH, home, seed, share, on))
    for blocks in (0.5, 1., 2., 3.):  # between the linear probe and fine-tuning, as in Fig. 9
        yield dict(start='pre-trained', method='partial', blocks=blocks, labels=round(0.1*len(sets[0])), **tuned(TUNE, home, seed, 0.1, on, encoder=str(run), trainable_blocks=blocks))

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('table', type=Path, help='CSV file to write')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--home', default='runs/fashion', help='folder for the runs')
    p.add_argument('--epochs', type=int, default=100, help='of pre-training')
    p.add_argument('--data', default='fashion', help="'FashionMNIST' for all 60 000 images")
    p.add_argument('--data_root'); p.add_argument('--device', default='cpu')
    args = p.parse_args()
    m,where = environment(args.device),dict(data=args.data, data_root=args.data_root, device=args.device)
    made_on = dict(device=m['device'], cpu=m['cpu'], threads=m['threads'], python=m['python'], torch=m['versions']['torch'], timm=m['versions']['timm'], commit=m['commit'])
    columns = ['seed', 'start', 'method', 'blocks', 'labels', 'top1', 'epochs', 'steps', 'seconds', *made_on]
    with open(args.table, 'w', newline='') as f:
        table = csv.DictWriter(f, columns); table.writeheader()
        for seed in args.seeds:
            for row in one_seed(args.home, seed, args.epochs, where): table.writerow(dict(row, seed=seed, **made_on)); f.flush()
