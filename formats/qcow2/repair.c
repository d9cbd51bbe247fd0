/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* check -r: what is done, in which order, and what is refused; see repair.h.
 * Layer: formats.  Locking: the image is frozen and was not written to, one
 * thread.
 *
 * The rule: nobody may lose a cluster that he could read.  So
 *   - where a table cannot be read, or metadata lie on other metadata, nothing
 *     is done at all;
 *   - as long as an entry leads nowhere, nobody knows which clusters were its
 *     own: leaks stay, refcounts are not made anew, and the file does not grow,
 *     lest the entry lead into something new;
 *   - refcounts go up before anything new refers to a cluster, and down after
 *     what referred to it was changed.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/qcow2/mend.h"
#include "formats/qcow2/repair.h"

/* As many lines as there are findings at most. */
enum { MAX_TOLD = 10000 };

/* ---- what the steps share ---- */

int
repair_look (struct repair *r, struct checker *c, struct error *e)
{
  if (checker_init (c, r->q, r->opts, &r->found, r->opts->memory, e) == -1)
    return -1;
  c->repairing = c->strict = c->l2_reported = true;
  c->first = false;
  c->progress = c->nr_clusters;
  return check_find_tables (c, e);
}

void
repair_say (struct repair *r, const char *fmt, ...)
{
  char text[512];
  va_list ap;

  if (!r->opts->finding || r->nr_told > MAX_TOLD)
    return;
  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  r->opts->finding (r->opts->opaque, r->nr_told++ < MAX_TOLD ? text
                    : "There is more; it is mended, but not listed.");
}

/* The guest reads the same afterwards, so what the known features promise
 * holds; nobody knows what unknown ones do.
 */
static int
begin (struct repair *r, struct error *e)
{
  uint64_t keep;

  if (r->begun)
    return 0;
  r->begun = true;
  keep = AUTOCLEAR_BITMAPS;
  if (r->q->incompatible_features & INCOMPAT_DATA_FILE)
    keep |= AUTOCLEAR_DATA_FILE_RAW;
  return qcow2_keep_autoclear (r->q, keep, e);
}

int
repair_write (struct repair *r, const void *buf, size_t len, uint64_t host,
              struct error *e)
{
  struct qcow2 *q = r->q;
  uint64_t start = round_down (host, q->cache.slice_size);

  if (begin (r, e) == -1)
    return -1;
  mutex_lock (&q->mutex);
  table_drop_locked (q, start, host + len - start);
  mutex_unlock (&q->mutex);
  return storage_pwrite (q->format.storage, buf, len, host, 0, e);
}

int
repair_flush (struct repair *r, struct error *e)
{
  return r->begun ? storage_flush (r->q->format.storage, e) : 0;
}

/* ---- refcounts ---- */

static int
make_anew (struct checker *c, struct repair *r, const struct survey *s,
           const struct mending *m, struct error *e)
{
  if (r->damage.lost)
    return error_set (e, EIO, "its refcounts must be made anew, but not all"
                      " that is in use is known: %s", r->damage.text);
  if (begin (r, e) == -1 || mend_anew (c, s, m, e) == -1)
    return -1;
  repair_say (r, "Rebuilding refcount structure");
  /* All that was wrong with the old ones is gone with them. */
  r->result->corruptions_fixed += r->damage.anew + r->damage.refcounts;
  r->result->leaks_fixed += r->result->leaks;
  r->damage.anew = r->damage.refcounts = 0;
  r->anew = false;
  return 0;
}

static bool
wants_refcounts (const struct repair *r, const struct survey *s)
{
  return r->opts->repair == REPAIR_ALL && (r->anew || s->missing);
}

/* Make the refcounts what the tables say, as far as M and the damage allow. */
static int
mend_refcounts (struct checker *c, struct repair *r, struct mending *m,
                struct error *e)
{
  struct survey s;

  /* The old blocks are in use until the header is switched over. */
  if (mend_survey (c, &s, e) == -1)
    return -1;
  s.end = max_u64 (s.end, r->end);
  if (wants_refcounts (r, &s))
    return make_anew (c, r, &s, m, e);
  return mend_in_place (c, &s, m, e);
}

static int
repair_refcounts (struct repair *r, struct error *e)
{
  struct mending m = { .how = MEND_LOWER, .first = r->end, .repair = r };
  struct checker c;
  int result;

  if (r->damage.lost)
    m.how = 0;
  if (r->opts->repair == REPAIR_ALL)
    m.how |= MEND_RAISE;
  result = repair_look (r, &c, e);
  if (result == 0)
    result = mend_refcounts (&c, r, &m, e);
  checker_free (&c);
  return result == 0 ? repair_flush (r, e) : -1;
}

/* Have [first, first+nr) refcount blocks? */
static int
have_refblocks (struct checker *c, uint64_t first, uint64_t nr, bool *yes,
                struct error *e)
{
  uint64_t per_block = UINT64_C (1) << c->q->refblock_bits;
  struct reader reader;
  int r = 0;

  *yes = true;
  if (reader_init (&reader, c->st, 64 * KiB, e) == -1)
    return -1;
  for (uint64_t i = first; r == 0 && *yes && i < first + nr;
       i = round_down (i, per_block) + per_block)
    r = mend_has_refblock (c, &reader, i, yes, e);
  reader_free (&reader);
  return r;
}

int
repair_reserve (struct repair *r, uint64_t nr, uint64_t refs,
                uint64_t *cluster, struct error *e)
{
  struct mending m = {
    .how = MEND_RAISE, .first = r->end, .nr = nr, .refs = refs, .repair = r,
  };
  struct qcow2 *q = r->q;
  struct storage *st = q->format.storage;
  struct checker c;
  bool yes = true;
  int result;

  *cluster = r->end;
  if (!st->caps.can_grow
      && (r->end + nr) << q->cluster_bits > storage_size (st))
    return error_set (e, ENOSPC, "there is no room for %" PRIu64 " clusters at"
                      " the end", nr);
  result = repair_look (r, &c, e);
  if (result == 0 && !r->anew)
    result = have_refblocks (&c, r->end, nr, &yes, e);
  r->anew |= !yes;
  if (result == 0)
    result = mend_refcounts (&c, r, &m, e);
  checker_free (&c);
  if (result == -1 || repair_flush (r, e) == -1)
    return -1;
  r->end += nr;
  /* New refcounts lie behind that. */
  r->end = max_u64 (r->end, div_round_up (storage_size (st),
                                          q->cluster_size));
  return 0;
}

/* ---- what is refused ---- */

/* Entries that lead nowhere count for the clusters that they point into when
 * they are told; what is done must not depend on that.
 */
static int
look_without_lost (struct repair *r, struct error *e)
{
  struct damage told = r->damage;
  struct checker c;
  int result = checker_init (&c, r->q, r->opts, &r->found, r->opts->memory,
                             e);

  c.repairing = c.strict = true;
  c.progress = c.nr_clusters;
  if (result == 0)
    result = check_run (&c, e);
  checker_free (&c);
  r->damage = c.damage;
  r->damage.lost = told.lost;
  memcpy (r->damage.text, told.text, sizeof told.text);
  r->anew = r->damage.anew > 0;
  return result;
}

static int
refuse (struct repair *r, struct error *e)
{
  const struct damage *d = &r->damage;

  if (r->q->writing)
    return error_set (e, EBUSY, "the image is being written to");
  if (d->unreadable)
    return error_set (e, EIO, "nothing is repaired: %s", d->text);
  if (d->lost && look_without_lost (r, e) == -1)
    return -1;
  if (r->opts->repair == REPAIR_LEAKS && d->anew)
    return error_set (e, EIO, "its refcounts must be made anew; -r leaks does"
                      " not do that, -r all does");
  if (r->anew && d->lost)
    return error_set (e, EIO, "its refcounts must be made anew, but not all"
                      " that is in use is known: %s", d->text);
  if (d->shared && repair_check_shared (r, e) == -1)
    return -1;
  if (r->opts->repair != REPAIR_ALL || d->lost)
    return 0;
  if (d->shared && repair_check_moves (r, false, e) == -1)
    return -1;
  return d->too_many ? repair_check_moves (r, true, e) : 0;
}

/* ---- the steps ---- */

static int
one_step (struct repair *r,
          int (*step) (struct checker *c, struct repair *r, struct error *e),
          struct error *e)
{
  struct checker c;
  int result = repair_look (r, &c, e);

  if (result == 0)
    result = step (&c, r, e);
  checker_free (&c);
  return result == 0 ? repair_flush (r, e) : -1;
}

static int
repair_tables (struct repair *r, struct error *e)
{
  const struct damage *d = &r->damage;

  if (d->autoclear) {
    if (begin (r, e) == -1)
      return -1;
    r->result->corruptions_fixed += d->autoclear;
  }
  if (d->entries && one_step (r, repair_entries, e) == -1)
    return -1;
  /* What follows makes the file longer, and what points behind its end must not
   * point into that.
   */
  if (d->lost)
    return 0;
  if (d->shared && repair_moves (r, false, e) == -1)
    return -1;
  if (d->too_many && repair_moves (r, true, e) == -1)
    return -1;
  return d->snapshots ? repair_snapshots (r, e) : 0;
}

/* Is all well now? */
static int
look_again (struct repair *r, bool *clean, struct error *e)
{
  struct format_check_options opts = *r->opts;
  struct format_check_result result;
  struct checker c;
  int status;

  opts.finding = NULL;
  status = checker_init (&c, r->q, &opts, &result, opts.memory, e);
  c.progress = c.nr_clusters;
  if (status == 0)
    status = check_run (&c, e);
  checker_free (&c);
  *clean = status == 0 && !result.corruptions && !result.check_errors;
  return status;
}

static int
clear_marks (struct repair *r, struct error *e)
{
  uint64_t marks = INCOMPAT_DIRTY | INCOMPAT_CORRUPT;
  bool clean = !r->result->corruptions && !r->result->check_errors;
  struct qcow2 *q = r->q;

  if (!(q->incompatible_features & marks))
    return 0;
  if (r->begun && look_again (r, &clean, e) == -1)
    return -1;
  if (!clean)
    return 0;
  if (begin (r, e) == -1 || storage_flush (q->format.storage, e) == -1
      || qcow2_clear_features (q, marks, e) == -1)
    return -1;
  q->format.dirty_flag = q->format.corrupt_flag = false;
  return 0;
}

/* Why not everything is well at the end. */
static void
say_what_is_left (struct repair *r)
{
  const struct damage *d = &r->damage;

  /* COPIED flags are right by now: some were put right, others have become it
   * with the refcounts that were too large.
   */
  r->nr_told = 0;
  if (r->opts->repair == REPAIR_LEAKS && r->result->corruptions > d->flags)
    repair_say (r, "Errors are not repaired by -r leaks, but by -r all.");
  else if (d->lost || d->left)
    repair_say (r, "Not repaired: %" PRIu64 " errors where nobody can tell what"
                " should be there; 'convert --salvage' makes a copy of what can"
                " be read.", d->lost + d->left);
  if (d->lost && r->result->leaks)
    repair_say (r, "Leaked clusters are kept: they may be what should be"
                " there.");
}

/* Moves and new snapshot tables leave what they took too much of as leaks, and
 * raise refcounts that flags must follow.
 */
static int
repair (struct repair *r, struct error *e)
{
  const struct damage *d = &r->damage;
  bool all = r->opts->repair == REPAIR_ALL;

  if (refuse (r, e) == -1 || (all && repair_tables (r, e) == -1))
    return -1;
  if ((r->begun || r->anew || d->refcounts || r->result->leaks)
      && repair_refcounts (r, e) == -1)
    return -1;
  if ((r->begun || d->flags) && one_step (r, repair_flags, e) == -1)
    return -1;
  return 0;
}

/* What was found less what was mended, until somebody looks again. */
static void
settle (struct format_check_result *result)
{
  result->corruptions -= min_u64 (result->corruptions,
                                  result->corruptions_fixed);
  result->leaks -= min_u64 (result->leaks, result->leaks_fixed);
}

int
qcow2_repair (struct qcow2 *q, const struct format_check_options *opts,
              const struct damage *damage, uint64_t end,
              struct format_check_result *result, struct error *e)
{
  struct repair r = {
    .q = q, .opts = opts, .result = result, .damage = *damage, .end = end,
    .anew = damage->anew > 0,
    .table = malloc ((size_t) q->cluster_size),
  };
  int status = -1;

  if (!r.table)
    error_nomem (e, "a table", (size_t) q->cluster_size);
  else {
    status = result->corruptions || result->leaks || result->check_errors
      ? repair (&r, e) : 0;
    if (status == 0)
      status = clear_marks (&r, e);
    if (status == 0)
      say_what_is_left (&r);
  }
  free (r.table);
  settle (result);
  return status == -1
    ? error_prefix (e, "%s: repair", q->format.storage->name) : 0;
}
