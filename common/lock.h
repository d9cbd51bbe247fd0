/* SPDX-License-Identifier: BSD-3-Clause
 * Copyright the nbdimg developers. */

/* Mutexes whose contracts clang checks (make check-locks).
 *
 * A function that needs the caller's lock is called foo_locked and says
 * REQUIRES (mutex).  The pair is written: foo () = lock, call foo_locked,
 * unlock, one exit.
 */

#ifndef NBDIMG_LOCK_H
#define NBDIMG_LOCK_H

#include <pthread.h>

#if defined(__clang__)
#define LOCK_ATTRIBUTE(x) __attribute__ ((x))
#else
#define LOCK_ATTRIBUTE(x)
#endif

#define CAPABILITY(name) LOCK_ATTRIBUTE (capability (name))
#define ACQUIRE(...) LOCK_ATTRIBUTE (acquire_capability (__VA_ARGS__))
#define RELEASE(...) LOCK_ATTRIBUTE (release_capability (__VA_ARGS__))
#define REQUIRES(...) LOCK_ATTRIBUTE (requires_capability (__VA_ARGS__))
#define EXCLUDES(...) LOCK_ATTRIBUTE (locks_excluded (__VA_ARGS__))
#define NO_LOCK_CHECK LOCK_ATTRIBUTE (no_thread_safety_analysis)

struct CAPABILITY ("mutex") mutex {
  pthread_mutex_t m;
};

#define MUTEX_INIT { PTHREAD_MUTEX_INITIALIZER }

extern void mutex_init (struct mutex *m);
extern void mutex_destroy (struct mutex *m);
extern void mutex_lock (struct mutex *m) ACQUIRE (m);
extern void mutex_unlock (struct mutex *m) RELEASE (m);

/* Wait on C; M is held before and after, and free in between. */
extern void mutex_wait (struct mutex *m, pthread_cond_t *c) REQUIRES (m);

#endif /* NBDIMG_LOCK_H */
