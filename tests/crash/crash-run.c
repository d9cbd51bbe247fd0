/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Run a random workload with our driver on a recording storage: see crash.h.
 *
 *   crash-run [-f FORMAT] [-p] [-c] [-D] [-e NUMBER] -s SEED -n OPS -t THREADS
 *             DIR
 *
 * -e runs the sequence of that NUMBER (crash.h) instead of random operations.
 * -p only prints them (for qemu-run); -c with compressed writes, -D with trims.
 * DIR has image, and may have base (raw) and data (external data file).
 */

#include <config.h>

#include <pthread.h>
#include <unistd.h>

#include "storage/record.h"
#include "tests/crash/crash.h"
#include "tests/unit/harness.h"

struct run {
  const struct format_ops *format;
  const char *dir;
  uint64_t seed;
  unsigned nr_ops, nr_threads;
  bool packed, discard, print;
  bool is_sequence;             /* number: which */
  unsigned number;
  struct image *im;
  FILE *ledger;
  pthread_mutex_t mutex;        /* of the ledger */
};

struct worker {
  struct run *run;
  pthread_t thread;
  uint64_t rnd;
  struct territory t;
  uint8_t first_byte, last_byte;
};

static struct storage *
load_storage (const struct run *r, const char *name)
{
  struct error e = ERROR_INIT;
  struct storage *st;
  size_t size;
  uint8_t *buf = load (r->dir, name, &size);

  if (!buf)
    return NULL;
  st = storage_memory_new (name, 0, &e);
  if (!st || storage_pwrite (st, buf, size, 0, 0, &e) == -1)
    die (name, e.text);
  free (buf);
  return st;
}

/* The object of the log is 1 for the image, 2 for the data file. */
static struct storage *
record (const struct run *r, struct storage *inner)
{
  struct error e = ERROR_INIT;
  char path[4096];
  struct storage *st;

  if (!inner)
    return NULL;
  snprintf (path, sizeof path, "%s/log", r->dir);
  st = storage_record_new (inner, path, &e);
  if (!st)
    die (path, e.text);
  return st;
}

static void
note (struct run *r, char type, uint64_t submit, const struct op *op,
      unsigned byte)
{
  pthread_mutex_lock (&r->mutex);
  fprintf (r->ledger, "%c %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64
           " %u\n", type, submit, storage_record_clock (), op->offset,
           op->length, byte);
  pthread_mutex_unlock (&r->mutex);
}

static void
write_op (struct run *r, const struct op *op, struct error *e)
{
  uint8_t *buf = must_alloc (op->length);
  uint64_t submit = storage_record_clock ();

  memset (buf, op->byte, op->length);
  if (op->type == OP_PACKED)
    image_write_packed (r->im, buf, op->length, op->offset, e);
  else
    image_write (r->im, buf, op->length, op->offset,
                 op->type == OP_WRITE_FUA ? IMAGE_FUA : 0, e);
  note (r, op->type == OP_WRITE_FUA ? 'U' : 'W', submit, op, op->byte);
  free (buf);
}

static void
do_op (struct run *r, const struct op *op)
{
  uint64_t submit = storage_record_clock ();
  struct error e = ERROR_INIT;

  switch (op->type) {
  case OP_WRITE:
  case OP_WRITE_FUA:
  case OP_PACKED:
    write_op (r, op, &e);
    break;
  case OP_ZERO:
  case OP_ZERO_UNMAP:
    image_zero (r->im, op->offset, op->length,
                op->type == OP_ZERO_UNMAP ? IMAGE_MAY_UNMAP : 0, &e);
    note (r, 'Z', submit, op, 0);
    break;
  case OP_TRIM:
    image_trim (r->im, op->offset, op->length, 0, &e);
    note (r, 'T', submit, op, 0);
    break;
  case OP_FLUSH:
    image_flush (r->im, &e);
    note (r, 'F', submit, op, 0);
    break;
  }
  if (e.err)
    die ("workload", e.text);
}

static void
print_op (const struct op *op)
{
  static const char *const names[] = {
    "write", "write-fua", "zero", "zero-unmap", "trim", "packed", "flush",
  };

  printf ("%s %" PRIu64 " %" PRIu64 " %u\n", names[op->type], op->offset,
          op->length, op->byte);
}

static void *
work (void *arg)
{
  struct worker *w = arg;
  uint8_t byte = w->first_byte;
  struct op op;

  for (unsigned i = 0; i < w->run->nr_ops; ++i) {
    op = w->run->is_sequence ? sequence_op (&w->t, w->run->number, i)
      : random_op (&w->t, &w->rnd, byte);
    byte = byte == w->last_byte ? w->first_byte : (uint8_t) (byte + 1);
    if (w->run->print)
      print_op (&op);
    else
      do_op (w->run, &op);
  }
  return NULL;
}

static void
set_up_worker (struct worker *w, struct run *r, unsigned i)
{
  unsigned share = MAX_BYTE / r->nr_threads;
  uint64_t cluster = r->im->format->info.cluster_size;

  w->run = r;
  w->rnd = r->seed * UINT64_C (0x9e3779b97f4a7c15) + i * 77 + 1;
  w->first_byte = (uint8_t) (1 + i * share);
  w->last_byte = (uint8_t) ((i + 1) * share);
  w->t = (struct territory) {
    .size = image_size (r->im), .cluster = cluster, .packed = r->packed,
    .discard = r->discard,
  };
  if (r->nr_threads > 1) {
    /* Three and a half clusters each: neighbours share a cluster. */
    w->t.chunk = round_up (cluster * 7 / 2, SECTOR_SIZE);
    w->t.step = w->t.chunk * r->nr_threads;
    w->t.start = w->t.chunk * i;
    if (w->t.step > w->t.size)
      die (r->dir, "the disk is too small for so many threads");
  }
}

static void
run_workers (struct run *r)
{
  struct worker *w = must_alloc (r->nr_threads * sizeof *w);

  for (unsigned i = 0; i < r->nr_threads; ++i)
    set_up_worker (&w[i], r, i);
  if (r->nr_threads == 1)
    work (&w[0]);
  else {
    for (unsigned i = 0; i < r->nr_threads; ++i)
      if (pthread_create (&w[i].thread, NULL, work, &w[i]) != 0)
        die ("crash-run", "pthread_create");
    for (unsigned i = 0; i < r->nr_threads; ++i)
      pthread_join (w[i].thread, NULL);
  }
  free (w);
}

static void
open_ledger (struct run *r)
{
  char path[4096];

  snprintf (path, sizeof path, "%s/ledger", r->dir);
  r->ledger = fopen (path, "w");
  if (!r->ledger)
    die (path, "cannot be written");
}

static void
run (struct run *r)
{
  struct error e = ERROR_INIT;
  struct storage *base_st = load_storage (r, "base");
  struct storage *st = load_storage (r, "image");
  struct storage *data_st = load_storage (r, "data");
  struct image *base = NULL;

  if (!st)
    die (r->dir, "no image");
  if (!r->print) {
    st = record (r, st);
    data_st = record (r, data_st);
    open_ledger (r);
  }
  if (base_st)
    base = harness_open (base_st, &format_raw, NULL, NULL, false, 0, &e);
  r->im = harness_open (st, r->format, base, data_st, true, 1 << 20, &e);
  if (!r->im)
    die ("open", e.text);
  run_workers (r);
  if (harness_close (r->im, &e) == -1)
    die ("close", e.text);
  if (base)
    harness_close (base, &e);
  storage_close (st);
  storage_close (base_st);
  storage_close (data_st);
  if (r->ledger && fclose (r->ledger) != 0)
    die ("ledger", "cannot be written");
}

int
main (int argc, char **argv)
{
  struct run r = {
    .nr_ops = 60, .nr_threads = 1, .seed = 1, .format = &format_qcow2,
  };
  int c;

  pthread_mutex_init (&r.mutex, NULL);
  while ((c = getopt (argc, argv, "f:pcDe:s:n:t:")) != -1)
    switch (c) {
    case 'e':
      r.is_sequence = true;
      r.number = (unsigned) strtoul (optarg, NULL, 0);
      break;
    case 'f': r.format = format_option (optarg); break;
    case 'p': r.print = true; break;
    case 'c': r.packed = true; break;
    case 'D': r.discard = true; break;
    case 's': r.seed = strtoull (optarg, NULL, 0); break;
    case 'n': r.nr_ops = (unsigned) strtoul (optarg, NULL, 0); break;
    case 't': r.nr_threads = (unsigned) strtoul (optarg, NULL, 0); break;
    default: return 2;
    }
  if (optind != argc - 1 || r.nr_threads < 1 || r.nr_threads > 16)
    die ("usage", "crash-run [-f FORMAT] [-p] [-c] [-D] [-e NUMBER] -s SEED"
         " -n OPS -t THREADS DIR");
  if (r.is_sequence)
    r.nr_ops = SEQUENCE;
  r.dir = argv[optind];
  run (&r);
  return 0;
}
