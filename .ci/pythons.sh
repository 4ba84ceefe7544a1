#!/usr/bin/env bash
# The unit tests on the oldest and the newest Python that the project supports and this machine has, besides the Python
# of .venv. Arguments go to pytest: .ci/pythons.sh -m "not long". Needs uv, which the extra `audit` installs.
# The tests of benchmarks/quality.py run there too: in .venv, torch may be a build that PyPI has no torchvision for.
# The packages stay in the user's cache folder for the next run, because torch for them may be a CUDA build of 5 GB.
set -euo pipefail
cd "$(dirname "$0")/.."

supported=(3.10 3.11 3.12 3.13)
room_needed_gb=12
cache="${XDG_CACHE_HOME:-$HOME/.cache}/sd-webui-rival"
uv=.venv/bin/uv
export UV_CACHE_DIR="$cache/uv" UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1

say() {
    echo "pythons: $*" >&2
}

# Prints the path of a version's interpreter. pyenv's python3.X runs only if PYENV_VERSION selects it.
find_python() {
    PYENV_VERSION=$1 "$uv" python find --no-project --system "$1" 2>/dev/null
}

# Prints the first of the given versions that is on this machine, and names those that are not.
first_found() {
    local version
    for version in "$@"; do
        if find_python "$version" >/dev/null; then
            echo "$version"
            return
        fi
        say "Python $version is not on this machine, nothing was tried with it"
    done
}

oldest_and_newest() {
    local newest_first
    mapfile -t newest_first < <(printf '%s\n' "${supported[@]}" | sort -t. -k2nr)
    { first_found "${supported[@]}" && first_found "${newest_first[@]}"; } | uniq
}

version_of() {
    "$1" -c "import sys; print('%d.%d' % sys.version_info[:2])" 2>/dev/null
}

has_room() {
    (($(df -Pk "$cache" | awk 'END { print $4 }') > room_needed_gb * 1024 * 1024))
}

unit_tests() {
    local version=$1 environment="$cache/python$1"
    shift
    if [[ $(version_of "$environment/bin/python") != "$version" ]]; then
        if ! has_room; then
            say "less than $room_needed_gb GB are free for $environment, nothing was tried with Python $version"
            return
        fi
        "$uv" venv -q --clear --python "$(find_python "$version")" "$environment"
    fi
    # Exactly the packages that pyproject.toml pins now, without the project itself.
    "$uv" pip install -q --exact --python "$environment/bin/python" -r pyproject.toml --extra dev --extra quality
    say "unit tests on Python $version"
    "$environment/bin/python" -m pytest tests/unit "$@"
    "$environment/bin/python" -m pytest tests/benchmarks/test_quality.py -q -m "slow or not slow"
}

mkdir -p "$cache"
for version in $(oldest_and_newest); do
    if [[ $version == "$(version_of .venv/bin/python)" ]]; then
        say "Python $version is the Python of .venv, which runs all tests"
    else
        unit_tests "$version" "$@"
    fi
done
