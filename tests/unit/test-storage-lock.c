/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* storage/lock.c: image locks between two opens of one process, and between
 * two processes.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/storage-model.h"

/* What the programs hold and do not share. */
enum {
  RW = PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE,
  RO = PERM_CONSISTENT_READ,
  NO_WRITERS = PERM_WRITE | PERM_RESIZE,
};

static struct storage *
open_image (void)
{
  struct storage_open_options o = { .writable = true };
  struct error e = ERROR_INIT;
  struct storage *st = storage_file_open ("image", &o, &e);

  if (!st) {
    printf ("not ok open: %s\n", e.text);
    exit (EXIT_FAILURE);
  }
  return st;
}

/* Is byte BYTE of the image locked?  Asked by a description of our own. */
static bool
byte_locked (off_t byte)
{
  struct flock fl = {
    .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1,
  };
  int fd = open ("image", O_RDWR | O_CLOEXEC);
  int r = fcntl (fd, F_OFD_GETLK, &fl);

  close (fd);
  CHECK (r == 0);
  CHECK (fl.l_type == F_UNLCK || fl.l_type == F_RDLCK);
  return fl.l_type != F_UNLCK;
}

static void
check_bytes (const char *locked)
{
  static const int bytes[] = { 100, 101, 102, 103, 104, 200, 201, 202, 203 };
  char want[8];

  for (size_t i = 0; i < sizeof bytes / sizeof bytes[0]; ++i) {
    snprintf (want, sizeof want, "%d", bytes[i]);
    if (byte_locked (bytes[i]) != (strstr (locked, want) != NULL))
      unit_fail (__FILE__, __LINE__, "byte %d, wanted: %s", bytes[i], locked);
  }
}

static void
test_bytes (void)
{
  struct error e = ERROR_INIT;
  struct storage *st = open_image ();

  unit_begin ("the bytes are those that QEMU looks at");
  check_bytes ("");
  CHECK_OK (storage_lock (st, RO, NO_WRITERS, &e), &e);
  check_bytes ("100 201 203");
  CHECK_OK (storage_lock (st, RW, NO_WRITERS, &e), &e);
  check_bytes ("100 101 103 201 203");
  CHECK_OK (storage_lock (st, RW | PERM_WRITE_UNCHANGED,
                          RW | PERM_WRITE_UNCHANGED, &e), &e);
  check_bytes ("100 101 102 103 200 201 202 203");
  CHECK_OK (storage_lock (st, RO, 0, &e), &e);
  check_bytes ("100");
  CHECK_OK (storage_lock (st, 0, 0, &e), &e);
  check_bytes ("");
  CHECK_OK (storage_lock (st, RW, NO_WRITERS, &e), &e);
  storage_close (st);
  check_bytes ("");
}

struct expectation {
  unsigned held, unshared;        /* of the first */
  unsigned held2, unshared2;      /* of the second */
  const char *conflict;           /* NULL = both are content */
};

static const struct expectation expectations[] = {
  { RO, NO_WRITERS, RO, NO_WRITERS, NULL },
  { RO, NO_WRITERS, RW, NO_WRITERS, "Failed to get \"write\" lock" },
  { RW, NO_WRITERS, RO, NO_WRITERS, "Failed to get shared \"write\" lock" },
  { RW, NO_WRITERS, RW, NO_WRITERS, "Failed to get \"write\" lock" },
  { RW, NO_WRITERS, RO, 0, NULL },
  { RO, 0, RW, NO_WRITERS, NULL },
  { RW, PERM_RESIZE, RO | PERM_WRITE, PERM_RESIZE,
    "Failed to get shared \"resize\" lock" },
  { RO | PERM_WRITE, PERM_RESIZE, RO | PERM_WRITE, PERM_RESIZE, NULL },
  { RO, RO, RO, 0, "Failed to get \"consistent read\" lock" },
};

static void
test_matrix (void)
{
  struct error e = ERROR_INIT;

  unit_begin ("who may stand beside whom, and which lock is named");
  for (size_t i = 0; i < sizeof expectations / sizeof expectations[0]; ++i) {
    const struct expectation *x = &expectations[i];
    struct storage *a = open_image (), *b = open_image ();

    CHECK_OK (storage_lock (a, x->held, x->unshared, &e), &e);
    if (!x->conflict)
      CHECK_OK (storage_lock (b, x->held2, x->unshared2, &e), &e);
    else {
      CHECK (storage_lock (b, x->held2, x->unshared2, &e) == -1);
      if (e.err != EAGAIN || !strstr (e.text, x->conflict)
          || !strstr (e.text, "Is another process using the image [image]?")
          || !strstr (e.text, "in this process"))
        unit_fail (__FILE__, __LINE__, "%zu: %s", i, e.text);
      error_clear (&e);
    }
    storage_close (a);
    storage_close (b);
  }
}

static void
test_changes (void)
{
  struct storage *a = open_image (), *b = open_image (), *c;
  struct error e = ERROR_INIT;

  unit_begin ("an upgrade that fails leaves what was held");
  CHECK_OK (storage_lock (a, RO, NO_WRITERS, &e), &e);
  CHECK_OK (storage_lock (b, RO, NO_WRITERS, &e), &e);
  CHECK_FAILS (storage_lock (a, RW, NO_WRITERS, &e), &e, EAGAIN);
  check_bytes ("100 201 203");
  storage_close (b);
  CHECK_OK (storage_lock (a, RW, NO_WRITERS, &e), &e);

  unit_begin ("after a downgrade others come in, but no writer");
  b = open_image ();
  CHECK_FAILS (storage_lock (b, RO, NO_WRITERS, &e), &e, EAGAIN);
  CHECK_OK (storage_lock (a, RO, NO_WRITERS, &e), &e);
  CHECK_OK (storage_lock (b, RO, NO_WRITERS, &e), &e);
  c = open_image ();
  CHECK_FAILS (storage_lock (c, RW, NO_WRITERS, &e), &e, EAGAIN);
  storage_close (a);
  storage_close (b);
  CHECK_OK (storage_lock (c, RW, NO_WRITERS, &e), &e);
  storage_close (c);
}

static void
test_set_writable (void)
{
  struct storage_open_options ro = { .writable = false };
  struct error e = ERROR_INIT;
  struct storage *a = storage_file_open ("image", &ro, &e), *b;

  unit_begin ("locks stay when a file becomes writable");
  CHECK (a != NULL);
  CHECK_OK (storage_lock (a, RO, NO_WRITERS, &e), &e);
  CHECK_OK (storage_set_writable (a, &e), &e);
  check_bytes ("100 201 203");
  CHECK_OK (storage_lock (a, RW, NO_WRITERS, &e), &e);
  b = open_image ();
  CHECK_FAILS (storage_lock (b, RW, NO_WRITERS, &e), &e, EAGAIN);
  storage_close (a);
  CHECK_OK (storage_lock (b, RW, NO_WRITERS, &e), &e);
  storage_close (b);
}

static void
test_options (void)
{
  struct storage_open_options off = { .writable = true, .no_lock = true };
  struct storage *a = open_image (), *b;
  struct error e = ERROR_INIT;
  char name[32];
  int fd;

  unit_begin ("locking=off takes and respects no lock");
  CHECK_OK (storage_lock (a, RW, NO_WRITERS, &e), &e);
  b = storage_file_open ("image", &off, &e);
  CHECK (b != NULL);
  CHECK_OK (storage_lock (b, RW, NO_WRITERS, &e), &e);
  storage_close (b);
  check_bytes ("100 101 103 201 203");

  unit_begin ("closing another descriptor of the file drops no lock");
  close (open ("image", O_RDWR | O_CLOEXEC));
  check_bytes ("100 101 103 201 203");
  storage_close (a);

  unit_begin ("a descriptor that was handed over keeps no lock of ours");
  fd = open ("image", O_RDWR | O_CLOEXEC);
  snprintf (name, sizeof name, "/dev/fd/%d", fd);
  a = storage_file_open (name, &(struct storage_open_options) {
      .writable = true }, &e);
  CHECK (a != NULL);
  CHECK_OK (storage_lock (a, RW, NO_WRITERS, &e), &e);
  check_bytes ("100 101 103 201 203");
  storage_close (a);
  check_bytes ("");
  close (fd);
}

/* ---- another process ---- */

static void
test_process (void)
{
  struct storage *st;
  struct error e = ERROR_INIT;
  char pid_text[64], c;
  int ready[2];
  pid_t pid;

  unit_begin ("the process that holds the image is named");
  CHECK (pipe (ready) == 0);
  pid = fork ();
  if (pid == 0) {
    st = open_image ();
    if (storage_lock (st, RW, NO_WRITERS, &e) == 0 && write (ready[1], "x", 1))
      pause ();
    _exit (1);
  }
  CHECK (read (ready[0], &c, 1) == 1);
  st = open_image ();
  CHECK (storage_lock (st, RW, NO_WRITERS, &e) == -1);
  snprintf (pid_text, sizeof pid_text, "process %ld (test-storage", (long) pid);
  if (!strstr (e.text, pid_text))
    unit_fail (__FILE__, __LINE__, "%s", e.text);
  error_clear (&e);

  unit_begin ("a killed process holds nothing");
  kill (pid, SIGKILL);
  waitpid (pid, NULL, 0);
  CHECK_OK (storage_lock (st, RW, NO_WRITERS, &e), &e);
  storage_close (st);
  close (ready[0]);
  close (ready[1]);
}

/* ---- races ---- */

struct race {
  int writers;                  /* atomic */
  int wins;                     /* atomic */
};

static void *
race_thread (void *arg)
{
  struct race *race = arg;
  struct error e = ERROR_INIT;

  for (int i = 0; i < 100; ++i) {
    struct storage *st = open_image ();

    if (storage_lock (st, RW, NO_WRITERS, &e) == 0) {
      CHECK (__atomic_add_fetch (&race->writers, 1, __ATOMIC_SEQ_CST) == 1);
      __atomic_add_fetch (&race->wins, 1, __ATOMIC_RELAXED);
      CHECK_OK (storage_pwrite (st, "x", 1, 0, 0, &e), &e);
      __atomic_sub_fetch (&race->writers, 1, __ATOMIC_SEQ_CST);
    } else {
      CHECK (e.err == EAGAIN);
      error_clear (&e);
    }
    storage_close (st);
  }
  return NULL;
}

static void
test_race (void)
{
  struct race race = { .writers = 0 };
  pthread_t threads[4];

  unit_begin ("of many that race never two are writers");
  for (int i = 0; i < 4; ++i)
    if (pthread_create (&threads[i], NULL, race_thread, &race) != 0)
      abort ();
  for (int i = 0; i < 4; ++i)
    pthread_join (threads[i], NULL);
  CHECK (race.wins > 0);
}

int
main (void)
{
  model_enter_dir ();
  close (open ("image", O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  test_bytes ();
  test_matrix ();
  test_changes ();
  test_set_writable ();
  test_options ();
  test_process ();
  test_race ();
  return unit_end ();
}
