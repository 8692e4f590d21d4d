/* The application's side of a ring, for C: docs/format/usrbio_ring.md. It talks to the ring and to the mount's folder
 * 3fs-virt, and to nothing else. client/usrbio/{layout,ring,files,mountpoint}.py are the same in Python. */
#define _GNU_SOURCE
#include "hf3fs_usrbio.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define IOC_MAGIC _IOR('h', 2, uint32_t)
#define IOC_REGISTER _IOR('h', 64, uint64_t)
#define IOC_DEREGISTER _IOW('h', 65, uint64_t)
#define MPOL_BIND 2
#define NODES_MAX 1024
#define ENTRIES_MAX 65536
#define PUNCH_RANGES_MAX 1000
#define SPIN_NS 50000        /* a wait looks again so long before it sleeps: waking takes as long as a small batch */
#define SLEEP_NS 1000000000L /* at most so long it sleeps: then it looks again, whatever was missed */

/* The ring */

struct header {
  char magic[8];
  uint32_t version, header_bytes, entries, for_read;
  int32_t io_depth, priority, timeout_ms;
  uint32_t unused;
  uint64_t flags, nbytes;
  char gap1[8];
  uint32_t sq_doorbell;
  char gap2[60];
  uint32_t cq_doorbell, state;
  uint64_t completed;
  char gap3[112];
};
_Static_assert(sizeof(struct header) == 256, "as docs/format/usrbio_ring.md says");

struct sqe {
  uint8_t region[16];
  uint64_t region_offset, file, file_offset, length, userdata, unused;
};
_Static_assert(sizeof(struct sqe) == 64, "as docs/format/usrbio_ring.md says");

struct ring {
  struct header *header;
  uint64_t *sq_seq, *cq_seq;
  int64_t *results;
  struct sqe *sqes;
  uint64_t head, reaped; /* positions: the next to prepare, and the next to hand out */
  char link[PATH_MAX];
};

static size_t sqes_at(size_t entries) { return (256 + entries * 24 + 63) & ~(size_t)63; }

EXPORT size_t hf3fs_ior_size(int entries) {
  return entries < 1 || entries > ENTRIES_MAX ? 0 : (sqes_at(entries) + (size_t)entries * 64 + 4095) & ~(size_t)4095;
}

static long futex(uint32_t *word, int what, uint32_t value, const struct timespec *timeout) {
  return syscall(SYS_futex, word, what, value, timeout, NULL, 0);
}

/* Memory */

struct owned { /* what hf3fs_iovdestroy gives back */
  char link[PATH_MAX], shm[64];
};

static void new_id(uint8_t id[16]) {
  if (getrandom(id, 16, 0) != 16) abort(); /* the kernel always has 16 bytes */
  id[6] = (id[6] & 0x0f) | 0x40;
  id[8] = (id[8] & 0x3f) | 0x80;
}

static void hex(char *into, const uint8_t id[16], bool hyphens) {
  for (int i = 0; i < 16; ++i) {
    if (hyphens && (i == 4 || i == 6 || i == 8 || i == 10)) *into++ = '-';
    into += sprintf(into, "%02x", id[i]);
  }
}

static int bind_to(void *base, size_t size, int numa) {
  unsigned long nodes[NODES_MAX / (8 * sizeof(long))] = {0};
  if (numa < 0) return 0;
  if (numa >= NODES_MAX) return -EINVAL;
  nodes[numa / (8 * sizeof(long))] = 1UL << (numa % (8 * sizeof(long)));
  return syscall(SYS_mbind, base, size, MPOL_BIND, nodes, NODES_MAX, 0) == 0 ? 0 : -errno;
}

/* New memory in /dev/shm, mapped; the name is put into `shm`. Reserved at once where it is said to be. */
static int new_memory(char shm[64], const uint8_t id[16], size_t size, int numa, mode_t mode, bool reserve,
                      void **base) {
  char name[40];
  hex(name, id, true);
  snprintf(shm, 64, "/dev/shm/hf3fs-iov-%s", name);
  int fd = open(shm, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  if (fd < 0) return -EIO;
  int failed = reserve ? posix_fallocate(fd, 0, size) : ftruncate(fd, size) < 0 ? errno : 0;
  *base = failed ? MAP_FAILED : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (*base == MAP_FAILED) failed = EIO;
  close(fd);
  if (!failed) {
    failed = -bind_to(*base, size, numa);
    if (failed) munmap(*base, size);
  }
  if (failed) unlink(shm);
  return -failed;
}

/* `id` and `mount` may be the structure's own. */
static bool set_iov(struct hf3fs_iov *iov, void *base, const uint8_t id[16], const char *mount, size_t size,
                    size_t block_size, int numa) {
  if (!mount || !*mount || strlen(mount) >= sizeof iov->mount_point || !size) return false;
  memmove(iov->id, id, 16);
  memmove(iov->mount_point, mount, strlen(mount) + 1);
  iov->base = base;
  iov->iovh = NULL;
  iov->size = size;
  iov->block_size = block_size;
  iov->numa = numa;
  return true;
}

EXPORT int hf3fs_iovcreate(struct hf3fs_iov *iov, const char *mount, size_t size, size_t block_size, int numa) {
  uint8_t id[16];
  char name[40], block[32] = "";
  void *base;
  new_id(id);
  if (!set_iov(iov, NULL, id, mount, size, block_size, numa)) return -EINVAL;
  struct owned *owned = calloc(1, sizeof *owned);
  if (!owned) return -ENOMEM;
  int done = new_memory(owned->shm, id, size, numa, 0666, false, &base);
  if (done < 0) {
    free(owned);
    return done;
  }
  hex(name, id, false);
  if (block_size) snprintf(block, sizeof block, ".b%zu", block_size);
  snprintf(owned->link, sizeof owned->link, "%s/3fs-virt/iovs/%s%s", mount, name, block);
  if (symlink(owned->shm, owned->link) < 0) {
    done = -errno;
    munmap(base, size);
    unlink(owned->shm);
    free(owned);
    return done;
  }
  iov->base = base;
  iov->iovh = owned;
  return 0;
}

EXPORT int hf3fs_iovopen(struct hf3fs_iov *iov, const uint8_t id[16], const char *mount, size_t size, size_t block_size,
                         int numa) {
  char name[40], block[32] = "", link[PATH_MAX], shm[PATH_MAX];
  ssize_t length = -1;
  if (!set_iov(iov, NULL, id, mount, size, block_size, numa)) return -EINVAL;
  if (block_size) snprintf(block, sizeof block, ".b%zu", block_size);
  for (int hyphens = 0; hyphens < 2 && length < 0; ++hyphens) { /* C makes names of one kind, Python of the other */
    hex(name, id, hyphens);
    snprintf(link, sizeof link, "%s/3fs-virt/iovs/%s%s", mount, name, block);
    length = readlink(link, shm, sizeof shm - 1);
  }
  if (length < 0) return -errno;
  shm[length] = 0;
  if (strncmp(shm, "/dev/shm/", 9) != 0) return -EINVAL;
  int fd = open(shm, O_RDWR | O_CLOEXEC);
  if (fd < 0) return -errno;
  struct stat state;
  int failed = fstat(fd, &state) < 0 ? errno : (size_t)state.st_size < size ? EINVAL : 0;
  void *base = failed ? MAP_FAILED : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (base == MAP_FAILED) return failed ? -failed : -EIO;
  struct owned *owned = calloc(1, sizeof *owned); /* link and memory stay their maker's */
  if (!owned) {
    munmap(base, size);
    return -ENOMEM;
  }
  iov->base = base;
  iov->iovh = owned;
  return 0;
}

EXPORT int hf3fs_iovwrap(struct hf3fs_iov *iov, void *base, const uint8_t id[16], const char *mount, size_t size,
                         size_t block_size, int numa) {
  return set_iov(iov, base, id, mount, size, block_size, numa) ? 0 : -EINVAL;
}

EXPORT void hf3fs_iovunlink(struct hf3fs_iov *iov) {
  struct owned *owned = iov->iovh;
  if (owned && *owned->shm) {
    unlink(owned->shm);
    *owned->shm = 0;
  }
}

EXPORT void hf3fs_iovdestroy(struct hf3fs_iov *iov) {
  struct owned *owned = iov->iovh;
  if (!owned) return;
  if (*owned->link) unlink(owned->link);
  hf3fs_iovunlink(iov);
  munmap(iov->base, iov->size);
  free(owned);
  iov->iovh = NULL;
  iov->base = NULL;
}

/* Rings */

static int create(struct hf3fs_ior *ior, const char *mount, int entries, bool for_read, int io_depth, int priority,
                  int timeout, int numa, uint64_t flags) {
  uint8_t id[16];
  char name[40], bits[72] = "", shm[64];
  void *base;
  size_t size = hf3fs_ior_size(entries);
  memset(ior, 0, sizeof *ior);
  new_id(id);
  if (timeout < 0 || !size || io_depth < -entries || io_depth > entries || !set_iov(&ior->iov, NULL, id, mount, size, 0, numa))
    return -EINVAL;
  priority = priority < 0 ? -1 : priority > 0;
  struct ring *ring = calloc(1, sizeof *ring);
  if (!ring) return -ENOMEM;
  int done = new_memory(shm, id, size, numa, 0600, true, &base);
  if (done < 0) {
    free(ring);
    return done;
  }
  struct header *header = base;
  memcpy(header->magic, "FFSIORNG", 8);
  header->version = 1;
  header->header_bytes = sizeof *header;
  header->entries = entries;
  header->for_read = for_read;
  header->io_depth = io_depth;
  header->priority = priority;
  header->timeout_ms = timeout;
  header->flags = flags;
  header->nbytes = size;
  ring->header = header;
  ring->sq_seq = (uint64_t *)((uint8_t *)base + 256);
  ring->cq_seq = ring->sq_seq + entries;
  ring->results = (int64_t *)(ring->cq_seq + entries);
  ring->sqes = (struct sqe *)((uint8_t *)base + sqes_at(entries));
  if (flags) { /* in binary, as 3FS has it */
    char *digit = bits;
    *digit++ = '.', *digit++ = 'f';
    for (int bit = 63 - __builtin_clzll(flags); bit >= 0; --bit) *digit++ = '0' + (flags >> bit & 1);
    *digit = 0;
  }
  hex(name, id, false);
  snprintf(ring->link, sizeof ring->link, "%s/3fs-virt/iovs/%s.%c%d%s.t%d%s", mount, name, for_read ? 'r' : 'w',
           io_depth, priority < 0 ? ".ph" : priority > 0 ? ".pl" : "", timeout, bits);
  if (symlink(shm, ring->link) < 0) done = -errno;
  unlink(shm); /* the mount has opened it */
  if (done < 0) {
    munmap(base, size);
    free(ring);
    return done;
  }
  ior->iov.base = base;
  ior->iorh = ring;
  strcpy(ior->mount_point, mount);
  ior->for_read = for_read;
  ior->io_depth = io_depth;
  ior->priority = priority;
  ior->timeout = timeout;
  ior->flags = flags;
  return 0;
}

EXPORT int hf3fs_iorcreate(struct hf3fs_ior *ior, const char *mount, int entries, bool for_read, int io_depth,
                           int numa) {
  return create(ior, mount, entries, for_read, io_depth, 0, 0, numa, 0);
}

EXPORT int hf3fs_iorcreate2(struct hf3fs_ior *ior, const char *mount, int entries, bool for_read, int io_depth,
                            int priority, int numa) {
  return create(ior, mount, entries, for_read, io_depth, priority, 0, numa, 0);
}

EXPORT int hf3fs_iorcreate3(struct hf3fs_ior *ior, const char *mount, int entries, bool for_read, int io_depth,
                            int priority, int timeout, int numa) {
  return create(ior, mount, entries, for_read, io_depth, priority, timeout, numa, 0);
}

EXPORT int hf3fs_iorcreate4(struct hf3fs_ior *ior, const char *mount, int entries, bool for_read, int io_depth,
                            int timeout, int numa, uint64_t flags) {
  return create(ior, mount, entries, for_read, io_depth, 0, timeout, numa, flags);
}

EXPORT void hf3fs_iordestroy(struct hf3fs_ior *ior) {
  struct ring *ring = ior->iorh;
  if (!ring) return;
  unlink(ring->link);
  munmap(ring->header, ior->iov.size);
  free(ring);
  ior->iorh = NULL;
}

EXPORT int hf3fs_io_entries(const struct hf3fs_ior *ior) {
  const struct ring *ring = ior->iorh;
  return ring ? (int)(ring->cq_seq - ring->sq_seq) : 0;
}

/* Files */

struct file {
  uint64_t token;
  int fd, dup, access; /* access: O_RDONLY, O_WRONLY or O_RDWR */
  pid_t owner;
};

static pthread_mutex_t files_lock = PTHREAD_MUTEX_INITIALIZER;
static struct file **files; /* by number: of the descriptor, and of our duplicate, whose negative names it too */
static int files_room;

static struct file *find(int fd) {
  if (fd <= -files_room || fd >= files_room) return NULL;
  struct file *found = files[abs(fd)];
  return found && (fd >= 0 || found->dup == -fd) ? found : NULL;
}

static bool put(struct file *file) {
  int most = file->fd > file->dup ? file->fd : file->dup;
  if (most >= files_room) {
    int room = 2 * most + 64;
    struct file **more = realloc(files, room * sizeof *more);
    if (!more) return false;
    memset(more + files_room, 0, (room - files_room) * sizeof *more);
    files = more, files_room = room;
  }
  files[file->fd] = files[file->dup] = file;
  return true;
}

EXPORT bool hf3fs_is_hf3fs(int fd) {
  uint32_t magic = 0;
  return ioctl(fd, IOC_MAGIC, &magic) == 0 && magic == HF3FS_SUPER_MAGIC;
}

EXPORT int hf3fs_reg_fd(int fd, uint64_t flags) {
  (void)flags;
  if (fd < 0 || !hf3fs_is_hf3fs(fd)) return EBADF;
  struct file *file = calloc(1, sizeof *file);
  if (!file) return ENOMEM;
  int failed = 0, dup = -1;
  pthread_mutex_lock(&files_lock);
  if (find(fd)) {
    failed = EINVAL;
  } else {
    dup = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    *file = (struct file){.fd = fd, .dup = dup, .access = fcntl(fd, F_GETFL) & O_ACCMODE, .owner = getpid()};
    if (dup < 0 || ioctl(dup, IOC_REGISTER, &file->token) < 0)
      failed = errno;
    else if (!put(file))
      failed = ENOMEM, ioctl(dup, IOC_DEREGISTER, &file->token);
  }
  pthread_mutex_unlock(&files_lock);
  if (!failed) return -dup;
  if (dup >= 0) close(dup);
  free(file);
  return failed;
}

EXPORT void hf3fs_dereg_fd(int fd) {
  pthread_mutex_lock(&files_lock);
  struct file *file = find(fd);
  if (file) {
    if (files[file->fd] == file) files[file->fd] = NULL;
    if (files[file->dup] == file) files[file->dup] = NULL;
  }
  pthread_mutex_unlock(&files_lock);
  if (!file) return;
  if (file->owner == getpid()) ioctl(file->dup, IOC_DEREGISTER, &file->token); /* a forked child's is its parent's too */
  close(file->dup);
  free(file);
}

/* I/O */

EXPORT int hf3fs_prep_io(const struct hf3fs_ior *ior, const struct hf3fs_iov *iov, bool read, void *ptr, int fd,
                         size_t off, uint64_t len, const void *userdata) {
  struct ring *ring = ior ? ior->iorh : NULL;
  uint8_t *begin = ptr;
  if (!ring || !iov || read != ior->for_read || !len || begin < iov->base || len > iov->size ||
      (size_t)(begin - iov->base) > iov->size - len)
    return -EINVAL;
  pthread_mutex_lock(&files_lock);
  struct file *known = find(fd), file = {0};
  if (known) file = *known;
  pthread_mutex_unlock(&files_lock);
  if (!known) return -EBADF;
  if (file.access == (read ? O_WRONLY : O_RDONLY)) return -EACCES;
  uint64_t entries = ring->cq_seq - ring->sq_seq;
  if (ring->head - __atomic_load_n(&ring->reaped, __ATOMIC_ACQUIRE) >= entries) return -EAGAIN;
  uint32_t slot = ring->head % entries;
  struct sqe *sqe = &ring->sqes[slot];
  memcpy(sqe->region, iov->id, 16);
  sqe->region_offset = begin - iov->base;
  sqe->file = file.token;
  sqe->file_offset = off;
  sqe->length = len;
  sqe->userdata = (uintptr_t)userdata;
  __atomic_store_n(&ring->sq_seq[slot], ++ring->head, __ATOMIC_RELEASE);
  return slot;
}

EXPORT int hf3fs_submit_ios(const struct hf3fs_ior *ior) {
  struct ring *ring = ior ? ior->iorh : NULL;
  if (!ring) return -EINVAL;
  __atomic_add_fetch(&ring->header->sq_doorbell, 1, __ATOMIC_SEQ_CST);
  futex(&ring->header->sq_doorbell, FUTEX_WAKE, INT_MAX, NULL);
  return 0;
}

static int64_t now_ns(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* The end of time for what 64 bits do not count. */
static int64_t ns_of(const struct timespec *time) {
  if (time->tv_sec < 0) return 0;
  return time->tv_sec >= INT64_MAX / 1000000000LL ? INT64_MAX : time->tv_sec * 1000000000LL + time->tv_nsec;
}

EXPORT int hf3fs_wait_for_ios(const struct hf3fs_ior *ior, struct hf3fs_cqe *cqes, int cqec, int min_results,
                              const struct timespec *abs_timeout) {
  struct ring *ring = ior ? ior->iorh : NULL;
  if (!ring || cqec <= 0) return -EINVAL;
  if (min_results > cqec) min_results = cqec;
  struct header *header = ring->header;
  uint64_t entries = ring->cq_seq - ring->sq_seq;
  int64_t end_ns = abs_timeout ? ns_of(abs_timeout) : INT64_MAX;
  int64_t spin_until_ns = now_ns(CLOCK_MONOTONIC) + SPIN_NS;
  for (int count = 0;;) {
    uint32_t bell = __atomic_load_n(&header->cq_doorbell, __ATOMIC_ACQUIRE);
    while (count < cqec) {
      uint32_t slot = ring->reaped % entries;
      if (__atomic_load_n(&ring->cq_seq[slot], __ATOMIC_ACQUIRE) != ring->reaped + 1) break;
      cqes[count++] = (struct hf3fs_cqe){
          .index = slot, .result = ring->results[slot], .userdata = (void *)(uintptr_t)ring->sqes[slot].userdata};
      __atomic_store_n(&ring->reaped, ring->reaped + 1, __ATOMIC_RELEASE);
    }
    int64_t left_ns = abs_timeout ? end_ns - now_ns(CLOCK_REALTIME) : INT64_MAX;
    if (count >= min_results || left_ns <= 0) return count;
    if (header->state) return count ? count : -(int)(header->state < 4096 ? header->state : EIO);
    if (now_ns(CLOCK_MONOTONIC) < spin_until_ns) {
      sched_yield();
      continue;
    }
    if (left_ns > SLEEP_NS) left_ns = SLEEP_NS;
    struct timespec timeout = {left_ns / 1000000000L, left_ns % 1000000000L};
    futex(&header->cq_doorbell, FUTEX_WAIT, bell, &timeout);
  }
}

/* Paths */

/* The path without links and dots; what does not exist of its end is left as it is. */
static bool real_path(const char *path, char real[PATH_MAX]) {
  char head[PATH_MAX];
  size_t length = strlen(path), end = length; /* path[0, end) may exist */
  if (!length || length >= sizeof head) return false;
  strcpy(head, path);
  while (!realpath(end ? head : ".", real)) {
    if (errno != ENOENT) return false;
    while (end && path[end - 1] == '/') --end;
    size_t begin = end;
    while (begin && path[begin - 1] != '/') --begin;
    if (begin == end || (end - begin == 2 && !strncmp(path + begin, "..", 2))) return false;
    head[end = begin] = 0;
  }
  while (length > end && path[length - 1] == '/') --length;
  if (end == length) return true;
  size_t known = strcmp(real, "/") ? strlen(real) : 0;
  return snprintf(real + known, PATH_MAX - known, "/%.*s", (int)(length - end), path + end) < (int)(PATH_MAX - known);
}

static void unescape(char *text) { /* \ooo, as mountinfo writes spaces */
  char *into = text;
  for (; *text; ++into)
    if (text[0] == '\\' && text[1] >= '0' && text[1] <= '3' && text[2] && text[3]) {
      *into = (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 | (text[3] - '0'));
      text += 4;
    } else {
      *into = *text++;
    }
  *into = 0;
}

EXPORT int hf3fs_extract_mount_point(char *mount, int size, const char *path) {
  char real[PATH_MAX], best[PATH_MAX] = "", virt[PATH_MAX + 16], *line = NULL;
  const char *any = getenv("HF3FS_USRBIO_DONT_CHECKFS_FOR_MP");
  bool ours = false, any_type = any && !strcmp(any, "yes");
  size_t room = 0;
  FILE *table = real_path(path, real) ? fopen("/proc/self/mountinfo", "re") : NULL;
  if (!table) return -1;
  while (getline(&line, &room, table) >= 0) {
    char point[PATH_MAX], type[64];
    char *dash = strstr(line, " - ");
    if (!dash || sscanf(line, "%*s %*s %*s %*s %4095s", point) != 1 || sscanf(dash + 3, "%63s", type) != 1) continue;
    unescape(point);
    size_t length = strlen(point);
    bool under = !strcmp(point, "/") || (!strncmp(real, point, length) && (!real[length] || real[length] == '/'));
    if (under && length >= strlen(best)) {
      strcpy(best, point);
      ours = any_type || !strcmp(type, "fuse.hf3fs") || !strcmp(type, "fuse.fireflyfs");
    }
  }
  free(line);
  fclose(table);
  struct stat state;
  snprintf(virt, sizeof virt, "%s/3fs-virt", best);
  if (!ours || stat(virt, &state) < 0 || !S_ISDIR(state.st_mode)) return -1;
  int need = (int)strlen(best) + 1;
  if (need <= size) strcpy(mount, best);
  return need;
}

EXPORT int hf3fs_hardlink(const char *target, const char *link_name) { return link(target, link_name) < 0 ? errno : 0; }

EXPORT int hf3fs_punchhole(int fd, int n, const size_t *start, const size_t *end, size_t flags) {
  (void)flags;
  if (n < 0 || n > PUNCH_RANGES_MAX) return EINVAL;
  for (int i = 0; i < n; ++i) {
    if (start[i] >= end[i]) return EINVAL;
    if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start[i], end[i] - start[i]) < 0) return errno;
  }
  return 0;
}
