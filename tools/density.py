"""Is text denser than images? Masked autoencoders and BERTs at masking ratios from 5 to 95 %; one row a run.

    OMP_NUM_THREADS=1 python tools/density.py results/density.csv --processes 2
    OMP_NUM_THREADS=1 python tools/density.py /tmp/small.csv --data austen --ratios 0.15 0.75 --seeds 0 --epochs 1 --home /tmp/small

Images are the bundled garments, the text is the King James Bible (`apt-get install bible-kjv`), the bundled openings of six
novels (`--data austen`), or a file. A kind is trained for the same number of epochs at each ratio. Measured are, on held-out data with
fixed masks of the same ratio, the fraction of the variance that is explained (and of the entropy that is removed, for words),
and, on frozen features of unmasked data, kNN and ridge regression: the class of a garment, the part of the text of a passage.
Other rows are for comparison: the untrained encoder of each seed, raw pixels and counts of words, and what the nearest visible
pixels and words explain without any encoder (for images, the mean image of the masked places, too).

Finished rows stay in the table; runs are kept in a folder and resume. Several processes, with one thread each, work in parallel.
The 42 trainings take about two hours of one core.
"""
import argparse, csv, multiprocessing, os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from tqdm import tqdm

RATIOS = (0.05, 0.15, 0.3, 0.5, 0.75, 0.9, 0.95)
EPOCHS = {'image': 8, 'text': 7}
COLUMNS = ('kind start ratio seed masked explained place removed nats accuracy knn linear epochs steps seconds data '
           'device cpu threads python torch timm commit').split()
KEY = 'kind', 'start', 'ratio', 'seed'
quiet = lambda line: None

class Images:
    "Masked autoencoders on garments."
    data = 'fashion'
    def __init__(self, args): self.args = args
    def config(self, seed, ratio, folder):
        from mae_nb.tasks.config import PretrainConfig
        epochs = self.args.epochs or EPOCHS['image']
        return PretrainConfig(data=self.data, mask_ratio=ratio, seed=seed, epochs=epochs, batch_size=64, warmup_epochs=epochs/10, max_steps=self.args.max_steps,
                              save_every=500, keep_checkpoints=1, output_dir=folder, resume='auto', device=self.args.device)
    def train(self, cfg):
        from mae_nb.tasks.pretrain import pretrain
        from mae_nb.weights.hub import from_pretrained
        return from_pretrained(pretrain(cfg, quiet), 'autoencoder').eval()
    def sets(self, seed=0):
        from mae_nb.data.bundled import fashion
        return fashion(), fashion('test')
    def untrained(self, seed):
        from mae_nb.core.rng import seed_all
        from mae_nb.model.mae import MaskedAutoencoderViT
        from mae_nb.tasks.config import PretrainConfig
        from mae_nb.tasks.pretrain import model_config
        seed_all(seed)
        return MaskedAutoencoderViT(model_config(PretrainConfig(), self.sets()[0])).eval()
    def probed(self, model, seed=0):
        from mae_nb.evaluate.knn import extract_features, probe_features, raw_pixels
        sets = self.sets()
        return probe_features(*(raw_pixels(s, (28, 28)) if model is None else extract_features(model, s, 'avg') for s in sets))
    def predicted(self, model, ratio, seed):
        "The fraction of the variance of masked patches, about the mean patch, that a model explains."
        import torch
        from mae_nb.core.rng import SampleRandom
        from mae_nb.data.datasets import normalise
        from mae_nb.relatives.neighbours import explained_patches
        train,test = (normalise(s.imgs, model.cfg.mean, model.cfg.std) for s in self.sets())
        scores = SampleRandom(0, [(0, i) for i in range(len(test))]).rand('picture', model.grid[0]*model.grid[1])
        with torch.no_grad(): out = [model(x, ratio, s) for x,s in zip(test.split(500), scores.split(500))]
        pred,mask = torch.cat([o.pred for o in out]), torch.cat([o.mask for o in out])
        patches = model.to_patches(test)[0]
        mean = model.to_patches(train)[0].mean((0, 1))
        return dict(masked=round(mask.mean().item(), 4), explained=explained_patches(pred, patches, mask, mean))

    def neighbours(self, ratio):
        "What the nearest visible pixels explain, by linear prediction, and what the mean image does."
        from mae_nb.relatives.neighbours import image_baselines
        train,test = (s.imgs/255 for s in self.sets())
        found = image_baselines(train, test[::4], 4, ratio)
        return dict(explained=found['linear'], place=found['place'])

class Text:
    "BERTs on a text."
    def __init__(self, args):
        self.args = args
        self.data = args.data
    def config(self, seed, ratio, folder):
        from mae_nb.relatives.config import BertConfig
        epochs = self.args.epochs or EPOCHS['text']
        return BertConfig(data=self.data, mask_ratio=ratio, seed=seed, epochs=epochs, blr=16e-3, warmup_epochs=epochs/10, max_steps=self.args.max_steps, replace_by_mask=1.,
                          replace_by_other=0., eval_every=None, save_every=500, keep_checkpoints=1, output_dir=folder, resume='auto', device=self.args.device)
    def train(self, cfg):
        from mae_nb.relatives.bert import load_bert
        from mae_nb.relatives.bert_run import train_bert
        return load_bert(train_bert(cfg, quiet))
    def sets(self, seed=0):
        from mae_nb.relatives.text import load_text, split_text
        cfg = self.config(seed, 0.15, 'runs/none')
        return split_text(load_text(self.data), cfg.seq_len, cfg.vocab_size, seed)
    def untrained(self, seed):
        from mae_nb.relatives.bert_run import BertTask
        return BertTask(self.config(seed, 0.15, 'runs/none')).model.cpu().eval()
    def probed(self, model, seed=0):
        from mae_nb.evaluate.knn import probe_features
        from mae_nb.relatives.bert import probe_passages, word_counts
        train,test = self.sets(seed)
        if model is not None: return probe_passages(model, train, test)[-1]
        return probe_features(*((word_counts(s), s.labels) for s in (train, test)))
    def predicted(self, model, ratio, seed):
        "What a model explains of masked words; at low ratios with several masks for each passage."
        from mae_nb.model.masking import num_keep
        from mae_nb.relatives.bert import predict_masked
        from mae_nb.relatives.text import explained_words, unigram
        train,test = self.sets(seed)
        removed = test.seq_len - num_keep(test.seq_len, ratio)
        masks = max(1, round(0.3*test.seq_len/removed))
        return dict(masked=round(removed/test.seq_len, 4), **explained_words(*predict_masked(model, test, ratio, masks), unigram(train)))

    def neighbours(self, ratio):
        "What the nearest visible words explain, by bigrams."
        from mae_nb.relatives.neighbours import text_baselines
        return text_baselines(*self.sets(), ratio)['bigrams']

KINDS = {'image': Images, 'text': Text}

def row(key, args):
    "Do one row: train, unless that is done, and measure."
    kind,start,ratio,seed = key
    import torch
    from mae_nb.core.device import environment
    from mae_nb.core.files import read_jsonl
    torch.set_num_threads(1)
    of = KINDS[kind](args)
    found = dict(zip(KEY, key), data=of.data)
    if start == 'trained':
        cfg = of.config(seed, ratio, f'{args.home}/{kind}-{of.data.replace("/", "_")}-{ratio:g}-{seed}')
        model = of.train(cfg)
        log = read_jsonl(f'{cfg.output_dir}/log.jsonl')
        found |= dict(epochs=cfg.epochs, steps=log[-1]['step'], seconds=next(r['seconds'] for r in log[::-1] if 'seconds' in r))
        found |= of.predicted(model, ratio, seed)
    elif start == 'untrained': model = of.untrained(seed)
    else: model = None
    if start == 'neighbours': found |= of.neighbours(ratio)
    else: found |= of.probed(model, seed)
    m = environment(args.device)
    made_on = {k: m[k] for k in ('device', 'cpu', 'threads', 'python', 'commit')} | {k: m['versions'][k] for k in ('torch', 'timm')}
    return {k: round(v, 5) if isinstance(v, float) else v for k,v in {**found, **made_on}.items()}

def wanted(args):
    "The keys of all rows: first those of the first seed, so that a table is of use early."
    for seed in args.seeds:
        for kind in args.kinds:
            if seed == args.seeds[0]:
                yield kind, 'input', '', seed
                yield from ((kind, 'neighbours', r, seed) for r in args.ratios)
            yield kind, 'untrained', '', seed
            yield from ((kind, 'trained', r, seed) for r in args.ratios)

def read(path, args):
    "The rows of a table, by key; raise `ValueError` if it is of other settings."
    rows = list(csv.DictReader(open(path, newline=''))) if path.is_file() else []
    for r in rows:
        data,epochs = KINDS[r['kind']](args).data,args.epochs or EPOCHS[r['kind']]
        if r['data'] != data or r['epochs'] not in ('', str(epochs)):
            raise ValueError(f'{path} is of other settings: {r["kind"]} {r["data"]}, {r["epochs"]} epochs, not {data}, {epochs}')
    return {tuple(str(r[k]) for k in KEY): r for r in rows}

def write(path, done):
    "Write the table, sorted, in the place of the old one."
    rows = sorted(done.values(), key=lambda r: (r['kind'], r['start'], float(r['ratio'] or 0), int(r['seed'])))
    with open(f'{path}.tmp', 'w', newline='') as f:
        table = csv.DictWriter(f, COLUMNS)
        table.writeheader()
        table.writerows(rows)
    os.replace(f'{path}.tmp', path)

def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('table', type=Path, help='CSV file to write, or to complete')
    p.add_argument('--kinds', nargs='+', choices=KINDS, default=list(KINDS))
    p.add_argument('--ratios', type=float, nargs='+', default=RATIOS)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--data', default='bible', help="the text: 'bible', 'austen' or a file")
    p.add_argument('--epochs', type=int, help=f"of each run; if not given, {EPOCHS['image']} for images and {EPOCHS['text']} for text")
    p.add_argument('--max_steps', type=int, help='of each run, to try it')
    p.add_argument('--processes', type=int, default=1, help='that work beside each other, with one thread each')
    p.add_argument('--home', default='runs/density', help='folder for the runs')
    p.add_argument('--device', default='cpu')
    return p.parse_args()

if __name__ == '__main__':
    args = arguments()
    os.environ |= dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1')  # of the processes, and of the bars in them
    done = read(args.table, args)
    todo = [k for k in wanted(args) if tuple(map(str, k)) not in done]
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context('spawn')) as pool, tqdm(total=len(todo), unit='run', disable=False) as bar:
        jobs = {pool.submit(row, key, args): key for key in todo}
        try:
            for job in as_completed(jobs):
                done[tuple(map(str, jobs[job]))] = job.result()
                write(args.table, done)
                bar.set_postfix_str(' '.join(map(str, jobs[job])))
                bar.update()
        except BaseException:  # the others end with what they are at, and are not waited for in vain
            pool.shutdown(cancel_futures=True)
            raise
