#!/usr/bin/env bash
# Makes a fresh checkout buildable: finds or fetches libtorch, and writes `.cargo/config.toml`, so that
# plain `cargo` works afterwards with nothing exported. Safe to run again: it does only what is missing.
#
# Honoured: LIBTORCH (a libtorch folder), LIBTORCH_USE_PYTORCH=1 (the torch of `python3`), XDG_CACHE_HOME.
set -euo pipefail
cd "$(dirname "$0")/.."

torch_version=2.11.0
say() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'error: %s\n\nhint: %s\n' "$1" "$2" >&2; exit 1; }

# A failed or interrupted fetch leaves no half of five gigabytes behind.
partial=
trap '[ -z "$partial" ] || rm -rf "$partial"' EXIT

command -v cargo >/dev/null || fail "no cargo on PATH" "install a Rust toolchain, 1.95 or newer"
command -v c++ >/dev/null || command -v g++ >/dev/null || fail "no C++ compiler on PATH" "install g++ or clang++"
command -v python3 >/dev/null || fail "no python3 on PATH" "install Python 3 with pip"

python_tag=$(python3 -c 'import sys; print(f"py{sys.version_info[0]}{sys.version_info[1]}")')
python_path=
if [ -n "${LIBTORCH:-}" ]; then
  libtorch=$(cd "$LIBTORCH" 2>/dev/null && pwd) || fail "LIBTORCH is set to $LIBTORCH, which is no folder" "unset it, or name a libtorch $torch_version folder"
  # The folder of a Python torch serves as a libtorch too; then the parity tests use that same torch.
  [ ! -f "$libtorch/__init__.py" ] || python_path=$(dirname "$libtorch")
elif [ -n "${LIBTORCH_USE_PYTORCH:-}" ]; then
  libtorch=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))') ||
    fail "LIBTORCH_USE_PYTORCH is set, but python3 cannot import torch" "pip install torch==$torch_version"
  python_path=$(dirname "$libtorch")
else
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/trestle
  python_path=$cache/torch-$torch_version-$python_tag
  libtorch=$python_path/torch
  if [ ! -f "$python_path/.complete" ]; then
    python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip" "install python3-pip"
    say "fetching torch $torch_version into $python_path (about 5 GB on Linux x86-64, once)"
    mkdir -p "$cache"
    partial=$(mktemp -d "$python_path.partial.XXXXXX")
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-compile \
      --target "$partial" "torch==$torch_version" numpy safetensors >&2 ||
      fail "pip could not install torch $torch_version" "see pip's message above; or set LIBTORCH to a libtorch $torch_version folder"
    touch "$partial/.complete"
    # Another setup may have finished meanwhile: the first one wins. (A plain `mv` onto a folder would move into it.)
    if [ ! -f "$python_path/.complete" ]; then
      rm -rf "$python_path"
      mv "$partial" "$python_path"
    fi
  fi
fi
[ -d "$libtorch/lib" ] || fail "$libtorch has no lib folder" "LIBTORCH must point at a libtorch $torch_version folder"
# A Python torch states its version in version.py, a plain libtorch in build-version.
found=$torch_version
if [ -f "$libtorch/version.py" ]; then
  found=$(sed -n "s/^__version__ = '\([0-9.]*\).*/\1/p" "$libtorch/version.py")
elif [ -f "$libtorch/build-version" ]; then
  found=$(sed -n '1s/^\([0-9.]*\).*/\1/p' "$libtorch/build-version")
fi
[ "$found" = "$torch_version" ] ||
  fail "$libtorch holds torch $found, expected $torch_version" "pip install torch==$torch_version"
[ -z "${RUSTFLAGS:-}" ] ||
  say "warning: RUSTFLAGS is set and hides the rpath in .cargo/config.toml; unset it, or add -C link-arg=-Wl,-rpath,$libtorch/lib"

mkdir -p .cargo
config=$(cat <<EOF
# Written by scripts/setup.sh for this checkout; not committed.
[env]
LIBTORCH = "$libtorch"
TRESTLE_PYTHONPATH = "$python_path"

[build]
rustflags = ["-C", "link-arg=-Wl,-rpath,$libtorch/lib"]
rustdocflags = ["-C", "link-arg=-Wl,-rpath,$libtorch/lib"]
EOF
)
if [ ! -f .cargo/config.toml ] || [ "$config" != "$(cat .cargo/config.toml)" ]; then
  printf '%s\n' "$config" >.cargo/config.toml
  say "wrote .cargo/config.toml (libtorch at $libtorch)"
fi
