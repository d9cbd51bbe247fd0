/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The log that record.c writes, for those who replay it.
 *
 * A log is a sequence of records, each a struct record and `payload` bytes.
 * Numbers are little endian.  A record is appended, in one write, when its
 * request has ended and before the caller learns of it.  So a log that ends
 * because its process was killed holds every request whose end anybody has
 * seen; requests that were under way are missing, and the last record may be
 * cut.  Several objects and several processes may share a log; look for the
 * magic to find the next record behind a cut one.
 *
 * Order in time.  Numbers seq_* come from one clock: nanoseconds of
 * CLOCK_MONOTONIC, and in one process never the same twice.  Every process of
 * the machine can compare its own CLOCK_MONOTONIC with them.  A request
 * had ended before another began if its seq_done < the other's seq_submit.
 * So after a crash at time T, on a medium that keeps its promises:
 *
 * - F is a flush with error == 0 and F.seq_done <= T: every write, zero, trim
 *   and truncate of the same object (process, object) with error == 0 and
 *   seq_done < F.seq_submit is there.
 * - W has RECORD_FUA, error == 0 and W.seq_done <= T: W is there.
 * - Any other request with seq_submit <= T may be there, in part or not at
 *   all, and also if its error != 0.
 *
 * Records lie in the log about in the order of seq_done, but not exactly: sort
 * them.
 */

#ifndef NBDIMG_STORAGE_RECORD_H
#define NBDIMG_STORAGE_RECORD_H

#include <stdint.h>

#include "storage/storage.h"

#define RECORD_MAGIC "nbR1"

enum record_op {
  RECORD_OPEN = 1,            /* payload: struct record_open, then the name */
  RECORD_CLOSE = 2,
  RECORD_READ = 3,            /* no payload */
  RECORD_WRITE = 4,           /* payload: the data */
  RECORD_ZERO = 5,
  RECORD_TRIM = 6,            /* the range may read as anything afterwards,
                                 but of a file only old data or zeroes */
  RECORD_FLUSH = 7,
  RECORD_TRUNCATE = 8,        /* offset = the new size */
  RECORD_MARK = 9,            /* payload: the text of storage_record_mark */
};

/* Bits of record.flags, the numbers of enum storage_flags. */
enum record_flags {
  RECORD_FUA = STORAGE_FUA,
  RECORD_MAY_UNMAP = STORAGE_MAY_UNMAP,
  RECORD_FAST = STORAGE_FAST,
};

struct record {
  char magic[4];              /* RECORD_MAGIC */
  uint32_t op;                /* enum record_op */
  uint64_t seq_submit;
  uint64_t seq_done;
  uint32_t process;           /* its id */
  uint32_t object;            /* counted from 1 in each process */
  uint32_t flags;             /* enum record_flags */
  uint32_t error;             /* 0, or the errno that the caller got */
  uint64_t offset;            /* bytes */
  uint64_t length;            /* bytes */
  uint64_t payload;           /* bytes that follow */
} __attribute__ ((packed));

struct record_open {
  uint64_t size;              /* of the object when it was wrapped */
  uint64_t device, inode;     /* struct storage_identity, 0 = none */
  uint32_t writable;          /* 0 or 1 */
  uint32_t reserved;
} __attribute__ ((packed));

_Static_assert (sizeof (struct record) == 64, "layout of a record");
_Static_assert (sizeof (struct record_open) == 32, "layout of an open");

/* The clock of the log. */
extern uint64_t storage_record_clock (void);

/* Put TEXT into the log of ST, so that what a client saw stands in the same
 * order as what the storage did.  ENOTSUP if ST is not recorded.
 */
extern int storage_record_mark (struct storage *st, const char *text,
                                struct error *e);

#endif /* NBDIMG_STORAGE_RECORD_H */
