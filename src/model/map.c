/* map.c: mapping a file, with one line about what cannot be. */
#include "config.h"
#include "src/model/map.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

bs_status bs_map_open(const char *path, const char *first, bs_map *out)
{
    bs_status status = BS_STATUS_OK;
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO without a writer is not waited for */
    if (fd < 0) return bs_fail(BS_STATUS_IO, "%s: %s", path, strerror(errno));
    if (fstat(fd, &info) != 0) {
        status = bs_fail(BS_STATUS_IO, "%s: %s", path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        status = bs_fail(BS_STATUS_IO, "%s: not a regular file", path);
    } else if (info.st_size == 0) {
        status = bs_fail(BS_STATUS_FORMAT, "%s: %s, the file is empty", path, first);
    } else {
        void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED)
            status = bs_fail(BS_STATUS_IO, "%s: cannot be mapped: %s", path, strerror(errno));
        else *out = (bs_map){map, (uint64_t)info.st_size};
    }
    close(fd);
    return status;
}

void bs_map_close(bs_map *map)
{
    if (map->bytes) munmap((void *)map->bytes, (size_t)map->n);
    *map = (bs_map){0};
}
