#!/bin/sh
# lint.sh: the layering of DESIGN §2 and a few rules of the tree, by reading includes. No network, no build needed.
#   src/base <- kernels <- comm <- src/{model,cache} <- src/{engine,snapshot} <- src/serve <- src/cli
top=${srcdir:-.}
cd "$top" || exit 1
bad=0
complain() { echo "lint: $*"; bad=1; }

level() {
    case $1 in
    src/base/*) echo 0 ;;
    kernels/*) echo 1 ;;
    comm/*) echo 2 ;;
    src/model/* | src/cache/*) echo 3 ;;
    src/engine/* | src/snapshot/*) echo 4 ;;
    src/serve/*) echo 5 ;;
    src/cli/*) echo 6 ;;
    *) echo 9 ;;
    esac
}

# The directory that a private header is private to.
module() { case $1 in src/*) echo "$1" | cut -d/ -f1-2 ;; *) echo "${1%%/*}" ;; esac; }

for file in $(find src kernels comm -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' | sort); do
    mine=$(level "$file")
    # shellcheck disable=SC2013  # names have no spaces
    for included in $(sed -n 's/^ *# *include "\(.*\)"/\1/p' "$file"); do
        case $included in
        src/* | kernels/* | comm/*) [ "$(level "$included")" -le "$mine" ] || complain "$file includes $included, a layer above" ;;
        tests/*) complain "$file includes $included" ;;
        esac
        case $included in
        *_private.h | kernels/backend.h | kernels/cpu/* | kernels/cuda/*)
            [ "$(module "$included")" = "$(module "$file")" ] || complain "$file includes $included, which is private" ;;
        esac
    done
    only() { # only HEADER-PATTERN DIRECTORY…
        pattern=$1
        shift
        grep -qE "^ *# *include *<$pattern" "$file" || return 0
        for dir in "$@"; do case $file in $dir*) return 0 ;; esac; done
        complain "$file includes <$pattern>"
    }
    only 'mpi\.h' comm/
    only 'nccl\.h' comm/
    only 'cu(da|blas)' kernels/cuda/ comm/nccl.c
    only 'hdf5\.h' src/snapshot/
    only 'microhttpd\.h' src/serve/
    only 'cblas\.h' kernels/cpu/
    only 'pcre2\.h' src/model/
    # One options table reads the environment; the launcher's own variables are not options.
    case $file in
    src/base/options.c | comm/mpi.c) ;;
    *) ! grep -qE '\b(secure_)?getenv *\(' "$file" || complain "$file calls getenv" ;;
    esac
    case $file in
    src/cli/* | comm/mpi.c) ;;
    *) ! grep -qE '\b(_?exit|abort) *\(' "$file" || complain "$file ends the process; only main may" ;;
    esac
    ! grep -nE '\b(TODO|FIXME|XXX)\b' "$file" || complain "$file leaves work in a comment"
    ! grep -q 'ffast-math' "$file" || complain "$file: fast-math"
    lines=$(wc -l <"$file")
    [ "$lines" -lt 800 ] || complain "$file has $lines lines; split it at 800"
    head -n 1 "$file" | grep -qE '^(/\*|//)' || complain "$file does not begin by saying what it does"
    awk 'length($0) > 160 { print FILENAME ": line " FNR " is too long"; n++ } END { exit n > 0 }' "$file" || bad=1
done
exit $bad
