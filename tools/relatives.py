"""The masked autoencoder and its relatives on one budget: the same images, encoder size and number of crops; one row a run.

    OMP_NUM_THREADS=1 python tools/relatives.py results/relatives.csv --processes 2
    OMP_NUM_THREADS=1 python tools/relatives.py results/relatives_steps.json --measure

Each run is pre-trained by a recipe `fashion` or `fashion_*` for the same number of epochs, then evaluated by one protocol:
kNN and ridge regression on the mean of its states at every depth, and fine-tuned with 1 % and 10 % of the labels
(`relatives.tune`). A seed is everything's. What is done is not done again: rows stay in the table, and runs, kept in
runs/relatives, go on where they were stopped. `--measure` times a training step of every method, one after the other, in turns.
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
from mae_nb.core.rng import seed_all
from mae_nb.data.datasets import load_images
from mae_nb.model.config import mae_config
from mae_nb.model.mae import MaskedAutoencoderViT
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

METHODS = {  # by name: recipe, what trains it, its task, what differs from the recipe
    'MAE': ('fashion', pretrain, PretrainTask, {}),
    'DAE, Gaussian noise': ('fashion_denoise', train_denoise, DenoiseTask, dict(corruption='gaussian')),
    'DAE, noise on components': ('fashion_denoise', train_denoise, DenoiseTask, dict(corruption='pca_gaussian')),
    'DAE, masked patches': ('fashion_denoise', train_denoise, DenoiseTask, dict(corruption='masking', amount=0.75, emphasis=(1., 0.))),
    'stacked DAE': ('fashion_stack', train_stack, StackTask, {}),
    'masked patch prediction': ('fashion_mpp', train_mpp, MPPTask, {}),
    'BEiT': ('fashion_beit', train_beit, BEiTTask, {}),
    'iGPT, BERT objective': ('fashion_igpt', train_igpt, IGPTTask, dict(objective='bert')),
    'iGPT, causal': ('fashion_igpt', train_igpt, IGPTTask, dict(objective='causal'))}
LABELS = {0.01: (50, 60), 0.1: (64, 20)}  # fraction of the labels: batch size and epochs of fine-tuning
COLUMNS = ['method', 'seed', 'epochs', 'finetuned_1', 'finetuned_10', 'linear', 'knn', 'linear_by_depth', 'knn_by_depth', 'loss', 'steps', 'seconds', 'tflops']
quiet = lambda line: None

def config_of(method, seed, epochs, home):
    "The configuration of a run."
    name,_,_,changes = METHODS[method]
    cfg = recipe(name).config
    if hasattr(cfg, 'tokenizer') and method == 'BEiT': changes = changes | dict(tokenizer=str(tokenizer(home)))
    folder = ''.join(c if c.isalnum() else '-' for c in method)
    return replace(cfg, seed=seed, epochs=epochs, warmup_epochs=min(1., cfg.warmup_epochs), device='cpu', resume='auto', save_every=200,
                   output_dir=f'{home}/{folder}-{epochs}-{seed}', **changes)

def tokenizer(home):
    "The tokenizer of BEiT: its size is that of the patches' grid, one code for each."
    grid = mae_config(recipe('fashion').config.model)
    side = grid.img_size[0]//grid.patch_size*4
    return train_tokenizer(TokenizerConfig(img_size=(side, side), device='cpu', resume='auto', output_dir=f'{home}/tokenizer'), quiet)

def flops_of(method, cfg):
    "FLOPs of a step's images, from the task."
    task = METHODS[method][2](cfg)
    return task.flops_per_image*task.effective_batch

def result(method, seed, epochs, home):
    "Pre-train and evaluate; a row."
    torch.set_num_threads(1)
    cfg = config_of(method, seed, epochs, home)
    run = METHODS[method][1](cfg, quiet)
    log = [r for r in read_jsonl(run/'log.jsonl') if 'loss' in r]
    train,test = (load_images(cfg.data, split, cfg.data_root) for split in ('train', 'test'))
    probes = probe_layers(load_relative(run), train, test, batch_size=256)
    row = dict(method=method, seed=seed, epochs=epochs, loss=round(log[-1]['loss'], 5), steps=log[-1]['step'], seconds=log[-1]['seconds'],
               tflops=round(flops_of(method, cfg)*log[-1]['step']/1e12, 3))
    for k in 'linear', 'knn': row |= {k: probes[-1][k], f'{k}_by_depth': json.dumps([p[k] for p in probes])}
    for fraction,(batch,tuning) in LABELS.items():
        how = TuneConfig(encoder=str(run), data=cfg.data, label_fraction=fraction, batch_size=batch, epochs=tuning, warmup_epochs=tuning/20, seed=seed, device='cpu',
                         eval_every=tuning, save_every=200, resume='auto', output_dir=f'{run}-tune-{fraction:g}')
        tops = [r['top1'] for r in read_jsonl(tune(how, quiet)/'log.jsonl') if 'top1' in r]
        row[f'finetuned_{100*fraction:g}'] = tops[-1]
    return row

def untrained(seed, home):
    "The encoder with random weights, by the same probes."
    torch.set_num_threads(1)
    cfg = recipe('fashion').config
    seed_all(seed)
    train,test = (load_images(cfg.data, split, cfg.data_root) for split in ('train', 'test'))
    from mae_nb.data.datasets import channel_stats
    mean,std = channel_stats(train)
    probes = probe_layers(MaskedAutoencoderViT(mae_config(cfg.model, mean=mean, std=std)).eval(), train, test, batch_size=256)
    row = dict(method='untrained', seed=seed)
    for k in 'linear', 'knn': row |= {k: probes[-1][k], f'{k}_by_depth': json.dumps([p[k] for p in probes])}
    return row

def write(path, columns, rows):
    "Write the table at once."
    order = ['untrained', *METHODS]
    def to(tmp):
        with open(tmp, 'w', newline='') as f:
            table = csv.DictWriter(f, columns)
            table.writeheader()
            table.writerows(sorted(rows, key=lambda r: (order.index(r['method']), int(r['seed']))))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, to)

def compare(args):
    "All runs that are not in the table yet."
    rows = list(csv.DictReader(open(args.table, newline=''))) if args.table.exists() else []
    there = {(r['method'], int(r['seed'])) for r in rows}
    m = environment('cpu')
    made_on = dict(cpu=m['cpu'], torch=m['versions']['torch'], timm=m['versions']['timm'], commit=m['commit'])
    jobs = [(k, s) for s in args.seeds for k in ('untrained', *args.methods) if (k, s) not in there]
    if 'BEiT' in args.methods: tokenizer(args.home)
    with ProcessPoolExecutor(args.processes, get_context('spawn')) as pool, tqdm(total=len(there) + len(jobs), initial=len(there), unit='run') as bar:
        going = [pool.submit(untrained, s, args.home) if k == 'untrained' else pool.submit(result, k, s, args.epochs, args.home) for k,s in jobs]
        for found in as_completed(going):
            rows.append(found.result() | made_on)
            write(args.table, [*COLUMNS, *made_on], rows)
            bar.update()

def measure(args, rounds=20):
    "Seconds of a training step, methods in turns."
    torch.set_num_threads(1)
    tasks = {}
    for k in args.methods:
        tasks[k] = METHODS[k][2](replace(config_of(k, 0, args.epochs, args.home), resume=None))
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
    p.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS), metavar='METHOD', help=f'among {", ".join(METHODS)}')
    p.add_argument('--epochs', type=int, default=8, help='of pre-training')
    p.add_argument('--processes', type=int, default=2, help='runs beside each other, with one thread each')
    p.add_argument('--home', default='runs/relatives', help='folder of the runs')
    p.add_argument('--measure', action='store_true', help='time a training step of each instead')
    args = p.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (measure if args.measure else compare)(args)
