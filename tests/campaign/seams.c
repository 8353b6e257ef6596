/* A process that stands still at a seam of saving a checkpoint, so that the campaign can kill it just there. The file
   that ARBORIST_SEAM names holds the seam's name; the first process that comes to it removes the file and stops
   itself. Built and preloaded by the campaign. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void stand_still_at(const char *seam) {
    char wanted[32];
    const char *path = getenv("ARBORIST_SEAM");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    ssize_t size = file < 0 ? 0 : read(file, wanted, sizeof wanted - 1);
    if (file >= 0)
        close(file);
    wanted[size < 0 ? 0 : size] = 0;
    if (!strcmp(wanted, seam) && !unlink(path))
        raise(SIGSTOP);
}

static int is_unfinished(const char *path) {
    const char *step = strstr(path, "/checkpoints/step-");
    return step && strstr(step, ".tmp-");
}

int fsync(int descriptor) {
    static int (*real)(int);
    char link[64], path[4096];
    ssize_t size;
    int status;
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    size = readlink(link, path, sizeof path - 1);
    path[size < 0 ? 0 : size] = 0;
    if (is_unfinished(path))
        stand_still_at("unsynced");
    status = real(descriptor);
    if (is_unfinished(path) && strstr(path, "/manifest.json"))
        stand_still_at("synced");
    return status;
}

int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    int status;
    if (!real)
        real = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    if (!is_unfinished(from))
        return real(from, to);
    stand_still_at("before its name");
    status = real(from, to);
    stand_still_at("named");
    return status;
}
