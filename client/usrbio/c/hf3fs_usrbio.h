/* I/O through rings in shared memory: 3FS's C interface, served by FireflyFS (docs/usrbio.md). */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HF3FS_SUPER_MAGIC 0x8f3f5fff

typedef void *hf3fs_iov_handle;
typedef void *hf3fs_ior_handle;

/* Memory that I/O lands in or leaves from. */
struct hf3fs_iov {
  uint8_t *base;
  hf3fs_iov_handle iovh;
  char id[16];
  char mount_point[256];
  size_t size;
  size_t block_size;
  int numa;
};

/* A ring of I/Os in one direction. */
struct hf3fs_ior {
  struct hf3fs_iov iov;
  hf3fs_ior_handle iorh;
  char mount_point[256];
  bool for_read;
  int io_depth;
  int priority;
  int timeout;
  uint64_t flags;
};

struct hf3fs_cqe {
  int32_t index;
  int32_t reserved;
  int64_t result; /* bytes moved, or -errno */
  const void *userdata;
};

bool hf3fs_is_hf3fs(int fd);
/* Length of the mount point with its NUL, which is copied where it fits; -1: the path is on no such mount. */
int hf3fs_extract_mount_point(char *hf3fs_mount_point, int size, const char *path);

/* 0, or -errno. The structures are the caller's. */
int hf3fs_iovcreate(struct hf3fs_iov *iov, const char *hf3fs_mount_point, size_t size, size_t block_size, int numa);
int hf3fs_iovopen(struct hf3fs_iov *iov, const uint8_t id[16], const char *hf3fs_mount_point, size_t size,
                  size_t block_size, int numa);
void hf3fs_iovunlink(struct hf3fs_iov *iov);  /* the name in /dev/shm; the memory stays */
void hf3fs_iovdestroy(struct hf3fs_iov *iov); /* nothing happens to one that was wrapped */
int hf3fs_iovwrap(struct hf3fs_iov *iov, void *base, const uint8_t id[16], const char *hf3fs_mount_point, size_t size,
                  size_t block_size, int numa);

#define HF3FS_IOR_ALLOW_READ_UNCOMMITTED 1 /* makes no difference here */
#define HF3FS_IOR_FORBID_READ_HOLES 2      /* a read of a hole is -ENODATA */

size_t hf3fs_ior_size(int entries);
int hf3fs_iorcreate(struct hf3fs_ior *ior, const char *hf3fs_mount_point, int entries, bool for_read, int io_depth,
                    int numa);
int hf3fs_iorcreate2(struct hf3fs_ior *ior, const char *hf3fs_mount_point, int entries, bool for_read, int io_depth,
                     int priority, int numa);
int hf3fs_iorcreate3(struct hf3fs_ior *ior, const char *hf3fs_mount_point, int entries, bool for_read, int io_depth,
                     int priority, int timeout, int numa);
int hf3fs_iorcreate4(struct hf3fs_ior *ior, const char *hf3fs_mount_point, int entries, bool for_read, int io_depth,
                     int timeout, int numa, uint64_t flags);
void hf3fs_iordestroy(struct hf3fs_ior *ior);
int hf3fs_io_entries(const struct hf3fs_ior *ior);

/* <= 0: done, and its negative may be used in place of fd; > 0: errno. */
int hf3fs_reg_fd(int fd, uint64_t flags);
void hf3fs_dereg_fd(int fd);

/* The slot, or -errno: EINVAL, EBADF (not registered), EACCES (not open for it), EAGAIN (full). Not thread-safe. */
int hf3fs_prep_io(const struct hf3fs_ior *ior, const struct hf3fs_iov *iov, bool read, void *ptr, int fd, size_t off,
                  uint64_t len, const void *userdata);
int hf3fs_submit_ios(const struct hf3fs_ior *ior);
/* How many completions, in the order of submission, or -errno. abs_timeout is of CLOCK_REALTIME; NULL waits for ever. */
int hf3fs_wait_for_ios(const struct hf3fs_ior *ior, struct hf3fs_cqe *cqes, int cqec, int min_results,
                       const struct timespec *abs_timeout);

/* 0, or a positive errno. */
int hf3fs_hardlink(const char *target, const char *link_name);
int hf3fs_punchhole(int fd, int n, const size_t *start, const size_t *end, size_t flags);

#ifdef __cplusplus
}
#endif
