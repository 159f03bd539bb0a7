__version__ = "0.1.0"

from importlib import import_module as _import

_names = {  # names to be had from `mae_nb` itself, by module; a module is imported when one of its names is asked for
    'patches': 'patchify unpatchify', 'masking': 'random_masking',
    'mae': 'MAEConfig MaskedAutoencoderViT ViTClassifier mae_config mae_model',
    'hub': 'from_pretrained', 'weights_config': 'ConvertConfig', 'publish': 'convert',
    'data': 'load_images', 'show': 'show_images show_reconstruction',
    'tasks.config': 'FinetuneConfig PretrainConfig linprobe_defaults partial_defaults',
    'pretrain': 'pretrain', 'finetune': 'finetune', 'recipes': 'describe recipe',
    'evaluate.config': 'EvalConfig KnnConfig', 'knn': 'extract_features knn', 'robustness': 'evaluate_on',
    'report': 'write_report'}
_modules = {name: module for module,names in _names.items() for name in names.split()}

def __getattr__(name):
    "Import a name from its module when it is asked for: `import mae_nb` loads nothing."
    if name not in _modules: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(_import(f'{__name__}.{_modules[name]}'), name)

def __dir__(): return sorted([*globals(), *_modules])
