"""Kill a pre-training run again and again, resume it each time, and compare its weights with those of a run that was left in peace.

    python tools/kill_and_resume.py --kills 10                # SIGKILL at random moments, every other one in the middle of a save
    python tools/kill_and_resume.py --kills 10 --signal TERM  # SIGTERM: the run saves itself, and leaves with exit code 143
"""
import argparse, json, os, random, shutil, signal, sys, tempfile, time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('TQDM_DISABLE', '1')
import mae_nb.tasks.pretrain  # imported once, with torch: each run is a fork of this process
from mae_nb.cli import mae_pretrain

STEPS,SAVE_EVERY = 120,7
JOB = ['--max_steps', STEPS, '--batch_size', 16, '--save_every', SAVE_EVERY, '--log_every', 3, '--ema_decay', 0.9, '--device', 'cpu', '--resume', 'auto']

def start(run, seed):
    "A run in a process of its own: its id."
    pid = os.fork()
    if pid: return pid
    sys.stdout = sys.stderr = open(os.devnull, 'w')
    os._exit(mae_pretrain([str(a) for a in JOB + ['--output_dir', run, '--seed', seed]]))

def ended(pid, wait=False):
    "Exit code of a process that has ended, minus the signal if one ended it; None if it has not."
    done,status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None

def harass(run, seed, number, in_save, rng):
    "Let a run go on for a random while, then send it a signal; returns its exit code and whether it was in a save."
    pid,seen = start(run, seed),False
    log = run/'log.jsonl'
    size = lambda: log.stat().st_size if log.exists() else 0
    before,until = size(),None
    while (code := ended(pid)) is None:
        seen = any(run.glob('checkpoints/.step-*.tmp'))
        if until is None and size() > before: until = time.time() + rng.uniform(0, 0.4)  # it is at work
        if seen if in_save else until and time.time() > until: os.kill(pid, number); return ended(pid, wait=True), seen
        time.sleep(0.0003 if in_save else 0.002)
    return code, seen

def weights(run): return {f.name: f.read_bytes() for f in [run/'model.safetensors', run/'ema.safetensors', *run.glob(f'checkpoints/step-{STEPS:08d}/*.safetensors')]}

def losses(run): return [(r['step'], r['lr'], r['loss']) for r in map(json.loads, (run/'log.jsonl').read_text().splitlines())]

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--kills', type=int, default=10)
    p.add_argument('--signal', choices=['KILL', 'TERM'], default='KILL')
    p.add_argument('--seed', type=int, default=0)
    a = p.parse_args()
    number,rng,home = getattr(signal, f'SIG{a.signal}'),random.Random(a.seed),Path(tempfile.mkdtemp())
    kills = mid_save = runs = 0
    try:
        while kills < a.kills:  # a run that gets through before it was killed often enough is followed by another
            left,killed = home/f'left-{runs}',home/f'killed-{runs}'
            if ended(start(left, a.seed + runs), wait=True): sys.exit('the run that was left in peace failed')
            code = None
            while code != 0:
                code,seen = harass(killed, a.seed + runs, number, a.signal == 'KILL' and kills % 2, rng) if kills < a.kills else (ended(start(killed, a.seed + runs), wait=True), False)
                if code not in (0, -9 if a.signal == 'KILL' else 143): sys.exit(f'unexpected exit code {code}')
                if code: kills += 1; mid_save += seen
            if weights(left) != weights(killed): sys.exit(f'after {kills} kills the weights differ')
            if losses(left) != losses(killed): sys.exit(f'after {kills} kills the logs differ')
            runs += 1
        print(f'{kills} times SIG{a.signal}, {mid_save} of them in the middle of a save, over {runs} runs of {STEPS} steps: '
              'weights, averages, moments and logged losses are those of the runs left in peace, bit for bit')
    finally: shutil.rmtree(home, ignore_errors=True)

if __name__ == '__main__': main()
