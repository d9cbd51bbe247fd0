/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* storage/record.c, read back as record.h says, and storage/fault.c. */

#include <config.h>

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "storage/record.h"
#include "tests/unit/storage-model.h"

/* A log in memory.  */
struct log {
  unsigned char *bytes;
  size_t size;
  size_t pos;                   /* of the next record */
};

struct entry {
  struct record r;              /* numbers of this machine */
  const unsigned char *payload;
};

static struct log
load (const char *path)
{
  struct log log = { .pos = 0 };
  struct stat sb;
  int fd = open (path, O_RDONLY | O_CLOEXEC);

  CHECK (fd >= 0 && fstat (fd, &sb) == 0);
  log.size = (size_t) sb.st_size;
  log.bytes = unit_alloc (log.size);
  CHECK (read (fd, log.bytes, log.size) == (ssize_t) log.size);
  close (fd);
  return log;
}

/* False at the end, and at a record that is cut. */
static bool
next (struct log *log, struct entry *x)
{
  struct record *r = &x->r;

  if (log->size - log->pos < sizeof *r)
    return false;
  memcpy (r, log->bytes + log->pos, sizeof *r);
  CHECK (memcmp (r->magic, RECORD_MAGIC, 4) == 0);
  r->op = le32toh (r->op);
  r->seq_submit = le64toh (r->seq_submit);
  r->seq_done = le64toh (r->seq_done);
  r->flags = le32toh (r->flags);
  r->error = le32toh (r->error);
  r->offset = le64toh (r->offset);
  r->length = le64toh (r->length);
  r->payload = le64toh (r->payload);
  if (log->size - log->pos - sizeof *r < r->payload)
    return false;
  x->payload = log->bytes + log->pos + sizeof *r;
  log->pos += sizeof *r + r->payload;
  CHECK (r->seq_submit < r->seq_done);
  return true;
}

static struct storage *
memory (uint64_t size)
{
  struct error e = ERROR_INIT;

  return storage_memory_new ("memory", size, &e);
}

static struct storage *
recorded (struct storage *inner, const char *path)
{
  struct error e = ERROR_INIT;
  struct storage *st = storage_record_new (inner, path, &e);

  if (!st) {
    printf ("not ok record: %s\n", e.text);
    exit (EXIT_FAILURE);
  }
  return st;
}

static struct storage *
faulty (struct storage *inner, const char *spec)
{
  struct error e = ERROR_INIT;
  struct storage *st = storage_fault_new (inner, spec, &e);

  if (!st) {
    printf ("not ok fault: %s\n", e.text);
    exit (EXIT_FAILURE);
  }
  return st;
}

static void
test_record (void)
{
  struct storage *st = recorded (memory (4096), "log");
  struct error e = ERROR_INIT;
  struct record_open open;
  struct entry x = { .payload = NULL };
  struct log log;
  uint64_t last = 0;
  char buf[10];

  unit_begin ("the log has every request, in order, with its data");
  CHECK_OK (storage_pwrite (st, "hello", 5, 5000, STORAGE_FUA, &e), &e);
  CHECK (storage_size (st) == 5005);
  CHECK_OK (storage_pread (st, buf, 10, 3, &e), &e);
  CHECK_OK (storage_zero (st, 1, 2, STORAGE_MAY_UNMAP, &e), &e);
  CHECK_OK (storage_trim (st, 3, 4, 0, &e), &e);
  CHECK_OK (storage_record_mark (st, "a mark", &e), &e);
  CHECK_OK (storage_flush (st, &e), &e);
  CHECK_OK (storage_truncate (st, 77, &e), &e);
  CHECK (storage_size (st) == 77);
  storage_close (st);

  log = load ("log");
  for (uint32_t i = RECORD_OPEN; next (&log, &x); i = x.r.op) {
    CHECK (x.r.error == 0 && x.r.seq_submit > last);
    last = x.r.seq_done;
    switch (x.r.op) {
    case RECORD_OPEN:
      memcpy (&open, x.payload, sizeof open);
      CHECK (le64toh (open.size) == 4096 && le32toh (open.writable) == 1);
      CHECK (x.r.payload == sizeof open + 6);
      CHECK (memcmp (x.payload + sizeof open, "memory", 6) == 0);
      break;
    case RECORD_WRITE:
      CHECK (i == RECORD_OPEN && x.r.offset == 5000 && x.r.length == 5);
      CHECK (x.r.flags == RECORD_FUA && x.r.payload == 5);
      CHECK (memcmp (x.payload, "hello", 5) == 0);
      break;
    case RECORD_READ:
      CHECK (i == RECORD_WRITE && x.r.offset == 3 && x.r.length == 10);
      CHECK (x.r.payload == 0);
      break;
    case RECORD_ZERO:
      CHECK (i == RECORD_READ && x.r.offset == 1 && x.r.length == 2);
      CHECK (x.r.flags == RECORD_MAY_UNMAP);
      break;
    case RECORD_TRIM:
      CHECK (i == RECORD_ZERO && x.r.offset == 3 && x.r.length == 4);
      break;
    case RECORD_MARK:
      CHECK (i == RECORD_TRIM && x.r.payload == 6);
      CHECK (memcmp (x.payload, "a mark", 6) == 0);
      break;
    case RECORD_FLUSH:
      CHECK (i == RECORD_MARK);
      break;
    case RECORD_TRUNCATE:
      CHECK (i == RECORD_FLUSH && x.r.offset == 77);
      break;
    default:
      CHECK (i == RECORD_TRUNCATE && x.r.op == RECORD_CLOSE);
    }
  }
  CHECK (x.r.op == RECORD_CLOSE && log.pos == log.size);
  free (log.bytes);
  unlink ("log");
}

static void
test_record_error (void)
{
  struct storage *st = recorded (faulty (memory (100), "op=write,index=1,"
                                         "errno=ENOSPC"), "log");
  struct error e = ERROR_INIT;
  struct entry x;
  struct log log;

  unit_begin ("a request that failed is in the log with its error");
  CHECK_FAILS (storage_pwrite (st, "x", 1, 0, 0, &e), &e, ENOSPC);
  CHECK_OK (storage_pwrite (st, "y", 1, 0, 0, &e), &e);
  storage_close (st);
  log = load ("log");
  CHECK (next (&log, &x) && x.r.op == RECORD_OPEN);
  CHECK (next (&log, &x) && x.r.error == ENOSPC && *x.payload == 'x');
  CHECK (next (&log, &x) && x.r.error == 0 && *x.payload == 'y');
  free (log.bytes);
  unlink ("log");
}

/* ---- replay ---- */

struct order {
  uint64_t done;
  size_t pos;
};

static int
by_done (const void *a, const void *b)
{
  const struct order *x = a, *y = b;

  return x->done < y->done ? -1 : x->done > y->done;
}

static void
apply (struct storage *st, const struct entry *x)
{
  struct error e = ERROR_INIT;

  if (x->r.op == RECORD_WRITE)
    CHECK_OK (storage_pwrite (st, x->payload, (size_t) x->r.length,
                              x->r.offset, 0, &e), &e);
  else if (x->r.op == RECORD_ZERO)
    CHECK_OK (storage_zero (st, x->r.offset, x->r.length, 0, &e), &e);
}

static void
replay (struct log *log, struct storage *st)
{
  struct order *orders = unit_alloc ((log->size / sizeof (struct record) + 1)
                                     * sizeof *orders);
  struct entry x;
  size_t nr = 0;

  for (size_t pos = log->pos; next (log, &x); pos = log->pos)
    orders[nr++] = (struct order) { x.r.seq_done, pos };
  qsort (orders, nr, sizeof *orders, by_done);
  for (size_t i = 0; i < nr; ++i) {
    CHECK (i == 0 || orders[i].done > orders[i - 1].done);
    log->pos = orders[i].pos;
    if (next (log, &x))
      apply (st, &x);
  }
  free (orders);
}

static void
test_replay (void)
{
  struct storage *inner = memory (0), *copy = memory (0);
  struct storage *st = recorded (inner, "log");
  struct error e = ERROR_INIT;
  size_t size;
  char *a, *b;
  struct log log;

  unit_begin ("the log of many threads, replayed, gives the same bytes");
  stripes_run (st);
  log = load ("log");
  replay (&log, copy);
  CHECK (storage_size (copy) == storage_size (inner));
  size = (size_t) storage_size (inner);
  a = unit_alloc (size);
  b = unit_alloc (size);
  CHECK_OK (storage_pread (inner, a, size, 0, &e), &e);
  CHECK_OK (storage_pread (copy, b, size, 0, &e), &e);
  CHECK (memcmp (a, b, size) == 0);
  free (a);
  free (b);
  free (log.bytes);
  storage_close (st);
  storage_close (copy);
  unlink ("log");
}

static void *
endless_writer (void *arg)
{
  static const char data[30000];
  static uint64_t threads;
  uint64_t offset = __atomic_fetch_add (&threads, 1, __ATOMIC_RELAXED) * MiB;
  struct error e = ERROR_INIT;

  while (storage_pwrite (arg, data, sizeof data, offset, 0, &e) == 0)
    ;
  return NULL;
}

static void
test_kill (void)
{
  struct entry x;
  struct log log;
  struct stat sb;
  pid_t pid = fork ();
  size_t nr = 0;

  unit_begin ("a killed process leaves a log that is whole but for its end");
  if (pid == 0) {
    struct storage *st = recorded (memory (0), "log");
    pthread_t thread;

    for (int i = 0; i < 3; ++i)
      if (pthread_create (&thread, NULL, endless_writer, st) != 0)
        _exit (1);
    endless_writer (st);
    _exit (1);
  }
  while (stat ("log", &sb) < 0 || sb.st_size < 1000000)
    usleep (1000);
  kill (pid, SIGKILL);
  waitpid (pid, NULL, 0);
  log = load ("log");
  while (next (&log, &x))
    nr++;
  CHECK (nr > 30);
  CHECK (log.size - log.pos < sizeof x.r + 30000);
  free (log.bytes);
  unlink ("log");
}

/* ---- faults ---- */

/* One letter for each of N writes: '.' = done, 'x' = failed. */
static void
pattern (const char *spec, char *out, size_t n)
{
  struct storage *st = faulty (memory (100), spec);
  struct error e = ERROR_INIT;

  for (size_t i = 0; i < n; ++i) {
    out[i] = storage_pwrite (st, "a", 1, i, 0, &e) == 0 ? '.' : 'x';
    error_clear (&e);
  }
  out[n] = '\0';
  storage_close (st);
}

static void
test_fault_index (void)
{
  char a[101], b[101];

  unit_begin ("those requests fail that were asked for");
  pattern ("index=3", a, 6);
  CHECK_STR (a, "..x...");
  pattern ("op=write,index=3,count=2", a, 6);
  CHECK_STR (a, "..xx..");
  pattern ("index=3,count=0", a, 6);
  CHECK_STR (a, "..xxxx");
  pattern ("index=3,once=1", a, 6);
  CHECK_STR (a, "..x...");
  pattern ("op=read,index=1,count=0", a, 6);
  CHECK_STR (a, "......");
  pattern ("file=memo,index=1", a, 3);
  CHECK_STR (a, "x..");
  pattern ("file=other,index=1", a, 3);
  CHECK_STR (a, "...");
  pattern ("", a, 3);
  CHECK_STR (a, "...");

  unit_begin ("a rate fails about that many, and the same ones each time");
  pattern ("rate=300,seed=5", a, 100);
  pattern ("rate=300,seed=5", b, 100);
  CHECK_STR (a, b);
  pattern ("rate=300,seed=6", b, 100);
  CHECK (strcmp (a, b) != 0);
  size_t failed = 0;
  for (size_t i = 0; i < 100; ++i)
    failed += a[i] == 'x';
  CHECK (failed > 15 && failed < 45);
}

static void
test_fault_ops (void)
{
  struct error e = ERROR_INIT;
  struct storage *st = faulty (memory (100), "op=any,index=1,count=0,"
                               "errno=ENOSPC,short=1");
  struct storage *inner;
  char buf[8] = "12345678", sectors[2048] = "";

  unit_begin ("every request can fail, with the errno that was asked for");
  CHECK_FAILS (storage_pread (st, buf, 1, 0, &e), &e, ENOSPC);
  CHECK_FAILS (storage_zero (st, 0, 1, 0, &e), &e, ENOSPC);
  CHECK_FAILS (storage_trim (st, 0, 1, 0, &e), &e, ENOSPC);
  CHECK_FAILS (storage_flush (st, &e), &e, ENOSPC);
  CHECK_FAILS (storage_truncate (st, 1, &e), &e, ENOSPC);
  CHECK (storage_size (st) == 100);

  unit_begin ("short=1 does the first half, and no part of a sector");
  CHECK_FAILS (storage_pwrite (st, sectors, 2048, 100, 0, &e), &e, ENOSPC);
  CHECK (storage_size (st) == 1024);
  CHECK_FAILS (storage_pwrite (st, sectors, 8, 1024, 0, &e), &e, ENOSPC);
  CHECK (storage_size (st) == 1024);
  storage_close (st);
  inner = memory (0);
  st = faulty (inner, "index=1,short=1");
  memset (sectors, 7, sizeof sectors);
  CHECK_FAILS (storage_pwrite (st, sectors, 2048, 0, 0, &e), &e, EIO);
  memset (sectors, 0, sizeof sectors);
  CHECK_OK (storage_pread (inner, sectors, 2048, 0, &e), &e);
  CHECK (sectors[0] == 7 && sectors[1023] == 7 && sectors[1024] == 0);
  storage_close (st);
}

static void
check_count (const char *want)
{
  char text[32] = "";
  int fd = open ("count", O_RDONLY | O_CLOEXEC);

  CHECK (read (fd, text, sizeof text - 1) > 0);
  close (fd);
  CHECK_STR (text, want);
}

static void
test_fault_count (void)
{
  struct storage *a, *b;
  struct error e = ERROR_INIT;

  unit_begin ("the number of requests is told, of one object or of all");
  a = faulty (memory (9), "op=write,countfile=count");
  CHECK_OK (storage_pwrite (a, "x", 1, 0, 0, &e), &e);
  CHECK_OK (storage_flush (a, &e), &e);
  CHECK_OK (storage_pwrite (a, "x", 1, 0, 0, &e), &e);
  storage_close (a);
  check_count ("2\n");
  a = faulty (memory (9), "scope=process,index=3,countfile=count");
  b = faulty (memory (9), "scope=process,index=3,countfile=count");
  CHECK_OK (storage_pwrite (a, "x", 1, 0, 0, &e), &e);
  CHECK_OK (storage_pwrite (b, "x", 1, 0, 0, &e), &e);
  CHECK_FAILS (storage_pwrite (b, "x", 1, 0, 0, &e), &e, EIO);
  CHECK_OK (storage_pwrite (a, "x", 1, 0, 0, &e), &e);
  storage_close (a);
  storage_close (b);
  check_count ("4\n");
}

static void
test_fault_kill (void)
{
  static const char sectors[1024];
  struct error e = ERROR_INIT;
  struct storage *st;
  struct stat sb;
  pid_t pid = fork ();
  int status;

  unit_begin ("kill=1 ends the process at that request, with half of it done");
  if (pid == 0) {
    struct storage_open_options o = { .writable = true };
    bool created;

    st = storage_file_create ("killed", false, &o, &created, &e);
    st = faulty (st, "op=write,index=2,kill=1,short=1");
    storage_pwrite (st, sectors, 512, 0, 0, &e);
    storage_pwrite (st, sectors, 1024, 512, 0, &e);
    _exit (1);
  }
  CHECK (waitpid (pid, &status, 0) == pid);
  CHECK (WIFSIGNALED (status) && WTERMSIG (status) == SIGKILL);
  CHECK (stat ("killed", &sb) == 0 && sb.st_size == 1024);
  unlink ("killed");
}

static void
test_fault_delay (void)
{
  struct storage *st = faulty (memory (9), "delay=2000");
  struct error e = ERROR_INIT;
  uint64_t start = storage_record_clock ();

  unit_begin ("delay=N makes each request take so many microseconds more");
  CHECK_OK (storage_pwrite (st, "x", 1, 0, 0, &e), &e);
  CHECK (storage_record_clock () - start >= 2000000);
  storage_close (st);
}

static void
test_fault_spec (void)
{
  static const char *const wrong[] = {
    "op=fly", "errno=EWHAT", "index=-1", "rate=1001", "colour=red", "index",
    "scope=galaxy", "short=perhaps", "kill=2", "delay=1000001",
  };
  struct storage *st = memory (9);
  struct error e = ERROR_INIT;

  unit_begin ("a specification that means nothing is refused");
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; ++i) {
    CHECK (storage_fault_new (st, wrong[i], &e) == NULL);
    CHECK (e.err != 0);
    error_clear (&e);
  }
  CHECK (storage_record_mark (st, "x", &e) == -1 && e.err == ENOTSUP);
  storage_close (st);
}

/* ---- NBDIMG_TEST_STORAGE ---- */

static void
test_wrap (void)
{
  struct storage_open_options o = { .writable = true };
  struct error e = ERROR_INIT;
  struct storage *st;
  bool created;

  setenv ("NBDIMG_TEST_STORAGE", "rec:wrap.log", 1);
  st = storage_file_create ("image", NULL, &o, &created, &e);
  CHECK (st && created);
#ifdef ENABLE_TEST_STORAGE
  unit_begin ("files are wrapped as the environment says");
  CHECK_STR (st->ops->driver, "record");
  CHECK (st->ops->descriptor == NULL && access ("wrap.log", F_OK) == 0);
  storage_close (st);
  setenv ("NBDIMG_TEST_STORAGE", "fault:op=write,index=1", 1);
  st = storage_file_open ("image", &o, &e);
  CHECK_FAILS (storage_pwrite (st, "x", 1, 0, 0, &e), &e, EIO);
  storage_close (st);
  setenv ("NBDIMG_TEST_STORAGE", "nonsense", 1);
  CHECK (storage_file_open ("image", &o, &e) == NULL && e.err == EINVAL);
#else
  unit_begin ("a program that is not built for tests obeys no environment");
  CHECK_STR (st->ops->driver, "file");
  CHECK (access ("wrap.log", F_OK) < 0);
  storage_close (st);
#endif
  unsetenv ("NBDIMG_TEST_STORAGE");
}

int
main (void)
{
  model_enter_dir ();
  test_record ();
  test_record_error ();
  test_replay ();
  test_kill ();
  test_fault_index ();
  test_fault_ops ();
  test_fault_count ();
  test_fault_kill ();
  test_fault_delay ();
  test_fault_spec ();
  test_wrap ();
  return unit_end ();
}
