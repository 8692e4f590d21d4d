/* Uses every call of 3FS's C interface on the file NAME of the mount MOUNT. Says what is wrong and fails. */
#include <errno.h>
#include <fcntl.h>
#include <hf3fs_usrbio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what)                                                                 \
  do {                                                                              \
    if (!(what)) {                                                                  \
      fprintf(stderr, "line %d: %s (errno %d)\n", __LINE__, #what, errno);          \
      exit(1);                                                                      \
    }                                                                               \
  } while (0)

int main(int argc, char **argv) {
  CHECK(argc == 3);
  const char *mount = argv[1];
  char path[512], other[520], point[256], small[2];
  snprintf(path, sizeof path, "%s/%s", mount, argv[2]);
  snprintf(other, sizeof other, "%s-2", path);

  CHECK(hf3fs_extract_mount_point(point, sizeof point, path) == (int)strlen(mount) + 1 && !strcmp(point, mount));
  CHECK(hf3fs_extract_mount_point(small, sizeof small, path) == (int)strlen(mount) + 1);
  CHECK(hf3fs_extract_mount_point(point, sizeof point, "/proc") == -1);

  struct hf3fs_iov iov, same, part;
  size_t size = 8 << 20;
  CHECK(hf3fs_iovcreate(&iov, "", size, 0, -1) == -EINVAL);
  CHECK(hf3fs_iovcreate(&iov, "/nowhere", size, 0, -1) == -ENOENT);
  CHECK(hf3fs_iovcreate(&iov, mount, size, 0, 0) == 0);
  CHECK(hf3fs_iovopen(&same, (uint8_t *)iov.id, mount, size, 0, -1) == 0 && same.base != iov.base);
  iov.base[7] = 42;
  CHECK(same.base[7] == 42);
  hf3fs_iovunlink(&iov);
  CHECK(hf3fs_iovopen(&part, (uint8_t *)iov.id, mount, size, 0, -1) == -ENOENT);
  CHECK(hf3fs_iovwrap(&part, iov.base, (uint8_t *)iov.id, mount, 4096, 0, -1) == 0);

  struct hf3fs_ior reads, writes, full;
  CHECK(hf3fs_ior_size(0) == 0 && hf3fs_ior_size(1024) >= 1024 * 64);
  CHECK(hf3fs_iorcreate4(&reads, mount, 8, true, 0, -1, -1, 0) == -EINVAL);
  CHECK(hf3fs_iorcreate4(&reads, mount, 8, true, 0, 0, -1, HF3FS_IOR_FORBID_READ_HOLES) == 0);
  CHECK(hf3fs_iorcreate3(&writes, mount, 8, false, -4, -1, 10, 0) == 0);
  CHECK(hf3fs_iorcreate2(&full, mount, 2, true, 2, 1, -1) == 0);
  CHECK(hf3fs_io_entries(&reads) == 8 && hf3fs_io_entries(&full) == 2);

  int fd = open(path, O_RDWR | O_CREAT, 0644), one_way = open(path, O_RDONLY), foreign = open("/proc/self/status", O_RDONLY);
  CHECK(fd >= 0 && one_way >= 0 && foreign >= 0);
  CHECK(hf3fs_is_hf3fs(fd) && !hf3fs_is_hf3fs(foreign));
  CHECK(hf3fs_prep_io(&reads, &iov, true, iov.base, fd, 0, 10, NULL) == -EBADF);
  int handle = hf3fs_reg_fd(fd, 0);
  CHECK(handle < 0 && hf3fs_reg_fd(fd, 0) == EINVAL && hf3fs_reg_fd(foreign, 0) == EBADF);
  CHECK(hf3fs_reg_fd(one_way, 0) <= 0);
  CHECK(hf3fs_prep_io(&writes, &iov, false, iov.base, one_way, 0, 10, NULL) == -EACCES);
  CHECK(hf3fs_prep_io(&writes, &iov, true, iov.base, fd, 0, 10, NULL) == -EINVAL);
  CHECK(hf3fs_prep_io(&reads, &iov, true, iov.base, fd, 0, 0, NULL) == -EINVAL);
  CHECK(hf3fs_prep_io(&reads, &iov, true, iov.base + size - 5, fd, 0, 10, NULL) == -EINVAL);
  CHECK(hf3fs_prep_io(&reads, &iov, true, iov.base - 1, fd, 0, 10, NULL) == -EINVAL);

  for (size_t i = 0; i < size; ++i) iov.base[i] = (uint8_t)(i * 31 + i / 977);
  struct hf3fs_cqe cqes[8];
  for (int i = 0; i < 4; ++i) /* the negative handle will do as well */
    CHECK(hf3fs_prep_io(&writes, &iov, false, iov.base + i * 1000000, i % 2 ? handle : fd, i * 1000000, 1000000,
                        iov.base + i) == i);
  CHECK(hf3fs_submit_ios(&writes) == 0);
  CHECK(hf3fs_wait_for_ios(&writes, cqes, 0, 0, NULL) == -EINVAL);
  CHECK(hf3fs_wait_for_ios(&writes, cqes, 8, 4, NULL) == 4);
  for (int i = 0; i < 4; ++i)
    CHECK(cqes[i].index == i && cqes[i].result == 1000000 && cqes[i].userdata == iov.base + i);
  struct stat state;
  CHECK(fstat(fd, &state) == 0 && state.st_size == 4000000);

  uint8_t *want = malloc(4000000);
  CHECK(want);
  memcpy(want, iov.base, 4000000);
  memset(iov.base, 0, 5000000);
  CHECK(hf3fs_prep_io(&reads, &iov, true, iov.base, fd, 0, 5000000, NULL) == 0); /* short: the file ends */
  CHECK(hf3fs_prep_io(&reads, &part, true, part.base + 100, one_way, 4000000, 10, NULL) == 1);
  CHECK(hf3fs_submit_ios(&reads) == 0);
  CHECK(hf3fs_wait_for_ios(&reads, cqes, 8, 2, NULL) == 2);
  CHECK(cqes[0].result == 4000000 && cqes[1].result == 0 && !memcmp(iov.base, want, 4000000));

  CHECK(hf3fs_prep_io(&full, &iov, true, iov.base, fd, 0, 10, NULL) == 0);
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  CHECK(hf3fs_wait_for_ios(&full, cqes, 8, 2, &until) == 0); /* two are taken at once */
  CHECK(hf3fs_prep_io(&full, &iov, true, iov.base, fd, 0, 10, NULL) == 1);
  CHECK(hf3fs_prep_io(&full, &iov, true, iov.base, fd, 0, 10, NULL) == -EAGAIN);
  CHECK(hf3fs_submit_ios(&full) == 0);
  CHECK(hf3fs_wait_for_ios(&full, cqes, 1, 1, NULL) == 1 && cqes[0].result == 10);
  CHECK(hf3fs_wait_for_ios(&full, cqes, 8, 1, NULL) == 1 && cqes[0].index == 1);

  size_t start = 1 << 20, end = 2 << 20;
  CHECK(hf3fs_punchhole(fd, 1, &start, &end, 0) == 0 && hf3fs_punchhole(fd, 1, &end, &start, 0) == EINVAL);
  CHECK(hf3fs_prep_io(&reads, &iov, true, iov.base, fd, start, 10, NULL) == 2 && hf3fs_submit_ios(&reads) == 0);
  CHECK(hf3fs_wait_for_ios(&reads, cqes, 8, 1, NULL) == 1 && cqes[0].result == -ENODATA);
  CHECK(hf3fs_hardlink(path, other) == 0 && hf3fs_hardlink(path, other) == EEXIST);

  pid_t child = fork(); /* what a child lets go of, its parent keeps */
  if (!child) {
    hf3fs_dereg_fd(fd);
    _exit(hf3fs_prep_io(&reads, &iov, true, iov.base, fd, 0, 10, NULL) == -EBADF ? 0 : 1);
  }
  int said = -1;
  CHECK(waitpid(child, &said, 0) == child && said == 0);
  CHECK(hf3fs_prep_io(&reads, &iov, true, iov.base, fd, 0, 10, NULL) >= 0 && hf3fs_submit_ios(&reads) == 0);
  CHECK(hf3fs_wait_for_ios(&reads, cqes, 8, 1, NULL) == 1 && cqes[0].result == 10);

  hf3fs_dereg_fd(fd);
  hf3fs_dereg_fd(fd);
  CHECK(hf3fs_prep_io(&reads, &iov, true, iov.base, fd, 0, 10, NULL) == -EBADF);
  CHECK(hf3fs_reg_fd(fd, 0) <= 0);
  hf3fs_dereg_fd(fd);
  hf3fs_dereg_fd(one_way);
  hf3fs_iordestroy(&reads);
  hf3fs_iordestroy(&writes);
  hf3fs_iordestroy(&full);
  hf3fs_iovdestroy(&part); /* wrapped: nothing happens */
  hf3fs_iovdestroy(&same);
  hf3fs_iovdestroy(&iov);
  CHECK(hf3fs_io_entries(&reads) == 0);
  return 0;
}
