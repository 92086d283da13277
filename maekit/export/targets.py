"""The programs that runs are exported to."""

from . import hugging_face, timm, upstream

TARGETS = {"huggingface": hugging_face.package, "timm": timm.package, "upstream": upstream.package}
