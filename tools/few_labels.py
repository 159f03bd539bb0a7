"""What pre-training is worth with few labels: pre-trained, untrained and raw pixels, each protocol; one row a result.

    OMP_NUM_THREADS=1 python tools/few_labels.py results/fashion_labels.csv --data fashion
    OMP_NUM_THREADS=1 python tools/few_labels.py results/cluttered_labels.csv --data cluttered_fashion

A seed determines everything: the initial weights, crops and masks, the order, and which labels are known. What is
done is not done again: runs are kept in runs/few_labels and resume where they were stopped. Several processes may run at
the same time, each with its own seeds and its own table (`--join` puts them together). `--pixels` makes the rows of raw
pixels alone, for which nothing is pre-trained.
"""
import argparse, csv
from dataclasses import replace
from pathlib import Path
import torch
from torch import nn
from mae_nb.core.device import environment
from mae_nb.core.files import read_jsonl
from mae_nb.core.rng import seed_all
from mae_nb.data.datasets import load_images
from mae_nb.data.labels import label_subset
from mae_nb.evaluate.knn import extract_features, knn_predict, linear_predict, raw_pixels
from mae_nb.model.config import mae_config
from mae_nb.model.mae import MaskedAutoencoderViT
from mae_nb.recipes import recipe
from mae_nb.tasks.config import linprobe_defaults
from mae_nb.tasks.finetune import FeatureDataset, FinetuneTask, finetune
from mae_nb.tasks.pretrain import pretrain
from mae_nb.train.engine import init_state, task_steps
from mae_nb.weights.hub import from_pretrained

PROTOCOLS = {  # name of the recipes, and epochs of pre-training
    'fashion': ('fashion', 100),
    'cluttered_fashion': ('cluttered', 40)}
SHARES = {0.01: (50, 100), 0.1: (64, 40), 1.: (64, 10)}  # of the labels: batch size and epochs of fine-tuning
COLUMNS = ['seed', 'start', 'method', 'pool', 'blocks', 'labels', 'top1', 'epochs', 'steps', 'seconds']
quiet = lambda line: None

class Seed:
    "All results of a seed."
    def __init__(self, data, seed, home, epochs, where):
        self.name,default = PROTOCOLS[data]
        self.base,self.tune,self.scratch = (recipe(self.name + kind).config for kind in ('', '_finetune', '_scratch'))
        self.seed,self.home,self.where = seed,home,where
        self.epochs = epochs or default

    def trained(self, cfg, name, share, epochs, batch, **values):
        "Train with labels, unless it is done; accuracy and length of the run."
        cfg = replace(cfg, seed=self.seed, label_fraction=share, epochs=epochs, batch_size=batch, eval_every=10_000,
                      resume='auto', output_dir=f'{self.home}/{name}-{share:g}-{self.seed}', **values, **self.where)
        log = read_jsonl(finetune(cfg, log=quiet)/'log.jsonl')
        top1 = [r for r in log if 'top1' in r][-1]['top1']
        seconds = next((r['seconds'] for r in log[::-1] if 'seconds' in r), None)
        return dict(top1=top1, epochs=epochs, steps=log[-1]['step'], seconds=seconds)

    def finetuned(self, start, share, **values):
        "Fine-tune, or train from scratch for three times as long."
        batch,epochs = SHARES[share]
        if start == 'pre-trained':
            name = f'blocks-{values["trainable_blocks"]:g}' if values else 'finetune'
            how = dict(encoder=str(self.run), warmup_epochs=epochs/20, **values)
            return self.trained(self.tune, name, share, epochs, batch, save_every=300, **how)
        epochs *= 3
        return self.trained(self.scratch, 'scratch', share, epochs, batch, save_every=300, warmup_epochs=epochs/20)

    def probed(self, start, share, n):
        "Train the paper's linear probe with LARS, on cached features of one pooling."
        batch,epochs,blr = self.probe_length(n)
        model = dict(encoder=str(self.run)) if start == 'pre-trained' else dict(model=self.base.model)
        how = dict(pool=self.tune.pool, blr=blr, save_every=1000, **model)
        return self.trained(linprobe_defaults, f'linear-{start}', share, epochs, batch, **how)

    def probe_length(self, n):
        "Batch size, epochs and base learning rate of the LARS probe: as many steps as 90 epochs of all labels, at 6.4."
        batch = min(512, n)
        return batch, round(90*19/(n//batch)), 6.4*256/batch

    def probed_pixels(self, pixels, labelled):
        "Train the same probe on raw pixels `(train, test)`, with these labels."
        (f,y),(g,z) = pixels
        batch,epochs,blr = self.probe_length(len(labelled))
        task = FinetuneTask(replace(linprobe_defaults, model=self.base.model, seed=self.seed, epochs=epochs,
                                    batch_size=batch, blr=blr, eval_every=10_000, **self.where))
        task.dataset = FeatureDataset(f[labelled], y[labelled])
        task.test = FeatureDataset(g, z)
        linear = nn.Linear(f.shape[1], task.model.head[-1].out_features)
        nn.init.trunc_normal_(linear.weight, std=task.cfg.head_init_std)
        nn.init.zeros_(linear.bias)
        task.model.head = nn.Sequential(nn.BatchNorm1d(f.shape[1], affine=False, eps=1e-6), linear)
        task.set_steps(len(task.dataset))
        for record in task_steps(task, init_state(task)): pass
        return dict(top1=round(task.evaluate(task.model)['top1'], 2), epochs=epochs, steps=task.total_steps)

    def labelled(self, train, share):
        "Which images of a training set have labels."
        if share == 1: return torch.arange(len(train))
        return torch.as_tensor(label_subset(train, share, self.seed).ids)

    def frozen(self, features, train):
        "kNN and the closed-form probe on features `(train, test)`, for each share of the labels."
        (f,y),(g,z) = features
        accuracy = lambda pred: round(100*(pred == z).float().mean().item(), 2)
        for share in SHARES:
            ids = self.labelled(train, share)
            k = min(20, len(ids)//10)
            yield dict(method='kNN', labels=len(ids), top1=accuracy(knn_predict(f[ids], y[ids], g, k=k)))
            yield dict(method='ridge', labels=len(ids), top1=accuracy(linear_predict(f[ids], y[ids], g)))

    def pixel_rows(self):
        "Raw pixels under every probe."
        sets = [load_images(self.where['data'], split, self.where['data_root']) for split in ('train', 'test')]
        pixels = [raw_pixels(s, mae_config(self.base.model).img_size) for s in sets]
        for row in self.frozen(pixels, sets[0]): yield dict(start='pixels', **row)
        for share in SHARES:
            labelled = self.labelled(sets[0], share)
            seed_all(self.seed)
            yield dict(start='pixels', method='LARS', labels=len(labelled), **self.probed_pixels(pixels, labelled))

    def rows(self):
        "All results, the fast ones first."
        yield from self.pixel_rows()
        how = dict(epochs=self.epochs, warmup_epochs=self.epochs/20, output_dir=f'{self.home}/pretrain-{self.seed}')
        self.run = pretrain(replace(self.base, seed=self.seed, resume='auto', **how, **self.where), quiet)
        sets = [load_images(self.where['data'], split, self.where['data_root']) for split in ('train', 'test')]
        seed_all(self.seed)
        trained = from_pretrained(self.run, 'autoencoder')
        encoders = {'pre-trained': trained, 'untrained': MaskedAutoencoderViT(trained.cfg).eval()}
        for start,model in encoders.items():
            for pool in ('avg', 'token'):
                features = [extract_features(model, s, pool) for s in sets]
                for row in self.frozen(features, sets[0]): yield dict(start=start, pool=pool, **row)
        for share in SHARES:
            n = round(share*len(sets[0]))
            for start in encoders:
                what = dict(start=start, pool=self.tune.pool, labels=n)
                yield dict(what, method='LARS', **self.probed(start, share, n))
                yield dict(what, method='fine-tuned', **self.finetuned(start, share))
        for blocks in (0.5, 1., 2., 3.) if self.name == 'fashion' else ():  # as in Fig. 9
            what = dict(start='pre-trained', method='partial', pool=self.tune.pool, blocks=blocks)
            what['labels'] = round(0.1*len(sets[0]))
            yield dict(what, **self.finetuned('pre-trained', 0.1, trainable_blocks=blocks))

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
    p.add_argument('--data', choices=[*PROTOCOLS, 'FashionMNIST'], default='fashion',
                   help='FashionMNIST: all 60 000 images, with the protocol of fashion')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4])
    p.add_argument('--home', default='runs/few_labels', help='folder for the runs')
    p.add_argument('--epochs', type=int, help="of pre-training; the protocol's if not given")
    p.add_argument('--pixels', action='store_true', help='the rows of raw pixels alone')
    p.add_argument('--data_root')
    p.add_argument('--device', default='cpu')
    args = p.parse_args()
    if args.join:
        found = [r for t in args.join for r in csv.DictReader(open(t, newline=''))]
        write(args.table, found[0], sorted(found, key=lambda r: int(r['seed'])))
        raise SystemExit
    m = environment(args.device)
    made_on = {k: m[k] for k in ('device', 'cpu', 'threads', 'python')}
    made_on |= dict(torch=m['versions']['torch'], timm=m['versions']['timm'], commit=m['commit'])
    where = dict(data=args.data, data_root=args.data_root, device=args.device)
    data = 'fashion' if args.data == 'FashionMNIST' else args.data
    seeds = (Seed(data, s, f'{args.home}/{args.data}', args.epochs, where) for s in args.seeds)
    write(args.table, [*COLUMNS, *made_on], (dict(row, seed=s.seed, **made_on) for s in seeds for row in (s.pixel_rows() if args.pixels else s.rows())))
