"""Kill a run at every system call with which it changes its folder, resume it, and compare: nothing lost, nothing wrong, nothing left.

    python tools/kill_at_every_call.py                # needs Linux and a C compiler
    python tools/kill_at_every_call.py --every 7      # every seventh call

A library in front of the system's own (LD_PRELOAD) counts the calls that write, sync, rename, link or remove something in the folder of a run, also
those of safetensors, which is no Python; at a given one it ends the process, before the call or in the middle of a write, or the disk is full from there on.
"""
import argparse, ctypes, json, os, shutil, subprocess, sys, tempfile, time, traceback
from pathlib import Path

SHIM = r'''
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { OFF, COUNT, KILL, HALF, FULL };
static char root[PATH_MAX];
static long calls, target;
static int mode = OFF, trace = -1;
#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

void fault_arm(const char *folder, long k, int how, int log) {
    strncpy(root, folder, PATH_MAX - 1); calls = 0; target = k; mode = how; trace = log;
}
long fault_count(void) { return calls; }

static void full_name(int dir, const char *path, char *out) {
    char link[64]; ssize_t n = 0;
    if (path[0] == '/' || dir == AT_FDCWD) {
        if (path[0] != '/' && getcwd(out, PATH_MAX)) { strncat(out, "/", 2); strncat(out, path, PATH_MAX - 1 - strlen(out)); }
        else { strncpy(out, path, PATH_MAX - 1); out[PATH_MAX - 1] = 0; }
        return;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
    n = readlink(link, out, PATH_MAX - 1);
    if (n < 0) n = 0;
    out[n] = 0;
    if (*path) { strncat(out, "/", 2); strncat(out, path, PATH_MAX - 1 - strlen(out)); }
}
/* 0: go on, -1: fail with ENOSPC; may not return */
static int at(const char *what, int dir, const char *path, int fd, const void *data, size_t n, int grows) {
    char name[PATH_MAX]; int saved = errno;
    if (mode == OFF) return 0;
    if (fd >= 0) full_name(fd, "", name); else full_name(dir, path, name);
    errno = saved;
    if (strncmp(name, root, strlen(root)) || (mode == HALF && !data)) return 0;
    calls++;
    if (trace >= 0) { char line[PATH_MAX + 32]; int k = snprintf(line, sizeof line, "%s %s\n", what, name + strlen(root)); if (REAL(write)(trace, line, k) < 0) _exit(99); }
    if (mode == KILL && calls == target) _exit(137);
    if (mode == HALF && calls == target) { if (REAL(write)(fd, data, n/2) < 0) _exit(98); _exit(137); }
    if (mode == FULL && calls >= target && grows) { errno = ENOSPC; return -1; }
    return 0;
}
#define BY_PATH(type, name, what, params, args, dir, path, grows) type name params { if (at(what, dir, path, -1, 0, 0, grows)) return -1; return REAL(name) args; }
#define BY_FD(type, name, what, params, args, fd, data, n, grows) type name params { if (at(what, 0, 0, fd, data, n, grows)) return -1; return REAL(name) args; }
#define CHANGES(flags) ((flags) & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR))
#define OPEN(name) int name(const char *path, int flags, ...) { va_list a; va_start(a, flags); mode_t m = (flags & O_CREAT) ? va_arg(a, mode_t) : 0; va_end(a); \
    if (CHANGES(flags) && at("open", AT_FDCWD, path, -1, 0, 0, flags & O_CREAT)) return -1; return REAL(name)(path, flags, m); }
#define OPENAT(name) int name(int dir, const char *path, int flags, ...) { va_list a; va_start(a, flags); mode_t m = (flags & O_CREAT) ? va_arg(a, mode_t) : 0; va_end(a); \
    if (CHANGES(flags) && at("open", dir, path, -1, 0, 0, flags & O_CREAT)) return -1; return REAL(name)(dir, path, flags, m); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
BY_FD(ssize_t, write, "write", (int fd, const void *b, size_t n), (fd, b, n), fd, b, n, 1)
BY_FD(ssize_t, pwrite, "write", (int fd, const void *b, size_t n, off_t o), (fd, b, n, o), fd, b, n, 1)
BY_FD(ssize_t, pwrite64, "write", (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o), fd, b, n, 1)
ssize_t sendfile64(int, int, off64_t *, size_t);
BY_FD(ssize_t, sendfile64, "sendfile", (int fd, int from, off64_t *o, size_t n), (fd, from, o, n), fd, 0, 0, 1)
BY_FD(ssize_t, copy_file_range, "copy", (int from, off64_t *i, int fd, off64_t *o, size_t n, unsigned f), (from, i, fd, o, n, f), fd, 0, 0, 1)
BY_FD(int, fsync, "fsync", (int fd), (fd), fd, 0, 0, 0)
BY_FD(int, fdatasync, "fsync", (int fd), (fd), fd, 0, 0, 0)
BY_FD(int, ftruncate, "truncate", (int fd, off_t n), (fd, n), fd, 0, 0, 0)
BY_FD(int, ftruncate64, "truncate", (int fd, off64_t n), (fd, n), fd, 0, 0, 0)
BY_FD(int, fchmod, "chmod", (int fd, mode_t m), (fd, m), fd, 0, 0, 0)
BY_PATH(int, chmod, "chmod", (const char *p, mode_t m), (p, m), AT_FDCWD, p, 0)
BY_PATH(int, fchmodat, "chmod", (int d, const char *p, mode_t m, int f), (d, p, m, f), d, p, 0)
BY_PATH(int, rename, "rename", (const char *a, const char *b), (a, b), AT_FDCWD, b, 1)
BY_PATH(int, renameat, "rename", (int d, const char *a, int e, const char *b), (d, a, e, b), e, b, 1)
BY_PATH(int, link, "link", (const char *a, const char *b), (a, b), AT_FDCWD, b, 1)
BY_PATH(int, linkat, "link", (int d, const char *a, int e, const char *b, int f), (d, a, e, b, f), e, b, 1)
BY_PATH(int, unlink, "unlink", (const char *p), (p), AT_FDCWD, p, 0)
BY_PATH(int, unlinkat, "unlink", (int d, const char *p, int f), (d, p, f), d, p, 0)
BY_PATH(int, rmdir, "rmdir", (const char *p), (p), AT_FDCWD, p, 0)
BY_PATH(int, mkdir, "mkdir", (const char *p, mode_t m), (p, m), AT_FDCWD, p, 1)
BY_PATH(int, mkdirat, "mkdir", (int d, const char *p, mode_t m), (d, p, m), d, p, 1)
'''
OFF,COUNT,KILL,HALF,FULL = range(5)

def start_over_with_shim():
    "Compile the library, and start this script again behind it."
    home = Path(tempfile.mkdtemp())
    try:
        (home/'fault.c').write_text(SHIM)
        subprocess.run([os.environ.get('CC', 'cc'), '-shared', '-fPIC', '-O1', '-w', '-o', home/'fault.so', home/'fault.c', '-ldl'], check=True)
        return subprocess.run([sys.executable, *sys.argv], env=dict(os.environ, LD_PRELOAD=str(home/'fault.so'), OMP_NUM_THREADS='1', TQDM_DISABLE='1')).returncode
    finally: shutil.rmtree(home)

# -- a run that is small: a model of a few weights, six steps, three saves

def make_task():
    "Imported late, behind the library."
    global small, Small, run, run_guarded, check_checkpoint, checkpoints, read_jsonl, weights_folder
    import torch
    from dataclasses import dataclass
    from torch import nn
    from mae_nb.cli import run_guarded
    from mae_nb.core.dist import DistInfo
    from mae_nb.core.files import read_jsonl, weights_folder
    from mae_nb.core.rng import seed_all
    from mae_nb.tasks.config import RunConfig
    from mae_nb.train.checkpoint import check_checkpoint, checkpoints
    from mae_nb.train.engine import run
    from mae_nb.train.optim import cosine_lr

    @dataclass(frozen=True)
    class SmallConfig(RunConfig):
        model:str = 'small'

    @dataclass(frozen=True)
    class Shape:
        width:int = 4

    class Small:
        precision,accum_iter,effective_batch,images_per_step,steps_per_epoch,eval_steps,flops_per_image = 'fp32', 1, 4, 4, 2, 0, 0.
        def __init__(self, cfg, dist=None):
            self.cfg,self.dist,self.total_steps = cfg, dist or DistInfo(), 2*cfg.epochs
            seed_all(cfg.seed)
            self.model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))  # dropout draws from the global generator: its state must come back
            self.model.cfg,self.model.blocks = Shape(), ()
        def batches(self, start, log): return (torch.randn(4, 4, generator=torch.Generator().manual_seed(step)) for step in range(start, self.total_steps))
        def learning_rate(self, step): return cosine_lr(step, 1e-2, 0., 1, self.total_steps)
        def loss(self, forward, x): return (forward(x) - x.sum(1, keepdim=True)).square().mean()
        def optimizer(self): return torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        def counts(self): return {}
        def summary(self): return ''
    small = SmallConfig(epochs=3, save_every=2, log_every=1, keep_checkpoints=1, ema_decay=0.5, device='cpu')

def in_one_order():
    "Wait for the thread that writes a checkpoint: else its calls and those that write the log come in another order each time, and call k is another one."
    from mae_nb.train.background import BackgroundWriter
    start = BackgroundWriter.start
    def start_and_wait(self, write):
        start(self, write)
        self.join()
    BackgroundWriter.start = start_and_wait

def fork(do):
    "Call a function in a process of its own; its exit code, and what it told: the number of calls it made, or what went wrong."
    out,into = os.pipe()
    pid = os.fork()
    if not pid:
        sys.stdout = sys.stderr = open(os.devnull, 'w')
        try: code,said = do(), str(shim.fault_count())
        except Exception: code,said = 99, traceback.format_exc()
        os.write(into, said.encode())
        os._exit(code)
    os.close(into)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(out) as f: return code, f.read()

def train_here(folder, k=0, mode=COUNT, trace=-1, **changes):
    "Train in a folder, with a fault at call k."
    from dataclasses import replace
    shim.fault_arm(str(folder).encode(), k, mode, trace)
    code = run_guarded('run', lambda: run(Small, replace(small, output_dir=str(folder), **(changes or dict(resume='auto'))), lambda line: None))
    if mode == FULL: shim.fault_arm(b'', 0, OFF, -1)
    return code

def train(folder, k=0, mode=COUNT, trace=-1, **changes):
    "Train in a folder, in a process of its own."
    code,said = fork(lambda: train_here(folder, k, mode, trace, **changes))
    return code, int(said or 0)

def what_is_in(folder):
    "Names and bytes of all files, of a log what doesn't depend on the clock, of a state what doesn't on how often it was resumed."
    def content(p):
        if p.name == 'log.jsonl': return [(r['step'], r['lr'], r['loss']) for r in read_jsonl(p)]
        if p.name in ('config.json', 'state.json'): return None
        return p.read_bytes()
    return {p.relative_to(folder).as_posix(): content(p) for p in sorted(folder.rglob('*')) if p.is_file()}

def check(folder, least):
    "Of a folder at rest: all that has a name is whole, and the weights shown are those of the newest; returns its step."
    saved = checkpoints(folder)
    for c in saved: check_checkpoint(c)
    for name in 'model.safetensors', 'ema.safetensors':
        if (folder/name).exists(): assert saved and (folder/name).read_bytes() == (saved[-1]/name).read_bytes(), f'{name} is not of the newest checkpoint'
    if saved: assert weights_folder(folder) == saved[-1]
    step = int(saved[-1].name[5:]) if saved else 0
    assert step >= least, f'step {least} was saved, and now the newest is {step}'
    return step

def begin_with(folder, state):
    "Put a folder into a state: that of another folder, or none."
    shutil.rmtree(folder, ignore_errors=True)
    (folder.parent/'.run.lock').unlink(missing_ok=True)
    if state: shutil.copytree(state, folder)

def resume(folder, where, wanted, changes):
    "Train again, without a fault: what comes out must be what is wanted."
    code = train_here(folder, **changes)
    assert code == 0, f'{where}: then exit code {code}'
    found = what_is_in(folder)
    assert found.keys() == wanted.keys(), f'{where}: {sorted(found.keys() ^ wanted.keys())}'
    wrong = [f for f in wanted if found[f] != wanted[f]]
    assert not wrong and not (folder.parent/'.run.lock').exists(), f'{where}: {wrong} differ'

def scenario(home, name, wanted, begin, mode, every, first=dict(resume='auto'), codes=(137,)):
    "From a state of the folder: a fault at each call, then again without, in a new process, which goes on with the fault at the next call. Returns the number of points."
    if only not in name: return 0
    folder,points,least,k = home/'run', 0, 0, 1
    def fail_at(k):
        begin_with(folder, begin)
        return train_here(folder, k, mode, **first)
    def resume_and_fail(k, again):
        resume(folder, f'{name}, call {k}', wanted, again)
        return fail_at(k + every)
    code,said = fork(lambda: fail_at(k))
    while code:  # 0: it got through, k is past the last call
        assert code in codes, said if code == 99 else f'{name}, call {k}: exit code {code}'
        points += 1
        least = check(folder, 0 if first.get('overwrite') else least)
        again = first if first.get('overwrite') and (folder/'config.json').exists() else {}
        code,said = fork(lambda: resume_and_fail(k, again))
        k += every
    print(f'{points:4d} points: {name}', flush=True)
    return points

def order_of_calls(folder):
    "Every file is on the disk before its folder gets its name, and that name before an older one goes."
    with tempfile.TemporaryFile() as f:
        assert train(folder, mode=COUNT, trace=f.fileno())[0] == 0
        f.seek(0)
        calls = [line.split(' ', 1) for line in f.read().decode().splitlines()]
    dirty = set()
    named = gone = 0
    for what,path in calls:
        if what in ('open', 'write') and '/.step-' in path: dirty.add(path)
        if what == 'fsync': dirty.discard(path)
        if what == 'chmod': dirty = {p for p in dirty if not Path(p).name.startswith('.tmp')} | {path}  # safetensors has renamed a neighbour of its own
        if what == 'rename' and Path(path).parent.name.startswith('.step-'): dirty.add(str(Path(path).parent))  # the name is an entry of the folder
        if what == 'rename' and Path(path).name.startswith('step-'):
            assert not dirty, f'{path} has its name before {dirty} are on the disk'
            named += 1
            dirty.add('/checkpoints')
        if what == 'rename' and Path(path).name.startswith('.step-') and path.endswith('.tmp'):
            assert not dirty, f'{path} goes before {dirty} are on the disk'
            gone += 1
    assert named == 3 and gone == 2, (named, gone)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--every', type=int, default=1, help='try every Nth call')
    p.add_argument('--only', default='', help='scenarios with this in their name')
    a = p.parse_args()
    every = a.every
    if 'fault.so' not in os.environ.get('LD_PRELOAD', ''): sys.exit(start_over_with_shim())
    global shim, only
    only = a.only
    shim = ctypes.CDLL(None)
    shim.fault_count.restype = ctypes.c_long
    shim.fault_arm.argtypes = ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int
    make_task()
    in_one_order()
    shm = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None  # a disk in memory: fsync takes no time there
    home,begun = Path(tempfile.mkdtemp(dir=shm)).resolve(),time.time()
    try:
        peace = home/'peace'
        code,calls = train(peace)
        assert code == 0 and calls > 100, (code, calls)
        wanted = what_is_in(peace)
        order_of_calls(home/'ordered')
        n = scenario(home, 'killed before a call', wanted, None, KILL, every)
        n += scenario(home, 'killed in the middle of a write', wanted, None, HALF, every)
        dirty = home/'dirty'
        for share in 0.35, 0.5, 0.6:  # killed in a save, and again while it is resumed
            shutil.rmtree(dirty, ignore_errors=True)
            train(dirty, round(share*calls), KILL)
            n += scenario(home, f'killed at call {round(share*calls)} of {calls}, resumed, and killed again', wanted, dirty, KILL, 3*every)
        n += scenario(home, 'killed while it overwrites a run', wanted, peace, KILL, 2*every, dict(overwrite=True))
        n += scenario(home, 'the disk is full from a call on', wanted, None, FULL, 3*every, codes=(3,))
        print(f'{n} points in {time.time() - begun:.0f} s: each time all that was saved was whole, the run showed the weights of its newest checkpoint, and resumed '
              'it ended with the files of a run left in peace, bit for bit, and no others')
    finally: shutil.rmtree(home, ignore_errors=True)

if __name__ == '__main__': main()
