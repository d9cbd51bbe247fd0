# SPDX-License-Identifier: BSD-3-Clause
# Copyright the nbdimg developers.

# What the second compiler sees: warnings, and who holds which lock.

load lib

# clang's checks of one file, with the flags of the build.
clang_check () {
  clang -fsyntax-only -std=gnu11 -Wall -Wextra -Wshadow -Wconversion \
    -Wthread-safety -Werror -I"$NBDIMG_BUILD" -I"$SRCDIR" \
    $(pkg-config --cflags gnutls libnbd jansson nbdkit) "$@"
}

@test "clang finds no warning and no broken lock contract" {
  need clang
  local f bad=0
  while read -r f; do
    clang_check "$SRCDIR/$f" || bad=1
  done < <(cd "$SRCDIR" && find common storage formats image ops rpc server \
    plugins tool tests -name '*.c' 2>/dev/null | sort)
  [ $bad = 0 ]
}

@test "a lock that is not held where it must be is found" {
  need clang
  cat >bad.c <<'END'
#include <config.h>
#include "common/lock.h"
extern struct mutex m;
extern void change_locked (void) REQUIRES (m);
extern void change (void);
void
change (void)
{
  change_locked ();
}
END
  run clang_check bad.c
  [ "$status" != 0 ]
  [[ $output == *"requires holding mutex 'm'"* ]] || fail "$output"
  sed -i 's/^  change_locked ();/  mutex_lock (\&m); & mutex_unlock (\&m);/' bad.c
  clang_check bad.c
}
