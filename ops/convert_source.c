/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Convert: the sources as one disk.  They are concatenated in whole sectors;
 * what a source lacks of its last sector reads as zeroes.
 *
 * Layer: ops.  Locking: none of its own; sources are only read.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>

#include "common/bytes.h"
#include "ops/convert.h"

static struct convert_source *
find (struct convert *c, uint64_t offset)
{
  struct convert_source *s = c->sources;

  while (offset - s->start >= s->span)
    ++s;
  return s;
}

/* ---- what is where ---- */

/* The target's backing file is the layer c->base_depth of the source: what is
 * there, or lower, shows through the target, and what no layer has, too.  But
 * where a layer above it ends, what lies behind is zeroes, whatever the backing
 * file has there: the search stopped at the layer before that one.
 */
static bool
shows_through (const struct convert *c, const struct image_extent *x)
{
  if (c->base_depth == UINT_MAX)
    return false;
  return x->present ? x->depth >= c->base_depth : x->depth + 1 >= c->base_depth;
}

static enum block_state
zero_state (const struct convert *c)
{
  if (c->detect == 0)
    return BLOCK_DATA;          /* -S 0: zeroes are copied as data */
  return c->target_is_zero ? BLOCK_SKIP : BLOCK_ZERO;
}

static enum block_state
classify (const struct convert *c, const struct image_extent *x)
{
  if (shows_through (c, x))
    return BLOCK_SKIP;
  return x->zero || !x->present ? zero_state (c) : BLOCK_DATA;
}

int
convert_state (struct convert *c, uint64_t offset, uint64_t len,
               uint64_t *length, enum block_state *state, struct error *e)
{
  struct convert_source *s = find (c, offset);
  unsigned flags = s->flags | (c->base_depth == 1 ? EXTENTS_TOP_ONLY : 0);
  uint64_t at = offset - s->start;
  struct image_extent x;

  if (at >= s->size) {
    *length = min_u64 (len, s->span - at);
    *state = zero_state (c);
    return 0;
  }
  len = min_u64 (len, s->size - at);
  if (image_extents (s->im, s->skip + at, len, flags, &x, e) == -1)
    return -1;
  *length = min_u64 (len, x.length);
  *state = classify (c, &x);
  return 0;
}

static bool
has_own_file (const struct image *im)
{
  return !im->data_file && im->storage->caps.is_local_file;
}

/* Only plain local files: a device cannot share, and what is compressed or in
 * a data file is not at this place of the layer's own file.  The holes of a raw
 * file are shared with the rest of it.
 */
int
convert_host (struct convert *c, uint64_t offset, uint64_t len,
              uint64_t *length, struct storage **storage, uint64_t *host,
              struct error *e)
{
  struct convert_source *s = find (c, offset);
  uint64_t at = offset - s->start;
  struct image_extent x;

  *storage = NULL;
  *length = min_u64 (len, s->span - at);
  if (at >= s->size)
    return 0;
  len = min_u64 (len, s->size - at);
  if (s->im->format->info.identity) {
    *length = len;
    *host = s->skip + at;
    *storage = has_own_file (s->im) ? s->im->storage : NULL;
    return 0;
  }
  if (image_extents (s->im, s->skip + at, len, EXTENTS_METADATA, &x, e)
      == -1)
    return -1;
  *length = min_u64 (len, x.length);
  *host = x.host;
  if (x.data && x.has_host && !x.compressed && has_own_file (x.layer))
    *storage = x.layer->storage;
  return 0;
}

/* ---- reading ---- */

/* A server that has gone, a cancelled run or missing memory say nothing about
 * the bytes: going on would make a target of zeroes.
 */
bool
convert_can_salvage (const struct convert *c, const struct error *e)
{
  if (!c->opts->salvage)
    return false;
  switch (e->err) {
  case ENOMEM:
  case ECANCELED:
  case ENOTCONN:
  case ESHUTDOWN:
  case ECONNRESET:
  case ECONNREFUSED:
  case ECONNABORTED:
  case EPIPE:
  case EMFILE:
  case ENFILE:
    return false;
  default:
    return true;
  }
}

void
convert_report_bad (struct worker *w)
{
  const struct op_ctx *ctx = w->c->ctx;
  struct bad_range *b = &w->bad;
  struct error text = ERROR_INIT;

  if (b->end == b->start)
    return;
  error_set (&text, EIO, "error while reading offset %" PRIu64 ": %s; %" PRIu64
             " bytes are zeroes in the target", b->start, b->text,
             b->end - b->start);
  if (ctx && ctx->message) {
    mutex_lock (&w->c->mutex);
    ctx->message (ctx->opaque, text.text);
    mutex_unlock (&w->c->mutex);
  }
  b->start = b->end = 0;
}

static void
add_bad (struct worker *w, uint64_t offset, uint64_t len,
         const struct error *e)
{
  struct bad_range *b = &w->bad;

  if (b->end != b->start && b->end == offset) {
    b->end += len;
    return;
  }
  convert_report_bad (w);
  b->start = offset;
  b->end = offset + len;
  memcpy (b->text, e->text, sizeof b->text);
}

/* Halve the range until what cannot be read is single sectors. */
static int
salvage (struct worker *w, struct convert_source *s, uint8_t *buf,
         uint64_t len, uint64_t at, struct error *e)
{
  uint64_t half = round_up (len / 2, SECTOR_SIZE);

  if (convert_stopped (w->c)
      || image_read (s->im, buf, len, s->skip + at, e) == 0)
    return 0;
  if (!convert_can_salvage (w->c, e))
    return -1;
  if (len > SECTOR_SIZE) {
    error_clear (e);
    if (salvage (w, s, buf, half, at, e) == -1)
      return -1;
    return salvage (w, s, buf + half, len - half, at + half, e);
  }
  memset (buf, 0, len);
  add_bad (w, s->start + at, len, e);
  error_clear (e);
  return 0;
}

static int
read_source (struct worker *w, struct convert_source *s, uint8_t *buf,
             uint64_t len, uint64_t at, struct error *e)
{
  uint64_t n = at < s->size ? min_u64 (len, s->size - at) : 0;
  int r = 0;

  memset (buf + n, 0, len - n);
  if (n == 0)
    return 0;
  if (w->c->opts->salvage)
    r = salvage (w, s, buf, n, at, e);
  else
    r = image_read (s->im, buf, n, s->skip + at, e);
  if (r == -1)
    return error_prefix (e, "error while reading at byte %" PRIu64,
                         s->skip + at);
  w->result.bytes_read += n;
  return 0;
}

int
convert_read (struct worker *w, void *buf, uint64_t len, uint64_t offset,
              struct error *e)
{
  uint8_t *p = buf;

  while (len) {
    struct convert_source *s = find (w->c, offset);
    uint64_t at = offset - s->start;
    uint64_t n = min_u64 (len, s->span - at);

    if (read_source (w, s, p, n, at, e) == -1)
      return -1;
    p += n;
    offset += n;
    len -= n;
  }
  return 0;
}
