/* Counts every system call that changes files below one folder, and strikes at the chosen count. Preloaded. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, KILL, FULL, BROKEN };
static char folder[PATH_MAX];
static long at, calls;
static int how = OFF, tally = -1, armed;

/* From the at-th call on: "kill" ends the process there, "full" has no space left, "broken" fails that call alone. */
void disk_faults_arm(const char *path, long count, const char *kind, int tally_fd) {
    snprintf(folder, sizeof folder, "%s", path);
    at = count, calls = 0, tally = tally_fd, armed = 1;
    how = !strcmp(kind, "kill") ? KILL : !strcmp(kind, "full") ? FULL : !strcmp(kind, "broken") ? BROKEN : OFF;
}

static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);

static int below(const char *path) { return armed && path && !strncmp(path, folder, strlen(folder)); }

static int below_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}

static int below_at(int dir, const char *path) {
    return armed && path && (path[0] == '/' || dir == AT_FDCWD ? below(path) : below_fd(dir));
}

/* 1 where the call must fail; takes_space: a full disk refuses it. */
static int struck(int takes_space) {
    if (!real_pwrite) real_pwrite = dlsym(RTLD_NEXT, "pwrite");
    calls++;
    real_pwrite(tally, &calls, 8, 0);
    if (calls == at && how == KILL) kill(getpid(), SIGKILL);
    if (calls == at && how == BROKEN) { errno = EIO; return 1; }
    if (at && calls >= at && how == FULL && takes_space) { errno = ENOSPC; return 1; }
    return 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRAP(type, name, parameters, arguments, applies, space)                     \
    type name parameters {                                                          \
        static __typeof__(&name) real;                                              \
        if (!real) real = REAL(name);                                               \
        if ((applies) && struck(space)) return -1;                                  \
        return real arguments;                                                      \
    }
#define OPEN(name, parameters, arguments, applies)                                  \
    int name parameters {                                                           \
        static __typeof__(&name) real;                                              \
        mode_t mode = 0;                                                            \
        if (!real) real = REAL(name);                                               \
        if (flags & (O_CREAT | O_TMPFILE)) {                                        \
            va_list list;                                                           \
            va_start(list, flags);                                                  \
            mode = va_arg(list, mode_t);                                            \
            va_end(list);                                                           \
        }                                                                           \
        if ((flags & (O_WRONLY | O_RDWR)) && (applies) && struck(flags & O_CREAT)) return -1; \
        return real arguments;                                                      \
    }

OPEN(open, (const char *path, int flags, ...), (path, flags, mode), below(path))
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode), below(path))
OPEN(openat, (int dir, const char *path, int flags, ...), (dir, path, flags, mode), below_at(dir, path))
OPEN(openat64, (int dir, const char *path, int flags, ...), (dir, path, flags, mode), below_at(dir, path))
WRAP(ssize_t, write, (int fd, const void *data, size_t n), (fd, data, n), below_fd(fd), 1)
WRAP(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n), below_fd(fd), 1)
WRAP(ssize_t, pwrite, (int fd, const void *d, size_t n, off_t o), (fd, d, n, o), fd != tally && below_fd(fd), 1)
WRAP(ssize_t, pwrite64, (int fd, const void *d, size_t n, off64_t o), (fd, d, n, o), fd != tally && below_fd(fd), 1)
WRAP(ssize_t, sendfile, (int to, int from, off_t *o, size_t n), (to, from, o, n), below_fd(to), 1)
WRAP(ssize_t, sendfile64, (int to, int from, off64_t *o, size_t n), (to, from, o, n), below_fd(to), 1)
WRAP(ssize_t, copy_file_range, (int from, off64_t *o, int to, off64_t *p, size_t n, unsigned f),
     (from, o, to, p, n, f), below_fd(to), 1)
WRAP(int, ftruncate, (int fd, off_t n), (fd, n), below_fd(fd), 1)
WRAP(int, ftruncate64, (int fd, off64_t n), (fd, n), below_fd(fd), 1)
WRAP(int, fsync, (int fd), (fd), below_fd(fd), 1)
WRAP(int, fdatasync, (int fd), (fd), below_fd(fd), 1)
WRAP(int, rename, (const char *from, const char *to), (from, to), below(to), 0)
WRAP(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), below_at(b, to), 0)
WRAP(int, mkdir, (const char *path, mode_t mode), (path, mode), below(path), 1)
WRAP(int, mkdirat, (int dir, const char *path, mode_t mode), (dir, path, mode), below_at(dir, path), 1)
WRAP(int, unlink, (const char *path), (path), below(path), 0)
WRAP(int, unlinkat, (int dir, const char *path, int flags), (dir, path, flags), below_at(dir, path), 0)
WRAP(int, rmdir, (const char *path), (path), below(path), 0)
