__version__ = "0.1.0"

_names = {  # names to be had from `mae_nb` itself, by module; a module is imported when one of its names is asked for
    'model.patches': 'patchify unpatchify', 'model.masking': 'random_masking',
    'model.config': 'ClassifierConfig MAEConfig ViTConfig classifier_config mae_config',
    'model.mae': 'MaskedAutoencoderViT mae_model', 'model.classifier': 'ViTClassifier', 'model.encoder': 'MAEEncoder',
    'data.datasets': 'load_images', 'weights.hub': 'from_pretrained', 'weights.config': 'ConvertConfig', 'weights.export': 'convert',
    'plots.images': 'show_attention show_images show_reconstruction',  'plots.architecture': 'show_architecture',
    'demo.config': 'ExportConfig', 'demo.export': 'export',
    'evaluate.config': 'EvalConfig KnnConfig', 'evaluate.knn': 'extract_features',
    'evaluate.report': 'write_report',
    'tasks.config': 'FinetuneConfig PretrainConfig linprobe_defaults partial_defaults',
    'tasks.pretrain': 'PretrainTask pretrain', 'tasks.finetune': 'FinetuneTask finetune',
    'transfer.config': 'DetectConfig SegmentConfig', 'transfer.segment': 'segment show_segmentation', 'transfer.segmenter': 'load_segmenter',
    'transfer.detect': 'detect show_detections', 'transfer.maskrcnn': 'load_detector',
    'recipes': 'describe recipe'}
_modules = {name: module for module,names in _names.items() for name in names.split()}

def __getattr__(name):
    "Import a name from its module when it is asked for: `import mae_nb` loads nothing."
    if name not in _modules: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .core.config import import_name
    return import_name(f'{_modules[name]}:{name}')

def __dir__(): return sorted([*globals(), *_modules])
