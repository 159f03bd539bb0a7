"""Everything that is to be measured on a GPU, in order of worth, within a few minutes; each part writes its own file.

    python tools/gpu_check.py --minutes 7
    python tools/gpu_check.py --minutes 2 --tiny --device cpu --output /tmp/rehearsal
    python tools/gpu_check.py --minutes 20 --only fashion --data_root DATA     # full Fashion-MNIST, which must be there

A part runs in a process of its own. It is left out if less time is left than it needs at least, and killed at its time
limit; what it has written by then stays. `results/gpu_check.json` says what ran, for how long, and what was left out.
"""
import argparse, json, os, signal, subprocess, sys, tempfile, time
from dataclasses import dataclass, replace
from pathlib import Path
import torch
from mae_nb.bench.config import EndToEndBench, GrowthBench, LoaderBench, SavingBench, TokensBench
from mae_nb.bench.end2end import bench
from mae_nb.bench.step import hf_counterpart, train_step
from mae_nb.bench.timing import time_once
from mae_nb.core.device import environment, peak_flops, peak_memory, resolve_device
from mae_nb.core.files import read_jsonl, save_json
from mae_nb.model.config import mae_config
from mae_nb.model.cost import forward_flops, memory_estimate
from mae_nb.model.kernels import use_bf16_residual, use_fast_kernels
from mae_nb.model.mae import MaskedAutoencoderViT
from mae_nb.tasks.config import PretrainConfig
from mae_nb.tasks.pretrain import PretrainTask, pretrain
from mae_nb.train.engine import init_state, task_steps

SIZES = dict(B='mae_vit_base_patch16', L='mae_vit_large_patch16', H='mae_vit_huge_patch14')
TINY = dict.fromkeys(SIZES, 'mae_vit_nano_patch4')

class Table:
    "Rows of a result, written after each of them: a process that is killed loses one."
    def __init__(self, args, part):
        self.file = Path(args.file)
        self.found = dict(part=part, tiny=args.tiny, machine=environment(args.device), rows=[])
    def add(self, **row):
        self.found['rows'].append(row)
        save_json(self.found, self.file)
        print({k: round(v, 4) if isinstance(v, float) else v for k,v in row.items()}, flush=True)

# -- one training step

def one_step(device, model, side='ours', precision='bf16', compiled=False, residual=False, batch=64, steps=8):
    "Time steps of a model, in three blocks; GiB at the peak, and estimated for ours."
    torch.manual_seed(0)
    cfg = mae_config(model)
    with torch.device(device): ours = MaskedAutoencoderViT(cfg)
    use_fast_kernels(ours, device, precision)
    if residual: use_bf16_residual(ours)
    net = hf_counterpart(ours) if side == 'hf' else ours
    imgs = torch.randn(batch, cfg.in_chans, *cfg.img_size, device=device)
    scores = torch.rand(batch, ours.grid[0]*ours.grid[1], device=device)
    estimate = None if side == 'hf' else memory_estimate(ours, batch, 0.75, precision)
    if side == 'hf': ours = ours.cpu()  # its weights are not to be counted
    called = torch.compile(net) if compiled else net
    def loss():
        out = called(pixel_values=imgs, noise=scores) if side == 'hf' else called(imgs, 0.75, scores, True)
        return out.loss
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, (0.9, 0.95), fused=True)
    step = train_step(loss, optimizer, device, precision)
    first = time_once(step, device)
    for _ in range(2): step()
    if device.type == 'cuda': torch.cuda.reset_peak_memory_stats(device)
    blocks = [time_once(lambda: [step() for _ in range(steps)], device)/steps for _ in range(3)]
    seconds = sorted(blocks)[1]
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == 'cuda' else None
    flops = 3*forward_flops(cfg)*batch/seconds
    share = dict(bf16=1, fp16=1, tf32=0.5).get(precision)
    return dict(first=first, seconds=seconds, blocks=blocks, images_per_s=batch/seconds, tflops=flops/1e12,
                of_peak=flops/1e12/(peak*share) if peak and share else None, memory=peak_memory(device),
                estimate=estimate)

def timed(args, table, settings):
    "Time one setting after the other, those for which there is time: as much as the slowest of its kind took."
    device = resolve_device(args.device)
    slowest = {True: 0., False: 0.}
    for size,how in settings:
        begun = time.time()
        compiled = how.get('compiled', False)
        if begun + slowest[compiled] > args.until: continue
        how = how | (dict(batch=2, steps=2) if args.tiny else {})
        if device.type != 'cuda' and how.get('precision') == 'tf32': continue
        try: found = one_step(device, (TINY if args.tiny else SIZES)[size], **how)
        except torch.OutOfMemoryError as e: found = dict(error=f'out of memory: {str(e).splitlines()[0][:100]}')
        table.add(size=size, **how, **found)
        torch._dynamo.reset()
        if device.type == 'cuda': torch.cuda.empty_cache()
        slowest[compiled] = max(slowest[compiled], time.time() - begun)

def step(args, table):
    "Steps beside Hugging Face's, and at other precisions and batches."
    first = [(s, dict(side=side, batch=n)) for s,n in (('L', 256), ('B', 1024), ('H', 256)) for side in ('ours', 'hf')]
    compiled = [(s, dict(compiled=True, batch=n)) for s,n in (('L', 256), ('B', 1024), ('H', 256))]
    others = [('L', dict(precision=p, side=side, batch=64)) for p in ('tf32', 'fp32') for side in ('ours', 'hf')]
    sizes = [(s, dict(compiled=c, batch=n)) for s in 'LBH' for c in (False, True) for n in (64, 1024)]
    theirs = [(s, dict(side='hf', compiled=True, batch=n)) for s,n in (('L', 256), ('B', 1024))]
    timed(args, table, first + others + compiled + theirs + sizes)

def search(args, table):
    "The fastest settings of ViT-B, L, H: compiled, with a residual stream in 16 bits or not, at growing batches."
    timed(args, table, [(s, dict(compiled=True, residual=r, batch=n))
                        for n in (256, 512, 1024) for s in 'LBH' for r in (True, False)])

# -- the others

def sync(args, table):
    "Steps in which nothing may wait for the device, with images in memory."
    for kind,how in dict(memory={}, masks=dict(masks_per_image=4), compiled=dict(compile=True)).items():
        cfg = PretrainConfig(batch_size=64, max_steps=12, device=args.device, **how)
        task = PretrainTask(cfg)
        steps = task_steps(task, init_state(task))
        for _ in range(3): record = next(steps)
        if task.dist.device.type == 'cuda': torch.cuda.set_sync_debug_mode('error')
        try:
            for record in steps: pass
            said = 'nothing waits'
        except RuntimeError as e: said = str(e).splitlines()[0]
        finally:
            if task.dist.device.type == 'cuda': torch.cuda.set_sync_debug_mode('default')
        table.add(kind=kind, steps=record['step'], said=said)

def small(args, table):
    "Pre-training on small images in the device's memory."
    for model,how in ((nano, {}), ('mae_vit_micro_patch4', {}), (nano, dict(compile=True))):
        with tempfile.TemporaryDirectory() as here:
            cfg = PretrainConfig(model=model, batch_size=16 if args.tiny else 512, max_steps=20 if args.tiny else 300,
                                 epochs=30, device=args.device, output_dir=here, **how)
            last = [r for r in read_jsonl(pretrain(cfg, log=lambda line: None)/'log.jsonl') if 'images_per_s' in r][-1]
        table.add(model=model, compile=cfg.compile, **{k: last[k] for k in ('images_per_s', 'data', 'loss')})

def fashion(args, table):
    "Few labels on all of Fashion-MNIST, five seeds; continues where an earlier call stopped."
    out = Path(args.file).with_suffix('.csv')
    command = [sys.executable, 'tools/few_labels.py', out, '--epochs', '400', '--data', 'FashionMNIST',
               '--data_root', args.data_root, '--device', args.device or 'cuda', '--home', 'runs/fashion60k']
    table.add(rc=subprocess.run([*map(str, command)]).returncode, file=str(out))

def benched(args, table):
    "One of `mae_bench`."
    cfg = BENCHES[args.part][args.tiny]
    table.add(**bench(replace(cfg, **(dict(device=args.device) if hasattr(cfg, 'device') else {}))))

@dataclass(frozen=True)
class Part:
    do:object # Called with the arguments and a table
    least:float # Seconds below which it isn't worth starting
    most:float # Seconds it may take

cores = min(14, os.cpu_count() - 1) or 1
nano = 'mae_vit_nano_patch4'
BENCHES = {  # as on a GPU, and tiny
    # much longer between saves, and after the last, than a write takes
    'saving': (SavingBench(SIZES['B'], batch_size=256, steps=300, save_every=120, num_workers=4, precision='bf16', rounds=1),
               SavingBench(nano, steps=5, save_every=2, rounds=1)),
    'loader': (LoaderBench(images=1400, passes=2, batch_size=20, num_workers=cores, rounds=1),  # several batches a worker
               LoaderBench(images=4, kilobytes=20, passes=1, batch_size=2, rounds=1)),
    'tokens': (TokensBench(batch_size=64, ratios='', sizes='', depths='', precision='bf16', rounds=5),
               TokensBench(nano, ratios='', sizes='', depths='', rounds=1)),
    'end2end': (EndToEndBench(SIZES['B'], 3840, batch_size=128, steps=30, num_workers=cores, rounds=1),
                EndToEndBench(nano, 4, 20, 2, 2, 0, rounds=1)),
    'growth': (GrowthBench(SIZES['B'], '64,128,256,512', workers='1,2,4,8,14', batch_size=64, rounds=3),
               GrowthBench(nano, '1,2', '28,56', '0', 2, 4, rounds=1))}
PARTS = {  # in order of worth; an hour for the last, which can be continued
    'sync': Part(sync, 15, 40), 'step': Part(step, 20, 130), 'saving': Part(benched, 25, 150),
    'search': Part(search, 20, 90), 'loader': Part(benched, 25, 120), 'tokens': Part(benched, 10, 45),
    'small': Part(small, 15, 30), 'end2end': Part(benched, 25, 100), 'growth': Part(benched, 30, 140),
    'fashion': Part(fashion, 60, 3600)}

def run_part(name, part, args, left):
    "Run a part in a process group of its own, which is killed when its time, or all of it, is over."
    file = args.output/f'gpu_{name}.json'
    share = min(part.most, left)
    command = [sys.executable, __file__, '--part', name, '--file', file, '--until', str(time.time() + share - 3)]
    command += ['--tiny']*args.tiny + [f'--{k}={v}' for k in ('device', 'data_root') if (v := getattr(args, k))]
    begun = time.time()
    child = subprocess.Popen([*map(str, command)], start_new_session=True)
    try: state = 'done' if child.wait(share) == 0 else f'failed, exit code {child.returncode}'
    except subprocess.TimeoutExpired: state = 'its time was over'
    finally:
        if child.poll() is None: os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    seconds = round(time.time() - begun, 1)
    return dict(part=name, state=state, seconds=seconds, file=file.name if file.exists() else None)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=7, help='for all parts together')
    p.add_argument('--device', help="'cuda', ...; the GPU if there is one, if not given")
    p.add_argument('--output', type=Path, default=Path('results'), help='folder of the results')
    p.add_argument('--only', help='parts, with commas between them')
    p.add_argument('--tiny', action='store_true', help='small sizes, to try it on a CPU')
    p.add_argument('--data_root', help='folder with Fashion-MNIST as torchvision has it, for the last part')
    for hidden in ('--part', '--file'): p.add_argument(hidden, help=argparse.SUPPRESS)
    p.add_argument('--until', type=float, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.tiny: torch.compiler.set_stance('force_eager')  # compiling takes longer than all the rest
    if args.part: return PARTS[args.part].do(args, Table(args, args.part))
    wanted = args.only.split(',') if args.only else list(PARTS)
    if unknown := set(wanted) - set(PARTS): p.error(f'no part {sorted(unknown)} among {list(PARTS)}')
    args.output.mkdir(parents=True, exist_ok=True)
    end = time.time() + 60*args.minutes
    done = []
    for name in wanted:
        left = end - time.time()
        if name == 'fashion' and not args.data_root: done.append(dict(part=name, state='left out: no --data_root'))
        elif left < PARTS[name].least*(0.2 if args.tiny else 1):
            done.append(dict(part=name, state=f'left out: {left:.0f} s left'))
        else: done.append(run_part(name, PARTS[name], args, left))
        print(json.dumps(done[-1]), flush=True)
        save_json(dict(minutes=args.minutes, tiny=args.tiny, parts=done), args.output/'gpu_check.json')

if __name__ == '__main__': main()
