/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* nbdimg check: see nbdimg-check(1).  Layer: tool.  No locking here. */

#include <config.h>

#include <inttypes.h>
#include <string.h>

#include "tool/tool.h"

static const char usage[] =
"check [--image-opts] [-q] [-f fmt] [--output=ofmt] [-r [leaks | all]] "
"[-T src_cache] [-p] [-U] filename\n"
"Look for errors in the tables of an image.  Without -r nothing is changed.\n"
"\n"
"  -f, --format=FMT      its format; without it the content decides\n"
"      --image-opts      filename is key=value,...\n"
"      --output=OFMT     human (default) or json\n"
"  -r, --repair=WHAT     leaks: give back space that nothing refers to;\n"
"                        all: mend whatever can be mended\n"
"  -T, --cache=MODE      none, writeback (default), writethrough, directsync,\n"
"                        unsafe\n"
"  -U, --force-share     also while another program writes to it\n"
"  -p                    show progress\n"
"      --progress=json   the same for programs\n"
"  -q, --quiet           print nothing but errors\n"
"  -h, --help   -V, --version\n"
"\n"
"Exit status: 0 no errors, 1 the check could not be done, 2 corrupt, 3 leaked\n"
"clusters only, 63 the format has no check; after -r: what is left.\n";

/* The exit codes of qemu-img check. */
enum {
  EXIT_GOOD = 0, EXIT_FAILED = 1, EXIT_CORRUPT = 2, EXIT_LEAKS = 3,
  EXIT_NO_CHECK = 63,
};

struct request {
  struct tool_image image;
  struct tool_progress progress;
  enum check_repair repair;
  bool json;
};

static int
set_repair (void *opaque, const char *what)
{
  struct request *rq = opaque;

  if (strcmp (what, "leaks") == 0)
    rq->repair = REPAIR_LEAKS;
  else if (strcmp (what, "all") == 0)
    rq->repair = REPAIR_ALL;
  else {
    tool_misuse ("Unknown option value for -r (expecting 'leaks' or 'all'): "
                 "%s", what);
    return -1;
  }
  rq->image.open.writable = true;
  return 0;
}

static int
parse (struct tool_args *args, struct request *rq)
{
  struct image_open_options *open = &rq->image.open;
  const struct tool_option options[] = {
    TOOL_IMAGE_OPTIONS (&rq->image),
    { "output", .json = &rq->json },
    { "repair", 'r', .set = set_repair },
    { "cache", 'T', .cache = &open->cache, .what = "source cache option" },
    { "force-share", 'U', .flag = &open->force_share },
    TOOL_PROGRESS_OPTIONS (&rq->progress),
    TOOL_LAST_OPTION,
  };

  if (tool_parse (args, options, rq) == -1
      || tool_one_name (args, &rq->image) == -1)
    return -1;
  return tool_check_image (&rq->image);
}

/* ---- printing ---- */

static void
print_finding (void *opaque, const char *text)
{
  (void) opaque;
  tool_put_name (stderr, text);
  fputc ('\n', stderr);
}

static void
put_number (json_t *o, const char *key, uint64_t n, bool always)
{
  if (n || always)
    json_object_set_new (o, key, json_integer ((json_int_t) n));
}

/* qemu-img leaves out what is 0, but for the number of errors. */
static void
print_result_json (const char *name, const struct image *im,
                   const struct format_check_result *r)
{
  json_t *o = json_object ();

  put_number (o, "image-end-offset", r->image_end_offset, false);
  put_number (o, "total-clusters", r->total_clusters, false);
  put_number (o, "corruptions", r->corruptions, false);
  put_number (o, "corruptions-fixed", r->corruptions_fixed, false);
  put_number (o, "check-errors", r->check_errors, true);
  put_number (o, "leaks", r->leaks, false);
  put_number (o, "leaks-fixed", r->leaks_fixed, false);
  put_number (o, "allocated-clusters", r->allocated_clusters, false);
  put_number (o, "fragmented-clusters", r->fragmented_clusters, false);
  put_number (o, "compressed-clusters", r->compressed_clusters, false);
  tool_put_json_name (o, "filename", name);
  tool_put_json_name (o, "format", im->format->ops->name);
  print_json (o);
  json_decref (o);
}

static double
percent (uint64_t part, uint64_t whole)
{
  return 100.0 * (double) part / (double) whole;
}

static void
print_errors (const struct format_check_result *r)
{
  if (!r->corruptions && !r->leaks && !r->check_errors)
    puts ("No errors were found on the image.");
  if (r->corruptions)
    printf ("\n%" PRIu64 " errors were found on the image.\n"
            "Data may be corrupted, or further writes to the image may "
            "corrupt it.\n", r->corruptions);
  if (r->leaks)
    printf ("\n%" PRIu64 " leaked clusters were found on the image.\n"
            "This means waste of disk space, but no harm to data.\n",
            r->leaks);
  if (r->check_errors)
    printf ("\n%" PRIu64 " internal errors have occurred during the check.\n",
            r->check_errors);
}

static void
print_result_human (const struct format_check_result *r)
{
  print_errors (r);
  if (r->total_clusters && r->allocated_clusters)
    printf ("%" PRIu64 "/%" PRIu64 " = %.2f%% allocated, %.2f%% fragmented, "
            "%.2f%% compressed clusters\n", r->allocated_clusters,
            r->total_clusters,
            percent (r->allocated_clusters, r->total_clusters),
            percent (r->fragmented_clusters, r->allocated_clusters),
            percent (r->compressed_clusters, r->allocated_clusters));
  if (r->image_end_offset)
    printf ("Image end offset: %" PRIu64 "\n", r->image_end_offset);
}

static int
exit_code (const struct format_check_result *r)
{
  if (r->check_errors)
    return EXIT_FAILED;
  if (r->corruptions)
    return EXIT_CORRUPT;
  return r->leaks ? EXIT_LEAKS : EXIT_GOOD;
}

static void
print_repaired (void *opaque, const struct format_check_result *r)
{
  const struct request *rq = opaque;

  if (rq->progress.quiet || rq->json)
    return;
  tool_progress_end ();
  printf ("The following inconsistencies were found and repaired:\n\n"
          "    %" PRIu64 " leaked clusters\n"
          "    %" PRIu64 " corruptions\n\n"
          "Double checking the fixed image now...\n",
          r->leaks_fixed, r->corruptions_fixed);
  fflush (stdout);
}

/* ---- */

static int
check (struct request *rq, struct image *im, struct op_ctx *ctx)
{
  const struct check_opts opts = {
    .repair = rq->repair, .finding = print_finding,
    .repaired = print_repaired, .opaque = rq,
  };
  struct check_result result;
  struct error e = ERROR_INIT;

  if (op_check (im, &opts, &result, ctx, &e) == -1) {
    tool_error ("Check failed: %s", e.text);
    return EXIT_FAILED;
  }
  if (!result.supported) {
    tool_error ("This image format does not support checks");
    return EXIT_NO_CHECK;
  }
  if (!rq->progress.quiet && rq->json)
    print_result_json (rq->image.name, im, &result.format);
  else if (!rq->progress.quiet)
    print_result_human (&result.format);
  return exit_code (&result.format);
}

int
cmd_check (int argc, char **argv)
{
  struct tool_args args = {
    .argc = argc, .argv = argv, .usage = usage, .status = EXIT_FAILED,
  };
  struct request rq = { .json = false };
  struct op_ctx ctx;
  struct image *im;
  int status;

  if (parse (&args, &rq) == -1)
    return args.status;
  rq.image.open.check = true;
  rq.image.open.no_backing = true;
  im = tool_open (&rq.image);
  if (!im)
    return EXIT_FAILED;
  tool_progress_start (&rq.progress, "check", &ctx);
  status = check (&rq, im, &ctx);
  tool_progress_end ();
  if (tool_close (im) == -1)
    status = EXIT_FAILED;
  return status;
}
