/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The parts of op_convert; nobody outside ops/ includes this.
 *
 *   convert.c         options, threads, the first error
 *   convert_plan.c    who copies what: claims, in guest order
 *   convert_source.c  the concatenated sources: what is where, reading, salvage
 *   convert_copy.c    one claim: find zeroes, skip, write, compress
 *   convert_clone.c   sharing blocks instead of moving them
 *
 * All offsets are bytes of the disk that the sources make together, which is
 * the guest address space of the target too.
 */

#ifndef NBDIMG_OPS_CONVERT_H
#define NBDIMG_OPS_CONVERT_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/lock.h"
#include "image/image.h"
#include "ops/ops.h"
#include "ops/rate.h"

/* More would only wait for each other. */
enum { CONVERT_MAX_WORKERS = 16 };

/* What is to be done with a block of the disk. */
enum block_state {
  BLOCK_SKIP,                   /* the target reads right already */
  BLOCK_ZERO,                   /* must be made to read as zeroes */
  BLOCK_DATA,                   /* must be read */
  BLOCK_UNKNOWN,                /* nobody has looked yet */
};

struct convert_source {
  struct image *im;
  uint64_t start;               /* where it begins */
  uint64_t skip;                /* what begins there is at this offset of IM */
  uint64_t size;                /* from there on */
  uint64_t span;                /* size in whole sectors */
  unsigned flags;               /* EXTENTS_METADATA where nothing is lost */
};

struct convert {
  /* fixed while workers run */
  struct image *target;
  uint64_t target_size;         /* bytes that the target can hold */
  const struct convert_opts *opts;
  struct op_ctx *ctx;
  struct convert_source *sources;
  size_t nr_sources;
  uint64_t total;               /* size of the disk */
  uint64_t chunk;               /* a worker's buffer; multiple of the others */
  uint64_t block;               /* one enum block_state tells of so much */
  uint64_t detect;              /* so much, aligned, is looked at for zeroes;
                                   multiple of block; 0 = not at all */
  uint64_t cluster;             /* -c: of the target; multiple of block */
  uint64_t grain;               /* so much, aligned, is written or skipped as
                                   one; multiple of block */
  uint64_t share_unit;          /* blocks are shared in such pieces */
  bool target_is_zero;          /* what is not written reads as zeroes */
  bool in_order;                /* writes wait for their turn */
  struct image *base;           /* the target's backing file, borrowed; NULL */
  unsigned base_depth;          /* where it (with into_chain: the target)
                                   stands in the source's chain; UINT_MAX =
                                   nowhere */
  struct rate rate;

  struct mutex mutex;
  /* guarded by mutex */
  uint64_t next;                /* what is before it has been claimed */
  uint64_t known_end;           /* the state of [next, known_end) is known */
  enum block_state known;
  uint64_t nr_claims;
  uint64_t turn;                /* the claim that may write */
  struct worker *waiting[CONVERT_MAX_WORKERS];  /* for the turn of a claim;
                                   those on their way have numbers in a row,
                                   one for each worker */
  uint64_t done;                /* bytes, for progress */
  uint64_t error_offset;        /* of error, valid when it is set */
  struct error error;
  struct convert_result result;

  /* atomic */
  bool stop;                    /* no more work */
  bool clone;                   /* try to share blocks */
};

/* A part of the disk that one worker copies. */
struct claim {
  uint64_t start, end;
  uint64_t number;              /* in order of start, without gaps */
  enum block_state state;       /* of all of it, or BLOCK_UNKNOWN */
};

/* A range that could not be read and became zeroes (--salvage). */
struct bad_range {
  uint64_t start, end;          /* empty = none */
  char text[ERROR_TEXT_SIZE];
};

struct worker {
  struct convert *c;
  pthread_t thread;
  struct claim claim;
  uint8_t *buf;                 /* chunk bytes: the disk at claim.start */
  uint8_t *other;               /* chunk bytes: streams, or the backing file */
  uint8_t *states;              /* of the blocks from claim.start */
  size_t *packed;               /* length of each cluster's stream */
  struct bad_range bad;
  struct convert_result result;

  pthread_cond_t turn_came;     /* with c->mutex: or its claim was taken over */
  /* guarded by c->mutex */
  bool filled;                  /* waiting: another may write the claim */
  bool taken;                   /* another does */
};

/* ---- convert_plan.c ---- */

/* Record E, that happened at OFFSET; the one nearest to the beginning of the
 * disk is kept.  The others stop.
 */
extern void convert_fail (struct convert *c, uint64_t offset,
                          const struct error *e);

static inline bool
convert_stopped (const struct convert *c)
{
  return __atomic_load_n (&c->stop, __ATOMIC_ACQUIRE);
}

/* Claim the next part of the disk.  False = nothing is left, or stopped. */
extern bool convert_claim (struct convert *c, struct claim *claim);

/* Wait until all claims before W's have been written.  FILLED: nothing is left
 * to be done for it but writing, which whoever wrote the one before may take
 * over.  False = taken over, or stopped.
 */
extern bool convert_wait_turn (struct worker *w, bool filled);

/* W's claim has been written.  True = W has taken over the next one, which is
 * to be written now.
 */
extern bool convert_claim_done (struct worker *w);

/* ---- convert_source.c ---- */

/* What is at OFFSET?  Answers for 1..LEN bytes. */
extern int convert_state (struct convert *c, uint64_t offset, uint64_t len,
                          uint64_t *length, enum block_state *state,
                          struct error *e);

/* Is E of the kind that --salvage passes over: these bytes are bad, and not
 * the way to them?
 */
extern bool convert_can_salvage (const struct convert *c,
                                 const struct error *e);

/* Where do the bytes at OFFSET stand in a file?  Answers for 1..LEN bytes;
 * *STORAGE (borrowed) = NULL: nowhere as they are.
 */
extern int convert_host (struct convert *c, uint64_t offset, uint64_t len,
                         uint64_t *length, struct storage **storage,
                         uint64_t *host, struct error *e);

/* Read LEN bytes at OFFSET, which lie in W's claim. */
extern int convert_read (struct worker *w, void *buf, uint64_t len,
                         uint64_t offset, struct error *e);

/* Tell the user of the unreadable range that was found last. */
extern void convert_report_bad (struct worker *w);

/* ---- convert_copy.c ---- */

/* Copy W's claim.  A failure is recorded by convert_fail. */
extern int convert_copy (struct worker *w);

/* ---- convert_clone.c ---- */

/* Share, or let the kernel copy, what can be of the data in W's claim; the
 * states of these blocks become BLOCK_SKIP.
 */
extern int convert_clone (struct worker *w, struct error *e);

static inline bool
convert_may_clone (const struct convert *c)
{
  return __atomic_load_n (&c->clone, __ATOMIC_RELAXED);
}

#endif /* NBDIMG_OPS_CONVERT_H */
