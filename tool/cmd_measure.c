/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg measure: see nbdimg-measure(1).  Layer: tool.  No locking here. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "tool/tool.h"

static const char usage[] =
"measure [--output=ofmt] [-O output_fmt] [-o options]\n"
"       [--size N | [--image-opts] [-f fmt] [-l snapshot_param] [-U] "
"filename]\n"
"Tell how large the file of a new image will be.\n"
"\n"
"  -s, --size=SIZE       an empty disk of that size\n"
"  -f, --format=FMT      format of filename; without it the content decides\n"
"      --image-opts      filename is key=value,...\n"
"  -l, --snapshot=SNAPSHOT\n"
"                        of an internal snapshot: id, name, or\n"
"                        snapshot.id=ID,snapshot.name=NAME\n"
"  -O, --target-format=FMT\n"
"                        format of the new image, raw by default\n"
"  -o, --target-format-options=OPTIONS\n"
"                        key=value,... of the new image, as for create\n"
"      --output=OFMT     human (default) or json\n"
"  -U, --force-share     also while another program writes to filename\n"
"  -h, --help   -V, --version\n";

struct request {
  struct tool_image source;
  const char *snapshot;         /* -l, or NULL */
  char *options;                /* all -o joined; owned */
  struct measure_opts opts;
  bool has_size, json;
};

static int
check_names (const struct request *rq, int nr_names)
{
  const struct tool_image *ti = &rq->source;

  if (nr_names > 1)
    tool_error ("At most one filename argument is allowed.");
  else if (nr_names == 0 && (ti->image_opts || ti->format || rq->snapshot))
    tool_error ("--image-opts, -f, and -l require a filename argument.");
  else if (nr_names == 0 && !rq->has_size)
    tool_error ("Either --size N or one filename must be specified.");
  else if (nr_names == 1 && rq->has_size)
    tool_error ("--size N cannot be used together with a filename.");
  else
    return tool_check_image (ti);
  return -1;
}

static int
parse (struct tool_args *args, struct request *rq)
{
  const struct tool_option options[] = {
    TOOL_IMAGE_OPTIONS (&rq->source),
    { "snapshot", 'l', .text = &rq->snapshot },
    { "target-format", 'O', .text = &rq->opts.format },
    { "target-format-options", 'o', .list = &rq->options },
    { "size", 's', .size = &rq->opts.size, .what = "image size",
      .flag = &rq->has_size },
    { "output", .json = &rq->json },
    { "force-share", 'U', .flag = &rq->source.open.force_share },
    TOOL_LAST_OPTION,
  };

  if (tool_parse (args, options, rq) == -1)
    return -1;
  if (args->nr_names)
    rq->source.name = args->names[0];
  rq->opts.options = rq->options;
  return check_names (rq, args->nr_names);
}

static int
print_result (const struct measure_result *r, bool json)
{
  json_t *o;
  int status;

  if (!json) {
    printf ("required size: %" PRIu64 "\nfully allocated size: %" PRIu64 "\n",
            r->required, r->fully_allocated);
    if (r->has_bitmaps)
      printf ("bitmaps size: %" PRIu64 "\n", r->bitmaps);
    return 0;
  }
  o = json_object ();
  if (r->has_bitmaps)
    json_object_set_new (o, "bitmaps", json_integer ((json_int_t) r->bitmaps));
  json_object_set_new (o, "required", json_integer ((json_int_t) r->required));
  json_object_set_new (o, "fully-allocated",
                       json_integer ((json_int_t) r->fully_allocated));
  status = print_json (o);
  json_decref (o);
  return status;
}

static int
measure (struct request *rq)
{
  struct op_ctx ctx = { .cancel = tool_catch_signals (NULL) };
  struct measure_result result;
  struct error e = ERROR_INIT;

  if (op_measure (&rq->opts, &result, &ctx, &e) == -1)
    return tool_fail (&e);
  return print_result (&result, rq->json);
}

static int
run (struct request *rq)
{
  CLEANUP_FREE char *snapshot = NULL;
  int status;

  if (rq->source.name) {
    if (rq->snapshot) {
      snapshot = tool_find_snapshot (&rq->source, rq->snapshot);
      if (!snapshot)
        return 1;
      rq->source.open.snapshot = snapshot;
    }
    rq->opts.source = tool_open (&rq->source);
    if (!rq->opts.source)
      return 1;
  }
  status = measure (rq);
  if (rq->opts.source && tool_close (rq->opts.source) == -1)
    status = 1;
  return status;
}

int
cmd_measure (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .usage = usage, .status = 1,
  };
  struct request rq = { .has_size = false };
  int status = parse (&args, &rq) == 0 ? run (&rq) : args.status;

  free (rq.options);
  return status;
}
