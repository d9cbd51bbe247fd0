/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Drives a storage from a shell script:
 *
 *   storage-io [-r] [-t CACHE] [-n CONNECTIONS] [-d] [--psk FILE]
 *              [--certificates DIR] [--user NAME] NAME|[ COMMAND... ]
 *              'REQUEST ARGUMENT...' ...
 *
 * Layer: tests.  The first request that fails ends the program with status 1
 * and its message on standard error; warnings go there too.  Requests:
 *
 *   info                              size and what the storage can do
 *   write OFFSET LENGTH BYTE [fua]    is OFFSET LENGTH BYTE (read and compare)
 *   zero OFFSET LENGTH [unmap] [fast] [fua]
 *   trim OFFSET LENGTH [fua]          flush
 *   extents OFFSET LENGTH             one line for each
 *   save FILE                         all of it, by requests of 4 MiB
 *   scan THREADS LENGTH               read all of it, LENGTH bytes at a time
 *   stress THREADS ROUNDS SIZE        writes and reads of SIZE bytes, side by
 *                                     side in the first THREADS * 16 places
 *   writable                          storage_set_writable
 *   fails REQUEST ARGUMENT...         the request fails: tell why and go on
 *   wait FIFO                         say "waiting", until a line comes
 *   fork                              the rest in a child (as nbdkit forks)
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/error.h"
#include "common/log.h"
#include "common/text.h"
#include "storage/storage.h"

enum { MAX_WORDS = 8, PLACES = 16 };

static void __attribute__ ((noreturn))
die (const char *text)
{
  fflush (stdout);
  fprintf (stderr, "storage-io: %s\n", text);
  exit (EXIT_FAILURE);
}

static void
sink (enum log_level level, const char *text)
{
  if (level == LOG_WARNING || getenv ("STORAGE_IO_DEBUG"))
    fprintf (stderr, "storage-io: %s: %s\n",
             level == LOG_WARNING ? "warning" : "debug", text);
}

static uint64_t
number (const char *text)
{
  struct error e = ERROR_INIT;
  uint64_t r;

  if (!text)
    die ("a number is missing");
  if (parse_size ("number", text, &r, &e) == -1)
    die (e.text);
  return r;
}

static void *
buffer (uint64_t len)
{
  void *r = malloc ((size_t) len + 1);

  if (!r)
    die ("out of memory");
  return r;
}

static unsigned
flags_of (char **words)
{
  unsigned r = 0;

  for (; *words; words++) {
    if (strcmp (*words, "fua") == 0)
      r |= STORAGE_FUA;
    else if (strcmp (*words, "unmap") == 0)
      r |= STORAGE_MAY_UNMAP;
    else if (strcmp (*words, "fast") == 0)
      r |= STORAGE_FAST;
    else
      die ("unknown flag");
  }
  return r;
}

/* ---- requests ---- */

static int
do_info (struct storage *st, char **w, struct error *e)
{
  const struct storage_caps *c = &st->caps;

  (void) w;
  (void) e;
  printf ("driver=%s name=%s size=%" PRIu64 "\n", st->ops->driver, st->name,
          storage_size (st));
  printf ("writable=%d grow=%d punch=%d zero=%d device=%d local=%d "
          "alignment=%u max=%" PRIu64 "\n", c->writable, c->can_grow,
          c->can_punch, c->zero_is_fast, c->is_device, c->is_local_file,
          c->alignment, c->max_request);
  return 0;
}

static int
do_write (struct storage *st, char **w, struct error *e)
{
  uint64_t len = number (w[2]);
  CLEANUP_FREE char *buf = buffer (len);

  memset (buf, (int) number (w[3]), (size_t) len);
  return storage_pwrite (st, buf, (size_t) len, number (w[1]),
                         flags_of (w + 4), e);
}

static int
do_is (struct storage *st, char **w, struct error *e)
{
  uint64_t offset = number (w[1]), len = number (w[2]);
  unsigned char byte = (unsigned char) number (w[3]);
  CLEANUP_FREE unsigned char *buf = buffer (len);

  /* What a short read leaves must not look right. */
  memset (buf, ~byte, (size_t) len);
  if (storage_pread (st, buf, (size_t) len, offset, e) == -1)
    return -1;
  for (uint64_t i = 0; i < len; i++) {
    if (buf[i] != byte)
      return error_set (e, EILSEQ, "byte at %" PRIu64 " is %u, not %u",
                        offset + i, buf[i], byte);
  }
  return 0;
}

static int
do_zero (struct storage *st, char **w, struct error *e)
{
  return storage_zero (st, number (w[1]), number (w[2]), flags_of (w + 3), e);
}

static int
do_trim (struct storage *st, char **w, struct error *e)
{
  return storage_trim (st, number (w[1]), number (w[2]), flags_of (w + 3), e);
}

static int
do_flush (struct storage *st, char **w, struct error *e)
{
  (void) w;
  return storage_flush (st, e);
}

static int
do_writable (struct storage *st, char **w, struct error *e)
{
  (void) w;
  return storage_set_writable (st, e);
}

static int
do_extents (struct storage *st, char **w, struct error *e)
{
  static const char *const kinds[] = { "data", "zero", "hole" };
  struct storage_extent x[16];
  uint64_t offset = number (w[1]), end = offset + number (w[2]);
  size_t nr;

  while (offset < end) {
    if (storage_extents (st, offset, end - offset, x, 16, &nr, e) == -1)
      return -1;
    if (nr == 0)
      return error_set (e, EPROTO, "an empty answer");
    for (size_t i = 0; i < nr; i++) {
      printf ("%" PRIu64 " %" PRIu64 " %s\n", offset, x[i].length,
              kinds[x[i].kind]);
      offset += x[i].length;
    }
  }
  return offset == end ? 0 : error_set (e, EPROTO, "past the end");
}

static int
do_save (struct storage *st, char **w, struct error *e)
{
  CLEANUP_FCLOSE FILE *f = w[1] ? fopen (w[1], "w") : NULL;
  uint64_t size = storage_size (st);
  size_t len = 4 << 20;
  CLEANUP_FREE char *buf = buffer (len);

  if (!f)
    die ("save: the file cannot be made");
  for (uint64_t offset = 0; offset < size; offset += len) {
    if (len > size - offset)
      len = (size_t) (size - offset);
    if (storage_pread (st, buf, len, offset, e) == -1)
      return -1;
    if (fwrite (buf, 1, len, f) != len)
      return error_errno (e, errno, "%s", w[1]);
  }
  return fflush (f) == 0 ? 0 : error_errno (e, errno, "%s", w[1]);
}

static int
do_wait (struct storage *st, char **w, struct error *e)
{
  CLEANUP_FCLOSE FILE *f = NULL;

  (void) st;
  (void) e;
  printf ("waiting\n");
  fflush (stdout);
  f = w[1] ? fopen (w[1], "r") : NULL;
  if (!f || getc (f) == EOF)
    die ("wait: no FIFO, or nothing from it");
  return 0;
}

/* The child goes on with the storage; the parent only passes on its status. */
static int
do_fork (struct storage *st, char **w, struct error *e)
{
  pid_t pid;
  int status;

  (void) st;
  (void) w;
  fflush (stdout);
  pid = fork ();
  if (pid == -1)
    return error_errno (e, errno, "fork");
  if (pid == 0)
    return 0;
  if (waitpid (pid, &status, 0) == -1 || !WIFEXITED (status))
    die ("fork: the child ended badly");
  _exit (WEXITSTATUS (status));
}

/* ---- stress ---- */

struct worker {
  pthread_t thread;
  struct storage *st;
  unsigned index, nr, rounds;
  size_t size;
  struct error e;
};

/* Worker I owns the places I, I + nr, I + 2 nr, ...: neighbours belong to
 * others, so that parts of one block are written from several threads.
 */
static void *
work (void *opaque)
{
  struct worker *k = opaque;
  unsigned char last[PLACES] = { 0 };
  bool known[PLACES] = { false };
  unsigned char *buf = buffer (k->size);
  uint64_t seed = k->index + 1;

  for (unsigned round = 0; round < k->rounds; round++) {
    unsigned place, byte;
    uint64_t offset;

    seed = seed * UINT64_C (6364136223846793005) + 1442695040888963407;
    place = (unsigned) (seed >> 33) % PLACES;
    byte = (unsigned) (seed >> 40) & 255;
    offset = (uint64_t) (place * k->nr + k->index) * k->size;
    if (known[place] && (seed >> 60) % 2) {
      if (storage_pread (k->st, buf, k->size, offset, &k->e) == -1)
        break;
      for (size_t i = 0; i < k->size; i++)
        if (buf[i] != last[place]) {
          error_set (&k->e, EILSEQ, "stress: byte at %" PRIu64 " is %u, "
                     "not %u", offset + i, buf[i], last[place]);
          goto out;
        }
      continue;
    }
    memset (buf, (int) byte, k->size);
    if (storage_pwrite (k->st, buf, k->size, offset, 0, &k->e) == -1)
      break;
    last[place] = (unsigned char) byte;
    known[place] = true;
  }
 out:
  free (buf);
  return NULL;
}

static int
do_stress (struct storage *st, char **w, struct error *e)
{
  unsigned nr = (unsigned) number (w[1]);
  struct worker *k = calloc (nr, sizeof *k);
  unsigned i;

  if (!k)
    die ("out of memory");
  for (i = 0; i < nr; i++) {
    k[i] = (struct worker) { .st = st, .index = i, .nr = nr,
                             .rounds = (unsigned) number (w[2]),
                             .size = (size_t) number (w[3]) };
    if (pthread_create (&k[i].thread, NULL, work, &k[i]) != 0)
      die ("no thread");
  }
  for (i = 0; i < nr; i++) {
    pthread_join (k[i].thread, NULL);
    if (k[i].e.err)
      error_set (e, k[i].e.err, "%s", k[i].e.text);
  }
  free (k);
  return e->err ? -1 : 0;
}

/* ---- scan ---- */

struct scan {
  struct storage *st;
  uint64_t length;
  uint64_t next;                /* atomic */
  struct error e;               /* of one thread that failed */
  int failed;                   /* atomic */
};

static void *
scan (void *opaque)
{
  struct scan *s = opaque;
  uint64_t size = storage_size (s->st), offset, len;
  struct error e = ERROR_INIT;
  char *buf = buffer (s->length);

  while ((offset = __atomic_fetch_add (&s->next, s->length,
                                       __ATOMIC_RELAXED)) < size) {
    len = size - offset < s->length ? size - offset : s->length;
    if (storage_pread (s->st, buf, (size_t) len, offset, &e) == -1) {
      if (!__atomic_exchange_n (&s->failed, 1, __ATOMIC_RELAXED))
        s->e = e;
      break;
    }
  }
  free (buf);
  return NULL;
}

static int
do_scan (struct storage *st, char **w, struct error *e)
{
  struct scan s = { .st = st, .length = number (w[2]) };
  unsigned nr = (unsigned) number (w[1]);
  CLEANUP_FREE pthread_t *threads = buffer (nr * sizeof *threads);

  for (unsigned i = 0; i < nr; i++)
    if (pthread_create (&threads[i], NULL, scan, &s) != 0)
      die ("no thread");
  for (unsigned i = 0; i < nr; i++)
    pthread_join (threads[i], NULL);
  return s.failed ? error_set (e, s.e.err, "%s", s.e.text) : 0;
}

/* ---- the program ---- */

static const struct {
  const char *name;
  int (*run) (struct storage *, char **, struct error *);
} requests[] = {
  { "info", do_info }, { "write", do_write }, { "is", do_is },
  { "zero", do_zero }, { "trim", do_trim }, { "flush", do_flush },
  { "extents", do_extents }, { "save", do_save },
  { "scan", do_scan }, { "stress", do_stress },
  { "writable", do_writable }, { "wait", do_wait }, { "fork", do_fork },
};

static int
run_words (struct storage *st, char **words, struct error *e)
{
  for (size_t i = 0; i < sizeof requests / sizeof requests[0]; i++)
    if (words[0] && strcmp (words[0], requests[i].name) == 0)
      return requests[i].run (st, words, e);
  die ("unknown request");
}

static int
run (struct storage *st, char *text, struct error *e)
{
  char *words[MAX_WORDS + 1] = { NULL }, *save = NULL;

  for (int i = 0; i < MAX_WORDS; i++) {
    words[i] = strtok_r (i == 0 ? text : NULL, " ", &save);
    if (!words[i])
      break;
  }
  if (!words[0] || strcmp (words[0], "fails") != 0)
    return run_words (st, words, e);
  if (run_words (st, words + 1, e) == 0)
    die ("a request that was to fail did not");
  fprintf (stderr, "%s\n", e->text);
  error_clear (e);
  return 0;
}

struct arguments {
  struct storage_open_options open;
  struct nbd_tls tls;
  bool has_tls;
  unsigned connections;
};

static char **
parse_options (char **argv, struct arguments *a)
{
  struct error e = ERROR_INIT;

  a->open.writable = a->tls.verify = true;
  for (; *argv && **argv == '-'; argv++) {
    if (strcmp (*argv, "-r") == 0)
      a->open.writable = false;
    else if (strcmp (*argv, "--try") == 0)
      a->open.try_writable = true;
    else if (strcmp (*argv, "-d") == 0)
      a->open.no_discard = true;
    else if (!argv[1])
      die ("an option or its value is wrong");
    else if (strcmp (*argv, "-n") == 0)
      a->connections = (unsigned) number (*++argv);
    else if (strcmp (*argv, "-t") == 0) {
      if (cache_mode_parse ("-t", *++argv, &a->open.cache, &e) == -1)
        die (e.text);
    }
    else {
      const char **field = strcmp (*argv, "--psk") == 0 ? &a->tls.psk_file
        : strcmp (*argv, "--certificates") == 0 ? &a->tls.certificates
        : strcmp (*argv, "--user") == 0 ? &a->tls.username : NULL;
      if (!field)
        die ("unknown option");
      *field = *++argv;
      a->has_tls = true;
    }
  }
  return argv;
}

/* Returns the arguments behind the name. */
static char **
open_storage (char **argv, const struct arguments *a, struct storage **st)
{
  struct error e = ERROR_INIT;
  char **end = argv;

  if (!*argv)
    die ("a name is missing");
  if (strcmp (*argv, "[") == 0) {
    while (*end && strcmp (*end, "]") != 0)
      end++;
    if (!*end)
      die ("] is missing");
    *end = NULL;
    *st = storage_nbd_command (argv + 1, a->connections, &a->open, &e);
  }
  else if (strncmp (*argv, "nbd", 3) == 0)
    *st = storage_nbd_open (*argv, a->has_tls ? &a->tls : NULL,
                            a->connections, &a->open, &e);
  else
    *st = storage_file_open (*argv, &a->open, &e);
  if (!*st)
    die (e.text);
  return end + 1;
}

int
main (int argc, char **argv)
{
  struct arguments a = { .connections = 0 };
  struct error e = ERROR_INIT;
  struct storage *st = NULL;

  (void) argc;
  log_set_sink (sink);
  argv = open_storage (parse_options (argv + 1, &a), &a, &st);
  for (; *argv; argv++) {
    if (run (st, *argv, &e) == -1) {
      storage_close (st);
      die (e.text);
    }
  }
  storage_close (st);
  return EXIT_SUCCESS;
}
