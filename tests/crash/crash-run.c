/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Run a random workload with our driver on a recording storage: see crash.h.
 *
 *   crash-run [-f FORMAT] [-p] [-c] [-D] [-S LETTERS] [-R] [-e NUMBER] -s SEED
 *             -n OPS -t THREADS DIR
 *
 * -e runs the sequence of that NUMBER (crash.h) instead of random operations.
 * -p only prints them (for qemu-run); -c with compressed writes, -D with trims,
 * -S with operations on the structure (structure.h); -R repairs the image
 * first.
 * DIR has image, and may have base (raw) and data (external data file).
 */

#include <config.h>

#include <pthread.h>
#include <unistd.h>

#include "ops/ops.h"
#include "storage/record.h"
#include "tests/crash/structure.h"
#include "tests/unit/harness.h"

struct run {
  const struct format_ops *format;
  const char *dir;
  uint64_t seed;
  unsigned nr_ops, nr_threads;
  bool packed, discard, print, repair;
  bool is_sequence;             /* number: which */
  unsigned number;
  struct structure structure;
  struct storage *st, *base_st, *other_st, *data_st;
  struct image *im, *base;
  FILE *ledger, *versions;
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

/* ---- structure ---- */

/* What the guest reads now, in DIR/content-NAME. */
static void
write_content (const struct run *r, const char *letter, unsigned number)
{
  size_t size = (size_t) image_size (r->im);
  uint8_t *buf = must_alloc (size);
  struct error e = ERROR_INIT;
  char path[4096];
  FILE *fp;

  if (image_read (r->im, buf, size, 0, &e) == -1)
    die ("content", e.text);
  snprintf (path, sizeof path, "%s/content-%s%u", r->dir, letter, number);
  fp = fopen (path, "w");
  if (!fp || fwrite (buf, 1, size, fp) != size || fclose (fp) != 0)
    die (path, "cannot be written");
  free (buf);
}

/* The last fields of a line of DIR/versions. */
static void
print_version (FILE *fp, char letter, const struct structure *s)
{
  fprintf (fp, "%c %" PRIu64 " %s %u", letter, s->size,
           s->backing ? s->backing : "-", s->nr);
  for (unsigned i = 0; i < s->nr; ++i)
    fprintf (fp, " %u", s->numbers[i]);
  fprintf (fp, " %u %u %u %u", s->version, s->refcount_order, s->lazy,
           s->nr_marks);
  for (unsigned i = 0; i < s->nr_marks; ++i)
    print_mark (fp, &s->marks[i]);
  putc ('\n', fp);
}

static void
note_version (struct run *r, char letter, uint64_t submit, uint64_t done)
{
  unsigned number = r->structure.index++;

  if (r->print) {
    printf ("version ");
    print_version (stdout, letter, &r->structure);
    return;
  }
  fprintf (r->versions, "%" PRIu64 " %" PRIu64 " ", submit, done);
  print_version (r->versions, letter, &r->structure);
  write_content (r, "", number);
}

static char
version_letter (const struct op *op)
{
  static const char letters[] = "SADRBC+-0/&MOX";

  return letters[op->type - OP_SNAPSHOT_CREATE];
}

static void open_image (struct run *r);

static void
close_image (struct run *r)
{
  struct error e = ERROR_INIT;

  if (harness_close (r->im, &e) == -1)
    die ("close", e.text);
  if (r->base)
    harness_close (r->base, &e);
  r->im = r->base = NULL;
}

static void
do_snapshot (struct run *r, const struct op *op, struct error *e)
{
  char name[16];
  struct format_snapshot s = { .name = name };

  snprintf (name, sizeof name, "s%u", op->byte);
  if (op->type == OP_SNAPSHOT_CREATE)
    image_snapshot_create (r->im, &s, e);
  else if (op->type == OP_SNAPSHOT_APPLY)
    image_snapshot_apply (r->im, name, e);
  else
    image_snapshot_delete (r->im, name, e);
  if (op->type == OP_SNAPSHOT_CREATE && !e->err)
    write_content (r, "s", op->byte);
}

static void
do_bitmap (struct run *r, const struct op *op, struct error *e)
{
  static const enum format_bitmap_verb verbs[] = {
    BITMAP_ADD, BITMAP_REMOVE, BITMAP_CLEAR, BITMAP_ENABLE,
  };
  struct structure *s = &r->structure;
  char name[16], source[16];
  struct format_bitmap_edit edit = {
    .name = name, .granularity = op->offset,
  };

  snprintf (name, sizeof name, "b%u", op->byte);
  snprintf (source, sizeof source, "b%u", (unsigned) op->offset);
  if (op->type == OP_BITMAP_MERGE) {
    image_bitmap_merge (r->im, name, r->im, source, e);
    return;
  }
  edit.verb = verbs[op->type - OP_BITMAP_ADD];
  if (op->type == OP_BITMAP_TOGGLE && find_mark (s, op->byte)->enabled)
    edit.verb = BITMAP_DISABLE;
  image_bitmap_edit (r->im, &edit, e);
}

static void
do_amend (struct run *r, const struct op *op, struct error *e)
{
  struct format_amend a = {
    .options = harness_options (amend_options[op->byte]),
  };

  image_amend (r->im, &a, e);
  json_decref (a.options);
}

static struct image *
open_base (struct run *r, const char *name)
{
  struct error e = ERROR_INIT;
  bool other = name && strcmp (name, backing_names[OTHER_BACKING]) == 0;
  struct image *base;

  if (!name)
    return NULL;
  base = harness_open (other ? r->other_st : r->base_st, &format_raw, NULL,
                       NULL, strchr (r->structure.can, 'c'), 0, &e);
  if (!base)
    die (name, e.text);
  return base;
}

static void
do_rebase (struct run *r, const struct op *op, struct error *e)
{
  const char *name = op->byte == NO_BACKING ? NULL : backing_names[op->byte];
  struct image *new = open_base (r, name);
  struct rebase_opts o = { .name = name, .format = name ? "raw" : NULL,
                           .backing = new };
  struct op_ctx ctx = { .rate_limit = 0 };
  struct error ignored = ERROR_INIT;
  struct rebase_result result;

  op_rebase (r->im, &o, &result, &ctx, e);
  if (new)
    harness_close (new, &ignored);
}

static void
do_change (struct run *r, const struct op *op, struct error *e)
{
  struct commit_opts commit = { .depth = 1 };
  struct commit_result committed;
  struct op_ctx ctx = { .rate_limit = 0 };

  switch (op->type) {
  case OP_RESIZE: image_resize (r->im, op->offset, e); break;
  case OP_SET_BACKING:
    image_set_backing (r->im, backing_names[op->byte], "raw", e);
    break;
  case OP_COMMIT: op_commit (r->im, &commit, &committed, &ctx, e); break;
  case OP_AMEND: do_amend (r, op, e); break;
  case OP_REBASE: do_rebase (r, op, e); break;
  case OP_CLOSE: break;
  default:
    if (begins_with_close (op->type))
      do_bitmap (r, op, e);
    else
      do_snapshot (r, op, e);
    break;
  }
}

static void
do_structural (struct run *r, const struct op *op)
{
  const struct op shut = { .type = OP_CLOSE };
  struct error e = ERROR_INIT;
  uint64_t submit, done;

  if (begins_with_close (op->type))
    do_structural (r, &shut);
  submit = storage_record_clock ();
  do_change (r, op, &e);
  if (e.err)
    die ("workload", e.text);
  /* As a command does; and some leave an image that is to be closed. */
  if (op->type > OP_COMMIT || op->type == OP_SET_BACKING)
    close_image (r);
  done = storage_record_clock ();
  structure_note (&r->structure, op);
  if (!r->im)
    open_image (r);
  if (op->type != OP_COMMIT)
    note_version (r, version_letter (op), submit, done);
}

/* ---- the workload ---- */

static void
do_op (struct run *r, const struct op *op)
{
  uint64_t submit = storage_record_clock ();
  struct error e = ERROR_INIT;

  structure_touch (&r->structure, op);
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
  default:
    do_structural (r, op);
    break;
  }
  if (e.err)
    die ("workload", e.text);
}

static void
print_op (struct structure *s, const struct op *op)
{
  static const char *const names[] = {
    "write", "write-fua", "zero", "zero-unmap", "trim", "packed", "flush",
    "snapshot-create", "snapshot-apply", "snapshot-delete", "resize",
    "set-backing", "commit", "bitmap-add", "bitmap-remove", "bitmap-clear",
    "bitmap-toggle", "bitmap-merge", "amend", "rebase", "close",
  };

  if (op->type == OP_AMEND)
    printf ("amend:%s 0 0 0\n", amend_options[op->byte]);
  else if (op->type == OP_BITMAP_TOGGLE)
    printf ("bitmap-%s 0 0 %u\n", find_mark (s, op->byte)->enabled
            ? "disable" : "enable", op->byte);
  else
    printf ("%s %" PRIu64 " %" PRIu64 " %u\n", names[op->type], op->offset,
            op->length, op->byte);
}

static struct op
next_op (struct worker *w, unsigned i, uint8_t byte)
{
  struct run *r = w->run;
  unsigned digit = r->number;
  struct op op;

  if (!*r->structure.can)
    return r->is_sequence ? sequence_op (&w->t, r->number, i)
      : random_op (&w->t, &w->rnd, byte);
  w->t.size = r->structure.size;
  if (r->is_sequence) {
    for (unsigned n = i; n > 0; --n)
      digit /= ALPHABET;
    return sequence_structural (&w->t, &r->structure, digit % ALPHABET, byte);
  }
  return random_structural (&r->structure, &w->rnd, &op) ? op
    : random_op (&w->t, &w->rnd, byte);
}

static void
print_step (struct run *r, const struct op *op)
{
  const struct op shut = { .type = OP_CLOSE };

  if (begins_with_close (op->type))
    print_step (r, &shut);
  print_op (&r->structure, op);
  structure_touch (&r->structure, op);
  if (op->type > OP_FLUSH && op->type != OP_COMMIT) {
    structure_note (&r->structure, op);
    note_version (r, version_letter (op), 0, 0);
  }
}

static void *
work (void *arg)
{
  struct worker *w = arg;
  uint8_t byte = w->first_byte;
  struct op op;

  for (unsigned i = 0; i < w->run->nr_ops; ++i) {
    op = next_op (w, i, byte);
    byte = byte == w->last_byte ? w->first_byte : (uint8_t) (byte + 1);
    if (w->run->print)
      print_step (w->run, &op);
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

static FILE *
create_file (const struct run *r, const char *name)
{
  char path[4096];
  FILE *fp;

  snprintf (path, sizeof path, "%s/%s", r->dir, name);
  fp = fopen (path, "w");
  if (!fp)
    die (path, "cannot be written");
  return fp;
}

/* A commit writes into the base, which is recorded then, as object 2. */
static void
open_storages (struct run *r)
{
  bool commits = strchr (r->structure.can, 'c');

  r->base_st = load_storage (r, "base");
  r->other_st = load_storage (r, "other");
  r->st = load_storage (r, "image");
  r->data_st = load_storage (r, "data");
  if (!r->st)
    die (r->dir, "no image");
  if (r->print)
    return;
  r->st = record (r, r->st);
  if (commits)
    r->base_st = record (r, r->base_st);
  r->data_st = record (r, r->data_st);
  r->ledger = create_file (r, "ledger");
  r->versions = create_file (r, "versions");
}

static void
open_image (struct run *r)
{
  struct error e = ERROR_INIT;

  r->base = open_base (r, r->structure.backing);
  r->im = harness_open (r->st, r->format, r->base, r->data_st, true, 1 << 20,
                        &e);
  if (!r->im)
    die ("open", e.text);
}

/* Bitmaps have the bits that they have, at first. */
static void
first_marks (struct run *r)
{
  struct structure *s = &r->structure;
  struct error e = ERROR_INIT;
  struct marks_found found;

  if (find_marks (r->im->format, &found, &e) == -1)
    die ("bitmaps", e.text);
  for (unsigned i = 0; i < found.nr; ++i) {
    struct mark *m = &s->marks[s->nr_marks++];

    *m = found.items[i];
    memcpy (m->may, m->must, sizeof m->may);
    mark_begin (m, 0, s->size);
    s->newest_mark = m->number;
  }
}

/* What the image is like at first: line 0 of the versions. */
static void
first_version (struct run *r)
{
  uint8_t header[512];
  struct structure *s = &r->structure;
  struct format_snapshot *list = NULL;
  struct error e = ERROR_INIT;
  size_t nr = 0;

  s->size = image_size (r->im);
  if (storage_pread (r->st, header, sizeof header, 0, &e) == -1)
    die ("header", e.text);
  read_features (header, s);
  first_marks (r);
  if (r->format->snapshots
      && r->format->snapshots (r->im->format, &list, &nr, &e) == -1)
    die ("snapshots", e.text);
  for (size_t i = 0; i < nr; ++i) {
    s->numbers[s->nr] = s->newest = (unsigned) atoi (list[i].name + 1);
    s->sizes[s->nr++] = list[i].disk_size;
  }
  format_snapshots_free (list, nr);
  note_version (r, '0', 0, 0);
}

/* check -r all, before the image is opened to write. */
static void
repair_image (struct run *r)
{
  struct format_open_options o = { .writable = true, .check = true };
  struct format_check_options how = { .repair = REPAIR_ALL };
  struct format_check_result result;
  struct format_needs needs = { .backing = NULL };
  struct error e = ERROR_INIT;
  struct format *f = r->format->open (r->st, &o, &needs, &e);

  memset (&result, 0, sizeof result);
  if (!f || r->format->activate (f, NULL, false, &e) == -1
      || r->format->check (f, &how, &result, &e) == -1
      || r->format->close (f, &e) == -1)
    die ("repair", e.text);
  if (result.corruptions_fixed + result.leaks_fixed == 0)
    die ("repair", "there was nothing to do");
  format_needs_free (&needs);
}

static void
run (struct run *r)
{
  uint64_t submit, done;

  open_storages (r);
  submit = storage_record_clock ();
  if (r->repair && r->print)
    puts ("repair 0 0 0");
  else if (r->repair)
    repair_image (r);
  done = storage_record_clock ();
  r->structure.backing = r->base_st ? backing_names[0] : NULL;
  open_image (r);
  first_version (r);
  if (r->repair)
    note_version (r, 'K', submit, done);
  run_workers (r);
  close_image (r);
  storage_close (r->st);
  storage_close (r->base_st);
  storage_close (r->other_st);
  storage_close (r->data_st);
  if (r->ledger && (fclose (r->ledger) != 0 || fclose (r->versions) != 0))
    die ("ledger", "cannot be written");
}

int
main (int argc, char **argv)
{
  struct run r = {
    .nr_ops = 60, .nr_threads = 1, .seed = 1, .format = &format_qcow2,
    .structure.can = "",
  };
  int c;

  pthread_mutex_init (&r.mutex, NULL);
  while ((c = getopt (argc, argv, "f:pcDRS:e:s:n:t:")) != -1)
    switch (c) {
    case 'e':
      r.is_sequence = true;
      r.number = (unsigned) strtoul (optarg, NULL, 0);
      break;
    case 'f': r.format = format_option (optarg); break;
    case 'p': r.print = true; break;
    case 'c': r.packed = true; break;
    case 'D': r.discard = true; break;
    case 'R': r.repair = true; break;
    case 'S': r.structure.can = optarg; break;
    case 's': r.seed = strtoull (optarg, NULL, 0); break;
    case 'n': r.nr_ops = (unsigned) strtoul (optarg, NULL, 0); break;
    case 't': r.nr_threads = (unsigned) strtoul (optarg, NULL, 0); break;
    default: return 2;
    }
  if (optind != argc - 1 || r.nr_threads < 1 || r.nr_threads > 16
      || (*r.structure.can && r.nr_threads > 1))
    die ("usage", "crash-run [-f FORMAT] [-p] [-c] [-D] [-S LETTERS] [-R]"
         " [-e NUMBER] -s SEED -n OPS -t THREADS DIR");
  if (r.is_sequence)
    r.nr_ops = SEQUENCE;
  r.dir = argv[optind];
  run (&r);
  return 0;
}
