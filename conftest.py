"Each notebook is a test: all its cells run, from a fresh namespace; `pytest --flags slow` runs the cells so marked, too."
import os
import pytest, torch

os.environ.setdefault('MPLBACKEND', 'agg')
os.environ.setdefault('TQDM_DISABLE', '1')

def pytest_addoption(parser):
    parser.addoption('--flags', nargs='*', default=[], help='test flags (settings.ini, tst_flags) of cells to run')

def pytest_collect_file(file_path, parent):
    if file_path.suffix == '.ipynb' and not any(p[0] in '._' for p in file_path.relative_to(parent.config.rootpath).parts):
        return NotebookFile.from_parent(parent, path=file_path)

class NotebookFile(pytest.File):
    def collect(self): yield NotebookItem.from_parent(self, name='cells')

class NotebookItem(pytest.Item):
    "Fails with the cell's traceback, which nbdev writes to stderr."
    def runtest(self):
        from nbdev.config import get_config
        from nbdev.test import test_nb
        threads = torch.get_num_threads()
        try: ok,_ = test_nb(self.path, skip_flags=get_config().tst_flags.split(), force_flags=self.config.getoption('flags'))
        finally: torch.set_num_threads(threads)  # what one notebook sets shall not round another's numbers
        if not ok: raise AssertionError(f'{self.path.name}: a cell failed (see stderr)')
    def repr_failure(self, excinfo): return str(excinfo.value) if excinfo.errisinstance(AssertionError) else super().repr_failure(excinfo)
    def reportinfo(self): return self.path, None, str(self.path.relative_to(self.config.rootpath))
