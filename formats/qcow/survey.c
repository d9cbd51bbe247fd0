/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* One look at all tables before the first allocation: how far the file may
 * grow.  Layer: formats.  Locking: none; the tables are read from the disk, and
 * what others change of them meanwhile only drops clusters.
 *
 * A file that was cut, or that a crash left to a program which links clusters
 * before they are written, has entries that lead behind its end.  They stay
 * errors when they are read.  But whatever was allocated there would be what
 * they lead to, and of two owners of a cluster each writes over the other: so
 * the file does not grow as far as the first of them.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "formats/qcow/qcow.h"

enum { L1_PIECE = 64 * 1024 };  /* bytes of the L1 table read at once */

struct survey {
  struct qcow *q;
  uint64_t file_size, first_new;        /* bytes; new clusters lie behind */
  uint64_t nr_tables, max_tables;
  uint8_t *table;               /* one L2 table */
  uint64_t limit;               /* the first that may not be allocated */
};

/* [host, host+length) is somebody's. */
static void
note (struct survey *s, uint64_t host, uint64_t length)
{
  if (host > UINT64_MAX - length || host + length > s->first_new)
    s->limit = min_u64 (s->limit, max_u64 (host, s->first_new));
}

static void
note_entry (struct survey *s, uint64_t entry)
{
  unsigned bits = qcow_offset_bits (s->q);

  if (entry & Q1_COMPRESSED)
    note (s, entry & ((UINT64_C (1) << bits) - 1),
          (entry & ~Q1_COMPRESSED) >> bits);
  else
    note (s, entry, s->q->cluster_size);
}

static int
survey_l2 (struct survey *s, uint64_t host, struct error *e)
{
  uint64_t length = UINT64_C (8) << s->q->l2_bits;

  if (length > s->file_size || host > s->file_size - length) {
    note (s, host, length);
    return 0;
  }
  /* Each has a place of its own, unless somebody means harm. */
  if (++s->nr_tables > s->max_tables)
    return error_set (e, EIO, "corrupt image: the L1 table has more entries"
                      " than there are L2 tables in the file");
  if (storage_pread (s->q->format.storage, s->table, length, host, e) == -1)
    return error_prefix (e, "L2 table at 0x%" PRIx64, host);
  for (uint64_t i = 0; i < length; i += 8)
    if (get_be64 (s->table + i))
      note_entry (s, get_be64 (s->table + i));
  return 0;
}

static int
survey_l1 (struct survey *s, uint8_t *piece, struct error *e)
{
  uint64_t bytes = s->q->l1_size * 8, n;

  for (uint64_t done = 0; done < bytes; done += n) {
    n = min_u64 (L1_PIECE, bytes - done);
    if (storage_pread (s->q->format.storage, piece, n,
                       s->q->l1_table_offset + done, e) == -1)
      return error_prefix (e, "L1 table");
    for (uint64_t i = 0; i < n; i += 8)
      if (get_be64 (piece + i)
          && survey_l2 (s, get_be64 (piece + i), e) == -1)
        return -1;
  }
  return 0;
}

int
qcow_survey (struct qcow *q, uint64_t first_new, uint64_t *limit,
             struct error *e)
{
  uint64_t table = UINT64_C (8) << q->l2_bits;
  uint64_t file_size = storage_size (q->format.storage);
  CLEANUP_FREE uint8_t *buf = malloc (L1_PIECE + table);
  struct survey s = {
    .q = q, .file_size = file_size, .first_new = first_new,
    .max_tables = file_size / table, .limit = INT64_MAX,
  };

  if (!buf)
    return error_nomem (e, "a survey of tables", L1_PIECE + table);
  s.table = buf + L1_PIECE;
  if (survey_l1 (&s, buf, e) == -1)
    return -1;
  if (s.limit < INT64_MAX)
    log_warning ("%s: corrupt image: entries lead behind the end of the file,"
                 " the first to 0x%" PRIx64 ": it was cut, or is what a crash"
                 " has left; it will not grow as far", q->format.storage->name,
                 s.limit);
  *limit = s.limit;
  return 0;
}
