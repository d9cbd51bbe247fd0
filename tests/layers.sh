#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# tests/layers.sh [TREE]: does each folder include only what lies below it?
# And: no folder but tool/ and plugins/ prints or ends the program, nbdkit's
# header is plugins/' alone and libnbd's storage/'s.  Names each line that is
# not so and then fails.

set -u
top=${1:-$(dirname "$0")/..}
cd "$top" || exit 1

# folder: the folders whose headers it may include, besides its own
below () {
  case $1 in
  common) echo ;;
  storage) echo common ;;
  formats) echo storage common ;;
  image) echo formats storage common ;;
  ops) echo image formats storage common ;;
  rpc) echo ops common ;;
  server) echo ops image rpc common ;;
  plugins) echo server image common ;;
  tool) echo ops image rpc common ;;
  esac
}

# The system headers that one folder alone may include.
owner_of () {
  case $1 in
  nbdkit-*.h) echo plugins ;;
  libnbd.h) echo storage ;;
  getopt.h) echo tool ;;
  esac
}

bad=0 seen=0
complain () {
  printf '%s\n' "$*"
  bad=1
}

# check_include FILE FOLDER LINE TEXT
check_include () {
  case $4 in
  \<*\>)
    header=${4#<} header=${header%>}
    owner=$(owner_of "$header")
    [ -z "$owner" ] || [ "$owner" = "$2" ] ||
      complain "$1:$3: <$header> belongs to $owner/"
    ;;
  \"*/*\")
    header=${4#\"} header=${header%\"}
    case " $2 $(below "$2") " in
    *" ${header%%/*} "*) ;;
    *) complain "$1:$3: $2/ may not include \"$header\"" ;;
    esac
    [ -f "$header" ] || complain "$1:$3: there is no $header"
    ;;
  *) complain "$1:$3: give the path from the top folder: $4" ;;
  esac
}

# The file without comments and the text of strings, with its line numbers.
code_of () {
  awk '
    {
      line = $0; out = ""
      while (line != "") {
        if (comment) {
          i = index (line, "*/")
          if (!i) { line = ""; break }
          line = substr (line, i + 2); comment = 0
        }
        else if (match (line, /"([^"\\]|\\.)*"|\/\*|\/\//)) {
          out = out substr (line, 1, RSTART - 1)
          token = substr (line, RSTART, RLENGTH)
          line = substr (line, RSTART + RLENGTH)
          if (token == "/*") comment = 1
          else if (token == "//") line = ""
          else out = out "\"\""
        }
        else { out = out line; line = "" }
      }
      print NR ":" out
    }' "$1"
}

# Calls by which a program talks to its user or ends (_exit is for a child that
# could not exec).
calls='(printf|vprintf|puts|putchar|perror|err|errx|verr|warn|warnx|vwarn|exit|quick_exit)'
stdio='(std(out|err))'

check_calls () {
  found=$(code_of "$1" | grep -nE \
    "(^|[^A-Za-z0-9_>.])$calls *\\(|(^|[^A-Za-z0-9_])$stdio([^A-Za-z0-9_]|\$)" |
    sed 's/^[0-9]*://')
  [ -z "$found" ] ||
    complain "$1: only tool/ and plugins/ print or exit:
$found"
}

for folder in common storage formats image ops rpc server plugins tool; do
  [ -d "$folder" ] || continue
  for file in $(find "$folder" -name '*.[ch]' | sort); do
    seen=$((seen + 1))
    includes=$(grep -nE '^[[:space:]]*#[[:space:]]*include' "$file" | sed -E \
      's/:[[:space:]]*#[[:space:]]*include[[:space:]]*/ /')
    while read -r line text _; do
      [ -z "$line" ] || check_include "$file" "$folder" "$line" "$text"
    done <<END
$includes
END
    case $folder in
    tool | plugins) ;;
    *) check_calls "$file" ;;
    esac
  done
done

if [ $seen = 0 ]; then
  complain "$top: there is no source to look at"
fi
[ $bad = 0 ] && echo "layers: ok ($seen files)"
exit $bad
