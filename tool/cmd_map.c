/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg map: see nbdimg-map(1).
 *
 * Layer: tool.  No locking: one thread.  The JSON is printed as it is found:
 * the map of a fragmented image is longer than anybody wants in memory.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "tool/tool.h"

static const char usage[] =
"map [--image-opts] [-f fmt] [-s offset] [-l length] [--output=ofmt] [-U] "
"filename\n"
"Tell where in its files the data of an image lie.\n"
"\n"
"  -f, --format=FMT         its format; without it the content decides\n"
"      --image-opts         filename is key=value,...\n"
"  -s, --start-offset=SIZE  begin there (0)\n"
"  -l, --max-length=SIZE    so many bytes (to the end)\n"
"      --output=OFMT        human (default) or json\n"
"  -U, --force-share        also while another program writes to it\n"
"  -T in front of the command, or --trace=PATTERN: debug messages\n"
"  -h, --help   -V, --version\n";

static int
parse (struct tool_args *args, struct tool_image *ti, struct map_opts *opts,
       bool *json)
{
  const struct tool_option options[] = {
    TOOL_IMAGE_OPTIONS (ti),
    { "start-offset", 's', .size = &opts->start, .what = "start offset" },
    { "max-length", 'l', .size = &opts->length, .what = "max length" },
    { "output", .json = json },
    { "force-share", 'U', .flag = &ti->open.force_share },
    TOOL_LAST_OPTION,
  };

  if (tool_parse (args, options, NULL) == -1
      || tool_one_name (args, ti) == -1)
    return -1;
  return tool_check_image (ti);
}

/* ---- printing ---- */

static const char *
bool_text (bool b)
{
  return b ? "true" : "false";
}

struct json_map {
  bool some;                    /* an entry was printed */
};

static void
print_json_entry (const struct map_entry *m)
{
  const struct image_extent *x = &m->extent;

  printf ("{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
          ", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s",
          m->start, x->length, x->depth, bool_text (x->present),
          bool_text (x->zero), bool_text (x->data));
  if (x->has_host)
    printf (", \"offset\": %" PRIu64, x->host);
  putchar ('}');
}

static int
check_output (struct error *e)
{
  return ferror (stdout)
    ? error_set (e, EPIPE, "standard output cannot be written") : 0;
}

static int
emit_json (void *opaque, const struct map_entry *m, struct error *e)
{
  struct json_map *jm = opaque;

  if (jm->some)
    fputs (",\n", stdout);
  jm->some = true;
  print_json_entry (m);
  return check_output (e);
}

/* Where the bytes of LAYER are. */
static const char *
file_name (const struct image *layer)
{
  return layer->data_file ? layer->data_file->name : layer->storage->name;
}

static int
emit_human (void *opaque, const struct map_entry *m, struct error *e)
{
  const struct image_extent *x = &m->extent;

  (void) opaque;
  if (!x->data || x->zero)
    return 0;
  if (!x->has_host)
    return error_set (e, ENOTSUP, "File contains external, encrypted or "
                      "compressed clusters.");
  printf ("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64, m->start, x->length,
          x->host);
  tool_put_name (stdout, file_name (x->layer));
  putchar ('\n');
  return check_output (e);
}

static int
map_json (struct image *im, const struct map_opts *opts, struct op_ctx *ctx,
          struct error *e)
{
  struct json_map jm = { .some = false };
  struct map_entry nothing = { .start = opts->start };

  putchar ('[');
  if (op_map (im, opts, emit_json, &jm, ctx, e) == -1)
    return -1;
  if (!jm.some)                 /* qemu-img has an entry for no bytes */
    print_json_entry (&nothing);
  fputs ("]\n", stdout);
  return 0;
}

static int
map_human (struct image *im, const struct map_opts *opts, struct op_ctx *ctx,
           struct error *e)
{
  printf ("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
  return op_map (im, opts, emit_human, NULL, ctx, e);
}

int
cmd_map (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .usage = usage, .status = 1,
  };
  struct op_ctx ctx = { .cancel = tool_catch_signals (NULL) };
  struct tool_image ti = { .name = NULL };
  struct map_opts opts = { .length = UINT64_MAX };
  struct error e = ERROR_INIT;
  struct image *im;
  bool json = false;
  int r;

  if (parse (&args, &ti, &opts, &json) == -1)
    return args.status;
  im = tool_open (&ti);
  if (!im)
    return 1;
  r = json ? map_json (im, &opts, &ctx, &e) : map_human (im, &opts, &ctx, &e);
  if (r == -1 && e.err != EPIPE)
    tool_fail (&e);
  if (tool_close (im) == -1)
    r = -1;
  return r == 0 ? 0 : 1;
}
