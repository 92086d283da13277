"""report.html: one page with everything in it, which needs no network. Pages are put together by comparison_report and
gap_report; here they are rendered, and links, pictures and the plot's library made part of the file."""

import base64
import functools
import hashlib
import io
import os
from pathlib import Path
from urllib.parse import quote

from .. import files
from ..machine import each

TEMPLATES = Path(__file__).with_name("templates")
SMALL = 96  # pixels: pictures up to this side are kept without loss


def write(path, page):
    """Render a page (see templates/report.html for what is in it) and write it. Raises ModuleNotFoundError without
    jinja2.

    All text is escaped, and the page's own security policy lets nothing run but the scripts that are named by their
    hash here, and nothing be loaded from anywhere.
    """
    import jinja2

    library = page["plot"] and plot_library()
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    hashes = " ".join(_script_hash(text) for text in (script, library["source"] if library else None) if text)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html").render(
        page=page,
        library=library and library["packed"],
        hashes=hashes,
        script=script,
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
    )
    with files.atomic_write(path) as f:
        f.write(text.encode("utf-8", errors="replace"))


def plot(name, *tables):
    """The plot that a function of plots.py draws, or a sentence on why there is none."""
    if not len(tables[0]):
        return "There is nothing to plot."
    try:
        from . import plots

        return getattr(plots, name)(*tables)
    except ModuleNotFoundError as error:
        package = (error.name or "plotly").partition(".")[0]
        said = f"package {package} is not installed, so the report has no interactive plot: pip install plotly."
        print(f"note: {said}")
        return said


@functools.cache
def plot_library():
    """plotly.js, as its text and packed with gzip for the page, which makes a third of it."""
    import gzip

    from plotly.offline import get_plotlyjs

    source = get_plotlyjs()
    packed = base64.b64encode(gzip.compress(source.encode(), 9, mtime=0)).decode()
    return {"source": source, "packed": packed}


def _script_hash(text):
    """A script's name in a security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def link(path, folder):
    """Address of a file or folder as seen from a page in `folder`."""
    path = Path(path).resolve()
    try:
        return quote(Path(os.path.relpath(path, Path(folder).resolve())).as_posix())
    except ValueError:  # another drive
        return path.as_uri()


def in_order(drawn, captions):
    """{name of a drawn figure: key of its caption} in the order of captions, {key: caption}.

    A key begins the names of its figures. One that no caption is for comes last, with the key None, not nowhere.
    """
    key_of = {name: next((key for key in captions if name.startswith(key)), None) for name in drawn}
    known = [name for key in captions for name in drawn if key_of[name] == key]
    return {name: key_of[name] for name in (*known, *(name for name in drawn if key_of[name] is None))}


def figures(folder, captions):
    """Figures of the page, {name: caption}: their PNGs in a folder, for a page's width and, if any, a column's."""
    return each(lambda item: _figure(folder, *item), captions.items())


def _figure(folder, name, caption):
    file = Path(folder) / f"{name}.png"
    narrow = file.with_stem(f"{name}_column")
    wide, share = _packed(file)
    return {
        "name": name,
        "caption": caption,
        "wide": wide,
        "share": share,
        "narrow": _packed(narrow)[0] if narrow.exists() else None,
    }


def _packed(file):
    """A picture's file as an address that holds its pixels in half the bytes, and its share of a page's width."""
    from PIL import Image

    from .figures import PAGE, STYLE

    packed = io.BytesIO()
    with Image.open(file) as image:
        image.convert("RGB").save(packed, "WEBP", lossless=True, method=1)
        return _address(packed.getvalue(), "webp"), min(1.0, image.width / (PAGE * STYLE["savefig.dpi"]))


def reconstructions(pictures):
    """The page's pictures: {"images": [{masked, original}], "methods": [{name, pictures}], "side"}.

    pictures: {name: arrays of reconstructions.npz} of the same images and masks; None if it is empty.
    """
    if not pictures:
        return None
    from .comparison_figures import composite

    first = next(iter(pictures.values()))
    whole = {name: [_picture(image) for image in composite(arrays)] for name, arrays in pictures.items()}
    return {
        "images": [
            {"masked": _picture(masked), "original": _picture(image)}
            for masked, image in zip(first["masked"], first["image"])
        ],
        "methods": [{"name": name, "pictures": made} for name, made in whole.items()],
        "side": first["image"].shape[1],
    }


def _picture(pixels):
    """(H, W, 3) uint8 as an address that holds the picture."""
    from PIL import Image

    file, lossless = io.BytesIO(), pixels.shape[0] <= SMALL
    if lossless:
        Image.fromarray(pixels).save(file, "PNG", optimize=True)
    else:
        Image.fromarray(pixels).save(file, "JPEG", quality=88, subsampling=0)
    return _address(file.getvalue(), "png" if lossless else "jpeg")


def _address(data, kind):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
