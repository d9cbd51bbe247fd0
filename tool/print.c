/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* What qemu-img info, snapshot -l and --output=json look like.
 *
 * Layer: tool.  No locking: the main thread.  The layout was found by looking
 * at what qemu-img prints.
 */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "tool/tool.h"

static const char *
text_of (const json_t *object, const char *key)
{
  return json_string_value (json_object_get (object, key));
}

static uint64_t
number_of (const json_t *object, const char *key)
{
  return (uint64_t) json_integer_value (json_object_get (object, key));
}

void
tool_put_json_name (json_t *object, const char *key, const char *text)
{
  CLEANUP_FREE char *utf8 = utf8_text (text);

  if (utf8)
    json_object_set_new (object, key, json_string (utf8));
}

int
print_json (const json_t *value)
{
  /* Not sorted; ASCII alone, so that no name can drive a terminal. */
  int r = json_dumpf (value, stdout, JSON_INDENT (4) | JSON_ENSURE_ASCII);

  putchar ('\n');
  return r;
}

/* ---- values of any shape ---- */

static void print_members (const json_t *value, int indent);

/* What stands behind a key or an index. */
static void
print_value (const json_t *value, int indent)
{
  switch (json_typeof (value)) {
  case JSON_OBJECT:
  case JSON_ARRAY:
    putchar ('\n');
    print_members (value, indent + 4);
    return;
  case JSON_STRING:
    putchar (' ');
    tool_put_name (stdout, json_string_value (value));
    break;
  case JSON_INTEGER:
    printf (" %" JSON_INTEGER_FORMAT, json_integer_value (value));
    break;
  case JSON_REAL:
    printf (" %g", json_real_value (value));
    break;
  case JSON_TRUE:
  case JSON_FALSE:
    fputs (json_is_true (value) ? " true" : " false", stdout);
    break;
  case JSON_NULL:
    fputs (" null", stdout);
    break;
  }
  putchar ('\n');
}

static void
print_key (const char *key, int indent)
{
  printf ("%*s", indent, "");
  for (; *key; ++key)
    putchar (*key == '-' ? ' ' : *key);
  putchar (':');
}

static void
print_members (const json_t *value, int indent)
{
  const char *key;
  json_t *member;
  size_t i;

  json_object_foreach ((json_t *) value, key, member) {
    print_key (key, indent);
    print_value (member, indent);
  }
  json_array_foreach (value, i, member) {
    printf ("%*s[%zu]:", indent, "", i);
    print_value (member, indent);
  }
}

void
print_format_specific (const json_t *specific)
{
  puts ("Format specific information:");
  print_members (json_object_get (specific, "data"), 4);
}

/* ---- snapshots ---- */

static void
format_date (uint64_t seconds, char *buf, size_t size)
{
  time_t t = (time_t) seconds;
  struct tm tm;

  if (!localtime_r (&t, &tm) || !strftime (buf, size, "%Y-%m-%d %H:%M:%S",
                                           &tm))
    snprintf (buf, size, "?");
}

static void
format_clock (const json_t *s, char *buf, size_t size)
{
  uint64_t sec = number_of (s, "vm-clock-sec");
  uint64_t ms = number_of (s, "vm-clock-nsec") / 1000000;

  snprintf (buf, size, "%02" PRIu64 ":%02" PRIu64 ":%02" PRIu64 ".%03" PRIu64,
            sec / 3600, sec / 60 % 60, sec % 60, ms);
}

static void
print_snapshot (const json_t *s)
{
  CLEANUP_FREE char *id = printable (text_of (s, "id"));
  CLEANUP_FREE char *name = printable (text_of (s, "name"));
  char size[32], date[64], clock[64], icount[32] = "";
  const json_t *count = json_object_get (s, "icount");

  human_size (number_of (s, "vm-state-size"), size, sizeof size);
  format_date (number_of (s, "date-sec"), date, sizeof date);
  format_clock (s, clock, sizeof clock);
  if (count)
    snprintf (icount, sizeof icount, "%" JSON_INTEGER_FORMAT,
              json_integer_value (count));
  printf ("%-9s %-16s %8s%20s%13s%11s\n", id ? id : "?", name ? name : "?",
          size, date, clock, icount);
}

void
print_snapshots (const json_t *snapshots)
{
  json_t *s;
  size_t i;

  puts ("Snapshot list:");
  printf ("%-9s %-16s %8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE",
          "VM CLOCK", "ICOUNT");
  json_array_foreach (snapshots, i, s)
    print_snapshot (s);
}

/* ---- info ---- */

static void
print_named (const char *label, const char *text)
{
  printf ("%s: ", label);
  tool_put_name (stdout, text);
  putchar ('\n');
}

static void
print_sizes (const json_t *info)
{
  const json_t *actual = json_object_get (info, "actual-size");
  uint64_t virtual = number_of (info, "virtual-size");
  char buf[32];

  printf ("virtual size: %s (%" PRIu64 " bytes)\n",
          human_size (virtual, buf, sizeof buf), virtual);
  if (actual)
    printf ("disk size: %s\n", human_size (number_of (info, "actual-size"),
                                           buf, sizeof buf));
  else
    puts ("disk size: unavailable");
}

static void
print_backing (const json_t *info)
{
  const char *name = text_of (info, "backing-filename");
  const char *full = text_of (info, "full-backing-filename");
  const char *format = text_of (info, "backing-filename-format");

  if (!name)
    return;
  fputs ("backing file: ", stdout);
  tool_put_name (stdout, name);
  if (!full)
    fputs (" (cannot determine actual path)", stdout);
  else if (strcmp (full, name) != 0) {
    fputs (" (actual path: ", stdout);
    tool_put_name (stdout, full);
    putchar (')');
  }
  putchar ('\n');
  if (format)
    print_named ("backing file format", format);
}

static void
print_one (const json_t *info)
{
  const json_t *cluster = json_object_get (info, "cluster-size");
  const json_t *snapshots = json_object_get (info, "snapshots");
  const json_t *specific = json_object_get (info, "format-specific");

  print_named ("image", text_of (info, "filename"));
  print_named ("file format", text_of (info, "format"));
  print_sizes (info);
  if (json_is_true (json_object_get (info, "encrypted")))
    puts ("encrypted: yes");
  if (cluster)
    printf ("cluster_size: %" PRIu64 "\n", number_of (info, "cluster-size"));
  if (json_is_true (json_object_get (info, "dirty-flag")))
    puts ("cleanly shut down: no");
  print_backing (info);
  if (snapshots)
    print_snapshots (snapshots);
  if (specific)
    print_format_specific (specific);
}

void
print_info (const json_t *info)
{
  json_t *one;
  size_t i;

  json_array_foreach (info, i, one) {
    if (i)
      putchar ('\n');
    print_one (one);
  }
}
