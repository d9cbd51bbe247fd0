/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* The connections to one export, and many requests in flight on each.
 *
 * Layer: storage.
 *
 * No thread is made here, so a storage that was opened before nbdkit forks
 * works after it.  A caller issues its requests itself (libnbd sends at once
 * what the socket takes); then, if nobody does it yet, it *drives* the
 * connection: waits for the socket and lets libnbd read replies, its own and
 * those of others, until its own are done.  Then one of the waiting callers
 * takes over.
 *
 * Further connections are begun when requests meet on the first one, and come
 * into use when their handshake is over.  Nobody waits for that: some servers
 * advertise multi-conn and then take only one client.
 *
 * Locking: pool.m (which connection) and conn.m (who waits and drives) are
 * never held together, nor across a call of libnbd.  libnbd's lock of a handle
 * comes before conn.m: completions run under it.
 *
 * A connection that is lost loses the whole pool: what its requests did is
 * not known, and every later request fails.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/interrupt.h"
#include "common/lock.h"
#include "common/log.h"
#include "storage/nbd.h"

enum {
  DEFAULT_CONNECTIONS = 4,
  MAX_CONNECTIONS = 16,
  WINDOW = 8,                   /* pieces of one job in flight */
  HANDSHAKE_SECONDS = 10,       /* then a further connection is given up */
  HANDSHAKE_STEPS = 100,        /* at a time: a request waits meanwhile */
  FAREWELL_SECONDS = 2,         /* for one that is under way at close */
  PATIENCE = 5,                 /* seconds without a byte, after Ctrl-C */
};

struct batch;

/* One request in flight; free = batch is NULL. */
struct slot {
  struct batch *batch;
  uint64_t offset, length;
};

/* A job on its way, on the stack of its caller. */
struct batch {
  struct slot slots[WINDOW];

  /* guarded by conn->m */
  unsigned pending;             /* requests in flight */
  unsigned wake_at;             /* the caller waits for pending <= wake_at */
  int err;                      /* of the first request that failed */
  uint64_t err_offset, err_length;
  struct batch *next, *prev;    /* in conn->waiting */
  pthread_cond_t cond;

  /* fixed */
  struct nbdx_pool *pool;
  struct conn *conn;
};

enum conn_state { CONN_UNUSED, CONN_STARTING, CONN_READY };

struct conn {
  struct nbd_handle *h;
  int kick;                     /* eventfd: wakes the driver */

  /* guarded by pool->m */
  enum conn_state state;
  unsigned load;                /* jobs on this connection */
  bool busy;                    /* CONN_STARTING: a caller has the handle */
  time_t started;

  struct mutex m;
  /* guarded by m */
  struct batch *driver;         /* whose thread is in drive () */
  pthread_t driver_thread;
  struct batch *waiting;        /* list of the others */

  time_t silent_since;          /* for who drives; 0 = not interrupted */
};

struct nbdx_pool {
  /* fixed after open */
  const struct nbdx_target *target;
  struct nbdx_command *command;
  struct nbdx_export export;

  struct mutex m;
  /* guarded by m */
  unsigned limit;               /* connections to have at most */
  unsigned nr;                  /* conns[] in use, the first is always ready */
  struct conn conns[MAX_CONNECTIONS];
  bool lost;
  char reason[256];             /* why, valid when lost */
  bool fate_asked;              /* the command had time to be found dead */
};

/* ---- waiting and driving ---- */

static void
kick (struct conn *c)
{
  const uint64_t one = 1;

  /* Fails only when the counter is full: then the driver wakes anyway. */
  if (write (c->kick, &one, sizeof one) == -1)
    return;
}

static void
drain_kick (struct conn *c)
{
  uint64_t count;

  if (read (c->kick, &count, sizeof count) == -1)
    return;
}

/* BATCH may go on.  The driver may be asleep in poll while another thread,
 * that was issuing a request, ran into the end of the connection.
 */
static void
wake_locked (struct conn *c, struct batch *b) REQUIRES (c->m)
{
  if (c->driver != b)
    pthread_cond_signal (&b->cond);
  else if (!pthread_equal (c->driver_thread, pthread_self ()))
    kick (c);
}

static void
completed_locked (struct conn *c, struct slot *s, int err) REQUIRES (c->m)
{
  struct batch *b = s->batch;

  if (err && !b->err) {
    b->err = err;
    b->err_offset = s->offset;
    b->err_length = s->length;
  }
  s->batch = NULL;
  b->pending--;
  if (b->pending <= b->wake_at)
    wake_locked (c, b);
}

static void
lose_because (struct nbdx_pool *p, const char *why)
{
  mutex_lock (&p->m);
  if (!p->lost) {
    p->lost = true;
    snprintf (p->reason, sizeof p->reason, "%s", why);
  }
  mutex_unlock (&p->m);
}

/* The connection has ended, in a call of libnbd by this thread: only here its
 * reason is known.  Nothing is set when the server closed in good order.
 */
static void
lose (struct nbdx_pool *p)
{
  lose_because (p, nbd_get_error () ? nbdx_why ()
                : "the server closed the connection");
}

/* libnbd's completion callback; holds the lock of the handle.  It is called
 * exactly once for each request that nbd_aio_* accepted, also when the
 * connection dies.  After the unlock the batch may be gone.
 */
static int
completed (void *slot, int *error)
{
  struct slot *s = slot;
  struct conn *c = s->batch->conn;

  /* Never an answer of the server: libnbd knows no such error on the wire. */
  if (*error == ENOTCONN)
    lose (s->batch->pool);
  mutex_lock (&c->m);
  completed_locked (c, s, *error);
  mutex_unlock (&c->m);
  return 1;                     /* libnbd may forget the request */
}

static time_t
now (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec;
}

/* Nothing came, and the program is to end.  What is in flight may be what keeps
 * an image whole, so the server gets a moment; one that is stuck would hold us
 * for ever.  The end of the socket makes libnbd fail all requests.
 */
static void
be_patient (struct nbdx_pool *p, struct conn *c, int fd)
{
  if (c->silent_since == 0)
    c->silent_since = now ();
  if (now () - c->silent_since < PATIENCE)
    return;
  lose_because (p, "the server does not answer, and this program is to end");
  shutdown (fd, SHUT_RDWR);
}

/* Wait for the socket or a kick, and let libnbd do what is to be done. */
static void
drive (struct nbdx_pool *p, struct conn *c)
{
  unsigned dir = nbd_aio_get_direction (c->h);
  struct pollfd fds[2] = {
    { .fd = nbd_aio_get_fd (c->h) },
    { .fd = c->kick, .events = POLLIN },
  };

  if (fds[0].fd < 0)            /* dead, all requests have completed */
    return;
  if (dir & LIBNBD_AIO_DIRECTION_READ)
    fds[0].events |= POLLIN;
  if (dir & LIBNBD_AIO_DIRECTION_WRITE)
    fds[0].events |= POLLOUT;
  if (poll (fds, 2, NBDX_TICK) == -1)
    return;                     /* EINTR: the caller looks again */
  if (fds[1].revents)
    drain_kick (c);
  if (!fds[0].revents) {
    if (interrupted ())
      be_patient (p, c, fds[0].fd);
    return;
  }
  c->silent_since = 0;
  /* Another thread may have issued requests meanwhile. */
  dir = nbd_aio_get_direction (c->h);
  if ((dir & LIBNBD_AIO_DIRECTION_READ) && (fds[0].revents & ~POLLOUT))
    nbd_aio_notify_read (c->h);
  else if (dir & LIBNBD_AIO_DIRECTION_WRITE)
    nbd_aio_notify_write (c->h);
}

static void
enqueue_locked (struct conn *c, struct batch *b) REQUIRES (c->m)
{
  b->prev = NULL;
  b->next = c->waiting;
  if (b->next)
    b->next->prev = b;
  c->waiting = b;
}

static void
dequeue_locked (struct conn *c, struct batch *b) REQUIRES (c->m)
{
  if (b->next)
    b->next->prev = b->prev;
  if (b->prev)
    b->prev->next = b->next;
  else
    c->waiting = b->next;
}

/* Drive until this batch may go on. */
static void
drive_for_locked (struct conn *c, struct batch *b) REQUIRES (c->m)
{
  c->driver = b;
  c->driver_thread = pthread_self ();
  while (b->pending > b->wake_at) {
    mutex_unlock (&c->m);
    drive (b->pool, c);
    mutex_lock (&c->m);
  }
  c->driver = NULL;
}

/* Return when at most WAKE_AT requests of the batch are in flight. */
static void
wait_for (struct batch *b, unsigned wake_at)
{
  struct conn *c = b->conn;

  mutex_lock (&c->m);
  b->wake_at = wake_at;
  while (b->pending > wake_at) {
    if (!c->driver)
      drive_for_locked (c, b);
    else {
      enqueue_locked (c, b);
      mutex_wait (&c->m, &b->cond);
      dequeue_locked (c, b);
    }
  }
  b->wake_at = 0;
  /* Whoever leaves sees to it that somebody drives: also one who was woken to
   * take over and found its own requests done.
   */
  if (!c->driver && c->waiting)
    pthread_cond_signal (&c->waiting->cond);
  mutex_unlock (&c->m);
}

/* ---- issuing ---- */

static int64_t
issue (struct nbd_handle *h, const struct nbdx_job *j, uint64_t done,
       size_t len, struct slot *s)
{
  nbd_completion_callback cb = { .callback = completed, .user_data = s };
  const char *out;

  switch (j->kind) {
  case NBDX_READ:
    return nbd_aio_pread (h, (char *) j->buf.in + done, len, s->offset, cb,
                          j->flags);
  case NBDX_WRITE:
    out = j->same ? j->buf.out : (const char *) j->buf.out + done;
    return nbd_aio_pwrite (h, out, len, s->offset, cb, j->flags);
  case NBDX_ZERO:
    return nbd_aio_zero (h, len, s->offset, cb, j->flags);
  case NBDX_TRIM:
    return nbd_aio_trim (h, len, s->offset, cb, j->flags);
  case NBDX_FLUSH:
    return nbd_aio_flush (h, cb, j->flags);
  case NBDX_EXTENTS:
    return nbd_aio_block_status (h, len, s->offset, j->extents, cb, j->flags);
  }
  abort ();
}

static struct slot *
take_slot (struct batch *b, const struct nbdx_job *j, uint64_t done,
           size_t len)
{
  struct slot *s = b->slots;

  mutex_lock (&b->conn->m);
  while (s->batch)              /* pending < WINDOW: there is one */
    s++;
  s->batch = b;
  s->offset = j->offset + done;
  s->length = len;
  b->pending++;
  mutex_unlock (&b->conn->m);
  return s;
}

/* Send one piece.  A request that libnbd refuses counts as completed with its
 * error.
 */
static void
send_piece (struct batch *b, const struct nbdx_job *j, uint64_t done,
            size_t len)
{
  struct conn *c = b->conn;
  struct slot *s = take_slot (b, j, done, len);
  bool asleep;
  int err;

  if (issue (c->h, j, done, len, s) == -1) {
    err = nbd_get_errno () ? nbd_get_errno () : EIO;
    if (nbd_aio_is_dead (c->h) || nbd_aio_is_closed (c->h))
      err = ENOTCONN;
    completed (s, &err);
  }
  /* What the socket did not take, the driver must send. */
  else if (nbd_aio_get_direction (c->h) & LIBNBD_AIO_DIRECTION_WRITE) {
    mutex_lock (&c->m);
    asleep = c->driver != NULL;
    mutex_unlock (&c->m);
    if (asleep)
      kick (c);
  }
}

static bool
has_failed (struct batch *b)
{
  bool r;

  mutex_lock (&b->conn->m);
  r = b->err != 0;
  mutex_unlock (&b->conn->m);
  return r;
}

/* All pieces, up to WINDOW in flight; after a failure no further one. */
static void
send_all (struct batch *b, const struct nbdx_job *j)
{
  uint64_t done = 0, len;

  do {
    len = j->length - done;
    if (len > j->piece)
      len = j->piece;
    send_piece (b, j, done, (size_t) len);
    done += len;
    wait_for (b, WINDOW - 1);
  } while (done < j->length && !has_failed (b));
  wait_for (b, 0);
}

/* ---- choosing a connection ---- */

static int
init_conn (struct nbdx_pool *p, unsigned i, struct error *e)
{
  struct conn *c = &p->conns[i];

  c->kick = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (c->kick == -1)
    return error_errno (e, errno, "%s: eventfd", p->target->label);
  mutex_init (&c->m);
  return 0;
}

/* A polite end, without waiting for the server's.  Only a handshake that was
 * begun gets a moment to finish, as long as the server answers: nbdkit
 * complains on its standard error about one that breaks off.  A hostile server
 * could go on answering for ever.
 */
static void
disconnect (struct nbd_handle *h)
{
  const time_t end = now () + FAREWELL_SECONDS;

  while (!nbd_aio_is_ready (h) && now () < end && nbd_poll (h, 100) == 1)
    ;
  if (nbd_aio_is_ready (h))
    nbd_aio_disconnect (h, 0);
}

static void
close_conn (struct conn *c)
{
  if (c->h)
    disconnect (c->h);
  nbd_close (c->h);
  close (c->kick);
  mutex_destroy (&c->m);
}

static bool
same_export (const struct nbdx_export *a, const struct nbdx_export *b)
{
  return a->size == b->size && a->block == b->block && a->max == b->max
    && a->read_only == b->read_only && a->flush == b->flush
    && a->fua == b->fua && a->trim == b->trim && a->zero == b->zero
    && a->fast_zero == b->fast_zero && a->multi_conn == b->multi_conn
    && a->extents == b->extents;
}

/* Go on with a handshake as far as it goes without waiting.  1 = ready, 0 =
 * not yet, -1 = give up.  The caller has set busy.
 */
static int
advance (struct nbdx_pool *p, struct conn *c)
{
  struct nbdx_export x;
  struct error e = ERROR_INIT;
  int r, steps;

  if (!c->h) {
    c->h = nbdx_connect_start (p->target, &e);
    if (!c->h)
      goto failed;
  }
  for (steps = 0; !nbd_aio_is_ready (c->h); steps++) {
    r = nbd_poll (c->h, 0);
    if (r == -1 || nbd_aio_is_dead (c->h) || nbd_aio_is_closed (c->h)) {
      error_set (&e, EIO, "%s", nbdx_why ());
      goto failed;
    }
    if (now () - c->started > HANDSHAKE_SECONDS) {
      error_set (&e, ETIMEDOUT, "the handshake does not end");
      goto failed;
    }
    if (r == 0 || steps == HANDSHAKE_STEPS)
      return 0;
  }
  if (nbdx_connect_finish (p->target, c->h, &x, &e) == 0) {
    if (same_export (&x, &p->export))
      return 1;
    error_set (&e, EPROTO, "the server describes the export in another way");
  }
 failed:
  log_debug ("%s: a further connection failed, going on without: %s",
             p->target->label, e.text);
  return -1;
}

/* Begin another connection, or go on with one that was begun. */
static struct conn *
starting_locked (struct nbdx_pool *p) REQUIRES (p->m)
{
  struct conn *c = p->nr > 0 ? &p->conns[p->nr - 1] : NULL;
  struct error e = ERROR_INIT;

  if (c && c->state == CONN_STARTING)
    return c->busy ? NULL : c;
  if (p->nr >= p->limit || init_conn (p, p->nr, &e) == -1)
    return NULL;
  c = &p->conns[p->nr++];
  c->state = CONN_STARTING;
  c->started = now ();
  return c;
}

static void
advance_one (struct nbdx_pool *p)
{
  struct conn *c;
  int r;

  mutex_lock (&p->m);
  c = starting_locked (p);
  if (c)
    c->busy = true;
  mutex_unlock (&p->m);
  if (!c)
    return;
  r = advance (p, c);
  mutex_lock (&p->m);
  c->busy = false;
  if (r == 1)
    c->state = CONN_READY;
  else if (r == -1) {
    c->state = CONN_UNUSED;
    p->limit = --p->nr;         /* it stands last: only one is ever starting */
  }
  mutex_unlock (&p->m);
  if (r == -1)
    close_conn (c);
}

/* The ready connection with the fewest jobs. */
static struct conn *
choose (struct nbdx_pool *p, bool *crowded)
{
  struct conn *c = &p->conns[0];

  mutex_lock (&p->m);
  for (unsigned i = 1; i < p->nr; i++) {
    if (p->conns[i].state == CONN_READY && p->conns[i].load < c->load)
      c = &p->conns[i];
  }
  *crowded = c->load > 0 && p->limit > 1
    && (p->nr < p->limit || p->conns[p->nr - 1].state == CONN_STARTING);
  c->load++;
  mutex_unlock (&p->m);
  return c;
}

static void
leave (struct nbdx_pool *p, struct conn *c)
{
  mutex_lock (&p->m);
  c->load--;
  mutex_unlock (&p->m);
}

/* ---- errors ---- */

static const char *
kind_name (enum nbdx_kind kind)
{
  static const char *const names[] = {
    [NBDX_READ] = "read", [NBDX_WRITE] = "write", [NBDX_ZERO] = "zero",
    [NBDX_TRIM] = "trim", [NBDX_FLUSH] = "flush",
    [NBDX_EXTENTS] = "block status",
  };

  return names[kind];
}

/* A lost connection.  A command that dies closes its sockets a moment before
 * it can be waited for: the first report gives it that moment.
 */
static int
lost_error (struct nbdx_pool *p, const char *what, struct error *e)
{
  char reason[sizeof p->reason], fate[128] = "";
  int timeout;

  mutex_lock (&p->m);
  snprintf (reason, sizeof reason, "%s", p->reason);
  timeout = p->fate_asked ? 0 : 1000;
  p->fate_asked = true;
  mutex_unlock (&p->m);
  if (p->command)
    nbdx_command_fate (p->command, timeout, fate, sizeof fate);
  return error_set (e, ENOTCONN, "%s: %s: the connection is lost: %s%s",
                    p->target->label, what, reason, fate);
}

static bool
is_lost (struct nbdx_pool *p)
{
  bool r;

  mutex_lock (&p->m);
  r = p->lost;
  mutex_unlock (&p->m);
  return r;
}

static int
report (struct nbdx_pool *p, enum nbdx_kind kind, uint64_t offset,
        uint64_t length, int err, struct error *e)
{
  char what[96] = "flush";

  if (kind != NBDX_FLUSH)
    snprintf (what, sizeof what, "%s of %" PRIu64 " bytes at %" PRIu64,
              kind_name (kind), length, offset);
  if (is_lost (p))
    return lost_error (p, what, e);
  return error_errno (e, err, "%s: %s", p->target->label, what);
}

/* ---- the pool ---- */

int
nbdx_pool_run (struct nbdx_pool *p, const struct nbdx_job *j, struct error *e)
{
  struct batch b = { .pool = p };
  bool crowded;

  if (is_lost (p))
    return report (p, j->kind, j->offset, j->length, ENOTCONN, e);
  b.conn = choose (p, &crowded);
  if (crowded)
    advance_one (p);
  pthread_cond_init (&b.cond, NULL);
  send_all (&b, j);
  pthread_cond_destroy (&b.cond);
  leave (p, b.conn);
  if (b.err)
    return report (p, j->kind, b.err_offset, b.err_length, b.err, e);
  return 0;
}

/* With no connection yet, say why the command ended, if it did. */
static void
explain_command (struct nbdx_command *c, struct error *e)
{
  char fate[128];
  size_t used = strlen (e->text);

  nbdx_command_fate (c, 1000, fate, sizeof fate);
  snprintf (e->text + used, sizeof e->text - used, "%s", fate);
}

struct nbdx_pool *
nbdx_pool_open (const struct nbdx_target *t, struct nbdx_command *command,
                unsigned limit, struct nbdx_export *x, struct error *e)
{
  struct nbdx_pool *p = calloc (1, sizeof *p);
  struct nbd_handle *h;

  if (!p) {
    error_nomem (e, "NBD connections", sizeof *p);
    return NULL;
  }
  p->target = t;
  p->command = command;
  h = nbdx_connect (t, e);
  if (!h && command)
    explain_command (command, e);
  if (!h || nbdx_connect_finish (t, h, &p->export, e) == -1
      || init_conn (p, 0, e) == -1) {
    nbd_close (h);
    free (p);
    return NULL;
  }
  mutex_init (&p->m);
  p->conns[0].h = h;
  p->conns[0].state = CONN_READY;
  p->nr = 1;
  p->limit = limit ? limit : DEFAULT_CONNECTIONS;
  if (p->limit > MAX_CONNECTIONS)
    p->limit = MAX_CONNECTIONS;
  /* Without multi-conn a write on one need not be seen on another. */
  if (!p->export.multi_conn)
    p->limit = 1;
  *x = p->export;
  return p;
}

void
nbdx_pool_close (struct nbdx_pool *p)
{
  if (!p)
    return;
  for (unsigned i = 0; i < p->nr; i++)
    close_conn (&p->conns[i]);
  mutex_destroy (&p->m);
  free (p);
}
