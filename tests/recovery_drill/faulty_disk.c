/* A file system that misbehaves: preloaded, it answers for the call that FAULT names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LARGE (1 << 20)

static int faulty(const char *call) {
    const char *fault = getenv("FAULT");
    return fault && strcmp(fault, call) == 0;
}

static int fail(int code) {
    errno = code;
    return -1;
}

int fsync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    return faulty("fsync fails") ? fail(EIO) : real(fd);
}

int link(const char *source, const char *name) {
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "link");
    if (faulty("link fails")) return fail(EIO);
    return faulty("no links") ? fail(EPERM) : real(source, name);
}

int rename(const char *source, const char *name) {
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    return faulty("rename does nothing") ? 0 : real(source, name);
}

int flock(int fd, int operation) {
    int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
    return faulty("flock does nothing") ? 0 : real(fd, operation);
}

ssize_t write(int fd, const void *bytes, size_t count) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (!faulty("write drops") || count < LARGE) return real(fd, bytes, count);
    off_t end = lseek(fd, (off_t)count, SEEK_CUR); /* the size is right, the bytes are zero */
    return end < 0 || ftruncate(fd, end) < 0 ? -1 : (ssize_t)count;
}
