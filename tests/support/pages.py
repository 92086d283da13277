"""The README and the pages of docs/, as the tests read them."""

import re

from tests.support import KIT

PAGES = {path.name: path.read_text(encoding="utf-8") for path in (KIT / "README.md", *(KIT / "docs").glob("*.md"))}


def blocks(page, language):
    """The blocks of code of a page in a language, without what marks them."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
