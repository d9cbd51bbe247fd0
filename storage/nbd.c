/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* An NBD export as a storage: what a request means to the server.
 *
 * Layer: storage.  Specification: doc/proto.md of the NBD project.
 *
 * Whole blocks: a server may name a minimum block size.  Reads are rounded
 * out; a write of a part of a block reads the block, changes it and writes it
 * back under blocks[block number % NR_BLOCK_LOCKS].  Writes of whole blocks
 * need no lock: whoever shares a byte with them is the caller's affair.
 *
 * Locking: one of blocks[] at a time, across the two requests; below it are
 * only the locks of nbd_pool.c.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/lock.h"
#include "common/log.h"
#include "storage/driver.h"
#include "storage/nbd.h"

enum { NR_BLOCK_LOCKS = 64 };

/* Reads and writes travel in pieces, so that the server works on one while
 * another is on the wire.
 */
#define DATA_PIECE (1 * MiB)

/* Zero, trim and block status carry no data.  Lengths near 4 GiB have met
 * bugs in servers (CVE-2025-47711).
 */
#define PLAIN_PIECE (1 * GiB)

struct nbd_storage {
  struct storage base;

  /* fixed after open */
  struct nbdx_target target;
  struct nbdx_command *command;         /* NULL = somebody else's server */
  struct nbdx_pool *pool;
  struct nbdx_export export;
  bool each_durable;                    /* writethrough, directsync */
  bool never_flush;                     /* unsafe */
  bool no_discard;

  bool warned_flush;                    /* atomic */
  struct mutex blocks[NR_BLOCK_LOCKS];
};

static struct nbd_storage *
get (struct storage *st)
{
  return (struct nbd_storage *) st;
}

/* ---- requests of whole blocks ---- */

static uint32_t
data_piece (const struct nbd_storage *s)
{
  uint32_t piece = (uint32_t) min_u64 (DATA_PIECE, s->export.max);

  return piece - piece % s->export.block;
}

static int
run_read (struct nbd_storage *s, void *buf, uint64_t len, uint64_t offset,
          struct error *e)
{
  const struct nbdx_job j = {
    .kind = NBDX_READ, .buf.in = buf, .offset = offset, .length = len,
    .piece = data_piece (s),
  };

  return nbdx_pool_run (s->pool, &j, e);
}

static int
run_write (struct nbd_storage *s, const void *buf, uint64_t len,
           uint64_t offset, uint32_t flags, struct error *e)
{
  const struct nbdx_job j = {
    .kind = NBDX_WRITE, .buf.out = buf, .offset = offset, .length = len,
    .piece = data_piece (s), .flags = flags,
  };

  return nbdx_pool_run (s->pool, &j, e);
}

static int
run_write_zeroes (struct nbd_storage *s, uint64_t len, uint64_t offset,
                  uint32_t flags, struct error *e)
{
  const struct nbdx_job j = {
    .kind = NBDX_WRITE, .buf.out = storage_zero_bytes (), .same = true,
    .offset = offset, .length = len, .flags = flags,
    .piece = (uint32_t) min_u64 (data_piece (s), ZERO_BYTES_SIZE),
  };

  return nbdx_pool_run (s->pool, &j, e);
}

static int
run_plain (struct nbd_storage *s, enum nbdx_kind kind, uint64_t len,
           uint64_t offset, uint32_t flags, struct error *e)
{
  const struct nbdx_job j = {
    .kind = kind, .offset = offset, .length = len, .piece = PLAIN_PIECE,
    .flags = flags,
  };

  return nbdx_pool_run (s->pool, &j, e);
}

static int
run_flush (struct nbd_storage *s, struct error *e)
{
  if (s->export.flush)
    return run_plain (s, NBDX_FLUSH, 0, 0, 0, e);
  if (!__atomic_exchange_n (&s->warned_flush, true, __ATOMIC_RELAXED))
    log_warning ("%s: the server cannot flush: when data is durable is not "
                 "known", s->target.label);
  return 0;
}

/* ---- parts of blocks ---- */

/* A range cut at block limits.  HEAD and TAIL lie inside one block each. */
struct cut {
  uint64_t head, middle, tail;
};

static struct cut
cut_blocks (uint32_t block, uint64_t offset, uint64_t len)
{
  struct cut c = { .head = 0 };

  if (offset % block)
    c.head = min_u64 (len, block - offset % block);
  c.tail = (len - c.head) % block;
  c.middle = len - c.head - c.tail;
  return c;
}

static void *
block_buffer (struct nbd_storage *s, struct error *e)
{
  void *r = malloc (s->export.block);

  if (!r)
    error_nomem (e, "one block of the server", s->export.block);
  return r;
}

static int
read_part (struct nbd_storage *s, void *buf, uint64_t len, uint64_t offset,
           struct error *e)
{
  CLEANUP_FREE char *block = NULL;
  uint64_t skip = offset % s->export.block;

  if (len == 0)
    return 0;
  block = block_buffer (s, e);
  if (!block || run_read (s, block, s->export.block, offset - skip, e) == -1)
    return -1;
  memcpy (buf, block + skip, (size_t) len);
  return 0;
}

/* BUF NULL = zeroes. */
static int
change_block (struct nbd_storage *s, char *block, const void *buf,
              uint64_t len, uint64_t offset, uint32_t flags, struct error *e)
{
  uint64_t skip = offset % s->export.block;

  if (run_read (s, block, s->export.block, offset - skip, e) == -1)
    return -1;
  if (buf)
    memcpy (block + skip, buf, (size_t) len);
  else
    memset (block + skip, 0, (size_t) len);
  return run_write (s, block, s->export.block, offset - skip, flags, e);
}

static int
write_part (struct nbd_storage *s, const void *buf, uint64_t len,
            uint64_t offset, uint32_t flags, struct error *e)
{
  CLEANUP_FREE char *block = NULL;
  struct mutex *m;
  int r;

  if (len == 0)
    return 0;
  block = block_buffer (s, e);
  if (!block)
    return -1;
  m = &s->blocks[offset / s->export.block % NR_BLOCK_LOCKS];
  mutex_lock (m);
  r = change_block (s, block, buf, len, offset, flags, e);
  mutex_unlock (m);
  return r;
}

/* ---- FUA ---- */

/* What the cache mode makes of the caller's flags. */
static unsigned
effective (const struct nbd_storage *s, unsigned flags)
{
  if (s->each_durable)
    flags |= STORAGE_FUA;
  if (s->never_flush)
    flags &= ~(unsigned) STORAGE_FUA;
  if (s->no_discard)
    flags &= ~(unsigned) STORAGE_MAY_UNMAP;
  return flags;
}

static uint32_t
fua_flag (const struct nbd_storage *s, unsigned flags)
{
  return flags & STORAGE_FUA && s->export.fua ? LIBNBD_CMD_FLAG_FUA : 0;
}

/* After the requests: where the server has no FUA, a flush makes up for it. */
static int
finish_fua (struct nbd_storage *s, unsigned flags, struct error *e)
{
  if (!(flags & STORAGE_FUA) || s->export.fua)
    return 0;
  if (run_flush (s, e) == 0)
    return 0;
  storage_note_flush_error (&s->base, e->err);
  return -1;
}

/* ---- the driver's calls ---- */

static int
nbdx_pread (struct storage *st, void *buf, size_t len, uint64_t offset,
            struct error *e)
{
  struct nbd_storage *s = get (st);
  struct cut c = cut_blocks (s->export.block, offset, len);
  char *p = buf;

  if (read_part (s, p, c.head, offset, e) == -1)
    return -1;
  p += c.head;
  offset += c.head;
  if (c.middle && run_read (s, p, c.middle, offset, e) == -1)
    return -1;
  return read_part (s, p + c.middle, c.tail, offset + c.middle, e);
}

static int
nbdx_pwrite (struct storage *st, const void *buf, size_t len, uint64_t offset,
             unsigned flags, struct error *e)
{
  struct nbd_storage *s = get (st);
  struct cut c = cut_blocks (s->export.block, offset, len);
  const char *p = buf;
  uint32_t f;

  flags = effective (s, flags);
  f = fua_flag (s, flags);
  if (write_part (s, p, c.head, offset, f, e) == -1)
    return -1;
  p += c.head;
  offset += c.head;
  if (c.middle && run_write (s, p, c.middle, offset, f, e) == -1)
    return -1;
  if (write_part (s, p + c.middle, c.tail, offset + c.middle, f, e) == -1)
    return -1;
  return finish_fua (s, flags, e);
}

/* Only the first piece may answer "not fast": later the range is changed. */
static int
zero_fast (struct nbd_storage *s, uint64_t len, uint64_t offset, uint32_t f,
           struct error *e)
{
  uint64_t first = min_u64 (len, PLAIN_PIECE);

  if (run_plain (s, NBDX_ZERO, first, offset, f | LIBNBD_CMD_FLAG_FAST_ZERO,
                 e) == -1)
    return -1;
  if (first == len)
    return 0;
  return run_plain (s, NBDX_ZERO, len - first, offset + first, f, e);
}

static int
zero_blocks (struct nbd_storage *s, uint64_t len, uint64_t offset,
             unsigned flags, struct error *e)
{
  uint32_t f = fua_flag (s, flags);
  uint32_t no_hole = flags & STORAGE_MAY_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE;

  if (flags & STORAGE_FAST) {
    if (!s->export.fast_zero)
      return error_set (e, ENOTSUP, "%s: zero of %" PRIu64 " bytes at %" PRIu64
                        ": the server offers no fast zero", s->target.label,
                        len, offset);
    return zero_fast (s, len, offset, f | no_hole, e);
  }
  if (s->export.zero) {
    if (run_plain (s, NBDX_ZERO, len, offset, f | no_hole, e) == 0)
      return 0;
    if (e->err != ENOTSUP && e->err != EOPNOTSUPP)
      return -1;
    error_clear (e);            /* advertised, but not for this range */
  }
  return run_write_zeroes (s, len, offset, f, e);
}

/* The middle first: if it is not fast, nothing has changed. */
static int
nbdx_zero (struct storage *st, uint64_t offset, uint64_t len, unsigned flags,
           struct error *e)
{
  struct nbd_storage *s = get (st);
  struct cut c = cut_blocks (s->export.block, offset, len);
  uint32_t f;

  flags = effective (s, flags);
  f = fua_flag (s, flags);
  if (c.middle
      && zero_blocks (s, c.middle, offset + c.head, flags, e) == -1)
    return -1;
  if (write_part (s, NULL, c.head, offset, f, e) == -1
      || write_part (s, NULL, c.tail, offset + c.head + c.middle, f, e) == -1)
    return -1;
  return finish_fua (s, flags, e);
}

/* Parts of blocks are left alone: a trim is a hint. */
static int
nbdx_trim (struct storage *st, uint64_t offset, uint64_t len, unsigned flags,
           struct error *e)
{
  struct nbd_storage *s = get (st);
  struct cut c = cut_blocks (s->export.block, offset, len);

  if (!s->export.trim || s->no_discard || c.middle == 0)
    return 0;
  flags = effective (s, flags);
  if (run_plain (s, NBDX_TRIM, c.middle, offset + c.head, fua_flag (s, flags),
                 e) == -1)
    return -1;
  return finish_fua (s, flags, e);
}

static int
nbdx_flush (struct storage *st, struct error *e)
{
  struct nbd_storage *s = get (st);

  return s->never_flush ? 0 : run_flush (s, e);
}

/* The size is told in the handshake only, so it cannot be asked again; the
 * access can: a server that lets us write says so from the start.
 */
static int
nbdx_set_writable (struct storage *st, struct error *e)
{
  struct nbd_storage *s = get (st);

  if (s->export.read_only)
    return error_set (e, EROFS, "%s: the server's export is read-only",
                      s->target.label);
  st->caps.writable = true;
  st->caps.can_punch = (s->export.trim || s->export.zero) && !s->no_discard;
  return 0;
}

/* ---- extents ---- */

/* An answer of the server, collected.  Written by the callback, which runs
 * before the completion of the request that the caller waits for.
 */
struct answer {
  struct storage_extent *out;
  size_t max, nr;
  uint64_t skip;                /* bytes before the caller's offset */
  uint64_t left;                /* bytes that the caller still wants */
  bool seen;
  const char *bad;              /* what is wrong with it, or NULL */
};

/* A hole whose content is not said to be zero must be read. */
static enum extent_kind
kind_of (uint32_t flags)
{
  if (!(flags & LIBNBD_STATE_ZERO))
    return EXTENT_DATA;
  return flags & LIBNBD_STATE_HOLE ? EXTENT_HOLE : EXTENT_ZERO;
}

/* false = enough. */
static bool
add_extent (struct answer *a, uint64_t len, enum extent_kind kind)
{
  uint64_t before = min_u64 (len, a->skip);

  a->skip -= before;
  len = min_u64 (len - before, a->left);
  if (len == 0)
    return a->left > 0;
  if (a->nr > 0 && a->out[a->nr - 1].kind == kind)
    a->out[a->nr - 1].length += len;
  else if (a->nr < a->max)
    a->out[a->nr++] = (struct storage_extent) { .length = len, .kind = kind };
  else
    return false;
  a->left -= len;
  return a->left > 0;
}

static int
collect (void *opaque, const char *context, uint64_t offset, uint32_t *entries,
         size_t nr_entries, int *error)
{
  struct answer *a = opaque;

  (void) offset;
  (void) error;
  if (strcmp (context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0)
    return 0;
  if (a->seen)
    a->bad = "it came twice";
  a->seen = true;
  for (size_t i = 0; i + 1 < nr_entries && !a->bad; i += 2) {
    if (entries[i] == 0)
      a->bad = "an extent has length 0";
    else if (!add_extent (a, entries[i], kind_of (entries[i + 1])))
      break;
  }
  return 0;
}

static int
ask_extents (struct nbd_storage *s, uint64_t offset, uint64_t len,
             struct answer *a, struct error *e)
{
  const uint32_t block = s->export.block;
  const struct nbdx_job j = {
    .kind = NBDX_EXTENTS, .offset = offset - a->skip, .piece = PLAIN_PIECE,
    .length = (a->skip + len + block - 1) / block * block,
    .flags = a->max == 1 ? LIBNBD_CMD_FLAG_REQ_ONE : 0,
    .extents = { .callback = collect, .user_data = a },
  };

  if (nbdx_pool_run (s->pool, &j, e) == -1)
    return -1;
  if (!a->bad && a->nr == 0)
    a->bad = "it says nothing";
  if (a->bad)
    return error_set (e, EPROTO, "%s: the server's block status at %" PRIu64
                      " is wrong: %s", s->target.label, offset, a->bad);
  return 0;
}

static int
nbdx_extents (struct storage *st, uint64_t offset, uint64_t len,
              struct storage_extent *out, size_t max, size_t *nr,
              struct error *e)
{
  struct nbd_storage *s = get (st);
  struct answer a = { .out = out, .max = max };

  if (!s->export.extents) {
    out[0] = (struct storage_extent) { .length = len, .kind = EXTENT_DATA };
    *nr = 1;
    return 0;
  }
  a.skip = offset % s->export.block;
  a.left = len = min_u64 (len, PLAIN_PIECE - a.skip);
  if (ask_extents (s, offset, len, &a, e) == -1)
    return -1;
  *nr = a.nr;
  return 0;
}

/* ---- open and close ---- */

static void
nbdx_close (struct storage *st)
{
  struct nbd_storage *s = get (st);

  nbdx_pool_close (s->pool);
  nbdx_command_close (s->command);
  for (size_t i = 0; i < NR_BLOCK_LOCKS; i++)
    mutex_destroy (&s->blocks[i]);
  free (st->name);
  nbdx_target_free (&s->target);
  free (s);
}

static const struct storage_ops nbd_ops = {
  .driver = "nbd",
  .close = nbdx_close,
  .pread = nbdx_pread,
  .pwrite = nbdx_pwrite,
  .zero = nbdx_zero,
  .trim = nbdx_trim,
  .flush = nbdx_flush,
  .extents = nbdx_extents,
  .set_writable = nbdx_set_writable,
};

static struct nbd_storage *
new_storage (const struct storage_open_options *o, struct error *e)
{
  struct nbd_storage *s = calloc (1, sizeof *s);

  if (!s) {
    error_nomem (e, "an NBD storage", sizeof *s);
    return NULL;
  }
  s->base.ops = &nbd_ops;
  s->each_durable = o->cache == CACHE_WRITETHROUGH
    || o->cache == CACHE_DIRECTSYNC;
  s->never_flush = o->cache == CACHE_UNSAFE;
  s->no_discard = o->no_discard;
  for (size_t i = 0; i < NR_BLOCK_LOCKS; i++)
    mutex_init (&s->blocks[i]);
  return s;
}

/* The target is complete: connect. */
static int
open_target (struct nbd_storage *s, unsigned connections,
             const struct storage_open_options *o, struct error *e)
{
  s->base.name = strdup (s->target.name);
  if (!s->base.name)
    return error_nomem (e, "a name", strlen (s->target.name) + 1);
  s->pool = nbdx_pool_open (&s->target, s->command, connections, &s->export,
                            e);
  if (!s->pool)
    return -1;
  s->base.size = s->export.size;
  s->base.caps.zero_is_fast = s->export.zero;
  s->base.caps.alignment = s->export.block;
  s->base.caps.max_request = s->export.max;
  if (o->try_writable ? !s->export.read_only : o->writable)
    return nbdx_set_writable (&s->base, e);
  return 0;
}

struct storage *
storage_nbd_open (const char *uri, const struct nbd_tls *tls,
                  unsigned connections, const struct storage_open_options *o,
                  struct error *e)
{
  struct nbd_storage *s = new_storage (o, e);

  if (!s)
    return NULL;
  if (nbdx_target_parse (uri, tls, &s->target, e) == -1
      || open_target (s, connections, o, e) == -1) {
    nbdx_close (&s->base);
    return NULL;
  }
  return &s->base;
}

struct storage *
storage_nbd_command (char *const *argv, unsigned connections,
                     const struct storage_open_options *o, struct error *e)
{
  struct nbd_storage *s = new_storage (o, e);

  if (!s)
    return NULL;
  s->command = nbdx_command_start (argv, &s->target, e);
  if (!s->command || open_target (s, connections, o, e) == -1) {
    nbdx_close (&s->base);
    return NULL;
  }
  return &s->base;
}
