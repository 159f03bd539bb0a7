"""Pre-trained without labels, with labels, or not at all: segmentation and detection of the bundled scenes.

    OMP_NUM_THREADS=1 python tools/scenes.py results/scenes_rates.csv --tune --processes 2
    OMP_NUM_THREADS=1 python tools/scenes.py results/scenes.csv --processes 2

`MAE` is the recipe `scenes`: 10 000 other scenes, no labels. `supervised` learns to name the largest object of the
same images, for about as many FLOPs. Both start the recipes `scenes_segment` and `scenes_detect`; `scratch` starts at
random weights, trained for as long. `--tune` searches each start's learning rate with a tenth of the labels: trained
on 1600 of the 2000 labelled scenes, evaluated on the other 400; and that of supervised pre-training, on 8000 and 2000
of its scenes. (MAE's is the best of `mae_ablate lr`, on similar images.) It continues, by factors of two, while the
best rate is the highest or the lowest. Test images choose nothing. The held-out scenes are made of training images,
the test scenes of others. The comparison takes the best rates of that table, for all fractions of the labels. The
seed sets weights, order and labels. Finished rows stay in the table, and interrupted runs, kept in runs/transfer,
resume.
"""
import argparse, csv, multiprocessing, signal, sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from unittest import mock
import torch
from tqdm.auto import tqdm
from mae_nb.core.device import environment
from mae_nb.core.files import atomic_write, read_jsonl
from mae_nb.data.memory import TensorImages
from mae_nb.data.scenes import Scenes, labelled_scenes, scene_images
from mae_nb.recipes import recipe
from mae_nb.tasks.finetune import FinetuneTask, finetune
from mae_nb.tasks.pretrain import PretrainTask, pretrain
from mae_nb.transfer.detect import DetectTask, detect
from mae_nb.transfer.segment import SegmentTask, segment

STARTS = 'scratch', 'supervised', 'MAE'
TASKS = {  # by name: what trains it, its task, the metric that chooses the rate
    'segment': (segment, SegmentTask, 'mIoU'),
    'detect': (detect, DetectTask, 'box_AP')}
METRICS = 'top1', 'mIoU', 'mAcc', 'aAcc', 'box_AP', 'box_AP50', 'mask_AP', 'mask_AP50'
COLUMNS = ['task', 'start', 'labels', 'seed', 'blr', *METRICS, 'loss', 'steps', 'seconds', 'tflops',
           'pretrain_tflops']  # a row for each run
EPOCHS = {0.1: 40, 1.: 10}  # of training with a fraction of the labels
RATES = 8e-3, 1.6e-2, 3.2e-2  # to begin the search with
SUPERVISED_RATES = 2e-3, 4e-3, 8e-3  # of pre-training
common = dict(device='cpu', resume='auto', save_every=100)
quiet = lambda line: None

def pretrain_config(start, seed, blr, args):
    "The configuration that makes an encoder; the learning rate is that of supervised pre-training."
    folder = f'{args.home}/{start}-{args.epochs}-{seed}' + f'-{blr:g}'*(start == 'supervised')
    own = dict(seed=seed, output_dir=folder, **common)
    mae = recipe('scenes').config
    if start == 'MAE': return replace(mae, epochs=args.epochs, warmup_epochs=min(1., mae.warmup_epochs), **own)
    epochs = max(1, round(args.epochs*0.44))  # for as many FLOPs: the encoder sees all patches, and there is no decoder
    base = recipe('cluttered_scratch').config
    return replace(base, data='scenes', img_size=mae.img_size, label_fraction=1., batch_size=64, blr=blr,
                   epochs=epochs, warmup_epochs=min(1., epochs/10), eval_every=epochs, **own)

def encoder(start, seed, blr, args):
    "Pre-train, if there is anything to do; the run's folder, and its TFLOPs."
    torch.set_num_threads(1)
    cfg = pretrain_config(start, seed, blr, args)
    train,task = (pretrain, PretrainTask) if start == 'MAE' else (finetune, FinetuneTask)
    run = train(cfg, quiet)
    steps = max(r['step'] for r in read_jsonl(run/'log.jsonl') if 'loss' in r)
    task = task(replace(cfg, resume=None))
    return str(run), task.flops_per_image*task.effective_batch*steps/1e12

def supervised_rate(blr, args):
    "A row of the search for the learning rate of supervised pre-training."
    torch.set_num_threads(1)
    cfg = pretrain_config('supervised', 0, blr, args)
    cfg = replace(cfg, output_dir=cfg.output_dir + '-tuning')
    imgs = scene_images('train')
    def parts(data, split, *how, **more):
        part = slice(0, 8000) if split == 'train' else slice(8000, 10_000)
        return TensorImages(imgs.imgs[part], imgs.labels[part], imgs.classes)
    row = dict(task='pretrain', start='supervised', labels=1., seed=0, blr=blr)
    with mock.patch('mae_nb.data.labels.load_images', parts):
        try: records = read_jsonl(finetune(cfg, quiet)/'log.jsonl')
        except FloatingPointError: return row  # diverged
    return row | dict(top1=[r['top1'] for r in records if 'top1' in r][-1])

def transfer(kind, start, fraction, seed, blr, folder, made):
    "Train and evaluate; a row, without metrics if the loss diverges."
    torch.set_num_threads(1)
    run,cost = made
    cfg = recipe(f'scenes_{kind}' + '_scratch'*(start == 'scratch')).config
    epochs = EPOCHS[fraction]
    cfg = replace(cfg, encoder=run, seed=seed, label_fraction=fraction, epochs=epochs, warmup_epochs=epochs/20,
                  eval_every=epochs, blr=blr, output_dir=folder, **common)
    train,task,_ = TASKS[kind]
    row = dict(task=kind, start=start, labels=fraction, seed=seed, blr=blr)
    try: records = read_jsonl(train(cfg, quiet)/'log.jsonl')
    except FloatingPointError: return row
    found = {k: r[k] for r in records for k in METRICS if k in r}
    last = [r for r in records if 'loss' in r][-1]
    task = task(replace(cfg, resume=None))
    tflops = task.flops_per_image*task.effective_batch*last['step']/1e12
    return row | dict(loss=round(last['loss'], 5), steps=last['step'], seconds=last['seconds'],
                      tflops=round(tflops, 3), pretrain_tflops=round(cost, 3), **found)

def halves(split='train'):
    "The labelled scenes of training, in two parts: to train on, and to choose by."
    s = labelled_scenes('train')
    part = slice(0, 1600) if split == 'train' else slice(1600, 2000)
    return Scenes(s.imgs[part], s.owner[part], s.objects[part], s.classes)

def job(kind, start, fraction, seed, blr, args, made=None):
    "One row; while tuning, test images are not looked at."
    if kind == 'pretrain': return supervised_rate(blr, args)
    name = f'{args.home}/{kind}-{start}-{args.epochs}-{fraction:g}-{seed}' + f'-{blr:g}'*args.tune
    if not args.tune: return transfer(kind, start, fraction, seed, blr, name, made)
    where = [f'mae_nb.transfer.{module}.labelled_scenes' for module in ('segdata', 'detdata')]
    with mock.patch(where[0], halves), mock.patch(where[1], halves):
        return transfer(kind, start, fraction, seed, blr, name + '-tuning', made)

def tried(rows, kind, start):
    "The metric at each rate of a search; -1 where the loss diverged."
    metric = 'top1' if kind == 'pretrain' else TASKS[kind][2]
    own = [r for r in rows if (r['task'], r['start']) == (kind, start)]
    return {float(r['blr']): float(r[metric]) if r.get(metric) not in ('', None) else -1. for r in own}

def best_rate(rows, kind, start, where):
    "The rate with the best metric among the rows of a search."
    found = tried(rows, kind, start)
    if max(found.values(), default=-1) < 0:
        raise SystemExit(f'{where} has no rows of {kind} from {start}: run --tune first')
    return max(found, key=found.get)

def rates_to_try(rows, kind, start, rates):
    "Those of the given rates that are missing; then one beyond them, while the best is at an end."
    found = tried(rows, kind, start)
    if missing := [v for v in rates if v not in found]: return missing
    best = max(found, key=found.get)
    if len(found) >= len(rates) + 5:
        raise SystemExit(f'{kind} from {start}: {len(found)} rates, and the best is still {best:g}, at the end')
    return [best/2]*(best == min(found)) + [best*2]*(best == max(found))

def write(path, columns, rows):
    "Write the table at once."
    def place(r): return r['task'], float(r['labels']), STARTS.index(r['start']), int(r['seed']), float(r['blr'])
    def to(tmp):
        with open(tmp, 'w', newline='') as f:
            table = csv.DictWriter(f, columns)
            table.writeheader()
            table.writerows(sorted(rows, key=place))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, to)

def add_rows(calls, rows, pool, bar, args, made={}):
    "Make rows that are not in the table yet, and write each when it is there."
    m = environment('cpu')
    made_on = dict(cpu=m['cpu'], torch=m['versions']['torch'], timm=m['versions']['timm'], commit=m['commit'])
    bar.total += len(calls)
    for done in as_completed([pool.submit(job, *c, args, made.get((c[1], c[3]), (None, 0.))) for c in calls]):
        rows.append(done.result() | made_on)
        write(args.table, [*COLUMNS, *made_on], rows)
        bar.update()

def search(which, rates, rows, pool, bar, args, made={}):
    "Rows of a search for learning rates, until the best is inside."
    labels = lambda kind: 1. if kind == 'pretrain' else args.tuned_on
    while calls := [(k, start, labels(k), 0, v) for k,start in which for v in rates_to_try(rows, k, start, rates)]:
        add_rows(calls, rows, pool, bar, args, made)

def encoders(seeds, blr, pool, bar, args):
    "Pre-train those of some seeds, each once: folder and TFLOPs by start and seed."
    wanted = [(start, s) for s in seeds for start in STARTS if start != 'scratch']
    going = {pool.submit(encoder, *w, blr, args): w for w in wanted}
    bar.total += len(going)
    made = {}
    for done in as_completed(going):
        made[going[done]] = done.result()
        bar.update()
    return made

def tune(rows, pool, bar, args):
    "The search: first for supervised pre-training, then for the transfer of what it gives."
    search([('pretrain', 'supervised')], SUPERVISED_RATES, rows, pool, bar, args)
    made = encoders([0], best_rate(rows, 'pretrain', 'supervised', args.table), pool, bar, args)
    search([(k, start) for k in args.tasks for start in STARTS], args.rates, rows, pool, bar, args, made)

def compare(rows, pool, bar, args):
    "The comparison, with the best rates of a search."
    rates = list(csv.DictReader(open(args.rates_from, newline='')))
    best = lambda kind, start: best_rate(rates, kind, start, args.rates_from)
    key = lambda r: (r['task'], r['start'], float(r['labels']), int(r['seed']), float(r['blr']))
    there = {key(r) for r in rows}
    for seed in args.seeds:
        todo = [(k, start, f, seed, best(k, start)) for k in args.tasks for f in EPOCHS for start in STARTS]
        missing = [j for j in todo if j not in there]
        made = encoders([seed], best('pretrain', 'supervised'), pool, bar, args) if missing else {}
        add_rows(missing, rows, pool, bar, args, made)

def main(args):
    "All rows that are not in the table yet."
    rows = list(csv.DictReader(open(args.table, newline=''))) if args.table.exists() else []
    with ProcessPoolExecutor(args.processes, get_context('spawn')) as pool, tqdm(total=0, unit='run') as bar:
        try: (tune if args.tune else compare)(rows, pool, bar, args)
        except BaseException:  # the others save, and are not waited for in vain
            pool.shutdown(wait=False, cancel_futures=True)
            for p in multiprocessing.active_children(): p.terminate()
            raise

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('table', type=Path, help='CSV file to write')
    p.add_argument('--tune', action='store_true', help='look for learning rates instead')
    p.add_argument('--rates', type=float, nargs='+', default=RATES, help='base learning rates to begin the search with')
    p.add_argument('--tuned_on', type=float, choices=EPOCHS, default=0.1, help='fraction of labels for it')
    p.add_argument('--rates_from', type=Path, default=Path('results/scenes_rates.csv'), help='table of --tune')
    p.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--epochs', type=int, default=40, help='of pre-training')
    p.add_argument('--processes', type=int, default=2, help='parallel processes, with one thread each')
    p.add_argument('--home', default='runs/transfer', help='folder of the runs')
    args = p.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main(args)
