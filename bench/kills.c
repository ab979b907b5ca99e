/* Logs the file operations of a process and kills it by SIGKILL at one of them: LD_PRELOAD for
 * bench/kills.py. Only paths below one folder count; those of C and C++ libraries do too. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { RENAME, WRITE, UNLINK, MKDIR, FSYNC, KINDS };
enum { BEFORE, HALF, AFTER };
static const char *const kinds[] = {"rename", "write", "unlink", "mkdir", "fsync"};
static const char *const moments[] = {"before", "half of", "after"};

static char folder[PATH_MAX];
static size_t length; /* of folder; 0 until armed */
static int record = -1, fatal_kind, fatal_moment;
static long fatal_number, delay;
static atomic_long counts[KINDS];
static atomic_int begun;

static void note(const char *format, ...) {
  char line[PATH_MAX + 100];
  struct timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  int size = snprintf(line, sizeof line, "%ld ", now.tv_sec * 1000 + now.tv_nsec / 1000000);
  va_list rest;
  va_start(rest, format);
  size += vsnprintf(line + size, sizeof line - size, format, rest);
  va_end(rest);
  syscall(SYS_write, record, line, size);
}

/* kind < 0: none; milliseconds < 0: none, otherwise processor time from the first operation on. */
void kills_arm(const char *below, const char *file, int kind, long number, int moment,
               long milliseconds) {
  snprintf(folder, sizeof folder, "%s/", below);
  record = syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  fatal_kind = kind, fatal_number = number, fatal_moment = moment, delay = milliseconds;
  length = strlen(folder);
}

static void begin(void) {
  if (delay < 0 || atomic_exchange(&begun, 1)) return;
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
  struct itimerspec after = {.it_value = {delay / 1000, delay % 1000 * 1000000 + 1}};
  timer_t timer;
  if (timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer) || timer_settime(timer, 0, &after, NULL))
    note("no timer\n");
}

static void die(int kind, long number, const char *path) {
  note("killed %s %s %ld %s\n", moments[fatal_moment], kinds[kind], number, path);
  syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
}

/* Returns the operation's number, 0 if it does not count. */
static long enter(int kind, int directory, const char *name, char *path) {
  if (!length) return 0;
  path[0] = 0;
  if (name && (name[0] == '/' || directory == AT_FDCWD)) {
    snprintf(path, PATH_MAX, "%s", name);
  } else {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    if (size < 0) return 0;
    path[size] = 0;
    if (name) snprintf(path + size, PATH_MAX - size, "/%s", name);
  }
  if (strncmp(path, folder, length)) return 0;
  begin();
  long number = atomic_fetch_add(&counts[kind], 1) + 1;
  note("%s %ld %s\n", kinds[kind], number, path);
  if (kind == fatal_kind && number == fatal_number && fatal_moment == BEFORE)
    die(kind, number, path);
  return number;
}

static void leave(int kind, long number, const char *path) {
  if (number && kind == fatal_kind && number == fatal_number) die(kind, number, path);
}

#define NEXT(name) static typeof(name) *next; if (!next) next = dlsym(RTLD_NEXT, #name)
#define COUNTED(kind, directory, path_name, call) \
  char path[PATH_MAX]; \
  long number = enter(kind, directory, path_name, path); \
  typeof(call) result = call; \
  leave(kind, number, path); \
  return result

int rename(const char *a, const char *b) { NEXT(rename); COUNTED(RENAME, AT_FDCWD, b, next(a, b)); }
int renameat(int d, const char *a, int e, const char *b) {
  NEXT(renameat);
  COUNTED(RENAME, e, b, next(d, a, e, b));
}
int renameat2(int d, const char *a, int e, const char *b, unsigned flags) {
  NEXT(renameat2);
  COUNTED(RENAME, e, b, next(d, a, e, b, flags));
}
int unlink(const char *a) { NEXT(unlink); COUNTED(UNLINK, AT_FDCWD, a, next(a)); }
int unlinkat(int d, const char *a, int flags) {
  NEXT(unlinkat);
  COUNTED(UNLINK, d, a, next(d, a, flags));
}
int rmdir(const char *a) { NEXT(rmdir); COUNTED(UNLINK, AT_FDCWD, a, next(a)); }
int mkdir(const char *a, mode_t mode) { NEXT(mkdir); COUNTED(MKDIR, AT_FDCWD, a, next(a, mode)); }
int mkdirat(int d, const char *a, mode_t mode) {
  NEXT(mkdirat);
  COUNTED(MKDIR, d, a, next(d, a, mode));
}
int fsync(int f) { NEXT(fsync); COUNTED(FSYNC, f, NULL, next(f)); }
int fdatasync(int f) { NEXT(fdatasync); COUNTED(FSYNC, f, NULL, next(f)); }

static int halved(long number) {
  return number && fatal_kind == WRITE && number == fatal_number && fatal_moment == HALF;
}
ssize_t write(int f, const void *data, size_t size) {
  NEXT(write);
  char path[PATH_MAX];
  long number = enter(WRITE, f, NULL, path);
  ssize_t result = next(f, data, halved(number) ? size / 2 : size);
  leave(WRITE, number, path);
  return result;
}
static ssize_t at(ssize_t (*next)(int, const void *, size_t, off_t), int f, const void *data,
                  size_t size, off_t place) {
  char path[PATH_MAX];
  long number = enter(WRITE, f, NULL, path);
  ssize_t result = next(f, data, halved(number) ? size / 2 : size, place);
  leave(WRITE, number, path);
  return result;
}
ssize_t pwrite(int f, const void *data, size_t size, off_t place) {
  NEXT(pwrite);
  return at(next, f, data, size, place);
}
ssize_t pwrite64(int f, const void *data, size_t size, off_t place) {
  NEXT(pwrite64);
  return at(next, f, data, size, place);
}
ssize_t writev(int f, const struct iovec *parts, int count) {
  NEXT(writev);
  COUNTED(WRITE, f, NULL, next(f, parts, halved(number) ? count / 2 : count));
}
ssize_t sendfile(int out, int in, off_t *place, size_t size) {
  NEXT(sendfile);
  COUNTED(WRITE, out, NULL, next(out, in, place, halved(number) ? size / 2 : size));
}
