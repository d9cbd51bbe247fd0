/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* A sparse piece of memory: pages in a tree with 64 branches a node, so that
 * an object of any size costs what was written to it, and the next page after
 * a hole is found without looking at the hole.
 *
 * Layer: storage.  Locking: a read-write lock over the tree.  Requests copy
 * with it held for reading; what adds or removes pages holds it for writing.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "storage/driver.h"

enum {
  PAGE_BITS = 12, PAGE_BYTES = 1 << PAGE_BITS,
  NODE_BITS = 6, NODE_SLOTS = 1 << NODE_BITS,
};

/* A node of level 0 has pages in its slots, any other has nodes. */
struct node {
  void *slots[NODE_SLOTS];
};

struct memory {
  struct storage base;
  pthread_rwlock_t lock;
  struct node *root;          /* guarded by lock; NULL = all zeroes */
  unsigned height;            /* guarded by lock: levels, 0 = no root */
  uint64_t nr_pages;          /* guarded by lock */
};

static struct memory *
memory_of (struct storage *st)
{
  return (struct memory *) st;
}

/* ---- the tree, by page number ---- */

/* Pages under one slot of a node of LEVEL. */
static uint64_t
slot_pages (unsigned level)
{
  return UINT64_C (1) << (NODE_BITS * level);
}

static unsigned
slot_of (uint64_t page, unsigned level)
{
  return (unsigned) (page >> (NODE_BITS * level)) & (NODE_SLOTS - 1);
}

static bool
in_tree (const struct memory *m, uint64_t page)
{
  return m->height && page >> (NODE_BITS * (m->height - 1)) < NODE_SLOTS;
}

static unsigned char *
find_page (const struct memory *m, uint64_t page)
{
  const struct node *n = m->root;

  if (!in_tree (m, page))
    return NULL;
  for (unsigned level = m->height - 1; n && level > 0; --level)
    n = n->slots[slot_of (page, level)];
  return n ? n->slots[slot_of (page, 0)] : NULL;
}

/* Put levels on top until PAGE is in reach. */
static int
raise_tree (struct memory *m, uint64_t page, struct error *e)
{
  struct node *n;

  while (!in_tree (m, page)) {
    n = calloc (1, sizeof *n);
    if (!n)
      return error_nomem (e, m->base.name, sizeof *n);
    n->slots[0] = m->root;
    m->root = n;
    m->height++;
  }
  return 0;
}

static int
fill_slot (struct memory *m, void **slot, size_t size, struct error *e)
{
  if (!*slot)
    *slot = calloc (1, size);
  return *slot ? 0 : error_nomem (e, m->base.name, size);
}

static int
add_page (struct memory *m, uint64_t page, struct error *e)
{
  struct node *n;
  void **slot;

  if (raise_tree (m, page, e) < 0)
    return -1;
  n = m->root;
  for (unsigned level = m->height - 1; level > 0; --level) {
    slot = &n->slots[slot_of (page, level)];
    if (fill_slot (m, slot, sizeof *n, e) < 0)
      return -1;
    n = *slot;
  }
  slot = &n->slots[slot_of (page, 0)];
  m->nr_pages += *slot == NULL;
  if (fill_slot (m, slot, PAGE_BYTES, e) < 0) {
    m->nr_pages--;
    return -1;
  }
  return 0;
}

/* The first page at or after FROM below node N, whose first page is FIRST. */
static bool
next_page (const struct node *n, unsigned level, uint64_t first,
           uint64_t from, uint64_t *found)
{
  uint64_t each = slot_pages (level);
  unsigned i = from > first ? (unsigned) ((from - first) / each) : 0;

  for (; i < NODE_SLOTS; ++i) {
    uint64_t start = first + i * each;

    if (!n->slots[i])
      continue;
    if (level == 0) {
      *found = start;
      return true;
    }
    if (next_page (n->slots[i], level - 1, start, from, found))
      return true;
  }
  return false;
}

/* Free the pages in [FROM, TO) below N, and N's nodes that are inside. */
static void
drop_pages (struct memory *m, struct node *n, unsigned level, uint64_t first,
            uint64_t from, uint64_t to)
{
  uint64_t each = slot_pages (level);

  for (unsigned i = 0; i < NODE_SLOTS; ++i) {
    uint64_t start = first + i * each;

    if (!n->slots[i] || start >= to || start + each <= from)
      continue;
    if (level > 0)
      drop_pages (m, n->slots[i], level - 1, start, from, to);
    else
      m->nr_pages--;
    if (from <= start && start + each <= to) {
      free (n->slots[i]);
      n->slots[i] = NULL;
    }
  }
}

static void
drop_range (struct memory *m, uint64_t from, uint64_t to)
{
  if (m->root && from < to)
    drop_pages (m, m->root, m->height - 1, 0, from, to);
}

/* ---- bytes ---- */

/* Bytes of the request that lie in the page at OFFSET. */
static size_t
in_page (uint64_t offset, uint64_t len)
{
  return (size_t) min_u64 (len, PAGE_BYTES - (offset & (PAGE_BYTES - 1)));
}

static void
copy_out (const struct memory *m, char *p, size_t len, uint64_t offset)
{
  const unsigned char *page;
  size_t n;

  for (; len; p += n, offset += n, len -= n) {
    n = in_page (offset, len);
    page = find_page (m, offset >> PAGE_BITS);
    if (page)
      memcpy (p, page + (offset & (PAGE_BYTES - 1)), n);
    else
      memset (p, 0, n);
  }
}

/* False: a page is missing; the bytes before it are written already. */
static bool
copy_in (const struct memory *m, const char *p, size_t len, uint64_t offset)
{
  unsigned char *page;
  size_t n;

  for (; len; p += n, offset += n, len -= n) {
    n = in_page (offset, len);
    page = find_page (m, offset >> PAGE_BITS);
    if (!page)
      return false;
    memcpy (page + (offset & (PAGE_BYTES - 1)), p, n);
  }
  return true;
}

static int
add_pages (struct memory *m, size_t len, uint64_t offset, struct error *e)
{
  uint64_t last = (offset + len - 1) >> PAGE_BITS;

  for (uint64_t page = offset >> PAGE_BITS; page <= last; ++page)
    if (add_page (m, page, e) < 0)
      return -1;
  return 0;
}

/* Zero a range that lies in one page. */
static void
clear_part (struct memory *m, uint64_t offset, uint64_t len)
{
  unsigned char *page = find_page (m, offset >> PAGE_BITS);

  if (page)
    memset (page + (offset & (PAGE_BYTES - 1)), 0, (size_t) len);
}

static void
clear_range (struct memory *m, uint64_t offset, uint64_t end)
{
  uint64_t from = round_up (offset, PAGE_BYTES);
  uint64_t to = round_down (end, PAGE_BYTES);

  if (from > to) {
    clear_part (m, offset, end - offset);
    return;
  }
  clear_part (m, offset, from - offset);
  drop_range (m, from >> PAGE_BITS, to >> PAGE_BITS);
  clear_part (m, to, end - to);
}

/* ---- the driver ---- */

static void
memory_close (struct storage *st)
{
  struct memory *m = memory_of (st);

  drop_range (m, 0, UINT64_C (1) << (64 - PAGE_BITS));
  free (m->root);
  pthread_rwlock_destroy (&m->lock);
  free (st->name);
  free (m);
}

static int
memory_pread (struct storage *st, void *buf, size_t len, uint64_t offset,
              struct error *e)
{
  struct memory *m = memory_of (st);

  (void) e;
  pthread_rwlock_rdlock (&m->lock);
  copy_out (m, buf, len, offset);
  pthread_rwlock_unlock (&m->lock);
  return 0;
}

static int
memory_pwrite (struct storage *st, const void *buf, size_t len,
               uint64_t offset, unsigned flags, struct error *e)
{
  struct memory *m = memory_of (st);
  bool done;
  int r = 0;

  (void) flags;
  pthread_rwlock_rdlock (&m->lock);
  done = copy_in (m, buf, len, offset);
  pthread_rwlock_unlock (&m->lock);
  if (!done) {
    pthread_rwlock_wrlock (&m->lock);
    r = add_pages (m, len, offset, e);
    if (r == 0)
      copy_in (m, buf, len, offset);
    pthread_rwlock_unlock (&m->lock);
  }
  if (r == 0)
    storage_note_end (st, offset + len);
  return r;
}

/* Space is not kept: a page that is not there is as good as one of zeroes. */
static int
memory_zero (struct storage *st, uint64_t offset, uint64_t len,
             unsigned flags, struct error *e)
{
  struct memory *m = memory_of (st);

  (void) flags;
  (void) e;
  pthread_rwlock_wrlock (&m->lock);
  clear_range (m, offset, offset + len);
  pthread_rwlock_unlock (&m->lock);
  storage_note_end (st, offset + len);
  return 0;
}

static int
memory_truncate (struct storage *st, uint64_t size, struct error *e)
{
  struct memory *m = memory_of (st);
  uint64_t old;

  (void) e;
  pthread_rwlock_wrlock (&m->lock);
  old = storage_size (st);
  if (size < old)
    clear_range (m, size, old);
  storage_set_size (st, size);
  pthread_rwlock_unlock (&m->lock);
  return 0;
}

/* The piece at POS: pages that follow each other, or the hole before one. */
static struct storage_extent
piece_at (const struct memory *m, uint64_t pos, uint64_t end)
{
  struct storage_extent x = { .length = end - pos, .kind = EXTENT_HOLE };
  uint64_t page = pos >> PAGE_BITS, next;

  if (!find_page (m, page)) {
    if (m->root && next_page (m->root, m->height - 1, 0, page, &next))
      x.length = min_u64 (end, next << PAGE_BITS) - pos;
    return x;
  }
  do
    page++;
  while (page << PAGE_BITS < end && find_page (m, page));
  x.kind = EXTENT_DATA;
  x.length = min_u64 (end, page << PAGE_BITS) - pos;
  return x;
}

static int
memory_extents (struct storage *st, uint64_t offset, uint64_t len,
                struct storage_extent *out, size_t max, size_t *nr,
                struct error *e)
{
  struct memory *m = memory_of (st);
  uint64_t end = offset + len;
  size_t n = 0;

  (void) e;
  pthread_rwlock_rdlock (&m->lock);
  while (offset < end && n < max) {
    out[n] = piece_at (m, offset, end);
    offset += out[n++].length;
  }
  pthread_rwlock_unlock (&m->lock);
  *nr = n;
  return 0;
}

static int
memory_disk_size (struct storage *st, uint64_t *size, struct error *e)
{
  struct memory *m = memory_of (st);

  (void) e;
  pthread_rwlock_rdlock (&m->lock);
  *size = m->nr_pages * PAGE_BYTES;
  pthread_rwlock_unlock (&m->lock);
  return 0;
}

static const struct storage_ops memory_ops = {
  .driver = "memory",
  .close = memory_close,
  .pread = memory_pread,
  .pwrite = memory_pwrite,
  .zero = memory_zero,
  .trim = memory_zero,
  .truncate = memory_truncate,
  .extents = memory_extents,
  .disk_size = memory_disk_size,
};

struct storage *
storage_memory_new (const char *name, uint64_t size, struct error *e)
{
  struct memory *m;

  if (size > INT64_MAX) {
    error_set (e, EFBIG, "%s: a size of %" PRIu64 " bytes is too large", name,
               size);
    return NULL;
  }
  m = calloc (1, sizeof *m);
  if (m)
    m->base.name = strdup (name);
  if (!m || !m->base.name) {
    free (m);
    error_nomem (e, name, sizeof *m);
    return NULL;
  }
  pthread_rwlock_init (&m->lock, NULL);
  m->base.ops = &memory_ops;
  m->base.size = size;
  m->base.caps = (struct storage_caps) {
    .writable = true, .can_grow = true, .reads_zero_past_end = true,
    .can_punch = true, .zero_is_fast = true, .alignment = 1,
    .max_request = INT64_MAX,
  };
  return &m->base;
}
