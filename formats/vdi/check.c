/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Check of the block map; repair.c mends what it finds.  Layer: formats.
 * Locking: the image is frozen, one thread.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "formats/vdi/vdi.h"

struct checker {
  struct vdi *v;
  const struct format_check_options *opts;
  struct format_check_result *result;
  struct survey survey;
};

/* Lines for each kind of damage: a map that is one hole has millions. */
enum { MAX_LINES = 1000 };

static void __attribute__ ((format (printf, 3, 4)))
tell (const struct checker *c, uint64_t nr, const char *fmt, ...)
{
  char text[200];
  va_list ap;

  if (!c->opts->finding || nr > MAX_LINES)
    return;
  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  c->opts->finding (c->opts->opaque, text);
  if (nr == MAX_LINES)
    c->opts->finding (c->opts->opaque, "(no more lines of this kind)");
}

static int
on_wrong (void *opaque, enum survey_kind kind, uint64_t block, uint32_t entry,
          struct error *e)
{
  struct checker *c = opaque;

  (void) e;
  c->result->corruptions++;
  switch (kind) {
  case SURVEY_DUPLICATE:
    tell (c, c->survey.duplicates, "ERROR: block index %" PRIu32 " of block %"
          PRIu64 " also used by another block", entry, block);
    break;
  case SURVEY_OUTSIDE:
    tell (c, c->survey.outside, "ERROR: block index %" PRIu64 " too large, is"
          " %" PRIu32 " (behind the end of the file)", block, entry);
    break;
  case SURVEY_CUT:
    tell (c, c->survey.cut, "ERROR: block %" PRIu64 " with index %" PRIu32
          " is cut by the end of the file", block, entry);
    break;
  }
  return 0;
}

static bool
on_progress (void *opaque, uint64_t done, uint64_t total)
{
  const struct checker *c = opaque;

  return !c->opts->progress
    || c->opts->progress (c->opts->opaque, done, total);
}

/* The number is exact in an image that was closed.  While one is being written
 * to, it may be too large.
 */
static bool
count_is_wrong (const struct checker *c)
{
  const struct survey *s = &c->survey;

  if (s->duplicates || s->outside)
    return false;               /* what is right can only be said later */
  return c->v->writing ? c->v->recorded < s->end
    : c->v->recorded != s->end;
}

static int
look (struct checker *c, struct error *e)
{
  if (vdi_survey (c->v, &c->survey, e) == -1)
    return -1;
  if (count_is_wrong (c)) {
    c->result->corruptions++;
    tell (c, 1, "ERROR: allocated blocks mismatch, is %" PRIu64 ", should be"
          " %" PRIu64, c->survey.end, c->v->recorded);
  }
  if (c->survey.stopped)
    tell (c, 1, "The rest of the block map was not looked at");
  else if (c->survey.gaps)
    tell (c, 1, "%" PRIu64 " places are not in use; the next writer takes"
          " them", c->survey.gaps);
  return 0;
}

int
vdi_check (struct format *f, const struct format_check_options *opts,
           struct format_check_result *result, struct error *e)
{
  struct vdi *v = to_vdi (f);
  struct checker *c = calloc (1, sizeof *c);
  int r;

  if (!c)
    return error_nomem (e, "the check of a VDI image", sizeof *c);
  *c = (struct checker) { .v = v, .opts = opts, .result = result };
  c->survey.wrong = on_wrong;
  c->survey.progress = on_progress;
  c->survey.opaque = c;
  c->survey.memory = opts->memory ? opts->memory : 64 * MiB;
  /* The map is read from the disk.  One that cannot be brought up to date there
   * is still looked at.
   */
  if (v->writing && vdi_flush (f, e) == -1)
    error_clear (e);
  r = look (c, e);
  if (r == 0 && opts->repair != REPAIR_NONE)
    r = vdi_repair (v, opts, &c->survey, count_is_wrong (c), result, e);
  free (c);
  return r;
}
