# Sourced by the scripts: a virtual environment in .venv with what they need, made once and again when the pins change.

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.13 python3.12 python3.11 python3 python; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "expected Python 3.11 or newer on the PATH, found none; set PYTHON to one" >&2
    return 1
}

# make_environment FOLDER WHAT...: install WHAT (arguments of pip) into the virtual environment FOLDER, pinned.
make_environment() {
    local folder=$1 stamp
    shift
    stamp=$(find pyproject.toml constraints.txt kernels -name '[a-z]*.*' -type f ! -name 'library[0-9]*' ! -path '*__pycache__*' -print0 | sort -z | xargs -0 cat | cksum)" $*"
    if [ "$(cat "$folder/installed" 2>/dev/null)" != "$stamp" ]; then
        echo "setting up $folder (once; a minute or two)" >&2
        [ -x "$folder/bin/python" ] || "$(find_python)" -m venv "$folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "$@" >&2
        echo "$stamp" >"$folder/installed"
    fi
    export PATH="$PWD/$folder/bin:$PATH"
}
