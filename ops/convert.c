/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Convert: copy disks into a target image (ops.h).  Here: what the options
 * mean for this target, and the workers.
 *
 * Layer: ops.  Locking: see convert.h.  The caller's thread is a worker too,
 * so that the operation works where no thread can be made.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "ops/convert.h"

/* A chunk should stay in a processor's own cache from its read to its write,
 * and be long enough that a request to a server is worth its while.
 */
static const uint64_t default_chunk = 1 * MiB;

/* Holes are given in pages of the file system's cache. */
static const uint64_t default_block = 4 * KiB;

/* File systems share whole blocks of theirs; few have larger ones. */
static const uint64_t share_unit = 4 * KiB;

/* All workers' buffers of data together; -S of some megabytes makes chunks as
 * large.
 */
static const uint64_t max_memory = 64 * MiB;

/* ---- what the options mean ---- */

/* Does the file hold much less than it is long?  Then its holes are worth a
 * question for each extent; else that only costs time (0.2 ms each on tmpfs).
 */
static bool
is_sparse (struct storage *st)
{
  struct error ignored = ERROR_INIT;
  uint64_t used;

  return storage_disk_size (st, &used, &ignored) == 0
    && used < storage_size (st) - storage_size (st) / 8;
}

static unsigned
extents_flags (const struct image *im)
{
  for (; im; im = im->backing) {
    struct storage *st = im->data_file ? im->data_file : im->storage;

    if (!im->format->info.identity && is_sparse (st))
      return 0;
  }
  return EXTENTS_METADATA;
}

static void
set_window (struct convert_source *s, const struct convert_opts *opts)
{
  uint64_t size = image_size (s->im);

  s->skip = min_u64 (opts->skip, size);
  s->size = size - s->skip;
  if (opts->limit)
    s->size = min_u64 (s->size, opts->limit);
}

static int
add_sources (struct convert *c, struct error *e)
{
  size_t n = c->opts->nr_sources;

  c->sources = calloc (n, sizeof c->sources[0]);
  if (!c->sources)
    return error_nomem (e, "sources", n * sizeof c->sources[0]);
  for (size_t i = 0; i < n; ++i) {
    struct convert_source *s = &c->sources[i];

    s->im = c->opts->sources[i];
    s->start = c->total;
    set_window (s, c->opts);
    s->flags = extents_flags (s->im);
    if (!round_up_ok (s->size, SECTOR_SIZE, &s->span)
        || !add_ok (c->total, s->span, &c->total)
        || c->total > (uint64_t) INT64_MAX)
      return error_set (e, EFBIG, "the sources are too large together");
  }
  c->nr_sources = n;
  return 0;
}

/* A raw target that cannot grow may end within its last sector. */
static int
check_target (struct convert *c, struct error *e)
{
  struct image *t = c->target;
  const struct format_info *info = &t->format->info;
  uint64_t size = image_size (t);

  if (c->total > round_up (size, SECTOR_SIZE))
    return error_set (e, ENOSPC, "%s: the target has %" PRIu64 " bytes, the "
                      "sources %" PRIu64, t->name, size, c->total);
  if (c->opts->compressed && !info->can_pack)
    return error_set (e, ENOTSUP, "%s: this image cannot hold compressed "
                      "clusters; leave out -c", t->name);
  c->target_size = size;
  if (info->identity && !t->storage->caps.can_grow)
    c->target_size = min_u64 (size, storage_size (t->storage));
  return 0;
}

static uint64_t
power_of_2_from (uint64_t v)
{
  uint64_t p = SECTOR_SIZE;

  while (p < v)
    p *= 2;
  return p;
}

static void
choose_sizes (struct convert *c)
{
  const struct format_info *info = &c->target->format->info;
  const struct convert_opts *opts = c->opts;

  c->block = default_block;
  if (opts->sparse_size) {
    c->detect = power_of_2_from (min_u64 (opts->sparse_size, 16 * MiB));
    c->block = min_u64 (c->block, c->detect);
  }
  if (opts->compressed) {
    c->cluster = info->cluster_size;
    c->block = min_u64 (c->block, c->cluster);
  }
  /* A part of a cluster costs reading the rest of it, but in a new target. */
  c->grain = max_u64 (c->block, opts->compressed ? c->cluster
                      : c->target_is_zero ? 0 : info->cow_size);
  c->share_unit = max_u64 (share_unit, info->cow_size);
  c->chunk = max_u64 (default_chunk, max_u64 (c->detect,
                                              max_u64 (c->grain,
                                                       c->share_unit)));
}

/* Two names of one layer: the same file, seen through the same format. */
static bool
same_layer (const struct image *a, const struct image *b)
{
  return storage_same (a->storage, b->storage)
    && strcmp (a->storage->ops->driver, b->storage->ops->driver) == 0
    && a->format->ops == b->format->ops
    && !a->view && !b->view
    && image_size (a) == image_size (b);
}

/* Where LAYER stands in the chain of the only source; UINT_MAX = nowhere. */
static unsigned
find_depth (const struct convert *c, const struct image *layer)
{
  unsigned depth = 0;

  if (!layer || c->nr_sources != 1)
    return UINT_MAX;
  for (const struct image *im = c->sources[0].im; im; im = im->backing) {
    if (im == layer || same_layer (im, layer))
      return depth;
    ++depth;
  }
  return UINT_MAX;
}

/* What stands in the target or below it already is not written. */
static void
find_base (struct convert *c)
{
  c->base = c->opts->target_has_backing ? c->target->backing : NULL;
  c->base_depth = find_depth (c, c->opts->into_chain ? c->target : c->base);
}

static bool
is_remote (const struct image *im)
{
  for (; im; im = im->backing)
    if (!im->storage->caps.is_local_file && !im->storage->caps.is_device)
      return true;
  return false;
}

/* Local work is bound by the processors; with -c some more chunks keep them
 * busy while a finished one waits for its turn.  Remote work waits, and
 * requests on the way make up for that.
 */
static unsigned
wanted_workers (const struct convert *c)
{
  long cpus = sysconf (_SC_NPROCESSORS_ONLN);
  uint64_t n = cpus > 1 ? (uint64_t) cpus : 1;

  if (c->opts->parallel)
    return (unsigned) min_u64 (c->opts->parallel, CONVERT_MAX_WORKERS);
  for (size_t i = 0; i < c->nr_sources; ++i)
    if (is_remote (c->sources[i].im))
      return 8;
  if (is_remote (c->target))
    return 8;
  if (c->opts->compressed)
    n *= 2;
  return (unsigned) min_u64 (max_u64 (n, 2), 8);
}

static unsigned
choose_workers (const struct convert *c)
{
  uint64_t most = max_u64 (1, max_memory / c->chunk);

  return (unsigned) min_u64 (wanted_workers (c), most);
}

static int
setup (struct convert *c, struct error *e)
{
  if (add_sources (c, e) == -1 || check_target (c, e) == -1)
    return -1;
  find_base (c);
  c->target_is_zero = c->opts->target_is_zero && !c->target->backing;
  c->clone = c->opts->copy_offload && !c->opts->compressed && !c->base
    && !is_remote (c->target);
  choose_sizes (c);
  /* What stands where in a raw target does not depend on the order, and a
   * server should have several requests at hand.
   */
  c->in_order = c->opts->in_order && !c->target->format->info.identity
    && !is_remote (c->target);
  return 0;
}

/* ---- workers ---- */

static void
worker_free (struct worker *w)
{
  free (w->buf);
  free (w->other);
  free (w->states);
  free (w->packed);
  pthread_cond_destroy (&w->turn_came);
}

static int
worker_init (struct worker *w, struct convert *c, struct error *e)
{
  size_t chunk = (size_t) c->chunk, blocks = (size_t) (c->chunk / c->block);
  size_t clusters = c->cluster ? (size_t) (c->chunk / c->cluster) : 0;

  memset (w, 0, sizeof *w);
  pthread_cond_init (&w->turn_came, NULL);
  w->c = c;
  w->buf = aligned_alloc (4096, chunk);
  w->states = malloc (blocks);
  if (c->base || c->cluster)
    w->other = aligned_alloc (4096, chunk);
  if (clusters)
    w->packed = calloc (clusters, sizeof w->packed[0]);
  if (!w->buf || !w->states || ((c->base || c->cluster) && !w->other)
      || (clusters && !w->packed)) {
    worker_free (w);
    return error_nomem (e, "a worker of convert", chunk);
  }
  return 0;
}

static void *
work (void *arg)
{
  struct worker *w = arg;

  while (convert_claim (w->c, &w->claim))
    if (convert_copy (w) == -1)
      break;
  return NULL;
}

/* Blocks are shared in order, so as long as nothing is read a second worker
 * would only be woken for each chunk: 1.4 GB by -C beside 20 other processes
 * took 2.1 s, and 0.4 s like this.  False = all is done, or stopped.
 */
static bool
share_alone (struct worker *w)
{
  while (convert_may_clone (w->c) && w->result.bytes_read == 0)
    if (!convert_claim (w->c, &w->claim) || convert_copy (w) == -1)
      return false;
  return true;
}

/* Fewer workers than wanted are enough: the first runs in this thread. */
static unsigned
start_workers (struct convert *c, struct worker *workers, unsigned wanted)
{
  unsigned n = 1;

  for (; n < wanted; ++n) {
    struct error e = ERROR_INIT;

    if (worker_init (&workers[n], c, &e) == -1)
      break;
    if (pthread_create (&workers[n].thread, NULL, work, &workers[n]) != 0) {
      worker_free (&workers[n]);
      break;
    }
  }
  return n;
}

static void
add_result (struct convert *c, struct worker *w)
{
  c->result.bytes_read += w->result.bytes_read;
  c->result.bytes_written += w->result.bytes_written;
  c->result.bytes_zeroed += w->result.bytes_zeroed;
}

static int
run (struct convert *c, struct error *e)
{
  struct worker workers[CONVERT_MAX_WORKERS];
  unsigned n = 1;

  if (worker_init (&workers[0], c, e) == -1)
    return -1;
  if (share_alone (&workers[0])) {
    n = start_workers (c, workers, choose_workers (c));
    work (&workers[0]);
  }
  for (unsigned i = 0; i < n; ++i) {
    if (i > 0)
      pthread_join (workers[i].thread, NULL);
    add_result (c, &workers[i]);
    worker_free (&workers[i]);
  }
  if (c->error.err) {
    *e = c->error;
    return -1;
  }
  if (image_flush (c->target, e) == -1)
    return -1;
  if (c->total == 0 && c->ctx && c->ctx->progress)
    c->ctx->progress (c->ctx->opaque, 0, 0);
  return 0;
}

int
op_convert (struct image *target, const struct convert_opts *opts,
            struct convert_result *result, struct op_ctx *ctx,
            struct error *e)
{
  struct convert c = { .target = target, .opts = opts, .ctx = ctx };
  int r;

  mutex_init (&c.mutex);
  rate_init (&c.rate, ctx ? ctx->rate_limit : 0);
  r = setup (&c, e);
  if (r == 0)
    r = run (&c, e);
  if (result)
    *result = c.result;
  rate_destroy (&c.rate);
  mutex_destroy (&c.mutex);
  free (c.sources);
  return r;
}
