"""A run for timm: its VisionTransformer, the encoder and, where there is one, the classifier."""

from ..settings.architectures import MODELS, Architecture
from ..settings.tasks import LINPROBE, PRETRAIN
from . import pictures
from .package import Package, as_json, converted, safetensors_of

_OF_TIMM = {  # timm's names of networks that are ours, at 224 pixels
    (MODELS[f"vit_{size}"].patch, MODELS[f"vit_{size}"].encoder): f"vit_{size}_patch{MODELS[f'vit_{size}'].patch}_224"
    for size in ("tiny", "small", "base", "large", "huge")
}
_BASE = Architecture(MODELS["vit_base"].patch, MODELS["vit_base"].encoder, None)


def package(trained):
    """The Package of a Trained; of another norm than LayerNorm with norms.py and code that loads it."""
    name, arguments = _created(trained)
    arguments = {"num_classes": trained.classes, **arguments}
    typed = "".join(f", {key}={value!r}" for key, value in arguments.items())
    files, imported, conversion = converted(trained)
    if conversion:
        loading = f"import timm\nfrom safetensors.torch import load_file\n{imported}\n"
        loading += f'model = timm.create_model("{name}"{typed})\n{conversion}'
        loading += 'model.load_state_dict(load_file(FOLDER + "/model.safetensors"))\n'
    else:
        loading = f'import timm\n\nmodel = timm.create_model("{name}", checkpoint_path=FOLDER + "/model.safetensors"{typed})\n'
    files = {
        "model.safetensors": safetensors_of(trained.encoder, trained.norm),
        "config.json": as_json(_config(trained, name, arguments)),
        **files,
    }
    kind = "image-feature-extraction" if trained.task == PRETRAIN else "image-classification"
    what = "timm's VisionTransformer" + (f" with {trained.norm}" if conversion else "")
    return Package(what, files, loading + "model.eval()\n", "timm", kind)


def _created(trained):
    """(architecture of timm, arguments in which this network differs from it)."""
    sizes, encoder = trained.architecture, trained.architecture.encoder
    name = _OF_TIMM.get((sizes.patch, encoder))
    like = sizes if name else _BASE
    told = {
        "img_size": (trained.side, 224),
        "patch_size": (sizes.patch, like.patch),
        "embed_dim": (encoder.width, like.encoder.width),
        "depth": (encoder.depth, like.encoder.depth),
        "num_heads": (encoder.heads, like.encoder.heads),
    }
    arguments = {key: own for key, (own, usual) in told.items() if own != usual}
    if trained.reads_mean:
        arguments["global_pool"] = "avg"
        if trained.task == LINPROBE:
            arguments["fc_norm"] = False  # the mean of what the encoder's norm gives
    return name or _OF_TIMM[_BASE.patch, _BASE.encoder], arguments


def _config(trained, name, arguments):
    """config.json as timm has it on the hub, where create_model("hf-hub:owner/name", pretrained=True) reads it."""
    side = trained.side
    config = {
        "architecture": name,
        "num_classes": trained.classes,
        "num_features": trained.architecture.encoder.width,
        "model_args": {key: value for key, value in arguments.items() if key != "num_classes"},
        "norm": trained.norm,
        "norm_options": trained.norm_options,
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": side / pictures.short_side(trained),
            "mean": pictures.MEAN,
            "std": pictures.STD,
            "num_classes": trained.classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    if trained.classes and (names := pictures.class_names(trained)):
        config["label_names"] = names
    return config
