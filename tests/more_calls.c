/* The calls that faultfs.c leaves out, for the same list of faults: pwrite, fdatasync, ftruncate,
 * mkdir, opendir, stat, statvfs and flock.
 */
#include "faultfs.c"
#include <dirent.h>
#include <sys/file.h>
#include <sys/statvfs.h>

/* Calls with the path, or the descriptor, and one more argument. */
#define ON_PATH(name, call, type) \
    int name(const char *path, type argument) { \
        REAL(int, #name, const char *, type); \
        FAIL_IF(fault(call, path)); \
        return real(path, argument); \
    }
ON_PATH(mkdir, "mkdir", mode_t)
ON_PATH(stat, "stat", struct stat *)
ON_PATH(stat64, "stat", struct stat64 *)
ON_PATH(lstat, "stat", struct stat *)
ON_PATH(lstat64, "stat", struct stat64 *)
ON_PATH(statvfs, "statvfs", struct statvfs *)
ON_PATH(statvfs64, "statvfs", struct statvfs64 *)
#define ON_FD(name, call, type) \
    int name(int fd, type argument) { \
        REAL(int, #name, int, type); \
        FAIL_IF(fd_fault(call, fd)); \
        return real(fd, argument); \
    }
ON_FD(ftruncate, "ftruncate", off_t)
ON_FD(ftruncate64, "ftruncate", off64_t)
ON_FD(flock, "flock", int)
int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    FAIL_IF(fd_fault("fdatasync", fd));
    return real(fd);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    FAIL_IF(fd_fault("pwrite", fd));
    return real(fd, data, n, at);
}
DIR *opendir(const char *path) {
    REAL(DIR *, "opendir", const char *);
    int e = fault("opendir", path);
    if (e) { errno = e; return 0; }
    return real(path);
}
