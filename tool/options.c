/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The values of options that commands share, with the messages of qemu-img.
 *
 * Layer: tool.  No locking: the main thread, before anything is started.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/object.h"
#include "common/text.h"
#include "tool/tool.h"

/* ---- values ---- */

int
tool_object (char *arg)
{
  struct error e = ERROR_INIT;
  int r = object_add (arg, &e);

  /* What ps shows of this process from now on. */
  memset (arg, '*', strlen (arg));
  if (r == -1)
    tool_fail (&e);
  return r;
}

int
tool_size (const char *what, const char *text, uint64_t *size)
{
  return tool_size_within (what, text, 0, INT64_MAX, size);
}

int
tool_size_within (const char *what, const char *text, uint64_t min,
                  uint64_t max, uint64_t *size)
{
  struct error e = ERROR_INIT;
  int r = parse_size (what, text, size, &e);

  if (r == 0 && *size >= min && *size <= max)
    return 0;
  if (r == 0 || e.err == ERANGE)
    tool_error ("Invalid %s specified. Must be between %" PRIu64 " and %"
                PRIu64 ".", what, min, max);
  else {
    tool_error ("Invalid %s specified. You may use k, M, G, T, P or E "
                "suffixes for", what);
    tool_error ("kilobytes, megabytes, gigabytes, terabytes, petabytes and "
                "exabytes.");
  }
  return -1;
}

int
tool_number (const char *what, const char *text, uint64_t min, uint64_t max,
             unsigned *r)
{
  char *end;
  unsigned long n;

  errno = 0;
  n = strtoul (text, &end, 0);
  if (*text < '0' || *text > '9' || *end || errno || n < min || n > max) {
    tool_error ("Invalid %s specified", what);
    return -1;
  }
  *r = (unsigned) n;
  return 0;
}

int
tool_cache (const char *what, const char *text, enum cache_mode *mode)
{
  struct error e = ERROR_INIT;

  if (cache_mode_parse (what, text, mode, &e) == 0)
    return 0;
  tool_error ("Invalid %s: %s", what, text);
  return -1;
}

int
tool_aio (const char *text, bool *native)
{
  *native = strcmp (text, "native") == 0;
  if (strcmp (text, "threads") == 0)
    return 0;
  if (!*native && strcmp (text, "io_uring") != 0) {
    tool_error ("Invalid aio option: %s", text);
    return -1;
  }
  tool_error ("warning: aio=%s: requests are made by threads here", text);
  return 0;
}

const char *
tool_native_conflict (bool native, enum cache_mode cache)
{
  if (!native || cache == CACHE_NONE || cache == CACHE_DIRECTSYNC)
    return NULL;
  return "aio=native was specified, but it requires cache.direct=on, which was "
    "not specified.";
}

int
tool_output (const char *text, bool *json)
{
  *json = strcmp (text, "json") == 0;
  if (*json || strcmp (text, "human") == 0)
    return 0;
  tool_error ("--output must be used with human or json as argument.");
  return -1;
}

/* ---- -o ---- */

/* A list neither begins nor ends with a comma that is not doubled. */
static bool
is_option_list (const char *text)
{
  size_t len = strlen (text), tail = 0;

  while (tail < len && text[len - 1 - tail] == ',')
    tail++;
  return len && strspn (text, ",") % 2 == 0 && tail % 2 == 0;
}

int
tool_add_options (char **all, const char *text)
{
  char *joined;

  if (!is_option_list (text)) {
    tool_error ("Invalid option list: %s", text);
    return -1;
  }
  joined = *all ? format_text ("%s,%s", *all, text) : strdup (text);
  if (!joined) {
    tool_error ("out of memory");
    return -1;
  }
  free (*all);
  *all = joined;
  return 0;
}

char *
tool_double_commas (const char *text)
{
  char *r = malloc (2 * strlen (text) + 1), *q = r;

  if (!r)
    return NULL;
  for (; *text; ++text) {
    *q++ = *text;
    if (*text == ',')
      *q++ = ',';
  }
  *q = '\0';
  return r;
}

/* The length of the item at P; a doubled comma does not end it. */
static size_t
item_length (const char *p)
{
  size_t n = 0;

  for (;; n += 2) {
    n += strcspn (p + n, ",");
    if (p[n] == '\0' || p[n + 1] != ',')
      return n;
  }
}

bool
tool_options_want_help (const char *options)
{
  for (const char *p = options;;) {
    size_t n = item_length (p);

    if ((n == 4 && strncmp (p, "help", 4) == 0) || (n == 1 && *p == '?'))
      return true;
    p += n;
    if (*p++ == '\0')
      return false;
  }
}

static int
by_name (const void *a, const void *b)
{
  const struct format_option *const *x = a, *const *y = b;

  return strcmp ((*x)->name, (*y)->name);
}

static void
print_option (const struct format_option *o)
{
  static const char *const types[] = {
    [OPTION_STRING] = "str", [OPTION_BOOL] = "bool (on/off)",
    [OPTION_SIZE] = "size", [OPTION_NUMBER] = "num",
  };
  char text[64];

  snprintf (text, sizeof text, "%s=<%s>", o->name, types[o->type]);
  printf ("  %-22s - %s\n", text, o->help);
}

void
tool_print_options (const struct format_option *table, bool for_file)
{
  const struct format_option *sorted[64];
  size_t nr = 0;

  for (const struct format_option *o = table; o->name; ++o)
    if ((for_file || !o->of_file) && nr < sizeof sorted / sizeof sorted[0])
      sorted[nr++] = o;
  qsort (sorted, nr, sizeof sorted[0], by_name);
  for (size_t i = 0; i < nr; ++i)
    print_option (sorted[i]);
}

void
tool_print_format_options (const struct format_ops *format, bool for_file)
{
  if (for_file)
    puts ("Supported options:");
  else
    printf ("Supported %s options:\n", format->name);
  tool_print_options (format->create_options, for_file);
  if (!for_file)
    puts ("\nThe protocol level may support further options.\n"
          "Specify the target filename to include those options.");
}

/* ---- images ---- */

int
tool_check_image (const struct tool_image *ti)
{
  if (!ti->image_opts || !ti->format)
    return 0;
  tool_error ("--image-opts and --format are mutually exclusive");
  return -1;
}

int
tool_cannot_open (const char *name, const struct error *e)
{
  tool_error ("Could not open '%s': %s", name, tool_without_name (name, e));
  return 1;
}

/* In qemu-img's words. */
void
tool_warn_of_probing (const struct image *im)
{
  if (!im->probed || !im->options.writable || im->format->ops != &format_raw)
    return;
  fputs ("WARNING: Image format was not specified for '", stderr);
  tool_put_name (stderr, im->name);
  fputs ("' and probing guessed raw.\n"
         "         Automatically detecting the format is dangerous for raw "
         "images, write operations on block 0 will be restricted.\n"
         "         Specify the 'raw' format explicitly to remove the "
         "restrictions.\n", stderr);
}

struct image *
tool_open (const struct tool_image *ti)
{
  struct error e = ERROR_INIT;
  struct image *im;
  json_t *tree;

  if (!ti->image_opts)
    im = image_open_name (ti->name, ti->format, &ti->open, &e);
  else {
    tree = image_opts_parse (ti->name, &e);
    im = tree ? image_open (tree, &ti->open, &e) : NULL;
    json_decref (tree);
  }
  if (im)
    tool_warn_of_probing (im);
  else
    tool_cannot_open (ti->name, &e);
  return im;
}

int
tool_close (struct image *im)
{
  struct error e = ERROR_INIT;

  if (image_close (im, &e) == 0)
    return 0;
  tool_fail (&e);
  return -1;
}
