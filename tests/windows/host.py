"""The other end of bridge.c: runs this Python with the words of a Windows program, its paths as the host has them."""

import os
import re
import subprocess
import sys


def on_host(word):
    """Z:\\a\\b -> /a/b; Wine's drive Z: is the host's root."""
    return word[2:].replace("\\", "/") if re.match(r"[Zz]:\\", word) else word


codes, *words = (on_host(word) for word in sys.argv[1:])
code = subprocess.call([sys.executable, *(["-S"] * sys.flags.no_site), *words])
with open(f"{codes}.draft", "w", encoding="utf-8") as f:
    f.write(str(code))
os.rename(f"{codes}.draft", codes)
