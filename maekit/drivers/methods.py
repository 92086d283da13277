"""Print the registry names of the norms given as arguments, one a line, each once: the drivers' --methods."""

import sys

from maekit import errors, settings


def main():
    names = []
    for typed in sys.argv[1:]:
        name = settings.norm_name(typed)
        if name in names:
            print(f"--methods: {typed} is there twice, run once.", file=sys.stderr)
        else:
            names.append(name)
    if not names:
        raise errors.InputError(f"--methods: is empty. Choose from {', '.join(settings.NORMS)}.")
    print("\n".join(names))


if __name__ == "__main__":
    sys.exit(errors.exit_code(main))
