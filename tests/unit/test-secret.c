/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* common/{object,secret,secret_object}.c: nothing of a secret stays in memory,
 * whatever way it came and whether it was taken or not.
 */

#include <config.h>

#include <errno.h>
#include <unistd.h>

#include "common/object.h"
#include "common/secret.h"
#include "common/secure.h"
#include "tests/unit/unit.h"

/* Long: what is freed loses its first bytes to the allocator. */
enum { LEN = 200 };

static char needle[LEN + 1], text[1000];

/* Letters, other ones each time. */
static void
new_needle (void)
{
  static unsigned nr;

  nr++;
  for (unsigned i = 0; i < LEN; ++i)
    needle[i] = (char) ('a' + (i * i + i * nr + nr) % 26);
}

static bool
is_in (const char *from, const char *to)
{
  for (unsigned i = 0; i + 24 <= LEN; i += 8)
    if (memmem (from, (size_t) (to - from), needle + i, 24))
      return true;
  return false;
}

/* Sanitizers have a heap of their own. */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
static const bool own_heap = true;
#else
static const bool own_heap = false;
#endif

static bool
is_in_heap (void)
{
  FILE *fp = fopen ("/proc/self/maps", "re");
  void *from = NULL, *to = NULL;
  char line[4096], *end = fp ? line : NULL;
  bool found = false;

  while (!found && end && (end = fgets (line, sizeof line, fp)))
    found = strstr (line, "[heap]")
      && sscanf (line, "%p-%p", &from, &to) == 2;
  if (fp)
    fclose (fp);
  return found && is_in (from, to);
}

static void
leaves_nothing (const char *format, int errnum)
{
  struct error e = ERROR_INIT;
  struct secret s;

  new_needle ();
  snprintf (text, sizeof text, format, needle);
  if (errnum)
    CHECK_FAILS (object_add (text, &e), &e, errnum);
  else {
    CHECK_OK (object_add (text, &e), &e);
    CHECK_OK (secret_get ("s", &s, &e), &e);
    CHECK (own_heap || is_in_heap ());
    secret_free (&s);
  }
  CHECK (!strstr (e.text, needle));
  secret_forget_all ();
  CHECK (!is_in_heap ());
}

static void
test_wiped (void)
{
  struct error e = ERROR_INIT;
  struct secret s;

  unit_begin ("nothing of a secret stays in memory");
  leaves_nothing ("secret,id=s,data=%s", 0);
  leaves_nothing ("{\"qom-type\": \"secret\", \"id\": \"s\", "
                  "\"data\": \"%s\"}", 0);
  leaves_nothing ("secret,id=s,data=%s,size=3", EINVAL);
  leaves_nothing ("secret,id=s,format=base64,data=%s!", EINVAL);
  leaves_nothing ("{\"qom-type\": \"secret\", \"id\": \"s\", "
                  "\"dita\": \"%s\"}", EINVAL);
  leaves_nothing ("{\"qom-type\": \"secret\", \"id\": \"s\", "
                  "\"data\": \"%s\",", EINVAL);
  CHECK_FAILS (secret_get ("s", &s, &e), &e, ENOENT);
}

int
main (void)
{
  test_wiped ();
  return unit_end ();
}
