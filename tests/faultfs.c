/* Makes system calls on some paths fail or hang, for a process that preloads it (LD_PRELOAD).
 *
 * FAULTS names a file with one fault per line: CALL WHAT PATTERN, where CALL is write, fsync, read,
 * rename, link, open, unlink or fallocate (more_calls.c adds others); WHAT is an error number, or
 * -SECONDS to hang; PATTERN is a part of the path, or its end if it ends in a $. The file is read at
 * every call, so that a test can change its mind.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static __thread int inside;

static int matches(const char *path, const char *pattern) {
    size_t m = strlen(pattern), n = strlen(path);
    if (m == 0 || pattern[m - 1] != '$') return strstr(path, pattern) != 0;
    m--;
    return n >= m && !strncmp(path + n - m, pattern, m);
}

/* The error to fail with, or 0. Hangs where that is asked for. */
static int fault(const char *call, const char *path) {
    const char *list = getenv("FAULTS");
    if (!list || !path || inside || !strcmp(path, list)) return 0;
    inside = 1;
    int found = 0, what;
    char name[32], pattern[PATH_MAX];
    FILE *file = fopen(list, "r");
    while (file && fscanf(file, "%31s %d %4095s", name, &what, pattern) == 3)
        if (!strcmp(name, call) && matches(path, pattern)) { found = what; break; }
    if (file) fclose(file);
    if (found < 0) { usleep(-found * 1000000u); found = 0; }
    inside = 0;
    return found;
}

static int fd_fault(const char *call, int fd) {
    char link[64], path[PATH_MAX];
    if (inside) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0 || path[0] != '/') return 0;
    path[n] = 0;
    return fault(call, path);
}

#define FAIL_IF(expression) do { int e = (expression); if (e) { errno = e; return -1; } } while (0)

ssize_t write(int fd, const void *data, size_t n) {
    REAL(ssize_t, "write", int, const void *, size_t);
    FAIL_IF(fd_fault("write", fd));
    return real(fd, data, n);
}
ssize_t read(int fd, void *data, size_t n) {
    REAL(ssize_t, "read", int, void *, size_t);
    FAIL_IF(fd_fault("read", fd));
    return real(fd, data, n);
}
int fsync(int fd) {
    REAL(int, "fsync", int);
    FAIL_IF(fd_fault("fsync", fd));
    return real(fd);
}
int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    FAIL_IF(fault("rename", to));
    return real(from, to);
}
int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    FAIL_IF(fault("link", to));
    return real(from, to);
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
    REAL(int, "linkat", int, const char *, int, const char *, int);
    FAIL_IF(fault("link", to));
    return real(a, from, b, to, flags);
}
int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    FAIL_IF(fault("unlink", path));
    return real(path);
}
int posix_fallocate(int fd, off_t at, off_t n) {
    REAL(int, "posix_fallocate", int, off_t, off_t);
    int e = fd_fault("fallocate", fd);
    return e ? e : real(fd, at, n);
}
int posix_fallocate64(int fd, off64_t at, off64_t n) {
    REAL(int, "posix_fallocate64", int, off64_t, off64_t);
    int e = fd_fault("fallocate", fd);
    return e ? e : real(fd, at, n);
}
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, #name, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        FAIL_IF(fault("open", path)); \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
