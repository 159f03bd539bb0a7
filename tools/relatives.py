"""The masked autoencoder and its relatives on one budget: the same images, encoder size and number of crops; one row a run.

    OMP_NUM_THREADS=1 python tools/relatives.py results/relatives.csv --processes 2
    OMP_NUM_THREADS=1 python tools/relatives.py results/relatives_steps.json --measure

Each run is pre-trained by a recipe `fashion` or `fashion_*` for the same number of epochs, in batches of 64 random crops, then evaluated
by one protocol: kNN and ridge regression on the mean of its states at every depth, and fine-tuned with 1 % and 10 % of the labels
(`relatives.tune`). The same networks with random weights, and raw pixels, go through the same evaluation. The seed sets weights,
order, crops and labels. Finished rows stay in the table, and interrupted runs, kept in runs/relatives, resume. `--measure` times
training steps of all methods, interleaved.
"""
import argparse, csv, json, signal, statistics, sys, time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
import torch
from tqdm.auto import tqdm
from mae_nb.core.device import environment
from mae_nb.core.files import atomic_write, read_jsonl, save_json
from mae_nb.data.datasets import load_images
from mae_nb.evaluate.knn import probe_features, raw_pixels
from mae_nb.model.config import mae_config
from mae_nb.recipes import recipe
from mae_nb.relatives.beit_run import BEiTTask, train_beit
from mae_nb.relatives.config import TuneConfig
from mae_nb.relatives.denoise import DenoiseTask, train_denoise
from mae_nb.relatives.igpt_run import IGPTTask, train_igpt
from mae_nb.relatives.mpp import MPPTask, train_mpp
from mae_nb.relatives.stack import StackTask, train_stack
from mae_nb.relatives.tune import load_relative, probe_layers, tune
from mae_nb.tasks.config import TokenizerConfig
from mae_nb.tasks.pretrain import PretrainTask, pretrain
from mae_nb.tasks.tokenizer import train_tokenizer
from mae_nb.train.engine import init_state, task_steps

DAE = 'fashion_denoise', train_denoise, DenoiseTask
IGPT = 'fashion_igpt', train_igpt, IGPTTask
once = dict(eval_every=1000)  # that is, at the end
METHODS = {  # by name: recipe, what trains it, its task, what differs from the recipe
    'MAE': ('fashion', pretrain, PretrainTask, {}),
    'DAE, Gaussian noise': (*DAE, dict(corruption='gaussian', amount=2**0.5)),
    'DAE, noise on components': (*DAE, dict(corruption='pca_gaussian', amount=2**0.5)),
    'DAE, masked patches': (*DAE, dict(corruption='masking', amount=0.75, emphasis=(1., 0.))),
    'stacked DAE': ('fashion_stack', train_stack, StackTask, dict(augment='rand_crop', flip=True)),
    'masked patch prediction': ('fashion_mpp', train_mpp, MPPTask, {}),
    'BEiT': ('fashion_beit', train_beit, BEiTTask, {}),
    'iGPT, BERT objective': (*IGPT, dict(objective='bert', **once)),
    'iGPT, causal': (*IGPT, dict(objective='causal', **once))}
random = dict(blr=0., min_lr=0.)  # the weights stay as they are
UNTRAINED = {  # the same networks, with random weights
    'untrained ViT': ('fashion', pretrain, PretrainTask, dict(max_steps=1, **random)),
    'untrained stack': ('fashion_stack', train_stack, StackTask, dict(max_steps=2, **random)),
    'untrained BEiT': ('fashion_beit', train_beit, BEiTTask, dict(max_steps=1, **random)),
    'untrained iGPT': (*IGPT, dict(max_steps=1, **once, **random))}
ALL = METHODS | UNTRAINED | {'pixels': None}
BATCH = 64
LABELS = {0.01: (50, 60), 0.1: (64, 20)}  # fraction of the labels: batch size and epochs of fine-tuning
COLUMNS = ['method', 'seed', 'epochs', 'finetuned_1', 'finetuned_10', 'linear', 'knn', 'linear_by_depth', 'knn_by_depth', 'loss', 'steps', 'seconds', 'tflops']
quiet = lambda line: None

def config_of(method, seed, epochs, home):
    "The configuration of a run."
    name,_,_,changes = ALL[method]
    cfg = recipe(name).config
    if name == 'fashion_beit': changes = changes | dict(tokenizer=f'{home}/tokenizer')
    folder = ''.join(c if c.isalnum() else '-' for c in method)
    return replace(cfg, seed=seed, epochs=epochs, batch_size=BATCH, warmup_epochs=min(1., cfg.warmup_epochs), device='cpu', resume='auto',
                   save_every=200, output_dir=f'{home}/{folder}-{epochs}-{seed}', **changes)

def train_beits_tokenizer(home):
    "The tokenizer of all runs of BEiT: its image is as large as the grid of patches needs, one code for each."
    grid = mae_config(recipe('fashion').config.model)
    side = grid.img_size[0]//grid.patch_size*4
    train_tokenizer(TokenizerConfig(img_size=(side, side), vocab_size=32, embed_dim=8, blr=8e-2, diversity_weight=0., device='cpu', resume='auto',
                                    output_dir=f'{home}/tokenizer'), quiet)

def flops_of(method, cfg):
    "FLOPs of a step's images, from the task."
    task = ALL[method][2](cfg)
    return task.flops_per_image*task.effective_batch

def result(method, seed, epochs, home):
    "Pre-train and evaluate; a row."
    torch.set_num_threads(1)
    if method == 'pixels': return pixels(seed)
    cfg = config_of(method, seed, epochs, home)
    run = ALL[method][1](cfg, quiet)
    log = [r for r in read_jsonl(run/'log.jsonl') if 'loss' in r]
    train,test = (load_images(cfg.data, split, cfg.data_root) for split in ('train', 'test'))
    probes = probe_layers(load_relative(run), train, test, batch_size=256, crop_pct=1.)
    row = dict(method=method, seed=seed, epochs=epochs, loss=round(log[-1]['loss'], 5), steps=log[-1]['step'], seconds=log[-1]['seconds'],
               tflops=round(flops_of(method, cfg)*log[-1]['step']/1e12, 3))
    for k in 'linear', 'knn': row |= {k: probes[-1][k], f'{k}_by_depth': json.dumps([p[k] for p in probes])}
    if method in UNTRAINED: row |= dict(loss=None, steps=0, seconds=0, tflops=0)
    for fraction,(batch,tuning) in LABELS.items():
        how = TuneConfig(encoder=str(run), data=cfg.data, label_fraction=fraction, batch_size=batch, epochs=tuning, warmup_epochs=tuning/20, seed=seed, device='cpu', crop_pct=1.,
                         eval_every=tuning, save_every=200, resume='auto', output_dir=f'{run}-tune-{fraction:g}')
        tops = [r['top1'] for r in read_jsonl(tune(how, quiet)/'log.jsonl') if 'top1' in r]
        row[f'finetuned_{100*fraction:g}'] = tops[-1]
    return row

def pixels(seed):
    "The same probes of raw pixels."
    cfg = recipe('fashion').config
    size = mae_config(cfg.model).img_size
    found = probe_features(*(raw_pixels(load_images(cfg.data, split, cfg.data_root), size) for split in ('train', 'test')))
    return dict(method='pixels', seed=seed) | {k: found[k] for k in ('linear', 'knn')} | {f'{k}_by_depth': json.dumps([found[k]]) for k in ('linear', 'knn')}

def write(path, columns, rows):
    "Write the table at once."
    order = list(ALL)
    def to(tmp):
        with open(tmp, 'w', newline='') as f:
            table = csv.DictWriter(f, columns)
            table.writeheader()
            table.writerows(sorted(rows, key=lambda r: (order.index(r['method']), int(r['seed']))))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, to)

def compare(args):
    "All runs that are not in the table yet; raise the first error when the others are done."
    rows = list(csv.DictReader(open(args.table, newline=''))) if args.table.exists() else []
    if others := {r['epochs'] for r in rows if r['epochs']} - {str(args.epochs)}:
        raise ValueError(f'{args.table} has runs of {", ".join(others)} epochs, not {args.epochs}: give another table')
    there = {(r['method'], int(r['seed'])) for r in rows}
    m = environment('cpu')
    made_on = dict(cpu=m['cpu'], torch=m['versions']['torch'], timm=m['versions']['timm'], commit=m['commit'])
    jobs = [(k, s) for s in args.seeds for k in args.methods if (k, s) not in there]
    if any('BEiT' in k for k,_ in jobs): train_beits_tokenizer(args.home)
    failed = []
    with ProcessPoolExecutor(args.processes, get_context('spawn')) as pool, tqdm(total=len(there) + len(jobs), initial=len(there), unit='run') as bar:
        going = {pool.submit(result, k, s, args.epochs, args.home): (k, s) for k,s in jobs}
        try:
            for found in as_completed(going):
                bar.update()
                if e := found.exception():
                    failed.append(e)
                    bar.write(f'{going[found]}: {e!r}')
                    continue
                rows.append(found.result() | made_on)
                write(args.table, [*COLUMNS, *made_on], rows)
        except BaseException:  # the others end with what they are at, and are not waited for in vain
            pool.shutdown(cancel_futures=True)
            raise
    if failed: raise failed[0]

def measure(args, rounds=20):
    "Seconds of a training step, interleaved; of a stack's, in its first layer."
    torch.set_num_threads(1)
    train_beits_tokenizer(args.home)
    names = [k for k in args.methods if k in METHODS]
    tasks = {k: METHODS[k][2](replace(config_of(k, 0, args.epochs, args.home), resume=None)) for k in names}
    steps = {k: task_steps(t, init_state(t)) for k,t in tasks.items()}
    times = {k: [] for k in steps}
    for i in tqdm(range(rounds + 3), unit='round'):
        for k,s in steps.items():
            begin = time.perf_counter()
            next(s)
            if i >= 3: times[k].append(time.perf_counter() - begin)
    found = {k: dict(seconds=statistics.median(v), images=tasks[k].effective_batch, tflop=tasks[k].flops_per_image*tasks[k].effective_batch/1e12) for k,v in times.items()}
    save_json(dict(result=found, rounds=rounds, environment=environment('cpu')), args.table)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('table', type=Path, help='CSV file to write; JSON with --measure')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--methods', nargs='+', choices=ALL, default=list(ALL), metavar='METHOD', help='; '.join(ALL))
    p.add_argument('--epochs', type=int, default=8, help='of pre-training')
    p.add_argument('--processes', type=int, default=2, help='parallel processes, with one thread each')
    p.add_argument('--home', default='runs/relatives', help='folder of the runs')
    p.add_argument('--measure', action='store_true', help='time training steps instead')
    args = p.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (measure if args.measure else compare)(args)
