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
    stamp=$(cat pyproject.toml constraints.txt | cksum)" $*"
    if [ "$(cat "$folder/installed" 2>/dev/null)" != "$stamp" ]; then
        echo "setting up $folder (once; a minute or two)" >&2
        [ -x "$folder/bin/python" ] || "$(find_python)" -m venv "$folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "$@" >&2
        echo "$stamp" >"$folder/installed"
    fi
    export PATH="$PWD/$folder/bin:$PATH"
}

# Debian 13's package has the headers of ONNX Runtime 1.21; it is taken from the mirror that apt uses, and not installed.
fetch_headers() {
    local folder=$PWD/.onnxruntime-headers mirror options
    if [ ! -d "$folder/usr" ]; then
        mirror=$(apt-get indextargets --format '$(REPO_URI)' | awk '/debian\/?$/ && !found++')
        [ -n "$mirror" ] || return 1
        mkdir -p "$folder"/{lists,cache/archives}/partial || return 1
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$folder/sources.list"
        options=(-o "Dir::Etc::SourceList=$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null
            -o "Dir::State::Lists=$folder/lists" -o "Dir::Cache=$folder/cache" -o APT::Sandbox::User=root)
        apt-get "${options[@]}" -qq update || return 1
        (cd "$folder" && apt-get "${options[@]}" -qq download libonnxruntime-dev && dpkg -x ./*.deb .) || return 1
    fi
    export BGE_ONNXRUNTIME_INCLUDE=$folder/usr/include/onnxruntime
}

# The custom operators, into the environment on the PATH. ONNX Runtime's headers are those that BGE_ONNXRUNTIME_INCLUDE
# names, the system's, or Debian's package, unpacked here.
build_kernels() {
    if [ -z "${BGE_ONNXRUNTIME_INCLUDE:-}" ] && [ ! -d /usr/include/onnxruntime ]; then
        fetch_headers || echo "no headers of ONNX Runtime could be fetched from a Debian mirror" >&2
    fi
    BGE_KERNELS=1 pip install --quiet --disable-pip-version-check --no-deps --editable . >&2
}
