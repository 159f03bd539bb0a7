"""What pre-training is worth with few labels: pre-trained, untrained and raw pixels, under every protocol; one row a result.

    OMP_NUM_THREADS=1 python tools/few_labels.py results/fashion_labels.csv --data fashion
    OMP_NUM_THREADS=1 python tools/few_labels.py results/cluttered_labels.csv --data cluttered_fashion

A seed is everything's: the weights at the start, the crops and masks, the order, and which labels are known. What is done is not done again: runs
are kept in runs/few_labels and go on where they were stopped. Several processes, each with seeds of its own, may work beside each other, each on a table of its own (`--join` puts them together).
"""
import argparse, csv
from dataclasses import replace
from pathlib import Path
import torch
from mae_nb.core.device import environment
from mae_nb.core.files import read_jsonl
from mae_nb.core.rng import seed_all
from mae_nb.data.datasets import load_images
from mae_nb.data.labels import label_subset
from mae_nb.evaluate.knn import extract_features, knn_predict, linear_predict, raw_pixels
from mae_nb.model.mae import MaskedAutoencoderViT
from mae_nb.recipes import recipe
from mae_nb.tasks.config import linprobe_defaults
from mae_nb.tasks.finetune import finetune
from mae_nb.tasks.pretrain import pretrain
from mae_nb.weights.hub import from_pretrained

PROTOCOLS = {  # recipes of pre-training, fine-tuning and training from scratch; epochs of pre-training; batch size and epochs of fine-tuning for each share of the labels
    'fashion': ('fashion', 'fashion_finetune', 'fashion_scratch', 100, {0.01: (50, 100), 0.1: (64, 40), 1.: (64, 10)}),
    'cluttered_fashion': ('cluttered', 'cluttered_finetune', 'cluttered_scratch', 30, {0.01: (50, 100), 0.1: (64, 40), 1.: (64, 10)})}
COLUMNS = ['seed', 'start', 'method', 'pool', 'blocks', 'labels', 'top1', 'epochs', 'steps', 'seconds']
quiet = lambda line: None

class Seed:
    "All results of a seed."
    def __init__(self, data, seed, home, epochs, where):
        self.base,self.tune,self.scratch,default,self.shares = PROTOCOLS[data]
        self.seed,self.home,self.where = seed,home,where
        self.epochs = epochs or default

    def trained(self, cfg, name, share, epochs, batch, **values):
        "Train with labels, unless it is done; accuracy and length of the run."
        cfg = replace(cfg, seed=self.seed, label_fraction=share, epochs=epochs, batch_size=batch, eval_every=10_000, resume='auto', **values,
                      **self.where, output_dir=f'{self.home}/{name}-{share:g}-{self.seed}')
        log = read_jsonl(finetune(cfg, log=quiet)/'log.jsonl')
        top1 = [r for r in log if 'top1' in r][-1]['top1']
        seconds = next((r['seconds'] for r in log[::-1] if 'seconds' in r), None)
        return dict(top1=top1, epochs=epochs, steps=log[-1]['step'], seconds=seconds)

    def finetuned(self, start, share, **values):
        "Fine-tune, or train from scratch for three times as long."
        batch,epochs = self.shares[share]
        how = dict(save_every=300, **values)
        if start == 'pre-trained':
            name = f'blocks-{values["trainable_blocks"]:g}' if values else 'finetune'
            return self.trained(recipe(self.tune).config, name, share, epochs, batch, encoder=str(self.run), warmup_epochs=epochs/20, **how)
        return self.trained(recipe(self.scratch).config, 'scratch', share, 3*epochs, batch, warmup_epochs=3*epochs/20, **how)

    def probed(self, start, share, n):
        "Train the paper's linear probe with LARS, on cached features of one pooling."
        batch = min(512, n)
        model = dict(encoder=str(self.run)) if start == 'pre-trained' else dict(model=self.model)
        return self.trained(linprobe_defaults, f'linear-{start}', share, round(90*19/(n//batch)), batch, pool=recipe(self.tune).config.pool, blr=6.4*256/batch, save_every=1000, **model)

    def frozen(self, features, train):
        "kNN and the closed-form probe on features `(train, test)`, for each share of the labels."
        (f,y),(g,z) = features
        accuracy = lambda pred: round(100*(pred == z).float().mean().item(), 2)
        for share in self.shares:
            ids = torch.arange(len(y)) if share == 1 else label_subset(train, share, self.seed).ids
            for method,predict in ('kNN', lambda *a: knn_predict(*a, k=min(20, len(ids)//10))), ('ridge', linear_predict):
                yield dict(method=method, labels=len(ids), top1=accuracy(predict(f[ids], y[ids], g)))

    def rows(self):
        "All results, the fast ones first."
        base = recipe(self.base).config
        self.model = base.model
        self.run = pretrain(replace(base, seed=self.seed, epochs=self.epochs, warmup_epochs=self.epochs/20, output_dir=f'{self.home}/pretrain-{self.seed}', resume='auto', **self.where), quiet)
        sets = [load_images(self.where['data'], split, self.where['data_root']) for split in ('train', 'test')]
        seed_all(self.seed)
        trained = from_pretrained(self.run, 'autoencoder')
        encoders = {'pre-trained': trained, 'untrained': MaskedAutoencoderViT(trained.cfg).eval()}
        for row in self.frozen([raw_pixels(s, trained.cfg.img_size) for s in sets], sets[0]): yield dict(start='pixels', **row)
        for start,model in encoders.items():
            for pool in ('avg', 'token'):
                for row in self.frozen([extract_features(model, s, pool) for s in sets], sets[0]): yield dict(start=start, pool=pool, **row)
        for share in self.shares:
            n = round(share*len(sets[0]))
            for start in encoders:
                yield dict(start=start, method='LARS', pool=recipe(self.tune).config.pool, labels=n, **self.probed(start, share, n))
                yield dict(start=start, method='fine-tuned', pool=recipe(self.tune).config.pool, labels=n, **self.finetuned(start, share))
        for blocks in (0.5, 1., 2., 3.) if self.base == 'fashion' else ():  # between the linear probe and fine-tuning, as in Fig. 9
            yield dict(start='pre-trained', method='partial', blocks=blocks, labels=round(0.1*len(sets[0])), **self.finetuned('pre-trained', 0.1, trainable_blocks=blocks))

def write(path, columns, rows):
    "Write rows as they come."
    with open(path, 'w', newline='') as f:
        table = csv.DictWriter(f, columns)
        table.writeheader()
        for row in rows:
            table.writerow(row)
            f.flush()

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('table', type=Path, help='CSV file to write')
    p.add_argument('--join', type=Path, nargs='+', help='tables to put together instead, by seed')
    p.add_argument('--data', choices=[*PROTOCOLS, 'FashionMNIST'], default='fashion', help='FashionMNIST: all 60 000 images, with the protocol of fashion')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4])
    p.add_argument('--home', default='runs/few_labels', help='folder for the runs')
    p.add_argument('--epochs', type=int, help="of pre-training; the protocol's if not given")
    p.add_argument('--data_root'); p.add_argument('--device', default='cpu')
    args = p.parse_args()
    if args.join:
        found = [r for t in args.join for r in csv.DictReader(open(t, newline=''))]
        write(args.table, found[0], sorted(found, key=lambda r: int(r['seed'])))
        raise SystemExit
    m = environment(args.device)
    made_on = dict(device=m['device'], cpu=m['cpu'], threads=m['threads'], python=m['python'], torch=m['versions']['torch'], timm=m['versions']['timm'], commit=m['commit'])
    where = dict(data=args.data, data_root=args.data_root, device=args.device)
    data = 'fashion' if args.data == 'FashionMNIST' else args.data
    seeds = (Seed(data, s, f'{args.home}/{args.data}', args.epochs, where) for s in args.seeds)
    write(args.table, [*COLUMNS, *made_on], (dict(row, seed=s.seed, **made_on) for s in seeds for row in s.rows()))
