#!/bin/sh
# Make .venv hold what pyproject.toml asks for. Safe to run again after an interruption.
#
#   scripts/setup.sh STAMP          STAMP is written last, so it stands for a whole installation
#
#   PYTHON            the interpreter to build on (default: python3)
#   TORCH_INDEX_URL   where a machine without an NVIDIA GPU looks for the CPU build of PyTorch when pip's
#                     own sources have none: the address of PyTorch's CPU index
set -eu

stamp=$1
python=${PYTHON:-python3}
torch=2.13.0
torch_index=${TORCH_INDEX_URL-}
started=$(date +%s)

say() { printf 'set-up  %s\n' "$*"; }
fail() { printf 'set-up  %s\n' "$*" >&2; exit 1; }
pip() { .venv/bin/python -m pip --disable-pip-version-check --no-input "$@"; }
# Errors only: what pip warns of is about its own sources, and there is a line for it per package.
install() { pip install --quiet --quiet "$@"; }

command -v "$python" >/dev/null 2>&1 ||
    fail "No '$python' was found. Arborist needs Python 3.11 or newer: install it, or name one with PYTHON=/path/to/python3 make …"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "'$python' is $("$python" --version 2>&1). Arborist needs Python 3.11 or newer: install it, or name one with PYTHON=/path/to/python3 make …"

# An environment made by an older interpreter, or one that was moved, cannot be repaired by installing into it.
if [ -d .venv ] && ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    say "1/4 .venv does not work any more: making it anew"
    rm -rf .venv
fi
if [ ! -x .venv/bin/pip ]; then
    say "1/4 making .venv with $("$python" --version 2>&1)"
    "$python" -m venv .venv ||
        fail "'$python -m venv' failed, see above. On Debian and Ubuntu the package python3-venv is missing."
else
    say "1/4 .venv is there"
fi

has_torch() {
    .venv/bin/python - "$torch" <<'PYTHON' 2>/dev/null
import sys
from importlib.metadata import version
sys.exit(version("torch").partition("+")[0] != sys.argv[1])
PYTHON
}

if has_torch; then
    say "2/4 PyTorch $torch is there"
elif [ "$(uname -s)" != Linux ] || { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }; then
    say "2/4 PyTorch $torch, pip's default build (with CUDA on Linux: about 3 GB, some minutes)"
    install "torch==$torch"
else
    say "2/4 PyTorch $torch, CPU build (about 200 MB)"
    if install "torch==$torch+cpu" 2>/dev/null; then
        :
    elif [ -n "$torch_index" ] && install "torch==$torch" --index-url "$torch_index"; then
        :
    else
        say "    pip's sources have no CPU build; taking the default one (about 3 GB). For the small one, stop and set TORCH_INDEX_URL to PyTorch's CPU index"
        install "torch==$torch"
    fi
fi

say "3/4 the other packages (about 400 MB unpacked)"
install --editable '.[embedded,train,test]'

say "4/4 checking that what was installed fits together"
scripts/pip_check >&2 || fail "pip found packages that do not fit together, see above."

rm -f .venv/.ready-*
: > "$stamp"
say "done in $(($(date +%s) - started)) s"
